//! The element types that ggml defines.

use std::fmt;

/// Generates the enum and all facts about each type from one table.
macro_rules! tensor_types {
    ($($name:ident = $id:literal, block of $len:literal in $bytes:literal bytes;)*) => {
        /// How the elements of a tensor are stored: every type of ggml's `enum ggml_type` that files may hold.
        ///
        /// Elements are stored in blocks of [`block_len`](Self::block_len) elements and
        /// [`block_bytes`](Self::block_bytes) bytes; a row is a whole number of blocks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[allow(missing_docs, non_camel_case_types)]
        #[repr(u32)]
        pub enum TensorType {
            $($name = $id,)*
        }

        impl TensorType {
            /// All types, in the order of their numbers.
            pub const ALL: &[TensorType] = &[$(TensorType::$name,)*];

            /// The type with ggml's number `id`.
            pub fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(TensorType::$name),)*
                    _ => None,
                }
            }

            /// The name that model files and tools use, like `Q4_K`.
            pub fn name(self) -> &'static str {
                match self {
                    $(TensorType::$name => stringify!($name),)*
                }
            }

            /// Elements in a block: rows are a whole number of blocks.
            pub const fn block_len(self) -> usize {
                match self {
                    $(TensorType::$name => $len,)*
                }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(TensorType::$name => $bytes,)*
                }
            }
        }
    };
}

tensor_types! {
    F32 = 0, block of 1 in 4 bytes;
    F16 = 1, block of 1 in 2 bytes;
    Q4_0 = 2, block of 32 in 18 bytes;
    Q4_1 = 3, block of 32 in 20 bytes;
    Q5_0 = 6, block of 32 in 22 bytes;
    Q5_1 = 7, block of 32 in 24 bytes;
    Q8_0 = 8, block of 32 in 34 bytes;
    Q8_1 = 9, block of 32 in 36 bytes;
    Q2_K = 10, block of 256 in 84 bytes;
    Q3_K = 11, block of 256 in 110 bytes;
    Q4_K = 12, block of 256 in 144 bytes;
    Q5_K = 13, block of 256 in 176 bytes;
    Q6_K = 14, block of 256 in 210 bytes;
    Q8_K = 15, block of 256 in 292 bytes;
    IQ2_XXS = 16, block of 256 in 66 bytes;
    IQ2_XS = 17, block of 256 in 74 bytes;
    IQ3_XXS = 18, block of 256 in 98 bytes;
    IQ1_S = 19, block of 256 in 50 bytes;
    IQ4_NL = 20, block of 32 in 18 bytes;
    IQ3_S = 21, block of 256 in 110 bytes;
    IQ2_S = 22, block of 256 in 82 bytes;
    IQ4_XS = 23, block of 256 in 136 bytes;
    I8 = 24, block of 1 in 1 bytes;
    I16 = 25, block of 1 in 2 bytes;
    I32 = 26, block of 1 in 4 bytes;
    I64 = 27, block of 1 in 8 bytes;
    F64 = 28, block of 1 in 8 bytes;
    IQ1_M = 29, block of 256 in 56 bytes;
    BF16 = 30, block of 1 in 2 bytes;
    TQ1_0 = 34, block of 256 in 54 bytes;
    TQ2_0 = 35, block of 256 in 66 bytes;
    MXFP4 = 39, block of 32 in 17 bytes;
    NVFP4 = 40, block of 64 in 36 bytes;
    Q1_0 = 41, block of 128 in 18 bytes;
    Q2_0 = 42, block of 64 in 18 bytes;
}

impl TensorType {
    /// The type of that name, in upper or lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// ggml's number for this type.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Whether several elements share a block.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a row of `columns` elements; `None` where that is not a whole number of blocks, or overflows.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        if !columns.is_multiple_of(self.block_len()) {
            return None;
        }
        (columns / self.block_len()).checked_mul(self.block_bytes())
    }

    /// ggml's former name for a number whose type it has since removed from files.
    pub(super) fn removed_name(id: u32) -> Option<&'static str> {
        Some(match id {
            4 => "Q4_2",
            5 => "Q4_3",
            31 => "Q4_0_4_4",
            32 => "Q4_0_4_8",
            33 => "Q4_0_8_8",
            36 => "IQ4_NL_4_4",
            37 => "IQ4_NL_4_8",
            38 => "IQ4_NL_8_8",
            _ => return None,
        })
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back_to_the_type() {
        for &ty in TensorType::ALL {
            assert_eq!(TensorType::from_id(ty.id()), Some(ty));
            assert_eq!(TensorType::from_name(ty.name()), Some(ty));
            assert_eq!(TensorType::from_name(&ty.name().to_lowercase()), Some(ty));
            assert_eq!(TensorType::removed_name(ty.id()), None);
        }
        assert_eq!(TensorType::from_id(43), None);
        assert_eq!(TensorType::from_name("q4"), None);
    }

    /// Every number below ggml's count is either a type or a removed one.
    #[test]
    fn the_table_has_no_holes() {
        for id in 0..43 {
            assert!(TensorType::from_id(id).is_some() != TensorType::removed_name(id).is_some(), "number {id}");
        }
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(TensorType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(TensorType::Q4_K.row_bytes(500), None);
        assert_eq!(TensorType::F32.row_bytes(3), Some(12));
        assert_eq!(TensorType::F64.row_bytes(usize::MAX), None);
    }
}
