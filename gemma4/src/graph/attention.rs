//! Self-attention of one layer.

use super::Build;
use super::inputs::is_plain_causal;
use crate::cache::{BlockRotation, LayerKv, Transform};
use crate::ggml::{Device, GraphBuilder, Tensor};
use crate::model::{Layer, LayerParams, Linear, Qkv};
use crate::{Error, Result};

/// Gemma 4 normalises queries and keys instead of scaling their product.
const SCALE: f32 = 1.0;

impl Build<'_> {
    /// Writes the layer's keys and values of the new positions, if it has its own, and returns the
    /// rotated queries `[head_dim, n_head, T]`. `h` is the normed input `[n_embd, T]`.
    pub fn project(
        &mut self,
        layer: &Layer,
        params: &LayerParams,
        rope_freqs: Option<&Tensor>,
        cache: &LayerKv,
        h: &Tensor,
    ) -> Result<Tensor> {
        let (q, kv) = self.qkv(layer, params, h)?;
        // The products first and side by side, then what becomes of them: CUDA has one kernel for the latter.
        self.g.expand(&q)?;
        if let Some((k, v, _)) = &kv {
            self.g.expand(k)?;
            self.g.expand(v)?;
        }
        // Only full-attention layers have divisors: "proportional" rope turns a part of the pairs.
        let factors = if params.is_full() { rope_freqs } else { None };
        let positions = self.inputs.positions.clone();
        let q = self.norm(&q, &layer.q_norm)?;
        let q = self.g.rope(&q, &positions, factors, params.rope)?;
        let q = self.rotate(&q, cache.rotation_k.as_ref())?;
        self.g.expand(&q)?;
        let Some((k, v, k_norm)) = kv else { return Ok(q) };

        let Some(slots) = self.inputs.kind(params.kind).slots.clone() else {
            return Err(Error::Ggml { op: "set_rows", why: "a graph that only reads was to write".into() });
        };
        let row = [i64::from(params.n_embd_kv()), self.n_tokens(), 1];
        // Values take no part in the rotation and have no weight, also where they are the raw keys.
        let v = self.g.rms_norm(&v, self.hparams.eps)?;
        let v = self.rotate(&v, cache.rotation_v.as_ref())?;
        let v = self.g.reshape(&v, row)?;
        let write = self.g.set_rows(&cache.v, &v, &slots)?;
        self.g.expand(&write)?;
        let k = self.norm(&k, &k_norm)?;
        let k = self.g.rope(&k, &positions, factors, params.rope)?;
        let k = self.rotate(&k, cache.rotation_k.as_ref())?;
        // A view and not a reshape: CUDA fuses rope, view and set_rows.
        let k = self.g.view(&k, row, [k.nb()[2], k.nb()[3]], 0)?;
        let write = self.g.set_rows(&cache.k, &k, &slots)?;
        self.g.expand(&write)?;
        Ok(q)
    }

    /// Attends to the layer's cache, which holds the new positions already: `[head_dim * n_head, T]`.
    pub fn attend(&mut self, params: &LayerParams, cache: &LayerKv, q: &Tensor) -> Result<Tensor> {
        let [q, k, v] = self.attention_views(params, cache, q, self.inputs.kind(params.kind).seen.n_kv)?;
        let views = [&q, &k, &v];
        let sparse = self.inputs.sparse.clone().filter(|_| params.is_full());
        let out = if sparse.is_none() && self.attends_by_row(cache.device, &k, &v) {
            let mask = self.inputs.mask(&mut self.g, params.kind, cache.device)?;
            self.attention_by_row(params.kind, views, &mask, SCALE)?
        } else {
            self.attention(params, cache.device, views, false)?
        };
        if sparse.is_some_and(|sparse| sparse.report) {
            let shares = self.attention(params, cache.device, views, true)?;
            self.g.report(&shares)?;
        }
        self.attended(params, cache, &out)
    }

    /// Attention, block-sparse if the inputs say so. The mask, which is as long as the cache for each token of a chunk,
    /// becomes part of the graph only if `device`, which has the keys, cannot do without.
    fn attention(
        &mut self,
        params: &LayerParams,
        device: Device,
        views: [&Tensor; 3],
        report: bool,
    ) -> Result<Tensor> {
        let sparse = self.inputs.sparse.clone().filter(|_| params.is_full());
        let step = sparse.as_ref().map_or(&self.inputs.kv_params, |sparse| &sparse.params).clone();
        let make_sparse = |g: &mut GraphBuilder, node: &Tensor| match &sparse {
            Some(sparse) => g.block_sparse(node, &step, sparse.options, report),
            None => Ok(()),
        };
        if is_plain_causal(self.cache.geometry(params.kind)) {
            let node = self.g.attention_causal(views, &step, SCALE)?;
            make_sparse(&mut self.g, &node)?;
            if device.attends_causally(&node) {
                return Ok(node);
            }
        }
        let [q, k, v] = views;
        let mask = self.inputs.mask(&mut self.g, params.kind, device)?;
        let node = self.g.attention(q, k, v, Some(&mask), SCALE)?;
        make_sparse(&mut self.g, &node)?;
        Ok(node)
    }
}

