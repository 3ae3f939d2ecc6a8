//! Sizes, limits, single formulas, and the masks of geometries of any size.

use proptest::prelude::*;

use super::*;

#[test]
fn ring_sizes_of_the_specification() {
    for (window, n_batch, slots) in
        [(512, 512, 1024), (1024, 256, 1280), (1024, 512, 1536), (1024, 1024, 2048)]
    {
        let swa = Geometry::swa(window, n_batch, 0, 1 << 18).unwrap();
        assert_eq!((swa.slots(), swa.is_ring(), swa.window()), (slots, true, Some(window)));
        assert_eq!(swa.kind(), LayerKind::Swa);
        assert!(swa.max_write() >= n_batch);
        // Plain speculation discards rows of its own block only, and costs nothing.
        assert_eq!(Geometry::swa(window, n_batch, n_batch, 1 << 18).unwrap(), swa);
    }
    assert_eq!(Geometry::swa(512, 16, 1000, 1 << 18).unwrap().slots(), 1536);
}

#[test]
fn short_contexts_are_linear() {
    for (n_ctx, slots, is_ring) in
        [(1, 256, false), (2048, 2048, false), (2049, 2048, true), (257, 512, false)]
    {
        let swa = Geometry::swa(1024, 1024, 0, n_ctx).unwrap();
        assert_eq!((swa.slots(), swa.is_ring()), (slots, is_ring), "n_ctx {n_ctx}");
        let full = Geometry::full(n_ctx).unwrap();
        assert_eq!((full.slots(), full.is_ring(), full.window()), (n_ctx.next_multiple_of(256), false, None));
        assert_eq!(full.kind(), LayerKind::Full);
        assert_eq!(full.max_write(), full.slots());
    }
    // Linear, yet the window still holds.
    let swa = Geometry::swa(4, 8, 0, 100).unwrap();
    assert!(swa.visible(7, 20, 10) && !swa.visible(6, 20, 10) && !swa.visible(11, 20, 10));
    assert_eq!((swa.oldest_reachable(100), swa.needed(50)), (0, 0..50));
}

#[test]
fn limits() {
    let option = |result: Result<Geometry>| match result {
        Err(Error::Option { option, .. }) => option,
        other => panic!("{other:?}"),
    };
    assert_eq!(option(Geometry::full(0)), "n_ctx");
    assert_eq!(option(Geometry::full(MAX_CTX + 1)), "n_ctx");
    assert_eq!(option(Geometry::full(u32::MAX)), "n_ctx");
    assert_eq!(option(Geometry::swa(0, 1, 0, 100)), "window");
    assert_eq!(option(Geometry::swa(1, 0, 0, 100)), "n_batch");
    assert_eq!(option(Geometry::swa(1, 1, 0, u32::MAX)), "n_ctx");
    assert_eq!(Geometry::full(MAX_CTX).unwrap().slots(), MAX_CTX);
    assert!(!Geometry::swa(u32::MAX, u32::MAX, u32::MAX, MAX_CTX).unwrap().is_ring());
}

#[test]
fn kv_bytes_checked() {
    assert_eq!(kv_bytes(1024, 8192, 8192, 50).unwrap(), 1024 * 16384 * 50);
    assert_eq!(kv_bytes(1024, 8192, 0, 50).unwrap(), 1024 * 8192 * 50);
    assert_eq!(kv_bytes(0, 8192, 0, 50).unwrap(), 0);
    for (k, v) in [(u64::MAX, 1), (u64::MAX / 2, 0), (1 << 60, 1 << 60)] {
        assert!(matches!(kv_bytes(1024, k, v, 3), Err(Error::Option { .. })));
    }
}

