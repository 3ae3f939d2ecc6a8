//! What people run: the demo, the tests, the golden fixtures.

use crate::process::{Result, cargo, read, root, show};
use std::path::Path;
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
    // Without what other programs need, such as an HTTP client for downloads.
    let package = ["--package", "gemma4-examples", "--no-default-features", "--bin", "generate", "--"];
    let mut generate = cargo(["run", "--release"]);
    generate.args(package);
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
    cuda_on_cpu()?;
    golden(GOLDEN)
}

/// CUDA kernels without a card: checks of each, with the shared memory of large cards and with that of others, and models.
fn cuda_on_cpu() -> Result {
    if !cfg!(target_os = "linux") {
        return Ok(()); // the emulation is for it alone
    }
    for shared in [None, Some("101376")] {
        let mut kernels = cargo(["run", "--release", "--package", "gemma4-ggml-sys", "--example", "kernels"]);
        kernels.args(["--", "--on-cpu", "--quiet"]).envs(shared.map(|bytes| ("GGML_CUDA_G4_SHARED", bytes)));
        show(&mut kernels)?;
    }
    show(golden_of(&root().join(GOLDEN)).env("GEMMA4_DEVICES", "CUDA-on-CPU"))
}

/// Tests that valgrind runs: what fails to load or to start, and what is stopped, dropped and restored. All others
/// would take too long there.
const VALGRIND: [&str; 5] = [
    "rounds_do_not_add_up",
    "what_is_no_file_or_no_gguf_file",
    "other_architectures",
    "sessions_that_cannot_be",
    "prompts_that_do_not_fit",
];

/// Runs [`VALGRIND`]. Built for any processor of the architecture: valgrind does not know the newest instructions.
pub fn valgrind() -> Result {
    setup()?;
    if !is_installed("valgrind") {
        return Err("valgrind is needed: apt-get install valgrind".into());
    }
    // What the harness still holds at the end is "possibly lost".
    let lost = "definite,indirect";
    let check = format!("--leak-check=full --show-leak-kinds={lost} --errors-for-leak-kinds={lost}");
    let runner = format!("target.'cfg(unix)'.runner='valgrind {check} --error-exitcode=9'");
    let files = ["--test", "leaks", "--test", "bad_input", "--test", "bad_options"];
    let mut tests = cargo(["--config", &runner, "test", "--release", "--package", "gemma4-tests"]);
    tests.args(files).args(["--", "--exact", "--test-threads=1"]).args(VALGRIND);
    show(tests.env("LEAK_ROUNDS", "1"))
}

/// Drives the server with OpenAI's Python client, and its page with a browser if there is one.
pub fn server_test() -> Result {
    setup()?;
    show(&mut cargo(["build", "--package", "gemma4-server"]))?;
    let dir = root().join("tests/server");
    let venv = root().join("target/server-test");
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let marker = venv.join("installed");
    let wanted = std::fs::read_to_string(dir.join("requirements.txt")).map_err(|e| e.to_string())?;
    if std::fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
        println!("Python packages are there already: {}", venv.display());
    } else {
        show(Command::new("python3").args(["-m", "venv"]).arg(&venv))
            .map_err(|e| format!("{e}\nPython 3 with venv is needed: apt-get install python3-venv"))?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
        show(Command::new(&python).args(install).arg(dir.join("requirements.txt")))?;
        std::fs::write(&marker, wanted).map_err(|e| format!("cannot write {}: {e}", marker.display()))?;
    }
    let server = root().join("target/debug").join(if cfg!(windows) { "server.exe" } else { "server" });
    show(Command::new(&python).arg(dir.join("openai_client.py")).arg(&server))?;
    if ["chromium", "chromedriver"].iter().all(|name| is_installed(name)) {
        show(Command::new(&python).arg(dir.join("page.py")).arg(&server))
    } else {
        println!("page: NOT TESTED, for want of a browser (apt-get install chromium chromium-driver)");
        Ok(())
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| Path::new(&dir).join(program).is_file())
}

/// Compares the fixtures of a folder with what transformers computed. Relative to where the user is.
pub fn golden(dir: &str) -> Result {
    setup()?;
    let here = std::env::current_dir().map_err(|e| format!("no current folder: {e}"))?;
    let dir = if dir == GOLDEN { root().join(dir) } else { here.join(dir) };
    show(&mut golden_of(&dir))
}

fn golden_of(dir: &Path) -> Command {
    let mut golden = cargo(["run", "--release", "--package", "gemma4-tests", "--bin", "golden", "--"]);
    golden.arg(dir);
    golden
}

/// Writes a model of true shapes. `file` is relative to where the user is.
pub fn synth(size: &str, file: &str, rest: &[&str]) -> Result {
    setup()?;
    let here = std::env::current_dir().map_err(|e| format!("no current folder: {e}"))?;
    let mut synth = cargo(["run", "--release", "--package", "gemma4-tests", "--bin", "synth", "--", size]);
    show(synth.arg(here.join(file)).args(rest))
}

/// The listing of the crate's public items.
const API: &str = "docs/public-api.txt";

/// Writes the listing of public items.
pub fn write_api() -> Result {
    let path = root().join(API);
    std::fs::write(&path, listing()?).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Checks that the listing is current, so that a change of the API shows in review.
pub fn check_api() -> Result {
    let listed = std::fs::read_to_string(root().join(API)).map_err(|e| format!("cannot read {API}: {e}"))?;
    let now = listing()?;
    if listed == now {
        println!("{API} is current: {} items", now.lines().count());
        return Ok(());
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (old, new) = (lines(&listed), lines(&now));
    let mut report: Vec<_> = old.difference(&new).map(|line| format!("- {line}")).collect();
    report.extend(new.difference(&old).map(|line| format!("+ {line}")));
    Err(format!("{API} is not current; `cargo xtask api` writes it:\n  {}", report.join("\n  ")))
}

fn listing() -> Result<String> {
    read(&mut cargo(["run", "--quiet", "--package", "gemma4-public-api"]))
}
