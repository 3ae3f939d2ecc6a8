//! `synth SIZE FILE [N_LAYER]`: writes a model with the true shapes of a published size and random weights.

use gemma4_tests::synth::{sizes, write};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let all = sizes();
    let names: Vec<_> = all.iter().map(|s| s.name).collect();
    let size = args.first().and_then(|name| all.iter().find(|s| s.name == name));
    let (Some(size), Some(file)) = (size, args.get(1)) else {
        eprintln!("usage: synth {} FILE [N_LAYER]", names.join("|"));
        return ExitCode::FAILURE;
    };
    let started = std::time::Instant::now();
    match write(size, args.get(2).and_then(|n| n.parse().ok()), Path::new(file)) {
        Ok(bytes) => {
            let gib = bytes as f64 / f64::from(1 << 30);
            println!("{file}: {gib:.2} GiB in {:.0} s", started.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("synth: {e}");
            ExitCode::FAILURE
        }
    }
}
