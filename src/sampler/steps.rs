//! The steps that narrow the candidates down, and the draw from what is left.

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
    // Both of the others keep the first so many candidates, and min-p asks only for the best one: its cut can be made
    // first, if the total is the one from before, and top-p then has less to search.
    let total = if sampler.top_p < 1.0 { Some(ranking.total(1.0)?) } else { None };
    if sampler.min_p > 0.0 {
        min_p(ranking, sampler.min_p)?;
    }
    if let Some(total) = total {
        top_p(ranking, sampler.top_p, total)?;
    }
    Ok(())
}

/// Locally typical sampling (Meister, Pimentel, Wiher and Cotterell, 2022): keeps the smallest set of a mass of at
/// least `mass` whose surprisals, `-ln p`, are the closest to their expectation, the entropy.
///
/// Surprisals are the distances to the best logit but for a constant, which the difference to their mean does not have.
/// The mean is made of integers, so that no order matters, and not divided by their total: nor are the distances.
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
    // The rank follows the oddity in the low half of a number: oddities are positive, and order as their bits.
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

/// Nucleus sampling (Holtzman, Buys, Du, Forbes and Choi, 2019): keeps the smallest set of the best candidates that
/// has at least the share `mass` of `total`, and at least one.
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

/// The part `fraction` of `total`, rounded up, and at least 1.
fn share(fraction: f32, total: u64) -> u64 {
    ((f64::from(fraction) * total as f64).ceil() as u64).max(1)
}

/// Draws a candidate at a temperature: the one in whose part of the cumulated weights, in rank order, the fraction
/// `random / 2^64` of their total falls. `None` if there are no candidates.
pub(super) fn draw(ranking: &mut Ranking, temperature: f32, random: u64) -> Result<Option<Candidate>> {
    let total = ranking.total(temperature)?;
    let before = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    ranking.find(before + 1, temperature)
}
