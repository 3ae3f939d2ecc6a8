//! Perplexity of a text: how well the model predicts it, and how much the KV type costs.

use clap::Parser;
use gemma4::sampling::Divergence;
use gemma4::{EncodeOptions, KvPolicy, Model, Session};
use gemma4_examples::{Failure, ModelArgs, progress_bar, run_main};
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
    /// Compare every prediction with that of another cache, such as f16: KL divergence, agreement
    #[arg(long, value_name = "KV")]
    kl_against: Option<KvPolicy>,
}

/// Sums of the negative log-probabilities and of their squares.
#[derive(Default)]
struct Sums {
    n: usize,
    sum: f64,
    squares: f64,
    /// Divergence of every prediction from the reference's, if there is one.
    kl: Vec<f64>,
    same_top: usize,
}

impl Sums {
    fn add(&mut self, loss: f64) {
        self.n += 1;
        self.sum += loss;
        self.squares += loss * loss;
    }

    /// Mean divergence, the one that 99 of 100 stay below, and the share of equal choices.
    fn against(&self) -> Option<(f64, f64, f64)> {
        let mut all = self.kl.clone();
        all.sort_by(f64::total_cmp);
        let n = all.len() as f64;
        let high = *all.get(all.len().checked_sub(1)? * 99 / 100)?;
        Some((all.iter().sum::<f64>() / n, high, self.same_top as f64 / n))
    }

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
    let options = cli.model.session(cli.window as u32);
    let mut session = Session::new(model, &options)?;
    let mut reference = match &cli.kl_against {
        Some(kv) => Some(Session::new(model, &options.kv(kv.clone()))?),
        None => None,
    };
    let bar = progress_bar("windows", "{pos}/{len}, {msg}");
    bar.set_length(windows as u64);
    let mut sums = Sums::default();
    for chunk in tokens.chunks_exact(run).take(windows) {
        let window: Vec<u32> = model.tokenizer().bos().into_iter().chain(chunk.iter().copied()).collect();
        session.clear();
        match &mut reference {
            None => session.score(&window)?.iter().for_each(|&score| sums.add(-f64::from(score))),
            Some(reference) => compare(&mut session, reference, &window, &mut sums)?,
        }
        bar.set_message(format!("{:.4}", sums.perplexity().0));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(sums)
}

/// Scores a window, and compares each prediction with the reference's.
fn compare(
    session: &mut Session,
    reference: &mut Session,
    window: &[u32],
    sums: &mut Sums,
) -> gemma4::Result<()> {
    let n_vocab = session.model().hparams().n_vocab as usize;
    reference.clear();
    let wanted = reference.evaluate(window, false)?.logits;
    let got = session.evaluate(window, false)?.logits;
    for ((wanted, got), &next) in
        wanted.chunks_exact(n_vocab).zip(got.chunks_exact(n_vocab)).zip(&window[1..])
    {
        let max = got.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = got.iter().map(|&l| f64::from((l - max).exp())).sum();
        sums.add(sum.ln() - f64::from(got[next as usize] - max));
        if let Some(Divergence { kl, same_top, .. }) = Divergence::of(wanted, got) {
            sums.kl.push(kl);
            sums.same_top += usize::from(same_top);
        }
    }
    Ok(())
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let text =
        std::fs::read_to_string(&cli.file).map_err(|e| format!("cannot read {}: {e}", cli.file.display()))?;
    let sums = measure(cli, &cli.model.load()?, &text)?;
    if sums.n == 0 {
        return Err("the text is shorter than one window; use a smaller --window".into());
    }
    let (perplexity, error) = sums.perplexity();
    println!("{perplexity:.4} +- {error:.4} over {} tokens", sums.n);
    if let Some((mean, high, top)) = sums.against() {
        println!("KL divergence {mean:.6}, 99 % below {high:.6}; same choice {:.2} %", 100.0 * top);
    }
    Ok(())
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || run(&Cli::parse()))
}
