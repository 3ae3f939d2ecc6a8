//! Drawn frequencies against the probabilities they should have, with fixed seeds.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::super::{Distribution, SamplingOptions, Verdict, speculative_accept};
use super::{plain, sampler};

const DRAWS: usize = 60_000;

/// Logits of a toy vocabulary: uneven, with a tie and a rare token.
const LOGITS: [f32; 8] = [0.3, -1.0, 2.0, 0.3, 1.1, -3.0, 0.9, -0.2];

/// Pearson's test. The limit is the 1e-5 tail by Wilson and Hilferty's approximation: the seeds are fixed,
/// so it must hold once and then holds always.
fn assert_fits(counts: &[usize], expected: &Distribution, what: &str) {
    let n: usize = counts.iter().sum();
    let mut statistic = 0.0;
    for (id, &count) in counts.iter().enumerate() {
        let p = f64::from(expected.probability(id as u32));
        if p == 0.0 {
            assert_eq!(count, 0, "{what}: token {id} cannot be drawn");
            continue;
        }
        statistic += (count as f64 - n as f64 * p).powi(2) / (n as f64 * p);
    }
    let df = expected.entries().len() as f64 - 1.0;
    if df == 0.0 {
        return;
    }
    let a = 2.0 / (9.0 * df);
    let limit = df * (1.0 - a + 4.265 * a.sqrt()).powi(3);
    assert!(statistic < limit, "{what}: chi-square {statistic} over {limit} for {df} degrees of freedom");
}

fn count(mut draw: impl FnMut() -> u32) -> Vec<usize> {
    let mut counts = vec![0; LOGITS.len()];
    (0..DRAWS).for_each(|_| counts[draw() as usize] += 1);
    counts
}

fn chains() -> Vec<SamplingOptions> {
    vec![
        plain(),
        plain().temperature(0.5),
        plain().temperature(3.0).top_k(5),
        plain().top_p(0.8).min_p(0.05),
        plain().typical_p(0.7),
        SamplingOptions::default().seed(9),
        plain().logit_bias([(2, -1.5), (0, f32::NEG_INFINITY)]),
    ]
}

#[test]
fn samples_follow_the_distribution() {
    for options in chains() {
        let mut s = sampler(&options);
        let expected = s.distribution(&LOGITS).unwrap();
        assert_fits(&count(|| s.sample(&LOGITS).unwrap().token), &expected, "sample");
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        assert_fits(&count(|| expected.sample(&mut rng)), &expected, "Distribution::sample");
    }
}

fn drafts() -> Vec<(&'static str, Distribution)> {
    let from = |o: &SamplingOptions, logits: &[f32]| sampler(o).distribution(logits).unwrap();
    let reversed: Vec<f32> = LOGITS.iter().rev().copied().collect();
    vec![
        ("the target itself", from(&plain(), &LOGITS)),
        ("warmer", from(&plain().temperature(2.0), &LOGITS)),
        ("colder", from(&plain().temperature(0.3), &LOGITS)),
        ("truncated", from(&plain().top_k(3), &LOGITS)),
        ("opposite", from(&plain(), &reversed)),
        ("uniform", from(&plain(), &[0.0; 8])),
        ("argmax", Distribution::one_hot(2)),
        ("argmax of a rare token", Distribution::one_hot(5)),
        ("two tokens", Distribution::new([(1, 0.5), (7, 0.5)]).unwrap()),
    ]
}

#[test]
fn speculation_emits_the_target_distribution() {
    for options in chains() {
        let target = sampler(&options).distribution(&LOGITS).unwrap();
        for (what, draft) in drafts() {
            let mut draft_rng = ChaCha8Rng::seed_from_u64(100);
            let mut rng = ChaCha8Rng::seed_from_u64(200);
            let counts = count(|| {
                let drafted = draft.sample(&mut draft_rng);
                speculative_accept(&target, &draft, drafted, &mut rng).token(drafted)
            });
            assert_fits(&counts, &target, what);
        }
    }
}

