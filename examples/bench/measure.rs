//! The measurements.

use crate::card::{Card, Cards, Energy};
use crate::{Cli, cost, draft};
use gemma4::{GenerateOptions, Model, PrefillOptions, Session, SparseLayer, SparsePrefill};
use gemma4_examples::{Failure, ModelArgs, progress_bar};
use serde::Serialize;
use std::time::Instant;

/// Everything that was measured.
#[derive(Default, Serialize)]
pub struct Report {
    /// The model, the device, and what was the same for all rows.
    pub about: String,
    /// Speeds.
    pub rows: Vec<Row>,
    /// Whole prompts, by the chunks that were measured at several depths.
    pub prompts: Vec<Prompt>,
    /// Shares of the keys that block-sparse prefill read.
    pub keys_read: Vec<KeysRead>,
    /// Rounds of drafts, part by part.
    pub rounds: Vec<cost::Row>,
    /// Memory of the graphics card with the sessions that measured.
    pub card: Vec<CardMemory>,
    /// Memory of sessions, as planned: nothing of it was taken.
    pub memory: Vec<Memory>,
    /// Texts with and without drafters.
    #[serde(serialize_with = "drafters")]
    pub drafters: Vec<draft::Row>,
}

fn drafters<S: serde::Serializer>(rows: &[draft::Row], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rows.iter().map(draft::Row::json))
}

/// Speed of one thing.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Types of the KV cache.
    pub kv: String,
    /// `prompt` or `decode`.
    pub what: &'static str,
    /// Tokens computed in one measurement.
    pub n: u32,
    /// Tokens in the cache before.
    pub depth: u32,
    /// Median.
    pub tokens_per_second: f64,
    /// Slowest to fastest repetition.
    pub all: Vec<f64>,
    /// What the graphics card took.
    pub energy: Option<Energy>,
}

/// Memory of a graphics card behind all measurements of one session, which keeps what it once took.
#[derive(Debug, Serialize)]
pub struct CardMemory {
    /// Types of the KV cache.
    pub kv: String,
    /// Capacity in tokens.
    pub n_ctx: u32,
    /// In use beyond what was before the model was loaded.
    pub used_mib: f64,
    /// Weights, cache and intermediate values as planned.
    pub planned_mib: f64,
}

/// Time of a whole prompt, from the times of chunks at some depths: between these it is taken to grow evenly.
#[derive(Debug, Serialize)]
pub struct Prompt {
    /// Types of the KV cache.
    pub kv: String,
    /// Tokens of the chunks that were measured.
    pub chunk: u32,
    /// Tokens of the prompt: up to the end of the chunk at a depth.
    pub tokens: u32,
    /// The integral.
    pub seconds: f64,
}

/// What a chunk of a prompt read, block-sparse.
#[derive(Debug, Serialize)]
pub struct KeysRead {
    /// Types of the KV cache.
    pub kv: String,
    /// Tokens of the chunk.
    pub n: u32,
    /// Tokens in the cache before.
    pub depth: u32,
    /// Share of the keys that were read, over all full-attention layers.
    pub keys: f32,
}

/// Memory of a session.
#[derive(Debug, Serialize)]
pub struct Memory {
    /// Types of the KV cache.
    pub kv: String,
    /// Capacity in tokens.
    pub n_ctx: u32,
    /// The KV cache.
    pub kv_bytes: u64,
    /// Intermediate values.
    pub compute_bytes: u64,
    /// These, and the weights.
    pub total_bytes: u64,
}

impl Row {
    fn new(kv: &str, what: &'static str, n: u32, depth: u32, seconds: &[f64]) -> Row {
        let mut all: Vec<f64> = seconds.iter().map(|s| f64::from(n) / s).collect();
        all.sort_by(f64::total_cmp);
        let tokens_per_second = all.get(all.len() / 2).copied().unwrap_or(f64::NAN);
        Row { kv: kv.to_owned(), what, n, depth, tokens_per_second, all, energy: None }
    }

    /// Median of the repetitions, in tokens a second.
    pub fn median(&self) -> f64 {
        self.tokens_per_second
    }

    /// Fastest less slowest, as a part of the median.
    pub fn spread(&self) -> f64 {
        match (self.all.first(), self.all.last()) {
            (Some(low), Some(high)) => (high - low) / self.median(),
            _ => f64::NAN,
        }
    }
}

