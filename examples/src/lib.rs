//! What the example programs share: options of models and sessions, progress bars.

use clap::{Args, ValueEnum};
use gemma4::{DType, Device, KvConfig, LoadOptions, LoadProgress, Model, Result, SessionOptions, devices};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// The model that comes with the repository.
pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/tiny-gemma4-q8_0.gguf");

/// Element types of the KV cache, by ggml's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)] // the names are the documentation
pub enum KvType {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q5_1")]
    Q5_1,
    #[value(name = "q5_0")]
    Q5_0,
    #[value(name = "q4_1")]
    Q4_1,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "iq4_nl")]
    Iq4Nl,
}

impl From<KvType> for DType {
    fn from(kv: KvType) -> DType {
        match kv {
            KvType::F32 => DType::F32,
            KvType::F16 => DType::F16,
            KvType::Bf16 => DType::BF16,
            KvType::Q8_0 => DType::Q8_0,
            KvType::Q5_1 => DType::Q5_1,
            KvType::Q5_0 => DType::Q5_0,
            KvType::Q4_1 => DType::Q4_1,
            KvType::Q4_0 => DType::Q4_0,
            KvType::Iq4Nl => DType::IQ4_NL,
        }
    }
}

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
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t = KvType::F16)]
    pub kv: KvType,
}

impl ModelArgs {
    /// The file to load.
    pub fn path(&self) -> PathBuf {
        self.model.clone().unwrap_or_else(|| TINY.into())
    }

    /// The device that will compute.
    pub fn find_device(&self) -> Result<Device> {
        match &self.device {
            Some(name) => find_device(name),
            None => devices()?.first().copied().map_or_else(Device::cpu, Ok),
        }
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
        SessionOptions::default()
            .n_ctx(n_ctx)
            .n_batch(self.batch)
            .n_threads(self.threads)
            .kv(KvConfig::uniform(self.kv.into()))
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
