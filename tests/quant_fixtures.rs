//! Dequantization and quantization agree with the Python package `gguf`, bit for bit, on the vectors that
//! tests/fixtures/make_quant_fixtures.py wrote with it (the format of the files is described there).

use std::path::Path;
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

fn check(ty: TensorType, has_quantizer: bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/quant/{ty:?}.bin"));
    let file = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut file = Reader(&file);
    let (weights, values) = (file.count(), file.count());
    assert!(weights > 0);
    assert_eq!(values > 0, has_quantizer);
    let bytes = |len: usize| len / ty.block_len() * ty.block_bytes();

    let blocks = file.bytes(bytes(weights));
    let expected = file.floats(weights);
    let mut out = vec![f32::NAN; weights];
    quant::dequantize(ty, blocks, &mut out).unwrap();
    for (i, (out, expected)) in out.iter().zip(&expected).enumerate() {
        assert_eq!(out.to_bits(), expected.to_bits(), "{ty:?}: weight {i} is {out}, not {expected}");
    }

    let values = file.floats(values);
    let expected = file.bytes(bytes(values.len()));
    let out = quant::quantize(ty, &values).unwrap();
    assert_eq!(out.len(), expected.len());
    let blocks = out.chunks(ty.block_bytes()).zip(expected.chunks(ty.block_bytes()));
    for (i, (out, expected)) in blocks.enumerate() {
        assert_eq!(out, expected, "{ty:?}: block {i}");
    }
    assert!(file.0.is_empty());
}

macro_rules! check {
    ($($name:ident: $ty:ident, $has_quantizer:expr;)*) => {
        $(#[test] fn $name() { check(TensorType::$ty, $has_quantizer) })*
    };
}

check! {
    f32: F32, true;
    f16: F16, true;
    bf16: BF16, true;
    q4_0: Q4_0, true;
    q4_1: Q4_1, true;
    q5_0: Q5_0, true;
    q5_1: Q5_1, true;
    q8_0: Q8_0, true;
    q2_k: Q2_K, false;
    q3_k: Q3_K, false;
    q4_k: Q4_K, false;
    q5_k: Q5_K, false;
    q6_k: Q6_K, false;
}
