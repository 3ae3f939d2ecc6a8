//! One session and the thread that owns it.

use crate::pool::{Event, Job, Outcome, Shared, Task};
use crate::prefix::common_prefix;
use gemma4::{Error, Result, Session, SessionOptions, Snapshot, StopReason};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;

/// Shorter memories are computed again sooner than kept.
const WORTH_KEEPING: usize = 64;

pub(crate) struct Worker {
    shared: Arc<Shared>,
    index: usize,
    session: Session,
    options: SessionOptions,
    /// Length of the prompt of the last job: what follows in the session is its answer.
    prompt_len: usize,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, index: usize, session: Session, options: SessionOptions) -> Worker {
        Worker { shared, index, session, options, prompt_len: 0 }
    }

    /// Works until the pool closes.
    pub fn run(mut self) {
        while let Some(job) = self.shared.next(self.index) {
            let started = Instant::now();
            if catch_unwind(AssertUnwindSafe(|| self.answer(&job))).is_err() {
                // The client sees its events end. The session's state is unknown: start afresh.
                tracing::error!(session = self.index, "a request failed inside the program");
                let _ = job.events.send(Event::Failed(bug()));
                match Session::new(self.session.model(), &self.options) {
                    Ok(session) => self.session = session,
                    Err(e) => tracing::error!("cannot start the session again: {e}"),
                }
            }
            let seconds = started.elapsed().as_secs_f64();
            let cancel = self.session.cancel_handle();
            self.shared.finished(self.index, self.session.tokens(), &cancel, seconds);
        }
    }

    fn answer(&mut self, job: &Job) {
        let event = match self.generate(&job.task, &job.events) {
            Ok(outcome) => Event::Done(outcome),
            Err(e) => Event::Failed(e),
        };
        // Nobody listens if the client went away.
        let _ = job.events.send(event);
    }

    fn generate(&mut self, task: &Task, events: &UnboundedSender<Event>) -> Result<Outcome> {
        let started = Instant::now();
        let cached = self.adopt(task);
        self.prompt_len = task.prompt.len();
        match self.read(task, cached) {
            Err(Error::Cancelled) => return Ok(cancelled(cached, started)),
            other => other?,
        }
        let prompt_time = started.elapsed();
        let mut generation = self.session.generate(&[], &task.options)?;
        let mut first_token = None;
        while let Some(piece) = generation.next() {
            first_token.get_or_insert_with(|| started.elapsed());
            // A generation that ends without a token of its own repeats the last one.
            let event = match generation.stop_reason() {
                Some(StopReason::ContextFull | StopReason::Cancelled) => Event::Text(piece?.text),
                _ => Event::Piece(piece?),
            };
            if events.send(event).is_err() {
                break;
            }
        }
        let reason = generation.stop_reason().cloned().unwrap_or(StopReason::Cancelled);
        let stats = generation.stats();
        self.shared.metrics.answered(task.prompt.len(), cached, stats.generated_tokens, first_token);
        Ok(Outcome { reason, cached, prompt_time, first_token, stats })
    }

    /// Computes the rest of the prompt, and keeps snapshots where conversations may branch.
    fn read(&mut self, task: &Task, cached: usize) -> Result<()> {
        let mut done = cached;
        // Where the sliding window has passed a branch, only a snapshot leads back to it.
        let needs_snapshots = task.prompt.len() > self.window();
        if let Some(at) = task.checkpoint.filter(|&at| needs_snapshots && at > done) {
            self.session.prefill(&task.prompt[done..at])?;
            done = at;
            self.keep();
        }
        self.session.prefill(&task.prompt[done..])?;
        if needs_snapshots {
            self.keep();
        }
        Ok(())
    }

    /// Makes the session hold as much as possible of the prompt's beginning, and returns how much.
    fn adopt(&mut self, task: &Task) -> usize {
        let prompt = &task.prompt;
        let held = common_prefix(self.session.tokens(), prompt);
        let len = self.session.len();
        // An answer that is replaced by its cleaned form is no loss; another conversation is.
        let is_branch = held < self.prompt_len.min(len);
        if is_branch && len - held >= WORTH_KEEPING {
            self.keep();
        }
        if !task.use_cache {
            self.session.clear();
            return 0;
        }
        if let Some(found) = self.shared.store.best(prompt, self.window(), held) {
            self.restore(&found);
        }
        let mut kept = self.session.reuse_prefix(prompt);
        // The window may have moved on: then the session lost everything, and a snapshot may still help.
        if kept < held
            && let Some(found) = self.shared.store.best(prompt, self.window(), kept)
        {
            self.restore(&found);
            kept = self.session.reuse_prefix(prompt);
        }
        if kept == prompt.len() && self.session.logits().is_empty() {
            // The last token is computed again for its logits.
            kept = self.session.reuse_prefix(&prompt[..kept - 1]);
        }
        kept
    }

    fn restore(&mut self, found: &Snapshot) {
        if let Err(e) = self.session.restore(found) {
            tracing::warn!("a snapshot does not restore: {e}");
        }
    }

    /// Puts a snapshot of the session into the store, if there is room.
    fn keep(&mut self) {
        let len = self.session.len();
        let share = len as f64 / f64::from(self.session.n_ctx());
        let expected = (self.session.kv_bytes() as f64 * share) as u64;
        let store = &self.shared.store;
        if len < WORTH_KEEPING || !store.has_room_for(expected) || store.contains(self.session.tokens()) {
            return;
        }
        match self.session.snapshot() {
            Ok(snapshot) => store.insert(snapshot),
            Err(e) => tracing::warn!("no snapshot could be taken: {e}"),
        }
    }

    fn window(&self) -> usize {
        self.session.model().hparams().window as usize
    }
}

fn cancelled(cached: usize, started: Instant) -> Outcome {
    Outcome {
        reason: StopReason::Cancelled,
        cached,
        prompt_time: started.elapsed(),
        first_token: None,
        stats: gemma4::GenerationStats::default(),
    }
}

fn bug() -> Error {
    Error::Ggml { op: "generate", why: "the program failed; its log says where".into() }
}
