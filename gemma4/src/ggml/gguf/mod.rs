//! GGUF files: a complete, checked reader in safe Rust, and a small writer.
//!
//! ggml's own C parser never sees a file. A header is untrusted: every count, length, offset and size is
//! compared with the bytes that are left before anything is allocated, and all arithmetic is checked. What
//! this module accepts is what ggml accepts (tensors back to back, in order, on aligned offsets), less the
//! empty tensors, and with the tensor data proven to lie inside the file.

mod metadata;
mod parse;
mod set;
mod source;
#[cfg(test)]
mod tests;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

pub use super::types::type_layout;
pub use metadata::{Array, Metadata, Strings, Value};
pub use set::GgufSet;
pub use write::GgufWriter;

/// Alignment of tensor data in bytes when a file does not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Longest tensor name in bytes: `GGML_MAX_NAME` less the terminating NUL.
pub const MAX_NAME: u64 = 63;
/// Largest accepted header in bytes. Real ones have about 16 MiB; the bound keeps a sparse file from asking
/// for more memory than there is.
pub const MAX_HEADER: u64 = 256 << 20;
/// Most tensors, and most metadata keys, that one file may have.
pub const MAX_ENTRIES: u64 = 1 << 16;

/// The ids that GGUF uses for the types of metadata values.
mod kind {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// How a ggml type lays its values out in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeLayout {
    /// Values in one block; 1 for plain types.
    pub block: u64,
    /// Bytes of one block.
    pub bytes: u64,
}

/// One tensor of a file: what the header says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, at most [`MAX_NAME`] bytes, without NUL.
    pub name: String,
    /// ggml's type id.
    pub type_id: u32,
    /// Sizes in ggml's order, fastest first; 1 beyond `n_dims`. None is 0.
    pub ne: [u64; 4],
    /// Number of sizes that the file wrote, 0 to 4.
    pub n_dims: u32,
    /// Where the data starts, in bytes from the start of the file.
    pub offset: u64,
    /// Length of the data in bytes. `offset + nbytes` is within the file.
    pub nbytes: u64,
}

/// The header of one GGUF file. Tensor data stays on disk.
#[derive(Debug)]
pub struct GgufFile {
    /// The path as it was given.
    pub path: PathBuf,
    /// GGUF version, 2 or 3.
    pub version: u32,
    /// Alignment of tensor data in bytes: a power of two.
    pub alignment: u64,
    /// Keys and values.
    pub metadata: Metadata,
    /// Tensors in the order of the file, which is also the order of their data.
    pub tensors: Vec<TensorInfo>,
    /// Where tensor data starts, in bytes from the start of the file.
    pub data_offset: u64,
    /// Length of the file in bytes when it was opened.
    pub file_len: u64,
    by_name: HashMap<String, usize>,
}

impl GgufFile {
    /// Reads and checks the header of the file at `path`.
    ///
    /// `layout` gives the layout of a ggml type id, `None` for ids that ggml does not know.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened or read, [`Error::Gguf`] if it is not a regular file, not
    /// GGUF, damaged, cut short or malicious. The message names the item and the byte offset.
    pub fn open(path: &Path, layout: &dyn Fn(u32) -> Option<TypeLayout>) -> Result<GgufFile> {
        let io = |action| move |source| Error::Io { action, path: path.to_path_buf(), source };
        // Looked at before it is opened: opening a pipe would wait for a writer.
        let kind = std::fs::metadata(path).map_err(io("open"))?;
        if !kind.is_file() {
            let found = if kind.is_dir() { "it is a directory" } else { "it is not a regular file" };
            return Err(malformed(path, format!("{found}; give the path of a .gguf file")));
        }
        let file = File::open(path).map_err(io("open"))?;
        let len = file.metadata().map_err(io("read the size of"))?.len();
        GgufFile::from_reader(path, file, len, layout)
    }

    /// As [`GgufFile::open`], from any reader that stands at the start of `len` bytes. `path` is used in
    /// messages only.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn from_reader(
        path: &Path,
        reader: impl Read,
        len: u64,
        layout: &dyn Fn(u32) -> Option<TypeLayout>,
    ) -> Result<GgufFile> {
        parse::header(path, reader, len, layout)
    }

    /// The description of a file in another format, as if it were GGUF. Tensors must lie inside the file.
    pub(crate) fn from_table(metadata: Metadata, tensors: Vec<TensorInfo>, file_len: u64) -> GgufFile {
        let by_name = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        let path = metadata.path().to_path_buf();
        let (version, alignment, data_offset) = (3, DEFAULT_ALIGNMENT, 0);
        GgufFile { path, version, alignment, metadata, tensors, data_offset, file_len, by_name }
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&i| self.tensors.get(i))
    }
}

fn malformed(path: &Path, what: impl Into<String>) -> Error {
    Error::Gguf { path: path.to_path_buf(), what: what.into() }
}
