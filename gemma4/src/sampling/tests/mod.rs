//! Tests of the sampling module.

mod chain;
mod naive;
mod sampler;
mod statistics;

use super::{Sampler, SamplingOptions};

/// Everything off: draws from the softmax.
fn plain() -> SamplingOptions {
    SamplingOptions::default().top_k(0).top_p(1.0).seed(1)
}

fn sampler(options: &SamplingOptions) -> Sampler {
    Sampler::new(options).unwrap()
}
