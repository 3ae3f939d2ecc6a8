//! The sampler: options, random stream and penalty history together.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::chain::{self, Candidate};
use super::distribution::{Distribution, pick, speculative_accept, unit};
use super::math::{Softmax, argmax};
use super::options::SamplingOptions;
use crate::{Error, Result};

/// One sampled token.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The token id.
    pub token: u32,
    /// Natural log of the token's probability under the model's own distribution: the softmax of the
    /// logits as given, before bias, penalties, truncation and temperature.
    pub logprob: f32,
    /// The [`n_logprobs`](SamplingOptions#structfield.n_logprobs) most probable tokens of that same
    /// distribution with their log-probabilities, best first, ties by rising id. Shorter if fewer
    /// logits are above `-inf`.
    pub top: Vec<(u32, f32)>,
}

/// Tokens and their probabilities under the softmax of all logits.
pub(crate) type Likely = Vec<(u32, f32)>;

/// One row of a model's output, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Row<'a> {
    /// Every logit.
    Logits(&'a [f32]),
    /// The likeliest tokens, in no order: at least as many as `SamplingOptions::n_likely` asks for.
    Likely(&'a [(u32, f32)]),
}

/// Buffers kept between calls, so that sampling does not allocate.
#[derive(Debug, Default)]
struct Scratch {
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
    weights: Vec<f32>,
}

impl Clone for Scratch {
    fn clone(&self) -> Self {
        // Nothing in here outlives a call.
        Self::default()
    }
}

/// Chooses tokens from logits. See the [module documentation](super) for the chain.
///
/// [`sample`](Self::sample) does not record what it chose: call [`accept`](Self::accept) for each token
/// that becomes part of the text, prompt tokens included if they shall be penalised. So several
/// speculative rows can be judged before it is known which of them count.
///
/// A clone has the same history and goes on with the same random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    seed: u64,
    rng: ChaCha8Rng,
    /// Oldest first, at most `penalty_last_n` long.
    history: VecDeque<u32>,
    /// How often each token occurs in `history`; never 0.
    counts: BTreeMap<u32, u32>,
    scratch: Scratch,
}

impl Sampler {
    /// Checks the options and starts the random stream.
    ///
    /// # Errors
    ///
    /// Those of [`SamplingOptions::validate`].
    pub fn new(options: &SamplingOptions) -> Result<Self> {
        options.validate()?;
        let seed = options.seed.unwrap_or_else(fresh_seed);
        Ok(Self {
            options: options.clone(),
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            history: VecDeque::new(),
            counts: BTreeMap::new(),
            scratch: Scratch::default(),
        })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// The seed in use, also when the options named none: with it a run can be repeated.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The random stream, for [`speculative_accept`](super::speculative_accept) and
    /// [`Distribution::sample`]. Taking numbers shifts those of later [`sample`](Self::sample) calls.
    pub fn rng(&mut self) -> &mut (impl Rng + use<>) {
        &mut self.rng
    }

    /// The tokens that the penalties consider, oldest first.
    pub fn history(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.history.iter().copied()
    }

    /// Chooses a token from one row of `n_vocab` logits. The history stays as it is.
    ///
    /// Takes one number from the random stream, or none if greedy.
    ///
    /// # Errors
    ///
    /// - [`Error::Option`] if no token can be chosen: the row is empty, or every entry is NaN or `-inf`,
    ///   or `logit_bias` bans what is left.
    /// - [`Error::InvalidToken`] if `logit_bias` names a token outside the row.
    ///
    /// No random number is used then.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Choice> {
        self.choose(Row::Logits(logits))
    }

    /// Judges `drafted`, which was drawn from `draft`, by this row of `n_vocab` logits: returns it or what takes its
    /// place. The result is distributed as that of [`sample`](Self::sample), and takes one number too.
    ///
    /// # Errors
    ///
    /// As for [`sample`](Self::sample).
    pub fn sample_against(&mut self, logits: &[f32], drafted: u32, draft: &Distribution) -> Result<Choice> {
        self.judge(Row::Logits(logits), drafted, draft)
    }

