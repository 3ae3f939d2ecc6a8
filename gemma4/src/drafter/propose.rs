//! What the driver in [`session`](crate::session) and the drafters agree on.

use crate::Result;
use crate::cache::{CacheState, KvCache};
use crate::ggml::Engine;
use crate::graph::{CaptureNeeds, Captured};
use crate::model::Model;
use crate::sampling::{Distribution, Sampler};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

/// What a loaded drafter is made of. Sessions of any thread share it; each [`start`](Self::start)s its own
/// proposer.
pub(crate) trait Source: Send + Sync {
    /// A word for logs and figures, such as `mtp`.
    fn kind(&self) -> &'static str;

    /// Bytes of the drafter's weights, if it has some.
    fn weight_bytes(&self) -> u64 {
        0
    }

    /// What the target's graphs must keep for it. Nothing, for one that reads the text only.
    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds::default()
    }

    /// The most tokens that one draft can have.
    fn max_draft(&self) -> u32;

    /// Refuses a model that the drafter was not made for, with an error that names both numbers.
    fn check(&self, _model: &Model) -> Result<()> {
        Ok(())
    }

    /// A proposer for one session: takes its memory and its slots of the engine now, so that nothing fails
    /// in mid-conversation.
    fn start(&self, setup: &Setup<'_>, engine: &mut Engine) -> Result<Box<dyn Propose>>;

    /// What [`start`](Self::start) will take, without taking it. The caches of `setup` have no memory.
    fn plan(&self, _setup: &Setup<'_>, _engine: &mut Engine) -> Result<DrafterPlan> {
        Ok(DrafterPlan::default())
    }
}

/// A session that a proposer is made for.
pub(crate) struct Setup<'a> {
    pub model: &'a Model,
    pub cache: &'a KvCache,
    pub state: &'a CacheState,
    pub captured: &'a Captured,
    /// The most tokens of a draft: the least of what the drafter can and the session's options want.
    pub max_draft: u32,
}

/// Bytes that a proposer takes for a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DrafterPlan {
    /// Caches of its own.
    pub state: u64,
    /// Intermediate values, over all backends.
    pub compute: u64,
}

/// What a proposer sees of the session that it drafts for.
pub(crate) struct Target<'a> {
    pub model: &'a Model,
    pub cache: &'a KvCache,
    pub state: &'a CacheState,
    /// Results of the last step's rows, in the device's memory.
    pub captured: &'a Captured,
    /// Runs the session's graphs; a proposer adds slots of its own when it is made.
    pub engine: &'a mut Engine,
    /// The committed tokens.
    pub tokens: &'a [u32],
}

/// How the tokens of a draft are chosen.
pub(crate) enum DraftMode<'a> {
    /// The most likely ones. They have no `q`.
    Greedy,
    /// Drawn from [`Sampler::distribution`] of the drafter's own logits, with the target's options and history;
    /// that distribution is the `q`. A proposer that cannot may choose the most likely ones. The random
    /// numbers are independent of those that the sampler uses.
    Sampled { sampler: &'a Sampler, rng: &'a mut ChaCha8Rng },
}

/// One token of a draft.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proposed {
    pub token: u32,
    /// The drafter's probability of its most likely token here; 1 where it has none.
    pub p: f32,
    /// What the token was drawn from; `None` if it was not drawn but is the most likely one.
    pub q: Option<Distribution>,
}

/// What one step of a draft computed, for tests.
#[doc(hidden)]
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct DraftStep {
    /// The token that the step chose.
    pub token: u32,
    /// Its probability.
    pub p: f32,
    /// Scores: of all tokens, or of `ids`. Empty where they are not kept, like what follows.
    pub logits: Vec<f32>,
    /// Tokens that were scored; empty if all were.
    pub ids: Vec<u32>,
    /// The drafter's hidden state after its last norm.
    pub hidden: Vec<f32>,
    /// The next step's input.
    pub hidden_out: Vec<f32>,
}

/// Drafts for one session.
pub(crate) trait Propose: Send {
    /// Bytes of caches of its own.
    fn state_bytes(&self) -> u64 {
        0
    }

    /// Rows `rows` of the last step are now committed, at positions from `first_pos` on; `t.tokens` has them
    /// already. Called after every chunk of a prefill and after every verification, in order of position, before
    /// the next step or draft. `first_pos` may lie beyond the last position seen: what is between was never
    /// observed (a step was cancelled).
    ///
    /// Features of all these rows are in `t.captured`. Hidden states are there for rows inside
    /// [`Captured::hidden_rows`] only: of a prefill for the last row of its last chunk.
    fn observe(&mut self, _t: &mut Target<'_>, _rows: Range<u32>, _first_pos: u32) -> Result<()> {
        Ok(())
    }

    /// Appends at most `n` tokens to `out` that follow `token`, which belongs at position `t.tokens.len()` and
    /// is not computed yet. `n` is at least 1 and at most the `max_draft` of the setup. Fewer, or none, where
    /// the proposer knows no more: so also where it lost its state.
    fn draft(
        &mut self,
        t: &mut Target<'_>,
        token: u32,
        n: u32,
        how: DraftMode<'_>,
        out: &mut Vec<Proposed>,
    ) -> Result<()>;

    /// The session is now `len` tokens long: what was observed of later positions is void. After
    /// `lost`, what was observed of all positions is (a snapshot was restored).
    fn rewind(&mut self, _len: u32, _lost: bool) {}

    /// The session is `len` tokens long, and the drafter has seen them all, or had: what it keeps of them may be anything.
    /// For measuring behind a cache that was filled.
    fn assume(&mut self, _len: u32) -> Result<()> {
        Ok(())
    }

    /// As [`draft`](Self::draft) without a draw, with the values between where there are some. For tests.
    fn trace(&mut self, t: &mut Target<'_>, token: u32, n: u32) -> Result<Vec<DraftStep>> {
        let mut drafts = Vec::new();
        self.draft(t, token, n, DraftMode::Greedy, &mut drafts)?;
        let step = |draft: Proposed| DraftStep { token: draft.token, p: draft.p, ..DraftStep::default() };
        Ok(drafts.into_iter().map(step).collect())
    }
}
