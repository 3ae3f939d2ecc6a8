//! Drafting with DFlash, which takes in the target's layers at every position and drafts a block at once.

use super::draw::{LIKELY, draw};
use super::slots::Slots;
use super::{DraftMode, DrafterOptions, DrafterPlan, Propose, Proposed, Setup, Source, Target};
use crate::cache::{CacheState, Geometry, KvCache, KvConfig};
use crate::ggml::{Engine, Graph, Tensor};
use crate::graph::{BlockGraph, BlockInputs, CaptureNeeds, ContextGraph, DflashMask, Picks, Scratch};
use crate::model::{Dflash, DrafterFile, Model};
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Context graphs of up to this many positions keep a place of their own: what a verification commits.
const SMALL: u32 = 32;

/// A block drafter in memory.
pub(super) struct DflashModel {
    drafter: Arc<Dflash>,
    path: PathBuf,
    rule: DflashMask,
    /// Positions of context that layers keep.
    context: Option<u32>,
}

impl DflashModel {
    pub fn load(
        file: &DrafterFile,
        path: &Path,
        model: &Model,
        options: &DrafterOptions,
    ) -> Result<DflashModel> {
        if options.dflash_context == Some(0) {
            let why = "a drafter keeps at least one position of context".into();
            return Err(Error::Option { option: "dflash_context", value: "0".into(), why });
        }
        let drafter = Dflash::load(file, model)?;
        let usual = if drafter.is_causal { DflashMask::Causal } else { DflashMask::ZLab };
        let rule = options.dflash_mask.unwrap_or(usual);
        let (n_bytes, block) = (drafter.n_bytes, drafter.block);
        tracing::info!(path = %path.display(), n_bytes, block, ?rule, "DFlash drafter loaded");
        let (drafter, path) = (Arc::new(drafter), path.to_owned());
        Ok(DflashModel { drafter, path, rule, context: options.dflash_context })
    }

    /// The drafter's own cache for a session like `target`, empty.
    fn state(&self, target: &CacheState) -> Result<CacheState> {
        let n_ctx = target.n_ctx();
        let block = self.drafter.block;
        let n_batch = target.n_batch().max(block);
        let full = match self.context {
            Some(context) => Geometry::swa(context, n_batch, block, n_ctx)?,
            None => Geometry::full(n_ctx)?,
        };
        let window = self.drafter.hparams.window.min(self.context.unwrap_or(u32::MAX));
        let swa = Geometry::swa(window, n_batch, block, n_ctx)?;
        Ok(CacheState::from_parts(full, swa, n_ctx, n_batch))
    }

    /// The largest graph that shows committed rows to the drafter.
    fn largest_context(&self, setup: &Setup<'_>, cache: &KvCache) -> Result<Graph> {
        let features = features(setup.captured.features())?;
        let rows = [0, setup.state.n_batch()];
        ContextGraph::build(&self.drafter, cache, features, rows).map(|(graph, _)| graph)
    }

    /// The largest graph that drafts.
    fn largest_block(&self, setup: &Setup<'_>, state: &CacheState, cache: &KvCache) -> Result<Graph> {
        let views = [state.full().slots(), state.swa().slots()];
        let n = setup.max_draft.max(1) + 1;
        BlockGraph::build(setup.model, &self.drafter, cache, n, (views, self.rule), Picks::Best)
            .map(|(graph, _)| graph)
    }
}

fn features(captured: Option<&Tensor>) -> Result<&Tensor> {
    captured.ok_or_else(|| Error::Ggml { op: "dflash", why: "features are not captured".into() })
}

impl Source for DflashModel {
    fn kind(&self) -> &'static str {
        "dflash"
    }

    fn weight_bytes(&self) -> u64 {
        self.drafter.n_bytes
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { hidden: false, layers: self.drafter.taps.clone() }
    }

    fn max_draft(&self) -> u32 {
        self.drafter.block - 1
    }

    fn check(&self, model: &Model) -> Result<()> {
        self.drafter.check(&self.path, model.hparams())
    }

    fn start(&self, setup: &Setup<'_>, engine: &mut Engine) -> Result<Box<dyn Propose>> {
        let state = self.state(setup.state)?;
        let kv = KvConfig::default();
        let cache = KvCache::new(&self.drafter.hparams, &kv, &state, &|_| setup.model.device())?;
        let (mut contexts, mut blocks) = (Slots::new(), Slots::new());
        let class = context_class(setup.state.n_batch());
        let build = || self.largest_context(setup, &cache);
        contexts.reserve(engine, class, ContextGraph::max_nodes(&self.drafter), build)?;
        let key = (setup.max_draft.max(1) + 1, Picks::Best);
        let build = || self.largest_block(setup, &state, &cache);
        blocks.reserve(engine, key, BlockGraph::max_nodes(&self.drafter), build)?;
        Ok(Box::new(Blocks {
            drafter: self.drafter.clone(),
            rule: self.rule,
            cache,
            state,
            contexts,
            blocks,
            scratch: Scratch::default(),
            start: 0,
            is_lost: false,
        }))
    }

    fn plan(&self, setup: &Setup<'_>, engine: &mut Engine) -> Result<DrafterPlan> {
        let state = self.state(setup.state)?;
        let (hparams, kv) = (&self.drafter.hparams, KvConfig::default());
        let (cache, taken) = KvCache::pretend(hparams, &kv, &state, &|_| setup.model.device())?;
        let mut compute = 0;
        let max_nodes = ContextGraph::max_nodes(&self.drafter).max(BlockGraph::max_nodes(&self.drafter));
        for graph in [self.largest_context(setup, &cache)?, self.largest_block(setup, &state, &cache)?] {
            let slot = engine.add_slot(max_nodes)?;
            compute += engine.measure(slot, graph, 1)?.buffers.iter().sum::<u64>();
        }
        Ok(DrafterPlan { state: taken.iter().map(|(_, n)| n).sum(), compute })
    }
}

