//! What benchmarks need: a cache filled without a model's work, and parts of a round that leave nothing behind.

use super::{Rows, Session};
use crate::drafter::DraftMode;
use crate::ggml::{DType, Tensor};
use crate::graph::Picks;
use crate::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Slots whose bytes are made; they repeat.
const PERIOD: u32 = 256;

/// Bytes written at once: a million positions are gigabytes.
const WRITE: usize = 8 << 20;

/// Size of the components of the means that some blocks of keys have. Queries have components of about 1, so that with
/// heads of 512 scores of these blocks are some 70 above or below those of the others.
const MEAN: f32 = 3.0;

/// What the keys of a block are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Noise,
    Plus,
    Minus,
}

/// Blocks of keys that block-sparse prefill selects.
#[derive(Clone, Copy, Debug)]
struct Selected {
    /// Positions of a block.
    block: u32,
    /// One block of so many has the mean, and another one its negative.
    group: u32,
}

impl Selected {
    fn new(block: u32, share: f32) -> Result<Selected> {
        if !(share > 0.0 && share <= 1.0) {
            let why = "it is a share of the blocks, such as 0.1".into();
            return Err(Error::Option { option: "share", value: share.to_string(), why });
        }
        if block == 0 {
            let why = "blocks have at least one position".into();
            return Err(Error::Option { option: "block", value: "0".into(), why });
        }
        Ok(Selected { block, group: (2.0 / share).round() as u32 })
    }

