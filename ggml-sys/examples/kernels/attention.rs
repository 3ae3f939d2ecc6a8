//! One attention node on the device, and the same by plain loops.

use crate::basic::admit;
use crate::data::{Random, bytes_of, dequantise, name, nmse, quantise};
use crate::device::{Device, Graph, Tensor};
use ggml_sys::*;

/// Which keys a row sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask {
    /// All, by no mask at all.
    None,
    /// The rows are the last positions.
    Causal,
    /// A window of 40 % of the slots at a random place that wraps.
    Ring,
    /// A random third; no order.
    Sparse,
    /// As `Sparse`, but every third row sees nothing.
    Empty,
    /// By no mask, but these of `ggml_kv_param`, from the first on.
    Numbers([i32; 5]),
}

/// What K, Q and V hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Logits of a few units.
    Normal,
    /// All keys equal.
    Equal,
    /// Logits to about 80.
    Large,
    /// One key far above the others.
    Peak,
}

impl Mask {
    /// What `Causal` says, by numbers.
    pub fn numbers(tokens: usize, n_kv: usize) -> Self {
        let [end, n_q] = [n_kv, tokens].map(|n| n as i32);
        Mask::Numbers([end - n_q, end, n_q, 0, 0])
    }
}

/// A case of the grid.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Head size.
    pub d: usize,
    /// Query heads for a KV head.
    pub gqa: usize,
    /// KV heads.
    pub heads_kv: usize,
    /// Query rows.
    pub tokens: usize,
    /// Keys.
    pub n_kv: usize,
    /// Type of K.
    pub k: ggml_type,
    /// Type of V.
    pub v: ggml_type,
    /// Visibility.
    pub mask: Mask,
    /// Contents.
    pub values: Values,
    /// The op parameters 5 to 7: kernel, splits, tile; 0 lets the dispatcher choose.
    pub pins: [i32; 3],
}

impl Case {
    /// The usual case: F16, causal, four KV heads' worth of work kept small.
    pub fn new(d: usize, gqa: usize, tokens: usize, n_kv: usize, k: ggml_type, v: ggml_type) -> Self {
        let mask = Mask::Causal;
        Case { d, gqa, heads_kv: 2, tokens, n_kv, k, v, mask, values: Values::Normal, pins: [0; 3] }
    }

    /// For the table.
    pub fn title(&self) -> String {
        let Case { d, gqa, tokens, n_kv, mask, values, .. } = self;
        format!("d{d} gqa{gqa} t{tokens} kv{n_kv} {}/{} {mask:?} {values:?}", name(self.k), name(self.v))
    }
}

/// Inputs of a case on the host.
pub struct Inputs {
    /// F32 `[d, heads, tokens]`.
    pub q: Vec<f32>,
    /// Rows of all heads, quantised.
    pub k: Vec<u8>,
    /// As `k`.
    pub v: Vec<u8>,
    /// Visible or not, `[n_kv, tokens]`.
    pub see: Vec<bool>,
}

impl Inputs {
    /// Random ones.
    pub fn new(case: &Case, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let row = case.d * case.heads_kv;
        let (gain, spread) = match case.values {
            Values::Large => (20.0, 1.0),
            Values::Peak => (1.0, 1.0),
            _ => (3.0, 1.0),
        };
        let q =
            random.normals(case.d * case.gqa * case.heads_kv * case.tokens, gain / (case.d as f32).sqrt());
        let mut k = random.normals(row * case.n_kv, spread);
        let v = random.normals(row * case.n_kv, 1.0);
        match case.values {
            Values::Equal => (row..k.len()).for_each(|i| k[i] = k[i % row]),
            Values::Peak => {
                let slot = case.n_kv / 3 * row;
                (0..row).for_each(|i| k[slot + i] = 40.0 * q[i % case.d]);
            }
            _ => {}
        }
        let see = visible(case, &mut random);
        Inputs { q, k: quantise(case.k, &k), v: quantise(case.v, &v), see }
    }

