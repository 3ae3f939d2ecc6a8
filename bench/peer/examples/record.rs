//! Records what llama.cpp does with tiny-gemma4: its greedy text and its perplexities.
//!
//! Run it from the repository's root, where no flag compiles llama.cpp for one CPU, and without `native`, so that the
//! files hold the numbers of AVX2:
//!
//!     cargo run --release --manifest-path bench/peer/Cargo.toml --no-default-features \
//!         --example record -- models/tiny-gemma4
//!
//! writes `llama-cpp-q8_0.json` there; with `--perplexity FILE.gguf` it prints the perplexities of the two
//! validation texts instead, by the protocol in that folder's README.

use std::error::Error;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::Parser;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use serde_json::{Value, json};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const BOS: i32 = 2;
const WINDOW: usize = 1024;
const GREEDY: usize = 64;

#[derive(Parser)]
struct Cli {
    /// The folder models/tiny-gemma4.
    folder: PathBuf,
    /// Prints the perplexities of this GGUF file instead.
    #[arg(long)]
    perplexity: Option<PathBuf>,
    /// Windows of each text; 0 takes all whole ones.
    #[arg(long, default_value_t = 12)]
    windows: usize,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut backend = LlamaBackend::init()?;
    backend.void_logs();
    let name = "tiny-gemma4-q8_0.gguf";
    let file = cli.perplexity.clone().unwrap_or_else(|| cli.folder.join(name));
    let model = LlamaModel::load_from_file(&backend, &file, &LlamaModelParams::default())?;
    if cli.perplexity.is_some() {
        for text in ["val-code.txt", "val-prose.txt"] {
            perplexity(&backend, &model, &cli.folder.join(text), cli.windows)?;
        }
        return Ok(());
    }
    let golden: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(cli.folder.join("golden.json"))?)?;
    let prompts = golden.iter().map(|g| record(&backend, &model, g)).collect::<Result<Vec<_>>>()?;
    let prompts: Vec<String> = prompts.iter().map(Value::to_string).collect();
    let all =
        format!("{{\n\"made_with\": {:#},\n\"prompts\": [\n{}\n]}}\n", made_with(name), prompts.join(",\n"));
    std::fs::write(cli.folder.join("llama-cpp-q8_0.json"), all)?;
    Ok(())
}

fn made_with(model: &str) -> Value {
    json!({
        "engine": "llama.cpp, CPU backend",
        "crates": { "llama-cpp-2": "=0.1.160", "llama-cpp-sys-2": "=0.1.161, features openmp, no others" },
        "model": model,
        "settings": {
            "n_ctx": 512, "n_batch": 512, "n_ubatch": 512, "n_seq_max": 1, "type_k": "f16", "type_v": "f16",
            "flash_attn": "auto (on)", "swa_full": false, "threads": 2,
            "prompt": "one batch, then one token at a time", "end_of_generation": "ignored",
            "context": "a fresh one for each prompt"
        },
        "cpu": if cfg!(target_feature = "avx512f") { "AVX-512" } else { "AVX2, FMA, F16C: the crate's default" },
    })
}

fn context<'m>(backend: &LlamaBackend, model: &'m LlamaModel, n: usize) -> Result<LlamaContext<'m>> {
    let n = u32::try_from(n)?;
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(n))
        .with_n_batch(n)
        .with_n_ubatch(n)
        .with_n_seq_max(1)
        .with_n_threads(2)
        .with_n_threads_batch(2)
        .with_type_k(KvCacheType::F16)
        .with_type_v(KvCacheType::F16)
        .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO)
        .with_swa_full(false);
    Ok(model.new_context(backend, params)?)
}

/// The best two logits, ties to the lower id.
fn best_two(logits: &[f32]) -> [(usize, f32); 2] {
    let mut best = [(0, f32::NEG_INFINITY); 2];
    for (id, &z) in logits.iter().enumerate() {
        if z > best[0].1 {
            best = [(id, z), best[0]];
        } else if z > best[1].1 {
            best[1] = (id, z);
        }
    }
    best
}

/// Five decimals are plenty, and short.
fn rounded(z: f32) -> f64 {
    (f64::from(z) * 1e5).round() / 1e5
}

fn record(backend: &LlamaBackend, model: &LlamaModel, golden: &Value) -> Result<Value> {
    let prompt: Vec<i32> = serde_json::from_value(golden["prompt_ids"].clone())?;
    let mut context = context(backend, model, 512)?;
    let mut batch = LlamaBatch::new(512, 1);
    let (mut next, mut at) = (prompt.clone(), 0);
    let (mut ids, mut seconds, mut logits, mut second_logits, mut gaps) =
        (vec![], vec![], vec![], vec![], vec![]);
    while ids.len() < GREEDY {
        batch.clear();
        for (i, &id) in next.iter().enumerate() {
            batch.add(LlamaToken::new(id), at, &[0], i + 1 == next.len())?;
            at += 1;
        }
        context.decode(&mut batch)?;
        let [(id, z), (second, y)] = best_two(context.get_logits_ith(batch.n_tokens() - 1));
        ids.push(id);
        seconds.push(second);
        logits.push(rounded(z));
        second_logits.push(rounded(y));
        gaps.push(rounded(z - y));
        next = vec![i32::try_from(id)?];
    }
    Ok(json!({ "prompt_ids": prompt, "greedy_ids": ids, "second_ids": seconds, "logits": logits,
        "second_logits": second_logits, "gap": gaps }))
}

fn perplexity(backend: &LlamaBackend, model: &LlamaModel, text: &Path, windows: usize) -> Result<()> {
    let tokens = model.vocab().tokenize(&std::fs::read(text)?, false, false);
    let windows = if windows == 0 { usize::MAX } else { windows };
    let (mut sum, mut count, mut whole) = (0.0, 0.0, 0);
    for run in tokens.chunks_exact(WINDOW - 1).take(windows) {
        let mut context = context(backend, model, WINDOW)?;
        let mut batch = LlamaBatch::new(WINDOW, 1);
        for (at, &id) in std::iter::once(&LlamaToken::new(BOS)).chain(run).enumerate() {
            batch.add(id, i32::try_from(at)?, &[0], true)?;
        }
        context.decode(&mut batch)?;
        for (at, id) in run.iter().enumerate() {
            let logits = context.get_logits_ith(i32::try_from(at)?);
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let all: f64 = logits.iter().map(|&z| f64::from(z - most).exp()).sum();
            let own = usize::try_from(id.0)?;
            sum += all.ln() - f64::from(logits[own] - most);
            count += 1.0;
        }
        whole += 1;
    }
    let n = tokens.len();
    println!("{}: {n} tokens, {whole} windows, perplexity {:.4}", text.display(), f64::exp(sum / count));
    Ok(())
}
