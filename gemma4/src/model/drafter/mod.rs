//! Files of drafters, in every layout that is known: assistants (MTP) and block drafters (DFlash).

mod assistant;
mod dflash;
mod zlab;

pub(crate) use assistant::{Assistant, Ordered};
pub(crate) use dflash::{Activation, Dflash, DflashLayer};

use super::source::WeightSource;
use crate::ggml::gguf::{GgufSet, Metadata, type_layout};
use crate::ggml::{self, Device};
use crate::{Error, Result};
use std::ops::ControlFlow;
use std::path::Path;

/// What kind of drafter a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrafterKind {
    /// An assistant that reads the target's cache.
    Mtp,
    /// A block drafter that reads the target's layers.
    Dflash,
}

/// The header of a drafter's file or folder.
pub(crate) struct DrafterFile {
    set: GgufSet,
    arch: String,
    /// Whether weights may stay in the mapped file.
    use_mmap: bool,
}

impl DrafterFile {
    /// Opens a GGUF file, or a folder with `config.json` and `*.safetensors`.
    pub fn open(path: &Path, use_mmap: bool) -> Result<DrafterFile> {
        ggml::init()?;
        let set = if path.is_dir() { zlab::open(path)? } else { GgufSet::open(path, &type_layout)? };
        let arch = set.metadata().str("general.architecture")?.unwrap_or_default().to_owned();
        Ok(DrafterFile { set, arch, use_mmap })
    }

    /// What the file is.
    pub fn kind(&self) -> Result<DrafterKind> {
        match self.arch.as_str() {
            assistant::ARCH | assistant::OLD_ARCH => Ok(DrafterKind::Mtp),
            dflash::ARCH | dflash::LUCEBOX_ARCH => Ok(DrafterKind::Dflash),
            other => {
                let found = if other.is_empty() { "no such key".into() } else { format!("{other:?}") };
                let expected = "\"gemma4-assistant\" or \"dflash\", the architectures of drafters";
                Err(self.meta().wrong("general.architecture", found, expected))
            }
        }
    }

    fn meta(&self) -> &Metadata {
        self.set.metadata()
    }

    fn source(&self, device: Device) -> Result<WeightSource<'_>> {
        WeightSource::new(&self.set, device, self.use_mmap, false)
    }

    fn has(&self, tensor: &str) -> bool {
        self.set.tensor(tensor).is_some()
    }
}

/// Fills what was claimed. Drafters are small: nobody waits for progress.
fn load(source: WeightSource<'_>) -> Result<u64> {
    Ok(source.load(&mut |_, _| ControlFlow::Continue(()))?.total())
}

/// The error for a number of a drafter that does not fit the target.
fn mismatch(meta: &Metadata, key: &str, found: impl ToString, target: impl ToString, what: &str) -> Error {
    meta.wrong(key, found.to_string(), format!("{}, {what} of the target model", target.to_string()))
}
