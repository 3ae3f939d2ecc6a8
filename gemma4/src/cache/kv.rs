//! The tensors of the KV cache, and what they will cost.

use super::geometry::{CacheState, LayerKind, kv_bytes};
use crate::ggml::{DType, Device, Storage, StorageBuilder, Tensor};
use crate::model::{HParams, LayerParams};
use crate::session::SessionOptions;
use crate::{Error, Result};
use std::collections::BTreeMap;
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct KvConfig {
    /// Full-attention layers, whose cache grows with the context.
    pub full: KvTypes,
    /// Sliding-window layers, whose cache is a ring of constant size.
    pub swa: KvTypes,
    /// Layers that have types of their own, by number. Layers that read another one's cache have its types.
    pub layers: BTreeMap<u32, KvTypes>,
    /// Which of them are stored rotated.
    pub rotation: Rotation,
}

/// Which caches hold rotated keys and values.
///
/// A Hadamard rotation spreads outliers over a block before it is quantised; queries are rotated alike and
/// the attention's output is rotated back, so that only the rounding changes. Keys are rotated over the
/// largest power of two that divides the head, values in blocks of 64, as in llama.cpp. Plain number types
/// are never rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rotation {
    /// Types of 4 and 5 bits, which are hardly usable without it.
    #[default]
    Auto,
    /// All quantised types.
    Always,
    /// None.
    Never,
}

impl Rotation {
    fn applies(self, dtype: DType) -> bool {
        let is_plain = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        match self {
            Rotation::Auto => !is_plain && dtype != DType::Q8_0,
            Rotation::Always => !is_plain,
            Rotation::Never => false,
        }
    }
}

/// Values of a block that values are rotated over.
const ROTATION_V: u32 = 64;

/// The largest power of two that divides a head, if it is worth rotating over.
fn rotation_block(head_dim: u32) -> Option<u32> {
    let block = 1 << head_dim.trailing_zeros();
    (block >= ROTATION_V).then_some(block)
}

