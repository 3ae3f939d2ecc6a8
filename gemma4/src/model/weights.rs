//! The tensors of a model, by their place in the network.

use super::hparams::{HParams, LayerParams};
use super::placement::Placement;
use super::source::WeightSource;
use crate::Result;
use crate::ggml::{Device, Tensor};

/// A weight matrix, with the scale that some quantised exports keep beside it.
pub(crate) struct Linear {
    /// `[in, out]`.
    pub weight: Tensor,
    /// `[1]`; multiplies the product.
    pub scale: Option<Tensor>,
}

/// All tensors of a target model. Shapes as in the file: `[in, out]`.
pub(crate) struct Weights {
    /// `[n_embd, n_vocab]`
    pub token_embd: Tensor,
    /// The output head; the embedding itself if the file has no `output.weight`.
    pub output: Linear,
    /// `[n_embd]`
    pub output_norm: Tensor,
    /// Divisors of the rope angles of full-attention layers, `[n_dims / 2]`, once for each device.
    rope_freqs: Vec<(Device, Tensor)>,
    pub per_layer: Option<PerLayerInput>,
    pub layers: Vec<Layer>,
}

/// The model-wide half of the per-layer input (E2B, E4B).
pub(crate) struct PerLayerInput {
    /// `[n_embd_per_layer * n_layer, n_vocab]`
    pub token_embd: Tensor,
    /// `[n_embd, n_embd_per_layer * n_layer]`
    pub model_proj: Linear,
    /// `[n_embd_per_layer]`
    pub proj_norm: Tensor,
}

/// One layer. Norms are `[n_embd]` unless the text says otherwise.
pub(crate) struct Layer {
    pub attn_norm: Tensor,
    pub qkv: Qkv,
    /// `[head_dim]`
    pub q_norm: Tensor,
    pub attn_output: Linear,
    pub attn_post_norm: Tensor,
    pub ffn_norm: Tensor,
    pub ffn_gate: Linear,
    pub ffn_up: Linear,
    pub ffn_down: Linear,
    pub ffn_post_norm: Tensor,
    pub moe: Option<Moe>,
    pub per_layer: Option<LayerInput>,
    /// `[1]`; multiplies the layer's output.
    pub output_scale: Option<Tensor>,
}

/// Projections of the attention.
pub(crate) enum Qkv {
    /// A layer that reads another one's keys and values.
    Query { q: Linear },
    /// One matrix each; `v` is absent where values are the raw keys. `k_norm` is `[head_dim]`.
    Split { q: Linear, k: Linear, v: Option<Linear>, k_norm: Tensor },
    /// One matrix, rows in the order Q, K, V.
    Fused { qkv: Linear, k_norm: Tensor },
}

/// The experts beside the dense network (26B-A4B).
pub(crate) struct Moe {
    /// `[n_embd, n_expert]`
    pub router: Linear,
    /// `[n_embd]`; multiplies the router's input.
    pub router_scale: Tensor,
    pub pre_norm: Tensor,
    pub post_norm: Tensor,
    /// Norm of the dense network's output before the two are added.
    pub dense_post_norm: Tensor,
    pub gate_up: GateUp,
    /// `[n_ff_exp, n_embd, n_expert]`
    pub down: Tensor,
    /// `[n_expert]`; multiplies each expert's output.
    pub down_scale: Option<Tensor>,
}

/// First matrices of the experts.
pub(crate) enum GateUp {
    /// `[n_embd, 2 * n_ff_exp, n_expert]`, gate rows first.
    Packed(Tensor),
    /// `[n_embd, n_ff_exp, n_expert]` each.
    Split { gate: Tensor, up: Tensor },
}

/// A layer's half of the per-layer input.
pub(crate) struct LayerInput {
    /// `[n_embd, n_embd_per_layer]`
    pub gate: Linear,
    /// `[n_embd_per_layer, n_embd]`
    pub proj: Linear,
    /// `[n_embd]`
    pub post_norm: Tensor,
}

impl Weights {
    /// Claims every tensor that the hyper-parameters call for from `file`, with its shape checked.
    pub fn read(file: &mut WeightSource<'_>, hparams: &HParams, placement: &Placement) -> Result<Weights> {
        let (d, v) = (u64::from(hparams.n_embd), u64::from(hparams.n_vocab));
        file.set_device(placement.embeddings());
        let token_embd = file.table("token_embd.weight", &[d, v])?;
        file.set_device(placement.head());
        let output = match file.linear_opt("output", &[d, v])? {
            Some(output) => output,
            None if placement.embeddings() != placement.head() => {
                Linear { weight: file.table("token_embd.weight", &[d, v])?, scale: None }
            }
            None => {
                let packed = file.packed_twin("token_embd.weight", &[d, v])?;
                Linear { weight: packed.unwrap_or_else(|| token_embd.clone()), scale: None }
            }
        };
        let output_norm = file.vector("output_norm.weight", d)?;
        let rope_dims = hparams.layers.iter().filter(|l| l.is_full()).map(|l| l.rope.n_dims).max();
        let mut rope_freqs = Vec::new();
        if let Some(n) = rope_dims {
            for device in placement.devices() {
                file.set_device(device);
                // Without it all pairs would turn: fluent text that forgets what is far back.
                rope_freqs.push((device, file.vector("rope_freqs.weight", u64::from(n / 2))?));
            }
        }
        file.set_device(placement.layer(0));
        let per_layer = match u64::from(hparams.n_embd_per_layer) {
            0 => {
                let key = "gemma4.embedding_length_per_layer_input";
                file.refuse("per_layer_token_embd.weight", key, "per-layer inputs")?;
                None
            }
            p => {
                let width = p * u64::from(hparams.n_layer());
                Some(PerLayerInput {
                    token_embd: file.host("per_layer_token_embd.weight", &[width, v])?,
                    model_proj: file.linear("per_layer_model_proj", &[d, width])?,
                    proj_norm: file.vector("per_layer_proj_norm.weight", p)?,
                })
            }
        };
        let mut layers = Vec::with_capacity(hparams.layers.len());
        for (i, params) in hparams.layers.iter().enumerate() {
            file.set_device(placement.layer(i));
            let qkv = Qkv::read(file, hparams, params, i)?;
            layers.push(Layer::read(file, hparams, params, i, qkv, placement.experts(i))?);
        }
        Ok(Weights { token_embd, output, output_norm, rope_freqs, per_layer, layers })
    }

