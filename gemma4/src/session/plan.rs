//! What a session will cost, before it costs anything.

use super::sparse::{SPARSE_TOKENS, SparseStep};
use super::{CancelFlag, SMALL, Session, SessionOptions, engine, largest};
use crate::Result;
use crate::cache::{CacheState, KvCache, KvTypes, LayerKind};
use crate::ggml::Measured;
use crate::graph::{TargetGraph, max_nodes};
use crate::model::{HParams, Model};
use std::fmt;

/// Tokens of the verification whose place a plan reports.
const VERIFY: u32 = 8;

/// Bytes of the process for each tensor that a graph of a session may have: its description, and the
/// scheduler's tables.
const NODE_BYTES: u64 = 1000;

/// The memory of a session and how its attention is computed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The device that computes.
    pub device: String,
    /// Bytes of the weights, which all sessions of a model share. Mapped weights count in full, though the
    /// system may hold a part of them.
    pub weights: u64,
    /// Bytes of the KV cache.
    pub kv: u64,
    /// Bytes for intermediate values.
    pub compute: u64,
    /// Bytes of main memory beside these: the tokenizer, graphs, inputs while they are written, and what
    /// the CPU's threads share as scratch.
    pub host: u64,
    /// How layers keep and read their caches: one entry for all that are alike.
    pub layers: Vec<LayerClassPlan>,
}

/// Layers of one kind whose caches are alike.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerClassPlan {
    /// Full attention or a sliding window.
    pub kind: LayerKind,
    /// Layers of this kind that have a cache of their own.
    pub n_layers: u32,
    /// Values of one head.
    pub head_dim: u32,
    /// Heads of queries, and of keys and values.
    pub heads: [u32; 2],
    /// Slots of each layer's cache.
    pub slots: u32,
    /// Types of keys and values.
    pub types: KvTypes,
    /// Values of a block that keys and values are rotated over; 0 if they are stored as they are.
    pub rotation: [u32; 2],
    /// Who computes the attention: of one token, of a draft that is verified, and of a chunk of the prompt.
    pub attention: Vec<AttentionPlan>,
}

/// Who computes a layer's attention over some number of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttentionPlan {
    /// Tokens computed at once.
    pub n_tokens: u32,
    /// The backend that computes it, as the scheduler places it.
    pub device: String,
    /// Whether the model's device cannot, so that keys and values are copied to another one for each token.
    pub falls_back: bool,
}

impl MemoryPlan {
    /// Bytes in all, the model's weights included.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.compute + self.host
    }

    /// Whether the attention of some layer is computed elsewhere than on the model's device.
    pub fn falls_back(&self) -> bool {
        self.layers.iter().flat_map(|class| &class.attention).any(|attention| attention.falls_back)
    }
}

impl Session {
    /// Says what [`Session::new`] with the same arguments will take, without taking it.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for options that cannot work.
    pub fn plan(model: &Model, options: &SessionOptions) -> Result<MemoryPlan> {
        let hparams = model.hparams();
        let state = options.cache_state(hparams)?;
        let device = model.device();
        let (cache, kv) = KvCache::pretend(hparams, &options.kv, &state, &device)?;
        let mut engine = engine(model, 1, &CancelFlag::default())?;
        let mut layers = layer_classes(hparams, options, &state, &cache);
        let (mut compute, mut work, mut n_slots) = (0, 0, 0);
        let mut sizes = vec![1, VERIFY.min(state.n_batch()), state.n_batch()];
        sizes.dedup();
        for n_tokens in sizes {
            let (graph, _) = TargetGraph::build(model, &cache, largest(&state, n_tokens))?;
            let slot = engine.add_slot(max_nodes(hparams))?;
            let Measured { buffers, work: scratch, attention } =
                engine.measure(slot, graph, options.threads())?;
            // A session takes memory for single tokens and whole chunks when it is made.
            if n_tokens == 1 || n_tokens == state.n_batch() {
                compute += buffers.iter().sum::<u64>();
                work = scratch.max(work);
                n_slots += 1;
            }
            if n_tokens == state.n_batch()
                && n_tokens >= SPARSE_TOKENS
                && let Some(SparseStep { options: sparse, .. }) = options.prefill.step(0)
            {
                let shape = largest(&state, n_tokens);
                let (graph, _) = TargetGraph::build_sparse(model, &cache, shape, Some(sparse), false)?;
                work = engine.measure(slot, graph, options.threads())?.work.max(work);
            }
            for (il, place) in attention.iter().enumerate() {
                note(
                    &mut layers,
                    il,
                    &AttentionPlan { n_tokens, device: place.name(), falls_back: *place != device },
                );
            }
        }
        Ok(MemoryPlan {
            device: device.name(),
            weights: model.weight_bytes(),
            kv,
            compute,
            host: model.host_bytes() + work + inputs_bytes(&state, hparams) + n_slots * graph_bytes(hparams),
            layers: layers.into_iter().map(|(class, _)| class).collect(),
        })
    }
}

