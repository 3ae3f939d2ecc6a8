//! The truncating stages of the chain and the weights of what they leave.

use std::cmp::Ordering;

use super::math::{self, BLOCK, Softmax};
use super::options::SamplingOptions;

/// A token that is still in the running.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub id: u32,
    /// Never NaN or infinite once [`truncate`] has collected it.
    pub logit: f32,
}

/// Falling logit, then rising id. Total, because candidates are never NaN; `-0.0` ties with `0.0`.
pub(super) fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Runs top-k, typical, top-p and min-p over adjusted logits. Leaves the survivors in `out` by rising id.
///
/// `softmax` is that of `logits`. `out` ends with at least one candidate, all logits finite.
pub(super) fn truncate(
    options: &SamplingOptions,
    logits: &[f32],
    softmax: &Softmax,
    out: &mut Vec<Candidate>,
) {
    let min_keep = options.min_keep.max(1);
    let whole_vocabulary = options.top_k == 0 && options.typical_p >= 1.0;
    // Top-p needs the mass of the tokens that `floor` leaves out, so it is taken from the full row.
    let full_mass = whole_vocabulary.then_some(softmax.sum);
    if softmax.max == f32::INFINITY {
        let infinite = |(id, &l): (usize, &f32)| (l == softmax.max).then_some(candidate(id, 0.0));
        let limit = if options.top_k == 0 { usize::MAX } else { options.top_k };
        out.clear();
        out.extend(logits.iter().enumerate().filter_map(infinite).take(limit));
    } else if options.top_k > 0 {
        collect_top(logits, options.top_k, out);
    } else if whole_vocabulary && min_keep == 1 {
        collect_from(logits, floor(options, softmax, logits.len()), out);
    } else {
        collect_from(logits, f64::NEG_INFINITY, out);
    }
    narrow(options, full_mass, out);
}

/// As [`truncate`] for a row of which the likeliest tokens alone are known, with their probabilities: at least as many
/// as `top_k` keeps. Their logits are those of the row but for a constant, which changes nothing here.
pub(super) fn truncate_likely(options: &SamplingOptions, likely: &[(u32, f32)], out: &mut Vec<Candidate>) {
    out.clear();
    out.extend(likely.iter().map(|&(id, p)| Candidate { id, logit: p.ln() }));
    cut(out, options.top_k, by_rank);
    narrow(options, None, out);
}

/// Typical, top-p and min-p. `full_mass`: that of the row, if candidates were left out for having no part in top-p.
fn narrow(options: &SamplingOptions, full_mass: Option<f64>, out: &mut Vec<Candidate>) {
    let min_keep = options.min_keep.max(1);
    if options.typical_p < 1.0 {
        typical(out, options.typical_p, min_keep);
    }
    if options.top_p < 1.0 {
        let max = max_logit(out);
        let mass = full_mass.unwrap_or_else(|| out.iter().map(|c| weight(c, max)).sum());
        let keep = smallest_prefix(out, f64::from(options.top_p) * mass, by_rank, |c| weight(c, max));
        keep_first(out, keep, min_keep, by_rank);
    }
    if options.min_p > 0.0 {
        min_p(out, options.min_p, min_keep);
    }
    // The draw walks up the ids: a small change of the logits then moves the boundaries between tokens
    // a little, where rank order would let near-ties swap places.
    if !out.is_sorted_by_key(|c| c.id) {
        out.sort_unstable_by_key(|c| c.id);
    }
}

/// Fills `out` with `e^((logit - max) / temperature)` and returns the sum, which is at least 1.
pub(super) fn weights(candidates: &[Candidate], temperature: f32, out: &mut Vec<f32>) -> f64 {
    let max = max_logit(candidates);
    out.clear();
    out.extend(candidates.iter().map(|c| math::exp((c.logit - max) / temperature)));
    out.iter().map(|&w| f64::from(w)).sum()
}

/// A logit below which neither top-p nor min-p can keep a token. `-inf` if both are off.
///
/// In `f64`, where differences of `f32` logits are exact.
fn floor(options: &SamplingOptions, softmax: &Softmax, n_vocab: usize) -> f64 {
    let mut depth = f64::INFINITY;
    if options.top_p < 1.0 {
        // All tokens deeper than this have together at most n * e^-depth: half of what top-p may drop.
        // The other half covers rounding.
        let spare = 0.5 * (1.0 - f64::from(options.top_p)) * softmax.sum;
        depth = (n_vocab as f64 / spare).ln().max(0.0);
    }
    if options.min_p > 0.0 {
        depth = depth.min(-f64::from(options.min_p).ln());
    }
    f64::from(softmax.max) - depth
}

fn candidate(id: usize, logit: f32) -> Candidate {
    Candidate { id: id as u32, logit }
}

