//! Who computes what, and when: a fixed number of sessions, each on a thread of its own, and a bounded queue.

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::prefix::{PrefixStore, common_prefix};
use crate::worker::Worker;
use gemma4::{
    CancelHandle, GenerateOptions, GenerationStats, Model, Piece, Session, SessionOptions, StopReason,
};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// What a request asks the sessions to do.
#[derive(Clone, Debug)]
pub struct Task {
    /// The whole prompt; never empty.
    pub prompt: Vec<u32>,
    /// Where another conversation may branch off: after the system prompt.
    pub checkpoint: Option<usize>,
    /// How to go on.
    pub options: GenerateOptions,
    /// Whether what other requests have computed may be used.
    pub use_cache: bool,
}

/// What a session reports while it answers.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one a token, and moved once
pub enum Event {
    /// A token.
    Piece(Piece),
    /// Text that was held back, without a token.
    Text(String),
    /// The end.
    Done(Outcome),
    /// It ended with an error.
    Failed(gemma4::Error),
}

/// How an answer ended and what it took.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub reason: StopReason,
    /// Tokens of the prompt that were not computed, because a session knew them.
    pub cached: usize,
    /// Time from the start to the end of the prompt.
    pub prompt_time: Duration,
    /// Time from the start to the first token.
    pub first_token: Option<Duration>,
    /// What the generation cost. Of its prompt figures only the caller's own are right.
    pub stats: GenerationStats,
}

/// A task on its way.
pub(crate) struct Job {
    pub id: u64,
    pub task: Task,
    pub events: mpsc::UnboundedSender<Event>,
    /// The place in the queue; given back when the job is dropped.
    _place: Place,
}

/// A place among the running and waiting requests.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

struct Slot {
    assigned: Option<Job>,
    running: Option<u64>,
    /// What the session holds while it is idle.
    tokens: Vec<u32>,
    cancel: CancelHandle,
    /// Which use this was, to prefer those that rested longest.
    used: u64,
}

impl Slot {
    fn is_idle(&self) -> bool {
        self.assigned.is_none() && self.running.is_none()
    }
}

struct State {
    queue: VecDeque<Job>,
    slots: Vec<Slot>,
    closing: bool,
    next_id: u64,
    now: u64,
    /// Moving average of how long a request takes.
    seconds: f64,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    pub store: PrefixStore,
    pub metrics: Arc<Metrics>,
}

/// Sizes of a [`Pool`].
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Requests answered at the same time; each has a session.
    pub parallel: usize,
    /// Requests that may wait beside those.
    pub queue: usize,
    /// Bytes of snapshots kept of earlier prompts.
    pub cache_bytes: u64,
}

/// The sessions and their queue.
pub struct Pool {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    config: PoolConfig,
}

/// A task that was accepted. Dropping it cancels the task.
pub struct Ticket {
    events: mpsc::UnboundedReceiver<Event>,
    shared: Arc<Shared>,
    id: u64,
    is_over: bool,
}

