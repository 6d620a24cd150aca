//! The quantized formats, a file each: the block as plain data, dequantization, quantization.
//!
//! All fields of blocks are bytes, so that a block has alignment 1 and any slice of the right length can be viewed as
//! blocks. Numbers of more than a byte are little-endian, as GGUF has them. In the descriptions, `w[i]` is the i-th weight.
//!
//! Another format takes its file and its line in the list below, from which dispatch, the text of errors and the tests
//! follow.

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

pub(crate) use q2_k::BlockQ2K;
pub(crate) use q3_k::BlockQ3K;
pub(crate) use q4_0::BlockQ4_0;
pub(crate) use q4_1::BlockQ4_1;
pub(crate) use q4_k::BlockQ4K;
pub(crate) use q5_0::BlockQ5_0;
pub(crate) use q5_1::BlockQ5_1;
pub(crate) use q5_k::BlockQ5K;
pub(crate) use q6_k::BlockQ6K;
pub(crate) use q8_0::BlockQ8_0;

use super::block::Block;
use crate::gguf::TensorType;

/// What is done with a format.
pub(crate) trait Visit {
    type Output;
    fn visit<B: Block<N>, const N: usize>(self) -> Self::Output;
}

/// Makes the list of formats, and what follows from it.
macro_rules! formats {
    ($($ty:ident: $block:ident,)*) => {
        /// The quantized types that are supported.
        pub(crate) const QUANTIZED: &[TensorType] = &[$(TensorType::$ty),*];

        /// Does something with the format of a type; `None` where there is none.
        pub(crate) fn visit<V: Visit>(ty: TensorType, visitor: V) -> Option<V::Output> {
            match ty {
                $(TensorType::$ty => Some(visitor.visit::<$block, { TensorType::$ty.block_len() }>()),)*
                _ => None,
            }
        }

        // Blocks are as long as GGUF says, and need no alignment.
        $(const _: () = {
            assert!(size_of::<$block>() == TensorType::$ty.block_bytes() && align_of::<$block>() == 1);
        };)*
    };
}

formats! {
    Q4_0: BlockQ4_0,
    Q4_1: BlockQ4_1,
    Q5_0: BlockQ5_0,
    Q5_1: BlockQ5_1,
    Q8_0: BlockQ8_0,
    Q2_K: BlockQ2K,
    Q3_K: BlockQ3K,
    Q4_K: BlockQ4K,
    Q5_K: BlockQ5K,
    Q6_K: BlockQ6K,
}
