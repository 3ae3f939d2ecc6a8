//! A conversation with a model: its cache, its graphs, and the one function that runs them.

mod evaluate;
mod generate;
mod options;
mod plan;
mod shift;
mod snapshot;
mod sparse;
mod speculate;
mod stats;
mod synthetic;
mod text;
mod trace;

pub use evaluate::{Evaluation, Pooling};
pub use generate::{Acceptance, GenerateOptions, Generation, Piece, StopReason};
pub use options::SessionOptions;
pub use plan::{AttentionPlan, DevicePlan, LayerClassPlan, MemoryPlan};
pub use shift::WhenFull;
pub use snapshot::Snapshot;
pub use sparse::{PrefillOptions, SparseLayer, SparsePrefill};
pub use stats::{GenerationStats, SpeculationStats};

use crate::cache::{CacheState, KvCache, LayerKv, RewindPastWindow};
use crate::ggml::{Backend, CancelFlag, Device, Engine};
use crate::graph::{Picks, RowViews, Scratch, Shape, StepInputs, TargetGraph, max_nodes};
use crate::model::Model;
use crate::{Error, Result};
use sparse::{SPARSE_TOKENS, SparseStep};
use speculate::{Drafting, max_draft};
use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

/// Graphs of up to this many tokens keep a place of their own: decode, and verification of drafts.
const SMALL: u32 = 32;

/// Stops a running computation from any thread.
///
/// The running [`Session`] call ends within one operation of the graph, keeps what is committed so far and
/// reports it. A request that finds nothing running stops the next call; [`reset`](Self::reset) takes it
/// back. Harmless after the session is gone.
#[derive(Clone, Debug)]
pub struct CancelHandle(CancelFlag);

impl CancelHandle {
    /// Asks the session to stop.
    pub fn cancel(&self) {
        self.0.set(true);
    }

    /// Takes back a request that has not been noticed yet.
    pub fn reset(&self) {
        self.0.set(false);
    }

    /// Whether a request is waiting to be noticed.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_set()
    }
}

/// One sequence of tokens, and the model's memory of it.
///
/// A session owns all it needs and shares the model's weights: sessions of one [`Model`] run side by side on
/// different threads.
pub struct Session {
    model: Model,
    options: SessionOptions,
    engine: Engine,
    cache: KvCache,
    state: CacheState,
    /// The committed tokens.
    tokens: Vec<u32>,
    /// Slots of the engine, by number of tokens; 0 is the slot of all larger graphs.
    slots: HashMap<u32, GraphSlot>,
    scratch: Scratch,
    logits: Vec<f32>,
    /// Where the newest token's logits are, if they stayed on the device: graph class and row.
    unread: Option<(u32, usize)>,
    /// They, once somebody has asked for them.
    late: OnceLock<Vec<f32>>,
    /// Whether graphs name likely tokens where no more is wanted.
    picks: bool,
    drafting: Option<Drafting>,
    cancel: CancelFlag,
    /// Whether attention of one token is computed in parts.
    cuts_attention: bool,
}

struct GraphSlot {
    index: usize,
    graph: Option<TargetGraph>,
}

const _: () = {
    const fn assert_send<T: Send + 'static>() {}
    const fn assert_sync<T: Send + Sync + Clone + 'static>() {}
    assert_send::<Session>();
    assert_sync::<CancelHandle>();
};

/// Which rows of a step's results are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    None,
    Last,
    All,
    /// All, and likely tokens of each.
    Picked(Picks),
}

