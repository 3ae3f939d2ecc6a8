//! The MTP assistant: a chain of draft steps in one graph.
//!
//! Every step joins the target's embedding of a token with a hidden state, and its layers attend to the
//! target's caches as they are. All steps ask at the same position, one past the newest key: nothing is
//! written. The token that a step chooses, and its hidden state, are the input of the next.

use super::inputs::{Inputs, KindInputs, causal_mask};
use super::{Build, Shape};
use crate::Result;
use crate::cache::{CacheState, KvCache, LayerKind};
use crate::ggml::{DType, Engine, Graph, GraphBuilder, KvParams, Tensor};
use crate::model::{Assistant, Model, Ordered};

/// How an assistant's graph chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MtpMode {
    /// The likeliest token of each step goes into the next.
    Chain,
    /// One step, from the target's hidden state, whose token is chosen from outside among the given number of
    /// likely ones. Hands the hidden state on.
    First(u32),
    /// Another such step, from the hidden state that the one before it handed on.
    Next(u32),
}

/// What an assistant's graph computes: the key under which it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MtpShape {
    pub mode: MtpMode,
    /// Steps; one unless they are a chain.
    pub n: u32,
    /// Slots of the target's full-attention caches that are looked at.
    pub view_full: u32,
    /// Slots of the target's sliding-window caches that are looked at.
    pub view_swa: u32,
    /// Whether the values between are kept for reading.
    pub trace: bool,
}

/// The data of one computation.
pub(crate) struct MtpInputs<'a> {
    /// The newest token, which the target has not computed.
    pub token: u32,
    /// Column of the hidden states that produced it.
    pub row: u32,
    /// The target's cache, which holds all positions before the token's.
    pub state: &'a CacheState,
}

/// A chain of steps, and where its results are.
pub(crate) struct MtpGraph {
    pub shape: MtpShape,
    /// Token, position and masks of the first step; all but the token hold for the others too.
    inputs: Inputs,
    /// I32 `[1]`
    row: Tensor,
    /// Chosen tokens of a chain, I32 `[n]`, or likely ones of a step, in no order.
    pub tokens: Tensor,
    /// Their probabilities, F32.
    pub p: Tensor,
    /// One entry a step, if kept.
    pub trace: Vec<MtpTrace>,
}

/// Values within one step.
pub(crate) struct MtpTrace {
    /// Scores: of all tokens, or of the candidates of the ordered head.
    pub logits: Tensor,
    /// The ids that belong to them; absent if they are all tokens.
    pub ids: Option<Tensor>,
    /// `[n_embd, 1]`, after the last norm.
    pub hidden: Tensor,
    /// `[n_embd_target, 1]`, the next step's input.
    pub hidden_out: Tensor,
}

/// Scores of one step.
struct Scores {
    logits: Tensor,
    ids: Option<Tensor>,
}

impl MtpGraph {
    /// Tensors that a chain of `n` steps may have.
    pub fn max_nodes(assistant: &Assistant, n: u32) -> usize {
        64 + n as usize * (48 + 64 * assistant.layers.len())
    }

    /// Builds a graph over the target's `cache`. `hidden` are the target's hidden states
    /// `[n_embd_target, rows]`; `handed` is the session's place for what one step hands to the next,
    /// `[n_embd_target, 1]`.
    pub fn build(
        target: &Model,
        assistant: &Assistant,
        cache: &KvCache,
        hidden: &Tensor,
        handed: &Tensor,
        shape: MtpShape,
    ) -> Result<(Graph, MtpGraph)> {
        let mut g = GraphBuilder::new(Self::max_nodes(assistant, shape.n))?;
        let inputs = declare(&mut g, &shape, cache)?;
        let row = g.input("row", DType::I32, [1, 1])?;
        let (view_full, view_swa) = (shape.view_full, shape.view_swa);
        let one = Shape {
            n_tokens: 1,
            view_full,
            view_swa,
            n_rows: 1,
            keep_layers: false,
            picks: None,
            row_views: None,
        };
        let mut b = Build { g, hparams: &assistant.hparams, cache, captured: None, inputs, shape: one };

        let from = if matches!(shape.mode, MtpMode::Next(_)) { handed } else { hidden };
        let mut state = b.g.get_rows(from, &row)?;
        let mut token = b.inputs.tokens.clone();
        let (mut tokens, mut p, mut trace) = (None, None, Vec::new());
        for i in 0..shape.n {
            let hidden = b.step(target, assistant, &token, &state)?;
            state = b.linear(&assistant.post, &hidden)?;
            let scores = match &assistant.ordered {
                Some(ordered) => b.ordered_scores(assistant, ordered, &hidden)?,
                None => Scores { logits: b.g.mul_mat(&assistant.token_embd, &hidden)?, ids: None },
            };
            let (best, probability) = match shape.mode {
                MtpMode::Chain => b.best(&scores)?,
                MtpMode::First(k) | MtpMode::Next(k) => {
                    let copy = b.g.copy_to(&state, handed, 0, 0)?;
                    b.g.expand(&copy)?;
                    b.likely(&scores, k)?
                }
            };
            if shape.trace {
                b.g.output(&format!("logits_{i}"), &scores.logits)?;
                b.g.output(&format!("hidden_{i}"), &hidden)?;
                b.g.output(&format!("hidden_out_{i}"), &state)?;
                if let Some(ids) = &scores.ids {
                    b.g.output(&format!("ids_{i}"), ids)?;
                }
                trace.push(MtpTrace {
                    logits: scores.logits,
                    ids: scores.ids,
                    hidden,
                    hidden_out: state.clone(),
                });
            }
            tokens = Some(b.append(tokens, &best)?);
            p = Some(b.append(p, &probability)?);
            token = best;
        }
        let (Some(tokens), Some(p)) = (tokens, p) else {
            return Err(crate::Error::Ggml { op: "mtp", why: "a chain of no steps".into() });
        };
        b.g.output("tokens", &tokens)?;
        b.g.output("p", &p)?;
        let Build { g, inputs, .. } = b;
        Ok((g.finish()?, MtpGraph { shape, inputs, row, tokens, p, trace }))
    }

