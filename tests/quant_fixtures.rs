//! Dequantization and quantization agree with the Python package `gguf`, bit for bit, on the vectors that
//! tests/fixtures/make_quant_fixtures.py wrote with it (the format of the files is described there).

use std::path::Path;
use wavelm::bench_internals::tensor_types;
use wavelm::gguf::TensorType;
use wavelm::quant;

/// Takes bytes off the front of a fixture.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        head
    }
    fn count(&mut self) -> usize {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap()) as usize
    }
    fn floats(&mut self, len: usize) -> Vec<f32> {
        self.bytes(4 * len).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// Returns whether the package has a quantizer.
fn check(ty: TensorType) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/quant/{ty:?}.bin"));
    let file = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut file = Reader(&file);
    let (weights, values) = (file.count(), file.count());
    assert!(weights > 0);
    let bytes = |len: usize| len / ty.block_len() * ty.block_bytes();

    let blocks = file.bytes(bytes(weights));
    let expected = file.floats(weights);
    let mut out = vec![f32::NAN; weights];
    quant::dequantize(ty, blocks, &mut out).unwrap();
    for (i, (out, expected)) in out.iter().zip(&expected).enumerate() {
        assert_eq!(out.to_bits(), expected.to_bits(), "{ty:?}: weight {i} is {out}, not {expected}");
    }

    let has_quantizer = values > 0;
    let values = file.floats(values);
    let expected = file.bytes(bytes(values.len()));
    let out = quant::quantize(ty, &values).unwrap();
    assert_eq!(out.len(), expected.len());
    let blocks = out.chunks(ty.block_bytes()).zip(expected.chunks(ty.block_bytes()));
    for (i, (out, expected)) in blocks.enumerate() {
        assert_eq!(out, expected, "{ty:?}: block {i}");
    }
    assert!(file.0.is_empty(), "{ty:?}: bytes are left");
    has_quantizer
}

#[test]
fn every_type_agrees_with_the_package() {
    let with_quantizer: Vec<_> = tensor_types().filter(|&ty| check(ty)).collect();
    assert!(with_quantizer.len() >= 8, "only {with_quantizer:?} were quantized");
}

#[test]
fn every_fixture_is_of_a_supported_type() {
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quant")).unwrap() {
        let path = file.unwrap().path();
        let ty = path.file_stem().and_then(|name| TensorType::from_name(name.to_str()?));
        assert!(ty.is_some_and(quant::is_supported), "{}", path.display());
    }
}
