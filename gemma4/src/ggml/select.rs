//! Operations that choose among values, join them, or gate them by SiLU: what drafters need besides
//! [`ops`](super::ops).

use super::graph::GraphBuilder;
use super::ops::require;
use super::tensor::Tensor;
use super::{DType, misuse};
use crate::Result;
use ggml_sys as sys;

impl GraphBuilder {
    /// `a` and `b` side by side: `[n, k]` and `[m, k]` give `[n + m, k]`. F32 or I32.
    pub fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        const OP: &str = "concat";
        self.admit(OP, &[a, b])?;
        let fits = a.dtype() == b.dtype()
            && [DType::F32, DType::I32].contains(&a.dtype())
            && a.ne()[1..] == b.ne()[1..]
            && a.is_contiguous()
            && b.is_contiguous();
        require(fits, OP, || format!("{a:?} and {b:?}"))?;
        // SAFETY: sources are alive and fit.
        let raw = unsafe { sys::ggml_concat(self.arena.ctx(), a.raw(), b.raw(), 0) };
        self.made(raw, OP)
    }

    /// Index of the largest value of every row of `a` `[n, m]`: I32 `[m]`.
    pub fn argmax(&mut self, a: &Tensor) -> Result<Tensor> {
        const OP: &str = "argmax";
        self.check_unary(OP, a)?;
        let fits = a.ne()[2..] == [1, 1] && i32::try_from(a.ne()[0]).is_ok();
        require(fits, OP, || format!("{a:?} is no matrix of rows that an I32 can index"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_argmax(self.arena.ctx(), a.raw()) };
        self.made(raw, OP)
    }

    /// Indices of the `k` largest values of every row of `a` `[n, m]`, in no order: I32 `[k, m]`.
    pub fn top_k(&mut self, a: &Tensor, k: i64) -> Result<Tensor> {
        const OP: &str = "top_k";
        self.check_unary(OP, a)?;
        let Ok(count) = i32::try_from(k) else { return misuse(OP, format!("{k} of {a:?}")) };
        let fits = k >= 1 && k <= a.ne()[0] && i32::try_from(a.ne()[0]).is_ok();
        require(fits, OP, || format!("{k} of {a:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_top_k(self.arena.ctx(), a.raw(), count) };
        self.made(raw, OP)
    }

    /// `silu(gate) * up`, one operation.
    pub fn swiglu(&mut self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        const OP: &str = "swiglu_split";
        self.admit(OP, &[gate, up])?;
        let fits = gate.ne() == up.ne()
            && [gate, up].iter().all(|t| t.dtype() == DType::F32 && t.is_packed_above_rows());
        require(fits, OP, || format!("{gate:?} and {up:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_swiglu_split(self.arena.ctx(), gate.raw(), up.raw()) };
        self.made(raw, OP)
    }
}
