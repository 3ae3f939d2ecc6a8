//! Counters for Prometheus.

use crate::pool::Pool;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: String,
    status: u16,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    /// Requests refused because the queue was full.
    pub rejected: Counter,
    /// Requests whose client went away.
    pub cancelled: Counter,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    first_token: Histogram,
    running: Gauge,
    waiting: Gauge,
    cache_bytes: Gauge,
    cache_snapshots: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("gemma4"),
            requests: Family::default(),
            rejected: Counter::default(),
            cancelled: Counter::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            first_token: Histogram::new(exponential_buckets(0.005, 2.0, 16)),
            running: Gauge::default(),
            waiting: Gauge::default(),
            cache_bytes: Gauge::default(),
            cache_snapshots: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let Metrics { registry, .. } = self;
        registry.register("requests", "Requests by endpoint and HTTP status", self.requests.clone());
        registry.register("rejected", "Requests refused because the queue was full", self.rejected.clone());
        registry.register("cancelled", "Requests whose client went away", self.cancelled.clone());
        registry.register(
            "prompt_tokens",
            "Tokens of prompts, cached ones included",
            self.prompt_tokens.clone(),
        );
        registry.register(
            "cached_tokens",
            "Tokens of prompts that were not computed",
            self.cached_tokens.clone(),
        );
        registry.register("generated_tokens", "Tokens generated", self.generated_tokens.clone());
        registry.register_with_unit(
            "time_to_first_token",
            "From the start of a prompt's computation to the first token",
            Unit::Seconds,
            self.first_token.clone(),
        );
        registry.register("running_requests", "Requests that are computed now", self.running.clone());
        registry.register("waiting_requests", "Requests in the queue", self.waiting.clone());
        registry.register_with_unit(
            "prefix_cache",
            "Snapshots kept of earlier prompts",
            Unit::Bytes,
            self.cache_bytes.clone(),
        );
        registry.register("prefix_cache_snapshots", "Number of snapshots", self.cache_snapshots.clone());
    }

    /// Counts a request by how it was answered.
    pub fn request(&self, endpoint: &str, status: u16) {
        self.requests.get_or_create(&RequestLabels { endpoint: endpoint.to_owned(), status }).inc();
    }

    /// Counts the tokens of an answer.
    pub fn answered(&self, prompt: usize, cached: usize, generated: usize, first_token: Option<Duration>) {
        self.prompt_tokens.inc_by(prompt as u64);
        self.cached_tokens.inc_by(cached as u64);
        self.generated_tokens.inc_by(generated as u64);
        if let Some(time) = first_token {
            self.first_token.observe(time.as_secs_f64());
        }
    }

    /// The page that Prometheus reads, in OpenMetrics text.
    pub fn page(&self, pool: &Pool) -> String {
        let (running, waiting) = pool.load();
        let (bytes, snapshots) = pool.cache();
        self.running.set(running as i64);
        self.waiting.set(waiting as i64);
        self.cache_bytes.set(bytes as i64);
        self.cache_snapshots.set(snapshots as i64);
        let mut page = String::new();
        // Writing to a string fails only if a metric cannot be encoded, and none of these can fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }
}
