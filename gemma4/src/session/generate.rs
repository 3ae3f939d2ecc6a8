//! Text from a session, one token at a time.

use super::speculate::{Block, RoundOptions};
use super::stats::{GenerationStats, SpeculationStats, peak_memory};
use super::text::StopFilter;
use super::{Session, WhenFull};
use crate::drafter::Speculation;
#[cfg(feature = "grammar")]
use crate::grammar::{Constraint, Grammar};
use crate::graph::Picks;
use crate::model::TokenStream;
use crate::sampling::{Choice, Row, Sampler, SamplingOptions};
use crate::{Error, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::time::{Duration, Instant};

/// How text is generated. Start from [`Default`] and chain setters.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// How each token is chosen.
    pub sampling: SamplingOptions,
    /// Most tokens to generate. Default: until the context is full.
    pub max_tokens: Option<usize>,
    /// Strings that end the generation when they appear; they are not part of the text.
    pub stop: Vec<String>,
    /// Whether the model's end tokens are ordinary tokens. Default false.
    pub ignore_eos: bool,
    /// What happens when the context is full. Default: the generation ends.
    pub when_full: WhenFull,
    /// Whether the session's drafter is used. Default: as far as it pays.
    pub speculation: Speculation,
    /// How drawn tokens are compared with drafted ones. Default: the text of a seed is the same without drafter.
    pub acceptance: Acceptance,
    /// What the text must look like. Default: anything.
    #[cfg(feature = "grammar")]
    pub grammar: Option<Grammar>,
}

/// How drafts are judged where tokens are drawn at random. With either, the text has the distribution that it would
/// have without a drafter. Greedy text needs no rule: it is the same, token for token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acceptance {
    /// The model draws its token, and a draft stands if it is the same. A seed means the same text as without a
    /// drafter.
    #[default]
    Match,
    /// Drafts are drawn too, and stand with the probability `p / q` (Leviathan et al., arXiv:2211.17192). More of
    /// them do at high temperatures; a seed means another text than without a drafter.
    Rejection,
}

impl GenerateOptions {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        GenerateOptions { sampling: SamplingOptions::greedy(), ..Default::default() }
    }

    /// Sets how tokens are chosen.
    #[must_use]
    pub fn sampling(mut self, sampling: SamplingOptions) -> Self {
        self.sampling = sampling;
        self
    }

    /// Sets the most tokens to generate.
    #[must_use]
    pub fn max_tokens(mut self, n: impl Into<Option<usize>>) -> Self {
        self.max_tokens = n.into();
        self
    }

    /// Adds a string that ends the generation.
    #[must_use]
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// Sets whether the model's end tokens are ordinary tokens.
    #[must_use]
    pub fn ignore_eos(mut self, yes: bool) -> Self {
        self.ignore_eos = yes;
        self
    }

    /// Sets what happens when the context is full.
    #[must_use]
    pub fn when_full(mut self, policy: WhenFull) -> Self {
        self.when_full = policy;
        self
    }

    /// Sets whether the session's drafter is used.
    #[must_use]
    pub fn speculation(mut self, speculation: Speculation) -> Self {
        self.speculation = speculation;
        self
    }

    /// Sets how drawn tokens are compared with drafted ones.
    #[must_use]
    pub fn acceptance(mut self, acceptance: Acceptance) -> Self {
        self.acceptance = acceptance;
        self
    }

    /// Sets what the text must look like. The generation begins the grammar, whatever the prompt ends with.
    #[cfg(feature = "grammar")]
    #[must_use]
    pub fn grammar(mut self, grammar: impl Into<Option<Grammar>>) -> Self {
        self.grammar = grammar.into();
        self
    }
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model ended its turn or its text with this token.
    EndToken(u32),
    /// This stop string appeared.
    StopString(String),
    /// `max_tokens` were generated.
    MaxTokens,
    /// No more tokens fit into the context.
    ContextFull,
    /// The text satisfies the grammar, and nothing can follow it.
    GrammarEnd,
    /// A [`CancelHandle`](super::CancelHandle) was used.
    Cancelled,
    /// A computation failed; the iterator returned the error.
    Failed,
}

