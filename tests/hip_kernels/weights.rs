//! Weights in device memory, and the kernels that read them: dequantization and products.

use crate::args;
use crate::common::{Random, assert_near};
use crate::sim::{Buffer, Sim, sims};
use half::f16;
use wavelm::bench_internals::{kernel_name, planes, tensor_types};
use wavelm::gguf::TensorType::{self, *};
use wavelm::quant;

/// The supported types with their names in those of kernels.
fn types() -> impl Iterator<Item = (TensorType, &'static str)> {
    tensor_types().map(|ty| (ty, kernel_name(ty).unwrap()))
}

fn is_float(ty: TensorType) -> bool {
    !ty.is_quantized()
}

/// The bytes of a tensor as device memory holds them.
fn planar(ty: TensorType, data: &[u8]) -> Vec<u8> {
    let mut memory = Vec::new();
    for &(offset, len) in planes(ty).unwrap() {
        memory.resize(memory.len().next_multiple_of(256), 0xee);
        memory.extend(data.chunks_exact(ty.block_bytes()).flat_map(|block| &block[offset..offset + len]));
    }
    memory
}

/// A random matrix: its device memory, and its weights.
struct Matrix {
    rows: usize,
    columns: usize,
    memory: Buffer,
    weights: Vec<f32>,
}

fn matrix(ty: TensorType, rows: usize, columns: usize, random: &mut Random) -> Matrix {
    let data = quant::quantize(ty, &random.normals(rows * columns)).unwrap();
    let mut weights = vec![0.0; rows * columns];
    quant::dequantize(ty, &data, &mut weights).unwrap();
    Matrix { rows, columns, memory: Buffer::new(&planar(ty, &data)), weights }
}

#[test]
fn rows_dequantize_to_the_same_bits() {
    let mut random = Random::new(1);
    for sim in sims() {
        for (ty, name) in types() {
            for (rows, columns) in [(1, ty.block_len()), (7, 3 * ty.block_len()), (3, 1280)] {
                let bytes = rows * columns / ty.block_len() * ty.block_bytes();
                let data: Vec<u8> = (0..bytes).map(|_| random.bits() as u8).collect();
                let mut expected = vec![0.0; rows * columns];
                quant::dequantize(ty, &data, &mut expected).unwrap();
                let w = Buffer::new(&planar(ty, &data));
                // One id is beyond the last row.
                let ids: Vec<u32> = (0..rows as u32 + 3).map(|i| (i * 5 + 2) % (rows as u32 + 1)).collect();
                let per_thread = if is_float(ty) { 1 } else { 32 };
                let kernel = format!("dequant_rows_{name}");
                for ids in [None, Some(ids)] {
                    let count = ids.as_ref().map_or(rows, Vec::len);
                    let grid = [columns.div_ceil(per_thread * 128), count, 1];
                    let out = Buffer::unset::<f32>(count * columns);
                    let memory = ids.as_ref().map(|ids| Buffer::new(ids));
                    sim.launch(&kernel, grid, args![&w, memory.as_ref(), &out, rows, columns]);
                    for (i, row) in out.read::<f32>().chunks(columns).enumerate() {
                        let id = ids.as_ref().map_or(i, |ids| ids[i] as usize);
                        let expected = expected.get(id * columns..(id + 1) * columns);
                        for (j, &found) in row.iter().enumerate() {
                            let expected = expected.map_or(0.0, |row| row[j]);
                            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                            assert!(same, "{name}, row {id}, column {j}: {found}, expected {expected}");
                        }
                    }
                }
            }
        }
    }
}

/// Quantized activations in device memory, and what they stand for.
struct Activations {
    q: Buffer,
    groups: Buffer,
    values: Vec<f32>,
}

/// The quantization of the CPU backend.
fn quantize_reference(x: &[f32]) -> (Vec<i8>, Vec<[u32; 2]>) {
    let mut q = Vec::new();
    let mut groups = Vec::new();
    for group in x.chunks(32) {
        let max = f32::from_bits(group.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff)));
        let (scale, inverse) = if max < 1e-30 { (0.0, 0.0) } else { (max / 127.0, 127.0 / max) };
        q.extend(group.iter().map(|x| (x * inverse).round_ties_even() as i8));
        let sums = q[q.len() - 32..].chunks(16).map(|half| half.iter().map(|&q| i32::from(q)).sum::<i32>());
        let sums: Vec<u32> = sums.map(|sum| u32::from(sum as i16 as u16)).collect();
        groups.push([scale.to_bits(), sums[0] | sums[1] << 16]);
    }
    (q, groups)
}

