//! Gives every symbol of a static build a prefix of our own.
//!
//! Another crate in the same program may carry another ggml (llama.cpp, whisper.cpp). A linker takes the
//! first definition of a name it meets, so the two would share functions but not structs. No link error
//! warns of it; the heap breaks later. Loadable backends are not affected: shared libraries bind to their
//! own copies.

use crate::{Features, cargo_var, fail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const PREFIX: &str = "g4_";

/// The tools, and the variables that name others.
pub const TOOLS: [(&str, &str); 2] = [("NM", "nm"), ("OBJCOPY", "objcopy")];

/// The prefix of this build, if its symbols get one. Apple's and Microsoft's object files keep their
/// names: their tool chains come without objcopy.
pub fn prefix(features: &Features) -> Option<&'static str> {
    let unix = cargo_var("CARGO_CFG_TARGET_FAMILY").contains("unix");
    let apple = cargo_var("CARGO_CFG_TARGET_VENDOR") == "apple";
    (unix && !apple && !features.dynamic).then_some(PREFIX)
}

/// Copies the archives of `from` to `to`, with `prefix` before each defined symbol and before the name
/// of each library. Returns objcopy's list of old and new names, for C code of others that calls this ggml.
pub fn rename(prefix: &str, from: &Path, to: &Path) -> PathBuf {
    let archives = archives(from);
    let mut names = BTreeSet::new();
    for archive in &archives {
        let listing =
            run(Command::new(tool("NM", "nm")).args(["--defined-only", "--format=posix"]).arg(archive));
        // Lines are "name type value size"; headers of archive members have one word. Besides the global
        // symbols (capitals, and u) there are the signatures of section groups (n): g++ puts the variants C1
        // and C2 of an inline constructor into a group signed by a local name with C5. Were these left alone,
        // the linker would take the other ggml's group for ours and drop ours, and calls would go to address 0.
        let global = |kind: &str| kind.starts_with(|c: char| c.is_ascii_uppercase() || c == 'u' || c == 'n');
        let parts =
            |l: &str| l.split_once(' ').filter(|(_, rest)| global(rest)).map(|(name, _)| name.to_owned());
        names.extend(listing.lines().filter_map(parts));
    }
    let map: String = names.iter().map(|n| format!("{n} {prefix}{n}\n")).collect();
    let map_file = from.join("renamed-symbols.txt");
    if let Err(e) = std::fs::create_dir_all(to).and_then(|()| std::fs::write(&map_file, map)) {
        fail(&format!("cannot write {}: {e}", map_file.display()));
    }
    for archive in &archives {
        let name = archive.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let renamed = to.join(format!("lib{prefix}{}", name.trim_start_matches("lib")));
        run(Command::new(tool("OBJCOPY", "objcopy"))
            .arg("--redefine-syms")
            .arg(&map_file)
            .arg(archive)
            .arg(renamed));
    }
    map_file
}

fn archives(dir: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(dir).unwrap_or_else(|e| fail(&format!("cannot list {}: {e}", dir.display())));
    let mut found: Vec<_> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == "a")).collect();
    found.sort();
    found
}

/// The program to run, which a variable may name.
pub fn tool(variable: &str, name: &str) -> String {
    println!("cargo:rerun-if-env-changed={variable}");
    std::env::var(variable).unwrap_or_else(|_| name.to_owned())
}

fn run(command: &mut Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(done) if done.status.success() => String::from_utf8_lossy(&done.stdout).into_owned(),
        Ok(done) => fail(&format!("{program} failed: {}", String::from_utf8_lossy(&done.stderr))),
        Err(e) => fail(&format!(
            "cannot run {program}: {e}. It is part of binutils and gives our copy of ggml names of its own"
        )),
    }
}
