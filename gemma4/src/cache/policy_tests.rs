use super::*;
use crate::cache::{LayerKind, Rotation};
use crate::ggml::RopeParams;
use crate::model::LayerParams;

/// A model of the 31B's shape: every sixth of 60 layers is a full one.
fn hparams() -> HParams {
    let layer = |i: u32| {
        let is_full = i % 6 == 5;
        LayerParams {
            kind: if is_full { LayerKind::Full } else { LayerKind::Swa },
            n_head: 32,
            n_head_kv: if is_full { 4 } else { 16 },
            head_dim: if is_full { 512 } else { 256 },
            n_ff: 21504,
            n_ff_exp: 0,
            kv_layer: i,
            rope: RopeParams { n_dims: 256, freq_base: 1e4 },
        }
    };
    HParams {
        n_embd: 5376,
        n_vocab: 262_144,
        n_ctx_train: 262_144,
        window: 1024,
        eps: 1e-6,
        softcap: Some(30.0),
        n_embd_per_layer: 0,
        n_expert: 0,
        n_expert_used: 0,
        layers: (0..60).map(layer).collect(),
    }
}

fn parse(text: &str) -> KvPolicy {
    text.parse().unwrap()
}

#[test]
fn texts_mean_what_they_say_and_are_written_as_they_are_read() {
    let pair = KvTypes { k: DType::Q8_0, v: DType::Q4_0 };
    assert_eq!(parse("f16"), KvPolicy::F16);
    assert_eq!(parse("Q8_0/q4_0"), KvPolicy::Uniform(pair));
    assert_eq!(parse("swa=f16,full=q8_0/q4_0"), KvPolicy::ByKind { full: pair, swa: both(DType::F16) });
    assert_eq!(parse("captured:5,11"), KvPolicy::Captured { layers: vec![5, 11] });
    assert_eq!(parse("auto"), KvPolicy::Auto { budget: None });
    assert_eq!(parse("auto:1.5GiB"), KvPolicy::Auto { budget: Some(3 << 29) });
    assert_eq!(parse("auto:512m"), KvPolicy::Auto { budget: Some(512 << 20) });
    for text in
        ["f16", "q8_0/q4_0", "full=q8_0/q4_0,swa=f16", "captured", "captured:5,11", "auto", "auto:4096"]
    {
        assert_eq!(parse(text).to_string(), text);
    }
    for (name, policy) in KvPolicy::NAMED {
        assert_eq!(parse(name), *policy);
        assert_eq!(parse(&policy.to_string()), *policy);
    }
}

#[test]
fn texts_that_mean_nothing_are_refused_with_what_would_do() {
    let why = |text: &str| text.parse::<KvPolicy>().unwrap_err().to_string();
    assert!(why("q9_0").contains("one of [f32, f16"), "{}", why("q9_0"));
    assert!(why("i32").contains("one of [f32, f16"));
    assert!(why("q8_0/").contains("one of [f32, f16"));
    assert!(why("full=q8_0").contains("both full=TYPES and swa=TYPES"));
    assert!(why("full=q8_0,lower=q4_0").contains("lower=q4_0 is neither"));
    assert!(why("captured:x").contains("captured:11,17"));
    for text in ["auto:", "auto:6TB", "auto:-1", "auto:0", "auto:1.2.3"] {
        assert!(why(text).contains("6GiB"), "{text}");
    }
}

#[test]
fn a_drafters_layers_are_kept_exact() {
    let (hparams, options) = (hparams(), SessionOptions::default());
    let types = |text: &str| {
        let config = parse(text).resolve(&hparams, &options, 0).unwrap();
        move |i: usize, kind| config.types(i, kind)
    };
    // By default the last full layer is read.
    let default = types("captured");
    assert_eq!(default(59, LayerKind::Full), both(DType::Q8_0));
    assert_eq!(default(53, LayerKind::Full), both(NARROWEST));
    assert_eq!(default(58, LayerKind::Swa), both(NARROWEST));
    // Sliding-window layers stay narrow though they are read.
    let named = types("captured:10,11");
    assert_eq!(named(11, LayerKind::Full), both(DType::Q8_0));
    assert_eq!(named(10, LayerKind::Swa), both(NARROWEST));
    assert_eq!(named(59, LayerKind::Full), both(NARROWEST));
    let error = parse("captured:60").resolve(&hparams, &options, 0).unwrap_err().to_string();
    assert!(error.contains("60 layers"), "{error}");
}

#[test]
fn a_shared_layer_raises_the_one_it_reads() {
    let mut hparams = hparams();
    hparams.layers[59].kv_layer = 53;
    let config = parse("captured:59").resolve(&hparams, &SessionOptions::default(), 0).unwrap();
    assert_eq!(config.types(53, LayerKind::Full), both(DType::Q8_0));
}

#[test]
fn auto_takes_the_best_that_fits() {
    let hparams = hparams();
    let options = SessionOptions::default().n_ctx(65536);
    let bytes =
        |policy: &KvPolicy| policy.resolve(&hparams, &options, 0).unwrap().bytes(&hparams, &options).unwrap();
    let auto = KvPolicy::Auto { budget: None };
    let chosen = |budget| auto.resolve(&hparams, &options, budget);
    // Every step with the room that it needs to the byte: it, or a better one that takes no more.
    for (i, step) in KvPolicy::LADDER.iter().enumerate() {
        let need = bytes(step);
        let fits = KvPolicy::LADDER[..=i].iter().find(|better| bytes(better) <= need).unwrap();
        assert_eq!(chosen(need).unwrap(), fits.resolve(&hparams, &options, 0).unwrap());
    }
    assert_eq!(chosen(bytes(&KvPolicy::Q8_0)).unwrap(), KvConfig::uniform(DType::Q8_0));
    assert_ne!(chosen(bytes(&KvPolicy::Q8_0) - 1).unwrap(), KvConfig::uniform(DType::Q8_0));
    let last = KvPolicy::LADDER.iter().map(bytes).min().unwrap();
    assert_eq!(last, bytes(&KvPolicy::TQ3_0));
    let error = chosen(last - 1).unwrap_err().to_string();
    assert!(error.contains("smaller n_ctx"), "{error}");
    // Its own budget goes before what the device has.
    let own = KvPolicy::Auto { budget: Some(last) };
    assert_eq!(own.resolve(&hparams, &options, u64::MAX).unwrap(), chosen(last).unwrap());
    // The context counts: what fits shorter does not fit longer.
    let longer = SessionOptions::default().n_ctx(262_144);
    let f16 = bytes(&KvPolicy::F16);
    assert_ne!(auto.resolve(&hparams, &longer, f16).unwrap().full, both(DType::F16));
}

#[test]
fn plain_policies_leave_rotation_to_the_types() {
    let config = KvPolicy::Q4_0.resolve(&hparams(), &SessionOptions::default(), 0).unwrap();
    assert_eq!(config.rotation, Rotation::Auto);
    assert_eq!((config.full, config.swa), (both(DType::Q4_0), both(DType::Q4_0)));
}
