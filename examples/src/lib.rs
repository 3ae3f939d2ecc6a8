//! What the example programs share: options of models and sessions, progress bars.

mod drafter;

pub use drafter::{DrafterArgs, named};

use clap::{Args, ValueEnum};
use gemma4::{Device, KvPolicy, LoadOptions, LoadProgress, Model, Result, SessionOptions, devices};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// The model that comes with the repository.
pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/tiny-gemma4-q8_0.gguf");

/// Whether the CPU computes from rearranged weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Repack {
    /// If memory allows.
    Auto,
    /// Yes, or fail.
    On,
    /// No.
    Off,
}

/// Which model, and where it runs.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// GGUF file of a Gemma 4 model; of a split file, the first part [default: the tiny model]
    #[arg(short, long)]
    pub model: Option<PathBuf>,
    /// Device that computes, by name, such as CPU or CUDA0 [default: the first graphics card, else CPU]
    #[arg(long)]
    pub device: Option<String>,
    /// Copy the weights into memory instead of mapping the file
    #[arg(long)]
    pub no_mmap: bool,
    /// Keep a copy of the weights in the order of the CPU's fastest kernels
    #[arg(long, value_enum, default_value_t = Repack::Auto)]
    pub repack: Repack,
    /// Threads that compute on the CPU [default: one a physical core]
    #[arg(short, long)]
    pub threads: Option<usize>,
    /// Most tokens computed at once in prefill
    #[arg(long, default_value_t = 512)]
    pub batch: u32,
    /// Types of the KV cache: q8_0 for all, q8_0/q4_0 for keys/values, full=TYPES,swa=TYPES, auto,
    /// auto:6GiB, captured[:LAYERS], or a preset's name
    #[arg(long, default_value_t = KvPolicy::F16)]
    pub kv: KvPolicy,
}

impl ModelArgs {
    /// The file to load.
    pub fn path(&self) -> PathBuf {
        self.model.clone().unwrap_or_else(|| TINY.into())
    }

    /// Loads the model with a progress bar.
    pub fn load(&self) -> Result<Model> {
        let mut options = LoadOptions::default().use_mmap(!self.no_mmap);
        options = options.repack(match self.repack {
            Repack::Auto => None,
            Repack::On => Some(true),
            Repack::Off => Some(false),
        });
        if let Some(name) = &self.device {
            options = options.device(find_device(name)?);
        }
        let bar = progress_bar("loading", "{bytes}/{total_bytes}");
        let model = Model::load_with(self.path(), &options, |LoadProgress { done, total, .. }| {
            bar.set_length(total);
            bar.set_position(done);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        model
    }

    /// Options of a session of `n_ctx` tokens.
    pub fn session(&self, n_ctx: u32) -> SessionOptions {
        SessionOptions::default().n_ctx(n_ctx).n_batch(self.batch).n_threads(self.threads).kv(self.kv.clone())
    }
}

fn find_device(name: &str) -> Result<Device> {
    let all = devices()?;
    all.iter().find(|d| d.name().eq_ignore_ascii_case(name)).copied().ok_or_else(|| gemma4::Error::Device {
        name: name.into(),
        why: format!("no such device; there are {all:?}"),
    })
}

/// A bar on stderr, if that is a terminal.
pub fn progress_bar(what: &'static str, counts: &str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(0), target).with_message(what);
    if let Ok(style) = ProgressStyle::with_template(&format!("{{msg}} [{{wide_bar}}] {counts}")) {
        bar.set_style(style);
    }
    bar
}

/// Sends log lines to stderr; warnings only, unless `RUST_LOG` says otherwise.
pub fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
