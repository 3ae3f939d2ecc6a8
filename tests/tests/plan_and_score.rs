//! Plans come true, and scores and embeddings are those of the full results.

use gemma4::{
    DType, Device, KvConfig, LayerKind, LoadOptions, Model, Pooling, Rotation, Session, SessionOptions,
};
use gemma4_tests::{repo, tiny};
use std::ops::ControlFlow;

#[test]
fn a_plan_is_what_a_session_takes() {
    for model in [
        "models/tiny-gemma4/tiny-gemma4-q8_0.gguf",
        "tests/data/golden/c-moe.f16.gguf",
        "tests/data/golden/d-ple.f16.gguf",
    ] {
        let model = Model::load(repo(model)).unwrap();
        for (n_ctx, n_batch, dtype) in
            [(1, 1, DType::F16), (300, 64, DType::F32), (4096, 512, DType::Q8_0), (20_000, 2048, DType::Q4_0)]
        {
            let options = SessionOptions::default()
                .n_ctx(n_ctx)
                .n_batch(n_batch)
                .n_threads(1)
                .kv(KvConfig::uniform(dtype));
            let plan = Session::plan(&model, &options).unwrap();
            let mut session = Session::new(&model, &options).unwrap();
            let text: Vec<u32> = (0..n_ctx.min(3000)).map(|i| 7 + i % 200).collect();
            session.prefill(&text).unwrap();
            let taken = session.model().weight_bytes() + session.kv_bytes() + session.compute_bytes();
            // What the process takes beside its buffers is measured in process_memory.rs.
            let planned = plan.total() - plan.host;
            assert!(planned >= taken, "{plan} under {taken}");
            assert!(planned as f64 <= taken as f64 * 1.03, "{plan} more than 3 % over {taken}");
        }
    }
}

#[test]
fn a_plan_says_how_each_kind_of_layer_is_kept() {
    let model = tiny::model();
    let mut kv = KvConfig::uniform(DType::Q4_0);
    kv.swa.k = DType::F16;
    let plan = Session::plan(&model, &SessionOptions::default().n_ctx(5000).kv(kv.clone())).unwrap();
    let class = |kind| plan.layers.iter().find(|class| class.kind == kind).unwrap();
    let (full, swa) = (class(LayerKind::Full), class(LayerKind::Swa));
    assert_eq!((full.n_layers, full.slots, full.rotation), (2, 5120, [512, 64]));
    assert_eq!((swa.n_layers, swa.slots, swa.rotation), (10, 768, [0, 64]));
    let text = plan.to_string();
    for part in [
        "2 layers of full attention",
        "K q4_0",
        "rotated over 512 and 64",
        "10 layers of sliding window",
        "K f16",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    kv.rotation = Rotation::Never;
    let plan = Session::plan(&model, &SessionOptions::default().kv(kv)).unwrap();
    assert!(plan.layers.iter().all(|class| class.rotation == [0, 0]));
}

/// Each class of layers says which backend computes its attention in each phase: decode, verification, prefill.
#[test]
fn a_plan_says_who_computes_the_attention() {
    let cpu = Device::cpu().unwrap();
    let on_cpu = LoadOptions::default().device(cpu);
    for (file, sizes) in [
        ("models/tiny-gemma4/tiny-gemma4-q8_0.gguf", [1, 8, 512]),
        ("tests/data/golden/c-moe.f16.gguf", [1, 8, 512]),
        ("tests/data/golden/d-ple.f16.gguf", [1, 8, 512]),
    ] {
        let model = Model::load_with(repo(file), &on_cpu, |_| ControlFlow::Continue(())).unwrap();
        for dtype in [DType::F16, DType::Q8_0, DType::TQ3_0] {
            let options = SessionOptions::default().n_ctx(5000).kv(KvConfig::uniform(dtype));
            let plan = Session::plan(&model, &options).unwrap();
            assert!(plan.layers.len() >= 2 && !plan.falls_back(), "{plan}");
            for class in &plan.layers {
                let mut found: Vec<u32> = class.attention.iter().map(|place| place.n_tokens).collect();
                found.sort_unstable();
                assert_eq!(found, sizes, "{file}, {dtype}: {class:?}");
                for place in &class.attention {
                    assert_eq!((&place.device, place.falls_back), (&cpu.name(), false), "{class:?}");
                }
                let text = class.to_string();
                for (phase, n) in ["decode", "verify", "prefill"].iter().zip(sizes) {
                    let part = format!("{phase} ({n}) on {}", cpu.name());
                    assert!(text.contains(&part), "no {part:?} in {text}");
                }
                assert!(!text.contains("FALLS BACK"), "{text}");
            }
        }
    }
}

fn text() -> Vec<u32> {
    let tokens = std::fs::read_to_string(tiny::path("val-prose.txt")).unwrap();
    let mut tokens = tiny::model().tokenizer().encode(&tokens, gemma4::EncodeOptions::TEXT).unwrap();
    tokens.truncate(300);
    tokens
}

#[test]
fn scores_are_the_log_probabilities_of_the_logits() {
    let (model, text) = (tiny::model(), text());
    let n_vocab = model.hparams().n_vocab as usize;
    let all = tiny::session(&model, 512).evaluate(&text, false).unwrap();
    let mut session = tiny::session(&model, 512);
    // In two calls: the second one scores its first token by the logits of the first.
    let mut scores = session.score(&text[..100]).unwrap();
    assert_eq!(scores.len(), 99);
    scores.extend(session.score(&text[100..]).unwrap());
    assert_eq!(scores.len(), text.len() - 1);
    for (i, score) in scores.iter().enumerate() {
        let row = &all.logits[i * n_vocab..(i + 1) * n_vocab];
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        let want = f64::from(row[text[i + 1] as usize]) - sum.ln();
        assert!((f64::from(*score) - want).abs() < 0.3, "token {i}: {score} for {want}");
    }
    // The same chunks give the same numbers.
    let again = tiny::session(&model, 512).score(&text).unwrap();
    let mean = |s: &[f32]| s.iter().map(|&x| f64::from(x)).sum::<f64>() / s.len() as f64;
    assert!((mean(&again) - mean(&scores)).abs() < 0.01);
}

#[test]
fn embeddings_are_pooled_hidden_states_of_length_one() {
    let (model, text) = (tiny::model(), text());
    let n_embd = model.hparams().n_embd as usize;
    let all = tiny::session(&model, 512).evaluate(&text, false).unwrap();
    for (pooling, rows) in [(Pooling::Last, text.len() - 1..text.len()), (Pooling::Mean, 0..text.len())] {
        let got = tiny::session(&model, 512).embed(&text, pooling).unwrap();
        let mut want = vec![0f64; n_embd];
        for row in all.hidden[rows.start * n_embd..rows.end * n_embd].chunks_exact(n_embd) {
            want.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let norm = want.iter().map(|x| x * x).sum::<f64>().sqrt();
        let cosine: f64 = got.iter().zip(&want).map(|(&a, b)| f64::from(a) * b / norm).sum();
        assert!((cosine - 1.0).abs() < 1e-5, "{pooling:?}: {cosine}");
    }
    assert!(tiny::session(&model, 512).embed(&[], Pooling::Mean).is_err());
}
