//! What a session computes does not depend on how it got there: chunks, roll-backs, options, clones.

use gemma4::sampling::argmax;
use gemma4::{
    EncodeOptions, Error, GenerateOptions, KvPolicy, Model, SamplingOptions, Session, SessionOptions,
    StopReason,
};
use gemma4_tests::bad::{Bench, Parts, says};
use gemma4_tests::{repo, tiny};
use std::collections::BTreeSet;

fn dense() -> Model {
    Model::load(repo("tests/data/golden/a-dense.f16.gguf")).unwrap()
}

fn options(n_batch: u32) -> SessionOptions {
    SessionOptions::default().n_ctx(2048).n_batch(n_batch).n_threads(1)
}

fn session(model: &Model) -> Session {
    Session::new(model, &options(512).n_ctx(256)).unwrap()
}

/// `n` tokens of real text.
fn text_tokens(model: &Model, n: usize) -> Vec<u32> {
    let text = std::fs::read_to_string(tiny::path("val-prose.txt")).unwrap();
    let text: String = text.chars().take(5 * n).collect();
    let mut tokens = model.tokenizer().encode(&text, EncodeOptions::TEXT).unwrap();
    assert!(tokens.len() >= n);
    tokens.truncate(n);
    tokens
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |x, y| if y.is_nan() { y } else { x.max(y) })
}

#[test]
fn chunks_do_not_matter() {
    let (dense, tiny) = (dense(), tiny::model());
    let random: Vec<u32> = (0..1200u32).map(|i| 2 + i.wrapping_mul(2_654_435_761) % 766).collect();
    // Half-precision weights against Q8_0, which rounds activations too.
    for (model, tokens, bound) in [(&dense, &random, 0.1), (&tiny, &text_tokens(&tiny, 1200), 1.0)] {
        let mut want: Option<Vec<f32>> = None;
        for n_batch in [512, 64, 7, 1] {
            let mut session = Session::new(model, &options(n_batch)).unwrap();
            session.prefill(tokens).unwrap();
            let want = want.get_or_insert_with(|| session.logits().to_vec());
            let far = distance(session.logits(), want);
            assert!(far < bound, "{model:?} in chunks of {n_batch}: {far}");
            assert_eq!(argmax(session.logits()), argmax(want), "{model:?} in chunks of {n_batch}");
        }
    }
}

#[test]
fn a_tail_that_was_taken_back_was_never_there() {
    let model = tiny::model();
    let tokens = text_tokens(&model, 1300);
    let mut plain = Session::new(&model, &options(512)).unwrap();
    plain.prefill(&tokens[..1100]).unwrap();
    plain.prefill(&tokens[..1]).unwrap();

    for tail in [1, 7, 100, 200] {
        let mut session = Session::new(&model, &options(512)).unwrap();
        session.prefill(&tokens[..1100]).unwrap();
        session.prefill(&tokens[1100..1100 + tail]).unwrap();
        session.truncate(1100).unwrap();
        assert_eq!(session.tokens(), &tokens[..1100]);
        assert!(session.logits().is_empty(), "they belong to the tail");
        session.prefill(&tokens[..1]).unwrap();
        assert_eq!(session.logits(), plain.logits(), "after a tail of {tail}");
    }

    // And text: what was generated is taken back and generated again, three times around.
    let greedy = GenerateOptions::greedy().max_tokens(40).ignore_eos(true);
    plain.clear();
    let want = plain.generate(&tokens[..900], &greedy).unwrap().text().unwrap();
    let mut session = Session::new(&model, &options(512)).unwrap();
    session.prefill(&tokens[..899]).unwrap();
    for _ in 0..3 {
        session.truncate(899).unwrap();
        assert_eq!(session.generate(&tokens[899..900], &greedy).unwrap().text().unwrap(), want);
    }
    // Without a token to go on from, the last one is computed again.
    session.truncate(900).unwrap();
    assert_eq!(session.generate(&[], &greedy).unwrap().text().unwrap(), want);
    session.clear();
    assert!(session.is_empty() && session.logits().is_empty());
    assert_eq!(session.generate(&tokens[..900], &greedy).unwrap().text().unwrap(), want);
}

