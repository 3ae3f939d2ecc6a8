//! An OpenAI-compatible HTTP server for one Gemma 4 model.
//!
//! [`App`] owns the model's sessions; [`router`] answers requests with it; [`serve`] listens. The threads of the
//! sessions compute ([`pool`]); the asynchronous side only carries text to and fro.

mod answer;
mod calls;
mod error;
mod http;
pub mod metrics;
pub mod pool;
mod prefix;
mod prepare;
mod request;
mod worker;

pub use error::ApiError;
pub use http::{router, serve};

use gemma4::{Model, SessionOptions, Speculation};
use metrics::Metrics;
use pool::{Pool, PoolConfig};
use prepare::Limits;
use std::sync::Arc;
use std::time::Duration;

/// What the server allows.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of the model; the first is told to clients.
    pub names: Vec<String>,
    /// Requests answered at the same time.
    pub parallel: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Bytes of snapshots of earlier prompts.
    pub cache_bytes: u64,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Time in which a body must arrive.
    pub body_timeout: Duration,
    /// Tokens generated if a request does not say.
    pub max_tokens: Option<u32>,
    /// Whether the model thinks if a request does not say.
    pub thinking: bool,
    /// How many tokens are drafted at once, if the sessions have a drafter.
    pub speculation: Speculation,
    /// What clients must know.
    pub api_key: Option<String>,
    /// Whether requests must name this machine as their host: protects a server on the loopback address from
    /// web pages that have their own name point there.
    pub local_only: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            names: vec!["gemma4".to_owned()],
            parallel: 2,
            queue: 16,
            cache_bytes: 1 << 30,
            max_body: 4 << 20,
            body_timeout: Duration::from_secs(30),
            max_tokens: None,
            thinking: false,
            speculation: Speculation::Auto,
            api_key: None,
            local_only: false,
        }
    }
}

/// A model, its sessions, and what is allowed.
pub struct App {
    model: Model,
    pool: Pool,
    metrics: Arc<Metrics>,
    limits: Limits,
    config: Config,
}

impl App {
    /// Starts the sessions.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn new(model: Model, options: &SessionOptions, config: Config) -> gemma4::Result<Arc<App>> {
        let metrics = Arc::new(Metrics::default());
        let sizes =
            PoolConfig { parallel: config.parallel, queue: config.queue, cache_bytes: config.cache_bytes };
        let pool = Pool::new(&model, options, sizes, Arc::clone(&metrics))?;
        let limits = Limits {
            n_ctx: options.n_ctx,
            max_tokens: config.max_tokens,
            thinking: config.thinking,
            speculation: config.speculation,
        };
        Ok(Arc::new(App { model, pool, metrics, limits, config }))
    }

    /// The sessions.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The name that clients are told.
    fn name(&self) -> &str {
        self.config.names.first().map_or("gemma4", String::as_str)
    }
}
