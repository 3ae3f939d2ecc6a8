//! A model that is split over several files.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use super::{GgufFile, Metadata, TensorInfo, TypeLayout, malformed};
use crate::error::{Error, Result};

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// All files of a model: one, or the parts that `llama-gguf-split` made of it.
#[derive(Debug)]
pub struct GgufSet {
    files: Vec<GgufFile>,
    /// Name to (file, tensor in the file).
    by_name: HashMap<String, (usize, usize)>,
}

impl GgufSet {
    /// Opens the file at `path`, and its siblings `NAME-00002-of-0000N.gguf` and so on if it is the first of
    /// several.
    ///
    /// # Errors
    /// Those of [`GgufFile::open`] for each file. [`Error::Io`] naming the part that is missing.
    /// [`Error::Gguf`] if `path` is not the first part (the message names the first), if the parts are numbered
    /// wrongly, if a tensor occurs twice, or if the parts do not hold the promised number of tensors.
    pub fn open(path: &Path, layout: &dyn Fn(u32) -> Option<TypeLayout>) -> Result<GgufSet> {
        let first = GgufFile::open(path, layout)?;
        let count = first.metadata.u32(COUNT)?.unwrap_or(1);
        let no = first.metadata.u32(NO)?.unwrap_or(0);
        // A u16 in every writer, and five digits in the name.
        if count > u32::from(u16::MAX) {
            return Err(first.metadata.wrong(COUNT, count.to_string(), "at most 65535 files"));
        }
        if count <= 1 {
            return GgufSet::merge(vec![first]);
        }
        if no != 0 {
            let hint = match sibling(path, no, count, 0) {
                Some(name) => format!("open {} instead", name.display()),
                None => "open the first part instead".to_owned(),
            };
            return Err(malformed(path, format!("this is part {} of {count}; {hint}", u64::from(no) + 1)));
        }
        let mut paths = Vec::new();
        for part in 1..count {
            let Some(name) = sibling(path, 0, count, part) else {
                let what = format!(
                    "the file says that it is part 1 of {count}, but its name does not end in \
                     -00001-of-{count:05}.gguf, so the other parts cannot be found"
                );
                return Err(malformed(path, what));
            };
            paths.push(name);
        }
        let mut files = vec![first];
        for (part, path) in (1..count).zip(paths) {
            files.push(open_part(&path, part, count, layout)?);
        }
        GgufSet::merge(files)
    }

    /// Files that belong together. There must be at least one; the first one's metadata are the set's.
    ///
    /// # Errors
    /// [`Error::Gguf`] if a tensor occurs twice.
    pub(crate) fn merge(files: Vec<GgufFile>) -> Result<GgufSet> {
        let mut by_name = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for (j, tensor) in file.tensors.iter().enumerate() {
                match by_name.entry(tensor.name.clone()) {
                    Entry::Vacant(slot) => drop(slot.insert((i, j))),
                    Entry::Occupied(_) => {
                        let what = format!("tensor {:?} is in an earlier part as well", tensor.name);
                        return Err(malformed(&file.path, what));
                    }
                }
            }
        }
        let set = GgufSet { files, by_name };
        let metadata = set.metadata();
        if let Some(expected) = metadata.u64(TENSORS)?
            && expected != set.len() as u64
            && set.files.len() > 1
        {
            let found = format!("{} tensors in {} files", set.len(), set.files.len());
            return Err(metadata.wrong(TENSORS, found, format!("{expected} tensors, as the key says")));
        }
        Ok(set)
    }

    /// The files in order; never empty.
    pub fn files(&self) -> &[GgufFile] {
        &self.files
    }

    /// The metadata of the first file, which is the model's.
    pub fn metadata(&self) -> &Metadata {
        // A set is only made from at least one file.
        &self.files[0].metadata
    }

    /// Number of tensors in all files.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether no file has a tensor.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The tensor of that name and the index of its file in [`GgufSet::files`].
    pub fn tensor(&self, name: &str) -> Option<(usize, &TensorInfo)> {
        let &(file, tensor) = self.by_name.get(name)?;
        Some((file, self.files.get(file)?.tensors.get(tensor)?))
    }

    /// All tensors in the order of the files, each with the index of its file.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        self.files.iter().enumerate().flat_map(|(i, file)| file.tensors.iter().map(move |tensor| (i, tensor)))
    }
}

/// The name of `part` (from 0), derived from the name of part `no`; `None` if that does not follow the scheme.
fn sibling(path: &Path, no: u32, count: u32, part: u32) -> Option<PathBuf> {
    let tail = |i: u32| format!("-{:05}-of-{count:05}.gguf", u64::from(i) + 1);
    let stem = path.file_name()?.to_str()?.strip_suffix(&tail(no))?;
    Some(path.with_file_name(format!("{stem}{}", tail(part))))
}

fn open_part(
    path: &Path,
    part: u32,
    count: u32,
    layout: &dyn Fn(u32) -> Option<TypeLayout>,
) -> Result<GgufFile> {
    let file = GgufFile::open(path, layout).map_err(|e| match e {
        Error::Io { path, source, .. } => {
            Error::Io { action: "open this part of a split model:", path, source }
        }
        other => other,
    })?;
    let (no, of) = (file.metadata.u32(NO)?, file.metadata.u32(COUNT)?);
    if no != Some(part) || of != Some(count) {
        let show = |n: Option<u32>| n.map_or("missing".to_owned(), |n| n.to_string());
        return Err(malformed(
            path,
            format!("expected {NO} {part} and {COUNT} {count}, found {} and {}", show(no), show(of)),
        ));
    }
    Ok(file)
}
