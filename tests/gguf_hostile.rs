//! GGUF files that are damaged or made to do harm: each gives an error that says what is wrong, none a panic.

use std::fs;
use std::path::{Path, PathBuf};
use wavelm::gguf::{Array, Gguf, GgufWriter, TensorType, Value};
use wavelm::{Error, ErrorKind};

/// Bytes of a file that no proper writer would write.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, entries: u64) -> Self {
        Raw(b"GGUF".to_vec()).u32(version).u64(tensors).u64(entries)
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    fn string(self, text: impl AsRef<[u8]>) -> Self {
        self.u64(text.as_ref().len() as u64).bytes(text.as_ref())
    }
    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let raw = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, &dim| raw.u64(dim)).u32(ty).u64(offset)
    }
    /// Pads to 32 bytes and appends `len` bytes of tensor data.
    fn data(mut self, len: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self.0
    }
}

fn refused(bytes: impl Into<Vec<u8>>) -> Error {
    Gguf::from_bytes(bytes.into()).expect_err("the file should be refused")
}

/// Checks that the bytes are refused as invalid, with a message that holds every one of `parts`.
#[track_caller]
fn invalid(bytes: impl Into<Vec<u8>>, parts: &[&str]) {
    says(&refused(bytes), ErrorKind::InvalidFile, parts);
}

#[track_caller]
fn unsupported(bytes: impl Into<Vec<u8>>, parts: &[&str]) {
    says(&refused(bytes), ErrorKind::Unsupported, parts);
}

#[track_caller]
fn says(error: &Error, kind: ErrorKind, parts: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} should contain {part:?}");
    }
    assert!(!text.contains('\n') && text.len() < 600, "{text:?}");
}

/// A small file with every kind of content.
fn sample() -> Vec<u8> {
    let nested = Array::Nested(vec![Array::U8(vec![1, 2]), Array::String(["x", "yz"].into_iter().collect())]);
    GgufWriter::new()
        .metadata("general.architecture", "llama")
        .metadata("general.alignment", 64u32)
        .metadata("flag", true)
        .metadata("f", 0.5f64)
        .metadata("tokens", Value::Array(Array::String(["<s>", "", "▁wave"].into_iter().collect())))
        .metadata("scores", vec![0.0f32, -1.0, 2.0])
        .metadata("bools", vec![true, false])
        .metadata("nested", nested)
        .tensor("a", TensorType::Q8_0, &[64, 2], vec![1; 136])
        .tensor("b", TensorType::F32, &[3, 2, 2, 1], vec![2; 48])
        .to_bytes()
        .unwrap()
}

#[test]
fn files_that_are_not_gguf() {
    invalid([], &["the file is empty"]);
    invalid(*b"GG", &["ends within its first 4 bytes"]);
    invalid(*b"PK\x03\x04 a zip archive", &["not a GGUF file"]);
    invalid(*b"version https://git-lfs.github.com/spec/v1\noid", &["Git LFS pointer", "git lfs pull"]);
    for old in [b"lmgg\0\0\0\0", b"tjgg\x03\0\0\0", b"algg\0\0\0\0", b"fmgg\0\0\0\0"] {
        unsupported(*old, &["before GGUF"]);
    }
}

#[test]
fn versions_and_byte_orders() {
    invalid(Raw::new(0, 0, 0).0, &["version is 0"]);
    unsupported(Raw::new(1, 0, 0).0, &["version 1"]);
    unsupported(Raw::new(4, 0, 0).0, &["version 4", "versions 2 and 3"]);
    unsupported(Raw::new(3u32.swap_bytes(), 0, 0).0, &["big-endian"]);
    unsupported(Raw(b"FUGG".to_vec()).u32(3).u64(0).u64(0).0, &["big-endian"]);
    invalid(*b"GGUF\x03\0", &["version cannot be read", "4 bytes are needed at byte 4, but the file has 6"]);
}

#[test]
fn counts_that_the_file_cannot_hold() {
    invalid(Raw::new(3, 1 << 40, 0).0, &["1099511627776 tensors", "the file has 24 bytes"]);
    invalid(Raw::new(3, 0, 1 << 40).0, &["1099511627776 metadata keys"]);
    invalid(Raw::new(3, u64::MAX, 0).0, &["18446744073709551615 tensors"]);
    invalid(Raw::new(3, 0, u64::MAX).0, &["18446744073709551615 metadata keys"]);
    for ty in (0..=12).filter(|&ty| ty != 8 && ty != 9) {
        for count in [1 << 40, u64::MAX, u64::MAX / 8 + 1] {
            let bytes = Raw::new(3, 0, 1).string("some.key").u32(9).u32(ty).u64(count).bytes(&[0; 64]).0;
            invalid(bytes, &["metadata key some.key", &count.to_string()]);
        }
    }
    for ty in [8, 9] {
        let bytes = Raw::new(3, 0, 1).string("k").u32(9).u32(ty).u64(1 << 60).bytes(&[0; 64]).0;
        invalid(bytes, &["metadata key k", "1152921504606846976"]);
    }
}

