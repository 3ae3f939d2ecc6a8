//! Drafting with an MTP assistant, which reads the target's cache and its last hidden state.

use super::slots::Slots;
use super::{
    CaptureNeeds, DraftMode, DraftStep, DrafterOptions, DrafterPlan, Propose, Proposed, Setup, Source, Target,
};
use crate::ggml::{Graph, Tensor};
use crate::graph::{MtpGraph, MtpInputs, MtpShape, Scratch};
use crate::model::{Assistant, DrafterFile, Model};
use crate::{Error, Result};
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

    /// The largest graph that a session will need.
    fn largest(&self, setup: &Setup<'_>) -> Result<(Graph, MtpGraph)> {
        let shape = MtpShape {
            n: setup.max_draft.max(1),
            view_full: setup.state.full().slots(),
            view_swa: setup.state.swa().slots(),
            trace: false,
        };
        MtpGraph::build(setup.model, &self.assistant, setup.cache, hidden(setup.captured.hidden())?, shape)
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

    fn start(&self, setup: &mut Setup<'_>) -> Result<Box<dyn Propose>> {
        let (graph, largest) = self.largest(setup)?;
        let mut slots = Slots::new();
        let n = largest.shape.n;
        slots.reserve(setup.engine, n, MtpGraph::max_nodes(&self.assistant, n), &graph)?;
        Ok(Box::new(Chain::new(self.assistant.clone(), slots)))
    }

    fn plan(&self, setup: &mut Setup<'_>) -> Result<DrafterPlan> {
        let (graph, largest) = self.largest(setup)?;
        let slot = setup.engine.add_slot(MtpGraph::max_nodes(&self.assistant, largest.shape.n))?;
        let compute = setup.engine.measure(slot, &graph)?.iter().sum();
        Ok(DrafterPlan { state: 0, compute })
    }
}

/// An assistant at work in one session. It has no memory of its own but where the last hidden state is.
pub(super) struct Chain {
    assistant: Arc<Assistant>,
    /// Graphs by length.
    slots: Slots<u32, MtpGraph>,
    scratch: Scratch,
    /// Column of the newest committed position's hidden state, and the position after it.
    newest: Option<(u32, u32)>,
}

impl Chain {
    fn new(assistant: Arc<Assistant>, slots: Slots<u32, MtpGraph>) -> Chain {
        Chain { assistant, slots, scratch: Scratch::default(), newest: None }
    }

    /// Runs a chain of `n` steps behind `token`. `None` where the hidden state before it is not known.
    pub fn run(
        &mut self,
        t: &mut Target<'_>,
        token: u32,
        n: u32,
        trace: bool,
    ) -> Result<Option<(usize, &MtpGraph)>> {
        let position = t.state.committed();
        let Some((row, _)) = self.newest.filter(|&(_, next)| next == position) else { return Ok(None) };
        // A window of one position has no key that is older than the query.
        if n == 0 || t.state.swa().window() == Some(1) {
            return Ok(None);
        }
        let shape = MtpShape {
            n,
            view_full: t.state.full().n_view(position),
            view_swa: t.state.swa().n_view(position),
            trace,
        };
        let max_nodes = MtpGraph::max_nodes(&self.assistant, n);
        let hidden = hidden(t.captured.hidden())?;
        let build = || MtpGraph::build(t.model, &self.assistant, t.cache, hidden, shape);
        let (slot, graph) = self.slots.load(t.engine, n, max_nodes, |graph| graph.shape == shape, build)?;
        let data = MtpInputs { token, row, state: t.state };
        graph.write(t.engine, slot, &data, &mut self.scratch)?;
        t.engine.compute(slot)?;
        Ok(Some((slot, graph)))
    }
}

impl Propose for Chain {
    fn state_bytes(&self) -> u64 {
        0
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
        // A chain chooses within its graph, and so the likeliest.
        _how: DraftMode<'_>,
        out: &mut Vec<Proposed>,
    ) -> Result<()> {
        let Some((slot, graph)) = self.run(t, token, n, false)? else { return Ok(()) };
        let (mut tokens, mut p) = (vec![0i32; n as usize], vec![0f32; n as usize]);
        t.engine.read(slot, &graph.tokens, &mut tokens)?;
        t.engine.read(slot, &graph.p, &mut p)?;
        let drafts = tokens.into_iter().zip(p);
        out.extend(drafts.map(|(token, p)| Proposed { token: token as u32, p, q: None }));
        Ok(())
    }

    fn rewind(&mut self, len: u32, lost: bool) {
        self.newest = self.newest.filter(|&(_, next)| !lost && next == len);
    }

    fn trace(&mut self, t: &mut Target<'_>, token: u32, n: u32) -> Result<Vec<DraftStep>> {
        let mut steps = Vec::new();
        let Some((slot, graph)) = self.run(t, token, n, true)? else { return Ok(steps) };
        let (mut tokens, mut p) = (vec![0i32; n as usize], vec![0f32; n as usize]);
        t.engine.read(slot, &graph.tokens, &mut tokens)?;
        t.engine.read(slot, &graph.p, &mut p)?;
        for (i, kept) in graph.trace.iter().enumerate() {
            let mut floats = |tensor: &Tensor| {
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
