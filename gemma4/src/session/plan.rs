//! What a session will cost, before it costs anything.

use super::sparse::{SPARSE_TOKENS, SparseStep};
use super::{CancelFlag, SMALL, Session, SessionOptions, cuts_attention, engine, largest, max_draft};
use crate::cache::{CacheState, KvCache, KvConfig, KvPolicy, KvTypes, LayerKind};
use crate::drafter::{Policy, Setup};
use crate::ggml::{Device, Engine, Measured};
use crate::graph::{Captured, Shape, TargetGraph, max_nodes};
use crate::model::{HParams, Model};
use crate::{Error, Result};
use std::fmt;

/// Tokens of the verification whose place a plan reports.
const VERIFY: u32 = 8;

/// Bytes of the process for each tensor that a graph of a session may have: its description, and the
/// scheduler's tables.
const NODE_BYTES: u64 = 1000;

/// Room on a graphics card for what no graph says: kernels that are loaded when first used, and what backends keep for
/// operations in passing. On an H100, 26B-A4B and 31B took 680 to 810 MiB beside our account with contexts of 34K to 256K tokens, and
/// most of that is CUDA's context, which `available` is without.
const WORKSPACE_BYTES: u64 = 300 << 20;

/// Bytes of the process that belong to nothing in particular: stacks, and arenas of the allocator, of which there are more
/// while threads wait for each other.
const PROCESS_BYTES: u64 = 512 << 10;

/// The memory of a session and how its attention is computed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The device that computes, or several, in the order of the layers.
    pub device: String,
    /// Bytes of the weights, the drafter's too, which all sessions of a model share. Mapped weights count in full, though the
    /// system may hold a part of them.
    pub weights: u64,
    /// Bytes of the KV cache, and of what a drafter keeps.
    pub kv: u64,
    /// Bytes for intermediate values.
    pub compute: u64,
    /// Bytes of main memory beside these: the tokenizer, graphs, inputs while they are written, and what
    /// the CPU's threads share as scratch.
    pub host: u64,
    /// The shares of weights, cache and intermediate values that each device has.
    pub devices: Vec<DevicePlan>,
    /// How layers keep and read their caches: one entry for all that are alike.
    pub layers: Vec<LayerClassPlan>,
}

/// What one device holds of a model and a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DevicePlan {
    /// Name of the device.
    pub device: String,
    /// Bytes of weights, mapped ones included.
    pub weights: u64,
    /// Bytes of the KV cache, and of what a drafter keeps.
    pub kv: u64,
    /// Bytes for intermediate values.
    pub compute: u64,
    /// Bytes that are not taken yet: without weights that have been copied to their place, and with those that are only
    /// mapped; in main memory with the plan's `host`, elsewhere with 300 MiB for what the device's driver and backend keep.
    pub needed: u64,
    /// Bytes that the device had left when the plan was made.
    pub available: u64,
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
    /// Whether the device that has the keys cannot, so that keys and values are copied to another one for each token.
    pub falls_back: bool,
}

