//! The patch series' kernels on a device: checks against plain loops, and speed.
//!
//! ```text
//! kernels [--cpu | --on-cpu] [--short] [--quiet] [--basic] [--bench] [--bench-full] [--gather] [--tune] [--profile]
//! ```
//! Without one of the last five options it checks and exits with 1 if anything failed. `--on-cpu` runs CUDA's kernels on the
//! CPU: the short checks, in some minutes.

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

use device::{Device, Kind};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| options.iter().any(|o| o == name);
    let known = [
        "--cpu",
        "--on-cpu",
        "--short",
        "--quiet",
        "--basic",
        "--bench",
        "--bench-full",
        "--gather",
        "--tune",
        "--profile",
    ];
    if let Some(other) = options.iter().find(|o| !known.contains(&o.as_str())) {
        eprintln!("unknown option {other}; known: {}", known.join(" "));
        return ExitCode::from(2);
    }
    let kind = match (has("--cpu"), has("--on-cpu")) {
        (true, _) => Kind::Cpu,
        (_, true) => Kind::CudaOnCpu,
        _ => Kind::Gpu,
    };
    let Some(device) = Device::open(kind) else {
        eprintln!(
            "no such device: loadable backends must lie beside this program, and --on-cpu needs Linux and g++"
        );
        return ExitCode::from(2);
    };
    println!("device: {}", device.description());
    if has("--profile") {
        bench::profile(&device);
        return ExitCode::SUCCESS;
    }
    let times: [(&str, &dyn Fn()); 4] = [
        ("--tune", &|| bench::tuning_table(&device)),
        ("--bench", &|| bench::tables(&device, false)),
        ("--bench-full", &|| bench::tables(&device, true)),
        ("--gather", &|| bench::gather_table(&device)),
    ];
    if times.iter().any(|(name, _)| has(name)) {
        times.iter().filter(|(name, _)| has(name)).for_each(|(_, table)| table());
        return ExitCode::SUCCESS;
    }
    let mut report = report::Report { quiet: has("--quiet"), ..Default::default() };
    let short = has("--short") || kind == Kind::CudaOnCpu;
    basic::run(&device, &mut report);
    // The CPU backend has no fused runs to compare.
    if let (true, Some(cpu)) = (kind != Kind::Cpu, Device::open(Kind::Cpu)) {
        fused::run(&device, &cpu, &mut report, short);
        sparse::run(&device, &cpu, &mut report, short);
    }
    if !has("--basic") {
        grid::run(&device, &mut report, short);
        if kind != Kind::CudaOnCpu {
            grid::run_on_card(&device, &mut report, short);
        }
    }
    if report.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
