//! The tensors of the KV cache, and what they will cost.

use super::geometry::{CacheState, LayerKind, kv_bytes};
use crate::ggml::{DType, Device, Storage, StorageBuilder, Tensor};
use crate::model::{HParams, LayerParams};
use crate::session::SessionOptions;
use crate::{Error, Result};
use std::ops::Range;

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

    /// Bytes of the cache of a session with these options, before anything is allocated. Allocation adds at
    /// most the device's alignment for each tensor.
    ///
    /// For each layer with keys and values of its own: slots x (row of keys + row of values), where a row
    /// holds `head_dim * n_head_kv` values of its type. Full-attention layers have `n_ctx` slots, rounded up
    /// to 256; sliding-window layers `window - 1 + n_batch`, rounded up, if that is less.
    ///
    /// # Errors
    /// [`Error::Option`] if options or types cannot work for this model.
    pub fn bytes(&self, hparams: &HParams, options: &SessionOptions) -> Result<u64> {
        self.check()?;
        let state = options.cache_state(hparams)?;
        let mut sum = 0u64;
        for (i, layer) in hparams.layers.iter().enumerate().filter(|(i, layer)| layer.kv_layer as usize == *i) {
            let types = self.types(layer.kind);
            let row = |dtype| row_bytes(dtype, layer, i);
            let slots = state.geometry(layer.kind).slots();
            sum = sum.saturating_add(kv_bytes(slots, row(types.k)?, row(types.v)?, 1)?);
        }
        Ok(sum)
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

/// Bytes of one position's keys, or values, of a layer.
fn row_bytes(dtype: DType, layer: &LayerParams, i: usize) -> Result<u64> {
    let head = dtype.row_bytes(u64::from(layer.head_dim)).ok_or_else(|| Error::Option {
        option: "kv",
        value: dtype.to_string(),
        why: format!("layer {i} has heads of {} values, no multiple of the type's block", layer.head_dim),
    })?;
    Ok(head * u64::from(layer.n_head_kv))
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
                row_bytes(dtype, layer, i)?;
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

    /// Tensors of all layers that have their own, by layer: keys, then values.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &LayerKv)> {
        self.layers.iter().enumerate().filter_map(|(i, layer)| Some((i, layer.as_ref()?)))
    }

    /// Appends the rows of a run of slots to `out`.
    pub fn read_rows(&self, tensor: &Tensor, slots: Range<u32>, out: &mut Vec<u8>) -> Result<()> {
        let row = tensor.nb()[1];
        let start = out.len();
        out.resize(start + row * slots.len(), 0);
        self.storage.read(tensor, row * slots.start as usize, &mut out[start..])
    }

    /// Writes the rows of a run of slots.
    pub fn write_rows(&mut self, tensor: &Tensor, slots: Range<u32>, rows: &[u8]) -> Result<()> {
        self.storage.write(tensor, tensor.nb()[1] * slots.start as usize, rows)
    }

    /// Bytes allocated.
    pub fn n_bytes(&self) -> u64 {
        self.storage.n_bytes()
    }
}
