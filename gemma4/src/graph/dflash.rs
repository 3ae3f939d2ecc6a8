//! The DFlash drafter: what it takes from the target's layers, and a block of tokens drafted at once.
//!
//! Two graphs share the drafter's own cache. The context graph fuses the features of committed positions and
//! writes their keys and values. The block graph writes those of the block behind them, so that one attention
//! sees both; the next context overwrites these rows, which belong to no text.

use super::inputs::causal_mask;
use super::{Build, Picked, Picks, Scratch, Shape};
use crate::cache::{CacheState, KvCache, LayerKind, LayerKv};
use crate::ggml::{DType, Engine, Graph, GraphBuilder, KvMask, KvParams, Tensor};
use crate::model::{Activation, Dflash, DflashLayer, LayerParams, Linear, Model};
use crate::{Error, Result};

/// Which places of a block see which.
///
/// Every place sees the context before the block, within the layer's window. Files say nothing about the
/// rest, except that all layers are causal. A wrong rule costs acceptance; the text is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DflashMask {
    /// Sliding-window layers see earlier places of the block, full layers the whole block: z-lab's rule.
    ZLab,
    /// All layers see the whole block: llama.cpp's rule.
    Bidirectional,
    /// All layers see earlier places only.
    Causal,
}

impl DflashMask {
    /// Whether places see later ones in layers of `kind`.
    pub(crate) fn looks_ahead(self, kind: LayerKind) -> bool {
        match self {
            DflashMask::ZLab => kind == LayerKind::Full,
            DflashMask::Bidirectional => true,
            DflashMask::Causal => false,
        }
    }
}

/// Where one kind of layers writes, and what its queries see.
struct KindInputs {
    kind: LayerKind,
    /// Cache slots of the new rows, I64 `[T]`.
    slots: Tensor,
    /// F16 `[n_view, T]`; only blocks have it.
    mask: Option<Tensor>,
}

/// The inputs that both graphs have.
struct Inputs {
    /// I32 `[T]`
    positions: Tensor,
    /// One entry for each kind of layers that the drafter has.
    kinds: Vec<KindInputs>,
    /// What the masks are made from, I32 `[8]`; only blocks have it.
    kv_params: Option<Tensor>,
}

/// What the queries of a block see.
#[derive(Clone, Copy)]
struct Sight<'a> {
    cache: &'a KvCache,
    /// Slots that are looked at, of full and of sliding-window layers.
    views: [u32; 2],
    rule: DflashMask,
}

impl Inputs {
    fn declare(g: &mut GraphBuilder, drafter: &Dflash, n: u32, sight: Option<Sight<'_>>) -> Result<Inputs> {
        let mut kinds = Vec::new();
        let kv_params = match sight {
            Some(_) => Some(g.kv_params("kv_params")?),
            None => None,
        };
        for (i, kind) in [LayerKind::Full, LayerKind::Swa].into_iter().enumerate() {
            if drafter.hparams.layers.iter().any(|layer| layer.kind == kind) {
                let slots = g.input(&format!("slots_{kind:?}"), DType::I64, [n.into(), 1])?;
                let mask = match (sight, &kv_params) {
                    (Some(Sight { cache, views, rule }), Some(params)) => {
                        let causal = causal_mask(cache.geometry(kind), views[i], n);
                        Some(g.kv_mask(params, KvMask { causal: !rule.looks_ahead(kind), ..causal })?)
                    }
                    _ => None,
                };
                kinds.push(KindInputs { kind, slots, mask });
            }
        }
        Ok(Inputs { positions: g.input("positions", DType::I32, [n.into(), 1])?, kinds, kv_params })
    }

    fn kind(&self, kind: LayerKind) -> Result<&KindInputs> {
        let missing = || Error::Ggml { op: "dflash", why: format!("no inputs for {kind:?} layers") };
        self.kinds.iter().find(|inputs| inputs.kind == kind).ok_or_else(missing)
    }

    /// Writes the positions from `first` on, and their slots.
    fn write(
        &self,
        engine: &mut Engine,
        slot: usize,
        state: &CacheState,
        first: u32,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let n = self.positions.ne()[0] as usize;
        scratch.ids.clear();
        scratch.ids.extend((first..).take(n).map(|p| p as i32));
        engine.write(slot, &self.positions, &scratch.ids)?;
        scratch.slots.resize(n, 0);
        for inputs in &self.kinds {
            state.geometry(inputs.kind).fill_slots(&mut scratch.slots, first);
            engine.write(slot, &inputs.slots, &scratch.slots)?;
        }
        Ok(())
    }
}

/// Takes in the features of committed positions.
pub(crate) struct ContextGraph {
    /// First column of the features, and number of columns: the key under which the graph is kept.
    pub rows: [u32; 2],
    inputs: Inputs,
}

impl ContextGraph {
    /// Tensors that a context graph may have.
    pub fn max_nodes(drafter: &Dflash) -> usize {
        64 + 48 * drafter.layers.len()
    }

