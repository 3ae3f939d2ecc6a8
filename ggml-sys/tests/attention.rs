//! Attention over caches of every type against sums in f64 over what the caches really hold.

mod common;

use common::{Bench, Random, decode, encode, floats, nmse};
use ggml_sys::*;

const TYPES: [ggml_type; 5] =
    [GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_TQ3_0, GGML_TYPE_BF16];

#[derive(Clone, Copy, Debug)]
struct Case {
    k: ggml_type,
    v: ggml_type,
    d: usize,
    kv_heads: usize,
    gqa: usize,
    tokens: usize,
    n_kv: usize,
    threads: i32,
    masked: bool,
}

const CASE: Case = Case {
    k: GGML_TYPE_TQ3_0,
    v: GGML_TYPE_TQ3_0,
    d: 256,
    kv_heads: 2,
    gqa: 2,
    tokens: 1,
    n_kv: 100,
    threads: 1,
    masked: true,
};

struct Data {
    q: Vec<f32>,
    k: Vec<u8>,
    v: Vec<u8>,
    /// Additive, row by row.
    mask: Vec<f32>,
}

/// Logits of about unit size, a causal mask with holes.
fn data(c: &Case, seed: u64) -> Data {
    let mut random = Random::new(seed);
    let n = c.d * c.kv_heads * c.n_kv;
    let scale = 3.0 / (c.d as f32).sqrt();
    let q = random.normals(c.d * c.kv_heads * c.gqa * c.tokens).iter().map(|v| v * scale).collect();
    let (k, v) = (encode(c.k, &random.normals(n)), encode(c.v, &random.normals(n)));
    let mask = (0..c.tokens * c.n_kv)
        .map(|i| {
            let (token, slot) = (i / c.n_kv, i % c.n_kv);
            let newest = (c.n_kv - 1).saturating_sub(c.tokens - 1 - token);
            let hidden = slot > newest || (slot != newest && random.below(8) == 0);
            if hidden { f32::NEG_INFINITY } else { 0.0 }
        })
        .collect();
    Data { q, k, v, mask }
}

/// Queries, keys and values as in a session: tokens above heads above values, seen with heads last.
fn views(b: &mut Bench, c: &Case, data: &Data) -> [*mut ggml_tensor; 3] {
    let (d, heads) = (c.d as i64, c.kv_heads as i64);
    let q = b.floats(&[d, heads * c.gqa as i64, c.tokens as i64], &data.q);
    let k = b.bytes(c.k, &[d, heads, c.n_kv as i64], data.k.clone());
    let v = b.bytes(c.v, &[d, heads, c.n_kv as i64], data.v.clone());
    // SAFETY: all are of this context.
    [q, k, v].map(|t| unsafe { ggml_permute(b.ctx, t, 0, 2, 1, 3) })
}

/// `[d, heads, tokens]`
fn attention(c: &Case, data: &Data, reference: bool) -> Vec<f32> {
    let mut b = Bench::new(c.threads);
    b.reference = reference;
    let [q, k, v] = views(&mut b, c, data);
    let mask = b.encoded(GGML_TYPE_F16, &[c.n_kv as i64, c.tokens as i64], &data.mask);
    // SAFETY: all are of this context and fit.
    let out = unsafe {
        let mask = if c.masked { mask } else { std::ptr::null_mut() };
        let out = ggml_flash_attn_ext(b.ctx, q, k, v, mask, 1.0, 0.0, 0.0);
        ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
        out
    };
    floats(&b.run(&[out])[0])
}

fn oracle(c: &Case, data: &Data) -> Vec<f64> {
    let (k, v) = (decode(c.k, &data.k), decode(c.v, &data.v));
    let heads = c.kv_heads * c.gqa;
    let mut out = Vec::new();
    for token in 0..c.tokens {
        for head in 0..heads {
            let q = &data.q[(token * heads + head) * c.d..][..c.d];
            let row = |t: usize| (t * c.kv_heads + head / c.gqa) * c.d..;
            let logits: Vec<(usize, f64)> = (0..c.n_kv)
                .filter(|t| !c.masked || data.mask[token * c.n_kv + t] == 0.0)
                .map(|t| (t, k[row(t)].iter().zip(q).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum()))
                .collect();
            let top = logits.iter().fold(f64::NEG_INFINITY, |m, l| m.max(l.1));
            let (mut sum, mut line) = (0.0, vec![0.0; c.d]);
            for (t, logit) in logits {
                let weight = (logit - top).exp();
                sum += weight;
                line.iter_mut().zip(&v[row(t)]).for_each(|(o, &v)| *o += weight * f64::from(v));
            }
            out.extend(line.iter().map(|o| if sum > 0.0 { o / sum } else { 0.0 }));
        }
    }
    out
}

