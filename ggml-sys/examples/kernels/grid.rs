//! The grid of attention cases.

use crate::attention::{Case, Inputs, Mask, Values, compute, error, node, oracle};
use crate::basic::kv_mask;
use crate::data::{Random, TYPES, bytes_of, name, nmse, quantise};
use crate::device::{Device, Graph, Tensor};
use crate::report::Report;
use ggml_sys::*;

const TQ3: ggml_type = GGML_TYPE_TQ3_0;
const Q8: ggml_type = GGML_TYPE_Q8_0;
const F16: ggml_type = GGML_TYPE_F16;

/// What any device with these kernels can show; `short` keeps what a memory checker finishes in a minute.
pub fn run(device: &Device, report: &mut Report, short: bool) {
    check(device, report, &if short { small() } else { all() }, 1);
    check(device, report, &numbers(short), 5000);
    check(device, report, &prompts(short), 6000);
    splits(device, report);
    garbage(device, report);
}

/// What needs upstream's kernels beside them, memory of its own, or captured graphs.
pub fn run_on_card(device: &Device, report: &mut Report, short: bool) {
    dispatch(device, report);
    if !short {
        scratch(device, report);
        replay(device, report);
    }
}

/// Cases with the seeds from `seed` on. What to expect is computed for several at once: it takes longer than the device.
fn check(device: &Device, report: &mut Report, cases: &[Case], seed: u64) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let seeded: Vec<(&Case, u64)> = cases.iter().zip(seed..).collect();
    for some in seeded.chunks(threads) {
        let prepared: Vec<(Inputs, Vec<f32>)> = std::thread::scope(|scope| {
            let prepare = |(case, seed): (&Case, u64)| {
                let inputs = Inputs::new(case, seed);
                let want = oracle(case, &inputs);
                (inputs, want)
            };
            let workers: Vec<_> = some.iter().map(|&one| scope.spawn(move || prepare(one))).collect();
            workers.into_iter().map(|worker| worker.join().expect("plain loops")).collect()
        });
        for ((case, _), (inputs, want)) in some.iter().zip(prepared) {
            // Extreme logits amplify the rounding of Q: there only the norm of the error is bounded.
            let (limit, peak) = if case.values == Values::Normal { (1e-5, 2e-3) } else { (1e-4, f64::MAX) };
            match compute(device, case, &inputs).map(|have| error(case, &inputs, &have, &want)) {
                None => report.line(&case.title(), "refused by the device", false),
                Some((nmse, worst)) => {
                    let ok = nmse <= limit && worst <= peak;
                    report.line(&case.title(), &format!("nmse {nmse:.1e} worst {worst:.1e}"), ok);
                }
            }
        }
    }
}

fn small() -> Vec<Case> {
    let mut out = Vec::new();
    for t in TYPES {
        out.push(Case { pins: [2, 0, 0], ..Case::new(512, 8, 1, 257, t, t) });
        out.push(Case { pins: [2, 0, 0], ..Case::new(256, 2, 3, 300, t, t) });
    }
    out.push(Case { mask: Mask::Sparse, ..Case::new(512, 8, 40, 200, TQ3, Q8) });
    out.push(Case { mask: Mask::Ring, ..Case::new(128, 3, 5, 100, TQ3, TQ3) });
    out.push(Case { mask: Mask::Empty, ..Case::new(64, 1, 4, 70, TQ3, TQ3) });
    out
}

/// T22: causal by numbers, without a mask: views that are longer than what is filled or begin later, rows that repeat,
/// see nothing, or are not the last positions.
fn numbers(short: bool) -> Vec<Case> {
    let mut out = Vec::new();
    let small = [(TQ3, TQ3, 512, 8), (Q8, TQ3, 128, 4)];
    let more = [
        (F16, F16, 512, 8),
        (Q8, Q8, 512, 8),
        (GGML_TYPE_Q4_0, GGML_TYPE_Q4_0, 512, 8),
        (Q8, TQ3, 512, 8),
        (TQ3, F16, 64, 3),
        (TQ3, TQ3, 256, 2),
    ];
    for (k, v, d, gqa) in small.into_iter().chain(more.into_iter().filter(|_| !short)) {
        // Few tokens with F16 are upstream's.
        let pins = [if (k, v) == (F16, F16) { 2 } else { 0 }, 0, 0];
        for tokens in [1, 2, 7, 40, 70] {
            let n = tokens as i32;
            for params in [
                [600 - n, 600, n, 0, 0],
                [300, 300 + n, n, 0, 0],
                [0, n, n, 0, 0],
                [200, 200 + n, (n - 3).max(1), 0, 0],
                [400, 400, 1, 0, 130],
                [1000, 1000 + n, n, 700, 720],
                [90, 500, n, 100, 95],
                [10, 500, n, 700, 0],
            ] {
                out.push(Case { pins, mask: Mask::Numbers(params), ..Case::new(d, gqa, tokens, 600, k, v) });
            }
        }
        out.push(Case { pins, mask: Mask::numbers(33, 6000), ..Case::new(d, gqa, 33, 6000, k, v) });
        out.push(Case { pins, mask: Mask::numbers(1, 6000), ..Case::new(d, gqa, 1, 6000, k, v) });
    }
    out
}