    /// Builds the graph for `rows` (first, number) of the features `[n_embd_target * taps, n_batch]`.
    pub fn build(
        drafter: &Dflash,
        cache: &KvCache,
        features: &Tensor,
        rows: [u32; 2],
    ) -> Result<(Graph, ContextGraph)> {
        let mut g = GraphBuilder::new(Self::max_nodes(drafter))?;
        let inputs = Inputs::declare(&mut g, drafter, rows[1], None)?;
        let mut b = builder(g, drafter, cache, inputs, rows[1]);
        let nb = features.nb();
        let ne = [features.ne()[0], i64::from(rows[1]), 1];
        let x = b.g.view(features, ne, [nb[1], nb[1] * rows[1] as usize], rows[0] as usize * nb[1])?;
        let x = b.linear(&drafter.fc, &x)?;
        let x = b.norm(&x, &drafter.hidden_norm)?;
        for il in 0..drafter.layers.len() {
            b.write_keys(drafter, il, &x)?;
        }
        let Build { g, inputs, .. } = b;
        Ok((g.finish()?, ContextGraph { rows, inputs }))
    }

    /// Writes all inputs of the graph in `slot`, for positions from `first` on.
    pub fn write(
        &self,
        engine: &mut Engine,
        slot: usize,
        state: &CacheState,
        first: u32,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.inputs.write(engine, slot, state, first, scratch)
    }
}

/// Drafts a block.
pub(crate) struct BlockGraph {
    /// Tokens of the block, the known one included.
    pub n: u32,
    /// Slots that are looked at, of full and of sliding-window layers.
    pub views: [u32; 2],
    /// I32 `[n]`
    tokens: Tensor,
    inputs: Inputs,
    /// I32 `[picks, n - 1]`: row `i` is for place `i + 1`.
    pub ids: Tensor,
    /// F32, the same shape.
    pub p: Tensor,
}

/// The data of one block.
pub(crate) struct BlockInputs<'a> {
    /// The newest token, which the target has not computed.
    pub token: u32,
    pub mask_token: u32,
    /// The drafter's cache.
    pub state: &'a CacheState,
    /// The position of the newest token: everything before it was committed.
    pub first: u32,
    /// The first position whose features were taken in.
    pub start: u32,
}

impl BlockGraph {
    /// Tensors that a block graph may have.
    pub fn max_nodes(drafter: &Dflash) -> usize {
        96 + 80 * drafter.layers.len()
    }

    /// Builds the graph of a block of `n` tokens, at least two.
    pub fn build(
        target: &Model,
        drafter: &Dflash,
        cache: &KvCache,
        n: u32,
        (views, rule): ([u32; 2], DflashMask),
        picks: Picks,
    ) -> Result<(Graph, BlockGraph)> {
        let mut g = GraphBuilder::new(Self::max_nodes(drafter))?;
        let tokens = g.input("tokens", DType::I32, [i64::from(n), 1])?;
        let inputs = Inputs::declare(&mut g, drafter, n, Some(Sight { cache, views, rule }))?;
        let mut b = builder(g, drafter, cache, inputs, n);
        let table = drafter.token_embd.as_ref().unwrap_or(&target.weights().token_embd);
        let x = b.g.get_rows(table, &tokens)?;
        let mut x = b.g.scale(&x, drafter.embd_scale)?;
        for il in 0..drafter.layers.len() {
            x = b.block_layer(drafter, il, &x)?;
        }
        // Place 0 holds what is known already.
        let (n_embd, nb) = (x.ne()[0], x.nb());
        let x = b.g.view(&x, [n_embd, i64::from(n) - 1, 1], [nb[1], nb[2]], nb[1])?;
        let x = b.norm(&x, &drafter.output_norm)?;
        let head = drafter.output.as_ref().unwrap_or(&target.weights().output);
        let logits = b.linear(head, &x)?;
        let logits = b.softcap(logits)?;
        let Picked { ids, p } = b.pick(&logits, picks)?;
        let Build { g, inputs, .. } = b;
        Ok((g.finish()?, BlockGraph { n, views, tokens, inputs, ids, p }))
    }

    /// Writes all inputs of the graph in `slot`.
    pub fn write(
        &self,
        engine: &mut Engine,
        slot: usize,
        data: &BlockInputs<'_>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.inputs.write(engine, slot, data.state, data.first, scratch)?;
        scratch.ids.clear();
        scratch.ids.resize(self.n as usize, data.mask_token as i32);
        scratch.ids[0] = data.token as i32;
        engine.write(slot, &self.tokens, &scratch.ids)?;
        let Some(kv_params) = &self.inputs.kv_params else { return Ok(()) };
        let params = KvParams {
            q_pos0: data.first as i32,
            kv_end: (data.first + self.n) as i32,
            n_q: self.n as i32,
            // What lies before the first features holds nothing.
            first_valid: data.start.min(data.first) as i32,
            ..KvParams::default()
        };
        engine.write(slot, kv_params, &params.words())
    }
}