/// The slot of a context graph of `n` positions.
fn context_class(n: u32) -> u32 {
    if n <= SMALL { n } else { 0 }
}

/// A block drafter at work in one session.
pub(super) struct Blocks {
    drafter: Arc<Dflash>,
    rule: DflashMask,
    cache: KvCache,
    state: CacheState,
    contexts: Slots<u32, ContextGraph>,
    blocks: Slots<(u32, Picks), BlockGraph>,
    scratch: Scratch,
    /// The first position whose features were taken in.
    start: u32,
    /// Nothing of the cache is known any more.
    is_lost: bool,
}

impl Blocks {
    /// Goes to position `first` without context: as if the text began there.
    fn begin_at(&mut self, first: u32) -> Result<()> {
        self.state.restore(first)?;
        self.start = first;
        self.is_lost = false;
        Ok(())
    }

    /// Runs a block of `n` tokens, and reads its picks: ids and probabilities by place.
    fn run(
        &mut self,
        t: &mut Target<'_>,
        token: u32,
        n: u32,
        picks: Picks,
    ) -> Result<Option<(Vec<i32>, Vec<f32>)>> {
        let first = self.state.committed();
        let known = !self.is_lost && first == t.state.committed() && first > self.start;
        // Places beyond the context have no slot.
        let n = n.min(self.state.remaining());
        if !known || n < 2 {
            return Ok(None);
        }
        let span = self.state.begin(n)?;
        let views = [self.state.full().n_view(span.end()), self.state.swa().n_view(span.end())];
        let (drafter, cache, rule) = (&self.drafter, &self.cache, self.rule);
        let fits = |graph: &BlockGraph| graph.views == views;
        let build = || BlockGraph::build(t.model, drafter, cache, n, (views, rule), picks);
        let max_nodes = BlockGraph::max_nodes(drafter);
        let (slot, graph) = self.blocks.load(t.engine, (n, picks), max_nodes, fits, build)?;
        let (state, start, mask_token) = (&self.state, self.start, drafter.mask_token);
        let data = BlockInputs { token, mask_token, state, first, start };
        graph.write(t.engine, slot, &data, &mut self.scratch)?;
        t.engine.compute(slot)?;
        read(t.engine, slot, graph)
    }
}

fn read(engine: &mut Engine, slot: usize, graph: &BlockGraph) -> Result<Option<(Vec<i32>, Vec<f32>)>> {
    let n = graph.ids.n_elements() as usize;
    let (mut ids, mut p) = (vec![0i32; n], vec![0f32; n]);
    engine.read(slot, &graph.ids, &mut ids)?;
    engine.read(slot, &graph.p, &mut p)?;
    Ok(Some((ids, p)))
}

impl Propose for Blocks {
    fn state_bytes(&self) -> u64 {
        self.cache.n_bytes()
    }

    fn observe(&mut self, t: &mut Target<'_>, rows: Range<u32>, first_pos: u32) -> Result<()> {
        let n = rows.end - rows.start;
        if n == 0 {
            return Ok(());
        }
        let committed = self.state.committed();
        let is_behind = first_pos < committed && self.state.truncate(first_pos).is_err();
        if self.is_lost || is_behind || first_pos > committed {
            self.begin_at(first_pos)?;
        }
        self.start = self.start.min(first_pos);
        let span = self.state.begin(n)?;
        let features = features(t.captured.features())?;
        let (drafter, cache) = (&self.drafter, &self.cache);
        let key = [rows.start, n];
        let build = || ContextGraph::build(drafter, cache, features, key);
        let fits = |graph: &ContextGraph| graph.rows == key;
        let max_nodes = ContextGraph::max_nodes(drafter);
        let (slot, graph) = self.contexts.load(t.engine, context_class(n), max_nodes, fits, build)?;
        graph.write(t.engine, slot, &self.state, span.first, &mut self.scratch)?;
        t.engine.compute(slot)?;
        self.state.commit(n);
        Ok(())
    }

    fn draft(
        &mut self,
        t: &mut Target<'_>,
        token: u32,
        n: u32,
        how: DraftMode<'_>,
        out: &mut Vec<Proposed>,
    ) -> Result<()> {
        match how {
            DraftMode::Greedy => {
                let Some((ids, p)) = self.run(t, token, n + 1, Picks::Best)? else { return Ok(()) };
                let drafts = ids.into_iter().zip(p);
                out.extend(drafts.map(|(id, p)| Proposed { token: id as u32, p, q: None }));
            }
            DraftMode::Sampled { sampler, rng } => {
                let n_vocab = self.drafter.hparams.n_vocab;
                let k = LIKELY.min(n_vocab);
                let Some((ids, p)) = self.run(t, token, n + 1, Picks::Likely(k))? else { return Ok(()) };
                let mut logits = vec![f32::NEG_INFINITY; n_vocab as usize];
                for (ids, p) in ids.chunks(k as usize).zip(p.chunks(k as usize)) {
                    let Some(draft) = draw(sampler, rng, &mut logits, ids, p) else { break };
                    out.push(draft);
                }
            }
        }
        Ok(())
    }

    fn rewind(&mut self, len: u32, lost: bool) {
        if len == 0 {
            // Length 0 is always reachable.
            let _ = self.state.truncate(0);
            (self.start, self.is_lost) = (0, false);
        } else if lost || (len < self.state.committed() && self.state.truncate(len).is_err()) {
            self.is_lost = true;
        }
    }

    fn assume(&mut self, len: u32) -> Result<()> {
        self.begin_at(len)?;
        // All of its cache, zeros as they are.
        self.start = 0;
        Ok(())
    }
}
