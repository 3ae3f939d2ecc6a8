//! What a generation cost.

use super::speculate::RoundTimes;
use crate::drafter::Drafter;
use std::fmt;
use std::time::Duration;

/// Figures of one [`Generation`](super::Generation).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationStats {
    /// Tokens of the prompt that were computed.
    pub prompt_tokens: usize,
    /// Time from the start of prefill to its end.
    pub prompt_time: Duration,
    /// Tokens generated, the end token included.
    pub generated_tokens: usize,
    /// Time after prefill spent on generated tokens: computing, sampling and detokenising, without the
    /// caller's own work between two tokens.
    pub decode_time: Duration,
    /// Passes of the model behind `decode_time`: the first token comes from prefill, and without a drafter each
    /// other one from a pass of its own.
    pub decode_steps: usize,
    /// Time from the start of prefill to the first token.
    pub time_to_first_token: Option<Duration>,
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// Bytes of memory for intermediate values.
    pub compute_bytes: u64,
    /// The most memory that the process ever held, in bytes, where the system tells (Linux).
    pub peak_memory: Option<u64>,
    /// What the drafter did; `None` without one.
    pub speculation: Option<SpeculationStats>,
}

/// What a drafter did for a generation.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SpeculationStats {
    /// The [kind](Drafter::kind) of the drafter.
    pub drafter: String,
    /// Passes of the model with at least one drafted token.
    pub rounds: usize,
    /// Passes without.
    pub plain_steps: usize,
    /// Tokens drafted and verified.
    pub drafted: usize,
    /// Tokens drafted that became part of the text.
    pub accepted: usize,
    /// By position in the draft: how many were judged there, since all before them stood, and how many of them
    /// stood.
    pub positions: Vec<[usize; 2]>,
    /// Time for drafting, and for showing the drafter what was committed.
    pub draft_time: Duration,
    /// Time for passes of the model.
    pub verify_time: Duration,
    /// Time for choosing tokens.
    pub sample_time: Duration,
    /// Time of a pass without drafts: the mean of this generation's, or, where it had none, of the session's last
    /// ones. `None` if there was none at all.
    pub plain_step: Option<Duration>,
    plain_time: Duration,
}

impl SpeculationStats {
    pub(super) fn new(drafter: &Drafter) -> SpeculationStats {
        SpeculationStats { drafter: drafter.kind().to_owned(), ..SpeculationStats::default() }
    }

    /// `usual` is what a pass without drafts took in this session of late.
    pub(super) fn add_round(&mut self, n_drafts: usize, times: RoundTimes, usual: Option<Duration>) {
        if n_drafts == 0 {
            self.plain_steps += 1;
            self.plain_time += times.verify;
        } else {
            self.rounds += 1;
        }
        self.plain_step = match u32::try_from(self.plain_steps) {
            Ok(n) if n > 0 => Some(self.plain_time / n),
            _ => usual,
        };
        self.drafted += n_drafts;
        self.draft_time += times.draft;
        self.verify_time += times.verify;
    }

    pub(super) fn add_judgement(&mut self, position: usize, accepted: bool) {
        if self.positions.len() <= position {
            self.positions.resize(position + 1, [0, 0]);
        }
        self.positions[position][0] += 1;
        self.positions[position][1] += usize::from(accepted);
        self.accepted += usize::from(accepted);
    }

    /// Accepted tokens for each round.
    pub fn mean_accepted(&self) -> f64 {
        self.accepted as f64 / self.rounds.max(1) as f64
    }

    /// How many times as fast as without the drafter: the passes that the text would have taken, over the time
    /// that it took. `None` while the time of a plain pass is not known.
    pub fn speed_up(&self) -> Option<f64> {
        let plain = self.plain_step?.as_secs_f64();
        let tokens = (self.rounds + self.plain_steps + self.accepted) as f64;
        let sample = self.sample_time.as_secs_f64();
        let took = self.draft_time.as_secs_f64() + self.verify_time.as_secs_f64() + sample;
        (took > 0.0).then(|| (tokens * plain + sample) / took)
    }

    /// Shares of drafting, of the model and of choosing tokens in the time of the three.
    pub fn shares(&self) -> [f64; 3] {
        let times = [self.draft_time, self.verify_time, self.sample_time].map(|t| t.as_secs_f64());
        let sum: f64 = times.iter().sum();
        times.map(|t| if sum > 0.0 { t / sum } else { 0.0 })
    }
}

impl fmt::Display for SpeculationStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
        writeln!(
            f,
            "drafter {}: {} of {} drafted tokens accepted ({:.0} %) in {} rounds, {:.2} each; {} plain steps",
            self.drafter,
            self.accepted,
            self.drafted,
            percent(self.accepted, self.drafted),
            self.rounds,
            self.mean_accepted(),
            self.plain_steps
        )?;
        if !self.positions.is_empty() {
            write!(f, "accepted by position:")?;
            for [judged, accepted] in &self.positions {
                write!(f, " {:.0}%", percent(*accepted, *judged))?;
            }
            writeln!(f)?;
        }
        let [draft, verify, sample] = self.shares().map(|share| 100.0 * share);
        write!(f, "time: {draft:.0} % drafting, {verify:.0} % verifying, {sample:.0} % sampling")?;
        match self.speed_up() {
            Some(speed_up) => write!(f, "; {speed_up:.2} x plain decoding"),
            None => Ok(()),
        }
    }
}

impl GenerationStats {
    /// Prompt tokens a second.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt_time)
    }

    /// Generated tokens a second, the first one apart.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode_time)
    }
}

fn rate(n: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// Peak resident memory of this process in bytes.
pub(super) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

impl fmt::Display for GenerationStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "prompt    {:>6} tokens  {:>9.1} tokens/s",
            self.prompt_tokens,
            self.prompt_tokens_per_second()
        )?;
        writeln!(
            f,
            "generated {:>6} tokens  {:>9.1} tokens/s",
            self.generated_tokens,
            self.decode_tokens_per_second()
        )?;
        if let Some(first) = self.time_to_first_token {
            writeln!(f, "time to first token   {:>9.1} ms", first.as_secs_f64() * 1e3)?;
        }
        write!(
            f,
            "memory: KV cache {:.1} MiB, compute {:.1} MiB",
            mib(self.kv_bytes),
            mib(self.compute_bytes)
        )?;
        if let Some(peak) = self.peak_memory {
            write!(f, ", process peak {:.1} MiB", mib(peak))?;
        }
        match &self.speculation {
            Some(speculation) => write!(f, "\n{speculation}"),
            None => Ok(()),
        }
    }
}
