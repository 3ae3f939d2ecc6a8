//! Drafting with an MTP assistant, which reads the target's cache and its last hidden state.

use super::draw::{LIKELY, draw};
use super::slots::Slots;
use super::{DraftMode, DraftStep, DrafterOptions, DrafterPlan, Propose, Proposed, Setup, Source, Target};
use crate::ggml::{DType, Engine, Graph, Storage, StorageBuilder, Tensor};
use crate::graph::{CaptureNeeds, MtpGraph, MtpInputs, MtpMode, MtpShape};
use crate::model::{Assistant, DrafterFile, Model};
use crate::sampling::Sampler;
use crate::{Error, Result};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest chain. Gains end well before it.
const MAX_DRAFT: u32 = 16;

/// An assistant in memory.
pub(super) struct Mtp {
    assistant: Arc<Assistant>,
    path: PathBuf,
}

impl Mtp {
    pub fn load(file: &DrafterFile, path: &Path, model: &Model, options: &DrafterOptions) -> Result<Mtp> {
        let assistant = Assistant::load(file, model, options.ordered_head)?;
        let ordered = assistant.ordered.as_ref().map_or(0, |ordered| ordered.n);
        let n_bytes = assistant.n_bytes;
        tracing::info!(path = %path.display(), n_bytes, centroids = ordered, "MTP assistant loaded");
        Ok(Mtp { assistant: Arc::new(assistant), path: path.to_owned() })
    }

    /// The largest graph that a session will need, in its shape.
    fn largest(&self, setup: &Setup<'_>, handed: &Tensor, shape: MtpShape) -> Result<Graph> {
        let hidden = hidden(setup.captured.hidden())?;
        let (model, cache) = (setup.model, setup.cache);
        MtpGraph::build(model, &self.assistant, cache, hidden, handed, shape).map(|(graph, _)| graph)
    }

    /// The place for what one step of a drawn draft hands to the next, `[n_embd_target, 1]`.
    fn handed(&self) -> Result<(StorageBuilder, Tensor)> {
        let mut builder = StorageBuilder::state(1)?;
        let ne = [u64::from(self.assistant.n_embd_target), 1, 1, 1];
        let tensor = builder.tensor("handed", DType::F32, ne)?;
        Ok((builder, tensor))
    }
}

/// The longest chain over a full cache.
fn largest_shape(setup: &Setup<'_>) -> MtpShape {
    MtpShape {
        mode: MtpMode::Chain,
        n: setup.max_draft.max(1),
        view_full: setup.state.full().slots(),
        view_swa: setup.state.swa().slots(),
        trace: false,
    }
}

fn hidden(captured: Option<&Tensor>) -> Result<&Tensor> {
    captured.ok_or_else(|| Error::Ggml { op: "mtp", why: "hidden states are not captured".into() })
}

impl Source for Mtp {
    fn kind(&self) -> &'static str {
        "mtp"
    }

    fn weight_bytes(&self) -> u64 {
        self.assistant.n_bytes
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { hidden: true, layers: Vec::new() }
    }

    fn max_draft(&self) -> u32 {
        MAX_DRAFT
    }

    fn check(&self, model: &Model) -> Result<()> {
        self.assistant.check(&self.path, model.hparams())
    }

    fn start(&self, setup: &Setup<'_>, engine: &mut Engine) -> Result<Box<dyn Propose>> {
        let (builder, handed) = self.handed()?;
        let storage =
            builder.allocate(&setup.model.device(), "the drafter's hidden state", "use a smaller n_ctx")?;
        let shape = largest_shape(setup);
        let mut slots = Slots::new();
        let max_nodes = MtpGraph::max_nodes(&self.assistant, shape.n);
        let build = || self.largest(setup, &handed, shape);
        slots.reserve(engine, (shape.mode, shape.n), max_nodes, build)?;
        let assistant = self.assistant.clone();
        Ok(Box::new(Chain { assistant, slots, handed, storage, newest: None }))
    }

    fn plan(&self, setup: &Setup<'_>, engine: &mut Engine) -> Result<DrafterPlan> {
        let (builder, handed) = self.handed()?;
        let (_storage, state) = builder.pretend(&setup.model.device())?;
        let shape = largest_shape(setup);
        let graph = self.largest(setup, &handed, shape)?;
        let slot = engine.add_slot(MtpGraph::max_nodes(&self.assistant, shape.n))?;
        let compute = engine.measure(slot, graph, 1)?.buffers.iter().sum();
        Ok(DrafterPlan { state, compute })
    }
}

/// An assistant at work in one session. It keeps no text: only where the last hidden state is.
struct Chain {
    assistant: Arc<Assistant>,
    /// Graphs by mode and length.
    slots: Slots<(MtpMode, u32), MtpGraph>,
    /// What one step of a drawn draft hands to the next.
    handed: Tensor,
    storage: Storage,
    /// Column of the newest committed position's hidden state, and the position after it.
    newest: Option<(u32, u32)>,
}

