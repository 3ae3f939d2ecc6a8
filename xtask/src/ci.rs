//! Everything a change must pass, the quick checks first.

use crate::process::{Result, cargo, root, show};
use crate::{patches, programs, rules};
use std::time::{Duration, Instant};

struct Step {
    name: &'static str,
    run: fn() -> Result,
}

const STEPS: &[Step] = &[
    Step { name: "set-up: tools that building ggml needs", run: programs::setup },
    Step {
        name: "formatting: cargo fmt --all --check",
        run: || show(&mut cargo(["fmt", "--all", "--check"])),
    },
    Step { name: "house rules: cargo xtask rules", run: rules::check },
    Step { name: "public items: cargo xtask api check", run: programs::check_api },
    Step { name: "patch series: cargo xtask patches check", run: patches::check },
    Step { name: "lints: cargo clippy", run: clippy },
    Step { name: "documentation: cargo doc", run: doc },
    Step { name: "tests: cargo xtask test", run: programs::test },
    Step { name: "the server with its clients: cargo xtask server-test", run: programs::server_test },
    Step { name: "beside llama.cpp: cargo test in bench/peer", run: peer },
];

/// Runs every step until one fails.
pub fn run() -> Result {
    let mut times = Vec::new();
    for (i, step) in STEPS.iter().enumerate() {
        println!("\n=== {}/{} {}", i + 1, STEPS.len(), step.name);
        let started = Instant::now();
        let result = (step.run)();
        let time = started.elapsed();
        println!("=== {}/{} {} in {}", i + 1, STEPS.len(), verdict(&result), seconds(time));
        times.push((step.name, time));
        result.map_err(|e| format!("{}\nxtask: stopped at: {}", e, step.name))?;
    }
    println!("\n=== summary");
    for (name, time) in times {
        println!("{:>9}  ok  {name}", seconds(time));
    }
    Ok(())
}

fn clippy() -> Result {
    show(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let packages = ["--package", "gemma4", "--package", "gemma4-tests", "--features", "gemma4-tests/grammar"];
    show(cargo(["clippy"]).args(packages).args(["--all-targets", "--", "-D", "warnings"]))
}

/// Libraries only: programs may share names, and two of one name would overwrite each other's pages.
fn doc() -> Result {
    let features = ["--features", "gemma4/grammar"];
    show(
        cargo(["doc", "--workspace", "--no-deps", "--lib"]).args(features).env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// Two copies of ggml in one program, as two crates of a user would bring them. Compiles llama.cpp.
fn peer() -> Result {
    // For AVX2 and not, as in its own folder, for this machine's CPU: on one with AMX llama.cpp 0.1.161 crashes in
    // its AMX kernel.
    let args = ["--release", "--locked", "--no-default-features", "--manifest-path", "bench/peer/Cargo.toml"];
    show(cargo(["test"]).args(args).current_dir(root()))
}

fn verdict(result: &Result) -> &'static str {
    if result.is_ok() { "ok" } else { "FAILED" }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