fn activations(sim: &Sim, x: &[f32]) -> Activations {
    let (q, groups) = (Buffer::unset::<i8>(x.len()), Buffer::unset::<[u32; 2]>(x.len() / 32));
    let grid = [x.len().div_ceil(256), 1, 1];
    sim.launch("quantize_q8", grid, args![&Buffer::new(x), &q, &groups, x.len() as u64]);
    let scale = |i: usize| f32::from_bits(groups.read::<[u32; 2]>()[i / 32][0]);
    let scales: Vec<f32> = (0..x.len() / 32).map(|i| scale(i * 32)).collect();
    let values = q.read::<i8>().iter().enumerate().map(|(i, &q)| f32::from(q) * scales[i / 32]).collect();
    Activations { q, groups, values }
}

#[test]
fn activations_quantize_as_on_the_cpu() {
    let mut random = Random::new(2);
    for sim in sims() {
        for groups in [1, 7, 8, 9, 40] {
            let mut x = random.normals(groups * 32);
            for (i, x) in x.iter_mut().enumerate() {
                *x *= [1.0, 1e-35, 1e30, 0.0, 3e-3][i / 32 % 5];
            }
            if groups > 7 {
                // Ties, and what is not finite.
                x[..4].copy_from_slice(&[127.0, 0.5, 1.5, -2.5]);
                (x[200], x[170]) = (f32::NAN, f32::INFINITY);
            }
            let found = activations(sim, &x);
            let (q, expected) = quantize_reference(&x);
            let found = (found.q.read::<i8>(), found.groups.read::<[u32; 2]>());
            for (i, (f, e)) in found.1.iter().zip(&expected).enumerate() {
                let scale = f32::from_bits(e[0]);
                if scale.is_finite() {
                    assert_eq!(f, e, "group {i}");
                    assert_eq!(found.0[i * 32..][..32], q[i * 32..][..32], "group {i}");
                } else {
                    let found = f32::from_bits(f[0]);
                    assert!(found.is_nan() == scale.is_nan() && !found.is_finite(), "group {i}: {found}");
                }
            }
        }
    }
}

/// `x wᵀ` in f64 for `count` rows of `x`, and the same of magnitudes.
fn product(w: &[f32], x: &[f32], columns: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = x.chunks(columns).flat_map(|x| w.chunks(columns).map(move |w| (w, x)));
    rows.map(|(w, x)| {
        let products = || w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
        (products().sum::<f64>(), products().map(f64::abs).sum::<f64>())
    })
    .unzip()
}

/// What a kernel is told of the norm of its activations whose factor is missing, and the factor of each column.
#[derive(Default)]
struct DeferredNorm {
    squares: Option<Buffer>,
    factors: Vec<f64>,
}

const EPS: f32 = 1e-2;

/// With and without such a norm.
fn deferred_norm(count: usize, columns: usize, random: &mut Random) -> DeferredNorm {
    if random.below(3) == 0 {
        return DeferredNorm::default();
    }
    let squares: Vec<f32> = random.normals(count * columns / 32).iter().map(|x| x * x * 32.0).collect();
    let mean = |part: &[f32]| part.iter().map(|&s| f64::from(s)).sum::<f64>() / columns as f64;
    let factors = squares.chunks(columns / 32).map(|part| 1.0 / (mean(part) + f64::from(EPS)).sqrt()).collect();
    DeferredNorm { squares: Some(Buffer::new(&squares)), factors }
}

