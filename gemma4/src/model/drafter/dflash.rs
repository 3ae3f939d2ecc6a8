//! The DFlash drafter: `dflash` as llama.cpp writes it, and Lucebox's `gemma4-dflash-draft`.

use super::{DrafterFile, load, mismatch};
use crate::Result;
use crate::cache::LayerKind;
use crate::ggml::gguf::Metadata;
use crate::ggml::{RopeParams, Tensor};
use crate::model::Model;
use crate::model::hparams::{HParams, Keys, LayerParams, limit};
use crate::model::source::WeightSource;
use crate::model::weights::Linear;
use std::path::Path;

/// The architecture name that llama.cpp uses.
pub(super) const ARCH: &str = "dflash";
/// The architecture name of Lucebox's files.
pub(super) const LUCEBOX_ARCH: &str = "gemma4-dflash-draft";

const DEFAULT_BLOCK: u32 = 16;
/// The largest block: more than any published drafter has, and no more than one graph verifies well.
const MAX_BLOCK: u32 = 256;

/// A block drafter in memory.
pub(crate) struct Dflash {
    /// Sizes of its layers, which all have keys and values of their own.
    pub hparams: HParams,
    /// Layers of the target whose outputs it reads, in the order of its fusion matrix.
    pub taps: Vec<u32>,
    /// Tokens of a block, the known one included.
    pub block: u32,
    pub mask_token: u32,
    /// Multiplies the embeddings of a block's tokens.
    pub embd_scale: f32,
    /// Multiplies the products of queries and keys.
    pub attn_scale: f32,
    /// Multiplies the values.
    pub value_scale: f32,
    pub activation: Activation,
    /// The file says that all layers are causal.
    pub is_causal: bool,
    /// `[n_embd_target * taps, n_embd]`
    pub fc: Linear,
    /// `[n_embd]`; norm of the fused features.
    pub hidden_norm: Tensor,
    /// `[n_embd]`
    pub output_norm: Tensor,
    /// `[n_embd, n_vocab]`; absent where the target's is used.
    pub token_embd: Option<Tensor>,
    /// `[n_embd, n_vocab]`; absent where the target's is used.
    pub output: Option<Linear>,
    /// Divisors of the rope angles.
    pub rope_freqs: Option<Tensor>,
    pub layers: Vec<DflashLayer>,
    /// Bytes of the weights.
    pub n_bytes: u64,
}

/// The function of the gated feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    Gelu,
}

/// One layer; norms are `[n_embd]`.
pub(crate) struct DflashLayer {
    pub attn_norm: Tensor,
    pub q: Linear,
    pub k: Linear,
    /// Absent where values are the raw keys, normed.
    pub v: Option<Linear>,
    /// `[head_dim]`
    pub q_norm: Tensor,
    /// `[head_dim]`
    pub k_norm: Tensor,
    pub attn_output: Linear,
    pub ffn_norm: Tensor,
    pub ffn_gate: Linear,
    pub ffn_up: Linear,
    pub ffn_down: Linear,
}

/// Names that differ between the layouts.
struct Names {
    taps: &'static str,
    /// What layer ids are greater by than the layer whose output is meant.
    taps_from: u32,
    block: &'static str,
    fc: &'static str,
    hidden_norm: &'static str,
}

const UPSTREAM: Names = Names {
    taps: "target_layers",
    taps_from: 1,
    block: "block_size",
    fc: "fc",
    hidden_norm: "enc.output_norm.weight",
};

const LUCEBOX: Names = Names {
    taps: "dflash.target_layer_ids",
    taps_from: 0,
    block: "dflash.block_size",
    fc: "dflash.fc",
    hidden_norm: "dflash.hidden_norm.weight",
};