    /// The probabilities that [`sample`](Self::sample) would draw from for this row of `n_vocab` logits.
    /// Greedy gives all mass to one token.
    ///
    /// # Errors
    ///
    /// As for [`sample`](Self::sample).
    pub fn distribution(&self, logits: &[f32]) -> Result<Distribution> {
        self.distribution_of(Row::Logits(logits))
    }

    /// Records a token of the text for the penalties. The oldest is forgotten once there are more than
    /// [`penalty_last_n`](SamplingOptions#structfield.penalty_last_n).
    ///
    /// Ids outside the vocabulary are kept, but penalise nothing.
    pub fn accept(&mut self, token: u32) {
        if self.options.penalty_last_n == 0 {
            return;
        }
        if self.history.len() >= self.options.penalty_last_n
            && let Some(oldest) = self.history.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.history.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// Back to the state after [`new`](Self::new): the history is empty and the random stream starts
    /// again, from the seed of the options or from a fresh one if they name none.
    pub fn reset(&mut self) {
        self.seed = self.options.seed.unwrap_or_else(fresh_seed);
        self.rng = ChaCha8Rng::seed_from_u64(self.seed);
        self.history.clear();
        self.counts.clear();
    }

    /// As [`sample`](Self::sample), for a row that may be known in part.
    pub(crate) fn choose(&mut self, row: Row<'_>) -> Result<Choice> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let choice = match row {
            Row::Logits(logits) => self.choose_by_logits(logits, &mut scratch),
            Row::Likely(likely) => self.choose_likely(likely, &mut scratch),
        };
        self.scratch = scratch;
        choice
    }

    /// As [`sample_against`](Self::sample_against), for a row that may be known in part.
    pub(crate) fn judge(&mut self, row: Row<'_>, drafted: u32, draft: &Distribution) -> Result<Choice> {
        let target = self.distribution_of(row)?;
        let token = speculative_accept(&target, draft, drafted, &mut self.rng).token(drafted);
        let logits = match row {
            Row::Logits(logits) => logits,
            Row::Likely(likely) => {
                return Ok(Choice { token, logprob: log_prob(likely, token), top: Vec::new() });
            }
        };
        let raw = Softmax::of(logits).ok_or_else(|| nothing_to_choose(logits.len()))?;
        let logprob = logits.get(token as usize).map_or(f32::NEG_INFINITY, |&l| raw.log_prob(l));
        let mut candidates = std::mem::take(&mut self.scratch.candidates);
        let top = self.top(logits, &raw, &mut candidates);
        self.scratch.candidates = candidates;
        Ok(Choice { token, logprob, top })
    }

