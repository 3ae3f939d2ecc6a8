//! The header, from the magic to the tensor table.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;
use std::path::Path;

use super::metadata::{Array, Metadata, Strings, Value};
use super::source::{Item, Source};
use super::{DEFAULT_ALIGNMENT, GgufFile, MAX_ENTRIES, MAX_NAME, TensorInfo, TypeLayout, kind, malformed};
use crate::error::Result;

/// Longest metadata key in bytes, from the GGUF specification.
const MAX_KEY: u64 = (1 << 16) - 1;
/// Longest single string in bytes. A chat template has some ten thousand.
const MAX_STRING: u64 = 16 << 20;
/// Largest sane alignment in bytes.
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Fewest bytes of a key with its value: an empty key's length, one byte of key, a type, a one-byte value.
const MIN_ENTRY: u64 = 8 + 1 + 4 + 1;
/// Fewest bytes of a tensor's entry: name, number of dimensions, type, offset.
const MIN_TENSOR: u64 = 8 + 1 + 4 + 4 + 8;

type Layout<'a> = &'a dyn Fn(u32) -> Option<TypeLayout>;

pub(super) fn header(path: &Path, reader: impl Read, file_len: u64, layout: Layout<'_>) -> Result<GgufFile> {
    let mut src = Source::new(path, reader, file_len);
    let version = magic_and_version(&mut src, file_len)?;
    let n_tensors = count(&mut src, Item::TensorCount, MIN_TENSOR)?;
    let n_keys = count(&mut src, Item::KeyCount, MIN_ENTRY)?;
    let mut metadata = Metadata::new(path);
    for i in 0..n_keys {
        let key = src.string(MAX_KEY, Item::Key(i))?;
        if key.is_empty() {
            return Err(src.error(format!("metadata key {i} is empty")));
        }
        let value = value(&mut src, &key)?;
        if let Some(key) = metadata.insert_new(key, value) {
            return Err(src.error(format!("metadata key {key:?} occurs twice")));
        }
    }
    let alignment = alignment(path, &metadata)?;
    let mut tensors = Vec::new();
    let mut by_name = HashMap::new();
    for i in 0..n_tensors {
        let info = tensor(&mut src, i, layout)?;
        match by_name.entry(info.name.clone()) {
            Entry::Occupied(_) => return Err(src.error(format!("tensor {:?} occurs twice", info.name))),
            Entry::Vacant(slot) => slot.insert(tensors.len()),
        };
        tensors.push(info);
    }
    let end = src.pos();
    // Without tensors nothing has to follow, not even the padding.
    let data_offset = if tensors.is_empty() { Some(end) } else { end.checked_next_multiple_of(alignment) };
    let data_offset = data_offset.ok_or_else(|| malformed(path, "the header is too long"))?;
    place(path, &mut tensors, alignment, data_offset, file_len)?;
    let path = path.to_path_buf();
    Ok(GgufFile { path, version, alignment, metadata, tensors, data_offset, file_len, by_name })
}

fn magic_and_version<R: Read>(src: &mut Source<'_, R>, file_len: u64) -> Result<u32> {
    if file_len == 0 {
        return Err(src.error("the file is empty"));
    }
    let mut start = [0u8; 4];
    let have = usize::try_from(file_len).unwrap_or(4).min(4);
    let part = start.get_mut(..have).unwrap_or_default();
    src.fill(part, Item::Magic)?;
    if !b"GGUF".starts_with(part) {
        return Err(src.error(format!("{}, expected it to start with \"GGUF\"", foreign(&start))));
    }
    if have < 4 {
        return Err(src.error(format!("the file ends after {have} bytes, inside {}", Item::Magic)));
    }
    let version = src.u32(Item::Version)?;
    match version {
        2 | 3 => Ok(version),
        1 => Err(src.error("GGUF version 1 is not supported any more; convert the model again")),
        v if (1..=3).contains(&v.swap_bytes()) => {
            Err(src
                .error(format!("the file is big-endian (version {v:#010x}); a little-endian one is needed")))
        }
        v => Err(src.error(format!("GGUF version {v} is unknown; versions 2 and 3 can be read"))),
    }
}

