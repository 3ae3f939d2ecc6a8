//! Tensors that are missing or misshapen, types that cannot be used, and the layouts that can: split files,
//! half-precision vectors, odd alignments.

use gemma4::{Error, GenerateOptions, LoadOptions, Model, Session, SessionOptions};
use gemma4_tests::bad::{Bench, Parts, TYPES, id, says};
use gemma4_tests::repo;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn bench() -> Bench<tempfile::TempDir> {
    Bench::new(tempfile::tempdir().unwrap())
}

fn fixture(name: &str) -> PathBuf {
    repo(&format!("tests/data/golden/{name}.f16.gguf"))
}

fn dense() -> Parts {
    Parts::read(&fixture("a-dense"))
}

/// Logits after a prompt that is longer than the window.
fn logits(model: &Model) -> Vec<f32> {
    let options = SessionOptions::default().n_ctx(256).n_batch(32).n_threads(1);
    let mut session = Session::new(model, &options).unwrap();
    let prompt: Vec<u32> = (0..70).map(|i| 2 + i * 7 % 700).collect();
    session.prefill(&prompt).unwrap();
    let logits = session.logits().to_vec();
    assert!(!logits.is_empty() && logits.iter().all(|l| l.is_finite()));
    logits
}

/// Tensors that a model can do without, by the end of their names.
fn is_optional(name: &str) -> bool {
    ["layer_output_scale.weight", "attn_v.weight", "ffn_down_exps.scale"].iter().any(|end| name.ends_with(end))
        // The router's presence makes a layer a mixture.
        || name.ends_with("ffn_gate_inp.weight")
}

#[test]
fn tensors_missing_one_by_one() {
    let bench = bench();
    for name in ["a-dense", "b-keqv", "c-moe", "d-ple"] {
        let whole = Parts::read(&fixture(name));
        let names: Vec<String> = whole.tensors.iter().map(|t| t.name.clone()).collect();
        let mut missed = 0;
        for tensor in &names {
            let mut parts = whole.clone();
            parts.remove_tensor(tensor);
            if is_optional(tensor) {
                bench.load(&parts).unwrap();
                continue;
            }
            // Packed experts that are not there are looked for one by one.
            let key = tensor.replace("ffn_gate_up_exps", "ffn_gate_exps");
            let message = bench.model_error(tensor, &parts, &key);
            says(message, &["no such tensor", "expected a tensor of shape ["]);
            missed += 1;
        }
        assert!(missed > 30, "{name}: {missed}");
    }
}

#[test]
fn tensors_of_a_wrong_shape_one_by_one() {
    let bench = bench();
    for name in ["a-dense", "c-moe", "d-ple"] {
        let whole = Parts::read(&fixture(name));
        let names: Vec<String> = whole.tensors.iter().map(|t| t.name.clone()).collect();
        for tensor in &names {
            let mut parts = whole.clone();
            let ne = parts.tensor(tensor).ne.clone();
            let mut shapes = vec![[&ne[..], &[2]].concat()];
            let mut grown = ne.clone();
            *grown.last_mut().unwrap() += 1;
            shapes.push(grown);
            if ne.len() > 1 && ne[0] != ne[1] {
                let mut turned = ne.clone();
                turned.swap(0, 1);
                shapes.push(turned);
            }
            for shape in shapes {
                let part = parts.tensor(tensor);
                part.ne = shape;
                part.resize();
                let mut full = [1u64; 4];
                full[..part.ne.len()].copy_from_slice(&part.ne);
                let message = bench.model_error(tensor, &parts, tensor);
                says(message, &[&format!("found shape {full:?}"), "expected ["]);
            }
        }
    }
}

#[test]
fn types_that_no_tensor_may_have() {
    let bench = bench();
    let whole = dense();
    let retyped = |name: &str, type_id: u32| {
        let mut parts = whole.clone();
        parts.tensor(name).retype(type_id);
        parts
    };
    // A vector that is quantised (its 32 values are one block), or integers.
    for (type_id, found) in [(id::Q8_0, "q8_0"), (id::I32, "i32")] {
        let name = "blk.0.attn_k_norm.weight";
        let message = bench.model_error(name, &retyped(name, type_id), name);
        says(message, &[&format!("found a vector of type {found}"), "expected f32, f16 or bf16"]);
    }
    for (type_id, found) in [(id::I32, "i32"), (24, "i8"), (27, "i64"), (28, "f64"), (9, "q8_1")] {
        let name = "blk.2.ffn_up.weight";
        let message = bench.model_error(name, &retyped(name, type_id), name);
        says(message, &[&format!("found type {found}"), "expected one of f32, f16"]);
    }
    // Ids that are nobody's, that were given up, and the one that only caches of ours have.
    for type_id in [4, 5, 31, 33, 36, 38, 43, 44, 100, 223, id::TQ3_0, 225, 255, 1 << 20, u32::MAX] {
        let error = bench.error("unknown type", &retyped("blk.2.ffn_up.weight", type_id));
        assert!(matches!(error, Error::Gguf { .. }), "{error:?}");
        says(error, &["blk.2.ffn_up.weight", &type_id.to_string()]);
    }
    // 96 is no multiple of a block of 256.
    let mut parts = dense();
    parts.tensor("blk.2.ffn_up.weight").type_id = 12;
    let error = bench.error("q4_K", &parts);
    assert!(matches!(error, Error::Gguf { .. }), "{error:?}");
    says(error, &["blk.2.ffn_up.weight", "[96, 192, 1, 1]", "256"]);
}

