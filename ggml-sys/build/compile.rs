//! Compiles the staged tree with CMake and tells cargo what to link.

use crate::{Features, cargo_var, fail};
use std::path::Path;
use std::process::Command;

/// Refuses combinations that ggml cannot build.
pub fn check_features(features: &Features) {
    if features.native && features.dynamic {
        fail(
            "the features `native` and `dynamic-backends` exclude each other: loadable CPU backends are built for \
             every generation of processors and chosen at run time",
        );
    }
    if features.cuda && features.hip {
        fail(
            "the features `cuda` and `hip` exclude each other; build one, or load both with `dynamic-backends`",
        );
    }
}

/// Looks for every tool before anything slow starts, and names all that are missing at once.
pub fn check_tools(prefix: Option<&str>) {
    let runs =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    let mut missing = Vec::new();
    let cmake = std::env::var("CMAKE").unwrap_or_else(|_| "cmake".into());
    if !runs(&cmake) {
        missing.push("cmake (set CMAKE if it has another name)");
    }
    if !runs("ninja") && !runs("make") && !cfg!(windows) {
        missing.push("ninja or make, which cmake drives");
    }
    if prefix.is_some()
        && !crate::symbols::TOOLS.iter().all(|(variable, name)| runs(&crate::symbols::tool(variable, name)))
    {
        missing.push(
            "nm and objcopy of binutils, which give our copy of ggml names of its own (set NM and OBJCOPY)",
        );
    }
    let compiler = cc::Build::new().cpp(true).try_get_compiler();
    if !compiler.is_ok_and(|c| c.to_command().arg("--version").output().is_ok() || c.is_like_msvc()) {
        missing.push("a C++17 compiler (set CXX if it has another name)");
    }
    if !crate::bind::libclang_works() {
        missing.push("libclang, which bindgen reads the headers with (set LIBCLANG_PATH to its folder)");
    }
    if !missing.is_empty() {
        fail(&format!(
            "missing tools:\n  - {}\nDebian and Ubuntu: run setup.sh of the repository, or\n  \
             apt-get install g++ cmake ninja-build libclang-dev\nmacOS: xcode-select --install; brew install cmake ninja llvm",
            missing.join("\n  - ")
        ));
    }
}

/// Runs CMake; the libraries end up in `out/lib`, loadable backends in `out/backends`.
pub fn build(features: &Features, wrapper: &Path, shim: &Path, tree: &Path, out: &Path) {
    let on = |yes: bool| if yes { "ON" } else { "OFF" };
    let mut cmake = cmake::Config::new(wrapper);
    // Not cargo's profile: an unoptimised ggml is a hundred times slower and nobody debugs it from here.
    cmake.profile("Release").build_target("gemma4_ggml_all");
    if Command::new("ninja").arg("--version").output().is_ok() {
        cmake.generator("Ninja");
    }
    // Without it ccache treats every OUT_DIR as other sources.
    cmake.env("CCACHE_BASEDIR", "/").env("CCACHE_NOHASHDIR", "1");
    cmake
        .define("GGML_SOURCE_DIR", tree)
        .define("GGML_SHIM_DIR", shim)
        .define("CMAKE_ARCHIVE_OUTPUT_DIRECTORY", out.join("lib"))
        .define("CMAKE_LIBRARY_OUTPUT_DIRECTORY", out.join("lib"))
        .define("CMAKE_RUNTIME_OUTPUT_DIRECTORY", out.join("backends"))
        .define("CMAKE_POSITION_INDEPENDENT_CODE", "ON")
        .define("BUILD_SHARED_LIBS", on(features.dynamic))
        .define("GGML_BACKEND_DL", on(features.dynamic))
        .define("GGML_CPU_ALL_VARIANTS", on(features.dynamic))
        .define("GGML_NATIVE", on(features.native))
        .define("GGML_OPENMP", on(features.openmp))
        .define("GGML_CUDA", on(features.cuda))
        .define("GGML_HIP", on(features.hip))
        .define("GGML_METAL", on(features.metal))
        .define("GGML_VULKAN", on(features.vulkan))
        // What llama.cpp turns on and plain ggml does not.
        .define("GGML_LLAMAFILE", "ON")
        .define("GGML_CUDA_GRAPHS", "ON")
        .define("GGML_CUDA_NCCL", "OFF")
        .define("GGML_BLAS", "OFF")
        .define("GGML_ACCELERATE", "OFF")
        .define("GGML_ALL_WARNINGS", "OFF")
        // ggml would otherwise stamp the commit of whatever repository surrounds the build folder.
        .define("GIT_EXE", "OFF")
        .define("GGML_BUILD_COMMIT", "gemma4");
    if !features.native && !features.dynamic && cargo_var("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        // Every x86-64 processor since 2013; CMake's own default would depend on the building machine.
        for set in ["SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2"] {
            cmake.define(format!("GGML_{set}"), "ON");
        }
    }
    println!("cargo:rerun-if-env-changed=CUDAARCHS");
    if let Ok(archs) = std::env::var("CUDAARCHS") {
        cmake.define("CMAKE_CUDA_ARCHITECTURES", archs);
    }
    cmake.build();
}

