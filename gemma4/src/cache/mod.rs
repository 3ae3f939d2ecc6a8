//! The KV cache: where a position lives ([`geometry`]) and the tensors that hold it.

// Snapshots and drafters will read what the sessions do not read yet.
#[cfg_attr(not(test), allow(dead_code))]
mod geometry;
mod kv;
mod policy;
mod rotation;

pub(crate) use geometry::{CacheState, Geometry, Span};
pub use geometry::{LayerKind, RewindPastWindow};
pub(crate) use kv::{KvCache, LayerKv, is_plain};
pub use kv::{KvConfig, KvTypes};
pub use policy::KvPolicy;
pub use rotation::Rotation;
pub(crate) use rotation::{BlockRotation, Transform};
