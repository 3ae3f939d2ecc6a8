//! How many drafts a drafter's text takes: by position, over excerpts of files. Prints tables and draws a plot.

mod plot;

use clap::Parser;
use gemma4::{
    DflashMask, Drafter, DrafterOptions, EncodeOptions, GenerateOptions, Model, NgramOptions, Result,
    Session, Speculation,
};
use gemma4_examples::{Failure, ModelArgs, hub, run_main};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Measures how many drafted tokens are accepted, by drafter, text and position")]
struct Cli {
    #[command(flatten)]
    model: ModelArgs,
    /// Drafters: GGUF files, folders, or "ngram"
    #[arg(long, value_delimiter = ',', required = true)]
    drafter: Vec<String>,
    /// Files that prompts are cut from
    #[arg(long, value_delimiter = ',', required = true)]
    text: Vec<PathBuf>,
    /// Prompts of each file
    #[arg(long, default_value_t = 16)]
    prompts: usize,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// Tokens generated behind each prompt
    #[arg(short = 'n', long, default_value_t = 128)]
    max_tokens: usize,
    /// Drafts of a round; the drafter may have fewer
    #[arg(long, value_delimiter = ',', default_values_t = [4])]
    drafts: Vec<u32>,
    /// DFlash: places of the block see each other both ways in every layer
    #[arg(long)]
    bidirectional: bool,
    /// Draw the chance that a draft stands, by position, as an SVG file; of the last of the drafts' numbers
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// What became of the drafts of one drafter over one text.
struct Outcome {
    drafter: String,
    text: String,
    /// Rounds that judged the draft at a position, and those in which it stood.
    positions: Vec<[usize; 2]>,
    rounds: usize,
    accepted: usize,
}

impl Outcome {
    /// The chance that the draft at each position is part of the text, from the first on.
    fn survival(&self) -> Vec<f64> {
        let mut chance = 1.0;
        let step = |[judged, stood]: &[usize; 2]| {
            chance *= *stood as f64 / (*judged).max(1) as f64;
            chance
        };
        self.positions.iter().map(step).collect()
    }
}

fn load(name: &str, model: &Model, bidirectional: bool) -> Result<Drafter, Failure> {
    let mask = bidirectional.then_some(DflashMask::Bidirectional);
    match name {
        "ngram" => Ok(Drafter::ngram(&NgramOptions::default())?),
        path => {
            let options = DrafterOptions::default().dflash_mask(mask);
            Ok(Drafter::load_with(hub::resolve(path)?, model, &options)?)
        }
    }
}

/// `n` evenly spread excerpts of a file, each behind the token that begins a text.
fn excerpts(model: &Model, path: &Path, n: usize, len: usize) -> Result<Vec<Vec<u32>>> {
    let text = std::fs::read_to_string(path).map_err(|source| gemma4::Error::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    let tokens = model.tokenizer().encode(&text, EncodeOptions::TEXT)?;
    let last = tokens.len().saturating_sub(len);
    let excerpt = |i: usize| {
        let start = i * last / n.saturating_sub(1).max(1);
        let body = tokens.iter().skip(start).take(len.saturating_sub(1));
        model.tokenizer().bos().into_iter().chain(body.copied()).collect()
    };
    Ok((0..n).map(excerpt).collect())
}

fn measure(cli: &Cli, model: &Model, drafter: &Drafter, text: &Path, n_drafts: u32) -> Result<Outcome> {
    let n_ctx = (cli.prompt_tokens + cli.max_tokens + 1) as u32;
    let options = cli.model.session(n_ctx).drafter(drafter.clone()).max_draft(n_drafts);
    let mut session = Session::new(model, &options)?;
    let name = text.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut out = Outcome {
        drafter: drafter.kind().to_owned(),
        text: name,
        positions: Vec::new(),
        rounds: 0,
        accepted: 0,
    };
    let how = GenerateOptions::greedy()
        .max_tokens(cli.max_tokens)
        .ignore_eos(true)
        .speculation(Speculation::Fixed(n_drafts));
    for prompt in excerpts(model, text, cli.prompts, cli.prompt_tokens)? {
        session.clear();
        let mut generation = session.generate(&prompt, &how)?;
        generation.text()?;
        let Some(stats) = generation.stats().speculation else { continue };
        out.rounds += stats.rounds;
        out.accepted += stats.accepted;
        out.positions.resize(out.positions.len().max(stats.positions.len()), [0, 0]);
        for (sum, [judged, stood]) in out.positions.iter_mut().zip(stats.positions) {
            *sum = [sum[0] + judged, sum[1] + stood];
        }
    }
    Ok(out)
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let model = cli.model.load()?;
    println!(
        "{:<8} {:<10} {:>6} {:>7} {:>9}  part of the text by position, %",
        "drafter", "text", "drafts", "rounds", "accepted"
    );
    let mut last = Vec::new();
    for name in &cli.drafter {
        let drafter = load(name, &model, cli.bidirectional)?;
        for text in &cli.text {
            let mut newest = None;
            for n in cli.drafts.iter().map(|&n| n.min(drafter.max_draft())) {
                let outcome = measure(cli, &model, &drafter, text, n)?;
                let mean = outcome.accepted as f64 / outcome.rounds.max(1) as f64;
                print!(
                    "{:<8} {:<10} {n:>6} {:>7} {mean:>9.2} ",
                    outcome.drafter, outcome.text, outcome.rounds
                );
                outcome.survival().iter().for_each(|p| print!(" {:.0}", 100.0 * p));
                println!();
                newest = Some(outcome);
            }
            last.extend(newest);
        }
    }
    match &cli.plot {
        Some(path) => {
            plot::draw(path, &last).map_err(|e| format!("cannot write {}: {e}", path.display()).into())
        }
        None => Ok(()),
    }
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || run(&Cli::parse()))
}
