//! Everything that changes between two computations of the same graph.

use super::Shape;
use crate::Result;
use crate::cache::{CacheState, Geometry, KvCache, LayerKind, Span};
use crate::ggml::{BlockSparse, DType, Device, Engine, GraphBuilder, KvMask, KvParams, Tensor};

/// The inputs of a target graph. `T` is the number of tokens.
pub(crate) struct Inputs {
    /// Token ids, I32 `[T]`.
    pub tokens: Tensor,
    /// Positions, I32 `[T]`.
    pub positions: Tensor,
    /// What all masks are made from, I32 `[8]`.
    pub kv_params: Tensor,
    /// The half that belongs to the full-attention layers.
    pub full: KindInputs,
    /// The half that belongs to the sliding-window layers.
    pub swa: KindInputs,
    /// Rows whose results are wanted, I32 `[n_rows]`; absent if all or none are.
    pub rows: Option<Tensor>,
    /// Present if full-attention layers read a part of their keys only.
    pub sparse: Option<SparseInputs>,
}

/// Block-sparse attention of a part of a prompt.
#[derive(Clone)]
pub(crate) struct SparseInputs {
    /// [`KvParams`] of the step, I32 `[8]`.
    pub params: Tensor,
    pub options: BlockSparse,
    /// Whether each layer also reports what it reads.
    pub report: bool,
}

/// Where one kind of layers writes, and what its queries see.
pub(crate) struct KindInputs {
    /// Cache slots of the new rows, I64 `[T]`; absent in graphs that write none.
    pub slots: Option<Tensor>,
    /// What a query sees of the view.
    pub seen: KvMask,
    /// The same as tensors, on each device that asked for one ([`Inputs::mask`]). No inputs: the devices make them.
    masks: Vec<(Device, Tensor)>,
}

/// The data of one computation.
pub(crate) struct StepInputs<'a> {
    pub tokens: &'a [u32],
    pub span: Span,
    pub state: &'a CacheState,
    /// Ascending indices into `tokens`.
    pub rows: &'a [u32],
}

/// Buffers that are reused from one computation to the next.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(super) ids: Vec<i32>,
    pub(super) slots: Vec<i64>,
}

impl Inputs {
    /// The inputs of a graph over `cache`.
    pub fn declare(g: &mut GraphBuilder, shape: &Shape, cache: &KvCache) -> Result<Inputs> {
        let n = i64::from(shape.n_tokens);
        let kv_params = g.kv_params("kv_params")?;
        let mut kind = |name: &str, kind: LayerKind, view: u32| {
            Ok::<_, crate::Error>(KindInputs {
                slots: Some(g.input(&format!("slots_{name}"), DType::I64, [n, 1])?),
                seen: causal_mask(cache.geometry(kind), view, shape.n_tokens),
                masks: Vec::new(),
            })
        };
        let full = kind("full", LayerKind::Full, shape.view_full)?;
        let swa = kind("swa", LayerKind::Swa, shape.view_swa)?;
        let rows = match shape.n_rows {
            0 => None,
            rows if rows == shape.n_tokens => None,
            rows => Some(g.input("rows", DType::I32, [i64::from(rows), 1])?),
        };
        Ok(Inputs {
            tokens: g.input("tokens", DType::I32, [n, 1])?,
            positions: g.input("positions", DType::I32, [n, 1])?,
            kv_params,
            full,
            swa,
            rows,
            sparse: None,
        })
    }

    /// 0 where a query of one kind of layers sees a slot, -inf elsewhere; F16 `[n_view, T]`. One for all layers whose
    /// attention `device` computes.
    pub fn mask(&mut self, g: &mut GraphBuilder, kind: LayerKind, device: Device) -> Result<Tensor> {
        let inputs = match kind {
            LayerKind::Full => &mut self.full,
            LayerKind::Swa => &mut self.swa,
        };
        if let Some((_, mask)) = inputs.masks.iter().find(|(holder, _)| *holder == device) {
            return Ok(mask.clone());
        }
        let mask = g.kv_mask(&self.kv_params, inputs.seen)?;
        inputs.masks.push((device, mask.clone()));
        Ok(mask)
    }

    /// Makes full-attention layers block-sparse.
    pub fn make_sparse(&mut self, g: &mut GraphBuilder, options: BlockSparse, report: bool) -> Result<()> {
        self.sparse = Some(SparseInputs { params: g.kv_params("kv_params")?, options, report });
        Ok(())
    }

    /// Writes what block-sparse layers need, if there are any. The prompt ends before position `prompt_end`.
    pub fn write_sparse(&self, engine: &mut Engine, slot: usize, span: Span, prompt_end: u32) -> Result<()> {
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let small = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let params = KvParams {
            q_pos0: small(span.first),
            kv_end: small(span.end()),
            n_q: small(span.n),
            prompt_end: small(prompt_end),
            ..KvParams::default()
        };
        engine.write(slot, &sparse.params, &params.words())
    }

    /// The inputs of one kind of layers.
    pub fn kind(&self, kind: LayerKind) -> &KindInputs {
        match kind {
            LayerKind::Full => &self.full,
            LayerKind::Swa => &self.swa,
        }
    }

    /// Writes all inputs of the graph in `slot`.
    pub fn write(
        &self,
        engine: &mut Engine,
        slot: usize,
        data: &StepInputs<'_>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let ids = &mut scratch.ids;
        ids.clear();
        ids.extend(data.tokens.iter().map(|&t| t as i32));
        engine.write(slot, &self.tokens, ids)?;
        ids.clear();
        ids.extend((data.span.first..data.span.end()).map(|p| p as i32));
        engine.write(slot, &self.positions, ids)?;
        engine.write(slot, &self.kv_params, &causal_params(data.span).words())?;
        if let Some(rows) = &self.rows {
            ids.clear();
            ids.extend(data.rows.iter().map(|&r| r as i32));
            engine.write(slot, rows, ids)?;
        }
        for (inputs, geometry) in [(&self.full, data.state.full()), (&self.swa, data.state.swa())] {
            inputs.write(engine, slot, geometry, data.span, scratch)?;
        }
        Ok(())
    }
}

impl KindInputs {
    /// Of a graph that writes no keys and values.
    pub fn reading(seen: KvMask) -> KindInputs {
        KindInputs { slots: None, seen, masks: Vec::new() }
    }

    fn write(
        &self,
        engine: &mut Engine,
        slot: usize,
        geometry: &Geometry,
        span: Span,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Some(slots) = &self.slots else { return Ok(()) };
        scratch.slots.resize(span.n as usize, 0);
        geometry.fill_slots(&mut scratch.slots, span.first);
        engine.write(slot, slots, &scratch.slots)
    }
}

/// The mask of `n` queries over the first `n_view` slots of a cache, as [`Geometry::visible`] says it.
pub(super) fn causal_mask(geometry: &Geometry, n_view: u32, n: u32) -> KvMask {
    KvMask {
        n_kv: n_view.into(),
        n_rows: n.into(),
        ring: if geometry.is_ring() { geometry.slots() } else { 0 },
        window: geometry.window().unwrap_or(0),
        causal: true,
    }
}

/// Whether a query sees all positions up to its own, each in the slot of its number.
pub(super) fn is_plain_causal(geometry: &Geometry) -> bool {
    !geometry.is_ring() && geometry.window().is_none()
}

/// The numbers of a graph that writes `span` and attends from it.
fn causal_params(span: Span) -> KvParams {
    KvParams {
        q_pos0: span.first as i32,
        kv_end: span.end() as i32,
        n_q: span.n as i32,
        ..KvParams::default()
    }
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