#[track_caller]
fn check(c: &Case, seed: u64) {
    let data = data(c, seed);
    let got = attention(c, &data, false);
    // With few rows the query is rounded to the key's companion type, as upstream does. F16 on both
    // sides is upstream's own path, which accumulates in F16.
    let few = c.gqa * c.tokens < 4;
    let limit = if few || (c.k == c.v && c.k == GGML_TYPE_F16) { 5e-4 } else { 1e-9 };
    let error = nmse(&got, &oracle(c, &data));
    assert!(error <= limit, "{c:?}: error {error}");
}

#[test]
fn every_pair_of_types() {
    let mut seed = 100;
    for k in TYPES {
        for v in TYPES {
            for (d, gqa, tokens) in [(256, 2, 1), (512, 8, 1), (256, 8, 3), (512, 2, 64)] {
                seed += 1;
                check(&Case { k, v, d, gqa, tokens, n_kv: 131, ..CASE }, seed);
            }
        }
    }
}

#[test]
fn every_number_of_tokens() {
    for d in [256, 512] {
        for gqa in [2, 8] {
            for tokens in (1..=17).chain([63, 64, 65]) {
                let threads = 1 + (tokens % 2) as i32;
                check(&Case { d, gqa, tokens, n_kv: 97, threads, ..CASE }, 200 + tokens as u64);
            }
        }
    }
}

#[test]
fn every_length_of_the_cache() {
    for n_kv in [1, 2, 3, 5, 31, 63, 64, 65, 127, 255, 256, 257, 1023, 4095] {
        for (k, v) in [
            (GGML_TYPE_TQ3_0, GGML_TYPE_TQ3_0),
            (GGML_TYPE_Q8_0, GGML_TYPE_TQ3_0),
            (GGML_TYPE_Q4_0, GGML_TYPE_Q4_0),
        ] {
            for gqa in [1, 2, 8] {
                check(&Case { k, v, gqa, n_kv, ..CASE }, 300 + n_kv as u64);
            }
        }
        check(&Case { n_kv, tokens: 5, masked: false, ..CASE }, 400 + n_kv as u64);
    }
}

/// `[d, heads, tokens]`, by a mask that the device makes from `params` or without it.
fn causal(c: &Case, data: &Data, params: &[i32; 8], mask: bool, reference: bool) -> Vec<f32> {
    let mut b = Bench::new(c.threads);
    b.reference = reference;
    let [q, k, v] = views(&mut b, c, data);
    let params = b.ints(&[8], params);
    // SAFETY: all are of this context and fit.
    let out = unsafe {
        let flags = GGML_KV_MASK_CAUSAL as i32;
        let mask = match mask {
            true => ggml_kv_mask(b.ctx, params, c.n_kv as i64, c.tokens as i64, 0, 0, flags),
            false => std::ptr::null_mut(),
        };
        let out = ggml_flash_attn_ext(b.ctx, q, k, v, mask, 1.0, 0.0, 0.0);
        ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
        assert!(ggml_flash_attn_ext_get_causal(out).is_null());
        if mask.is_null() {
            ggml_flash_attn_ext_set_causal(out, params);
            assert_eq!(ggml_flash_attn_ext_get_causal(out), params.cast_const());
        }
        out
    };
    floats(&b.run(&[out])[0])
}

#[test]
fn numbers_are_as_good_as_their_mask() {
    let mut seed = 900;
    for (k, v) in [
        (GGML_TYPE_TQ3_0, GGML_TYPE_TQ3_0),
        (GGML_TYPE_F16, GGML_TYPE_Q8_0),
        (GGML_TYPE_Q4_0, GGML_TYPE_Q4_0),
        (GGML_TYPE_BF16, GGML_TYPE_BF16),
    ] {
        for (gqa, tokens, threads) in [(2, 1, 1), (8, 1, 3), (4, 7, 2), (2, 70, 2)] {
            let n = tokens as i32;
            // q_pos0, kv_end, n_q, kv_base, first_valid: full, partly filled, padded, nothing to see, far away.
            for params in [
                [200 - n, 200, n, 0, 0, 0, 0, 0],
                [90, 90 + n, n, 0, 0, 0, 0, 0],
                [90, 90 + n, (n - 2).max(1), 0, 33, 0, 0, 0],
                [0, n, n, 0, 0, 0, 0, 0],
                [70, 70, 1, 0, 0, 0, 0, 0],
                [10, 60, n, 0, 12, 0, 0, 0],
                [10, 60, n, 100, 0, 0, 0, 0],
                [i32::MAX - 90, i32::MAX, n, i32::MAX - 150, 0, 0, 0, 0],
                [1050, 1200, n, 1000, 1020, 0, 0, 0],
            ] {
                seed += 1;
                let c = Case { k, v, gqa, tokens, threads, n_kv: 200, ..CASE };
                let data = data(&c, seed);
                let want = causal(&c, &data, &params, true, false);
                assert_eq!(causal(&c, &data, &params, false, false), want, "{c:?} {params:?}");
                // The reference does not know how, and is not asked.
                assert_eq!(causal(&c, &data, &params, false, true), want, "{c:?} {params:?}");
            }
        }
    }
}