/// Guesses what a file is that does not start with the magic.
fn foreign(start: &[u8; 4]) -> String {
    let guess = match start {
        b"FUGG" => "not a GGUF file for this machine: wrong magic, in reverse byte order (big-endian)",
        b"ggml" | b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => {
            "not GGUF but a file in one of its predecessors' formats"
        }
        b"vers" => "not GGUF but perhaps a git-lfs pointer: fetch the file itself with `git lfs pull`",
        b"<!DO" | b"<htm" => "not GGUF but a web page: the download went wrong",
        [b'P', b'K', 3, 4] => "not GGUF but a zip archive",
        _ => "not GGUF",
    };
    format!("{guess}: the file starts with \"{}\"", start.escape_ascii())
}

/// Reads a count of entries that have at least `min` bytes each.
fn count<R: Read>(src: &mut Source<'_, R>, item: Item<'_>, min: u64) -> Result<u64> {
    let n = src.u64(item)?;
    src.claim(n, min, item)?;
    if n > MAX_ENTRIES {
        return Err(src.error(format!("{item} is {n}, at most {MAX_ENTRIES} are accepted")));
    }
    Ok(n)
}

fn value<R: Read>(src: &mut Source<'_, R>, key: &str) -> Result<Value> {
    let item = Item::Value(key);
    Ok(match src.u32(Item::Type(key))? {
        kind::U8 => Value::U8(u8::from_le_bytes(src.bytes(item)?)),
        kind::I8 => Value::I8(i8::from_le_bytes(src.bytes(item)?)),
        kind::U16 => Value::U16(u16::from_le_bytes(src.bytes(item)?)),
        kind::I16 => Value::I16(i16::from_le_bytes(src.bytes(item)?)),
        kind::U32 => Value::U32(src.u32(item)?),
        kind::I32 => Value::I32(i32::from_le_bytes(src.bytes(item)?)),
        kind::F32 => Value::F32(f32::from_le_bytes(src.bytes(item)?)),
        kind::BOOL => match src.bytes::<1>(item)? {
            [b @ (0 | 1)] => Value::Bool(b == 1),
            [b] => return Err(src.error(format!("{item} is a bool of value {b}"))),
        },
        kind::STRING => Value::Str(src.string(MAX_STRING, item)?),
        kind::U64 => Value::U64(src.u64(item)?),
        kind::I64 => Value::I64(i64::from_le_bytes(src.bytes(item)?)),
        kind::F64 => Value::F64(f64::from_le_bytes(src.bytes(item)?)),
        kind::ARRAY => Value::Array(array(src, key)?),
        id => return Err(src.error(format!("{item} has the unknown type {id}"))),
    })
}

fn array<R: Read>(src: &mut Source<'_, R>, key: &str) -> Result<Array> {
    let element = src.u32(Item::Type(key))?;
    let n = src.u64(Item::Length(key))?;
    let item = Item::Value(key);
    Ok(match element {
        kind::U8 => Array::U8(src.numbers(n, item, u8::from_le_bytes)?),
        kind::I8 => Array::I8(src.numbers(n, item, i8::from_le_bytes)?),
        kind::U16 => Array::U16(src.numbers(n, item, u16::from_le_bytes)?),
        kind::I16 => Array::I16(src.numbers(n, item, i16::from_le_bytes)?),
        kind::U32 => Array::U32(src.numbers(n, item, u32::from_le_bytes)?),
        kind::I32 => Array::I32(src.numbers(n, item, i32::from_le_bytes)?),
        kind::F32 => Array::F32(src.numbers(n, item, f32::from_le_bytes)?),
        kind::U64 => Array::U64(src.numbers(n, item, u64::from_le_bytes)?),
        kind::I64 => Array::I64(src.numbers(n, item, i64::from_le_bytes)?),
        kind::F64 => Array::F64(src.numbers(n, item, f64::from_le_bytes)?),
        kind::BOOL => {
            let flags = src.numbers(n, item, u8::from_le_bytes)?;
            if let Some((i, b)) = flags.iter().enumerate().find(|(_, b)| **b > 1) {
                return Err(src.error(format!("{} is a bool of value {b}", Item::Element(key, i as u64))));
            }
            Array::Bool(flags.into_iter().map(|b| b == 1).collect())
        }
        kind::STRING => {
            // Each element has a length of 8 bytes at least, which is also what it costs here.
            src.claim(n, 8, item)?;
            let mut strings = Strings::default();
            for i in 0..n {
                src.string_onto(&mut strings.text, MAX_STRING, Item::Element(key, i))?;
                strings.close();
            }
            Array::Strings(strings)
        }
        kind::ARRAY => {
            return Err(src.error(format!("{item} is an array of arrays, which no GGUF reader accepts")));
        }
        id => return Err(src.error(format!("{item} is an array of the unknown type {id}"))),
    })
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<u64> {
    let alignment = match metadata.get("general.alignment") {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n)) => u64::from(*n),
        Some(other) => {
            return Err(malformed(
                path,
                format!("general.alignment is {}, expected a u32", other.describe()),
            ));
        }
    };
    // The lower bound is the specification's; without it F32 data could lie on odd addresses.
    if alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment) {
        Ok(alignment)
    } else {
        Err(malformed(
            path,
            format!("general.alignment is {alignment}, expected a power of two from 8 to {MAX_ALIGNMENT}"),
        ))
    }
}

