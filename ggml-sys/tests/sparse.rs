//! Block-sparse attention: selection against a plain oracle, results against f64 sums over what is selected.

mod common;

use common::{Bench, Random, decode, encode, floats, nmse};
use ggml_sys::*;

#[derive(Clone, Copy, Debug)]
struct Case {
    k: ggml_type,
    v: ggml_type,
    d: usize,
    kv_heads: usize,
    gqa: usize,
    /// Position of the first query.
    start: usize,
    tokens: usize,
    block: usize,
    alpha: f32,
    sink: usize,
    window: usize,
    last_full: usize,
    prompt_end: usize,
    threads: i32,
}

const CASE: Case = Case {
    k: GGML_TYPE_F16,
    v: GGML_TYPE_F16,
    d: 64,
    kv_heads: 2,
    gqa: 2,
    start: 256,
    tokens: 128,
    block: 32,
    alpha: 0.3,
    sink: 1,
    window: 2,
    last_full: 0,
    prompt_end: 0,
    threads: 2,
};

impl Case {
    fn end(&self) -> usize {
        self.start + self.tokens
    }

    /// Slots of the cache: as in a session, more than are filled.
    fn slots(&self) -> usize {
        self.end().next_multiple_of(256)
    }
}

struct Data {
    q: Vec<f32>,
    k: Vec<u8>,
    v: Vec<u8>,
}

/// Keys of one block resemble each other, so that some blocks matter more than others. `[d, heads, slots]`;
/// slots above the filled ones hold NaN.
fn data(c: &Case, seed: u64) -> Data {
    let mut random = Random::new(seed);
    let row = c.d * c.kv_heads;
    let mut keys = Vec::new();
    for _ in 0..c.slots() / c.block + 1 {
        let centre = random.normals(row);
        for _ in 0..c.block {
            keys.extend(random.normals(row).iter().zip(&centre).map(|(x, c)| 0.7 * x + 0.7 * c));
        }
    }
    keys.truncate(row * c.slots());
    let scale = 3.0 / (c.d as f32).sqrt();
    let q = random.normals(row * c.gqa * c.tokens).iter().map(|v| v * scale).collect();
    let (mut k, mut v) = (encode(c.k, &keys), encode(c.v, &random.normals(row * c.slots())));
    for bytes in [&mut k, &mut v] {
        // 0xff everywhere is NaN in all these types, whose blocks begin or end with a half float.
        let filled = bytes.len() / c.slots() * c.end();
        bytes[filled..].fill(0xff);
    }
    Data { q, k, v }
}

/// `[d, heads, tokens]`. `None` is dense attention.
fn attention(c: &Case, data: &Data, sparse: Option<(f32, bool)>) -> Vec<f32> {
    let mut b = Bench::new(c.threads);
    let (d, heads, slots) = (c.d as i64, c.kv_heads as i64, c.slots() as i64);
    let q = b.floats(&[d, heads * c.gqa as i64, c.tokens as i64], &data.q);
    let k = b.bytes(c.k, &[d, heads, slots], data.k.clone());
    let v = b.bytes(c.v, &[d, heads, slots], data.v.clone());
    let visible = |i: usize| i % c.slots() <= c.start + i / c.slots();
    let mask: Vec<f32> =
        (0..c.slots() * c.tokens).map(|i| if visible(i) { 0.0 } else { f32::NEG_INFINITY }).collect();
    let mask = b.encoded(GGML_TYPE_F16, &[slots, c.tokens as i64], &mask);
    let n = |n: usize| n as i32;
    let params = [n(c.start), n(c.end()), n(c.tokens), 0, 0, n(c.prompt_end), 0, 0];
    let params = b.ints(&[8], &params);
    // SAFETY: all are of this context and fit.
    let out = unsafe {
        let [q, k, v] = [q, k, v].map(|t| ggml_permute(b.ctx, t, 0, 2, 1, 3));
        let out = ggml_flash_attn_ext(b.ctx, q, k, v, mask, 1.0, 0.0, 0.0);
        ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
        if let Some((alpha, report)) = sparse {
            let options = ggml_block_sparse {
                alpha,
                block: n(c.block),
                sink: n(c.sink),
                window: n(c.window),
                last_full: n(c.last_full),
                report: report.into(),
            };
            ggml_flash_attn_ext_set_block_sparse(out, params, &options);
            let mut back = options;
            assert_eq!(ggml_flash_attn_ext_get_block_sparse(out, &mut back), alpha > 0.0 && alpha < 1.0);
            assert_eq!(ggml_flash_attn_ext_block_sparse_scratch(out, 1) > 0, alpha > 0.0 && alpha < 1.0);
        }
        out
    };
    // What is not written stays NaN.
    b.prefill(out, vec![0xff; 4 * c.d * c.kv_heads * c.gqa * c.tokens]);
    floats(&b.run(&[out])[0])
}

