//! Prints what is in a GGUF file: its metadata, and its tensors as a table.

mod common;

use common::cli::{Cli, Outcome, run};
use common::default_model::default_model;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use wavelm::gguf::{Array, Gguf, Value};

const HELP: &str = "\
Prints the metadata and the tensors of a GGUF file.

Usage: inspect [--model FILE]

  -m, --model FILE  the file; of a split model, any part
                    [default: $WAVELM_MODEL, else SmolLM2-135M-Instruct, fetched once and cached]
  -h, --help        this text
";

/// The longest text, in characters, and the most array elements that are printed.
const LONGEST_TEXT: usize = 100;
const MOST_ELEMENTS: usize = 8;

fn main() -> ExitCode {
    run(&[HELP], inspect)
}

fn inspect(cli: &mut Cli) -> Outcome {
    let mut path = None;
    while let Some(name) = cli.next()? {
        match name.as_str() {
            "-m" | "--model" => path = Some(PathBuf::from(cli.value()?)),
            _ => return Err(cli.unknown()),
        }
    }
    let gguf = Gguf::open(path.map_or_else(default_model, Ok)?)?;
    let mut out = BufWriter::new(io::stdout().lock());
    print_file(&mut out, &gguf)?;
    print_metadata(&mut out, &gguf)?;
    print_tensors(&mut out, &gguf)?;
    Ok(out.flush()?)
}

fn print_file(out: &mut impl Write, gguf: &Gguf) -> io::Result<()> {
    for part in gguf.parts() {
        writeln!(out, "{}", part.display())?;
    }
    let (size, version, alignment) = (bytes(gguf.file_size()), gguf.version(), gguf.alignment());
    writeln!(out, "{size}, GGUF version {version}, tensors aligned to {alignment} bytes")
}

fn print_metadata(out: &mut impl Write, gguf: &Gguf) -> io::Result<()> {
    let rows: Vec<[String; 3]> =
        gguf.metadata().iter().map(|(key, value)| [printable(key), type_of(value), text_of(value)]).collect();
    writeln!(out, "\n{} metadata keys", rows.len())?;
    print_table(out, &rows, &[])
}

fn print_tensors(out: &mut impl Write, gguf: &Gguf) -> io::Result<()> {
    let elements: u128 = gguf.tensors().iter().map(|tensor| tensor.elements() as u128).sum();
    let size: u64 = gguf.tensors().iter().map(|tensor| tensor.size()).sum();
    writeln!(out, "\n{} tensors, {elements} elements, {}", gguf.tensors().len(), bytes(size))?;

    let mut by_type: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let (count, size) = by_type.entry(tensor.tensor_type().name()).or_default();
        *count += 1;
        *size += tensor.size();
    }
    let types: Vec<[String; 3]> =
        by_type.iter().map(|(name, (count, size))| [name.to_string(), count.to_string(), bytes(*size)]).collect();
    print_table(out, &types, &[1, 2])?;

    let several = gguf.parts().len() > 1;
    let head = ["name", "type", "dimensions", "bytes", "offset"].map(String::from);
    let rows = gguf.tensors().iter().map(|tensor| {
        let dims: Vec<String> = tensor.dims().iter().map(u64::to_string).collect();
        let offset = tensor.offset().to_string();
        let place = if several { format!("{offset} in part {}", tensor.part() + 1) } else { offset };
        [printable(tensor.name()), tensor.tensor_type().to_string(), dims.join(" × "), tensor.size().to_string(), place]
    });
    let rows: Vec<[String; 5]> =
        if gguf.tensors().is_empty() { Vec::new() } else { [head].into_iter().chain(rows).collect() };
    writeln!(out)?;
    print_table(out, &rows, &[3, 4])
}

/// Prints rows in columns as wide as their widest cell; those in `right` are aligned to the right.
fn print_table<const N: usize>(out: &mut impl Write, rows: &[[String; N]], right: &[usize]) -> io::Result<()> {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            line += "  ";
            line += &if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn type_of(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("{}[{}]", array.type_name(), array.len()),
        _ => value.type_name().to_string(),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::String(v) => printable(v),
        Value::Array(array) => elements_of(array),
        other => format!("{other:?}"),
    }
}

fn elements_of(array: &Array) -> String {
    fn join(elements: impl ExactSizeIterator<Item = impl ToString>) -> String {
        let more = if elements.len() > MOST_ELEMENTS { ", …" } else { "" };
        elements.take(MOST_ELEMENTS).map(|element| element.to_string()).collect::<Vec<_>>().join(", ") + more
    }
    match array {
        Array::U8(v) => join(v.iter()),
        Array::I8(v) => join(v.iter()),
        Array::U16(v) => join(v.iter()),
        Array::I16(v) => join(v.iter()),
        Array::U32(v) => join(v.iter()),
        Array::I32(v) => join(v.iter()),
        Array::U64(v) => join(v.iter()),
        Array::I64(v) => join(v.iter()),
        Array::F32(v) => join(v.iter()),
        Array::F64(v) => join(v.iter()),
        Array::Bool(v) => join(v.iter()),
        Array::String(v) => join(v.iter().map(|string| format!("\"{}\"", printable(string)))),
        Array::Nested(v) => join(v.iter().map(|inner| format!("[{}]", elements_of(inner)))),
        other => format!("{other:?}"),
    }
}

/// Text on one line, without control characters, and not too long.
fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let mut shown: String = text.chars().take(LONGEST_TEXT).map(escape).collect();
    if text.chars().nth(LONGEST_TEXT).is_some() {
        shown.push('…');
    }
    shown
}

fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut scaled = count as f64;
    let mut unit = "bytes";
    for next in units {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    if unit == "bytes" { format!("{count} bytes") } else { format!("{scaled:.1} {unit}") }
}