/// T23: the kernel of prompts, also where another would be chosen: any number of tokens and heads, logits that move its
/// references, keys that end anywhere.
fn prompts(short: bool) -> Vec<Case> {
    let mut out = Vec::new();
    for t in TYPES {
        let wide = Case { pins: [4, 0, 0], heads_kv: 1, ..Case::new(512, 8, 64, 700, t, t) };
        let causal = |case: Case| Case { mask: Mask::numbers(case.tokens, case.n_kv), ..case };
        out.push(causal(Case { tokens: 30, n_kv: 200, ..wide }));
        if short {
            continue;
        }
        for values in [Values::Normal, Values::Equal, Values::Large, Values::Peak] {
            out.extend([causal(Case { values, ..wide }), Case { mask: Mask::None, values, ..wide }]);
        }
        for n_kv in [300, 1023, 1024, 1025] {
            out.extend([17, 129, 300].map(|tokens| causal(Case { tokens, n_kv, ..wide })));
        }
        for gqa in [1, 2, 3, 7, 16] {
            out.push(causal(Case { gqa, heads_kv: 2, ..wide }));
        }
        out.extend([1, 2, 8].map(|tokens| causal(Case { tokens, n_kv: 5000, ..wide })));
        out.extend([1, 2, 5].map(|splits| causal(Case { pins: [4, splits, 0], ..wide })));
    }
    out
}

/// T10, T11, T13, T15, T21.
fn all() -> Vec<Case> {
    let mut out = small();
    for (d, gqa) in [(512, 8), (256, 2)] {
        for t in TYPES {
            let pin = [if t == F16 { 2 } else { 0 }, 0, 0];
            for tokens in 1..=16 {
                out.push(Case { pins: pin, ..Case::new(d, gqa, tokens, 513, t, t) });
            }
            for n_kv in [1, 31, 32, 63, 64, 65, 255, 256, 257, 2048, 4095, 8192, 8193] {
                out.push(Case { pins: pin, mask: Mask::None, ..Case::new(d, gqa, 1, n_kv, t, t) });
            }
            for tokens in [2, 8, 17, 64, 512] {
                out.push(Case { pins: pin, mask: Mask::Ring, ..Case::new(d, gqa, tokens, 2048, t, t) });
            }
            if t == TQ3 && d == 256 {
                // What a copy in F16 has taken over.
                for tokens in [65, 512] {
                    let case = Case::new(d, gqa, tokens, 2048, t, t);
                    out.push(Case { mask: Mask::Ring, ..case });
                    out.push(Case { pins: [2, 0, 0], mask: Mask::Ring, ..case });
                    out.push(Case { mask: Mask::Ring, ..Case::new(d, gqa, tokens, 2048, Q8, t) });
                }
            }
            for tokens in [17, 64, 1000, 1024, 1500] {
                // The oracle's work: a quarter of the heads for the long ones.
                let gqa = if tokens >= 1000 { 2 } else { gqa };
                out.push(Case { pins: pin, heads_kv: 1, ..Case::new(d, gqa, tokens, 2048, t, t) });
            }
            for values in [Values::Equal, Values::Large, Values::Peak] {
                out.push(Case { pins: pin, values, ..Case::new(d, gqa, 4, 700, t, t) });
                out.push(Case { pins: pin, values, ..Case::new(d, gqa, 33, 700, t, t) });
            }
            out.push(Case { pins: pin, mask: Mask::Empty, ..Case::new(d, gqa, 7, 130, t, t) });
            out.push(Case { pins: [2, 0, 0], mask: Mask::Empty, ..Case::new(d, gqa, 50, 130, t, t) });
            let deep = if t == TQ3 { 65536 } else { 20000 };
            out.push(Case { pins: pin, heads_kv: 1, ..Case::new(d, gqa, 1, deep, t, t) });
        }
        for k in TYPES {
            for v in TYPES {
                out.push(Case { pins: [2, 0, 0], mask: Mask::Sparse, ..Case::new(d, gqa, 5, 300, k, v) });
            }
        }
    }
    for gqa in [1, 2, 3, 4, 7, 8, 16, 32] {
        out.push(Case { heads_kv: 1, ..Case::new(512, gqa, 3, 200, TQ3, TQ3) });
        out.push(Case { heads_kv: 3, ..Case::new(256, gqa, 20, 200, TQ3, Q8) });
    }
    out.push(Case { heads_kv: 1, ..Case::new(512, 8, 1024, 1500, TQ3, TQ3) });
    for d in [64, 128] {
        for t in TYPES {
            for tokens in [1, 9, 40] {
                out.push(Case { pins: [2, 0, 0], heads_kv: 3, ..Case::new(d, 4, tokens, 333, t, t) });
            }
        }
    }
    out
}

