//! What tells one model from another.

use crate::ggml::gguf::GgufSet;
use crate::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use xxhash_rust::xxh3::Xxh3;

/// Bytes hashed of each tensor: fine-tuning changes them all a little.
const SAMPLE: u64 = 256;

/// A hash of the tensors' names, types, shapes and first bytes. Not of the metadata, which people edit (a
/// chat template, a name) without changing what a cache means.
pub(super) fn of(set: &GgufSet) -> Result<u128> {
    let mut hash = Xxh3::new();
    for (i, file) in set.files().iter().enumerate() {
        let io = |source| Error::Io { action: "read", path: file.path.clone(), source };
        let mut data = File::open(&file.path).map_err(io)?;
        for (_, info) in set.tensors().filter(|(index, _)| *index == i) {
            hash.update(info.name.as_bytes());
            hash.update(&info.type_id.to_le_bytes());
            info.ne.iter().for_each(|n| hash.update(&n.to_le_bytes()));
            let mut sample = vec![0; info.nbytes.min(SAMPLE) as usize];
            data.seek(SeekFrom::Start(info.offset)).map_err(io)?;
            data.read_exact(&mut sample).map_err(io)?;
            hash.update(&sample);
        }
    }
    Ok(hash.digest128())
}
