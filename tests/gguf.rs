//! GGUF files that are valid: what is written is read back, and split sets open by the name of any part.

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
        assert_eq!(gguf.alignment(), alignment.into());
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
