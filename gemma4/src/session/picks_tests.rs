//! Sessions whose graphs name the likeliest token, as on a GPU, against those that read logits.

use super::*;
use crate::{Drafter, GenerateOptions, NgramOptions, SamplingOptions};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/tiny-gemma4-q8_0.gguf");
const PROMPT: [u32; 6] = [2, 11, 12, 13, 11, 12];

fn session(model: &Model, options: &SessionOptions, picks: bool) -> Session {
    Session { picks, ..Session::new(model, options).unwrap() }
}

fn generate(session: &mut Session, prompt: &[u32], how: &GenerateOptions) -> Vec<(u32, f32)> {
    let pieces = session.generate(prompt, how).unwrap().map(|piece| piece.unwrap());
    pieces.filter_map(|piece| Some((piece.token?, piece.logprob))).collect()
}

#[test]
fn picked_tokens_are_those_of_the_logits() {
    let model = Model::load(TINY).unwrap();
    let plain = SessionOptions::default().n_ctx(512).n_threads(1);
    let drafted = plain.clone().drafter(Drafter::ngram(&NgramOptions::default()).unwrap());
    let greedy = GenerateOptions::greedy().max_tokens(40).ignore_eos(true);
    for options in [plain, drafted] {
        let [mut reads, mut picks] = [false, true].map(|picks| session(&model, &options, picks));
        let (want, have) = (generate(&mut reads, &PROMPT, &greedy), generate(&mut picks, &PROMPT, &greedy));
        assert_eq!(want.len(), 40);
        for (want, have) in want.iter().zip(&have) {
            assert_eq!(want.0, have.0);
            assert!((want.1 - have.1).abs() < 1e-3, "{want:?} {have:?}");
        }
        // They stayed on the device, and come when they are asked for.
        assert!(picks.unread.is_some() && picks.logits.is_empty());
        assert_eq!(picks.logits(), reads.logits());
        assert_eq!(picks.logits().len(), model.hparams().n_vocab as usize);
        // With another sampler they are needed at once, and a truncation forgets them.
        let biased = SamplingOptions::default().seed(3).logit_bias([(7, 0.5)]);
        let drawn = GenerateOptions::default().sampling(biased).max_tokens(5);
        let last = [want[39].0];
        assert_eq!(generate(&mut picks, &last, &drawn), generate(&mut reads, &last, &drawn));
        picks.truncate(picks.len() - 2).unwrap();
        assert!(picks.logits().is_empty());
    }
}

#[test]
fn an_empty_prompt_goes_on_from_logits_that_were_never_read() {
    let model = Model::load(TINY).unwrap();
    let options = SessionOptions::default().n_ctx(512).n_threads(1);
    let greedy = GenerateOptions::greedy().max_tokens(10).ignore_eos(true);
    let [want, have] = [false, true].map(|picks| {
        let mut session = session(&model, &options, picks);
        let first = generate(&mut session, &PROMPT, &greedy);
        // The last token was chosen and not computed, so it is chosen again.
        let again = generate(&mut session, &[], &greedy);
        assert_eq!(first[9].0, again[0].0);
        again.into_iter().map(|(token, _)| token).collect::<Vec<_>>()
    });
    assert_eq!(want, have);
}

#[test]
fn draws_among_likely_tokens_are_those_of_the_logits() {
    let model = Model::load(TINY).unwrap();
    let plain = SessionOptions::default().n_ctx(512).n_threads(1);
    let drafted = plain.clone().drafter(Drafter::ngram(&NgramOptions::default()).unwrap());
    for (options, seed) in [(&plain, 1), (&plain, 2), (&drafted, 3), (&drafted, 4)] {
        let sampling =
            SamplingOptions::default().temperature(1.0).top_k(64).top_p(0.95).min_p(0.02).seed(seed);
        let how = GenerateOptions::default().sampling(sampling).max_tokens(60).ignore_eos(true);
        let [mut reads, mut picks] = [false, true].map(|picks| session(&model, options, picks));
        let (want, have) = (generate(&mut reads, &PROMPT, &how), generate(&mut picks, &PROMPT, &how));
        assert!(picks.unread.is_some(), "the logits were read");
        assert_eq!(want.len(), 60);
        for (want, have) in want.iter().zip(&have) {
            assert_eq!(want.0, have.0);
            assert!((want.1 - have.1).abs() < 1e-3, "{want:?} {have:?}");
        }
    }
}
