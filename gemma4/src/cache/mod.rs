//! The KV cache: where a position lives ([`geometry`]) and the tensors that hold it.

// Snapshots and drafters will read what the sessions do not read yet.
#[cfg_attr(not(test), allow(dead_code))]
mod geometry;
mod kv;
mod policy;

pub(crate) use geometry::{CacheState, Geometry, Span};
pub use geometry::{LayerKind, RewindPastWindow};
pub(crate) use kv::{KvCache, LayerKv};
pub use kv::{KvConfig, KvTypes, Rotation};
pub use policy::KvPolicy;
