//! How fast the kernels are, beside upstream's path and the memory bandwidth.

use crate::attention::{Case, Mask, over};
use crate::basic::kv_mask;
use crate::data::{Random, TYPES, bytes_of, name, quantise};
use crate::device::{Device, Graph, Tensor};
use ggml_sys::*;
use std::time::Instant;

/// Bytes a second that the table's percentages refer to.
const BANDWIDTH: f64 = 3.0e12;
/// More than any cache of a GPU holds.
const CACHE: usize = 256 << 20;

/// Microseconds a node, from graphs of many nodes over different data.
fn time(device: &Device, graph: &Graph, n_nodes: usize) -> f64 {
    for _ in 0..3 {
        graph.start();
    }
    device.synchronize();
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        let n = 5;
        for _ in 0..n {
            graph.start();
        }
        device.synchronize();
        best = best.min(start.elapsed().as_secs_f64() * 1e6 / f64::from(n) / n_nodes as f64);
    }
    best
}

fn fill(graph: &Graph, t: Tensor, chunk: &[u8]) {
    // SAFETY: the tensor's own size.
    let size = unsafe { ggml_nbytes(t) };
    for offset in (0..size).step_by(chunk.len()) {
        graph.set(t, offset, &chunk[..chunk.len().min(size - offset)]);
    }
}

/// A graph of attention nodes over caches that no cache of the GPU holds, and their number; `None` where the device
/// refuses the node.
fn attention<'d>(device: &'d Device, case: &Case, at_least: usize) -> Option<(Graph<'d>, usize)> {
    let row = case.d * case.heads_kv;
    let size = bytes_of(case.k, row * case.n_kv) + bytes_of(case.v, row * case.n_kv);
    let caches = if at_least == 1 { 1 } else { (CACHE / size).clamp(1, 24) };
    let nodes = caches.max(at_least);
    let mut graph = Graph::new(device);
    let q = graph.input(GGML_TYPE_F32, [case.d, case.gqa * case.heads_kv, case.tokens, 1]);
    let numbers = match case.mask {
        Mask::Numbers(numbers) => Some(numbers),
        _ => None,
    };
    let mask = match numbers {
        Some(_) => graph.input(GGML_TYPE_I32, [8, 1, 1, 1]),
        None => graph.input(GGML_TYPE_F16, [case.n_kv, case.tokens, 1, 1]),
    };
    let stores: Vec<(Tensor, Tensor)> = (0..caches)
        .map(|_| (graph.input(case.k, [row, case.n_kv, 1, 1]), graph.input(case.v, [row, case.n_kv, 1, 1])))
        .collect();
    for i in 0..nodes {
        let (k, v) = stores[i % caches];
        let out = over(&graph, case, q, k, v, mask);
        if !graph.supports(out) {
            return None;
        }
        graph.expand(out);
    }
    graph.allocate();
    let mut random = Random::new(3);
    graph.set_f32(q, &random.normals(case.d * case.gqa * case.heads_kv * case.tokens, 0.1));
    if let Some([q_pos0, kv_end, n_q, kv_base, first_valid]) = numbers {
        graph.set_i32(mask, &[q_pos0, kv_end, n_q, kv_base, first_valid, 0, 0, 0]);
    } else {
        let causal: Vec<u8> = (0..case.tokens)
            .flat_map(|i| {
                (0..case.n_kv)
                    .flat_map(move |s| if s + case.tokens <= case.n_kv + i { [0, 0] } else { [0, 0xFC] })
            })
            .collect();
        graph.set(mask, 0, &causal);
    }
    let values = random.normals(row * 2048.min(case.n_kv), 1.0);
    let (k_chunk, v_chunk) = (quantise(case.k, &values), quantise(case.v, &values));
    for (k, v) in stores {
        fill(&graph, k, &k_chunk);
        fill(&graph, v, &v_chunk);
    }
    Some((graph, nodes))
}

/// Runs a few nodes once, for a profiler.
pub fn profile(device: &Device) {
    let deep = [GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_TQ3_0].map(|t| (t, 1, 131_072));
    for (t, tokens, n_kv) in
        deep.into_iter().chain([(GGML_TYPE_TQ3_0, 512, 8192), (GGML_TYPE_Q8_0, 512, 8192)])
    {
        if let Some((graph, _)) =
            attention(device, &Case { pins: [2, 0, 0], ..Case::new(512, 8, tokens, n_kv, t, t) }, 1)
        {
            graph.run();
        }
    }
}

