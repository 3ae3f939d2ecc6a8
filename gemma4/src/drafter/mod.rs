//! Drafters: what guesses the next tokens, so that the model has only to check them.

mod custom;
mod dflash;
mod draw;
mod mtp;
mod ngram;
mod policy;
mod propose;
mod slots;

pub use custom::Proposal;
pub use ngram::NgramOptions;
pub use policy::Speculation;
pub(crate) use policy::{Policy, Round};
#[doc(hidden)]
pub use propose::DraftStep;
pub(crate) use propose::{DraftMode, DrafterPlan, Propose, Proposed, Setup, Source, Target};

use crate::Result;
use crate::graph::DflashMask;
use crate::model::{DrafterFile, DrafterKind, Model};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A drafter in memory, loaded for one model. Cheap to clone; sessions on any thread share it.
///
/// A session with a drafter writes the same text as one without: greedy text token for token, sampled text
/// with the same distribution.
#[derive(Clone)]
pub struct Drafter(Arc<dyn Source>);

const _: () = {
    const fn assert<T: Clone + Send + Sync + 'static>() {}
    assert::<Drafter>();
};

/// How a drafter is loaded. Start from [`Default`] and chain setters.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DrafterOptions {
    /// Whether the CPU computes straight from the mapped file or from a copy in memory. A mapped file must not
    /// be truncated while the drafter is in use. Default: mapped.
    pub use_mmap: bool,
    /// MTP: whether a file's ordered (centroid) head is used, which scores a part of the vocabulary only. Default:
    /// yes. Without it every token is scored.
    pub ordered_head: bool,
    /// DFlash: which places of a block see which. Default: z-lab's rule, or causal where the file says so.
    pub dflash_mask: Option<DflashMask>,
    /// DFlash: positions of context that each of its layers keeps, which bounds its cache. Default: the file's
    /// window in its sliding-window layers, the whole context in the others.
    pub dflash_context: Option<u32>,
}

impl Default for DrafterOptions {
    fn default() -> Self {
        DrafterOptions { use_mmap: true, ordered_head: true, dflash_mask: None, dflash_context: None }
    }
}

impl DrafterOptions {
    /// Sets whether the CPU computes from the mapped file.
    #[must_use]
    pub fn use_mmap(mut self, yes: bool) -> Self {
        self.use_mmap = yes;
        self
    }

    /// Sets whether a file's ordered head is used.
    #[must_use]
    pub fn ordered_head(mut self, yes: bool) -> Self {
        self.ordered_head = yes;
        self
    }

    /// Sets which places of a block see which; `None` for the file's rule.
    #[must_use]
    pub fn dflash_mask(mut self, mask: impl Into<Option<DflashMask>>) -> Self {
        self.dflash_mask = mask.into();
        self
    }

    /// Sets the positions of context that DFlash's layers keep; `None` for all that they can see.
    #[must_use]
    pub fn dflash_context(mut self, n: impl Into<Option<u32>>) -> Self {
        self.dflash_context = n.into();
        self
    }
}

impl Drafter {
    /// Loads the drafter at `path` with default options: see [`load_with`](Self::load_with).
    ///
    /// # Errors
    /// As [`load_with`](Self::load_with).
    pub fn load(path: impl AsRef<Path>, model: &Model) -> Result<Drafter> {
        Self::load_with(path, model, &DrafterOptions::default())
    }

    /// Loads the drafter at `path` for `model`: a GGUF file of an MTP assistant or a DFlash drafter, or the
    /// folder of a DFlash drafter in safetensors. It goes to the model's device.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if it is no drafter, or one for another model; otherwise as [`Model::load`].
    pub fn load_with(path: impl AsRef<Path>, model: &Model, options: &DrafterOptions) -> Result<Drafter> {
        let source = load(path.as_ref(), model, options)?;
        source.check(model)?;
        Ok(Drafter(source))
    }

    /// A drafter without a model: what followed the last few tokens when they last occurred in the text. Pays
    /// where texts repeat themselves or their prompt: code, quotes, edits, tables.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for options that cannot work.
    pub fn ngram(options: &NgramOptions) -> Result<Drafter> {
        Ok(Drafter(Arc::new(ngram::Ngram::new(options)?)))
    }

    /// A drafter of your own. `draft` gets the tokens so far, the newest one last, and the most tokens that are
    /// wanted; it returns those that may follow. Whatever it returns, only the speed depends on it.
    ///
    /// At most `max_draft` tokens are drafted at once.
    pub fn from_fn<F, I>(max_draft: u32, draft: F) -> Drafter
    where
        F: Fn(&[u32], usize) -> I + Send + Sync + 'static,
        I: IntoIterator,
        I::Item: Into<Proposal>,
    {
        let draft =
            move |tokens: &[u32], n: usize| draft(tokens, n).into_iter().take(n).map(Into::into).collect();
        Drafter(Arc::new(custom::Custom::new(max_draft, draft)))
    }

    /// A word for logs and figures: `mtp`, `dflash`, `ngram`, `custom`.
    pub fn kind(&self) -> &'static str {
        self.0.kind()
    }

    /// Bytes of the drafter's weights.
    pub fn weight_bytes(&self) -> u64 {
        self.0.weight_bytes()
    }

    /// The most tokens that one draft can have.
    pub fn max_draft(&self) -> u32 {
        self.0.max_draft()
    }

    pub(crate) fn source(&self) -> &dyn Source {
        &*self.0
    }
}

impl fmt::Debug for Drafter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drafter").field("kind", &self.kind()).finish_non_exhaustive()
    }
}

impl PartialEq for Drafter {
    /// Whether both are the same drafter in memory.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Loads by what the file says it is. The one place that knows the loaders.
fn load(path: &Path, model: &Model, options: &DrafterOptions) -> Result<Arc<dyn Source>> {
    let file = DrafterFile::open(path, options.use_mmap)?;
    match file.kind()? {
        DrafterKind::Mtp => Ok(Arc::new(mtp::Mtp::load(&file, path, model, options)?)),
        DrafterKind::Dflash => Ok(Arc::new(dflash::DflashModel::load(&file, path, model, options)?)),
    }
}
