//! Matrix products on one thread, a group for each tensor type: `cargo bench --bench matmul [-- FILTER]`, where a filter may be
//! a type or a test (`Q4_K`, `Q4_K/512`). `WAVELM_CPU` chooses the instruction set as everywhere, and is part of the groups'
//! names, so that each set is compared with its own last run.
//!
//! Elements are multiplications and additions: Gelem/s are GOP/s. One token is also multiplied with weights that come from
//! memory, in bytes of weights, and `reading` is the rate at which one thread reads as many. `benches/peers` measures the peak
//! of the processor's 8-bit dot products.

#![allow(missing_docs)] // of what criterion's macros make

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wavelm::bench_internals::{Product, instruction_set, interleave, tensor_types};
use wavelm::gguf::TensorType;
use wavelm::quant;

/// Small enough for the weights to stay in a cache.
const ROWS: usize = 64;
const COLS: usize = 2048;

/// More weights than caches hold, in parts of about a megabyte.
const PARTS: usize = 64;
const PART_BYTES: usize = 1 << 20;

/// Weights like those of models: values around zero. A few blocks, repeated.
fn weights(ty: TensorType, elements: usize) -> Vec<u8> {
    let values: Vec<f32> = (0..8192).map(|i: usize| ((i * 7919 + 17) % 1009) as f32 / 504.5 - 1.0).collect();
    let blocks = quant::quantize(ty, &values).expect("whole blocks");
    let len = elements / ty.block_len() * ty.block_bytes();
    blocks.into_iter().cycle().take(len).collect()
}

fn matmul(c: &mut Criterion) {
    let isa = instruction_set();
    for ty in tensor_types() {
        let mut group = c.benchmark_group(format!("matmul/{isa}/{ty:?}"));
        let cached = weights(ty, ROWS * COLS);
        for n in [1, 4, 16, 512] {
            group.throughput(Throughput::Elements((2 * ROWS * COLS * n) as u64));
            let mut product = Product::new(isa, ty, &cached, ROWS, COLS, n).expect("sizes agree");
            group.bench_function(BenchmarkId::from_parameter(n), |b| b.iter(|| product.run()));
        }
        let row_bytes = COLS / ty.block_len() * ty.block_bytes();
        // Whole tiles, so that no part is cut differently.
        let part = PART_BYTES / row_bytes / 32 * 32;
        let rows = PARTS * part;
        group.throughput(Throughput::Bytes((part * row_bytes) as u64));
        group.bench_function("1 from memory", |b| {
            let weights = weights(ty, rows * COLS);
            let mut product = Product::new(isa, ty, &weights, rows, COLS, 1).expect("sizes agree");
            let mut parts = (0..PARTS).cycle().map(|i| i * part..(i + 1) * part);
            b.iter(|| parts.next().map(|rows| product.run_rows(rows)));
        });
        // In the order that WAVELM_CPU_WEIGHTS=copied makes.
        if let Some(copy) = interleave(isa, ty, &weights(ty, rows * COLS), rows, COLS).expect("sizes agree") {
            group.bench_function("1 from memory, interleaved", |b| {
                let mut product = Product::new(isa, ty, &copy, rows, COLS, 1).expect("sizes agree").interleaved();
                let mut parts = (0..PARTS).cycle().map(|i| i * part..(i + 1) * part);
                b.iter(|| parts.next().map(|rows| product.run_rows(rows)));
            });
        }
        group.finish();
    }
}

/// The rate at which one thread reads memory.
fn memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("reading");
    group.throughput(Throughput::Bytes(PART_BYTES as u64));
    group.bench_function("64 MB", |b| {
        let words = vec![1_u64; PARTS * PART_BYTES / 8];
        let mut parts = words.chunks_exact(PART_BYTES / 8).cycle();
        b.iter(|| black_box(parts.next().map(read)));
    });
    group.finish();
}

/// Reads all words, in four streams as the kernels have several.
fn read(words: &[u64]) -> u64 {
    let stream = |i: usize| words[i * (words.len() / 4)..][..words.len() / 4].iter();
    let all = stream(0).zip(stream(1)).zip(stream(2)).zip(stream(3));
    all.fold(0, |sum, (((a, b), c), d)| sum ^ a ^ b ^ c ^ d)
}

fn short() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(200), Duration::from_millis(600));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(measurement)
}

criterion_group!(name = benches; config = short(); targets = memory, matmul);
criterion_main!(benches);
