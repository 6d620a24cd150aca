//! Tokenizers: building one from a file, and encoding and decoding text.
//!
//! `WAVELM_MODEL` names a GGUF file (its vocabulary is enough); without it, a small vocabulary of the tests is measured.

#![allow(missing_docs)] // what criterion_group makes

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::path::Path;
use wavelm::gguf::Gguf;
use wavelm::tokenizer::{EncodeOptions, Tokenizer};

const ENGLISH: &str = "When the tide went out that morning, it left behind a shallow pool in which three crabs, a \
    starfish and about 40 shrimp had been trapped. \"They'll be fine,\" said the old woman who lived by the pier; she \
    had seen this happen every week since 1962. The children weren't convinced. They carried water in a red bucket, \
    back and forth, until their mother called them in for lunch, and by then (it was almost half past one) the sea had \
    begun to return on its own.\n\n";
const CHINESE: &str = "清晨退潮之后，浅滩上留下了一个小水坑，里面困着三只螃蟹、一只海星和大约40只虾。";

fn tokenizer(c: &mut Criterion) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/bpe.gguf");
    let path = std::env::var_os("WAVELM_MODEL").map_or(fixture, Into::into);
    let gguf = Gguf::open(&path).expect("WAVELM_MODEL names a GGUF file");
    let tokenizer = Tokenizer::from_metadata(gguf.metadata()).expect("a vocabulary");
    let options = EncodeOptions { add_special: false, parse_special: true };

    c.bench_function("tokenizer/build", |b| b.iter(|| Tokenizer::from_metadata(black_box(gguf.metadata()))));

    let mut group = c.benchmark_group("tokenizer/encode");
    let letters: String = ENGLISH.chars().filter(char::is_ascii_alphabetic).collect();
    for (name, text) in
        [("english", ENGLISH), ("chinese", CHINESE), ("no spaces", &letters), ("one letter", "a"), ("one space", " ")]
    {
        for size in [1 << 14, 1 << 20] {
            let text = text.repeat(size / text.len());
            group.throughput(Throughput::Bytes(text.len() as u64));
            group.sample_size(10);
            group.bench_function(format!("{name}/{}k", size >> 10), |b| {
                b.iter(|| tokenizer.encode(black_box(&text), options))
            });
        }
    }
    group.finish();

    let text = ENGLISH.repeat(100);
    let tokens = tokenizer.encode(&text, options).expect("a text of this length");
    let mut group = c.benchmark_group("tokenizer/decode");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("english", |b| b.iter(|| tokenizer.decode(black_box(&tokens)).unwrap()));
    group.finish();
}

criterion_group!(benches, tokenizer);
criterion_main!(benches);
