//! The measurement itself.

use std::time::Duration;

use crate::{Engine, Result, Row};

/// What to measure.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Plan {
    /// Prompt lengths, each from an empty cache.
    pub prompts: Vec<usize>,
    /// Depths at which single tokens are decoded.
    pub depths: Vec<usize>,
    /// How many single tokens in a round.
    pub tokens: usize,
    /// Rounds; each number is their median.
    pub rounds: usize,
    /// Seed of the token ids.
    pub seed: u64,
}

impl Plan {
    /// Tokens that a cache must hold for this plan.
    pub fn context(&self) -> usize {
        let deepest = self.depths.iter().max().map_or(0, |d| d + self.tokens);
        self.prompts.iter().copied().max().unwrap_or(0).max(deepest)
    }
}

/// Runs the plan, the engines taking turns in every round. Each gets the same token ids.
pub fn compare(engines: &mut [Box<dyn Engine>], plan: &Plan) -> Result<Vec<Row>> {
    let vocab = engines.iter().map(|e| e.vocab()).min().ok_or("no engine")?;
    let ids = random_ids(plan.seed, vocab, plan.context());
    let mut rows = Vec::new();
    for &n in &plan.prompts {
        let ids = &ids[..n];
        let times = turns(engines, plan.rounds, |engine| engine.prompt(ids))?;
        rows.extend(engines.iter().zip(&times).map(|(engine, own)| {
            let s = median(own.clone());
            Row {
                engine: engine.name(),
                what: "prompt",
                n,
                depth: 0,
                tokens_per_s: n as f64 / s,
                ms: s * 1e3,
                ratio: ratio(&times[0], own),
            }
        }));
    }
    for &depth in &plan.depths {
        let (context, single) = ids[..depth + plan.tokens].split_at(depth);
        let times = turns(engines, plan.rounds, |engine| Ok(engine.decode(context, single)?.iter().sum()))?;
        rows.extend(engines.iter().zip(&times).map(|(engine, own)| {
            let s = median(own.clone());
            Row {
                engine: engine.name(),
                what: "decode",
                n: plan.tokens,
                depth,
                tokens_per_s: plan.tokens as f64 / s,
                ms: s * 1e3 / plan.tokens as f64,
                ratio: ratio(&times[0], own),
            }
        }));
    }
    Ok(rows)
}

/// Median over the rounds of how much faster an engine was than the first in the same round. A machine that
/// slows down or speeds up meanwhile does so for both.
fn ratio(first: &[f64], own: &[f64]) -> f64 {
    median(first.iter().zip(own).map(|(first, own)| first / own).collect())
}

/// Seconds of each engine: one round to warm up, then `rounds` in turns, the order turned round every time.
fn turns(
    engines: &mut [Box<dyn Engine>],
    rounds: usize,
    mut measure: impl FnMut(&mut dyn Engine) -> Result<Duration>,
) -> Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::with_capacity(rounds); engines.len()];
    for round in 0..=rounds {
        let mut order: Vec<usize> = (0..engines.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for i in order {
            let (engine, times) = (&mut engines[i], &mut times[i]);
            // Idle threads of the one before may still spin for a moment.
            std::thread::sleep(Duration::from_millis(20));
            let time = measure(engine.as_mut())?;
            if round > 0 {
                times.push(time.as_secs_f64());
            }
        }
    }
    Ok(times)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let n = times.len();
    if n == 0 { f64::NAN } else { (times[n / 2] + times[(n - 1) / 2]) / 2.0 }
}

/// Ordinary tokens (the first few are control tokens) from splitmix64.
fn random_ids(seed: u64, vocab: usize, n: usize) -> Vec<u32> {
    let first = 300.min(vocab / 2);
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let span = (vocab - first) as u64;
    (0..n).map(|_| (first as u64 + next() % span) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn ids_repeat_and_stay_in_range() {
        let ids = random_ids(7, 4096, 1000);
        assert_eq!(ids, random_ids(7, 4096, 1000));
        assert!(ids.iter().all(|&x| (300..4096).contains(&x)));
        assert_ne!(ids, random_ids(8, 4096, 1000));
    }
}