/// Whole prompts up to each depth, for every chunk size that was measured from depth 0 on.
fn prompts(rows: &[Row]) -> Vec<Prompt> {
    let mut out = Vec::new();
    let chunks = rows.iter().filter(|row| row.what == "prompt");
    let mut starts: Vec<&Row> = chunks.clone().filter(|row| row.depth == 0).collect();
    starts.dedup_by_key(|row| (row.kv.clone(), row.n));
    for start in starts {
        let mut points: Vec<(u32, f64)> = chunks
            .clone()
            .filter(|row| row.kv == start.kv && row.n == start.n)
            .map(|row| (row.depth, 1.0 / row.median()))
            .collect();
        points.sort_by_key(|point| point.0);
        points.dedup_by_key(|point| point.0);
        let mut seconds = 0.0;
        for (i, &(depth, pace)) in points.iter().enumerate() {
            if let Some(&(before, other)) = i.checked_sub(1).and_then(|i| points.get(i)) {
                seconds += f64::from(depth - before) * 0.5 * (pace + other);
                let (kv, chunk, tokens) = (start.kv.clone(), start.n, depth + start.n);
                // A sum over chunks, not an integral: half of the first and of the last one are still missing.
                let ends = 0.5 * f64::from(start.n) * (1.0 / start.median() + pace);
                out.push(Prompt { kv, chunk, tokens, seconds: seconds + ends });
            }
        }
    }
    out
}

/// Ordinary tokens in a fixed, irregular order: speed does not depend on the text.
pub fn tokens(n_vocab: u32, n: u32) -> Vec<u32> {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % n_vocab
    };
    (0..n).map(|_| next()).collect()
}

/// Measures everything that the command line asks for.
pub fn run(cli: &Cli) -> Result<Report, Failure> {
    let types = cli.kv_types()?;
    let cards = Cards::idle();
    let model = cli.model.load()?;
    // Of several none tells about the whole.
    let card = match model.devices()[..] {
        [device] => cards.of(device),
        _ => None,
    };
    let mut report = Report::default();
    for kv in &types {
        let args = ModelArgs { kv: kv.clone(), ..cli.model.clone() };
        let name = kv.to_string();
        speeds(cli, &model, &args, &name, card.as_ref(), &mut report)?;
        cost::measure(cli, &model, &args, &name, &mut report.rounds)?;
        for &n_ctx in &cli.context {
            let plan = Session::plan(&model, &args.session(n_ctx))?;
            let (kv_bytes, compute_bytes, total_bytes) = (plan.kv, plan.compute, plan.total());
            report.memory.push(Memory { kv: name.clone(), n_ctx, kv_bytes, compute_bytes, total_bytes });
        }
    }
    report.prompts = prompts(&report.rows);
    if !cli.drafter.is_empty() {
        report.drafters = draft::measure(&model, &cli.model, &cli.drafter, cli.draft_tokens, cli.repeat)?;
    }
    report.about = format!(
        "{} on {}, batch {}, median of {}, threads {}",
        model.path().file_name().unwrap_or_default().to_string_lossy(),
        model.devices().iter().map(|device| format!("{device:?}")).collect::<Vec<_>>().join(" and "),
        cli.model.batch,
        cli.repeat,
        cli.model.threads.map_or("as many as cores".to_owned(), |n| n.to_string()),
    );
    Ok(report)
}

/// Passes of one measurement of verification.
const VERIFICATIONS: u32 = 16;

/// The mean over layers; nothing if the prompt was computed densely.
fn keys_read(kv: &str, n: u32, depth: u32, layers: &[SparseLayer]) -> Option<KeysRead> {
    let sum: f32 = layers.iter().map(|layer| layer.keys).sum();
    let keys = sum / layers.len() as f32;
    (!layers.is_empty()).then(|| KeysRead { kv: kv.to_owned(), n, depth, keys })
}

/// How prompts are computed.
fn prefill_options(cli: &Cli) -> PrefillOptions {
    // What is measured is a chunk of a longer prompt, whose end is not here.
    let sparse = cli.sparse.map(|alpha| SparsePrefill::default().alpha(alpha).last_full(0));
    PrefillOptions::default().sparse(sparse)
}

