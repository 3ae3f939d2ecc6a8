//! The target model.

use super::{Build, Captured, Inputs, Picked, Shape};
use crate::cache::{KvCache, LayerKv};
use crate::ggml::{BlockSparse, Graph, GraphBuilder, Tensor};
use crate::model::{HParams, Layer, Model};
use crate::{Error, Result};

/// Tensors that a target graph may have: about 60 a dense layer, 90 a mixture one, 12 for rotated caches, and 6 for
/// each row that attends by itself.
pub(crate) fn max_nodes(hparams: &HParams, shape: &Shape) -> usize {
    let by_row = if shape.row_views.is_some() { 6 * shape.n_tokens as usize } else { 0 };
    256 + hparams.layers.len() * (128 + by_row + 2 * hparams.n_expert_used as usize)
}

/// A target graph and where its results are.
pub(crate) struct TargetGraph {
    pub shape: Shape,
    pub inputs: Inputs,
    /// Hidden state after the last norm, `[n_embd, n_rows]`.
    pub hidden: Option<Tensor>,
    /// Logits after softcapping, `[n_vocab, n_rows]`.
    pub logits: Option<Tensor>,
    /// Likely tokens of each row, if asked for.
    pub picked: Option<Picked>,
    /// Outputs of all layers, `[n_embd, T]` (the last one `[n_embd, n_rows]`); empty if not kept.
    pub layers: Vec<Tensor>,
    /// How full-attention layers leave out keys, if they do.
    pub sparse: Option<BlockSparse>,
    /// What each full-attention layer read, `[head_dim, n_head, T]` (`GraphBuilder::block_sparse`), if asked for.
    pub reports: Vec<Tensor>,
}

impl TargetGraph {
    /// Builds the graph of `shape` over `cache`. What `captured` has room for is left there.
    pub fn build(
        model: &Model,
        cache: &KvCache,
        captured: Option<&Captured>,
        shape: Shape,
    ) -> Result<(Graph, TargetGraph)> {
        Self::build_sparse(model, cache, captured, shape, None, false)
    }

    /// As [`build`](Self::build), with full-attention layers that read a part of their keys. `report` adds
    /// what each of them reads to the results.
    pub fn build_sparse(
        model: &Model,
        cache: &KvCache,
        captured: Option<&Captured>,
        shape: Shape,
        sparse: Option<BlockSparse>,
        report: bool,
    ) -> Result<(Graph, TargetGraph)> {
        let (hparams, weights) = (model.hparams(), model.weights());
        let mut g = GraphBuilder::new(max_nodes(hparams, &shape))?;
        let mut inputs = Inputs::declare(&mut g, &shape, cache)?;
        if let Some(sparse) = sparse {
            inputs.make_sparse(&mut g, sparse, report)?;
        }
        let mut b = Build { g, hparams, cache, captured, inputs, shape };

        let tokens = b.inputs.tokens.clone();
        let x = b.g.get_rows(&weights.token_embd, &tokens)?;
        let mut x = b.g.scale(&x, (hparams.n_embd as f32).sqrt())?;
        let per_layer = match &weights.per_layer {
            Some(weights) => Some(b.per_layer_inputs(weights, &x)?),
            None => None,
        };
        let mut layers = Vec::new();
        for il in 0..hparams.layers.len() {
            let (layer, freqs) = (&weights.layers[il], weights.rope_freqs(model.placement().layer(il)));
            let Some(out) = b.layer(layer, freqs, il, per_layer.as_ref(), &x)? else { break };
            if shape.keep_layers {
                b.g.output(&format!("layer_{il}"), &out)?;
                layers.push(out.clone());
            }
            b.capture_layer(il, &out)?;
            x = out;
        }
        if b.last_layer_is_captured()
            && let Some(rows) = b.inputs.rows.clone()
        {
            x = b.g.get_rows(&x, &rows)?;
        }
        let (hidden, logits) = if shape.n_rows > 0 { b.head(model, &x)? } else { (None, None) };
        let picked = match (&logits, shape.picks) {
            (Some(logits), Some(picks)) => Some(b.pick(logits, picks)?),
            _ => None,
        };
        let Build { mut g, inputs, .. } = b;
        let reports = g.take_reports();
        Ok((g.finish()?, TargetGraph { shape, inputs, hidden, logits, picked, layers, sparse, reports }))
    }
}

