//! The layers of the library: a module uses only those above it in the list, so that no circle of imports crosses folders.

use std::path::{Path, PathBuf};

/// From the bottom to the top.
const LAYERS: [&str; 14] = [
    "error",
    "memory",
    "simd",
    "gguf",
    "quant",
    "program",
    "tokenizer",
    "chat",
    "sampler",
    "backend",
    "device",
    "model",
    "session",
    "bench_internals",
];

/// Where names of the crate's root come from.
const ROOT: [(&str, &str); 8] = [
    ("Error", "error"),
    ("ErrorKind", "error"),
    ("Result", "error"),
    ("Precision", "program"),
    ("Message", "chat"),
    ("Sampler", "sampler"),
    ("KvType", "backend"),
    ("Canceller", "backend"),
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The first names behind `crate::`, in braces or without, outside of comments and of tests, which may look anywhere.
fn imports(text: &str) -> Vec<String> {
    let text: String = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // `$crate::` of macros, and `(in crate::…)` of visibilities, are paths as well.
        let rest = &text[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let end = list.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth < 0
        });
        let mut depth = 0;
        let parts = list[..end.unwrap()].split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        found.extend(parts.map(|part| word(part.trim_start())).filter(|name| !name.is_empty()));
    }
    found
}

#[test]
fn no_layer_looks_up() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let (mut wrong, mut count) = (Vec::new(), 0);
    for path in all {
        let name = path.strip_prefix(&src).unwrap().with_extension("");
        let own = name.iter().next().unwrap().to_str().unwrap().to_string();
        if own == "lib" || name.ends_with("tests") {
            continue;
        }
        let place = |layer: &str| LAYERS.iter().position(|other| *other == layer);
        let own_place = place(&own).unwrap_or_else(|| panic!("{} is in no layer: add it to the list", path.display()));
        for import in imports(&std::fs::read_to_string(&path).unwrap()) {
            let layer = ROOT.iter().find(|(name, _)| *name == import).map_or(&*import, |(_, layer)| layer);
            count += 1;
            match place(layer) {
                Some(other) if other <= own_place => {}
                _ => wrong.push(format!("{}: crate::{import}", path.display())),
            }
        }
    }
    assert!(count > 300, "only {count} imports were found");
    assert!(wrong.is_empty(), "these look up:\n{}", wrong.join("\n"));
}

#[test]
fn imports_are_found() {
    let text = "use crate::{Error, memory, gguf::{Gguf, show}};\nuse crate::model::Model;\n// crate::no\nlet x = crate::device::y();\n\
                #[cfg(test)]\nmod tests {\n    use crate::session;\n}\n";
    assert_eq!(imports(text), ["Error", "memory", "gguf", "model", "device"]);
}

#[test]
fn what_a_gpu_pass_stands_on_does_not_know_it() {
    let hip = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/hip");
    for folder in ["driver", "device", "memory", "code", "load"] {
        let mut all = Vec::new();
        files(&hip.join(folder), &mut all);
        assert!(!all.is_empty(), "{folder}");
        for path in all {
            let text = std::fs::read_to_string(&path).unwrap();
            for above in ["ops", "pass", "sampling", "selftest"] {
                let uses = ["hip", "super"].iter().any(|from| text.contains(&format!("{from}::{above}::")));
                assert!(!uses, "{} uses {above}", path.display());
            }
        }
    }
}
