//! The networks as graphs. Each file is one piece; all of them only say what is computed.
//!
//! A graph has a fixed topology: everything that changes from one computation to the next (tokens,
//! positions, cache slots, masks, wanted rows) is the data of an input, and all inputs are fields of
//! [`Inputs`]. Cache views grow in steps of 256 slots, so a graph serves 256 tokens before it is built anew.

mod attention;
mod captured;
mod dflash;
mod ffn;
mod inputs;
#[cfg(test)]
mod mask_tests;
mod mtp;
mod per_layer;
mod picks;
mod rows;
mod target;

pub(crate) use captured::{CaptureNeeds, Captured};
pub use dflash::DflashMask;
pub(crate) use dflash::{BlockGraph, BlockInputs, ContextGraph};
pub(crate) use inputs::{Inputs, Scratch, StepInputs};
pub(crate) use mtp::{MtpGraph, MtpInputs, MtpMode, MtpShape};
pub(crate) use picks::{Picked, Picks};
pub(crate) use rows::RowViews;
pub(crate) use target::{TargetGraph, max_nodes};

use crate::Result;
use crate::cache::KvCache;
use crate::ggml::{GraphBuilder, Tensor};
use crate::model::{HParams, Linear};

/// What a graph computes: the key under which it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Positions that are written and queried.
    pub n_tokens: u32,
    /// Slots of the full-attention caches that are looked at.
    pub view_full: u32,
    /// Slots of the sliding-window caches that are looked at.
    pub view_swa: u32,
    /// Rows whose hidden state and logits are wanted; 0 fills the cache only.
    pub n_rows: u32,
    /// Whether every layer's output is kept for reading.
    pub keep_layers: bool,
    /// The tokens of each wanted row that are a result too.
    pub picks: Option<Picks>,
    /// Set where each row attends by itself, so that it computes what a graph of one token would.
    pub row_views: Option<RowViews>,
}

/// A graph under construction, with what all pieces need. `I` are its inputs: those of a target graph, or a
/// drafter's.
pub(crate) struct Build<'a, I = Inputs> {
    pub g: GraphBuilder,
    pub hparams: &'a HParams,
    pub cache: &'a KvCache,
    /// Where results are left for a drafter.
    pub captured: Option<&'a Captured>,
    pub inputs: I,
    pub shape: Shape,
}

impl<I> Build<'_, I> {
    /// `W x`, times the scale that some quantised files keep beside the matrix.
    pub fn linear(&mut self, weights: &Linear, x: &Tensor) -> Result<Tensor> {
        let product = self.g.mul_mat(&weights.weight, x)?;
        match &weights.scale {
            Some(scale) => self.g.mul(&product, scale),
            None => Ok(product),
        }
    }

    /// RMS norm over ne0, times a weight.
    pub fn norm(&mut self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let normed = self.g.rms_norm(x, self.hparams.eps)?;
        self.g.mul(&normed, weight)
    }

    /// Number of tokens, as ggml counts.
    pub fn n_tokens(&self) -> i64 {
        i64::from(self.shape.n_tokens)
    }
}
