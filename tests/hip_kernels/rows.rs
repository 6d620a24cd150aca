//! Norms, and what works on each number by itself.

use crate::args;
use crate::common::{Random, assert_near};
use crate::sim::{Buffer, sims};
use crate::weights::{halves_for, rows_of_halves};

/// The numbers that quantized activations stand for.
fn dequantized(q: &Buffer, groups: &Buffer) -> Vec<f32> {
    let groups = groups.read::<[u32; 2]>();
    q.read::<i8>().iter().enumerate().map(|(i, &q)| f32::from(q) * f32::from_bits(groups[i / 32][0])).collect()
}

/// Checks quantized numbers: each is off by at most half a step.
pub fn assert_quantized(q: &Buffer, groups: &Buffer, expected: &[f64], what: &str) {
    let steps: Vec<f64> =
        expected.chunks(32).map(|g| g.iter().fold(0.0, |max: f64, x| max.max(x.abs())) / 127.0).collect();
    let sums: Vec<i32> = q.read::<i8>().chunks(16).map(|half| half.iter().map(|&q| i32::from(q)).sum()).collect();
    for (i, [_, word]) in groups.read::<[u32; 2]>().iter().enumerate() {
        let found = [*word as i16, (word >> 16) as i16].map(i32::from);
        assert_eq!(found, sums[2 * i..2 * i + 2], "{what}: sums of group {i}");
    }
    for (i, (f, e)) in dequantized(q, groups).iter().zip(expected).enumerate() {
        assert!((f64::from(*f) - e).abs() <= steps[i / 32] * 0.51 + 1e-9, "{what}: number {i} is {f}, expected {e}");
    }
}

fn norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * factor * f64::from(w)).collect()
}

#[test]
fn norms_are_right() {
    let mut random = Random::new(10);
    for sim in sims() {
        for (rows, columns) in [(1, 1), (3, 37), (2, 256), (2, 576), (3, 1056), (2, 4096), (2, 5152), (1, 8197)] {
            let (x, y) = (random.normals(rows * columns), random.normals(rows * columns));
            let weight = random.normals(columns);
            let w = Buffer::new(&weight);
            let what = format!("wave {}, rms_norm of {rows} x {columns}", sim.wave);

            let (out, x_memory) = (Buffer::unset::<f32>(x.len()), Buffer::new(&x));
            let none: Option<&Buffer> = None;
            let grid = [rows, 1, 1];
            sim.launch("rms_norm", grid, args![&x_memory, none, &w, &out, none, none, columns, 1e-5_f32]);
            let expected: Vec<f64> = x.chunks(columns).flat_map(|row| norm(row, &weight, 1e-5)).collect();
            assert_near(&out.read::<f32>(), &expected, &[1.0], 2e-6, &what);
            assert_eq!(x_memory.read::<f32>(), x);
            sim.launch("rms_norm", grid, args![&x_memory, none, &w, &x_memory, none, none, columns, 1e-5_f32]);
            assert_eq!(x_memory.read::<f32>(), out.read::<f32>(), "{what}, in place");

            if columns % 32 == 0 {
                let (q, groups) = (Buffer::unset::<i8>(x.len()), Buffer::unset::<[u32; 2]>(x.len() / 32));
                let x_memory = Buffer::new(&x);
                sim.launch(
                    "rms_norm",
                    grid,
                    args![&x_memory, &Buffer::new(&y), &w, none, &q, &groups, columns, 1e-5_f32],
                );
                let sums: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
                assert_eq!(x_memory.read::<f32>(), sums, "{what}, sum");
                let expected: Vec<f64> = sums.chunks(columns).flat_map(|row| norm(row, &weight, 1e-5)).collect();
                assert_quantized(&q, &groups, &expected, &what);
            }
        }
        for (heads, columns) in [(1, 1), (5, 64), (9, 80), (7, 256)] {
            let (x, weight) = (random.normals(heads * columns), random.normals(columns));
            let memory = Buffer::new(&x);
            let grid = [heads.div_ceil(4), 1, 1];
            sim.launch("head_norm", grid, args![&memory, &Buffer::new(&weight), heads, columns, 1e-6_f32]);
            let expected: Vec<f64> = x.chunks(columns).flat_map(|row| norm(row, &weight, 1e-6)).collect();
            assert_near(&memory.read::<f32>(), &expected, &[1.0], 2e-6, "head_norm");
        }
    }
}

