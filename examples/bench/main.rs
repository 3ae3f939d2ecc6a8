//! Measures prompt and decode speed, and the memory of sessions, over sizes, depths and KV types.
//!
//! Prints a table; writes JSON and a plot on request.

mod card;
mod cost;
mod draft;
mod measure;
#[cfg(feature = "plot")]
mod plot;

use clap::Parser;
use gemma4::{KvPolicy, Model};
use gemma4_examples::{Failure, ModelArgs, run_main};
use measure::Report;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Measures prompt and decode speed and the memory of a Gemma 4 model")]
struct Cli {
    #[command(flatten)]
    model: ModelArgs,
    /// KV types to compare, separated by blanks [default: that of --kv]
    #[arg(long, value_name = "TYPE TYPE ...")]
    kvs: Option<String>,
    /// Prompt lengths in tokens; each is measured at every depth
    #[arg(long, value_delimiter = ',', default_values_t = [512])]
    prompt: Vec<u32>,
    /// Depths: tokens in the cache before
    #[arg(long, value_delimiter = ',', default_values_t = [0, 512, 1024, 2048])]
    depth: Vec<u32>,
    /// Reaches a depth with random keys and values instead of computing a prompt; those to come mean nothing then
    #[arg(long)]
    fill: bool,
    /// Tokens decoded for each measurement; 0 for none
    #[arg(short = 'n', long, default_value_t = 64)]
    decode: u32,
    /// Numbers of tokens that are verified at once, as drafts are
    #[arg(long, value_delimiter = ',')]
    verify: Vec<u32>,
    /// Computes prompts block-sparse, with this share of the best score. As in the middle of a longer prompt: the last
    /// blocks are no exception
    #[arg(long, value_name = "ALPHA")]
    sparse: Option<f32>,
    /// With --fill: fills with keys of which --sparse reads about this share, and says how much it was
    #[arg(long, value_name = "SHARE", requires = "fill")]
    sparse_share: Option<f32>,
    /// Repetitions; the median counts
    #[arg(short, long, default_value_t = 5)]
    repeat: usize,
    /// Drafters to compare with plain decoding: GGUF files, folders, or "ngram"
    #[arg(long, value_delimiter = ',')]
    drafter: Vec<String>,
    /// Tokens of each of the texts that are generated with and without the drafters
    #[arg(long, default_value_t = 256)]
    draft_tokens: usize,
    /// Drafters whose rounds are timed at every depth, part by part: GGUF files or folders. Says how many tokens a round
    /// must bring
    #[arg(long, value_delimiter = ',', value_name = "FILE")]
    draft_cost: Vec<String>,
    /// Numbers of drafts for --draft-cost; those beyond what a drafter can are left out
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3, 4, 5, 6, 8, 11, 15, 16])]
    drafts: Vec<u32>,
    /// Also measures the energy of decoding over so many seconds, where an NVIDIA card tells its power
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    energy: Option<f64>,
    /// Contexts for which the memory of a session is told
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 4096, 16384, 65536, 131_072])]
    context: Vec<u32>,
    /// Only print, for each KV type and context, what a session would take and who computes its attention
    #[arg(long)]
    plan: bool,
    /// Also write the results to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also draw them, into a file that ends with .svg or .png
    #[cfg(feature = "plot")]
    #[arg(long)]
    plot: Vec<PathBuf>,
}

impl Cli {
    fn kv_types(&self) -> Result<Vec<KvPolicy>, Failure> {
        let Some(list) = &self.kvs else { return Ok(vec![self.model.kv.clone()]) };
        let types: Vec<_> = list.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        if types.is_empty() { Err("--kvs names no type".into()) } else { Ok(types) }
    }
}

fn print(report: &Report) {
    println!("{}", report.about);
    if !report.rows.is_empty() {
        println!(
            "\n{:<16} {:<8} {:>6} {:>8} {:>12} {:>8}{}",
            "kv",
            "what",
            "tokens",
            "depth",
            "tokens/s",
            "spread",
            if report.rows.iter().any(|row| row.energy.is_some()) { "  J/token" } else { "" }
        );
    }
    for row in &report.rows {
        let (rate, spread) = (row.median(), 100.0 * row.spread());
        println!(
            "{:<16} {:<8} {:>6} {:>8} {:>12.1} {:>7.1}%{}",
            row.kv,
            row.what,
            row.n,
            row.depth,
            rate,
            spread,
            row.energy.map_or(String::new(), |e| format!("  {:.3} ({:.0} W)", e.joules, e.watts))
        );
    }
    print_prompts(report);
    for read in &report.keys_read {
        println!(
            "{}, {} tokens at {}: {:.1}% of the keys read",
            read.kv,
            read.n,
            read.depth,
            100.0 * read.keys
        );
    }
    for card in &report.card {
        println!(
            "{}, context {}: {:.0} MiB of the card in use, {:.0} by our own account",
            card.kv, card.n_ctx, card.used_mib, card.planned_mib
        );
    }
    println!("\n{:<16} {:>8} {:>12} {:>12} {:>14}", "kv", "context", "KV MiB", "compute MiB", "with weights");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for memory in &report.memory {
        println!(
            "{:<16} {:>8} {:>12.1} {:>12.1} {:>14.1}",
            memory.kv,
            memory.n_ctx,
            mib(memory.kv_bytes),
            mib(memory.compute_bytes),
            mib(memory.total_bytes)
        );
    }
}

fn print_prompts(report: &Report) {
    if report.prompts.is_empty() {
        return;
    }
    println!("\n{:<16} {:>12} {:>10} {:>12}  by chunks of", "kv", "whole prompt", "seconds", "tokens/s");
    for prompt in &report.prompts {
        println!(
            "{:<16} {:>12} {:>10.2} {:>12.1}  {}",
            prompt.kv,
            prompt.tokens,
            prompt.seconds,
            f64::from(prompt.tokens) / prompt.seconds,
            prompt.chunk
        );
    }
}

fn print_plans(cli: &Cli) -> Result<(), Failure> {
    let (path, load) = (cli.model.path()?, cli.model.load_options()?);
    for kv in cli.kv_types()? {
        let args = ModelArgs { kv, ..cli.model.clone() };
        for &n_ctx in &cli.context {
            let plan = Model::plan(&path, &load, &args.session(n_ctx))?;
            println!("{}, {n_ctx} tokens: {plan}", args.kv);
            if let Err(e) = plan.check() {
                println!("     {e}");
            }
        }
    }
    Ok(())
}

fn run(cli: &Cli) -> Result<(), Failure> {
    if cli.plan {
        return print_plans(cli);
    }
    let report = measure::run(cli)?;
    print(&report);
    cost::print(&report.rounds);
    draft::print(&report.drafters);
    let failed = |path: &PathBuf, e: &dyn std::fmt::Display| format!("cannot write {}: {e}", path.display());
    if let Some(path) = &cli.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).map_err(|e| failed(path, &e))?;
    }
    #[cfg(feature = "plot")]
    for path in &cli.plot {
        plot::draw(&report, path).map_err(|e| failed(path, &e))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || run(&Cli::parse()))
}
