//! Drafter files: every layout gives the same drafts, and files that do not fit are errors that say why.

use gemma4::gguf::{Array, Value};
use gemma4::{DType, DraftStep, Drafter, DrafterOptions, Error, Model, Session, SessionOptions};
use gemma4_tests::bad::{Part, Parts, id, says};
use gemma4_tests::golden_draft::{check_draft, draft_fixtures};
use gemma4_tests::{repo, tiny};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::path::Path;

fn mtp() -> Parts {
    Parts::read(&tiny::path("tiny-gemma4-mtp-q8_0.gguf"))
}

fn dflash() -> Parts {
    Parts::read(&tiny::path("tiny-gemma4-dflash-q8_0.gguf"))
}

/// Loads parts as a file of their own.
fn load(parts: &Parts, model: &Model) -> gemma4::Result<Drafter> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("drafter.gguf");
    std::fs::write(&path, parts.bytes()).unwrap();
    let options = DrafterOptions::default().dflash_mask(tiny::MASK).use_mmap(false);
    Drafter::load_with(&path, model, &options)
}

/// The message of an error about `key`.
#[track_caller]
fn refused(result: gemma4::Result<Drafter>, key: &str) -> String {
    match result {
        Err(Error::Model { key: found, found: f, expected, path }) => {
            assert_eq!(found, key);
            let message = Error::Model { key: found, found: f, expected, path }.to_string();
            println!("{message}");
            message
        }
        Err(other) => panic!("{key}: {other:?}"),
        Ok(_) => panic!("{key}: loaded"),
    }
}

/// What a drafter drafts behind a piece of code.
fn drafts(model: &Model, drafter: &Drafter) -> Vec<DraftStep> {
    let text = tiny::tokens(model, "val-code.txt");
    let options = SessionOptions::default().n_ctx(512).n_threads(1).drafter(drafter.clone());
    let mut session = Session::new(model, &options).unwrap();
    let mut all = Vec::new();
    for (i, chunk) in text[..240].chunks(40).enumerate() {
        session.prefill(chunk).unwrap();
        all.extend(session.trace_draft(text[i * 40 + 40], 6).unwrap());
    }
    assert_eq!(all.len(), 36);
    all
}

/// Renames keys with the prefix `from`, and the architecture.
fn rename_keys(parts: &mut Parts, from: &str, to: &str, names: &[(&str, &str)]) {
    for (key, _) in &mut parts.metadata {
        if let Some(rest) = key.strip_prefix(&format!("{from}.")) {
            let rest = names.iter().find(|(old, _)| *old == rest).map_or(rest, |(_, new)| new);
            *key = format!("{to}.{rest}");
        }
    }
    parts.set("general.architecture", to);
}

fn rename_tensors(parts: &mut Parts, names: &[(&str, &str)]) {
    for tensor in &mut parts.tensors {
        if let Some((_, new)) = names.iter().find(|(old, _)| *old == tensor.name) {
            tensor.name = (*new).to_owned();
        }
    }
}

fn to_old_assistant(parts: &mut Parts) {
    let keys = [
        ("embedding_length_out", "n_embd_backbone"),
        ("masked_embedding.centroid_count", "n_centroids"),
        ("masked_embedding.top_k", "centroid_top_k"),
    ];
    rename_keys(parts, "gemma4-assistant", "gemma4_assistant", &keys);
    parts.remove("gemma4_assistant.nextn_predict_layers");
    parts.set("gemma4_assistant.requires_target_arch", "gemma4");
    let tensors = [
        ("nextn.pre_projection.weight", "mtp.pre_projection.weight"),
        ("nextn.post_projection.weight", "mtp.post_projection.weight"),
        ("masked_embd_centroids.weight", "mtp.centroids.weight"),
        ("masked_embd_ordering", "mtp.token_ordering.weight"),
    ];
    rename_tensors(parts, &tensors);
}

