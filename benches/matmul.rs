//! Matrix products on one thread: prompts (many tokens) against the peak of the processor's 8-bit dot products, and
//! single tokens against the rate at which memory can be read. All of it is measured in the same run, and of many short runs the
//! best or the median counts, so that the numbers stand on a machine that has other work too.
//!
//! `cargo bench --bench matmul [-- TYPE | INSTRUCTION SET...]`: those named, or all.

use std::hint::black_box;
use std::time::{Duration, Instant};
use wavelm::bench_internals::{Product, instruction_sets};
use wavelm::gguf::TensorType::{self, *};
use wavelm::quant;

const TYPES: [TensorType; 13] = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, F16, BF16, F32];

fn main() -> wavelm::Result<()> {
    let names: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let mut types: Vec<_> = TYPES.into_iter().filter(|ty| names.contains(&format!("{ty:?}"))).collect();
    if types.is_empty() {
        types.extend(TYPES);
    }
    let mut sets: Vec<_> = instruction_sets().into_iter().filter(|isa| names.iter().any(|name| name == isa)).collect();
    if sets.is_empty() {
        sets = instruction_sets();
    }
    for isa in sets {
        let peak = peak(isa);
        println!("\n{isa}: peak {:.0} GOP/s", peak.unwrap_or(f64::NAN));
        let heads = ["512 tokens", "32 tokens", "4 tokens", "1 token (cached)", "1 token (64 MB)"];
        println!("{:6} {}", "", heads.map(|head| format!("{head:>20}")).concat());
        for &ty in &types {
            let mut line = format!("{:>6}", format!("{ty:?}"));
            for n in [512, 32, 4, 1] {
                let (rows, cols) = (64, 2048);
                let weights = weights(ty, rows * cols)?;
                let mut product = Product::new(isa, ty, &weights, rows, cols, n)?;
                let time = best(Duration::from_millis(if isa == "scalar" { 50 } else { 300 }), || product.run());
                let rate = (2 * rows * cols * n) as f64 / time / 1e9;
                line += &format!("{rate:>9.0} GOP/s {}", percent(peak.map(|peak| rate / peak)));
            }
            let cols = 2048;
            let row_bytes = cols / ty.block_len() * ty.block_bytes();
            let step = (1 << 20) / row_bytes / 32 * 32;
            let rows = 64 * step;
            let weights = weights(ty, rows * cols)?;
            let mut product = Product::new(isa, ty, &weights, rows, cols, 1)?;
            let chunk = step * row_bytes;
            // In turn, in different places, so that what else the machine does slows both.
            let (mut times, mut reads) = (Vec::new(), Vec::new());
            for i in 0..8 * 64 {
                let (i, other) = (i % 64, (i + 32) % 64);
                times.push(time(|| product.run_rows(i * step..(i + 1) * step)));
                reads.push(time(|| read(&weights[other * chunk..][..chunk])));
            }
            let (rate, limit) = (chunk as f64 / median(times) / 1e9, chunk as f64 / median(reads) / 1e9);
            println!("{line} {rate:>8.1} of {limit:>4.1} GB/s {}", percent(Some(rate / limit)));
        }
    }
    Ok(())
}

fn percent(part: Option<f64>) -> String {
    part.map_or("    ".into(), |part| format!("{:>3.0}%", 100.0 * part))
}

/// The time of the fastest run, in seconds.
fn best(limit: Duration, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || start.elapsed() < limit {
        best = best.min(time(&mut run));
        runs += 1;
    }
    best
}

/// The time of one run, in seconds.
fn time(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Weights like those of models: values around zero. A few blocks, repeated.
fn weights(ty: TensorType, elements: usize) -> wavelm::Result<Vec<u8>> {
    let values: Vec<f32> = (0..8192).map(|i: usize| ((i * 7919 + 17) % 1009) as f32 / 504.5 - 1.0).collect();
    let blocks = quant::quantize(ty, &values)?;
    let len = elements / ty.block_len() * ty.block_bytes();
    Ok(blocks.into_iter().cycle().take(len).collect())
}

/// Reads all bytes.
fn read(bytes: &[u8]) {
    let (chunks, _) = bytes.as_chunks::<256>();
    let mut sums = [0_u64; 32];
    for chunk in chunks {
        for (sum, bytes) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum ^= u64::from_le_bytes(*bytes);
        }
    }
    black_box(sums);
}

/// 8-bit multiplications and additions per nanosecond that one core can do with nothing else to do.
#[cfg(target_arch = "x86_64")]
fn peak(isa: &str) -> Option<f64> {
    use std::arch::x86_64::*;

    const STEPS: usize = 20_000;

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn avx512() {
        let mut sums = [_mm512_setzero_si512(); 24];
        let w = black_box(_mm512_set1_epi8(3));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, w, w);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    fn avx2() {
        let mut sums = [_mm256_setzero_si256(); 8];
        let (w, ones) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi16(1)));
        for _ in 0..STEPS {
            for sum in &mut sums {
                let mut w = w;
                // SAFETY: an empty piece of assembly. It hides that all products are the same.
                unsafe { std::arch::asm!("/* {} */", inout(ymm_reg) w, options(nomem, nostack, preserves_flags)) };
                let pairs = _mm256_maddubs_epi16(w, ones);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
    }

    let (macs, time) = match isa {
        // SAFETY: the instruction sets named are those of this processor.
        "avx512" => (64 * 24 * STEPS, best(Duration::from_millis(300), || unsafe { avx512() })),
        // SAFETY: as above.
        "avx2" => (32 * 8 * STEPS, best(Duration::from_millis(300), || unsafe { avx2() })),
        _ => return None,
    };
    Some(2.0 * macs as f64 / time / 1e9)
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_: &str) -> Option<f64> {
    None
}
