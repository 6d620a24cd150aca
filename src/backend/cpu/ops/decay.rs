//! [`Op::Decay`](crate::program::Op::Decay): tests of recurrent states use it.

/// Runs the recurrence over the rows of a sequence, from `state` on or from zeros.
pub(in crate::backend::cpu) fn decay(rows: &mut [f32], state: &mut [f32], is_first: bool) {
    if is_first {
        state.fill(0.0);
    }
    for row in rows.chunks_exact_mut(state.len()) {
        for (x, state) in row.iter_mut().zip(state.iter_mut()) {
            *state = *state / 2.0 + *x;
            *x = *state;
        }
    }
}
