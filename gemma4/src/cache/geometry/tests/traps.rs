//! The traps of spec 9.1 that the geometry exists for, each put back here and seen to be caught: the
//! wrong variant is judged by the naive model, next to the right one.

use super::*;

const WINDOW: u32 = 512;
const CHUNK: u32 = 256;

/// The sliding-window cache of a session after `n` positions in chunks.
fn prefilled(n: u32) -> Naive {
    let mut cache = Naive::new(Geometry::swa(WINDOW, CHUNK, 0, 1 << 18).unwrap());
    assert_eq!(cache.geo.slots(), 768);
    fill(&mut cache, n);
    cache
}

fn fill(cache: &mut Naive, n: u32) {
    while cache.committed() < n {
        cache.prefill(CHUNK.min(n - cache.committed()));
    }
}

/// One more graph of `n` rows, written and not yet committed.
fn with_graph(mut cache: Naive, n: u32) -> Naive {
    cache.write(n).unwrap();
    cache.check_graph().unwrap();
    cache
}

/// A verify block of `n` rows of which only the first is kept.
fn with_rejects(cache: Naive, n: u32) -> Naive {
    let mut cache = with_graph(cache, n);
    cache.commit(1);
    cache
}

/// Judges the last query of the current graph if it ran without a mask.
fn without_mask(cache: &Naive) -> Result<(), Violation> {
    let view = cache.geo.n_view(cache.end());
    cache.check(cache.end() - 1, view, |slot| slot < view)
}

#[test]
fn finding_1_ring_mask_that_takes_slots_for_positions() {
    let slot_is_position = |cache: &Naive| {
        let (end, view) = (cache.end(), cache.geo.n_view(cache.end()));
        (cache.committed()..end)
            .try_for_each(|q| cache.check(q, view, |slot| slot < end && slot <= q && q - slot < WINDOW))
    };
    let mut cache = prefilled(0);
    let slots = cache.geo.slots();
    let (mut right_until, mut first_wrong) = (0, None);
    while cache.committed() < 3 * slots {
        cache = with_graph(cache, CHUNK);
        match slot_is_position(&cache) {
            Ok(()) => right_until = cache.end(),
            Err(violation) => first_wrong = first_wrong.or(Some((cache.end(), violation))),
        }
        cache.commit(CHUNK);
    }
    // Fluent as long as the ring has not wrapped, wrong ever after.
    assert_eq!(right_until, slots);
    assert_eq!(first_wrong, Some((slots + CHUNK, Violation::Missing)));

    // The other half-truth, `slot = q mod R` for the query: reads rows of the wrong lap.
    let cache = with_graph(prefilled(slots), 4);
    let q = cache.end() - 1;
    let query_slot = q % slots;
    let wrong = cache.check(q, slots, |slot| slot <= query_slot && query_slot - slot < WINDOW);
    assert_eq!(wrong, Err(Violation::Missing));
}

#[test]
fn finding_9_single_token_decode_without_a_mask() {
    // Slots of the view that were never written.
    assert_eq!(without_mask(&with_graph(prefilled(300), 1)), Err(Violation::Unwritten));
    // Between W and R: rows that have left the window.
    assert_eq!(without_mask(&with_graph(prefilled(767), 1)), Err(Violation::TooOld));
    // Wrapped: the whole ring is full of rows older than the window.
    assert_eq!(without_mask(&with_graph(prefilled(5000), 1)), Err(Violation::TooOld));
    // Rejected drafts behind the end.
    assert_eq!(without_mask(&with_graph(with_rejects(prefilled(251), 5), 1)), Err(Violation::Stale));
    // The one case in which it is right hides the trap in a first test.
    assert_eq!(without_mask(&with_graph(prefilled(255), 1)), Ok(()));
}