impl Dflash {
    /// Loads a drafter for `target`, onto its device.
    pub fn load(file: &DrafterFile, target: &Model) -> Result<Dflash> {
        refuse_relatives(file)?;
        let names = if file.arch == LUCEBOX_ARCH { LUCEBOX } else { UPSTREAM };
        let keys = Keys { meta: file.meta(), prefix: &file.arch };
        let hparams = read_hparams(&keys, target.hparams())?;
        let taps = read_taps(&keys, &names, target.hparams())?;
        let mut source = file.source(target.device())?;
        let (d, dt) = (u64::from(hparams.n_embd), u64::from(target.hparams().n_embd));
        let v = u64::from(hparams.n_vocab);
        let token_embd = source.table_opt("token_embd.weight", &[d, v])?;
        let output = match (source.linear_opt("output", &[d, v])?, &token_embd) {
            (None, Some(embd)) => Some(Linear { weight: embd.clone(), scale: None }),
            (output, _) => output,
        };
        if d != dt && (token_embd.is_none() || output.is_none()) {
            return Err(mismatch(keys.meta, &keys.name("embedding_length"), d, dt, "the hidden size"));
        }
        let layers = (0..hparams.layers.len())
            .map(|i| DflashLayer::read(&mut source, &hparams, i))
            .collect::<Result<Vec<_>>>()?;
        let head_dim = hparams.layers.first().map_or(1, |l| l.head_dim);
        let mut drafter = Dflash {
            mask_token: read_mask_token(&keys, hparams.n_vocab)?,
            block: read_block(&keys, &names)?,
            embd_scale: scale(&keys, "embedding_scale")?.unwrap_or((hparams.n_embd as f32).sqrt()),
            attn_scale: scale(&keys, "attention.scale")?.unwrap_or(1.0 / (head_dim as f32).sqrt()),
            value_scale: scale(&keys, "attention.value_scale")?.unwrap_or(1.0),
            activation: read_activation(&keys)?,
            is_causal: keys.meta.bool(&keys.name("attention.causal"))?.unwrap_or(false),
            fc: source.linear(names.fc, &[dt * taps.len() as u64, d])?,
            hidden_norm: source.vector(names.hidden_norm, d)?,
            output_norm: source.vector("output_norm.weight", d)?,
            rope_freqs: source.vector_opt("rope_freqs.weight", u64::from(head_dim / 2))?,
            taps,
            token_embd,
            output,
            layers,
            n_bytes: 0,
            hparams,
        };
        drafter.n_bytes = load(source)?;
        Ok(drafter)
    }

    /// Refuses a target that this drafter was not loaded for; `path` is its file.
    pub fn check(&self, path: &Path, target: &HParams) -> Result<()> {
        let meta = &Metadata::new(path);
        let width = self.fc.weight.ne()[0] as u64;
        let wanted = self.taps.len() as u64 * u64::from(target.n_embd);
        if width != wanted {
            let what = format!("{} hidden states", self.taps.len());
            return Err(mismatch(meta, "fc.weight", width, wanted, &what));
        }
        if self.hparams.n_vocab != target.n_vocab {
            let (have, want) = (self.hparams.n_vocab, target.n_vocab);
            return Err(mismatch(meta, "vocabulary", have, want, "the vocabulary"));
        }
        match self.taps.iter().find(|&&tap| tap >= target.n_layer()) {
            Some(tap) => Err(mismatch(meta, "target_layers", tap, target.n_layer(), "below the layers")),
            None => Ok(()),
        }
    }
}

impl DflashLayer {
    fn read(file: &mut WeightSource<'_>, hparams: &HParams, i: usize) -> Result<DflashLayer> {
        let params = &hparams.layers[i];
        let (d, ff, dim) = (u64::from(hparams.n_embd), u64::from(params.n_ff), u64::from(params.head_dim));
        let (q, kv) = (u64::from(params.n_embd_q()), u64::from(params.n_embd_kv()));
        let n = |name: &str| format!("blk.{i}.{name}");
        let norm = |name: &str| format!("blk.{i}.{name}.weight");
        Ok(DflashLayer {
            attn_norm: file.vector(&norm("attn_norm"), d)?,
            q: file.linear(&n("attn_q"), &[d, q])?,
            k: file.linear(&n("attn_k"), &[d, kv])?,
            v: file.linear_opt(&n("attn_v"), &[d, kv])?,
            q_norm: file.vector(&norm("attn_q_norm"), dim)?,
            k_norm: file.vector(&norm("attn_k_norm"), dim)?,
            attn_output: file.linear(&n("attn_output"), &[q, d])?,
            ffn_norm: file.vector(&norm("ffn_norm"), d)?,
            ffn_gate: file.linear(&n("ffn_gate"), &[d, ff])?,
            ffn_up: file.linear(&n("ffn_up"), &[d, ff])?,
            ffn_down: file.linear(&n("ffn_down"), &[ff, d])?,
        })
    }
}

