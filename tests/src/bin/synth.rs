//! `synth SIZE FILE [N_LAYER]`: writes a model with the true shapes of a published size and random weights.
//!
//! `synth SIZE-mtp FILE [q8_0|q4]` and `synth SIZE-dflash FILE [q8_0|q4]` write drafters for it.

use gemma4_tests::synth::{DrafterType, Part, sizes, write, write_drafter};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let all = sizes();
    let names: Vec<_> = all.iter().map(|s| s.name).collect();
    let (name, part) = args.first().map_or(("", Part::Model), |name| Part::of(name));
    let size = all.iter().find(|s| s.name == name);
    let types = match args.get(2).map(String::as_str) {
        None | Some("q8_0") => Some(DrafterType::Eight),
        Some("q4") => Some(DrafterType::Four),
        Some(_) => None,
    };
    let (Some(size), Some(file), true) = (size, args.get(1), part == Part::Model || types.is_some()) else {
        eprintln!("usage: synth {} FILE [N_LAYER]", names.join("|"));
        eprintln!("       synth SIZE-mtp|SIZE-dflash FILE [q8_0|q4]");
        return ExitCode::FAILURE;
    };
    let started = std::time::Instant::now();
    let path = Path::new(file);
    let written = match (part, types) {
        (Part::Mtp | Part::Dflash, Some(types)) => {
            write_drafter(size, part, types, false, path).map_err(|e| e.to_string())
        }
        _ => write(size, args.get(2).and_then(|n| n.parse().ok()), path).map_err(|e| e.to_string()),
    };
    match written {
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