/// One step of a generation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Piece {
    /// The new token. `None` for text that was held back and came out when there was no token to follow.
    pub token: Option<u32>,
    /// Text that became certain with it. May be empty: characters can span tokens, and text that could
    /// begin a stop string is held back.
    pub text: String,
    /// Natural logarithm of the token's probability under the model, before any sampling option; 0 without a token.
    pub logprob: f32,
    /// The most likely tokens and their log-probabilities, if
    /// [`n_logprobs`](SamplingOptions::n_logprobs) asks for them.
    pub top: Vec<(u32, f32)>,
}

/// Makes the drafter's random numbers others than the sampler's.
const DRAFT_STREAM: u64 = 0x6472_6166_7465_7221;

/// An iterator over generated tokens. Dropping it leaves the session usable, with the tokens so far.
#[derive(Debug)]
pub struct Generation<'a> {
    session: &'a mut Session,
    options: GenerateOptions,
    sampler: Sampler,
    #[cfg(feature = "grammar")]
    grammar: Option<Constraint>,
    stream: TokenStream,
    filter: StopFilter,
    /// The newest token, not committed yet.
    pending: Option<u32>,
    /// The last pass of the model; rows behind the used ones are computed for drafts that may turn out right.
    block: Block,
    /// Numbers that draw drafts; independent of the sampler's.
    draft_rng: ChaCha8Rng,
    stopped: Option<StopReason>,
    started: Instant,
    stats: GenerationStats,
}

impl Session {
    /// Computes `prompt` after what the session holds and returns an iterator over the tokens that follow.
    ///
    /// An empty prompt continues from where the session stands. The last token of a generation is chosen but
    /// not computed: it is not yet part of the session, and a caller that goes on gives it first.
    ///
    /// # Errors
    /// As [`prefill`](Session::prefill) and [`Sampler::new`]; [`Error::Option`] if prompt and session are
    /// both empty; [`Error::Grammar`] if a grammar names a token that the model lacks. A cancellation during
    /// prefill is no error: the iterator is then over at once.
    pub fn generate(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Generation<'_>> {
        self.generate_with(prompt, options, |_| {})
    }

    /// As [`generate`](Session::generate); `progress` gets the number of prompt tokens done.
    ///
    /// # Errors
    /// As [`generate`](Session::generate).
    pub fn generate_with(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        progress: impl FnMut(usize),
    ) -> Result<Generation<'_>> {
        let mut sampler = Sampler::new(&options.sampling)?;
        #[cfg(feature = "grammar")]
        let grammar = match &options.grammar {
            Some(grammar) => {
                Some(Constraint::new(grammar, self.model.tokenizer(), &options.sampling, options.ignore_eos)?)
            }
            None => None,
        };
        let started = Instant::now();
        let before = self.len();
        let mut stopped = None;
        match self.prefill_with(prompt, progress) {
            Ok(()) => {}
            Err(Error::Cancelled) => stopped = Some(StopReason::Cancelled),
            Err(e) => return Err(e),
        }
        self.read_unread()?;
        if stopped.is_none() && self.logits.is_empty() {
            match self.recompute_last() {
                Err(Error::Cancelled) => stopped = Some(StopReason::Cancelled),
                other => other?,
            }
        }
        for &token in &self.tokens {
            sampler.accept(token);
        }
        let stats = GenerationStats {
            prompt_tokens: self.len() - before,
            prompt_time: started.elapsed(),
            kv_bytes: self.kv_bytes(),
            compute_bytes: self.compute_bytes(),
            speculation: self.options.drafter.as_ref().map(SpeculationStats::new),
            ..Default::default()
        };
        let draft_rng = ChaCha8Rng::seed_from_u64(sampler.seed() ^ DRAFT_STREAM);
        let stream = self.model.tokenizer().stream(false);
        let filter = StopFilter::new(&options.stop);
        let options = options.clone();
        Ok(Generation {
            session: self,
            options,
            sampler,
            #[cfg(feature = "grammar")]
            grammar,
            stream,
            filter,
            pending: None,
            block: Block::default(),
            draft_rng,
            stopped,
            started,
            stats,
        })
    }

    /// Restores the logits after the newest token, which a truncation or a partial step has lost.
    fn recompute_last(&mut self) -> Result<()> {
        let Some(&last) = self.tokens.last() else {
            return Err(Error::Option {
                option: "prompt",
                value: "empty".into(),
                why: "the session is empty too; give at least the beginning-of-sequence token".into(),
            });
        };
        // Position len-1 is rewritten with what it held: one step back is always inside the ring, which has
        // room for a verified block beyond the window.
        let len = self.len();
        if self.truncate(len - 1).is_err() {
            return Err(Error::Option {
                option: "prompt",
                value: "empty".into(),
                why: "the session was rolled back to the edge of its window; give the next token".into(),
            });
        }
        let done = self.prefill(&[last]);
        if done.is_err() && self.state.begin(1).is_ok() {
            // Cancelled: the row holds what it held before, so the token stays.
            self.commit(&[last]);
            self.forget_unseen();
        }
        done
    }
}

