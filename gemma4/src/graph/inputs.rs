//! Everything that changes between two computations of the same graph.

use super::Shape;
use crate::Result;
use crate::cache::{CacheState, Geometry, LayerKind, Span};
use crate::ggml::{DType, Engine, GraphBuilder, Tensor};
use half::f16;
use std::ops::Range;

/// The inputs of a target graph. `T` is the number of tokens.
pub(crate) struct Inputs {
    /// Token ids, I32 `[T]`.
    pub tokens: Tensor,
    /// Positions, I32 `[T]`.
    pub positions: Tensor,
    /// The half that belongs to the full-attention layers.
    pub full: KindInputs,
    /// The half that belongs to the sliding-window layers.
    pub swa: KindInputs,
    /// Rows whose results are wanted, I32 `[n_rows]`; absent if all or none are.
    pub rows: Option<Tensor>,
}

/// Where one kind of layers writes, and what its queries see.
pub(crate) struct KindInputs {
    /// Cache slots of the new rows, I64 `[T]`; absent in graphs that write none.
    pub slots: Option<Tensor>,
    /// 0 where a query sees a slot, -inf elsewhere; F16 `[n_view, T]`.
    pub mask: Tensor,
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
    pub(super) mask: Vec<f16>,
}

impl Inputs {
    pub fn declare(g: &mut GraphBuilder, shape: &Shape) -> Result<Inputs> {
        let n = i64::from(shape.n_tokens);
        let mut kind = |name: &str, view: u32| {
            Ok::<_, crate::Error>(KindInputs {
                slots: Some(g.input(&format!("slots_{name}"), DType::I64, [n, 1])?),
                mask: g.input(&format!("mask_{name}"), DType::F16, [i64::from(view), n])?,
            })
        };
        let (full, swa) = (kind("full", shape.view_full)?, kind("swa", shape.view_swa)?);
        let rows = match shape.n_rows {
            0 => None,
            rows if rows == shape.n_tokens => None,
            rows => Some(g.input("rows", DType::I32, [i64::from(rows), 1])?),
        };
        Ok(Inputs {
            tokens: g.input("tokens", DType::I32, [n, 1])?,
            positions: g.input("positions", DType::I32, [n, 1])?,
            full,
            swa,
            rows,
        })
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
    fn write(
        &self,
        engine: &mut Engine,
        slot: usize,
        geometry: &Geometry,
        span: Span,
        scratch: &mut Scratch,
    ) -> Result<()> {
        if let Some(slots) = &self.slots {
            scratch.slots.resize(span.n as usize, 0);
            geometry.fill_slots(&mut scratch.slots, span.first);
            engine.write(slot, slots, &scratch.slots)?;
        }
        scratch.write_mask(engine, slot, &self.mask, geometry, span.first, span.end())
    }
}

impl Scratch {
    /// Fills and writes a mask F16 `[n_view, T]` of queries from `first` on, when `end` positions are written.
    pub fn write_mask(
        &mut self,
        engine: &mut Engine,
        slot: usize,
        mask: &Tensor,
        geometry: &Geometry,
        first: u32,
        end: u32,
    ) -> Result<()> {
        let [n_view, n, ..] = mask.ne().map(|n| n as u32);
        self.fill_mask(geometry, n_view, n, first, end);
        engine.write(slot, mask, &self.mask)
    }

    /// The mask of `n` queries from `first` on, when `end` positions are written.
    pub fn fill_mask(&mut self, geometry: &Geometry, n_view: u32, n: u32, first: u32, end: u32) {
        self.mask.resize(n_view as usize * n as usize, f16::ZERO);
        geometry.fill_mask_f16(&mut self.mask, n_view, first, n, end);
    }

    /// Shows `positions` to all queries of the mask.
    pub fn show(&mut self, geometry: &Geometry, n_view: u32, positions: Range<u32>) {
        self.put(geometry, n_view, positions, f16::ZERO);
    }

    /// Hides all positions below `end` from all queries of the mask. `written` positions are written.
    pub fn hide(&mut self, geometry: &Geometry, n_view: u32, end: u32, written: u32) {
        // Slots of older positions hold newer ones.
        let held = if geometry.is_ring() { written.saturating_sub(geometry.slots()) } else { 0 };
        self.put(geometry, n_view, held..end.max(held), f16::NEG_INFINITY);
    }

    fn put(&mut self, geometry: &Geometry, n_view: u32, positions: Range<u32>, value: f16) {
        for row in self.mask.chunks_exact_mut(n_view.max(1) as usize) {
            for run in geometry.slot_runs(positions.clone()) {
                let width = row.len();
                let clip = |slot: u32| (slot as usize).min(width);
                row[clip(run.start)..clip(run.end)].fill(value);
            }
        }
    }
}
