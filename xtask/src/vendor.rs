//! The pin of upstream in `vendor/`.

use crate::process::{Result, TempDir, cargo, read, root, show};
use std::path::PathBuf;

const MANIFEST: &str = "vendor/Cargo.toml";

/// Downloads the pinned source and every crate of the workspace into cargo's own store.
pub fn fetch() -> Result {
    show(&mut cargo(["fetch", "--locked"]))?;
    show(&mut cargo(["fetch", "--locked", "--manifest-path", MANIFEST]))?;
    println!("all there: `cargo build --offline` works now, without a network");
    Ok(())
}

/// Unpacks the pinned source below `dir` and returns the root of ggml in it. As `ggml-sys/build/source.rs`
/// does it: cargo checks the checksum, and the network is asked only if its store lacks the package.
pub fn unpack(dir: &TempDir) -> Result<PathBuf> {
    let to = dir.path().join("upstream");
    let args =
        ["vendor", "--locked", "--respect-source-config", "--versioned-dirs", "--quiet", "--manifest-path"];
    let vendor = |offline: &[&str]| read(cargo(args).arg(root().join(MANIFEST)).args(offline).arg(&to));
    vendor(&["--offline"]).or_else(|_| vendor(&[]))?;
    let packages = std::fs::read_dir(&to).map_err(|e| format!("cannot list {}: {e}", to.display()))?;
    packages
        .flatten()
        .map(|package| package.path().join("llama.cpp/ggml"))
        .find(|ggml| ggml.join("include/ggml.h").is_file())
        .ok_or_else(|| format!("the package pinned in {MANIFEST} holds no llama.cpp/ggml"))
}
