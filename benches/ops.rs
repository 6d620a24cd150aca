//! Row operations on one thread, on a row that the first-level cache holds or nearly so: `cargo bench --bench ops [-- FILTER]`,
//! where a filter may be an operation or a length. Groups are named by the instruction set, which `WAVELM_CPU` chooses.
//! Elements are numbers of the row.

#![allow(missing_docs)] // of what criterion's macros make

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wavelm::bench_internals::{Rows, instruction_set};

type Operation = fn(&mut Rows);

const OPERATIONS: [(&str, Operation); 5] = [
    ("rms_norm", Rows::rms_norm),
    ("silu_glu", Rows::silu_glu),
    ("rope, neighbours", |row| row.rope(false)),
    ("rope, halves", |row| row.rope(true)),
    ("add", Rows::add),
];

fn ops(c: &mut Criterion) {
    let isa = instruction_set();
    for (name, operation) in OPERATIONS {
        let mut group = c.benchmark_group(format!("ops/{isa}/{name}"));
        for len in [2048, 8192] {
            group.throughput(Throughput::Elements(len as u64));
            let mut row = Rows::new(isa, len).expect("whole heads");
            group.bench_function(BenchmarkId::from_parameter(len), |b| b.iter(|| operation(&mut row)));
        }
        group.finish();
    }
}

fn short() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(200), Duration::from_millis(600));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(measurement)
}

criterion_group!(name = benches; config = short(); targets = ops);
criterion_main!(benches);
