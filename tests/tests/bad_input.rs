//! Files that are no model, damaged files, and metadata that cannot be: each is an `Error` that says what was
//! found and what was expected, never a panic and never an abort of ggml's.

use gemma4::gguf::{Array, Strings, Value};
use gemma4::{Error, GenerateOptions, Model, Session, SessionOptions, Tokenizer};
use gemma4_tests::bad::{Bench, Parts, says};
use gemma4_tests::repo;
use std::fs::{self, OpenOptions};
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

fn error(path: &Path) -> Error {
    let error = Model::load(path).map(drop).unwrap_err();
    // A tokenizer alone comes from the same file, and from the same checks.
    let again = Tokenizer::from_gguf(path).map(drop).unwrap_err();
    assert_eq!(error.to_string(), again.to_string());
    says(&error, &[path.to_str().unwrap()]);
    error
}

#[test]
fn what_is_no_file_or_no_gguf_file() {
    let bench = bench();
    let missing = error(&bench.path("missing.gguf"));
    assert!(matches!(missing, Error::Io { action: "open", .. }), "{missing:?}");
    says(&missing, &["cannot open", "No such file"]);

    let gguf = |path: &Path, parts: &[&str]| {
        let error = error(path);
        assert!(matches!(error, Error::Gguf { .. }), "{error:?}");
        says(&error, &["not a usable GGUF file"]);
        says(&error, parts);
    };
    gguf(bench.path("").as_path(), &["it is a directory", "give the path of a .gguf file"]);
    #[cfg(unix)]
    gguf(Path::new("/dev/null"), &["not a regular file"]);
    for (name, bytes, parts) in [
        ("empty", &b""[..], &["the file is empty"][..]),
        ("short", b"GG", &["ends after 2 bytes"]),
        ("text", b"Once upon a time there was a model.\n", &["not GGUF", "\"Once\"", "expected", "\"GGUF\""]),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\n", &["git lfs pull"]),
        ("web page", b"<!DOCTYPE html><html>", &["web page"]),
        ("zip", b"PK\x03\x04 and so on", &["zip archive"]),
        ("version 1", b"GGUF\x01\0\0\0\0\0\0\0\0\0\0\0", &["version 1"]),
        ("version 9", b"GGUF\x09\0\0\0\0\0\0\0\0\0\0\0", &["version 9 is unknown"]),
        ("big-endian", b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\0", &["big-endian"]),
        (
            "counts",
            b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x01\0\0\0\0\0\0\0",
            &["number of tensors"],
        ),
    ] {
        let path = bench.path(name);
        fs::write(&path, bytes).unwrap();
        gguf(&path, parts);
    }
    // A well-formed file without anything in it.
    let path = bench.path("nothing");
    fs::write(&path, b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    let nothing = Model::load(&path).map(drop).unwrap_err();
    assert!(matches!(&nothing, Error::Model { key, .. } if key == "general.architecture"), "{nothing:?}");
}

/// Cuts a copy of `file` to each of `lengths`, which must fall.
fn cut(bench: &Bench<tempfile::TempDir>, file: &Path, lengths: impl IntoIterator<Item = u64>) {
    let path = bench.path("cut.gguf");
    fs::copy(file, &path).unwrap();
    let handle = OpenOptions::new().write(true).open(&path).unwrap();
    for length in lengths {
        assert!(length < handle.metadata().unwrap().len());
        handle.set_len(length).unwrap();
        let error = error(&path);
        assert!(matches!(error, Error::Gguf { .. }), "{length}: {error:?}");
        let message = error.to_string();
        assert!(message.contains("ends") || message.contains("empty"), "{length}: {message}");
        if length > 4 {
            says(message, &["is the download complete?"]);
        }
    }
}

#[test]
fn a_file_cut_anywhere() {
    let bench = bench();
    let path = fixture("a-dense");
    let file = gemma4::gguf::GgufFile::open(&path, &gemma4_tests::bad::layout).unwrap();
    // The last byte of the file, the middle of each tensor, the first byte of each, and the header.
    let mut lengths = vec![file.tensors.last().map_or(0, |t| t.offset + t.nbytes - 1)];
    lengths.extend(file.tensors.iter().flat_map(|t| [t.offset + t.nbytes / 2, t.offset]));
    lengths.extend((0..file.data_offset).step_by(1024));
    lengths.extend((0..file.data_offset).step_by(257));
    lengths.extend(0..200);
    lengths.sort_unstable_by_key(|&n| std::cmp::Reverse(n));
    lengths.dedup();
    cut(&bench, &path, lengths);

    let path = repo("models/tiny-gemma4/tiny-gemma4-q8_0.gguf");
    let file = gemma4::gguf::GgufFile::open(&path, &gemma4_tests::bad::layout).unwrap();
    let data = (file.data_offset..file.file_len - 1).step_by(2 << 20);
    let lengths: Vec<u64> = (0..file.data_offset).step_by(1024).chain(data).collect();
    cut(&bench, &path, lengths.into_iter().rev());
}

#[test]
fn other_architectures() {
    let bench = bench();
    let mut parts = dense();
    for (arch, hint) in [
        ("llama", "other architectures are not supported"),
        ("gemma3", "other architectures are not supported"),
        ("gemma4-assistant", "drafter"),
        ("dflash", "drafter"),
        ("", "other architectures are not supported"),
    ] {
        parts.set("general.architecture", arch);
        let message = bench.model_error(arch, &parts, "general.architecture");
        says(message, &[&format!("found \"{arch}\""), "expected \"gemma4\"", hint]);
    }
    parts.set("general.architecture", 4u32);
    says(bench.model_error("u32", &parts, "general.architecture"), &["u32 4", "a string"]);
    parts.remove("general.architecture");
    says(bench.model_error("none", &parts, "general.architecture"), &["no such key"]);

    for file in
        ["models/tiny-gemma4/tiny-gemma4-mtp-q8_0.gguf", "models/tiny-gemma4/tiny-gemma4-dflash-q8_0.gguf"]
    {
        let error = Model::load(repo(file)).map(drop).unwrap_err();
        assert!(matches!(error, Error::Model { .. }), "{error:?}");
        says(error, &["general.architecture", "drafter"]);
    }
}

/// Keys without which there is no model, by their name after `gemma4.`.
const REQUIRED: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "embedding_length_per_layer_input",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.key_length_swa",
    "attention.value_length",
    "attention.value_length_swa",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
];

#[test]
fn required_keys_that_are_missing_or_of_another_type() {
    let bench = bench();
    let whole = dense();
    for key in REQUIRED {
        let key = format!("gemma4.{key}");
        let mut parts = whole.clone();
        parts.remove(&key);
        let message = bench.model_error(&key, &parts, &key);
        says(&message, &["the key is missing", "expected a"]);
        parts.set(&key, "seven");
        let message = bench.model_error(&key, &parts, &key);
        says(&message, &["found string \"seven\"", "expected a"]);
        parts.set(&key, Value::Array(Array::Strings(["seven"].iter().collect())));
        says(bench.model_error(&key, &parts, &key), &["found array of 1 string"]);
    }
    // Optional ones may be absent, but not nonsense.
    for key in ["final_logit_softcapping", "rope.freq_base", "rope.freq_base_swa"] {
        let key = format!("gemma4.{key}");
        let mut parts = whole.clone();
        parts.set(&key, 7u32);
        says(bench.model_error(&key, &parts, &key), &["found u32 7", "a floating-point number"]);
        parts.remove(&key);
        bench.load(&parts).unwrap();
    }
    for key in ["attention.shared_kv_layers", "rope.dimension_count", "rope.dimension_count_swa"] {
        let key = format!("gemma4.{key}");
        let mut parts = whole.clone();
        parts.set(&key, 1.5f32);
        says(bench.model_error(&key, &parts, &key), &["found f32 1.5", "an integer"]);
        parts.remove(&key);
        bench.load(&parts).unwrap();
    }
}

#[test]
fn values_that_cannot_be() {
    let bench = bench();
    let whole = dense();
    let case = |key: &str, value: Value, parts: &[&str]| {
        let key = format!("gemma4.{key}");
        let mut broken = whole.clone();
        broken.set(&key, value.clone());
        says(bench.model_error(&format!("{key} = {value:?}"), &broken, &key), parts);
    };
    for key in REQUIRED.iter().filter(|k| !k.contains("pattern") && !k.contains("epsilon")) {
        if *key != "embedding_length_per_layer_input" {
            case(key, 0u32.into(), &["found 0", "expected 1 to"]);
        }
        case(key, (-1i32).into(), &["found i32 -1", "integer"]);
        case(key, i64::MIN.into(), &["integer"]);
        case(key, (1u64 << 32).into(), &["u64 4294967296", "2^32 - 1"]);
        case(key, u64::MAX.into(), &["2^32 - 1"]);
        case(key, u32::MAX.into(), &["4294967295"]);
        case(key, f32::NAN.into(), &["f32 NaN"]);
        case(key, true.into(), &["bool true"]);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -1.0] {
        let found = format!("found {bad}");
        case("attention.layer_norm_rms_epsilon", bad.into(), &[&found, "a positive number"]);
        case("rope.freq_base", bad.into(), &[&found, "a positive number"]);
        case("rope.freq_base_swa", bad.into(), &[&found, "a positive number"]);
        if bad != 0.0 {
            case("final_logit_softcapping", bad.into(), &["a positive number"]);
        }
    }
    // Too large for an f32.
    case("attention.layer_norm_rms_epsilon", 1e300f64.into(), &["inf", "a positive number"]);

    case("block_count", 1025u32.into(), &["1025", "at most 1024"]);
    for n in [0usize, 4, 6, 1 << 16] {
        let found = format!("found {n} entries");
        case("attention.sliding_window_pattern", vec![true; n].into(), &[&found, "5, one a layer"]);
        let found = format!("found array of {n} u32");
        case("attention.head_count", vec![4u32; n].into(), &[&found, "array of 5"]);
        case("attention.head_count_kv", vec![2u32; n].into(), &[&found, "array of 5"]);
        case("feed_forward_length", vec![192u32; n].into(), &[&found, "array of 5"]);
    }
    case("attention.sliding_window_pattern", true.into(), &["bool true", "an array"]);
    case("attention.head_count_kv", 3u32.into(), &["3 at layer 0", "divisor of the 4"]);
    case("attention.head_count_kv", 8u32.into(), &["8 at layer 0", "divisor of the 4"]);
    case("attention.head_count_kv", vec![2u32, 2, 2, 2, 3].into(), &["3 at layer 4"]);
    case("attention.head_count_kv", vec![2u32, 0, 2, 2, 2].into(), &["0 at layer 1"]);
    case("attention.head_count", vec![4i32, 4, -4, 4, 4].into(), &["array of 5 i32"]);
    case(
        "attention.shared_kv_layers",
        5u32.into(),
        &["found 5", "layer 0 has nothing to share", "own-KV layer"],
    );
    // Without the first full layer, layer 2 has none to share.
    case("attention.shared_kv_layers", 3u32.into(), &["found 3", "layer 2 has nothing to share"]);
    case("attention.shared_kv_layers", 6u32.into(), &["found 6", "at most 5"]);
    case("rope.dimension_count", 0u32.into(), &["found 0", "even number"]);
    case("rope.dimension_count", 33u32.into(), &["found 33", "even number"]);
    case("rope.dimension_count_swa", 34u32.into(), &["found 34", "at most 32"]);

    // Keys that contradict each other.
    let mut odd = whole.clone();
    for kind in ["key", "value"] {
        odd.set(&format!("gemma4.attention.{kind}_length"), 63u32);
    }
    says(bench.model_error("odd", &odd, "gemma4.attention.value_length"), &["found 63", "even number"]);
    case("attention.value_length", 32u32.into(), &["found 32", "expected 64", "key_length"]);
}

#[test]
fn keys_of_mixtures_and_per_layer_inputs() {
    let bench = bench();
    let moe = Parts::read(&fixture("c-moe"));
    let broken = |whole: &Parts, key: &str, value: Option<Value>| {
        let mut parts = whole.clone();
        match value {
            Some(value) => parts.set(key, value),
            None => parts.remove(key),
        }
        parts
    };
    let n_expert = match moe.get("gemma4.expert_count") {
        Some(Value::U32(n)) => *n,
        other => panic!("{other:?}"),
    };
    for (key, value, found) in [
        ("expert_used_count", None, "missing"),
        ("expert_used_count", Some(0u32.into()), "found 0"),
        ("expert_used_count", Some((n_expert + 1).into()), "at most"),
        ("expert_feed_forward_length", None, "missing"),
        ("expert_feed_forward_length", Some(0u32.into()), "0 at layer 0"),
        // The routers are there: without the count they would be left out in silence.
        ("expert_count", None, "router"),
        ("expert_count", Some(0u32.into()), "router"),
        ("expert_count", Some(5000u32.into()), "at most 4096"),
    ] {
        let key = format!("gemma4.{key}");
        says(bench.model_error(&key, &broken(&moe, &key, value), &key), &[found]);
    }
    let error =
        bench.error("more experts", &broken(&moe, "gemma4.expert_count", Some((n_expert + 1).into())));
    says(error, &["blk.0.ffn_gate_inp.weight", "found shape"]);

    let ple = Parts::read(&fixture("d-ple"));
    let key = "gemma4.embedding_length_per_layer_input";
    says(bench.model_error("no width", &broken(&ple, key, None), key), &["missing"]);
    says(bench.model_error("width 0", &broken(&ple, key, Some(0u32.into())), key), &["per_layer_token_embd"]);
    says(
        bench.error("wide", &broken(&ple, key, Some(7u32.into()))),
        &["per_layer_token_embd.weight", "shape"],
    );
}

#[test]
fn tokenizers_that_contradict_themselves() {
    let bench = bench();
    let whole = dense();
    let case = |key: &str, value: Option<Value>, parts: &[&str]| {
        let key = format!("tokenizer.ggml.{key}");
        let mut broken = whole.clone();
        match value {
            Some(value) => broken.set(&key, value),
            None => broken.remove(&key),
        }
        let error = bench.error(&key, &broken);
        assert!(matches!(error, Error::Tokenizer(_) | Error::Model { .. }), "{key}: {error:?}");
        says(&error, &[&key, "model.gguf"]);
        says(&error, parts);
    };
    let strings = |texts: &[&str]| Some(Value::Array(Array::Strings(texts.iter().collect())));
    for key in ["model", "tokens", "token_type", "merges"] {
        case(key, None, &["missing"]);
        case(key, Some(7u32.into()), &["found u32 7", "expected a"]);
    }
    case("model", Some("llama".into()), &["\"llama\"", "\"gemma4\""]);
    case("tokens", Some(vec![1u32].into()), &["array of 1 u32", "strings"]);
    case("tokens", strings(&[]), &["0 entries"]);
    case("tokens", strings(&["<unk>", ""]), &["tokens[1] has 0 bytes"]);
    case("token_type", Some(vec![1i32; 767].into()), &["767 entries for 768 tokens"]);
    case("token_type", Some(vec![1i32; 769].into()), &["769 entries for 768 tokens"]);
    case("token_type", Some(vec![9i32; 768].into()), &["token_type[0] is 9"]);
    case("token_type", Some(vec![1f32; 768].into()), &["array of 768 f32"]);
    case("merges", strings(&["ab"]), &["merges[0]", "\"ab\"", "two pieces"]);
    case("merges", strings(&["", ""]), &["merges[0]", "two pieces"]);
    case("merges", strings(&["a b", "zzz qqq"]), &["merges[", "not in the vocabulary"]);
    for key in ["bos", "eos", "padding", "unknown", "mask"] {
        case(&format!("{key}_token_id"), Some(768u32.into()), &["found 768", "one of the 768 tokens"]);
        case(&format!("{key}_token_id"), Some((-1i32).into()), &["found i32 -1"]);
    }

    // A vocabulary that is longer or shorter than the embedding.
    for n in [767usize, 769] {
        let mut parts = whole.clone();
        let Some(Value::Array(Array::Strings(tokens))) = parts.get("tokenizer.ggml.tokens") else { panic!() };
        let mut texts: Vec<String> = tokens.iter().map(str::to_owned).collect();
        texts.resize(n, "<new>".to_owned());
        let dropped: Vec<String> = tokens.iter().skip(n).map(str::to_owned).collect();
        parts.set("tokenizer.ggml.tokens", texts.iter().collect::<Strings>());
        parts.set("tokenizer.ggml.token_type", vec![1i32; n]);
        let Some(Value::Array(Array::Strings(merges))) = parts.get("tokenizer.ggml.merges") else { panic!() };
        let keep = merges.iter().filter(|m| !dropped.contains(&m.replacen(' ', "", 1)));
        let merges: Strings = keep.collect();
        parts.set("tokenizer.ggml.merges", merges);
        let message = bench.model_error("vocabulary", &parts, "token_embd.weight");
        says(message, &["found shape [96, 768, 1, 1]", &format!("[96, {n}, 1, 1]")]);
    }
}

/// Loads, and if that works computes a little: whatever a file says, this ends with `Ok` or `Err`.
fn survives(bench: &Bench<tempfile::TempDir>, bytes: &[u8]) -> bool {
    let Ok(model) = bench.load_bytes(bytes) else { return false };
    let options = SessionOptions::default().n_ctx(64).n_batch(16).n_threads(1);
    let Ok(mut session) = Session::new(&model, &options) else { return false };
    let n_vocab = model.hparams().n_vocab;
    let prompt: Vec<u32> = [2, 100, 200, 5].into_iter().filter(|&t| t < n_vocab).collect();
    let Ok(mut run) = session.generate(&prompt, &GenerateOptions::greedy().max_tokens(2)) else {
        return false;
    };
    run.all(|piece| piece.is_ok())
}

#[test]
fn every_number_of_the_metadata_may_be_anything() {
    let bench = bench();
    let values: [Value; 11] = [
        0u32.into(),
        1u32.into(),
        2u32.into(),
        7u32.into(),
        (1u32 << 16).into(),
        (1u32 << 30).into(),
        u32::MAX.into(),
        (-1i32).into(),
        1e-45f32.into(),
        1e30f32.into(),
        Value::F32(f32::NAN),
    ];
    let (mut accepted, mut refused) = (0, 0);
    for fixture_name in ["a-dense", "c-moe", "d-ple"] {
        let whole = Parts::read(&fixture(fixture_name));
        let keys: Vec<String> = whole.metadata.iter().map(|(k, _)| k.clone()).collect();
        let of_network =
            |k: &&String| k.starts_with("gemma4.") || k.ends_with("_id") || k.ends_with("alignment");
        for key in keys.iter().filter(of_network) {
            for value in &values {
                let mut parts = whole.clone();
                parts.set(key, value.clone());
                let ran = survives(&bench, &parts.bytes());
                *(if ran { &mut accepted } else { &mut refused }) += 1;
            }
        }
    }
    assert!(accepted > 20 && refused > 200, "{accepted} ran, {refused} were refused");
}

#[test]
fn flipped_bytes_never_end_the_process() {
    let bench = bench();
    let whole = Parts::micro(32, 16, 1).bytes();
    assert!(survives(&bench, &whole));
    let header = whole.windows(17).rposition(|w| w == b"blk.1.ffn_down.we").unwrap() + 60;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |n: usize| {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    };
    let mut ran = 0;
    for round in 0..1500 {
        let mut bytes = whole.clone();
        for _ in 0..1 + round % 3 {
            let at = random(header);
            bytes[at] = match random(3) {
                0 => random(256) as u8,
                1 => bytes[at] ^ (1 << random(8)),
                _ => bytes[at].wrapping_add(1),
            };
        }
        ran += usize::from(survives(&bench, &bytes));
    }
    assert!(ran < 1500, "no flip was noticed");
}