impl DeferredNorm {
    /// Multiplies rows of `rows` results with the factors.
    fn apply(&self, results: &mut [f64], rows: usize) {
        for (row, factor) in results.chunks_mut(rows).zip(&self.factors) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// Launches a kernel that multiplies `w` with `count` columns, with and without an epilogue, and checks the result.
fn check_product(sim: &Sim, kernel: &str, grid: [usize; 3], ty: TensorType, w: &Matrix, count: usize, seed: u64) {
    let mut random = Random::new(seed);
    let Matrix { rows, columns, .. } = *w;
    let x = random.normals(count * columns);
    let (bias, residual) = (random.normals(rows), random.normals(count * rows));
    let (out, bias_memory) = (Buffer::new(&residual), Buffer::new(&bias));
    let epilogue = seed % 2 == 1;
    let mut norm = DeferredNorm::default();
    let (bias_arg, residual_arg) = if epilogue { (Some(&bias_memory), Some(&out)) } else { (None, None) };
    let values = if is_float(ty) {
        let x_memory = Buffer::new(&x);
        let args = args![&w.memory, &x_memory, &out, bias_arg, residual_arg, rows, columns, count];
        sim.launch(kernel, grid, args);
        x
    } else {
        let x = activations(sim, &x);
        if kernel.starts_with("matvec") {
            norm = deferred_norm(count, columns, &mut random);
            let squares = norm.squares.as_ref();
            let (q, groups) = (&x.q, &x.groups);
            let args = args![&w.memory, q, groups, &out, bias_arg, residual_arg, rows, columns, count, squares, EPS];
            sim.launch(kernel, grid, args);
        } else {
            let args = args![&w.memory, &x.q, &x.groups, &out, bias_arg, residual_arg, rows, columns, count];
            sim.launch(kernel, grid, args);
        }
        x.values
    };
    let (mut expected, mut scale) = product(&w.weights, &values, columns);
    norm.apply(&mut expected, rows);
    norm.apply(&mut scale, rows);
    if epilogue {
        for (i, expected) in expected.iter_mut().enumerate() {
            *expected += f64::from(bias[i % rows]) + f64::from(residual[i]);
        }
    }
    let what = format!("wave {}, {kernel}, {rows} x {columns}, {count} columns", sim.wave);
    let scale: Vec<f64> = scale.iter().map(|s| s + 1.0).collect();
    assert_near(&out.read::<f32>(), &expected, &scale, 2e-6, &what);
}

#[test]
fn products_with_few_columns_are_right() {
    let mut random = Random::new(3);
    for sim in sims() {
        for (ty, name) in types() {
            let odd_columns = if is_float(ty) { 37 } else { ty.block_len() };
            for (rows, columns) in [(1, odd_columns), (9, 3 * ty.block_len().max(16)), (6, 1024)] {
                let w = matrix(ty, rows, columns, &mut random);
                for (n, count) in FEW {
                    let kernel = format!("matvec_{name}_{n}");
                    check_product(sim, &kernel, [rows.div_ceil(4), 1, 1], ty, &w, count, random.bits());
                }
            }
        }
    }
}

/// The kernels for few columns, and numbers of columns to try each with.
const FEW: [(usize, usize); 5] = [(1, 1), (2, 2), (4, 3), (8, 5), (8, 8)];

#[test]
fn three_products_in_one_launch_are_right() {
    let mut random = Random::new(31);
    let same = types().filter(|(ty, _)| !is_float(*ty)).map(|(ty, name)| (ty, ty, name.to_owned()));
    let mixed = [(Q4_K, Q6_K, "q4_k_q6_k".to_owned()), (Q5_K, Q6_K, "q5_k_q6_k".to_owned())];
    let kinds: Vec<_> = same.chain(mixed).collect();
    for sim in sims() {
        for (ty, last, name) in &kinds {
            for (i, rows) in [[9, 3, 6], [5, 8, 0], [4, 0, 0]].into_iter().enumerate() {
                let (n, count) = FEW[(i * 2 + random.below(3)) % FEW.len()];
                let columns = 3 * ty.block_len().max(last.block_len());
                let types = [*ty, *ty, *last];
                let w = [0, 1, 2].map(|j| matrix(types[j], rows[j].max(1), columns, &mut random));
                let x = random.normals(count * columns);
                let x = activations(sim, &x);
                let out = rows.map(|rows| Buffer::unset::<f32>(count * rows.max(1)));
                let bias = rows.map(|rows| random.normals(rows.max(1)));
                let memory = [0, 1, 2].map(|j| Buffer::new(&bias[j]));
                // The second has none.
                let biases = [Some(&memory[0]), None, Some(&memory[2])];
                let grid = [rows.iter().map(|rows| rows.div_ceil(4)).sum(), 1, 1];
                let kernel = format!("matvec_three_{name}_{n}");
                let norm = deferred_norm(count, columns, &mut random);
                sim.launch(
                    &kernel,
                    grid,
                    args![
                        &w[0].memory,
                        &w[1].memory,
                        &w[2].memory,
                        &x.q,
                        &x.groups,
                        &out[0],
                        &out[1],
                        &out[2],
                        biases[0],
                        biases[1],
                        biases[2],
                        rows[0],
                        rows[1],
                        rows[2],
                        columns,
                        count,
                        norm.squares.as_ref(),
                        EPS
                    ],
                );
                for j in (0..3).filter(|&j| rows[j] > 0) {
                    let (mut expected, mut scale) = product(&w[j].weights, &x.values, columns);
                    norm.apply(&mut expected, rows[j]);
                    norm.apply(&mut scale, rows[j]);
                    for (k, expected) in expected.iter_mut().enumerate() {
                        *expected += if biases[j].is_some() { f64::from(bias[j][k % rows[j]]) } else { 0.0 };
                    }
                    let scale: Vec<f64> = scale.iter().map(|s| s + 1.0).collect();
                    let what = format!("wave {}, {kernel}, part {j} of {rows:?}, {count} columns", sim.wave);
                    assert_near(&out[j].read::<f32>(), &expected, &scale, 2e-6, &what);
                }
            }
        }
    }
}

#[test]
fn gated_products_are_right() {
    let mut random = Random::new(32);
    for sim in sims() {
        for (ty, name) in types().filter(|(ty, _)| !is_float(*ty)) {
            for (i, (n, count)) in FEW.into_iter().enumerate() {
                // Without quantization any number of rows will do.
                let rows = [64, 37, 32, 96, 5][(i + random.below(5)) % 5];
                let columns = 2 * ty.block_len().max(64);
                let w = [0, 1].map(|_| matrix(ty, rows, columns, &mut random));
                let x = activations(sim, &random.normals(count * columns));
                let (out, len) = (Buffer::unset::<f32>(count * rows), count * rows);
                let (q, groups) = (Buffer::unset::<i8>(len), Buffer::unset::<[u32; 2]>(len / 32));
                let quantizes = rows % 32 == 0;
                let gelu = i % 2;
                let kernel = format!("matvec_glu_{name}_{n}");
                let norm = deferred_norm(count, columns, &mut random);
                sim.launch(
                    &kernel,
                    [rows.div_ceil(32), 1, 1],
                    args![
                        &w[0].memory,
                        &w[1].memory,
                        &x.q,
                        &x.groups,
                        &out,
                        quantizes.then_some(&q),
                        quantizes.then_some(&groups),
                        gelu,
                        rows,
                        columns,
                        count,
                        norm.squares.as_ref(),
                        EPS
                    ],
                );
                let multiply = |w: &Matrix| {
                    let (mut products, mut scale) = product(&w.weights, &x.values, columns);
                    norm.apply(&mut products, rows);
                    norm.apply(&mut scale, rows);
                    (products, scale)
                };
                let ((gate, gate_scale), (up, up_scale)) = (multiply(&w[0]), multiply(&w[1]));
                let act = if gelu == 1 { crate::rows::gelu } else { crate::rows::silu };
                let expected: Vec<f64> = gate.iter().zip(&up).map(|(&g, &u)| act(g) * u).collect();
                let scale = gate.iter().zip(&up).zip(gate_scale.iter().zip(&up_scale));
                let scale: Vec<f64> =
                    scale.map(|((g, u), (gs, us))| g.abs() * us + u.abs() * gs + g.abs() * u.abs() + 1.0).collect();
                let what = format!("wave {}, {kernel}, {rows} x {columns}, {count} columns", sim.wave);
                assert_near(&out.read::<f32>(), &expected, &scale, 3e-6, &what);
                if quantizes {
                    let found: Vec<f64> = out.read::<f32>().into_iter().map(f64::from).collect();
                    crate::rows::assert_quantized(&q, &groups, &found, &what);
                }
            }
        }
    }
}

#[test]
fn products_leave_a_norm_to_those_that_follow() {
    let mut random = Random::new(33);
    for sim in sims() {
        for (ty, name) in types().filter(|(ty, _)| !is_float(*ty)) {
            for (i, (n, count)) in FEW.into_iter().enumerate() {
                let (rows, columns) = (32 * (1 + i % 3), 3 * ty.block_len().max(64));
                let w = matrix(ty, rows, columns, &mut random);
                let x = activations(sim, &random.normals(count * columns));
                let (before, weight) = (random.normals(count * rows), random.normals(rows));
                let (stream, bias) = (Buffer::new(&before), random.normals(rows));
                let bias_memory = (i % 2 == 0).then(|| Buffer::new(&bias));
                let (q, groups) = (Buffer::unset::<i8>(count * rows), Buffer::unset::<[u32; 2]>(count * rows / 32));
                let squares = Buffer::unset::<f32>(count * rows / 32);
                let kernel = format!("matvec_residual_{name}_{n}");
                sim.launch(
                    &kernel,
                    [rows / 32, 1, 1],
                    args![
                        &w.memory,
                        &x.q,
                        &x.groups,
                        &stream,
                        bias_memory.as_ref(),
                        &Buffer::new(&weight),
                        &q,
                        &groups,
                        &squares,
                        rows,
                        columns,
                        count
                    ],
                );
                let what = format!("wave {}, {kernel}, {rows} x {columns}, {count} columns", sim.wave);
                let (mut expected, scale) = product(&w.weights, &x.values, columns);
                for (k, expected) in expected.iter_mut().enumerate() {
                    let bias = if bias_memory.is_some() { f64::from(bias[k % rows]) } else { 0.0 };
                    *expected += f64::from(before[k]) + bias;
                }
                let scale: Vec<f64> = scale.iter().map(|s| s + 1.0).collect();
                let found = stream.read::<f32>();
                assert_near(&found, &expected, &scale, 2e-6, &what);
                let wide: Vec<f64> = found.into_iter().map(f64::from).collect();
                let sums: Vec<f64> = wide.chunks(32).map(|group| group.iter().map(|x| x * x).sum()).collect();
                assert_near(&squares.read::<f32>(), &sums, &sums, 1e-6, &what);
                let normed: Vec<f64> = wide.iter().enumerate().map(|(k, x)| x * f64::from(weight[k % rows])).collect();
                crate::rows::assert_quantized(&q, &groups, &normed, &what);
            }
        }
    }
}

#[test]
fn products_with_many_columns_are_right() {
    let mut random = Random::new(4);
    for sim in sims() {
        for (ty, name) in types() {
            let odd_columns = if is_float(ty) { 37 } else { ty.block_len() };
            for (rows, columns, count) in [(1, odd_columns, 1), (70, 3 * odd_columns, 9), (64, 256, 129_usize)] {
                let w = matrix(ty, rows, columns, &mut random);
                let grid = [rows.div_ceil(64), count.div_ceil(64), 1];
                check_product(sim, &format!("matmul_{name}"), grid, ty, &w, count, random.bits());
            }
        }
    }
}

/// The power of two that a row is divided by before it becomes f16.
fn halving_scale(row: &[f32]) -> f32 {
    let max = row.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff));
    let exponent = (max >> 23) as i32 - 127;
    if exponent == 128 { 1.0 } else { 2.0_f32.powi((exponent - 14).max(-126)) }
}

