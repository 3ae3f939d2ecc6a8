//! How a session is set up.

use super::{PrefillOptions, SMALL};
use crate::cache::{CacheState, KvPolicy};
use crate::drafter::Drafter;
use crate::model::HParams;
use crate::{Error, Result};

/// Options of a [`Session`](super::Session). Start from [`Default`] and chain setters.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Tokens that the session can hold, prompt and answers together. Default 4096.
    pub n_ctx: u32,
    /// Most tokens computed at once in prefill. More is faster and takes more memory. Default 512.
    pub n_batch: u32,
    /// Threads that compute on the CPU. Default: one for each physical core.
    pub n_threads: Option<usize>,
    /// Element types of the KV cache. Default F16.
    pub kv: KvPolicy,
    /// What guesses the next tokens, so that the model checks several at once. Changes the speed and never the
    /// text. Default: nothing.
    pub drafter: Option<Drafter>,
    /// The most tokens that are drafted at once; each size takes memory for its graphs. Default: as many as the
    /// drafter can.
    pub max_draft: Option<u32>,
    /// How prompts are computed. Default: exactly.
    pub prefill: PrefillOptions,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            n_ctx: 4096,
            n_batch: 512,
            n_threads: None,
            kv: KvPolicy::default(),
            drafter: None,
            max_draft: None,
            prefill: PrefillOptions::default(),
        }
    }
}

impl SessionOptions {
    /// Sets the capacity in tokens.
    #[must_use]
    pub fn n_ctx(mut self, n: u32) -> Self {
        self.n_ctx = n;
        self
    }

    /// Sets the most tokens computed at once.
    #[must_use]
    pub fn n_batch(mut self, n: u32) -> Self {
        self.n_batch = n;
        self
    }

    /// Sets the number of CPU threads; `None` for one a physical core.
    #[must_use]
    pub fn n_threads(mut self, n: impl Into<Option<usize>>) -> Self {
        self.n_threads = n.into();
        self
    }

    /// Sets the element types of the KV cache: a [`KvPolicy`], a [`KvConfig`](crate::KvConfig), or one
    /// type for all.
    #[must_use]
    pub fn kv(mut self, kv: impl Into<KvPolicy>) -> Self {
        self.kv = kv.into();
        self
    }

    /// Sets what guesses the next tokens.
    #[must_use]
    pub fn drafter(mut self, drafter: impl Into<Option<Drafter>>) -> Self {
        self.drafter = drafter.into();
        self
    }

    /// Sets the most tokens that are drafted at once; `None` for as many as the drafter can.
    #[must_use]
    pub fn max_draft(mut self, n: impl Into<Option<u32>>) -> Self {
        self.max_draft = n.into();
        self
    }

    /// Sets how prompts are computed.
    #[must_use]
    pub fn prefill(mut self, prefill: PrefillOptions) -> Self {
        self.prefill = prefill;
        self
    }

    /// The state of an empty cache with these options.
    pub(crate) fn cache_state(&self, hparams: &HParams) -> Result<CacheState> {
        self.check()?;
        let n_batch = self.n_batch.min(self.n_ctx);
        CacheState::new(self.n_ctx, hparams.window, n_batch, SMALL.min(n_batch))
    }

    fn check(&self) -> Result<()> {
        let bad = |option, value: String, why: &str| Err(Error::Option { option, value, why: why.into() });
        if self.n_ctx == 0 {
            return bad("n_ctx", "0".into(), "a session holds at least one token");
        }
        if self.n_batch == 0 {
            return bad("n_batch", "0".into(), "at least one token is computed at once");
        }
        Ok(())
    }

    /// The number of threads to start.
    pub(super) fn threads(&self) -> usize {
        self.n_threads.unwrap_or_else(|| {
            let cores = sysinfo::System::physical_core_count();
            let logical = std::thread::available_parallelism().map_or(1, usize::from);
            cores.map_or(logical, |n| n.min(logical)).max(1)
        })
    }
}
