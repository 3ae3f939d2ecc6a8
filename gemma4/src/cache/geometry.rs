//! Where a position lives in the KV cache, and which slots a query may see. Pure arithmetic.
//!
//! A session has two geometries: the full-attention layers keep every
//! position in a linear cache, the sliding-window (SWA) layers keep the last `R` positions in a ring
//! with `slot = pos mod R`. There is no per-slot bookkeeping: which position a slot holds follows from
//! the number of positions written, and what an abandoned row (a rejected draft, a truncated prompt)
//! left behind is hidden by the same formula, because the ring is large enough.
//!
//! The vocabulary used throughout, all in positions (`u32`, counted from 0):
//!
//! * `c`, *committed*: number of positions that belong to the sequence; the next token goes to `c`.
//! * `end`, `e`: number of positions written when attention runs. A graph that writes `n` rows from `c`
//!   attends with `e = c + n`, because all its rows are stored before any is read. A drafter that only
//!   reads the target's cache uses `e = c`.
//! * *high*: one past the highest position ever written, kept or not. It says what has been overwritten.
//! * `W`, *window*: a query at `q` sees the keys `q - W + 1 ..= q`, itself included.
//! * `R`: slots of the ring; `n`: most positions one graph writes; `g`: deepest discard wanted.

mod state;
#[cfg(test)]
mod tests;

use std::ops::Range;

use half::f16;

use crate::{Error, Result};
pub use state::{CacheState, RewindPastWindow, Span};

/// Slots come in multiples of this, and so do the lengths of the views on them.
///
/// CUDA's flash attention wants K lengths divisible by 256, and a view that grows in steps
/// lets a graph be reused for as many tokens.
pub const SLOT_ALIGN: u32 = 256;

/// Largest `n_ctx` accepted: rounded up it still fits a `u32` with room for one more ring.
pub const MAX_CTX: u32 = 1 << 31;

/// The two kinds of attention layer, each with its own cache geometry and its own mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Attends to every earlier position.
    Full,
    /// Attends to the last `W` positions only (sliding-window attention).
    Swa,
}

/// Slots of the cache of all layers of one [`LayerKind`]: how many there are and what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    kind: LayerKind,
    /// Slots per layer.
    slots: u32,
    /// Slots are reused (`pos mod slots`); otherwise slot = position.
    ring: bool,
    /// Keys that a query sees, itself included; at least 1.
    window: Option<u32>,
}

impl Geometry {
    /// The full-attention layers of a session of `n_ctx` positions: linear, `align256(n_ctx)` slots.
    ///
    /// # Errors
    /// [`Error::Option`] unless `1 <= n_ctx <= MAX_CTX`.
    pub fn full(n_ctx: u32) -> Result<Self> {
        Ok(Self { kind: LayerKind::Full, slots: context_slots(n_ctx)?, ring: false, window: None })
    }

    /// The sliding-window layers: a ring of `R = align256(W - 1 + max(n, g))` slots, or a
    /// linear cache where the ring would be no smaller.
    ///
    /// * `window` `W`: keys a query sees, itself included.
    /// * `n_batch` `n`: the largest number of positions one graph writes, padding and tree nodes
    ///   included. The first query of such a graph needs key `c - W + 1` while the last row has already
    ///   been written to `c + n - 1`: both must be in the ring.
    /// * `rollback` `g`: the deepest discard, counted from the highest position ever written. Needs room
    ///   beyond `n_batch` only where it is larger: rejected drafts are covered by `n_batch`.
    ///
    /// # Errors
    /// [`Error::Option`] if `window` or `n_batch` is 0, or unless `1 <= n_ctx <= MAX_CTX`.
    pub fn swa(window: u32, n_batch: u32, rollback: u32, n_ctx: u32) -> Result<Self> {
        at_least_one("window", window)?;
        at_least_one("n_batch", n_batch)?;
        let linear = context_slots(n_ctx)?;
        let needed = u64::from(window - 1) + u64::from(n_batch.max(rollback));
        // A ring that does not fit a u32 is larger than any context, so it falls back to linear as well.
        let ring = u32::try_from(needed.next_multiple_of(u64::from(SLOT_ALIGN))).ok();
        let ring = ring.filter(|&r| r < linear);
        Ok(Self {
            kind: LayerKind::Swa,
            slots: ring.unwrap_or(linear),
            ring: ring.is_some(),
            window: Some(window),
        })
    }

    /// Which layers this is the geometry of.
    pub fn kind(&self) -> LayerKind {
        self.kind
    }

    /// Slots per layer: `ne1` of its K and V tensors `[head_dim * n_head_kv, slots]`.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether slots are reused. `false` also for SWA layers of a context too short to profit.
    pub fn is_ring(&self) -> bool {
        self.ring
    }

    /// Keys that a query sees, itself included; `None`: all of them.
    pub fn window(&self) -> Option<u32> {
        self.window
    }

