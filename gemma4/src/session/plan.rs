//! What a session will cost, before it costs anything.

use super::{CancelFlag, Session, SessionOptions, cuts_attention, engine, largest, max_draft};
use crate::cache::{KvCache, KvTypes, LayerKind};
use crate::drafter::{Captured, Policy, Setup};
use crate::graph::{TargetGraph, max_nodes};
use crate::model::Model;
use crate::{Device, Result};
use std::fmt;

/// The memory of a session and how its attention is computed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The device that computes.
    pub device: String,
    /// Bytes of the weights, the drafter's too, which all sessions of a model share. Mapped weights count in full, though the
    /// system may hold a part of them.
    pub weights: u64,
    /// Bytes of the KV cache, and of what a drafter keeps.
    pub kv: u64,
    /// Bytes for intermediate values.
    pub compute: u64,
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
    /// Slots of each layer's cache.
    pub slots: u32,
    /// Types of keys and values.
    pub types: KvTypes,
    /// Values of a block that keys and values are rotated over; 0 if they are stored as they are.
    pub rotation: [u32; 2],
    /// What computes the attention.
    pub kernel: String,
}

impl MemoryPlan {
    /// Bytes in all, the model's weights included.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.compute
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
        let (mut kv, mut compute, mut weights) = (kv, 0, model.weight_bytes());
        let mut ladder = Vec::new();
        let mut captured = None;
        if let Some(drafter) = &options.drafter {
            let max_draft = max_draft(drafter, options.max_draft, &state);
            ladder = Policy::new(max_draft).ladder().to_vec();
            let source = drafter.source();
            source.check(model)?;
            let (pretended, bytes) = Captured::pretend(&source.needs(), hparams, state.n_batch(), &device)?;
            let captured = captured.insert(pretended);
            let engine = &mut engine;
            let drafter = source.plan(&mut Setup {
                model,
                cache: &cache,
                state: &state,
                captured,
                engine,
                max_draft,
            })?;
            kv += bytes + drafter.state;
            compute += drafter.compute;
            weights += source.weight_bytes();
        }
        for shape in largest(&state, &ladder, cuts_attention(model, options)) {
            let (graph, _) = TargetGraph::build(model, &cache, captured.as_ref(), shape)?;
            let slot = engine.add_slot(max_nodes(hparams, &shape))?;
            compute += engine.measure(slot, &graph)?.iter().sum::<u64>();
        }
        let mut layers: Vec<LayerClassPlan> = Vec::new();
        for (i, tensors) in cache.tensors() {
            let layer = &hparams.layers[i];
            let (types, rotation) = (options.kv.types(i, layer.kind), tensors.rotation_blocks());
            let same = |class: &&mut LayerClassPlan| {
                (class.kind, class.types, class.rotation) == (layer.kind, types, rotation)
            };
            if let Some(class) = layers.iter_mut().find(same) {
                class.n_layers += 1;
                continue;
            }
            layers.push(LayerClassPlan {
                kind: layer.kind,
                n_layers: 1,
                head_dim: layer.head_dim,
                slots: state.geometry(layer.kind).slots(),
                types,
                rotation,
                kernel: kernel(&device),
            });
        }
        Ok(MemoryPlan { device: device.name(), weights, kv, compute, layers })
    }
}

fn kernel(device: &Device) -> String {
    format!("ggml flash attention on {}", device.name())
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "on {}: weights {:.1} MiB, KV cache {:.1} MiB, compute {:.1} MiB, {:.1} MiB in all",
            self.device,
            mib(self.weights),
            mib(self.kv),
            mib(self.compute),
            mib(self.total())
        )?;
        for class in &self.layers {
            let kind = if class.kind == LayerKind::Full { "full attention" } else { "sliding window" };
            let KvTypes { k, v } = class.types;
            let rotation = match class.rotation {
                [0, 0] => "not rotated".to_owned(),
                [k, v] => format!("rotated over {k} and {v} values"),
            };
            writeln!(
                f,
                "{:>4} layers of {kind}, heads of {}: {} slots, K {k}, V {v}, {rotation}; {}",
                class.n_layers, class.head_dim, class.slots, class.kernel
            )?;
        }
        Ok(())
    }
}