#[test]
fn what_has_left_the_window_cannot_be_taken_back() {
    let model = tiny::model();
    let tokens = text_tokens(&model, 1100);
    let mut session = Session::new(&model, &options(256)).unwrap();
    session.prefill(&tokens).unwrap();
    let logits = session.logits().to_vec();
    // A window of 256 and chunks of 256: a ring of 512 slots.
    let oldest = 1100 - 512 + 255;
    for requested in [1, oldest - 1] {
        let refused = session.truncate(requested).unwrap_err();
        assert_eq!((refused.requested as usize, refused.oldest as usize), (requested, oldest));
        says(refused, &[&requested.to_string(), &oldest.to_string(), "sliding-window"]);
        assert_eq!((session.len(), session.logits()), (1100, &logits[..]), "nothing has changed");
    }
    assert_eq!(session.truncate_limit(), oldest);
    session.truncate(5000).unwrap();
    session.truncate(1100).unwrap();
    assert_eq!(session.logits(), logits, "no tokens were taken back");
    session.truncate(oldest).unwrap();
    session.prefill(&tokens[oldest..]).unwrap();
    let far = distance(session.logits(), &logits);
    assert!(far < 1.0, "{far}");
    // The edge: the token before would be needed to compute the last one again.
    session.truncate(oldest).unwrap();
    match session.generate(&[], &GenerateOptions::greedy()).map(drop) {
        Err(Error::Option { option: "prompt", why, .. }) => says(why, &["edge of its window"]),
        other => panic!("{other:?}"),
    }
    assert_eq!(session.len(), oldest);
    session.truncate(0).unwrap();
    assert_eq!(session.truncate_limit(), 0);
    session.prefill(&tokens).unwrap();
    assert_eq!(session.logits(), logits);
}

#[test]
fn runs_repeat() {
    let model = tiny::model();
    let prompt = text_tokens(&model, 60);
    let run = |options: &GenerateOptions| {
        let mut session = session(&model);
        let pieces: Vec<_> = session.generate(&prompt, options).unwrap().map(Result::unwrap).collect();
        (pieces.iter().filter_map(|p| p.token).collect::<Vec<_>>(), pieces)
    };
    let greedy = GenerateOptions::greedy().max_tokens(60);
    assert_eq!(run(&greedy), run(&greedy));
    let sampled = |seed| {
        let sampling = SamplingOptions::default().temperature(1.2).seed(seed).n_logprobs(3);
        GenerateOptions::default().sampling(sampling).max_tokens(60).ignore_eos(true)
    };
    let (tokens, pieces) = run(&sampled(1));
    assert_eq!((tokens.clone(), pieces.clone()), run(&sampled(1)));
    assert_ne!(tokens, run(&sampled(2)).0);
    assert!(pieces.iter().all(|p| p.top.len() == 3 && p.logprob <= p.top[0].1 && p.logprob.is_finite()));
}

#[test]
fn text_comes_piece_by_piece() {
    let model = tiny::model();
    let prompt = text_tokens(&model, 30);
    let mut unfinished = 0;
    for seed in 0..6 {
        // Hot enough for byte tokens, which are parts of characters.
        let sampling =
            SamplingOptions::default().temperature(1.0 + seed as f32).top_k(0).top_p(1.0).seed(seed);
        let options = GenerateOptions::default().sampling(sampling).max_tokens(150).ignore_eos(true);
        let mut session = session(&model);
        let mut run = session.generate(&prompt, &options).unwrap();
        let pieces: Vec<_> = run.by_ref().map(Result::unwrap).collect();
        assert_eq!(run.stats().generated_tokens, pieces.len());
        let tokens: Vec<u32> = pieces.iter().filter_map(|p| p.token).collect();
        let text: String = pieces.iter().map(|p| p.text.as_str()).collect();
        assert_eq!(text, model.tokenizer().decode(&tokens), "{seed}");
        let is_byte = |t: &&u32| model.tokenizer().token_text(**t).is_some_and(|t| t.starts_with("<0x"));
        unfinished += tokens.iter().filter(is_byte).count();
    }
    assert!(unfinished > 20, "{unfinished} byte tokens: too few to prove anything");
}

#[test]
fn stop_strings_across_tokens() {
    let model = tiny::model();
    let golden: Vec<tiny::Golden> = tiny::json("golden.json");
    let prompt = &golden[0].prompt_ids;
    let base = GenerateOptions::greedy().max_tokens(60).ignore_eos(true);
    let mut session = session(&model);
    let pieces: Vec<_> = session.generate(prompt, &base).unwrap().map(|p| p.unwrap().text).collect();
    let text: String = pieces.concat();
    let mut at = 0;
    let mut tried = 0;
    for piece in pieces.iter().filter(|p| !p.is_empty()) {
        at += piece.len();
        // Two characters to the left of a token's end and three to its right.
        let from = text[..at].char_indices().rev().nth(1).map_or(0, |c| c.0);
        let to = text[at..].char_indices().nth(3).map_or(text.len(), |c| at + c.0);
        let stop = &text[from..to];
        session.clear();
        let options = base.clone().stop("never in the text\u{1}").stop(stop);
        let mut run = session.generate(prompt, &options).unwrap();
        assert_eq!(run.text().unwrap(), text[..text.find(stop).unwrap()], "{stop:?}");
        assert_eq!(run.stop_reason(), Some(&StopReason::StopString(stop.to_owned())));
        assert!(run.next().is_none(), "it has ended");
        tried += 1;
        if tried == 15 {
            break;
        }
    }
    // A beginning of a stop string that never ends is text.
    session.clear();
    let last: String = text.chars().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect();
    let mut run = session.generate(prompt, &base.stop(format!("{last}\u{1}"))).unwrap();
    assert_eq!(run.text().unwrap(), text);
    assert_eq!(run.stop_reason(), Some(&StopReason::MaxTokens));
}

