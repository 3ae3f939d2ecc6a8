//! Block-sparse attention against the CPU backend, its reference.

use crate::data::{Random, bytes_of, name, nmse, quantise};
use crate::device::{Device, Graph};
use crate::report::Report;
use ggml_sys::*;

#[derive(Clone, Copy)]
struct Case {
    kind: ggml_type,
    d: usize,
    gqa: usize,
    start: usize,
    tokens: usize,
    block: usize,
    alpha: f32,
    prompt_end: usize,
}

const KV_HEADS: usize = 2;

impl Case {
    fn slots(&self) -> usize {
        (self.start + self.tokens).next_multiple_of(256)
    }
}

/// Everything of this file.
pub fn run(device: &Device, cpu: &Device, report: &mut Report, short: bool) {
    let base = Case {
        kind: GGML_TYPE_F16,
        d: 256,
        gqa: 2,
        start: 0,
        tokens: 512,
        block: 64,
        alpha: 0.3,
        prompt_end: 0,
    };
    let mut cases = vec![
        Case { alpha: 0.6, ..base },
        Case { start: 1000, ..base },
        Case { start: 1000, tokens: 333, ..base },
    ];
    for kind in [GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_TQ3_0] {
        let far = Case { d: 512, gqa: 8, start: 4096, tokens: 256, block: 128, alpha: 0.9, ..base };
        cases.push(Case { kind, ..far });
    }
    // Blocks that are no power of two; the last one is cut off.
    cases.push(Case { d: 512, gqa: 8, start: 1024, tokens: 256, block: 192, alpha: 0.9, ..base });
    if !short {
        let long = Case { d: 512, gqa: 8, start: 4096, tokens: 1000, block: 128, ..base };
        cases.extend([long, Case { prompt_end: 5096, ..long }, Case { alpha: 0.9, start: 4101, ..long }]);
    }
    for case in cases {
        let data = Data::new(&case);
        // The reference makes no difference between masks and numbers, and takes some types with a mask only.
        let [want, dense, want_report] = [Attention::Sparse, Attention::Dense, Attention::Report]
            .map(|attention| attend(cpu, &case, &data, attention, false));
        for by_numbers in [false, true] {
            let Case { kind, d, gqa, start, tokens, block, alpha, prompt_end } = case;
            let what = format!(
                "sparse {} d{d} gqa{gqa} at{start} t{tokens} b{block} a{alpha} e{prompt_end}{}",
                name(kind),
                if by_numbers { " by numbers" } else { "" }
            );
            let have = attend(device, &case, &data, Attention::Sparse, by_numbers);
            // A block whose score lies at the threshold may fall on either side: a few rows then differ.
            let rows = have.chunks(d).zip(want.chunks(d));
            let n_rows = have.len() / d;
            let differs: Vec<bool> = rows.map(|(a, b)| nmse(a, b)).map(|e| e.is_nan() || e > 1e-4).collect();
            let count = |rows: &[bool]| rows.iter().filter(|&&off| off).count();
            let off = count(&differs);
            // The last token alone would see the last key twice.
            let heads = KV_HEADS * gqa;
            let last = count(&differs[n_rows - heads..]);
            let moved = nmse(&have, &dense);
            let text = format!(
                "{off} of {n_rows} rows differ, {last} of the last {heads}, nmse to dense {moved:.1e}"
            );
            let ok =
                off * 50 <= n_rows && last * 2 <= heads && moved > 1e-6 && have.iter().all(|x| x.is_finite());
            report.line(&what, &text, ok);

            let have = attend(device, &case, &data, Attention::Report, by_numbers);
            let keys = |rows: &[f32]| rows.chunks(d).map(|row| row[1]).collect::<Vec<_>>();
            let (have, want) = (keys(&have), keys(&want_report));
            let off = have.iter().zip(&want).filter(|(a, b)| a.is_nan() || (*a - *b).abs() > 1e-6).count();
            let mean = |shares: &[f32]| shares.iter().sum::<f32>() / shares.len() as f32;
            let text = format!("{:.1}% of the keys read, {off} of {n_rows} rows differ", 100.0 * mean(&have));
            report.line(&format!("{what} report"), &text, off * 50 <= n_rows && mean(&want) < 1.0);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Attention {
    Dense,
    Sparse,
    /// What is read, instead of the result.
    Report,
}

/// What a case reads.
struct Data {
    queries: Vec<f32>,
    /// Keys and values.
    stored: [Vec<u8>; 2],
}

impl Data {
    /// Keys of one block resemble each other, so that some blocks matter more than others. Slots above the filled
    /// ones hold other numbers. To the last token its own key is about as much as all others together.
    fn new(c: &Case) -> Self {
        let mut random = Random::new(5);
        let row = c.d * KV_HEADS;
        let mut keys = Vec::new();
        for _ in 0..c.slots() / c.block + 1 {
            let centre = random.normals(row, 0.7);
            for _ in 0..c.block {
                keys.extend(random.normals(row, 0.7).iter().zip(&centre).map(|(x, c)| x + c));
            }
        }
        keys.truncate(row * c.slots());
        let mut queries = random.normals(row * c.gqa * c.tokens, 3.0 / (c.d as f32).sqrt());
        let newest = row * (c.start + c.tokens - 1);
        let (_, last) = queries.split_at_mut(row * c.gqa * (c.tokens - 1));
        for (heads, key) in last.chunks_mut(c.d * c.gqa).zip(keys[newest..].chunks_mut(c.d)) {
            let (first, others) = heads.split_at_mut(c.d);
            others.chunks_mut(c.d).for_each(|head| head.copy_from_slice(first));
            // A query's square is about 9, and the others' weights sum to some exp(10).
            key.iter_mut().zip(first).for_each(|(k, q)| *k = 1.1 * *q);
        }
        let values = random.normals(row * c.slots(), 1.0);
        let filled = bytes_of(c.kind, row) * (c.start + c.tokens);
        let stored = [keys, values].map(|x| {
            let mut bytes = quantise(c.kind, &x);
            bytes[filled..].fill(0x3C);
            bytes
        });
        Data { queries, stored }
    }
}

/// `by_numbers` is without a mask in memory.
fn attend(device: &Device, c: &Case, data: &Data, attention: Attention, by_numbers: bool) -> Vec<f32> {
    let mut g = Graph::new(device);
    let q = g.input(GGML_TYPE_F32, [c.d, KV_HEADS * c.gqa, c.tokens, 1]);
    let kv = [0; 2].map(|_| g.input(c.kind, [c.d, KV_HEADS, c.slots(), 1]));
    let params = g.input(GGML_TYPE_I32, [8, 1, 1, 1]);
    let mask = match by_numbers {
        true => std::ptr::null_mut(),
        false => crate::basic::kv_mask(&g, params, [c.slots(), c.tokens], 0, 0, true),
    };
    // SAFETY: shapes fit.
    let out = unsafe {
        let [k, v] = kv.map(|t| ggml_permute(g.ctx, t, 0, 2, 1, 3));
        let q = ggml_permute(g.ctx, q, 0, 2, 1, 3);
        let out = ggml_flash_attn_ext(g.ctx, q, k, v, mask, 1.0, 0.0, 0.0);
        ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
        if by_numbers {
            ggml_flash_attn_ext_set_causal(out, params);
        }
        if attention != Attention::Dense {
            let options = ggml_block_sparse {
                alpha: c.alpha,
                block: c.block as i32,
                sink: 1,
                window: 2,
                last_full: 1,
                report: i32::from(attention == Attention::Report),
            };
            ggml_flash_attn_ext_set_block_sparse(out, params, &options);
        }
        out
    };
    assert!(g.supports(out), "refused by the device");
    g.expand(out);
    g.allocate();
    g.set_f32(q, &data.queries);
    for (t, bytes) in kv.into_iter().zip(&data.stored) {
        g.set(t, 0, bytes);
    }
    let n = |n: usize| n as i32;
    g.set_i32(params, &[n(c.start), n(c.start + c.tokens), n(c.tokens), 0, 0, n(c.prompt_end), 0, 0]);
    g.run();
    g.get_f32(out)
}
