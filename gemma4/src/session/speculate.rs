//! A session's drafter at work: who has seen which rows, and what the next round is.

use super::{GraphSlot, Rows, Session};
use crate::cache::{CacheState, KvCache};
use crate::drafter::{DraftMode, Drafter, Policy, Propose, Proposed, Round, Setup, Speculation, Target};
use crate::ggml::Engine;
use crate::graph::{Captured, Picks};
use crate::model::Model;
use crate::sampling::{Likely, Sampler};
use crate::{Error, Result};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A session's drafter, and what it knows.
pub(super) struct Drafting {
    pub captured: Captured,
    pub proposer: Box<dyn Propose>,
    /// Rows of the last step that are committed and that the proposer has not seen yet.
    unseen: Range<u32>,
    /// Rows of the last step that are committed.
    committed: u32,
    pub policy: Policy,
    max_draft: u32,
}

/// The most tokens of a draft in a session, by all that limits it.
pub(super) fn max_draft(drafter: &Drafter, wanted: Option<u32>, state: &CacheState) -> u32 {
    let graph = super::SMALL.min(state.n_batch()) - 1;
    drafter.max_draft().min(wanted.unwrap_or(u32::MAX)).min(graph)
}

impl Drafting {
    pub fn new(
        drafter: &Drafter,
        max_draft: u32,
        model: &Model,
        cache: &KvCache,
        state: &CacheState,
        engine: &mut Engine,
    ) -> Result<Drafting> {
        let source = drafter.source();
        source.check(model)?;
        let captured = Captured::new(&source.needs(), model.hparams(), state.n_batch(), &model.device())?;
        let setup = Setup { model, cache, state, captured: &captured, max_draft };
        let proposer = source.start(&setup, engine)?;
        let policy = Policy::new(max_draft);
        Ok(Drafting { captured, proposer, unseen: 0..0, committed: 0, policy, max_draft })
    }

    /// Bytes of memory that are neither the model's nor intermediate values.
    pub fn state_bytes(&self) -> u64 {
        self.captured.n_bytes() + self.proposer.state_bytes()
    }

    /// A step has left new rows behind.
    pub fn stepped(&mut self, n_tokens: u32, rows: Rows) {
        (self.unseen, self.committed) = (0..0, 0);
        self.captured.set_hidden_rows(match rows {
            Rows::None => 0..0,
            Rows::Last => n_tokens - 1..n_tokens,
            Rows::All | Rows::Picked(_) => 0..n_tokens,
        });
    }

    /// The next `n` rows are part of the sequence.
    pub fn committed(&mut self, n: u32) {
        if self.unseen.is_empty() {
            self.unseen = self.committed..self.committed;
        }
        self.committed += n;
        self.unseen.end = self.committed;
    }

    /// The sequence was cut to `len` tokens; it had `had`.
    pub fn rewind(&mut self, len: u32, had: u32, lost: bool) {
        let n_unseen = self.unseen.end - self.unseen.start;
        if lost || len == 0 {
            self.unseen = 0..0;
        } else {
            let cut = had.saturating_sub(len).min(n_unseen);
            self.unseen.end -= cut;
        }
        self.proposer.rewind(len, lost);
    }
}

/// One pass of the target in a generation: what was drafted, and how far its rows are used.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// Where the results are.
    class: u32,
    drafts: Vec<Proposed>,
    /// Likely tokens of each row and their probabilities, if the device was asked.
    picks: Vec<Likely>,
    /// The next row to use; row 0 is the known token's.
    row: usize,
    round: Round,
}

impl Block {
    /// Whether the next row was computed for `token`.
    pub fn continues_with(&self, token: u32) -> bool {
        self.row > 0 && self.drafts.get(self.row - 1).is_some_and(|draft| draft.token == token)
    }

    /// The draft that the last used row decides about, and its position from 0 on.
    pub fn judged(&self) -> Option<(usize, &Proposed)> {
        let i = self.row.checked_sub(1)?;
        Some((i, self.drafts.get(i)?))
    }

    /// Likely tokens after the last used row, if the device has named some that can be used.
    pub fn likely(&self) -> Option<&Likely> {
        self.picks.get(self.row.checked_sub(1)?)
    }

    pub fn n_drafts(&self) -> usize {
        self.drafts.len()
    }
}

/// What limits a round, and how its tokens are chosen.
pub(super) struct RoundOptions<'a> {
    pub how: Speculation,
    /// The most drafts that the generation has use for.
    pub limit: u32,
    /// Drafts are drawn and not just the likeliest.
    pub draw: Option<(&'a Sampler, &'a mut ChaCha8Rng)>,
    /// Whether nothing follows an end token.
    pub ends: bool,
    /// The likely tokens of a row that are all that is wanted of it.
    pub picks: Option<Picks>,
}

