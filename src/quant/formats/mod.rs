//! The quantized formats, a file each: the block as plain data, dequantization, quantization, how the CPU's kernels unpack
//! it, and how a GPU's memory holds it.
//!
//! All fields of blocks are bytes, so that a block has alignment 1 and any slice of the right length can be viewed as
//! blocks. Numbers of more than a byte are little-endian, as GGUF has them. In the descriptions, `w[i]` is the i-th weight.
//!
//! Another format takes its file and its line in the list below, from which dispatch, the text of errors, the tests and the
//! benches follow. A format without an `unpack` of its own (its [`Kind`] is `()`) runs on the CPU as well: its blocks are
//! dequantized.

mod fit;
mod legacy;
mod packed;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

use super::block::{Block, Format, Planes};
use super::unpack::Kind;
use crate::gguf::TensorType;

/// What is done with a format.
pub(crate) trait Visit {
    type Output;
    fn visit<B: Block<N>, const N: usize>(self) -> Self::Output;
}

/// What is known of a format.
pub(crate) struct Facts {
    /// The name in those of GPU kernels.
    pub(crate) name: &'static str,
    /// The GPU kernels that multiply with it on matrix cores.
    pub(crate) core_family: &'static str,
    pub(crate) planes: Planes,
    /// Whether there is code that unpacks it on the CPU. Others are dequantized there.
    pub(crate) unpacks: bool,
    /// Where a block has two bytes beside whole words: at its beginning or its end, if at all.
    pub(crate) half_at: Option<usize>,
    #[cfg(test)]
    pub(crate) round_trip_error: f64,
}

impl Facts {
    const fn of<F: Format>(name: &'static str, core_family: &'static str) -> Self {
        Self {
            name,
            core_family,
            planes: F::PLANES,
            unpacks: F::Kind::UNPACKS,
            half_at: half_at(F::PLANES),
            #[cfg(test)]
            round_trip_error: F::ROUND_TRIP_ERROR,
        }
    }
}

const fn half_at(mut planes: Planes) -> Option<usize> {
    while let [(at, len), rest @ ..] = planes {
        if *len % 4 == 2 {
            return Some(*at);
        }
        planes = rest;
    }
    None
}

/// Makes the list of formats, and what follows from it: the type, the file, which is also the name in those of GPU kernels,
/// and the block.
macro_rules! formats {
    ($($ty:ident: $name:ident::$block:ident,)*) => {
        /// The quantized types that are supported.
        pub(crate) const QUANTIZED: &[TensorType] = &[$(TensorType::$ty),*];

        /// Does something with the format of a type; `None` where there is none.
        pub(crate) fn visit<V: Visit>(ty: TensorType, visitor: V) -> Option<V::Output> {
            match ty {
                $(TensorType::$ty => Some(visitor.visit::<$name::$block, { TensorType::$ty.block_len() }>()),)*
                _ => None,
            }
        }

        /// What is known of the format of a type; `None` where there is none.
        pub(crate) fn facts(ty: TensorType) -> Option<&'static Facts> {
            match ty {
                $(TensorType::$ty => Some(const {
                    &Facts::of::<$name::$block>(stringify!($name), concat!("matmul_core_", stringify!($name)))
                }),)*
                _ => None,
            }
        }

        // Blocks are as long as GGUF says, need no alignment, and stand at their own type.
        $(const _: () = {
            assert!(size_of::<$name::$block>() == TensorType::$ty.block_bytes() && align_of::<$name::$block>() == 1);
            assert!(<$name::$block as Format>::TYPE as u32 == TensorType::$ty as u32);
        };)*
    };
}

formats! {
    Q4_0: q4_0::BlockQ4_0,
    Q4_1: q4_1::BlockQ4_1,
    Q5_0: q5_0::BlockQ5_0,
    Q5_1: q5_1::BlockQ5_1,
    Q8_0: q8_0::BlockQ8_0,
    Q2_K: q2_k::BlockQ2K,
    Q3_K: q3_k::BlockQ3K,
    Q4_K: q4_k::BlockQ4K,
    Q5_K: q5_k::BlockQ5K,
    Q6_K: q6_k::BlockQ6K,
}

/// Bytes of a block at most.
pub(crate) const MAX_BLOCK_BYTES: usize = most_bytes(1);

/// The most bytes that a format takes for so many weights, in blocks of which the last may not be full.
pub(crate) const fn most_bytes(weights: usize) -> usize {
    let (mut most, mut i) = (0, 0);
    while i < QUANTIZED.len() {
        let bytes = weights.div_ceil(QUANTIZED[i].block_len()) * QUANTIZED[i].block_bytes();
        if bytes > most {
            most = bytes;
        }
        i += 1;
    }
    most
}
