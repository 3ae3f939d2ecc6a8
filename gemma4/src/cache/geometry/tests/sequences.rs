//! Random lives of a session, both geometries at once.

use super::*;

/// Bounds of one random session.
#[derive(Clone, Copy, Debug)]
struct Setup {
    swa: Geometry,
    full: Geometry,
    n_ctx: u32,
    n_batch: u32,
    rollback: u32,
    /// Check every row of a graph, or only the outer ones and some between.
    every_row: bool,
}

struct Life {
    setup: Setup,
    state: CacheState,
    swa: Naive,
    full: Naive,
    /// One past the highest position really written since the sequence was empty; `None` after a
    /// restore, when `high` stands for something else.
    high: Option<u32>,
    /// How often a refused roll-back was checked to be rightly refused.
    tight: u32,
    /// How many graphs ran with a wrapped ring.
    wrapped: u32,
}

impl Life {
    fn new(setup: Setup) -> Self {
        let Setup { swa, full, n_ctx, n_batch, .. } = setup;
        let state = CacheState::from_parts(full, swa, n_ctx, n_batch);
        Self {
            setup,
            state,
            swa: Naive::new(swa),
            full: Naive::new(full),
            high: Some(0),
            tight: 0,
            wrapped: 0,
        }
    }

    /// One graph: `n` rows, of which `keep` are committed.
    fn graph(&mut self, rng: &mut Rng, n: u32, keep: u32) {
        let span = self.state.begin(n).unwrap();
        assert_eq!((span.first, span.n), (self.swa.committed(), n));
        let end = span.end();
        self.high = self.high.map(|high| high.max(end));
        for naive in [&mut self.swa, &mut self.full] {
            naive.write(n).unwrap();
            let some = rng.range(span.first, end - 1);
            if self.setup.every_row {
                naive.check_graph().unwrap();
                check_mask(&naive.geo, span.first, n, end);
            } else {
                for q in [span.first, some, end - 1] {
                    naive.check_rule(q).unwrap();
                }
                check_mask(&naive.geo, some, (end - some).min(2), end);
            }
            naive.commit(keep);
        }
        self.state.commit(keep);
        self.wrapped += u32::from(self.setup.swa.is_ring() && end > self.setup.swa.slots());
    }

    fn truncate(&mut self, len: u32) {
        self.state.truncate(len).unwrap();
        self.swa.truncate(len);
        self.full.truncate(len);
        if len == 0 {
            self.high = Some(0);
        }
    }

    /// One position further back than allowed must be refused, and rightly so.
    fn refuse(&mut self) {
        let oldest = self.state.oldest();
        if oldest < 2 {
            return;
        }
        let before = self.state.clone();
        let refused = self.state.truncate(oldest - 1);
        assert_eq!(refused, Err(RewindPastWindow { requested: oldest - 1, oldest }));
        assert_eq!(format!("{before:?}"), format!("{:?}", self.state));
        if self.high.is_some() {
            assert!(!self.swa.window_intact(oldest - 1), "{oldest} is not the oldest: {before:?}");
            self.tight += 1;
        }
    }

    /// Saves the needed rows, lets `rng` wreck the rest, copies them back.
    fn restore(&mut self, rng: &mut Rng, from: &Snapshot) {
        let wreck = rng.range(0, 1) == 0;
        for (naive, (rows, kept)) in [(&mut self.swa, &from.swa), (&mut self.full, &from.full)] {
            if wreck {
                naive.slots.fill(None);
            }
            let runs = naive.geo.slot_runs(naive.geo.needed(kept.len() as u32));
            for (slot, row) in runs.into_iter().flatten().zip(rows) {
                naive.slots[slot as usize] = *row;
            }
            naive.kept.clone_from(kept);
            naive.graph.clear();
        }
        self.state.restore(self.swa.committed()).unwrap();
        self.high = None;
    }

