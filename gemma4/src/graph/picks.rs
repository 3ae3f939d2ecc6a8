//! What becomes of logits on the device: softcapping, and the choice of likely tokens.

use super::Build;
use crate::Result;
use crate::ggml::Tensor;

/// Which tokens a graph names, where their logits can stay on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Picks {
    /// The most likely token of every row, and its probability.
    Best,
    /// The given number of likely tokens, in no order, and their probabilities.
    Likely(u32),
}

/// Chosen tokens of each row.
pub(crate) struct Picked {
    /// Ids, I32 `[k, n_rows]`, or `[n_rows]` for the best ones.
    pub ids: Tensor,
    /// Their probabilities under the softmax of the logits, F32 `[1, k, n_rows]`.
    pub p: Tensor,
}

impl<I> Build<'_, I> {
    /// `cap * tanh(logits / cap)`, if the model caps.
    pub fn softcap(&mut self, logits: Tensor) -> Result<Tensor> {
        let Some(cap) = self.hparams.softcap else { return Ok(logits) };
        let z = self.g.scale(&logits, 1.0 / cap)?;
        let z = self.g.tanh(&z)?;
        self.g.scale(&z, cap)
    }

    /// Tokens and probabilities from capped logits `[n_vocab, n_rows]`, both results of the graph.
    pub fn pick(&mut self, logits: &Tensor, picks: Picks) -> Result<Picked> {
        let [n_vocab, rows, ..] = logits.ne();
        let (ids, k) = match picks {
            Picks::Best => (self.g.argmax(logits)?, 1),
            Picks::Likely(k) => (self.g.top_k(logits, i64::from(k))?, i64::from(k)),
        };
        // The choice first, then its probability: CUDA has one kernel for both where it is the best.
        self.g.output("ids", &ids)?;
        let p = self.g.soft_max(logits)?;
        let p = self.g.reshape(&p, [1, n_vocab, rows])?;
        let index = self.g.reshape(&ids, [k, rows, 1])?;
        let p = self.g.get_rows(&p, &index)?;
        self.g.output("p", &p)?;
        Ok(Picked { ids, p })
    }
}