    /// Writes all inputs of the graph in `slot`.
    pub fn write(&self, engine: &mut Engine, slot: usize, data: &MtpInputs<'_>) -> Result<()> {
        let position = data.state.committed() as i32;
        engine.write(slot, &self.inputs.tokens, &[data.token as i32])?;
        engine.write(slot, &self.inputs.positions, &[position])?;
        engine.write(slot, &self.row, &[data.row as i32])?;
        // The query stands one past the newest key.
        let params = KvParams { q_pos0: position, kv_end: position, n_q: 1, ..KvParams::default() };
        engine.write(slot, &self.inputs.kv_params, &params.words())
    }
}

/// The inputs of a target graph of one token that writes nothing.
fn declare(g: &mut GraphBuilder, shape: &MtpShape, cache: &KvCache) -> Result<Inputs> {
    let kind = |kind: LayerKind, view: u32| KindInputs::reading(causal_mask(cache.geometry(kind), view, 1));
    Ok(Inputs {
        sparse: None,
        kv_params: g.kv_params("kv_params")?,
        tokens: g.input("token", DType::I32, [1, 1])?,
        positions: g.input("position", DType::I32, [1, 1])?,
        full: kind(LayerKind::Full, shape.view_full),
        swa: kind(LayerKind::Swa, shape.view_swa),
        rows: None,
    })
}

impl Build<'_> {
    /// From a token and the hidden state before it to the assistant's own hidden state `[n_embd, 1]`.
    fn step(
        &mut self,
        target: &Model,
        assistant: &Assistant,
        token: &Tensor,
        state: &Tensor,
    ) -> Result<Tensor> {
        let e = self.g.get_rows(&target.weights().token_embd, token)?;
        let e = self.g.scale(&e, (target.hparams().n_embd as f32).sqrt())?;
        let joined = self.g.concat(&e, state)?;
        let mut x = self.linear(&assistant.pre, &joined)?;
        for (il, layer) in assistant.layers.iter().enumerate() {
            let out = self.layer(layer, assistant.rope_freqs.as_ref(), il, None, &x)?;
            // A layer without rows would have none; here every row is wanted.
            let Some(out) = out else { break };
            x = out;
        }
        self.norm(&x, &assistant.output_norm)
    }

    /// Scores of the tokens that belong to the centroids nearest to `hidden`.
    fn ordered_scores(
        &mut self,
        assistant: &Assistant,
        ordered: &Ordered,
        hidden: &Tensor,
    ) -> Result<Scores> {
        let (n, k) = (i64::from(ordered.n), i64::from(ordered.top_k));
        let each = i64::from(assistant.hparams.n_vocab) / n;
        let near = self.g.mul_mat(&ordered.centroids, hidden)?;
        let near = self.g.top_k(&near, k)?;
        let near = self.g.reshape(&near, [k, 1, 1])?;
        let table = self.g.reshape(&ordered.ordering, [each, n, 1])?;
        let ids = self.g.get_rows(&table, &near)?;
        let ids = self.g.reshape(&ids, [each * k, 1, 1])?;
        let rows = self.g.get_rows(&assistant.token_embd, &ids)?;
        Ok(Scores { logits: self.g.mul_mat(&rows, hidden)?, ids: Some(ids) })
    }

    /// The best token, I32 `[1]`, and its probability, F32 `[1]`.
    fn best(&mut self, scores: &Scores) -> Result<(Tensor, Tensor)> {
        let at = self.g.argmax(&scores.logits)?;
        self.look_up(scores, &at)
    }

    /// The `k` likeliest tokens, or all if there are fewer: I32 `[k]`, and their probabilities, F32 `[k]`.
    fn likely(&mut self, scores: &Scores, k: u32) -> Result<(Tensor, Tensor)> {
        let k = i64::from(k).min(scores.logits.ne()[0]);
        let at = self.g.top_k(&scores.logits, k)?;
        let at = self.g.reshape(&at, [k, 1, 1])?;
        self.look_up(scores, &at)
    }

    /// Tokens and probabilities of the scores at `at`, I32 `[k]`.
    fn look_up(&mut self, scores: &Scores, at: &Tensor) -> Result<(Tensor, Tensor)> {
        let (n, k) = (scores.logits.ne()[0], at.ne()[0]);
        let p = self.g.soft_max(&scores.logits)?;
        let p = self.g.reshape(&p, [1, n, 1])?;
        let p = self.g.get_rows(&p, at)?;
        let p = self.g.reshape(&p, [k, 1, 1])?;
        let Some(ids) = &scores.ids else { return Ok((at.clone(), p)) };
        let ids = self.g.reshape(ids, [1, n, 1])?;
        let ids = self.g.get_rows(&ids, at)?;
        Ok((self.g.reshape(&ids, [k, 1, 1])?, p))
    }

    fn append(&mut self, list: Option<Tensor>, item: &Tensor) -> Result<Tensor> {
        match list {
            Some(list) => self.g.concat(&list, item),
            None => Ok(item.clone()),
        }
    }
}
