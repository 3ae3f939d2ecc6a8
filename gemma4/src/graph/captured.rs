//! Results of the target's last step that a drafter reads, in the device's memory.

use crate::Result;
use crate::ggml::{DType, Device, Storage, StorageBuilder, Tensor};
use crate::model::HParams;
use std::ops::Range;

/// What the target's graphs keep of every step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CaptureNeeds {
    /// The hidden state after the last norm.
    pub hidden: bool,
    /// Layers of the target, counted from 0, whose outputs are kept, side by side in this order.
    pub layers: Vec<u32>,
}

/// Where a session's target graphs leave what its drafter needs. Row `i` belongs to token `i` of the last step.
pub(crate) struct Captured {
    /// Hidden states after the last norm, F32 `[n_embd, n_batch]`.
    hidden: Option<Tensor>,
    /// Outputs of the captured layers, F32 `[n_embd * n_tap, n_batch]`.
    features: Option<Tensor>,
    layers: Vec<u32>,
    hidden_rows: Range<u32>,
    storage: Storage,
}

impl Captured {
    /// Allocates what `needs` asks for, for steps of up to `n_batch` tokens.
    pub fn new(needs: &CaptureNeeds, hparams: &HParams, n_batch: u32, device: &Device) -> Result<Captured> {
        let (builder, hidden, features) = Self::layout(needs, hparams, n_batch)?;
        let storage = builder.allocate(device, "the features for the drafter", "use a smaller n_batch")?;
        Ok(Captured { hidden, features, layers: needs.layers.clone(), hidden_rows: 0..0, storage })
    }

    /// The same without memory, for measuring, and the bytes that it would take.
    pub fn pretend(
        needs: &CaptureNeeds,
        hparams: &HParams,
        n_batch: u32,
        device: &Device,
    ) -> Result<(Captured, u64)> {
        let (builder, hidden, features) = Self::layout(needs, hparams, n_batch)?;
        let (storage, n_bytes) = builder.pretend(device)?;
        Ok((Captured { hidden, features, layers: needs.layers.clone(), hidden_rows: 0..0, storage }, n_bytes))
    }

    #[allow(clippy::type_complexity)] // used twice, just above
    fn layout(
        needs: &CaptureNeeds,
        hparams: &HParams,
        n_batch: u32,
    ) -> Result<(StorageBuilder, Option<Tensor>, Option<Tensor>)> {
        let mut builder = StorageBuilder::state(2)?;
        let mut tensor = |name, width: u64| {
            builder.tensor(name, DType::F32, [width * u64::from(hparams.n_embd), u64::from(n_batch), 1, 1])
        };
        let hidden = if needs.hidden { Some(tensor("captured_hidden", 1)?) } else { None };
        let features = match needs.layers.len() {
            0 => None,
            n => Some(tensor("captured_features", n as u64)?),
        };
        Ok((builder, hidden, features))
    }

    /// Hidden states after the last norm, F32 `[n_embd, n_batch]`.
    pub fn hidden(&self) -> Option<&Tensor> {
        self.hidden.as_ref()
    }

    /// Outputs of the captured layers, F32 `[n_embd * n_tap, n_batch]`.
    pub fn features(&self) -> Option<&Tensor> {
        self.features.as_ref()
    }

    /// The captured layers, in the order of the features.
    pub fn layers(&self) -> &[u32] {
        &self.layers
    }

    /// Rows of the last step whose hidden states are there.
    pub fn hidden_rows(&self) -> Range<u32> {
        self.hidden_rows.clone()
    }

    /// Says which rows of the last step have hidden states.
    pub fn set_hidden_rows(&mut self, rows: Range<u32>) {
        self.hidden_rows = rows;
    }

    /// Bytes allocated.
    pub fn n_bytes(&self) -> u64 {
        self.storage.n_bytes()
    }
}
