//! Copies of TQ3_0, rotations and masks against plain loops.

use crate::data::{Random, bytes_of, dequantise, nmse, quantise};
use crate::device::{Device, Graph, Tensor};
use crate::report::Report;
use crate::tq3;
use ggml_sys::*;

const TQ3: ggml_type = GGML_TYPE_TQ3_0;

/// Everything of this file.
pub fn run(device: &Device, report: &mut Report) {
    encode(device, report);
    decode(device, report);
    set_rows(device, report);
    rotations(device, report);
    masks(device, report);
}

/// T1, T3: the device's encoder byte for byte.
fn encode(device: &Device, report: &mut Report) {
    let mut random = Random::new(1);
    let examples = tq3::examples();
    let mut x: Vec<f32> = examples.iter().flat_map(|(x, _)| x.clone()).collect();
    let n_random = 8192 * 4;
    for i in 0..n_random {
        let scale = 10f32.powf((i % 7) as f32 - 3.0);
        x.extend(random.normals(tq3::BLOCK, scale));
    }
    let n_blocks = x.len() / tq3::BLOCK;
    let mut graph = Graph::new(device);
    let source = graph.input(GGML_TYPE_F32, [tq3::BLOCK, n_blocks, 1, 1]);
    let target = graph.input(TQ3, [tq3::BLOCK, n_blocks, 1, 1]);
    // SAFETY: tensors of this context with equal shapes.
    let node = unsafe { ggml_cpy(graph.ctx, source, target) };
    if !graph.supports(node) {
        return report.line("T1/T3 encode", "refused by the device", false);
    }
    graph.expand(node);
    graph.allocate();
    graph.set_f32(source, &x);
    graph.run();
    let have = graph.get(target);
    let exact = examples.iter().zip(have.chunks(tq3::BYTES)).filter(|((_, want), have)| want == have).count();
    report.line(
        "T1 worked and degenerate blocks",
        &format!("{exact} of {} exact", examples.len()),
        exact == examples.len(),
    );

    let mut different = 0;
    let mut worse = 0;
    for (i, have) in have.chunks(tq3::BYTES).enumerate().skip(examples.len()) {
        let block = &x[i * tq3::BLOCK..][..tq3::BLOCK];
        let want = tq3::encode(block);
        if have != want {
            different += 1;
            // Another order of a sum may turn a tie of two trials, or the last bit of the scale.
            let ((have, d), (want, d_want)) = (tq3::score(have, block), tq3::score(&want, block));
            let same_codes = have == want;
            worse += usize::from((have - want).abs() > 1e-5 * want || (same_codes && d.abs_diff(d_want) > 1));
        }
    }
    let ok = different * 1000 <= n_random && worse == 0;
    report.line("T3 random blocks", &format!("{different} of {n_random} differ, {worse} of them wrong"), ok);
}

/// T5: every way out of the type.
fn decode(device: &Device, report: &mut Report) {
    let (ne0, ne1, heads) = (512, 33, 3);
    let x = Random::new(2).normals(ne0 * ne1 * heads, 1.0);
    let bytes = quantise(TQ3, &x);
    let want = dequantise(TQ3, &bytes);
    let rows: Vec<i32> = vec![32, 0, 7, 7, 31];
    let mut graph = Graph::new(device);
    let cache = graph.input(TQ3, [ne0 * heads, ne1, 1, 1]);
    let index = graph.input(GGML_TYPE_I32, [rows.len(), 1, 1, 1]);
    let plain = graph.input(GGML_TYPE_F32, [ne0 * heads, ne1, 1, 1]);
    let short = graph.input(GGML_TYPE_F16, [ne0 * heads, ne1, 1, 1]);
    let strided = graph.input(GGML_TYPE_F32, [ne0, ne1, heads, 1]);
    // SAFETY: shapes fit; the view lies inside the cache.
    let nodes = unsafe {
        let view = ggml_view_3d(
            graph.ctx,
            cache,
            ne0 as i64,
            ne1 as i64,
            heads as i64,
            bytes_of(TQ3, ne0 * heads),
            bytes_of(TQ3, ne0),
            0,
        );
        [
            ggml_cpy(graph.ctx, cache, plain),
            ggml_cpy(graph.ctx, cache, short),
            ggml_cpy(graph.ctx, view, strided),
            ggml_get_rows(graph.ctx, cache, index),
        ]
    };
    if nodes.iter().any(|&n| !graph.supports(n)) {
        return report.line("T5 decode", "refused by the device", false);
    }
    nodes.iter().for_each(|&n| graph.expand(n));
    graph.allocate();
    graph.set(cache, 0, &bytes);
    graph.set_i32(index, &rows);
    graph.run();
    let row = ne0 * heads;
    report.line("T5 copy to f32", "", graph.get_f32(plain) == want);
    report.line(
        "T5 copy to f16",
        "",
        dequantise(GGML_TYPE_F16, &graph.get(short))
            == dequantise(GGML_TYPE_F16, &quantise(GGML_TYPE_F16, &want)),
    );
    let by_head: Vec<f32> = (0..heads)
        .flat_map(|h| (0..ne1).flat_map(move |i| i * row + h * ne0..i * row + (h + 1) * ne0))
        .map(|i| want[i])
        .collect();
    report.line("T5 copy of a view by heads", "", graph.get_f32(strided) == by_head);
    let picked: Vec<f32> = rows.iter().flat_map(|&i| want[i as usize * row..][..row].to_vec()).collect();
    report.line("T5 get_rows", "", graph.get_f32(nodes[3]) == picked);
}

