//! Masks from a few numbers against a simulation of the cache.

mod common;

use common::{Bench, Random};
use ggml_sys::*;

#[derive(Clone, Copy, Debug)]
struct Case {
    n_kv: i64,
    n_rows: i64,
    ring: i32,
    window: i32,
    causal: bool,
    q_pos0: i32,
    kv_end: i32,
    n_q: i32,
    kv_base: i32,
    first_valid: i32,
}

const CASE: Case = Case {
    n_kv: 8,
    n_rows: 1,
    ring: 0,
    window: 0,
    causal: true,
    q_pos0: 0,
    kv_end: 1,
    n_q: 1,
    kv_base: 0,
    first_valid: 0,
};

/// Masks of several cases from one graph, as booleans: may row `i` see slot `s`.
fn masks(cases: &[Case], threads: i32) -> Vec<Vec<bool>> {
    let mut b = Bench::new(threads);
    let results: Vec<_> = cases
        .iter()
        .map(|c| {
            let words = [c.q_pos0, c.kv_end, c.n_q, c.kv_base, c.first_valid, 0, 0, 0];
            let params = b.ints(&[GGML_KV_PARAMS.into()], &words);
            let flags = if c.causal { GGML_KV_MASK_CAUSAL as i32 } else { 0 };
            // SAFETY: the parameters are a tensor of this context of the required shape.
            unsafe { ggml_kv_mask(b.ctx, params, c.n_kv, c.n_rows, c.ring, c.window, flags) }
        })
        .collect();
    let read = |bytes: Vec<u8>| {
        let value = |b: &[u8]| match u16::from_le_bytes([b[0], b[1]]) {
            0 => true,
            0xFC00 => false,
            other => panic!("{other:#06x} is no mask value"),
        };
        bytes.chunks_exact(2).map(value).collect()
    };
    b.run(&results).into_iter().map(read).collect()
}

/// The oracle: an array of what each slot holds, filled by writing positions one by one.
fn simulate(c: &Case) -> Vec<bool> {
    let mut holds: Vec<Option<i64>> = vec![None; c.n_kv as usize];
    // Older writes than these are overwritten, or lie outside the view.
    let capacity = if c.ring > 0 { i64::from(c.ring) } else { c.n_kv + i64::from(c.kv_base.max(0)) };
    let from =
        if c.ring > 0 { (i64::from(c.kv_end) - 2 * capacity).max(0) } else { i64::from(c.kv_base.max(0)) };
    for position in from..i64::from(c.kv_end) {
        let slot = if c.ring > 0 { position % i64::from(c.ring) } else { position - i64::from(c.kv_base) };
        if (0..c.n_kv).contains(&slot) {
            holds[slot as usize] = Some(position);
        } else if c.ring == 0 {
            break;
        }
    }
    let mut seen = Vec::new();
    for row in 0..c.n_rows {
        let query = i64::from(c.q_pos0) + row.min(i64::from(c.n_q) - 1);
        let mut line: Vec<bool> = holds
            .iter()
            .map(|held| {
                held.is_some_and(|p| {
                    p >= i64::from(c.first_valid)
                        && (!c.causal || p <= query)
                        && (c.window == 0 || query - p < i64::from(c.window))
                })
            })
            .collect();
        if !line.contains(&true) {
            line[0] = true;
        }
        seen.extend(line);
    }
    seen
}

#[track_caller]
fn check(cases: &[Case], threads: i32) {
    for (c, got) in cases.iter().zip(masks(cases, threads)) {
        assert_eq!(got, simulate(c), "{c:?}");
    }
}

/// The slots that a row sees.
fn slots(mask: &[bool], row: usize, n_kv: usize) -> Vec<usize> {
    (0..n_kv).filter(|s| mask[row * n_kv + s]).collect()
}

#[test]
fn worked_examples() {
    // Slots hold 8 9 10 3 4 5 6 7: each first_valid hides one more.
    let order = [8, 9, 10, 3, 4, 5, 6, 7];
    let ring = Case { ring: 8, kv_end: 11, q_pos0: 10, causal: false, ..CASE };
    for first in 3..=10 {
        let mask = &masks(&[Case { first_valid: first, ..ring }], 1)[0];
        let want: Vec<usize> = (0..8).filter(|&s| order[s] >= first).collect();
        assert_eq!(slots(mask, 0, 8), want);
    }
    assert_eq!(slots(&masks(&[Case { kv_end: 3, ..ring }], 1)[0], 0, 8), [0, 1, 2]);
    let step = Case { window: 4, q_pos0: 8, n_q: 3, n_rows: 3, causal: true, ..ring };
    let mask = &masks(&[step], 2)[0];
    assert_eq!(slots(mask, 0, 8), [0, 5, 6, 7]);
    assert_eq!(slots(mask, 1, 8), [0, 1, 6, 7]);
    assert_eq!(slots(mask, 2, 8), [0, 1, 2, 7]);
    // An empty cache shows one slot.
    let empty = Case { kv_end: 0, q_pos0: 0, ..ring };
    assert_eq!(slots(&masks(&[empty], 1)[0], 0, 8), [0]);
}

