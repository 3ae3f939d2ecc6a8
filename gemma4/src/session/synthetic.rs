//! What benchmarks need: a cache filled without a model's work, and a pass that leaves nothing behind.

use super::{Rows, Session};
use crate::ggml::DType;
use crate::graph::Picks;
use crate::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Slots whose bytes are made; they repeat.
const PERIOD: u32 = 256;

impl Session {
    /// Puts `tokens` at the end of an empty session without computing them: their keys and values are random numbers
    /// about as large as true ones. For measuring speed at a depth that prefill would take minutes to reach; what is
    /// generated then means nothing.
    ///
    /// # Errors
    /// [`Error::ContextFull`] and [`Error::InvalidToken`]; [`Error::Option`] if the session is not empty, or for types of
    /// the cache other than F16, Q8_0, Q4_0 and TQ3_0.
    #[doc(hidden)]
    pub fn fill_synthetic(&mut self, tokens: &[u32]) -> Result<()> {
        self.check_tokens(tokens)?;
        self.check_fits(tokens.len())?;
        if !self.is_empty() {
            let why = "only an empty session can be filled; call clear first".into();
            return Err(Error::Option { option: "session", value: format!("{} tokens", self.len()), why });
        }
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let layers: Vec<_> = self.cache.tensors().map(|(i, layer)| (i, layer.clone())).collect();
        for (_, layer) in layers {
            for tensor in [&layer.k, &layer.v] {
                let slots = tensor.ne()[1] as u32;
                let pattern =
                    pattern(tensor.dtype(), tensor.nb()[1] * PERIOD.min(slots) as usize, &mut random)?;
                for first in (0..slots).step_by(PERIOD as usize) {
                    let n = PERIOD.min(slots - first);
                    let bytes = &pattern[..tensor.nb()[1] * n as usize];
                    self.cache.write_rows(tensor, first..first + n, bytes)?;
                }
            }
        }
        // In steps: a span may not be longer than a batch.
        for chunk in tokens.chunks(self.state.n_batch() as usize) {
            let _span = self.state.begin(chunk.len() as u32)?;
            self.commit(chunk);
        }
        self.forget_logits();
        self.forget_unseen();
        Ok(())
    }

    /// Runs the model over `tokens` as if they were drafts, and forgets them: what verifying as many costs.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    #[doc(hidden)]
    pub fn verify_only(&mut self, tokens: &[u32]) -> Result<()> {
        self.check_fits(tokens.len())?;
        self.forget_logits();
        let rows = if self.picks { Rows::Picked(Picks::Best) } else { Rows::All };
        let class = self.step(tokens, rows, false)?;
        self.read_picks(class)?;
        self.forget_unseen();
        Ok(())
    }
}

/// Bytes of random blocks, with values near to a standard normal distribution or as wide as one.
fn pattern(dtype: DType, n_bytes: usize, random: &mut ChaCha8Rng) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; n_bytes];
    random.fill_bytes(&mut bytes);
    // Blocks begin with their scale. Codes are uniform, so that their spread is 1 with these.
    let (block, scale) = match dtype {
        DType::F16 => (2, None),
        DType::Q8_0 => (34, Some(0.0135)),
        DType::Q4_0 => (18, Some(0.217)),
        DType::TQ3_0 => (14, Some(0.0143)),
        other => {
            let why = "benchmarks fill F16, Q8_0, Q4_0 and TQ3_0".into();
            return Err(Error::Option { option: "kv", value: other.to_string(), why });
        }
    };
    for block in bytes.chunks_exact_mut(block) {
        let value = match scale {
            Some(scale) => half::f16::from_f32(scale),
            // The sum of two bytes: a triangle, from -2.4 to 2.4.
            None => half::f16::from_f32((f32::from(block[0]) + f32::from(block[1]) - 255.0) / 104.0),
        };
        block[..2].copy_from_slice(&value.to_le_bytes());
    }
    Ok(bytes)
}
