//! Operations of the patch series that serve the KV cache: masks from a few numbers, signed rotations.

use super::graph::GraphBuilder;
use super::ops::require;
use super::tensor::Tensor;
use super::{DType, misuse};
use crate::Result;
use ggml_sys as sys;

/// The numbers that a mask is made from. All positions are absolute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KvParams {
    /// Position of query row 0.
    pub q_pos0: i32,
    /// Positions `0..kv_end` are in the cache when attention runs, those of this step included.
    pub kv_end: i32,
    /// Query rows that count; rows above repeat the last of them.
    pub n_q: i32,
    /// Position in the first row of a linear view; unused for rings.
    pub kv_base: i32,
    /// Lowest position that may be attended to.
    pub first_valid: i32,
    /// Positions of the whole prompt of which this step is a part; 0 outside of prompts.
    pub prompt_end: i32,
}

/// Which key blocks a block of queries reads (`ggml_block_sparse`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BlockSparse {
    /// Share of the best block's score that a block must reach, above 0 and below 1.
    pub alpha: f32,
    /// Positions of a block.
    pub block: u32,
    /// First blocks that are always read.
    pub sink: u32,
    /// Nearest blocks that are always read, the query's own included.
    pub window: u32,
    /// Last blocks of the prompt whose queries read everything.
    pub last_full: u32,
}

/// What a mask is, apart from the numbers of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvMask {
    /// Slots of the cache view.
    pub n_kv: i64,
    /// Query rows, padding included.
    pub n_rows: i64,
    /// Slots of the ring, of which slot `p % ring` holds position `p`; 0 for a linear cache.
    pub ring: u32,
    /// Positions that a query sees, itself included; 0 for all.
    pub window: u32,
    /// Whether a query sees no position after its own.
    pub causal: bool,
}

impl KvParams {
    /// Values of the input tensor.
    pub const LEN: usize = sys::GGML_KV_PARAMS as usize;

    /// The input tensor's data.
    pub fn words(&self) -> [i32; Self::LEN] {
        let mut words = [0; Self::LEN];
        words[sys::GGML_KV_PARAM_Q_POS0 as usize] = self.q_pos0;
        words[sys::GGML_KV_PARAM_KV_END as usize] = self.kv_end;
        words[sys::GGML_KV_PARAM_N_Q as usize] = self.n_q;
        words[sys::GGML_KV_PARAM_KV_BASE as usize] = self.kv_base;
        words[sys::GGML_KV_PARAM_FIRST_VALID as usize] = self.first_valid;
        words[sys::GGML_KV_PARAM_PROMPT_END as usize] = self.prompt_end;
        words
    }
}

impl GraphBuilder {
    /// The input that masks are made from, I32 `[8]`: write [`KvParams::words`] to it before each computation.
    pub fn kv_params(&mut self, name: &str) -> Result<Tensor> {
        self.input(name, DType::I32, [KvParams::LEN as i64, 1])
    }

    /// A mask for [`attention`](Self::attention), F16 `[n_kv, n_rows]`, from `params` I32 `[8]`: 0 where row
    /// `i` may see slot `s`, minus infinity elsewhere. One mask serves all layers of a kind.
    pub fn kv_mask(&mut self, params: &Tensor, mask: KvMask) -> Result<Tensor> {
        const OP: &str = "kv_mask";
        self.admit(OP, &[params])?;
        let small = |n: u32| i32::try_from(n).ok();
        let bytes = mask.n_kv.checked_mul(mask.n_rows).and_then(|n| n.checked_mul(2));
        let fits = params.dtype() == DType::I32
            && params.ne() == [KvParams::LEN as i64, 1, 1, 1]
            && params.is_contiguous()
            && mask.n_kv > 0
            && mask.n_rows > 0
            && bytes.is_some();
        let (Some(ring), Some(window), true) = (small(mask.ring), small(mask.window), fits) else {
            return misuse(OP, format!("{mask:?} from {params:?}"));
        };
        let flags = if mask.causal { sys::GGML_KV_MASK_CAUSAL as i32 } else { 0 };
        // SAFETY: the source is alive; all that the constructor asserts was checked.
        let raw = unsafe {
            sys::ggml_kv_mask(self.arena.ctx(), params.raw(), mask.n_kv, mask.n_rows, ring, window, flags)
        };
        self.made(raw, OP)
    }

