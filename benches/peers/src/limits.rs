//! What bounds a program on this machine: how fast its threads read memory, and how many 8-bit products they add up.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Measured within a fraction of a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes a second that all threads together read.
    pub bandwidth: f64,
    /// Where the processor has an instruction for it that is known here.
    pub int8: Option<Int8>,
}

/// 8-bit multiplications and additions a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Int8 {
    pub instructions: &'static str,
    pub one_thread: f64,
    pub all_threads: f64,
}

impl Limits {
    /// Measures with as many threads.
    pub fn measure(threads: usize) -> Limits {
        let best = |threads, kernel: &Kernel| together(threads, 8, || (), |()| kernel.run()) * kernel.operations();
        let int8 = kernels().into_iter().map(|kernel| Int8 {
            instructions: kernel.name,
            one_thread: best(1, &kernel),
            all_threads: best(threads, &kernel) * threads as f64,
        });
        let int8 = int8.max_by(|a, b| a.all_threads.total_cmp(&b.all_threads));
        Limits { bandwidth: bandwidth(threads), int8 }
    }

    /// Half way between two measurements.
    pub fn between(self, other: Limits) -> Limits {
        let mean = |a: f64, b: f64| (a + b) / 2.0;
        let int8 = self.int8.zip(other.int8).map(|(a, b)| Int8 {
            instructions: a.instructions,
            one_thread: mean(a.one_thread, b.one_thread),
            all_threads: mean(a.all_threads, b.all_threads),
        });
        Limits { bandwidth: mean(self.bandwidth, other.bandwidth), int8 }
    }
}

/// The most runs a second of `work` that each of the threads does while all of them do it, of several attempts. Each
/// thread works on what it has made itself, so that its memory is near to it.
fn together<T>(threads: usize, attempts: usize, make: impl Fn() -> T + Sync, work: impl Fn(&T) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let attempt = |own: &T| {
        barrier.wait();
        let began = Instant::now();
        work(own);
        (began, Instant::now())
    };
    let thread = || {
        let own = make();
        (0..attempts).map(|_| attempt(&own)).collect::<Vec<_>>()
    };
    let times: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(thread)).collect();
        handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
    });
    let seconds = |attempt: usize| -> Option<Duration> {
        let began = times.iter().map(|thread| thread[attempt].0).min()?;
        Some(times.iter().map(|thread| thread[attempt].1).max()? - began)
    };
    let best = (0..attempts).filter_map(seconds).min();
    best.map_or(f64::NAN, |best| 1.0 / best.as_secs_f64())
}

/// More than the caches of two or more threads hold.
const BUFFER: usize = 512 << 20;

fn bandwidth(threads: usize) -> f64 {
    let words = BUFFER / threads / size_of::<u64>();
    // Not zeros, which need no memory of their own.
    let make = || vec![black_box(0x5555_u64); words];
    let passes = together(threads, 3, make, |words| {
        black_box(read(words));
    });
    passes * (threads * words * size_of::<u64>()) as f64
}

/// Reads all of it, in four streams: with one, a thread does not keep the memory busy. A single sum, since several are made
/// into something slow by compilers that know AVX-512.
fn read(words: &[u64]) -> u64 {
    let stream = |i: usize| words[i * (words.len() / 4)..][..words.len() / 4].iter();
    let all = stream(0).zip(stream(1)).zip(stream(2)).zip(stream(3));
    all.fold(0, |sum, (((a, b), c), d)| sum ^ a ^ b ^ c ^ d)
}

/// A loop of independent dot products of bytes.
struct Kernel {
    name: &'static str,
    /// Multiplications a turn.
    products: usize,
    /// The loop, for so many turns.
    ///
    /// # Safety
    /// The processor must have the instructions.
    turns: unsafe fn(usize),
}

impl Kernel {
    /// Enough that a thread's start does not count, and few enough for an attempt to find the processor undisturbed.
    const TURNS: usize = 2_000_000;

    fn run(&self) {
        // SAFETY: `kernels` made it for this processor.
        unsafe { (self.turns)(Self::TURNS) }
    }

