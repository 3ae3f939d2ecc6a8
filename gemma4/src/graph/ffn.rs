//! Feed-forward networks: dense, and a mixture of experts beside a dense one.

use super::Build;
use crate::Result;
use crate::ggml::Tensor;
use crate::model::{GateUp, Layer, LayerParams, Moe};

impl Build<'_> {
    /// The layer's feed-forward part before its last norm. `x` is `[n_embd, n]`, the residual stream.
    pub fn feed_forward(&mut self, layer: &Layer, params: &LayerParams, x: &Tensor) -> Result<Tensor> {
        let dense = self.norm(x, &layer.ffn_norm)?;
        let dense = self.dense(layer, &dense)?;
        let Some(moe) = &layer.moe else { return Ok(dense) };
        let dense = self.norm(&dense, &moe.dense_post_norm)?;
        let experts = self.experts(moe, params, x)?;
        let experts = self.norm(&experts, &moe.post_norm)?;
        self.g.add(&dense, &experts)
    }

    /// `W_down (gelu(W_gate n) * (W_up n))`
    fn dense(&mut self, layer: &Layer, n: &Tensor) -> Result<Tensor> {
        let gate = self.linear(&layer.ffn_gate, n)?;
        let up = self.linear(&layer.ffn_up, n)?;
        let inner = self.g.geglu(&gate, &up)?;
        self.linear(&layer.ffn_down, &inner)
    }

    /// The weighted sum of the chosen experts' outputs.
    fn experts(&mut self, moe: &Moe, params: &LayerParams, x: &Tensor) -> Result<Tensor> {
        let n = x.ne()[1];
        let (n_embd, k) = (i64::from(self.hparams.n_embd), i64::from(self.hparams.n_expert_used));
        let (ids, weights) = self.route(moe, x)?;

        let m = self.norm(x, &moe.pre_norm)?;
        let m = self.g.reshape(&m, [n_embd, 1, n])?;
        let (gate, up) = match &moe.gate_up {
            GateUp::Packed(packed) => {
                let both = self.g.mul_mat_id(packed, &m, &ids)?;
                let half = [i64::from(params.n_ff_exp), k, n];
                let (nb, skip) = ([both.nb()[1], both.nb()[2]], 4 * params.n_ff_exp as usize);
                (self.g.view(&both, half, nb, 0)?, self.g.view(&both, half, nb, skip)?)
            }
            GateUp::Split { gate, up } => {
                (self.g.mul_mat_id(gate, &m, &ids)?, self.g.mul_mat_id(up, &m, &ids)?)
            }
        };
        let inner = self.g.geglu(&gate, &up)?;
        let mut out = self.g.mul_mat_id(&moe.down, &inner, &ids)?; // [n_embd, k, n]
        if let Some(scale) = &moe.down_scale {
            // One number an expert, gathered by the chosen ids; broadcasting it over n_embd would fit too.
            let table = self.g.reshape(scale, [1, i64::from(self.hparams.n_expert), 1])?;
            let flat = self.g.cont(&ids)?;
            let flat = self.g.reshape(&flat, [k * n, 1, 1])?;
            let chosen = self.g.get_rows(&table, &flat)?;
            let chosen = self.g.reshape(&chosen, [1, k, n])?;
            out = self.g.mul(&out, &chosen)?;
        }
        let out = self.g.mul(&out, &weights)?;
        self.sum_experts(&out)
    }

    /// Ids I32 `[k, n]` of the chosen experts and their weights `[1, k, n]`, which sum to 1.
    fn route(&mut self, moe: &Moe, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let n = x.ne()[1];
        let (e, k) = (i64::from(self.hparams.n_expert), i64::from(self.hparams.n_expert_used));
        // From the residual stream itself, not from a normed and weighted copy.
        let r = self.g.rms_norm(x, self.hparams.eps)?;
        let r = self.g.scale(&r, 1.0 / (self.hparams.n_embd as f32).sqrt())?;
        let r = self.g.mul(&r, &moe.router_scale)?;
        let logits = self.linear(&moe.router, &r)?;
        // softmax, top-k, gather, normalise in this order: CUDA fuses the chain.
        let p = self.g.soft_max(&logits)?;
        let ids = self.g.argsort_top_k(&p, k)?;
        let p = self.g.reshape(&p, [1, e, n])?;
        let weights = self.g.get_rows(&p, &ids)?; // [1, k, n]
        let weights = self.g.reshape(&weights, [k, n, 1])?;
        let sums = self.g.routing_sums(&weights)?;
        let weights = self.g.div(&weights, &sums)?;
        let weights = self.g.reshape(&weights, [1, k, n])?;
        self.g.expand(&weights)?;
        Ok((ids, weights))
    }

    /// `[n_embd, k, n]` to `[n_embd, n]`.
    fn sum_experts(&mut self, out: &Tensor) -> Result<Tensor> {
        let [n_embd, k, n, _] = out.ne();
        let nb = out.nb();
        let mut sum: Option<Tensor> = None;
        for i in 0..k {
            let one = self.g.view(out, [n_embd, n, 1], [nb[2], nb[2] * n as usize], i as usize * nb[1])?;
            sum = Some(match sum {
                Some(sum) => self.g.add(&sum, &one)?,
                None => one,
            });
        }
        match sum {
            // A view of one expert's rows still has gaps.
            Some(sum) if k == 1 => self.g.cont(&sum),
            Some(sum) => Ok(sum),
            None => self.g.cont(out),
        }
    }
}