impl Build<'_> {
    /// One layer: `[n_embd, T]` to the same, or to `[n_embd, n_rows]` for the last one. `None` if nothing
    /// after the layer's keys and values is wanted.
    pub fn layer(
        &mut self,
        layer: &Layer,
        rope_freqs: Option<&Tensor>,
        il: usize,
        per_layer: Option<&Tensor>,
        x: &Tensor,
    ) -> Result<Option<Tensor>> {
        let params = &self.hparams.layers[il];
        let is_last = il + 1 == self.hparams.layers.len();
        let is_captured = is_last && self.last_layer_is_captured();
        let cache = self.layer_cache(il)?;
        let h = self.norm(x, &layer.attn_norm)?;
        let q = self.project(layer, params, rope_freqs, &cache, &h)?;
        if is_last && self.shape.n_rows == 0 && !self.shape.keep_layers && !is_captured {
            return Ok(None);
        }
        let mut attended = self.attend(params, &cache, &q)?;
        let mut residual = x.clone();
        if is_last
            && !is_captured
            && let Some(rows) = self.inputs.rows.clone()
        {
            attended = self.g.get_rows(&attended, &rows)?;
            residual = self.g.get_rows(&residual, &rows)?;
        }
        let attended = self.linear(&layer.attn_output, &attended)?;
        let attended = self.norm(&attended, &layer.attn_post_norm)?;
        let x = self.g.add(&attended, &residual)?;
        let ffn = self.feed_forward(layer, params, &x)?;
        let ffn = self.norm(&ffn, &layer.ffn_post_norm)?;
        let mut x = self.g.add(&ffn, &x)?;
        if let (Some(weights), Some(all)) = (&layer.per_layer, per_layer) {
            x = self.add_per_layer(weights, all, il, &x)?;
        }
        // Last of all, so that it scales the residual too.
        if let Some(scale) = &layer.output_scale {
            x = self.g.mul(&x, scale)?;
        }
        Ok(Some(x))
    }

    /// Whether the drafter wants the last layer's output, of all rows then.
    fn last_layer_is_captured(&self) -> bool {
        let last = self.hparams.layers.len() as u32 - 1;
        self.captured.is_some_and(|captured| captured.layers().contains(&last))
    }

    /// Leaves a layer's output `[n_embd, T]` where the drafter will look for it.
    fn capture_layer(&mut self, il: usize, out: &Tensor) -> Result<()> {
        let Some(captured) = self.captured else { return Ok(()) };
        let Some(features) = captured.features() else { return Ok(()) };
        for (tap, _) in captured.layers().iter().enumerate().filter(|(_, layer)| **layer as usize == il) {
            let copy = self.g.copy_to(out, features, 0, tap as i64 * out.ne()[0])?;
            self.g.expand(&copy)?;
        }
        Ok(())
    }

    /// The cache that layer `il` attends to: its own, or its donor's.
    fn layer_cache(&self, il: usize) -> Result<LayerKv> {
        let owner = self.hparams.layers[il].kv_layer as usize;
        let missing = || Error::Ggml { op: "kv_cache", why: format!("layer {owner} has no cache") };
        self.cache.layer(owner).cloned().ok_or_else(missing)
    }

    fn head(&mut self, model: &Model, x: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let hidden = self.norm(x, &model.weights().output_norm)?;
        self.g.output("hidden", &hidden)?;
        if let Some(place) = self.captured.and_then(Captured::hidden) {
            // The wanted rows are the last ones: one or all.
            let row = self.n_tokens() - i64::from(self.shape.n_rows);
            let copy = self.g.copy_to(&hidden, place, row, 0)?;
            self.g.expand(&copy)?;
        }
        let logits = self.linear(&model.weights().output, &hidden)?;
        let logits = self.softcap(logits)?;
        self.g.output("logits", &logits)?;
        Ok((Some(hidden), Some(logits)))
    }
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