    /// The most positions that one graph may write, and equally the deepest discard (counted from the
    /// highest position ever written) after which every key of the next query is intact.
    ///
    /// `R - W + 1` for a ring, which is `max(n_batch, rollback)` plus what rounding to 256 added; all
    /// slots for a linear cache.
    pub fn max_write(&self) -> u32 {
        if self.ring { self.slots - self.older_keys() } else { self.slots }
    }

    /// The slot that position `pos` is written to.
    pub fn slot(&self, pos: u32) -> u32 {
        debug_assert!(self.ring || pos < self.slots, "position {pos} in a cache of {} slots", self.slots);
        if self.ring { pos % self.slots } else { pos }
    }

    /// The position that `slot` holds once `end` positions have been written, or `None` if it
    /// holds none of them.
    ///
    /// Ring: `p(s) = (e - 1) - ((e - 1 - s) mod R)`. A row abandoned at a position `p >= end` is reported
    /// as `p - R`, which lies outside the window of every query from `end - n` on.
    pub fn position(&self, slot: u32, end: u32) -> Option<u32> {
        if slot >= self.slots {
            return None;
        }
        if !self.ring {
            return (slot < end).then_some(slot);
        }
        let newest = end.checked_sub(1)?;
        let newest_slot = newest % self.slots;
        // Steps back from the newest slot to this one, around the ring.
        let back = if slot <= newest_slot { newest_slot - slot } else { self.slots - (slot - newest_slot) };
        newest.checked_sub(back)
    }

    /// Whether a query at position `query_pos` may attend to `slot` when `end` positions are written
    ///: the slot holds a position that is not newer than the query and within its window.
    ///
    /// The same rule serves prefill, decode and verify (`end = c + n`) and drafters that read the
    /// target's cache (`end = query_pos = c`: position `c` itself is never visible).
    pub fn visible(&self, slot: u32, end: u32, query_pos: u32) -> bool {
        self.position(slot, end)
            .is_some_and(|p| p <= query_pos && self.window.is_none_or(|w| query_pos - p < w))
    }

    /// Slots to view when `end` positions are written: `ne1` of the K and V views and `ne0` of the mask.
    ///
    /// `align256(end)`, at least 256 and at most [`slots`](Self::slots), so a ring that has wrapped is
    /// viewed whole. Every visible slot is below it.
    pub fn n_view(&self, end: u32) -> u32 {
        end.max(1).checked_next_multiple_of(SLOT_ALIGN).map_or(self.slots, |n| n.min(self.slots))
    }

    /// The smallest `c' > 0` to which a session may roll back exactly after positions up to `high`
    /// (exclusive) have been written. Rolling back to 0 is always exact, since nothing older is read.
    ///
    /// The next query, at `c'`, needs the keys from `c' - W + 1` on. Position `p` is intact unless
    /// `p + R` has been written, that is, iff `p >= high - R`. So `c' >= high - R + W - 1` once the ring
    /// has wrapped (`high > R`), else 0. Linear caches: 0. So does `W = 1`, where a query reads only the
    /// key that its own graph writes.
    ///
    /// `high` must be the highest since the sequence was last empty: rows abandoned by an earlier
    /// roll-back have overwritten as much as kept ones.
    pub fn oldest_reachable(&self, high: u32) -> u32 {
        if !self.ring || high <= self.slots || self.older_keys() == 0 {
            return 0;
        }
        high - self.slots + self.older_keys()
    }

    /// The positions whose rows a snapshot at `committed` must hold so that decoding can go on from it.
    ///
    /// Linear: all, `0 .. c`. Ring: what the query at `c` still reads, `max(0, c - W + 1) .. c`. After
    /// copying them back, [`CacheState::restore`] sets the state that goes with them.
    pub fn needed(&self, committed: u32) -> Range<u32> {
        let first = if self.ring { committed.saturating_sub(self.older_keys()) } else { 0 };
        first..committed
    }

    /// The slots of consecutive positions, in order of position: one run, or two where they wrap.
    ///
    /// The second range is empty unless the ring wraps within `positions`, and then starts at slot 0.
    /// `positions` may hold at most [`slots`](Self::slots) of them.
    pub fn slot_runs(&self, positions: Range<u32>) -> [Range<u32>; 2] {
        let len = positions.end.saturating_sub(positions.start);
        debug_assert!(len <= self.slots, "{len} positions in {} slots", self.slots);
        if len == 0 {
            return [0..0, 0..0];
        }
        let first = self.slot(positions.start);
        let before_wrap = len.min(self.slots.saturating_sub(first));
        [first..first + before_wrap, 0..len - before_wrap]
    }

