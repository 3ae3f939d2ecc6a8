//! A plain GGUF writer, for tests and for programs that make small models.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::metadata::{Array, Metadata, Value};
use super::{DEFAULT_ALIGNMENT, kind};
use crate::error::{Error, Result};

/// Collects metadata and tensors and writes them as one GGUF file (version 3).
///
/// It trusts its caller: sizes, types and names are written as given. [`GgufFile`](super::GgufFile) judges the
/// result.
///
/// ```ignore
/// let mut writer = GgufWriter::new();
/// writer.set("general.architecture", "gemma4");
/// writer.tensor("output_norm.weight", 0, &[2], [1.0f32, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect());
/// writer.write(Path::new("model.gguf"))?;
/// ```
#[derive(Debug)]
pub struct GgufWriter {
    metadata: Metadata,
    tensors: Vec<(String, u32, Vec<u64>, Data)>,
}

/// Where a tensor's bytes come from.
enum Data {
    Bytes(Vec<u8>),
    /// Length, and what writes that many bytes.
    Stream(u64, Box<Stream>),
}

type Stream = dyn Fn(&mut dyn Write) -> io::Result<()> + Send + Sync;

impl Data {
    fn len(&self) -> u64 {
        match self {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Stream(len, _) => *len,
        }
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Default for GgufWriter {
    fn default() -> Self {
        GgufWriter { metadata: Metadata::new(Path::new("")), tensors: Vec::new() }
    }
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> GgufWriter {
        GgufWriter::default()
    }

    /// Sets a key, replacing an earlier value. `general.alignment`, if set as `u32`, is obeyed.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut GgufWriter {
        self.metadata.set(key, value);
        self
    }

    /// Adds a tensor: ggml's type id, sizes fastest first, and the data as ggml lays it out.
    pub fn tensor(&mut self, name: &str, type_id: u32, ne: &[u64], data: Vec<u8>) -> &mut GgufWriter {
        self.tensors.push((name.to_owned(), type_id, ne.to_vec(), Data::Bytes(data)));
        self
    }

    /// Adds a tensor whose `n_bytes` of data are made when the file is written: for files larger than memory.
    pub fn tensor_stream(
        &mut self,
        name: &str,
        type_id: u32,
        ne: &[u64],
        n_bytes: u64,
        write: impl Fn(&mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> &mut GgufWriter {
        self.tensors.push((name.to_owned(), type_id, ne.to_vec(), Data::Stream(n_bytes, Box::new(write))));
        self
    }

    /// Writes the file, replacing what is there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let io = |action| move |source| Error::Io { action, path: path.to_path_buf(), source };
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io("create"))?);
        self.write_to(&mut out).and_then(|()| out.flush()).map_err(io("write"))
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // Writing to a vector does not fail.
        let _ = self.write_to(&mut out);
        out
    }

    /// Writes the file to `out`.
    ///
    /// # Errors
    /// What `out` returns.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let alignment = match self.metadata.get("general.alignment") {
            Some(Value::U32(n @ 1..)) => u64::from(*n),
            _ => DEFAULT_ALIGNMENT,
        };
        let mut header = Vec::new();
        header.extend_from_slice(b"GGUF");
        header.extend_from_slice(&3u32.to_le_bytes());
        header.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            string(&mut header, key);
            put_value(&mut header, value);
        }
        let mut offset = 0u64;
        for (name, type_id, ne, data) in &self.tensors {
            string(&mut header, name);
            header.extend_from_slice(&(ne.len() as u32).to_le_bytes());
            numbers(&mut header, ne, u64::to_le_bytes);
            header.extend_from_slice(&type_id.to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            offset = offset.saturating_add(data.len()).next_multiple_of(alignment);
        }
        out.write_all(&header)?;
        if !self.tensors.is_empty() {
            pad(out, header.len() as u64, alignment)?;
        }
        for (_, _, _, data) in &self.tensors {
            match data {
                Data::Bytes(bytes) => out.write_all(bytes)?,
                Data::Stream(_, write) => write(out)?,
            }
            pad(out, data.len(), alignment)?;
        }
        Ok(())
    }
}

fn pad(out: &mut dyn Write, written: u64, alignment: u64) -> io::Result<()> {
    let n = written.next_multiple_of(alignment) - written;
    io::copy(&mut io::Read::take(io::repeat(0), n), out).map(drop)
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn numbers<T: Copy, const N: usize>(out: &mut Vec<u8>, values: &[T], bytes: fn(T) -> [u8; N]) {
    values.iter().for_each(|&v| out.extend_from_slice(&bytes(v)));
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut one = |kind: u32, bytes: &[u8]| {
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match value {
        Value::U8(v) => one(kind::U8, &v.to_le_bytes()),
        Value::I8(v) => one(kind::I8, &v.to_le_bytes()),
        Value::U16(v) => one(kind::U16, &v.to_le_bytes()),
        Value::I16(v) => one(kind::I16, &v.to_le_bytes()),
        Value::U32(v) => one(kind::U32, &v.to_le_bytes()),
        Value::I32(v) => one(kind::I32, &v.to_le_bytes()),
        Value::U64(v) => one(kind::U64, &v.to_le_bytes()),
        Value::I64(v) => one(kind::I64, &v.to_le_bytes()),
        Value::F32(v) => one(kind::F32, &v.to_le_bytes()),
        Value::F64(v) => one(kind::F64, &v.to_le_bytes()),
        Value::Bool(v) => one(kind::BOOL, &[u8::from(*v)]),
        Value::Str(v) => {
            one(kind::STRING, &[]);
            string(out, v);
        }
        Value::Array(v) => {
            one(kind::ARRAY, &[]);
            put_array(out, v);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let start = |out: &mut Vec<u8>, kind: u32| {
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    };
    macro_rules! put {
        ($kind:expr, $values:expr, $bytes:expr) => {{
            start(out, $kind);
            numbers(out, $values, $bytes);
        }};
    }
    match array {
        Array::U8(v) => put!(kind::U8, v, u8::to_le_bytes),
        Array::I8(v) => put!(kind::I8, v, i8::to_le_bytes),
        Array::U16(v) => put!(kind::U16, v, u16::to_le_bytes),
        Array::I16(v) => put!(kind::I16, v, i16::to_le_bytes),
        Array::U32(v) => put!(kind::U32, v, u32::to_le_bytes),
        Array::I32(v) => put!(kind::I32, v, i32::to_le_bytes),
        Array::U64(v) => put!(kind::U64, v, u64::to_le_bytes),
        Array::I64(v) => put!(kind::I64, v, i64::to_le_bytes),
        Array::F32(v) => put!(kind::F32, v, f32::to_le_bytes),
        Array::F64(v) => put!(kind::F64, v, f64::to_le_bytes),
        Array::Bool(v) => put!(kind::BOOL, v, |b: bool| [u8::from(b)]),
        Array::Strings(v) => {
            start(out, kind::STRING);
            v.iter().for_each(|text| string(out, text));
        }
    }
}
