//! The tensors of the KV cache, and what they will cost.

use super::geometry::{CacheState, Geometry, LayerKind, kv_bytes};
use super::rotation::{self, BlockRotation, Matrices, Rotation, Transform};
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
    /// Whether rotations change the signs of some values first. Default true.
    pub signs: bool,
    /// Values that values are rotated over, a power of two: heads that are smaller are rotated whole. Keys are
    /// always rotated over the whole head. Default 64.
    pub value_block: u32,
}

/// Types that a cache may have: those that `set_rows` writes and attention reads on every backend.
pub(super) const CACHE_TYPES: [DType; 10] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q5_1,
    DType::Q5_0,
    DType::Q4_1,
    DType::Q4_0,
    DType::IQ4_NL,
    DType::TQ3_0,
];

impl KvConfig {
    /// One type for all keys and values.
    pub fn uniform(dtype: DType) -> Self {
        let types = KvTypes { k: dtype, v: dtype };
        KvConfig {
            full: types,
            swa: types,
            layers: BTreeMap::new(),
            rotation: Rotation::Auto,
            signs: true,
            value_block: rotation::VALUE_BLOCK,
        }
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
        rotation::check_value_block(self.value_block)
    }

    /// The transforms that rotate, and take an attention's output back.
    fn transforms(&self) -> [Transform; 2] {
        if self.signs { [Transform::Signed, Transform::SignedInverse] } else { [Transform::Plain; 2] }
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
    /// Rotates keys before they are stored, and queries.
    pub rotation_k: Option<BlockRotation>,
    /// Rotates values before they are stored.
    pub rotation_v: Option<BlockRotation>,
    /// Takes the attention's output back: the inverse of `rotation_v`, there if that is there.
    pub rotation_out: Option<BlockRotation>,
    /// Where all this is, so that attention is computed there.
    pub device: Device,
}

/// Whether keys and values are plain floats of one type, for which ggml's CPU has attention of its own.
pub(crate) fn is_plain([k, v]: [&Tensor; 2]) -> bool {
    matches!(k.dtype(), DType::F32 | DType::F16) && k.dtype() == v.dtype()
}

impl LayerKv {
    /// As [`is_plain`] says.
    pub fn is_plain(&self) -> bool {
        is_plain([&self.k, &self.v])
    }

    /// Sizes of the blocks that keys and values are rotated over; 0 for none.
    pub fn rotation_blocks(&self) -> [u32; 2] {
        [&self.rotation_k, &self.rotation_v].map(|r| r.as_ref().map_or(0, BlockRotation::block))
    }

    /// What tells the rotations of keys and values apart from others; 0 for none.
    pub fn rotation_ids(&self) -> [u32; 2] {
        [&self.rotation_k, &self.rotation_v].map(|r| r.as_ref().map_or(0, BlockRotation::id))
    }
}

/// The caches of all layers that have their own, in one allocation a device.
pub(crate) struct KvCache {
    layers: Vec<Option<LayerKv>>,
    geometries: [Geometry; 2],
    storages: Vec<Storage>,
}

/// The device of each layer's cache.
pub(crate) type Places<'a> = &'a dyn Fn(usize) -> Device;

impl KvCache {
    /// Allocates and clears the cache of a session.
    pub fn new(
        hparams: &HParams,
        config: &KvConfig,
        state: &CacheState,
        places: Places<'_>,
    ) -> Result<KvCache> {
        let Layout { parts, layers } = Layout::new(hparams, config, state, places)?;
        let mut storages = Vec::with_capacity(parts.len());
        for Part { device, builder, matrices } in parts {
            let hint = "use a smaller n_ctx or a smaller KV type";
            let mut storage = builder.allocate(&device, "the KV cache", hint)?;
            for (matrix, bytes) in matrices.data() {
                storage.write(matrix, 0, &bytes)?;
            }
            storages.push(storage);
        }
        Ok(KvCache { layers, geometries: [*state.full(), *state.swa()], storages })
    }

    /// A cache without memory, for measuring, and the bytes that it would take on each device.
    pub fn pretend(
        hparams: &HParams,
        config: &KvConfig,
        state: &CacheState,
        places: Places<'_>,
    ) -> Result<(KvCache, Vec<(Device, u64)>)> {
        let Layout { parts, layers } = Layout::new(hparams, config, state, places)?;
        let (mut storages, mut taken) = (Vec::new(), Vec::new());
        for Part { device, builder, .. } in parts {
            let (storage, n_bytes) = builder.pretend(&device)?;
            storages.push(storage);
            taken.push((device, n_bytes));
        }
        Ok((KvCache { layers, geometries: [*state.full(), *state.swa()], storages }, taken))
    }

    /// Where the positions of one kind of layers are.
    pub fn geometry(&self, kind: LayerKind) -> &Geometry {
        let [full, swa] = &self.geometries;
        match kind {
            LayerKind::Full => full,
            LayerKind::Swa => swa,
        }
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
        match self.storages.iter().find(|storage| storage.owns(tensor)) {
            Some(storage) => storage.read(tensor, row * slots.start as usize, &mut out[start..]),
            None => Err(foreign("tensor_get")),
        }
    }

    /// Writes the rows of a run of slots.
    pub fn write_rows(&mut self, tensor: &Tensor, slots: Range<u32>, rows: &[u8]) -> Result<()> {
        match self.storages.iter_mut().find(|storage| storage.owns(tensor)) {
            Some(storage) => storage.write(tensor, tensor.nb()[1] * slots.start as usize, rows),
            None => Err(foreign("tensor_set")),
        }
    }

    /// Bytes allocated.
    pub fn n_bytes(&self) -> u64 {
        self.storages.iter().map(Storage::n_bytes).sum()
    }
}

fn foreign(op: &'static str) -> Error {
    Error::Ggml { op, why: "the tensor is not of this cache".into() }
}

/// The tensors of a cache before they have memory.
struct Layout {
    parts: Vec<Part>,
    layers: Vec<Option<LayerKv>>,
}

/// What one device has of a cache.
struct Part {
    device: Device,
    builder: StorageBuilder,
    matrices: Matrices,
}

impl Layout {
    fn new(hparams: &HParams, config: &KvConfig, state: &CacheState, places: Places<'_>) -> Result<Layout> {
        config.check()?;
        let mut parts: Vec<Part> = Vec::new();
        let [forward, inverse] = config.transforms();
        let mut layers = Vec::with_capacity(hparams.layers.len());
        for (i, layer) in hparams.layers.iter().enumerate() {
            if layer.kv_layer as usize != i {
                layers.push(None);
                continue;
            }
            let device = places(i);
            let at = match parts.iter().position(|part| part.device == device) {
                Some(at) => at,
                None => {
                    let builder = StorageBuilder::state(2 * hparams.layers.len() + 32)?;
                    parts.push(Part { device, builder, matrices: Matrices::default() });
                    parts.len() - 1
                }
            };
            let Part { builder, matrices, .. } = &mut parts[at];
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
            let mut rotation = |dtype, block: Option<u32>, transform| match block {
                Some(n) if config.rotation.applies(dtype) => matrices.get(builder, n, transform).map(Some),
                _ => Ok(None),
            };
            let blocks = [
                rotation::key_block(layer.head_dim),
                rotation::value_block(layer.head_dim, config.value_block),
            ];
            layers.push(Some(LayerKv {
                k,
                v,
                rotation_k: rotation(types.k, blocks[0], forward)?,
                rotation_v: rotation(types.v, blocks[1], forward)?,
                rotation_out: rotation(types.v, blocks[1], inverse)?,
                device,
            }));
        }
        Ok(Layout { parts, layers })
    }
}
