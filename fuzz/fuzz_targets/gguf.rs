//! Any bytes as a GGUF file: an error or a file that keeps its promises, and memory in proportion to the bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavelm::gguf::{Gguf, GgufWriter};

fuzz_target!(|bytes: &[u8]| {
    let gguf = match Gguf::from_bytes(bytes.to_vec()) {
        Ok(gguf) => gguf,
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && text.len() < 4000 && !text.contains(char::is_control), "{text:?}");
            return;
        }
    };
    let mut end = 0;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for tensor in gguf.tensors() {
        let data = gguf.data(tensor);
        assert!(data.len() as u64 == tensor.size() && data.len() == tensor.row_bytes() * tensor.rows());
        assert!((data.as_ptr() as usize).is_multiple_of(8));
        assert_eq!(tensor.elements(), tensor.columns() * tensor.rows());
        assert_eq!(gguf.tensor(tensor.name()), Some(tensor));
        ranges.push((tensor.offset(), tensor.size()));
    }
    ranges.sort_unstable();
    for (offset, size) in ranges {
        assert!(offset >= end, "tensors overlap");
        end = offset + size;
    }
    let metadata = gguf.metadata();
    for (key, value) in metadata.iter() {
        assert!(metadata.get(key).is_some_and(|found| std::ptr::eq(found, value)));
        let _ = (metadata.u32(key), metadata.u64(key), metadata.i64(key), metadata.usize(key), metadata.bool(key));
        let _ = (metadata.f32(key), metadata.f64(key), metadata.f32s(key), metadata.ints(key), metadata.bools(key));
        let _ = metadata.str(key);
        if let Ok(Some(strings)) = metadata.strings(key) {
            assert_eq!(strings.iter().count(), strings.len());
        }
    }

    // What was accepted can be written, and is then the same file but for the order of the data.
    let writer = GgufWriter::new().version(gguf.version());
    let writer = metadata.iter().fold(writer, |writer, (key, value)| writer.metadata(key, value.clone()));
    let writer = gguf.tensors().iter().fold(writer, |writer, tensor| {
        writer.tensor(tensor.name(), tensor.tensor_type(), tensor.dims(), gguf.data(tensor))
    });
    let again = Gguf::from_bytes(writer.to_bytes().expect("an accepted file can be written")).expect("and read again");
    assert_eq!(format!("{:?}", again.metadata()), format!("{metadata:?}")); // NaN is not equal to itself
    for (before, after) in gguf.tensors().iter().zip(again.tensors()) {
        assert_eq!(
            (before.name(), before.tensor_type(), before.dims()),
            (after.name(), after.tensor_type(), after.dims())
        );
        assert_eq!(gguf.data(before), again.data(after));
    }
});
