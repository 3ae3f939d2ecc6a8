//! Speculation: the text is what it would be without, whatever the drafter, and rounds commit what they should.

use gemma4::sampling::{Distribution, Sampler, SamplingOptions};
use gemma4::{
    Acceptance, DType, Drafter, GenerateOptions, KvConfig, NgramOptions, Proposal, Session, SessionOptions,
    Speculation, SpeculationStats, StopReason, WhenFull,
};
use gemma4_tests::tiny::{self, prompts};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn options(kv: DType) -> SessionOptions {
    SessionOptions::default().n_ctx(2048).n_threads(1).kv(KvConfig::uniform(kv))
}

fn greedy(n: usize) -> GenerateOptions {
    GenerateOptions::greedy().max_tokens(n).ignore_eos(true)
}

/// The tokens of a generation, what the drafter did, and why it ended.
fn generate(
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
) -> (Vec<u32>, Option<SpeculationStats>, StopReason) {
    let mut generation = session.generate(prompt, options).unwrap();
    let tokens = generation.by_ref().filter_map(|piece| piece.unwrap().token).collect();
    (tokens, generation.stats().speculation, generation.stop_reason().unwrap().clone())
}

/// A drafter that knows the text, and one that is wrong about every token.
fn knows(text: Vec<u32>) -> Drafter {
    Drafter::from_fn(16, move |tokens: &[u32], n| {
        text[tokens.len().min(text.len())..].iter().copied().take(n).collect::<Vec<_>>()
    })
}

fn is_wrong(text: Vec<u32>) -> Drafter {
    Drafter::from_fn(16, move |tokens: &[u32], n| {
        text[tokens.len().min(text.len())..].iter().map(|&t| (t + 1) % 4096).take(n).collect::<Vec<_>>()
    })
}

#[test]
fn oracle_and_all_wrong_drafters_write_the_same_text() {
    let model = tiny::model();
    for kv in [DType::F16, DType::Q8_0] {
        for prompt in prompts(&model, 2, 40) {
            let mut plain = Session::new(&model, &options(kv)).unwrap();
            // One token more: the last draft of the last round.
            let (want, none, _) = generate(&mut plain, &prompt, &greedy(121));
            assert_eq!(none, None);
            let text = [&prompt[..], &want].concat();
            for gamma in [1, 4, 7, 15] {
                let how = greedy(120).speculation(Speculation::Fixed(gamma));
                let oracle = options(kv).drafter(knows(text.clone()));
                let mut session = Session::new(&model, &oracle).unwrap();
                let (tokens, stats, reason) = generate(&mut session, &prompt, &how);
                assert_eq!(tokens, want[..120], "{kv} gamma {gamma}");
                assert_eq!(reason, StopReason::MaxTokens);
                let stats = stats.unwrap();
                // The first token is the prompt's; a round of gamma drafts commits gamma + 1.
                let full = 119 / (gamma as usize + 1);
                assert!(stats.rounds >= full && stats.rounds <= full + 5, "{gamma}: {stats:?}");
                assert_eq!(stats.accepted, stats.drafted, "{stats:?}");
                assert_eq!(stats.rounds + stats.plain_steps + stats.accepted, 119, "{stats:?}");

                let wrong = options(kv).drafter(is_wrong(text.clone()));
                let mut session = Session::new(&model, &wrong).unwrap();
                let (tokens, stats, _) = generate(&mut session, &prompt, &how);
                assert_eq!(tokens, want[..120], "{kv} gamma {gamma}, all wrong");
                let stats = stats.unwrap();
                assert_eq!(stats.accepted, 0);
                assert_eq!(stats.rounds + stats.plain_steps, 119, "one token a round");
                assert!(
                    stats.rounds >= 118 && stats.drafted > (118 - gamma as usize) * gamma as usize,
                    "{stats:?}"
                );
            }
        }
    }
}

/// Says that two texts are the same, or where and by how little they differ.
fn assert_same(got: &[u32], want: &[u32], what: &str) {
    let at = got.iter().zip(want).position(|(a, b)| a != b);
    assert!(at.is_none() && got.len() == want.len(), "{what}: differs at {at:?} of {}", want.len());
}