/// Runs a micro model of each type of ggml's table, changed by `edit`, and returns those that were accepted.
fn for_every_type(edit: impl Fn(&mut Parts), refused: &str, check: impl Fn(&[f32])) -> Vec<u32> {
    let bench = bench();
    let mut computed = Vec::new();
    for &(type_id, _, _) in TYPES {
        let mut parts = Parts::micro(256, 256, type_id);
        edit(&mut parts);
        let model = match bench.load(&parts) {
            Ok(model) => model,
            Err(Error::Model { key, expected, .. }) => {
                assert!(key == refused && expected.contains("one of f32"), "{type_id}: {key}");
                continue;
            }
            Err(e) => panic!("{type_id}: {e:?}"),
        };
        let options = SessionOptions::default().n_ctx(64).n_batch(40).n_threads(1);
        let mut session = Session::new(&model, &options).unwrap();
        // One graph of many rows, one of one.
        for prompt in [&[4; 40][..], &[5]] {
            session.prefill(prompt).unwrap();
            assert_eq!(session.logits().len(), 8);
            check(session.logits());
        }
        computed.push(type_id);
    }
    computed
}

#[test]
fn every_type_is_refused_or_computes() {
    let computed = for_every_type(|_| {}, "token_embd.weight", |logits| assert_eq!(logits, [0.0; 8]));
    assert_eq!(computed.len(), 28, "{computed:?}");
}

#[test]
fn every_type_takes_activations_that_are_not_zero() {
    let embed = |parts: &mut Parts| {
        let part = parts.tensor("token_embd.weight");
        part.retype(id::F32);
        let values = (0..8 * 256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0);
        part.data = values.flat_map(f32::to_le_bytes).collect();
    };
    // The matrices are zeros, so the embedding arrives at the head as it is.
    let logits = |logits: &[f32]| assert!(logits.iter().all(|l| l.is_finite() && *l != 0.0), "{logits:?}");
    let computed = for_every_type(embed, "blk.0.attn_q.weight", logits);
    assert_eq!(computed.len(), 28, "{computed:?}");
}

#[test]
fn half_precision_vectors_are_widened() {
    let bench = bench();
    let want = logits(&Model::load(fixture("a-dense")).unwrap());
    for (type_id, name) in [(id::F16, "f16"), (id::BF16, "bf16")] {
        let mut parts = dense();
        let mut n = 0;
        let is_norm = |name: &str| name.contains("_norm") || name.ends_with("output_scale.weight");
        for part in parts.tensors.iter_mut().filter(|t| t.type_id == id::F32 && is_norm(&t.name)) {
            let halves = part.values().into_iter().flat_map(|x| {
                let bits = x.to_bits();
                // The fixture's values are exact in both.
                let half = if type_id == id::BF16 {
                    assert_eq!(bits & 0xffff, 0, "{}", part.name);
                    (bits >> 16) as u16
                } else {
                    to_f16(x)
                };
                half.to_le_bytes()
            });
            part.data = halves.collect();
            part.type_id = type_id;
            n += 1;
        }
        assert!(n > 30, "{n}");
        assert_eq!(logits(&bench.load(&parts).unwrap()), want, "{name}");
    }
}

/// A normal number that half precision holds exactly.
fn to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    assert!(bits & 0x1fff == 0 && (1..31).contains(&exponent), "{x}");
    ((bits >> 16) & 0x8000) as u16 | (exponent as u16) << 10 | ((bits >> 13) & 0x3ff) as u16
}

#[test]
fn numbers_that_are_none_give_an_error_and_not_a_token() {
    let bench = bench();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut parts = dense();
        parts.tensor("output_norm.weight").data = bad.to_le_bytes().repeat(96);
        let model = bench.load(&parts).unwrap();
        let mut session = Session::new(&model, &SessionOptions::default().n_ctx(64).n_threads(1)).unwrap();
        let mut run = session.generate(&[2, 7], &GenerateOptions::greedy().max_tokens(3)).unwrap();
        match run.next() {
            Some(Err(e @ Error::Option { .. })) => {
                says(e, &["no token can be chosen", "report the model file"])
            }
            // Infinity survives where softcapping bounds it.
            Some(Ok(_)) if bad.is_infinite() => continue,
            other => panic!("{other:?}"),
        }
        assert_eq!(run.stop_reason(), Some(&gemma4::StopReason::Failed));
        assert!(run.next().is_none());
    }
}