    /// Writes the row indices for `ggml_set_rows`: `out[i]` is the slot of position `first_pos + i`.
    ///
    /// I64 `[n_tokens]`, because only I64 indices fuse with norm, rope and set_rows on CUDA.
    pub fn fill_slots(&self, out: &mut [i64], first_pos: u32) {
        debug_assert!(out.len() <= self.slots as usize, "a graph writes a slot twice");
        debug_assert!(self.ring || first_pos as usize + out.len() <= self.slots as usize, "cache overrun");
        let mut slot = if self.ring { first_pos % self.slots } else { first_pos };
        for index in out {
            *index = i64::from(slot);
            slot += 1;
            if self.ring && slot == self.slots {
                slot = 0;
            }
        }
    }

    /// Writes the attention mask of `n_tokens` consecutive queries from `first_pos`: F16
    /// `[n_view, n_tokens]`, 0 where [`visible`](Self::visible), else -inf.
    ///
    /// `n_view` is [`n_view(end)`](Self::n_view) or more, up to `slots`; `out` holds `n_view * n_tokens`
    /// values. Padding rows of a graph are queries like any other: they are written to the cache, so
    /// `end` counts them.
    ///
    /// A row without any visible slot would be NaN in the softmax. None can occur for queries below
    /// `end` whose graph is at most [`max_write`](Self::max_write) long, since each sees at least
    /// itself; a drafter's query at `end` sees the newest key unless nothing is written yet or `W` is 1.
    pub fn fill_mask_f16(&self, out: &mut [f16], n_view: u32, first_pos: u32, n_tokens: u32, end: u32) {
        let width = n_view as usize;
        debug_assert_eq!(out.len(), width * n_tokens as usize, "mask is not [n_view, n_tokens]");
        debug_assert!(n_view >= self.n_view(end) && n_view <= self.slots, "view of {n_view} slots");
        if width == 0 {
            return;
        }
        for (row, query_pos) in out.chunks_exact_mut(width).zip(first_pos..).take(n_tokens as usize) {
            let keys = self.visible_positions(end, query_pos);
            debug_assert!(!keys.is_empty(), "query {query_pos} sees none of {end} positions");
            let [upper, lower] = self.slot_runs(keys);
            // A run that wraps continues at slot 0. Every element is written once, by runs.
            let clip = |slot: u32| (slot as usize).min(width);
            let lower_end = clip(lower.end);
            let upper_start = clip(upper.start).max(lower_end);
            let upper_end = clip(upper.end).max(upper_start);
            row[..lower_end].fill(f16::ZERO);
            row[lower_end..upper_start].fill(f16::NEG_INFINITY);
            row[upper_start..upper_end].fill(f16::ZERO);
            row[upper_end..].fill(f16::NEG_INFINITY);
        }
    }

    /// The positions that a query sees: [`visible`](Self::visible) as a range.
    fn visible_positions(&self, end: u32, query_pos: u32) -> Range<u32> {
        let held = if self.ring { end.saturating_sub(self.slots) } else { 0 };
        let in_window = self.window.map_or(0, |w| query_pos.saturating_sub(w - 1));
        held.max(in_window)..end.min(query_pos.saturating_add(1))
    }

    /// Keys that a query reads besides its own: `W - 1`. Only meaningful with a window.
    fn older_keys(&self) -> u32 {
        self.window.map_or(0, |w| w - 1)
    }
}

/// Bytes of the K and V tensors of `n_layers` layers of `slots` slots each.
///
/// `row_bytes_k` and `row_bytes_v` are the bytes of one slot's row of one layer,
/// `head_dim * n_head_kv` elements in the cache's type (`ggml_row_size`). Layers that share another
/// layer's cache do not count; a layer that keeps a single tensor passes 0 for the other.
///
/// # Errors
/// [`Error::Option`] if the product does not fit 64 bits.
pub fn kv_bytes(slots: u32, row_bytes_k: u64, row_bytes_v: u64, n_layers: u32) -> Result<u64> {
    row_bytes_k
        .checked_add(row_bytes_v)
        .and_then(|row| row.checked_mul(u64::from(slots)))
        .and_then(|layer| layer.checked_mul(u64::from(n_layers)))
        .ok_or_else(|| Error::Option {
            option: "n_ctx",
            value: slots.to_string(),
            why: format!(
                "{n_layers} layers of {slots} slots of {row_bytes_k} + {row_bytes_v} bytes exceed 64-bit sizes"
            ),
        })
}

/// `align256(n_ctx)`, checked.
fn context_slots(n_ctx: u32) -> Result<u32> {
    at_least_one("n_ctx", n_ctx)?;
    if n_ctx > MAX_CTX {
        return Err(Error::Option {
            option: "n_ctx",
            value: n_ctx.to_string(),
            why: format!("at most {MAX_CTX} positions are supported"),
        });
    }
    Ok(n_ctx.next_multiple_of(SLOT_ALIGN))
}

fn at_least_one(option: &'static str, value: u32) -> Result<()> {
    if value == 0 {
        return Err(Error::Option { option, value: "0".into(), why: "must be at least 1".into() });
    }
    Ok(())
}
