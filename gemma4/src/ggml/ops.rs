//! The operations that the graphs use.
//!
//! Each function checks what ggml's constructor, and the kernel behind it, would assert. Shapes are ggml's
//! order, fastest first. Results are F32 unless the text says otherwise.

use super::graph::GraphBuilder;
use super::tensor::{Role, Tensor};
use super::{DType, misuse};
use crate::Result;
use ggml_sys as sys;

/// Parameters of rotary position embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RopeParams {
    /// Leading values of each head that take part; pairs are `(i, i + n_dims / 2)`.
    pub n_dims: u32,
    /// Base of the angles: `pos * freq_base^(-2i / n_dims)`.
    pub freq_base: f32,
}

/// The lower bound of a routing weight sum, as in upstream: the smallest normal half float.
const MIN_ROUTING_SUM: f32 = 6.103_515_6e-5;

pub(super) fn require(ok: bool, op: &'static str, why: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { misuse(op, why()) }
}

/// Whether `b` can be repeated to the shape of `a`.
fn repeats(a: &Tensor, b: &Tensor) -> bool {
    a.ne().iter().zip(b.ne()).all(|(&a, b)| b > 0 && a % b == 0)
}

impl GraphBuilder {
    /// Wraps a constructor's result, made after `admit` and all checks.
    pub(super) fn made(&self, raw: *mut sys::ggml_tensor, op: &'static str) -> Result<Tensor> {
        Tensor::wrap(raw, &self.arena, op)
    }

    /// `a * b`, with `b` repeated to the shape of `a`. F32.
    pub fn mul(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.check_binary("mul", a, b)?;
        // SAFETY: sources are alive and fit.
        let raw = unsafe { sys::ggml_mul(self.arena.ctx(), a.raw(), b.raw()) };
        self.made(raw, "mul")
    }

