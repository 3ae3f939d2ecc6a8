//! A session's memory, set aside: in main memory or in a file.
//!
//! File format, version 2, little-endian: magic, version (u32), model fingerprint (u128), tokens (u32 count,
//! u32 each), logits (u32 count, f32 each), layers (u32 count), then for each layer its index, the types of
//! its keys and values, the blocks over which they are rotated (0 for none; the highest bit says that signs
//! are changed), the first position and the number of positions (u32 each), bytes of a row of keys and of
//! values (u32 each), all key rows, all value rows; at last the XXH3-64 of everything before.

use super::Session;
use crate::cache::LayerKind;
use crate::{Error, Result};
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"gemma4kv";
const VERSION: u32 = 2;

/// What a session knew at one moment: its tokens, the keys and values that are still needed, and the logits
/// after the newest token.
///
/// A snapshot restores into any session of the same model with the same KV types and room for its tokens. With
/// the same options the restored session computes, bit for bit, what the original would have.
#[derive(Clone, PartialEq)]
pub struct Snapshot {
    model: u128,
    tokens: Vec<u32>,
    logits: Vec<f32>,
    layers: Vec<LayerRows>,
}

/// The rows of one layer, in order of position.
#[derive(Clone, PartialEq)]
struct LayerRows {
    layer: u32,
    types: [u32; 2],
    /// Which rotations keys and values went through, 0 if rows are stored as they are.
    rotations: [u32; 2],
    /// First position held.
    first: u32,
    /// Number of positions held.
    count: u32,
    row_bytes: [u32; 2],
    rows: [Vec<u8>; 2],
}

impl Session {
    /// Sets the session's memory aside. Costs the bytes of the rows that are still needed: all positions of
    /// full-attention layers, the last window of the others.
    ///
    /// # Errors
    /// [`Error::Ggml`] if the device cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut layers = Vec::new();
        for (i, kv) in self.cache.tensors() {
            let geometry = self.state.geometry(self.kind(i));
            let needed = geometry.needed(self.state.committed());
            let mut rows = [Vec::new(), Vec::new()];
            for (tensor, rows) in [&kv.k, &kv.v].into_iter().zip(&mut rows) {
                for run in geometry.slot_runs(needed.clone()) {
                    self.cache.read_rows(tensor, run, rows)?;
                }
            }
            layers.push(LayerRows {
                layer: i as u32,
                types: [kv.k.dtype().0, kv.v.dtype().0],
                rotations: kv.rotation_ids(),
                first: needed.start,
                count: needed.end - needed.start,
                row_bytes: [kv.k.nb()[1] as u32, kv.v.nb()[1] as u32],
                rows,
            });
        }
        let (tokens, logits) = (self.tokens.clone(), self.logits().to_vec());
        Ok(Snapshot { model: self.model.fingerprint(), tokens, logits, layers })
    }

    /// Replaces the session's memory by a snapshot's.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if it belongs to another model or other KV types, or lacks rows that this session's
    /// larger window cache needs; [`Error::ContextFull`] if it does not fit. The session is unchanged then.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        let jobs = self.restore_jobs(snapshot)?;
        // From here on a failure is the device's: the session is then empty.
        self.clear();
        for (i, source, needed) in jobs {
            let Some(kv) = self.cache.layer(i).cloned() else { continue };
            let geometry = *self.state.geometry(self.kind(i));
            for (half, tensor) in [&kv.k, &kv.v].into_iter().enumerate() {
                let row = source.row_bytes[half] as usize;
                let mut at = (needed.start - source.first) as usize * row;
                for run in geometry.slot_runs(needed.clone()) {
                    let n = run.len() * row;
                    self.cache.write_rows(tensor, run, &source.rows[half][at..at + n])?;
                    at += n;
                }
            }
        }
        self.state.restore(snapshot.tokens.len() as u32)?;
        self.tokens.clone_from(&snapshot.tokens);
        self.forget_logits();
        self.logits.clone_from(&snapshot.logits);
        if let Some(drafting) = &mut self.drafting {
            drafting.rewind(snapshot.tokens.len() as u32, 0, true);
        }
        Ok(())
    }

    /// Checks a snapshot against this session and lists what to copy.
    fn restore_jobs<'a>(&self, snapshot: &'a Snapshot) -> Result<Vec<(usize, &'a LayerRows, Range<u32>)>> {
        let refuse = |why: String| Err(Error::Snapshot(why));
        if snapshot.model != self.model.fingerprint() {
            return refuse(format!("it was taken from another model than {}", self.model.path().display()));
        }
        let (n, n_ctx) = (snapshot.tokens.len(), self.n_ctx() as usize);
        if n > n_ctx {
            return Err(Error::ContextFull { used: 0, requested: n, n_ctx });
        }
        self.check_tokens(&snapshot.tokens)?;
        let n_vocab = self.model.hparams().n_vocab as usize;
        if ![0, n_vocab].contains(&snapshot.logits.len()) {
            return refuse(format!(
                "it has {} logits; the vocabulary has {n_vocab} tokens",
                snapshot.logits.len()
            ));
        }
        if snapshot.layers.len() != self.cache.tensors().count() {
            return refuse("its layers are not those of the model".into());
        }
        let mut jobs = Vec::new();
        for (source, (i, kv)) in snapshot.layers.iter().zip(self.cache.tensors()) {
            let needed = self.state.geometry(self.kind(i)).needed(n as u32);
            if source.layer as usize != i || source.first + source.count != n as u32 {
                return refuse(format!("layer {i} does not hold the rows up to token {n}"));
            }
            let types = [kv.k.dtype(), kv.v.dtype()];
            if source.types != types.map(|t| t.0) || source.rotations != kv.rotation_ids() {
                return refuse(format!(
                    "layer {i} has other KV types or rotations; this session has {types:?}"
                ));
            }
            if source.row_bytes.map(|n| n as usize) != [kv.k.nb()[1], kv.v.nb()[1]] {
                return refuse(format!("layer {i} has rows of another size"));
            }
            if needed.start < source.first {
                return refuse(format!(
                    "layer {i} needs positions from {} on and has them from {} on; use the n_ctx and n_batch that \
                     it was taken with",
                    needed.start, source.first
                ));
            }
            jobs.push((i, source, needed));
        }
        Ok(jobs)
    }

    /// A second session with the same memory, to follow another branch. Takes as much device memory again.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`snapshot`](Self::snapshot).
    pub fn fork(&self) -> Result<Session> {
        let mut fork = Session::new(&self.model, &self.options)?;
        fork.restore(&self.snapshot()?)?;
        Ok(fork)
    }

    fn kind(&self, layer: usize) -> LayerKind {
        self.model.hparams().layers[layer].kind
    }
}