#[test]
fn examples_of_the_kernel_specification() {
    let positions = |end| -> Vec<_> { (0..8).map(|slot| ring(4, 8).position(slot, end)).collect() };
    assert_eq!(positions(11), [8, 9, 10, 3, 4, 5, 6, 7].map(Some));
    assert_eq!(positions(3), [Some(0), Some(1), Some(2), None, None, None, None, None]);
    assert_eq!(positions(0), [None; 8]);
    for (q, slots) in [(8, [0, 5, 6, 7]), (9, [0, 1, 6, 7]), (10, [0, 1, 2, 7])] {
        let seen: Vec<_> = (0..8).filter(|&slot| ring(4, 8).visible(slot, 11, q)).collect();
        assert_eq!(seen, slots);
    }
    // A query too far behind the end for its graph sees what is left of its window, by either path.
    check_mask(&ring(4, 8), 12, 8, 20);
    check_mask(&ring(7, 8), 12, 8, 20);
    // R = 5 is one too few for W = 4 and three rejected rows: slot 0 holds 10, the formula says 5.
    assert!(ring(4, 5).visible(0, 9, 8));
    assert!(!ring(4, 6).visible(10 % 6, 9, 8));
}

#[test]
fn views_grow_in_steps() {
    let swa = Geometry::swa(512, 512, 0, 1 << 20).unwrap();
    let full = Geometry::full(1000).unwrap();
    for (end, swa_view, full_view) in [
        (0, 256, 256),
        (1, 256, 256),
        (256, 256, 256),
        (257, 512, 512),
        (1000, 1024, 1024),
        (1025, 1024, 1024),
        (u32::MAX, 1024, 1024),
    ] {
        assert_eq!((swa.n_view(end), full.n_view(end)), (swa_view, full_view), "end {end}");
    }
}

#[test]
fn begin_commit_and_their_errors() {
    let mut state = CacheState::new(100, 16, 32, 0).unwrap();
    assert_eq!(state.geometry(LayerKind::Full), state.full());
    assert_eq!(state.geometry(LayerKind::Swa), state.swa());
    assert_eq!((state.n_ctx(), state.n_batch(), state.remaining()), (100, 32, 100));
    for n in [0, 33, 100] {
        assert!(matches!(state.begin(n), Err(Error::Option { option: "n_batch", .. })));
    }
    assert!(matches!(state.begin(101), Err(Error::ContextFull { used: 0, requested: 101, n_ctx: 100 })));
    assert!(matches!(state.begin(u32::MAX), Err(Error::ContextFull { .. })));
    assert_eq!((state.committed(), state.high()), (0, 0));
    for first in [0, 32, 64] {
        assert_eq!(state.begin(32).unwrap(), Span { first, n: 32 });
        assert_eq!((state.committed(), state.high()), (first, first + 32));
        state.commit(30);
        state.commit(2);
    }
    assert!(matches!(state.begin(5), Err(Error::ContextFull { used: 96, requested: 5, n_ctx: 100 })));
    assert_eq!(state.begin(4).unwrap().end(), 100);
    assert_eq!((state.committed(), state.high(), state.remaining()), (96, 100, 4));
    state.truncate(200).unwrap();
    assert_eq!(state.committed(), 96);
    assert!(matches!(state.restore(101), Err(Error::ContextFull { .. })));
    assert_eq!(state.committed(), 96);
}

/// A late commit must not keep rows that were abandoned meanwhile.
#[test]
fn abandoned_rows_cannot_be_committed() {
    let begun = || {
        let mut state = CacheState::new(100, 16, 32, 0).unwrap();
        let _ = state.begin(8).unwrap();
        state.commit(3);
        state
    };
    let pending = |state: &CacheState, n| format!("{state:?}").contains(&format!("pending: {n} "));
    assert!(pending(&begun(), 5));
    for len in [0, 2, 3, 99] {
        let mut state = begun();
        state.truncate(len).unwrap();
        assert!(pending(&state, 0) && state.committed() == len.min(3));
    }
    let mut state = begun();
    state.restore(3).unwrap();
    assert!(pending(&state, 0));
    // A debug build says so, a release build keeps what there is.
    let kept = std::panic::catch_unwind(|| {
        let mut state = begun();
        state.commit(6);
        state.committed()
    });
    assert_eq!(kept.ok(), if cfg!(debug_assertions) { None } else { Some(8) });
}

