//! A model file in memory: hyper-parameters, weights, tokenizer.

mod drafter;
mod fingerprint;
mod hparams;
mod placement;
mod source;
mod tokenizer;
mod weights;

pub(crate) use drafter::{Activation, Assistant, Dflash, DflashLayer, DrafterFile, DrafterKind, Ordered};
pub use hparams::{HParams, LayerParams};
pub(crate) use placement::Placement;
pub use tokenizer::*;
pub(crate) use weights::{GateUp, Layer, LayerInput, Linear, Moe, PerLayerInput, Qkv, Weights};

use crate::chat::{ChatOptions, ChatTemplate, Message};
use crate::ggml::gguf::{GgufSet, Metadata, type_layout};
use crate::ggml::{self, Device};
use crate::{MemoryPlan, Result, Session, SessionOptions};
use placement::Spread;
use source::{WeightBytes, WeightSource};
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a model is loaded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadOptions {
    spread: Spread,
    use_mmap: bool,
    repack: Option<bool>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { spread: Spread::default(), use_mmap: true, repack: None }
    }
}

impl LoadOptions {
    /// The device that holds the weights and computes. Default: the first graphics card, else the CPU.
    #[must_use]
    pub fn device(self, device: Device) -> Self {
        self.devices([device])
    }

    /// Devices that hold the weights and compute, each a run of layers, in this order; the last one has the output
    /// head too. They take turns: several hold a larger model and a longer context than one, and are not faster. The
    /// keys and values of a layer are where its weights are.
    #[must_use]
    pub fn devices(mut self, devices: impl IntoIterator<Item = Device>) -> Self {
        self.spread.devices = devices.into_iter().collect();
        self
    }

    /// Parts of the weights that go to each of the [`devices`](Self::devices): `[3.0, 1.0]` puts three quarters on
    /// the first. Default: by the memory that each has left.
    #[must_use]
    pub fn shares(mut self, shares: impl IntoIterator<Item = f32>) -> Self {
        self.spread.shares = shares.into_iter().collect();
        self
    }

    /// How many layers the devices hold, counted from the last, the output head being one more; the others, with their
    /// keys and values, stay in main memory. 0 leaves everything to the CPU. Default: all.
    ///
    /// Prompts of 32 tokens and more are computed on the device nevertheless: weights travel there as they are needed.
    #[must_use]
    pub fn n_gpu_layers(mut self, n: impl Into<Option<u32>>) -> Self {
        self.spread.n_gpu_layers = n.into();
        self
    }

    /// Of how many layers, counted from the first, the experts stay in main memory, whatever holds the rest of the
    /// layer. They are most of the weights of a mixture of experts, and few of them are used for a token. Default: 0.
    #[must_use]
    pub fn n_cpu_moe(mut self, n: u32) -> Self {
        self.spread.n_cpu_moe = n;
        self
    }

    /// Whether the CPU computes straight from the mapped file (the default) or from a copy in memory. A
    /// mapped file must not be truncated while the model is in use.
    #[must_use]
    pub fn use_mmap(mut self, yes: bool) -> Self {
        self.use_mmap = yes;
        self
    }

    /// Whether the CPU computes from a copy of the matrices in the order that its fastest kernels read. It
    /// quickens prompts with some types (Q4_0, Q4_K, IQ4_NL, MXFP4 on x86-64; Q8_0 too on Arm), and costs
    /// time to load and memory of its own, beside the file that the system keeps. Default: yes if the copy
    /// takes less than three quarters of the memory that is available. Models that are not computed by the CPU alone are
    /// never repacked.
    #[must_use]
    pub fn repack(mut self, yes: impl Into<Option<bool>>) -> Self {
        self.repack = yes.into();
        self
    }
}

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Bytes of weights in place.
    pub done: u64,
    /// Bytes of weights in all.
    pub total: u64,
}