    /// As [`distribution`](Self::distribution), for a row that may be known in part.
    pub(super) fn distribution_of(&self, row: Row<'_>) -> Result<Distribution> {
        let (mut buffer, mut candidates, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        let n = match row {
            Row::Logits(logits) => {
                let adjusted = self.adjust(logits, &mut buffer)?;
                let softmax = Softmax::of(adjusted).ok_or_else(|| nothing_to_choose(logits.len()))?;
                if self.options.is_greedy() {
                    return Ok(Distribution::one_hot(softmax.argmax as u32));
                }
                chain::truncate(&self.options, adjusted, &softmax, &mut candidates);
                logits.len()
            }
            Row::Likely(likely) => {
                if self.options.is_greedy() {
                    let best = likeliest(likely).ok_or_else(|| nothing_to_choose(0))?;
                    return Ok(Distribution::one_hot(best));
                }
                chain::truncate_likely(&self.options, likely, &mut candidates);
                likely.len()
            }
        };
        let total = chain::weights(&candidates, self.options.temperature, &mut weights);
        let entries = candidates.iter().zip(&weights).map(|(c, &w)| (c.id, w)).collect();
        Distribution::normalised(entries, total).ok_or_else(|| nothing_to_choose(n))
    }

    fn choose_likely(&mut self, likely: &[(u32, f32)], scratch: &mut Scratch) -> Result<Choice> {
        let token = if self.options.is_greedy() {
            likeliest(likely)
        } else {
            chain::truncate_likely(&self.options, likely, &mut scratch.candidates);
            self.draw(scratch)
        };
        let token = token.ok_or_else(|| nothing_to_choose(likely.len()))?;
        Ok(Choice { token, logprob: log_prob(likely, token), top: Vec::new() })
    }

    /// One of the candidates, by their logits.
    fn draw(&mut self, scratch: &mut Scratch) -> Option<u32> {
        let total = chain::weights(&scratch.candidates, self.options.temperature, &mut scratch.weights);
        let items = scratch.candidates.iter().zip(&scratch.weights);
        pick(items.map(|(c, &w)| (c.id, f64::from(w))), unit(&mut self.rng), total)
    }

    fn choose_by_logits(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<Choice> {
        let raw = Softmax::of(logits).ok_or_else(|| nothing_to_choose(logits.len()))?;
        let adjusted = self.adjust(logits, &mut scratch.logits)?;
        let changed = !std::ptr::eq(adjusted, logits);
        let token = if self.options.is_greedy() {
            let best = if changed { argmax(adjusted) } else { Some(raw.argmax as u32) };
            // An argmax of -inf is one of a row without choices.
            best.filter(|&t| adjusted.get(t as usize).is_some_and(|&l| l > f32::NEG_INFINITY))
        } else {
            let softmax = if changed { Softmax::of(adjusted) } else { Some(raw) };
            let softmax = softmax.ok_or_else(|| nothing_to_choose(logits.len()))?;
            chain::truncate(&self.options, adjusted, &softmax, &mut scratch.candidates);
            self.draw(scratch)
        };
        let token = token.ok_or_else(|| nothing_to_choose(logits.len()))?;
        let logprob = logits.get(token as usize).map_or(f32::NEG_INFINITY, |&l| raw.log_prob(l));
        let top = self.top(logits, &raw, &mut scratch.candidates);
        Ok(Choice { token, logprob, top })
    }

    /// The most probable tokens of the row as given.
    fn top(&self, logits: &[f32], raw: &Softmax, candidates: &mut Vec<Candidate>) -> Vec<(u32, f32)> {
        if self.options.n_logprobs == 0 {
            return Vec::new();
        }
        chain::collect_top(logits, self.options.n_logprobs, candidates);
        candidates.sort_unstable_by(chain::by_rank);
        candidates.iter().map(|c| (c.id, raw.log_prob(c.logit))).collect()
    }

    /// Logit bias and penalties. Copies the row only if one of them applies.
    fn adjust<'a>(&self, logits: &'a [f32], buffer: &'a mut Vec<f32>) -> Result<&'a [f32]> {
        let options = &self.options;
        let penalise = options.has_penalties() && !self.counts.is_empty();
        if options.logit_bias.is_empty() && !penalise {
            return Ok(logits);
        }
        buffer.clear();
        buffer.extend_from_slice(logits);
        for (index, &(token, bias)) in options.logit_bias.iter().enumerate() {
            let Some(logit) = buffer.get_mut(token as usize) else {
                return Err(Error::InvalidToken { token, index, n_vocab: logits.len() });
            };
            *logit += bias;
        }
        for (&token, &count) in self.counts.iter().filter(|_| penalise) {
            if let Some(logit) = buffer.get_mut(token as usize) {
                // Division alone would make a negative logit likelier.
                let scale = options.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / scale } else { *logit * scale };
                *logit -= count as f32 * options.frequency_penalty + options.presence_penalty;
            }
        }
        Ok(buffer)
    }
}

/// The likeliest token; of equal ones, that with the lowest id.
fn likeliest(likely: &[(u32, f32)]) -> Option<u32> {
    let better = |a: &&(u32, f32), b: &&(u32, f32)| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0));
    likely.iter().max_by(better).map(|&(id, _)| id)
}

fn log_prob(likely: &[(u32, f32)], token: u32) -> f32 {
    likely.iter().find(|&&(id, _)| id == token).map_or(f32::NEG_INFINITY, |&(_, p)| p.ln())
}

fn nothing_to_choose(n_vocab: usize) -> Error {
    Error::Option {
        option: "logits",
        value: format!("a row of {n_vocab}"),
        why: "no token can be chosen: each is NaN or -inf, in the model's output or by logit_bias; \
              lift a ban, or report the model file if nothing was banned"
            .to_owned(),
    }
}

/// A seed that differs between calls and between processes.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    // The standard library keys this hasher from the system's random source.
    RandomState::new().hash_one((now, std::process::id()))
}
