//! gemma4.

use std::time::{Duration, Instant};

use gemma4::{DType, Device, KvConfig, LoadOptions, Model, Rotation, Session, SessionOptions};

use crate::{Engine, Kv, Result, Settings};

/// A gemma4 model with one session.
pub struct Ours {
    session: Session,
}

impl Ours {
    /// Loads the model.
    pub fn open(settings: &Settings) -> Result<Self> {
        let options = LoadOptions::default().device(Device::cpu()?);
        let model = Model::load_with(&settings.model, &options, |_| std::ops::ControlFlow::Continue(()))?;
        let mut kv = KvConfig::uniform(match settings.kv {
            Kv::F16 => DType::F16,
            Kv::Q8 => DType::Q8_0,
            Kv::Q4 => DType::Q4_0,
            Kv::Tq3 => DType::TQ3_0,
        });
        // llama.cpp rotates every quantised cache.
        kv.rotation = Rotation::Always;
        let options = SessionOptions::default()
            .n_ctx(u32::try_from(settings.context)?)
            .n_batch(u32::try_from(settings.batch)?)
            .n_threads(settings.threads)
            .kv(kv);
        Ok(Self { session: Session::new(&model, &options)? })
    }

    /// Evaluates `ids` from an empty cache: the logits of the last one.
    pub fn evaluate(&mut self, ids: &[u32]) -> Result<&[f32]> {
        self.session.clear();
        self.go_on(ids)
    }

    /// Evaluates `ids` after what is in the cache: the logits of the last one.
    pub fn go_on(&mut self, ids: &[u32]) -> Result<&[f32]> {
        self.session.prefill(ids)?;
        Ok(self.session.logits())
    }
}

impl Engine for Ours {
    fn name(&self) -> &'static str {
        "gemma4"
    }

    fn about(&self) -> String {
        format!("gemma4 {}; {:?}", env!("CARGO_PKG_VERSION"), self.session.model().device())
    }

    fn vocab(&self) -> usize {
        self.session.model().hparams().n_vocab as usize
    }

    fn prompt(&mut self, ids: &[u32]) -> Result<Duration> {
        self.session.clear();
        let start = Instant::now();
        self.session.prefill(ids)?;
        let time = start.elapsed();
        std::hint::black_box(self.session.logits()[0]);
        self.session.clear();
        Ok(time)
    }

    fn decode(&mut self, context: &[u32], ids: &[u32]) -> Result<Vec<Duration>> {
        let have = self.session.reuse_prefix(context);
        self.session.prefill(&context[have..])?;
        let mut times = Vec::with_capacity(ids.len());
        for id in ids {
            let start = Instant::now();
            self.session.prefill(std::slice::from_ref(id))?;
            times.push(start.elapsed());
            std::hint::black_box(self.session.logits()[0]);
        }
        Ok(times)
    }
}