/// Reads one entry of the tensor table. The offset stays relative to the data section until [`place`].
fn tensor<R: Read>(src: &mut Source<'_, R>, index: u64, layout: Layout<'_>) -> Result<TensorInfo> {
    let name = src.string(MAX_NAME, Item::TensorName(index))?;
    if name.is_empty() || name.contains('\0') {
        return Err(src.error(format!("the name of tensor {index}, {name:?}, is empty or has a NUL in it")));
    }
    let n_dims = src.u32(Item::Dims(&name))?;
    if n_dims > 4 {
        return Err(src.error(format!("tensor {name:?} has {n_dims} dimensions, at most 4 are possible")));
    }
    let mut ne = [1u64; 4];
    for size in ne.iter_mut().take(n_dims as usize) {
        *size = src.u64(Item::Dims(&name))?;
    }
    let type_id = src.u32(Item::TensorType(&name))?;
    let Some(TypeLayout { block: block @ 1.., bytes: bytes @ 1.. }) = layout(type_id) else {
        return Err(src.error(format!(
            "tensor {name:?} has the type {type_id}, which this build of ggml does not know"
        )));
    };
    if ne.contains(&0) || !ne[0].is_multiple_of(block) {
        return Err(src.error(format!(
            "tensor {name:?} has the shape {ne:?}: no size may be 0, and the first must be a multiple of the \
             type's block of {block}"
        )));
    }
    let values =
        ne.iter().try_fold(1u64, |n, &size| n.checked_mul(size)).filter(|&n| i64::try_from(n).is_ok());
    let nbytes = values.and_then(|n| (n / block).checked_mul(bytes)).filter(|&n| i64::try_from(n).is_ok());
    let Some(nbytes) = nbytes else {
        return Err(src.error(format!("tensor {name:?} has the shape {ne:?}, which no memory can hold")));
    };
    let offset = src.u64(Item::TensorOffset(&name))?;
    Ok(TensorInfo { name, type_id, ne, n_dims, offset, nbytes })
}

/// Checks that the tensors lie back to back as ggml demands, inside the file, and makes the offsets absolute.
fn place(
    path: &Path,
    tensors: &mut [TensorInfo],
    alignment: u64,
    data_offset: u64,
    file_len: u64,
) -> Result<()> {
    let mut expected = 0u64;
    for t in tensors {
        let relative = t.offset;
        if relative != expected {
            let why = if !relative.is_multiple_of(alignment) {
                format!("which is not a multiple of the alignment {alignment}")
            } else if relative < expected {
                format!("which overlaps the tensor before it; {expected} was expected")
            } else {
                format!("which leaves a gap; {expected} was expected")
            };
            return Err(malformed(
                path,
                format!("tensor {:?} has the data offset {relative}, {why}", t.name),
            ));
        }
        let start = data_offset.checked_add(relative);
        let end = start.and_then(|start| start.checked_add(t.nbytes));
        let (Some(start), Some(_)) = (start, end.filter(|&end| end <= file_len)) else {
            return Err(malformed(
                path,
                format!(
                    "the file ends inside the data of tensor {:?}: it has {} bytes at {data_offset} + {relative}, \
                     but the file has only {file_len} bytes (is the download complete?)",
                    t.name, t.nbytes
                ),
            ));
        };
        t.offset = start;
        // Cannot fail after the test above, except for a file of 2^64 bytes less some padding.
        expected = relative
            .checked_add(t.nbytes)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or_else(|| malformed(path, format!("the data of tensor {:?} is too large", t.name)))?;
    }
    Ok(())
}
