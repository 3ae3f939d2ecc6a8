//! What benchmarks fill caches with: keys of which block-sparse prefill reads a known share.

use gemma4::{
    DType, Drafter, GenerateOptions, KvConfig, Model, PrefillOptions, Session, SessionOptions, SparsePrefill,
};
use gemma4_tests::memory::hollow_model;
use gemma4_tests::synth::{self, DrafterType, Part};
use gemma4_tests::tiny;

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

/// What times rounds part by part: drafting again and again, and taking rows in, change nothing.
#[test]
fn drafters_work_behind_a_filled_cache() {
    let model = tiny::model();
    let tokens: Vec<u32> = (0..1500).map(|i| 300 + (i * 37) % 3000).collect();
    for (file, most) in [("tiny-gemma4-mtp-q8_0.gguf", 16), ("tiny-gemma4-dflash-q8_0.gguf", 15)] {
        let drafter = Drafter::load(tiny::path(file), &model).unwrap();
        let options = SessionOptions::default().n_ctx(2048).n_batch(512).n_threads(1).drafter(drafter);
        let mut session = Session::new(&model, &options).unwrap();
        assert_eq!(session.draft_only(tokens[0], 4).unwrap(), 0, "{file}: of nothing");
        for _ in 0..2 {
            session.clear();
            session.fill_synthetic(&tokens[..1000]).unwrap();
            session.prefill(&tokens[1000..1020]).unwrap();
            for n in [most, 1, 8, 8] {
                assert_eq!(session.draft_only(tokens[1020], n).unwrap(), n as usize, "{file}");
                session.verify_only(&tokens[1020..1021 + n as usize]).unwrap();
                session.observe_only(n + 1).unwrap();
            }
            assert_eq!(session.len(), 1020);
            // Far enough that rings have lost what was there.
            session.prefill(&tokens[1020..]).unwrap();
            session.rewind_synthetic(1000).unwrap();
            session.prefill(&tokens[1000..1001]).unwrap();
            assert_eq!(session.draft_only(tokens[1001], 3).unwrap(), 3, "{file}");
        }
    }
}

/// Drafters of the published shapes load for models of these shapes, and for no others.
#[test]
fn drafters_of_true_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(format!("{name}.gguf"));
    let mut names = Vec::new();
    for size in synth::sizes().iter().filter(|size| ["26b-a4b", "31b"].contains(&size.name)) {
        let parts = [(Part::Mtp, DrafterType::Eight), (Part::Dflash, DrafterType::Four)];
        for (part, types) in parts {
            let name = format!("{}-{part:?}", size.name);
            synth::write_drafter(size, part, types, true, &file(&name)).unwrap();
            names.push((size.name, part, name));
        }
    }
    for target in ["26b-a4b", "31b"] {
        let model = hollow_model(target, dir.path()).unwrap();
        for (size, part, name) in &names {
            let loaded = Drafter::load(file(name), &model);
            if *size != target {
                assert!(loaded.is_err(), "{name} for {target}");
                continue;
            }
            let drafter = loaded.unwrap_or_else(|e| panic!("{name}: {e}"));
            let most = if *part == Part::Mtp { 16 } else { 15 };
            assert_eq!((drafter.max_draft(), drafter.weight_bytes() > 200 << 20), (most, true), "{name}");
            println!("{name}: {} MiB", drafter.weight_bytes() >> 20);
            // Its graphs fit together.
            let options = SessionOptions::default().n_ctx(4096).n_threads(1).drafter(drafter);
            Session::plan(&model, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
    let small = &synth::sizes()[0];
    for part in [Part::Mtp, Part::Dflash] {
        assert!(synth::write_drafter(small, part, DrafterType::Eight, true, &file("none")).is_err());
    }
}
