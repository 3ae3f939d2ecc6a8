//! Hyper-parameters of a Gemma 4 file.

use crate::Result;
use crate::cache::LayerKind;
use crate::ggml::RopeParams;
use crate::ggml::gguf::Metadata;

/// The architecture name of target models.
const ARCH: &str = "gemma4";

/// What a model file says about its network. Sizes are numbers of values.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HParams {
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Tokens in the vocabulary.
    pub n_vocab: u32,
    /// Context length that the model was trained for, in tokens.
    pub n_ctx_train: u32,
    /// Tokens that a sliding-window layer sees, the newest included.
    pub window: u32,
    /// Epsilon of all RMS norms.
    pub eps: f32,
    /// Logits are squeezed into `(-softcap, softcap)` by `softcap * tanh(z / softcap)`.
    pub softcap: Option<f32>,
    /// Width of the per-layer input; 0 if the model has none.
    pub n_embd_per_layer: u32,
    /// Experts of a mixture layer; 0 in dense models.
    pub n_expert: u32,
    /// Experts that each token uses.
    pub n_expert_used: u32,
    /// One entry a layer, first to last.
    pub layers: Vec<LayerParams>,
}

/// Sizes of one layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerParams {
    /// Full attention or a sliding window.
    pub kind: LayerKind,
    /// Query heads.
    pub n_head: u32,
    /// Key and value heads.
    pub n_head_kv: u32,
    /// Values of one head, the same for queries, keys and values.
    pub head_dim: u32,
    /// Width of the feed-forward network.
    pub n_ff: u32,
    /// Width of one expert; 0 in dense models.
    pub n_ff_exp: u32,
    /// The layer whose keys and values this one attends to: itself, or the last layer of its kind that
    /// has its own.
    pub kv_layer: u32,
    pub(crate) rope: RopeParams,
}

impl LayerParams {
    /// Whether the layer sees the whole context.
    pub fn is_full(&self) -> bool {
        self.kind == LayerKind::Full
    }

    /// Values of one position's keys (and as many of its values), all heads.
    pub fn n_embd_kv(&self) -> u32 {
        self.n_head_kv * self.head_dim
    }

    /// Values of one position's queries, all heads.
    pub fn n_embd_q(&self) -> u32 {
        self.n_head * self.head_dim
    }
}

/// Upper bounds that no real model comes near; below them products of three sizes fit 64 bits.
pub(super) mod limit {
    pub const LAYERS: u32 = 1024;
    pub const WIDTH: u32 = 1 << 20;
    pub const HEADS: u32 = 1 << 12;
    pub const HEAD_DIM: u32 = 1 << 12;
    pub const EXPERTS: u32 = 1 << 12;
    pub const CONTEXT: u32 = 1 << 30;
}

impl HParams {
    /// Reads and checks the keys `gemma4.*`. `n_vocab` is the length of the tokenizer's list.
    pub(crate) fn read(meta: &Metadata, n_vocab: u32) -> Result<HParams> {
        let arch = meta.str("general.architecture")?;
        if arch != Some(ARCH) {
            let found = arch.map_or("no such key".to_owned(), |a| format!("\"{a}\""));
            let hint = match arch {
                Some("gemma4-assistant" | "gemma4_assistant" | "dflash" | "gemma4-dflash-draft") => {
                    "\"gemma4\"; this file is a drafter, which is loaded beside a target model"
                }
                _ => "\"gemma4\"; other architectures are not supported",
            };
            return Err(meta.wrong("general.architecture", found, hint));
        }
        let keys = Keys { meta, prefix: ARCH };
        let n_layer = keys.bounded("block_count", limit::LAYERS)?;
        let n_expert = keys.optional("expert_count", limit::EXPERTS)?.unwrap_or(0);
        let n_expert_used = match n_expert {
            0 => 0,
            n => keys.bounded("expert_used_count", n)?,
        };
        let hparams = HParams {
            n_embd: keys.bounded("embedding_length", limit::WIDTH)?,
            n_vocab,
            n_ctx_train: keys.bounded("context_length", limit::CONTEXT)?,
            window: keys.bounded("attention.sliding_window", limit::CONTEXT)?,
            eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            softcap: keys.f32("final_logit_softcapping")?.filter(|&cap| cap != 0.0),
            n_embd_per_layer: keys.required("embedding_length_per_layer_input", limit::WIDTH)?,
            n_expert,
            n_expert_used,
            layers: layers(&keys, n_layer, n_expert > 0)?,
        };
        if hparams.softcap.is_some_and(|cap| !(cap.is_finite() && cap > 0.0)) {
            return Err(keys.wrong(
                "final_logit_softcapping",
                format!("{:?}", hparams.softcap),
                "a positive number",
            ));
        }
        Ok(hparams)
    }

    /// Number of layers.
    pub fn n_layer(&self) -> u32 {
        self.layers.len() as u32
    }
}