/// T7: rows of a ring, with both index types.
fn set_rows(device: &Device, report: &mut Report) {
    let (ne0, n_slots) = (512 * 2, 1024usize);
    for (index_type, tokens) in
        [(GGML_TYPE_I64, 1), (GGML_TYPE_I32, 7), (GGML_TYPE_I64, 512), (GGML_TYPE_I32, 512)]
    {
        let x = Random::new(3 + tokens as u64).normals(ne0 * tokens, 2.0);
        let mut graph = Graph::new(device);
        let cache = graph.input(TQ3, [ne0, n_slots, 1, 1]);
        let rows = graph.input(GGML_TYPE_F32, [ne0, tokens, 1, 1]);
        let index = graph.input(index_type, [tokens, 1, 1, 1]);
        // SAFETY: shapes fit.
        let node = unsafe { ggml_set_rows(graph.ctx, cache, rows, index) };
        let what = format!(
            "T7 set_rows {} {tokens} tokens",
            if index_type == GGML_TYPE_I64 { "i64" } else { "i32" }
        );
        if !graph.supports(node) {
            report.line(&what, "refused by the device", false);
            continue;
        }
        graph.expand(node);
        graph.allocate();
        let slots: Vec<usize> = (0..tokens).map(|i| (1000 + i) % n_slots).collect();
        let wide = index_type == GGML_TYPE_I64;
        let place = |&s: &usize| {
            if wide { (s as i64).to_le_bytes().to_vec() } else { (s as i32).to_le_bytes().to_vec() }
        };
        graph.set(index, 0, &slots.iter().flat_map(place).collect::<Vec<u8>>());
        graph.set_f32(rows, &x);
        graph.set(cache, 0, &vec![0u8; bytes_of(TQ3, ne0 * n_slots)]);
        graph.run();
        let have = graph.get(cache);
        let size = bytes_of(TQ3, ne0);
        let want = quantise(TQ3, &x);
        let blocks = |i: usize, s: usize| {
            let (have, want) = (&have[s * size..][..size], &want[i * size..][..size]);
            have.chunks(tq3::BYTES).zip(want.chunks(tq3::BYTES)).filter(|(a, b)| a != b).count()
        };
        let different: usize = slots.iter().enumerate().map(|(i, &s)| blocks(i, s)).sum();
        let untouched = (0..n_slots)
            .filter(|s| !slots.contains(s))
            .all(|s| have[s * size..][..size].iter().all(|&b| b == 0));
        let total = tokens * ne0 / tq3::BLOCK;
        report.line(
            &what,
            &format!("{different} of {total} blocks differ"),
            different * 1000 <= total && untouched,
        );
    }
}

/// The sign pattern of the rotation.
fn sigma(i: usize) -> f64 {
    if (i & (i >> 1) & 0x55).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
}

/// Matrix of the rotation: row i, column j.
fn rotation(n: usize, inverse: bool, i: usize, j: usize) -> f64 {
    let h = if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    h * sigma(if inverse { i } else { j }) / (n as f64).sqrt()
}

