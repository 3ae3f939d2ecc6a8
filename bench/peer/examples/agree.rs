//! Compares what gemma4 and llama.cpp compute from one file, in one process and for one CPU.
//!
//!     cargo run --release --example agree
//!
//! llama.cpp continues each prompt of `golden.json` greedily; gemma4 is fed the same tokens. Printed by prompt: the
//! first step at which it would have chosen otherwise, by how little llama.cpp preferred its own choice there, and
//! how far the logits of all steps lie apart.

use std::path::{Path, PathBuf};

use clap::Parser;
use gemma4::sampling::argmax;
use gemma4_bench_peer::ours::Ours;
use gemma4_bench_peer::peer::Peer;
use gemma4_bench_peer::{Kv, Result, Settings};
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    /// A GGUF file of a model with tiny-gemma4's vocabulary.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-gemma4/tiny-gemma4-q8_0.gguf"))]
    model: PathBuf,
    /// Threads of both.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Type of both caches.
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    kv: Kv,
    /// Tokens that follow each prompt.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-gemma4/golden.json");
    let golden: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(golden)?)?;
    let settings = Settings { model: cli.model, threads: cli.threads, kv: cli.kv, batch: 512, context: 512 };
    let mut peer = Peer::open(&settings)?;
    let mut ours = Ours::open(&settings)?;
    println!("prompt  tokens  equal     parts at  gap there  logits apart: rms  most");
    for (i, golden) in golden.iter().enumerate() {
        let prompt: Vec<u32> = serde_json::from_value(golden["prompt_ids"].clone())?;
        peer.clear();
        let (mut theirs, mut mine) = (peer.evaluate(0, &prompt)?.to_vec(), ours.evaluate(&prompt)?.to_vec());
        let (mut equal, mut parts, mut squares, mut most) = (0, None, 0.0, 0.0_f32);
        for step in 0..cli.tokens {
            let apart = theirs.iter().zip(&mine).map(|(a, b)| (a - b).abs());
            squares += apart.clone().map(|d| f64::from(d * d)).sum::<f64>() / theirs.len() as f64;
            most = apart.fold(most, f32::max);
            let (Some(a), Some(b)) = (argmax(&theirs), argmax(&mine)) else { return Err("no logits".into()) };
            equal += usize::from(a == b);
            if a != b && parts.is_none() {
                parts = Some((step, theirs[a as usize] - theirs[b as usize]));
            }
            theirs = peer.evaluate(prompt.len() + step, &[a])?.to_vec();
            mine = ours.go_on(&[a])?.to_vec();
        }
        let (at, gap) = match parts {
            Some((step, gap)) => (step.to_string(), format!("{gap:.4}")),
            None => ("never".to_owned(), String::new()),
        };
        let rms = (squares / cli.tokens as f64).sqrt();
        println!(
            "{i:>6}  {:>6}  {equal:>3} of {}  {at:>7}  {gap:>9}  {rms:>17.5}  {most:.5}",
            prompt.len(),
            cli.tokens
        );
    }
    Ok(())
}
