//! The tokenizer at Gemma 4's real size, beside the `tokenizers` library reading the same vocabulary as JSON.
//!
//! `cargo bench -p gemma4-tests --bench tokenizer`

use gemma4::gguf::{GgufFile, GgufWriter, type_layout};
use gemma4::{EncodeOptions, Tokenizer};
use gemma4_tests::{tiny, vocabulary};
use serde_json::{Map, Value, json};
use std::hint::black_box;
use std::time::Instant;

fn best(n: usize, mut f: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..n {
        let started = Instant::now();
        f();
        best = best.min(started.elapsed().as_secs_f64());
    }
    best
}

/// The same vocabulary in the library's own format.
fn as_json(file: &GgufFile) -> Value {
    let strings = |key: &str| file.metadata.strings(key).unwrap().unwrap().clone();
    let vocab: Map<String, Value> = strings("tokenizer.ggml.tokens")
        .iter()
        .enumerate()
        .map(|(id, t)| (t.to_owned(), json!(id)))
        .collect();
    let merges: Vec<Value> = strings("tokenizer.ggml.merges")
        .iter()
        .filter_map(|m| m.split_once(' ').map(|(a, b)| json!([a, b])))
        .collect();
    json!({
        "version": "1.0",
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
        "pre_tokenizer": { "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false },
        "decoder": null,
        "post_processor": null,
        "added_tokens": [],
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
}

fn main() {
    let path = std::env::temp_dir().join(format!("gemma4-vocabulary-{}.gguf", std::process::id()));
    let mut writer = GgufWriter::new();
    vocabulary::set(&mut writer);
    writer.write(&path).unwrap();
    let load = best(3, || drop(black_box(Tokenizer::from_gguf(&path).unwrap())));
    let ours = Tokenizer::from_gguf(&path).unwrap();
    let json = serde_json::to_vec(&as_json(&GgufFile::open(&path, &type_layout).unwrap())).unwrap();
    let their_load = best(3, || drop(black_box(tokenizers::Tokenizer::from_bytes(&json).unwrap())));
    let theirs = tokenizers::Tokenizer::from_bytes(&json).unwrap();
    std::fs::remove_file(&path).unwrap();
    println!(
        "load {} tokens: gemma4 {load:.2} s from GGUF, tokenizers {their_load:.2} s from JSON",
        ours.n_vocab()
    );
    for file in ["val-code.txt", "val-prose.txt"] {
        let text = std::fs::read_to_string(tiny::path(file)).unwrap();
        let mb = text.len() as f64 / 1e6;
        let got = ours.encode(&text, EncodeOptions::CONTINUATION).unwrap();
        let want = theirs.encode(text.as_str(), false).unwrap();
        assert_eq!(got, want.get_ids(), "{file}: other tokens");
        let us = best(5, || drop(black_box(ours.encode(&text, EncodeOptions::CONTINUATION).unwrap())));
        let them = best(5, || drop(black_box(theirs.encode(text.as_str(), false).unwrap())));
        println!(
            "{file}: gemma4 {:.1} MB/s, tokenizers {:.1} MB/s, ratio {:.2}",
            mb / us,
            mb / them,
            them / us
        );
    }
}