fn max_logit(candidates: &[Candidate]) -> f32 {
    candidates.iter().fold(f32::NEG_INFINITY, |m, c| if c.logit > m { c.logit } else { m })
}

fn weight(c: &Candidate, max: f32) -> f64 {
    f64::from(math::exp(c.logit - max))
}

/// The usable logits that are at least `floor`, by rising id.
fn collect_from(logits: &[f32], floor: f64, out: &mut Vec<Candidate>) {
    out.clear();
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        if f64::from(math::max_of(block)) < floor {
            continue;
        }
        let usable = |l: f32| l > f32::NEG_INFINITY && f64::from(l) >= floor;
        let kept = block.iter().enumerate().filter(|(_, l)| usable(**l));
        out.extend(kept.map(|(i, &l)| candidate(index * BLOCK + i, l)));
    }
}

/// The `k` first usable logits by rank, in no particular order. `k` must not be 0.
///
/// Keeps a pool of a few times `k` and cuts it back when full. Blocks that hold nothing better than the
/// worst of the last cut are skipped, so most of a vocabulary costs one vectorised maximum.
pub(super) fn collect_top(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    let k = k.min(logits.len());
    let full = k + k.max(BLOCK);
    // Later tokens have higher ids, so one that only equals the worst kept loses the tie.
    let mut worst = f32::NEG_INFINITY;
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        if math::max_of(block) <= worst {
            continue;
        }
        for (i, &l) in block.iter().enumerate() {
            if l > worst {
                out.push(candidate(index * BLOCK + i, l));
                if out.len() >= full {
                    worst = cut(out, k, by_rank).map_or(worst, |c| c.logit);
                }
            }
        }
    }
    cut(out, k, by_rank);
}

/// Keeps the first `k` in the given order and returns the last of them, if any was dropped.
fn cut(
    items: &mut Vec<Candidate>,
    k: usize,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) -> Option<Candidate> {
    if k == 0 || items.len() <= k {
        return None;
    }
    let last = *items.select_nth_unstable_by(k - 1, order).1;
    items.truncate(k);
    Some(last)
}

/// Moves the smallest prefix of mass `>= target` to the front and returns its length, at least 1.
/// If all together have less, that is everything.
///
/// A quickselect that follows the mass rather than an index: linear time on average, nothing is sorted.
fn smallest_prefix(
    items: &mut [Candidate],
    target: f64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    weight: impl Fn(&Candidate) -> f64,
) -> usize {
    let (mut low, mut high, mut mass) = (0, items.len(), 0.0);
    // The answer is in low+1..=high, and items[..low] has less than the target.
    while high - low > 1 {
        let half = (high - low) / 2;
        let open = &mut items[low..high];
        open.select_nth_unstable_by(half - 1, &order);
        let upper: f64 = open[..half].iter().map(&weight).sum();
        if mass + upper >= target {
            high = low + half;
        } else {
            mass += upper;
            low += half;
        }
    }
    high
}

/// Truncates to the first `keep`, or to the first `min_keep` if that is more.
///
/// The first `keep` must already be in front.
fn keep_first(
    items: &mut Vec<Candidate>,
    keep: usize,
    min_keep: usize,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) {
    if keep < min_keep {
        cut(items, min_keep, order);
    } else {
        items.truncate(keep);
    }
}

/// Keeps the smallest set of mass `p`, taken by rising distance of the surprise `-ln p` from the entropy.
fn typical(items: &mut Vec<Candidate>, p: f32, min_keep: usize) {
    let max = max_logit(items);
    let depth = |c: &Candidate| f64::from(c.logit) - f64::from(max);
    let (mut mass, mut mean) = (0.0, 0.0);
    for c in items.iter() {
        let w = weight(c, max);
        mass += w;
        mean += w * depth(c);
    }
    mean /= mass;
    // With z = l - max: -ln p = ln Z - z and H = ln Z - E[z], so the distance is |z - E[z]|.
    let distance = |c: &Candidate| (depth(c) - mean).abs();
    let order = |a: &Candidate, b: &Candidate| distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id));
    let keep = smallest_prefix(items, f64::from(p) * mass, order, |c| weight(c, max));
    keep_first(items, keep, min_keep, order);
}

/// Keeps tokens at least `p` times as probable as the most probable one.
fn min_p(items: &mut Vec<Candidate>, p: f32, min_keep: usize) {
    let floor = f64::from(max_logit(items)) + f64::from(p).ln();
    let keep = items.iter().filter(|c| f64::from(c.logit) >= floor).count();
    if keep < min_keep {
        cut(items, min_keep, by_rank);
    } else {
        items.retain(|c| f64::from(c.logit) >= floor);
    }
}
