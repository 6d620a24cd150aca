//! What the kernels need of an instruction set: vectors of 32-bit lanes, where lane `r` works on row `r` of a matrix.
//!
//! All kernels are written once, generic over [`Simd`]. A value of a type that implements it is the proof that the
//! processor has the instructions; the methods are inlined into a function that is compiled for them
//! (`#[target_feature]`), which is where each implementation's [`quant`](Simd::quant), [`float`](Simd::float) and
//! [`quantize`](Simd::quantize) lead.

use super::activations::QuantizeJob;
use super::float::FloatFormat;
use super::formats::Format;
use super::{FloatJob, QuantJob};

/// Lanes of the widest vector.
pub(super) const MAX_LANES: usize = 16;

/// Where the rows of a vector start, one for each lane; the entries past [`Simd::LANES`] are not used.
pub(super) struct RowPtrs(pub(super) [*const u8; MAX_LANES]);

/// Vectors of [`LANES`](Self::LANES) 32-bit lanes. An `Int` is also seen as four bytes a lane, first byte lowest.
pub(super) trait Simd: Copy {
    /// 32-bit lanes in a vector: rows that are worked on together.
    const LANES: usize;
    /// What [`wide`](Self::wide) adds to signed bytes.
    const WIDE_ZERO: i32;
    /// A vector of integers.
    type Int: Copy;
    /// A vector of f32.
    type Float: Copy;

    /// Runs a matrix product of quantized weights.
    ///
    /// # Safety
    /// The pointers of the job are valid for its sizes, and nothing else accesses the job's part of the output.
    unsafe fn quant<F: Format>(self, job: &mut QuantJob<'_>);
    /// Runs a matrix product of floating-point weights.
    ///
    /// # Safety
    /// As for [`quant`](Self::quant).
    unsafe fn float<F: FloatFormat>(self, job: &mut FloatJob<'_>);
    /// Quantizes rows of activations.
    ///
    /// # Safety
    /// The pointers of the job are valid for its sizes, and nothing else accesses the job's rows.
    unsafe fn quantize(self, job: &QuantizeJob<'_>);

    /// The same integer in all lanes.
    fn splat(self, value: i32) -> Self::Int;
    /// Bitwise and.
    fn and(self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Bitwise or.
    fn or(self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Difference of lanes, wrapping.
    fn sub(self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Shifts each lane left by less than 32 bits.
    fn shl(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Shifts each lane right by less than 32 bits, zeros coming in.
    fn shr(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Shifts each lane right by less than 32 bits, copies of the sign coming in.
    fn sar(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Bits `4 * nibble ..` of each lane, one to each of its bytes, there as bit 4 (0 or 16).
    fn spread_bits(self, a: Self::Int, nibble: u32) -> Self::Int;
    /// Signed bytes in the form that [`dot4_wide`](Self::dot4_wide) takes: [`WIDE_ZERO`](Self::WIDE_ZERO) added.
    fn wide(self, a: Self::Int) -> Self::Int;
    /// `sum` plus, in each lane, the products of its four bytes: `w` unsigned and below 128, `x` signed, not -128.
    fn dot4(self, sum: Self::Int, w: Self::Int, x: Self::Int) -> Self::Int;
    /// The same for any bytes in `w` that come from [`wide`](Self::wide).
    fn dot4_wide(self, sum: Self::Int, w: Self::Int, x: Self::Int) -> Self::Int;

    /// The same number in all lanes.
    fn splat_float(self, value: f32) -> Self::Float;
    /// The nearest f32 to each integer.
    fn to_float(self, a: Self::Int) -> Self::Float;
    /// The f16 that the low half of each lane holds.
    fn half_to_float(self, a: Self::Int) -> Self::Float;
    /// The f32 whose bits each lane holds.
    fn from_bits(self, a: Self::Int) -> Self::Float;
    /// Products.
    fn mul(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// Sums.
    fn add(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;

    /// Reads one vector.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` elements; so for the functions below.
    unsafe fn load(self, from: *const i32) -> Self::Int;
    /// Writes one vector.
    ///
    /// # Safety
    /// `to` is valid for writes of `LANES` elements.
    unsafe fn store(self, to: *mut i32, value: Self::Int);
    /// Reads one vector of floats.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` elements.
    unsafe fn load_float(self, from: *const f32) -> Self::Float;
    /// Writes one vector of floats.
    ///
    /// # Safety
    /// `to` is valid for writes of `LANES` elements.
    unsafe fn store_float(self, to: *mut f32, value: Self::Float);
    /// In lane `r` of vector `j`, the four bytes at `offset + 4 * j` of row `r`: 16 bytes of each row, transposed.
    ///
    /// # Safety
    /// Each of the first `LANES` pointers is valid for reads of `offset + 16` bytes.
    unsafe fn transpose(self, rows: &RowPtrs, offset: usize) -> [Self::Int; 4];
}
