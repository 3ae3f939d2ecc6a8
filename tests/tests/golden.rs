//! Logits, hidden states, layer outputs and greedy continuations of every architectural variant equal
//! transformers' within the fixtures' tolerances.

use gemma4::{DType, KvConfig, LayerKind, Model, Session, SessionOptions};
use gemma4_tests::golden::{check, fixtures};
use gemma4_tests::repo;

fn variant(name: &str) {
    let all = fixtures(&repo("tests/data/golden")).unwrap();
    let matching: Vec<_> = all.iter().filter(|f| f.name == name).collect();
    assert!(!matching.is_empty(), "no fixture {name}");
    for fixture in matching {
        for (kv, n_batch) in [(DType::F32, 512), (DType::F32, 16), (DType::F16, 512), (DType::F16, 16)] {
            let report = check(fixture, kv, n_batch).unwrap();
            assert!(report.passes() && report.ties.is_empty(), "{report:#?}");
        }
    }
}

#[test]
fn a_dense() {
    variant("a-dense");
}

#[test]
fn b_keys_as_values() {
    variant("b-keqv");
}

#[test]
fn c_mixture_of_experts() {
    variant("c-moe");
}

#[test]
fn d_per_layer_inputs_and_shared_kv() {
    variant("d-ple");
}

/// A thousand tokens through a ring of 256 slots and through a linear cache, in the same chunks: every row
/// must agree. The fixtures' own prompts are shorter than the smallest ring.
#[test]
fn rings_that_wrap_equal_linear_caches() {
    let all = fixtures(&repo("tests/data/golden")).unwrap();
    for fixture in &all {
        let model = Model::load(&fixture.model).unwrap();
        let n_vocab = model.hparams().n_vocab;
        let text: Vec<u32> =
            (0..1000).map(|i: u32| i.wrapping_mul(2_654_435_761) % (n_vocab - 16) + 16).collect();
        let logits = |n_batch, slots| {
            let kv = KvConfig::uniform(DType::F32);
            let options = SessionOptions::default().n_ctx(1024).n_batch(n_batch).n_threads(1).kv(kv);
            let plan = Session::plan(&model, &options).unwrap();
            let swa = plan.layers.iter().find(|class| class.kind == LayerKind::Swa).unwrap();
            assert_eq!(swa.slots, slots, "{}", fixture.name);
            let mut session = Session::new(&model, &options).unwrap();
            let chunks = text.chunks(16).map(|chunk| session.evaluate(chunk, false).unwrap().logits);
            chunks.collect::<Vec<_>>().concat()
        };
        let (ring, linear) = (logits(16, 256), logits(1024, 1024));
        let far = ring.iter().zip(&linear).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{}: largest distance {far:e}", fixture.name);
        // The order of the sums over keys differs, and half-precision products round what follows: the
        // fixtures' own tolerance for such weights. A stale or a missing key moves logits by whole units.
        assert!(far < 0.25, "{}: {far}", fixture.name);
    }
}
