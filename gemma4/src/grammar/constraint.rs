//! A grammar at work in one generation.

use std::fmt;

use llguidance::api::GrammarInit;
use llguidance::{Matcher, toktrie::SimpleVob};

use super::{Cache, Grammar, error, start, with_stack};
use crate::model::Tokenizer;
use crate::sampling::{Choice, Sampler, SamplingOptions};
use crate::{Error, Result};

/// The place in a grammar where a generation stands.
pub(crate) struct Constraint {
    matcher: Matcher,
    /// Tokens that are banned although the grammar allows them.
    banned: Vec<u32>,
    /// The logits with those of forbidden tokens at -inf.
    row: Vec<f32>,
    /// Reads log-probabilities from the logits before the mask; what it chooses is not used.
    model: Sampler,
}

impl Constraint {
    /// Starts `grammar`. With `ignore_eos`, the model never ends it.
    pub fn new(
        grammar: &Grammar,
        tokenizer: &Tokenizer,
        options: &SamplingOptions,
        ignore_eos: bool,
    ) -> Result<Constraint> {
        let factory = Cache::of(tokenizer)?;
        let init = GrammarInit::Serialized(grammar.inner.top.clone());
        let matcher = with_stack(|| start(factory, init))?;
        let banned = if ignore_eos { tokenizer.eog_tokens().to_vec() } else { Vec::new() };
        let model = SamplingOptions { n_logprobs: options.n_logprobs, ..SamplingOptions::greedy() };
        Ok(Constraint { matcher, banned, row: Vec::new(), model: Sampler::new(&model)? })
    }

    /// Chooses a token that the grammar allows by `pick`, which gets the logits with all others at -inf; `None` if
    /// nothing can follow.
    ///
    /// Log-probabilities are the model's own, as without a grammar.
    pub fn sample(
        &mut self,
        logits: &[f32],
        pick: impl FnOnce(&[f32]) -> Result<Choice>,
    ) -> Result<Option<Choice>> {
        if self.is_complete() {
            return Ok(None);
        }
        let mut mask = self.matcher.compute_mask().map_err(|e| error(&e.to_string()))?;
        for &token in self.banned.iter().filter(|&&token| (token as usize) < logits.len()) {
            mask.disallow_token(token);
        }
        if mask.is_zero() {
            return Ok(None); // the end token was the last possibility
        }
        self.apply(&mask, logits);
        let mut choice = pick(&self.row).map_err(|e| match e {
            Error::Option { option: "logits", .. } => Error::Grammar(
                "no token that the grammar allows can be chosen: each is banned by logit_bias or has no \
                 usable logit"
                    .to_owned(),
            ),
            other => other,
        })?;
        let best = self.model.sample(logits)?;
        let logit = |token: u32| logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let logprob = logit(choice.token) - logit(best.token) + best.logprob;
        if !logprob.is_nan() {
            choice.logprob = logprob;
        }
        choice.top = best.top;
        Ok(Some(choice))
    }

    /// Goes on behind a token that [`sample`](Self::sample) has returned.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        self.matcher.consume_token(token).map_err(|e| error(&e.to_string()))
    }

    /// Whether nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    fn apply(&mut self, mask: &SimpleVob, logits: &[f32]) {
        self.row.clear();
        self.row.extend_from_slice(logits);
        let words = mask.as_slice().iter().copied().chain(std::iter::repeat(0));
        for (word, block) in words.zip(self.row.chunks_mut(u32::BITS as usize)) {
            match word {
                0 => block.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (i, logit) in block.iter_mut().enumerate() {
                        if word >> i & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("is_complete", &self.is_complete()).finish_non_exhaustive()
    }
}
