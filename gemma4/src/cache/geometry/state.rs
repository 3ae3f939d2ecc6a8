//! How far a session has written: the few numbers from which both geometries follow.

use super::{Geometry, LayerKind};
use crate::{Error, Result};

/// The consecutive positions that one graph writes and queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Span {
    /// The first position, which is the number of committed ones.
    pub first: u32,
    /// Number of positions, at least 1.
    pub n: u32,
}

impl Span {
    /// One past the last position: the `end` of [`Geometry`]'s functions for this graph.
    pub fn end(&self) -> u32 {
        self.first + self.n
    }
}

/// A roll-back that would need keys that the sliding-window layers no longer hold.
///
/// Nothing has changed. To get there: restore a snapshot, or truncate to 0 and prefill again. Running
/// only the last `W` positions again is not exact, as their hidden states depend on older keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot roll back to {requested} positions: the sliding-window layers reach back to {oldest} only")]
pub struct RewindPastWindow {
    /// Length that was asked for, in positions.
    pub requested: u32,
    /// The smallest length other than 0 that can be rolled back to.
    pub oldest: u32,
}

/// Both geometries of a session and how far it has written.
///
/// A graph is [`begin`](Self::begin), compute, [`commit`](Self::commit). Verification commits only the
/// accepted rows. A graph that failed or was cancelled is simply not committed: its rows count as
/// written, which is all that matters for what they may have overwritten.
#[derive(Clone, Debug)]
pub struct CacheState {
    full: Geometry,
    swa: Geometry,
    n_ctx: u32,
    n_batch: u32,
    committed: u32,
    /// One past the highest position written since the sequence was last empty.
    high: u32,
    /// Rows of the last graph that have not been committed.
    pending: u32,
}

impl CacheState {
    /// An empty session; the arguments are those of [`Geometry::swa`].
    ///
    /// # Errors
    /// As [`Geometry::full`] and [`Geometry::swa`].
    pub fn new(n_ctx: u32, window: u32, n_batch: u32, rollback: u32) -> Result<Self> {
        let full = Geometry::full(n_ctx)?;
        Ok(Self::from_parts(full, Geometry::swa(window, n_batch, rollback, n_ctx)?, n_ctx, n_batch))
    }

    /// A state of two geometries that need not be of the same session.
    pub(crate) fn from_parts(full: Geometry, swa: Geometry, n_ctx: u32, n_batch: u32) -> Self {
        Self { full, swa, n_ctx, n_batch, committed: 0, high: 0, pending: 0 }
    }

    /// The geometry of the layers of one kind.
    pub fn geometry(&self, kind: LayerKind) -> &Geometry {
        match kind {
            LayerKind::Full => &self.full,
            LayerKind::Swa => &self.swa,
        }
    }

    /// The geometry of the full-attention layers.
    pub fn full(&self) -> &Geometry {
        &self.full
    }

    /// The geometry of the sliding-window layers.
    pub fn swa(&self) -> &Geometry {
        &self.swa
    }

    /// Capacity in positions, as given (not rounded up to slots).
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    /// The most positions that [`begin`](Self::begin) takes.
    pub fn n_batch(&self) -> u32 {
        self.n_batch
    }

    /// Length of the sequence: the next token goes to this position.
    pub fn committed(&self) -> u32 {
        self.committed
    }

    /// One past the highest position written since the sequence was last empty, committed or not.
    ///
    /// After [`restore`](Self::restore) it is the value that stands for the same loss: it may then exceed
    /// what was ever written.
    pub fn high(&self) -> u32 {
        self.high
    }

    /// Positions that can still be written.
    pub fn remaining(&self) -> u32 {
        self.n_ctx - self.committed
    }

    /// Takes the next `n` positions for a graph. From here on they count as written.
    ///
    /// `n` counts padding rows and tree nodes too, for those are written as well.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if they do not fit; [`Error::Option`] if `n` is 0 or above `n_batch`.
    /// Nothing changes then.
    pub fn begin(&mut self, n: u32) -> Result<Span> {
        if n > self.remaining() {
            return Err(Error::ContextFull {
                used: self.committed as usize,
                requested: n as usize,
                n_ctx: self.n_ctx as usize,
            });
        }
        if n == 0 || n > self.n_batch {
            return Err(Error::Option {
                option: "n_batch",
                value: self.n_batch.to_string(),
                why: format!("one graph was to write {n} positions; it takes 1 to n_batch"),
            });
        }
        let span = Span { first: self.committed, n };
        // `high` moves now and not at commit: the rows overwrite older ones even if they are rejected.
        self.high = self.high.max(span.end());
        self.pending = n;
        Ok(span)
    }

    /// Keeps the first `n` rows of the graph last begun; the others are abandoned.
    ///
    /// May be called in steps. Never keeps more rows than were begun.
    pub fn commit(&mut self, n: u32) {
        debug_assert!(n <= self.pending, "commit of {n} rows, {} are pending", self.pending);
        let n = n.min(self.pending);
        self.committed += n;
        self.pending -= n;
    }

    /// The smallest length other than 0 that [`truncate`](Self::truncate) accepts.
    ///
    /// Never above `committed` unless that is 0: going on from where the sequence ends is always exact.
    pub fn oldest(&self) -> u32 {
        self.full.oldest_reachable(self.high).max(self.swa.oldest_reachable(self.high))
    }

    /// Rolls back to the first `len` positions. Like [`Vec::truncate`], does nothing if there are fewer
    /// (but always abandons rows that were begun and not committed).
    ///
    /// `len = 0` always works. It makes every slot reusable, so `high` starts again from 0.
    ///
    /// # Errors
    /// [`RewindPastWindow`] if keys that position `len` reads are overwritten; nothing changes then.
    pub fn truncate(&mut self, len: u32) -> Result<(), RewindPastWindow> {
        if len == 0 {
            // The next graph writes from slot 0, and every slot it has not reached yet maps to a negative
            // position: what is left in the ring can never be seen.
            self.high = 0;
        } else if len < self.committed {
            let oldest = self.oldest();
            if len < oldest {
                return Err(RewindPastWindow { requested: len, oldest });
            }
        }
        self.committed = self.committed.min(len);
        self.pending = 0;
        Ok(())
    }

    /// States that the cache now holds the rows of [`Geometry::needed`]`(committed)` of both geometries
    /// and nothing else: a snapshot or a file has been copied in.
    ///
    /// Rolling back below `committed` is then possible only where nothing was left out.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if the session is too small for `committed` positions.
    pub fn restore(&mut self, committed: u32) -> Result<()> {
        if committed > self.n_ctx {
            return Err(Error::ContextFull {
                used: 0,
                requested: committed as usize,
                n_ctx: self.n_ctx as usize,
            });
        }
        self.committed = committed;
        self.pending = 0;
        // Rows below `needed` are missing, exactly as if writing up to `first + slots` had overwritten
        // them. That is one formula for both reasons why a row can be gone.
        let first = self.swa.needed(committed).start;
        self.high = if first > 0 { first.saturating_add(self.swa.slots()) } else { committed };
        Ok(())
    }
}
