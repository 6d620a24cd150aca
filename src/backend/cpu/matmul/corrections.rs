//! What products of bytes lack, from the sums of activations: zero points of weights, and minima of their groups.

use super::activations::{self, SUM_GROUP};
use super::kernels::Activations;

/// What the sums of activations are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Correction {
    /// Nothing.
    None,
    /// The zero point, which the unpacked bytes exceed the weights by, in groups of so many columns. Sums start at
    /// `start` without it.
    Zero { zero: i32, start: i32, group: usize },
    /// Minima of groups of so many columns.
    Mins { group: usize },
}

/// What corrections were computed of: which, for how many columns of which activations.
pub(super) type Corrected = (Correction, usize, usize, usize);

/// Fills in the corrections, `[groups][tokens]`: where integer sums start so as to account for the zero point, or what
/// minima are multiplied with, as bits. Returns the columns of a group. Nothing is done where they are there already.
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
    // SAFETY: there are as many sums and scales, and nothing writes them.
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

/// The same for one token, in loops that compilers make vectors of.
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