#[test]
fn restore_allows_no_more_than_was_saved() {
    let mut state = CacheState::new(1 << 20, 512, 512, 0).unwrap();
    for (committed, needed, oldest) in
        [(0, 0..0, 0), (511, 0..511, 0), (512, 1..512, 512), (9000, 8489..9000, 9000)]
    {
        assert_eq!(state.swa().needed(committed), needed);
        assert_eq!(state.full().needed(committed), 0..committed);
        state.restore(committed).unwrap();
        assert_eq!((state.committed(), state.oldest()), (committed, oldest));
    }
    let span = state.begin(512).unwrap();
    state.commit(span.n);
    assert_eq!(state.oldest(), 9000);
    state.truncate(9000).unwrap();
}

/// Geometries as sessions have them, and a graph at any place up to 2^31.
fn graphs() -> impl Strategy<Value = (Geometry, Span)> {
    let sizes = (1..1500u32, 1..700u32, 0..1500u32, prop_oneof![1..6000u32, Just(MAX_CTX)]);
    (sizes, any::<u32>(), any::<u32>(), any::<bool>()).prop_map(|((w, n, g, n_ctx), at, len, swa)| {
        // A row of 2^31 slots is too much for a test.
        let geo = if swa || n_ctx == MAX_CTX { Geometry::swa(w, n, g, n_ctx) } else { Geometry::full(n_ctx) }
            .unwrap();
        let first = at % n_ctx;
        (geo, Span { first, n: 1 + len % n.min(n_ctx - first) })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mask_is_visible((geo, span) in graphs()) {
        // The first rows and the last ones: where runs start, wrap and end.
        let rows = span.n.min(3);
        check_mask(&geo, span.first, rows, span.end());
        check_mask(&geo, span.end() - rows, rows, span.end());
    }

    #[test]
    fn slots_are_those_of_the_positions((geo, span) in graphs()) {
        let mut index = vec![-1; span.n as usize];
        geo.fill_slots(&mut index, span.first);
        let one_by_one: Vec<_> = (span.first..span.end()).map(|pos| geo.slot(pos)).collect();
        prop_assert!(index.iter().zip(&one_by_one).all(|(&a, &b)| a == i64::from(b)));
        let runs: Vec<_> = geo.slot_runs(span.first..span.end()).into_iter().flatten().collect();
        prop_assert_eq!(runs, one_by_one);
    }

    #[test]
    fn position_is_the_inverse_of_slot((geo, span) in graphs()) {
        let end = span.end();
        let held = if geo.is_ring() { end.saturating_sub(geo.slots()) } else { 0 };
        for pos in (held..end).rev().take(3000).chain(held..end.min(held + 3000)) {
            prop_assert_eq!(geo.position(geo.slot(pos), end), Some(pos));
        }
        for slot in (0..geo.slots()).take(10_000) {
            let (e, s, r) = (i64::from(end), i64::from(slot), i64::from(geo.slots()));
            let p = if geo.is_ring() { e - 1 - (e - 1 - s).rem_euclid(r) } else { s };
            prop_assert_eq!(geo.position(slot, end).map(i64::from), (p >= 0 && p < e).then_some(p));
        }
        prop_assert_eq!(geo.position(geo.slots(), end), None);
        prop_assert_eq!(geo.position(u32::MAX, end), None);
    }

    #[test]
    fn a_session_can_always_discard_what_it_was_made_for(
        w in 1..3000u32, n in 1..3000u32, g in 0..5000u32, n_ctx in 1..=MAX_CTX, high in 0..=MAX_CTX,
    ) {
        let swa = Geometry::swa(w, n, g, n_ctx).unwrap();
        let high = high.min(n_ctx);
        prop_assert!(swa.oldest_reachable(high) <= high.saturating_sub(n.max(g)));
        prop_assert!(swa.slots().is_multiple_of(SLOT_ALIGN) && swa.slots() <= n_ctx.next_multiple_of(SLOT_ALIGN));
        prop_assert!(swa.max_write() >= n.min(n_ctx));
        prop_assert_eq!(Geometry::full(n_ctx).unwrap().oldest_reachable(high), 0);
    }
}
