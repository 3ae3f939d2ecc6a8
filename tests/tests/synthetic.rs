//! What benchmarks fill caches with: keys of which block-sparse prefill reads a known share.

use gemma4::{
    DType, GenerateOptions, KvConfig, Model, PrefillOptions, Session, SessionOptions, SparsePrefill,
};
use gemma4_tests::{synth, tiny};

const DEPTH: u32 = 128 * 60;

/// Behind keys whose blocks have means, a prompt reads the share that was asked for; behind random ones nearly all.
#[test]
fn the_share_of_keys_is_as_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("micro.gguf");
    synth::write(&synth::micro(), None, &path).unwrap();
    let model = Model::load(&path).unwrap();
    let tokens: Vec<u32> = (0..DEPTH + 256).map(|i| 300 + (i * 7919) % 200_000).collect();
    let (before, after) = tokens.split_at(DEPTH as usize);
    // The blocks with means alone: neither the first ones nor the prompt's end.
    let sparse = SparsePrefill::default().always(0, 1).last_full(0);
    let how = PrefillOptions::default().sparse(sparse);
    for kv in [DType::F16, DType::Q8_0, DType::TQ3_0, DType::Q4_0] {
        let options =
            SessionOptions::default().n_ctx(DEPTH + 512).n_batch(256).n_threads(2).kv(KvConfig::uniform(kv));
        let mut session = Session::new(&model, &options).unwrap();
        let mut read = |share: Option<f32>| {
            session.clear();
            match share {
                Some(share) => session.fill_blocks(before, 128, share).unwrap(),
                None => session.fill_synthetic(before).unwrap(),
            }
            let layers = session.prefill_reporting(after, &how).unwrap();
            assert_eq!(layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [5]);
            assert!(session.logits().iter().all(|x| x.is_finite()), "{kv}");
            layers[0].keys
        };
        let tenth = read(Some(0.1));
        println!("{kv}: {tenth:.3} of a tenth");
        assert!((0.08..0.14).contains(&tenth), "{kv}: {tenth}");
        if kv == DType::Q8_0 {
            let (half, random) = (read(Some(0.5)), read(None));
            println!("{kv}: {half:.3} of a half, {random:.3} of random keys");
            assert!((0.45..0.55).contains(&half), "{kv}: {half}");
            assert!(random > 0.6, "{kv}: {random}");
        }
    }
}

/// Any part of a filled sequence can be had again, however much was computed behind it.
#[test]
fn a_filled_sequence_is_cut_anywhere() {
    let model = tiny::model();
    let tokens: Vec<u32> = (0..1500).map(|i| 300 + (i * 37) % 3000).collect();
    let mut session = tiny::session(&model, 2048);
    session.fill_blocks(&tokens[..600], 64, 0.25).unwrap();
    session.prefill(&tokens[600..]).unwrap();
    assert!(session.truncate(600).is_err(), "the rings are too long for this test");
    session.rewind_synthetic(600).unwrap();
    assert_eq!(session.len(), 600);
    let how = GenerateOptions::greedy().max_tokens(8).ignore_eos(true);
    assert_eq!(session.generate(&tokens[..1], &how).unwrap().filter_map(Result::ok).count(), 8);
    assert!(session.rewind_synthetic(5000).is_err());
    assert!(session.fill_blocks(&tokens[..9], 64, 0.25).unwrap_err().to_string().contains("clear first"));
}
