//! What a generation cost.

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
    /// Decode steps behind `decode_time`: the first token comes from prefill.
    pub decode_steps: usize,
    /// Time from the start of prefill to the first token.
    pub time_to_first_token: Option<Duration>,
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// Bytes of memory for intermediate values.
    pub compute_bytes: u64,
    /// The most memory that the process ever held, in bytes, where the system tells (Linux).
    pub peak_memory: Option<u64>,
}

impl GenerationStats {
    /// Prompt tokens a second.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt_time)
    }

    /// Generated tokens a second, the first one apart.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.decode_steps, self.decode_time)
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
        Ok(())
    }
}
