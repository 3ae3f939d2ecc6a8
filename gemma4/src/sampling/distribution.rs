//! Probabilities over tokens and the acceptance rule of speculative decoding.

use rand::Rng;

use crate::{Error, Result};

/// Uniform in `[0, 1)` with 53 bits: exactly one 64-bit number of the stream.
pub(super) fn unit(rng: &mut (impl Rng + ?Sized)) -> f64 {
    const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
    (rng.next_u64() >> 11) as f64 * SCALE
}

/// The token in whose share of `[0, total)` the point `u * total` lies. `None` if no weight is positive.
pub(super) fn pick(items: impl Iterator<Item = (u32, f64)>, u: f64, total: f64) -> Option<u32> {
    let target = u * total;
    let (mut sum, mut last) = (0.0, None);
    for (id, weight) in items {
        if weight > 0.0 {
            sum += weight;
            last = Some(id);
            if target < sum {
                break;
            }
        }
    }
    // Rounding can leave the point a hair beyond the end; then the last token has it.
    last
}

/// Probabilities of the tokens that can be drawn: each above 0, together 1 up to `f32` rounding.
///
/// Holds at least one token. Comes from [`Sampler::distribution`](super::Sampler::distribution), or from
/// [`Distribution::new`] for a drafter that computes its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// By rising id.
    entries: Vec<(u32, f32)>,
}

impl Distribution {
    /// From weights `(token id, weight)` in any order. They are normalised; zero weights are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if a weight is negative, NaN or infinite, if an id occurs twice, or if no
    /// weight is above 0.
    pub fn new(weights: impl IntoIterator<Item = (u32, f32)>) -> Result<Self> {
        let bad = |value: String, why: &str| Error::Option { option: "weights", value, why: why.to_owned() };
        let mut entries: Vec<(u32, f32)> = weights.into_iter().collect();
        if let Some(e) = entries.iter().find(|e| !e.1.is_finite() || e.1 < 0.0) {
            return Err(bad(format!("{e:?}"), "a weight must be finite and not negative"));
        }
        entries.sort_unstable_by_key(|e| e.0);
        if let Some(e) = entries.windows(2).find(|w| w[0].0 == w[1].0) {
            return Err(bad(format!("{e:?}"), "each token id may occur once"));
        }
        let total = entries.iter().map(|e| f64::from(e.1)).sum();
        Self::normalised(entries, total)
            .ok_or_else(|| bad("all zero".to_owned(), "at least one weight must be above 0"))
    }

    /// All mass on one token: what a drafter that takes its largest logit draws from.
    pub fn one_hot(token: u32) -> Self {
        Self { entries: vec![(token, 1.0)] }
    }

    /// `entries` by rising id, weights not negative, with their sum. `None` if nothing is left.
    pub(super) fn normalised(mut entries: Vec<(u32, f32)>, total: f64) -> Option<Self> {
        for e in &mut entries {
            e.1 = (f64::from(e.1) / total) as f32;
        }
        // Also drops what rounds to zero, and NaN from a total of zero.
        entries.retain(|e| e.1 > 0.0);
        (!entries.is_empty()).then_some(Self { entries })
    }

    /// `(token id, probability)` by rising id.
    pub fn entries(&self) -> &[(u32, f32)] {
        &self.entries
    }

    /// Probability of `token`, 0 if it cannot be drawn.
    pub fn probability(&self, token: u32) -> f32 {
        self.entries.binary_search_by_key(&token, |e| e.0).map_or(0.0, |i| self.entries[i].1)
    }

    /// The most probable token, the lowest id on a tie.
    pub fn most_likely(&self) -> u32 {
        let better = |best: (u32, f32), e: &(u32, f32)| if e.1 > best.1 { *e } else { best };
        self.entries.iter().fold((0, 0.0), better).0
    }

    /// Draws a token with exactly one 64-bit number of `rng`.
    pub fn sample(&self, rng: &mut (impl Rng + ?Sized)) -> u32 {
        self.at(unit(rng))
    }

    /// The token at the point `u` of the cumulative distribution, `u` in `[0, 1)`.
    fn at(&self, u: f64) -> u32 {
        let items = || self.entries.iter().map(|&(id, p)| (id, f64::from(p)));
        let total = items().map(|e| e.1).sum();
        pick(items(), u, total).unwrap_or_else(|| self.most_likely())
    }
}

/// What becomes of a drafted token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The drafted token stands. The next drafted token can be judged.
    Accept,
    /// This token takes its place. The rest of the draft is void.
    Replace(u32),
}

impl Verdict {
    /// The token to emit, given the drafted one.
    pub fn token(self, drafted: u32) -> u32 {
        match self {
            Self::Accept => drafted,
            Self::Replace(token) => token,
        }
    }
}

/// The lossless acceptance rule of speculative sampling: the emitted token is distributed as `target`,
/// whatever the draft.
///
/// With `p` the target's and `q` the draft's probabilities, the drafted token `x` is accepted with
/// probability `min(1, p(x) / q(x))`; else a token is drawn from `r` proportional to `max(0, p - q)`.
/// Leviathan et al. 2022, arXiv:2211.17192, and Chen et al. 2023, arXiv:2302.01318.
///
/// - `target`: from the large model's logits of the position, through the full chain.
/// - `draft`: what `drafted` was drawn from. [`Distribution::one_hot`] if it was an argmax.
/// - `drafted`: the drafted token. If `draft` gives it no mass it cannot have been drawn from there; it
///   is then judged as a one-hot draft, which is lossless for any choice.
/// - `rng`: gives exactly one 64-bit number, also for the replacement. It must be independent of the
///   numbers that chose `drafted`.
///
/// If rounding leaves `r` without mass, the replacement is drawn from `p`.
pub fn speculative_accept(
    target: &Distribution,
    draft: &Distribution,
    drafted: u32,
    rng: &mut (impl Rng + ?Sized),
) -> Verdict {
    let one_hot;
    let (draft, q) = match draft.probability(drafted) {
        q if q > 0.0 => (draft, f64::from(q)),
        _ => {
            one_hot = Distribution::one_hot(drafted);
            (&one_hot, 1.0)
        }
    };
    let accept = f64::from(target.probability(drafted)) / q;
    let u = unit(rng);
    if u < accept {
        return Verdict::Accept;
    }
    // Given rejection, u is uniform on [accept, 1): stretched out, it serves for the second draw.
    let u = (u - accept) / (1.0 - accept);
    let total = residual(target, draft).map(|e| e.1).sum();
    let token = pick(residual(target, draft), u, total).unwrap_or_else(|| target.at(u));
    Verdict::Replace(token)
}

/// `max(0, p - q)` for each token of the target, by rising id.
fn residual<'a>(
    target: &'a Distribution,
    draft: &'a Distribution,
) -> impl Iterator<Item = (u32, f64)> + use<'a> {
    let mut rest = draft.entries.iter().peekable();
    target.entries.iter().map(move |&(id, p)| {
        while rest.next_if(|e| e.0 < id).is_some() {}
        let q = rest.next_if(|e| e.0 == id).map_or(0.0, |e| e.1);
        (id, (f64::from(p) - f64::from(q)).max(0.0))
    })
}