#[test]
fn alignment_and_copies_change_nothing() {
    let bench = bench();
    let path = fixture("a-dense");
    let want = logits(&Model::load(&path).unwrap());
    let copied = LoadOptions::default().use_mmap(false);
    let model = Model::load_with(&path, &copied, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(logits(&model), want, "copied");
    for alignment in [8u32, 64, 4096] {
        let mut parts = dense();
        parts.set("general.alignment", alignment);
        assert_eq!(logits(&bench.load(&parts).unwrap()), want, "aligned to {alignment}");
    }
    for alignment in [0u32, 3, 4, 1 << 21] {
        let mut parts = dense();
        parts.tensors.truncate(1);
        parts.set("general.alignment", alignment);
        let error = bench.error("alignment", &parts);
        assert!(matches!(error, Error::Gguf { .. }), "{error:?}");
        says(error, &["general.alignment", &alignment.to_string(), "power of two"]);
    }
}

#[test]
fn the_quantised_model_is_the_same_copied_and_mapped() {
    let path = repo("models/tiny-gemma4/tiny-gemma4-q8_0.gguf");
    let mapped = logits(&Model::load(&path).unwrap());
    let mut reports = Vec::new();
    let model = Model::load_with(&path, &LoadOptions::default().use_mmap(false), |p| {
        reports.push((p.done, p.total));
        ControlFlow::Continue(())
    });
    assert_eq!(logits(&model.unwrap()), mapped);
    assert!(reports.is_sorted() && reports.iter().all(|r| r.1 == reports[0].1), "{reports:?}");
    let last = reports.last().unwrap();
    assert_eq!(last.0, last.1, "loading ends at 100 %");
}

fn gguf_error(path: &Path, parts: &[&str]) {
    let error = Model::load(path).map(drop).unwrap_err();
    assert!(matches!(error, Error::Gguf { .. }), "{error:?}");
    says(error, parts);
}

#[test]
fn split_models() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dense();
    let want = logits(&Model::load(fixture("a-dense")).unwrap());
    // The first part may have no tensor at all.
    for counts in [&[30, 43][..], &[20, 33, 20], &[0, 72, 1]] {
        let paths = whole.write_split(dir.path(), counts);
        for use_mmap in [true, false] {
            let options = LoadOptions::default().use_mmap(use_mmap);
            let model = Model::load_with(&paths[0], &options, |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(logits(&model), want, "{counts:?}");
        }
    }
    let paths = whole.write_split(dir.path(), &[20, 33, 20]);
    gguf_error(&paths[1], &["this is part 2 of 3", "open", "model-00001-of-00003.gguf instead"]);
    gguf_error(&paths[2], &["this is part 3 of 3"]);

    let third = std::fs::read(&paths[2]).unwrap();
    std::fs::remove_file(&paths[2]).unwrap();
    let error = Model::load(&paths[0]).map(drop).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == paths[2]), "{error:?}");
    says(error, &["part of a split model", "model-00003-of-00003.gguf", "No such file"]);

    // A part that is cut, a part in the wrong place, a part of another model, a file that is no part.
    std::fs::write(&paths[2], &third[..third.len() / 2]).unwrap();
    gguf_error(&paths[0], &["model-00003-of-00003.gguf", "ends inside"]);
    std::fs::copy(&paths[1], &paths[2]).unwrap();
    gguf_error(&paths[0], &["expected split.no 2 and split.count 3", "found 1 and 3"]);
    std::fs::copy(fixture("a-dense"), &paths[2]).unwrap();
    gguf_error(&paths[0], &["expected split.no 2", "missing"]);
    std::fs::write(&paths[2], b"").unwrap();
    gguf_error(&paths[0], &["the file is empty"]);
    std::fs::write(&paths[2], &third).unwrap();
    let moved = dir.path().join("renamed.gguf");
    std::fs::copy(&paths[0], &moved).unwrap();
    gguf_error(&moved, &["part 1 of 3", "-00001-of-00003.gguf"]);

    // Parts that do not fit together.
    let mut odd = whole.clone();
    odd.tensors.rotate_left(1);
    odd.write_split(dir.path(), &[20, 33, 20]);
    std::fs::write(&paths[2], &third).unwrap();
    gguf_error(&paths[0], &["model-00003-of-00003.gguf", "in an earlier part as well"]);
    whole.write_split(dir.path(), &[20, 32, 21]);
    std::fs::write(&paths[2], &third).unwrap();
    let error = Model::load(&paths[0]).map(drop).unwrap_err();
    assert!(matches!(&error, Error::Model { key, .. } if key == "split.tensors.count"), "{error:?}");
    says(error, &["found 72 tensors in 3 files", "expected 73 tensors"]);
}
