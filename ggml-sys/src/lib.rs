//! Raw bindings to ggml with the gemma4 patch series.
//!
//! The build fetches the ggml pinned in `vendor/`, applies `patches/`, compiles it with CMake and binds
//! its public headers. Names, types and rules are ggml's own: see `ggml.h`, `ggml-backend.h`,
//! `ggml-alloc.h`, `ggml-cpu.h` and `gguf.h` there; the additions of the series are in `ggml-g4.h`.
//! Functions `ggml_try_*` are those of ggml that may throw a C++ exception, wrapped.
//!
//! With loadable backends (feature `dynamic-backends`) the functions of `ggml-cpu.h` cannot be linked.
//! Code for both kinds of build starts backends with `ggml_backend_dev_init` and asks for the rest by
//! name with `ggml_backend_reg_get_proc_address`.
//!
//! # Another ggml in the same program
//! In a static build on ELF systems every symbol of this ggml has the prefix `g4_` (the bindings know),
//! so it can be linked beside `llama-cpp-sys-2`, `whisper-rs-sys` and the like. Elsewhere keep to one
//! ggml, or use `dynamic-backends`.
#![no_std]
#![allow(missing_docs)] // the headers document them
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(clippy::all, clippy::pedantic)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

mod rows;
pub use rows::{dequantize_rows, quantize_rows};

/// Folder of the loadable backends that this build made; `None` in a static build.
pub const BACKENDS_DIR: Option<&str> = option_env!("GGML_SYS_BACKENDS");

/// Values of a TQ3_0 block.
pub const QK_TQ3_0: usize = 32;

// A rebase that merges the enums wrongly must not compile: git joins two appended ids in silence.
const _: () = {
    assert!(GGML_TYPE_TQ3_0 == 224 && GGML_TYPE_COUNT == GGML_TYPE_TQ3_0 + 1);
    assert!(GGML_OP_KV_MASK + 1 == GGML_OP_COUNT);
    assert!(GGML_HINT_SRC0_IS_SIGNED_HADAMARD == 0x100 && GGML_HINT_SRC0_IS_SIGNED_HADAMARD_INVERSE == 0x101);
    assert!(GGML_TYPE_F32 == 0 && GGML_TYPE_F16 == 1 && GGML_TYPE_I32 == 26 && GGML_TYPE_I64 == 27);
    assert!(GGML_MAX_DIMS == 4 && GGML_MAX_SRC == 10 && GGML_MAX_NAME == 64);
    assert!(core::mem::size_of::<ggml_fp16_t>() == 2);
};