/// Classes of layers, each with the numbers of all layers that attend to such caches.
fn layer_classes(
    hparams: &HParams,
    options: &SessionOptions,
    state: &CacheState,
    cache: &KvCache,
) -> Vec<(LayerClassPlan, Vec<usize>)> {
    let mut classes: Vec<(LayerClassPlan, Vec<usize>)> = Vec::new();
    for (i, tensors) in cache.tensors() {
        let layer = &hparams.layers[i];
        let readers = (i..hparams.layers.len()).filter(|&il| hparams.layers[il].kv_layer as usize == i);
        let class = LayerClassPlan {
            kind: layer.kind,
            n_layers: 1,
            head_dim: layer.head_dim,
            heads: [layer.n_head, layer.n_head_kv],
            slots: state.geometry(layer.kind).slots(),
            types: options.kv.types(i, layer.kind),
            rotation: tensors.rotation_blocks(),
            attention: Vec::new(),
        };
        let same = |(other, _): &&mut (LayerClassPlan, Vec<usize>)| {
            *other == LayerClassPlan { n_layers: other.n_layers, ..class.clone() }
        };
        match classes.iter_mut().find(same) {
            Some((class, layers)) => {
                class.n_layers += 1;
                layers.extend(readers);
            }
            None => classes.push((class, readers.collect())),
        }
    }
    classes
}

/// Notes where the attention of layer `il` is computed. Of layers that are alike, one that falls back counts.
fn note(classes: &mut [(LayerClassPlan, Vec<usize>)], il: usize, place: &AttentionPlan) {
    let Some((class, _)) = classes.iter_mut().find(|(_, layers)| layers.contains(&il)) else { return };
    match class.attention.iter_mut().find(|have| have.n_tokens == place.n_tokens) {
        Some(have) if place.falls_back => *have = place.clone(),
        Some(_) => {}
        None => class.attention.push(place.clone()),
    }
}

/// Bytes of a chunk's inputs before they are copied to the device, and of the logits that come back.
fn inputs_bytes(state: &CacheState, hparams: &HParams) -> u64 {
    let view = u64::from(state.full().slots().max(state.swa().slots()));
    u64::from(state.n_batch()) * (2 * view + 12) + 4 * u64::from(hparams.n_vocab)
}

/// Bytes of a graph and of the scheduler that runs it.
fn graph_bytes(hparams: &HParams) -> u64 {
    NODE_BYTES * max_nodes(hparams) as u64
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "on {}: weights {:.1} MiB, KV cache {:.1} MiB, compute {:.1} MiB, host {:.1} MiB, {:.1} MiB in all",
            self.device,
            mib(self.weights),
            mib(self.kv),
            mib(self.compute),
            mib(self.host),
            mib(self.total())
        )?;
        self.layers.iter().try_for_each(|class| class.fmt(f))
    }
}

impl fmt::Display for LayerClassPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == LayerKind::Full { "full attention" } else { "sliding window" };
        let KvTypes { k, v } = self.types;
        let rotation = match self.rotation {
            [0, 0] => "not rotated".to_owned(),
            [k, v] => format!("rotated over {k} and {v} values"),
        };
        write!(
            f,
            "{:>4} layers of {kind}, heads of {}: {} slots, K {k}, V {v}, {rotation}; attention of",
            self.n_layers, self.head_dim, self.slots
        )?;
        for (i, place) in self.attention.iter().enumerate() {
            let phase = match place.n_tokens {
                1 => "decode",
                n if n <= SMALL => "verify",
                _ => "prefill",
            };
            let elsewhere = if place.falls_back { " (FALLS BACK: the device cannot)" } else { "" };
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma} {phase} ({}) on {}{elsewhere}", place.n_tokens, place.device)?;
        }
        writeln!(f)
    }
}