/// Key blocks of query block `m` for KV head `g`, by the definition. `None` where a score is so near the
/// threshold that rounding decides.
fn selected(c: &Case, data: &Data, keys: &[f32], g: usize, m: usize) -> Option<Vec<usize>> {
    let row = |slot: usize| &keys[(slot * c.kv_heads + g) * c.d..][..c.d];
    let last = (c.prompt_end.max(1) - 1) / c.block;
    let full = c.prompt_end > 0 && m + c.last_full > last && m <= last;
    let mut keep: Vec<bool> = (0..=m).map(|n| full || n == m || n < c.sink || m - n < c.window).collect();
    for h in 0..c.gqa {
        let rows: Vec<usize> =
            (m * c.block..(m + 1) * c.block).filter(|&p| (c.start..c.end()).contains(&p)).collect();
        let mut z = Vec::new();
        for n in 0..=m {
            let newest = (n + 1) * c.block - 1;
            for &p in rows.iter().filter(|&&p| p >= newest) {
                let q = &data.q[((p - c.start) * c.kv_heads * c.gqa + g * c.gqa + h) * c.d..][..c.d];
                let mean = |i: usize| {
                    let sum: f64 = (n * c.block..(n + 1) * c.block).map(|s| f64::from(row(s)[i])).sum();
                    sum / c.block as f64
                };
                z.push((n, (0..c.d).map(|i| mean(i) * f64::from(q[i])).sum::<f64>()));
            }
        }
        let top = z.iter().fold(f64::NEG_INFINITY, |top, z| top.max(z.1));
        let mut sums = vec![0.0; m + 1];
        z.iter().for_each(|(n, z)| sums[*n] += (z - top).exp());
        let limit = f64::from(c.alpha) * sums.iter().copied().fold(0.0, f64::max);
        for (n, &sum) in sums.iter().enumerate().filter(|_| !full) {
            if !keep[n] && (sum / limit - 1.0).abs() < 3e-3 {
                return None;
            }
            keep[n] |= sum >= limit;
        }
    }
    Some((0..=m).filter(|&n| keep[n]).collect())
}

/// Checks results and reports; returns the share of blocks that are read.
#[track_caller]
fn check(c: &Case, seed: u64) -> f64 {
    let data = data(c, seed);
    let got = attention(c, &data, Some((c.alpha, false)));
    let report = attention(c, &data, Some((c.alpha, true)));
    assert!(got.iter().chain(&report).all(|x| x.is_finite()), "{c:?}");
    let (k, v) = (decode(c.k, &data.k), decode(c.v, &data.v));
    let heads = c.kv_heads * c.gqa;
    let (mut ours, mut want, mut read, mut all, mut unclear) = (Vec::new(), Vec::new(), 0, 0, 0);
    for m in c.start / c.block..=(c.end() - 1) / c.block {
        for g in 0..c.kv_heads {
            let Some(blocks) = selected(c, &data, &k, g, m) else {
                unclear += 1;
                continue;
            };
            read += blocks.len();
            all += m + 1;
            for p in (m * c.block..(m + 1) * c.block).filter(|p| (c.start..c.end()).contains(p)) {
                for head in g * c.gqa..(g + 1) * c.gqa {
                    let at = ((p - c.start) * heads + head) * c.d;
                    let row = |slot: usize| (slot * c.kv_heads + g) * c.d..;
                    let weight = |slot: usize| -> f64 {
                        let q = &data.q[at..at + c.d];
                        let logit = k[row(slot)].iter().zip(q).map(|(&k, &q)| f64::from(k) * f64::from(q));
                        logit.sum::<f64>().exp()
                    };
                    let (mut line, mut sum, mut keys) = (vec![0.0; c.d], 0.0, 0);
                    for slot in (0..=p).filter(|slot| blocks.contains(&(slot / c.block))) {
                        let w = weight(slot);
                        sum += w;
                        keys += 1;
                        line.iter_mut().zip(&v[row(slot)]).for_each(|(o, &v)| *o += w * f64::from(v));
                    }
                    want.extend(line.iter().map(|o| o / sum));
                    ours.extend_from_slice(&got[at..at + c.d]);
                    let mass = sum / (0..=p).map(weight).sum::<f64>();
                    assert!((f64::from(report[at]) - mass).abs() < 1e-4, "{c:?}: {} for {mass}", report[at]);
                    let share = keys as f32 / (p + 1) as f32;
                    assert!((report[at + 1] - share).abs() < 1e-5, "{c:?}: {} for {share}", report[at + 1]);
                }
            }
        }
    }
    assert!(unclear * 4 <= all, "{c:?}: {unclear} unclear");
    let error = nmse(&ours, &want);
    assert!(error < 1e-9, "{c:?}: error {error}");
    read as f64 / all as f64
}

