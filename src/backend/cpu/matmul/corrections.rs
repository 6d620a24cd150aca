//! Corrections of products of bytes, from the sums of activations: for zero points of weights, and
//! for minima of their groups.

use super::activations::{self, SUM_GROUP};
use super::kernels::Activations;

/// The use of the sums of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Correction {
    /// No correction.
    None,
    /// The zero point: the unpacked bytes exceed the weights by it, in groups of `group` columns.
    /// Without the correction, sums would start at `start`.
    Zero { zero: i32, start: i32, group: usize },
    /// Minima of groups of `group` columns.
    Mins { group: usize },
}

/// The inputs of corrections: the kind, the columns, and the address and number of the activations.
pub(super) type Corrected = (Correction, usize, usize, usize);

/// Fills in the corrections, `[groups][tokens]`: the integers at which sums start to account for
/// the zero point, or the factors of minima, as bits. Returns the columns per group. Does nothing
/// if the same corrections are there already.
///
/// # Safety
/// The pointers of the activations are valid.
pub(super) unsafe fn prepare(
    correction: Correction,
    cols: usize,
    x: &Activations,
    corrections: &mut [i32],
    corrected: &mut Option<Corrected>,
) -> usize {
    let (Correction::Zero { group, .. } | Correction::Mins { group }) = correction else { return 1 };
    let of = (correction, cols, x.sums.addr(), x.n);
    if corrected.replace(of) == Some(of) {
        return group;
    }
    let (n, stride) = (x.n, x.group_stride);
    // SAFETY: the activations have this many sums and scales, and nothing writes them.
    let (sums, scales) = unsafe {
        (
            std::slice::from_raw_parts(x.sums, cols / SUM_GROUP * stride),
            std::slice::from_raw_parts(x.scales, cols / activations::GROUP * stride),
        )
    };
    if n == 1 {
        prepare_one(correction, sums, scales, &mut corrections[..cols / group]);
        return group;
    }
    for (i, to) in corrections.chunks_exact_mut(stride).take(cols / group).enumerate() {
        let (to, column) = (&mut to[..n], i * group);
        let first = &sums[column / SUM_GROUP * stride..][..n];
        let second = if group > SUM_GROUP { &sums[(column / SUM_GROUP + 1) * stride..][..n] } else { &[] };
        to.copy_from_slice(first);
        for (to, second) in to.iter_mut().zip(second) {
            *to += second;
        }
        match correction {
            Correction::Zero { zero, start, .. } => to.iter_mut().for_each(|to| *to = start - zero * *to),
            _ => {
                for (to, scale) in to.iter_mut().zip(&scales[column / activations::GROUP * stride..]) {
                    *to = (*to as f32 * scale).to_bits() as i32;
                }
            }
        }
    }
    group
}

/// The same for one token, in loops that compilers vectorize.
fn prepare_one(correction: Correction, sums: &[i32], scales: &[f32], corrections: &mut [i32]) {
    let pairs = sums.as_chunks::<2>().0;
    let to = corrections.iter_mut();
    match correction {
        Correction::None => {}
        Correction::Zero { zero, start, group: SUM_GROUP } => {
            to.zip(sums).for_each(|(to, sum)| *to = start - zero * sum);
        }
        Correction::Zero { zero, start, .. } => {
            to.zip(pairs).for_each(|(to, [first, second])| *to = start - zero * (first + second));
        }
        Correction::Mins { group: SUM_GROUP } => {
            let pairs = pairs.iter().zip(scales);
            for (to, (sums, scale)) in corrections.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                *to = sums.map(|sum| (sum as f32 * scale).to_bits() as i32);
            }
        }
        Correction::Mins { .. } => {
            let pairs = pairs.iter().zip(scales);
            to.zip(pairs).for_each(|(to, ([a, b], scale))| *to = ((a + b) as f32 * scale).to_bits() as i32);
        }
    }
}