impl MemoryPlan {
    /// Bytes in all, the model's weights included.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.compute + self.host
    }

    /// Refuses a plan for which a device has too little memory left.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for the first such device.
    pub fn check(&self) -> Result<()> {
        match self.devices.iter().find(|device| device.needed > device.available) {
            None => Ok(()),
            Some(device) => Err(Error::OutOfMemory {
                what: "the model's weights, the KV cache and intermediate values".into(),
                device: device.device.clone(),
                needed: device.needed,
                available: device.available,
                hint: "use a smaller n_ctx, n_batch or KV type, leave layers or experts in main memory \
                       (LoadOptions::n_gpu_layers, n_cpu_moe), or use a smaller quantisation",
            }),
        }
    }

    /// Whether the attention of some layer is computed elsewhere than where its keys are.
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
        let config = options.resolve_kv(model)?;
        let place = |i| model.placement().layer(i);
        let (cache, kv) = KvCache::pretend(hparams, &config, &state, &place)?;
        let mut engine = engine(model, 1, &CancelFlag::default())?;
        let drafter = DrafterShare::plan(model, options, &state, &cache, &mut engine)?;
        let taken = largest(model, &state, &drafter.ladder, cuts_attention(options, &cache));
        let mut layers = layer_classes(hparams, &config, &state, &cache);
        let mut shares = Shares::new(model, &drafter, &kv, &engine);
        let (mut work, mut graphs) = (0, 0);
        for shape in taken.iter().copied().chain(verification(&taken)) {
            let captured = drafter.captured.as_ref();
            let (graph, _) = TargetGraph::build(model, &cache, captured, shape)?;
            let slot = engine.add_slot(max_nodes(hparams, &shape))?;
            let Measured { mut buffers, work: mut scratch, attention } =
                engine.measure(slot, graph, options.threads())?;
            // Chunks that are computed block-sparse take the same place.
            if shape.n_tokens == state.n_batch()
                && shape.n_tokens >= SPARSE_TOKENS
                && let Some(SparseStep { options: sparse, .. }) = options.prefill.step(0)
            {
                let (graph, _) =
                    TargetGraph::build_sparse(model, &cache, captured, shape, Some(sparse), false)?;
                let sparse = engine.measure(slot, graph, options.threads())?;
                scratch = scratch.max(sparse.work);
                buffers
                    .iter_mut()
                    .zip(&sparse.buffers)
                    .for_each(|(dense, sparse)| *dense = *sparse.max(dense));
            }
            if taken.contains(&shape) {
                shares.add_compute(&engine, &buffers);
                work = scratch.max(work);
                graphs += NODE_BYTES * max_nodes(hparams, &shape) as u64;
            }
            // One for each layer, or one for each of its rows.
            let per_layer = (attention.len() / hparams.layers.len()).max(1);
            for (il, place) in attention.iter().step_by(per_layer).enumerate() {
                let home = model.placement().layer(hparams.layers[il].kv_layer as usize);
                let (n_tokens, falls_back) = (shape.n_tokens, *place != home);
                note(&mut layers, il, &AttentionPlan { n_tokens, device: place.name(), falls_back });
            }
        }
        let host = model.host_bytes() + work + inputs_bytes(&state, hparams) + graphs + PROCESS_BYTES;
        let devices = shares.finish(model, host);
        let names: Vec<_> = model.devices().iter().map(Device::name).collect();
        let sum = |part: fn(&DevicePlan) -> u64| devices.iter().map(part).sum();
        Ok(MemoryPlan {
            device: names.join(" + "),
            weights: sum(|device| device.weights),
            kv: sum(|device| device.kv),
            compute: sum(|device| device.compute),
            host,
            devices,
            layers: layers.into_iter().map(|(class, _)| class).collect(),
        })
    }
}

/// What each device of an engine holds.
struct Shares(Vec<(Device, DevicePlan)>);

impl Shares {
    fn new(model: &Model, drafter: &DrafterShare, kv: &[(Device, u64)], engine: &Engine) -> Shares {
        let plan = |device: Device| {
            let is_head = device == model.device();
            let (weights, state, compute) =
                if is_head { (drafter.weights, drafter.state, drafter.compute) } else { (0, 0, 0) };
            let own = kv.iter().filter(|(holder, _)| *holder == device).map(|(_, n)| n).sum::<u64>();
            let plan = DevicePlan {
                device: device.name(),
                weights: model.weight_bytes_on(device) + weights,
                kv: own + state,
                compute,
                needed: 0,
                available: device.memory_available(),
            };
            (device, plan)
        };
        Shares(engine.devices().map(plan).collect())
    }

    /// Adds the bytes of intermediate values, one number for each backend.
    fn add_compute(&mut self, engine: &Engine, buffers: &[u64]) {
        for (device, n_bytes) in engine.devices().zip(buffers) {
            if let Some((_, plan)) = self.0.iter_mut().find(|(holder, _)| *holder == device) {
                plan.compute += n_bytes;
            }
        }
    }

    /// `host`: bytes of main memory beside these.
    fn finish(self, model: &Model, host: u64) -> Vec<DevicePlan> {
        let finish = |(device, mut plan): (Device, DevicePlan)| {
            let beside = if device.uses_host_memory() { host } else { WORKSPACE_BYTES };
            plan.needed = plan.kv + plan.compute + model.weight_bytes_to_come(device) + beside;
            plan
        };
        self.0.into_iter().map(finish).collect()
    }
}

/// What a session's drafter takes.
#[derive(Default)]
struct DrafterShare {
    /// Lengths of drafts that have graphs of their own.
    ladder: Vec<u32>,
    captured: Option<Captured>,
    weights: u64,
    state: u64,
    compute: u64,
}

