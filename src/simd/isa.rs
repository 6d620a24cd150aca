//! The instruction set of the kernels: detected once at run time, lowered by `WAVELM_CPU` for tests
//! and bug reports.

use super::Scalar;
#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512, AvxVnni};
#[cfg(target_arch = "aarch64")]
use super::{Dotprod, I8mm, Neon};
use std::sync::OnceLock;

/// An instruction set with kernels of its own, and the token that proves that the processor has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust: the oracle of all other kernels, and the fallback for processors without kernels
    /// of their own.
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(target_arch = "aarch64")]
    Dotprod(Dotprod),
    #[cfg(target_arch = "aarch64")]
    I8mm(I8mm),
}

impl Isa {
    /// The instruction set that every processor has.
    pub(crate) const SCALAR: Self = Self::Scalar(Scalar);

    /// Every instruction set of this processor, worst first.
    pub(crate) fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(Avx2::new().map(Isa::Avx2));
            found.extend(AvxVnni::new().map(Isa::AvxVnni));
            found.extend(Avx512::new().map(Isa::Avx512));
        }
        // The kernels split vectors in little-endian byte order.
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        {
            found.extend(Neon::new().map(Isa::Neon));
            found.extend(Dotprod::new().map(Isa::Dotprod));
            found.extend(I8mm::new().map(Isa::I8mm));
        }
        found
    }

    /// The best available set, or the one that `WAVELM_CPU` names (`scalar`, `avx2`, `avxvnni`,
    /// `avx512`, `neon`, `dotprod`, `i8mm`) if the processor has it.
    pub(crate) fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let available = Self::available();
            let best = available.last().copied().unwrap_or(Isa::SCALAR);
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

    /// The name that `WAVELM_CPU` uses.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod(_) => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm(_) => "i8mm",
        }
    }
}
