//! The drafters that come with tiny-gemma4, and look-up: the same text, and rounds as they should be.

use gemma4::{
    DType, Drafter, DrafterOptions, GenerateOptions, KvConfig, KvPolicy, Model, NgramOptions, Session,
    SessionOptions, Speculation,
};
use gemma4_tests::{acceptance, tiny};

fn options(kv: DType) -> SessionOptions {
    SessionOptions::default().n_ctx(512).n_threads(1).kv(KvConfig::uniform(kv))
}

fn mtp(model: &Model) -> Drafter {
    Drafter::load(tiny::path("tiny-gemma4-mtp-q8_0.gguf"), model).unwrap()
}

fn dflash(model: &Model) -> Drafter {
    let options = DrafterOptions::default().dflash_mask(tiny::MASK);
    Drafter::load_with(tiny::path("tiny-gemma4-dflash-q8_0.gguf"), model, &options).unwrap()
}

fn greedy(n: usize) -> GenerateOptions {
    GenerateOptions::greedy().max_tokens(n).ignore_eos(true)
}

fn same_text(kv: DType) {
    let model = tiny::model();
    let drafters = [Drafter::ngram(&NgramOptions::default()).unwrap(), mtp(&model), dflash(&model)];
    let mut plain = Session::new(&model, &options(kv)).unwrap();
    let mut sessions: Vec<Session> =
        drafters.iter().map(|d| Session::new(&model, &options(kv).drafter(d.clone())).unwrap()).collect();
    let mut accepted = [[0, 0]; 3];
    for (i, prompt) in tiny::prompts(&model, 20, 60).iter().enumerate() {
        plain.clear();
        let want = tiny::greedy(&mut plain, prompt, 256);
        for ((drafter, session), sum) in drafters.iter().zip(&mut sessions).zip(&mut accepted) {
            let how = [Speculation::Auto, Speculation::Fixed(4), Speculation::Fixed(15)][i % 3];
            session.clear();
            let mut generation = session.generate(prompt, &greedy(256).speculation(how)).unwrap();
            let got: Vec<u32> = generation.by_ref().filter_map(|piece| piece.unwrap().token).collect();
            let at = got.iter().zip(&want).position(|(a, b)| a != b);
            assert!(
                at.is_none() && got.len() == 256,
                "{drafter:?}, {kv}, prompt {i}, {how:?}: differs at {at:?}"
            );
            let stats = generation.stats().speculation.unwrap();
            *sum = [sum[0] + stats.rounds, sum[1] + stats.accepted];
        }
    }
    for (drafter, [rounds, accepted]) in drafters.iter().zip(accepted) {
        println!("{drafter:?}, {kv}: {accepted} accepted in {rounds} rounds");
        assert!(
            rounds > 50 && accepted > rounds,
            "{drafter:?}, {kv}: {accepted} accepted in {rounds} rounds"
        );
    }
}

#[test]
fn text_is_the_same_with_every_drafter_f16() {
    same_text(DType::F16);
}

#[test]
fn text_is_the_same_with_every_drafter_q8_0() {
    same_text(DType::Q8_0);
}

#[test]
fn text_is_the_same_with_every_drafter_tq3_0() {
    same_text(DType::TQ3_0);
}

/// A round drafts from what the last verification left behind, after all, some or none of its drafts were accepted.
/// Its drafts are those that a session draws that computed every token by itself.
#[test]
fn rounds_are_those_of_single_steps() {
    const GAMMA: usize = 4;
    let model = tiny::model();
    for drafter in [mtp(&model), dflash(&model)] {
        let mut session = Session::new(&model, &options(DType::F16).drafter(drafter.clone())).unwrap();
        for (file, i) in [("val-code.txt", 9), ("val-prose.txt", 33)] {
            let prompt = acceptance::prompt(&tiny::tokens(&model, file), i, acceptance::PROMPTS);
            let runs =
                acceptance::runs(&model, &drafter, &prompt, None, GAMMA as u32, &KvPolicy::from(DType::F16));
            let mut want = vec![0];
            while let Some(run) = runs.get(want[want.len() - 1]) {
                want.push(want[want.len() - 1] + run.min(&GAMMA) + 1);
            }
            session.clear();
            let how = greedy(runs.len() + 2 * GAMMA).speculation(Speculation::Fixed(GAMMA as u32));
            let mut generation = session.generate(&prompt, &how).unwrap();
            let (mut got, mut passes) = (Vec::new(), 0);
            for at in 0.. {
                let Some(piece) = generation.next() else { break };
                piece.unwrap();
                // A pass began with the token before this one.
                if generation.stats().decode_steps > passes {
                    passes += 1;
                    got.push(at - 1);
                }
            }
            got.truncate(want.len());
            assert_eq!(got, want, "{drafter:?}, {file}: tokens that rounds begin with");
        }
    }
}
