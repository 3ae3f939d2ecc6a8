//! What the integration tests share: paths of the data, golden fixtures, perplexity.

pub mod acceptance;
pub mod bad;
pub mod experiments;
pub mod golden;
pub mod golden_draft;
pub mod memory;
pub mod perplexity;
pub mod quality;
pub mod quantise;
pub mod rows;
pub mod synth;
pub mod tiny;
pub mod vocabulary;

use gemma4::{LoadOptions, Model, devices};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A path below the repository's root.
pub fn repo(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}

/// Loads a model where the environment says, so that the same checks run on machines of many kinds:
/// `GEMMA4_DEVICES=CUDA0,CUDA1`, `GEMMA4_GPU_LAYERS=N` and `GEMMA4_CPU_MOE=N` are those options of `generate`.
pub fn load(path: &Path) -> Result<Model, gemma4::Error> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let options = LoadOptions::default()
        .n_gpu_layers(number("GEMMA4_GPU_LAYERS"))
        .n_cpu_moe(number("GEMMA4_CPU_MOE").unwrap_or(0));
    load_on(path, std::env::var("GEMMA4_DEVICES").ok().as_deref(), options)
}

/// Loads a model on devices, whose names commas separate. One more than others know is `CUDA-on-CPU`, the CUDA kernels without a
/// card.
pub fn load_on(path: &Path, names: Option<&str>, mut options: LoadOptions) -> Result<Model, gemma4::Error> {
    if let Some(names) = names {
        if names.split(',').any(|name| name == cuda_on_cpu::NAME) {
            cuda_on_cpu::register();
        }
        let all = devices()?;
        let named = |name: &str| {
            let missing = || gemma4::Error::Device { name: name.into(), why: format!("there are {all:?}") };
            all.iter().copied().find(|device| device.name() == name).ok_or_else(missing)
        };
        options = options.devices(names.split(',').map(named).collect::<Result<Vec<_>, _>>()?);
    }
    Model::load_with(path, &options, |_| ControlFlow::Continue(()))
}
