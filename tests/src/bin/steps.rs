//! `steps MODEL...`: how a decode step looks to a GPU. Fails if a generation of a thousand tokens instantiates more graphs
//! than it builds, or if a step takes more kernels than the fused ones leave.

use gemma4::{Device, GenerateOptions, KvPolicy, LoadOptions, Model, Session, SessionOptions, devices};
use std::ops::ControlFlow;
use std::process::ExitCode;

/// Kernels of a step that do not belong to a layer, at most: embedding, masks, angles, head and choice.
const BESIDE: u64 = 14;
/// Of a layer: products, attention and its merge, and one kernel for each run between them.
const DENSE: u64 = 11;
/// Of a layer with experts, more.
const EXPERTS: u64 = 5;

fn main() -> ExitCode {
    let found = devices().map(|all| all.into_iter().find(|device| device.gpu_graphs().is_some()));
    let Ok(Some(gpu)) = found else {
        eprintln!("steps: no CUDA device with the patch series");
        return ExitCode::FAILURE;
    };
    let mut failed = false;
    for path in std::env::args().skip(1) {
        for kv in ["f16", "q8_0", "tq3_0"] {
            match check(&gpu, &path, kv) {
                Ok(ok) => failed |= !ok,
                Err(e) => {
                    eprintln!("steps: {path}, {kv}: {e}");
                    failed = true;
                }
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn check(gpu: &Device, path: &str, kv: &str) -> Result<bool, Box<dyn std::error::Error>> {
    let model = Model::load_with(path, &LoadOptions::default().device(*gpu), |_| ControlFlow::Continue(()))?;
    let layers = model.hparams().layers.len() as u64;
    let options = SessionOptions::default().n_ctx(1280).kv(kv.parse::<KvPolicy>()?);
    let mut session = Session::new(&model, &options)?;
    let graphs = |gpu: &Device| gpu.gpu_graphs().ok_or("no graphs");
    let (before, built) = (graphs(gpu)?, session.graphs_built());
    let how = GenerateOptions::greedy().max_tokens(1000).ignore_eos(true);
    let n = session.generate(&[2, 3, 4], &how)?.try_fold(0, |n, piece| piece.map(|_| n + 1))?;
    let after = graphs(gpu)?;
    let (instances, built) = (after.instantiated - before.instantiated, session.graphs_built() - built);
    let most = BESIDE + layers * (DENSE + if model.hparams().n_expert > 0 { EXPERTS } else { 0 });
    let ok = n == 1000 && (1..=built).contains(&instances) && after.kernels <= most;
    println!(
        "{} {} {kv}: {n} tokens, {built} graphs built, {instances} instantiated, {} kernels a step of {layers} layers \
         (at most {most})",
        if ok { "ok  " } else { "FAIL" },
        model.path().file_name().unwrap_or_default().to_string_lossy(),
        after.kernels,
    );
    Ok(ok)
}
