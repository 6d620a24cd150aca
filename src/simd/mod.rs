//! Instruction sets, and vectors of `f32` for each of them.
//!
//! The basic idea: an instruction set is a type without data, a *token*. Only detection creates its
//! values ([`Avx2::new`] and the like). So a value proves that the processor has the instructions,
//! and arithmetic on its vectors is safe to call; only access to memory through pointers is unsafe.
//! An algorithm is written once, generic over the token, as a [`Kernel`]. [`run`] takes the token
//! out of an [`Isa`] and compiles the kernel for it.
//!
//! All generic functions between [`Token::call`] and the instructions are `#[inline(always)]`: the
//! compiler ignores the target features in a function that it does not inline. A kernel with
//! several callers should be [called](Token::call) rather than inlined into each.
//!
//! To add an instruction set, write a file with its token, and add a variant of [`Isa`] with its
//! arms here and in `isa.rs`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod isa;
pub(crate) mod lanes;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use avxvnni::AvxVnni;
pub(crate) use isa::Isa;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{Dotprod, I8mm, Neon};
pub(crate) use scalar::Scalar;

/// An instruction set. A value exists only where the processor has it.
pub(crate) trait Token: Copy {
    /// Creates a value without asking the processor.
    ///
    /// # Safety
    /// The processor has the instructions: there was a value before.
    unsafe fn assume() -> Self;

    /// Runs a kernel as a function of its own, which is compiled for the instructions.
    fn call<K: Kernel<Self>>(self, kernel: K) -> K::Output;
}

/// An algorithm for the instruction set `T`. Most are generic over it. `run` and all functions that
/// it calls must be `#[inline(always)]`.
pub(crate) trait Kernel<T> {
    type Output;
    fn run(self, token: T) -> Self::Output;
}

/// Vectors of [`LANES`](Simd::LANES) `f32`.
///
/// Where an operand is NaN, `max` and `min` return the second one, like the x86 instructions.
pub(crate) trait Simd: Token {
    /// One vector.
    type V: Copy;
    /// Numbers per vector: a divisor of 16.
    const LANES: usize;
    /// Rows of a register tile of `ROWS` × 3 vectors: 4 or 8.
    const ROWS: usize;
    /// Queries whose dot products with four keys fit in registers at once: 1 to 4.
    const QUERIES: usize;

    /// `x` in all lanes.
    fn splat(self, x: f32) -> Self::V;

    /// # Safety
    /// `p` is valid for reads of `LANES` numbers; no alignment is needed, here and below.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is valid for writes of `LANES` numbers.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Loads the first `n` < `LANES` numbers. The other lanes are zero.
    ///
    /// # Safety
    /// `p` is valid for reads of `n` numbers.
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V;
    /// Stores the first `n` < `LANES` lanes.
    ///
    /// # Safety
    /// `p` is valid for writes of `n` numbers.
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::V);
    /// Loads half-precision numbers.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` 16-bit numbers.
    unsafe fn load_f16(self, p: *const u16) -> Self::V;
    /// Stores numbers rounded to half precision, to nearest even.
    ///
    /// # Safety
    /// `p` is valid for writes of `LANES` 16-bit numbers.
    unsafe fn store_f16(self, p: *mut u16, v: Self::V);
    /// Loads 8-bit integers.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` bytes.
    unsafe fn load_i8(self, p: *const i8) -> Self::V;
    /// Stores lanes within -128 to 127, rounded to 8-bit integers, to nearest even.
    ///
    /// # Safety
    /// `p` is valid for writes of `LANES` bytes.
    unsafe fn store_i8(self, p: *mut i8, v: Self::V);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, with one rounding where the processor has such an instruction.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The nearest integer, for magnitudes below 2^22.
    fn round(self, v: Self::V) -> Self::V;
    /// `v * 2^n` for integers `n` from -127 to 127; zero for -127.
    fn scale_by_power(self, v: Self::V, n: Self::V) -> Self::V;
    /// `v` in lanes with `lo <= at < hi`, else `other`.
    fn select_within(self, at: Self::V, lo: Self::V, hi: Self::V, v: Self::V, other: Self::V) -> Self::V;

    /// The sum of the lanes. It adds one half to the other until one number is left.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, v: Self::V) -> f32;
    /// The even and the odd elements of `a` followed by `b`.
    fn deinterleave(self, a: Self::V, b: Self::V) -> (Self::V, Self::V);
    /// Undoes [`deinterleave`](Simd::deinterleave).
    fn interleave(self, even: Self::V, odd: Self::V) -> (Self::V, Self::V);
}

/// A kernel for every instruction set with its own vectors, except plain Rust.
#[cfg(target_arch = "x86_64")]
pub(crate) trait OnVectors<O>: Kernel<Avx2, Output = O> + Kernel<Avx512, Output = O> {}
#[cfg(target_arch = "x86_64")]
impl<O, K: Kernel<Avx2, Output = O> + Kernel<Avx512, Output = O>> OnVectors<O> for K {}