#[test]
fn results_are_attention_over_the_selected_blocks() {
    let mut shares = Vec::new();
    for (i, alpha) in [0.02, 0.1, 0.3, 0.6, 0.95].into_iter().enumerate() {
        shares.push(check(&Case { alpha, ..CASE }, 1 + i as u64));
    }
    // The test would mean little if all or nothing were selected.
    assert!(shares[0] > 0.6 && shares[4] < 0.45, "{shares:?}");
    assert!(shares.is_sorted_by(|a, b| a > b), "{shares:?}");
}

#[test]
fn chunks_begin_and_end_anywhere() {
    for (start, tokens) in [(0, 32), (0, 100), (1, 31), (31, 2), (200, 77), (255, 130)] {
        check(&Case { start, tokens, ..CASE }, (start + tokens) as u64);
    }
}

#[test]
fn every_type_of_cache() {
    let types = [GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_TQ3_0, GGML_TYPE_F32];
    for (i, (k, v)) in types.into_iter().flat_map(|k| types.map(|v| (k, v))).enumerate() {
        check(&Case { k, v, tokens: 96, threads: 1 + (i % 3) as i32, ..CASE }, 50 + i as u64);
    }
}

#[test]
fn heads_of_the_true_sizes() {
    check(&Case { d: 512, kv_heads: 1, gqa: 8, block: 128, start: 512, tokens: 130, ..CASE }, 80);
    check(&Case { d: 256, kv_heads: 2, gqa: 2, block: 128, start: 384, tokens: 128, ..CASE }, 81);
}

#[test]
fn sinks_the_window_and_the_end_of_the_prompt() {
    for (sink, window) in [(0, 0), (0, 1), (3, 0), (2, 4), (100, 0), (0, 100)] {
        let share = check(&Case { sink, window, alpha: 0.99, ..CASE }, 90);
        assert_eq!(share == 1.0, sink == 100 || window == 100, "sink {sink}, window {window}");
    }
    let end = Case { alpha: 0.9, sink: 0, window: 1, last_full: 2, ..CASE };
    // The end lies in this chunk, at its end, or in a later one.
    let here = check(&Case { prompt_end: CASE.start + CASE.tokens, ..end }, 91);
    let inside = check(&Case { prompt_end: CASE.start + CASE.tokens - 40, ..end }, 91);
    let later = check(&Case { prompt_end: CASE.start + CASE.tokens + 64, ..end }, 91);
    assert!(here > later + 0.2 && inside > later + 0.1, "{here} {inside} {later}");
}

/// Dense attention of F16 caches is upstream's, which sums values in F16.
#[test]
fn all_blocks_are_dense_attention() {
    let c = Case { window: 1000, ..CASE };
    for (k, v) in [(GGML_TYPE_Q8_0, GGML_TYPE_TQ3_0), (GGML_TYPE_F32, GGML_TYPE_F32)] {
        let c = Case { k, v, ..c };
        let mut data = data(&c, 100);
        // Upstream's path multiplies masked values by zero, and NaN stays NaN.
        for (bytes, dtype) in [(&mut data.k, k), (&mut data.v, v)] {
            let row = bytes.len() / c.slots();
            let n = (c.slots() - c.end()) * c.d * c.kv_heads;
            bytes[row * c.end()..].copy_from_slice(&encode(dtype, &vec![0.0; n]));
        }
        let dense: Vec<f64> = attention(&c, &data, None).into_iter().map(f64::from).collect();
        let error = nmse(&attention(&c, &data, Some((0.5, false))), &dense);
        assert!(error < 1e-6, "error {error}");
        for alpha in [0.0, -1.0, 1.0, 7.0, f32::NAN] {
            let got = attention(&c, &data, Some((alpha, false)));
            assert!(got.iter().zip(&dense).all(|(&a, &b)| f64::from(a) == b), "alpha {alpha}");
        }
    }
}

/// Four chunks select what one does.
#[test]
fn chunked_is_whole() {
    let whole = Case { start: 0, tokens: 256, k: GGML_TYPE_Q8_0, v: GGML_TYPE_F16, ..CASE };
    let data = data(&whole, 110);
    let want: Vec<f64> = attention(&whole, &data, Some((0.3, false))).into_iter().map(f64::from).collect();
    let row = whole.d * whole.kv_heads * whole.gqa;
    let mut got = Vec::new();
    for start in [0, 64, 128, 192] {
        let q = data.q[row * start..row * (start + 64)].to_vec();
        let part = Data { q, k: data.k.clone(), v: data.v.clone() };
        got.extend(attention(&Case { start, tokens: 64, ..whole }, &part, Some((0.3, false))));
    }
    let error = nmse(&got, &want);
    assert!(error < 1e-12, "error {error}");
}