#[test]
fn strings_that_are_too_long_or_not_text() {
    let key = |len: u64| Raw::new(3, 0, 1).u64(len).bytes(&vec![b'k'; 70_000]).0;
    invalid(key(0), &["metadata key number 1", "empty"]);
    invalid(key(65_536), &["65536 bytes", "at most 65535"]);
    invalid(key(u64::MAX), &["18446744073709551615 bytes"]);
    invalid(Raw::new(3, 0, 1).string(b"a\xff").u32(0).bytes(&[1]).0, &["metadata key number 1", "UTF-8"]);
    invalid(
        Raw::new(3, 0, 1).string("name").u32(8).string(b"ab\xc3").0,
        &["key name", "UTF-8 after its first 2 bytes"],
    );
    invalid(Raw::new(3, 0, 1).string("name").u32(8).u64(1 << 50).0, &["key name", "1125899906842624 bytes are needed"]);

    // Two strings that are only valid as one: the boundary lies within a character.
    let split_character =
        Raw::new(3, 0, 1).string("t").u32(9).u32(8).u64(3).string("a").string(b"\xc3").string(b"\xa9");
    invalid(split_character.0, &["key t", "string 1", "UTF-8"]);
    let cut = Raw::new(3, 0, 1).string("t").u32(9).u32(8).u64(2).string("a").u64(u64::MAX);
    invalid(cut.0, &["key t"]);

    let nothing = Raw::new(3, 1, 0).tensor("", &[1], 0, 0).data(64);
    invalid(nothing, &["tensor number 1", "empty"]);
    let not_text = Raw::new(3, 1, 0).string(b"\xfe").u32(1).u64(1).u32(0).u64(0).data(64);
    invalid(not_text, &["tensor number 1", "UTF-8"]);
}

/// A name with line breaks and escape sequences must not reach a terminal as it is.
#[test]
fn names_in_messages_are_escaped_and_short() {
    let name = "evil\n\x1b[2J".repeat(1000);
    let error = refused(Raw::new(3, 0, 1).string(&name).u32(99).0).to_string();
    assert!(error.contains("evil\\n\\u{1b}[2J") && error.contains('…') && error.len() < 600, "{error}");
}

#[test]
fn values_that_do_not_exist() {
    invalid(Raw::new(3, 0, 1).string("k").u32(13).bytes(&[0; 16]).0, &["key k", "no value type 13"]);
    invalid(Raw::new(3, 0, 1).string("k").u32(9).u32(13).u64(0).0, &["key k", "no array element type 13"]);
    invalid(Raw::new(3, 0, 1).string("k").u32(7).bytes(&[2]).0, &["key k", "boolean has the value 2"]);
    invalid(Raw::new(3, 0, 1).string("k").u32(9).u32(7).u64(2).bytes(&[1, 255]).0, &["key k", "value 255"]);
}

#[test]
fn arrays_nested_without_end() {
    let nested = |depth: usize| {
        let raw = Raw::new(3, 0, 1).string("k").u32(9);
        (1..depth).fold(raw, |raw, _| raw.u32(9).u64(1)).u32(0).u64(0).0
    };
    assert!(Gguf::from_bytes(nested(8)).is_ok());
    invalid(nested(9), &["key k", "nested more than 8 deep"]);
    invalid(nested(100_000), &["key k", "nested more than 8 deep"]);
}

#[test]
fn names_given_twice() {
    let keys =
        Raw::new(3, 0, 3).string("k").u32(0).bytes(&[1]).string("j").u32(0).bytes(&[1]).string("k").u32(0).bytes(&[1]);
    invalid(keys.0, &["metadata key k appears twice"]);
    let tensors = Raw::new(3, 2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32).data(64);
    invalid(tensors, &["tensor t appears twice"]);
}

