//! Compiles the CUDA sources of the patch series as C++, with `emulation/` in place of CUDA and of ggml's own headers for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The sources that are compiled, without `.cu`.
const SOURCES: [&str; 14] = [
    "fattn-direct",
    "fattn-direct-64",
    "fattn-direct-128",
    "fattn-direct-256",
    "fattn-direct-512",
    "fattn-direct-f16",
    "fattn-direct-q4_0",
    "fattn-direct-q8_0",
    "fattn-direct-tq3_0",
    "fattn-direct-wide",
    "fwht-signed",
    "g4-sparse",
    "kv-mask",
    "tq3",
];

/// Headers that they include. What is not here comes from `emulation/`.
const HEADERS: [&str; 9] = [
    "fattn-direct",
    "fattn-direct-kernel",
    "fattn-direct-wide",
    "fwht-signed",
    "g4-fuse",
    "g4-rotate",
    "g4-sparse",
    "kv-mask",
    "tq3",
];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    println!("cargo::rerun-if-changed=emulation");
    // Contexts of ucontext.h, and GNU's names of attributes.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    println!("cargo::rustc-cfg=emulated");
    let ggml = PathBuf::from(variable("DEP_GEMMA4_GGML_SOURCE"));
    let out = PathBuf::from(variable("OUT_DIR"));
    // A quoted include looks beside the including file first, where ggml has headers that need CUDA.
    let kernels = out.join("kernels");
    fs::create_dir_all(&kernels).expect("a folder in OUT_DIR");
    let names = SOURCES.iter().map(|s| format!("{s}.cu")).chain(HEADERS.iter().map(|h| format!("{h}.cuh")));
    for name in names {
        copy(&ggml.join("src/ggml-cuda").join(&name), &kernels.join(&name));
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .warnings(false)
        // nvcc lets memory be read as any type.
        .flag("-fno-strict-aliasing")
        // One thread of the CPU runs all threads of a block, which leave stacks by longjmp.
        .flag("-U_FORTIFY_SOURCE")
        .flag_if_supported("-fno-extern-tls-init")
        .flag_if_supported("-Wno-unknown-pragmas")
        .flag_if_supported("-Wno-attributes")
        .includes([Path::new("emulation"), &kernels, &ggml.join("include"), &ggml.join("src")])
        .files(["emulation/backend.cpp", "emulation/threads.cpp"]);
    for source in SOURCES {
        let wrapper = out.join(format!("{source}.cpp"));
        let text =
            format!("#include \"common.cuh\"\nnamespace cuda_on_cpu {{\n#include \"{source}.cu\"\n}}\n");
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
