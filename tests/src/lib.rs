//! What the integration tests share: paths of the data, golden fixtures, perplexity.

pub mod acceptance;
pub mod bad;
pub mod experiments;
pub mod golden;
pub mod golden_draft;
pub mod memory;
pub mod perplexity;
pub mod quality;
pub mod quantise;
pub mod rows;
pub mod synth;
pub mod tiny;
pub mod vocabulary;

use std::path::PathBuf;

/// A path below the repository's root.
pub fn repo(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}