#[test]
fn older_assistants_load() {
    let model = tiny::model();
    let want = drafts(&model, &load(&mtp(), &model).unwrap());
    let mut old = mtp();
    to_old_assistant(&mut old);
    assert_eq!(drafts(&model, &load(&old, &model).unwrap()), want);

    // With the ordered head, against the recorded chains.
    let fixtures = draft_fixtures(&repo("tests/data/golden")).unwrap();
    let mut fixture = fixtures.into_iter().find(|f| f.has_centroids).unwrap();
    let mut old = Parts::read(&fixture.drafter);
    to_old_assistant(&mut old);
    old.set("gemma4_assistant.use_ordered_embeddings", true);
    let dir = tempfile::tempdir().unwrap();
    fixture.drafter = dir.path().join("old.gguf");
    std::fs::write(&fixture.drafter, old.bytes()).unwrap();
    let report = check_draft(&fixture, DType::F32, true).unwrap();
    assert!(report.passes(), "{report:#?}");
    old.set("gemma4_assistant.use_ordered_embeddings", false);
    std::fs::remove_file(&fixture.drafter).unwrap();
    std::fs::write(&fixture.drafter, old.bytes()).unwrap();
    let report = check_draft(&fixture, DType::F32, false).unwrap();
    assert!(report.passes(), "{report:#?}");
}

#[test]
fn lucebox_files_load() {
    let model = tiny::model();
    let want = drafts(&model, &load(&dflash(), &model).unwrap());
    let mut parts = dflash();
    let keys = [("target_layers", "dflash.target_layer_ids"), ("block_size", "dflash.block_size")];
    rename_keys(&mut parts, "dflash", "gemma4-dflash-draft", &keys);
    let tensors =
        [("fc.weight", "dflash.fc.weight"), ("enc.output_norm.weight", "dflash.hidden_norm.weight")];
    rename_tensors(&mut parts, &tensors);
    // Layer ids there are those of the outputs; no tokenizer, no pattern, and the depth of the target.
    parts.set("gemma4-dflash-draft.dflash.target_layer_ids", vec![1i32, 3, 5, 7, 9, 10].ints());
    parts.metadata.retain(|(key, _)| !key.starts_with("tokenizer."));
    parts.remove("gemma4-dflash-draft.attention.sliding_window_pattern");
    parts.set("gemma4-dflash-draft.dflash.mask_token_id", 4u32);
    parts.set("gemma4-dflash-draft.dflash.n_target_layers", 12u32);
    parts.set("gemma4-dflash-draft.vocab_size", 4096u32);
    parts.set("gemma4-dflash-draft.tie_word_embeddings", true);
    parts.remove("gemma4-dflash-draft.embedding_scale");
    assert_eq!(drafts(&model, &load(&parts, &model).unwrap()), want);

    parts.set("gemma4-dflash-draft.vocab_size", 4000u32);
    says(refused(load(&parts, &model), "gemma4-dflash-draft.vocab_size"), &["4000", "4096"]);
}

trait Ints {
    fn ints(self) -> Value;
}

impl Ints for Vec<i32> {
    fn ints(self) -> Value {
        Value::Array(Array::I32(self))
    }
}

/// F32 numbers of a Q8_0 tensor.
fn widen(part: &mut Part) {
    if part.type_id != id::Q8_0 {
        return;
    }
    let block = |b: &[u8]| {
        let scale = half_to_f32(u16::from_le_bytes([b[0], b[1]]));
        b[2..].iter().map(move |&q| scale * f32::from(q as i8)).collect::<Vec<_>>()
    };
    let values: Vec<f32> = part.data.chunks_exact(34).flat_map(block).collect();
    part.data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    part.type_id = id::F32;
}

fn half_to_f32(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, (bits >> 10) & 31, f32::from(bits & 1023));
    let size = if exponent == 0 {
        fraction * 2f32.powi(-24)
    } else {
        (1.0 + fraction / 1024.0) * 2f32.powi(i32::from(exponent) - 15)
    };
    if sign == 1 { -size } else { size }
}

const CONFIG: &str = r#"{
  "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": 16, "head_dim": 128, "hidden_act": "silu",
  "dflash_config": { "mask_token_id": 4, "target_layer_ids": [1, 3, 5, 7, 9, 10] },
  "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 5,
  "num_key_value_heads": 2, "num_target_layers": 12, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
  "sliding_window": 256, "use_sliding_window": true, "vocab_size": 4096, "tie_word_embeddings": true,
  "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
}"#;

fn zlab_name(name: &str) -> String {
    let whole = [
        ("fc.weight", "fc.weight"),
        ("enc.output_norm.weight", "hidden_norm.weight"),
        ("output_norm.weight", "norm.weight"),
    ];
    if let Some((_, new)) = whole.iter().find(|(old, _)| *old == name) {
        return (*new).to_owned();
    }
    let (layer, part) = name.strip_prefix("blk.").unwrap().split_once('.').unwrap();
    let part = match part.strip_suffix(".weight").unwrap() {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("{other}"),
    };
    format!("layers.{layer}.{part}.weight")
}

