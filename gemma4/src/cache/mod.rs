//! The KV cache: where a position lives ([`geometry`]) and the tensors that hold it.

mod geometry;
mod kv;

pub use geometry::{LayerKind, RewindPastWindow};
pub(crate) use geometry::{CacheState, Geometry, Span};
pub use kv::{KvConfig, KvTypes};
pub(crate) use kv::{KvCache, LayerKv};
