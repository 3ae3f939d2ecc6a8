//! What a drafter computes between its input and its drafts, for tests.

use super::Session;
use crate::Result;
use crate::drafter::DraftStep;

impl Session {
    /// Drafts up to `n` tokens behind `token`, which is not computed yet, and returns what each step computed.
    /// Nothing is committed. Empty where the drafter does not know enough, or is none that has steps.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    #[doc(hidden)]
    pub fn trace_draft(&mut self, token: u32, n: u32) -> Result<Vec<DraftStep>> {
        self.check_tokens(&[token])?;
        self.observe()?;
        let Some((proposer, mut target)) = self.drafter_at_work() else { return Ok(Vec::new()) };
        proposer.trace(&mut target, token, n)
    }
}