/// Tells cargo what to link: our libraries, then what they need.
pub fn link(features: &Features, prefix: Option<&str>, out: &Path) {
    let os = cargo_var("CARGO_CFG_TARGET_OS");
    let lib = out.join("lib");
    if features.dynamic {
        println!("cargo:rustc-link-search=native={}", lib.display());
        println!("cargo:rustc-link-lib=static=gemma4_ggml_shim");
        println!("cargo:rustc-link-lib=dylib=ggml");
        println!("cargo:rustc-link-lib=dylib=ggml-base");
        println!("cargo:backends={}", out.join("backends").display());
        println!("cargo:rustc-env=GGML_SYS_BACKENDS={}", out.join("backends").display());
    } else {
        let folder = if prefix.is_some() { out.join("renamed") } else { lib };
        println!("cargo:rustc-link-search=native={}", folder.display());
        let mut names = vec!["gemma4_ggml_shim", "ggml"];
        let backends = [
            (features.cuda, "ggml-cuda"),
            (features.hip, "ggml-hip"),
            (features.metal, "ggml-metal"),
            (features.vulkan, "ggml-vulkan"),
        ];
        names.extend(backends.into_iter().filter(|(on, _)| *on).map(|(_, name)| name));
        names.extend(["ggml-cpu", "ggml-base"]);
        for name in names {
            println!("cargo:rustc-link-lib=static={}{name}", prefix.unwrap_or_default());
        }
        link_system(features, &os);
    }
    match os.as_str() {
        "macos" | "ios" => println!("cargo:rustc-link-lib=dylib=c++"),
        "windows" => {}
        _ => println!("cargo:rustc-link-lib=dylib=stdc++"),
    }
}

fn link_system(features: &Features, os: &str) {
    let dylib = |name: &str| println!("cargo:rustc-link-lib=dylib={name}");
    if features.openmp && os == "linux" {
        dylib("gomp");
    }
    if features.cuda {
        for dir in cuda_folders() {
            println!("cargo:rustc-link-search=native={}", dir.display());
        }
        ["cudart", "cublas", "cublasLt", "cuda"].into_iter().for_each(dylib);
    }
    if features.hip {
        println!("cargo:rustc-link-search=native=/opt/rocm/lib");
        ["amdhip64", "hipblas", "rocblas"].into_iter().for_each(dylib);
    }
    if features.vulkan {
        dylib(if os == "windows" { "vulkan-1" } else { "vulkan" });
    }
    if features.metal {
        for name in ["Foundation", "Metal", "MetalKit"] {
            println!("cargo:rustc-link-lib=framework={name}");
        }
    }
}

fn cuda_folders() -> Vec<std::path::PathBuf> {
    for name in ["CUDAToolkit_ROOT", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let root = ["CUDAToolkit_ROOT", "CUDA_PATH"].into_iter().find_map(std::env::var_os);
    let root = root.map_or_else(|| "/usr/local/cuda".into(), std::path::PathBuf::from);
    ["lib64", "lib", "lib64/stubs", "lib/stubs"]
        .into_iter()
        .map(|d| root.join(d))
        .filter(|d| d.is_dir())
        .collect()
}
