//! llama.cpp on the CPU.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

use crate::{Engine, Kv, Result, Settings};

/// The crates measured here, as `Cargo.toml` fixes them.
pub const VERSION: &str = "llama-cpp-2 0.1.160, llama-cpp-sys-2 0.1.161";

/// A loaded model with one context.
pub struct Peer {
    context: LlamaContext<'static>,
    model: &'static LlamaModel,
    batch: LlamaBatch<'static>,
    chunk: usize,
    /// What is in the cache; nothing after a prompt was timed.
    filled: Vec<u32>,
}

impl Peer {
    /// Loads the model. It stays in memory until the program ends: a context borrows its model.
    pub fn open(settings: &Settings) -> Result<Self> {
        let mut backend = LlamaBackend::init()?;
        backend.void_logs();
        let backend: &'static LlamaBackend = Box::leak(Box::new(backend));
        let model = LlamaModel::load_from_file(backend, &settings.model, &LlamaModelParams::default())?;
        let model: &'static LlamaModel = Box::leak(Box::new(model));
        let kv = match settings.kv {
            Kv::F16 => KvCacheType::F16,
            Kv::Q8 => KvCacheType::Q8_0,
            Kv::Q4 | Kv::Tq3 => KvCacheType::Q4_0,
        };
        let threads = i32::try_from(settings.threads)?;
        let chunk = u32::try_from(settings.batch)?;
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(u32::try_from(settings.context)?))
            .with_n_batch(chunk)
            .with_n_ubatch(chunk)
            .with_n_seq_max(1)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_type_k(kv)
            .with_type_v(kv)
            .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO)
            .with_swa_full(false);
        Ok(Self {
            context: model.new_context(backend, params)?,
            model,
            batch: LlamaBatch::new(settings.batch, 1),
            chunk: settings.batch,
            filled: Vec::new(),
        })
    }

    /// Empties the cache.
    pub fn clear(&mut self) {
        self.context.clear_kv_cache();
        self.filled.clear();
    }

    /// Evaluates `ids` after `depth` tokens: the logits of the last one.
    pub fn evaluate(&mut self, depth: usize, ids: &[u32]) -> Result<&[f32]> {
        let mut at = depth;
        for part in ids.chunks(self.chunk) {
            self.batch.clear();
            for &id in part {
                let last = at + 1 == depth + ids.len();
                self.batch.add(LlamaToken::new(i32::try_from(id)?), i32::try_from(at)?, &[0], last)?;
                at += 1;
            }
            self.context.decode(&mut self.batch)?;
        }
        self.context.synchronize();
        Ok(self.context.get_logits_ith(self.batch.n_tokens() - 1))
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        if !self.context.clear_kv_cache_seq(Some(0), Some(u32::try_from(len)?), None)? {
            return Err("llama.cpp could not drop the last tokens".into());
        }
        self.filled.truncate(len);
        Ok(())
    }
}

impl Engine for Peer {
    fn name(&self) -> &'static str {
        "llama.cpp"
    }

    fn about(&self) -> String {
        VERSION.to_owned()
    }

    fn vocab(&self) -> usize {
        usize::try_from(self.model.n_vocab()).unwrap_or(0)
    }

    fn prompt(&mut self, ids: &[u32]) -> Result<Duration> {
        self.clear();
        let start = Instant::now();
        let logit = self.evaluate(0, ids)?[0];
        let time = start.elapsed();
        std::hint::black_box(logit);
        self.clear();
        Ok(time)
    }

    fn decode(&mut self, context: &[u32], ids: &[u32]) -> Result<Vec<Duration>> {
        if !context.starts_with(&self.filled) {
            self.clear();
        }
        let have = self.filled.len();
        if have < context.len() {
            self.evaluate(have, &context[have..])?;
            self.filled.extend(&context[have..]);
        }
        let mut times = Vec::with_capacity(ids.len());
        for (i, id) in ids.iter().enumerate() {
            let start = Instant::now();
            let logit = self.evaluate(context.len() + i, std::slice::from_ref(id))?[0];
            times.push(start.elapsed());
            std::hint::black_box(logit);
        }
        self.truncate(context.len())?;
        Ok(times)
    }
}
