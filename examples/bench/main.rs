//! Measures prompt and decode speed over sizes. Prints a table, and JSON on request.

use clap::Parser;
use gemma4::{DeviceKind, Result, Session};
use gemma4_examples::{ModelArgs, init_logging};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Parser)]
#[command(about = "Measures prompt and decode speed of a Gemma 4 model")]
struct Cli {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt lengths in tokens
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 512, 1024])]
    prompt: Vec<u32>,
    /// Depths at which decoding is measured: tokens in the cache before the first step
    #[arg(long, value_delimiter = ',', default_values_t = [0, 512, 1024, 2048])]
    depth: Vec<u32>,
    /// Tokens decoded for each measurement
    #[arg(short = 'n', long, default_value_t = 64)]
    decode: u32,
    /// Repetitions; the median counts
    #[arg(short, long, default_value_t = 5)]
    repeat: usize,
    /// Compare the plan of the memory with what the device has less of afterwards (not for the CPU, whose memory
    /// others use too)
    #[arg(long)]
    plan: bool,
    /// Also write the results to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

struct Row {
    what: &'static str,
    /// Tokens computed in one measurement.
    n: u32,
    /// Tokens in the cache before.
    depth: u32,
    /// Tokens a second, slowest to fastest repetition.
    rates: Vec<f64>,
}

impl Row {
    fn new(what: &'static str, n: u32, depth: u32, seconds: Vec<f64>) -> Row {
        let mut rates: Vec<f64> = seconds.into_iter().map(|s| f64::from(n) / s).collect();
        rates.sort_by(f64::total_cmp);
        Row { what, n, depth, rates }
    }

    fn median(&self) -> f64 {
        self.rates.get(self.rates.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn spread(&self) -> f64 {
        match (self.rates.first(), self.rates.last()) {
            (Some(low), Some(high)) => (high - low) / self.median(),
            _ => f64::NAN,
        }
    }
}

/// Ordinary tokens in a fixed, irregular order: speed does not depend on the text.
fn tokens(n_vocab: u32, n: u32) -> Vec<u32> {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % n_vocab
    };
    (0..n).map(|_| next()).collect()
}

fn measure(cli: &Cli) -> Result<(Vec<Row>, String)> {
    let free = cli.model.find_device()?.memory_available();
    let model = cli.model.load()?;
    let n_vocab = model.hparams().n_vocab;
    let longest = cli.prompt.iter().chain(&cli.depth).max().copied().unwrap_or(0) + cli.decode + 1;
    let options = cli.model.session(longest);
    let plan = Session::plan(&model, &options)?;
    let mut session = Session::new(&model, &options)?;
    let text = tokens(n_vocab, longest);
    let mut rows = Vec::new();
    for &n in cli.prompt.iter().filter(|&&n| n > 0) {
        let mut seconds = Vec::new();
        // The first round warms caches and builds graphs.
        for round in 0..=cli.repeat {
            session.clear();
            let started = Instant::now();
            session.prefill(&text[..n as usize])?;
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        rows.push(Row::new("prompt", n, 0, seconds));
    }
    for &depth in &cli.depth {
        let mut seconds = Vec::new();
        for round in 0..=cli.repeat {
            session.clear();
            session.prefill(&text[..depth as usize])?;
            let started = Instant::now();
            for &token in &text[depth as usize..(depth + cli.decode) as usize] {
                session.prefill(&[token])?;
            }
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        rows.push(Row::new("decode", cli.decode, depth, seconds));
    }
    if cli.plan && model.device().kind() != DeviceKind::Cpu {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        // What the host holds is in `host`, but for tables that stay in main memory.
        let (planned, taken) =
            (plan.total() - plan.host, free.saturating_sub(model.device().memory_available()));
        println!("{plan}planned for the device {:.1} MiB, taken {:.1} MiB", mib(planned), mib(taken));
    }
    let about = format!(
        "{} on {:?}, kv {:?}, batch {}, {} graphs built, KV {:.1} MiB, compute {:.1} MiB",
        model.path().file_name().unwrap_or_default().to_string_lossy(),
        model.device(),
        cli.model.kv,
        cli.model.batch,
        session.graphs_built(),
        session.kv_bytes() as f64 / f64::from(1 << 20),
        session.compute_bytes() as f64 / f64::from(1 << 20),
    );
    Ok((rows, about))
}

fn json(rows: &[Row], about: &str) -> serde_json::Value {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            serde_json::json!({
                "what": row.what, "n": row.n, "depth": row.depth,
                "tokens_per_second": row.median(), "all": row.rates,
            })
        })
        .collect();
    serde_json::json!({ "about": about, "rows": rows })
}

fn main() -> ExitCode {
    init_logging();
    let cli = Cli::parse();
    let (rows, about) = match measure(&cli) {
        Ok(done) => done,
        Err(e) => {
            eprintln!("bench: {e}");
            return ExitCode::FAILURE;
        }
    };
    println!("{about}");
    println!("{:<8} {:>6} {:>8} {:>12} {:>8}", "what", "tokens", "depth", "tokens/s", "spread");
    for row in &rows {
        let spread = 100.0 * row.spread();
        println!("{:<8} {:>6} {:>8} {:>12.1} {:>7.1}%", row.what, row.n, row.depth, row.median(), spread);
    }
    if let Some(path) = &cli.json
        && let Err(e) = std::fs::write(path, format!("{:#}\n", json(&rows, &about)))
    {
        eprintln!("bench: cannot write {}: {e}", path.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