#[test]
fn the_text_of_a_seed_is_the_same() {
    let model = tiny::model();
    let ngram = Drafter::ngram(&NgramOptions::default().min_match(1)).unwrap();
    let mut plain = Session::new(&model, &options(DType::F16)).unwrap();
    let mut with = Session::new(&model, &options(DType::F16).drafter(ngram)).unwrap();
    let chains = [
        SamplingOptions::default().temperature(0.8),
        SamplingOptions::default().temperature(1.0).repetition_penalty(1.2).penalty_last_n(64),
        SamplingOptions::default()
            .temperature(0.6)
            .top_k(5)
            .min_p(0.05)
            .logit_bias([(10, 3.0), (11, f32::NEG_INFINITY)]),
    ];
    for (i, sampling) in chains.into_iter().enumerate() {
        for prompt in prompts(&model, 2, 50) {
            let how = greedy(150).sampling(sampling.clone().seed(7 + i as u64));
            plain.clear();
            with.clear();
            let (want, ..) = generate(&mut plain, &prompt, &how);
            let (got, stats, _) =
                generate(&mut with, &prompt, &how.clone().speculation(Speculation::Fixed(4)));
            assert_same(&got, &want, &format!("chain {i}"));
            assert!(stats.unwrap().rounds > 10);
        }
    }
}

/// By two tokens: how often they followed, or how likely they are.
type Pairs = HashMap<Vec<u32>, f64>;

/// Counts of what follows a prompt: the second and the third token together.
fn pairs(session: &mut Session, prompt: &[u32], how: &GenerateOptions, seeds: std::ops::Range<u64>) -> Pairs {
    let mut counts = Pairs::new();
    for seed in seeds {
        session.reuse_prefix(prompt);
        let len = session.len();
        let sampling = how.sampling.clone().seed(seed);
        let (tokens, ..) = generate(session, &prompt[len..], &how.clone().sampling(sampling));
        *counts.entry(tokens[1..3].to_vec()).or_insert(0.0) += 1.0;
    }
    counts
}

/// How likely each second and third token are behind a prompt, from the model's own probabilities.
fn likely_pairs(session: &mut Session, prompt: &[u32], sampling: &SamplingOptions) -> Pairs {
    let sampler = Sampler::new(sampling).unwrap();
    let mut behind = |tokens: &[u32]| {
        let text = [prompt, tokens].concat();
        let have = session.reuse_prefix(&text[..text.len() - 1]);
        session.prefill(&text[have..]).unwrap();
        sampler.distribution(session.logits()).unwrap().entries().to_vec()
    };
    let mut pairs = Pairs::new();
    for (first, p) in behind(&[]) {
        for (second, q) in behind(&[first]) {
            for (third, r) in behind(&[first, second]) {
                *pairs.entry(vec![second, third]).or_insert(0.0) +=
                    f64::from(p) * f64::from(q) * f64::from(r);
            }
        }
    }
    pairs
}

/// How far counts are from what is likely, in standard deviations.
fn deviations(likely: &Pairs, mut counts: Pairs) -> f64 {
    let n: f64 = counts.values().sum();
    let (mut chi, mut cells, mut rest) = (0.0, 0, [0.0, 0.0]);
    for (pair, p) in likely {
        let (want, got) = (n * p, counts.remove(pair).unwrap_or(0.0));
        if want < 8.0 {
            rest = [rest[0] + want, rest[1] + got];
        } else {
            (chi, cells) = (chi + (got - want).powi(2) / want, cells + 1);
        }
    }
    assert!(counts.is_empty(), "pairs that the model never writes: {counts:?}");
    if rest[0] > 0.0 {
        (chi, cells) = (chi + (rest[1] - rest[0]).powi(2) / rest[0], cells + 1);
    }
    assert!(cells >= 6, "{cells} pairs are likely enough");
    let freedom = f64::from(cells - 1);
    // Wilson and Hilferty: the cube root is nearly normal.
    let z = ((chi / freedom).cbrt() - (1.0 - 2.0 / (9.0 * freedom))) / (2.0 / (9.0 * freedom)).sqrt();
    println!("chi-square {chi:.1} of {freedom} degrees of freedom, {z:.2} deviations");
    z
}

/// A drafter that draws from a distribution of its own: these tokens, some more often than others.
fn draws_from(tokens: Vec<u32>) -> Drafter {
    let calls = AtomicUsize::new(1);
    let draw = move |_: &[u32], n: usize| -> Vec<Proposal> {
        (0..n)
            .map(|_| {
                let weights = tokens.iter().enumerate().map(|(i, &t)| (t, 1.0 + (i % 5) as f32));
                let q = Distribution::new(weights).unwrap();
                // Numbers of its own, independent of the sampler's: SplitMix64.
                let mut x =
                    (calls.fetch_add(1, Ordering::Relaxed) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                let u = ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 24) as f32;
                let mut sum = 0.0;
                let token = q
                    .entries()
                    .iter()
                    .find(|e| {
                        sum += e.1;
                        u < sum
                    })
                    .unwrap_or(&q.entries()[0])
                    .0;
                Proposal { token, distribution: Some(q) }
            })
            .collect()
    };
    Drafter::from_fn(3, draw)
}