impl Snapshot {
    /// The tokens of the sequence.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of keys and values.
    pub fn kv_bytes(&self) -> u64 {
        self.layers.iter().flat_map(|l| &l.rows).map(|rows| rows.len() as u64).sum()
    }

    /// Writes the snapshot to a file, which appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let io = |source| Error::Io { action: "write", path: path.to_owned(), source };
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        std::fs::write(&part, self.to_bytes()).map_err(io)?;
        std::fs::rename(&part, path).map_err(io)
    }

    /// Reads a snapshot from a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Snapshot`] if the file is damaged or of another version.
    pub fn load(path: impl AsRef<Path>) -> Result<Snapshot> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        Snapshot::from_bytes(&bytes)
    }

    /// The file format's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(self.kv_bytes() as usize + 4 * (self.tokens.len() + self.logits.len()) + 4096);
        out.extend_from_slice(MAGIC);
        let u32s = |out: &mut Vec<u8>, values: &[u32]| {
            values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        };
        u32s(&mut out, &[VERSION]);
        out.extend_from_slice(&self.model.to_le_bytes());
        u32s(&mut out, &[self.tokens.len() as u32]);
        u32s(&mut out, &self.tokens);
        u32s(&mut out, &[self.logits.len() as u32]);
        self.logits.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        u32s(&mut out, &[self.layers.len() as u32]);
        for l in &self.layers {
            u32s(&mut out, &[l.layer]);
            u32s(&mut out, &l.types);
            u32s(&mut out, &l.rotations);
            u32s(&mut out, &[l.first, l.count]);
            u32s(&mut out, &l.row_bytes);
            l.rows.iter().for_each(|rows| out.extend_from_slice(rows));
        }
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads the file format's bytes.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if they are damaged or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Snapshot> {
        let Some((body, checksum)) = bytes.split_last_chunk::<8>() else {
            return Err(Error::Snapshot("the file is too short".into()));
        };
        let mut reader = Reader(body);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(Error::Snapshot("the file is no snapshot".into()));
        }
        let version = reader.u32()?;
        if version != VERSION {
            return Err(Error::Snapshot(format!("version {version}; this program reads version {VERSION}")));
        }
        if xxh3_64(body) != u64::from_le_bytes(*checksum) {
            return Err(Error::Snapshot("the file is damaged: its checksum does not match".into()));
        }
        reader.snapshot()
    }
}

/// The rest of the bytes; every read is checked against it.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        match self.0.split_at_checked(n) {
            Some((head, tail)) => {
                self.0 = tail;
                Ok(head)
            }
            None => Err(Error::Snapshot(format!("{n} bytes are missing at its end"))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// A count, and as many words of four bytes.
    fn words(&mut self) -> Result<Vec<[u8; 4]>> {
        let n = self.u32()? as usize;
        let bytes = self.take(n.saturating_mul(4))?;
        Ok(bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect())
    }

    fn snapshot(mut self) -> Result<Snapshot> {
        let model = u128::from_le_bytes(self.array()?);
        let tokens = self.words()?.into_iter().map(u32::from_le_bytes).collect();
        let logits = self.words()?.into_iter().map(f32::from_le_bytes).collect();
        let n_layers = self.u32()?;
        let mut layers = Vec::new();
        for _ in 0..n_layers {
            let mut f = [0; 9];
            for field in &mut f {
                *field = self.u32()?;
            }
            let [layer, type_k, type_v, rot_k, rot_v, first, count, row_k, row_v] = f;
            if first.checked_add(count).is_none() {
                return Err(Error::Snapshot(format!("layer {layer} has impossible positions")));
            }
            let mut rows =
                |row: u32| Ok::<_, Error>(self.take((row as usize).saturating_mul(count as usize))?.to_vec());
            let rows = [rows(row_k)?, rows(row_v)?];
            let (types, rotations, row_bytes) = ([type_k, type_v], [rot_k, rot_v], [row_k, row_v]);
            layers.push(LayerRows { layer, types, rotations, first, count, row_bytes, rows });
        }
        if !self.0.is_empty() {
            return Err(Error::Snapshot(format!("{} bytes too many", self.0.len())));
        }
        Ok(Snapshot { model, tokens, logits, layers })
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("tokens", &self.tokens.len())
            .field("kv_bytes", &self.kv_bytes())
            .finish_non_exhaustive()
    }
}