/// DFlash2 and DSpark share the architecture name, but not the network.
fn refuse_relatives(file: &DrafterFile) -> Result<()> {
    let meta = file.meta();
    let key = |name: &str| format!("{}.{name}", file.arch);
    let refuse = |key: &str, what: &str| {
        Err(meta.wrong(
            key,
            format!("a part of {what}"),
            "a DFlash drafter of the first kind, which has none",
        ))
    };
    for name in ["conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k"] {
        // Writers may state a 0.
        if meta.get(&key(name)).is_some() && meta.u64(&key(name))? != Some(0) {
            return refuse(&key(name), "DFlash2");
        }
    }
    for name in ["sample_from_anchor", "has_confidence_head"] {
        if meta.bool(&key(name))? == Some(true) {
            return refuse(&key(name), "DSpark");
        }
    }
    let tensors = [
        ("selector_hidden.weight", "DFlash2"),
        ("blk.0.attn_conv_base", "DFlash2"),
        ("markov_w1.weight", "DSpark"),
        ("conf_proj.weight", "DSpark"),
        ("blk.0.post_attention_norm.weight", "DSpark"),
        ("blk.0.post_ffw_norm.weight", "DSpark"),
        ("blk.0.layer_output_scale.weight", "DSpark"),
        ("d2t", "a drafter with a vocabulary of its own"),
        ("blk.0.attn_sinks", "a drafter with attention sinks"),
        ("blk.0.attn_sinks.weight", "a drafter with attention sinks"),
    ];
    match tensors.iter().find(|(name, _)| file.has(name)) {
        Some((name, what)) => refuse(name, what),
        None => Ok(()),
    }
}

fn read_hparams(keys: &Keys<'_>, target: &HParams) -> Result<HParams> {
    let n = keys.bounded("block_count", limit::LAYERS)? as usize;
    let window = keys.optional("attention.sliding_window", limit::CONTEXT)?.filter(|&w| w > 0);
    let swa = read_pattern(keys, n, window.is_some())?;
    let (n_head, n_head_kv) = (
        keys.list("attention.head_count", n, limit::HEADS)?,
        keys.list("attention.head_count_kv", n, limit::HEADS)?,
    );
    let n_ff = keys.list("feed_forward_length", n, limit::WIDTH)?;
    let head_dim = keys.bounded("attention.key_length", limit::HEAD_DIM)?;
    let other = keys.bounded("attention.value_length", limit::HEAD_DIM)?;
    if head_dim != other || head_dim % 2 != 0 {
        let expected = format!("{}, an even number, as in attention.key_length", head_dim & !1);
        return Err(keys.wrong("attention.value_length", other.to_string(), expected));
    }
    let freq_base = keys.positive("rope.freq_base")?;
    let n_dims = keys.optional("rope.dimension_count", head_dim)?.unwrap_or(head_dim);
    if n_dims < 2 || n_dims % 2 != 0 {
        let expected = "an even number of at least 2";
        return Err(keys.wrong("rope.dimension_count", n_dims.to_string(), expected));
    }
    if let Some(said) = keys.optional("vocab_size", u32::MAX)?
        && said != target.n_vocab
    {
        return Err(mismatch(keys.meta, &keys.name("vocab_size"), said, target.n_vocab, "the vocabulary"));
    }
    if let Some(tokens) = keys.meta.strings("tokenizer.ggml.tokens")?
        && tokens.len() != target.n_vocab as usize
    {
        let (have, want) = (tokens.len(), target.n_vocab);
        return Err(mismatch(keys.meta, "tokenizer.ggml.tokens", have, want, "the vocabulary"));
    }
    let mut layers = Vec::with_capacity(n);
    for i in 0..n {
        if n_head[i] % n_head_kv[i] != 0 {
            let found = format!("{} at layer {i}", n_head_kv[i]);
            let expected = format!("a divisor of the {} query heads", n_head[i]);
            return Err(keys.wrong("attention.head_count_kv", found, expected));
        }
        layers.push(LayerParams {
            kind: if swa[i] { LayerKind::Swa } else { LayerKind::Full },
            n_head: n_head[i],
            n_head_kv: n_head_kv[i],
            head_dim,
            n_ff: n_ff[i],
            n_ff_exp: 0,
            kv_layer: i as u32,
            rope: RopeParams { n_dims, freq_base },
        });
    }
    Ok(HParams {
        n_embd: keys.bounded("embedding_length", limit::WIDTH)?,
        n_vocab: target.n_vocab,
        n_ctx_train: keys.optional("context_length", limit::CONTEXT)?.unwrap_or(target.n_ctx_train),
        window: window.unwrap_or(limit::CONTEXT),
        eps: keys.positive("attention.layer_norm_rms_epsilon")?,
        // The head is the target's, and so is what follows it.
        softcap: target.softcap,
        n_embd_per_layer: 0,
        n_expert: 0,
        n_expert_used: 0,
        layers,
    })
}