/// Times of a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundTimes {
    pub draft: Duration,
    pub verify: Duration,
}

impl Session {
    /// Shows the drafter what was committed since it last looked. Cheap when there is nothing.
    pub(super) fn observe(&mut self) -> Result<()> {
        let Some(drafting) = &mut self.drafting else { return Ok(()) };
        if drafting.unseen.is_empty() {
            return Ok(());
        }
        let rows = std::mem::replace(&mut drafting.unseen, drafting.committed..drafting.committed);
        let first_pos = self.tokens.len() as u32 - (rows.end - rows.start);
        let Some((proposer, mut target)) = self.drafter_at_work() else { return Ok(()) };
        match proposer.observe(&mut target, rows, first_pos) {
            Err(Error::Cancelled) => {
                // The request is still there for the next step to notice. What the drafter saw of these
                // rows is anybody's guess.
                proposer.rewind(target.tokens.len() as u32, true);
                Ok(())
            }
            other => other,
        }
    }

    /// The session's drafter and what it sees.
    pub(super) fn drafter_at_work(&mut self) -> Option<(&mut dyn Propose, Target<'_>)> {
        let drafting = self.drafting.as_mut()?;
        let target = Target {
            model: &self.model,
            cache: &self.cache,
            state: &self.state,
            captured: &drafting.captured,
            engine: &mut self.engine,
            tokens: &self.tokens,
        };
        Some((&mut *drafting.proposer, target))
    }

    /// The drafts that follow `token`, which is not computed yet.
    fn draft(&mut self, token: u32, options: RoundOptions<'_>) -> Result<Vec<Proposed>> {
        let mut drafts = Vec::new();
        // Without a drafter, without room, or without a use.
        let room = self.state.remaining().saturating_sub(1);
        let Some(drafting) = &mut self.drafting else { return Ok(drafts) };
        let limit = options.limit.min(room).min(drafting.max_draft);
        let n = drafting.policy.choose(options.how, limit);
        if n == 0 {
            return Ok(drafts);
        }
        let Some((proposer, mut target)) = self.drafter_at_work() else { return Ok(drafts) };
        let mode = match options.draw {
            Some((sampler, rng)) => DraftMode::Sampled { sampler, rng },
            None => DraftMode::Greedy,
        };
        match proposer.draft(&mut target, token, n, mode, &mut drafts) {
            // The next step notices the request.
            Err(Error::Cancelled) => drafts.clear(),
            other => other?,
        }
        // Drafters of the user's own may return anything.
        let n_vocab = self.model.hparams().n_vocab;
        let is_token = |draft: &Proposed| draft.token < n_vocab;
        let valid = drafts.iter().position(|draft| !is_token(draft)).unwrap_or(drafts.len());
        let tokenizer = self.model.tokenizer();
        let end = drafts.iter().position(|draft| options.ends && tokenizer.is_eog(draft.token));
        let useful = valid.min(end.map_or(usize::MAX, |i| i + 1)).min(n as usize);
        if let Some(drafting) = &self.drafting {
            drafts.truncate(drafting.policy.usable(options.how, useful as u32) as usize);
        }
        Ok(drafts)
    }

    /// Drafts behind `token`, and runs the target over it and the drafts. Nothing is committed: that is up to
    /// [`use_row`](Self::use_row).
    pub(super) fn begin_round(
        &mut self,
        token: u32,
        options: RoundOptions<'_>,
        block: &mut Block,
    ) -> Result<RoundTimes> {
        let started = Instant::now();
        let (loaded, settling) = (self.engine.graphs_loaded(), self.engine.settling_runs());
        let building = self.engine.building();
        *block = Block::default();
        match &mut self.drafting {
            Some(drafting) if !drafting.policy.watches() => {
                drafting.unseen = drafting.committed..drafting.committed;
            }
            _ => self.observe()?,
        }
        let rows = options.picks.filter(|_| self.picks).map_or(Rows::All, Rows::Picked);
        let drafts = self.draft(token, options)?;
        let draft = started.elapsed();
        let draft_building = self.engine.building();
        let mut tokens = Vec::with_capacity(1 + drafts.len());
        tokens.push(token);
        tokens.extend(drafts.iter().map(|draft| draft.token));
        let started = Instant::now();
        let class = self.step(&tokens, rows, false)?;
        let picks = self.read_picks(class)?;
        let verify = started.elapsed();
        let round = Round {
            drafted: drafts.len() as u32,
            draft: draft.saturating_sub(draft_building - building).as_secs_f64(),
            verify: verify.saturating_sub(self.engine.building() - draft_building).as_secs_f64(),
            is_first: self.engine.graphs_loaded() != loaded,
            is_settling: self.engine.settling_runs() != settling,
        };
        if let Some(drafting) = &mut self.drafting {
            drafting.policy.measured(&round);
        }
        *block = Block { class, drafts, picks, row: 0, round };
        Ok(RoundTimes { draft, verify })
    }

