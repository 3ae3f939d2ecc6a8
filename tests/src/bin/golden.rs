//! `golden DIR`: checks every fixture of a folder and prints the distances. `gemma4_tests::load` says how the
//! environment chooses devices.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("usage: golden DIR");
        return ExitCode::FAILURE;
    };
    match gemma4_tests::golden::check_folder(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("golden: {what}");
            ExitCode::FAILURE
        }
    }
}