/// Which layers have a sliding window. Lucebox's files do not say: z-lab's drafters end with a full layer.
fn read_pattern(keys: &Keys<'_>, n: usize, has_window: bool) -> Result<Vec<bool>> {
    if !has_window {
        return Ok(vec![false; n]);
    }
    if keys.prefix == LUCEBOX_ARCH && keys.meta.get(&keys.name("attention.sliding_window_pattern")).is_none()
    {
        return Ok((0..n).map(|i| i + 1 < n).collect());
    }
    crate::model::hparams::pattern(keys, n)
}

fn read_taps(keys: &Keys<'_>, names: &Names, target: &HParams) -> Result<Vec<u32>> {
    let name = keys.name(names.taps);
    let Some(ids) = keys.meta.ints(&name)? else {
        return Err(keys.meta.missing(&name, "the target's layers that the drafter reads"));
    };
    if ids.is_empty() {
        return Err(keys.meta.wrong(&name, "an empty list", "at least one layer of the target model"));
    }
    let (first, end) = (i64::from(names.taps_from), i64::from(target.n_layer() + names.taps_from));
    match ids.iter().find(|id| !(first..end).contains(id)) {
        Some(id) => {
            let expected = format!("{first} to {}, for the target's {} layers", end - 1, target.n_layer());
            Err(keys.meta.wrong(&name, id.to_string(), expected))
        }
        // In range, so each fits.
        None => Ok(ids.into_iter().map(|id| (id - first) as u32).collect()),
    }
}

fn read_mask_token(keys: &Keys<'_>, n_vocab: u32) -> Result<u32> {
    let own = keys.optional("dflash.mask_token_id", u32::MAX)?;
    let common = "tokenizer.ggml.mask_token_id";
    let Some(token) = own.map_or_else(|| keys.meta.u32(common), |token| Ok(Some(token)))? else {
        return Err(keys.meta.missing(common, "the token that stands for what is to be drafted"));
    };
    if token >= n_vocab {
        return Err(keys.meta.wrong(common, token.to_string(), format!("below {n_vocab}")));
    }
    Ok(token)
}

fn read_block(keys: &Keys<'_>, names: &Names) -> Result<u32> {
    match keys.optional(names.block, MAX_BLOCK)?.unwrap_or(DEFAULT_BLOCK) {
        n @ 2.. => Ok(n),
        n => Err(keys.wrong(names.block, n.to_string(), format!("2 to {MAX_BLOCK}"))),
    }
}

fn read_activation(keys: &Keys<'_>) -> Result<Activation> {
    let name = keys.name("hidden_activation");
    match keys.meta.str(&name)? {
        None | Some("silu") => Ok(Activation::Silu),
        Some("gelu" | "gelu_pytorch_tanh") => Ok(Activation::Gelu),
        Some(other) => Err(keys.meta.wrong(&name, format!("{other:?}"), "silu, gelu or gelu_pytorch_tanh")),
    }
}

/// A factor, which must be a finite number other than 0.
fn scale(keys: &Keys<'_>, key: &str) -> Result<Option<f32>> {
    match keys.f32(key)? {
        Some(x) if !x.is_finite() || x == 0.0 => {
            Err(keys.wrong(key, x.to_string(), "a finite number other than 0"))
        }
        other => Ok(other),
    }
}