    /// What block `n` of a layer is like: as many of each class in every group, at irregular places.
    fn class(&self, layer: usize, n: u32) -> Class {
        let (group, place) = (n / self.group, n % self.group);
        let mut random = ChaCha8Rng::seed_from_u64((layer as u64) << 32 | u64::from(group));
        let plus = random.next_u32() % self.group;
        let minus = (plus + 1 + random.next_u32() % (self.group - 1)) % self.group;
        match place {
            _ if place == plus => Class::Plus,
            _ if place == minus => Class::Minus,
            _ => Class::Noise,
        }
    }
}

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
        self.fill(tokens, None)
    }

    /// As [`fill_synthetic`](Self::fill_synthetic), with keys of which block-sparse prefill selects about the share
    /// `share` in blocks of `block`, whatever the queries are.
    ///
    /// In full-attention layers half of these blocks have keys around a large vector, and half around its negative; all
    /// others have means of zero. A query head selects one of the halves, by the sign of its product with the vector.
    /// Heads that share keys read the union, so that groups of several heads read the share, and one alone half of it.
    /// All blocks of a half have the same keys: no threshold cuts through them.
    ///
    /// # Errors
    /// As [`fill_synthetic`](Self::fill_synthetic), and [`Error::Option`] for a share that is none.
    #[doc(hidden)]
    pub fn fill_blocks(&mut self, tokens: &[u32], block: u32, share: f32) -> Result<()> {
        self.fill(tokens, Some(Selected::new(block, share)?))
    }

    fn fill(&mut self, tokens: &[u32], selected: Option<Selected>) -> Result<()> {
        self.check_tokens(tokens)?;
        self.check_fits(tokens.len())?;
        if !self.is_empty() {
            let why = "only an empty session can be filled; call clear first".into();
            return Err(Error::Option { option: "session", value: format!("{} tokens", self.len()), why });
        }
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let layers: Vec<_> = self.cache.tensors().map(|(i, layer)| (i, layer.clone())).collect();
        for (i, layer) in layers {
            let is_full = self.model.hparams().layers[i].is_full();
            // A linear cache has slot n for position n; a ring is filled whole.
            let slots = if is_full { tokens.len() as u32 } else { layer.k.ne()[1] as u32 };
            self.fill_keys(&layer.k, i, slots, selected.filter(|_| is_full), &mut random)?;
            let values = noise(&layer.v, PERIOD, &mut random)?;
            self.fill_rows(&layer.v, slots, PERIOD, |_| &values)?;
        }
        // In steps: a span may not be longer than a batch.
        for chunk in tokens.chunks(self.state.n_batch() as usize) {
            let _span = self.state.begin(chunk.len() as u32)?;
            self.commit(chunk);
        }
        self.forget_logits();
        self.forget_unseen();
        self.assume_observed()
    }

    fn fill_keys(
        &mut self,
        tensor: &Tensor,
        layer: usize,
        slots: u32,
        selected: Option<Selected>,
        random: &mut ChaCha8Rng,
    ) -> Result<()> {
        let Some(selected) = selected else {
            let keys = noise(tensor, PERIOD, random)?;
            return self.fill_rows(tensor, slots, PERIOD, |_| &keys);
        };
        let dtype = tensor.dtype();
        let mut zero = noise(tensor, selected.block, random)?;
        // The second half of a block is the first one's negative, so that means are zero to the last bit.
        let (first, second) = zero.split_at_mut(tensor.nb()[1] * (selected.block / 2) as usize);
        second[..first.len()].copy_from_slice(first);
        negate(dtype, &mut second[..first.len()])?;
        let plus = around_a_vector(tensor, selected.block, random)?;
        let mut minus = plus.clone();
        negate(dtype, &mut minus)?;
        self.fill_rows(tensor, slots, selected.block, |n| match selected.class(layer, n) {
            Class::Noise => &zero,
            Class::Plus => &plus,
            Class::Minus => &minus,
        })
    }

    /// Fills the first `slots` rows of a tensor in blocks of `block`, each with the bytes that `rows` has for it.
    fn fill_rows<'a>(
        &mut self,
        tensor: &Tensor,
        slots: u32,
        block: u32,
        rows: impl Fn(u32) -> &'a [u8],
    ) -> Result<()> {
        let row = tensor.nb()[1];
        let blocks = (WRITE / (row * block as usize)).max(1) as u32;
        let mut bytes = Vec::new();
        for first in (0..slots).step_by((block * blocks) as usize) {
            let end = slots.min(first + block * blocks);
            bytes.clear();
            for n in first / block..end.div_ceil(block) {
                bytes.extend_from_slice(rows(n));
            }
            bytes.truncate(row * (end - first) as usize);
            self.cache.write_rows(tensor, first..end, &bytes)?;
        }
        Ok(())
    }

    /// Cuts the sequence to its first `len` tokens, also where sliding-window layers have lost what stood there: they
    /// hold something else, which takes as long to read.
    ///
    /// # Errors
    /// [`Error::Option`] if the sequence is shorter.
    #[doc(hidden)]
    pub fn rewind_synthetic(&mut self, len: usize) -> Result<()> {
        let had = self.len();
        if len > had {
            let why = format!("the sequence has {had}");
            return Err(Error::Option { option: "tokens", value: len.to_string(), why });
        }
        if self.truncate(len).is_err() {
            self.state.restore(len as u32)?;
            self.tokens.truncate(len);
            self.forget_logits();
            if let Some(drafting) = &mut self.drafting {
                drafting.rewind(len as u32, had as u32, true);
            }
            self.forget_unseen();
            self.assume_observed()?;
        }
        Ok(())
    }

    /// Lets the drafter believe that it has seen the whole sequence.
    fn assume_observed(&mut self) -> Result<()> {
        let len = self.len() as u32;
        match &mut self.drafting {
            Some(drafting) => drafting.proposer.assume(len),
            None => Ok(()),
        }
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

    /// Drafts up to `n` tokens behind `token` and forgets them. Returns how many there were: none where the drafter has
    /// not seen the newest position computed.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    #[doc(hidden)]
    pub fn draft_only(&mut self, token: u32, n: u32) -> Result<usize> {
        self.check_tokens(&[token])?;
        self.observe()?;
        let mut drafts = Vec::new();
        let Some((proposer, mut target)) = self.drafter_at_work() else { return Ok(0) };
        proposer.draft(&mut target, token, n, DraftMode::Greedy, &mut drafts)?;
        Ok(drafts.len())
    }

    /// Shows the drafter the newest `n` positions, as if the first rows of the last pass had computed them: what taking
    /// in a round's tokens costs.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    #[doc(hidden)]
    pub fn observe_only(&mut self, n: u32) -> Result<()> {
        let first = (self.len() as u32).saturating_sub(n);
        if let Some(drafting) = &mut self.drafting {
            drafting.captured.set_hidden_rows(0..n);
        }
        let Some((proposer, mut target)) = self.drafter_at_work() else { return Ok(()) };
        proposer.observe(&mut target, 0..n, first)
    }
}