fn layers(keys: &Keys<'_>, n_layer: u32, is_moe: bool) -> Result<Vec<LayerParams>> {
    let n = n_layer as usize;
    let swa = pattern(keys, n)?;
    let n_head = keys.list("attention.head_count", n, limit::HEADS)?;
    let n_head_kv = keys.list("attention.head_count_kv", n, limit::HEADS)?;
    let n_ff = keys.list("feed_forward_length", n, limit::WIDTH)?;
    let n_ff_exp =
        if is_moe { keys.list("expert_feed_forward_length", n, limit::WIDTH)? } else { vec![0; n] };
    let (dim_full, dim_swa) = (head_dim(keys, "")?, head_dim(keys, "_swa")?);
    let rope_full = rope(keys, "", dim_full, 1e4)?;
    let rope_swa = rope(keys, "_swa", dim_swa, 1e4)?;

    let shared = keys.optional("attention.shared_kv_layers", n_layer)?.unwrap_or(0);
    let owners = (n_layer - shared) as usize;
    let mut layers = Vec::with_capacity(n);
    for i in 0..n {
        let kind = if swa[i] { LayerKind::Swa } else { LayerKind::Full };
        let kv_layer = if i < owners { Some(i) } else { (0..owners).rev().find(|&j| swa[j] == swa[i]) };
        let Some(kv_layer) = kv_layer else {
            return Err(keys.wrong(
                "attention.shared_kv_layers",
                format!("{shared}, so that layer {i} has nothing to share"),
                "an own-KV layer of each kind before the shared ones",
            ));
        };
        if n_head[i] % n_head_kv[kv_layer] != 0 {
            return Err(keys.wrong(
                "attention.head_count_kv",
                format!("{} at layer {kv_layer}", n_head_kv[kv_layer]),
                format!("a divisor of the {} query heads of layer {i}", n_head[i]),
            ));
        }
        layers.push(LayerParams {
            kind,
            n_head: n_head[i],
            n_head_kv: n_head_kv[kv_layer],
            head_dim: if swa[i] { dim_swa } else { dim_full },
            n_ff: n_ff[i],
            n_ff_exp: n_ff_exp[i],
            kv_layer: kv_layer as u32,
            rope: if swa[i] { rope_swa } else { rope_full },
        });
    }
    Ok(layers)
}

/// Which layers have a sliding window.
pub(super) fn pattern(keys: &Keys<'_>, n: usize) -> Result<Vec<bool>> {
    const KEY: &str = "attention.sliding_window_pattern";
    let name = keys.name(KEY);
    let Some(flags) = keys.meta.ints(&name)? else {
        return Err(keys.meta.missing(&name, "an array of booleans"));
    };
    if flags.len() != n {
        return Err(keys.wrong(KEY, format!("{} entries", flags.len()), format!("{n}, one a layer")));
    }
    Ok(flags.into_iter().map(|flag| flag != 0).collect())
}

/// Head size of one kind of layers; keys and values must agree.
pub(super) fn head_dim(keys: &Keys<'_>, suffix: &str) -> Result<u32> {
    let (key, value) = (format!("attention.key_length{suffix}"), format!("attention.value_length{suffix}"));
    let dim = keys.bounded(&key, limit::HEAD_DIM)?;
    let other = keys.bounded(&value, limit::HEAD_DIM)?;
    if dim != other || dim % 2 != 0 {
        let expected = format!("{}, an even number, as in {key}", dim & !1);
        return Err(keys.wrong(&value, other.to_string(), expected));
    }
    Ok(dim)
}

pub(super) fn rope(keys: &Keys<'_>, suffix: &str, head_dim: u32, default_base: f32) -> Result<RopeParams> {
    let (base, dims) = (format!("rope.freq_base{suffix}"), format!("rope.dimension_count{suffix}"));
    let freq_base = keys.f32(&base)?.unwrap_or(default_base);
    if !(freq_base.is_finite() && freq_base > 0.0) {
        return Err(keys.wrong(&base, freq_base.to_string(), "a positive number"));
    }
    let n_dims = keys.optional(&dims, head_dim)?.unwrap_or(head_dim);
    if n_dims < 2 || n_dims % 2 != 0 {
        return Err(keys.wrong(&dims, n_dims.to_string(), "an even number of at least 2"));
    }
    Ok(RopeParams { n_dims, freq_base })
}

/// Access to the keys of an architecture, without their prefix.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub meta: &'a Metadata,
    /// Name of the architecture.
    pub prefix: &'a str,
}

impl Keys<'_> {
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub fn wrong(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> crate::Error {
        self.meta.wrong(&self.name(key), found, expected)
    }

    pub fn optional(&self, key: &str, max: u32) -> Result<Option<u32>> {
        match self.meta.u32(&self.name(key))? {
            Some(n) if n > max => Err(self.wrong(key, n.to_string(), format!("at most {max}"))),
            other => Ok(other),
        }
    }

    pub fn required(&self, key: &str, max: u32) -> Result<u32> {
        self.optional(key, max)?.ok_or_else(|| self.meta.missing(&self.name(key), "an integer"))
    }

    pub fn bounded(&self, key: &str, max: u32) -> Result<u32> {
        match self.required(key, max)? {
            0 => Err(self.wrong(key, "0", format!("1 to {max}"))),
            n => Ok(n),
        }
    }

    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.meta.f32(&self.name(key))
    }

    pub fn positive(&self, key: &str) -> Result<f32> {
        match self.f32(key)? {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            Some(x) => Err(self.wrong(key, x.to_string(), "a positive number")),
            None => Err(self.meta.missing(&self.name(key), "a number")),
        }
    }

    /// A number for every layer, or an array with one a layer.
    pub fn list(&self, key: &str, n: usize, max: u32) -> Result<Vec<u32>> {
        let name = self.name(key);
        let Some(list) = self.meta.u32_or_array(&name, n)? else {
            return Err(self.meta.missing(&name, "an integer, or one a layer"));
        };
        match list.iter().position(|&x| x == 0 || x > max) {
            Some(i) => Err(self.wrong(key, format!("{} at layer {i}", list[i]), format!("1 to {max}"))),
            None => Ok(list),
        }
    }
}
