//! Measures gemma4 beside llama.cpp: the same process, threads, tokens and settings, in turns.
//!
//! [`peer`] is llama.cpp, [`ours`] is gemma4; both are an [`Engine`], and [`compare`] runs them.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub mod ours;
pub mod peer;
mod run;

pub use run::{Plan, compare};

/// What everything here returns.
pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// How the keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kv {
    /// Half precision.
    F16,
    /// 8.5 bits a value.
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8,
    /// 4.5 bits a value.
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4,
    /// 3.5 bits a value. llama.cpp has no such type and runs with Q4_0.
    #[value(name = "tq3_0")]
    #[serde(rename = "tq3_0")]
    Tq3,
}

/// What both engines are opened with.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// The GGUF file.
    pub model: PathBuf,
    /// Threads, for prompts and for single tokens alike.
    pub threads: usize,
    /// Type of the cache.
    pub kv: Kv,
    /// The most tokens of one graph.
    pub batch: usize,
    /// The most tokens the cache has to hold.
    pub context: usize,
}

/// Something that evaluates tokens of one sequence.
pub trait Engine {
    /// Its name in tables.
    fn name(&self) -> &'static str;

    /// Version, for the record.
    fn about(&self) -> String;

    /// Number of tokens in the vocabulary.
    fn vocab(&self) -> usize;

    /// Time to evaluate `ids` from an empty cache until the logits of the last one are readable.
    fn prompt(&mut self, ids: &[u32]) -> Result<Duration>;

    /// Fills the cache with `context`, untimed, then evaluates `ids` one at a time: the time of
    /// each, until its logits are readable. `context` of a call may go on where the last one's stopped.
    fn decode(&mut self, context: &[u32], ids: &[u32]) -> Result<Vec<Duration>>;
}

/// One measured number.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The engine's name.
    pub engine: &'static str,
    /// `prompt` or `decode`.
    pub what: &'static str,
    /// Tokens that were timed: the prompt's length, or how many single tokens.
    pub n: usize,
    /// Tokens that were in the cache before.
    pub depth: usize,
    /// `n` over the time of all.
    pub tokens_per_s: f64,
    /// Milliseconds: of the whole prompt, or of one decoded token.
    pub ms: f64,
    /// How much faster than the first engine, round by round; the median of the rounds.
    pub ratio: f64,
}