fn builder<'a>(
    g: GraphBuilder,
    drafter: &'a Dflash,
    cache: &'a KvCache,
    inputs: Inputs,
    n: u32,
) -> Build<'a, Inputs> {
    // Of the shape only the number of tokens is used.
    let shape = Shape {
        n_tokens: n,
        view_full: 0,
        view_swa: 0,
        n_rows: n,
        keep_layers: false,
        picks: None,
        row_views: None,
    };
    Build { g, hparams: &drafter.hparams, cache, captured: None, inputs, shape }
}

impl Build<'_, Inputs> {
    fn own_cache(&self, il: usize) -> Result<LayerKv> {
        let missing = || Error::Ggml { op: "kv_cache", why: format!("drafter layer {il} has no cache") };
        self.cache.layer(il).cloned().ok_or_else(missing)
    }

    /// Writes the keys and values of the layer's input `h` `[n_embd, T]`.
    fn write_keys(&mut self, drafter: &Dflash, il: usize, h: &Tensor) -> Result<()> {
        let (layer, params) = (&drafter.layers[il], &drafter.hparams.layers[il]);
        let cache = self.own_cache(il)?;
        let slots = self.inputs.kind(params.kind)?.slots.clone();
        let positions = self.inputs.positions.clone();
        let row = [i64::from(params.n_embd_kv()), self.n_tokens(), 1];
        let raw = self.heads(&layer.k, h, params, params.n_head_kv)?;
        let mut v = match &layer.v {
            Some(v) => self.heads(v, h, params, params.n_head_kv)?,
            None => self.g.rms_norm(&raw, self.hparams.eps)?,
        };
        if drafter.value_scale != 1.0 {
            v = self.g.scale(&v, drafter.value_scale)?;
        }
        let v = self.rotate(&v, cache.rotation_v.as_ref())?;
        let v = self.g.reshape(&v, row)?;
        let write = self.g.set_rows(&cache.v, &v, &slots)?;
        self.g.expand(&write)?;
        let k = self.norm(&raw, &layer.k_norm)?;
        let k = self.g.rope(&k, &positions, drafter.rope_freqs.as_ref(), params.rope)?;
        let k = self.rotate(&k, cache.rotation_k.as_ref())?;
        let k = self.g.view(&k, row, [k.nb()[2], k.nb()[3]], 0)?;
        let write = self.g.set_rows(&cache.k, &k, &slots)?;
        self.g.expand(&write)
    }

    /// One layer over the block: `[n_embd, T]` to the same.
    fn block_layer(&mut self, drafter: &Dflash, il: usize, x: &Tensor) -> Result<Tensor> {
        let (layer, params) = (&drafter.layers[il], &drafter.hparams.layers[il]);
        let n = self.norm(x, &layer.attn_norm)?;
        let q = self.block_queries(drafter, il, &n)?;
        self.g.expand(&q)?;
        self.write_keys(drafter, il, &n)?;
        let attended = self.block_attention(drafter, params, il, &q)?;
        let attended = self.linear(&layer.attn_output, &attended)?;
        let x = self.g.add(&attended, x)?;
        let m = self.norm(&x, &layer.ffn_norm)?;
        let ffn = self.gated(layer, drafter.activation, &m)?;
        self.g.add(&ffn, &x)
    }

    fn block_queries(&mut self, drafter: &Dflash, il: usize, n: &Tensor) -> Result<Tensor> {
        let (layer, params) = (&drafter.layers[il], &drafter.hparams.layers[il]);
        let rotation = self.own_cache(il)?.rotation_k;
        let positions = self.inputs.positions.clone();
        let q = self.heads(&layer.q, n, params, params.n_head)?;
        let q = self.norm(&q, &layer.q_norm)?;
        let q = self.g.rope(&q, &positions, drafter.rope_freqs.as_ref(), params.rope)?;
        self.rotate(&q, rotation.as_ref())
    }

    fn block_attention(
        &mut self,
        drafter: &Dflash,
        params: &LayerParams,
        il: usize,
        q: &Tensor,
    ) -> Result<Tensor> {
        let cache = self.own_cache(il)?;
        let Some(mask) = self.inputs.kind(params.kind)?.mask.clone() else {
            return Err(Error::Ggml { op: "dflash", why: "a block without masks".into() });
        };
        self.attend_masked(params, &cache, q, &mask, drafter.attn_scale)
    }

    /// `W_down (act(W_gate m) * (W_up m))`
    fn gated(&mut self, layer: &DflashLayer, activation: Activation, m: &Tensor) -> Result<Tensor> {
        let project = |b: &mut Self, weights: &Linear| b.linear(weights, m);
        let (gate, up) = (project(self, &layer.ffn_gate)?, project(self, &layer.ffn_up)?);
        let inner = match activation {
            Activation::Silu => self.g.swiglu(&gate, &up)?,
            Activation::Gelu => self.g.geglu(&gate, &up)?,
        };
        self.linear(&layer.ffn_down, &inner)
    }
}
