//! Runs of operations that become one kernel, against the CPU backend, which computes them one by one.

use crate::data::{Random, bytes_of, dequantise, name, nmse, quantise};
use crate::device::{Device, Graph, Tensor};
use crate::report::Report;
use ggml_sys::*;
use std::ptr::null_mut;

/// A graph with its inputs and results.
struct Built {
    inputs: Vec<(Tensor, Vec<u8>)>,
    outputs: Vec<Tensor>,
    /// A result that a fused kernel has no need to write.
    elided: Option<Tensor>,
}

/// Results as floats, and whether the elided tensor was left alone.
fn run_on(device: &Device, build: &dyn Fn(&Graph) -> Built) -> Option<(Vec<Vec<f32>>, bool)> {
    let mut graph = Graph::new(device);
    let built = build(&graph);
    if built.outputs.iter().any(|&t| !graph.supports(t)) {
        return None;
    }
    for &t in &built.outputs {
        // SAFETY: a tensor of this graph.
        unsafe { ggml_set_output(t) };
        graph.expand(t);
    }
    graph.allocate();
    for (t, bytes) in &built.inputs {
        graph.set(*t, 0, bytes);
    }
    graph.run();
    let values = |&t: &Tensor| {
        // SAFETY: a live tensor.
        let kind = unsafe { (*t).type_ };
        let bytes = graph.get(t);
        match kind {
            GGML_TYPE_F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            GGML_TYPE_I32 => {
                bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect()
            }
            _ => dequantise(kind, &bytes),
        }
    };
    let untouched = built.elided.is_none_or(|t| graph.get(t).iter().all(|&b| b == 0xFF));
    Some((built.outputs.iter().map(values).collect(), untouched))
}

/// Everything of this file.
pub fn run(device: &Device, cpu: &Device, report: &mut Report, short: bool) {
    let mut check = |what: &str, tolerance: f64, build: &dyn Fn(&Graph) -> Built| {
        let (Some((have, fused)), Some((want, _))) = (run_on(device, build), run_on(cpu, build)) else {
            return report.line(what, "refused by a device", false);
        };
        let worst = have.iter().zip(&want).map(|(a, b)| nmse(a, b)).fold(0.0, f64::max);
        let text = format!("nmse {worst:.1e}{}", if fused { "" } else { ", NOT FUSED" });
        report.line(what, &text, worst <= tolerance && worst.is_finite() && fused);
    };
    for n in [768, 2816, 5376] {
        for tokens in [1, 3, 17] {
            check(&format!("fused rows n{n} t{tokens}"), 1e-10, &|g| norms(g, n, tokens));
            check(&format!("fused experts n{n} t{tokens}"), 1e-10, &|g| experts(g, n, tokens));
        }
    }
    for n in [2816, 5376] {
        for tokens in [1, 4, 8] {
            check(&format!("fused rows to products n{n} t{tokens}"), 1e-3, &|g| {
                rows_to_product(g, n, tokens)
            });
        }
    }
    // Both sides quantise the other factor to eight bits, each in its own way.
    for kind in [GGML_TYPE_Q4_0, GGML_TYPE_Q5_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K] {
        for (k, rows) in [(768, 33), (2816, 2048), (5376, 77), (21504, 640)] {
            for tokens in [1, 2, 3, 5, 8, 9, 16, 17] {
                if short && [2, 5, 9, 17].contains(&tokens) {
                    continue;
                }
                let what = format!("product {} k{k} rows{rows} t{tokens}", name(kind));
                check(&what, 1e-3, &|g| product(g, kind, k, rows, tokens));
            }
        }
        for tokens in [1, 3, 8] {
            let what = format!("product of experts {} t{tokens}", name(kind));
            check(&what, 1e-3, &|g| expert_product(g, kind, tokens));
        }
    }
    for tokens in [1, 2, 5, 8, 13] {
        check(&format!("gate and up t{tokens}"), 1e-3, &|g| gate_up(g, tokens));
    }
    let types = [GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_TQ3_0];
    for d in [256, 512] {
        for kind in types {
            for tokens in [1, 5, 40] {
                if short && tokens == 40 {
                    continue;
                }
                // A rotation of each kind. Codes may differ by one where a value lies between two.
                for rotation in [0, GGML_HINT_SRC0_IS_HADAMARD, GGML_HINT_SRC0_IS_SIGNED_HADAMARD] {
                    let what = format!("fused heads d{d} t{tokens} {} rotation {rotation:#x}", name(kind));
                    let tolerance = if kind == GGML_TYPE_TQ3_0 { 2e-3 } else { 1e-4 };
                    check(&what, tolerance, &|g| heads(g, d, tokens, kind, rotation));
                }
            }
        }
        for tokens in [1, 5, 8] {
            check(&format!("fused attention d{d} t{tokens}"), 1e-3, &|g| attention(g, d, tokens));
        }
    }
    for tokens in [1, 3] {
        check(&format!("fused packed experts t{tokens}"), 1e-3, &|g| packed(g, tokens));
    }
    for rows in [1, 7] {
        check(&format!("fused picks rows{rows}"), 1e-8, &|g| picks(g, 262_144, rows));
    }
}