/// Where a text ends without a token, what was held back is a piece of its own, and no token is counted twice.
#[test]
fn held_back_text_has_no_token() {
    let model = tiny::model();
    let golden: Vec<tiny::Golden> = tiny::json("golden.json");
    let prompt = &golden[0].prompt_ids;
    let full = || Session::new(&model, &options(64).n_ctx(64)).unwrap();
    let base = GenerateOptions::greedy().max_tokens(100).ignore_eos(true);
    let text = full().generate(prompt, &base).unwrap().text().unwrap();
    let last = text.chars().last().unwrap();
    let mut session = full();
    let mut run = session.generate(prompt, &base.stop(format!("{last}\u{1}"))).unwrap();
    let pieces: Vec<_> = run.by_ref().map(Result::unwrap).collect();
    assert_eq!(run.stop_reason(), Some(&StopReason::ContextFull));
    let generated = run.stats().generated_tokens;
    let end = pieces.last().unwrap();
    assert_eq!((end.token, end.text.as_str()), (None, &*last.to_string()));
    assert_eq!(pieces.iter().filter(|piece| piece.token.is_some()).count(), generated);
    assert_eq!(pieces.iter().map(|piece| &*piece.text).collect::<String>(), text);
}

#[test]
fn decoding_builds_one_graph_in_256_tokens() {
    let model = tiny::model();
    let prompt = text_tokens(&model, 100);
    let mut session = Session::new(&model, &options(512)).unwrap();
    session.prefill(&prompt).unwrap();
    let options = GenerateOptions::greedy().max_tokens(900).ignore_eos(true);
    let mut run = session.generate(&[], &options).unwrap();
    let mut steps = 0;
    while let Some(piece) = run.next() {
        piece.unwrap();
        steps = run.stats().decode_steps;
    }
    let built = session.graphs_built();
    assert_eq!((steps, session.len()), (899, 999));
    // One for the prompt; then views of 256, 512, 768 and 1024 slots.
    assert_eq!(built, 1 + 4);
    // Taken back and decoded again, what was built last serves on.
    session.truncate(800).unwrap();
    session.prefill(&prompt[..1]).unwrap();
    assert_eq!(session.graphs_built(), built);
}

#[test]
fn results_of_every_position() {
    let model = dense();
    let n_vocab = model.hparams().n_vocab as usize;
    let tokens: Vec<u32> = (0..100).map(|i| 2 + i * 7).collect();
    let mut session = Session::new(&model, &options(32)).unwrap();
    let all = session.evaluate(&tokens, false).unwrap();
    assert_eq!(all.logits.len(), 100 * n_vocab);
    assert!(all.layers.is_empty());
    assert_eq!(session.logits(), &all.logits[99 * n_vocab..]);
    for at in [0usize, 1, 31, 32, 63, 64, 98] {
        let mut one = Session::new(&model, &options(32)).unwrap();
        one.prefill(&tokens[..=at]).unwrap();
        let far = distance(one.logits(), &all.logits[at * n_vocab..(at + 1) * n_vocab]);
        assert!(far < 0.1, "{at}: {far}");
    }
}

#[test]
fn forbidden_tokens_are_forbidden_everywhere() {
    let bench = Bench::new(tempfile::tempdir().unwrap());
    let mut parts = Parts::read(&repo("tests/data/golden/a-dense.f16.gguf"));
    let tokens: Vec<u32> = (0..20).map(|i| 2 + i * 7).collect();
    let mut session = Session::new(&dense(), &options(32)).unwrap();
    session.prefill(&tokens).unwrap();
    let best = argmax(session.logits()).unwrap();
    // Ids beyond the vocabulary are copied from larger siblings.
    parts.set("tokenizer.ggml.suppress_tokens", vec![best as i32, 258_883, -1]);
    let model = bench.load(&parts).unwrap();
    let mut session = Session::new(&model, &options(32)).unwrap();
    session.prefill(&tokens).unwrap();
    assert_eq!(session.logits()[best as usize], f32::NEG_INFINITY);
    session.clear();
    let all = session.evaluate(&tokens, false).unwrap();
    assert!(all.logits.iter().all(|l| l.is_finite()), "results are what the model said");
    assert_eq!(session.logits()[best as usize], f32::NEG_INFINITY, "what is sampled from is not");
    let piece = session.generate(&[], &GenerateOptions::greedy()).unwrap().next().unwrap().unwrap();
    assert_ne!(piece.token, Some(best));
}

