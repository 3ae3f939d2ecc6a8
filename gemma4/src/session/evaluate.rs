//! Results of every token: for perplexity, reranking, embeddings and tests.

use super::{GraphSlot, Rows, Session};
use crate::{Error, Result};
use std::ops::Range;

/// Most bytes of logits that are computed at once: a large vocabulary would need gigabytes.
const MAX_LOGIT_BYTES: usize = 64 << 20;

/// Results of [`Session::evaluate`]: one row for each token, row after row.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Logits after softcapping: `[n_vocab, n_tokens]`.
    pub logits: Vec<f32>,
    /// Hidden states after the last norm: `[n_embd, n_tokens]`.
    pub hidden: Vec<f32>,
    /// Outputs of every layer: `[n_embd, n_tokens, n_layer]` (all rows of the first layer first); empty
    /// unless asked for.
    pub layers: Vec<f32>,
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// That of the last token.
    Last,
}

/// One chunk's results.
struct Chunk<'a> {
    /// Which of the tokens.
    rows: Range<usize>,
    logits: &'a [f32],
    hidden: &'a [f32],
    /// Outputs of the layers, each `[n_embd, rows]`.
    layers: &'a [Vec<f32>],
}

impl Session {
    /// Adds tokens to the sequence and returns the results of every one of them. `keep_layers` asks for the
    /// output of each layer too.
    ///
    /// A row of logits has one number for each token of the vocabulary: mind the memory, or use
    /// [`score`](Self::score) and [`embed`](Self::embed).
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn evaluate(&mut self, tokens: &[u32], keep_layers: bool) -> Result<Evaluation> {
        let n = tokens.len();
        let n_embd = self.model.hparams().n_embd as usize;
        let n_layer = self.model.hparams().layers.len();
        let mut out = Evaluation {
            layers: vec![0.0; if keep_layers { n * n_embd * n_layer } else { 0 }],
            ..Evaluation::default()
        };
        self.for_each_chunk(tokens, keep_layers, |chunk| {
            out.logits.extend_from_slice(chunk.logits);
            out.hidden.extend_from_slice(chunk.hidden);
            for (il, layer) in chunk.layers.iter().enumerate() {
                let at = (il * n + chunk.rows.start) * n_embd;
                out.layers[at..at + layer.len()].copy_from_slice(layer);
            }
        })?;
        Ok(out)
    }

    /// Adds tokens to the sequence and returns the natural logarithm of each one's probability, given all
    /// before it. The first token of an empty session has none: the result is then one shorter than `tokens`.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let n_vocab = self.model.hparams().n_vocab as usize;
        let mut scores = Vec::with_capacity(tokens.len());
        self.check_tokens(tokens)?;
        self.read_unread()?;
        if let (Some(&first), false) = (tokens.first(), self.logits.is_empty()) {
            scores.push(log_prob(&self.logits, first as usize));
        }
        self.for_each_chunk(tokens, false, |chunk| {
            for (row, logits) in chunk.rows.zip(chunk.logits.chunks_exact(n_vocab)) {
                if let Some(&next) = tokens.get(row + 1) {
                    scores.push(log_prob(logits, next as usize));
                }
            }
        })?;
        Ok(scores)
    }

    /// Adds tokens to the sequence and returns their hidden states as one vector of length 1: `[n_embd]`.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill); [`Error::Option`] without tokens.
    pub fn embed(&mut self, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>> {
        if tokens.is_empty() {
            let why = "there is nothing to embed".into();
            return Err(Error::Option { option: "tokens", value: "none".into(), why });
        }
        let n_embd = self.model.hparams().n_embd as usize;
        let mut sum = vec![0f64; n_embd];
        self.for_each_chunk(tokens, false, |chunk| {
            for row in chunk.hidden.chunks_exact(n_embd) {
                for (sum, &x) in sum.iter_mut().zip(row) {
                    let keep = if pooling == Pooling::Mean { *sum } else { 0.0 };
                    *sum = keep + f64::from(x);
                }
            }
        })?;
        let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        Ok(sum.into_iter().map(|x| (x / norm) as f32).collect())
    }

    /// Runs and commits all tokens, in chunks whose logits fit [`MAX_LOGIT_BYTES`].
    fn for_each_chunk(
        &mut self,
        tokens: &[u32],
        keep_layers: bool,
        mut sink: impl FnMut(Chunk<'_>),
    ) -> Result<()> {
        self.check_tokens(tokens)?;
        self.check_fits(tokens.len())?;
        let (n_vocab, n_embd) = (self.model.hparams().n_vocab as usize, self.model.hparams().n_embd as usize);
        let rows = (MAX_LOGIT_BYTES / 4 / n_vocab).clamp(1, self.state.n_batch() as usize);
        let (mut logits, mut hidden, mut layers) = (Vec::new(), Vec::new(), Vec::new());
        let mut done = 0;
        for chunk in tokens.chunks(rows) {
            self.forget_logits();
            let class = self.step(chunk, Rows::All, keep_layers)?;
            self.commit(chunk);
            let Some(GraphSlot { index, graph: Some(graph) }) = self.slots.get(&class) else { continue };
            if let (Some(logits_out), Some(hidden_out)) = (&graph.logits, &graph.hidden) {
                logits.resize(chunk.len() * n_vocab, 0.0);
                hidden.resize(chunk.len() * n_embd, 0.0);
                self.engine.read(*index, logits_out, &mut logits)?;
                self.engine.read(*index, hidden_out, &mut hidden)?;
            }
            layers.resize(graph.layers.len(), Vec::new());
            for (tensor, layer) in graph.layers.iter().zip(&mut layers) {
                layer.resize(chunk.len() * n_embd, 0.0);
                self.engine.read(*index, tensor, layer)?;
            }
            let rows = done..done + chunk.len();
            done = rows.end;
            sink(Chunk { rows, logits: &logits, hidden: &hidden, layers: &layers });
        }
        if let Some(last) = logits.rchunks_exact(n_vocab).next() {
            let mut last = last.to_vec();
            self.suppress(&mut last);
            self.logits = last;
        }
        Ok(())
    }
}

/// Natural logarithm of the probability of entry `i` under softmax.
fn log_prob(logits: &[f32], i: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
    (f64::from(logits[i] - max) - sum.ln()) as f32
}
