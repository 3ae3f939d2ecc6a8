//! Options and calls that cannot work: each is an `Error` that names the option or says what did not fit, and the
//! session is as it was before.

use gemma4::sampling::Sampler;
use gemma4::{
    DType, Error, GenerateOptions, KvConfig, KvTypes, Model, SamplingOptions, Session, SessionOptions,
    StopReason,
};
use gemma4_tests::bad::{Bench, Parts, id, says};
use gemma4_tests::{repo, tiny};
use std::time::{Duration, Instant};

fn dense() -> Model {
    Model::load(repo("tests/data/golden/a-dense.f16.gguf")).unwrap()
}

fn options() -> SessionOptions {
    SessionOptions::default().n_ctx(64).n_batch(16).n_threads(1)
}

fn refused(model: &Model, options: &SessionOptions) -> Error {
    Session::new(model, options).map(drop).unwrap_err()
}

#[test]
fn sessions_that_cannot_be() {
    let model = dense();
    let option = |options: SessionOptions, name: &str, value: &str, why: &str| match refused(&model, &options)
    {
        Error::Option { option, value: v, why: w } => {
            assert_eq!((option, v.as_str()), (name, value));
            says(w, &[why]);
        }
        other => panic!("{other:?}"),
    };
    option(options().n_ctx(0), "n_ctx", "0", "at least one token");
    option(options().n_batch(0), "n_batch", "0", "at least one token");
    option(options().n_threads(0), "n_threads", "0", "from 1 to 512");
    option(options().n_threads(513), "n_threads", "513", "from 1 to 512");
    option(options().n_threads(10_000), "n_threads", "10000", "from 1 to 512");
    option(options().n_threads(usize::MAX), "n_threads", &usize::MAX.to_string(), "from 1 to 512");
    option(options().n_ctx(u32::MAX), "n_ctx", "4294967295", "at most 2147483648");
    option(options().kv(KvConfig::uniform(DType::I32)), "kv", "i32", "one of [f32, f16");
    option(options().kv(KvConfig::uniform(DType::I64)), "kv", "i64", "one of [f32, f16");
    let mut kv = KvConfig::default();
    kv.swa = KvTypes { k: DType::F16, v: DType::I32 };
    option(options().kv(kv), "kv", "i32", "one of [f32, f16");

    // The smallest and the oddest that can be.
    for options in [
        options().n_ctx(1),
        options().n_ctx(1).n_batch(u32::MAX),
        options().n_batch(1),
        options().n_ctx(65).n_batch(7),
        options().n_threads(5),
    ] {
        let mut session = Session::new(&model, &options).unwrap();
        session.prefill(&[2]).unwrap();
        assert!(session.logits().iter().all(|l| l.is_finite()), "{options:?}");
    }
}

#[test]
fn more_context_than_memory() {
    for model in [tiny::model(), dense()] {
        for n_ctx in [1 << 31, (1 << 31) - 1, 1 << 30] {
            let started = Instant::now();
            match refused(&model, &SessionOptions::default().n_ctx(n_ctx)) {
                error @ Error::OutOfMemory { needed, available, .. } => {
                    assert!(needed > available && needed > 1 << 36 && available > 0, "{error:?}");
                    says(&error, &["the KV cache", "CPU", "smaller n_ctx"]);
                }
                other => panic!("{other:?}"),
            }
            assert!(started.elapsed() < Duration::from_secs(5), "it tried to take the memory");
        }
    }
    // The cache is small, but a mask of all positions by all positions is not.
    let bench = Bench::new(tempfile::tempdir().unwrap());
    let micro = bench.load(&Parts::micro(32, 16, id::F16)).unwrap();
    match refused(&micro, &SessionOptions::default().n_ctx(1 << 20).n_batch(1 << 20)) {
        error @ Error::OutOfMemory { needed, available, .. } => {
            assert!(needed > 1 << 40 && needed > available, "{error:?}");
            says(&error, &["intermediate values", "smaller n_batch"]);
        }
        other => panic!("{other:?}"),
    }
    // Each of these would have to be noticed before the machine swaps: the process stays small.
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 3 << 20, "{kib} KiB");
    }
}

const CACHE_TYPES: [DType; 9] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q5_1,
    DType::Q5_0,
    DType::Q4_1,
    DType::Q4_0,
    DType::IQ4_NL,
];