/// What the options say is what the text obeys, from the model's logits to the tokens: each token is fed to a second
/// session, whose logits say which one had to follow.
#[test]
fn penalties_and_typicality_choose_the_tokens_of_a_text() {
    let model = tiny::model();
    let prompt = text_tokens(&model, 60);
    let run = |sampling: SamplingOptions| -> Vec<u32> {
        let how = GenerateOptions::default().sampling(sampling).max_tokens(48).ignore_eos(true);
        let mut session = session(&model);
        let pieces = session.generate(&prompt, &how).unwrap();
        pieces.filter_map(|piece| piece.unwrap().token).collect()
    };
    let replay = |tokens: &[u32], check: &mut dyn FnMut(&[u32], &[f32])| {
        let mut session = session(&model);
        session.prefill(&prompt).unwrap();
        for i in 0..tokens.len() {
            // The token in question is the last one.
            check(&tokens[..=i], session.logits());
            session.prefill(&tokens[i..=i]).unwrap();
        }
    };

    let greedy = SamplingOptions::greedy().penalty_last_n(4096);
    let plain = run(greedy.clone());
    for (presence, frequency) in [(3.0, 0.0), (0.0, 1.5), (-2.0, 1.0)] {
        let tokens = run(greedy.clone().presence_penalty(presence).frequency_penalty(frequency));
        assert_ne!(tokens, plain, "{presence}, {frequency}");
        replay(&tokens, &mut |tokens, logits| {
            let (token, before) = tokens.split_last().unwrap();
            let mut logits = logits.to_vec();
            // A session's prompt counts as text.
            let before: Vec<u32> = prompt.iter().chain(before).copied().collect();
            for id in before.iter().collect::<BTreeSet<_>>() {
                let count = before.iter().filter(|other| *other == id).count();
                logits[*id as usize] -= presence + frequency * count as f32;
            }
            assert_eq!(argmax(&logits), Some(*token), "{presence}, {frequency}, token {}", tokens.len());
        });
    }

    // The share of tokens that lie in the set of mass `p` whose surprise is nearest to the entropy.
    let typical = |tokens: &[u32], p: f64| {
        let mut n = 0;
        replay(tokens, &mut |tokens, logits| {
            let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
            let z: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
            let surprise: Vec<f64> = logits.iter().map(|&l| z.ln() + max - f64::from(l)).collect();
            let entropy: f64 = surprise.iter().map(|s| s * (-s).exp()).sum();
            let distance = |id: usize| (surprise[id] - entropy).abs();
            let token = *tokens.last().unwrap() as usize;
            let nearer = (0..logits.len()).filter(|&id| distance(id) < distance(token));
            n += u32::from(nearer.map(|id| (-surprise[id]).exp()).sum::<f64>() < p + 1e-4);
        });
        f64::from(n) / tokens.len() as f64
    };
    let sampled = SamplingOptions::default().top_k(0).top_p(1.0).seed(5);
    assert_eq!(typical(&run(sampled.clone().typical_p(0.4)), 0.4), 1.0);
    assert!(typical(&run(sampled), 0.4) < 0.8, "without the stage other tokens are chosen");
}

/// What benchmarks use beside the public functions.
#[test]
fn a_verified_draft_is_forgotten_and_a_filled_cache_goes_on() {
    let model = tiny::model();
    let tokens = text_tokens(&model, 700);
    let mut plain = Session::new(&model, &options(512)).unwrap();
    plain.prefill(&tokens[..600]).unwrap();
    let mut other = plain.fork().unwrap();
    other.verify_only(&tokens[600..608]).unwrap();
    assert_eq!((other.len(), other.logits().len()), (600, 0));
    for session in [&mut plain, &mut other] {
        session.prefill(&tokens[600..601]).unwrap();
    }
    assert_eq!(plain.logits(), other.logits());

    for kv in ["f16", "q8_0", "q4_0", "tq3_0"] {
        let mut filled = Session::new(&model, &options(512).kv(kv.parse::<KvPolicy>().unwrap())).unwrap();
        filled.fill_synthetic(&tokens).unwrap();
        assert_eq!(filled.len(), tokens.len());
        says(filled.fill_synthetic(&tokens).unwrap_err(), &["clear first"]);
        let how = GenerateOptions::greedy().max_tokens(20).ignore_eos(true);
        assert_eq!(filled.generate(&tokens[..1], &how).unwrap().filter_map(Result::ok).count(), 20, "{kv}");
        assert!(filled.logits().iter().all(|x| x.is_finite()), "{kv}");
    }
    let mut exact = Session::new(&model, &options(512).kv("f32".parse::<KvPolicy>().unwrap())).unwrap();
    says(exact.fill_synthetic(&tokens).unwrap_err(), &["f32"]);
}
