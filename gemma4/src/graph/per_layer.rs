//! Per-layer inputs (E2B, E4B): a second embedding of every token, one slice for each layer.

use super::Build;
use crate::Result;
use crate::ggml::Tensor;
use crate::model::{LayerInput, PerLayerInput};

impl Build<'_> {
    /// All layers' slices, `[P, T, n_layer]`. `x` is the scaled embedding `[n_embd, T]`.
    pub fn per_layer_inputs(&mut self, weights: &PerLayerInput, x: &Tensor) -> Result<Tensor> {
        let (p, n_layer) = (self.hparams.n_embd_per_layer, self.hparams.n_layer());
        let shape = [i64::from(p), i64::from(n_layer), self.n_tokens()];
        let tokens = self.inputs.tokens.clone();
        let a = self.g.get_rows(&weights.token_embd, &tokens)?;
        let a = self.g.scale(&a, (p as f32).sqrt())?;
        let a = self.g.reshape(&a, shape)?;
        let b = self.linear(&weights.model_proj, x)?;
        let b = self.g.scale(&b, 1.0 / (self.hparams.n_embd as f32).sqrt())?;
        let b = self.g.reshape(&b, shape)?;
        let b = self.norm(&b, &weights.proj_norm)?;
        let sum = self.g.add(&a, &b)?;
        let sum = self.g.scale(&sum, std::f32::consts::FRAC_1_SQRT_2)?;
        // Once here, so that every layer's slice is contiguous.
        let sum = self.g.swap_12(&sum)?;
        self.g.cont(&sum)
    }

    /// Adds layer `il`'s slice to the residual stream `x` `[n_embd, n]`.
    pub fn add_per_layer(
        &mut self,
        weights: &LayerInput,
        all: &Tensor,
        il: usize,
        x: &Tensor,
    ) -> Result<Tensor> {
        let [p, t, _, _] = all.ne();
        let mut slice = self.g.view(all, [p, t, 1], [all.nb()[1], all.nb()[2]], il * all.nb()[2])?;
        if x.ne()[1] != t
            && let Some(rows) = self.inputs.rows.clone()
        {
            slice = self.g.get_rows(&slice, &rows)?;
        }
        let gate = self.linear(&weights.gate, x)?;
        let gate = self.g.gelu(&gate)?;
        let inner = self.g.mul(&gate, &slice)?;
        let out = self.linear(&weights.proj, &inner)?;
        let out = self.norm(&out, &weights.post_norm)?;
        self.g.add(x, &out)
    }
}
