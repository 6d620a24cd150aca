//! GGUF files that are valid: what is written is read back, and split sets open by the name of any part.

use std::fs;
use std::path::PathBuf;
use wavelm::gguf::{Array, Gguf, GgufWriter, StringArray, TensorType, Value};

/// One value of every type, arrays of every type, and nested arrays.
fn every_value() -> Vec<(String, Value)> {
    let strings: StringArray = ["", "wave", "λ", "\u{1F30A}"].into_iter().collect();
    let nested = Array::Nested(vec![
        Array::U32(vec![1, 2, 3]),
        Array::Nested(vec![Array::String(strings.clone()), Array::Nested(Vec::new())]),
        Array::Bool(Vec::new()),
    ]);
    let values: Vec<Value> = vec![
        u8::MAX.into(),
        i8::MIN.into(),
        u16::MAX.into(),
        i16::MIN.into(),
        u32::MAX.into(),
        i32::MIN.into(),
        u64::MAX.into(),
        i64::MIN.into(),
        1.5f32.into(),
        (-2.5e300f64).into(),
        true.into(),
        false.into(),
        "".into(),
        "a wave\n\0λ".into(),
        vec![0u8, 255].into(),
        vec![-128i8, 127].into(),
        vec![0u16, 65535].into(),
        vec![i16::MIN, i16::MAX].into(),
        vec![0u32, u32::MAX].into(),
        vec![i32::MIN, i32::MAX].into(),
        vec![0u64, u64::MAX].into(),
        vec![i64::MIN, i64::MAX].into(),
        vec![0.0f32, f32::INFINITY, -1e-40].into(),
        vec![0.0f64, f64::NEG_INFINITY].into(),
        vec![true, false, true].into(),
        strings.into(),
        StringArray::default().into(),
        Vec::<f32>::new().into(),
        nested.into(),
    ];
    values.into_iter().enumerate().map(|(i, value)| (format!("key.{i}"), value)).collect()
}

#[test]
fn every_value_type_is_read_back_as_written() {
    for version in [2, 3] {
        let writer = GgufWriter::new().version(version);
        let writer = every_value().into_iter().fold(writer, |writer, (key, value)| writer.metadata(key, value));
        let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
        assert_eq!(gguf.version(), version);
        assert_eq!(gguf.metadata().iter().cloned().collect::<Vec<_>>(), every_value());
        assert!(gguf.tensors().is_empty());
        assert_eq!((gguf.path(), gguf.alignment()), (std::path::Path::new(""), 32));
    }
}

#[test]
fn tensors_of_every_type_are_read_back_as_written() {
    for alignment in [8u32, 32, 64, 4096] {
        let mut writer = GgufWriter::new().metadata("general.alignment", alignment);
        let mut expected = Vec::new();
        for (i, &ty) in TensorType::ALL.iter().enumerate() {
            let dims = [ty.block_len() as u64 * 2, 3, 1 + i as u64 % 2];
            let len = ty.block_bytes() * 2 * 3 * (1 + i % 2);
            let data: Vec<u8> = (0..len).map(|b| (b * 7 + i) as u8).collect();
            writer = writer.tensor(format!("blk.{i}.weight"), ty, &dims, data.clone());
            expected.push((ty, dims, data));
        }
        let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
        assert_eq!(gguf.alignment(), u64::from(alignment));
        assert_eq!(gguf.tensors().len(), expected.len());
        for (i, (ty, dims, data)) in expected.iter().enumerate() {
            let tensor = gguf.tensor(&format!("blk.{i}.weight")).unwrap();
            assert_eq!(tensor, &gguf.tensors()[i]);
            assert_eq!((tensor.tensor_type(), tensor.dims()), (*ty, &dims[..]));
            assert_eq!((tensor.columns(), tensor.rows()), (ty.block_len() * 2, 3 * (1 + i % 2)));
            assert_eq!(tensor.elements(), tensor.columns() * tensor.rows());
            assert_eq!(tensor.size(), data.len() as u64);
            assert_eq!(tensor.row_bytes() * tensor.rows(), data.len());
            assert_eq!(gguf.data(tensor), data);
            assert_eq!(gguf.data(tensor).as_ptr() as usize % 8, 0);
            assert_eq!(tensor.offset() % u64::from(alignment), 0);
        }
        assert_eq!(gguf.tensor("blk.99.weight"), None);
    }
}