    /// Commits the next row of the block, which is `token`'s, and reads its logits unless its likely tokens will do.
    pub(super) fn use_row(&mut self, token: u32, block: &mut Block) -> Result<()> {
        self.commit(&[token]);
        self.forget_logits();
        self.unread = Some((block.class, block.row));
        block.row += 1;
        if block.likely().is_none() {
            self.read_unread()?;
        }
        if let Some(drafting) = &mut self.drafting {
            drafting.policy.yielded(&block.round);
        }
        Ok(())
    }

    /// Says whether draft `i` of the round, from 0 on, stood.
    pub(super) fn judged(&mut self, i: usize, accepted: bool) {
        if let Some(drafting) = &mut self.drafting {
            drafting.policy.judged(i, accepted);
        }
    }

    /// What a step without drafts takes, if that is known.
    pub(super) fn plain_step(&self) -> Option<Duration> {
        let seconds = self.drafting.as_ref()?.policy.plain_step()?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// The last step's rows are not what the drafter should see.
    pub(super) fn forget_unseen(&mut self) {
        if let Some(drafting) = &mut self.drafting {
            drafting.stepped(1, Rows::None);
        }
    }

    /// Reads the newest token's logits, if they stayed on the device.
    pub(super) fn read_unread(&mut self) -> Result<()> {
        match self.unread.take() {
            Some((class, row)) => self.read_logits(class, row),
            None => Ok(()),
        }
    }

    /// Likely tokens of the last step's rows; none if they were not asked for, or if a row has none that can be chosen.
    pub(super) fn read_picks(&mut self, class: u32) -> Result<Vec<Likely>> {
        let Some(GraphSlot { index, graph: Some(graph) }) = self.slots.get(&class) else {
            return Ok(Vec::new());
        };
        let Some(picked) = &graph.picked else { return Ok(Vec::new()) };
        let n = picked.ids.n_elements() as usize;
        let (mut ids, mut p) = (vec![0i32; n], vec![0f32; n]);
        self.engine.read(*index, &picked.ids, &mut ids)?;
        self.engine.read(*index, &picked.p, &mut p)?;
        let k = (n / graph.shape.n_rows.max(1) as usize).max(1);
        let forbidden = self.model.tokenizer().suppressed();
        let row = |(ids, p): (&[i32], &[f32])| {
            // Rows without numbers have no probabilities either: the sampler says what is wrong with them.
            if p.iter().any(|p| !(0.0..=1.0).contains(p)) {
                return None;
            }
            let pairs = ids.iter().zip(p).filter_map(|(&id, &p)| Some((u32::try_from(id).ok()?, p)));
            let likely: Likely = pairs.filter(|&(id, p)| p > 0.0 && !forbidden.contains(&id)).collect();
            (!likely.is_empty()).then_some(likely)
        };
        Ok(ids.chunks(k).zip(p.chunks(k)).map(row).collect::<Option<_>>().unwrap_or_default())
    }

    /// Reads logits of a row of the last step, with the model's forbidden tokens at -inf.
    pub(super) fn read_logits(&mut self, class: u32, row: usize) -> Result<()> {
        let mut logits = std::mem::take(&mut self.logits);
        let read = self.copy_logits(class, row, &mut logits);
        self.logits = logits;
        read
    }

    /// As [`read_logits`](Self::read_logits), to another place. Nothing is written if the last step had no logits.
    pub(super) fn copy_logits(&self, class: u32, row: usize, out: &mut Vec<f32>) -> Result<()> {
        let n_vocab = self.model.hparams().n_vocab as usize;
        let Some(GraphSlot { index, graph: Some(graph) }) = self.slots.get(&class) else { return Ok(()) };
        let Some(logits) = &graph.logits else { return Ok(()) };
        out.resize(n_vocab, 0.0);
        self.engine.read_at(*index, logits, row * n_vocab * size_of::<f32>(), out)?;
        self.suppress(out);
        Ok(())
    }
}
