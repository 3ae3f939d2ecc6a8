//! The small model on the series' CUDA kernels, without a card: graphs as they are built for one, runs of nodes that become one
//! kernel, attention over quantised caches, drafts that are verified in one pass. `golden` with `GEMMA4_DEVICES=CUDA-on-CPU` does the
//! same for every variant.

use gemma4::{DType, GenerateOptions, KvConfig, LoadOptions, Model, Session, SessionOptions};
use gemma4_tests::{load_on, tiny};

fn options(kv: DType) -> SessionOptions {
    SessionOptions::default().n_ctx(512).n_batch(96).kv(KvConfig::uniform(kv))
}

#[test]
fn texts_are_as_likely_as_on_the_cpu() {
    if !cuda_on_cpu::register() {
        return; // it is not built on this system
    }
    let path = tiny::path("tiny-gemma4-q8_0.gguf");
    let [cpu, cuda] =
        ["CPU", cuda_on_cpu::NAME].map(|on| load_on(&path, Some(on), LoadOptions::default()).unwrap());
    let text = tiny::prompts(&cpu, 1, 192).remove(0);
    // How far the mean may be off: a code of TQ3_0 that falls on the other side is far away.
    for (kv, tolerance) in [(DType::F16, 0.01), (DType::Q8_0, 0.01), (DType::TQ3_0, 0.03)] {
        let mean = |model: &Model| {
            let scores = Session::new(model, &options(kv)).unwrap().score(&text).unwrap();
            scores.iter().map(|&s| f64::from(s)).sum::<f64>() / scores.len() as f64
        };
        let (want, have) = (mean(&cpu), mean(&cuda));
        println!("{kv:?}: {have:.4}, on the CPU {want:.4}");
        assert!((have - want).abs() < tolerance, "{kv:?}: {have} for {want}");
    }

    // Token by token, and with drafts in passes of several.
    let prompt = &text[..64];
    let mut plain = Session::new(&cuda, &options(DType::Q8_0)).unwrap();
    let want = tiny::greedy(&mut plain, prompt, 16);
    let drafting = options(DType::Q8_0).drafter(tiny::mtp(&cuda));
    let mut session = Session::new(&cuda, &drafting).unwrap();
    let greedy = GenerateOptions::greedy().max_tokens(16).ignore_eos(true);
    let mut generation = session.generate(prompt, &greedy).unwrap();
    let have: Vec<u32> = generation.by_ref().filter_map(|piece| piece.unwrap().token).collect();
    assert_eq!(have, want);
    assert!(generation.stats().speculation.is_some_and(|stats| stats.drafted > 0));
}
