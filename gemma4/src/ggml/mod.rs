//! The safe side of ggml: devices, memory, tensors, graphs, scheduling, GGUF files.
//!
//! Every `unsafe` of the crate is in this folder. The rules that make it sound:
//!
//! * **Lifetime.** A [`Tensor`] is a counted reference to its [arena](tensor::Arena), the arena owns the
//!   buffers that hold the data, and a graph's arena owns a reference to every arena that its nodes read.
//!   Whatever is reachable is alive, in any drop order.
//! * **Mutation.** Structure is written only while a builder, which nobody else can see, makes it. Data is
//!   written through `&mut` of the one owner: [`Storage`] while it is filled, [`Engine`] for the inputs of
//!   a graph and for computing. A graph can write only into storage made for that (the caches of one
//!   session), never into weights, which sessions on other threads may be reading.
//! * **Asserts.** ggml aborts the process when an operation's arguments do not fit. Every operation checks
//!   them first and returns an [`Error`](crate::Error).

mod backend;
mod engine;
pub mod gguf;
mod graph;
mod kv_ops;
mod log;
mod measure;
mod memory;
mod ops;
mod packing;
mod select;
mod tensor;
mod types;

#[doc(hidden)]
pub use backend::GpuGraphs;
pub(crate) use backend::{Backend, CancelFlag};
pub use backend::{Device, DeviceKind, devices};
pub(crate) use engine::Engine;
pub(crate) use graph::{Graph, GraphBuilder};
pub(crate) use kv_ops::{BlockSparse, KvMask, KvParams, signed_hadamard};
pub(crate) use measure::Measured;
pub(crate) use memory::{FileMap, Storage, StorageBuilder};
pub(crate) use ops::RopeParams;
pub(crate) use packing::{Packing, Product};
pub(crate) use tensor::Tensor;
pub use types::DType;

use crate::{Error, Result};
use std::sync::OnceLock;

/// Starts ggml once: its log goes to `tracing`, its loadable backends are found.
pub(crate) fn init() -> Result<()> {
    static STARTED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            log::install();
            backend::load_all()
        })
        .clone()
        .map_err(|why| Error::Device { name: "ggml".into(), why })
}

/// The error for arguments that ggml would abort on.
fn misuse<T>(op: &'static str, why: impl Into<String>) -> Result<T> {
    Err(Error::Ggml { op, why: why.into() })
}

/// Text of the exception that the last `ggml_try_*` call of this thread caught, if any.
fn exception() -> Option<String> {
    // SAFETY: returns a thread-local, NUL-terminated buffer that lives as long as the thread.
    let text = unsafe { std::ffi::CStr::from_ptr(ggml_sys::ggml_try_error()) };
    (!text.is_empty()).then(|| text.to_string_lossy().into_owned())
}