impl Ticket {
    /// What happens next to the task; `None` after its end.
    pub async fn next(&mut self) -> Option<Event> {
        if self.is_over {
            return None;
        }
        let event = self.events.recv().await;
        self.is_over = !matches!(event, Some(Event::Piece(_) | Event::Text(_)));
        event
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.cancel(self.id);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops a waiting job, or stops a running one.
    fn cancel(&self, id: u64) {
        let mut state = self.lock();
        let waiting = state.queue.iter().position(|job| job.id == id);
        if let Some(at) = waiting {
            state.queue.remove(at);
            self.metrics.cancelled.inc();
        }
        for slot in &mut state.slots {
            if slot.assigned.as_ref().is_some_and(|job| job.id == id) {
                slot.assigned = None;
                self.metrics.cancelled.inc();
            } else if slot.running == Some(id) {
                slot.cancel.cancel();
                self.metrics.cancelled.inc();
            }
        }
        if state.closing {
            self.wake.notify_all();
        }
    }

    /// The next job of a slot; `None` when the pool closes and none is left.
    pub fn next(&self, index: usize) -> Option<Job> {
        let mut state = self.lock();
        loop {
            let from_queue =
                if state.slots[index].assigned.is_none() { state.queue.pop_front() } else { None };
            let slot = &mut state.slots[index];
            if let Some(job) = slot.assigned.take().or(from_queue) {
                slot.running = Some(job.id);
                return Some(job);
            }
            if state.closing {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A slot has ended its job, after `seconds`, and holds these tokens now.
    pub fn finished(&self, index: usize, tokens: &[u32], cancel: &CancelHandle, seconds: f64) {
        let mut state = self.lock();
        state.now += 1;
        let now = state.now;
        state.seconds += 0.2 * (seconds - state.seconds);
        let slot = &mut state.slots[index];
        slot.running = None;
        slot.used = now;
        slot.tokens.clear();
        slot.tokens.extend_from_slice(tokens);
        // A request that went away a moment ago must not stop the next one.
        cancel.reset();
        slot.cancel = cancel.clone();
    }
}

impl Pool {
    /// Starts the sessions.
    ///
    /// # Errors
    /// As [`Session::new`]; [`gemma4::Error::Io`] if the system gives no thread.
    pub fn new(
        model: &Model,
        options: &SessionOptions,
        config: PoolConfig,
        metrics: Arc<Metrics>,
    ) -> gemma4::Result<Pool> {
        let sessions: Vec<_> =
            (0..config.parallel.max(1)).map(|_| Session::new(model, options)).collect::<Result<_, _>>()?;
        let slots = sessions
            .iter()
            .map(|session| Slot {
                assigned: None,
                running: None,
                tokens: Vec::new(),
                cancel: session.cancel_handle(),
                used: 0,
            })
            .collect();
        let state = State { queue: VecDeque::new(), slots, closing: false, next_id: 0, now: 0, seconds: 1.0 };
        let places = Arc::new(Semaphore::new(config.queue + sessions.len()));
        let store = PrefixStore::new(config.cache_bytes, model.hparams().n_vocab);
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), store, metrics });
        let pool = Pool { shared, places, threads: Mutex::default(), config };
        for (index, session) in sessions.into_iter().enumerate() {
            let worker = Worker::new(Arc::clone(&pool.shared), index, session, options.clone());
            let thread = std::thread::Builder::new().name(format!("session {index}"));
            let handle = thread.spawn(move || worker.run()).map_err(|source| gemma4::Error::Io {
                action: "start a thread for",
                path: model.path().to_owned(),
                source,
            })?;
            pool.threads.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        }
        Ok(pool)
    }

    /// Takes a place among the running and waiting requests.
    ///
    /// # Errors
    /// 429 if there is none, 503 if the pool is closing.
    pub fn reserve(&self) -> Result<Place, ApiError> {
        let state = self.shared.lock();
        if state.closing {
            return Err(ApiError::closing());
        }
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => Ok(Place { _permit: permit }),
            Err(_) => {
                let rounds = 1.0 + state.queue.len() as f64 / state.slots.len() as f64;
                self.shared.metrics.rejected.inc();
                Err(ApiError::busy((state.seconds * rounds).ceil().clamp(1.0, 120.0) as u64))
            }
        }
    }

    /// Gives a task to the idle session that knows most of its prompt, or puts it into the queue.
    pub fn submit(&self, place: Place, task: Task) -> Ticket {
        let (sender, events) = mpsc::unbounded_channel();
        let mut state = self.shared.lock();
        state.next_id += 1;
        let id = state.next_id;
        let job = Job { id, task, events: sender, _place: place };
        // Nobody overtakes those who wait.
        let may_start = state.queue.is_empty();
        let best =
            state.slots.iter_mut().filter(|slot| may_start && slot.is_idle()).max_by_key(|slot| {
                (common_prefix(&slot.tokens, &job.task.prompt), std::cmp::Reverse(slot.used))
            });
        match best {
            Some(slot) => slot.assigned = Some(job),
            None => state.queue.push_back(job),
        }
        self.shared.wake.notify_all();
        Ticket { events, shared: Arc::clone(&self.shared), id, is_over: false }
    }

    /// Requests that are running, and that are waiting.
    pub fn load(&self) -> (usize, usize) {
        let state = self.shared.lock();
        let assigned = state.slots.iter().filter(|slot| !slot.is_idle()).count();
        (assigned, state.queue.len())
    }

    /// Bytes and number of the snapshots kept.
    pub fn cache(&self) -> (u64, usize) {
        self.shared.store.usage()
    }

    /// The sizes it was made with.
    pub fn config(&self) -> PoolConfig {
        self.config
    }

    /// Accepts no more tasks. Those accepted are finished.
    pub fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
    }

    /// Stops what is running and drops what waits.
    pub fn abort(&self) {
        self.close();
        let mut state = self.shared.lock();
        state.queue.clear();
        for slot in &mut state.slots {
            slot.assigned = None;
            if slot.running.is_some() {
                slot.cancel.cancel();
            }
        }
        self.shared.wake.notify_all();
    }

    /// Waits until the threads have ended, after [`close`](Self::close).
    pub fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.abort();
        self.join();
    }
}