#[test]
fn cache_types_fit_or_are_refused() {
    let bench = Bench::new(tempfile::tempdir().unwrap());
    let micro = bench.load(&Parts::micro(32, 16, id::F16)).unwrap();
    let model = dense();
    let prompt: Vec<u32> = (0..50).map(|i| 2 + i * 11).collect();
    let mut plain = Session::new(&model, &options().kv(KvConfig::uniform(DType::F32))).unwrap();
    plain.prefill(&prompt).unwrap();
    for k in CACHE_TYPES {
        for v in CACHE_TYPES {
            let mut kv = KvConfig::default();
            kv.full = KvTypes { k, v };
            kv.swa = KvTypes { k: v, v: k };
            let is_plain = |t| [DType::F32, DType::F16, DType::BF16].contains(&t);
            // Heads of 16 values are half a block.
            match Session::new(&micro, &options().kv(kv.clone())) {
                Ok(_) => assert!(is_plain(k) && is_plain(v), "{k} {v}"),
                Err(Error::Option { option: "kv", why, .. }) if !(is_plain(k) && is_plain(v)) => {
                    says(why, &["heads of 16 values", "block"]);
                }
                Err(e) => panic!("{k} {v}: {e:?}"),
            }
            let mut session = Session::new(&model, &options().kv(kv)).unwrap();
            session.prefill(&prompt).unwrap();
            let far =
                session.logits().iter().zip(plain.logits()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Logits lie within ±30, and the weights are random.
            let bound = if is_plain(k) && is_plain(v) { 0.5 } else { 20.0 };
            assert!(far < bound, "{k} {v}: {far}");
        }
    }
}

#[test]
fn sampling_options_that_are_no_numbers() {
    let model = dense();
    let mut session = Session::new(&model, &options()).unwrap();
    let base = SamplingOptions::default;
    let nan = f32::NAN;
    for (sampling, name) in [
        (base().temperature(nan), "temperature"),
        (base().temperature(f32::INFINITY), "temperature"),
        (base().top_p(nan), "top_p"),
        (base().top_p(-0.1), "top_p"),
        (base().top_p(1.5), "top_p"),
        (base().min_p(nan), "min_p"),
        (base().min_p(2.0), "min_p"),
        (base().typical_p(nan), "typical_p"),
        (base().repetition_penalty(nan), "repetition_penalty"),
        (base().repetition_penalty(0.0), "repetition_penalty"),
        (base().presence_penalty(nan), "presence_penalty"),
        (base().frequency_penalty(f32::NEG_INFINITY), "frequency_penalty"),
        (base().logit_bias([(3, nan)]), "logit_bias"),
    ] {
        let expect = |error: Error| match error {
            Error::Option { option, value, why } => {
                assert_eq!(option, name);
                assert!(!value.is_empty() && why.contains("must be"), "{value} {why}");
            }
            other => panic!("{other:?}"),
        };
        expect(Sampler::new(&sampling).unwrap_err());
        expect(
            session.generate(&[2, 7], &GenerateOptions::default().sampling(sampling)).map(drop).unwrap_err(),
        );
        assert!(session.is_empty(), "nothing may be computed");
    }
    // A ban of a token that does not exist shows at the first token.
    let sampling = SamplingOptions::greedy().logit_bias([(3, 1.0), (768, 1.0)]);
    let mut run = session.generate(&[2, 7], &GenerateOptions::default().sampling(sampling)).unwrap();
    let error = run.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::InvalidToken { token: 768, index: 1, n_vocab: 768 }), "{error:?}");
    assert_eq!(run.stop_reason(), Some(&StopReason::Failed));
    // All tokens banned.
    let sampling = SamplingOptions::greedy().logit_bias((0..768).map(|t| (t, f32::NEG_INFINITY)));
    let mut run = session.generate(&[], &GenerateOptions::default().sampling(sampling)).unwrap();
    says(run.next().unwrap().unwrap_err(), &["no token can be chosen"]);
    assert_eq!(session.len(), 2);
}