fn speeds(
    cli: &Cli,
    model: &Model,
    args: &ModelArgs,
    kv: &str,
    card: Option<&Card>,
    report: &mut Report,
) -> Result<(), Failure> {
    let rows = &mut report.rows;
    let deepest = cli.depth.iter().max().copied().unwrap_or(0);
    let longest = deepest
        + cli
            .prompt
            .iter()
            .max()
            .copied()
            .unwrap_or(0)
            .max(cli.decode)
            .max(cli.verify.iter().max().copied().unwrap_or(0))
        + 1;
    let prefill = prefill_options(cli);
    let options = args.session(longest).prefill(prefill.clone());
    let mut session = Session::new(model, &options)?;
    let text = tokens(model.hparams().n_vocab, longest);
    let bar = progress_bar("measuring", "{pos}/{len}");
    bar.set_length(((cli.prompt.len() + 1) * cli.depth.len() * (cli.repeat + 1)) as u64);
    for &depth in &cli.depth {
        let (before, after) = text.split_at(depth as usize);
        if cli.fill {
            // What was computed at another depth is no filling.
            session.clear();
        }
        for &n in cli.prompt.iter().filter(|&&n| n > 0) {
            let seconds = repeat(cli, &mut session, before, |session| {
                bar.inc(1);
                session.prefill(&after[..n as usize])
            })?;
            rows.push(Row::new(kv, "prompt", n, depth, &seconds));
            if cli.sparse_share.is_some() {
                go_to(cli, &mut session, before)?;
                match session.prefill_reporting(&after[..n as usize], &prefill) {
                    // Devices that compute dense attention do not tell.
                    Err(gemma4::Error::Device { .. }) => {}
                    layers => report.keys_read.extend(keys_read(kv, n, depth, &layers?)),
                }
            }
        }
        for &n in cli.verify.iter().filter(|&&n| n > 0) {
            let seconds = repeat(cli, &mut session, before, |session| {
                bar.inc(1);
                (0..VERIFICATIONS).try_for_each(|_| session.verify_only(&after[..n as usize]))
            })?;
            let seconds: Vec<_> = seconds.iter().map(|s| s / f64::from(VERIFICATIONS)).collect();
            rows.push(Row::new(kv, "verify", n, depth, &seconds));
        }
        if cli.decode > 0 {
            // A pass for each token, and the likeliest one chosen: what a user waits for.
            let how = GenerateOptions::greedy().max_tokens(cli.decode as usize).ignore_eos(true);
            let seconds = repeat(cli, &mut session, before, |session| {
                bar.inc(1);
                session.generate(&after[..1], &how)?.try_for_each(|piece| piece.map(|_| ()))
            })?;
            let mut row = Row::new(kv, "decode", cli.decode, depth, &seconds);
            if let (Some(card), Some(seconds)) = (card, cli.energy) {
                row.energy = card.energy(cli.decode, seconds, || {
                    go_to(cli, &mut session, before)?;
                    session.generate(&after[..1], &how)?.try_for_each(|piece| piece.map(|_| ()))
                })?;
            }
            rows.push(row);
        }
    }
    if let Some(used_mib) = card.and_then(Card::used_mib) {
        let plan = Session::plan(model, &options)?;
        let planned_mib = (plan.weights + plan.kv + plan.compute) as f64 / f64::from(1 << 20);
        report.card.push(CardMemory { kv: kv.to_owned(), n_ctx: longest, used_mib, planned_mib });
    }
    bar.finish_and_clear();
    Ok(())
}

/// Seconds of each repetition of `work`, every time with the same tokens before.
fn repeat(
    cli: &Cli,
    session: &mut Session,
    before: &[u32],
    mut work: impl FnMut(&mut Session) -> gemma4::Result<()>,
) -> gemma4::Result<Vec<f64>> {
    let mut seconds = Vec::new();
    // The first round warms caches and builds graphs.
    for round in 0..=cli.repeat {
        go_to(cli, session, before)?;
        let started = Instant::now();
        work(session)?;
        if round > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}

/// Leaves the session with the tokens `before`.
pub fn go_to(cli: &Cli, session: &mut Session, before: &[u32]) -> gemma4::Result<()> {
    // What was filled can be had again everywhere, and what is within the window without being read again.
    let n = before.len();
    let rewound = if cli.fill { session.rewind_synthetic(n).is_ok() } else { session.truncate(n).is_ok() };
    if rewound && session.len() == n {
        return Ok(());
    }
    session.clear();
    match (cli.fill, cli.sparse_share) {
        (true, Some(share)) => session.fill_blocks(before, SparsePrefill::default().block, share),
        (true, None) => session.fill_synthetic(before),
        (false, _) => session.prefill(before),
    }
}
