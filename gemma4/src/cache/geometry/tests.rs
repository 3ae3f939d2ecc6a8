//! The geometry against a naive model that remembers, for every slot, which row was written to it last.

mod formulas;
mod sequences;
mod traps;

use super::*;

/// A seeded xorshift: millions of steps in a debug build, and a failure names its seed.
pub(super) struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number in `lo ..= hi`.
    fn range(&mut self, lo: u32, hi: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        lo + ((self.0 >> 33) % (u64::from(hi - lo) + 1)) as u32
    }
}

/// A geometry of any size: small rings find in thousands of steps what aligned ones need millions for.
pub(super) fn ring(window: u32, slots: u32) -> Geometry {
    Geometry { kind: LayerKind::Swa, slots, ring: true, window: Some(window) }
}

pub(super) fn linear(slots: u32) -> Geometry {
    Geometry { kind: LayerKind::Full, slots, ring: false, window: None }
}

/// What a wrong mask would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// Attends to a slot behind the end of the K/V view.
    OutsideView,
    /// Attends to a slot that was never written.
    Unwritten,
    /// Attends to a row that does not belong to the sequence (abandoned, or of an earlier text).
    Stale,
    /// Attends to a row newer than the query.
    Future,
    /// Attends to a row older than the window.
    TooOld,
    /// Does not attend to a key of the window.
    Missing,
    /// Two rows of one graph went to one slot.
    Collision,
}

/// A row as it lies in a slot: its position, and a number that no other row ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pos: u32,
    id: u64,
}

/// One layer's cache, remembered slot by slot.
#[derive(Clone)]
pub(super) struct Naive {
    geo: Geometry,
    slots: Vec<Option<Row>>,
    /// Id of the row of every committed position.
    kept: Vec<u64>,
    /// Ids of the rows of the current graph, which follow the committed ones.
    graph: Vec<u64>,
    next_id: u64,
}

impl Naive {
    fn new(geo: Geometry) -> Self {
        let slots = vec![None; geo.slots() as usize];
        Self { geo, slots, kept: Vec::new(), graph: Vec::new(), next_id: 0 }
    }

    fn committed(&self) -> u32 {
        self.kept.len() as u32
    }

    fn end(&self) -> u32 {
        (self.kept.len() + self.graph.len()) as u32
    }

    /// Writes the rows of a graph, through the indices that the real graph would get.
    fn write(&mut self, n: u32) -> Result<(), Violation> {
        let first = self.committed();
        let mut index = vec![-1; n as usize];
        self.geo.fill_slots(&mut index, first);
        self.graph.clear();
        for (i, &slot) in index.iter().enumerate() {
            self.slots[slot as usize] = Some(Row { pos: first + i as u32, id: self.next_id });
            self.graph.push(self.next_id);
            self.next_id += 1;
        }
        let intact = |(&slot, id): (&i64, &u64)| self.slots[slot as usize].is_some_and(|row| row.id == *id);
        if index.iter().zip(&self.graph).all(intact) { Ok(()) } else { Err(Violation::Collision) }
    }

    fn commit(&mut self, n: u32) {
        self.kept.extend_from_slice(&self.graph[..n as usize]);
        self.graph.clear();
    }

    fn truncate(&mut self, len: u32) {
        self.kept.truncate(len as usize);
        self.graph.clear();
    }

    /// Writes `n` rows, checks all of them with the right rule, keeps them.
    fn prefill(&mut self, n: u32) {
        self.write(n).unwrap();
        self.check_graph().unwrap();
        self.commit(n);
    }

    fn id_at(&self, pos: u32) -> Option<u64> {
        let pos = pos as usize;
        self.kept.get(pos).or_else(|| self.graph.get(pos - self.kept.len())).copied()
    }

    /// Checks what the query at `q` sees of a view of `n_view` slots: only rows of the sequence, and
    /// every key of the window once.
    fn check(&self, q: u32, n_view: u32, visible: impl Fn(u32) -> bool) -> Result<(), Violation> {
        let lo = self.geo.window().map_or(0, |w| (q + 1).saturating_sub(w));
        let hi = (q + 1).min(self.end());
        let mut seen = 0;
        for slot in (0..self.geo.slots()).filter(|&slot| visible(slot)) {
            if slot >= n_view {
                return Err(Violation::OutsideView);
            }
            let row = self.slots[slot as usize].ok_or(Violation::Unwritten)?;
            if self.id_at(row.pos) != Some(row.id) {
                return Err(Violation::Stale);
            }
            if row.pos > q {
                return Err(Violation::Future);
            }
            if row.pos < lo {
                return Err(Violation::TooOld);
            }
            // Ids are unique and a row is written to one slot, so counting is enough for "once".
            seen += 1;
        }
        if seen == hi.saturating_sub(lo) { Ok(()) } else { Err(Violation::Missing) }
    }

    /// The rule of the crate for one query.
    fn check_rule(&self, q: u32) -> Result<(), Violation> {
        let end = self.end();
        self.check(q, self.geo.n_view(end), |slot| self.geo.visible(slot, end, q))
    }

    /// The rule of the crate for every query of the current graph.
    fn check_graph(&self) -> Result<(), Violation> {
        (self.committed()..self.end()).try_for_each(|q| self.check_rule(q))
    }

    /// Whether the cache still holds every key that the next query reads: the truth that
    /// `oldest_reachable` predicts.
    fn window_intact(&self, committed: u32) -> bool {
        let lo = self.geo.window().map_or(0, |w| (committed + 1).saturating_sub(w));
        (lo..committed).all(|pos| {
            let row = self.slots[self.geo.slot(pos) as usize];
            row == self.kept.get(pos as usize).map(|&id| Row { pos, id })
        })
    }
}

/// The mask of some rows equals `visible`, element by element.
pub(super) fn check_mask(geo: &Geometry, first_pos: u32, n_tokens: u32, end: u32) {
    let n_view = geo.n_view(end);
    let mut mask = vec![f16::NAN; n_view as usize * n_tokens as usize];
    geo.fill_mask_f16(&mut mask, n_view, first_pos, n_tokens, end);
    for (row, q) in mask.chunks_exact(n_view as usize).zip(first_pos..) {
        for (&value, slot) in row.iter().zip(0..) {
            let expected = if geo.visible(slot, end, q) { f16::ZERO } else { f16::NEG_INFINITY };
            assert!(
                value.to_bits() == expected.to_bits(),
                "{geo:?} end {end} query {q} slot {slot}: {value}"
            );
        }
    }
}
