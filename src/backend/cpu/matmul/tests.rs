//! The same tests for the kernels of each instruction set, with `quant::dequantize` as the oracle.

use super::*;
use crate::quant;
use crate::quant::formats::QUANTIZED;
use crate::simd::Isa;
use TensorType::*;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, end: u32) -> u32 {
        self.next() % end
    }

    /// In -1.0..1.0.
    fn float(&mut self) -> f32 {
        self.next() as f32 / (1_u32 << 30) as f32 - 1.0
    }
}

/// A block's weights.
fn weights_of(ty: TensorType, block: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; ty.block_len()];
    quant::dequantize(ty, block, &mut out).unwrap();
    out
}

/// Where the f16 numbers of a block are: the upper byte of one makes weights NaN.
fn halves(ty: TensorType) -> Vec<usize> {
    let makes_nan = |&at: &usize| {
        let mut block = vec![0; ty.block_bytes()];
        block[at] = 0xff;
        weights_of(ty, &block).iter().any(|w| w.is_nan())
    };
    (0..ty.block_bytes()).filter(makes_nan).map(|at| at - 1).collect()
}

/// Which bytes of a block hold packed scales: those that more than eight weights depend on, besides the f16 numbers.
fn packed_scales(ty: TensorType) -> Vec<usize> {
    let halves = halves(ty);
    let is_half = |at: usize| halves.iter().any(|&half| (half..half + 2).contains(&at));
    let mut block = vec![0x55; ty.block_bytes()];
    halves.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&half::f16::ONE.to_le_bytes()));
    let is_scale = |&at: &usize| {
        let mut other = block.clone();
        other[at] ^= 0xff;
        let changed = weights_of(ty, &block).into_iter().zip(weights_of(ty, &other)).filter(|(a, b)| a != b);
        changed.count() > 8
    };
    (0..ty.block_bytes()).filter(|&at| !is_half(at)).filter(is_scale).collect()
}

/// A matrix whose quants and packed scales are random bits.
fn random_weights(
    ty: TensorType,
    elements: usize,
    random: &mut Random,
    mut half: impl FnMut(&mut Random) -> f32,
) -> Vec<u8> {
    match ty {
        F32 => (0..elements).flat_map(|_| random.float().to_le_bytes()).collect(),
        F16 => (0..elements).flat_map(|_| half::f16::from_f32(random.float()).to_le_bytes()).collect(),
        BF16 => (0..elements).flat_map(|_| half::bf16::from_f32(random.float()).to_le_bytes()).collect(),
        _ => {
            let (mut data, halves) = (Vec::new(), halves(ty));
            for _ in 0..elements / ty.block_len() {
                let start = data.len();
                data.extend((0..ty.block_bytes()).map(|_| random.next() as u8));
                for &at in &halves {
                    data[start + at..][..2].copy_from_slice(&half::f16::from_f32(half(random)).to_le_bytes());
                }
            }
            data
        }
    }
}

fn dequantize(w: &Matrix<'_>) -> Vec<f32> {
    let mut out = vec![0.0; w.rows() * w.cols()];
    (0..w.rows()).zip(out.chunks_exact_mut(w.cols())).for_each(|(row, out)| w.dequantize_row(row, out).unwrap());
    out
}

/// The product of the given rows and tokens by the kernels under test.
fn product(isa: Isa, w: &Matrix<'_>, x: &[f32], rows: Range<usize>, bias: Option<&[f32]>) -> Vec<f32> {
    let n = x.len() / w.cols();
    let mut out = vec![f32::NAN; n * w.rows()];
    let (mut scratch, mut quantized) = (Scratch::new().unwrap(), QuantRows::new());
    scratch.reserve(n, w.cols()).unwrap();
    // SAFETY: there is one thread.
    unsafe {
        let input = match input_kind(w.ty()) {
            InputKind::F32 => Input::F32(x),
            InputKind::Quant => {
                quantized.reserve(n, w.cols()).unwrap();
                quantize_rows(isa, x, 0..n, &quantized);
                Input::Quant(&quantized)
            }
        };
        let product = Product { weights: *w, x: input, n, out: OutPtr::new(&mut out, w.rows()), bias };
        matmul(isa, &product, rows.clone(), Some(x.as_ptr().cast()), &mut scratch);
    }
    for (i, out) in out.iter().enumerate() {
        assert!(rows.contains(&(i % w.rows())) || out.is_nan(), "{:?}: wrote element {i}, not of {rows:?}", w.ty());
    }
    out
}

