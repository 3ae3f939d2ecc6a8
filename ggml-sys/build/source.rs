//! Finds upstream's source: a folder the user names, or the package pinned in `vendor/`.

use crate::{cargo_var, fail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the root of an unpatched ggml tree.
pub fn locate(repo: &Path, out: &Path) -> PathBuf {
    println!("cargo:rerun-if-env-changed=GGML_SYS_SOURCE_DIR");
    if let Some(dir) = std::env::var_os("GGML_SYS_SOURCE_DIR") {
        return from_user(Path::new(&dir));
    }
    from_pin(&repo.join("vendor"), out)
}

/// ggml's root inside `dir`, which may be ggml, llama.cpp or a package that carries llama.cpp.
fn ggml_root(dir: &Path) -> Option<PathBuf> {
    ["", "ggml", "llama.cpp/ggml"]
        .into_iter()
        .map(|sub| dir.join(sub))
        .find(|root| root.join("include/ggml.h").is_file() && root.join("src/ggml-backend.cpp").is_file())
}

fn from_user(dir: &Path) -> PathBuf {
    let Some(root) = ggml_root(dir) else {
        fail(&format!(
            "GGML_SYS_SOURCE_DIR={} holds no ggml (looked for include/ggml.h there, in ggml/ and in llama.cpp/ggml/)",
            dir.display()
        ));
    };
    for part in ["CMakeLists.txt", "include", "src"] {
        println!("cargo:rerun-if-changed={}", root.join(part).display());
    }
    root
}

/// Unpacks the pinned package below `out` with cargo itself, which checks the checksum and knows the
/// user's mirrors, proxies, offline mode and vendored registries.
fn from_pin(vendor: &Path, out: &Path) -> PathBuf {
    let manifest = vendor.join("Cargo.toml");
    let lock = vendor.join("Cargo.lock");
    println!("cargo:rerun-if-changed={}", manifest.display());
    println!("cargo:rerun-if-changed={}", lock.display());

    let target = out.join("upstream");
    let stamp = out.join("upstream.lock");
    let pinned = std::fs::read_to_string(&lock)
        .unwrap_or_else(|e| fail(&format!("cannot read {}: {e}", lock.display())));
    let have = std::fs::read_to_string(&stamp).ok();
    if have.as_deref() == Some(&pinned)
        && let Some(root) = find_package(&target)
    {
        return root;
    }
    // Cargo reads its configuration from where it runs: OUT_DIR lies in the workspace being built, as a rule.
    // With a target folder elsewhere, our own workspace's configuration is still found beside the pin.
    let found =
        run_vendor(&manifest, &target, out, true).or_else(|_| run_vendor(&manifest, &target, vendor, true));
    if found.is_err()
        && let Err(online) = run_vendor(&manifest, &target, out, false)
    {
        fail(&format!(
            "cannot get upstream's source, pinned in {}:\n{online}\n\
             Without a network, fetch it once with: cargo fetch --locked --manifest-path {}\n\
             or point GGML_SYS_SOURCE_DIR at a checkout of ggml or llama.cpp.",
            manifest.display(),
            manifest.display()
        ));
    }
    let Some(root) = find_package(&target) else {
        fail(&format!("the package pinned in {} holds no ggml", manifest.display()));
    };
    if let Err(e) = std::fs::write(&stamp, pinned) {
        fail(&format!("cannot write {}: {e}", stamp.display()));
    }
    root
}

fn find_package(target: &Path) -> Option<PathBuf> {
    std::fs::read_dir(target).ok()?.flatten().find_map(|entry| ggml_root(&entry.path()))
}

fn run_vendor(manifest: &Path, target: &Path, run_in: &Path, offline: bool) -> Result<(), String> {
    let mut cargo = Command::new(cargo_var("CARGO"));
    cargo.args(["vendor", "--locked", "--respect-source-config", "--versioned-dirs", "--quiet"]);
    if offline {
        cargo.arg("--offline");
    }
    cargo.arg("--manifest-path").arg(manifest).arg(target).current_dir(run_in);
    // The outer cargo's choices for its own build mean nothing to this one.
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTC_WRAPPER");
    let done = cargo.output().map_err(|e| e.to_string())?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}
