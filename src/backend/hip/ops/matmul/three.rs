//! Arguments of kernels for several matrices.

use super::Product;
use crate::backend::hip::code::Args;
use crate::backend::hip::driver::DevicePtr;
use crate::backend::hip::pass::{Pass, bug, narrow};
use crate::{Error, Result};

/// Up to three products with the same activations, as kernels take them. A missing product has no
/// rows.
pub(super) struct Three {
    weights: [DevicePtr; 3],
    outs: [DevicePtr; 3],
    biases: [DevicePtr; 3],
    pub(super) rows: [usize; 3],
    pub(super) columns: usize,
}

impl Three {
    pub(super) fn new(pass: &Pass<'_>, products: &[Product]) -> Result<Self> {
        let mut three = Self { weights: [0; 3], outs: [0; 3], biases: [0; 3], rows: [0; 3], columns: 0 };
        if products.len() > three.rows.len() {
            return Err(bug("more than three products in a launch"));
        }
        for (i, product) in products.iter().enumerate() {
            let info = pass.info(product.weight)?;
            three.weights[i] = pass.weight(product.weight)?;
            three.outs[i] = pass.float(product.out)?;
            three.biases[i] = product.bias(pass)?;
            three.rows[i] = info.rows;
            three.columns = info.columns;
        }
        Ok(three)
    }

    pub(super) fn weights(&self, args: Args) -> Args {
        self.weights.into_iter().fold(args, Args::ptr)
    }

    /// Adds the addresses of results, and biases.
    pub(super) fn results(&self, args: Args) -> Args {
        self.outs.into_iter().chain(self.biases).fold(args, Args::ptr)
    }

    /// Adds rows and columns.
    pub(super) fn shape(&self, args: Args) -> Result<Args> {
        let args = self.rows.iter().try_fold(args, |args, &rows| Ok::<_, Error>(args.u32(narrow(rows)?)))?;
        Ok(args.u32(narrow(self.columns)?))
    }
}