impl<I> Build<'_, I> {
    /// As `attend`, with the mask F16 `[n_view, T]` and the scale of the products.
    pub fn attend_masked(
        &mut self,
        params: &LayerParams,
        cache: &LayerKv,
        q: &Tensor,
        mask: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        let [q, k, v] = self.attention_views(params, cache, q, mask.ne()[0])?;
        let out = if self.attends_by_row(cache.device, &k, &v) {
            self.attention_by_row(params.kind, [&q, &k, &v], mask, scale)?
        } else {
            self.g.attention(&q, &k, &v, Some(mask), scale)?
        };
        self.attended(params, cache, &out)
    }

    /// Queries, keys and values as attention wants them.
    fn attention_views(
        &mut self,
        params: &LayerParams,
        cache: &LayerKv,
        q: &Tensor,
        n_view: i64,
    ) -> Result<[Tensor; 3]> {
        let q = self.g.swap_12(q)?;
        let k = self.cache_view(&cache.k, params, n_view)?;
        let v = self.cache_view(&cache.v, params, n_view)?;
        Ok([q, k, v])
    }

    /// The output of attention `[head_dim, n_head, T]`, in the model's own basis and head by head in a row.
    fn attended(&mut self, params: &LayerParams, cache: &LayerKv, out: &Tensor) -> Result<Tensor> {
        let out = self.rotate(out, cache.rotation_out.as_ref())?;
        self.g.reshape(&out, [i64::from(params.n_embd_q()), self.n_tokens(), 1])
    }

    /// Rotates blocks of each head as the cache says, or leaves `x` `[head_dim, heads, T]` as it is. The one
    /// place where it is done, for all that write or read a cache: a cache knows whether it is rotated.
    pub fn rotate(&mut self, x: &Tensor, rotation: Option<&BlockRotation>) -> Result<Tensor> {
        let Some(BlockRotation { transform, matrix }) = rotation else { return Ok(x.clone()) };
        let (n, ne) = (matrix.ne()[0], x.ne());
        let blocks = self.g.reshape(x, [n, x.n_elements() / n, 1])?;
        let rotated = match transform {
            Transform::Plain => self.g.hadamard(matrix, &blocks)?,
            Transform::Signed => self.g.hadamard_signed(matrix, &blocks, false)?,
            Transform::SignedInverse => self.g.hadamard_signed(matrix, &blocks, true)?,
        };
        self.g.reshape(&rotated, [ne[0], ne[1], ne[2]])
    }

    /// The slots that are looked at, by head: `[head_dim, n_view, n_head_kv]`.
    fn cache_view(&mut self, cache: &Tensor, params: &LayerParams, n_view: i64) -> Result<Tensor> {
        let Some(head) = cache.dtype().row_bytes(u64::from(params.head_dim)) else {
            return Err(Error::Ggml { op: "cache_view", why: format!("{cache:?} cannot be cut into heads") });
        };
        let ne = [i64::from(params.head_dim), n_view, i64::from(params.n_head_kv)];
        self.g.view(cache, ne, [cache.nb()[1], head as usize], 0)
    }

    /// Projections by head: `[head_dim, heads, T]` each, and the norm of the keys.
    #[allow(clippy::type_complexity)] // used once, one line above
    fn qkv(
        &mut self,
        layer: &Layer,
        params: &LayerParams,
        h: &Tensor,
    ) -> Result<(Tensor, Option<(Tensor, Tensor, Tensor)>)> {
        let (n_head, n_kv) = (params.n_head, params.n_head_kv);
        match &layer.qkv {
            Qkv::Query { q } => Ok((self.heads(q, h, params, n_head)?, None)),
            Qkv::Split { q, k, v, k_norm } => {
                let q = self.heads(q, h, params, n_head)?;
                let k = self.heads(k, h, params, n_kv)?;
                let v = match v {
                    Some(v) => self.heads(v, h, params, n_kv)?,
                    None => k.clone(),
                };
                Ok((q, Some((k, v, k_norm.clone()))))
            }
            Qkv::Fused { qkv, k_norm } => {
                let all = self.linear(qkv, h)?;
                let mut first = 0;
                let mut part = |heads: u32| {
                    let ne = [i64::from(params.head_dim), i64::from(heads), self.shape.n_tokens.into()];
                    let offset = first;
                    first += 4 * (params.head_dim * heads) as usize;
                    self.g.view(&all, ne, [4 * params.head_dim as usize, all.nb()[1]], offset)
                };
                Ok((part(n_head)?, Some((part(n_kv)?, part(n_kv)?, k_norm.clone()))))
            }
        }
    }

    /// `W h` by head: `[head_dim, heads, T]`.
    pub fn heads(
        &mut self,
        weights: &Linear,
        h: &Tensor,
        params: &LayerParams,
        heads: u32,
    ) -> Result<Tensor> {
        let projected = self.linear(weights, h)?;
        self.g.reshape(&projected, [i64::from(params.head_dim), i64::from(heads), self.n_tokens()])
    }
}
