//! Rotation of cached keys and values: which caches have it, and the matrices that do it.
//!
//! Keys are stored as `R k` and queries become `R q`, so that their products stay. Values are stored as `R v`
//! and the attention's output is taken back by the inverse. A layer's cache carries its rotations: whoever
//! writes or reads it, target or drafter, applies these and assumes nothing.

use crate::ggml::{DType, StorageBuilder, Tensor, signed_hadamard};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Which caches hold rotated keys and values.
///
/// A Hadamard rotation spreads outliers over a block before it is quantised; queries are rotated alike and
/// the attention's output is rotated back, so that only the rounding changes. Keys are rotated over the
/// largest power of two that divides the head, values in blocks of 64, as in llama.cpp. Plain number types
/// are never rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rotation {
    /// Types of 3 to 5 bits, which are hardly usable without it.
    #[default]
    Auto,
    /// All quantised types.
    Always,
    /// None.
    Never,
}

impl Rotation {
    /// Whether a cache of this type is rotated.
    pub(super) fn applies(self, dtype: DType) -> bool {
        let is_plain = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        match self {
            Rotation::Auto => !is_plain && dtype != DType::Q8_0,
            Rotation::Always => !is_plain,
            Rotation::Never => false,
        }
    }
}

/// Values of a block that values are rotated over, unless a configuration says otherwise.
pub(super) const VALUE_BLOCK: u32 = 64;

/// Least values that are worth rotating over.
const MIN_BLOCK: u32 = 64;

/// The largest power of two that divides a head, if it is worth rotating over.
pub(super) fn key_block(head_dim: u32) -> Option<u32> {
    let block = 1 << head_dim.trailing_zeros();
    (block >= MIN_BLOCK).then_some(block)
}

/// The block for values: `wanted`, or the largest that divides the head.
pub(super) fn value_block(head_dim: u32, wanted: u32) -> Option<u32> {
    key_block(head_dim).map(|most| most.min(wanted))
}

/// Refuses blocks that no Hadamard matrix has.
pub(super) fn check_value_block(block: u32) -> Result<()> {
    if block.is_power_of_two() && block > 1 {
        return Ok(());
    }
    let why = "values are rotated over a power of two: 64, 128, 256 or 512".into();
    Err(Error::Option { option: "kv.value_block", value: block.to_string(), why })
}

/// What a matrix does to a block of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transform {
    /// `H / sqrt(n)`, its own inverse.
    Plain,
    /// `H diag(s) / sqrt(n)`: some values change their sign first, so that channels with a common mean do not
    /// add up in one place.
    Signed,
    /// `diag(s) H / sqrt(n)`
    SignedInverse,
}

/// A rotation of blocks, as a layer's cache has it.
#[derive(Clone, Debug)]
pub(crate) struct BlockRotation {
    pub transform: Transform,
    /// F32 `[n, n]`. Backends that know the transform do not read it.
    pub matrix: Tensor,
}

impl BlockRotation {
    /// Values of a block.
    pub fn block(&self) -> u32 {
        self.matrix.ne()[0] as u32
    }

    /// What tells rotations apart in a snapshot: the block, and a bit for signs.
    pub fn id(&self) -> u32 {
        let signed = if self.transform == Transform::Plain { 0 } else { 1 << 31 };
        signed | self.block()
    }
}

/// The matrices of a cache, each made once.
#[derive(Default)]
pub(super) struct Matrices(BTreeMap<(u32, Transform), Tensor>);

impl Matrices {
    /// The rotation over `n` values.
    pub fn get(
        &mut self,
        builder: &mut StorageBuilder,
        n: u32,
        transform: Transform,
    ) -> Result<BlockRotation> {
        let matrix = match self.0.get(&(n, transform)) {
            Some(have) => have.clone(),
            None => {
                let (size, name) = (u64::from(n), format!("rotation_{n}_{transform:?}"));
                let matrix = builder.tensor(&name, DType::F32, [size, size, 1, 1])?;
                self.0.insert((n, transform), matrix.clone());
                matrix
            }
        };
        Ok(BlockRotation { transform, matrix })
    }

    /// The matrices with their data, row by row.
    pub fn data(&self) -> impl Iterator<Item = (&Tensor, Vec<u8>)> {
        self.0.iter().map(|(&(n, transform), matrix)| {
            let rows = match transform {
                Transform::Plain => hadamard(n),
                Transform::Signed => signed_hadamard(n, false),
                Transform::SignedInverse => signed_hadamard(n, true),
            };
            (matrix, rows.into_iter().flat_map(f32::to_le_bytes).collect())
        })
    }
}

/// Sylvester's Hadamard matrix over sqrt(n): entry `(i, j)` is `(-1)^popcount(i & j)`.
fn hadamard(n: u32) -> Vec<f32> {
    let scale = 1.0 / (n as f32).sqrt();
    let entry = |i: u32, j: u32| if (i & j).count_ones().is_multiple_of(2) { scale } else { -scale };
    (0..n).flat_map(|i| (0..n).map(move |j| entry(i, j))).collect()
}
