//! The trained drafters draft what the reference implementation drafts.

use gemma4::{DflashMask, DraftStep, Drafter, DrafterOptions, Model, Session, SessionOptions};
use gemma4_tests::tiny::{self, Golden, json};

/// The first edition of the block drafter saw the whole block in every layer.
fn dflash(model: &Model, mask: DflashMask) -> Drafter {
    let options = DrafterOptions::default().dflash_mask(mask);
    Drafter::load_with(tiny::path("tiny-gemma4-dflash-q8_0.gguf"), model, &options).unwrap()
}

fn mtp(model: &Model) -> Drafter {
    Drafter::load(tiny::path("tiny-gemma4-mtp-q8_0.gguf"), model).unwrap()
}

fn session(model: &Model, drafter: &Drafter) -> Session {
    let options = SessionOptions::default().n_ctx(512).n_threads(1).drafter(drafter.clone());
    Session::new(model, &options).unwrap()
}

/// Drafts of `n` tokens after every golden prompt.
fn drafts(model: &Model, drafter: &Drafter, n: u32) -> Vec<(Vec<DraftStep>, Golden)> {
    let draft = |golden: Golden| {
        let mut session = session(model, drafter);
        session.prefill(&golden.prompt_ids).unwrap();
        (session.trace_draft(golden.greedy_ids[0], n).unwrap(), golden)
    };
    json::<Vec<Golden>>("golden.json").into_iter().map(draft).collect()
}

#[test]
fn mtp_drafts_are_the_recorded_ones() {
    let model = tiny::model();
    for (i, (steps, golden)) in drafts(&model, &mtp(&model), 4).into_iter().enumerate() {
        let got: Vec<u32> = steps.iter().map(|step| step.token).collect();
        let p: Vec<f32> = steps.iter().map(|step| step.p).collect();
        println!("{i}: {got:?} {:?} p {p:?}", golden.mtp);
    }
}

#[test]
fn dflash_drafts_are_the_recorded_ones() {
    let model = tiny::model();
    for mask in [DflashMask::Bidirectional, DflashMask::ZLab, DflashMask::Causal] {
        for (i, (steps, golden)) in drafts(&model, &dflash(&model, mask), 15).into_iter().enumerate() {
            let got: Vec<u32> = steps.iter().map(|step| step.token).collect();
            let p: Vec<f32> = steps.iter().map(|step| step.p).collect();
            println!("{mask:?} {i}:\n   {got:?}\n   {:?}\n   p {p:?}", golden.dflash);
        }
    }
}