/// The activations as the kernels see them: quantized and dequantized.
fn seen(ty: TensorType, x: &[f32]) -> Vec<f32> {
    if input_kind(ty) == InputKind::F32 {
        return x.to_vec();
    }
    let mut seen = Vec::new();
    for x in x.chunks(32) {
        let max = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let (scale, inverse) = if max < 1e-30 { (0.0, 0.0) } else { (max / 127.0, 127.0 / max) };
        seen.extend(x.iter().map(|x| (x * inverse).round_ties_even() * scale));
    }
    seen
}

/// Compares with the oracle: the difference is at most `tolerance` of the sum of magnitudes.
fn compare(isa: Isa, w: &Matrix<'_>, x: &[f32], bias: Option<&[f32]>, tolerance: f64) {
    let out = product(isa, w, x, 0..w.rows(), bias);
    let (weights, x) = (dequantize(w), seen(w.ty(), x));
    for (i, &out) in out.iter().enumerate() {
        let (token, row) = (i / w.rows(), i % w.rows());
        let (x, weights) = (&x[token * w.cols()..][..w.cols()], &weights[row * w.cols()..][..w.cols()]);
        let bias = f64::from(bias.map_or(0.0, |bias| bias[row]));
        let expected = bias + x.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
        // Minima and zero points produce terms as large as the largest weight.
        let largest = weights.iter().fold(0.0_f64, |max, &w| max.max(f64::from(w).abs()));
        let magnitude = bias.abs() + largest * x.iter().map(|&x| f64::from(x).abs()).sum::<f64>();
        assert!(
            (f64::from(out) - expected).abs() <= tolerance * magnitude,
            "{isa:?} {:?} {} x {}: ({token}, {row}) is {out}, not {expected}",
            w.ty(),
            w.rows(),
            w.cols()
        );
    }
}

fn columns(ty: TensorType) -> &'static [usize] {
    match ty.block_len() {
        1 => &[1, 7, 32, 127, 128, 130, 576],
        32 => &[32, 64, 96, 544, 576, 640, 1056],
        _ => &[256, 512, 768, 1280],
    }
}

fn matches_the_oracle(isa: Isa) {
    let mut random = Random(1);
    for ty in quant::supported() {
        for &cols in columns(ty) {
            for n in [1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 40] {
                let rows = [1, 7, 16, 17, 31, 32, 33, 70][random.below(8) as usize];
                let data = random_weights(ty, rows * cols, &mut random, Random::float);
                let w = Matrix::new(ty, &data, rows, cols).unwrap();
                let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
                let bias: Vec<f32> = (0..rows).map(|_| random.float()).collect();
                compare(isa, &w, &x, random.below(2).eq(&0).then_some(&bias[..]), 1e-6);
            }
        }
    }
}

/// With scales that are powers of two and integer activations, all numbers are exact, and so must
/// be the product.
fn integers_are_exact(isa: Isa) {
    let mut random = Random(2);
    for &ty in QUANTIZED {
        let (halves, scales) = (halves(ty), packed_scales(ty));
        for &cols in columns(ty) {
            for extreme in [false, true] {
                let (rows, n) = (1 + random.below(40) as usize, 1 + random.below(14) as usize);
                let mut data = random_weights(ty, rows * cols, &mut random, |r| [1.0, -1.0, 2.0][r.below(3) as usize]);
                if extreme {
                    // Quants all at their ends; scales so small that the sums stay below 2^24.
                    for block in data.chunks_mut(ty.block_bytes()) {
                        let fill = [0, 0xff, 0x80, 0x7f, 0x81][random.below(5) as usize];
                        for (i, byte) in block.iter_mut().enumerate() {
                            if scales.contains(&i) {
                                *byte &= 7;
                            } else if !halves.iter().any(|&at| (at..at + 2).contains(&i)) {
                                *byte = fill;
                            }
                        }
                    }
                }
                let w = Matrix::new(ty, &data, rows, cols).unwrap();
                let x: Vec<f32> = (0..n * cols)
                    .map(|i| match (i % 32 == 0, extreme) {
                        (true, _) => 127.0,
                        (_, true) => [127.0, -127.0][usize::from(i / cols % 2 == 0)],
                        (_, false) => random.below(255) as f32 - 127.0,
                    })
                    .collect();
                compare(isa, &w, &x, None, 0.0);
            }
        }
    }
}

