//! What says elsewhere which quantized formats there are, and how a GPU's memory holds them, agrees with src/quant/formats.

use std::path::{Path, PathBuf};
use wavelm::bench_internals::{kernel_name, planes, tensor_types};
use wavelm::gguf::TensorType;

fn hip() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hip")
}

fn text(name: &str) -> String {
    let path = hip().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The pairs of numbers in parentheses, like `(0, 16)`.
fn pairs(text: &str) -> Vec<(usize, usize)> {
    let pair = |part: &str| {
        let (at, len) = part.split_once(')')?.0.split_once(", ")?;
        Some((at.parse().ok()?, len.parse().ok()?))
    };
    text.split('(').filter_map(pair).collect()
}

fn quantized() -> impl Iterator<Item = TensorType> {
    tensor_types().filter(|ty| ty.is_quantized())
}

/// The types in a list of hip/quant/formats.h, by which kernels are stamped.
fn stamped(list: &str) -> Vec<String> {
    let text = text("quant/formats.h");
    let list = text.split(&format!("#define {list}(STAMP)")).nth(1).unwrap();
    // A macro ends with the first line that is not continued.
    let list = &list[..list.match_indices('\n').find(|(at, _)| !list[..*at].ends_with('\\')).unwrap().0];
    let stamp = |part: &str| Some(part.split_once(',')?.0.to_owned());
    list.split("STAMP(").skip(1).filter_map(stamp).collect()
}

#[test]
fn the_kernels_have_the_same_formats() {
    assert_eq!(stamped("QUANTIZED_FORMATS"), quantized().map(|ty| kernel_name(ty).unwrap()).collect::<Vec<_>>());
    // Matrix cores multiply these as well: F32 may hold numbers that their halves cannot.
    assert_eq!(stamped("HALF_FORMATS"), ["f16", "bf16"]);
}

#[test]
fn the_planes_are_those_of_the_kernels() {
    let text = text("quant/formats.h");
    for ty in quantized() {
        let name = format!("{} ", ty.name());
        let line = text.lines().find_map(|line| line.strip_prefix("//")?.trim_start().strip_prefix(&name));
        assert_eq!(pairs(line.unwrap_or_default()), planes(ty).unwrap(), "{ty:?} in hip/quant/formats.h");
    }
}

#[test]
fn the_references_have_the_same_formats() {
    let text = text("tests/references.py");
    let table = text.split("FORMATS = {\n").nth(1).unwrap().split("\n}").next().unwrap();
    let lines: Vec<_> = table.lines().map(|line| line.trim().split_once(": ").unwrap()).collect();
    for (ty, (name, fields)) in tensor_types().zip(&lines) {
        assert_eq!(name.trim_matches('"'), kernel_name(ty).unwrap());
        assert_eq!(pairs(fields.split(']').next().unwrap()), planes(ty).unwrap(), "{name} in hip/tests/references.py");
    }
    assert_eq!(lines.len(), tensor_types().count());
}