/// T8: the fast transform is the matrix product it stands for, and there and back is the identity.
fn rotations(device: &Device, report: &mut Report) {
    for n in [64, 128, 256, 512] {
        for half in [false, true] {
            let rows = 37;
            let mut x = Random::new(n as u64).normals(n * rows, 1.0);
            x[..n].fill(1.0);
            x[n..2 * n].fill(0.0);
            x[n + 5] = 1.0;
            let kind = if half { GGML_TYPE_F16 } else { GGML_TYPE_F32 };
            let x = dequantise(GGML_TYPE_F16, &quantise(GGML_TYPE_F16, &x));
            let mut graph = Graph::new(device);
            let source = graph.input(kind, [n, rows, 1, 1]);
            // Never read by the fast transform: poison shows it if it is.
            let matrix = graph.input(GGML_TYPE_F32, [n, n, 1, 1]);
            // SAFETY: shapes fit.
            let (there, back) = unsafe {
                let there = ggml_mul_mat(graph.ctx, matrix, source);
                ggml_mul_mat_set_hint(there, GGML_HINT_SRC0_IS_SIGNED_HADAMARD);
                let back = ggml_mul_mat(graph.ctx, matrix, there);
                ggml_mul_mat_set_hint(back, GGML_HINT_SRC0_IS_SIGNED_HADAMARD_INVERSE);
                (there, back)
            };
            graph.expand(back);
            graph.allocate();
            graph.set(
                source,
                0,
                &if half { quantise(kind, &x) } else { x.iter().flat_map(|v| v.to_le_bytes()).collect() },
            );
            graph.run();
            let have = graph.get_f32(there);
            let want: Vec<f32> = (0..rows * n)
                .map(|k| {
                    (0..n).map(|j| rotation(n, false, k % n, j) * f64::from(x[k / n * n + j])).sum::<f64>()
                        as f32
                })
                .collect();
            let there_error = nmse(&have, &want).sqrt();
            let back_error = nmse(&graph.get_f32(back), &x).sqrt();
            let text = format!("relative error {there_error:.1e}, there and back {back_error:.1e}");
            report.line(
                &format!("T8 rotation {n} {}", if half { "f16" } else { "f32" }),
                &text,
                there_error < 2e-6 && back_error < 2e-6,
            );
        }
    }
}

/// A mask node.
pub fn kv_mask(
    graph: &Graph,
    params: Tensor,
    ne: [usize; 2],
    ring: usize,
    window: usize,
    causal: bool,
) -> Tensor {
    // SAFETY: a live context, an I32 tensor of 8 numbers in it.
    unsafe {
        ggml_kv_mask(
            graph.ctx,
            params,
            ne[0] as i64,
            ne[1] as i64,
            ring as i32,
            window as i32,
            i32::from(causal),
        )
    }
}

/// Whether slot `s` is visible to row `i`, by the definition.
pub fn admit(p: &[i64], ring: i64, window: i64, causal: bool, i: i64, s: i64) -> bool {
    let (q_pos0, kv_end, n_q, kv_base, first_valid) = (p[0], p[1], p[2], p[3], p[4]);
    let last = kv_end - 1;
    let pos = if ring > 0 { last - (last - s).rem_euclid(ring) } else { kv_base + s };
    let q = q_pos0 + i.min(n_q - 1);
    (ring == 0 || s < ring)
        && pos >= first_valid.max(0)
        && pos < kv_end
        && (!causal || pos <= q)
        && (window == 0 || q - pos < window)
}

/// T18: masks for random parameters.
fn masks(device: &Device, report: &mut Report) {
    let mut random = Random::new(9);
    let mut wrong = 0;
    let n_cases = 400;
    for case in 0..n_cases {
        let mut pick = |n: i64| random.below(n as u64) as i64;
        let ring = if case % 2 == 0 { 0 } else { 1 + pick(300) };
        let window = if case % 3 == 0 { 0 } else { 1 + pick(200) };
        let causal = pick(4) != 0;
        let n_rows = 1 + pick(40);
        let n_q = 1 + pick(n_rows);
        let huge = if case % 50 == 7 { i64::from(i32::MAX) - 1000 } else { 0 };
        let kv_base = if ring == 0 { huge + pick(50) } else { 0 };
        let n_kv = if ring > 0 { (ring + 8 * (pick(4) - 1)).max(1) } else { 1 + pick(400) };
        let kv_end = if ring > 0 { huge + pick(800) } else { kv_base + pick(n_kv + 1) };
        let q_pos0 = (kv_end - n_q + pick(3)).max(0);
        let first_valid = if pick(3) == 0 { pick(100) } else { 0 };
        let params = [q_pos0, kv_end, n_q, kv_base, first_valid, 0, 0, 0];

        let mut graph = Graph::new(device);
        let block = graph.input(GGML_TYPE_I32, [8, 1, 1, 1]);
        let mask =
            kv_mask(&graph, block, [n_kv as usize, n_rows as usize], ring as usize, window as usize, causal);
        if !graph.supports(mask) {
            return report.line("T18 KV_MASK", "refused by the device", false);
        }
        graph.expand(mask);
        graph.allocate();
        graph.set_i32(block, &params.map(|v| v as i32));
        graph.run();
        let have: Vec<u16> = graph.get(mask).chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        for i in 0..n_rows {
            let see: Vec<bool> = (0..n_kv).map(|s| admit(&params, ring, window, causal, i, s)).collect();
            let empty = !see.contains(&true);
            let row = &have[(i * n_kv) as usize..][..n_kv as usize];
            let ok = row
                .iter()
                .enumerate()
                .all(|(s, &h)| h == if see[s] || (empty && s == 0) { 0 } else { 0xFC00 });
            wrong += usize::from(!ok);
        }
    }
    report.line("T18 KV_MASK", &format!("{n_cases} cases, {wrong} wrong"), wrong == 0);
}