impl Chain {
    /// Runs `n` steps behind `token`. `None` where the hidden state before it is not known.
    fn run(
        &mut self,
        t: &mut Target<'_>,
        token: u32,
        n: u32,
        mode: MtpMode,
        trace: bool,
    ) -> Result<Option<(usize, &MtpGraph)>> {
        let position = t.state.committed();
        let Some((row, _)) = self.newest.filter(|&(_, next)| next == position) else { return Ok(None) };
        // A window of one position has no key that is older than the query.
        if n == 0 || t.state.swa().window() == Some(1) {
            return Ok(None);
        }
        let shape = MtpShape {
            mode,
            n,
            view_full: t.state.full().n_view(position),
            view_swa: t.state.swa().n_view(position),
            trace,
        };
        let max_nodes = MtpGraph::max_nodes(&self.assistant, n);
        let (hidden, handed) = (hidden(t.captured.hidden())?, &self.handed);
        let build = || MtpGraph::build(t.model, &self.assistant, t.cache, hidden, handed, shape);
        let fits = |graph: &MtpGraph| graph.shape == shape;
        let (slot, graph) = self.slots.load(t.engine, (mode, n), max_nodes, fits, build)?;
        let row = if matches!(mode, MtpMode::Next(_)) { 0 } else { row };
        let data = MtpInputs { token, row, state: t.state };
        graph.write(t.engine, slot, &data)?;
        t.engine.compute(slot)?;
        Ok(Some((slot, graph)))
    }

    /// Draws up to `n` tokens, a step at a time.
    fn draw(
        &mut self,
        t: &mut Target<'_>,
        token: u32,
        n: u32,
        (sampler, rng): (&Sampler, &mut ChaCha8Rng),
        out: &mut Vec<Proposed>,
    ) -> Result<()> {
        let mut logits = vec![f32::NEG_INFINITY; self.assistant.hparams.n_vocab as usize];
        let mut token = token;
        for i in 0..n {
            let mode = if i == 0 { MtpMode::First(LIKELY) } else { MtpMode::Next(LIKELY) };
            let Some((slot, graph)) = self.run(t, token, 1, mode, false)? else { break };
            let (ids, p) = results(t.engine, slot, graph)?;
            let Some(draft) = draw(sampler, rng, &mut logits, &ids, &p) else { break };
            token = draft.token;
            out.push(draft);
        }
        Ok(())
    }
}

/// Tokens and probabilities that a graph has left.
fn results(engine: &mut Engine, slot: usize, graph: &MtpGraph) -> Result<(Vec<i32>, Vec<f32>)> {
    let n = graph.tokens.n_elements() as usize;
    let (mut tokens, mut p) = (vec![0i32; n], vec![0f32; n]);
    engine.read(slot, &graph.tokens, &mut tokens)?;
    engine.read(slot, &graph.p, &mut p)?;
    Ok((tokens, p))
}

impl Propose for Chain {
    fn state_bytes(&self) -> u64 {
        self.storage.n_bytes()
    }

    fn observe(&mut self, t: &mut Target<'_>, rows: Range<u32>, first_pos: u32) -> Result<()> {
        let n = rows.end - rows.start;
        let last = rows.end.checked_sub(1).filter(|row| n > 0 && t.captured.hidden_rows().contains(row));
        self.newest = last.map(|row| (row, first_pos + n));
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
        if let DraftMode::Sampled { sampler, rng } = how {
            return self.draw(t, token, n, (sampler, rng), out);
        }
        let Some((slot, graph)) = self.run(t, token, n, MtpMode::Chain, false)? else { return Ok(()) };
        let (tokens, p) = results(t.engine, slot, graph)?;
        let drafts = tokens.into_iter().zip(p);
        out.extend(drafts.map(|(token, p)| Proposed { token: token as u32, p, q: None }));
        Ok(())
    }

    fn rewind(&mut self, len: u32, lost: bool) {
        self.newest = self.newest.filter(|&(_, next)| !lost && next == len);
    }

    fn trace(&mut self, t: &mut Target<'_>, token: u32, n: u32) -> Result<Vec<DraftStep>> {
        let mut steps = Vec::new();
        let Some((slot, graph)) = self.run(t, token, n, MtpMode::Chain, true)? else { return Ok(steps) };
        let (tokens, p) = results(t.engine, slot, graph)?;
        for (i, kept) in graph.trace.iter().enumerate() {
            let floats = |tensor: &Tensor| {
                let mut values = vec![0f32; tensor.n_elements() as usize];
                t.engine.read(slot, tensor, &mut values).map(|()| values)
            };
            let (logits, hidden) = (floats(&kept.logits)?, floats(&kept.hidden)?);
            let hidden_out = floats(&kept.hidden_out)?;
            let mut ids = vec![0i32; kept.ids.as_ref().map_or(0, |ids| ids.n_elements() as usize)];
            if let Some(tensor) = &kept.ids {
                t.engine.read(slot, tensor, &mut ids)?;
            }
            let ids = ids.into_iter().map(|id| id as u32).collect();
            steps.push(DraftStep { token: tokens[i] as u32, p: p[i], logits, ids, hidden, hidden_out });
        }
        Ok(steps)
    }
}
