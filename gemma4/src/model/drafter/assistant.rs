//! The MTP assistant: `gemma4-assistant` as llama.cpp writes it, and the older `gemma4_assistant`.

use super::{DrafterFile, load, mismatch};
use crate::Result;
use crate::cache::LayerKind;
use crate::ggml::Tensor;
use crate::ggml::gguf::Metadata;
use crate::model::Model;
use crate::model::hparams::{HParams, Keys, LayerParams, head_dim, limit, pattern, rope};
use crate::model::source::WeightSource;
use crate::model::weights::{Layer, Linear, Qkv};
use std::path::Path;

/// The architecture name that llama.cpp uses.
pub(super) const ARCH: &str = "gemma4-assistant";
/// The architecture name of the first community files.
pub(super) const OLD_ARCH: &str = "gemma4_assistant";

/// Active centroids where a file has the ordered head but does not say.
const DEFAULT_TOP_K: u32 = 32;

/// An assistant in memory: four layers that have queries only and attend to the target's caches.
pub(crate) struct Assistant {
    /// Sizes of its own layers; `kv_layer` is the layer of the target whose cache is attended to.
    pub hparams: HParams,
    /// Width of the target's hidden state.
    pub n_embd_target: u32,
    /// The table that scores the tokens, `[n_embd, n_vocab]`.
    pub token_embd: Tensor,
    /// `[n_embd]`
    pub output_norm: Tensor,
    /// Divisors of the rope angles of full-attention layers.
    pub rope_freqs: Option<Tensor>,
    /// `[2 * n_embd_target, n_embd]`: the target's embedding first, then the hidden state.
    pub pre: Linear,
    /// `[n_embd, n_embd_target]`
    pub post: Linear,
    pub layers: Vec<Layer>,
    pub ordered: Option<Ordered>,
    /// Bytes of the weights.
    pub n_bytes: u64,
}

/// A head that scores the tokens of the best centroids only (E2B, E4B).
pub(crate) struct Ordered {
    /// `[n_embd, n_centroid]`
    pub centroids: Tensor,
    /// Token ids by centroid, I32 `[n_vocab]`: as many consecutive ones for each.
    pub ordering: Tensor,
    /// Centroids.
    pub n: u32,
    /// Centroids whose tokens are scored.
    pub top_k: u32,
}

/// Names that differ between the layouts.
struct Names {
    width: &'static str,
    pre: &'static str,
    post: &'static str,
    centroids: &'static str,
    ordering: &'static str,
    top_k: &'static str,
}

const NEW: Names = Names {
    width: "embedding_length_out",
    pre: "nextn.pre_projection",
    post: "nextn.post_projection",
    centroids: "masked_embd_centroids.weight",
    ordering: "masked_embd_ordering",
    top_k: "masked_embedding.top_k",
};

const OLD: Names = Names {
    width: "n_embd_backbone",
    pre: "mtp.pre_projection",
    post: "mtp.post_projection",
    centroids: "mtp.centroids.weight",
    ordering: "mtp.token_ordering.weight",
    top_k: "centroid_top_k",
};

impl Assistant {
    /// Loads an assistant for `target`, onto its device. Without `ordered_head` every token is scored, also
    /// where the file has centroids.
    pub fn load(file: &DrafterFile, target: &Model, ordered_head: bool) -> Result<Assistant> {
        let names = if file.arch == OLD_ARCH { OLD } else { NEW };
        let keys = Keys { meta: file.meta(), prefix: &file.arch };
        let hparams = read_hparams(&keys, target.hparams())?;
        let n_embd_target = keys.bounded(names.width, limit::WIDTH)?;
        let known = target.hparams().n_embd;
        if n_embd_target != known {
            return Err(mismatch(
                keys.meta,
                &keys.name(names.width),
                n_embd_target,
                known,
                "the hidden size",
            ));
        }

        let mut source = file.source(target.device())?;
        let (d, db, v) = (u64::from(hparams.n_embd), u64::from(known), u64::from(hparams.n_vocab));
        let mut layers = Vec::with_capacity(hparams.layers.len());
        for (i, params) in hparams.layers.iter().enumerate() {
            let q = source.linear(&format!("blk.{i}.attn_q"), &[d, u64::from(params.n_embd_q())])?;
            layers.push(Layer::read(&mut source, &hparams, params, i, Qkv::Query { q }, target.device())?);
        }
        let rope_dims = hparams.layers.iter().filter(|l| l.is_full()).map(|l| l.rope.n_dims).max();
        let rope_freqs = match rope_dims {
            Some(n) => Some(source.vector("rope_freqs.weight", u64::from(n / 2))?),
            None => None,
        };
        let ordered =
            if ordered_head { Ordered::read(&mut source, &keys, &names, file, d, v)? } else { None };
        let mut assistant = Assistant {
            n_embd_target,
            token_embd: source.table("token_embd.weight", &[d, v])?,
            output_norm: source.vector("output_norm.weight", d)?,
            rope_freqs,
            pre: source.linear(names.pre, &[2 * db, d])?,
            post: source.linear(names.post, &[d, db])?,
            layers,
            ordered,
            n_bytes: 0,
            hparams,
        };
        assistant.n_bytes = load(source)?;
        Ok(assistant)
    }