impl Session {
    /// Starts an empty session.
    ///
    /// The memory of the cache, of prefill and of decoding is taken here, so that they do not fail half-way.
    /// [`evaluate`](Self::evaluate) and its kin need more, for the logits of every token, and take it when
    /// they are first used.
    ///
    /// # Errors
    /// [`Error::Option`] for options that cannot work, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Session> {
        let hparams = model.hparams();
        let state = options.cache_state(hparams)?;
        let kv = options.resolve_kv(model)?;
        let cache = KvCache::new(hparams, &kv, &state, &|i| model.placement().layer(i))?;
        let cancel = CancelFlag::default();
        let mut engine = engine(model, options.threads(), &cancel)?;
        let drafting = match &options.drafter {
            Some(drafter) => {
                let max_draft = max_draft(drafter, options.max_draft, &state);
                Some(Drafting::new(drafter, max_draft, model, &cache, &state, &mut engine)?)
            }
            None => None,
        };
        let cuts_attention = cuts_attention(options, &cache);
        let mut session = Session {
            model: model.clone(),
            // The types are settled: a fork has the same, whatever memory is left then.
            options: options.clone().kv(kv),
            engine,
            cache,
            state,
            tokens: Vec::new(),
            slots: HashMap::new(),
            scratch: Scratch::default(),
            logits: Vec::new(),
            unread: None,
            late: OnceLock::new(),
            picks: picks_on_device(model),
            drafting,
            cancel,
            cuts_attention,
        };
        let ladder = session.drafting.as_ref().map(|drafting| drafting.policy.ladder().to_vec());
        let ladder = ladder.as_deref().unwrap_or_default();
        for shape in largest(&session.model, &session.state, ladder, session.cuts_attention) {
            session.reserve(shape)?;
        }
        options.prefill.check()?;
        Ok(session)
    }

    /// Takes the memory of a graph, so that none fails in mid-conversation.
    fn reserve(&mut self, shape: Shape) -> Result<()> {
        let slot = self.slot(&shape)?;
        let captured = self.drafting.as_ref().map(|drafting| &drafting.captured);
        let (model, cache) = (&self.model, &self.cache);
        let build = || TargetGraph::build(model, cache, captured, shape).map(|(graph, _)| graph);
        self.engine.reserve(slot, build, "use a smaller n_batch or n_ctx")
    }

    /// The engine's slot for graphs of as many tokens as `shape` has.
    fn slot(&mut self, shape: &Shape) -> Result<usize> {
        let class = class(shape.n_tokens);
        if let Some(slot) = self.slots.get(&class) {
            return Ok(slot.index);
        }
        let index = self.engine.add_slot(max_nodes(self.model.hparams(), shape))?;
        self.slots.insert(class, GraphSlot { index, graph: None });
        Ok(index)
    }

    /// Runs the target over `tokens` at the end of the sequence: the one place where a target graph is
    /// computed. Nothing is committed. Returns the graph's class for [`read`](Self::read_rows).
    fn step(&mut self, tokens: &[u32], rows: Rows, keep_layers: bool) -> Result<u32> {
        self.step_sparse(tokens, rows, keep_layers, None)
    }

    /// As [`step`](Self::step); chunks of a prompt may leave out keys.
    fn step_sparse(
        &mut self,
        tokens: &[u32],
        rows: Rows,
        keep_layers: bool,
        sparse: Option<SparseStep>,
    ) -> Result<u32> {
        self.check_tokens(tokens)?;
        if self.take_cancel() {
            return Err(Error::Cancelled);
        }
        let n_tokens = tokens.len() as u32;
        // The step overwrites what the drafter has not looked at.
        self.observe()?;
        let span = self.state.begin(n_tokens)?;
        let n_rows = match rows {
            Rows::None => 0,
            Rows::Last => 1,
            Rows::All | Rows::Picked(_) => n_tokens,
        };
        let shape = Shape {
            n_tokens,
            view_full: self.state.full().n_view(span.end()),
            view_swa: self.state.swa().n_view(span.end()),
            n_rows,
            keep_layers,
            picks: match rows {
                Rows::Picked(picks) => Some(picks),
                _ => None,
            },
            row_views: attends_by_row(self.cuts_attention, n_tokens)
                .then(|| RowViews::new(&self.state, span)),
        };
        let class = class(n_tokens);
        // The step takes the place of those that stayed on the device.
        self.unread = None;
        self.late = OnceLock::new();
        let index = self.slot(&shape)?;
        // Decoding and verification read every key, whoever calls.
        let sparse = sparse.filter(|_| n_tokens >= SPARSE_TOKENS);
        self.load(class, index, shape, sparse)?;
        let Some(GraphSlot { graph: Some(graph), .. }) = self.slots.get(&class) else {
            return Err(Error::Ggml { op: "step", why: "the graph is not loaded".into() });
        };
        let wanted = [n_tokens - 1];
        let data = StepInputs { tokens, span, state: &self.state, rows: &wanted };
        graph.inputs.write(&mut self.engine, index, &data, &mut self.scratch)?;
        graph.inputs.write_sparse(&mut self.engine, index, span, sparse.map_or(0, |step| step.prompt_end))?;
        if let Some(drafting) = &mut self.drafting {
            drafting.stepped(n_tokens, rows);
        }
        // Picks are read at once. Who measures a chunk of a prompt wants it done.
        let computed = match rows {
            Rows::Picked(_) => self.engine.launch(index),
            _ => self.engine.compute(index),
        };
        match computed {
            Err(Error::Cancelled) => {
                self.take_cancel();
                Err(Error::Cancelled)
            }
            other => other.map(|()| class),
        }
    }

    /// Makes sure that the slot holds a graph of `shape`.
    fn load(&mut self, class: u32, index: usize, shape: Shape, sparse: Option<SparseStep>) -> Result<()> {
        let Some(slot) = self.slots.get_mut(&class) else { return Ok(()) };
        let report = sparse.is_some_and(|step| step.report);
        let sparse = sparse.map(|step| step.options);
        let same = |graph: &TargetGraph| {
            graph.shape == shape && graph.sparse == sparse && !(report && graph.reports.is_empty())
        };
        if slot.graph.as_ref().is_some_and(same) {
            return Ok(());
        }
        slot.graph = None;
        let captured = self.drafting.as_ref().map(|drafting| &drafting.captured);
        let (model, cache) = (&self.model, &self.cache);
        // Chunks and single tokens have their memory since `new`. The rest is checked before it is taken:
        // what the system promises and does not have would end the process.
        if shape.n_rows > 1 || shape.keep_layers || report || !(class == 0 || class == 1) {
            let build = || {
                TargetGraph::build_sparse(model, cache, captured, shape, sparse, report)
                    .map(|(graph, _)| graph)
            };
            self.engine.reserve(
                index,
                build,
                "evaluate fewer tokens at once, or use a smaller n_batch or n_ctx",
            )?;
        }
        let build = || {
            let (graph, target) = TargetGraph::build_sparse(model, cache, captured, shape, sparse, report)?;
            tracing::trace!(?shape, nodes = graph.n_nodes(), "graph built");
            Ok((graph, target))
        };
        slot.graph = Some(self.engine.build(index, build)?);
        Ok(())
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let n_vocab = self.model.hparams().n_vocab as usize;
        match tokens.iter().position(|&t| t as usize >= n_vocab) {
            Some(index) => Err(Error::InvalidToken { token: tokens[index], index, n_vocab }),
            None => Ok(()),
        }
    }

    /// Whether a cancellation was asked for; it is then noticed and forgotten.
    fn take_cancel(&self) -> bool {
        let set = self.cancel.is_set();
        self.cancel.set(false);
        set
    }

    /// Adds tokens to the sequence, in chunks of `n_batch`, and keeps the logits after the last one.
    ///
    /// # Errors
    /// [`Error::ContextFull`] and [`Error::InvalidToken`] before anything is computed;
    /// [`Error::Cancelled`] after a part: [`len`](Self::len) tells how much was kept.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<()> {
        self.prefill_with(tokens, |_| {})
    }

    /// As [`prefill`](Self::prefill); `progress` gets the number of tokens done after each chunk.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn prefill_with(&mut self, tokens: &[u32], progress: impl FnMut(usize)) -> Result<()> {
        let options = self.options.prefill.clone();
        self.prefill_as(tokens, &options, progress)
    }

    /// As [`prefill_with`](Self::prefill_with), with other options than the session's.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), and [`Error::Option`] for options that cannot work.
    pub fn prefill_as(
        &mut self,
        tokens: &[u32],
        options: &PrefillOptions,
        mut progress: impl FnMut(usize),
    ) -> Result<()> {
        options.check()?;
        self.check_tokens(tokens)?;
        self.check_fits(tokens.len())?;
        let n_batch = self.state.n_batch() as usize;
        let sparse = options.step(self.len() + tokens.len());
        let mut done = 0;
        for chunk in tokens.chunks(n_batch) {
            let is_last = done + chunk.len() == tokens.len();
            self.forget_logits();
            let rows = if is_last { Rows::Last } else { Rows::None };
            let sparse = sparse.filter(|step| self.len() + chunk.len() >= step.from as usize);
            let class = self.step_sparse(chunk, rows, false, sparse)?;
            self.commit(chunk);
            if is_last {
                self.read_logits(class, 0)?;
            }
            done += chunk.len();
            progress(done);
        }
        // Part of reading the prompt, as it is for all chunks but the last: no round of drafts should answer for it.
        self.observe()
    }

    fn check_fits(&self, n: usize) -> Result<()> {
        if n > self.state.remaining() as usize {
            let (used, n_ctx) = (self.len(), self.n_ctx() as usize);
            return Err(Error::ContextFull { used, requested: n, n_ctx });
        }
        Ok(())
    }

    fn commit(&mut self, tokens: &[u32]) {
        self.state.commit(tokens.len() as u32);
        self.tokens.extend_from_slice(tokens);
        if let Some(drafting) = &mut self.drafting {
            drafting.committed(tokens.len() as u32);
        }
    }

    fn forget_logits(&mut self) {
        self.logits.clear();
        self.unread = None;
        self.late = OnceLock::new();
    }

    /// Bans the tokens that the model's file forbids.
    fn suppress(&self, logits: &mut [f32]) {
        for &token in self.model.tokenizer().suppressed() {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    /// Logits after the newest token, softcapped, one for each token of the vocabulary; the model's
    /// forbidden tokens have -inf. Empty until something was computed since the sequence last changed.
    pub fn logits(&self) -> &[f32] {
        let Some((class, row)) = self.unread else { return &self.logits };
        self.late.get_or_init(|| {
            let mut logits = Vec::new();
            match self.copy_logits(class, row, &mut logits) {
                Ok(()) => logits,
                Err(e) => {
                    tracing::warn!("the logits could not be read: {e}");
                    Vec::new()
                }
            }
        })
    }

    /// Shortens the sequence to its first `len` tokens. Longer sequences only.
    ///
    /// # Errors
    /// [`RewindPastWindow`] if `len` is below [`truncate_limit`](Self::truncate_limit); nothing changes then.
    /// `len = 0` always works.
    pub fn truncate(&mut self, len: usize) -> Result<(), RewindPastWindow> {
        if len < self.tokens.len() {
            self.state.truncate(len as u32)?;
            let had = self.tokens.len() as u32;
            self.tokens.truncate(len);
            self.forget_logits();
            if let Some(drafting) = &mut self.drafting {
                drafting.rewind(len as u32, had, false);
            }
        }
        Ok(())
    }

    /// The shortest sequence, besides the empty one, that [`truncate`](Self::truncate) can go back to. The
    /// sliding-window layers keep little more than their window: before this, they hold no longer what a token would
    /// see. A [`snapshot`](Self::snapshot) taken in time goes back further.
    pub fn truncate_limit(&self) -> usize {
        (self.state.oldest() as usize).min(self.len())
    }

    /// Keeps the longest beginning that the sequence shares with `tokens` and drops the rest. Returns its
    /// length: what follows it in `tokens` is what remains to be computed.
    ///
    /// Where the sliding-window layers have lost what the shared part needs, nothing is kept: take a
    /// [`snapshot`](Self::snapshot) where a conversation may branch.
    pub fn reuse_prefix(&mut self, tokens: &[u32]) -> usize {
        let shared = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        if self.truncate(shared).is_err() {
            self.clear();
        }
        self.len()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        // Length 0 is always reachable.
        let _ = self.state.truncate(0);
        let had = self.tokens.len() as u32;
        self.tokens.clear();
        self.forget_logits();
        if let Some(drafting) = &mut self.drafting {
            drafting.rewind(0, had, false);
        }
    }

    /// The tokens of the sequence.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens in the sequence.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the sequence is empty.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Capacity in tokens.
    pub fn n_ctx(&self) -> u32 {
        self.state.n_ctx()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Bytes of the KV cache, and of what a drafter keeps.
    pub fn kv_bytes(&self) -> u64 {
        self.cache.n_bytes() + self.drafting.as_ref().map_or(0, Drafting::state_bytes)
    }

    /// Bytes of memory for intermediate values.
    pub fn compute_bytes(&self) -> u64 {
        self.engine.compute_bytes()
    }

    /// Graphs built so far, the drafter's among them. Decoding builds one for every 256 tokens.
    #[doc(hidden)]
    pub fn graphs_built(&self) -> u64 {
        self.engine.graphs_loaded()
    }

    /// A handle that stops this session's computations from any thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle(self.cancel.clone())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("model", &self.model)
            .field("len", &self.len())
            .field("n_ctx", &self.n_ctx())
            .field("kv_bytes", &self.kv_bytes())
            .finish_non_exhaustive()
    }
}

/// The backends that compute a model: its devices, and the CPU for what they cannot do.
fn engine(model: &Model, n_threads: usize, cancel: &CancelFlag) -> Result<Engine> {
    let mut backends = Vec::new();
    for device in model.devices().into_iter().filter(|device| !device.uses_host_memory()) {
        backends.push(Backend::new(device, n_threads, cancel)?);
    }
    backends.push(Backend::new(Device::cpu()?, n_threads, cancel)?);
    Engine::new(backends, cancel.clone())
}

/// Slots hold graphs of one number of tokens; all larger graphs share one.
fn class(n_tokens: u32) -> u32 {
    if n_tokens <= SMALL { n_tokens } else { 0 }
}

/// Whether attention of one token is computed otherwise than that of several, which larger graphs must then
/// imitate: see [`RowViews`]. Over plain floats one thread has one way; other devices have ways of their own.
fn cuts_attention(options: &SessionOptions, cache: &KvCache) -> bool {
    let on_cpu = |kv: &LayerKv| kv.device.uses_host_memory();
    cache.tensors().any(|(_, kv)| on_cpu(kv) && (options.threads() > 1 || !kv.is_plain()))
}

/// Whether rows of a graph of `n_tokens` attend one by one. Only small graphs are compared with plain decoding.
fn attends_by_row(cuts_attention: bool, n_tokens: u32) -> bool {
    cuts_attention && (2..=SMALL).contains(&n_tokens)
}

/// Whether the device may choose likely tokens: where logits would have to come from another memory.
fn picks_on_device(model: &Model) -> bool {
    !model.device().uses_host_memory()
}

/// The largest graphs that a full cache will need: for prefill, for decoding, and for drafts of each size.
fn largest(model: &Model, state: &CacheState, drafts: &[u32], cuts_attention: bool) -> Vec<Shape> {
    let (view_full, view_swa) = (state.full().slots(), state.swa().slots());
    let shape = |n_tokens, n_rows, picks| {
        let shape =
            Shape { n_tokens, view_full, view_swa, n_rows, keep_layers: false, picks, row_views: None };
        let by_row = attends_by_row(cuts_attention, n_tokens);
        Shape { row_views: by_row.then(|| RowViews::largest(&shape)), ..shape }
    };
    let picks = picks_on_device(model).then_some(Picks::Best);
    let verify = drafts.iter().map(|n| shape(n + 1, n + 1, picks));
    [shape(state.n_batch(), 1, None), shape(1, 1, picks)].into_iter().chain(verify).collect()
}

#[cfg(test)]
#[path = "picks_tests.rs"]
mod tests;