/// A kernel for every instruction set, except plain Rust.
#[cfg(target_arch = "x86_64")]
pub(crate) trait OnAll<O>: OnVectors<O> + Kernel<AvxVnni, Output = O> {}
#[cfg(target_arch = "x86_64")]
impl<O, K: OnVectors<O> + Kernel<AvxVnni, Output = O>> OnAll<O> for K {}

/// A kernel for every instruction set with its own vectors, except plain Rust.
#[cfg(target_arch = "aarch64")]
pub(crate) trait OnVectors<O>: Kernel<Neon, Output = O> {}
#[cfg(target_arch = "aarch64")]
impl<O, K: Kernel<Neon, Output = O>> OnVectors<O> for K {}

/// A kernel for every instruction set, except plain Rust.
#[cfg(target_arch = "aarch64")]
pub(crate) trait OnAll<O>: OnVectors<O> + Kernel<Dotprod, Output = O> + Kernel<I8mm, Output = O> {}
#[cfg(target_arch = "aarch64")]
impl<O, K: OnVectors<O> + Kernel<Dotprod, Output = O> + Kernel<I8mm, Output = O>> OnAll<O> for K {}

/// A kernel for every instruction set with its own vectors, except plain Rust: there are none.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) trait OnVectors<O> {}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl<O, K: Kernel<Scalar, Output = O>> OnVectors<O> for K {}

/// A kernel for every instruction set, except plain Rust: there are none.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) trait OnAll<O> {}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl<O, K: Kernel<Scalar, Output = O>> OnAll<O> for K {}

/// Runs the kernel with the vectors of the instruction set. Sets that differ only in products of
/// bytes share the code.
pub(crate) fn run<O, K: Kernel<Scalar, Output = O> + OnVectors<O>>(isa: Isa, kernel: K) -> O {
    match isa {
        Isa::Scalar(s) => s.call(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(s) => s.call(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(s) => s.avx2().call(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(s) => s.call(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(s) => s.call(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod(s) => s.neon().call(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::I8mm(s) => s.neon().call(kernel),
    }
}

/// Runs the kernel with the instruction set's own token.
pub(crate) fn run_exactly<O, K: Kernel<Scalar, Output = O> + OnAll<O>>(isa: Isa, kernel: K) -> O {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(s) => s.call(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod(s) => s.call(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::I8mm(s) => s.call(kernel),
        isa => run(isa, kernel),
    }
}

/// Prefetches the cache line at `p`, which need not be a valid address.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, whatever the address; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast())
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch does not fault, whatever the address, and has no effect that a program can
    // see.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags))
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// Loads the first `n` numbers, or all lanes if `n` is `LANES` or more. The other lanes are zero.
///
/// # Safety
/// `p` is valid for reads of the smaller of `n` and `LANES` numbers.
#[inline(always)]
pub(crate) unsafe fn load_up_to<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if n >= S::LANES { s.load(p) } else { s.load_part(p, n) } }
}

/// Stores the first `n` lanes, or all lanes if `n` is `LANES` or more.
///
/// # Safety
/// `p` is valid for writes of the smaller of `n` and `LANES` numbers.
#[inline(always)]
pub(crate) unsafe fn store_up_to<S: Simd>(s: S, p: *mut f32, n: usize, v: S::V) {
    // SAFETY: the caller's promise.
    unsafe { if n >= S::LANES { s.store(p, v) } else { s.store_part(p, n, v) } }
}

/// The first lane.
#[inline(always)]
pub(crate) fn first<S: Simd>(s: S, v: S::V) -> f32 {
    const { assert!(S::LANES <= 16) };
    let mut lanes = [0.0; 16];
    // SAFETY: a vector has at most 16 lanes.
    unsafe { s.store(lanes.as_mut_ptr(), v) };
    lanes[0]
}

/// Transposes a square of `LANES` rows of `LANES` numbers. `from_row` and `to_row` are the
/// distances between rows, in numbers.
///
/// # Safety
/// `from` is valid for reads and `to` for writes of all rows.
#[inline(always)]
pub(crate) unsafe fn transpose<S: Simd>(s: S, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    // The index of an element consists of the bits of its row, then those of its column.
    // Interleaving the first half of the rows with the second half rotates these bits by one
    // (Stone, Parallel Processing with the Perfect Shuffle, 1971).
    let mut rows = [s.splat(0.0); 16];
    for (i, row) in rows.iter_mut().enumerate().take(S::LANES) {
        // SAFETY: the caller's promise.
        *row = unsafe { s.load(from.add(i * from_row)) };
    }
    for _ in 0..S::LANES.ilog2() {
        let before = rows;
        for i in 0..S::LANES / 2 {
            (rows[2 * i], rows[2 * i + 1]) = s.interleave(before[i], before[i + S::LANES / 2]);
        }
    }
    for (i, row) in rows.into_iter().enumerate().take(S::LANES) {
        // SAFETY: the caller's promise.
        unsafe { s.store(to.add(i * to_row), row) };
    }
}
