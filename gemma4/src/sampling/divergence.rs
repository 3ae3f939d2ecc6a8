//! How far one row of logits is from another.

use super::math::{Softmax, exp};

/// Comparison of a row of logits with a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Divergence {
    /// Kullback-Leibler divergence of the distribution from the reference, in nats: `sum p ln(p / q)`. Infinite
    /// if a token that the reference can choose cannot be chosen.
    pub kl: f64,
    /// Whether both have the same most likely token.
    pub same_top: bool,
}

impl Divergence {
    /// Compares two rows of `n_vocab` logits. `None` if their lengths differ or one of them has nothing to
    /// choose.
    ///
    /// ```
    /// use gemma4::sampling::Divergence;
    /// let same = Divergence::of(&[1.0, 2.0], &[11.0, 12.0]).unwrap();
    /// assert!(same.kl.abs() < 1e-6 && same.same_top);
    /// ```
    pub fn of(reference: &[f32], logits: &[f32]) -> Option<Divergence> {
        if reference.len() != logits.len() {
            return None;
        }
        let (p, q) = (Softmax::of(reference)?, Softmax::of(logits)?);
        let shift = (f64::from(q.max) + q.sum.ln()) - (f64::from(p.max) + p.sum.ln());
        let mut sum = 0.0;
        for (&a, &b) in reference.iter().zip(logits) {
            let weight = f64::from(exp(a - p.max));
            if weight > 0.0 {
                sum += weight * (f64::from(a) - f64::from(b) + shift);
            }
        }
        // Rounding can take it below zero.
        Some(Divergence { kl: (sum / p.sum).max(0.0), same_top: p.argmax == q.argmax })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // p = (1/4, 3/4), q = (1/2, 1/2).
        let d = Divergence::of(&[0.0, 3f32.ln()], &[5.0, 5.0]).unwrap();
        let wanted = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
        assert!((d.kl - wanted).abs() < 1e-6, "{} {wanted}", d.kl);
        // On a tie the lower id counts.
        assert!(!d.same_top);
    }

    #[test]
    fn what_cannot_be_chosen() {
        let forbids = f32::NEG_INFINITY;
        assert_eq!(Divergence::of(&[0.0, 0.0], &[0.0, forbids]).unwrap().kl, f64::INFINITY);
        assert!(Divergence::of(&[0.0, forbids], &[0.0, forbids]).unwrap().kl < 1e-9);
        assert_eq!(Divergence::of(&[forbids], &[0.0]), None);
        assert_eq!(Divergence::of(&[0.0], &[0.0, 1.0]), None);
    }
}
