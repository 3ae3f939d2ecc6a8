//! Attention row by row, for graphs whose rows must equal those of graphs of one token, bit for bit.
//!
//! ggml's CPU cuts the keys of a single query into a part for each thread, if they are plain floats and 512 or
//! more, and adds the parts up; the queries of a larger graph it computes whole. The two round differently, so that
//! a verified draft could differ from the text without a drafter. Over quantised keys it rounds a few queries to
//! 8 bits and does not round many. Separate operations cost little there: the larger graph goes row by row as well.

use super::{Build, Shape};
use crate::Result;
use crate::cache::{CacheState, Geometry, LayerKind, Span, is_plain};
use crate::ggml::{Device, Tensor};

/// Keys from which on ggml's CPU cuts them into parts.
const MIN_CUT_KEYS: u32 = 512;

/// Slots that the first rows look at, where they look at fewer than the last: views grow in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowViews {
    full: Views,
    swa: Views,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Views {
    first: u32,
    /// Rows that look at `first` slots; the others look at as many as the graph.
    n_first: u32,
}

impl Views {
    /// A graph has fewer rows than a step of the views, so that they grow once at most.
    fn new(geometry: &Geometry, span: Span) -> Views {
        let view = |row: u32| geometry.n_view(span.first + row + 1);
        let first = view(0);
        Views { first, n_first: (0..span.n).take_while(|&row| view(row) == first).count() as u32 }
    }
}

impl RowViews {
    /// For the rows of `span`.
    pub fn new(state: &CacheState, span: Span) -> RowViews {
        RowViews { full: Views::new(state.full(), span), swa: Views::new(state.swa(), span) }
    }

    /// As many rows as `n_tokens`, all looking at everything: the largest graph of its kind.
    pub fn largest(shape: &Shape) -> RowViews {
        let views = |first| Views { first, n_first: shape.n_tokens };
        RowViews { full: views(shape.view_full), swa: views(shape.view_swa) }
    }
}

impl<I> Build<'_, I> {
    /// Whether rows of attention over caches `k` and `v` `[.., n_view, ..]` of `device` are computed one by one.
    pub fn attends_by_row(&self, device: Device, k: &Tensor, v: &Tensor) -> bool {
        if !device.uses_host_memory() {
            return false;
        }
        let differs = !is_plain([k, v]) || k.ne()[1] >= i64::from(MIN_CUT_KEYS);
        differs && self.shape.row_views.is_some() && self.shape.n_tokens > 1
    }

    /// As [`attention`](crate::ggml::GraphBuilder::attention), row by row.
    pub fn attention_by_row(
        &mut self,
        kind: LayerKind,
        [q, k, v]: [&Tensor; 3],
        mask: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        let views = self.shape.row_views.map(|views| match kind {
            LayerKind::Full => views.full,
            LayerKind::Swa => views.swa,
        });
        let mut out: Option<Tensor> = None;
        for row in 0..self.shape.n_tokens {
            let n_view = match views {
                Some(views) if row < views.n_first => i64::from(views.first),
                _ => mask.ne()[0],
            };
            let at = row as usize;
            let [d, _, heads, _] = q.ne();
            let query = self.g.view(q, [d, 1, heads], [q.nb()[1], q.nb()[2]], at * q.nb()[1])?;
            let mask = self.g.view(mask, [n_view, 1, 1], [mask.nb()[1]; 2], at * mask.nb()[1])?;
            let keys = self.first_slots(k, n_view)?;
            let values = self.first_slots(v, n_view)?;
            let row = self.g.attention(&query, &keys, &values, Some(&mask), scale)?;
            out = Some(match out {
                Some(rows) => self.g.concat_2(&rows, &row)?,
                None => row,
            });
        }
        out.ok_or_else(|| crate::Error::Ggml { op: "flash_attn_ext", why: "no rows".into() })
    }

    fn first_slots(&mut self, cache: &Tensor, n: i64) -> Result<Tensor> {
        let ([d, _, heads, _], nb) = (cache.ne(), cache.nb());
        self.g.view(cache, [d, n, heads], [nb[1], nb[2]], 0)
    }
}
