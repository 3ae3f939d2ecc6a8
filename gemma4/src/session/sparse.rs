//! Prompts that do not read every key: block-sparse prefill.

use super::{GraphSlot, Rows, Session};
use crate::ggml::BlockSparse;
use crate::{Error, Result};

/// Fewest tokens that are computed block-sparse. Decoding and verification are always below.
pub(super) const SPARSE_TOKENS: u32 = 128;

/// How prompts are computed.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct PrefillOptions {
    /// Allows full-attention layers to leave out keys of long prompts. Default: no; every key is read.
    pub sparse: Option<SparsePrefill>,
}

/// Block-sparse prefill: in full-attention layers a block of queries reads the blocks of keys that may matter to
/// it. Decoding always reads everything; sliding-window layers are not concerned. The result is approximate.
///
/// Positions are cut into blocks. A block of keys is read if it is among the first `sink`, among the nearest
/// `window`, if the queries are among the last `last_full` blocks of the prompt, or if its score reaches `alpha`
/// times the best one. The score is the softmax that the queries give the mean of its keys. Heads that share keys
/// read the union.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SparsePrefill {
    /// Share of the best score. Higher reads less. 0 and less, or 1 and more, read everything. Default 0.12.
    pub alpha: f32,
    /// Positions of a block, 16 to 1024. Default 128.
    pub block: u32,
    /// First blocks that are always read. Default 2.
    pub sink: u32,
    /// Nearest blocks that are always read, the query's own included. Default 4.
    pub window: u32,
    /// Last blocks of the prompt whose queries read everything. Default 2.
    pub last_full: u32,
    /// Length in tokens from which it is used: before, choosing costs more than it saves. Default 4096.
    pub from: u32,
}

impl Default for SparsePrefill {
    fn default() -> Self {
        SparsePrefill { alpha: 0.12, block: 128, sink: 2, window: 4, last_full: 2, from: 4096 }
    }
}

/// What a full-attention layer read of a prompt's keys, over all its queries and heads.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SparseLayer {
    /// Number of the layer.
    pub layer: u32,
    /// Share of the dense softmax that was read: the mean. `None` on CUDA, which does not compute it.
    pub recall: Option<f32>,
    /// The share that 95 % of all queries and heads reach.
    pub recall_p5: Option<f32>,
    /// Share of the keys that were read: the mean.
    pub keys: f32,
}

/// Block-sparse attention of one chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct SparseStep {
    pub options: BlockSparse,
    /// Length from which it is used.
    pub from: u32,
    /// Positions of the sequence with the whole prompt.
    pub prompt_end: u32,
    pub report: bool,
}

impl PrefillOptions {
    /// Allows block-sparse prefill; `None` forbids it.
    #[must_use]
    pub fn sparse(mut self, sparse: impl Into<Option<SparsePrefill>>) -> Self {
        self.sparse = sparse.into();
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let bad = |option, value: String, why: &str| Err(Error::Option { option, value, why: why.into() });
        if sparse.alpha.is_nan() {
            return bad("alpha", "NaN".into(), "it is a share, such as 0.12");
        }
        if !(16..=1024).contains(&sparse.block) {
            return bad("block", sparse.block.to_string(), "blocks have 16 to 1024 positions");
        }
        Ok(())
    }

    /// What chunks of a prompt need that makes the sequence `prompt_end` long. `None` if all keys are read.
    pub(super) fn step(&self, prompt_end: usize) -> Option<SparseStep> {
        let sparse = self.sparse.as_ref()?;
        // More blocks than there are positions mean the same as all of them.
        let count = |n: u32| n.min(i32::MAX as u32);
        let options = BlockSparse {
            alpha: sparse.alpha,
            block: sparse.block,
            sink: count(sparse.sink),
            window: count(sparse.window),
            last_full: count(sparse.last_full),
        };
        let prompt_end = u32::try_from(prompt_end).unwrap_or(u32::MAX);
        let approximate = sparse.alpha > 0.0 && sparse.alpha < 1.0;
        approximate.then_some(SparseStep { options, from: sparse.from, prompt_end, report: false })
    }
}