fn f32_bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn i32_bytes(x: &[i32]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Makes inputs and remembers what they hold.
struct Maker<'g, 'd> {
    g: &'g Graph<'d>,
    random: Random,
    inputs: Vec<(Tensor, Vec<u8>)>,
}

impl<'g, 'd> Maker<'g, 'd> {
    fn new(g: &'g Graph<'d>) -> Self {
        Maker { g, random: Random::new(77), inputs: Vec::new() }
    }

    fn values(&mut self, ne: [usize; 4], scale: f32) -> Tensor {
        self.of(GGML_TYPE_F32, ne, scale)
    }

    fn of(&mut self, kind: ggml_type, ne: [usize; 4], scale: f32) -> Tensor {
        let x = self.random.normals(ne.iter().product(), scale);
        let t = self.g.input(kind, ne);
        let bytes = if kind == GGML_TYPE_F32 { f32_bytes(&x) } else { quantise(kind, &x) };
        self.inputs.push((t, bytes));
        t
    }

    fn ints(&mut self, ne: [usize; 4], x: &[i32]) -> Tensor {
        let t = self.g.input(GGML_TYPE_I32, ne);
        self.inputs.push((t, i32_bytes(x)));
        t
    }
}

/// A residual stream, two norms of it and a scaled one, each of the same sums.
fn norms(g: &Graph, n: usize, tokens: usize) -> Built {
    let mut m = Maker::new(g);
    let (x, residual) = (m.values([n, tokens, 1, 1], 1.0), m.values([n, tokens, 1, 1], 2.0));
    let weights = [0; 4].map(|_| m.values([n, 1, 1, 1], 1.0));
    let one = m.values([1, 1, 1, 1], 1.0);
    // SAFETY: shapes fit.
    unsafe {
        // Results of the graph: weights alone may be read ahead of it.
        let x = ggml_scale(g.ctx, x, 1.5);
        let normed = ggml_rms_norm(g.ctx, x, 1e-6);
        let weighted = ggml_mul(g.ctx, normed, weights[0]);
        let sum = ggml_add(g.ctx, weighted, residual);
        let a = ggml_mul(g.ctx, ggml_rms_norm(g.ctx, sum, 1e-6), weights[1]);
        let b = ggml_mul(g.ctx, ggml_scale(g.ctx, ggml_rms_norm(g.ctx, sum, 1e-6), 0.25), weights[2]);
        let c = ggml_mul(g.ctx, ggml_rms_norm(g.ctx, sum, 1e-6), weights[3]);
        let d = ggml_mul(g.ctx, ggml_add(g.ctx, c, a), one);
        Built { inputs: m.inputs, outputs: vec![sum, a, b, d], elided: Some(weighted) }
    }
}

/// The weighted sum of experts beside a dense result, and the norms around them.
fn experts(g: &Graph, n: usize, tokens: usize) -> Built {
    const K: usize = 4;
    const EXPERTS: usize = 16;
    let mut m = Maker::new(g);
    let dense = m.values([n, tokens, 1, 1], 1.0);
    let (x, residual) = (m.values([n, K, tokens, 1], 1.0), m.values([n, tokens, 1, 1], 2.0));
    let table = m.values([EXPERTS, 1, 1, 1], 1.0);
    let chosen: Vec<i32> = (0..EXPERTS * tokens).map(|i| (i * 7 % EXPERTS) as i32).collect();
    let all = m.ints([EXPERTS, tokens, 1, 1], &chosen);
    let routed = m.values([1, K, tokens, 1], 1.0);
    let weights = [0; 3].map(|_| m.values([n, 1, 1, 1], 1.0));
    let (n, k, t) = (n as i64, K as i64, tokens as i64);
    // SAFETY: shapes fit; views lie inside.
    unsafe {
        let ids = ggml_view_2d(g.ctx, all, k, t, 4 * EXPERTS, 0);
        let dense = ggml_mul(g.ctx, ggml_rms_norm(g.ctx, dense, 1e-6), weights[0]);
        g.expand(dense);
        let rows = ggml_reshape_2d(g.ctx, table, 1, EXPERTS as i64);
        let flat = ggml_reshape_1d(g.ctx, ggml_cont(g.ctx, ids), k * t);
        let scales = ggml_reshape_3d(g.ctx, ggml_get_rows(g.ctx, rows, flat), 1, k, t);
        let scaled = ggml_mul(g.ctx, x, scales);
        let weighted = ggml_mul(g.ctx, scaled, routed);
        let (nb1, nb2) = ((*weighted).nb[1], (*weighted).nb[2]);
        let view = |i: usize| ggml_view_2d(g.ctx, weighted, n, t, nb2, i * nb1);
        let mut sum = view(0);
        for i in 1..K {
            sum = ggml_add(g.ctx, sum, view(i));
        }
        let normed = ggml_mul(g.ctx, ggml_rms_norm(g.ctx, sum, 1e-6), weights[1]);
        let both = ggml_add(g.ctx, dense, normed);
        let out = ggml_mul(g.ctx, ggml_rms_norm(g.ctx, both, 1e-6), weights[2]);
        let out = ggml_add(g.ctx, out, residual);
        Built { inputs: m.inputs, outputs: vec![out], elided: Some(weighted) }
    }
}

/// A norm that three quantised products read.
fn rows_to_product(g: &Graph, n: usize, tokens: usize) -> Built {
    let mut m = Maker::new(g);
    let x = m.values([n, tokens, 1, 1], 1.0);
    let weights = m.values([n, 1, 1, 1], 1.0);
    let matrices =
        [GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q8_0].map(|kind| m.of(kind, [n, 96, 1, 1], 1.0));
    // SAFETY: shapes fit.
    unsafe {
        let normed = ggml_rms_norm(g.ctx, ggml_scale(g.ctx, x, 0.5), 1e-6);
        let h = ggml_mul(g.ctx, normed, weights);
        let outputs = matrices.map(|w| ggml_mul_mat(g.ctx, w, h)).to_vec();
        Built { inputs: m.inputs, outputs, elided: Some(normed) }
    }
}

/// One product.
fn product(g: &Graph, kind: ggml_type, k: usize, rows: usize, tokens: usize) -> Built {
    let mut m = Maker::new(g);
    let (w, x) = (m.of(kind, [k, rows, 1, 1], 1.0), m.values([k, tokens, 1, 1], 1.0));
    // SAFETY: shapes fit.
    let out = unsafe { ggml_mul_mat(g.ctx, w, ggml_scale(g.ctx, x, 1.0)) };
    Built { inputs: m.inputs, outputs: vec![out], elided: None }
}

/// Two experts of six for each token, with rows of their own.
fn expert_product(g: &Graph, kind: ggml_type, tokens: usize) -> Built {
    let (n, rows, experts, k) = (768, 300, 6, 2);
    let mut m = Maker::new(g);
    let x = m.values([n, k, tokens, 1], 1.0);
    let w = m.of(kind, [n, rows, experts, 1], 1.0);
    let chosen: Vec<i32> = (0..k * tokens).map(|i| (i * 5 % experts) as i32).collect();
    let ids = m.ints([k, tokens, 1, 1], &chosen);
    // SAFETY: shapes fit.
    let out = unsafe { ggml_mul_mat_id(g.ctx, w, ggml_scale(g.ctx, x, 1.0), ids) };
    Built { inputs: m.inputs, outputs: vec![out], elided: None }
}

/// Both products and the activation.
fn gate_up(g: &Graph, tokens: usize) -> Built {
    let mut m = Maker::new(g);
    let x = m.values([2816, tokens, 1, 1], 1.0);
    let w = [0; 2].map(|_| m.of(GGML_TYPE_Q4_K, [2816, 500, 1, 1], 0.02));
    // SAFETY: shapes fit.
    unsafe {
        let x = ggml_scale(g.ctx, x, 1.0);
        let [gate, up] = w.map(|w| ggml_mul_mat(g.ctx, w, x));
        let out = ggml_geglu_split(g.ctx, gate, up);
        g.expand(gate);
        g.expand(up);
        Built { inputs: m.inputs, outputs: vec![out], elided: Some(gate) }
    }
}

/// Queries, values and keys on their way, at a position where angles are large.
fn heads(g: &Graph, d: usize, tokens: usize, kind: ggml_type, rotation: ggml_op_hint) -> Built {
    const SLOTS: usize = 64;
    let (n_head, n_kv) = (4, 2);
    let mut m = Maker::new(g);
    let raw = [n_head, n_kv, n_kv].map(|h| m.values([d, h, tokens, 1], 1.0));
    let weights = [0; 2].map(|_| m.values([d, 1, 1, 1], 1.0));
    // Divisors as the large models have them: a part of the pairs hardly turns.
    let factors: Vec<f32> = (0..d / 2).map(|i| if i < d / 8 { 1.0 } else { 1e30 }).collect();
    let divisors = g.input(GGML_TYPE_F32, [d / 2, 1, 1, 1]);
    m.inputs.push((divisors, f32_bytes(&factors)));
    let positions: Vec<i32> = (0..tokens).map(|i| 1000 + i as i32).collect();
    let pos = m.ints([tokens, 1, 1, 1], &positions);
    let caches = [0; 2].map(|_| g.input(kind, [d * n_kv, SLOTS, 1, 1]));
    for cache in caches {
        m.inputs.push((cache, vec![0; bytes_of(kind, d * n_kv * SLOTS)]));
    }
    let slots = g.input(GGML_TYPE_I64, [tokens, 1, 1, 1]);
    let places: Vec<u8> = (0..tokens).flat_map(|i| ((60 + i as i64) % 64).to_le_bytes()).collect();
    m.inputs.push((slots, places));
    let matrix = g.input(GGML_TYPE_F32, [d, d, 1, 1]);
    let signed = rotation == GGML_HINT_SRC0_IS_SIGNED_HADAMARD;
    let entry = |i: usize, j: usize| {
        let odd = (i & j).count_ones() % 2 == 1;
        let negated = signed && (j & (j >> 1) & 0x55).count_ones() % 2 == 1;
        (if odd == negated { 1.0 } else { -1.0 }) / (d as f32).sqrt()
    };
    m.inputs.push((matrix, f32_bytes(&(0..d * d).map(|i| entry(i / d, i % d)).collect::<Vec<_>>())));
    let (di, t, kv) = (d as i64, tokens as i64, n_kv as i64);
    // SAFETY: shapes fit.
    unsafe {
        let rotate = |x: Tensor, h: usize| {
            if rotation == 0 {
                return x;
            }
            let y = ggml_mul_mat(g.ctx, matrix, ggml_reshape_2d(g.ctx, x, di, h as i64 * t));
            ggml_mul_mat_set_hint(y, rotation);
            ggml_reshape_3d(g.ctx, y, di, h as i64, t)
        };
        let rope = |x: Tensor, weights: Tensor| {
            let normed = ggml_rms_norm(g.ctx, x, 1e-6);
            let x = ggml_mul(g.ctx, normed, weights);
            let mode = GGML_ROPE_TYPE_NEOX as i32;
            let x = ggml_rope_ext(g.ctx, x, pos, divisors, d as i32, mode, 0, 1e6, 1.0, 0.0, 1.0, 0.0, 0.0);
            (normed, x)
        };
        // Results of the graph, as projections are.
        let raw = raw.map(|x| ggml_scale(g.ctx, x, 1.0));
        raw.iter().for_each(|&x| g.expand(x));
        let (normed, q) = rope(raw[0], weights[0]);
        let q = rotate(q, n_head);
        g.expand(q);
        let v = rotate(ggml_rms_norm(g.ctx, raw[1], 1e-6), n_kv);
        let v = ggml_reshape_2d(g.ctx, v, di * kv, t);
        g.expand(ggml_set_rows(g.ctx, caches[1], v, slots));
        let k = rotate(rope(raw[2], weights[1]).1, n_kv);
        let k = ggml_view_2d(g.ctx, k, di * kv, t, (*k).nb[2], 0);
        g.expand(ggml_set_rows(g.ctx, caches[0], k, slots));
        let q = ggml_cont(g.ctx, q);
        // The caches themselves: what was written shows in them.
        Built { inputs: m.inputs, outputs: vec![q, caches[0], caches[1]], elided: Some(normed) }
    }
}

/// Attention over a rotated cache, the way back, and a product.
fn attention(g: &Graph, d: usize, tokens: usize) -> Built {
    let (n_kv, heads, gqa) = (600, 2, 4);
    let mut m = Maker::new(g);
    let q = m.values([d, heads * gqa, tokens, 1], 3.0 / (d as f32).sqrt());
    let kv = [GGML_TYPE_Q8_0, GGML_TYPE_TQ3_0].map(|kind| m.of(kind, [d, heads, n_kv, 1], 1.0));
    let matrix = g.input(GGML_TYPE_F32, [d, d, 1, 1]);
    let entry = |i: usize, j: usize| {
        let odd = (i & j).count_ones() % 2 == 1;
        let negated = (i & (i >> 1) & 0x55).count_ones() % 2 == 1;
        (if odd == negated { 1.0 } else { -1.0 }) / (d as f32).sqrt()
    };
    m.inputs.push((matrix, f32_bytes(&(0..d * d).map(|i| entry(i / d, i % d)).collect::<Vec<_>>())));
    let weights = m.of(GGML_TYPE_Q8_0, [d * heads * gqa, 64, 1, 1], 1.0);
    let (di, h, t) = (d as i64, (heads * gqa) as i64, tokens as i64);
    // SAFETY: shapes fit.
    unsafe {
        let [k, v] = kv.map(|x| ggml_permute(g.ctx, x, 0, 2, 1, 3));
        let q = ggml_permute(g.ctx, ggml_scale(g.ctx, q, 1.0), 0, 2, 1, 3);
        let out = ggml_flash_attn_ext(g.ctx, q, k, v, null_mut(), 1.0, 0.0, 0.0);
        ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
        let back = ggml_mul_mat(g.ctx, matrix, ggml_reshape_2d(g.ctx, out, di, h * t));
        ggml_mul_mat_set_hint(back, GGML_HINT_SRC0_IS_SIGNED_HADAMARD_INVERSE);
        let rows = ggml_reshape_2d(g.ctx, back, di * h, t);
        let product = ggml_mul_mat(g.ctx, weights, rows);
        Built { inputs: m.inputs, outputs: vec![product], elided: Some(out) }
    }
}

/// Gate and up in one matrix an expert.
fn packed(g: &Graph, tokens: usize) -> Built {
    let (n, half, experts, k) = (512, 96, 6, 2);
    let mut m = Maker::new(g);
    let x = m.values([n, 1, tokens, 1], 1.0);
    let w = m.of(GGML_TYPE_Q4_0, [n, 2 * half, experts, 1], 0.1);
    let chosen: Vec<i32> = (0..k * tokens).map(|i| (i * 5 % experts) as i32).collect();
    let ids = m.ints([k, tokens, 1, 1], &chosen);
    // SAFETY: shapes fit; views lie inside.
    unsafe {
        let both = ggml_mul_mat_id(g.ctx, w, x, ids);
        let (nb1, nb2) = ((*both).nb[1], (*both).nb[2]);
        let view = |at| ggml_view_3d(g.ctx, both, half as i64, k as i64, tokens as i64, nb1, nb2, at);
        let out = ggml_geglu_split(g.ctx, view(0), view(4 * half));
        Built { inputs: m.inputs, outputs: vec![out], elided: Some(both) }
    }
}

/// The most likely entry and its probability.
fn picks(g: &Graph, n: usize, rows: usize) -> Built {
    let mut m = Maker::new(g);
    let x = m.values([n, rows, 1, 1], 3.0);
    // SAFETY: shapes fit.
    unsafe {
        let x = ggml_scale(g.ctx, x, 1.0);
        let ids = ggml_argmax(g.ctx, x);
        g.expand(ids);
        let soft = ggml_soft_max(g.ctx, x);
        let table = ggml_reshape_3d(g.ctx, soft, 1, n as i64, rows as i64);
        let index = ggml_reshape_2d(g.ctx, ids, 1, rows as i64);
        let p = ggml_get_rows(g.ctx, table, index);
        Built { inputs: m.inputs, outputs: vec![ids, p], elided: Some(soft) }
    }
}
