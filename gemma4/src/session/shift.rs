//! Making room in a full context.

use super::Session;
use crate::{Error, Result};

/// What a generation does when the context is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// It ends with [`StopReason::ContextFull`](super::StopReason::ContextFull).
    #[default]
    Stop,
    /// It forgets about half of the sequence, the oldest turns first, and goes on: see [`Session::shift`].
    Shift {
        /// Tokens at the beginning that stay, such as the system prompt.
        keep: usize,
    },
}

impl Session {
    /// Drops about half of the sequence after its first `keep` tokens, and computes what remains anew: keys
    /// and values depend on everything before them, so nothing else would be exact. Where the model's
    /// vocabulary has turns, what remains starts with a whole one. Returns the number of tokens dropped.
    ///
    /// The beginning-of-sequence token always stays.
    ///
    /// # Errors
    /// [`Error::Option`] if `keep` leaves nothing to drop; as [`prefill`](Session::prefill). After an error of
    /// the computation the session holds what was computed.
    pub fn shift(&mut self, keep: usize) -> Result<usize> {
        let tokenizer = self.model.tokenizer();
        let has_bos = self.tokens.first().copied() == tokenizer.bos();
        let keep = keep.max(usize::from(has_bos));
        let n = self.tokens.len();
        if keep + 2 > n {
            return Err(Error::Option {
                option: "keep",
                value: keep.to_string(),
                why: format!("of {n} tokens at least two must be left to choose from"),
            });
        }
        let half = keep + (n - keep).div_ceil(2);
        let turn = tokenizer.token_id("<|turn>");
        let boundary = self.tokens[half..].iter().position(|&t| Some(t) == turn).map(|i| half + i);
        let end = boundary.unwrap_or(half);
        let mut remaining = self.tokens[..keep].to_vec();
        remaining.extend_from_slice(&self.tokens[end..]);
        tracing::debug!(dropped = end - keep, remaining = remaining.len(), "context shifted");
        self.clear();
        self.prefill(&remaining)?;
        Ok(end - keep)
    }
}