#[test]
fn alignments_that_cannot_be() {
    for alignment in [0u32, 1, 4, 12, 33, 1 << 25, u32::MAX] {
        let bytes = Raw::new(3, 0, 1).string("general.alignment").u32(4).u32(alignment).0;
        invalid(bytes, &["general.alignment", &alignment.to_string(), "power of two"]);
    }
    invalid(Raw::new(3, 0, 1).string("general.alignment").u32(8).string("32").0, &["general.alignment", "a string"]);
    let offset = Raw::new(3, 1, 0).tensor("t", &[1], 0, 8).data(64);
    invalid(offset, &["tensor t", "offset 8", "alignment 32"]);
}

#[test]
fn dimensions_that_cannot_be() {
    let shaped = |dims: &[u64], ty: u32| Raw::new(3, 1, 0).tensor("t", dims, ty, 0).data(4096);
    assert!(Gguf::from_bytes(shaped(&[1024], 0)).is_ok());
    assert_eq!(Gguf::from_bytes(shaped(&[], 0)).unwrap().tensors()[0].dims(), [1], "no dimension is a scalar");
    invalid(shaped(&[4, 0], 0), &["tensor t", "[4, 0] contain 0"]);
    invalid(shaped(&[0], 0), &["tensor t", "contain 0"]);
    invalid(shaped(&[1, 1, 1, 1, 1], 0), &["tensor t has 5 dimensions"]);
    let endless = Raw::new(3, 1, 0).string("t").u32(u32::MAX).bytes(&[1; 64]).0;
    invalid(endless, &["tensor t has 4294967295 dimensions"]);
    invalid(shaped(&[1 << 32, 1 << 32], 0), &["tensor t", "too large"]);
    invalid(shaped(&[u64::MAX], 0), &["tensor t", "too large"]);
    invalid(shaped(&[1 << 62], 28), &["tensor t", "too large"]);
    invalid(shaped(&[1 << 33, 1 << 31, 4, 1], 24), &["tensor t", "too large"]);
    invalid(shaped(&[33], 8), &["tensor t", "33 elements", "Q8_0", "blocks of 32"]);
    invalid(shaped(&[128, 2], 12), &["tensor t", "128 elements", "Q4_K", "blocks of 256"]);
}

#[test]
fn tensor_types_that_are_unknown() {
    let typed = |ty: u32| Raw::new(3, 1, 0).tensor("t", &[32], ty, 0).data(4096);
    unsupported(typed(31), &["tensor t", "Q4_0_4_4"]);
    unsupported(typed(4), &["tensor t", "Q4_2"]);
    unsupported(typed(43), &["tensor t", "number 43"]);
    unsupported(typed(u32::MAX), &["tensor t", "number 4294967295"]);
}

#[test]
fn tensors_that_lie_elsewhere() {
    let end = Raw::new(3, 1, 0).tensor("blk.3.ffn_up.weight", &[32, 32], 0, 0).data(4095);
    let len = end.len();
    let sentence = format!("tensor blk.3.ffn_up.weight ends at byte {}, but the file has {len}", len + 1);
    invalid(end, &[&sentence]);
    let no_data = Raw::new(3, 1, 0).tensor("t", &[1], 0, 0).0;
    invalid(no_data, &["tensor t ends at byte 68, but the file has 57"]);
    let beyond = Raw::new(3, 1, 0).tensor("t", &[1], 0, u64::MAX - 31).data(64);
    invalid(beyond, &["tensor t", "beyond any file"]);
    let far = Raw::new(3, 1, 0).tensor("t", &[1], 0, 1 << 40).data(64);
    invalid(far, &["tensor t ends at byte"]);
}

#[test]
fn tensors_that_overlap() {
    let overlapping =
        Raw::new(3, 3, 0).tensor("x", &[8], 0, 64).tensor("y", &[9], 0, 0).tensor("z", &[8], 0, 32).data(96);
    invalid(overlapping, &["tensors y and z overlap"]);
    let same = Raw::new(3, 2, 0).tensor("x", &[8], 0, 0).tensor("y", &[8], 0, 0).data(32);
    invalid(same, &["tensors x and y overlap"]);
    let apart = Raw::new(3, 3, 0).tensor("x", &[8], 0, 64).tensor("y", &[8], 0, 0).tensor("z", &[8], 0, 32).data(96);
    assert!(Gguf::from_bytes(apart).is_ok(), "any order will do");
}