    /// Divisors of the rope angles of full-attention layers, `[n_dims / 2]`, as `device` has them.
    pub fn rope_freqs(&self, device: Device) -> Option<&Tensor> {
        self.rope_freqs.iter().find(|(holder, _)| *holder == device).map(|(_, freqs)| freqs)
    }
}

impl Layer {
    /// Claims layer `i` around its attention projections. Its experts go to `experts`.
    pub(super) fn read(
        file: &mut WeightSource<'_>,
        hparams: &HParams,
        params: &LayerParams,
        i: usize,
        qkv: Qkv,
        experts: Device,
    ) -> Result<Layer> {
        let d = u64::from(hparams.n_embd);
        let ff = u64::from(params.n_ff);
        let n = |name: &str| format!("blk.{i}.{name}");
        let norm = |name: &str| format!("blk.{i}.{name}.weight");
        let per_layer = match u64::from(hparams.n_embd_per_layer) {
            0 => None,
            p => Some(LayerInput {
                gate: file.linear(&n("inp_gate"), &[d, p])?,
                proj: file.linear(&n("proj"), &[p, d])?,
                post_norm: file.vector(&norm("post_norm"), d)?,
            }),
        };
        Ok(Layer {
            attn_norm: file.vector(&norm("attn_norm"), d)?,
            qkv,
            q_norm: file.vector(&norm("attn_q_norm"), u64::from(params.head_dim))?,
            attn_output: file.linear(&n("attn_output"), &[u64::from(params.n_embd_q()), d])?,
            attn_post_norm: file.vector(&norm("post_attention_norm"), d)?,
            ffn_norm: file.vector(&norm("ffn_norm"), d)?,
            ffn_gate: file.linear(&n("ffn_gate"), &[d, ff])?,
            ffn_up: file.linear(&n("ffn_up"), &[d, ff])?,
            ffn_down: file.linear(&n("ffn_down"), &[ff, d])?,
            ffn_post_norm: file.vector(&norm("post_ffw_norm"), d)?,
            moe: Moe::read(file, hparams, params, i, experts)?,
            per_layer,
            output_scale: file.vector_opt(&norm("layer_output_scale"), 1)?,
        })
    }
}

impl Qkv {
    fn read(file: &mut WeightSource<'_>, hparams: &HParams, params: &LayerParams, i: usize) -> Result<Qkv> {
        let d = u64::from(hparams.n_embd);
        let (q, kv) = (u64::from(params.n_embd_q()), u64::from(params.n_embd_kv()));
        let n = |name: &str| format!("blk.{i}.{name}");
        if params.kv_layer as usize != i {
            return Ok(Qkv::Query { q: file.linear(&n("attn_q"), &[d, q])? });
        }
        let k_norm = file.vector(&n("attn_k_norm.weight"), u64::from(params.head_dim))?;
        if let Some(qkv) = file.linear_opt(&n("attn_qkv"), &[d, q + 2 * kv])? {
            return Ok(Qkv::Fused { qkv, k_norm });
        }
        Ok(Qkv::Split {
            q: file.linear(&n("attn_q"), &[d, q])?,
            k: file.linear(&n("attn_k"), &[d, kv])?,
            v: file.linear_opt(&n("attn_v"), &[d, kv])?,
            k_norm,
        })
    }
}

impl Moe {
    fn read(
        file: &mut WeightSource<'_>,
        hparams: &HParams,
        params: &LayerParams,
        i: usize,
        experts: Device,
    ) -> Result<Option<Moe>> {
        let (d, e, ff) = (u64::from(hparams.n_embd), u64::from(hparams.n_expert), u64::from(params.n_ff_exp));
        let n = |name: &str| format!("blk.{i}.{name}");
        if e == 0 {
            return file
                .refuse(&n("ffn_gate_inp.weight"), "gemma4.expert_count", "a router's tensors")
                .map(|()| None);
        }
        let Some(router) = file.linear_unscaled_opt(&n("ffn_gate_inp"), &[d, e])? else { return Ok(None) };
        let gate_up = match file.experts_opt(&n("ffn_gate_up_exps.weight"), &[d, 2 * ff, e], experts)? {
            Some(packed) => GateUp::Packed(packed),
            None => GateUp::Split {
                gate: file.experts(&n("ffn_gate_exps.weight"), &[d, ff, e], experts)?,
                up: file.experts(&n("ffn_up_exps.weight"), &[d, ff, e], experts)?,
            },
        };
        Ok(Some(Moe {
            router,
            router_scale: file.vector(&n("ffn_gate_inp.scale"), d)?,
            pre_norm: file.vector(&n("pre_ffw_norm_2.weight"), d)?,
            post_norm: file.vector(&n("post_ffw_norm_2.weight"), d)?,
            dense_post_norm: file.vector(&n("post_ffw_norm_1.weight"), d)?,
            gate_up,
            down: file.experts(&n("ffn_down_exps.weight"), &[ff, d, e], experts)?,
            down_scale: file.vector_opt(&n("ffn_down_exps.scale"), e)?,
        }))
    }
}