#[test]
fn ten_thousand_random_cases() {
    let mut random = Random::new(21);
    let mut at = |n: u32| random.below(n) as i32;
    let mut cases = Vec::new();
    for _ in 0..10_000 {
        let ring = if at(3) == 0 { 0 } else { 1 + at(40) };
        let n_q = 1 + at(9);
        let kv_end = at(120);
        let kv_base = if ring == 0 { at(20) } else { 0 };
        // Mostly the whole ring, sometimes a view that is shorter or longer.
        let n_kv = match at(4) {
            0 => 1 + at(60),
            _ if ring > 0 => ring,
            _ => 1 + at(120),
        };
        cases.push(Case {
            n_kv: n_kv.into(),
            n_rows: i64::from(n_q + at(4)),
            ring,
            window: if at(3) == 0 { 0 } else { 1 + at(50) },
            causal: at(4) != 0,
            q_pos0: (kv_end - n_q + at(7) - 3).max(0),
            kv_end,
            n_q,
            kv_base,
            first_valid: if at(3) == 0 { at(60) } else { 0 },
        });
    }
    for chunk in cases.chunks(500) {
        check(chunk, 1);
    }
    check(&cases[..60], 3);
}

#[test]
fn every_offset_of_a_wrap() {
    let mut cases = Vec::new();
    for ring in [6i32, 8] {
        for kv_end in 0..=3 * ring {
            for tokens in 1..=3 {
                let q_pos0 = (kv_end - tokens).max(0);
                let n_q = kv_end.min(tokens).max(1);
                cases.push(Case {
                    n_kv: ring.into(),
                    ring,
                    window: 4,
                    kv_end,
                    q_pos0,
                    n_q,
                    n_rows: 4,
                    ..CASE
                });
            }
        }
    }
    for chunk in cases.chunks(40) {
        check(chunk, 2);
    }
}

#[test]
fn positions_near_the_largest() {
    let last = i32::MAX;
    let ring = Case { ring: 8, kv_end: last, q_pos0: last - 1, n_rows: 3, n_q: 3, window: 4, ..CASE };
    let view = Case { ring: 0, kv_base: last - 8, ..ring };
    check(&[ring, Case { causal: false, ..ring }, view, Case { window: last, ..ring }], 2);
    let all = Case { window: 0, q_pos0: last, ..view };
    assert_eq!(slots(&masks(&[all], 1)[0], 2, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
}

/// A ring of W + T - 1 slots shows rejected positions to nobody, one slot less does.
#[test]
fn the_bound_of_the_ring_is_exact() {
    let (window, tokens) = (4i32, 3i32);
    let shows_rejected = |ring: i32| {
        // Positions 0..=7 stay; 8, 9 and 10 are written and rejected; then 8 is decoded again.
        let mut holds = vec![0i32; ring as usize];
        for p in (0..8 + tokens).chain([8]) {
            holds[(p % ring) as usize] = p;
        }
        let case = Case { n_kv: ring.into(), ring, window, kv_end: 9, q_pos0: 8, ..CASE };
        slots(&masks(&[case], 1)[0], 0, ring as usize).into_iter().any(|s| holds[s] > 8)
    };
    assert!(shows_rejected(window + tokens - 2));
    assert!(!shows_rejected(window + tokens - 1));

    // Random blocks and acceptances.
    let mut random = Random::new(22);
    for ring in [window + tokens - 1, window + tokens, 11] {
        let mut holds = vec![-1i32; ring as usize];
        let mut end = 0;
        let mut cases = Vec::new();
        for _ in 0..30 {
            let written = 1 + random.below(tokens as u32) as i32;
            for p in end..end + written {
                holds[(p % ring) as usize] = p;
            }
            let case = Case {
                n_kv: ring.into(),
                n_rows: written.into(),
                ring,
                window,
                q_pos0: end,
                n_q: written,
                kv_end: end + written,
                ..CASE
            };
            cases.push((case, holds.clone()));
            end += 1 + random.below(written as u32) as i32;
        }
        let plain: Vec<Case> = cases.iter().map(|(c, _)| *c).collect();
        for (mask, (case, holds)) in masks(&plain, 1).iter().zip(&cases) {
            for row in 0..case.n_rows as usize {
                let query = case.q_pos0 + row as i32;
                let mut seen: Vec<i32> =
                    slots(mask, row, ring as usize).into_iter().map(|s| holds[s]).collect();
                seen.sort_unstable();
                let want: Vec<i32> = ((query - window + 1).max(0)..=query).collect();
                assert_eq!(seen, want, "{case:?}");
            }
        }
    }
}