/// Memory for the f16 form of rows.
pub fn halves_for(rows: usize, columns: usize) -> Buffer {
    Buffer::unset::<u16>(rows.next_multiple_of(16) * columns)
}

/// The rows of an f16 form, which has eight columns of each of 16 rows, and then the next eight.
pub fn rows_of_halves(halves: &Buffer, rows: usize, columns: usize) -> Vec<f16> {
    let all = halves.read::<u16>();
    let at = |row: usize, column: usize| (row / 16 * (columns / 8) + column / 8) * 128 + row % 16 * 8 + column % 8;
    (0..rows * columns).map(|i| f16::from_bits(all[at(i / columns, i % columns)])).collect()
}

#[test]
fn rows_halve_without_overflow() {
    let mut random = Random::new(5);
    for sim in sims() {
        for columns in [8, 40, 1024, 2080] {
            let mut x = random.normals(columns * 8);
            let factors = [1.0, 1e38, 1e-38, 1e-42, 0.0, 65504.0, 3e-3, 1.0];
            for (row, factor) in x.chunks_mut(columns).zip(factors) {
                row.iter_mut().for_each(|x| *x = (*x * factor).clamp(f32::MIN, f32::MAX));
            }
            x[columns - 1] = f32::NEG_INFINITY;
            x[7 * columns + 1] = f32::NAN;
            let (halves, scales) = (halves_for(8, columns), Buffer::unset::<f32>(8));
            sim.launch("halve_rows", [8, 1, 1], args![&Buffer::new(&x), &halves, &scales, columns]);
            let (halves, scales) = (rows_of_halves(&halves, 8, columns), scales.read::<f32>());
            for (i, row) in x.chunks(columns).enumerate() {
                assert_eq!(scales[i], halving_scale(row), "row {i}");
                for (&x, &found) in row.iter().zip(&halves[i * columns..]) {
                    let expected = f16::from_f32(x / scales[i]);
                    assert!(found == expected || found.is_nan() && expected.is_nan(), "row {i}: {x} became {found}");
                    assert_eq!(found.is_finite(), x.is_finite(), "row {i}: {x} became {found}");
                }
            }
        }
    }
}

