//! A vocabulary of the real size: 262,144 tokens, half a million merges, the special tokens at their ids.

use gemma4::gguf::{Array, GgufWriter, Value};
use std::collections::HashMap;

/// Tokens.
pub const SIZE: u64 = 262_144;

/// Special tokens by id (`spec`: Gemma 4's tokenizer), with their type: 3 control, 4 user-defined.
const SPECIAL: [(usize, &str, i32); 21] = [
    (0, "<pad>", 3),
    (1, "<eos>", 3),
    (2, "<bos>", 3),
    (3, "<unk>", 2),
    (4, "<mask>", 3),
    (46, "<|tool>", 3),
    (47, "<tool|>", 3),
    (48, "<|tool_call>", 4),
    (49, "<tool_call|>", 4),
    (50, "<|tool_response>", 4),
    (51, "<tool_response|>", 4),
    (52, "<|\"|>", 4),
    (98, "<|think|>", 3),
    (100, "<|channel>", 4),
    (101, "<channel|>", 4),
    (105, "<|turn>", 3),
    (106, "<turn|>", 3),
    (107, "\n", 1),
    (212, "</s>", 1),
    (255_999, "<|image>", 3),
    (256_000, "<|audio>", 3),
];

/// Sets the tokenizer's keys.
pub fn set(writer: &mut GgufWriter) {
    let (tokens, types) = tokens();
    let merges = merges(&tokens);
    writer.set("tokenizer.ggml.model", Value::Str("gemma4".into()));
    writer.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![-1000.0; tokens.len()])));
    writer.set("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
    writer.set(
        "tokenizer.ggml.tokens",
        Value::Array(Array::Strings(tokens.iter().map(String::as_str).collect())),
    );
    writer.set(
        "tokenizer.ggml.merges",
        Value::Array(Array::Strings(merges.iter().map(String::as_str).collect())),
    );
    for (key, id) in [("bos", 2), ("eos", 1), ("unknown", 3), ("padding", 0), ("mask", 4)] {
        writer.set(format!("tokenizer.ggml.{key}_token_id"), Value::U32(id));
    }
    writer.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    writer.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
}

/// Specials, bytes, characters, then words of growing length over common letters.
fn tokens() -> (Vec<String>, Vec<i32>) {
    let n = SIZE as usize;
    let mut tokens = vec![String::new(); n];
    let mut types = vec![1; n];
    for (id, text, kind) in SPECIAL {
        tokens[id] = text.into();
        types[id] = kind;
    }
    let letters: Vec<char> = "\u{2581}etaoinshrdlucmfwypvbgkjqxz".chars().collect();
    let mut ordinary: Vec<(String, i32)> = (0..=255u8).map(|b| (format!("<0x{b:02X}>"), 6)).collect();
    ordinary.extend((' '..='~').filter(|c| *c != ' ' && !letters.contains(c)).map(|c| (c.to_string(), 1)));
    ordinary.extend(letters.iter().map(|c| (c.to_string(), 1)));
    // Breadth first: every word's beginning and end are words.
    let mut level: Vec<String> = letters.iter().map(char::to_string).collect();
    while ordinary.len() < n {
        level = level.iter().flat_map(|word| letters.iter().map(move |c| format!("{word}{c}"))).collect();
        ordinary.extend(level.iter().take(n).map(|word| (word.clone(), 1)));
    }
    let free: Vec<usize> = (0..n).filter(|&id| tokens[id].is_empty()).collect();
    for (id, (text, kind)) in free.into_iter().zip(ordinary) {
        tokens[id] = text;
        types[id] = kind;
    }
    (tokens, types)
}

/// For each word, its beginning joined with its last letter and its first letter with its end.
fn merges(tokens: &[String]) -> Vec<String> {
    let known: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    let mut merges = Vec::new();
    for text in tokens.iter().filter(|t| !t.starts_with('<') && t.chars().count() > 1) {
        let last = text.char_indices().next_back().map_or(0, |(at, _)| at);
        let first = text.chars().next().map_or(0, char::len_utf8);
        for at in [last, first] {
            let (left, right) = text.split_at(at);
            let merge = format!("{left} {right}");
            if known.contains_key(left) && known.contains_key(right) && merges.last() != Some(&merge) {
                merges.push(merge);
            }
        }
    }
    merges
}
