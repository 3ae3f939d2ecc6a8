//! The patch series' kernels on a device: checks against plain loops, and speed.
//!
//! ```text
//! kernels [--cpu] [--short] [--quiet] [--basic] [--bench] [--bench-full] [--tune] [--profile]
//! ```
//! Without an option that ends in `bench`, `bench-full` or `tune` it checks and exits with 1 if anything failed.

mod attention;
mod basic;
mod bench;
mod data;
mod device;
mod fused;
mod grid;
mod report;
mod sparse;
mod tq3;

use std::process::ExitCode;

fn main() -> ExitCode {
    let options: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| options.iter().any(|o| o == name);
    let known = ["--cpu", "--short", "--quiet", "--basic", "--bench", "--bench-full", "--tune", "--profile"];
    if let Some(other) = options.iter().find(|o| !known.contains(&o.as_str())) {
        eprintln!("unknown option {other}; known: {}", known.join(" "));
        return ExitCode::from(2);
    }
    let Some(device) = device::Device::open(has("--cpu")) else {
        eprintln!("no such device: the loadable backends must lie beside this program");
        return ExitCode::from(2);
    };
    println!("device: {}", device.description());
    if has("--profile") {
        bench::profile(&device);
        return ExitCode::SUCCESS;
    }
    if has("--bench") || has("--bench-full") || has("--tune") {
        if has("--tune") {
            bench::tuning_table(&device);
        }
        if has("--bench") || has("--bench-full") {
            bench::small_table(&device);
            bench::attention_table(&device, has("--bench-full"));
            bench::gather_table(&device);
        }
        return ExitCode::SUCCESS;
    }
    let mut report = report::Report { quiet: has("--quiet"), ..Default::default() };
    basic::run(&device, &mut report);
    // The CPU backend has no fused runs to compare.
    if let (false, Some(cpu)) = (has("--cpu"), device::Device::open(true)) {
        fused::run(&device, &cpu, &mut report, has("--short"));
        sparse::run(&device, &cpu, &mut report, has("--short"));
    }
    if !has("--basic") {
        grid::run(&device, &mut report, has("--short"));
    }
    if report.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