    /// Overwrites the slots that no row sees: with random codes and finite scales, or with zeros.
    pub fn fill_unseen(&mut self, case: &Case, seed: Option<u64>) {
        let mut random = Random::new(seed.unwrap_or(1));
        for (bytes, t) in [(&mut self.k, case.k), (&mut self.v, case.v)] {
            let size = bytes_of(t, case.d * case.heads_kv);
            let block = match t {
                GGML_TYPE_F16 => 2,
                GGML_TYPE_Q8_0 => 34,
                GGML_TYPE_Q4_0 => 18,
                _ => 14,
            };
            for slot in (0..case.n_kv).filter(|s| (0..case.tokens).all(|i| !self.see[i * case.n_kv + s])) {
                let row = &mut bytes[slot * size..][..size];
                row.iter_mut().for_each(|b| *b = if seed.is_some() { random.bits() as u8 } else { 0 });
                // The scale, or the value itself: any finite half.
                row.chunks_mut(block).filter(|b| b[1] & 0x7C == 0x7C).for_each(|b| b[1] &= 0xBF);
            }
        }
    }
}

fn visible(case: &Case, random: &mut Random) -> Vec<bool> {
    let (n, tokens) = (case.n_kv, case.tokens);
    let mut see = vec![false; n * tokens];
    let start = random.below(n as u64) as usize;
    let window = (n * 2 / 5).max(1);
    for i in 0..tokens {
        for s in 0..n {
            see[i * n + s] = match case.mask {
                Mask::None => true,
                Mask::Causal => s + tokens <= n + i || (s == 0 && n < tokens),
                Mask::Ring => (s + n - start + n - i % n) % n < window,
                Mask::Sparse => random.below(3) == 0 || s == i % n,
                Mask::Empty => i % 3 != 1 && (random.below(3) == 0 || s == i % n),
                Mask::Numbers(p) => admit(&p.map(i64::from), 0, 0, true, i as i64, s as i64),
            };
        }
        if matches!(case.mask, Mask::Numbers(_)) && !see[i * n..][..n].contains(&true) {
            see[i * n] = true;
        }
    }
    see
}

/// Attention in f32 products and f64 sums over the decoded cache.
pub fn oracle(case: &Case, inputs: &Inputs) -> Vec<f32> {
    let Case { d, gqa, heads_kv, tokens, n_kv, .. } = *case;
    let (k, v) = (dequantise(case.k, &inputs.k), dequantise(case.v, &inputs.v));
    let heads = gqa * heads_kv;
    let mut out = vec![0f32; d * heads * tokens];
    let one = |row: usize, out: &mut [f32]| {
        let (token, kv) = (row / heads, row % heads / gqa);
        let q = &inputs.q[row * d..][..d];
        let at = |s: usize| (s * heads_kv + kv) * d..(s * heads_kv + kv + 1) * d;
        let seen: Vec<usize> = (0..n_kv).filter(|s| inputs.see[token * n_kv + s]).collect();
        let dot = |s: &usize| -> f32 {
            let mut sums = [0f32; 16];
            for (a, b) in q.chunks(16).zip(k[at(*s)].chunks(16)) {
                (0..16).for_each(|j| sums[j] += a[j] * b[j]);
            }
            sums.iter().map(|&s| f64::from(s)).sum::<f64>() as f32
        };
        let logits: Vec<f32> = seen.iter().map(dot).collect();
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0f64;
        let mut total = vec![0f64; d];
        for (s, logit) in seen.iter().zip(logits) {
            let p = f64::from(logit - top).exp();
            sum += p;
            total.iter_mut().zip(&v[at(*s)]).for_each(|(o, x)| *o += p * f64::from(*x));
        }
        if sum > 0.0 {
            out.iter_mut().zip(total).for_each(|(o, x)| *o = (x / sum) as f32);
        }
    };
    out.chunks_mut(d).enumerate().for_each(|(row, out)| one(row, out));
    out
}

