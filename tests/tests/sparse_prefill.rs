//! Block-sparse prefill: what it leaves out, where it must not be used, and what it costs.

use gemma4::{
    DType, EncodeOptions, Error, KvConfig, Model, PrefillOptions, Session, SessionOptions, SparsePrefill,
};
use gemma4_tests::{repo, tiny};

fn text(model: &Model, n: usize) -> Vec<u32> {
    let text = std::fs::read_to_string(tiny::path("val-code.txt")).unwrap();
    let tokens = model.tokenizer().encode(&text, EncodeOptions::CONTINUATION).unwrap();
    model.tokenizer().bos().into_iter().chain(tokens).take(n).collect()
}

fn session(model: &Model, kv: DType, sparse: Option<SparsePrefill>) -> Session {
    let options = SessionOptions::default()
        .n_ctx(2048)
        .n_batch(512)
        .n_threads(2)
        .kv(KvConfig::uniform(kv))
        .prefill(PrefillOptions::default().sparse(sparse));
    Session::new(model, &options).unwrap()
}

/// Small blocks, for a short context.
fn sparse(alpha: f32) -> SparsePrefill {
    SparsePrefill::default().alpha(alpha).block(32).always(1, 2).last_full(0).from(0)
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).filter(|d| d.is_finite()).fold(0.0, f32::max)
}

/// F16 weights and an F32 cache: with 8 bits in either, the last bit of a sum grows a hundredfold. Other caches
/// are compared where single operations are, in ggml-sys.
#[test]
fn all_blocks_are_dense() {
    let model = Model::load(repo("tests/data/golden/a-dense.f16.gguf")).unwrap();
    let n_vocab = model.hparams().n_vocab;
    let prompt: Vec<u32> = (0..900).map(|i| (i * 37 + 11) % n_vocab).collect();
    let kv = DType::F32;
    let mut dense = session(&model, kv, None);
    dense.prefill(&prompt).unwrap();
    // As many nearest blocks as there are; and the whole prompt as its own end.
    for all in [sparse(0.99).always(0, 1000), sparse(0.99).last_full(1000)] {
        let mut session = session(&model, kv, Some(all));
        session.prefill(&prompt).unwrap();
        let distance = furthest(session.logits(), dense.logits());
        assert!(distance > 0.0 && distance < 0.01, "{kv}: {distance}");
    }
    for dense_too in [sparse(0.0), sparse(1.0), sparse(0.99).from(10_000)] {
        let mut session = session(&model, kv, Some(dense_too));
        session.prefill(&prompt).unwrap();
        assert_eq!(session.logits(), dense.logits());
    }
    let mut session = session(&model, kv, Some(sparse(0.99).always(0, 1)));
    session.prefill(&prompt).unwrap();
    assert!(furthest(session.logits(), dense.logits()) > 0.02, "{kv}: nothing was left out");
}

#[test]
fn decoding_verification_and_scores_read_everything() {
    let model = tiny::model();
    let prompt = text(&model, 1000);
    let strict = sparse(0.99).always(0, 1);
    let mut dense = session(&model, DType::F16, None);
    let mut other = session(&model, DType::F16, Some(strict.clone()));
    // A dense beginning for both.
    dense.prefill(&prompt[..700]).unwrap();
    other.prefill_as(&prompt[..700], &PrefillOptions::default(), |_| {}).unwrap();
    assert_eq!(other.logits(), dense.logits());
    // One token, a draft, and the most that is always computed densely.
    let mut at = 700;
    for n in [1, 8, 16, 127, 1] {
        for session in [&mut dense, &mut other] {
            session.prefill(&prompt[at..at + n]).unwrap();
        }
        assert_eq!(other.logits(), dense.logits(), "{n} tokens");
        at += n;
    }
    let scores = [&mut dense, &mut other].map(|session| session.score(&prompt[at..at + 140]).unwrap());
    assert_eq!(scores[0], scores[1]);
    // The same tokens as a prompt do differ: the options are in force.
    for session in [&mut dense, &mut other] {
        session.truncate(at).unwrap();
        session.prefill(&prompt[at..at + 140]).unwrap();
    }
    assert!(furthest(other.logits(), dense.logits()) > 1e-3);
}

