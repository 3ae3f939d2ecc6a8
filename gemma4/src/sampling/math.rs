//! Passes over a whole row of logits, written so that the compiler vectorises them.

/// Independent accumulators: enough to fill the vector registers of every target.
const LANES: usize = 16;
/// Logits per block. A block stays in the first-level cache between its two uses.
pub(super) const BLOCK: usize = 1024;
/// Below this the exponential counts as zero, so that no exponent leaves the normal range.
const EXP_FLOOR: f32 = -87.0;

/// `e^z` for `z <= 0`, and 0 for NaN and for `z <= -87`. Relative error below 2e-7.
///
/// Range reduction and polynomial of Cephes `expf`. Only additions, multiplications and bit moves:
/// it vectorises on every target and gives the same bits on each, which a platform's `exp` does not.
#[inline(always)]
pub(super) fn exp(z: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts. The first has few bits, so its product with the integer is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let usable = z > EXP_FLOOR;
    let x = if usable { z } else { EXP_FLOOR };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_2e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    let y = (p * r * r + r + 1.0) * power;
    if usable { y } else { 0.0 }
}

/// The largest value, ignoring NaN; `-inf` if there is none.
pub(super) fn max_of(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            // Not `f32::max`: this form is one instruction and drops NaN just the same.
            *lane = if v > *lane { v } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

/// Sum of `e^(v - max)` over one block; NaN and `-inf` count as 0.
fn sum_exp(block: &[f32], max: f32) -> f64 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += exp(v - max);
        }
    }
    let tail: f64 = rest.iter().map(|&v| f64::from(exp(v - max))).sum();
    lanes.iter().map(|&v| f64::from(v)).sum::<f64>() + tail
}

/// What one pass over a row finds out: the largest logit and the softmax denominator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Softmax {
    /// Lowest id among the largest logits.
    pub argmax: usize,
    /// The largest logit, never NaN or `-inf`.
    pub max: f32,
    /// Sum of `e^(l - max)`, at least 1. If `max` is `+inf`, the number of `+inf` logits.
    pub sum: f64,
}

impl Softmax {
    /// One pass over `logits`. `None` if every entry is NaN or `-inf`, or there is none.
    pub fn of(logits: &[f32]) -> Option<Self> {
        let mut max = f32::NEG_INFINITY;
        let mut best_block = 0;
        let mut sum = 0.0;
        for (index, block) in logits.chunks(BLOCK).enumerate() {
            let block_max = max_of(block);
            if block_max > max {
                // `max` may still be -inf here; then the difference is -inf and the factor 0.
                sum *= f64::from(exp(max - block_max));
                max = block_max;
                best_block = index;
            }
            sum += sum_exp(block, max);
        }
        if max == f32::NEG_INFINITY {
            return None;
        }
        if max == f32::INFINITY {
            sum = logits.iter().filter(|&&l| l == max).count() as f64;
        }
        let start = best_block * BLOCK;
        let argmax = start + logits.get(start..)?.iter().position(|&l| l == max)?;
        Some(Self { argmax, max, sum })
    }

    /// Natural log of the probability of a token with this logit.
    pub fn log_prob(&self, logit: f32) -> f32 {
        // inf - inf would be NaN; the limit is a uniform share.
        let z = if logit == self.max { 0.0 } else { f64::from(logit) - f64::from(self.max) };
        (z - self.sum.ln()) as f32
    }
}

/// Token id of the largest logit: the lowest id on a tie, NaN skipped.
///
/// `logits` is one row of `n_vocab` values. `None` if the row is empty or all NaN. `-0.0` and `0.0`
/// tie. A row of `-inf` alone is a tie like any other.
///
/// ```
/// use gemma4::sampling::argmax;
/// assert_eq!(argmax(&[1.0, f32::NAN, 3.0, 3.0]), Some(2));
/// ```
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let mut max = f32::NEG_INFINITY;
    let mut start = 0;
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        let block_max = max_of(block);
        if block_max > max {
            max = block_max;
            start = index * BLOCK;
        }
    }
    let within = logits.get(start..)?.iter().position(|&l| l == max)?;
    u32::try_from(start + within).ok()
}