#[test]
fn numbers_are_refused_where_upstream_attends() {
    for (k, v, d, taken) in [
        (GGML_TYPE_TQ3_0, GGML_TYPE_TQ3_0, 256, true),
        (GGML_TYPE_Q8_0, GGML_TYPE_F16, 64, true),
        (GGML_TYPE_F16, GGML_TYPE_F16, 256, false),
        (GGML_TYPE_F32, GGML_TYPE_F32, 64, false),
        (GGML_TYPE_F16, GGML_TYPE_BF16, 80, false),
    ] {
        let mut b = Bench::new(1);
        let [q, k, v] = [(GGML_TYPE_F32, 4), (k, 100), (v, 100)].map(|(t, n)| b.tensor(t, &[d, n, 2]));
        let params = b.tensor(GGML_TYPE_I32, &[8]);
        // SAFETY: all are of this context and fit; the device lives as long as the process.
        let answers = unsafe {
            let device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
            let out = ggml_flash_attn_ext(b.ctx, q, k, v, std::ptr::null_mut(), 1.0, 0.0, 0.0);
            let before = ggml_backend_dev_supports_op(device, out);
            ggml_flash_attn_ext_set_causal(out, params);
            [before, ggml_backend_dev_supports_op(device, out)]
        };
        assert_eq!(answers, [true, taken], "{d}");
    }
}

#[test]
fn any_number_of_threads() {
    let c = Case { d: 512, kv_heads: 1, gqa: 8, n_kv: 700, ..CASE };
    let data = data(&c, 500);
    let want = oracle(&c, &data);
    for threads in [1, 2, 3, 5] {
        let got = attention(&Case { threads, ..c }, &data, false);
        let error = nmse(&got, &want);
        assert!(error < 1e-10, "{threads} threads: {error}");
    }
}

#[test]
fn reference_path_agrees() {
    for tokens in [1, 4, 20] {
        let c = Case { tokens, gqa: 8, ..CASE };
        let data = data(&c, 600);
        let want: Vec<f64> = attention(&c, &data, true).into_iter().map(f64::from).collect();
        let error = nmse(&attention(&c, &data, false), &want);
        // It rounds the query to Q8_0.
        assert!(error > 0.0 && error < 5e-4, "{tokens} tokens: {error}");
    }
}

#[test]
fn extreme_logits() {
    for (d, gqa, tokens) in [(256, 2, 1), (512, 8, 2), (256, 2, 64)] {
        let c = Case { d, gqa, tokens, n_kv: 200, ..CASE };
        let mut data = data(&c, 700);
        data.q.iter_mut().for_each(|q| *q *= 40.0);
        let got = attention(&c, &data, false);
        assert!(got.iter().all(|v| v.is_finite()));
        let error = nmse(&got, &oracle(&c, &data));
        // Rounding the query to eight bits moves logits of this size.
        assert!(error < if gqa * tokens < 4 { 0.05 } else { 1e-4 }, "{c:?}: {error}");
    }
}

#[test]
fn hidden_slots_may_hold_anything() {
    for (k, v) in [(GGML_TYPE_TQ3_0, GGML_TYPE_TQ3_0), (GGML_TYPE_Q8_0, GGML_TYPE_TQ3_0)] {
        for (gqa, tokens) in [(2, 1), (8, 1), (8, 3), (2, 64)] {
            let c = Case { k, v, gqa, tokens, n_kv: 150, ..CASE };
            let mut data = data(&c, 800);
            // A slot is hidden from all, or from none.
            for token in 0..tokens {
                for slot in 0..c.n_kv {
                    let hidden = slot % 3 == 1 || slot > 100;
                    data.mask[token * c.n_kv + slot] = if hidden { f32::NEG_INFINITY } else { 0.0 };
                }
            }
            let poison = |bytes: &mut [u8], fill: u8| {
                let row = bytes.len() / c.n_kv;
                for (slot, row) in bytes.chunks_mut(row).enumerate() {
                    if slot % 3 == 1 || slot > 100 {
                        row.fill(fill);
                    }
                }
            };
            poison(&mut data.k, 0);
            poison(&mut data.v, 0);
            let clean = attention(&c, &data, false);
            // Scales of 0xFFFF are NaN.
            poison(&mut data.k, 0xFF);
            poison(&mut data.v, 0xFF);
            assert_eq!(attention(&c, &data, false), clean, "{c:?}");
            // And with slots that nobody sees only.
            data.mask.fill(f32::NEG_INFINITY);
            assert!(attention(&c, &data, false).iter().all(|v| *v == 0.0));
        }
    }
}
