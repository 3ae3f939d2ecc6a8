//! A function as a drafter.

use super::{DraftMode, Propose, Proposed, Setup, Source, Target};
use crate::Result;
use crate::ggml::Engine;
use crate::sampling::Distribution;
use std::sync::Arc;

/// A token that a drafter of the user's own proposes. A plain token converts into it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The token.
    pub token: u32,
    /// What it was drawn from; `None` if it was not drawn. Drawing must not depend on the model's random numbers.
    pub distribution: Option<Distribution>,
}

impl From<u32> for Proposal {
    fn from(token: u32) -> Self {
        Proposal { token, distribution: None }
    }
}

type DraftFn = dyn Fn(&[u32], usize) -> Vec<Proposal> + Send + Sync;

/// The function, and the most tokens that it is asked for.
pub(super) struct Custom {
    draft: Arc<DraftFn>,
    max_draft: u32,
}

impl Custom {
    pub fn new(
        max_draft: u32,
        draft: impl Fn(&[u32], usize) -> Vec<Proposal> + Send + Sync + 'static,
    ) -> Custom {
        Custom { draft: Arc::new(draft), max_draft }
    }
}

impl Source for Custom {
    fn kind(&self) -> &'static str {
        "custom"
    }

    fn max_draft(&self) -> u32 {
        self.max_draft
    }

    fn start(&self, _setup: &Setup<'_>, _engine: &mut Engine) -> Result<Box<dyn Propose>> {
        Ok(Box::new(Call { draft: self.draft.clone(), text: Vec::new() }))
    }
}

struct Call {
    draft: Arc<DraftFn>,
    /// The committed tokens and the newest one.
    text: Vec<u32>,
}

impl Propose for Call {
    fn draft(
        &mut self,
        t: &mut Target<'_>,
        token: u32,
        n: u32,
        _how: DraftMode<'_>,
        out: &mut Vec<Proposed>,
    ) -> Result<()> {
        self.text.clear();
        self.text.extend_from_slice(t.tokens);
        self.text.push(token);
        for Proposal { token, distribution } in (self.draft)(&self.text, n as usize) {
            let p = distribution.as_ref().map_or(1.0, |q| q.probability(q.most_likely()));
            out.push(Proposed { token, p, q: distribution });
        }
        Ok(())
    }
}
