//! tiny-gemma4 and its recorded outputs.

use crate::repo;
use gemma4::{DflashMask, Drafter, DrafterOptions, EncodeOptions, Model, Session, SessionOptions};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One prompt of `golden.json`: what transformers computes from the F16 weights in float32.
#[derive(Clone, Debug, Deserialize)]
pub struct Golden {
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// The 64 tokens that follow it greedily.
    pub greedy_ids: Vec<u32>,
    /// The best five logits after the prompt and after 1, 2, 3 more tokens.
    pub top5_logits: Vec<Vec<(u32, f32)>>,
    /// What the MTP assistant drafts behind the first greedy token.
    pub mtp: Vec<u32>,
    /// What the DFlash drafter drafts behind it.
    pub dflash: Vec<u32>,
}

/// What llama.cpp does with the shipped Q8_0 file.
#[derive(Clone, Debug, Deserialize)]
pub struct LlamaCpp {
    /// The prompts of `golden.json`.
    pub prompts: Vec<LlamaCppPrompt>,
}

/// One prompt of `llama-cpp-q8_0.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct LlamaCppPrompt {
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// The 64 tokens that follow it greedily.
    pub greedy_ids: Vec<u32>,
    /// The runner-up of every step.
    pub second_ids: Vec<u32>,
    /// The logit of every choice, after soft-capping.
    pub logits: Vec<f32>,
    /// The logit of every runner-up.
    pub second_logits: Vec<f32>,
    /// By how much each choice beat the runner-up.
    pub gap: Vec<f32>,
}

/// The rule that the shipped block drafter was trained with.
pub const MASK: DflashMask = DflashMask::ZLab;

/// A file of tiny-gemma4.
pub fn path(name: &str) -> PathBuf {
    repo("models/tiny-gemma4").join(name)
}

/// Reads one of its JSON files.
pub fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The shipped target.
pub fn model() -> Model {
    Model::load(path("tiny-gemma4-q8_0.gguf")).unwrap_or_else(|e| panic!("{e}"))
}

/// The shipped MTP drafter.
pub fn mtp(model: &Model) -> Drafter {
    Drafter::load(path("tiny-gemma4-mtp-q8_0.gguf"), model).unwrap_or_else(|e| panic!("{e}"))
}

/// The shipped block drafter.
pub fn dflash(model: &Model) -> Drafter {
    let options = DrafterOptions::default().dflash_mask(MASK);
    Drafter::load_with(path("tiny-gemma4-dflash-q8_0.gguf"), model, &options)
        .unwrap_or_else(|e| panic!("{e}"))
}

/// A text file of the model's folder as tokens, behind the token that begins a text.
pub fn tokens(model: &Model, name: &str) -> Vec<u32> {
    tokens_of(model, &path(name))
}

/// A text file as tokens, behind the token that begins a text.
pub fn tokens_of(model: &Model, path: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let how = gemma4::EncodeOptions::TEXT;
    model.tokenizer().encode(&text, how).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A session of `n_ctx` tokens, otherwise with default options.
pub fn session(model: &Model, n_ctx: u32) -> Session {
    // One thread: tests run side by side, and ggml's threads spin while they wait for each other.
    Session::new(model, &SessionOptions::default().n_ctx(n_ctx).n_threads(1))
        .unwrap_or_else(|e| panic!("{e}"))
}

/// The first `n` tokens that follow `prompt` greedily; end tokens do not stop it.
pub fn greedy(session: &mut Session, prompt: &[u32], n: usize) -> Vec<u32> {
    let options = gemma4::GenerateOptions::greedy().max_tokens(n).ignore_eos(true);
    let generation = session.generate(prompt, &options).unwrap_or_else(|e| panic!("{e}"));
    generation.filter_map(|piece| piece.unwrap_or_else(|e| panic!("{e}")).token).collect()
}

/// `n` prompts of `len` tokens, half code and half prose.
pub fn prompts(model: &Model, n: usize, len: usize) -> Vec<Vec<u32>> {
    let mut out = excerpts(model, "val-code.txt", n.div_ceil(2), len);
    out.extend(excerpts(model, "val-prose.txt", n / 2, len));
    out
}

/// `n` prompts of `len` tokens, evenly spread over a text: `<bos>` and what stands there.
pub fn excerpts(model: &Model, file: &str, n: usize, len: usize) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(path(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let tokens = model.tokenizer().encode(&text, EncodeOptions::TEXT).unwrap_or_else(|e| panic!("{e}"));
    let last = tokens.len() - len;
    let bos = model.tokenizer().bos();
    let excerpt = |i: usize| {
        let start = i * last / (n - 1).max(1);
        bos.into_iter().chain(tokens[start..start + len - 1].iter().copied()).collect()
    };
    (0..n).map(excerpt).collect()
}
