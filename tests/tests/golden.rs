//! Logits, hidden states, layer outputs and greedy continuations of every architectural variant equal
//! transformers' within the fixtures' tolerances.

use gemma4::DType;
use gemma4_tests::golden::{check, fixtures};
use gemma4_tests::repo;

fn variant(name: &str) {
    let (all, _) = fixtures(&repo("tests/data/golden")).unwrap();
    let matching: Vec<_> = all.iter().filter(|f| f.name == name).collect();
    assert!(!matching.is_empty(), "no fixture {name}");
    for fixture in matching {
        for (kv, n_batch) in [(DType::F32, 512), (DType::F32, 16), (DType::F16, 512), (DType::F16, 16)] {
            let report = check(fixture, kv, n_batch).unwrap();
            assert!(report.passes(), "{report:#?}");
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
