//! Weights in the CPU's own order give the same model.

use gemma4::{LoadOptions, Model, Session, SessionOptions};
use gemma4_tests::bad::{Parts, id, layout};
use gemma4_tests::perplexity::perplexity;
use gemma4_tests::tiny;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// tiny-gemma4 with matrices of type Q4_0: block scale, then 32 nibbles, elements `j` and `j + 16` in a byte.
fn q4_0(dir: &Path) -> PathBuf {
    const Q4_0: u32 = 2;
    assert_eq!(layout(Q4_0).unwrap().bytes, 18);
    let mut parts = Parts::read(&tiny::path("tiny-gemma4-q8_0.gguf"));
    for part in parts.tensors.iter_mut().filter(|part| part.type_id == id::Q8_0) {
        let blocks = part.data.chunks_exact(34).flat_map(|block| {
            let d = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
            let x: Vec<f32> = block[2..].iter().map(|&q| d * f32::from(q as i8)).collect();
            let max = x.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
            let scale = half::f16::from_f32(max / -8.0);
            let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
            let q: Vec<u8> = x.iter().map(|x| (x * inverse + 8.5).clamp(0.0, 15.0) as u8).collect();
            let nibbles = (0..16).map(move |j| q[j] | q[j + 16] << 4);
            scale.to_le_bytes().into_iter().chain(nibbles).collect::<Vec<u8>>()
        });
        part.data = blocks.collect();
        part.type_id = Q4_0;
    }
    let path = dir.join("tiny-q4_0.gguf");
    std::fs::write(&path, parts.bytes()).unwrap();
    path
}

fn load(path: &Path, repack: impl Into<Option<bool>>, mmap: bool) -> Model {
    let options = LoadOptions::default().device(gemma4::Device::cpu().unwrap()).repack(repack).use_mmap(mmap);
    Model::load_with(path, &options, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn repacked_weights_are_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = q4_0(dir.path());
    let plain = load(&path, false, true);
    assert_eq!(plain.repacked_bytes(), 0);
    let text = std::fs::read_to_string(tiny::path("val-prose.txt")).unwrap();
    let want = perplexity(&mut tiny::session(&plain, 1024), &text, 2).unwrap();
    let wide = load(&tiny::path("tiny-gemma4-q8_0.gguf"), false, true);
    let wide = perplexity(&mut tiny::session(&wide, 1024), &text, 2).unwrap();
    // Four bits cost this model a tenth at most: the file is what it should be.
    assert!(want > wide && want < 1.1 * wide, "perplexity {want}, with 8 bits {wide}");
    for mmap in [true, false] {
        for model in [load(&path, true, mmap), load(&path, None, mmap)] {
            if cfg!(target_arch = "x86_64") {
                // The tied embedding is kept twice: rows cannot be gathered from the packed copy.
                assert!(model.repacked_bytes() > 6 << 20, "{}", model.repacked_bytes());
            }
            assert_eq!(
                model.weight_bytes() > plain.weight_bytes(),
                model.repacked_bytes() > 0,
                "the copy of the embedding is counted"
            );
            let got = perplexity(&mut tiny::session(&model, 1024), &text, 2).unwrap();
            assert!((got / want - 1.0).abs() < 0.003, "mmap {mmap}: {got} for {want}");
            let prompt: Vec<u32> = (0..100).map(|i| 300 + 7 * i).collect();
            let logits = |model: &Model| {
                let mut session = tiny::session(model, 256);
                session.prefill(&prompt).unwrap();
                session.prefill(&[5]).unwrap();
                session.logits().to_vec()
            };
            let (got, want) = (logits(&model), logits(&plain));
            let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs());
            let worst = worst.filter(|d| d.is_finite()).fold(0.0, f32::max);
            assert!(worst < 0.1, "logits differ by {worst}");
        }
    }
}

#[test]
fn types_without_a_packing_stay_mapped() {
    // F16 matrices have none on any processor.
    let path = gemma4_tests::repo("tests/data/golden/d-ple.f16.gguf");
    assert_eq!(load(&path, true, true).repacked_bytes(), 0);
}

/// `cargo test --release --test repack -- --ignored --nocapture`, with `GEMMA4_MODEL` for another file than
/// tiny-gemma4 in Q4_0. Rounds alternate, so that other programs slow both sides alike.
#[test]
#[ignore = "measures"]
fn speed() {
    let dir = tempfile::tempdir().unwrap();
    let path = std::env::var_os("GEMMA4_MODEL").map_or_else(|| q4_0(dir.path()), PathBuf::from);
    let models = [load(&path, false, true), load(&path, true, true)];
    let options = SessionOptions::default().n_ctx(1024).n_threads(2);
    let mut sessions = models.each_ref().map(|model| Session::new(model, &options).unwrap());
    println!("repacked {:.1} MiB", models[1].repacked_bytes() as f64 / f64::from(1 << 20));
    let n_vocab = models[0].hparams().n_vocab;
    let prompt: Vec<u32> = (0..512).map(|i| (i * 7919 + 11) % n_vocab).collect();
    let mut ratios = [Vec::new(), Vec::new()];
    for round in 0..8 {
        let mut rates = [[0.0; 2]; 2];
        for (session, rates) in sessions.iter_mut().zip(&mut rates) {
            session.clear();
            let started = Instant::now();
            session.prefill(&prompt).unwrap();
            rates[0] = 512.0 / started.elapsed().as_secs_f64();
            let started = Instant::now();
            prompt[..16].iter().for_each(|&token| session.prefill(&[token]).unwrap());
            rates[1] = 16.0 / started.elapsed().as_secs_f64();
        }
        println!(
            "round {round}: prefill, decode tokens/s: plain {:.1?}, repacked {:.1?}",
            rates[0], rates[1]
        );
        if round > 0 {
            (0..2).for_each(|i| ratios[i].push(rates[1][i] / rates[0][i]));
        }
    }
    for (what, ratios) in ["prefill", "decode"].iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        println!("{what}: repacked / plain {:.2} ({:.2} to {:.2})", ratios[3], ratios[0], ratios[6]);
    }
}