/// Writes `parts`, all F32, as z-lab does, in two files.
fn write_zlab(parts: &Parts, dir: &Path) {
    std::fs::write(dir.join("config.json"), CONFIG).unwrap();
    for (i, tensors) in parts.tensors.chunks(parts.tensors.len() / 2 + 1).enumerate() {
        let views: HashMap<String, TensorView<'_>> = tensors
            .iter()
            .map(|t| {
                assert_eq!(t.type_id, id::F32);
                let shape = t.ne.iter().rev().map(|&n| n as usize).collect();
                (zlab_name(&t.name), TensorView::new(Dtype::F32, shape, &t.data).unwrap())
            })
            .collect();
        let path = dir.join(format!("model-{i}.safetensors"));
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

#[test]
fn safetensors_folders_load() {
    let model = tiny::model();
    let mut parts = dflash();
    parts.tensors.iter_mut().for_each(widen);
    let want = drafts(&model, &load(&parts, &model).unwrap());
    let dir = tempfile::tempdir().unwrap();
    write_zlab(&parts, dir.path());
    let options = DrafterOptions::default().dflash_mask(tiny::MASK);
    let drafter = Drafter::load_with(dir.path(), &model, &options).unwrap();
    assert_eq!((drafter.kind(), drafter.max_draft()), ("dflash", 15));
    assert_eq!(drafts(&model, &drafter), want);
    // Mapped or copied makes no difference.
    let drafter = Drafter::load_with(dir.path(), &model, &options.use_mmap(false)).unwrap();
    assert_eq!(drafts(&model, &drafter), want);

    let config = dir.path().join("config.json");
    let fails = |from: &str, to: &str, key: &str, words: &[&str]| {
        assert!(CONFIG.contains(from), "{from}");
        std::fs::write(&config, CONFIG.replace(from, to)).unwrap();
        says(refused(Drafter::load(dir.path(), &model), key), words);
    };
    fails("[1, 3, 5, 7, 9, 10]", "[1, 3, 5, 7, 9, 12]", "dflash.target_layers", &["13", "12 layers"]);
    fails("[1, 3, 5, 7, 9, 10]", "[1, 3, 5, 7, 9]", "fc.weight", &["1536", "1280"]);
    fails("[1, 3, 5, 7, 9, 10]", "[-1]", "target_layer_ids", &["list of layer numbers"]);
    fails("\"hidden_size\": 256", "\"hidden_size\": 512", "dflash.embedding_length", &["512", "256"]);
    fails("\"vocab_size\": 4096", "\"vocab_size\": 99", "dflash.vocab_size", &["99", "4096"]);
    fails("\"head_dim\": 128", "\"head_dim\": \"x\"", "head_dim", &["an integer"]);
    fails("\"silu\"", "\"relu\"", "dflash.hidden_activation", &["relu", "silu"]);
    fails("\"mask_token_id\": 4", "\"x\": 4", "tokenizer.ggml.mask_token_id", &["missing"]);
    fails("\"mask_token_id\": 4", "\"mask_token_id\": 4096", "tokenizer.ggml.mask_token_id", &["4096"]);
    fails("\"block_size\": 16", "\"block_size\": 1", "dflash.block_size", &["2 to"]);
    fails("{", "[", "config.json", &["configuration of a DFlash drafter"]);
    std::fs::write(&config, "[]").unwrap();
    says(refused(Drafter::load(dir.path(), &model), "config.json"), &["no object"]);
    std::fs::remove_file(&config).unwrap();
    assert!(matches!(Drafter::load(dir.path(), &model), Err(Error::Io { .. })));
}

#[test]
fn damaged_safetensors_are_errors() {
    let model = tiny::model();
    let dir = tempfile::tempdir().unwrap();
    let (config, weights) = (dir.path().join("config.json"), dir.path().join("model.safetensors"));
    std::fs::write(&config, CONFIG).unwrap();
    says(refused(Drafter::load(dir.path(), &model), "*.safetensors"), &["no such file"]);
    let headers: [&[u8]; 6] = [
        b"",
        b"1234567",
        &[0xff; 16],
        b"\x08\0\0\0\0\0\0\0notjson!",
        b"\x02\0\0\0\0\0\0\0{}trailing",
        // A tensor beyond the end of the file.
        b"\x3d\0\0\0\0\0\0\0{\"fc.weight\":{\"dtype\":\"F32\",\"shape\":[9],\"data_offsets\":[0,36]}}",
    ];
    for header in headers {
        std::fs::write(&weights, header).unwrap();
        refused(Drafter::load(dir.path(), &model), "header");
    }
    let write = |dtype: Dtype, shape: Vec<usize>, data: &[u8]| {
        let view = TensorView::new(dtype, shape, data).unwrap();
        std::fs::write(&weights, safetensors::serialize([("fc.weight", view)], None).unwrap()).unwrap();
    };
    write(Dtype::I64, vec![2], &[0; 16]);
    says(refused(Drafter::load(dir.path(), &model), "fc.weight"), &["I64", "F32, F16 or BF16"]);
    write(Dtype::F32, vec![1, 1, 1, 1, 2], &[0; 8]);
    says(refused(Drafter::load(dir.path(), &model), "fc.weight"), &["1 to 4 sizes"]);
    write(Dtype::F32, vec![0], &[]);
    says(refused(Drafter::load(dir.path(), &model), "fc.weight"), &["1 to 4 sizes"]);
    write(Dtype::F32, vec![2], &[0; 8]);
    says(refused(Drafter::load(dir.path(), &model), "blk.0.attn_norm.weight"), &["no such tensor"]);
}

#[test]
fn assistants_of_other_models_are_errors() {
    let model = tiny::model();
    let fails = |change: &dyn Fn(&mut Parts), key: &str, words: &[&str]| {
        let mut parts = mtp();
        change(&mut parts);
        says(refused(load(&parts, &model), key), words);
    };
    let set = |name: &str, value: u32| {
        let key = format!("gemma4-assistant.{name}");
        (key.clone(), move |parts: &mut Parts| parts.set(&key, value))
    };
    for (name, value, words) in [
        ("embedding_length_out", 512, ["512", "256"]),
        ("attention.key_length_swa", 128, ["128", "256"]),
        ("block_count", 0, ["0", "1 to"]),
        ("attention.head_count_kv", 2, ["2 at layer 0", "1, "]),
    ] {
        let (key, change) = set(name, value);
        let both = |parts: &mut Parts| {
            change(parts);
            if name == "attention.key_length_swa" {
                parts.set("gemma4-assistant.attention.value_length_swa", value);
            }
        };
        fails(&both, &key, &words);
    }
    let smaller = |p: &mut Parts| {
        p.tensor("token_embd.weight").ne = vec![128, 4000];
        p.tensor("token_embd.weight").resize();
    };
    fails(&smaller, "token_embd.weight", &["4000", "4096"]);
    fails(&|p| p.remove_tensor("rope_freqs.weight"), "rope_freqs.weight", &["no such tensor"]);
    fails(
        &|p| p.set("general.architecture", "llama"),
        "general.architecture",
        &["llama", "gemma4-assistant", "dflash"],
    );
    let names: Vec<String> = mtp().tensors.iter().map(|t| t.name.clone()).collect();
    let needed = names.iter().filter(|name| !name.ends_with("layer_output_scale.weight"));
    for name in needed.filter(|name| !name.starts_with("blk.1.") && !name.starts_with("blk.2.")) {
        fails(&|p| p.remove_tensor(name), name, &["no such tensor"]);
    }
    // A target is no drafter.
    let target = Drafter::load(tiny::path("tiny-gemma4-q8_0.gguf"), &model);
    says(refused(target, "general.architecture"), &["gemma4", "drafters"]);

    // Two KV heads there: three query heads cannot share them.
    let golden = |name: &str| repo(&format!("tests/data/golden/{name}.f16.gguf"));
    let other = Model::load(golden("b-keqv")).unwrap();
    let mut parts = Parts::read(&golden("e-draft-b"));
    parts.set("gemma4-assistant.attention.head_count", 3u32);
    let message = refused(load(&parts, &other), "gemma4-assistant.attention.head_count");
    says(message, &["3 at layer 0", "a multiple of 2"]);

    // Loaded for one model, used with another.
    let drafter = load(&mtp(), &model).unwrap();
    let error = Session::new(&other, &SessionOptions::default().n_ctx(64).drafter(drafter)).unwrap_err();
    says(error, &["256", "hidden size"]);
}

#[test]
fn damaged_ordered_heads_are_errors() {
    let golden = |name: &str| repo(&format!("tests/data/golden/{name}.f16.gguf"));
    let model = Model::load(golden("d-ple")).unwrap();
    let whole = Parts::read(&golden("e-draft-d.ordered"));
    let fails = |change: &dyn Fn(&mut Parts), key: &str, words: &[&str]| {
        let mut parts = whole.clone();
        change(&mut parts);
        says(refused(load(&parts, &model), key), words);
    };
    let ordering = "masked_embd_ordering";
    // The ids become row numbers: one that is too large would end the process.
    for bad in [512i32, -1, i32::MAX, i32::MIN] {
        let change = move |p: &mut Parts| p.tensor(ordering).data[40..44].copy_from_slice(&bad.to_le_bytes());
        fails(&change, ordering, &[&format!("{bad} at 10"), "0 to 511"]);
    }
    fails(&|p| p.tensor(ordering).type_id = id::F32, ordering, &["f32", "i32"]);
    fails(&|p| p.remove_tensor(ordering), ordering, &["missing"]);
    let key = "gemma4-assistant.masked_embedding.top_k";
    fails(&|p| p.set(key, 33u32), key, &["33", "32"]);
    fails(&|p| p.set(key, 0u32), key, &["0", "1 to 32"]);
    let key = "gemma4-assistant.masked_embedding.centroid_count";
    fails(&|p| p.set(key, 31u32), key, &["31", "32"]);
    let odd = |p: &mut Parts| {
        p.tensor("masked_embd_centroids.weight").ne = vec![32, 31];
        p.tensor("masked_embd_centroids.weight").resize();
    };
    fails(&odd, "masked_embd_centroids.weight", &["31 centroids", "512"]);
}

#[test]
fn block_drafters_that_do_not_fit_are_errors() {
    let model = tiny::model();
    let fails = |change: &dyn Fn(&mut Parts), key: &str, words: &[&str]| {
        let mut parts = dflash();
        change(&mut parts);
        says(refused(load(&parts, &model), key), words);
    };
    let taps = "dflash.target_layers";
    fails(&|p| p.set(taps, vec![2, 4, 6, 8, 10, 13].ints()), taps, &["13", "12 layers"]);
    fails(&|p| p.set(taps, vec![0, 4, 6, 8, 10, 11].ints()), taps, &["0", "1 to 12"]);
    fails(&|p| p.set(taps, Vec::new().ints()), taps, &["empty"]);
    fails(&|p| p.set(taps, vec![2, 4].ints()), "fc.weight", &["1536", "512"]);
    fails(&|p| p.remove(taps), taps, &["missing"]);
    for (name, value, words) in [
        ("embedding_length", 128, ["128", "256"]),
        ("block_size", 1, ["1", "2 to 256"]),
        ("block_size", 4000, ["4000", "256"]),
        ("attention.head_count_kv", 3, ["3 at layer 0", "4 query heads"]),
        ("attention.value_length", 64, ["64", "128"]),
    ] {
        let key = format!("dflash.{name}");
        fails(&|p| p.set(&key, value as u32), &key, &words);
    }
    fails(&|p| p.set("dflash.conv_kernel_size", 4u32), "dflash.conv_kernel_size", &["DFlash2"]);
    fails(&|p| p.set("dflash.sample_from_anchor", true), "dflash.sample_from_anchor", &["DSpark"]);
    for (name, what) in [("markov_w1.weight", "DSpark"), ("selector_hidden.weight", "DFlash2")] {
        fails(&|p| p.tensors.push(Part::zeros(name, id::F32, &[4])), name, &[what]);
    }
    fails(&|p| p.set("dflash.embedding_scale", f32::NAN), "dflash.embedding_scale", &["NaN"]);
    fails(&|p| p.remove("tokenizer.ggml.mask_token_id"), "tokenizer.ggml.mask_token_id", &["missing"]);
    let names: Vec<String> = dflash().tensors.iter().map(|t| t.name.clone()).collect();
    let first = names.iter().filter(|name| !name.starts_with("blk.") || name.starts_with("blk.0."));
    for name in first.filter(|name| !name.ends_with("attn_v.weight")) {
        fails(&|p| p.remove_tensor(name), name, &["no such tensor"]);
    }
}

/// Weights that are no numbers give bad drafts, and nothing worse.
#[test]
fn infinite_weights_do_no_harm() {
    let model = tiny::model();
    for (parts, tensor) in [(mtp(), "nextn.pre_projection.weight"), (dflash(), "fc.weight")] {
        let mut parts = parts;
        parts.tensors.iter_mut().for_each(widen);
        for value in [f32::NAN, f32::INFINITY] {
            let data = &mut parts.tensor(tensor).data;
            data.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&value.to_le_bytes()));
            let drafter = load(&parts, &model).unwrap();
            assert!(drafts(&model, &drafter).iter().all(|step| step.token < 4096));
        }
    }
}
