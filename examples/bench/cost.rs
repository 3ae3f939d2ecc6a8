//! What rounds of drafts cost: drafting, the model's pass over the drafts, and showing the drafter what was computed.

use crate::{Cli, measure};
use gemma4::{Drafter, Model, Session};
use gemma4_examples::{Failure, ModelArgs, named, progress_bar};
use serde::Serialize;
use std::time::Instant;

/// Repetitions of one thing between two looks at the clock.
const TIMES: u32 = 8;

/// A round of `n` drafts, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Types of the KV cache.
    pub kv: String,
    /// Kind of the drafter.
    pub drafter: &'static str,
    /// Tokens in the cache before.
    pub depth: u32,
    /// Tokens drafted.
    pub n: u32,
    /// A step of one token, without a drafter.
    pub plain: f64,
    /// Drafting.
    pub draft: f64,
    /// The model's pass over the drafts and one token.
    pub verify: f64,
    /// The same without a drafter, for which nothing is kept.
    pub verify_alone: f64,
    /// Showing the drafter all the rows of the pass.
    pub observe: f64,
}

impl Row {
    /// Tokens that a round must bring so that it takes no longer than as many plain steps.
    pub fn break_even(&self) -> f64 {
        (self.draft + self.verify + self.observe) / self.plain
    }
}

/// Measures every drafter at every depth, for one type of the cache.
pub fn measure(
    cli: &Cli,
    model: &Model,
    args: &ModelArgs,
    kv: &str,
    rows: &mut Vec<Row>,
) -> Result<(), Failure> {
    let deepest = cli.depth.iter().max().copied().unwrap_or(0);
    for name in &cli.draft_cost {
        let drafter = named(name, model)?;
        let mut sizes: Vec<u32> =
            cli.drafts.iter().copied().filter(|n| (1..=drafter.max_draft()).contains(n)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let Some(&most) = sizes.last() else { continue };
        // One session at a time: two caches may be more than there is memory.
        let n_ctx = deepest + 2 * (most + 1);
        let options = args.session(n_ctx);
        let text = measure::tokens(model.hparams().n_vocab, n_ctx);
        let mut alone = Session::new(model, &options)?;
        let bar = progress_bar("measuring", "{pos}/{len}");
        bar.set_length((2 * cli.depth.len()) as u64);
        let mut passes = Vec::new();
        for &depth in &cli.depth {
            bar.inc(1);
            let after = start(cli, &mut alone, &text, depth, most + 1)?;
            let mut pass = |n: u32| time(cli, || alone.verify_only(&after[..n as usize + 1]));
            let plain = pass(0)?;
            passes.push((plain, sizes.iter().map(|&n| pass(n)).collect::<Result<Vec<_>, _>>()?));
        }
        drop(alone);
        let mut session = Session::new(model, &options.drafter(drafter.clone()).max_draft(most))?;
        for (&depth, (plain, alone)) in cli.depth.iter().zip(passes) {
            bar.inc(1);
            let after = start(cli, &mut session, &text, depth, most + 1)?;
            for (&n, verify_alone) in sizes.iter().zip(alone) {
                let (verify, draft, observe) = round(cli, &mut session, &drafter, after, n)?;
                let (kv, drafter) = (kv.to_owned(), drafter.kind());
                rows.push(Row { kv, drafter, depth, n, plain, draft, verify, verify_alone, observe });
            }
        }
        bar.finish_and_clear();
    }
    Ok(())
}

/// Leaves the session at `depth`, and `n` tokens behind it computed, so that the drafter has something to go by. Returns
/// the tokens that follow.
fn start<'a>(
    cli: &Cli,
    session: &mut Session,
    text: &'a [u32],
    depth: u32,
    n: u32,
) -> Result<&'a [u32], Failure> {
    let (before, after) = text.split_at(depth as usize);
    session.clear();
    measure::go_to(cli, session, before)?;
    let (computed, after) = after.split_at(n as usize);
    session.prefill(computed)?;
    Ok(after)
}

/// Milliseconds of verification, drafting and observation of `n` drafts.
fn round(
    cli: &Cli,
    session: &mut Session,
    drafter: &Drafter,
    after: &[u32],
    n: u32,
) -> Result<(f64, f64, f64), Failure> {
    let mut drafted = 0;
    let draft = time(cli, || session.draft_only(after[0], n).map(|n| drafted = n))?;
    // A look-up finds what it finds.
    if drafted < n as usize && drafter.weight_bytes() > 0 {
        return Err(format!("the drafter drafts {drafted} tokens in place of {n}").into());
    }
    let verify = time(cli, || session.verify_only(&after[..n as usize + 1]))?;
    let observe = time(cli, || session.observe_only(n + 1))?;
    Ok((verify, draft, observe))
}

/// Milliseconds of `work`, the median of the repetitions after one that builds graphs.
fn time(cli: &Cli, mut work: impl FnMut() -> gemma4::Result<()>) -> gemma4::Result<f64> {
    let mut all = Vec::new();
    for round in 0..=cli.repeat {
        let started = Instant::now();
        for _ in 0..TIMES {
            work()?;
        }
        if round > 0 {
            all.push(1e3 * started.elapsed().as_secs_f64() / f64::from(TIMES));
        }
    }
    all.sort_by(f64::total_cmp);
    Ok(all.get(all.len() / 2).copied().unwrap_or(f64::NAN))
}

/// Prints a table, if there is anything in it.
pub fn print(rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    println!("\nmilliseconds of a round; tokens that it must bring to be no slower than plain steps");
    println!(
        "{:<16} {:<8} {:>8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>9}",
        "kv",
        "drafter",
        "depth",
        "drafts",
        "plain",
        "draft",
        "a draft",
        "pass",
        "no drafter",
        "take in",
        "tokens",
        "accepted"
    );
    for row in rows {
        println!(
            "{:<16} {:<8} {:>8} {:>6} {:>8.3} {:>8.3} {:>8.3} {:>8.3} {:>10.3} {:>8.3} {:>8.2} {:>9.2}",
            row.kv,
            row.drafter,
            row.depth,
            row.n,
            row.plain,
            row.draft,
            row.draft / f64::from(row.n),
            row.verify,
            row.verify_alone,
            row.observe,
            row.break_even(),
            row.break_even() - 1.0
        );
    }
}