    /// `a + b`, with `b` repeated to the shape of `a`. F32.
    pub fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.check_binary("add", a, b)?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_add(self.arena.ctx(), a.raw(), b.raw()) };
        self.made(raw, "add")
    }

    /// `a / b`, with `b` repeated to the shape of `a`. F32.
    pub fn div(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.check_binary("div", a, b)?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_div(self.arena.ctx(), a.raw(), b.raw()) };
        self.made(raw, "div")
    }

    fn check_binary(&mut self, op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
        self.admit(op, &[a, b])?;
        let typed = a.dtype() == DType::F32 && b.dtype() == DType::F32;
        require(typed && repeats(a, b) && b.is_contiguous_rows(), op, || format!("{a:?} and {b:?}"))
    }

    pub(super) fn check_unary(&mut self, op: &'static str, a: &Tensor) -> Result<()> {
        self.admit(op, &[a])?;
        require(a.dtype() == DType::F32 && a.is_contiguous(), op, || format!("{a:?} is not contiguous F32"))
    }

    /// `a * factor`.
    pub fn scale(&mut self, a: &Tensor, factor: f32) -> Result<Tensor> {
        self.check_unary("scale", a)?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_scale(self.arena.ctx(), a.raw(), factor) };
        self.made(raw, "scale")
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, a: &Tensor) -> Result<Tensor> {
        self.check_unary("tanh", a)?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_tanh(self.arena.ctx(), a.raw()) };
        self.made(raw, "tanh")
    }

    /// GELU in its tanh form.
    pub fn gelu(&mut self, a: &Tensor) -> Result<Tensor> {
        self.check_unary("gelu", a)?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_gelu(self.arena.ctx(), a.raw()) };
        self.made(raw, "gelu")
    }

    /// `gelu(gate) * up`, one operation.
    pub fn geglu(&mut self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        const OP: &str = "geglu_split";
        self.admit(OP, &[gate, up])?;
        let fits = gate.ne() == up.ne()
            && [gate, up].iter().all(|t| t.dtype() == DType::F32 && t.is_packed_above_rows());
        require(fits, OP, || format!("{gate:?} and {up:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_geglu_split(self.arena.ctx(), gate.raw(), up.raw()) };
        self.made(raw, OP)
    }

    /// `x / sqrt(mean(x^2) + eps)` over ne0.
    pub fn rms_norm(&mut self, a: &Tensor, eps: f32) -> Result<Tensor> {
        const OP: &str = "rms_norm";
        self.admit(OP, &[a])?;
        let fits = a.dtype() == DType::F32 && a.nb()[0] == 4 && eps >= 0.0;
        require(fits, OP, || format!("{a:?}, eps {eps}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_rms_norm(self.arena.ctx(), a.raw(), eps) };
        self.made(raw, OP)
    }

    /// Matrix product: weights `[in, out]` and values `[in, n]` give `[out, n]`.
    pub fn mul_mat(&mut self, weights: &Tensor, x: &Tensor) -> Result<Tensor> {
        const OP: &str = "mul_mat";
        self.admit(OP, &[weights, x])?;
        let (w, v) = (weights.ne(), x.ne());
        let fits = w[0] == v[0]
            && v[2] % w[2] == 0
            && v[3] % w[3] == 0
            && weights.nb()[0] <= weights.nb()[1]
            && x.dtype() == DType::F32
            && x.nb()[0] == 4;
        require(fits, OP, || format!("{weights:?} and {x:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_mul_mat(self.arena.ctx(), weights.raw(), x.raw()) };
        self.made(raw, OP)
    }

    /// Product with a normalised Hadamard matrix `[n, n]` of Sylvester's order: values `[n, m]` to the same.
    /// Backends that know the hint transform in `n log n` steps and do not read the matrix.
    pub fn hadamard(&mut self, matrix: &Tensor, x: &Tensor) -> Result<Tensor> {
        const OP: &str = "mul_mat (Hadamard)";
        let (n, v) = (matrix.ne(), x.ne());
        let fits = n[0] == n[1] && n[0] > 0 && n[0] & (n[0] - 1) == 0 && v[0] == n[0] && x.is_contiguous();
        require(fits && matrix.dtype() == DType::F32, OP, || format!("{matrix:?} and {x:?}"))?;
        let product = self.mul_mat(matrix, x)?;
        // SAFETY: sets a parameter of a matrix product that only this builder knows.
        unsafe { sys::ggml_mul_mat_set_hint(product.raw(), sys::GGML_HINT_SRC0_IS_HADAMARD) };
        Ok(product)
    }

    /// Matrix products with chosen experts: weights `[in, out, n_expert]`, values `[in, 1 or k, n]` and ids
    /// I32 `[k, n]` give `[out, k, n]`.
    pub fn mul_mat_id(&mut self, weights: &Tensor, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
        const OP: &str = "mul_mat_id";
        self.admit(OP, &[weights, x, ids])?;
        let (w, v, i) = (weights.ne(), x.ne(), ids.ne());
        let fits = ids.dtype() == DType::I32
            && w[3] == 1
            && v[3] == 1
            && i[2] == 1
            && i[3] == 1
            && i[1] == v[2]
            && w[0] == v[0]
            && i[0] % v[1] == 0
            && i[0] <= w[2]
            && x.dtype() == DType::F32
            && x.nb()[0] == 4;
        require(fits, OP, || format!("{weights:?}, {x:?} and ids {ids:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_mul_mat_id(self.arena.ctx(), weights.raw(), x.raw(), ids.raw()) };
        self.made(raw, OP)
    }

    /// Rows of `table` `[n, rows, m]` named by `ids` I32 `[k, m]`: `[n, k, m]`. Quantised rows become F32.
    ///
    /// Ids are data, so their range cannot be checked here; the session checks every token it is given.
    pub fn get_rows(&mut self, table: &Tensor, ids: &Tensor) -> Result<Tensor> {
        const OP: &str = "get_rows";
        self.admit(OP, &[table, ids])?;
        let (t, i) = (table.ne(), ids.ne());
        let fits = ids.dtype() == DType::I32 && t[2] == i[1] && t[3] == i[2] && i[3] == 1;
        require(fits, OP, || format!("{table:?} by {ids:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_get_rows(self.arena.ctx(), table.raw(), ids.raw()) };
        self.made(raw, OP)
    }

    /// Writes `rows` `[n, k]` to rows `index` I64 `[k]` of `cache` `[n, slots]`, converting to its type.
    /// Returns a view of the cache; attach it with [`expand`](GraphBuilder::expand).
    pub fn set_rows(&mut self, cache: &Tensor, rows: &Tensor, index: &Tensor) -> Result<Tensor> {
        const OP: &str = "set_rows";
        self.admit(OP, &[cache, rows, index])?;
        require(cache.arena().role() == Role::State, OP, || "the target is not a session's state".into())?;
        let (c, r, i) = (cache.ne(), rows.ne(), index.ne());
        let fits = c[0] == r[0]
            && c[2] == r[2]
            && c[3] == r[3]
            && r[1] == i[0]
            && i[1..] == [1, 1, 1]
            && rows.dtype() == DType::F32
            && index.dtype() == DType::I64
            && cache.is_contiguous_rows()
            && rows.is_contiguous_rows();
        require(fits, OP, || format!("{rows:?} into {cache:?} by {index:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_set_rows(self.arena.ctx(), cache.raw(), rows.raw(), index.raw()) };
        self.made(raw, OP)
    }

    /// Copies `x` `[n, k]` to rows from `row` on, columns from `column` on, of the session's `state`
    /// `[width, rows]`; both F32. Returns a view of `state`; attach it with [`expand`](GraphBuilder::expand).
    pub fn copy_to(&mut self, x: &Tensor, state: &Tensor, row: i64, column: i64) -> Result<Tensor> {
        const OP: &str = "cpy";
        self.admit(OP, &[x, state])?;
        require(state.arena().role() == Role::State, OP, || "the target is not a session's state".into())?;
        let (v, s) = (x.ne(), state.ne());
        let inside =
            |from: i64, n: i64, size: i64| from >= 0 && from.checked_add(n).is_some_and(|end| end <= size);
        let fits = x.dtype() == DType::F32
            && state.dtype() == DType::F32
            && x.is_contiguous_rows()
            && v[2..] == [1, 1]
            && s[2..] == [1, 1]
            && inside(column, v[0], s[0])
            && inside(row, v[1], s[1]);
        require(fits, OP, || format!("{x:?} to row {row}, column {column} of {state:?}"))?;
        let nb = state.nb();
        let offset = row as usize * nb[1] + column as usize * nb[0];
        let place = self.view(state, [v[0], v[1], 1], [nb[1], nb[1] * v[1] as usize], offset)?;
        self.arena.check_room(OP)?;
        // SAFETY: as above; both have the same shape, and the place is the session's to write.
        let raw = unsafe { sys::ggml_cpy(self.arena.ctx(), x.raw(), place.raw()) };
        self.made(raw, OP)
    }

    /// Rotary embedding of `x` `[head_dim, heads, n]` at positions `pos` I32 `[n]`, NEOX pairs. `factors`
    /// F32 `[n_dims / 2]` divide the angles.
    pub fn rope(
        &mut self,
        x: &Tensor,
        pos: &Tensor,
        factors: Option<&Tensor>,
        params: RopeParams,
    ) -> Result<Tensor> {
        const OP: &str = "rope_ext";
        self.admit(OP, &[x, pos])?;
        if let Some(factors) = factors {
            self.admit(OP, &[factors])?;
        }
        let n_dims = i64::from(params.n_dims);
        let fits = pos.dtype() == DType::I32
            && pos.ne()[1..] == [1, 1, 1]
            && x.ne()[2] == pos.ne()[0]
            && x.dtype() == DType::F32
            && x.nb()[0] == 4
            && n_dims % 2 == 0
            && (2..=x.ne()[0]).contains(&n_dims)
            && params.freq_base > 0.0
            && factors
                .is_none_or(|f| f.dtype() == DType::F32 && f.ne()[0] >= n_dims / 2 && f.is_contiguous());
        require(fits, OP, || format!("{x:?} at {pos:?}, factors {factors:?}, {params:?}"))?;
        let factors = factors.map_or(std::ptr::null_mut(), Tensor::raw);
        // SAFETY: as above. No YaRN: scale 1, extrapolation 0, attention factor 1.
        let raw = unsafe {
            sys::ggml_rope_ext(
                self.arena.ctx(),
                x.raw(),
                pos.raw(),
                factors,
                params.n_dims as i32,
                sys::GGML_ROPE_TYPE_NEOX as i32,
                0,
                params.freq_base,
                1.0,
                0.0,
                1.0,
                0.0,
                0.0,
            )
        };
        self.made(raw, OP)
    }

    /// `softmax(scale * k^T q + mask) v`, accumulated in F32: `q` `[d, n, heads]`, `k` and `v`
    /// `[d, n_kv, kv_heads]`, `mask` F16 `[n_kv, n]`, if any, give `[d, heads, n]`. Query heads share KV heads in
    /// consecutive groups.
    pub fn attention(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
        scale: f32,
    ) -> Result<Tensor> {
        const OP: &str = "flash_attn_ext";
        self.admit(OP, &[q, k, v])?;
        self.admit(OP, mask.as_slice())?;
        let (nq, nk, nv) = (q.ne(), k.ne(), v.ne());
        let masks = |mask: &Tensor| {
            mask.ne() == [nk[1], nq[1], 1, 1] && mask.dtype() == DType::F16 && mask.is_contiguous()
        };
        let fits = nq[0] == nk[0]
            && nk == nv
            && nq[2] % nk[2] == 0
            && nq[3] == 1
            && nk[3] == 1
            && mask.is_none_or(masks)
            && q.dtype() == DType::F32
            && q.nb()[0] == 4
            && k.is_contiguous_rows()
            && v.is_contiguous_rows();
        require(fits, OP, || format!("q {q:?}, k {k:?}, v {v:?}, mask {mask:?}"))?;
        // SAFETY: as above; the result is a fresh attention node.
        let raw = unsafe {
            let raw = sys::ggml_flash_attn_ext(
                self.arena.ctx(),
                q.raw(),
                k.raw(),
                v.raw(),
                mask.map_or(std::ptr::null_mut(), Tensor::raw),
                scale,
                0.0,
                0.0,
            );
            if !raw.is_null() {
                sys::ggml_flash_attn_ext_set_prec(raw, sys::GGML_PREC_F32);
            }
            raw
        };
        self.made(raw, OP)
    }

    /// Softmax over ne0.
    pub fn soft_max(&mut self, a: &Tensor) -> Result<Tensor> {
        self.check_unary("soft_max", a)?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_soft_max(self.arena.ctx(), a.raw()) };
        self.made(raw, "soft_max")
    }

    /// Indices of the `k` largest of ne0, largest first: I32 `[k, n]`, a view.
    pub fn argsort_top_k(&mut self, a: &Tensor, k: i64) -> Result<Tensor> {
        const OP: &str = "argsort_top_k";
        self.check_unary(OP, a)?;
        require(k >= 1 && k <= a.ne()[0], OP, || format!("{k} of {a:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_argsort_top_k(self.arena.ctx(), a.raw(), k as i32) };
        self.made(raw, OP)
    }

    /// Sums over ne0, bounded from below so that a division by them is safe: `[1, n]`.
    pub fn routing_sums(&mut self, a: &Tensor) -> Result<Tensor> {
        const OP: &str = "sum_rows";
        self.check_unary(OP, a)?;
        // SAFETY: as above.
        let raw = unsafe {
            let sums = sys::ggml_sum_rows(self.arena.ctx(), a.raw());
            if sums.is_null() {
                sums
            } else {
                sys::ggml_clamp(self.arena.ctx(), sums, MIN_ROUTING_SUM, f32::INFINITY)
            }
        };
        self.made(raw, OP)
    }

    /// The same values, contiguous, in another shape.
    pub fn reshape(&mut self, a: &Tensor, ne: [i64; 3]) -> Result<Tensor> {
        const OP: &str = "reshape";
        self.admit(OP, &[a])?;
        let count = ne.iter().try_fold(1i64, |n, &m| if m > 0 { n.checked_mul(m) } else { None });
        require(a.is_contiguous() && count == Some(a.n_elements()), OP, || format!("{a:?} to {ne:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_reshape_3d(self.arena.ctx(), a.raw(), ne[0], ne[1], ne[2]) };
        self.made(raw, OP)
    }

    /// A window of `a`: shape `ne`, strides `nb` in bytes for dimensions 1 and 2, first byte `offset`.
    pub fn view(&mut self, a: &Tensor, ne: [i64; 3], nb: [usize; 2], offset: usize) -> Result<Tensor> {
        const OP: &str = "view";
        self.admit(OP, &[a])?;
        let inside = (|| {
            let row = a.dtype().row_bytes(u64::try_from(ne[0]).ok()?)? as usize;
            let steps = |n: i64, stride: usize| stride.checked_mul(usize::try_from(n - 1).ok()?);
            let end = offset
                .checked_add(row)?
                .checked_add(steps(ne[1], nb[0])?)?
                .checked_add(steps(ne[2], nb[1])?)?;
            (ne[0] > 0 && end <= a.n_bytes()).then_some(())
        })();
        require(inside.is_some(), OP, || format!("{ne:?} {nb:?} at byte {offset} of {a:?}"))?;
        // SAFETY: as above; the window lies inside the source.
        let raw = unsafe {
            sys::ggml_view_3d(self.arena.ctx(), a.raw(), ne[0], ne[1], ne[2], nb[0], nb[1], offset)
        };
        self.made(raw, OP)
    }

    /// `a` `[n, m, j]` and `b` `[n, m, k]` behind each other: `[n, m, j + k]`. F32.
    pub fn concat_2(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        const OP: &str = "concat";
        self.admit(OP, &[a, b])?;
        let (na, nb) = (a.ne(), b.ne());
        let fits = a.dtype() == DType::F32
            && b.dtype() == DType::F32
            && a.is_contiguous()
            && b.is_contiguous()
            && na[..2] == nb[..2]
            && na[3] == 1
            && nb[3] == 1;
        require(fits, OP, || format!("{a:?} and {b:?}"))?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_concat(self.arena.ctx(), a.raw(), b.raw(), 2) };
        self.made(raw, OP)
    }

    /// Swaps dimensions 1 and 2, as a view.
    pub fn swap_12(&mut self, a: &Tensor) -> Result<Tensor> {
        self.admit("permute", &[a])?;
        // SAFETY: as above; the axes are a permutation.
        let raw = unsafe { sys::ggml_permute(self.arena.ctx(), a.raw(), 0, 2, 1, 3) };
        self.made(raw, "permute")
    }

    /// A contiguous copy.
    pub fn cont(&mut self, a: &Tensor) -> Result<Tensor> {
        self.admit("cont", &[a])?;
        // SAFETY: as above.
        let raw = unsafe { sys::ggml_cont(self.arena.ctx(), a.raw()) };
        self.made(raw, "cont")
    }
}