/// The last tensor need not be padded, but nothing else may be missing.
#[test]
fn truncation_at_every_byte() {
    let whole = sample();
    let last = Gguf::from_bytes(whole.clone()).unwrap().tensors()[1].clone();
    let needed = (last.offset() + last.size()) as usize;
    for len in 0..whole.len() {
        match Gguf::from_bytes(whole[..len].to_vec()) {
            Ok(gguf) => {
                assert!(len >= needed, "{len} of {needed} bytes were accepted");
                assert_eq!(gguf.data(&last), [2; 48]);
            }
            Err(error) => {
                assert!(len < needed, "{error}");
                assert_eq!(error.kind(), ErrorKind::InvalidFile, "{error}");
            }
        }
    }
}

/// Whatever survives damage must still keep its promises.
fn check_promises(gguf: &Gguf) {
    for tensor in gguf.tensors() {
        let data = gguf.data(tensor);
        assert_eq!(data.len() as u64, tensor.size());
        assert_eq!(data.len(), tensor.row_bytes() * tensor.rows());
        assert_eq!(data.as_ptr() as usize % 8, 0);
        assert!(tensor.elements() > 0);
        assert_eq!(gguf.tensor(tensor.name()), Some(tensor));
    }
    for (key, value) in gguf.metadata().iter() {
        assert_eq!(gguf.metadata().get(key).map(Value::type_name), Some(value.type_name()));
        for outcome in [gguf.metadata().u32(key).err(), gguf.metadata().strings(key).err()] {
            assert!(outcome.is_none_or(|error| error.kind() == ErrorKind::InvalidFile));
        }
    }
}

#[test]
fn every_bit_flipped() {
    let whole = sample();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match Gguf::from_bytes(bytes) {
            Ok(gguf) => check_promises(&gguf),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn random_damage() {
    let whole = sample();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                1 => bytes[at] ^= 1 << random(8),
                2 => drop(bytes.drain(at..(at + random(16)).min(bytes.len()))),
                _ => drop(bytes.splice(at..at, vec![random(256) as u8; random(16)])),
            }
            if bytes.is_empty() {
                break;
            }
        }
        if let Ok(gguf) = Gguf::from_bytes(bytes) {
            accepted += 1;
            check_promises(&gguf);
        }
    }
    assert!(accepted > 100, "damage to names and data is not noticed, and {accepted} files had only that");
}

/// A tensor of another file is answered with bytes of this one or none, never with a panic.
#[test]
fn tensors_of_another_file() {
    let small =
        Gguf::from_bytes(GgufWriter::new().tensor("a", TensorType::F32, &[1], [0; 4]).to_bytes().unwrap()).unwrap();
    let large = Gguf::from_bytes(sample()).unwrap();
    for tensor in large.tensors() {
        assert!(small.data(tensor).is_empty());
    }
}

/// A directory of this test's own that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wavelm-gguf-hostile-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open_refused(path: &Path, kind: ErrorKind, parts: &[&str]) {
    says(&Gguf::open(path).expect_err("the file should be refused"), kind, parts);
}

#[test]
fn paths_that_cannot_be_opened() {
    let directory = Directory::new("paths");
    let absent = directory.0.join("absent.gguf");
    open_refused(&absent, ErrorKind::Io, &["absent.gguf: cannot open the file"]);
    assert_eq!(Gguf::open(&absent).unwrap_err().file(), Some(absent.as_path()));
    open_refused(&directory.0, ErrorKind::Io, &["it is a directory"]);
    open_refused(&directory.write("empty.gguf", b""), ErrorKind::InvalidFile, &["empty.gguf: the file is empty"]);
    let cut = directory.write("cut.gguf", &sample()[..300]);
    open_refused(&cut, ErrorKind::InvalidFile, &["cut.gguf: metadata key nested"]);
}

fn part(index: u16, count: u16, total: Option<i32>) -> GgufWriter {
    let writer = GgufWriter::new().metadata("split.no", index).metadata("split.count", count).tensor(
        format!("t.{index}"),
        TensorType::F32,
        &[2],
        [index as u8; 8],
    );
    match total {
        Some(total) => writer.metadata("split.tensors.count", total),
        None => writer,
    }
}

