//! Options of models and sessions, the same for all programs.

use crate::{Failure, hub, progress_bar};
use clap::{Args, ValueEnum};
use gemma4::{Device, KvPolicy, LoadOptions, LoadProgress, Model, SamplingOptions, SessionOptions, devices};
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
    /// GGUF file of a Gemma 4 model (of a split file, the first part), or `hf:OWNER/REPO[:FILE-OR-QUANT]`
    /// [default: the tiny model]
    #[arg(short, long)]
    pub model: Option<String>,
    /// Device that computes, by name, such as CPU or CUDA0, or several, such as CUDA0,CUDA1, that take turns layer by layer
    /// [default: the first graphics card, else CPU]
    #[arg(long, value_delimiter = ',')]
    pub device: Vec<String>,
    /// Parts of the weights on each of several devices, such as 3,1 [default: by free memory]
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    pub shares: Vec<f32>,
    /// Layers on the devices, counted from the last, and the output head as one more; the rest stays in main memory
    /// [default: all]
    #[arg(long, value_name = "N")]
    pub n_gpu_layers: Option<u32>,
    /// Layers, counted from the first, whose experts stay in main memory
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub n_cpu_moe: u32,
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
    /// auto:6GiB, captured:LAYERS, or a preset's name
    #[arg(long, default_value_t = KvPolicy::F16)]
    pub kv: KvPolicy,
}

impl ModelArgs {
    /// The file to load, which is downloaded first if its name says so.
    ///
    /// # Errors
    /// As [`hub::resolve`].
    pub fn path(&self) -> Result<PathBuf, Failure> {
        self.model.as_deref().map_or_else(|| Ok(TINY.into()), hub::resolve)
    }

    /// How the model is loaded.
    ///
    /// # Errors
    /// If there is no device of a name.
    pub fn load_options(&self) -> Result<LoadOptions, Failure> {
        let repack = match self.repack {
            Repack::Auto => None,
            Repack::On => Some(true),
            Repack::Off => Some(false),
        };
        let devices = self.device.iter().map(|name| find_device(name)).collect::<gemma4::Result<Vec<_>>>()?;
        Ok(LoadOptions::default()
            .use_mmap(!self.no_mmap)
            .repack(repack)
            .devices(devices)
            .shares(self.shares.iter().copied())
            .n_gpu_layers(self.n_gpu_layers)
            .n_cpu_moe(self.n_cpu_moe))
    }

    /// Loads the model with a progress bar.
    ///
    /// # Errors
    /// As [`hub::resolve`], [`load_options`](Self::load_options) and [`Model::load_with`].
    pub fn load(&self) -> Result<Model, Failure> {
        let (path, options) = (self.path()?, self.load_options()?);
        let bar = progress_bar("loading", "{bytes}/{total_bytes}");
        let model = Model::load_with(path, &options, |LoadProgress { done, total, .. }| {
            bar.set_length(total);
            bar.set_position(done);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        Ok(model?)
    }

    /// Options of a session of `n_ctx` tokens.
    pub fn session(&self, n_ctx: u32) -> SessionOptions {
        SessionOptions::default().n_ctx(n_ctx).n_batch(self.batch).n_threads(self.threads).kv(self.kv.clone())
    }
}

fn find_device(name: &str) -> gemma4::Result<Device> {
    let all = devices()?;
    all.iter().find(|d| d.name().eq_ignore_ascii_case(name)).copied().ok_or_else(|| gemma4::Error::Device {
        name: name.into(),
        why: format!("no such device; there are {all:?}"),
    })
}

/// How tokens are chosen. What is not given is the program's own choice.
#[derive(Args, Clone, Debug, Default)]
pub struct SamplingArgs {
    /// Randomness; 0 takes the most likely token every time
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Candidates: the most likely ones; 0 for all
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Candidates: the smallest set with this probability
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Candidates: at least this part of the best one's probability
    #[arg(long)]
    pub min_p: Option<f32>,
    /// Makes random choices repeatable
    #[arg(long)]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// `default` with what was given.
    pub fn over(&self, default: SamplingOptions) -> SamplingOptions {
        let SamplingOptions { temperature, top_k, top_p, min_p, seed, .. } = default;
        default
            .temperature(self.temperature.unwrap_or(temperature))
            .top_k(self.top_k.unwrap_or(top_k))
            .top_p(self.top_p.unwrap_or(top_p))
            .min_p(self.min_p.unwrap_or(min_p))
            .seed(self.seed.or(seed))
    }
}
