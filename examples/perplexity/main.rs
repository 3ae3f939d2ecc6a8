//! Perplexity of a text: how well the model predicts it, and how much the KV type costs.

use clap::Parser;
use gemma4::{EncodeOptions, Model, Session};
use gemma4_examples::{Failure, ModelArgs, init_logging, progress_bar};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Measures the perplexity of a text")]
struct Cli {
    /// The text
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of one window, <bos> included; every window starts from an empty cache
    #[arg(short, long, default_value_t = 1024)]
    window: usize,
    /// Most windows [default: all whole ones]
    #[arg(long)]
    windows: Option<usize>,
}

/// Sums of the negative log-probabilities and of their squares.
#[derive(Default)]
struct Sums {
    n: usize,
    sum: f64,
    squares: f64,
}

impl Sums {
    /// Perplexity and its standard error, taking the tokens as independent.
    fn perplexity(&self) -> (f64, f64) {
        let n = self.n as f64;
        let mean = self.sum / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        (mean.exp(), mean.exp() * (variance / n).sqrt())
    }
}

fn measure(cli: &Cli, model: &Model, text: &str) -> Result<Sums, Failure> {
    let tokens = model.tokenizer().encode(text, EncodeOptions::CONTINUATION)?;
    let run = cli.window.saturating_sub(1).max(1);
    let windows = (tokens.len() / run).min(cli.windows.unwrap_or(usize::MAX));
    let mut session = Session::new(model, &cli.model.session(cli.window as u32))?;
    let bar = progress_bar("windows", "{pos}/{len}, {msg}");
    bar.set_length(windows as u64);
    let mut sums = Sums::default();
    for chunk in tokens.chunks_exact(run).take(windows) {
        let window: Vec<u32> = model.tokenizer().bos().into_iter().chain(chunk.iter().copied()).collect();
        session.clear();
        for score in session.score(&window)? {
            let loss = -f64::from(score);
            sums.n += 1;
            sums.sum += loss;
            sums.squares += loss * loss;
        }
        bar.set_message(format!("{:.4}", sums.perplexity().0));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(sums)
}

fn main() -> ExitCode {
    init_logging();
    let cli = Cli::parse();
    let text = match std::fs::read_to_string(&cli.file) {
        Ok(text) => text,
        Err(e) => {
            eprintln!("perplexity: cannot read {}: {e}", cli.file.display());
            return ExitCode::FAILURE;
        }
    };
    match cli.model.load().and_then(|model| measure(&cli, &model, &text)) {
        Ok(sums) if sums.n > 0 => {
            let (perplexity, error) = sums.perplexity();
            println!("{perplexity:.4} +- {error:.4} over {} tokens", sums.n);
            ExitCode::SUCCESS
        }
        Ok(_) => {
            eprintln!("perplexity: the text is shorter than one window; use a smaller --window");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("perplexity: {e}");
            ExitCode::FAILURE
        }
    }
}
