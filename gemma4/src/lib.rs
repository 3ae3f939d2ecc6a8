#![doc = include_str!("../../README.md")]
#![deny(missing_docs)]

mod cache;
pub mod chat;
mod drafter;
mod error;
mod ggml;
#[cfg(feature = "grammar")]
pub mod grammar;
mod graph;
#[doc = include_str!("../../docs/guide.md")]
pub mod guide {}
mod model;
pub mod sampling;
mod session;

pub use cache::{KvConfig, KvPolicy, KvTypes, LayerKind, RewindPastWindow, Rotation};
#[doc(hidden)]
pub use drafter::DraftStep;
pub use drafter::{Drafter, DrafterOptions, NgramOptions, Proposal, Speculation};
pub use error::{Error, Result};
#[doc(hidden)]
pub use ggml::GpuGraphs;
pub use ggml::{DType, Device, DeviceKind, devices, gguf};
pub use graph::DflashMask;
pub use model::{
    EncodeOptions, HParams, LayerParams, LoadOptions, LoadProgress, Model, TokenStream, Tokenizer,
};
pub use sampling::{Sampler, SamplingOptions};
pub use session::{
    Acceptance, AttentionPlan, CancelHandle, DevicePlan, Evaluation, GenerateOptions, Generation,
    GenerationStats, LayerClassPlan, MemoryPlan, Piece, Pooling, PrefillOptions, Session, SessionOptions,
    Snapshot, SparseLayer, SparsePrefill, SpeculationStats, StopReason, WhenFull,
};
