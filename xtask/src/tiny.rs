//! What models/tiny-gemma4 holds besides weights, made again.

use crate::process::{Result, cargo, root, show};
use crate::programs::setup;
use std::path::Path;
use std::process::Command;

const FOLDER: &str = "models/tiny-gemma4";
const PEER: [&str; 7] =
    ["run", "--release", "--manifest-path", "bench/peer/Cargo.toml", "--example", "record", "--"];

/// The perplexities that this engine measures, by the README's protocol.
pub fn measure() -> Result {
    setup()?;
    for text in ["val-code.txt", "val-prose.txt"] {
        let text = format!("{FOLDER}/{text}");
        println!("{text}");
        let program = ["run", "--release", "--package", "gemma4-examples", "--bin", "perplexity", "--"];
        show(cargo(program).args([&text, "--windows", "12"]))?;
    }
    show(&mut cargo(["test", "--package", "gemma4-tests", "--test", "tiny", "--", "--nocapture"]))
}

/// Makes every file of the folder that follows from a checkpoint: the GGUF files, `golden.json`,
/// `acceptance.json` and llama.cpp's record; then measures. `checkpoint` is relative to where the user is.
pub fn remake(checkpoint: &str) -> Result {
    let here = std::env::current_dir().map_err(|e| format!("no current folder: {e}"))?;
    let checkpoint = here.join(checkpoint);
    for file in ["target-0", "target-1", "mtp", "dflash"] {
        let file = checkpoint.join(file).with_extension("safetensors");
        if !file.is_file() {
            return Err(format!("{} is missing; train/train.py writes it", file.display()));
        }
    }
    let folder = root().join(FOLDER);
    let files = ["--files", "target-q8_0", "mtp-q8_0", "dflash-q8_0"];
    script("export_gguf.py", &checkpoint, &folder, &files)?;
    script("make_golden.py", &checkpoint, &folder.join("golden.json"), &[])?;
    script("accept.py", &checkpoint, &folder.join("acceptance.json"), &["--texts", FOLDER])?;
    setup()?;
    // From the root no flag compiles llama.cpp for this machine's own CPU: the record is that of AVX2.
    show(cargo(PEER).arg(FOLDER))?;
    show(cargo(PEER).args([FOLDER, "--perplexity", &format!("{FOLDER}/tiny-gemma4-q8_0.gguf")]))?;
    measure()
}

/// Runs one of the training folder's scripts. They need the packages that the README names.
fn script(name: &str, checkpoint: &Path, out: &Path, more: &[&str]) -> Result {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command.arg(format!("{FOLDER}/train/{name}")).arg("--ckpt").arg(checkpoint);
    command.args(["--tokenizer", &format!("{FOLDER}/tokenizer.json"), "--out"]).arg(out).args(more);
    show(command.current_dir(root()))
}