    fn snapshot(&self) -> Snapshot {
        let save = |naive: &Naive| {
            let runs = naive.geo.slot_runs(naive.geo.needed(naive.committed()));
            let rows = runs.into_iter().flatten().map(|slot| naive.slots[slot as usize]).collect();
            (rows, naive.kept.clone())
        };
        Snapshot { swa: save(&self.swa), full: save(&self.full) }
    }

    /// What must hold between any two steps.
    fn invariants(&self) {
        let Setup { n_batch, rollback, .. } = self.setup;
        let (c, oldest) = (self.state.committed(), self.state.oldest());
        assert_eq!((self.swa.committed(), self.full.committed()), (c, c));
        assert!(oldest <= c || c == 0, "cannot even go on: {:?}", self.state);
        assert!(self.state.high() >= c);
        if let Some(high) = self.high {
            assert_eq!(self.state.high(), high);
            assert!(oldest <= high.saturating_sub(rollback.max(n_batch)), "promised roll-back is missing");
        }
        // A drafter at c reads the keys before it and not c itself; so does the next graph.
        if c > 0 {
            assert!(self.swa.window_intact(c));
            self.full.check_rule(c).unwrap();
            self.swa.check_rule(c).unwrap();
            check_mask(&self.setup.full, c, 1, c);
            if self.setup.swa.window() > Some(1) {
                check_mask(&self.setup.swa, c, 1, c);
            }
        }
    }
}

struct Snapshot {
    swa: (Vec<Option<Row>>, Vec<u64>),
    full: (Vec<Option<Row>>, Vec<u64>),
}

fn live(seed: u64, setup: Setup, steps: u32) -> Life {
    let mut rng = Rng::new(seed);
    let mut life = Life::new(setup);
    let mut saved = life.snapshot();
    for _ in 0..steps {
        let (c, room) = (life.state.committed(), life.state.remaining());
        let most = setup.n_batch.min(room);
        match rng.range(0, 63) {
            0 => life.truncate(0),
            1 => saved = life.snapshot(),
            2 => life.restore(&mut rng, &saved),
            3..=8 => life.refuse(),
            9..=13 => life.truncate(rng.range(life.state.oldest().min(c), c)),
            14..=16 => life.truncate(life.state.oldest().min(c)),
            _ if room == 0 => {
                assert!(matches!(life.state.begin(1), Err(Error::ContextFull { .. })));
                life.truncate(rng.range(life.state.oldest(), c));
            }
            17..=30 => life.graph(&mut rng, 1, 1),
            31..=42 => {
                let n = rng.range(1, most);
                life.graph(&mut rng, n, n);
            }
            43..=46 => life.graph(&mut rng, most, most),
            47 => {
                // Cancelled: written, in part or in full, and not committed.
                let n = rng.range(1, most);
                life.graph(&mut rng, n, 0);
            }
            _ => {
                let n = rng.range(1, most);
                let accepted = rng.range(0, n - 1);
                life.graph(&mut rng, n, accepted + 1);
            }
        }
        life.invariants();
    }
    life
}

#[test]
fn million_steps_in_small_rings() {
    let (mut steps, mut tight, mut wrapped) = (0, 0, 0);
    for seed in 0.. {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let (window, n_batch, rollback) = (rng.range(1, 8), rng.range(1, 6), rng.range(0, 8));
        let slots = window - 1 + n_batch.max(rollback) + rng.range(0, 1) * rng.range(0, 4);
        let n_ctx = slots + rng.range(1, 4 * slots);
        let (swa, full) = (ring(window, slots), linear(n_ctx));
        let setup = Setup { swa, full, n_ctx, n_batch, rollback, every_row: true };
        let life = live(seed, setup, 400);
        (steps, tight, wrapped) = (steps + 400, tight + life.tight, wrapped + life.wrapped);
        if steps >= 1_000_000 {
            break;
        }
    }
    assert!(tight > 10_000 && wrapped > 100_000, "too tame: {tight} refusals, {wrapped} wrapped graphs");
}