/// The second and third tokens of many short generations are as likely as the model says, with drafts that are drawn and
/// judged by what they were drawn from. (`Acceptance::Match` keeps the text itself, which is tested above.) It notices a
/// drafter that says something else: with the square roots of the probabilities that MTP and DFlash drew from in their
/// place, they are 6.9 and 5.5 deviations away.
#[test]
fn sampled_text_has_the_models_distribution() {
    const N: u64 = 2400;
    let model = tiny::model();
    let prompt = &prompts(&model, 1, 30)[0];
    // Few candidates, so that pairs occur often enough to be compared.
    let sampling = SamplingOptions::default().temperature(1.5).top_k(5);
    let how = GenerateOptions::default().sampling(sampling.clone()).max_tokens(4).ignore_eos(true);
    let how = how.speculation(Speculation::Fixed(2)).acceptance(Acceptance::Rejection);
    let mut plain = Session::new(&model, &options(DType::F16).n_ctx(256)).unwrap();
    let likely = likely_pairs(&mut plain, prompt, &sampling);
    // Drafts that are right now and then.
    let mut tokens: Vec<u32> = likely.keys().flatten().copied().collect();
    tokens.sort_unstable();
    tokens.dedup();
    for (name, drafter) in
        [("from_fn", draws_from(tokens)), ("MTP", tiny::mtp(&model)), ("DFlash", tiny::dflash(&model))]
    {
        let mut with = Session::new(&model, &options(DType::F16).n_ctx(256).drafter(drafter)).unwrap();
        let z = deviations(&likely, pairs(&mut with, prompt, &how, 0..N));
        assert!(z < 3.5, "{name}: {z:.2} deviations");
    }
}

#[test]
fn the_policy_leaves_a_wrong_drafter_alone() {
    let model = tiny::model();
    let prompt = &prompts(&model, 1, 40)[0];
    let mut plain = Session::new(&model, &options(DType::F16)).unwrap();
    let (want, ..) = generate(&mut plain, prompt, &greedy(400));
    let drafter = is_wrong([&prompt[..], &want].concat());
    let mut session = Session::new(&model, &options(DType::F16).drafter(drafter)).unwrap();
    let (tokens, stats, _) = generate(&mut session, prompt, &greedy(400));
    let stats = stats.unwrap();
    assert_same(&tokens, &want, "all wrong");
    // However busy the machine, and whatever it makes of times: nothing that always fails is worth a round.
    assert!(stats.rounds < 60, "{stats:?}");
    assert!(stats.plain_step.is_some());
}

#[test]
fn a_context_that_shifts_and_what_follows() {
    let model = tiny::model();
    let prompt = &prompts(&model, 1, 40)[0];
    let small = options(DType::F16).n_ctx(128).n_batch(32);
    let how = greedy(300).when_full(WhenFull::Shift { keep: 8 });
    let mut plain = Session::new(&model, &small).unwrap();
    let (want, ..) = generate(&mut plain, prompt, &how);
    let ngram = Drafter::ngram(&NgramOptions::default()).unwrap();
    let mut session = Session::new(&model, &small.clone().drafter(ngram)).unwrap();
    for speculation in [Speculation::Fixed(6), Speculation::Auto] {
        session.clear();
        let (tokens, stats, _) = generate(&mut session, prompt, &how.clone().speculation(speculation));
        assert_same(&tokens, &want, &format!("{speculation:?}"));
        assert_eq!(session.tokens(), plain.tokens());
        // Whether the policy drafts is a matter of times: on a busy machine, not once.
        let stats = stats.unwrap();
        assert!(speculation == Speculation::Auto || stats.rounds > 3, "{speculation:?}: {stats:?}");
    }
    // Without a shift the context fills up to the last place.
    let how = greedy(300).speculation(Speculation::Fixed(6));
    plain.clear();
    session.clear();
    let (want, _, reason) = generate(&mut plain, prompt, &how);
    assert_eq!(reason, StopReason::ContextFull);
    let (tokens, _, reason) = generate(&mut session, prompt, &how);
    assert_same(&tokens, &want, "a full context");
    assert_eq!((reason, session.len()), (StopReason::ContextFull, 128));
}

