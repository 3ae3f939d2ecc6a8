//! What people run: the demo, the tests, the golden fixtures.

use crate::process::{Result, cargo, root, show};
use std::process::{Command, Stdio};

/// The fixtures that come with the repository.
pub const GOLDEN: &str = "tests/data/golden";

/// The drafter of the small model, relative to the repository.
const DRAFTER: &str = "models/tiny-gemma4/tiny-gemma4-mtp-q8_0.gguf";

/// Installs the tools that a build needs, if some are missing.
pub fn setup() -> Result {
    if cfg!(windows) {
        return Ok(()); // no sh; the build itself names what is missing
    }
    show(Command::new("sh").arg("setup.sh").current_dir(root()))
}

/// Generates text with the small model of the repository.
pub fn demo(args: &[&str]) -> Result {
    setup()?;
    let mut generate = cargo(["run", "--release", "--package", "gemma4-examples", "--bin", "generate", "--"]);
    if args.is_empty() {
        generate.args(["--drafter", DRAFTER]);
        // The program reads a prompt from a pipe; the demo is about its own.
        generate.stdin(Stdio::null());
    }
    show(generate.args(args))
}

/// All tests. `cargo test` comes with the doc tests of the libraries.
pub fn test() -> Result {
    setup()?;
    show(&mut cargo(["test", "--workspace"]))?;
    show(&mut cargo(["test", "--package", "gemma4-tests", "--features", "grammar", "--test", "grammar"]))?;
    golden(GOLDEN)
}

/// Compares the fixtures of a folder with what transformers computed. Relative to where the user is.
pub fn golden(dir: &str) -> Result {
    setup()?;
    let here = std::env::current_dir().map_err(|e| format!("no current folder: {e}"))?;
    let dir = if dir == GOLDEN { root().join(dir) } else { here.join(dir) };
    show(cargo(["run", "--release", "--package", "gemma4-tests", "--bin", "golden", "--"]).arg(dir))
}