fn line(device: &Device, shape: &str, case: &Case) {
    let row = case.d * case.heads_kv;
    let bytes = (bytes_of(case.k, row * case.n_kv) + bytes_of(case.v, row * case.n_kv)) as f64;
    let flop = 4.0 * (case.tokens * case.gqa * row * case.n_kv) as f64;
    let us = attention(device, case, 8).map(|(graph, nodes)| time(device, &graph, nodes));
    let text = match us {
        None => "refused".to_string(),
        Some(us) => format!(
            "{us:9.1} us {:6.0} GB/s {:5.1} % {:6.1} TFLOP/s",
            bytes / us / 1e3,
            bytes / us / 1e-6 / BANDWIDTH * 100.0,
            flop / us / 1e6
        ),
    };
    let numbers = if matches!(case.mask, Mask::Numbers(_)) { "numbers" } else { "" };
    let kernel = ["auto", "upstream", "direct", "general", "wide"][case.pins[0] as usize];
    println!(
        "{shape:10} {:5} t{:<4} kv{:<7} {kernel:8} {numbers:7} {:?} {text}",
        name(case.k),
        case.tokens,
        case.n_kv,
        &case.pins[1..]
    );
}

/// All but the gather and the tuning.
pub fn tables(device: &Device, full: bool) {
    small_table(device);
    attention_table(device, full);
}

/// B1, B2: attention of the models' layers.
fn attention_table(device: &Device, full: bool) {
    let shapes =
        [("26b full", 512, 8, 2), ("31b full", 512, 8, 4), ("26b swa", 256, 2, 8), ("31b swa", 256, 2, 16)];
    println!(
        "\nshape      type  tokens keys    kernel           pins  time, stored bytes a second, of 3.0 TB/s"
    );
    for (shape, d, gqa, heads_kv) in shapes {
        let depths: &[usize] = match (d, full) {
            (256, _) => &[1536],
            (_, true) => &[4096, 32768, 131_072],
            (_, false) => &[4096, 32768],
        };
        for &n_kv in depths {
            for tokens in [1, 2, 4, 8, 16, 512, 2048] {
                if tokens >= 512 && (n_kv > 32768 || heads_kv == 4) || (tokens & 6 != 0 && !full) {
                    continue;
                }
                if tokens == 2048 && (d != 512 || n_kv < tokens) {
                    continue;
                }
                for t in TYPES {
                    let (pins, mask) = ([2, 0, 0], Mask::Causal);
                    let case = Case { heads_kv, mask, pins, ..Case::new(d, gqa, tokens, n_kv, t, t) };
                    if d == 512 {
                        let mask = Mask::numbers(tokens, n_kv);
                        // The kernels of few tokens and of prompts, to see where the second begins to pay.
                        let both = if tokens == 1 { 3..=3 } else { 3..=4 };
                        both.for_each(|pin| line(device, shape, &Case { mask, pins: [pin, 0, 0], ..case }));
                    } else {
                        line(device, shape, &case);
                    }
                    if t != GGML_TYPE_TQ3_0 {
                        line(device, shape, &Case { pins: [1, 0, 0], ..case });
                    }
                }
            }
        }
    }
}