fn does_not_depend_on_the_split(isa: Isa) {
    let mut random = Random(3);
    for ty in quant::supported() {
        let (rows, cols, n) = (75, 1280, 9);
        let data = random_weights(ty, rows * cols, &mut random, Random::float);
        let w = Matrix::new(ty, &data, rows, cols).unwrap();
        let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
        let whole = product(isa, &w, &x, 0..rows, None);
        for _ in 0..6 {
            let start = random.below(rows as u32) as usize;
            let end = start + random.below((rows - start + 1) as u32) as usize;
            let token = random.below(n as u32) as usize;
            let tokens = 1 + random.below((n - token) as u32) as usize;
            let part = product(isa, &w, &x[token * cols..][..tokens * cols], start..end, None);
            for t in 0..tokens {
                for r in start..end {
                    let (part, whole) = (part[t * rows + r], whole[(token + t) * rows + r]);
                    assert_eq!(part.to_bits(), whole.to_bits(), "{ty:?}: ({t}, {r}) of {start}..{end} x {tokens}");
                }
            }
        }
    }
}

/// The product by the accurate kernel.
fn reference(w: &Matrix<'_>, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let n = x.len() / w.cols();
    let mut out = vec![f32::NAN; n * w.rows()];
    let product = Product { weights: *w, x: Input::F32(x), n, out: OutPtr::new(&mut out, w.rows()), bias };
    // SAFETY: there is one thread.
    unsafe { matmul_f32(&product, 0..w.rows(), &mut Scratch::new().unwrap()) }.unwrap();
    out
}

/// Few tokens use other kernels than many.
fn does_not_depend_on_the_number_of_tokens(isa: Isa) {
    let mut random = Random(7);
    for ty in quant::supported() {
        let (rows, cols, n) = (51, 1280, 48);
        let data = random_weights(ty, rows * cols, &mut random, Random::float);
        let w = Matrix::new(ty, &data, rows, cols).unwrap();
        let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
        let bits = |out: Vec<f32>| out.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let (whole, accurate) = (bits(product(isa, &w, &x, 0..rows, None)), bits(reference(&w, &x, None)));
        for pass in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16] {
            let passes = || x.chunks(pass * cols);
            let parts: Vec<_> = passes().flat_map(|x| bits(product(isa, &w, x, 0..rows, None))).collect();
            assert!(parts == whole, "{isa:?} {ty:?}: passes of {pass}");
            if pass == 5 {
                let parts: Vec<_> = passes().flat_map(|x| bits(reference(&w, x, None))).collect();
                assert!(parts == accurate, "{ty:?}: passes of {pass}");
            }
        }
    }
}

