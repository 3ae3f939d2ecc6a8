//! Tensors that exports split, join, scale or leave out. The golden files, written in another of these ways, are the same
//! network: the reference holds for them too.

use gemma4::{Device, LoadOptions, Model, Session, SessionOptions};
use gemma4_tests::bad::{Part, Parts, id};
use gemma4_tests::repo;
use half::f16;
use std::ops::ControlFlow;

fn fixture(name: &str) -> Parts {
    Parts::read(&repo(&format!("tests/data/golden/{name}.f16.gguf")))
}

/// Logits of every token of a prompt in chunks, that is longer than the window, and of one token behind it.
fn logits(parts: &Parts) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, parts.bytes()).unwrap();
    // On the CPU a row of a product is the same in whichever matrix it stands.
    let options = LoadOptions::default().device(Device::cpu().unwrap());
    let model = Model::load_with(&path, &options, |_| ControlFlow::Continue(())).unwrap();
    let n_vocab = model.hparams().n_vocab;
    let options = SessionOptions::default().n_ctx(256).n_batch(32).n_threads(1);
    let mut session = Session::new(&model, &options).unwrap();
    let prompt: Vec<u32> = (0..70).map(|i| 16 + i * 37 % (n_vocab - 16)).collect();
    let mut logits = session.evaluate(&prompt, false).unwrap().logits;
    session.prefill(&[17]).unwrap();
    logits.extend(session.logits());
    assert_eq!(logits.len(), 71 * n_vocab as usize);
    assert!(logits.iter().all(|l| l.is_finite()));
    logits
}

fn largest_distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[track_caller]
fn assert_same(what: &str, parts: &Parts, want: &[f32]) {
    let far = largest_distance(&logits(parts), want);
    assert!(far < 1e-5, "{what}: {far}");
}

/// What [`assert_same`] would see if the difference that a test is about went unnoticed.
#[track_caller]
fn assert_other(what: &str, parts: &Parts, want: &[f32]) {
    let far = largest_distance(&logits(parts), want);
    assert!(far > 0.1, "{what}: {far}");
}

fn layers(parts: &Parts) -> usize {
    parts.tensors.iter().filter(|t| t.name.ends_with(".attn_norm.weight")).count()
}

/// Takes a tensor out.
fn take(parts: &mut Parts, name: &str) -> Part {
    let part = parts.tensor(name).clone();
    parts.remove_tensor(name);
    part
}

/// Multiplies a tensor by a power of two, which rounds nothing.
fn multiply(part: &mut Part, factor: f32) {
    assert!(factor.abs().log2().fract() == 0.0);
    let data = match part.type_id {
        id::F32 => part.values().into_iter().flat_map(|x| (x * factor).to_le_bytes()).collect(),
        id::F16 => {
            let halves = part.data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
            let product = |x: f32| {
                let half = f16::from_f32(x * factor);
                assert_eq!(half.to_f32(), x * factor, "{}", part.name);
                half.to_le_bytes()
            };
            halves.flat_map(product).collect()
        }
        other => panic!("{}: type {other}", part.name),
    };
    part.data = data;
}

#[test]
fn split_experts_are_the_packed_ones() {
    let whole = fixture("c-moe");
    let want = logits(&whole);
    let split = |halves: [&str; 2]| {
        let mut parts = whole.clone();
        for i in 0..layers(&whole) {
            let packed = take(&mut parts, &format!("blk.{i}.ffn_gate_up_exps.weight"));
            let [d, ff, n] = [packed.ne[0], packed.ne[1] / 2, packed.ne[2]];
            let half = packed.data.len() / (2 * n as usize);
            for (at, name) in halves.into_iter().enumerate() {
                let experts = packed.data.chunks_exact(2 * half);
                let data = experts.flat_map(|expert| &expert[at * half..(at + 1) * half]).copied().collect();
                let name = format!("blk.{i}.{name}.weight");
                parts.tensors.push(Part { name, type_id: packed.type_id, ne: vec![d, ff, n], data });
            }
        }
        parts
    };
    assert_same("split", &split(["ffn_gate_exps", "ffn_up_exps"]), &want);
    assert_other("the wrong way round", &split(["ffn_up_exps", "ffn_gate_exps"]), &want);
}