/// Tokens and rows that blocks of the matrix-core kernels compute.
const CORE_TILES: [(usize, usize); 4] = [(16, 64), (32, 128), (64, 128), (128, 128)];

#[test]
fn products_on_matrix_cores_are_right() {
    let mut random = Random::new(6);
    for sim in sims() {
        for (ty, name) in types().filter(|(ty, _)| *ty != F32) {
            // Their weights are exactly those of the file, rounded to f16.
            let exact = matches!(ty, F16 | BF16 | Q4_0 | Q5_0 | Q8_0);
            for (i, (tokens, block_rows)) in CORE_TILES.into_iter().enumerate() {
                let few = ty.block_len().max(32);
                let shapes = [
                    (1, few, 1),
                    (block_rows + 3, 3 * few, tokens / 2 + 1),
                    (block_rows - 5, [256, 512, 768, 1280][i], tokens + 1),
                ];
                for (rows, columns, count) in shapes {
                    // Up to three matrices, the others without rows.
                    let all_rows = [rows, 5, block_rows + 1][..1 + (i + rows) % 3].to_vec();
                    let x: Vec<f32> = random.normals(count * columns).iter().map(|x| x * 300.0).collect();
                    let (halves, scales) = (halves_for(count, columns), Buffer::unset::<f32>(count));
                    sim.launch("halve_rows", [count, 1, 1], args![&Buffer::new(&x), &halves, &scales, columns]);
                    let (read, factors) = (rows_of_halves(&halves, count, columns), scales.read::<f32>());
                    let value = |(i, half): (usize, &f16)| half.to_f32() * factors[i / columns];
                    let values: Vec<f32> = read.iter().enumerate().map(value).collect();

                    let mut of = all_rows.iter().map(|&rows| {
                        let mut w = matrix(ty, rows, columns, &mut random);
                        if exact {
                            w.weights.iter_mut().for_each(|w| *w = f16::from_f32(*w).to_f32());
                        }
                        let bias = (columns > few).then(|| random.normals(rows));
                        (w, bias.clone(), bias.map(|b| Buffer::new(&b)), Buffer::unset::<f32>(count * rows))
                    });
                    let of = [of.next(), of.next(), of.next()];
                    let [a, b, c] = of.each_ref().map(|m| m.as_ref().map(|(w, ..)| &w.memory));
                    let out = of.each_ref().map(|m| m.as_ref().map(|(.., out)| out));
                    let bias = of.each_ref().map(|m| m.as_ref().and_then(|(_, _, bias, _)| bias.as_ref()));
                    let row = |i: usize| all_rows.get(i).copied().unwrap_or(0);
                    let kernel = format!("matmul_core_{name}_{tokens}");
                    // More splits than steps leave some without any.
                    let across: usize = all_rows.iter().map(|rows| rows.div_ceil(block_rows)).sum();
                    let (splits, tiles) = ([1, 3, 7][(i + columns) % 3], across * count.div_ceil(tokens));
                    let partials = Buffer::unset::<f32>(tiles * splits * tokens * block_rows);
                    let counters = Buffer::new(&vec![0_u32; tiles]);
                    let args = args![
                        a,
                        b,
                        c,
                        &halves,
                        &scales,
                        out[0],
                        out[1],
                        out[2],
                        bias[0],
                        bias[1],
                        bias[2],
                        row(0),
                        row(1),
                        row(2),
                        columns,
                        count,
                        splits,
                        &partials,
                        &counters
                    ];
                    sim.launch(&kernel, [across, count.div_ceil(tokens), splits], args);
                    assert!(counters.read::<u32>().iter().all(|&n| n == 0), "{kernel} left its counters changed");
                    for (w, bias, _, out) in of.iter().flatten() {
                        let rows = out.read::<f32>().len() / count;
                        let what = format!("wave {}, {kernel}, {rows} x {columns}, {count} columns", sim.wave);
                        let (mut expected, scale) = product(&w.weights, &values, columns);
                        if let Some(bias) = bias {
                            expected.iter_mut().enumerate().for_each(|(i, e)| *e += f64::from(bias[i % rows]));
                        }
                        let scale: Vec<f64> = scale.iter().map(|s| s + 1.0).collect();
                        let tolerance = if exact { 2e-6 } else { 4e-4 };
                        assert_near(&out.read::<f32>(), &expected, &scale, tolerance, &what);
                    }
                }
            }
        }
    }
}