/// A Gemma 4 model in memory. Cheap to clone; sessions on any thread share it.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    path: PathBuf,
    hparams: HParams,
    weights: Weights,
    tokenizer: Tokenizer,
    metadata: Metadata,
    placement: Placement,
    n_bytes: WeightBytes,
    packed_bytes: u64,
    host_bytes: u64,
    fingerprint: u128,
    is_loaded: bool,
}

const _: () = {
    const fn assert<T: Clone + Send + Sync + 'static>() {}
    assert::<Model>();
};

impl Model {
    /// Loads a GGUF file with default options. Of a split file, give the first part.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) and [`Error::Gguf`](crate::Error::Gguf) for files that cannot be read or are malformed, [`Error::Model`](crate::Error::Model)
    /// for files that are no Gemma 4 model or contradict themselves, [`Error::Tokenizer`](crate::Error::Tokenizer),
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Device`](crate::Error::Device).
    pub fn load(path: impl AsRef<Path>) -> Result<Model> {
        Self::load_with(path, &LoadOptions::default(), |_| ControlFlow::Continue(()))
    }

    /// Loads a GGUF file. `progress` is called often; when it breaks, loading stops.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`Error::Cancelled`](crate::Error::Cancelled) when `progress` breaks.
    pub fn load_with(
        path: impl AsRef<Path>,
        options: &LoadOptions,
        mut progress: impl FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Model> {
        let path = path.as_ref();
        let mut report = |done, total| progress(LoadProgress { done, total });
        let model = Self::read(path, options, Some(&mut report))?;
        let (n_bytes, devices) = (model.weight_bytes(), &model.0.placement.devices());
        tracing::info!(path = %path.display(), n_bytes, ?devices, "model loaded");
        Ok(model)
    }

    /// Says what loading a model and starting a [`Session`](crate::Session) will take, on which device, before anything
    /// is taken.
    ///
    /// # Errors
    /// As [`load`](Self::load), but for memory: [`MemoryPlan::check`](crate::MemoryPlan::check) says whether it fits.
    /// [`Error::Option`](crate::Error::Option) for options of the session that cannot work.
    pub fn plan(
        path: impl AsRef<Path>,
        options: &LoadOptions,
        session: &SessionOptions,
    ) -> Result<MemoryPlan> {
        let model = Self::read(path.as_ref(), options, None)?;
        Session::plan(&model, session)
    }

    /// Reads a file. Without anybody to report to, the weights get no memory: the model is for planning only.
    fn read(path: &Path, options: &LoadOptions, report: Option<source::Report<'_>>) -> Result<Model> {
        ggml::init()?;
        let set = GgufSet::open(path, &type_layout)?;
        let metadata = set.metadata().clone();
        let n_vocab = metadata.strings("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len());
        let hparams = HParams::read(&metadata, u32::try_from(n_vocab).unwrap_or(u32::MAX))?;
        let tokenizer = Tokenizer::from_metadata(&metadata)?;
        let placement = Placement::new(&options.spread, &set, hparams.layers.len())?;
        let fingerprint = fingerprint::of(&set)?;
        let (repack, head) = (options.repack.unwrap_or(true) && placement.is_whole(), placement.head());
        let mut source = WeightSource::new(&set, head, options.use_mmap, repack)?;
        let mut weights = Weights::read(&mut source, &hparams, &placement)?;
        if options.repack.is_none() && source.packed_bytes() / 3 > head.memory_available() / 4 {
            tracing::info!(bytes = source.packed_bytes(), "weights are not repacked: too little memory");
            source = WeightSource::new(&set, head, options.use_mmap, false)?;
            weights = Weights::read(&mut source, &hparams, &placement)?;
        }
        let packed_bytes = source.packed_bytes();
        let host_bytes = tokenizer.host_bytes();
        let is_loaded = report.is_some();
        let n_bytes = match report {
            Some(report) => source.load(report)?,
            None => source.pretend()?,
        };
        Ok(Model(Arc::new(Inner {
            path: path.to_owned(),
            hparams,
            weights,
            tokenizer,
            metadata,
            placement,
            n_bytes,
            packed_bytes,
            host_bytes,
            fingerprint,
            is_loaded,
        })))
    }

    /// The file the model came from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Sizes and constants of the network.
    pub fn hparams(&self) -> &HParams {
        &self.0.hparams
    }

    /// The tokenizer of the file.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// The device of the output head: the one that holds the weights, or the last of several.
    pub fn device(&self) -> Device {
        self.0.placement.head()
    }

    /// The devices that hold layers, in the layers' order.
    pub fn devices(&self) -> Vec<Device> {
        self.0.placement.devices()
    }

    /// Which device holds what.
    pub(crate) fn placement(&self) -> &Placement {
        &self.0.placement
    }

    /// Bytes of the weights, in memory or mapped.
    pub fn weight_bytes(&self) -> u64 {
        self.0.n_bytes.total()
    }

    /// Bytes of the weights on `device`.
    pub(crate) fn weight_bytes_on(&self, device: Device) -> u64 {
        self.0.n_bytes.on(device)
    }

    /// Bytes of them that may still have to come into its memory: all before loading, and what is only mapped then.
    pub(crate) fn weight_bytes_to_come(&self, device: Device) -> u64 {
        match (self.0.is_loaded, device.uses_host_memory()) {
            (false, _) => self.weight_bytes_on(device),
            (true, true) => self.0.n_bytes.mapped,
            (true, false) => 0,
        }
    }

    /// Bytes of them that are copies in another order, for the CPU ([`LoadOptions::repack`]).
    pub fn repacked_bytes(&self) -> u64 {
        self.0.packed_bytes
    }

    /// Bytes of main memory that the model takes beside its weights: the tokenizer.
    pub(crate) fn host_bytes(&self) -> u64 {
        self.0.host_bytes
    }

    /// The model's name as its file gives it.
    pub fn name(&self) -> Option<&str> {
        self.0.metadata.str("general.name").ok().flatten()
    }

    /// The format of conversations: the file's own template, or Gemma 4's where it has none.
    ///
    /// With thinking off, the larger models want an empty thought before their answer; those with per-layer
    /// inputs (E2B, E4B) must not get one.
    ///
    /// # Errors
    /// [`Error::Template`](crate::Error::Template) if the file's template cannot be read.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let is_small = self.hparams().n_embd_per_layer > 0;
        match self.tokenizer().chat_template() {
            Some(source) if is_small => Ok(ChatTemplate::new(source)?.close_thought(false)),
            Some(source) => ChatTemplate::new(source),
            None => Ok(ChatTemplate::builtin().close_thought(!is_small)),
        }
    }

    /// A conversation as tokens, ready for [`Session::generate`](crate::Session::generate). Only the template
    /// itself can write control tokens: what looks like one in a message is text.
    ///
    /// # Errors
    /// As [`chat_template`](Self::chat_template) and [`ChatTemplate::render_segments`]; tokenizer errors.
    pub fn encode_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer();
        let mut tokens = Vec::new();
        for segment in self.chat_template()?.render_segments(messages, options)? {
            let how = EncodeOptions::CONTINUATION.parse_special(segment.trusted);
            tokens.extend(tokenizer.encode(&segment.text, how)?);
        }
        if tokens.first().copied() != tokenizer.bos() {
            tokens.splice(0..0, tokenizer.bos());
        }
        Ok(tokens)
    }

    /// A hash of the tensors' names, types and shapes and of samples of their data, by which a snapshot knows its
    /// model. Metadata do not count: a new chat template does not make another model.
    pub fn fingerprint(&self) -> u128 {
        self.0.fingerprint
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.0.weights
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("path", &self.0.path)
            .field("n_layer", &self.0.hparams.n_layer())
            .field("n_embd", &self.0.hparams.n_embd)
            .field("devices", &self.devices())
            .finish_non_exhaustive()
    }
}
