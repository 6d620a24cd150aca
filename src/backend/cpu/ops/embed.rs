//! Embeddings: rows of a table, by token.

use crate::backend::cpu::exec::Pass;
use crate::backend::cpu::matmul::Matrix;
use crate::{Error, Result};

/// Writes the table's row for the token of row `row`.
///
/// # Errors
/// `InvalidInput` if the table has no such row.
pub(super) fn embed(pass: &Pass<'_>, table: &Matrix<'_>, row: usize, out: &mut [f32]) -> Result<()> {
    let token = pass.tokens.get(row).map_or(0, |&t| t as usize);
    if token >= table.rows() {
        return Err(Error::invalid_input(format!("token {token} is not in the vocabulary of {}", table.rows())));
    }
    table.dequantize_row(token, out)
}