#[test]
fn prompts_that_do_not_fit() {
    let model = dense();
    let mut session = Session::new(&model, &options()).unwrap();
    session.prefill(&[2, 7, 8]).unwrap();
    let logits = session.logits().to_vec();
    let long = vec![9; 62];
    let greedy = GenerateOptions::greedy();
    let errors = [
        session.prefill(&long).unwrap_err(),
        session.evaluate(&long, false).map(drop).unwrap_err(),
        session.generate(&long, &greedy).map(drop).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::ContextFull { used: 3, requested: 62, n_ctx: 64 }), "{error:?}");
        says(error, &["3 tokens", "62 more", "n_ctx is 64", "shorten the prompt"]);
    }
    for (tokens, index) in
        [(vec![768], 0), (vec![2, 3, u32::MAX], 2), ([vec![7; 40], vec![1 << 31]].concat(), 40)]
    {
        let token = tokens[index];
        let errors = [
            session.prefill(&tokens).unwrap_err(),
            session.evaluate(&tokens, true).map(drop).unwrap_err(),
            session.generate(&tokens, &greedy).map(drop).unwrap_err(),
        ];
        for error in errors {
            assert!(
                matches!(error, Error::InvalidToken { token: t, index: i, n_vocab: 768 } if t == token && i == index),
                "{error:?}"
            );
            says(error, &[&token.to_string(), "vocabulary of 768"]);
        }
    }
    assert_eq!((session.tokens(), session.logits()), (&[2, 7, 8][..], &logits[..]), "nothing has changed");
    session.prefill(&vec![9; 61]).unwrap();
    assert_eq!(session.len(), 64);
}

#[test]
fn empty_prompts_and_limits() {
    let model = dense();
    let mut session = Session::new(&model, &options()).unwrap();
    let greedy = GenerateOptions::greedy;
    match session.generate(&[], &greedy()).map(drop).unwrap_err() {
        Error::Option { option: "prompt", why, .. } => says(why, &["beginning-of-sequence"]),
        other => panic!("{other:?}"),
    }
    session.prefill(&[]).unwrap();
    let nothing = session.evaluate(&[], true).unwrap();
    assert!(session.is_empty() && session.logits().is_empty() && nothing.logits.is_empty());

    // No tokens wanted: the prompt is computed all the same.
    let mut run = session.generate(&[2, 7, 8], &greedy().max_tokens(0)).unwrap();
    assert!(run.next().is_none());
    assert_eq!(run.stop_reason(), Some(&StopReason::MaxTokens));
    assert_eq!((run.stats().prompt_tokens, run.stats().generated_tokens), (3, 0));
    assert_eq!(session.len(), 3);

    // An empty stop string stops nothing.
    let all = session.generate(&[], &greedy().max_tokens(8).ignore_eos(true)).unwrap().text().unwrap();
    session.truncate(3).unwrap();
    let mut run = session.generate(&[], &greedy().max_tokens(8).ignore_eos(true).stop("").stop("")).unwrap();
    assert_eq!(run.text().unwrap(), all);
    assert_eq!(run.stop_reason(), Some(&StopReason::MaxTokens));
}

#[test]
fn generation_fills_the_context_to_the_last_token() {
    let model = dense();
    let mut session = Session::new(&model, &options()).unwrap();
    let options = GenerateOptions::greedy().ignore_eos(true);
    let prompt: Vec<u32> = (0..10).map(|i| 2 + i * 3).collect();
    let mut run = session.generate(&prompt, &options).unwrap();
    let tokens: Vec<u32> = run.by_ref().filter_map(|p| p.unwrap().token).collect();
    assert_eq!(run.stop_reason(), Some(&StopReason::ContextFull));
    // 54 tokens fill the cache; one more follows from the last one's logits.
    assert_eq!(tokens.len(), 55);
    assert_eq!(session.tokens(), [&prompt[..], &tokens[..54]].concat());
    let error = session.prefill(&[7]).unwrap_err();
    assert!(matches!(error, Error::ContextFull { used: 64, requested: 1, n_ctx: 64 }), "{error:?}");

    let mut run = session.generate(&[], &options).unwrap();
    assert_eq!(run.next().unwrap().unwrap().token, Some(tokens[54]));
    assert!(run.next().is_none());
    assert_eq!(run.stop_reason(), Some(&StopReason::ContextFull));

    // A prompt that fills it leaves room for one token.
    session.clear();
    let full: Vec<u32> = (0..64).map(|i| 2 + i * 5).collect();
    let mut run = session.generate(&full, &options).unwrap();
    assert_eq!(run.by_ref().count(), 1);
    assert_eq!(run.stop_reason(), Some(&StopReason::ContextFull));
    // The maximum wins where both are reached.
    session.truncate(60).unwrap();
    let mut run = session.generate(&[], &options.max_tokens(5)).unwrap();
    assert_eq!(run.by_ref().count(), 5);
    assert_eq!(run.stop_reason(), Some(&StopReason::MaxTokens));
}
