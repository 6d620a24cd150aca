//! Products with few rows of activations: a kernel for each small number of them (hip/matmul/matvec.hip).

use crate::Result;
use crate::backend::hip::code::Kernel;
use crate::backend::hip::ops::Finder;
use crate::backend::hip::pass::Pass;
use crate::program::Buf;

/// The numbers of rows of activations for which there are kernels. They are columns to the kernels.
pub(crate) const COLUMNS: [usize; 4] = [1, 2, 4, 8];
/// Rows of the matrix per block, in general and where results are quantized in groups.
pub(super) const ROWS: usize = 4;
pub(super) const GROUP_ROWS: usize = 32;

/// A kernel for each of [`COLUMNS`].
pub(super) struct Few([Kernel; COLUMNS.len()]);

impl Few {
    /// `matvec_<name>_<columns>`, in blocks of as many threads as `threads` says for the columns.
    pub(super) fn find(find: &Finder<'_>, name: &str, threads: impl Fn(usize) -> u32) -> Result<Self> {
        let kernel = |n| find.kernel("matvec", &format!("matvec_{name}_{n}"), threads(n));
        let [one, two, four, eight] = COLUMNS.map(kernel);
        Ok(Self([one?, two?, four?, eight?]))
    }

    /// The kernel for the number of rows of `x`, if that is small.
    pub(super) fn of(&self, pass: &Pass<'_>, x: Buf) -> Result<Option<&Kernel>> {
        let count = pass.rows(x)?;
        Ok(COLUMNS.iter().zip(&self.0).find(|(n, _)| count <= **n).map(|(_, kernel)| kernel))
    }
}