/// Every layer's projections in one matrix; `scaled` with a factor beside it that turns the signs.
fn fused(whole: &Parts, order: [&str; 3], scaled: bool) -> Parts {
    let mut parts = whole.clone();
    for i in 0..layers(whole) {
        let [mut q, k, v] = order.map(|name| take(&mut parts, &format!("blk.{i}.{name}.weight")));
        q.name = format!("blk.{i}.attn_qkv.weight");
        q.ne[1] += k.ne[1] + v.ne[1];
        q.data.extend(k.data.into_iter().chain(v.data));
        if scaled {
            multiply(&mut q, -2.0);
            parts.tensors.push(Part::f32s(&format!("blk.{i}.attn_qkv.scale"), &[-0.5]));
        }
        parts.tensors.push(q);
    }
    parts
}

#[test]
fn fused_projections_are_the_single_ones() {
    let whole = fixture("a-dense");
    let want = logits(&whole);
    for scaled in [false, true] {
        assert_same("fused", &fused(&whole, ["attn_q", "attn_k", "attn_v"], scaled), &want);
    }
    assert_other("values before keys", &fused(&whole, ["attn_q", "attn_v", "attn_k"], false), &want);
}

/// A head of its own is what is multiplied with: one whose rows stand in reverse gives the logits in reverse, from the same
/// embeddings.
#[test]
fn a_head_of_its_own_is_used() {
    for name in ["a-dense", "c-moe", "d-ple"] {
        let whole = fixture(name);
        let want = logits(&whole);
        let mut parts = whole.clone();
        let mut head = parts.tensor("token_embd.weight").clone();
        let n_vocab = head.ne[1] as usize;
        head.name = "output.weight".into();
        parts.tensors.push(head.clone());
        assert_same(name, &parts, &want);
        let row = head.data.len() / n_vocab;
        parts.tensor("output.weight").data = head.data.chunks_exact(row).rev().flatten().copied().collect();
        let reversed: Vec<f32> =
            want.chunks_exact(n_vocab).flat_map(|row| row.iter().rev()).copied().collect();
        assert_same("reversed", &parts, &reversed);
    }
}

/// Turned signs show behind every norm, which a mere factor would not; one kind of matrices at a time, so that no two
/// forgotten factors make up for each other.
#[test]
fn scales_beside_matrices_multiply_their_products() {
    let layer =
        ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "inp_gate", "proj"];
    for name in ["a-dense", "c-moe", "d-ple"] {
        let mut whole = fixture(name);
        let mut head = whole.tensor("token_embd.weight").clone();
        head.name = "output.weight".into();
        whole.tensors.push(head);
        let want = logits(&whole);
        let in_layers = layer.iter().map(|matrix| format!(".{matrix}.weight"));
        for end in in_layers.chain(["output.weight", "per_layer_model_proj.weight"].map(String::from)) {
            let mut parts = whole.clone();
            let mut scales = Vec::new();
            // `attn_output` ends like `output`.
            let is_meant =
                |t: &&mut Part| if end.starts_with('.') { t.name.ends_with(&end) } else { t.name == end };
            for part in parts.tensors.iter_mut().filter(is_meant) {
                multiply(part, -2.0);
                scales.push(Part::f32s(&part.name.replace(".weight", ".scale"), &[-0.5]));
            }
            if scales.is_empty() {
                assert!(name != "d-ple", "{end}");
                continue;
            }
            assert_other(&format!("{name}, {end} without scales"), &parts, &want);
            parts.tensors.extend(scales);
            assert_same(&format!("{name}, {end}"), &parts, &want);
        }
    }
}

#[test]
fn absent_scales_are_ones() {
    for (name, end) in [
        ("a-dense", "layer_output_scale.weight"),
        ("d-ple", "layer_output_scale.weight"),
        ("c-moe", "layer_output_scale.weight"),
        ("c-moe", "ffn_down_exps.scale"),
    ] {
        let whole = fixture(name);
        let n = layers(&whole);
        let mut ones = whole.clone();
        let scales = ones.tensors.iter_mut().filter(|t| t.name.ends_with(end));
        let changed =
            scales.map(|part| *part = Part::f32s(&part.name, &vec![1.0; part.values().len()])).count();
        assert_eq!(changed, n, "{name}, {end}");
        let want = logits(&ones);
        assert_other(&format!("{name}, {end} as they are"), &whole, &want);
        let mut without = ones;
        without.tensors.retain(|t| !t.name.ends_with(end));
        assert_same(&format!("{name} without {end}"), &without, &want);
    }
}
