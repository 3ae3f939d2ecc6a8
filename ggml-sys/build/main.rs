//! Fetches the pinned ggml, applies `patches/`, builds it with CMake and binds it.
//!
//! One step a file, in the order in which they run. A step that fails ends the build with one message
//! that says what to do; nothing is retried or guessed.

#![allow(missing_docs)] // a program, not a library

mod bind;
mod compile;
mod source;
mod stage;
mod symbols;

use std::path::{Path, PathBuf};

/// What the feature flags of the crate ask for.
pub struct Features {
    pub cuda: bool,
    pub hip: bool,
    pub metal: bool,
    pub vulkan: bool,
    pub openmp: bool,
    pub native: bool,
    pub dynamic: bool,
}

impl Features {
    fn from_env() -> Self {
        let on = |name: &str| std::env::var_os(format!("CARGO_FEATURE_{name}")).is_some();
        Features {
            cuda: on("CUDA"),
            hip: on("HIP"),
            metal: on("METAL"),
            vulkan: on("VULKAN"),
            openmp: on("OPENMP"),
            native: on("NATIVE"),
            dynamic: on("DYNAMIC_BACKENDS"),
        }
    }
}

/// Ends the build with a message for a person.
pub fn fail(message: &str) -> ! {
    // Cargo prints a failed build script's stderr as it is; a panic would bury it under a location.
    eprintln!("\ngemma4-ggml-sys: {message}\n");
    std::process::exit(1)
}

/// The value of a variable that cargo always sets.
pub fn cargo_var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}; build with cargo")))
}

fn main() {
    let manifest = PathBuf::from(cargo_var("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(cargo_var("OUT_DIR"));
    let repo = repo_root(&manifest);
    for path in ["build", "cmake", "shim"] {
        println!("cargo:rerun-if-changed={}", manifest.join(path).display());
    }

    let features = Features::from_env();
    compile::check_features(&features);
    let headers = manifest.join("shim");
    let prefix = symbols::prefix(&features);
    compile::check_tools(prefix);
    let upstream = source::locate(&repo, &out);
    let tree = out.join("ggml");
    stage::stage(&upstream, &repo.join("patches"), &tree);

    bind::generate(&tree, &headers, prefix, &out.join("bindings.rs"));
    compile::build(&features, &manifest.join("cmake"), &headers, &tree, &out);
    if let Some(prefix) = prefix {
        let map = symbols::rename(prefix, &out.join("lib"), &out.join("renamed"));
        println!("cargo:symbols={}", map.display());
    }
    compile::link(&features, prefix, &out);
    println!("cargo:include={}", tree.join("include").display());
    println!("cargo:source={}", tree.display());
}

/// The folder that holds `vendor/` and `patches/`: inside a published package, or one level up.
fn repo_root(manifest: &Path) -> PathBuf {
    [manifest.to_owned(), manifest.join("..")]
        .into_iter()
        .find(|dir| dir.join("patches/series").is_file())
        .map(|dir| dir.canonicalize().unwrap_or(dir))
        .unwrap_or_else(|| {
            fail(&format!(
                "no patches/series in {} or above it. The crate was taken out of its repository (a vendored \
                 git dependency?): use a path dependency on a checkout instead",
                manifest.display()
            ))
        })
}
