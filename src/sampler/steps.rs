//! The steps that narrow down the candidates, and the draw among the remaining ones.

use super::Sampler;
use super::math::{ln, weight};
use super::ranking::{Candidate, Ranking};
use crate::{Result, memory};

/// Top-k, typical, top-p and min-p, in this order.
pub(super) fn narrow(ranking: &mut Ranking, sampler: &Sampler) -> Result<()> {
    if sampler.top_k > 0 {
        ranking.keep(sampler.top_k)?;
    }
    if sampler.typical < 1.0 {
        typical(ranking, sampler.typical)?;
    }
    // Top-p and min-p both keep a number of the first candidates, and min-p depends on the best one
    // only. So min-p can cut first, if top-p uses the total from before the cut; top-p then has
    // less to search.
    let total = if sampler.top_p < 1.0 { Some(ranking.total(1.0)?) } else { None };
    if sampler.min_p > 0.0 {
        min_p(ranking, sampler.min_p)?;
    }
    if let Some(total) = total {
        top_p(ranking, sampler.top_p, total)?;
    }
    Ok(())
}

/// Locally typical sampling (Meister, Pimentel, Wiher and Cotterell, 2022): keeps the smallest set
/// with a mass of at least `mass` whose surprisals, `-ln p`, are the closest to their expectation,
/// the entropy.
///
/// Surprisals are the distances to the best logit plus a constant, which cancels in the difference
/// to their mean. The mean is computed with integers, so that the order does not matter. It is not
/// divided by the total, and the distances are multiplied by the total instead.
fn typical(ranking: &mut Ranking, mass: f32) -> Result<()> {
    const WHAT: &str = "the candidates for a token";
    let best = ranking.best()?;
    let total = ranking.total(1.0)?;
    let candidates = ranking.all()?;
    let distance = |candidate: &Candidate| best - candidate.logit();
    let sum: u64 = candidates
        .iter()
        .map(|candidate| (weight(-distance(candidate)), distance(candidate)))
        .filter(|&(weight, _)| weight > 0)
        .map(|(weight, distance)| (weight as f64 * f64::from(distance)) as u64)
        .sum();
    // A number has the oddity in its upper half and the rank in its lower half. Oddities are not
    // negative, so they order like their bits.
    let oddity = |candidate: &Candidate| ((f64::from(distance(candidate)) * total as f64 - sum as f64) as f32).abs();
    let mut by_oddity: Vec<u64> = memory::with_room(candidates.len(), WHAT)?;
    let ranks = candidates.iter().zip(0u64..);
    by_oddity.extend(ranks.map(|(candidate, rank)| u64::from(oddity(candidate).to_bits()) << 32 | rank));
    by_oddity.sort_unstable();

    let target = share(mass, total);
    let mut kept = memory::filled(candidates.len(), false, WHAT)?;
    let mut sum = 0;
    for rank in by_oddity.into_iter().map(|key| key as u32 as usize) {
        if let (Some(candidate), Some(kept)) = (candidates.get(rank), kept.get_mut(rank)) {
            sum += weight(-distance(candidate));
            *kept = true;
        }
        if sum >= target {
            break;
        }
    }
    ranking.retain(|rank| kept.get(rank).copied().unwrap_or(false))
}

/// Nucleus sampling (Holtzman, Buys, Du, Forbes and Choi, 2019): keeps the smallest set of the best
/// candidates that has at least the share `mass` of `total`; at least one candidate.
fn top_p(ranking: &mut Ranking, mass: f32, total: u64) -> Result<()> {
    if let Some(last) = ranking.find(share(mass, total), 1.0)? {
        ranking.keep_to(last);
    }
    Ok(())
}

/// Min-p (Nguyen, Baker, Neo, Roush, Kirsch and Shwartz-Ziv, 2024): keeps the candidates that are at least `ratio`
/// times as likely as the best one.
fn min_p(ranking: &mut Ranking, ratio: f32) -> Result<()> {
    let floor = f64::from(ranking.best()?) + ln(f64::from(ratio));
    ranking.keep_from(floor as f32);
    Ok(())
}

/// The share `fraction` of `total`, rounded up, and at least 1.
fn share(fraction: f32, total: u64) -> u64 {
    ((f64::from(fraction) * total as f64).ceil() as u64).max(1)
}

/// Draws a candidate at a temperature. In rank order each candidate takes a stretch of the
/// cumulative weight; the drawn one has the fraction `random / 2^64` of the total in its stretch.
/// `None` if there are no candidates.
pub(super) fn draw(ranking: &mut Ranking, temperature: f32, random: u64) -> Result<Option<Candidate>> {
    let total = ranking.total(temperature)?;
    let before = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    ranking.find(before + 1, temperature)
}
