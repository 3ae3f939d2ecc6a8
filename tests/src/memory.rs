//! What caches of the published models take, by policy, beside llama.cpp's rule.

use crate::synth::{sizes, write_hollow};
use gemma4::{HParams, KvPolicy, LayerKind, LoadOptions, Model, Result, SessionOptions};
use std::ops::ControlFlow;
use std::path::Path;

/// Contexts of the table.
pub const CONTEXTS: [u32; 3] = [65_536, 262_144, 1_048_576];

/// Policies of the table, by the name that the programs take.
pub const POLICIES: [&str; 10] = [
    "f16",
    "q8_0",
    "k_q8_v_q4",
    "k_q8_v_tq3",
    "q4_0",
    "swa_tq3_full_q8",
    "swa_q8_full_q4",
    "captured",
    "swa_q8_full_tq3",
    "tq3_0",
];

/// llama.cpp's cache types, with bytes of 32 values.
pub const PEER_TYPES: [(&str, u64); 3] = [("f16", 64), ("q8_0", 34), ("q4_0", 18)];

/// The most tokens of one graph, here and there.
pub const N_BATCH: u32 = 512;

/// A model of a published size, with weights of zero, in a file with holes below `dir`.
pub fn hollow_model(name: &str, dir: &Path) -> Result<Model> {
    let size = sizes().into_iter().find(|size| size.name == name).unwrap_or_else(|| panic!("no size {name}"));
    let path = dir.join(format!("{name}.gguf"));
    write_hollow(&size, &path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    // Weights of nothing need no other order.
    Model::load_with(path, &LoadOptions::default().repack(false), |_| ControlFlow::Continue(()))
}

/// Options of a session of `n_ctx` tokens.
pub fn options(policy: &str, n_ctx: u32) -> Result<SessionOptions> {
    Ok(SessionOptions::default().n_ctx(n_ctx).n_batch(N_BATCH).kv(policy.parse::<KvPolicy>()?))
}

/// Bytes of our cache.
pub fn ours(hparams: &HParams, policy: &str, n_ctx: u32) -> Result<u64> {
    let options = options(policy, n_ctx)?;
    options.kv.resolve(hparams, &options, 0)?.bytes(hparams, &options)
}

/// Bytes of llama.cpp's cache for one sequence (`llama_kv_cache_iswa`): full-attention layers have `n_ctx` cells,
/// sliding-window layers the window and one ubatch, both rounded up to 256; keys and values have one type.
pub fn peer(hparams: &HParams, bytes_of_32: u64, n_ctx: u32) -> u64 {
    let round = |n: u32| u64::from(n.next_multiple_of(256));
    let swa = round(hparams.window + N_BATCH).min(round(n_ctx));
    let layers = hparams.layers.iter().enumerate().filter(|(i, layer)| layer.kv_layer as usize == *i);
    let cells = layers.map(|(_, layer)| {
        let slots = if layer.kind == LayerKind::Full { round(n_ctx) } else { swa };
        slots * 2 * u64::from(layer.n_embd_kv())
    });
    cells.sum::<u64>() / 32 * bytes_of_32
}

/// Bytes of keys and values that one token reads behind `depth` others, in a type with so many bytes for 32 values.
pub fn read_at(hparams: &HParams, bytes_of_32: u64, depth: u32) -> u64 {
    let layers = hparams.layers.iter().map(|layer| {
        let seen = if layer.kind == LayerKind::Full { depth } else { depth.min(hparams.window) };
        u64::from(seen) * 2 * u64::from(layer.n_embd_kv())
    });
    layers.sum::<u64>() / 32 * bytes_of_32
}