#[test]
fn sessions_of_real_size() {
    let mut wrapped = 0;
    for (seed, (window, n_batch, rollback, n_ctx)) in [
        (512, 512, 0, 6000),
        (512, 512, 0, 900),
        (1024, 256, 700, 4096),
        (1024, 1, 1, 2500),
        (512, 17, 9, 1 << 20),
    ]
    .into_iter()
    .enumerate()
    {
        let state = CacheState::new(n_ctx, window, n_batch, rollback).unwrap();
        // The model of a million full slots would only cost time.
        let full = if n_ctx > 10_000 { linear(8192) } else { *state.full() };
        let n_ctx = n_ctx.min(full.slots());
        let setup = Setup { swa: *state.swa(), full, n_ctx, n_batch, rollback, every_row: false };
        wrapped += live(seed as u64, setup, 1500).wrapped;
    }
    assert!(wrapped > 500, "too tame: {wrapped}");
}

/// Writes chunks of `n` far past the wrap, discards `g`, decodes; `Err` as soon as a query is wrong.
fn bound(window: u32, slots: u32, n: u32, g: u32) -> Result<(), Violation> {
    let mut cache = Naive::new(ring(window, slots));
    for _ in 0..(2 * slots + window + g).div_ceil(n) + 2 {
        cache.write(n)?;
        for q in [cache.committed(), cache.end() - 1] {
            cache.check_rule(q)?;
        }
        cache.commit(n);
    }
    // One row at a time, so that only the discard can go wrong.
    cache.truncate(cache.committed() - g);
    cache.write(1)?;
    cache.check_graph()
}

#[test]
fn ring_size_is_exact() {
    for window in 2..=7 {
        for n in 1..=5 {
            for g in 0..=8 {
                for slots in n..=window + 14 {
                    let fits = slots >= window - 1 + n.max(g);
                    let found = bound(window, slots, n, g);
                    assert_eq!(found.is_ok(), fits, "W {window} n {n} g {g} R {slots}: {found:?}");
                }
            }
        }
    }
}

#[test]
fn one_alignment_step_less_breaks() {
    // Bound by the write, bound by the discard; an exact multiple of 256 and one slot above one.
    for (window, n, g) in [
        (512, 512, 0),
        (513, 256, 0),
        (512, 2, 0),
        (1024, 256, 0),
        (512, 1, 257),
        (1024, 16, 500),
        (257, 1, 513),
    ] {
        let slots = Geometry::swa(window, n, g, 1 << 20).unwrap().slots();
        assert_eq!(bound(window, slots, n, g), Ok(()));
        let less = bound(window, slots - SLOT_ALIGN, n, g);
        assert!(matches!(less, Err(Violation::Stale | Violation::Missing | Violation::Future)), "{less:?}");
    }
}

#[test]
fn verify_after_the_deepest_rollback() {
    let mut state = CacheState::new(100_000, 1024, 512, 0).unwrap();
    let slots = state.swa().slots();
    let mut swa = Naive::new(*state.swa());
    for _ in 0..7 {
        let _ = state.begin(500).unwrap();
        swa.prefill(500);
        state.commit(500);
    }
    let deepest = 3500 - slots + 1023;
    assert_eq!((state.high(), state.oldest()), (3500, deepest));
    assert_eq!(state.high() - state.oldest(), state.swa().max_write());
    state.truncate(deepest).unwrap();
    swa.truncate(deepest);
    for kept in 0..20 {
        let _ = state.begin(16).unwrap();
        swa.write(16).unwrap();
        swa.check_graph().unwrap();
        swa.commit(1);
        state.commit(1);
        // Rows abandoned long ago still count: what they overwrote stays lost.
        assert_eq!((state.high(), state.oldest(), state.committed()), (3500, deepest, deepest + kept + 1));
    }
    assert_eq!(state.truncate(deepest - 1).unwrap_err().oldest, deepest);
    state.truncate(0).unwrap();
    assert_eq!((state.high(), state.oldest(), state.committed()), (0, 0, 0));
    swa.truncate(0);
    swa.prefill(100);
}