/// T12: how the keys are divided changes nothing.
fn splits(device: &Device, report: &mut Report) {
    for (d, gqa, t) in [(512, 8, TQ3), (512, 8, Q8), (256, 2, GGML_TYPE_Q4_0)] {
        let case = Case::new(d, gqa, 3, 2500, t, t);
        let inputs = Inputs::new(&case, 77);
        let mut worst = 0f64;
        let mut same = true;
        let Some(first) = compute(device, &Case { pins: [2, 1, 0], ..case }, &inputs) else {
            report.line("T12 splits", "refused by the device", false);
            continue;
        };
        for n_split in [2, 3, 7, 16, 39, 64, 79] {
            for tile in [32, 64] {
                let pinned = Case { pins: [2, n_split, tile], ..case };
                let have = compute(device, &pinned, &inputs).unwrap_or_default();
                worst = worst.max(nmse(&have, &first));
                same &= compute(device, &pinned, &inputs).unwrap_or_default() == have;
            }
        }
        let text = format!("nmse {worst:.1e} between splits and tiles; the same twice: {same}");
        report.line(&format!("T12 {} of 1..79 splits", case.title()), &text, worst <= 1e-7 && same);
    }
}

/// T14: what nobody sees cannot matter.
fn garbage(device: &Device, report: &mut Report) {
    for (d, gqa) in [(512, 8), (256, 2)] {
        for t in TYPES {
            for (tokens, mask) in [1, 5, 40].into_iter().flat_map(|n| {
                let numbers = Mask::Numbers([333, 333 + n as i32, n as i32, 0, 70]);
                [(n, Mask::Ring), (n, numbers)]
            }) {
                let case = Case { mask, pins: [2, 0, 0], ..Case::new(d, gqa, tokens, 600, t, t) };
                let mut inputs = Inputs::new(&case, 5);
                inputs.fill_unseen(&case, None);
                let zeros = compute(device, &case, &inputs);
                inputs.fill_unseen(&case, Some(6));
                // F16 slots may hold a value whose product with another overflows only if both are seen.
                let random = compute(device, &case, &inputs);
                let bits = |x: &Option<Vec<f32>>| {
                    x.as_ref().map(|x| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
                };
                report.line(
                    &format!("T14 unseen garbage {}", case.title()),
                    "",
                    zeros.is_some() && bits(&zeros) == bits(&random),
                );
            }
        }
    }
}

/// T20: which nodes are taken, and that none of ours reserves a copy of the cache.
fn dispatch(device: &Device, report: &mut Report) {
    let mut wrong = Vec::new();
    let mut n = 0;
    for d in [64, 80, 128, 256, 512] {
        for k in TYPES {
            for v in TYPES {
                for (tokens, n_kv, mask) in [
                    (1, 256, Mask::Causal),
                    (1, 77, Mask::None),
                    (8, 1024, Mask::None),
                    (64, 4096, Mask::Causal),
                    (512, 4096, Mask::Causal),
                    (512, 65536, Mask::Causal),
                ] {
                    if d % 32 != 0 && (k != F16 || v != F16) {
                        continue;
                    }
                    let case = Case { mask, ..Case::new(d, 8, tokens, n_kv, k, v) };
                    let graph = Graph::new(device);
                    let out = node(&graph, &case).out;
                    let (tq3, quantised) = (k == TQ3 || v == TQ3, k != F16 || v != F16);
                    let ours = d != 80 && (tq3 || (quantised && (d == 512 || (d == 256 && tokens <= 16))));
                    n += 1;
                    let by_numbers = Case { mask: Mask::numbers(tokens, n_kv), ..case };
                    // Whether F16 has room depends on the device.
                    if (quantised || d != 512) && graph.supports(node(&graph, &by_numbers).out) != ours {
                        wrong.push(by_numbers.title());
                    }
                    // A copy of a short ring, and of nothing else.
                    let is_copied = tq3 && d == 256 && tokens == 512 && n_kv == 4096;
                    let room = if is_copied { 1 << 20..=64 << 20 } else { 0..=0 };
                    if ours && !(graph.supports(out) && room.contains(&graph.extra_bytes(out))) {
                        wrong.push(case.title());
                    }
                    // Finding 12: a node with a type that no other kernel reads, and a form we do not take, is refused.
                    // SAFETY: a fresh node; the soft cap is one of its parameters.
                    unsafe { (*out).op_params[2] = 30f32.to_bits() as i32 };
                    if tq3 && graph.supports(out) {
                        wrong.push(format!("{} with a soft cap", case.title()));
                    }
                }
            }
        }
    }
    let detail = if wrong.is_empty() { format!("{n} nodes") } else { format!("wrong: {}", wrong.join(", ")) };
    report.line("T20 dispatch, no copies reserved, refusals", &detail, wrong.is_empty());
}

/// T16: scratch does not grow with the context.
fn scratch(device: &Device, report: &mut Report) {
    let mut used = Vec::new();
    for n_kv in [8192usize, 1 << 20] {
        let case = Case { mask: Mask::None, ..Case::new(512, 8, 1024.min(n_kv), n_kv, TQ3, TQ3) };
        let mut graph = Graph::new(device);
        let node = node(&graph, &Case { tokens: 64, ..case });
        graph.expand(node.out);
        graph.allocate();
        for t in [node.q, node.k, node.v] {
            // SAFETY: the tensor's own size.
            let size = unsafe { ggml_nbytes(t) };
            graph.set(t, 0, &vec![0u8; size]);
        }
        let before = device.free_memory();
        graph.run();
        used.push(before.saturating_sub(device.free_memory()));
    }
    let text = format!("{} bytes at 8K, {} more at 1M", used[0], used[1]);
    report.line("T16 scratch", &text, used.iter().sum::<usize>() <= 64 << 20 && used[1] == 0);
}

/// T17: a captured graph, fed with new numbers only, equals fresh graphs bit for bit, through a wrap and a rollback.
fn replay(device: &Device, report: &mut Report) {
    let (d, gqa, heads, ring, window) = (256, 2, 4, 512usize, 384);
    for t in [TQ3, Q8] {
        let case = Case { heads_kv: heads, mask: Mask::Ring, ..Case::new(d, gqa, 1, ring, t, t) };
        let build = || {
            let mut graph = Graph::new(device);
            let params = graph.input(GGML_TYPE_I32, [8, 1, 1, 1]);
            let q = graph.input(GGML_TYPE_F32, [d, gqa * heads, 1, 1]);
            let cache = graph.input(t, [d * heads, ring, 1, 1]);
            let row = graph.input(GGML_TYPE_F32, [d * heads, 1, 1, 1]);
            let mask = kv_mask(&graph, params, [ring, 1], ring, window, true);
            let slot = graph.input(GGML_TYPE_I64, [1, 1, 1, 1]);
            // SAFETY: shapes fit.
            let store = unsafe { ggml_set_rows(graph.ctx, cache, row, slot) };
            let out = super::attention::over(&graph, &case, q, cache, cache, mask);
            [mask, store, out].iter().for_each(|&n| graph.expand(n));
            graph.allocate();
            (graph, [params, slot, q, row], cache, out)
        };
        let mut random = Random::new(8);
        let (graph, inputs, cache, out) = build();
        let mut bytes = quantise(t, &random.normals(d * heads * ring, 1.0));
        assert_eq!(bytes.len(), bytes_of(t, d * heads * ring));
        graph.set(cache, 0, &bytes);
        let mut different = 0;
        let mut pos = 300i32;
        for step in 0..200 {
            let (q_now, row_now) = (random.normals(d * gqa * heads, 0.2), random.normals(d * heads, 1.0));
            let block = [pos, pos + 1, 1, 0, 0, 0, 0, 0];
            let feed = |g: &Graph, [params, slot, q, row]: [Tensor; 4]| {
                g.set_i32(params, &block);
                g.set(slot, 0, &(i64::from(pos) % ring as i64).to_le_bytes());
                g.set_f32(q, &q_now);
                g.set_f32(row, &row_now);
            };
            feed(&graph, inputs);
            graph.run();
            let have = graph.get(out);
            let (fresh, inputs, fresh_cache, fresh_out) = build();
            fresh.set(fresh_cache, 0, &bytes);
            feed(&fresh, inputs);
            fresh.run();
            different += usize::from(have != fresh.get(fresh_out));
            bytes = graph.get(cache);
            pos += if step % 40 == 39 { -3 } else { 1 + step % 3 };
        }
        report.line(
            &format!("T17 200 replayed steps {}", name(t)),
            &format!("{different} differ"),
            different == 0,
        );
    }
}
