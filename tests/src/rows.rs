//! The keys and values inside a snapshot, by its documented format.

use gemma4::{Result, Snapshot};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// A snapshot's bytes, and where each layer's rows are in them.
pub struct Rows {
    bytes: Vec<u8>,
    /// One entry for each layer with a cache of its own.
    pub layers: Vec<LayerRows>,
}

/// Rows of one layer.
#[derive(Clone, Debug)]
pub struct LayerRows {
    /// Number of the layer.
    pub layer: u32,
    /// ggml's type ids of keys and values.
    pub types: [u32; 2],
    /// Blocks of the rotations; the highest bit says that signs are changed.
    pub rotations: [u32; 2],
    /// Positions held.
    pub count: usize,
    /// Bytes of a position's keys and values.
    pub row_bytes: [usize; 2],
    places: [Range<usize>; 2],
}

impl Rows {
    /// Takes a snapshot apart.
    pub fn of(snapshot: &Snapshot) -> Rows {
        let bytes = snapshot.to_bytes();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        // Magic, version, fingerprint; then tokens and logits, each with a count.
        let mut at = 8 + 4 + 16;
        for _ in 0..2 {
            at += 4 + 4 * word(at) as usize;
        }
        let n_layers = word(at);
        at += 4;
        let mut layers = Vec::new();
        for _ in 0..n_layers {
            let f: Vec<u32> = (0..9).map(|i| word(at + 4 * i)).collect();
            at += 36;
            let count = f[6] as usize;
            let row_bytes = [f[7] as usize, f[8] as usize];
            let middle = at + count * row_bytes[0];
            let end = middle + count * row_bytes[1];
            layers.push(LayerRows {
                layer: f[0],
                types: [f[1], f[2]],
                rotations: [f[3], f[4]],
                count,
                row_bytes,
                places: [at..middle, middle..end],
            });
            at = end;
        }
        Rows { bytes, layers }
    }

    /// The bytes of all keys (0) or values (1) of the `i`-th layer that has them.
    pub fn bytes(&self, i: usize, half: usize) -> &[u8] {
        &self.bytes[self.layers[i].places[half].clone()]
    }

    /// The same as numbers, of an F32 cache.
    pub fn f32s(&self, i: usize, half: usize) -> Vec<f32> {
        self.bytes(i, half).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// Replaces them.
    pub fn set_f32s(&mut self, i: usize, half: usize, values: &[f32]) {
        let place = self.layers[i].places[half].clone();
        for (to, value) in self.bytes[place].chunks_exact_mut(4).zip(values) {
            to.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The snapshot with these rows.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut bytes = self.bytes.clone();
        let end = bytes.len() - 8;
        let checksum = xxh3_64(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        Snapshot::from_bytes(&bytes)
    }
}