impl DrafterShare {
    fn plan(
        model: &Model,
        options: &SessionOptions,
        state: &CacheState,
        cache: &KvCache,
        engine: &mut Engine,
    ) -> Result<DrafterShare> {
        let Some(drafter) = &options.drafter else { return Ok(DrafterShare::default()) };
        let source = drafter.source();
        source.check(model)?;
        let max_draft = max_draft(drafter, options.max_draft, state);
        let (captured, bytes) =
            Captured::pretend(&source.needs(), model.hparams(), state.n_batch(), &model.device())?;
        let plan = source.plan(&Setup { model, cache, state, captured: &captured, max_draft }, engine)?;
        Ok(DrafterShare {
            ladder: Policy::new(max_draft).ladder().to_vec(),
            captured: Some(captured),
            weights: source.weight_bytes(),
            state: bytes + plan.state,
            compute: plan.compute,
        })
    }
}

impl SessionOptions {
    /// The types of every layer, for a session of `model`.
    pub(super) fn resolve_kv(&self, model: &Model) -> Result<KvConfig> {
        let budget = match self.kv {
            KvPolicy::Auto { budget: None } => self.memory_for_kv(model)?,
            _ => 0,
        };
        self.kv.resolve(model.hparams(), self, budget)
    }

    /// What the devices have left for a cache: their free memory without what the session computes in, the
    /// weights that are not in place or only mapped so far, and a sixteenth for what others may take in the meantime.
    /// Where several share the cache, the one that is full first sets the bound.
    fn memory_for_kv(&self, model: &Model) -> Result<u64> {
        let plan = Session::plan(model, &self.clone().kv(KvPolicy::F16))?;
        let left = |device: &DevicePlan| {
            (device.available - device.available / 16).saturating_sub(device.needed - device.kv)
        };
        let holders = plan.devices.iter().filter(|device| device.kv > 0);
        let bound = |device: &DevicePlan| left(device) as f64 / device.kv as f64 * plan.kv as f64;
        Ok(holders.map(|device| bound(device) as u64).min().unwrap_or(0))
    }
}

/// A verification of drafts, to say who computes it, where a session has no graph for one.
fn verification(taken: &[Shape]) -> Option<Shape> {
    let largest = taken.iter().max_by_key(|shape| shape.n_tokens)?;
    let n = VERIFY.min(largest.n_tokens);
    let is_new = taken.iter().all(|shape| !(2..=SMALL).contains(&shape.n_tokens));
    (is_new && n > 1 && n < largest.n_tokens).then_some(Shape { n_tokens: n, ..*largest })
}

/// Classes of layers, each with the numbers of all layers that attend to such caches.
fn layer_classes(
    hparams: &HParams,
    config: &KvConfig,
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
            types: config.types(i, layer.kind),
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

/// Bytes of a chunk's inputs before they are copied to the device (tokens, positions, slots), and of the logits
/// that come back.
fn inputs_bytes(state: &CacheState, hparams: &HParams) -> u64 {
    24 * u64::from(state.n_batch()) + 4 * u64::from(hparams.n_vocab)
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
        let holders = self.devices.iter().filter(|device| device.weights + device.kv > 0);
        if holders.clone().count() > 1 {
            for device in holders {
                let DevicePlan { device, weights, kv, compute, needed, available } = device;
                let [weights, kv, compute, needed, available] =
                    [*weights, *kv, *compute, *needed, *available].map(mib);
                writeln!(
                    f,
                    "     {device}: weights {weights:.1}, KV cache {kv:.1}, compute {compute:.1} MiB; {needed:.1} MiB to be \
                     taken of {available:.1}"
                )?;
            }
        }
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
        let phase = |place: &AttentionPlan| match place.n_tokens {
            1 => "decode",
            n if n <= SMALL => "verify",
            _ => "prefill",
        };
        let is_alike = |a: &AttentionPlan, b: &AttentionPlan| {
            (phase(a), &a.device, a.falls_back) == (phase(b), &b.device, b.falls_back)
        };
        for (i, places) in self.attention.chunk_by(is_alike).enumerate() {
            let [first, ..] = places else { continue };
            let sizes: Vec<String> = places.iter().map(|place| place.n_tokens.to_string()).collect();
            let elsewhere = if first.falls_back { " (FALLS BACK: the device cannot)" } else { "" };
            let comma = if i > 0 { "," } else { "" };
            let (phase, sizes, device) = (phase(first), sizes.join(", "), &first.device);
            write!(f, "{comma} {phase} ({sizes}) on {device}{elsewhere}")?;
        }
        writeln!(f)
    }
}