impl Generation<'_> {
    /// Why the generation ended; `None` while it goes on.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        self.stopped.as_ref()
    }

    /// Figures so far; complete once the iterator has ended.
    pub fn stats(&self) -> GenerationStats {
        GenerationStats { peak_memory: peak_memory(), ..self.stats.clone() }
    }

    /// Runs to the end and returns all text.
    ///
    /// # Errors
    /// The first error of the iterator.
    pub fn text(&mut self) -> Result<String> {
        let mut text = String::new();
        for piece in self {
            text += &piece?.text;
        }
        Ok(text)
    }

    fn advance(&mut self) -> Result<Option<Piece>> {
        let started = Instant::now();
        if let Some(token) = self.pending.take() {
            if !self.block.continues_with(token)
                && let Some(stopped) = self.begin_round(token)?
            {
                return Ok(self.end(stopped));
            }
            self.session.use_row(token, &mut self.block)?;
        } else if self.session.take_cancel() {
            self.stopped = Some(StopReason::Cancelled);
            return Ok(None);
        }
        let Some(choice) = self.choose()? else {
            return Ok(self.end(StopReason::GrammarEnd));
        };
        self.sampler.accept(choice.token);
        self.stats.generated_tokens += 1;
        self.stats.time_to_first_token.get_or_insert_with(|| self.started.elapsed());
        self.pending = Some(choice.token);

        let mut piece = Piece {
            token: Some(choice.token),
            text: String::new(),
            logprob: choice.logprob,
            top: choice.top,
        };
        if !self.options.ignore_eos && self.session.model.tokenizer().is_eog(choice.token) {
            self.stopped = Some(StopReason::EndToken(choice.token));
        } else {
            let decoded = self.stream.push(choice.token);
            let (text, stop) = self.filter.push(&decoded);
            piece.text = text;
            self.stopped = match stop {
                Some(stop) => Some(StopReason::StopString(stop)),
                None if self.is_grammar_complete() => Some(StopReason::GrammarEnd),
                None if self.is_at_limit() => Some(StopReason::MaxTokens),
                None => None,
            };
        }
        if self.stopped.is_some() {
            piece.text += &self.flush();
        }
        self.stats.decode_time += self.decode_share(started.elapsed());
        Ok(Some(piece))
    }

    /// Computes `token`, and guesses behind it. Returns why the generation ends, if it does.
    fn begin_round(&mut self, token: u32) -> Result<Option<StopReason>> {
        if self.session.state.remaining() == 0 {
            let WhenFull::Shift { keep } = self.options.when_full else {
                return Ok(Some(StopReason::ContextFull));
            };
            match self.session.shift(keep) {
                Err(Error::Cancelled) => return Ok(Some(StopReason::Cancelled)),
                other => other?,
            };
        }
        let draws = self.options.acceptance == Acceptance::Rejection && !self.options.sampling.is_greedy();
        let left =
            self.options.max_tokens.map_or(usize::MAX, |max| max - self.stats.generated_tokens.min(max));
        let picks = self.wanted();
        let round = RoundOptions {
            how: self.options.speculation,
            // The pass yields a token more than it has drafts.
            limit: u32::try_from(left.saturating_sub(1)).unwrap_or(u32::MAX),
            draw: draws.then_some((&self.sampler, &mut self.draft_rng)),
            ends: !self.options.ignore_eos,
            picks,
        };
        let times = match self.session.begin_round(token, round, &mut self.block) {
            Err(Error::Cancelled) => return Ok(Some(StopReason::Cancelled)),
            other => other?,
        };
        self.stats.decode_steps += 1;
        if let Some(stats) = &mut self.stats.speculation {
            stats.add_round(self.block.n_drafts(), times, self.session.plain_step());
        }
        Ok(None)
    }

    /// The likely tokens that are all that is wanted of a row, if its logits need not be read.
    fn wanted(&self) -> Option<Picks> {
        #[cfg(feature = "grammar")]
        if self.grammar.is_some() {
            return None;
        }
        let model = &self.session.model;
        // Forbidden ones may be among them.
        let forbidden = model.tokenizer().suppressed().len() as u32;
        match self.options.sampling.n_likely()? as u32 {
            1 => Some(Picks::Best),
            n => Some(Picks::Likely((n + forbidden).min(model.hparams().n_vocab))),
        }
    }

    /// The next token; `None` where the grammar allows none. Judges the draft in its place, if there is one.
    fn choose(&mut self) -> Result<Option<Choice>> {
        let started = Instant::now();
        let judged = self.block.judged();
        let likely = self.block.likely().filter(|_| self.session.logits.is_empty());
        let sampler = &mut self.sampler;
        let mut pick = |row: &[f32]| {
            let row = likely.map_or(Row::Logits(row), |likely| Row::Likely(likely));
            match judged.and_then(|(_, draft)| Some((draft.token, draft.q.as_ref()?))) {
                Some((token, q)) => sampler.judge(row, token, q),
                None => sampler.choose(row),
            }
        };
        #[cfg(feature = "grammar")]
        let choice = match &mut self.grammar {
            Some(grammar) => {
                let choice = grammar.sample(&self.session.logits, &mut pick)?;
                if let Some(choice) = &choice {
                    grammar.accept(choice.token)?;
                }
                choice
            }
            None => Some(pick(&self.session.logits)?),
        };
        #[cfg(not(feature = "grammar"))]
        let choice = Some(pick(&self.session.logits)?);
        if let (Some(choice), Some((i, draft))) = (&choice, judged) {
            let accepted = choice.token == draft.token;
            self.session.judged(i, accepted);
            if let Some(stats) = &mut self.stats.speculation {
                stats.add_judgement(i, accepted);
            }
        }
        if let Some(stats) = &mut self.stats.speculation {
            stats.sample_time += started.elapsed();
        }
        Ok(choice)
    }

    fn is_grammar_complete(&self) -> bool {
        #[cfg(feature = "grammar")]
        return self.grammar.as_ref().is_some_and(Constraint::is_complete);
        #[cfg(not(feature = "grammar"))]
        false
    }

    /// The first token's sampling is part of the time to first token, not of decoding.
    fn decode_share(&self, elapsed: Duration) -> Duration {
        if self.stats.decode_steps == 0 { Duration::ZERO } else { elapsed }
    }

    fn is_at_limit(&self) -> bool {
        self.options.max_tokens.is_some_and(|max| self.stats.generated_tokens >= max)
    }

    /// Text that was held back, unless a stop string has swallowed it.
    fn flush(&mut self) -> String {
        if matches!(self.stopped, Some(StopReason::StopString(_))) {
            return String::new();
        }
        let rest = self.stream.finish();
        let (mut text, stop) = self.filter.push(&rest);
        if stop.is_none() {
            text += &self.filter.finish();
        }
        text
    }

    /// Ends without a new token. Held-back text still comes out.
    fn end(&mut self, reason: StopReason) -> Option<Piece> {
        self.stopped = Some(reason);
        let text = self.flush();
        (!text.is_empty()).then(|| Piece { token: None, text, logprob: 0.0, top: Vec::new() })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        if self.stopped.is_some() {
            return None;
        }
        if self.options.max_tokens == Some(0) {
            self.stopped = Some(StopReason::MaxTokens);
            return None;
        }
        match self.advance() {
            Ok(piece) => piece.map(Ok),
            Err(e) => {
                self.stopped = Some(StopReason::Failed);
                Some(Err(e))
            }
        }
    }
}