#[test]
fn split_sets_that_do_not_fit_together() {
    let directory = Directory::new("split");
    let write = |name: &str, writer: GgufWriter| directory.write(name, &writer.to_bytes().unwrap());
    let invalid = |path: &Path, parts: &[&str]| open_refused(path, ErrorKind::InvalidFile, parts);

    let lonely = write("lonely-00001-of-00003.gguf", part(0, 3, Some(3)));
    let missing = ["lonely-00002-of-00003.gguf", "part 2 of 3", "missing"];
    open_refused(&lonely, ErrorKind::Io, &missing);
    write("headless-00002-of-00002.gguf", part(1, 2, Some(2)));
    let headless = directory.0.join("headless-00002-of-00002.gguf");
    open_refused(&headless, ErrorKind::Io, &["headless-00001-of-00002.gguf", "missing"]);

    invalid(&write("renamed.gguf", part(0, 2, None)), &["renamed.gguf", "part 1 of 2", "-00001-of-00002.gguf"]);
    invalid(&write("swapped-00001-of-00002.gguf", part(1, 2, None)), &["part 2 of 2", "-00002-of-00002.gguf"]);
    invalid(&write("beyond-00001-of-00002.gguf", part(2, 2, None)), &["split.no is 2, but split.count is 2"]);
    invalid(&write("alone.gguf", part(1, 1, None)), &["split.no is 1, but split.count is 1"]);
    let no_number = GgufWriter::new().metadata("split.count", 2u16);
    invalid(&write("no-00001-of-00002.gguf", no_number), &["split.no is missing"]);
    let negative = GgufWriter::new().metadata("split.no", 0u16).metadata("split.count", -2i32);
    invalid(&write("negative.gguf", negative), &["split.count"]);
    let endless = GgufWriter::new().metadata("split.no", 0u16).metadata("split.count", u64::MAX);
    invalid(&write("endless.gguf", endless), &["split.count", "at most 99999"]);

    let first = write("mixed-00001-of-00002.gguf", part(0, 2, None));
    write("mixed-00002-of-00002.gguf", part(0, 2, None));
    invalid(&first, &["mixed-00002-of-00002.gguf", "part 2 of 2", "says that it is part 1 of 2"]);
    write("mixed-00002-of-00002.gguf", GgufWriter::new());
    invalid(&first, &["mixed-00002-of-00002.gguf", "no part of a split model"]);
    directory.write("mixed-00002-of-00002.gguf", b"GGUF");
    invalid(&first, &["mixed-00002-of-00002.gguf: the GGUF version cannot be read"]);
    let same_tensor = part(1, 2, None).tensor("t.0", TensorType::F32, &[1], [0; 4]);
    write("mixed-00002-of-00002.gguf", same_tensor);
    invalid(&first, &["tensor t.0 appears twice"]);

    let counted = write("counted-00001-of-00002.gguf", part(0, 2, Some(5)));
    write("counted-00002-of-00002.gguf", part(1, 2, Some(5)));
    invalid(&counted, &["split.tensors.count is 5, but the parts hold 2 tensors"]);

    let in_memory = Gguf::from_bytes(part(0, 2, None).to_bytes().unwrap()).unwrap_err();
    says(&in_memory, ErrorKind::InvalidFile, &["part 1 of 2", "open it by its path"]);
}

#[test]
fn the_writer_refuses_what_the_parser_would() {
    let refused = |writer: GgufWriter, parts: &[&str]| {
        says(&writer.to_bytes().unwrap_err(), ErrorKind::InvalidInput, parts);
    };
    let new = GgufWriter::new;
    refused(new().version(1), &["version 1"]);
    refused(new().metadata("", 1u8), &["metadata key", "0 bytes"]);
    refused(new().metadata("k".repeat(65_536), 1u8), &["65536 bytes"]);
    refused(new().metadata("k", 1u8).metadata("k", 2u8), &["metadata key k appears twice"]);
    refused(new().metadata("general.alignment", 24u32), &["general.alignment is 24"]);
    refused(new().metadata("general.alignment", "32"), &["general.alignment", "a string"]);
    let deep = (0..8).fold(Array::U8(vec![1]), |array, _| Array::Nested(vec![array]));
    refused(new().metadata("k", deep), &["metadata key k", "nested more than 8 deep"]);
    refused(new().tensor("", TensorType::F32, &[1], [0; 4]), &["tensor", "0 bytes"]);
    refused(new().tensor("t", TensorType::F32, &[2], [0; 4]), &["tensor t", "has 8 bytes, but 4 were given"]);
    refused(new().tensor("t", TensorType::F32, &[], [0; 4]), &["tensor t", "no dimensions"]);
    refused(new().tensor("t", TensorType::F32, &[0], []), &["tensor t", "contain 0"]);
    refused(new().tensor("t", TensorType::F32, &[1; 5], [0; 4]), &["tensor t", "5 dimensions"]);
    refused(new().tensor("t", TensorType::Q4_0, &[16], [0; 9]), &["tensor t", "blocks of 32"]);
    let twice = new().tensor("t", TensorType::I8, &[1], [0]).tensor("t", TensorType::I8, &[1], [0]);
    refused(twice, &["tensor t appears twice"]);
}
