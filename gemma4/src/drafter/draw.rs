//! Drafts that are drawn.

use super::Proposed;
use crate::sampling::Sampler;
use rand_chacha::ChaCha8Rng;

/// Tokens that a drawn draft can be: the likeliest ones. What it was drawn from is known exactly all the same.
pub(super) const LIKELY: u32 = 64;

/// Draws a token of a draft from its likely ones. `logits` is all -inf, and is again afterwards. `None` where
/// the sampler has nothing to draw from.
pub(super) fn draw(
    sampler: &Sampler,
    rng: &mut ChaCha8Rng,
    logits: &mut [f32],
    ids: &[i32],
    p: &[f32],
) -> Option<Proposed> {
    let mut best = 0f32;
    for (&id, &p) in ids.iter().zip(p) {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = p.ln();
            best = best.max(p);
        }
    }
    // What the file forbids, or a penalty removes, can leave nothing; then the draft ends here.
    let q = sampler.distribution(logits).ok();
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let q = q?;
    let token = q.sample(rng);
    Some(Proposed { token, p: best, q: Some(q) })
}
