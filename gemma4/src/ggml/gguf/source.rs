//! A reader that knows how many bytes are left.

use std::fmt;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use super::{MAX_HEADER, malformed};
use crate::error::{Error, Result};

/// What is being read, for messages. Made for every item, so it borrows and formats only when it fails.
#[derive(Clone, Copy)]
pub(super) enum Item<'a> {
    Magic,
    Version,
    TensorCount,
    KeyCount,
    Key(u64),
    Type(&'a str),
    Value(&'a str),
    Length(&'a str),
    Element(&'a str, u64),
    TensorName(u64),
    Dims(&'a str),
    TensorType(&'a str),
    TensorOffset(&'a str),
}

impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Magic => f.write_str("the magic \"GGUF\""),
            Item::Version => f.write_str("the version"),
            Item::TensorCount => f.write_str("the number of tensors"),
            Item::KeyCount => f.write_str("the number of metadata keys"),
            Item::Key(i) => write!(f, "metadata key {i}"),
            Item::Type(key) => write!(f, "the value type of {key:?}"),
            Item::Value(key) => write!(f, "the value of {key:?}"),
            Item::Length(key) => write!(f, "the array length of {key:?}"),
            Item::Element(key, i) => write!(f, "element {i} of {key:?}"),
            Item::TensorName(i) => write!(f, "the name of tensor {i}"),
            Item::Dims(name) => write!(f, "the shape of tensor {name:?}"),
            Item::TensorType(name) => write!(f, "the type of tensor {name:?}"),
            Item::TensorOffset(name) => write!(f, "the data offset of tensor {name:?}"),
        }
    }
}

/// A buffered reader over `len` bytes that refuses to read, or to promise, more than are left.
pub(super) struct Source<'p, R> {
    inner: BufReader<R>,
    path: &'p Path,
    pos: u64,
    len: u64,
    scratch: Vec<u8>,
}

impl<'p, R: Read> Source<'p, R> {
    pub(super) fn new(path: &'p Path, reader: R, len: u64) -> Self {
        Source { inner: BufReader::with_capacity(1 << 16, reader), path, pos: 0, len, scratch: Vec::new() }
    }

    /// Bytes read so far.
    pub(super) fn pos(&self) -> u64 {
        self.pos
    }

    /// Checks that `count` items of `size` bytes each can still follow, and returns their total in bytes.
    ///
    /// Every allocation is preceded by this: nothing is reserved that the file does not hold.
    pub(super) fn claim(&self, count: u64, size: u64, item: Item<'_>) -> Result<u64> {
        let left = self.len.saturating_sub(self.pos);
        let total = count.checked_mul(size).filter(|&n| n <= left).ok_or_else(|| {
            let each = if size == 1 { String::new() } else { format!(" times {size}") };
            self.error(format!(
                "the file ends inside {item}: {count}{each} bytes are needed at byte {}, but the file has only \
                 {} bytes in all (is the download complete?)",
                self.pos, self.len
            ))
        })?;
        if self.pos.saturating_add(total) > MAX_HEADER {
            return Err(self.error(format!(
                "the header passes {} MiB at {item}, byte {}",
                MAX_HEADER >> 20,
                self.pos
            )));
        }
        Ok(total)
    }

    /// Fills `out`.
    pub(super) fn fill(&mut self, out: &mut [u8], item: Item<'_>) -> Result<()> {
        let n = self.claim(out.len() as u64, 1, item)?;
        self.inner.read_exact(out).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => {
                malformed(self.path, format!("the file became shorter while {item} was read"))
            }
            _ => Error::Io { action: "read", path: self.path.to_path_buf(), source },
        })?;
        self.pos = self.pos.saturating_add(n);
        Ok(())
    }

    /// The next `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self, item: Item<'_>) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out, item)?;
        Ok(out)
    }

    pub(super) fn u32(&mut self, item: Item<'_>) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(item)?))
    }

    pub(super) fn u64(&mut self, item: Item<'_>) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes(item)?))
    }

    /// A length-prefixed string of at most `limit` bytes, appended to `out`.
    pub(super) fn string_onto(&mut self, out: &mut String, limit: u64, item: Item<'_>) -> Result<()> {
        let n = self.u64(item)?;
        if n > limit {
            return Err(self.error(format!("{item} has a length of {n} bytes, at most {limit} are accepted")));
        }
        let n = self.claim(n, 1, item)?;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.resize(usize::try_from(n).unwrap_or(0), 0);
        let start = self.pos;
        let read = self.fill(&mut scratch, item);
        let text = read.and_then(|()| {
            std::str::from_utf8(&scratch).map_err(|e| {
                self.error(format!(
                    "{item} is not valid UTF-8 at byte {}",
                    start.saturating_add(e.valid_up_to() as u64)
                ))
            })
        });
        let done = text.map(|text| out.push_str(text));
        self.scratch = scratch;
        done
    }

    /// A length-prefixed string of at most `limit` bytes.
    pub(super) fn string(&mut self, limit: u64, item: Item<'_>) -> Result<String> {
        let mut out = String::new();
        self.string_onto(&mut out, limit, item)?;
        Ok(out)
    }

    /// `count` values of `N` bytes each.
    pub(super) fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        item: Item<'_>,
        convert: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        self.claim(count, N as u64, item)?;
        let mut left = usize::try_from(count).unwrap_or(0);
        let mut out = Vec::new();
        out.try_reserve_exact(left)
            .map_err(|_| self.error(format!("no memory for {item}: {count} numbers")))?;
        let mut buffer = [0u8; 4096];
        while left > 0 {
            let now = left.min(buffer.len() / N.max(1));
            let part = buffer.get_mut(..now.saturating_mul(N)).unwrap_or_default();
            self.fill(part, item)?;
            out.extend(part.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)));
            left = left.saturating_sub(now);
        }
        Ok(out)
    }

    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        malformed(self.path, what)
    }
}
