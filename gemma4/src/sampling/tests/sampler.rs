//! Determinism, unusual logits, reporting and option checks.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::math::{Softmax, exp};
use super::super::{Distribution, Sampler, SamplingOptions, argmax};
use super::{naive, plain, sampler};
use crate::Error;

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

fn row(least: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-5.0_f32..5.0, least..40)
}

fn unusual() -> impl Strategy<Value = f32> {
    let odd = prop::sample::select(vec![NAN, INF, -INF, f32::MAX, f32::MIN, 1e-45]);
    prop_oneof![1 => -5.0_f32..5.0, 5 => odd]
}

proptest! {
    #[test]
    fn argmax_is_the_first_largest(values in prop::collection::vec(
        prop_oneof![(-3_i32..3).prop_map(|v| v as f32), Just(NAN), Just(-INF), Just(-0.0), Just(INF)],
        0..2500,
    )) {
        let mut expected: Option<usize> = None;
        for (i, &v) in values.iter().enumerate() {
            if !v.is_nan() && expected.is_none_or(|e| v > values[e]) {
                expected = Some(i);
            }
        }
        prop_assert_eq!(argmax(&values), expected.map(|i| i as u32));
        let choice = sampler(&SamplingOptions::greedy()).sample(&values);
        match expected.filter(|&i| values[i] > -INF) {
            Some(i) => prop_assert_eq!(choice.unwrap().token, i as u32),
            None => prop_assert!(choice.is_err()),
        }
    }

    #[test]
    fn softmax_matches_f64(values in prop::collection::vec(-40.0_f32..40.0, 1..3000)) {
        let s = Softmax::of(&values).unwrap();
        let max = values.iter().copied().fold(-INF, f32::max);
        let sum: f64 = values.iter().map(|&v| (f64::from(v) - f64::from(max)).exp()).sum();
        prop_assert_eq!(s.max, max);
        prop_assert!((s.sum / sum - 1.0).abs() < 1e-6);
        let expected = f64::from(values[0] - max) - sum.ln();
        prop_assert!((f64::from(s.log_prob(values[0])) - expected).abs() < 1e-4);
    }

    #[test]
    fn exp_is_accurate(z in -87.0_f32..=0.0) {
        let expected = f64::from(z).exp();
        prop_assert!((f64::from(exp(z)) / expected - 1.0).abs() < 2e-7 || z < -86.9);
    }

    #[test]
    fn a_banned_token_never_appears(logits in row(2), ban in 0_u32..2, seed: u64) {
        let mut s = sampler(&plain().seed(seed).logit_bias([(ban, -INF)]));
        prop_assert_eq!(s.distribution(&logits).unwrap().probability(ban), 0.0);
        prop_assert!((0..50).all(|_| s.sample(&logits).unwrap().token != ban));
    }

    #[test]
    fn a_seed_fixes_the_tokens(logits in row(2), seed: u64, k in 0_usize..9) {
        let options = plain().seed(seed).top_k(k).repetition_penalty(1.3);
        let run = |s: &mut Sampler| -> Vec<u32> {
            (0..20).map(|_| { let t = s.sample(&logits).unwrap().token; s.accept(t); t }).collect()
        };
        let mut s = sampler(&options);
        let first = run(&mut s);
        let mut fork = s.clone();
        prop_assert_eq!(run(&mut s), run(&mut fork));
        s.reset();
        prop_assert_eq!(run(&mut s), first);
    }

    #[test]
    fn one_number_per_token(logits in row(1), seed: u64, k in 0_usize..4, n in 1_usize..20) {
        let mut s = sampler(&plain().seed(seed).top_k(k).n_logprobs(2));
        (0..n).for_each(|_| { s.sample(&logits).unwrap(); });
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).for_each(|_| { rng.next_u64(); });
        prop_assert_eq!(s.rng().next_u64(), rng.next_u64());
        let mut greedy = sampler(&SamplingOptions::greedy().seed(seed));
        greedy.sample(&logits).unwrap();
        prop_assert_eq!(greedy.rng().next_u64(), ChaCha8Rng::seed_from_u64(seed).next_u64());
    }

    #[test]
    fn unusual_values_neither_panic_nor_win(
        values in prop::collection::vec(unusual(), 0..60),
        k in 0_usize..5,
        p in 0.0_f32..=1.0,
        t in prop_oneof![Just(0.0_f32), Just(1e-45), Just(1.0), Just(f32::MAX)],
    ) {
        let options = plain().top_k(k).top_p(p).typical_p(p).min_p(1.0 - p).temperature(t).n_logprobs(3)
            .repetition_penalty(1.5).presence_penalty(f32::MAX).frequency_penalty(f32::MAX);
        let mut s = sampler(&options);
        (0..9).for_each(|i| s.accept(i / 2));
        if let Ok(choice) = s.sample(&values) {
            prop_assert!(values[choice.token as usize] > -INF);
            prop_assert!(!choice.logprob.is_nan() && choice.logprob <= 0.0);
            prop_assert!(choice.top.len() <= 3 && choice.top.iter().all(|e| e.1 <= 0.0));
            prop_assert!(s.distribution(&values).unwrap().probability(choice.token) > 0.0);
        }
    }
}

