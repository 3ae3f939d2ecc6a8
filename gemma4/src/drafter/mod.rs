//! Drafters: what guesses the next tokens, so that the model has only to check them.

mod captured;
mod custom;
mod ngram;
mod policy;
mod propose;

pub(crate) use captured::Captured;
pub use custom::Proposal;
pub use ngram::NgramOptions;
pub use policy::Speculation;
pub(crate) use policy::{Policy, Round};
pub(crate) use propose::{CaptureNeeds, DraftMode, DrafterPlan, Propose, Proposed, Setup, Source, Target};

use crate::model::Model;
use crate::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
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
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct DrafterOptions {}

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
    /// [`Error::Model`] if it is no drafter, or one for another model; otherwise as [`Model::load`].
    pub fn load_with(path: impl AsRef<Path>, model: &Model, options: &DrafterOptions) -> Result<Drafter> {
        let source = load(path.as_ref(), model, options)?;
        source.check(model)?;
        Ok(Drafter(source))
    }

    /// A drafter without a model: what followed the last few tokens when they last occurred in the text. Pays
    /// where texts repeat themselves or their prompt: code, quotes, edits, tables.
    ///
    /// # Errors
    /// [`Error::Option`] for options that cannot work.
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
fn load(path: &Path, _model: &Model, _options: &DrafterOptions) -> Result<Arc<dyn Source>> {
    Err(unknown(path, "nothing that this version loads"))
}

fn unknown(path: &Path, found: &str) -> Error {
    Error::Model {
        path: PathBuf::from(path),
        key: "general.architecture".into(),
        found: found.into(),
        expected: "gemma4-assistant or dflash".into(),
    }
}
