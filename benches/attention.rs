//! Attention, and storing into the cache, on one thread: `cargo bench --bench attention [-- FILTER]`, where a filter may be a
//! part of the names, as `attention`, `store`, `64/F16` or `memory`. Groups are named by the instruction set, which `WAVELM_CPU`
//! chooses, the numbers in a head and the cache's type.
//!
//! Of a single query, the time is that of reading keys and values: GB/s, once from one layer, which caches may hold, and once
//! from layers that take turns, as those of a model. Of a prompt, elements are multiplications and additions: Gelem/s are
//! GOP/s. Elements that are stored are numbers of keys and values.

#![allow(missing_docs)] // of what criterion's macros make

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wavelm::KvType;
use wavelm::bench_internals::{Attention, Shape, instruction_set};

/// Heads as in Llama 3.2 1B, and as in Llama 3.1 8B.
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIMS: [usize; 2] = [64, 128];

const TYPES: [KvType; 2] = [KvType::F16, KvType::Q8_0];

/// Positions behind which a single query is.
const PAST: [usize; 3] = [512, 2048, 8192];

/// Queries of a prompt.
const PROMPT: usize = 512;

/// More than caches hold.
const MEMORY: usize = 64 << 20;

/// All shapes of this bench.
fn shapes() -> impl Iterator<Item = Shape> {
    let shape = |dim, kv_type| Shape { kv_type, heads: HEADS, kv_heads: KV_HEADS, dim, past: 0, rows: 1, layers: 1 };
    DIMS.into_iter().flat_map(move |dim| TYPES.map(|kv_type| shape(dim, kv_type)))
}

fn make(shape: Shape) -> Attention {
    Attention::new(instruction_set(), shape).expect("sizes agree")
}

fn attention(c: &mut Criterion) {
    for shape in shapes() {
        let Shape { dim, kv_type, .. } = shape;
        let mut group = c.benchmark_group(format!("attention/{}/{dim}/{kv_type:?}", instruction_set()));
        for past in PAST {
            let shape = Shape { past, ..shape };
            let mut one = make(shape);
            let bytes = one.bytes();
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::from_parameter(past), |b| {
                one.attend(|run| b.iter(run)).expect("sizes agree");
            });
            // Made when it is run, and only once, as it is large.
            let mut many = None;
            group.bench_function(format!("{past} from memory"), |b| {
                let many = many.get_or_insert_with(|| make(Shape { layers: MEMORY.div_ceil(bytes), ..shape }));
                many.attend(|run| b.iter(run)).expect("sizes agree");
            });
        }
        let mut prompt = make(Shape { rows: PROMPT, ..shape });
        let visible = PROMPT * (PROMPT + 1) / 2;
        group.throughput(Throughput::Elements((2 * (dim + dim) * HEADS * visible) as u64));
        group.bench_function(format!("prompt of {PROMPT}"), |b| {
            prompt.attend(|run| b.iter(run)).expect("sizes agree");
        });
        group.finish();
    }
}

fn store(c: &mut Criterion) {
    for shape in shapes() {
        let Shape { dim, kv_type, .. } = shape;
        let mut group = c.benchmark_group(format!("store/{}/{dim}/{kv_type:?}", instruction_set()));
        for rows in [1, PROMPT] {
            let mut one = make(Shape { rows, ..shape });
            group.throughput(Throughput::Elements((2 * dim * KV_HEADS * rows) as u64));
            group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                one.store(|run| b.iter(run)).expect("sizes agree");
            });
        }
        group.finish();
    }
}

fn short() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(200), Duration::from_millis(600));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(measurement)
}

criterion_group!(name = benches; config = short(); targets = attention, store);
criterion_main!(benches);