#[test]
fn finding_8_full_layers_without_a_mask() {
    let full = |n| {
        let mut cache = Naive::new(Geometry::full(1 << 13).unwrap());
        fill(&mut cache, n);
        cache
    };
    assert_eq!(without_mask(&with_graph(full(1000), 1)), Err(Violation::Unwritten));
    assert_eq!(without_mask(&with_graph(with_rejects(full(1000), 24), 1)), Err(Violation::Stale));
    let block = with_graph(full(1016), 8);
    let view = block.geo.n_view(1024);
    assert_eq!(block.check(1016, view, |slot| slot < view), Err(Violation::Future));

    // Everything is visible: correct without a mask, but head size 512 has no kernel without one. So
    // there is a mask even then, all zero.
    let everything = with_graph(full(1023), 1);
    assert_eq!(without_mask(&everything), Ok(()));
    let mut mask = vec![f16::NAN; 1024];
    everything.geo.fill_mask_f16(&mut mask, 1024, 1023, 1, 1024);
    assert!(mask.iter().all(|&value| value == f16::ZERO));
}

#[test]
fn finding_10_one_mask_for_both_kinds() {
    let n_ctx = 1 << 13;
    // (positions, the masks are equally long, SWA mask on full layers, full mask on SWA layers)
    for (n, same_length, swa_on_full, full_on_swa) in [
        (300, true, Ok(()), Ok(())),
        // Equal lengths are not enough: beyond W the contents differ.
        (700, true, Err(Violation::Missing), Err(Violation::TooOld)),
        // Beyond R the lengths differ as well, and slots mean different positions.
        (3000, false, Err(Violation::Stale), Err(Violation::Stale)),
    ] {
        let swa = with_graph(prefilled(n), 1);
        let mut full = Naive::new(Geometry::full(n_ctx).unwrap());
        fill(&mut full, n);
        let full = with_graph(full, 1);
        let end = n + 1;
        let (swa_view, full_view) = (swa.geo.n_view(end), full.geo.n_view(end));
        assert_eq!(swa_view == full_view, same_length, "{n} positions");
        let wrong = full.check(n, full_view, |slot| slot < swa_view && swa.geo.visible(slot, end, n));
        assert_eq!(wrong.is_ok(), swa_on_full.is_ok(), "{n} positions: {wrong:?}");
        let wrong = swa.check(n, swa_view, |slot| full.geo.visible(slot, end, n));
        assert_eq!(wrong.is_ok(), full_on_swa.is_ok(), "{n} positions: {wrong:?}");
    }
}

#[test]
fn finding_3_dropping_the_ring_costs_memory() {
    // 31B: 50 sliding layers of 16 heads of 256, F16.
    let row = 16 * 256 * 2;
    let bytes = |slots| kv_bytes(slots, row, row, 50).unwrap();
    let swa = |n_ctx| Geometry::swa(1024, 1024, 0, n_ctx).unwrap().slots();
    let dropped = |n_ctx| Geometry::full(n_ctx).unwrap().slots();
    assert_eq!(bytes(dropped(4096)), 2 * bytes(swa(4096)));
    assert_eq!(bytes(dropped(1 << 18)), 128 * bytes(swa(1 << 18)));
    assert_eq!(bytes(swa(1 << 20)), bytes(swa(4096)), "the ring does not grow with the context");
    // ... and a context no longer than the ring pays for no ring.
    assert_eq!(bytes(swa(1500)), bytes(dropped(1500)));
}

#[test]
fn rolling_back_past_the_window() {
    // The trap behind `oldest_reachable`: cutting `committed` alone looks right and reads stale rows.
    let mut state = CacheState::new(1 << 18, WINDOW, CHUNK, 0).unwrap();
    let mut cache = prefilled(0);
    for _ in 0..8 {
        let _ = state.begin(CHUNK).unwrap();
        cache.prefill(CHUNK);
        state.commit(CHUNK);
    }
    let oldest = state.oldest();
    let decode_at = |len| {
        let mut cache = cache.clone();
        cache.truncate(len);
        cache.write(1).unwrap();
        cache.check_graph()
    };
    assert_eq!(decode_at(oldest), Ok(()));
    assert_eq!(decode_at(oldest - 1), Err(Violation::Stale));
    assert_eq!(decode_at(1), Err(Violation::Stale));
    assert_eq!(decode_at(0), Ok(()));
    assert!(state.truncate(oldest - 1).is_err() && state.truncate(1).is_err());
    assert_eq!(state.truncate(oldest), Ok(()));
}
