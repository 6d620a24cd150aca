//! Checks that the benches time correct computations.

use super::*;
use crate::KvType;

const SHAPE: Shape = Shape { kv_type: KvType::F16, heads: 8, kv_heads: 2, dim: 64, past: 200, rows: 1, layers: 2 };

/// Asserts that all instruction sets give about the same result, and that it is not all zero.
#[track_caller]
fn agree(compute: impl Fn(&str) -> Vec<f32>) {
    let expected = compute(Isa::SCALAR.name());
    assert!(expected.iter().all(|x| x.is_finite()) && expected.iter().any(|&x| x != 0.0));
    for isa in Isa::available() {
        let out = compute(isa.name());
        assert_eq!(out.len(), expected.len());
        for (i, (out, expected)) in out.iter().zip(&expected).enumerate() {
            assert!((out - expected).abs() < 1e-3, "{isa:?} {i}: {out} for {expected}");
        }
    }
}

#[test]
fn attention_is_the_same_on_all_instruction_sets() {
    for kv_type in [KvType::F16, KvType::Q8_0] {
        // A query in splits, and a prompt, which uses another kernel.
        for (past, rows) in [(200, 1), (0, 20)] {
            agree(|isa| {
                let mut attention = Attention::new(isa, Shape { kv_type, past, rows, ..SHAPE }).unwrap();
                attention.attend(|run| run()).unwrap();
                let first = attention.out().to_vec();
                // All layers hold the same, also after the rows are stored again.
                attention.store(|run| (0..2).for_each(|_| run())).unwrap();
                for turns in [1, 2, 3] {
                    attention.attend(|run| (0..turns).for_each(|_| run())).unwrap();
                    assert_eq!(attention.out(), first);
                }
                first
            });
        }
    }
}

#[test]
fn rows_are_the_same_on_all_instruction_sets() {
    let ops: [fn(&mut Rows); 5] =
        [Rows::rms_norm, Rows::silu_glu, Rows::add, |rows| rows.rope(true), |rows| rows.rope(false)];
    for op in ops {
        agree(|isa| {
            let mut rows = Rows::new(isa, 256).unwrap();
            op(&mut rows);
            rows.out().to_vec()
        });
    }
}

/// A bench runs for long. Its numbers must not become so small or so large that they change the
/// time.
#[test]
fn gates_stay_as_they_are() {
    let mut rows = Rows::new(instruction_set(), 256).unwrap();
    (0..10_000).for_each(|_| rows.silu_glu());
    assert!(rows.out().iter().all(|x| (0.4..1.6).contains(&-x)), "{:?}", rows.out());
}

#[test]
fn wrong_sizes_are_errors() {
    let wrong = [
        Shape { heads: 3, ..SHAPE },
        Shape { heads: 0, ..SHAPE },
        Shape { kv_heads: 0, ..SHAPE },
        Shape { dim: 0, ..SHAPE },
        Shape { rows: 0, ..SHAPE },
        Shape { layers: 0, ..SHAPE },
        Shape { past: usize::MAX, ..SHAPE },
        Shape { past: usize::MAX / 128, ..SHAPE },
        Shape { layers: usize::MAX / 2, ..SHAPE },
        Shape { heads: usize::MAX - 1, ..SHAPE },
    ];
    for shape in wrong {
        assert!(Attention::new("scalar", shape).is_err(), "{shape:?}");
    }
    for len in [0, 63, 100] {
        assert!(Rows::new("scalar", len).is_err(), "{len}");
    }
}