#[test]
fn elementwise_kernels_are_right() {
    let mut random = Random::new(11);
    for sim in sims() {
        for len in [1_usize, 255, 256, 1000] {
            let grid = [len.div_ceil(256), 1, 1];
            let (x, y) = (random.normals(len), random.normals(len));
            let count = len as u64;
            let memory = Buffer::new(&x);
            sim.launch("add", grid, args![&memory, &Buffer::new(&y), count]);
            assert_eq!(memory.read::<f32>(), x.iter().zip(&y).map(|(x, y)| x + y).collect::<Vec<_>>());
            let memory = Buffer::new(&x);
            sim.launch("scale", grid, args![&memory, 1.7_f32, count]);
            assert_eq!(memory.read::<f32>(), x.iter().map(|x| x * 1.7).collect::<Vec<_>>());
            for cap in [0.5_f32, 30.0, 1e4] {
                let memory = Buffer::new(&x);
                sim.launch("softcap", grid, args![&memory, cap, count]);
                let cap = f64::from(cap);
                let expected: Vec<f64> = x.iter().map(|&x| cap * (f64::from(x) / cap).tanh()).collect();
                let scale: Vec<f64> = expected.iter().map(|e| e.abs()).collect();
                assert_near(&memory.read::<f32>(), &expected, &scale, 2e-6, "softcap");
            }
        }
    }
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The approximation by tanh.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

#[test]
fn gated_units_are_right() {
    let mut random = Random::new(12);
    type Gate<'a> = &'a dyn Fn(f64) -> f64;
    for sim in sims() {
        for (kernel, gate) in [("glu_silu", &silu as Gate), ("glu_gelu", &gelu as Gate)] {
            for len in [1_usize, 257, 32, 1056] {
                let (mut x, up) = (random.normals(len), random.normals(len));
                x.iter_mut().for_each(|x| *x *= 3.0);
                x[0] = [-100.0, 100.0, -1e-3][len % 3];
                let expected: Vec<f64> = x.iter().zip(&up).map(|(&x, &u)| gate(f64::from(x)) * f64::from(u)).collect();
                let (memory, up) = (Buffer::new(&x), Buffer::new(&up));
                let grid = [len.div_ceil(256), 1, 1];
                let none: Option<&Buffer> = None;
                if len % 32 == 0 {
                    let (q, groups) = (Buffer::unset::<i8>(len), Buffer::unset::<[u32; 2]>(len / 32));
                    sim.launch(kernel, grid, args![&memory, &up, none, &q, &groups, len as u64]);
                    assert_quantized(&q, &groups, &expected, kernel);
                }
                sim.launch(kernel, grid, args![&memory, &up, &memory, none, none, len as u64]);
                let scale: Vec<f64> = expected.iter().map(|e| e.abs() + 1.0).collect();
                assert_near(&memory.read::<f32>(), &expected, &scale, 2e-6, kernel);
            }
        }
    }
}

#[test]
fn rows_are_gathered() {
    let mut random = Random::new(13);
    for sim in sims() {
        for columns in [1, 300, 512] {
            let x = random.normals(9 * columns);
            let rows: Vec<u32> = (0..5).map(|_| random.below(9) as u32).collect();
            let out = Buffer::unset::<f32>(5 * columns);
            sim.launch(
                "gather_rows",
                [columns.div_ceil(256), 5, 1],
                args![&Buffer::new(&x), &Buffer::new(&rows), &out, columns],
            );
            let expected: Vec<f32> =
                rows.iter().flat_map(|&r| &x[r as usize * columns..][..columns]).copied().collect();
            assert_eq!(out.read::<f32>(), expected);
        }
    }
}

#[test]
fn what_becomes_f16_at_once_is_right() {
    let mut random = Random::new(14);
    for sim in sims() {
        for (rows, columns) in [(1, 8), (3, 40), (17, 256), (2, 4104), (2, 17_000)] {
            let what = format!("wave {}, {rows} x {columns}", sim.wave);
            let (x, y) = (random.normals(rows * columns), random.normals(rows * columns));
            let (halves, scales) = (halves_for(rows, columns), Buffer::unset::<f32>(rows));
            let assert_halves = |expected: &[f64], what: &str| {
                let (found, factors) = (rows_of_halves(&halves, rows, columns), scales.read::<f32>());
                for (row, factor) in factors.iter().enumerate() {
                    let (found, expected) = (&found[row * columns..], &expected[row * columns..][..columns]);
                    let max = expected.iter().fold(0.0_f64, |max, e| max.max(e.abs()));
                    let largest = max / f64::from(*factor);
                    assert!((16383.0..=32769.0).contains(&largest), "{what}: {largest} is not the largest half");
                    for (found, expected) in found.iter().zip(expected) {
                        let (found, limit) = (f64::from(found.to_f32() * factor), expected.abs() / 2048.0 + max * 3e-6);
                        assert!((found - expected).abs() <= limit, "{what}: {found}, not {expected}");
                    }
                }
            };
            let (x_memory, y_memory) = (Buffer::new(&x), Buffer::new(&y));
            for (kernel, gate) in [("halve_silu", silu as fn(f64) -> f64), ("halve_gelu", gelu)] {
                sim.launch(kernel, [rows, 1, 1], args![&x_memory, &y_memory, &halves, &scales, columns]);
                let expected: Vec<f64> = x.iter().zip(&y).map(|(&x, &y)| gate(x.into()) * f64::from(y)).collect();
                assert_halves(&expected, &format!("{kernel}, {what}"));
            }
            let weight = random.normals(columns);
            let w = Buffer::new(&weight);
            let args = args![&x_memory, &y_memory, &w, &halves, &scales, columns, 1e-5_f32];
            sim.launch("halve_norm", [rows, 1, 1], args);
            let sums: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            assert_eq!(x_memory.read::<f32>(), sums, "{what}");
            let expected: Vec<f64> = sums.chunks(columns).flat_map(|row| norm(row, &weight, 1e-5)).collect();
            assert_halves(&expected, &format!("halve_norm, {what}"));
        }
    }
}