/// Upstream's gather of the keys that a mask leaves (`ggml_flash_attn_ext_set_n_kv_max`), beside its dense attention under the
/// same mask: chunks of prompts, with the same blocks of 128 keys for all queries and heads.
pub fn gather_table(device: &Device) {
    println!("\nupstream's gather of keys, 26b full, 32768 keys, us a node");
    let (d, gqa, heads_kv, n_kv) = (512, 8, 2, 32768);
    for t in [GGML_TYPE_F16, GGML_TYPE_Q8_0] {
        for tokens in [1, 512, 2048] {
            for share in [10, 20, 40] {
                let kept = n_kv / 128 / share * 128;
                let [dense, gathered] = [0, kept].map(|n_kv_max| {
                    let mut graph = Graph::new(device);
                    let q = graph.input(GGML_TYPE_F32, [d, gqa * heads_kv, tokens, 1]);
                    let [k, v] = [0; 2].map(|_| graph.input(t, [d * heads_kv, n_kv, 1, 1]));
                    let mask = graph.input(GGML_TYPE_F16, [n_kv, tokens, 1, 1]);
                    let case = Case { heads_kv, pins: [1, 0, 0], ..Case::new(d, gqa, tokens, n_kv, t, t) };
                    for _ in 0..4 {
                        let out = over(&graph, &case, q, k, v, mask);
                        // SAFETY: a fresh attention node; the mask leaves as many keys.
                        unsafe { ggml_flash_attn_ext_set_n_kv_max(out, n_kv_max as i32) };
                        graph.expand(out);
                    }
                    graph.allocate();
                    let mut random = Random::new(3);
                    graph.set_f32(q, &random.normals(d * gqa * heads_kv * tokens, 0.1));
                    let chunk = quantise(t, &random.normals(d * heads_kv * 2048, 1.0));
                    fill(&graph, k, &chunk);
                    fill(&graph, v, &chunk);
                    // Every `share`th block, and no more than were promised.
                    let sees = |s: usize| (s / 128).is_multiple_of(share) && s / 128 / share < kept / 128;
                    let row: Vec<u8> =
                        (0..n_kv).flat_map(|s| if sees(s) { [0, 0] } else { [0, 0xFC] }).collect();
                    fill(&graph, mask, &row);
                    time(device, &graph, 4)
                });
                println!(
                    "{:5} t{tokens:<4} 1 of {share:<2} {dense:9.1} dense {gathered:9.1} gathered",
                    name(t)
                );
            }
        }
    }
}

/// What other splits and tiles would give.
pub fn tuning_table(device: &Device) {
    println!("\nsplits and tiles");
    for (shape, heads_kv, n_kv) in [("26b full", 2, 32768), ("26b full", 2, 131_072), ("31b full", 4, 32768)]
    {
        for t in [GGML_TYPE_Q8_0, GGML_TYPE_TQ3_0] {
            for n_split in [33, 66, 132, 198, 264] {
                for tile in [32, 64] {
                    line(
                        device,
                        shape,
                        &Case { heads_kv, pins: [2, n_split, tile], ..Case::new(512, 8, 1, n_kv, t, t) },
                    );
                }
            }
        }
    }
}

/// B4, B5, B6: what surrounds attention.
fn small_table(device: &Device) {
    println!("\nsmall kernels, us a node");
    for t in [GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_TQ3_0] {
        for tokens in [1, 1024] {
            let mut graph = Graph::new(device);
            let rows = graph.input(GGML_TYPE_F32, [1024, tokens, 1, 1]);
            let index = graph.input(GGML_TYPE_I64, [tokens, 1, 1, 1]);
            for _ in 0..32 {
                let cache = graph.input(t, [1024, 2048, 1, 1]);
                // SAFETY: shapes fit.
                graph.expand(unsafe { ggml_set_rows(graph.ctx, cache, rows, index) });
            }
            graph.allocate();
            graph.set_f32(rows, &Random::new(4).normals(1024 * tokens, 1.0));
            graph.set(index, 0, &(0..tokens as i64).flat_map(|i| i.to_le_bytes()).collect::<Vec<u8>>());
            println!("set_rows {:6} {tokens:5} tokens {:8.2}", name(t), time(device, &graph, 32));
        }
    }
    for (n, rows) in [(512, 16), (256, 32), (64, 128), (512, 16384)] {
        let mut graph = Graph::new(device);
        let x = graph.input(GGML_TYPE_F32, [n, rows, 1, 1]);
        let matrix = graph.input(GGML_TYPE_F32, [n, n, 1, 1]);
        for _ in 0..32 {
            // SAFETY: shapes fit.
            unsafe {
                let y = ggml_mul_mat(graph.ctx, matrix, x);
                ggml_mul_mat_set_hint(y, GGML_HINT_SRC0_IS_SIGNED_HADAMARD);
                graph.expand(y);
            }
        }
        graph.allocate();
        println!("rotation {n:4} {rows:5} rows {:8.2}", time(device, &graph, 32));
    }
    for (n_kv, rows, ring) in [(2048, 1, 2048), (2048, 1024, 2048), (262_144, 16, 0)] {
        let mut graph = Graph::new(device);
        let params = graph.input(GGML_TYPE_I32, [8, 1, 1, 1]);
        (0..16).for_each(|_| graph.expand(kv_mask(&graph, params, [n_kv, rows], ring, 1024, true)));
        graph.allocate();
        graph.set_i32(params, &[5000, 5001, rows as i32, 0, 0, 0, 0, 0]);
        println!("kv_mask {n_kv:7} x {rows:4} {:8.2}", time(device, &graph, 16));
    }
}