#[test]
fn draws_are_the_same_everywhere() {
    let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32 - (i % 11) as f32).collect();
    let options = SamplingOptions::default().seed(42);
    let mut s = sampler(&options);
    let tokens: Vec<u32> = (0..12).map(|_| s.sample(&logits).unwrap().token).collect();
    // The documented recipe: 53 bits of the stream against the cumulative probabilities by rising id.
    let expected = naive::chain(&options, &logits).entries;
    let mut rng = ChaCha8Rng::seed_from_u64(42);
    for &token in &tokens {
        let mut u = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let drawn = expected.iter().find(|e| {
            u -= e.1;
            u < 0.0
        });
        assert_eq!(drawn.unwrap().0, token);
    }
    // Pinned, so that an upgrade of the generator or a new platform cannot change them unseen.
    assert_eq!(tokens, [55, 89, 55, 55, 34, 33, 34, 67, 55, 33, 55, 88]);
}

#[test]
fn infinite_logits_share_the_mass() {
    let logits = [1.0, INF, 5.0, INF, -INF, NAN];
    let s = sampler(&plain());
    assert_eq!(s.distribution(&logits).unwrap().entries(), [(1, 0.5), (3, 0.5)]);
    assert_eq!(sampler(&plain().top_k(1)).distribution(&logits).unwrap().entries(), [(1, 1.0)]);
    assert_eq!(sampler(&plain().top_p(0.4)).distribution(&logits).unwrap().entries(), [(1, 1.0)]);
    let choice = sampler(&SamplingOptions::greedy().n_logprobs(3)).sample(&logits).unwrap();
    assert_eq!((choice.token, choice.logprob), (1, -(2.0_f32.ln())));
    assert_eq!(choice.top, [(1, -(2.0_f32.ln())), (3, -(2.0_f32.ln())), (2, -INF)]);
}

#[test]
fn a_row_without_choices_is_an_error() {
    for options in [plain(), SamplingOptions::greedy(), plain().top_k(3).typical_p(0.5)] {
        let mut s = sampler(&options);
        for row in [&[][..], &[NAN], &[-INF, NAN, -INF]] {
            assert!(matches!(s.sample(row), Err(Error::Option { option: "logits", .. })));
            assert!(s.distribution(row).is_err());
        }
        let mut banned = sampler(&options.clone().logit_bias([(0, -INF), (1, -INF)]));
        assert!(banned.sample(&[1.0, 2.0]).is_err());
        assert!(banned.distribution(&[1.0, 2.0]).is_err());
        assert_eq!(banned.sample(&[1.0, 2.0, -3.0]).unwrap().token, 2);
    }
    let outside = sampler(&plain().logit_bias([(0, 1.0), (7, 1.0)])).sample(&[0.0; 3]);
    assert!(matches!(outside, Err(Error::InvalidToken { token: 7, index: 1, n_vocab: 3 })));
}

