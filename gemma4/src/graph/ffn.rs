//! Feed-forward networks: dense, and a mixture of experts beside a dense one.

use super::Build;
use crate::Result;
use crate::ggml::Tensor;
use crate::model::{GateUp, Layer, LayerParams, Moe};

impl Build<'_> {
    /// The layer's feed-forward part before its last norm. `x` is `[n_embd, n]`, the residual stream.
    pub fn feed_forward(&mut self, layer: &Layer, params: &LayerParams, x: &Tensor) -> Result<Tensor> {
        let n = self.norm(x, &layer.ffn_norm)?;
        let Some(moe) = &layer.moe else { return self.dense(layer, &n) };
        // The three norms of `x` side by side, and later those of the two halves: each group is one kernel on CUDA.
        let r = self.router_input(moe, x)?;
        let m = self.norm(x, &moe.pre_norm)?;
        for normed in [&n, &r, &m] {
            self.g.expand(normed)?;
        }
        let (ids, weights) = self.route(moe, &r)?;
        let dense = self.dense(layer, &n)?;
        self.g.expand(&dense)?;
        let experts = self.experts(moe, params, &m, &ids)?;
        self.g.expand(&experts)?;
        let dense = self.norm(&dense, &moe.dense_post_norm)?;
        let experts = self.combine(moe, &experts, &ids, &weights)?;
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

    /// What the router sees: the residual stream itself, not its normed and weighted copy.
    fn router_input(&mut self, moe: &Moe, x: &Tensor) -> Result<Tensor> {
        let r = self.g.rms_norm(x, self.hparams.eps)?;
        let r = self.g.scale(&r, 1.0 / (self.hparams.n_embd as f32).sqrt())?;
        self.g.mul(&r, &moe.router_scale)
    }

    /// Ids I32 `[k, n]` of the chosen experts and their weights `[1, k, n]`, which sum to 1.
    fn route(&mut self, moe: &Moe, r: &Tensor) -> Result<(Tensor, Tensor)> {
        let n = r.ne()[1];
        let (e, k) = (i64::from(self.hparams.n_expert), i64::from(self.hparams.n_expert_used));
        let logits = self.linear(&moe.router, r)?;
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

    /// The chosen experts' outputs `[n_embd, k, n]` for the normed input `m`.
    fn experts(&mut self, moe: &Moe, params: &LayerParams, m: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let n = m.ne()[1];
        let (n_embd, k) = (i64::from(self.hparams.n_embd), i64::from(self.hparams.n_expert_used));
        let m = self.g.reshape(m, [n_embd, 1, n])?;
        let (gate, up) = match &moe.gate_up {
            GateUp::Packed(packed) => {
                let both = self.g.mul_mat_id(packed, &m, ids)?;
                let half = [i64::from(params.n_ff_exp), k, n];
                let (nb, skip) = ([both.nb()[1], both.nb()[2]], 4 * params.n_ff_exp as usize);
                (self.g.view(&both, half, nb, 0)?, self.g.view(&both, half, nb, skip)?)
            }
            GateUp::Split { gate, up } => {
                (self.g.mul_mat_id(gate, &m, ids)?, self.g.mul_mat_id(up, &m, ids)?)
            }
        };
        let inner = self.g.geglu(&gate, &up)?;
        self.g.mul_mat_id(&moe.down, &inner, ids)
    }

    /// The weighted sum of the experts' outputs `[n_embd, k, n]`: `[n_embd, n]`.
    fn combine(&mut self, moe: &Moe, out: &Tensor, ids: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let [_, k, n, _] = out.ne();
        let mut out = out.clone();
        if let Some(scale) = &moe.down_scale {
            // One number an expert, gathered by the chosen ids; broadcasting it over n_embd would fit too.
            let table = self.g.reshape(scale, [1, i64::from(self.hparams.n_expert), 1])?;
            let flat = self.g.cont(ids)?;
            let flat = self.g.reshape(&flat, [k * n, 1, 1])?;
            let chosen = self.g.get_rows(&table, &flat)?;
            let chosen = self.g.reshape(&chosen, [1, k, n])?;
            out = self.g.mul(&out, &chosen)?;
        }
        let out = self.g.mul(&out, weights)?;
        self.sum_experts(&out)
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