/// Types that a cache may have: those that `set_rows` writes and attention reads on every backend.
pub(super) const CACHE_TYPES: [DType; 9] = [
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
        KvConfig { full: types, swa: types, layers: BTreeMap::new(), rotation: Rotation::Auto }
    }

    /// Gives one layer types of its own.
    #[must_use]
    pub fn layer(mut self, layer: u32, types: KvTypes) -> Self {
        self.layers.insert(layer, types);
        self
    }

    /// Bytes of the cache of a session with these options, before anything is allocated. Allocation adds at
    /// most the device's alignment for each tensor.
    ///
    /// Rotated caches need matrices of at most 1.3 MiB besides.
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
        for (i, layer) in hparams.layers.iter().enumerate().filter(|(i, layer)| layer.kv_layer as usize == *i)
        {
            let types = self.types(i, layer.kind);
            let row = |dtype| row_bytes(dtype, layer, i);
            let slots = state.geometry(layer.kind).slots();
            sum = sum.saturating_add(kv_bytes(slots, row(types.k)?, row(types.v)?, 1)?);
        }
        Ok(sum)
    }

    /// The types of layer `i`, which is of `kind`.
    pub(crate) fn types(&self, i: usize, kind: LayerKind) -> KvTypes {
        let own = u32::try_from(i).ok().and_then(|i| self.layers.get(&i)).copied();
        own.unwrap_or(match kind {
            LayerKind::Full => self.full,
            LayerKind::Swa => self.swa,
        })
    }

    fn check(&self) -> Result<()> {
        let all = [self.full, self.swa].into_iter().chain(self.layers.values().copied());
        for dtype in all.flat_map(|types| [types.k, types.v]) {
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
    /// The Hadamard matrix that keys were multiplied with, and queries must be.
    pub rotation_k: Option<Tensor>,
    /// The Hadamard matrix that values were multiplied with, and the attention's output must be.
    pub rotation_v: Option<Tensor>,
}

impl LayerKv {
    /// Sizes of the blocks that keys and values are rotated over; 0 for none.
    pub fn rotation_blocks(&self) -> [u32; 2] {
        [&self.rotation_k, &self.rotation_v].map(|m| m.as_ref().map_or(0, |m| m.ne()[0] as u32))
    }
}

/// The caches of all layers that have their own, in one allocation.
pub(crate) struct KvCache {
    layers: Vec<Option<LayerKv>>,
    storage: Storage,
}

impl KvCache {
    /// Allocates and clears the cache of a session.
    pub fn new(hparams: &HParams, config: &KvConfig, state: &CacheState, device: &Device) -> Result<KvCache> {
        let Layout { builder, layers, matrices } = Layout::new(hparams, config, state)?;
        let mut storage =
            builder.allocate(device, "the KV cache", "use a smaller n_ctx or a smaller KV type")?;
        for (&n, matrix) in &matrices {
            storage.write(matrix, 0, &hadamard_bytes(n))?;
        }
        Ok(KvCache { layers, storage })
    }

    /// A cache without memory, for measuring, and the bytes that it would take.
    pub fn pretend(
        hparams: &HParams,
        config: &KvConfig,
        state: &CacheState,
        device: &Device,
    ) -> Result<(KvCache, u64)> {
        let Layout { builder, layers, .. } = Layout::new(hparams, config, state)?;
        let (storage, n_bytes) = builder.pretend(device)?;
        Ok((KvCache { layers, storage }, n_bytes))
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

/// The tensors of a cache before they have memory.
struct Layout {
    builder: StorageBuilder,
    layers: Vec<Option<LayerKv>>,
    matrices: BTreeMap<u32, Tensor>,
}

impl Layout {
    fn new(hparams: &HParams, config: &KvConfig, state: &CacheState) -> Result<Layout> {
        config.check()?;
        let mut builder = StorageBuilder::state(2 * hparams.layers.len() + 32)?;
        let mut matrices: BTreeMap<u32, Tensor> = BTreeMap::new();
        let mut layers = Vec::with_capacity(hparams.layers.len());
        for (i, layer) in hparams.layers.iter().enumerate() {
            if layer.kv_layer as usize != i {
                layers.push(None);
                continue;
            }
            let types = config.types(i, layer.kind);
            let slots = u64::from(state.geometry(layer.kind).slots());
            let mut tensor = |name, dtype: DType| {
                row_bytes(dtype, layer, i)?;
                builder.tensor(
                    &format!("cache_{name}.{i}"),
                    dtype,
                    [u64::from(layer.n_embd_kv()), slots, 1, 1],
                )
            };
            let (k, v) = (tensor("k", types.k)?, tensor("v", types.v)?);
            let mut rotation = |dtype, block: Option<u32>| match block {
                Some(n) if config.rotation.applies(dtype) => {
                    hadamard(&mut builder, &mut matrices, n).map(Some)
                }
                _ => Ok(None),
            };
            let block = rotation_block(layer.head_dim);
            let rotation_k = rotation(types.k, block)?;
            let rotation_v = rotation(types.v, block.map(|_| ROTATION_V))?;
            layers.push(Some(LayerKv { k, v, rotation_k, rotation_v }));
        }
        Ok(Layout { builder, layers, matrices })
    }
}

/// The matrix of size `n`, made once.
fn hadamard(builder: &mut StorageBuilder, made: &mut BTreeMap<u32, Tensor>, n: u32) -> Result<Tensor> {
    if let Some(have) = made.get(&n) {
        return Ok(have.clone());
    }
    let size = u64::from(n);
    let matrix = builder.tensor(&format!("hadamard_{n}"), DType::F32, [size, size, 1, 1])?;
    made.insert(n, matrix.clone());
    Ok(matrix)
}

/// Sylvester's Hadamard matrix over sqrt(n): entry `(i, j)` is `(-1)^popcount(i & j)`. It is its own inverse.
fn hadamard_bytes(n: u32) -> Vec<u8> {
    let scale = 1.0 / (n as f32).sqrt();
    let entry = |i: u32, j: u32| if (i & j).count_ones().is_multiple_of(2) { scale } else { -scale };
    (0..n).flat_map(|i| (0..n).flat_map(move |j| entry(i, j).to_le_bytes())).collect()
}