    /// Refuses a target that this assistant was not loaded for; `path` is its file.
    pub fn check(&self, path: &Path, target: &HParams) -> Result<()> {
        let meta = &Metadata::new(path);
        if self.n_embd_target != target.n_embd {
            let key = format!("{ARCH}.{}", NEW.width);
            return Err(mismatch(meta, &key, self.n_embd_target, target.n_embd, "the hidden size"));
        }
        if self.hparams.n_vocab != target.n_vocab {
            let (have, want) = (self.hparams.n_vocab, target.n_vocab);
            return Err(mismatch(meta, "token_embd.weight", have, want, "the vocabulary"));
        }
        for layer in &self.hparams.layers {
            let fits = target.layers.get(layer.kv_layer as usize).is_some_and(|donor| {
                donor.kv_layer == layer.kv_layer
                    && (donor.kind, donor.n_head_kv, donor.head_dim)
                        == (layer.kind, layer.n_head_kv, layer.head_dim)
            });
            if !fits {
                let found = format!("an assistant that reads layer {}", layer.kv_layer);
                return Err(meta.wrong("attention.shared_kv_layers", found, "one for this target model"));
            }
        }
        Ok(())
    }
}

impl Ordered {
    fn read(
        source: &mut WeightSource<'_>,
        keys: &Keys<'_>,
        names: &Names,
        file: &DrafterFile,
        d: u64,
        v: u64,
    ) -> Result<Option<Ordered>> {
        let Some((_, info)) = file.set.tensor(names.centroids) else { return Ok(None) };
        if keys.meta.bool(&keys.name("use_ordered_embeddings"))? == Some(false) {
            return Ok(None);
        }
        let n = info.ne[1];
        if n == 0 || !v.is_multiple_of(n) {
            let expected = format!("a divisor of the {v} tokens");
            return Err(keys.meta.wrong(names.centroids, format!("{n} centroids"), expected));
        }
        // `n` divides the vocabulary, so it fits 32 bits.
        let (n, max) = (n as u32, n as u32);
        for key in ["masked_embedding.centroid_count", "n_centroids"] {
            if let Some(said) = keys.optional(key, u32::MAX)?
                && said != n
            {
                return Err(keys.wrong(key, said.to_string(), format!("{n}, as in {}", names.centroids)));
            }
        }
        let top_k = keys.optional(names.top_k, max)?.unwrap_or(DEFAULT_TOP_K.min(max));
        if top_k == 0 {
            return Err(keys.wrong(names.top_k, "0", format!("1 to {max}")));
        }
        let centroids = source.table(names.centroids, &[d, u64::from(n)])?;
        match source.indices_opt(names.ordering, v, v as u32)? {
            Some(ordering) => Ok(Some(Ordered { centroids, ordering, n, top_k })),
            None => Err(keys.meta.missing(names.ordering, "the token ids of every centroid")),
        }
    }
}

/// Sizes of the assistant, with each layer bound to the target's last layer of its kind that has a cache.
fn read_hparams(keys: &Keys<'_>, target: &HParams) -> Result<HParams> {
    let n_layer = keys.bounded("block_count", limit::LAYERS)?;
    let n = n_layer as usize;
    let swa = pattern(keys, n)?;
    let n_head = keys.list("attention.head_count", n, limit::HEADS)?;
    let n_ff = keys.list("feed_forward_length", n, limit::WIDTH)?;
    let n_head_kv = keys.meta.u32_or_array(&keys.name("attention.head_count_kv"), n)?;
    let mut layers = Vec::with_capacity(n);
    for i in 0..n {
        let (kind, suffix) = if swa[i] { (LayerKind::Swa, "_swa") } else { (LayerKind::Full, "") };
        let Some((donor, params)) = donor(target, kind) else {
            let found = format!("layer {i} of kind {kind:?}");
            return Err(keys.wrong("attention.sliding_window_pattern", found, "kinds that the target has"));
        };
        let dim = head_dim(keys, suffix)?;
        if dim != params.head_dim {
            let key = keys.name(&format!("attention.key_length{suffix}"));
            let what = format!("the head size of layer {donor}");
            return Err(mismatch(keys.meta, &key, dim, params.head_dim, &what));
        }
        if let Some(list) = &n_head_kv
            && list[i] != params.n_head_kv
        {
            let key = keys.name("attention.head_count_kv");
            let found = format!("{} at layer {i}", list[i]);
            let what = format!("the key and value heads of layer {donor}");
            return Err(mismatch(keys.meta, &key, found, params.n_head_kv, &what));
        }
        if n_head[i] % params.n_head_kv != 0 {
            let found = format!("{} at layer {i}", n_head[i]);
            let expected = format!(
                "a multiple of {}, the key and value heads of the target's layer {donor}",
                params.n_head_kv
            );
            return Err(keys.wrong("attention.head_count", found, expected));
        }
        layers.push(LayerParams {
            kind,
            n_head: n_head[i],
            n_head_kv: params.n_head_kv,
            head_dim: dim,
            n_ff: n_ff[i],
            n_ff_exp: 0,
            kv_layer: donor,
            rope: rope(keys, suffix, dim, 1e4)?,
        });
    }
    let window = keys.optional("attention.sliding_window", limit::CONTEXT)?.unwrap_or(target.window);
    if window != target.window {
        // It costs acceptance at most: the target decides what is written.
        tracing::warn!(window, target = target.window, "the assistant was trained with another window");
    }
    Ok(HParams {
        n_embd: keys.bounded("embedding_length", limit::WIDTH)?,
        n_vocab: target.n_vocab,
        n_ctx_train: keys.optional("context_length", limit::CONTEXT)?.unwrap_or(target.n_ctx_train),
        window: target.window,
        eps: keys.positive("attention.layer_norm_rms_epsilon")?,
        softcap: None,
        n_embd_per_layer: 0,
        n_expert: 0,
        n_expert_used: 0,
        layers,
    })
}

/// The last layer of `kind` that has a cache of its own.
fn donor(target: &HParams, kind: LayerKind) -> Option<(u32, &LayerParams)> {
    let owners = target.layers.iter().zip(0u32..).filter(|(layer, i)| layer.kv_layer == *i);
    owners.filter(|(layer, _)| layer.kind == kind).last().map(|(layer, i)| (i, layer))
}
