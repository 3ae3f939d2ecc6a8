//! The drafters that come with tiny-gemma4, and look-up: the same text, and as many drafts accepted as in training.

use gemma4::{
    DType, Drafter, DrafterOptions, GenerateOptions, KvConfig, Model, NgramOptions, Session, SessionOptions,
    Speculation,
};
use gemma4_tests::acceptance::Recorded;
use gemma4_tests::tiny;

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
            let got: Vec<u32> = generation.by_ref().map(|piece| piece.unwrap().token).collect();
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

/// Mean accepted drafts of full rounds over `n` prompts of 128 tokens, 128 new tokens each.
fn accept_length(model: &Model, drafter: &Drafter, file: &str, gamma: u32, n: usize, kv: DType) -> f64 {
    let mut session = Session::new(model, &options(kv).drafter(drafter.clone()).max_draft(gamma)).unwrap();
    let (mut accepted, mut rounds) = (0, 0);
    for prompt in tiny::excerpts(model, file, n, 128) {
        session.clear();
        let mut generation =
            session.generate(&prompt, &greedy(128).speculation(Speculation::Fixed(gamma))).unwrap();
        generation.by_ref().for_each(|piece| assert!(piece.is_ok()));
        let stats = generation.stats().speculation.unwrap();
        // The last round is cut by the end of the text; so is the reference's.
        accepted += stats.accepted;
        rounds += stats.rounds;
    }
    f64::from(accepted as u32) / f64::from(rounds as u32)
}

/// What PyTorch measured: drafter, and drafts.
const CASES: [(&str, u32); 7] =
    [("mtp", 1), ("mtp", 2), ("mtp", 3), ("mtp", 4), ("dflash", 3), ("dflash", 7), ("dflash", 15)];

fn compare(cases: &[(&str, u32)], n: usize, bound: f64) {
    let model = tiny::model();
    let recorded: Recorded = tiny::json("acceptance.json");
    for &(name, gamma) in cases {
        let drafter = if name == "mtp" { mtp(&model) } else { dflash(&model) };
        for text in ["code", "prose"] {
            let want = recorded[text][&format!("{name} {gamma}")].accepted;
            let got = accept_length(&model, &drafter, &format!("val-{text}.txt"), gamma, n, DType::F16);
            let off = got / want - 1.0;
            println!("{name} {gamma}, {text}: {got:.3}, PyTorch {want:.3}: {:+.1} %", 100.0 * off);
            assert!(
                off.abs() < bound,
                "{name} {gamma}, {text}: {got:.3} accepted a round, PyTorch has {want:.3}"
            );
        }
    }
}

/// A part of the cases and of the prompts, so that the bound is wider.
#[test]
fn drafts_are_accepted_as_in_training() {
    compare(&[CASES[2], CASES[5]], 16, 0.12);
}

/// All cases with as many prompts as in training. Takes minutes: `--ignored`.
#[test]
#[ignore = "takes minutes"]
fn all_accept_lengths_are_those_of_training() {
    compare(&CASES, 64, 0.05);
}

/// A drafter that reads a cache of another type wrongly shows here first.
#[test]
fn acceptance_does_not_depend_on_the_cache() {
    let model = tiny::model();
    let of = |kv| accept_length(&model, &mtp(&model), "val-code.txt", 3, 12, kv) / 3.0;
    let want = of(DType::F16);
    for kv in [DType::Q8_0, DType::Q4_0] {
        let got = of(kv);
        println!("{kv}: {:.1} % accepted, F16 {:.1} %", 100.0 * got, 100.0 * want);
        // Texts differ by rounding, so that the positions are not the same ones.
        assert!((got - want).abs() < 0.06, "{kv}: {got:.3}, F16 {want:.3}");
    }
}
