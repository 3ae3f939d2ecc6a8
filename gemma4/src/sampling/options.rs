//! What the caller can set.

use crate::{Error, Result};

/// How tokens are chosen from logits. See the [module documentation](super) for the order of the
/// stages and the formula of each.
///
/// The default is what Gemma 4's model card recommends: temperature 1.0, top-k 64, top-p 0.95,
/// everything else off. Set fields directly or with the chained setter of the same name:
///
/// ```
/// use gemma4::sampling::{Sampler, SamplingOptions};
///
/// let options = SamplingOptions::default().temperature(0.7).top_k(40).seed(1);
/// let mut sampler = Sampler::new(&options)?;
/// let choice = sampler.sample(&[0.1, 2.0, -1.0])?;
/// sampler.accept(choice.token);
/// # Ok::<(), gemma4::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SamplingOptions {
    /// Divides the logits before the draw. Below 1 sharpens, above 1 flattens. `<= 0` means greedy.
    pub temperature: f32,
    /// Keep this many of the largest logits. 0 turns it off.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens that has this mass, in `0..=1`. 1 turns it off;
    /// 0 keeps the most probable token.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable one, in `0..=1`. 0 turns it
    /// off.
    pub min_p: f32,
    /// Keep the smallest set of mass `typical_p`, in `0..=1`, of the tokens whose surprise is closest
    /// to the entropy. 1 turns it off.
    pub typical_p: f32,
    /// The typical, top-p and min-p stages each leave at least this many tokens, if they get that many.
    /// 0 and 1 mean the same.
    pub min_keep: usize,
    /// Divides positive logits of recent tokens and multiplies negative ones. Above 0. 1 turns it off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each recent token. 0 turns it off; negative encourages.
    pub presence_penalty: f32,
    /// Subtracted from the logit of each recent token once per occurrence. 0 turns it off; negative
    /// encourages.
    pub frequency_penalty: f32,
    /// How many of the last accepted tokens count as recent. 0 turns all three penalties off.
    pub penalty_last_n: usize,
    /// `(token id, bias)`: added to that token's logit. `-inf` bans the token. Several entries for one
    /// token add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random stream. `None` takes a fresh one from the system at
    /// [`Sampler::new`](super::Sampler::new) and at every [`Sampler::reset`](super::Sampler::reset).
    pub seed: Option<u64>,
    /// How many of the most probable tokens [`Choice::top`](super::Choice::top) lists. 0 for none.
    pub n_logprobs: usize,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 64,
            top_p: 0.95,
            min_p: 0.0,
            typical_p: 1.0,
            min_keep: 1,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: 64,
            logit_bias: Vec::new(),
            seed: None,
            n_logprobs: 0,
        }
    }
}

impl SamplingOptions {
    /// Always the most probable token: temperature 0, top-k and top-p off.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, ..Self::default() }
    }

    /// Sets [`temperature`](Self#structfield.temperature).
    #[must_use]
    pub fn temperature(mut self, value: f32) -> Self {
        self.temperature = value;
        self
    }

    /// Sets [`top_k`](Self#structfield.top_k).
    #[must_use]
    pub fn top_k(mut self, value: usize) -> Self {
        self.top_k = value;
        self
    }

    /// Sets [`top_p`](Self#structfield.top_p).
    #[must_use]
    pub fn top_p(mut self, value: f32) -> Self {
        self.top_p = value;
        self
    }

    /// Sets [`min_p`](Self#structfield.min_p).
    #[must_use]
    pub fn min_p(mut self, value: f32) -> Self {
        self.min_p = value;
        self
    }

    /// Sets [`typical_p`](Self#structfield.typical_p).
    #[must_use]
    pub fn typical_p(mut self, value: f32) -> Self {
        self.typical_p = value;
        self
    }

    /// Sets [`min_keep`](Self#structfield.min_keep).
    #[must_use]
    pub fn min_keep(mut self, value: usize) -> Self {
        self.min_keep = value;
        self
    }

    /// Sets [`repetition_penalty`](Self#structfield.repetition_penalty).
    #[must_use]
    pub fn repetition_penalty(mut self, value: f32) -> Self {
        self.repetition_penalty = value;
        self
    }

    /// Sets [`presence_penalty`](Self#structfield.presence_penalty).
    #[must_use]
    pub fn presence_penalty(mut self, value: f32) -> Self {
        self.presence_penalty = value;
        self
    }

    /// Sets [`frequency_penalty`](Self#structfield.frequency_penalty).
    #[must_use]
    pub fn frequency_penalty(mut self, value: f32) -> Self {
        self.frequency_penalty = value;
        self
    }

    /// Sets [`penalty_last_n`](Self#structfield.penalty_last_n).
    #[must_use]
    pub fn penalty_last_n(mut self, value: usize) -> Self {
        self.penalty_last_n = value;
        self
    }

    /// Replaces [`logit_bias`](Self#structfield.logit_bias).
    #[must_use]
    pub fn logit_bias(mut self, value: impl IntoIterator<Item = (u32, f32)>) -> Self {
        self.logit_bias = value.into_iter().collect();
        self
    }

    /// Sets [`seed`](Self#structfield.seed).
    #[must_use]
    pub fn seed(mut self, value: impl Into<Option<u64>>) -> Self {
        self.seed = value.into();
        self
    }

    /// Sets [`n_logprobs`](Self#structfield.n_logprobs).
    #[must_use]
    pub fn n_logprobs(mut self, value: usize) -> Self {
        self.n_logprobs = value;
        self
    }

    /// Whether the largest logit is taken without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// How many of a row's likeliest tokens, with their probabilities, are all that is read of it; `None` if more is, or
    /// so many that reading the row costs no more.
    pub(crate) fn n_likely(&self) -> Option<usize> {
        const MOST: usize = 256;
        let n = if self.is_greedy() { 1 } else { self.top_k };
        let others = !self.logit_bias.is_empty() || self.has_penalties() || self.n_logprobs > 0;
        (!others && (1..=MOST).contains(&n)).then_some(n)
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] names the first value that is not a number, infinite where that makes no
    /// sense, or out of range.
    pub fn validate(&self) -> Result<()> {
        finite("temperature", self.temperature)?;
        probability("top_p", self.top_p)?;
        probability("min_p", self.min_p)?;
        probability("typical_p", self.typical_p)?;
        finite("repetition_penalty", self.repetition_penalty)?;
        if self.repetition_penalty <= 0.0 {
            return Err(bad(
                "repetition_penalty",
                self.repetition_penalty,
                "must be above 0; 1 turns it off",
            ));
        }
        finite("presence_penalty", self.presence_penalty)?;
        finite("frequency_penalty", self.frequency_penalty)?;
        for &(token, bias) in &self.logit_bias {
            if bias.is_nan() || bias == f32::INFINITY {
                let value = format!("({token}, {bias})");
                return Err(bad("logit_bias", value, "a bias must be finite, or -inf to ban the token"));
            }
        }
        Ok(())
    }

    /// Whether the penalty stage can change a logit at all.
    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

fn bad(option: &'static str, value: impl ToString, why: &str) -> Error {
    Error::Option { option, value: value.to_string(), why: why.to_owned() }
}

fn finite(option: &'static str, value: f32) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(bad(option, value, "must be a finite number")) }
}

fn probability(option: &'static str, value: f32) -> Result<()> {
    // A NaN is in no range.
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(bad(option, value, "must be a probability, from 0 to 1"))
    }
}