/// The tensors of an attention node.
pub struct Node {
    /// F32 `[d, heads, tokens]`.
    pub q: Tensor,
    /// Rows of all heads.
    pub k: Tensor,
    /// As `k`.
    pub v: Tensor,
    /// F16 `[n_kv, tokens]`, I32 `[8]` for numbers, or null.
    pub mask: Tensor,
    /// F32 `[d, heads, tokens]`.
    pub out: Tensor,
}

/// Builds the node as a model's graph does: Q permuted, K and V views of rows that hold all heads.
pub fn node(graph: &Graph, case: &Case) -> Node {
    let Case { d, gqa, heads_kv, tokens, n_kv, .. } = *case;
    let q = graph.input(GGML_TYPE_F32, [d, gqa * heads_kv, tokens, 1]);
    let k = graph.input(case.k, [d * heads_kv, n_kv, 1, 1]);
    let v = graph.input(case.v, [d * heads_kv, n_kv, 1, 1]);
    let mask = match case.mask {
        Mask::None => std::ptr::null_mut(),
        Mask::Numbers(_) => graph.input(GGML_TYPE_I32, [8, 1, 1, 1]),
        _ => graph.input(GGML_TYPE_F16, [n_kv, tokens, 1, 1]),
    };
    let out = over(graph, case, q, k, v, mask);
    Node { q, k, v, mask, out }
}

/// The node over tensors that exist.
pub fn over(graph: &Graph, case: &Case, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor {
    let Case { d, heads_kv, n_kv, .. } = *case;
    // SAFETY: tensors of this context; the views lie inside them.
    unsafe {
        let view = |t: Tensor, kind: ggml_type| {
            let (row, head) = (bytes_of(kind, d * heads_kv), bytes_of(kind, d));
            ggml_view_3d(graph.ctx, t, d as i64, n_kv as i64, heads_kv as i64, row, head, 0)
        };
        let rows = ggml_permute(graph.ctx, q, 0, 2, 1, 3);
        let by_numbers = matches!(case.mask, Mask::Numbers(_));
        let in_memory = if by_numbers { std::ptr::null_mut() } else { mask };
        let (keys, values) = (view(k, case.k), view(v, case.v));
        let out = ggml_flash_attn_ext(graph.ctx, rows, keys, values, in_memory, 1.0, 0.0, 0.0);
        if by_numbers {
            ggml_flash_attn_ext_set_causal(out, mask);
        }
        (&mut (*out).op_params)[5..8].copy_from_slice(&case.pins);
        out
    }
}

/// Runs a case; `None` where the device refuses it.
pub fn compute(device: &Device, case: &Case, inputs: &Inputs) -> Option<Vec<f32>> {
    let mut graph = Graph::new(device);
    let node = node(&graph, case);
    if !graph.supports(node.out) {
        return None;
    }
    graph.expand(node.out);
    graph.allocate();
    graph.set_f32(node.q, &inputs.q);
    graph.set(node.k, 0, &inputs.k);
    graph.set(node.v, 0, &inputs.v);
    if let Mask::Numbers([q_pos0, kv_end, n_q, kv_base, first_valid]) = case.mask {
        graph.set_i32(node.mask, &[q_pos0, kv_end, n_q, kv_base, first_valid, 0, 0, 0]);
    } else if !node.mask.is_null() {
        let halves: Vec<u8> =
            inputs.see.iter().flat_map(|&s| if s { [0, 0] } else { [0x00, 0xFC] }).collect();
        graph.set(node.mask, 0, &halves);
    }
    graph.run();
    Some(graph.get_f32(node.out))
}

/// Error of a result: NMSE, and the largest difference over the largest |V|.
pub fn error(case: &Case, inputs: &Inputs, have: &[f32], want: &[f32]) -> (f64, f64) {
    let v_max = dequantise(case.v, &inputs.v).iter().fold(0f32, |a, v| a.max(v.abs()));
    let worst = have
        .iter()
        .zip(want)
        .map(|(a, b)| (a - b).abs())
        .fold(0f32, |a, d| if d.is_nan() { f32::INFINITY } else { a.max(d) });
    (nmse(have, want), f64::from(worst / v_max.max(1e-30)))
}
