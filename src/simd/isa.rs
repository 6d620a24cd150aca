//! Which instruction set the kernels use: found once at run time, lowered by `WAVELM_CPU` for tests and bug reports.

use std::sync::OnceLock;

/// An instruction set that kernels are written for. A value of a variant other than `Scalar` is only ever made after
/// the processor was asked whether it has all of the named features: holding one is the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust: the oracle of every other kernel, and what runs on processors without a kernel of their own.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI, besides all of `Avx2`.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, which every 64-bit ARM processor with an operating system has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// The dot products of ARMv8.4 (`sdot`), besides `Neon`.
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    /// The 8-bit matrix products of ARMv8.6 (`smmla`), besides all of `Dotprod`.
    #[cfg(target_arch = "aarch64")]
    I8mm,
}

impl Isa {
    /// Every instruction set that this processor has, worst first.
    pub(crate) fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                found.push(Isa::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    found.push(Isa::Avx512);
                }
            }
        }
        // The kernels take vectors apart in the order of the bytes.
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        {
            use std::arch::is_aarch64_feature_detected;
            if is_aarch64_feature_detected!("neon") {
                found.push(Isa::Neon);
                if is_aarch64_feature_detected!("dotprod") {
                    found.push(Isa::Dotprod);
                    if is_aarch64_feature_detected!("i8mm") {
                        found.push(Isa::I8mm);
                    }
                }
            }
        }
        found
    }

    /// The best of them, or the one that `WAVELM_CPU` (`scalar`, `avx2`, `avx512`, `neon`, `dotprod`, `i8mm`) names where the processor
    /// has it.
    pub(crate) fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let available = Self::available();
            let best = available.last().copied().unwrap_or(Isa::Scalar);
            let chosen = match std::env::var("WAVELM_CPU") {
                Ok(name) => available.iter().copied().find(|isa| isa.name() == name).unwrap_or_else(|| {
                    log::warn!("WAVELM_CPU={name}: not one of this processor's {available:?}; using {best:?}");
                    best
                }),
                Err(_) => best,
            };
            log::info!("CPU kernels: {}", chosen.name());
            chosen
        })
    }

    /// The name, as `WAVELM_CPU` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => "i8mm",
        }
    }
}