impl SparsePrefill {
    /// Sets the share of the best score that a block must reach.
    #[must_use]
    pub fn alpha(mut self, alpha: f32) -> Self {
        self.alpha = alpha;
        self
    }

    /// Sets the positions of a block.
    #[must_use]
    pub fn block(mut self, n: u32) -> Self {
        self.block = n;
        self
    }

    /// Sets how many blocks are always read: the first `sink`, the nearest `window`.
    #[must_use]
    pub fn always(mut self, sink: u32, window: u32) -> Self {
        (self.sink, self.window) = (sink, window);
        self
    }

    /// Sets for how many last blocks of the prompt everything is read.
    #[must_use]
    pub fn last_full(mut self, n: u32) -> Self {
        self.last_full = n;
        self
    }

    /// Sets the length in tokens from which it is used.
    #[must_use]
    pub fn from(mut self, n: u32) -> Self {
        self.from = n;
        self
    }
}

impl Session {
    /// Adds a prompt as [`prefill_as`](Self::prefill_as) does and says what each full-attention layer read of
    /// it, in chunks that were computed block-sparse. On the CPU it costs the dense attention too, and on any device a
    /// result of the size of the queries for each layer: for choosing options.
    ///
    /// # Errors
    /// As [`prefill_as`](Self::prefill_as). [`Error::Device`] on devices that compute dense attention instead.
    pub fn prefill_reporting(
        &mut self,
        tokens: &[u32],
        options: &PrefillOptions,
    ) -> Result<Vec<SparseLayer>> {
        options.check()?;
        self.check_tokens(tokens)?;
        self.check_fits(tokens.len())?;
        if let Some(device) = self.model.devices().iter().find(|device| !device.reports_sparse_attention()) {
            let why =
                "it computes dense attention and reports nothing; load the model on the CPU or CUDA".into();
            return Err(Error::Device { name: device.name(), why });
        }
        let sparse = options.step(self.len() + tokens.len()).map(|s| SparseStep { report: true, ..s });
        let hparams = self.model.hparams().clone();
        let full: Vec<_> = (0u32..).zip(&hparams.layers).filter(|(_, layer)| layer.is_full()).collect();
        let mut shares: Vec<Vec<[f32; 2]>> = vec![Vec::new(); full.len()];
        for chunk in tokens.chunks(self.state.n_batch() as usize) {
            let sparse = sparse.filter(|s| self.len() + chunk.len() >= s.from as usize);
            let class = self.step_sparse(chunk, Rows::Last, false, sparse)?;
            self.commit(chunk);
            self.read_logits(class, 0)?;
            let Some(GraphSlot { index, graph: Some(graph) }) = self.slots.get(&class) else { continue };
            for ((report, shares), (_, layer)) in graph.reports.iter().zip(&mut shares).zip(&full) {
                let mut rows = vec![0f32; report.n_elements() as usize];
                self.engine.read(*index, report, &mut rows)?;
                shares.extend(rows.chunks_exact(layer.head_dim as usize).map(|row| [row[0], row[1]]));
            }
        }
        let layers = full.iter().zip(&mut shares).filter(|(_, shares)| !shares.is_empty());
        Ok(layers.map(|((layer, _), shares)| summary(*layer, shares)).collect())
    }
}

fn summary(layer: u32, shares: &mut [[f32; 2]]) -> SparseLayer {
    shares.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let mean = |i: usize| {
        let sum: f64 = shares.iter().map(|share| f64::from(share[i])).sum();
        (sum / shares.len() as f64) as f32
    };
    // NaN is a backend's word for a share that it does not know.
    let known = |share: f32| Some(share).filter(|share| !share.is_nan());
    let (recall, recall_p5) = (known(mean(0)), known(shares[shares.len() / 20][0]));
    SparseLayer { layer, recall, recall_p5, keys: mean(1) }
}
