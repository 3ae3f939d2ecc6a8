//! The truncating stages against the reference, as properties.

use proptest::prelude::*;

use super::super::{Distribution, Row, SamplingOptions, argmax};
use super::{naive, plain, sampler};

/// Rows of several blocks' length now and then, with ties and banned tokens.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        8 => -12.0_f32..12.0,
        4 => (-24_i32..24).prop_map(|v| v as f32 / 4.0),
        1 => Just(f32::NEG_INFINITY),
    ];
    let len = prop_oneof![4 => 1_usize..40, 1 => 1000_usize..3000];
    len.prop_flat_map(move |n| prop::collection::vec(value.clone(), n))
        .prop_filter("one usable logit", |v| v.iter().any(|l| l.is_finite()))
}

fn options() -> impl Strategy<Value = SamplingOptions> {
    let p = || prop_oneof![Just(1.0_f32), 0.0_f32..1.0, 0.9_f32..1.0];
    let min_p = prop_oneof![Just(0.0_f32), 0.0_f32..1.0];
    let top_k = prop_oneof![Just(0_usize), 1_usize..60];
    (top_k, p(), p(), min_p, 0_usize..5, 0.05_f32..4.0).prop_map(|(k, typical, top_p, min_p, keep, t)| {
        plain().top_k(k).typical_p(typical).top_p(top_p).min_p(min_p).min_keep(keep).temperature(t)
    })
}

fn support(d: &Distribution) -> Vec<u32> {
    d.entries().iter().map(|e| e.0).collect()
}

fn distribution(options: &SamplingOptions, logits: &[f32]) -> Distribution {
    sampler(options).distribution(logits).unwrap()
}

