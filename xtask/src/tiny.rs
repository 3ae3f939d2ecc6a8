//! What models/tiny-gemma4 holds besides weights, made again.

use crate::process::{Result, cargo, root, show};
use crate::programs::setup;
use std::ffi::OsStr;
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
/// `acceptance.json` and llama.cpp's record; then measures. `checkpoint` is relative to where the user is. One without
/// a target holds drafters for the target that is here already: what follows from that alone stays.
pub fn remake(checkpoint: &str) -> Result {
    let here = std::env::current_dir().map_err(|e| format!("no current folder: {e}"))?;
    let checkpoint = here.join(checkpoint);
    let file = |name: &str| checkpoint.join(name).with_extension("safetensors");
    let has_target = file("target-0").is_file();
    let targets: &[&str] = if has_target { &["target-1"] } else { &[] };
    for file in targets.iter().chain(&["mtp", "dflash"]).map(|name| file(name)) {
        if !file.is_file() {
            return Err(format!("{} is missing; train/train.py writes it", file.display()));
        }
    }
    let folder = root().join(FOLDER);
    let (trained, shipped) =
        (["--ckpt".as_ref(), checkpoint.as_os_str()], ["--gguf".as_ref(), FOLDER.as_ref()]);
    let files = ["--files", "mtp-q8_0", "dflash-q8_0", "target-q8_0"];
    script("export_gguf.py", trained, &folder, if has_target { &files } else { &files[..3] })?;
    let golden = folder.join("golden.json");
    if has_target {
        script("make_golden.py", trained, &golden, &[])?;
    }
    script("make_golden.py", shipped, &golden, &[])?;
    script("accept.py", shipped, &folder.join("acceptance.json"), &["--texts", FOLDER])?;
    setup()?;
    if has_target {
        // From the root no flag compiles llama.cpp for this machine's own CPU: the record is that of AVX2.
        show(cargo(PEER).arg(FOLDER))?;
        show(cargo(PEER).args([FOLDER, "--perplexity", &format!("{FOLDER}/tiny-gemma4-q8_0.gguf")]))?;
    }
    measure()
}

/// Runs one of the training folder's scripts on `weights`. They need the packages that the README names.
fn script(name: &str, weights: [&OsStr; 2], out: &Path, more: &[&str]) -> Result {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command.arg(format!("{FOLDER}/train/{name}")).args(weights);
    command.args(["--tokenizer", &format!("{FOLDER}/tokenizer.json"), "--out"]).arg(out).args(more);
    show(command.current_dir(root()))
}