#[test]
fn stops_cut_the_draft() {
    let model = tiny::model();
    let prompt = &prompts(&model, 1, 40)[0];
    let mut plain = Session::new(&model, &options(DType::F16)).unwrap();
    let (want, ..) = generate(&mut plain, prompt, &greedy(60));
    let text = [&prompt[..], &want].concat();
    let mut session = Session::new(&model, &options(DType::F16).drafter(knows(text))).unwrap();
    let fixed = Speculation::Fixed(15);
    for n in [1, 2, 3, 17, 18, 33] {
        session.clear();
        let (tokens, ..) = generate(&mut session, prompt, &greedy(n).speculation(fixed));
        assert_eq!(tokens, want[..n]);
        // The last token is chosen and not computed, as ever; what was drafted behind it is gone.
        assert_eq!(session.tokens(), [&prompt[..], &want[..n - 1]].concat());
        // And the session goes on from there.
        let (more, ..) = generate(&mut session, &want[n - 1..n], &greedy(20).speculation(fixed));
        assert_eq!(more, want[n..n + 20]);
    }
    // A stop string in the middle of a round.
    let stop = model.tokenizer().decode(&want[20..23]);
    let how = greedy(60).stop(stop.clone());
    plain.clear();
    session.clear();
    let (tokens, _, reason) = generate(&mut plain, prompt, &how);
    let (got, _, why) = generate(&mut session, prompt, &how.speculation(fixed));
    assert_eq!((got, why), (tokens, reason));
    assert_eq!(session.tokens(), plain.tokens());
}

#[test]
fn a_dropped_or_cancelled_generation_leaves_what_was_returned() {
    let model = tiny::model();
    let prompt = &prompts(&model, 1, 40)[0];
    let mut plain = Session::new(&model, &options(DType::F16)).unwrap();
    let (want, ..) = generate(&mut plain, prompt, &greedy(80));
    let text = [&prompt[..], &want].concat();
    let mut session = Session::new(&model, &options(DType::F16).drafter(knows(text.clone()))).unwrap();
    let how = greedy(80).speculation(Speculation::Fixed(7));
    for taken in [1, 2, 5, 9, 12] {
        session.clear();
        let handle = session.cancel_handle();
        let mut generation = session.generate(prompt, &how).unwrap();
        let some: Vec<u32> =
            generation.by_ref().take(taken).filter_map(|piece| piece.unwrap().token).collect();
        assert_eq!(some, want[..taken]);
        if taken % 2 == 0 {
            handle.cancel();
            let rest: Vec<u32> = generation.by_ref().filter_map(|piece| piece.unwrap().token).collect();
            // The round was computed when the request came; the next one is not.
            assert!(rest.len() <= 8, "{} tokens after the request", rest.len());
            assert_eq!(generation.stop_reason(), Some(&StopReason::Cancelled));
            drop(generation);
        } else {
            drop(generation);
            assert_eq!(session.tokens(), &text[..prompt.len() + taken - 1]);
        }
        // What is left is a session like any other.
        let at = session.len();
        assert_eq!(session.tokens(), &text[..at]);
        let (more, ..) =
            generate(&mut session, &text[at..at + 1], &greedy(20).speculation(Speculation::Fixed(3)));
        assert_eq!(more, text[at + 1..at + 21]);
    }
}

#[test]
fn a_drafter_of_ones_own_may_return_anything() {
    let model = tiny::model();
    let prompt = &prompts(&model, 1, 30)[0];
    let mut plain = Session::new(&model, &options(DType::F16)).unwrap();
    let (want, ..) = generate(&mut plain, prompt, &greedy(40));
    let lengths = Arc::new(AtomicUsize::new(0));
    let seen = lengths.clone();
    let drafter = Drafter::from_fn(1000, move |tokens: &[u32], n| {
        seen.fetch_max(n, Ordering::Relaxed);
        vec![u32::MAX - tokens.len() as u32; n + 5]
    });
    let mut session = Session::new(&model, &options(DType::F16).drafter(drafter)).unwrap();
    let how = greedy(40).speculation(Speculation::Fixed(500));
    let (tokens, stats, _) = generate(&mut session, prompt, &how);
    assert_same(&tokens, &want, "tokens that do not exist");
    assert_eq!(stats.unwrap().drafted, 0);
    assert!(lengths.load(Ordering::Relaxed) < 32, "as many as a graph takes");
}