proptest! {
    #[test]
    fn matches_the_reference(options in options(), logits in row()) {
        let expected = naive::chain(&options, &logits);
        prop_assume!(expected.margin > 1e-5);
        let got = distribution(&options, &logits);
        // Both may drop what is too small for an f32.
        let visible: Vec<_> = expected.entries.iter().filter(|e| e.1 > 1e-30).collect();
        let kept: Vec<_> = got.entries().iter().filter(|e| e.1 > 1.001e-30).collect();
        prop_assert!(kept.len() <= visible.len());
        for &&(id, p) in &visible {
            let error = (f64::from(got.probability(id)) - p).abs();
            prop_assert!(error <= 1e-6 + 2e-5 * p, "token {id}: {p} but {}", got.probability(id));
            prop_assert!(got.probability(id) > 0.0);
        }
        for &&(id, _) in &kept {
            prop_assert!(expected.entries.iter().any(|e| e.0 == id), "token {id} should be gone");
        }
    }

    #[test]
    fn the_likeliest_tokens_are_enough_for_top_k(
        options in options(),
        logits in row(),
        spare in 0_usize..3,
        order in any::<u64>(),
    ) {
        let expected = naive::chain(&options, &logits);
        prop_assume!(options.top_k > 0 && expected.margin > 1e-5);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let mut likely: Vec<(u32, f32)> = (0u32..)
            .zip(&logits)
            .filter(|(_, l)| l.is_finite())
            .map(|(id, &l)| (id, (f64::from(l - max).exp() / mass) as f32))
            .collect();
        likely.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        likely.truncate(options.top_k + spare);
        // They come in no order.
        let n = likely.len();
        likely.rotate_left(order as usize % n);
        let got = sampler(&options).distribution_of(Row::Likely(&likely)).unwrap();
        for &(id, p) in &expected.entries {
            let error = (f64::from(got.probability(id)) - p).abs();
            prop_assert!(error <= 1e-5 + 1e-4 * p, "token {id}: {p} but {}", got.probability(id));
        }
    }

    #[test]
    fn probabilities_sum_to_one(options in options(), logits in row()) {
        let d = distribution(&options, &logits);
        let sum: f64 = d.entries().iter().map(|e| f64::from(e.1)).sum();
        prop_assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        prop_assert!(d.entries().iter().all(|e| e.1 > 0.0 && logits[e.0 as usize].is_finite()));
        prop_assert!(d.entries().is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn support_shrinks_as_options_tighten(
        logits in row(), a in 0.01_f32..1.0, b in 0.01_f32..1.0, k in 1_usize..50,
    ) {
        let (low, high) = (a.min(b), a.max(b));
        let inside = |small: SamplingOptions, large: SamplingOptions| {
            let large = distribution(&large, &logits);
            support(&distribution(&small, &logits)).iter().all(|&t| large.probability(t) > 0.0)
        };
        prop_assert!(inside(plain().top_p(low), plain().top_p(high)));
        prop_assert!(inside(plain().typical_p(low), plain().typical_p(high)));
        prop_assert!(inside(plain().min_p(high), plain().min_p(low)));
        prop_assert!(inside(plain().top_k(k), plain().top_k(k + 1)));
        prop_assert!(inside(plain().top_k(k).top_p(low), plain().top_k(k)));
        prop_assert!(inside(plain().top_p(high).min_p(low), plain().top_p(high)));
    }

    #[test]
    fn top_k_keeps_the_largest(logits in row(), k in 1_usize..2000) {
        let kept = support(&distribution(&plain().top_k(k), &logits));
        let ids = 0..logits.len() as u32;
        let mut order: Vec<u32> = ids.filter(|&i| logits[i as usize].is_finite()).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        order.truncate(k);
        order.sort_unstable();
        prop_assert_eq!(kept, order);
    }

    #[test]
    fn top_p_is_the_smallest_prefix(logits in row(), p in 0.0_f32..1.0) {
        let full = distribution(&plain(), &logits);
        let cut = distribution(&plain().top_p(p), &logits);
        let kept: f64 = cut.entries().iter().map(|e| f64::from(full.probability(e.0))).sum();
        let last = cut.entries().iter().map(|e| full.probability(e.0)).fold(1.0, f32::min);
        prop_assert!(kept >= f64::from(p) - 1e-5);
        prop_assert!(cut.entries().len() == 1 || kept - f64::from(last) < f64::from(p) + 1e-5);
    }

    #[test]
    fn a_permuted_row_permutes_the_distribution(options in options(), logits in row(), salt in any::<u64>()) {
        // Ties are broken by id, which a permutation changes: only distinct logits carry over.
        let mut distinct = logits.clone();
        distinct.sort_by(f32::total_cmp);
        distinct.dedup();
        prop_assume!(naive::chain(&options, &distinct).margin > 1e-5);
        let key = |i: &usize| (*i as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut order: Vec<usize> = (0..distinct.len()).collect();
        order.sort_by_key(key);
        let shuffled: Vec<f32> = order.iter().map(|&i| distinct[i]).collect();
        let (a, b) = (distribution(&options, &distinct), distribution(&options, &shuffled));
        prop_assert_eq!(a.entries().len(), b.entries().len());
        for (new, &old) in order.iter().enumerate() {
            let (x, y) = (a.probability(old as u32), b.probability(new as u32));
            prop_assert!((x - y).abs() <= 1e-6, "{x} and {y}");
        }
    }

    #[test]
    fn bias_and_penalties_match_the_reference(
        logits in prop::collection::vec(-8.0_f32..8.0, 2..30),
        history in prop::collection::vec(0_u32..40, 0..30),
        (rep, presence, frequency) in (0.5_f32..2.0, -1.0_f32..1.0, -1.0_f32..1.0),
        last_n in 0_usize..20,
        bias in prop::collection::vec((0_u32..2, prop_oneof![-5.0_f32..5.0, Just(-1e30)]), 0..4),
    ) {
        let options = plain()
            .repetition_penalty(rep)
            .presence_penalty(presence)
            .frequency_penalty(frequency)
            .penalty_last_n(last_n)
            .logit_bias(bias);
        let mut s = sampler(&options);
        history.iter().for_each(|&t| s.accept(t));
        prop_assert_eq!(s.history().len(), history.len().min(last_n));
        let expected = distribution(&plain(), &naive::adjust(&options, &history, &logits));
        prop_assert_eq!(s.distribution(&logits).unwrap(), expected);
        let greedy = sampler(&options.clone().temperature(0.0));
        let mut greedy = history.iter().fold(greedy, |mut s, &t| { s.accept(t); s });
        let token = greedy.sample(&logits).unwrap().token;
        prop_assert_eq!(Some(token), argmax(&naive::adjust(&options, &history, &logits)));
    }
}

#[test]
fn exact_cuts() {
    // Probabilities 1/2, 1/4, 1/8, 1/8.
    let logits = [8.0_f32, 4.0, 2.0, 2.0].map(f32::ln);
    let kept = |o: SamplingOptions| support(&distribution(&o, &logits));
    assert_eq!(kept(plain().top_p(0.49)), [0]);
    assert_eq!(kept(plain().top_p(0.51)), [0, 1]);
    assert_eq!(kept(plain().top_p(0.8)), [0, 1, 2]);
    assert_eq!(kept(plain().top_p(0.0)), [0]);
    assert_eq!(kept(plain().min_p(0.24)), [0, 1, 2, 3]);
    assert_eq!(kept(plain().min_p(0.26)), [0, 1]);
    assert_eq!(kept(plain().min_p(1.0)), [0]);
    assert_eq!(kept(plain().min_p(0.26).min_keep(3)), [0, 1, 2]);
    assert_eq!(kept(plain().top_k(3)), [0, 1, 2]);
    // The entropy is 1.75 bits: token 1 with 2 bits of surprise is the most typical.
    assert_eq!(kept(plain().typical_p(0.1)), [1]);
    assert_eq!(kept(plain().typical_p(0.3)), [0, 1]);
    assert_eq!(kept(plain().typical_p(0.1).min_keep(9)), [0, 1, 2, 3]);
}

#[test]
fn a_whole_vocabulary_agrees_with_the_reference() {
    // Heavy ties and a long flat tail: the worst case for top-p without top-k.
    let logits: Vec<f32> =
        (0..50_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32 / 100.0).collect();
    for options in [plain().top_p(0.95), plain().top_p(0.9999), plain().top_p(0.5).min_p(0.2), plain()] {
        let expected = naive::chain(&options, &logits);
        assert_eq!(
            support(&distribution(&options, &logits)),
            expected.entries.iter().map(|e| e.0).collect::<Vec<_>>()
        );
    }
}