#[test]
fn log_probabilities_are_those_of_the_raw_row() {
    let logits = [8.0_f32, 4.0, 2.0, 2.0].map(f32::ln);
    let options = SamplingOptions::greedy().n_logprobs(3).logit_bias([(0, -INF)]);
    let choice = sampler(&options).sample(&logits).unwrap();
    assert_eq!(choice.token, 1);
    assert!((choice.logprob - 0.25_f32.ln()).abs() < 1e-6);
    assert_eq!(choice.top.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 1, 2]);
    assert!((choice.top[0].1 - 0.5_f32.ln()).abs() < 1e-6);
    let cold = sampler(&plain().temperature(0.01).n_logprobs(9)).sample(&logits).unwrap();
    assert_eq!((cold.token, cold.top.len()), (0, 4));
    assert!((cold.logprob - 0.5_f32.ln()).abs() < 1e-6);
}

#[test]
fn history_is_a_bounded_ring() {
    let mut s = sampler(&plain().penalty_last_n(3));
    [1, 2, 2, 3, 4].iter().for_each(|&t| s.accept(t));
    assert_eq!(s.history().collect::<Vec<_>>(), [2, 3, 4]);
    s.reset();
    assert_eq!(s.history().len(), 0);
    // Sampling records nothing.
    s.sample(&[0.0, 1.0]).unwrap();
    assert_eq!(s.history().len(), 0);
}

#[test]
fn fresh_seeds_differ_and_can_be_repeated() {
    let mut a = sampler(&SamplingOptions::default());
    let b = sampler(&SamplingOptions::default());
    assert_ne!(a.seed(), b.seed());
    let mut again = sampler(&SamplingOptions::default().seed(a.seed()));
    let row = [0.0; 50];
    assert!((0..20).all(|_| a.sample(&row).unwrap() == again.sample(&row).unwrap()));
    let seed = a.seed();
    a.reset();
    assert_ne!(a.seed(), seed);
}

#[test]
fn bad_options_are_named() {
    let d = SamplingOptions::default;
    let cases = [
        ("temperature", d().temperature(NAN)),
        ("temperature", d().temperature(INF)),
        ("top_p", d().top_p(-0.1)),
        ("top_p", d().top_p(1.1)),
        ("min_p", d().min_p(NAN)),
        ("typical_p", d().typical_p(-1.0)),
        ("repetition_penalty", d().repetition_penalty(0.0)),
        ("repetition_penalty", d().repetition_penalty(NAN)),
        ("presence_penalty", d().presence_penalty(INF)),
        ("frequency_penalty", d().frequency_penalty(NAN)),
        ("logit_bias", d().logit_bias([(1, NAN)])),
        ("logit_bias", d().logit_bias([(1, INF)])),
    ];
    for (name, options) in cases {
        match Sampler::new(&options) {
            Err(Error::Option { option, .. }) => assert_eq!(option, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(d().temperature(-1.0).is_greedy() && d().temperature(-1.0).validate().is_ok());
    assert!(SamplingOptions::greedy().validate().is_ok());
}

#[test]
fn distributions_check_their_weights() {
    let d = Distribution::new([(5, 3.0), (2, 1.0), (9, 0.0)]).unwrap();
    assert_eq!(d.entries(), [(2, 0.25), (5, 0.75)]);
    assert_eq!((d.most_likely(), d.probability(9), d.probability(5)), (5, 0.0, 0.75));
    for bad in
        [vec![], vec![(0, 0.0)], vec![(0, -1.0)], vec![(0, NAN)], vec![(0, INF)], vec![(1, 1.0), (1, 1.0)]]
    {
        assert!(Distribution::new(bad).is_err());
    }
}

#[test]
fn samplers_cross_threads() {
    fn check<T: Send + Sync + Clone>() {}
    check::<Sampler>();
    check::<Distribution>();
}