#[test]
fn speculation_accepts_as_often_as_the_rule_says() {
    let target = sampler(&plain()).distribution(&LOGITS).unwrap();
    for (what, draft) in drafts() {
        let overlap: f64 =
            draft.entries().iter().map(|&(id, q)| f64::from(q.min(target.probability(id)))).sum();
        let (mut a, mut b) = (ChaCha8Rng::seed_from_u64(5), ChaCha8Rng::seed_from_u64(6));
        let accepted = (0..DRAWS)
            .filter(|_| {
                let drafted = draft.sample(&mut a);
                speculative_accept(&target, &draft, drafted, &mut b) == Verdict::Accept
            })
            .count() as f64;
        let rate = accepted / DRAWS as f64;
        let tolerance = 4.5 * (overlap * (1.0 - overlap).max(0.0) / DRAWS as f64).sqrt() + 1e-6;
        assert!((rate - overlap).abs() <= tolerance, "{what}: accepted {rate}, expected {overlap}");
    }
}

#[test]
fn pairs_of_tokens_follow_the_target() {
    // Two drafted positions, the second conditioned on the first; a rejection ends the round and the
    // second token then comes from the target. Emitted pairs must have the target's joint distribution.
    let row = |previous: u32| -> Vec<f32> { (0..3).map(|i| ((i + previous * 2) % 5) as f32 * 0.6).collect() };
    let target_of = |previous: u32| sampler(&plain()).distribution(&row(previous)).unwrap();
    let soft = |previous: u32| sampler(&plain().temperature(0.4)).distribution(&row(previous + 1)).unwrap();
    let hard = |previous: u32| Distribution::one_hot(soft(previous).most_likely());
    let targets: Vec<_> = (0..4).map(target_of).collect();
    for drafts in [(0..4).map(soft).collect::<Vec<_>>(), (0..4).map(hard).collect()] {
        let (mut a, mut b) = (ChaCha8Rng::seed_from_u64(7), ChaCha8Rng::seed_from_u64(8));
        let mut counts = vec![0; 9];
        for _ in 0..DRAWS {
            let drafted = drafts[3].sample(&mut a);
            let verdict = speculative_accept(&targets[3], &drafts[3], drafted, &mut b);
            let first = verdict.token(drafted);
            let second = if verdict == Verdict::Accept {
                let next = drafts[first as usize].sample(&mut a);
                speculative_accept(&targets[first as usize], &drafts[first as usize], next, &mut b)
                    .token(next)
            } else {
                targets[first as usize].sample(&mut b)
            };
            counts[(first * 3 + second) as usize] += 1;
        }
        let joint = (0..9_u32)
            .map(|i| (i, targets[3].probability(i / 3) * targets[(i / 3) as usize].probability(i % 3)));
        assert_fits(&counts, &Distribution::new(joint).unwrap(), "pairs");
    }
}

#[test]
fn speculation_at_the_edges() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (two, five) = (Distribution::one_hot(2), Distribution::one_hot(5));
    assert_eq!(speculative_accept(&two, &two, 2, &mut rng), Verdict::Accept);
    assert_eq!(speculative_accept(&two, &five, 5, &mut rng), Verdict::Replace(2));
    // A token that the draft gives no mass counts as a one-hot draft: still the target's distribution.
    let target = sampler(&plain()).distribution(&LOGITS).unwrap();
    let counts = count(|| speculative_accept(&target, &two, 4, &mut rng).token(4));
    assert_fits(&counts, &target, "a token outside the draft");
    // Ids that only one side knows.
    let outside = Distribution::one_hot(4000);
    let counts = count(|| speculative_accept(&target, &outside, 4000, &mut rng).token(4000));
    assert_fits(&counts, &target, "an id outside the target");
}

#[test]
fn matching_samples_reproduces_draft_free_output() {
    // Rows depend on the text so far. Verification samples row by row and stops at the first mismatch.
    let row = |text: &[u32]| -> Vec<f32> {
        let last = text.last().copied().unwrap_or(0);
        (0..8).map(|i| LOGITS[(i + last as usize) % 8]).collect()
    };
    let options = plain().top_k(6).repetition_penalty(1.2).seed(77);
    let mut s = sampler(&options);
    let mut text = Vec::new();
    while text.len() < 200 {
        let token = s.sample(&row(&text)).unwrap().token;
        s.accept(token);
        text.push(token);
    }
    let mut s = sampler(&options);
    let (mut speculated, mut hits) = (Vec::new(), 0);
    while speculated.len() < text.len() {
        for drafted in [2, 1, 0] {
            let token = s.sample(&row(&speculated)).unwrap().token;
            s.accept(token);
            speculated.push(token);
            if token != drafted || speculated.len() == text.len() {
                break;
            }
            hits += 1;
        }
    }
    assert_eq!(speculated, text);
    assert!(hits > 0);
}
