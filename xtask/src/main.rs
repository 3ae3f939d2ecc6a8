//! The developer's own commands. `cargo xtask help` lists them.
//!
//! It depends on no other package, so that it runs before the tools exist which building ggml needs.

mod ci;
mod patches;
mod process;
mod programs;
mod rebase;
mod rules;
mod scratch;
mod tiny;
mod vendor;

use std::process::ExitCode;

const HELP: &str = "\
usage: cargo xtask COMMAND

  demo [-- ARGS]   install missing tools, then generate text with models/tiny-gemma4;
                   ARGS go to the program (`cargo xtask demo -- --help`)
  test             install missing tools, then run all tests, doc tests and golden fixtures
  synth SIZE FILE [N_LAYER]
                   write a model with the true shapes of a published size (e2b, e4b, 12b, 26b-a4b, 31b) and
                   random weights, or only its first layers
  golden [DIR]     compare every fixture of a folder with its reference outputs
                   (default: tests/data/golden)
  tiny [DIR]       measure the perplexities of models/tiny-gemma4 and check it against its records; with a
                   checkpoint's folder first make its GGUF files and records again (Python: $PYTHON or python3)
  valgrind         run what fails, stops and drops under valgrind: lost memory and bad accesses
  server-test      drive the server with OpenAI's Python client (from the network, into
                   target/), and its page with Chromium if that is installed
  ci               everything a change must pass: formatting, lints, docs, rules, patches, tests
  api              write docs/public-api.txt, the list of public items (ci checks it)
  rules            the house rules alone: machine paths, raw pointers, size of the data, ...
  vendor fetch     download all that a build needs, so that later builds work offline
  vendor rebase VERSION
                   move series and pin to another published version of the pinned package; if it
                   stops at a conflict: vendor rebase --continue | --skip | --abort
  patches edit     the series as a git tree, a commit for each patch, in target/patches/ggml
  patches export   write that tree's commits back to patches/
  patches check    does the series apply, exactly, to the pinned source, and is it what export writes?
  help             this text
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("xtask: {what}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> process::Result {
    match args {
        ["demo"] => programs::demo(&[]),
        ["demo", "--", rest @ ..] => programs::demo(rest),
        ["test"] => programs::test(),
        ["synth", size, file, rest @ ..] => programs::synth(size, file, rest),
        ["golden"] => programs::golden(programs::GOLDEN),
        ["golden", dir] => programs::golden(dir),
        ["tiny"] => tiny::measure(),
        ["tiny", checkpoint] => tiny::remake(checkpoint),
        ["valgrind"] => programs::valgrind(),
        ["server-test"] => programs::server_test(),
        ["api"] => programs::write_api(),
        ["api", "check"] => programs::check_api(),
        ["ci"] => ci::run(),
        ["rules"] => rules::check(),
        ["vendor", "fetch"] => vendor::fetch(),
        ["vendor", "rebase", how @ ("--continue" | "--skip" | "--abort")] => rebase::go_on(how),
        ["vendor", "rebase", version] => rebase::start(version),
        ["patches", "edit"] => patches::edit(),
        ["patches", "export"] => patches::export(),
        ["patches", "check"] => patches::check(),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        other => {
            eprint!("{HELP}");
            Err(format!("no such command: {}", other.join(" ")))
        }
    }
}