#[test]
fn what_layers_read() {
    let model = tiny::model();
    let prompt = text(&model, 1400);
    let read = |options: SparsePrefill| {
        let mut session = session(&model, DType::F16, None);
        let layers = session.prefill_reporting(&prompt, &PrefillOptions::default().sparse(options)).unwrap();
        assert_eq!(session.tokens(), prompt);
        layers
    };
    let mut before: Option<Vec<f32>> = None;
    for alpha in [0.001, 0.05, 0.3, 0.9] {
        let layers = read(sparse(alpha));
        // The full-attention layers of 12, five of six slide.
        assert_eq!(layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [5, 11]);
        for layer in &layers {
            // Of what is all but dense, sums in F32 decide.
            let (recall, recall_p5) = (layer.recall.unwrap(), layer.recall_p5.unwrap());
            assert!(recall_p5 < recall + 1e-4 && recall < 1.0001, "{layer:?}");
            assert!(layer.keys > 0.0 && layer.keys <= 1.0, "{layer:?}");
            // Better than leaving out keys at random, if any are left out.
            assert!(layer.keys == 1.0 || recall > layer.keys, "alpha {alpha}: {layer:?}");
        }
        let keys: Vec<f32> = layers.iter().map(|l| l.keys).collect();
        if let Some(before) = &before {
            assert!(keys.iter().zip(before).all(|(now, before)| now < before), "{keys:?} {before:?}");
        }
        before = Some(keys);
    }
    // The end of the prompt reads all, and that is a known share of the keys.
    let [none, some] = [0, 8].map(|n| read(sparse(0.9).last_full(n))[0].keys);
    assert!(some > none + 0.05, "{some} {none}");
    // Nothing is reported of what is dense.
    assert_eq!(read(sparse(0.5).from(5000)), []);
}

/// Chunks do not change what is read: blocks stand at absolute positions.
#[test]
fn chunks_of_any_size() {
    let model = tiny::model();
    let prompt = text(&model, 1100);
    let mut logits = Vec::new();
    for n_batch in [160, 512] {
        let options = SessionOptions::default()
            .n_ctx(2048)
            .n_batch(n_batch)
            .n_threads(2)
            .kv(KvConfig::uniform(DType::F32))
            .prefill(PrefillOptions::default().sparse(sparse(0.1)));
        let mut session = Session::new(&model, &options).unwrap();
        session.prefill(&prompt[..1000]).unwrap();
        session.prefill(&prompt[1000..]).unwrap();
        logits.push(session.logits().to_vec());
    }
    let distance = furthest(&logits[0], &logits[1]);
    assert!(distance < 0.5, "{distance}");
}

#[test]
fn options_and_plans() {
    let model = tiny::model();
    for (bad, name) in
        [(sparse(f32::NAN), "alpha"), (sparse(0.1).block(0), "block"), (sparse(0.1).block(2048), "block")]
    {
        let options = SessionOptions::default().prefill(PrefillOptions::default().sparse(bad));
        match Session::new(&model, &options) {
            Err(Error::Option { option, .. }) => assert_eq!(option, name),
            other => panic!("{other:?}"),
        }
    }
    let plan = |prefill| {
        Session::plan(&model, &SessionOptions::default().n_ctx(65_536).n_threads(2).prefill(prefill)).unwrap()
    };
    let (dense, sparse) =
        (plan(PrefillOptions::default()), plan(PrefillOptions::default().sparse(sparse(0.1))));
    // Means of 2048 blocks: 4 MiB, of which a part is there for dense attention too.
    let scratch = sparse.host - dense.host;
    assert!((3 << 20..6 << 20).contains(&scratch), "{scratch}");
    // Nothing but the numbers of the step once more.
    assert_eq!(sparse.compute - dense.compute, 32);
}

/// A sequence of tokens is planted far beyond the sliding window; its beginning, repeated at the end, must bring
/// back the rest as it does with dense attention.
#[test]
fn the_needle_is_found() {
    let model = tiny::model();
    let filler = text(&model, 1500);
    let mean = |options: Option<SparsePrefill>, planted: bool| {
        let mut sum = 0.0;
        for needle in 0..3u32 {
            let mut random = needle * 7919 + 13;
            let mut next = || {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                300 + (random >> 8) % 3000
            };
            let secret: Vec<u32> = (0..24).map(|_| next()).collect();
            let mut prompt = filler.clone();
            if planted {
                let at = 200 + 300 * needle as usize;
                prompt.splice(at..at, secret.iter().copied());
            }
            prompt.extend(&secret[..8]);
            let mut session = session(&model, DType::F16, options.clone());
            session.prefill(&prompt).unwrap();
            let scores = session.score(&secret[8..]).unwrap();
            sum += f64::from(scores.iter().sum::<f32>()) / scores.len() as f64;
        }
        sum / 3.0
    };
    let (without, dense) = (mean(None, false), mean(None, true));
    println!("log-probability of a hidden token: {without:.2} unknown, {dense:.2} dense");
    assert!(dense > without + 1.0, "the model does not copy: {dense} {without}");
    for alpha in [0.12, 0.5] {
        let got = mean(Some(sparse(alpha).block(64).last_full(2)), true);
        println!("alpha {alpha}: {got:.2}");
        assert!(
            got > dense - 0.1 * (dense - without),
            "alpha {alpha}: {got}, dense {dense}, unknown {without}"
        );
    }
}