fn interleaving_changes_nothing(isa: Isa) {
    let mut random = Random(6);
    for &ty in QUANTIZED {
        for &cols in columns(ty) {
            for n in [1, 2, 3, 4, 5, 8, 9, 40] {
                let rows = [32, 64, 96, 160][random.below(4) as usize];
                let data = random_weights(ty, rows * cols, &mut random, Random::float);
                let w = Matrix::new(ty, &data, rows, cols).unwrap();
                if !w.can_interleave(isa) {
                    continue;
                }
                let mut copy = vec![0; data.len()];
                let (first, last) = copy.split_at_mut(32 * w.row_bytes());
                w.interleave(isa, 32..rows, last);
                w.interleave(isa, 0..32, first);
                let mut in_place = data.clone();
                let room = &mut vec![0; interleaved_at_once(isa) * in_place.len() / rows];
                interleave_in_place(isa, ty, in_place.len() / rows, &mut in_place, room);
                assert!(in_place == copy, "{ty:?} in place");
                let interleaved = Matrix::new(ty, &copy, rows, cols).unwrap().written(isa);
                let row = random.below(rows as u32) as usize;
                let weights = |w: &Matrix<'_>| {
                    let mut out = vec![f32::NAN; cols];
                    w.dequantize_row(row, &mut out).unwrap();
                    out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                assert!(weights(&interleaved) == weights(&w), "{isa:?} {ty:?}, row {row} of {rows} x {cols}");
                let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
                let bias: Vec<f32> = (0..rows).map(|_| random.float()).collect();
                let bias = random.below(2).eq(&0).then_some(&bias[..]);
                // With few tokens, single vectors of rows can be multiplied.
                let step = if streams(isa, &interleaved, n) { STREAM_ROWS } else { ROW_STEP };
                let start = random.below((rows / step) as u32) as usize * step;
                let end = start + random.below(((rows - start) / step + 1) as u32) as usize * step;
                for range in [0..rows, start..end] {
                    let bits =
                        |w| product(isa, w, &x, range.clone(), bias).into_iter().map(f32::to_bits).collect::<Vec<_>>();
                    assert!(
                        bits(&interleaved) == bits(&w),
                        "{isa:?} {ty:?} {rows} x {cols}, {n} tokens, rows {range:?}"
                    );
                }
            }
        }
    }
    let w = Matrix::new(Q4_0, &[0; 18 * 33], 33, 32).unwrap();
    assert!(!w.can_interleave(isa), "33 rows do not form groups");
}

fn extreme_scales(isa: Isa) {
    let mut random = Random(4);
    for &ty in QUANTIZED {
        for scale in [0.0, -0.0, 2.0_f32.powi(-24), 3.0 * 2.0_f32.powi(-20), 65504.0, -65504.0] {
            let (rows, cols, n) = (19, 2 * ty.block_len(), 3);
            let data = random_weights(ty, rows * cols, &mut random, |_| scale);
            let w = Matrix::new(ty, &data, rows, cols).unwrap();
            for unit in [1e-20, 1.0, 1e20] {
                let x: Vec<f32> = (0..n * cols).map(|_| random.float() * unit).collect();
                compare(isa, &w, &x, None, 1e-6);
            }
        }
        let data = random_weights(ty, 3 * 256, &mut random, |_| 1.0);
        let w = Matrix::new(ty, &data, 3, 256).unwrap();
        assert!(product(isa, &w, &[0.0; 512], 0..3, None).iter().all(|&out| out == 0.0), "{ty:?}");
        let mut x = [1.0; 256];
        x[77] = f32::NAN;
        assert!(product(isa, &w, &x, 0..3, None).iter().all(|out| out.is_nan()), "{ty:?}: a NaN was lost");
    }
}

fn reference_is_close(isa: Isa) {
    let mut random = Random(5);
    for ty in quant::supported() {
        let (rows, cols, n) = (9, 512, 3);
        let data = random_weights(ty, rows * cols, &mut random, Random::float);
        let w = Matrix::new(ty, &data, rows, cols).unwrap();
        let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
        let bias: Vec<f32> = (0..rows).map(|_| random.float()).collect();
        let accurate = reference(&w, &x, Some(&bias));
        let fast = product(isa, &w, &x, 0..rows, Some(&bias));
        let norm = |v: &[f32]| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let difference: Vec<f32> = fast.iter().zip(&accurate).map(|(a, b)| a - b).collect();
        let limit = if input_kind(ty) == InputKind::F32 { 1e-6 } else { 0.01 };
        assert!(norm(&difference) <= limit * norm(&accurate), "{ty:?}: {difference:?}");
    }
}

