//! Whether a row of a graph of many tokens is, bit for bit, what a graph of one token computes.

use gemma4::{DType, EncodeOptions, KvConfig, Model, Session, SessionOptions};
use gemma4_tests::{repo, tiny};

/// Largest difference between the logits of `n` tokens computed at once and one by one, behind `depth` others.
fn distance(model: &Model, options: &SessionOptions, tokens: &[u32], depth: usize, sizes: &[usize]) -> f32 {
    let mut session = Session::new(model, options).unwrap();
    session.prefill(&tokens[..depth]).unwrap();
    let start = session.snapshot().unwrap();
    let most = *sizes.iter().max().unwrap();
    let mut want: Vec<f32> = Vec::new();
    for token in &tokens[depth..depth + most] {
        want.extend(session.evaluate(&[*token], false).unwrap().logits);
    }
    let mut far = 0.0f32;
    for &n in sizes {
        session.restore(&start).unwrap();
        let got = session.evaluate(&tokens[depth..depth + n], false).unwrap().logits;
        far = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(far, f32::max);
    }
    far
}

fn code(model: &Model) -> Vec<u32> {
    let text = std::fs::read_to_string(tiny::path("val-code.txt")).unwrap();
    model.tokenizer().encode(&text[..8000], EncodeOptions::TEXT).unwrap()
}

/// Weights of 8 bits go the same way in products with one column and with many, and so do quantised caches. Caches
/// of plain floats do, since every row of a small graph attends by itself.
#[test]
fn rows_of_8_bit_models_are_equal() {
    let model = tiny::model();
    let tokens = code(&model);
    // Two threads cut the keys of a single token from 512 slots on; at 505 views grow within the graph.
    for (kv, n_threads, depth) in [
        (DType::F16, 1, 700),
        (DType::Q8_0, 1, 700),
        (DType::F16, 2, 505),
        (DType::F16, 2, 700),
        (DType::F32, 2, 505),
        (DType::Q8_0, 2, 505),
    ] {
        let options = SessionOptions::default().n_ctx(1024).n_threads(n_threads).kv(KvConfig::uniform(kv));
        let far = distance(&model, &options, &tokens, depth, &[2, 9]);
        assert_eq!(far, 0.0, "{kv}, {n_threads} threads, {depth} tokens before");
    }
}

/// Products of half-precision weights with one column and with several are different kernels of ggml. Logits are
/// about 10; two that are further apart than twice this keep their order.
#[test]
fn rows_of_half_precision_models_are_close() {
    let model = Model::load(repo("tests/data/golden/a-dense.f16.gguf")).unwrap();
    let random: Vec<u32> = (0..1200u32).map(|i| 2 + i.wrapping_mul(2_654_435_761) % 766).collect();
    for kv in [DType::F16, DType::Q8_0] {
        let options = SessionOptions::default().n_ctx(1024).n_threads(1).kv(KvConfig::uniform(kv));
        let far = distance(&model, &options, &random, 300, &[2, 5, 16]);
        assert!(far < 0.1, "{kv}: {far}");
    }
}