    /// As [`attention`](Self::attention) over a linear cache with causal queries: sees what [`kv_mask`](Self::kv_mask)
    /// with neither ring nor window would say of `params` I32 `[8]`, without a mask. Only for devices of which
    /// [`attends_causally`](super::Device::attends_causally) is true.
    pub fn attention_causal(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        params: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        const OP: &str = "flash_attn_ext (causal)";
        self.admit(OP, &[params])?;
        let fits = params.dtype() == DType::I32
            && params.ne() == [KvParams::LEN as i64, 1, 1, 1]
            && params.is_contiguous();
        require(fits, OP, || format!("{params:?}"))?;
        let node = self.attention(q, k, v, None, scale)?;
        // SAFETY: a fresh attention node without a mask; what the function asserts of `params` was checked.
        unsafe { sys::ggml_flash_attn_ext_set_causal(node.raw(), params.raw()) };
        Ok(node)
    }

    /// Makes the attention node `node` block-sparse over a linear cache. `params` I32 `[8]` must hold the
    /// [`KvParams`] of the step; the node's mask must say the same, or the node be causal by them. Backends without it compute dense attention.
    /// With `report`, value 0 of each row is the share of the softmax that is read, value 1 that of the keys.
    pub fn block_sparse(
        &mut self,
        node: &Tensor,
        params: &Tensor,
        sparse: BlockSparse,
        report: bool,
    ) -> Result<()> {
        const OP: &str = "flash_attn_ext (block-sparse)";
        self.admit(OP, &[params])?;
        // SAFETY: the node is alive; all fields are plain.
        let (op, taken) = unsafe {
            let causal = sys::ggml_flash_attn_ext_get_causal(node.raw());
            ((*node.raw()).op, !(*node.raw()).src[5].is_null() && causal != params.raw().cast_const())
        };
        let small = |n: u32| i32::try_from(n).ok();
        let fits = op == sys::GGML_OP_FLASH_ATTN_EXT
            && !taken
            && std::sync::Arc::ptr_eq(node.arena(), &self.arena)
            && params.dtype() == DType::I32
            && params.ne() == [KvParams::LEN as i64, 1, 1, 1]
            && params.is_contiguous()
            && sparse.block > 0;
        let sizes = [sparse.block, sparse.sink, sparse.window, sparse.last_full].map(small);
        let ([Some(block), Some(sink), Some(window), Some(last_full)], true) = (sizes, fits) else {
            return misuse(OP, format!("{sparse:?} of {node:?} from {params:?}"));
        };
        let options = sys::ggml_block_sparse {
            alpha: sparse.alpha,
            block,
            sink,
            window,
            last_full,
            report: report.into(),
        };
        // SAFETY: all that the function asserts was checked; the node is this builder's own.
        unsafe { sys::ggml_flash_attn_ext_set_block_sparse(node.raw(), params.raw(), &options) };
        Ok(())
    }

    /// The signed rotation of `x` `[n, m]`, or its inverse: a product with `matrix` F32 `[n, n]`, which must
    /// hold [`signed_hadamard`] of the same direction. Backends that know the hint transform in `n log n`
    /// steps and do not read the matrix.
    pub fn hadamard_signed(&mut self, matrix: &Tensor, x: &Tensor, inverse: bool) -> Result<Tensor> {
        const OP: &str = "mul_mat (signed Hadamard)";
        let (n, v) = (matrix.ne(), x.ne());
        let fits = n == [n[0], n[0], 1, 1]
            && u32::try_from(n[0]).is_ok_and(u32::is_power_of_two)
            && v[0] == n[0]
            && x.is_contiguous()
            && matrix.dtype() == DType::F32;
        require(fits, OP, || format!("{matrix:?} and {x:?}"))?;
        let product = self.mul_mat(matrix, x)?;
        let hint = match inverse {
            false => sys::GGML_HINT_SRC0_IS_SIGNED_HADAMARD,
            true => sys::GGML_HINT_SRC0_IS_SIGNED_HADAMARD_INVERSE,
        };
        // SAFETY: sets a parameter of a matrix product that only this builder knows.
        unsafe { sys::ggml_mul_mat_set_hint(product.raw(), hint) };
        Ok(product)
    }
}

/// Whether the signed rotation negates value `i` of a group.
fn is_negated(i: u32) -> bool {
    (i & (i >> 1) & 0x55).count_ones() % 2 == 1
}