/// A directory of this test's own that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wavelm-gguf-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_is_mapped() {
    let directory = Directory::new("mapped");
    let path = directory.0.join("model.gguf");
    let writer = GgufWriter::new().metadata("general.name", "λ").tensor("t", TensorType::F16, &[2, 2], [7; 8]);
    writer.write(fs::File::create(&path).unwrap()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.path(), path);
    assert_eq!(gguf.parts().collect::<Vec<_>>(), [path.as_path()]);
    assert_eq!(gguf.file_size(), fs::metadata(&path).unwrap().len());
    assert_eq!(gguf.metadata().str("general.name").unwrap(), Some("λ"));
    assert_eq!(gguf.data(gguf.tensor("t").unwrap()), [7; 8]);
}

#[test]
fn a_split_set_opens_by_any_of_its_parts() {
    let directory = Directory::new("split");
    let name = |i: u16| directory.0.join(format!("m-q4-{:05}-of-00003.gguf", i + 1));
    for i in 0..3u16 {
        let mut writer = GgufWriter::new()
            .metadata("split.no", i)
            .metadata("split.count", 3u16)
            .metadata("split.tensors.count", 4i32)
            .metadata("general.alignment", 32u32 << i);
        if i == 0 {
            writer = writer.metadata("general.name", "first"); // and no tensors, as some tools write it
        } else {
            writer = writer.tensor(format!("a.{i}"), TensorType::I8, &[5], [i as u8; 5]).tensor(
                format!("b.{i}"),
                TensorType::F32,
                &[2],
                [10 + i as u8; 8],
            );
        }
        fs::write(name(i), writer.to_bytes().unwrap()).unwrap();
    }
    for opened in 0..3 {
        let gguf = Gguf::open(name(opened)).unwrap();
        assert_eq!(gguf.path(), name(opened));
        assert_eq!(gguf.parts().map(PathBuf::from).collect::<Vec<_>>(), [name(0), name(1), name(2)]);
        assert_eq!(gguf.metadata().str("general.name").unwrap(), Some("first"));
        assert_eq!(gguf.tensors().iter().map(|t| t.name()).collect::<Vec<_>>(), ["a.1", "b.1", "a.2", "b.2"]);
        for i in 1..3u8 {
            let (a, b) = (gguf.tensor(&format!("a.{i}")).unwrap(), gguf.tensor(&format!("b.{i}")).unwrap());
            assert_eq!((a.part(), b.part()), (i.into(), i.into()));
            assert_eq!(gguf.data(a), [i; 5]);
            assert_eq!(gguf.data(b), [10 + i; 8]);
        }
    }
}

/// The name alone makes no split set, and a set of one is no set.
#[test]
fn a_set_of_one_is_a_file() {
    let directory = Directory::new("one");
    for (name, writer) in [
        ("m-00001-of-00002.gguf", GgufWriter::new()),
        ("any.gguf", GgufWriter::new().metadata("split.no", 0u16).metadata("split.count", 1u16)),
        ("zero.gguf", GgufWriter::new().metadata("split.no", 0u16).metadata("split.count", 0u16)),
    ] {
        let path = directory.0.join(name);
        fs::write(&path, writer.to_bytes().unwrap()).unwrap();
        assert_eq!(Gguf::open(&path).unwrap().parts().len(), 1, "{name}");
    }
}

/// A file with a hole for data: once it is open, hardly any of its pages may be in memory.
#[cfg(target_os = "linux")]
#[test]
fn opening_does_not_touch_the_data() {
    const DATA: u64 = 256 << 20;
    let directory = Directory::new("pages");
    let path = directory.0.join("large.gguf");
    let mut head = GgufWriter::new().tensor("t", TensorType::I8, &[32], [0; 32]).to_bytes().unwrap();
    let dim = head.windows(8).position(|window| window == 32u64.to_le_bytes()).unwrap();
    head[dim..dim + 8].copy_from_slice(&DATA.to_le_bytes());
    fs::write(&path, &head).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(head.len() as u64 + DATA).unwrap();

    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.data(&gguf.tensors()[0]).len() as u64, DATA);
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mapping = maps.split_once(path.to_str().unwrap()).expect("the file is mapped").1;
    let resident = mapping.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(resident < 2048, "{resident} KiB of the file are in memory");
}