/// Bytes of a block, and the scale with which its codes, evenly spread, have a standard deviation of 1. Blocks begin with
/// their scale, as a half float; F16 has none.
fn layout(dtype: DType) -> Result<(usize, Option<f32>)> {
    match dtype {
        DType::F16 => Ok((2, None)),
        DType::Q8_0 => Ok((34, Some(0.0135))),
        DType::Q4_0 => Ok((18, Some(0.217))),
        DType::TQ3_0 => Ok((14, Some(0.0143))),
        other => {
            let why = "benchmarks fill F16, Q8_0, Q4_0 and TQ3_0".into();
            Err(Error::Option { option: "kv", value: other.to_string(), why })
        }
    }
}

fn half(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}

/// Rows with values near to a standard normal distribution or as wide as one.
fn noise(tensor: &Tensor, rows: u32, random: &mut ChaCha8Rng) -> Result<Vec<u8>> {
    let (block, scale) = layout(tensor.dtype())?;
    let mut bytes = vec![0u8; tensor.nb()[1] * rows as usize];
    random.fill_bytes(&mut bytes);
    for block in bytes.chunks_exact_mut(block) {
        let value = match scale {
            Some(scale) => half(scale),
            // The sum of two bytes: a triangle, from -2.4 to 2.4.
            None => half((f32::from(block[0]) + f32::from(block[1]) - 255.0) / 104.0),
        };
        block[..2].copy_from_slice(&value);
    }
    Ok(bytes)
}

/// Rows around a vector with components of [`MEAN`] and random signs: every value has its component's sign and a
/// random size. Rotated caches get such a vector as well, since a rotation makes another one of it.
fn around_a_vector(tensor: &Tensor, rows: u32, random: &mut ChaCha8Rng) -> Result<Vec<u8>> {
    let dtype = tensor.dtype();
    let (block, _) = layout(dtype)?;
    let mut bytes = noise(tensor, rows, random)?;
    let row = tensor.nb()[1];
    // Bit 7 of each byte is a sign; of TQ3_0 and Q4_0, all bits are.
    let mut signs = vec![0u8; row];
    random.fill_bytes(&mut signs);
    for (block, signs) in bytes.chunks_exact_mut(block).zip(signs.chunks_exact(block).cycle()) {
        let (scale, codes) = block.split_at_mut(2);
        let codes = codes.iter_mut().zip(&signs[2..]);
        let value = match dtype {
            DType::Q8_0 => {
                // 64 to 127, or as much below zero.
                codes.for_each(|(code, sign)| {
                    let size = (*code & 63) | 64;
                    *code = if sign & 128 == 0 { size } else { size.wrapping_neg() };
                });
                MEAN / 95.5
            }
            DType::Q4_0 => {
                // 8 is zero: 12 to 15, or 4 to 1.
                codes.for_each(|(code, sign)| {
                    let nibble =
                        |code: u8, sign: u8| if sign & 1 == 0 { 12 + (code & 3) } else { 1 + (code & 3) };
                    *code = nibble(*code, *sign) | nibble(*code >> 4, *sign >> 4) << 4;
                });
                MEAN / 5.5
            }
            DType::TQ3_0 => {
                // The last four bytes are the codes' highest bits, which are their signs.
                codes.skip(8).for_each(|(code, sign)| *code = *sign);
                MEAN / 59.5
            }
            _ => {
                let size = MEAN * (0.5 + f32::from(scale[0]) / 255.0);
                if signs[1] & 128 == 0 { size } else { -size }
            }
        };
        scale.copy_from_slice(&half(value));
    }
    Ok(bytes)
}

/// Changes the sign of all values.
fn negate(dtype: DType, rows: &mut [u8]) -> Result<()> {
    let (block, _) = layout(dtype)?;
    rows.chunks_exact_mut(block).for_each(|block| block[1] ^= 0x80);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_classes() {
        for (share, group) in [(0.1, 20), (0.25, 8), (1.0, 2), (0.02, 100)] {
            let selected = Selected::new(128, share).unwrap();
            let classes: Vec<_> = (0..10 * group).map(|n| selected.class(5, n)).collect();
            for class in [Class::Plus, Class::Minus] {
                assert_eq!(classes.iter().filter(|&&c| c == class).count(), 10, "{share}");
            }
            let other = (0..10 * group).map(|n| selected.class(11, n));
            assert!(group == 2 || !other.eq(classes), "{share}");
        }
        for (block, share) in [(128, 0.0), (128, 1.1), (128, f32::NAN), (0, 0.1)] {
            assert!(Selected::new(block, share).is_err());
        }
    }
}
