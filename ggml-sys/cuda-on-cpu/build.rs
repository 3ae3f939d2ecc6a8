//! Compiles the CUDA sources of the patch series as C++, with `emulation/` in place of CUDA and of ggml's own headers for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Files of the series that are compiled, or included by one that is; what these include and is not here comes from `emulation/`.
fn is_ours(name: &str) -> bool {
    let is_source = name.ends_with(".cu") || name.ends_with(".cuh");
    let begins =
        ["fattn-direct", "fwht-signed", "g4-", "kv-mask", "tq3"].iter().any(|start| name.starts_with(start));
    is_source && begins && !["g4-async.cuh", "g4-ptx.cuh"].contains(&name)
}

fn main() {
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    println!("cargo::rerun-if-changed=emulation");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(false).warnings(false);
    // Contexts of ucontext.h; and one memory has several names, which clang does not allow.
    let compiler = build.get_compiler();
    let is_known = compiler.is_like_gnu() && !compiler.is_like_clang();
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") || !is_known {
        return;
    }
    println!("cargo::rustc-cfg=emulated");
    let ggml = PathBuf::from(variable("DEP_GEMMA4_GGML_SOURCE"));
    let out = PathBuf::from(variable("OUT_DIR"));
    // A quoted include looks beside the including file first, where ggml has headers that need CUDA.
    let kernels = out.join("kernels");
    fs::create_dir_all(&kernels).expect("a folder in OUT_DIR");
    let mut sources = Vec::new();
    for entry in fs::read_dir(ggml.join("src/ggml-cuda")).expect("ggml's sources").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_ours(&name) {
            println!("cargo::rerun-if-changed={}", entry.path().display());
            copy(&entry.path(), &kernels.join(&name));
            sources.extend(name.ends_with(".cu").then_some(name));
        }
    }
    sources.sort();
    build
        // nvcc lets memory be read as any type.
        .flag("-fno-strict-aliasing")
        // One thread of the CPU runs all threads of a block, which leave stacks by longjmp.
        .flag("-U_FORTIFY_SOURCE")
        .flag("-fno-extern-tls-init")
        .flag("-w")
        .includes([Path::new("emulation"), &kernels, &ggml.join("include"), &ggml.join("src")])
        .files(["emulation/backend.cpp", "emulation/threads.cpp"]);
    for source in sources {
        let wrapper = out.join(format!("{source}.cpp"));
        let text = format!("#include \"common.cuh\"\nnamespace cuda_on_cpu {{\n#include \"{source}\"\n}}\n");
        fs::write(&wrapper, text).expect("a file in OUT_DIR");
        build.file(wrapper);
    }
    build.compile("gemma4_cuda_on_cpu");
    if let Ok(symbols) = env::var("DEP_GEMMA4_GGML_SYMBOLS") {
        let objcopy = env::var("OBJCOPY").unwrap_or_else(|_| "objcopy".into());
        let archive = out.join("libgemma4_cuda_on_cpu.a");
        let done = Command::new(objcopy).arg("--redefine-syms").arg(symbols).arg(archive).status();
        assert!(done.expect("objcopy, of binutils, can be started").success(), "objcopy failed");
    }
}

fn variable(name: &str) -> String {
    env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: cargo or the build of gemma4-ggml-sys sets it"))
}

fn copy(from: &Path, to: &Path) {
    if let Err(e) = fs::copy(from, to) {
        panic!("cannot copy {} to {}: {e}", from.display(), to.display());
    }
}