    /// Multiplications and additions of a run.
    fn operations(&self) -> f64 {
        (2 * Self::TURNS * self.products) as f64
    }
}

/// Those that this processor has instructions for. The best is found by timing them.
#[cfg(target_arch = "x86_64")]
fn kernels() -> Vec<Kernel> {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn avx512_vnni(turns: usize) {
        let (mut sums, w) = ([_mm512_setzero_si512(); 16], black_box(_mm512_set1_epi8(3)));
        for _ in 0..turns {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, w, w));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn avx_vnni(turns: usize) {
        let (mut sums, w) = ([_mm256_setzero_si256(); 12], black_box(_mm256_set1_epi8(3)));
        for _ in 0..turns {
            sums.iter_mut().for_each(|sum| *sum = _mm256_dpbusd_avx_epi32(*sum, w, w));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    fn avx2(turns: usize) {
        let mut sums = [_mm256_setzero_si256(); 8];
        let (w, ones) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi16(1)));
        for _ in 0..turns {
            for sum in &mut sums {
                let mut w = w;
                // SAFETY: no instruction at all. The compiler cannot see that every product is the same.
                unsafe { std::arch::asm!("/* {} */", inout(ymm_reg) w, options(nomem, nostack, preserves_flags)) };
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, ones), ones));
            }
        }
        black_box(sums);
    }

    let mut found = Vec::new();
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        found.push(Kernel { name: "AVX-512 VNNI, vpdpbusd", products: 16 * 64, turns: avx512_vnni });
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni") {
        found.push(Kernel { name: "AVX-VNNI, vpdpbusd", products: 12 * 32, turns: avx_vnni });
    }
    if is_x86_feature_detected!("avx2") {
        found.push(Kernel { name: "AVX2, vpmaddubsw and vpmaddwd", products: 8 * 32, turns: avx2 });
    }
    found
}

#[cfg(target_arch = "aarch64")]
fn kernels() -> Vec<Kernel> {
    use std::arch::aarch64::*;

    /// In assembly, as the intrinsic is not stable in the oldest compiler that this is for.
    #[target_feature(enable = "neon,dotprod")]
    fn sdot(turns: usize) {
        let (mut sums, w) = ([vdupq_n_s32(0); 16], black_box(vdupq_n_s8(3)));
        for _ in 0..turns {
            for sum in &mut sums {
                // SAFETY: the processor has the instruction, and it uses nothing but these registers.
                unsafe {
                    std::arch::asm!("sdot {:v}.4s, {w:v}.16b, {w:v}.16b", inout(vreg) *sum, w = in(vreg) w,
                                    options(pure, nomem, nostack, preserves_flags));
                }
            }
        }
        black_box(sums);
    }

    if !std::arch::is_aarch64_feature_detected!("dotprod") {
        return Vec::new();
    }
    vec![Kernel { name: "NEON, sdot", products: 16 * 16, turns: sdot }]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn kernels() -> Vec<Kernel> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_what_can_be() {
        let one = Limits::measure(1);
        assert!(one.bandwidth > 1e8, "{one:?}");
        assert!(one.int8.is_none_or(|int8| int8.one_thread > 1e8 && int8.all_threads > 1e8), "{one:?}");
    }

    #[test]
    fn between_two() {
        let at = |n: f64| {
            let int8 = Int8 { instructions: "x", one_thread: n, all_threads: 2.0 * n };
            Limits { bandwidth: n, int8: Some(int8) }
        };
        assert_eq!(at(1.0).between(at(3.0)), at(2.0));
        assert_eq!(at(1.0).between(Limits { bandwidth: 1.0, int8: None }).int8, None);
    }

    #[test]
    fn reads_all_words() {
        let mut words = vec![0; 4 * 96];
        for i in [0, 95, 96, 200, 383] {
            words[i] = 1 << (i % 61);
        }
        assert_eq!(read(&words), [0, 95, 96, 200, 383].iter().fold(0, |all, i| all ^ (1 << (i % 61))));
    }
}
