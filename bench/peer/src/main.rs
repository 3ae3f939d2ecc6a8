//! Prints how fast gemma4 and llama.cpp are on one model, side by side.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use gemma4_bench_peer::ours::Ours;
use gemma4_bench_peer::peer::Peer;
use gemma4_bench_peer::{Engine, Kv, Plan, Result, Row, Settings, compare};
use serde_json::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    Both,
    Ours,
    Peer,
}

/// Speed of gemma4 and llama.cpp on one model, measured in turns in one process.
#[derive(Debug, Parser)]
struct Args {
    /// The GGUF file.
    #[arg(long, default_value = "../../models/tiny-gemma4/tiny-gemma4-q8_0.gguf")]
    model: PathBuf,
    /// Threads of each engine.
    #[arg(long, short, default_value_t = 2)]
    threads: usize,
    /// Type of the key/value cache.
    #[arg(long, value_enum, default_value = "f16")]
    kv: Kv,
    /// The most tokens of one graph.
    #[arg(long, default_value_t = 512)]
    batch: usize,
    /// Prompt lengths.
    #[arg(long, value_delimiter = ',', default_value = "64,256,512,1024")]
    prompts: Vec<usize>,
    /// Depths for single tokens.
    #[arg(long, value_delimiter = ',', default_value = "0,512,1024,2048")]
    depths: Vec<usize>,
    /// Single tokens in a round.
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Rounds; each number is their median.
    #[arg(long, short, default_value_t = 5)]
    rounds: usize,
    /// Seed of the token ids.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Which engines run.
    #[arg(long, value_enum, default_value = "both")]
    only: Which,
    /// Writes settings and rows to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let plan = Plan {
        prompts: args.prompts,
        depths: args.depths,
        tokens: args.tokens,
        rounds: args.rounds.max(1),
        seed: args.seed,
    };
    let settings = Settings {
        model: args.model,
        threads: args.threads,
        kv: args.kv,
        batch: args.batch,
        context: plan.context().next_multiple_of(256),
    };
    let mut engines: Vec<Box<dyn Engine>> = Vec::new();
    if args.only != Which::Ours {
        engines.push(Box::new(Peer::open(&settings)?));
    }
    if args.only != Which::Peer {
        engines.push(Box::new(Ours::open(&settings)?));
    }
    for engine in &engines {
        println!("{}: {}", engine.name(), engine.about());
    }
    let rows = compare(&mut engines, &plan)?;
    table(&rows, engines.len());
    if let Some(path) = args.json {
        let about: Vec<_> =
            engines.iter().map(|e| json!({ "engine": e.name(), "about": e.about() })).collect();
        let document = json!({ "engines": about, "settings": settings, "plan": plan, "rows": rows });
        std::fs::write(path, serde_json::to_string_pretty(&document)? + "\n")?;
    }
    Ok(())
}

/// The rows of one measurement follow each other, one for each engine.
fn table(rows: &[Row], engines: usize) {
    print!("\n{:<8}{:>6}{:>7}", "what", "n", "depth");
    for row in &rows[..engines.min(rows.len())] {
        print!("{:>20}{:>10}", format!("{} tok/s", row.engine), "ms");
    }
    println!("{}", if engines == 2 { "     ratio" } else { "" });
    for group in rows.chunks(engines) {
        print!("{:<8}{:>6}{:>7}", group[0].what, group[0].n, group[0].depth);
        for row in group {
            print!("{:>20.1}{:>10.3}", row.tokens_per_s, row.ms);
        }
        match group {
            [_, ours] => println!("{:>10.3}", ours.ratio),
            _ => println!(),
        }
    }
}