/// Formats without code that unpacks them are dequantized. All formats of today could be.
fn what_does_not_unpack_is_dequantized(isa: Isa) {
    struct Dequantize(TensorType, bool);

    impl<S: Multiplier> Kernel<S> for Dequantize {
        type Output = Kernels;

        fn run(self, _: S) -> Kernels {
            struct Find<S>(bool, PhantomData<S>);

            impl<S: Multiplier> Visit for Find<S> {
                type Output = Kernels;

                fn visit<B: Block<N>, const N: usize>(self) -> Kernels {
                    S::float_kernels::<float::Dequantized<B, N>>(self.0)
                }
            }
            visit(self.0, Find::<S>(self.1, PhantomData)).unwrap()
        }
    }

    let mut random = Random(8);
    for &ty in QUANTIZED {
        for &cols in columns(ty) {
            let rows = [1, 7, 16, 17, 31, 32, 33, 70][random.below(8) as usize];
            let data = random_weights(ty, rows * cols, &mut random, Random::float);
            let w = Matrix::new(ty, &data, rows, cols).unwrap();
            let x: Vec<f32> = (0..13 * cols).map(|_| random.float()).collect();
            let bias: Vec<f32> = (0..rows).map(|_| random.float()).collect();
            let product = |x: &[f32]| {
                let n = x.len() / cols;
                let mut out = vec![f32::NAN; n * rows];
                let kernels = simd::run_exactly(isa, Dequantize(ty, n <= schedule::FEW_TOKENS));
                let out_ptr = OutPtr::new(&mut out, rows);
                let job = Job { w: &w, x: Activations::of_floats(x, cols, n), out: out_ptr, bias: Some(&bias) };
                // SAFETY: there is one thread, the kernels are for these weights, and the sizes agree.
                unsafe { schedule::run(&kernels, &job, 0..rows, None, &mut Scratch::new().unwrap()) };
                out
            };
            let (whole, accurate) = (product(&x), reference(&w, &x, Some(&bias)));
            let norm = |v: &[f32]| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let difference: Vec<f32> = whole.iter().zip(&accurate).map(|(a, b)| a - b).collect();
            assert!(norm(&difference) <= 1e-6 * norm(&accurate), "{isa:?} {ty:?} {rows} x {cols}: {difference:?}");
            let parts: Vec<f32> = x.chunks(3 * cols).flat_map(product).collect();
            assert!(parts.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?} {ty:?}: in parts");
        }
    }
}

macro_rules! stamp {
    ($($(#[$target:meta])? $module:ident: $name:literal;)*) => {$(
        $(#[$target])?
        mod $module {
            fn on_isa(test: fn(super::Isa)) {
                match super::Isa::available().into_iter().find(|isa| isa.name() == $name) {
                    Some(isa) => test(isa),
                    None => eprintln!("skipped: this processor has no {}", $name),
                }
            }

            #[test]
            fn matches_the_oracle() {
                on_isa(super::matches_the_oracle);
            }

            #[test]
            fn integers_are_exact() {
                on_isa(super::integers_are_exact);
            }

            #[test]
            fn does_not_depend_on_the_split() {
                on_isa(super::does_not_depend_on_the_split);
            }

            #[test]
            fn does_not_depend_on_the_number_of_tokens() {
                on_isa(super::does_not_depend_on_the_number_of_tokens);
            }

            #[test]
            fn interleaving_changes_nothing() {
                on_isa(super::interleaving_changes_nothing);
            }

            #[test]
            fn extreme_scales() {
                on_isa(super::extreme_scales);
            }

            #[test]
            fn what_does_not_unpack_is_dequantized() {
                on_isa(super::what_does_not_unpack_is_dequantized);
            }

            #[test]
            fn reference_is_close() {
                on_isa(super::reference_is_close);
            }
        }
    )*};
}

stamp! {
    scalar: "scalar";
    #[cfg(target_arch = "x86_64")]
    avx2: "avx2";
    #[cfg(target_arch = "x86_64")]
    avxvnni: "avxvnni";
    #[cfg(target_arch = "x86_64")]
    avx512: "avx512";
    #[cfg(target_arch = "aarch64")]
    neon: "neon";
    #[cfg(target_arch = "aarch64")]
    dotprod: "dotprod";
    #[cfg(target_arch = "aarch64")]
    i8mm: "i8mm";
}

#[test]
fn sizes_that_do_not_agree_are_refused() {
    assert!(Matrix::new(Q4_0, &[0; 18], 1, 32).is_ok());
    assert!(Matrix::new(Q4_0, &[0; 18], 1, 33).is_err());
    assert!(Matrix::new(Q4_0, &[0; 17], 1, 32).is_err());
    assert!(Matrix::new(Q4_0, &[0; 18], usize::MAX, 32).is_err());
    assert!(Matrix::new(IQ1_S, &[0; 50], 1, 256).is_err());
}
