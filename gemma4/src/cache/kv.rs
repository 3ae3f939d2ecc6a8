//! The tensors of the KV cache, and what they will cost.

use super::geometry::{CacheState, LayerKind};
use crate::ggml::{DType, Device, Storage, StorageBuilder, Tensor};
use crate::model::HParams;
use crate::{Error, Result};

/// Element types of one kind of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvTypes {
    /// Type of the keys.
    pub k: DType,
    /// Type of the values.
    pub v: DType,
}

/// Element types of a session's KV cache. Default: F16 everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct KvConfig {
    /// Full-attention layers, whose cache grows with the context.
    pub full: KvTypes,
    /// Sliding-window layers, whose cache is a ring of constant size.
    pub swa: KvTypes,
}

/// Types that a cache may have: those that `set_rows` writes and attention reads on every backend.
const CACHE_TYPES: [DType; 9] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q5_1,
    DType::Q5_0,
    DType::Q4_1,
    DType::Q4_0,
    DType::IQ4_NL,
];

impl KvConfig {
    /// One type for all keys and values.
    pub fn uniform(dtype: DType) -> Self {
        let types = KvTypes { k: dtype, v: dtype };
        KvConfig { full: types, swa: types }
    }

    fn types(&self, kind: LayerKind) -> KvTypes {
        match kind {
            LayerKind::Full => self.full,
            LayerKind::Swa => self.swa,
        }
    }

    fn check(&self) -> Result<()> {
        for dtype in [self.full.k, self.full.v, self.swa.k, self.swa.v] {
            if !CACHE_TYPES.contains(&dtype) {
                return Err(Error::Option {
                    option: "kv",
                    value: dtype.to_string(),
                    why: format!("a KV cache can be one of {CACHE_TYPES:?}"),
                });
            }
        }
        Ok(())
    }
}

impl Default for KvConfig {
    fn default() -> Self {
        KvConfig::uniform(DType::F16)
    }
}

/// What one layer's cache consists of. Rows are positions' slots, all heads side by side.
#[derive(Clone, Debug)]
pub(crate) struct LayerKv {
    /// Keys after norm and rope: `[head_dim * n_head_kv, slots]`.
    pub k: Tensor,
    /// Values: `[head_dim * n_head_kv, slots]`.
    pub v: Tensor,
}

/// The caches of all layers that have their own, in one allocation.
pub(crate) struct KvCache {
    layers: Vec<Option<LayerKv>>,
    storage: Storage,
}

impl KvCache {
    /// Allocates and clears the cache of a session.
    pub fn new(hparams: &HParams, config: &KvConfig, state: &CacheState, device: &Device) -> Result<KvCache> {
        config.check()?;
        let mut builder = StorageBuilder::state(2 * hparams.layers.len())?;
        let mut layers = Vec::with_capacity(hparams.layers.len());
        for (i, layer) in hparams.layers.iter().enumerate() {
            if layer.kv_layer as usize != i {
                layers.push(None);
                continue;
            }
            let types = config.types(layer.kind);
            let slots = u64::from(state.geometry(layer.kind).slots());
            let mut tensor = |name, dtype: DType| {
                if dtype.row_bytes(u64::from(layer.head_dim)).is_none() {
                    return Err(Error::Option {
                        option: "kv",
                        value: dtype.to_string(),
                        why: format!("layer {i} has heads of {} values, no multiple of its block", layer.head_dim),
                    });
                }
                builder.tensor(&format!("cache_{name}.{i}"), dtype, [u64::from(layer.n_embd_kv()), slots, 1, 1])
            };
            layers.push(Some(LayerKv { k: tensor("k", types.k)?, v: tensor("v", types.v)? }));
        }
        let storage = builder.allocate(device, "the KV cache", "use a smaller n_ctx or a smaller KV type")?;
        Ok(KvCache { layers, storage })
    }

    /// The cache that layer `i` of the model owns.
    pub fn layer(&self, i: usize) -> Option<&LayerKv> {
        self.layers.get(i)?.as_ref()
    }

    /// Bytes allocated.
    pub fn n_bytes(&self) -> u64 {
        self.storage.n_bytes()
    }
}