/// The matrix of the signed rotation over groups of `n` values, a power of two, row by row: `H diag(s) / sqrt(n)`
/// with Sylvester's `H`; inverse `diag(s) H / sqrt(n)`.
pub(crate) fn signed_hadamard(n: u32, inverse: bool) -> Vec<f32> {
    let scale = 1.0 / (n as f32).sqrt();
    let entry = |row: u32, column: u32| {
        let odd = (row & column).count_ones() % 2 == 1;
        if odd != is_negated(if inverse { row } else { column }) { -scale } else { scale }
    };
    (0..n).flat_map(|row| (0..n).map(move |column| entry(row, column))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::{Backend, CancelFlag, Device, Engine};
    use half::f16;

    fn engine() -> Engine {
        let cancel = CancelFlag::default();
        let cpu = Backend::new(Device::cpu().unwrap(), 2, &cancel).unwrap();
        let mut engine = Engine::new(vec![cpu], cancel).unwrap();
        engine.add_slot(64).unwrap();
        engine
    }

    #[test]
    fn masks_of_a_ring() {
        let mut engine = engine();
        let mut g = GraphBuilder::new(16).unwrap();
        let params = g.kv_params("params").unwrap();
        let shape = KvMask { n_kv: 8, n_rows: 4, ring: 8, window: 4, causal: true };
        let mask = g.kv_mask(&params, shape).unwrap();
        g.output("mask", &mask).unwrap();
        engine.load(0, g.finish().unwrap()).unwrap();
        let step = KvParams { q_pos0: 8, kv_end: 11, n_q: 3, ..KvParams::default() };
        engine.write(0, &params, &step.words()).unwrap();
        engine.compute(0).unwrap();
        let mut got = vec![f16::ZERO; 32];
        engine.read(0, &mask, &mut got).unwrap();
        // The last row is padding.
        for (row, seen) in [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [7, 0, 1, 2]].iter().enumerate() {
            for slot in 0..8 {
                let want = if seen.contains(&slot) { f16::ZERO } else { f16::NEG_INFINITY };
                assert_eq!(got[row * 8 + slot], want, "row {row}, slot {slot}");
            }
        }
    }

    #[test]
    fn masks_that_ggml_would_abort_on_are_errors() {
        let mut g = GraphBuilder::new(16).unwrap();
        let params = g.kv_params("params").unwrap();
        let short = g.input("short", DType::I32, [7, 1]).unwrap();
        let wrong = g.input("wrong", DType::F32, [8, 1]).unwrap();
        let good = KvMask { n_kv: 8, n_rows: 1, ring: 0, window: 0, causal: true };
        assert!(g.kv_mask(&params, good).is_ok());
        assert!(g.kv_mask(&short, good).is_err());
        assert!(g.kv_mask(&wrong, good).is_err());
        assert!(g.kv_mask(&params, KvMask { n_kv: 0, ..good }).is_err());
        assert!(g.kv_mask(&params, KvMask { n_rows: i64::MAX, ..good }).is_err());
        assert!(g.kv_mask(&params, KvMask { ring: u32::MAX, ..good }).is_err());
    }

    #[test]
    fn rotation_and_inverse_are_the_matrix_and_cancel() {
        let mut engine = engine();
        for n in [64u32, 256, 512] {
            let mut g = GraphBuilder::new(16).unwrap();
            let size = i64::from(n);
            let forward = g.input("forward", DType::F32, [size, size]).unwrap();
            let backward = g.input("backward", DType::F32, [size, size]).unwrap();
            let x = g.input("x", DType::F32, [size, 3]).unwrap();
            let y = g.hadamard_signed(&forward, &x, false).unwrap();
            let z = g.hadamard_signed(&backward, &y, true).unwrap();
            // The same products without the hint.
            let y_plain = g.mul_mat(&forward, &x).unwrap();
            let z_plain = g.mul_mat(&backward, &y).unwrap();
            for t in [&y, &z, &y_plain, &z_plain] {
                g.output("result", t).unwrap();
            }
            engine.load(0, g.finish().unwrap()).unwrap();
            let data: Vec<f32> = (0..3 * n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            engine.write(0, &forward, &signed_hadamard(n, false)).unwrap();
            engine.write(0, &backward, &signed_hadamard(n, true)).unwrap();
            engine.write(0, &x, &data).unwrap();
            engine.compute(0).unwrap();
            let read = |t: &Tensor| {
                let mut out = vec![0f32; 3 * n as usize];
                engine.read(0, t, &mut out).unwrap();
                out
            };
            let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 4e-6);
            assert!(close(&read(&y), &read(&y_plain)), "forward, {n}");
            assert!(close(&read(&z), &read(&z_plain)), "inverse, {n}");
            assert!(close(&read(&z), &data), "round trip, {n}");
        }
    }
}
