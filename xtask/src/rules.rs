//! House rules that no compiler checks.

use crate::process::{Result, git, read, root};
use std::fs;

/// Folders whose absolute paths name somebody's machine.
const HOMES: [&str; 6] = ["home", "root", "Users", "work", "workspace", "mnt"];

/// Package registries. A build asks the one that the user configured, so no file names one.
const REGISTRIES: [[&str; 2]; 5] =
    [["crates", "io"], ["pypi", "org"], ["pythonhosted", "org"], ["npmjs", "org"], ["npmjs", "com"]];

/// Where Rust may touch raw pointers.
const RAW: [&str; 2] = ["ggml-sys/", "gemma4/src/ggml/"];

/// Most bytes of models and test data.
const DATA_LIMIT: u64 = 30_000_000;

/// Files beyond this size are data wherever they lie.
const LARGE: u64 = 256 << 10;

/// Checks every file that git tracks or would add.
pub fn check() -> Result {
    let listing = read(&mut git(root(), ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    let mut found = Vec::new();
    let mut data = 0;
    let mut count = 0;
    for path in listing.split_terminator('\0') {
        // Deleted files stay listed until the deletion is committed; links point at listed files.
        let Ok(bytes) = fs::read(root().join(path)) else { continue };
        count += 1;
        let size = bytes.len() as u64;
        let is_data = path.starts_with("models/") || path.starts_with("tests/data/") || size > LARGE;
        data += if is_data { size } else { 0 };
        check_file(path, &bytes, &mut found);
    }
    if data > DATA_LIMIT {
        found.push(format!("models and test data have {data} bytes, {DATA_LIMIT} are allowed"));
    }
    if found.is_empty() {
        println!(
            "{count} files keep the rules; {:.1} of {} MB of data",
            data as f64 / 1e6,
            DATA_LIMIT / 1_000_000
        );
        Ok(())
    } else {
        Err(format!("house rules are broken:\n  {}", found.join("\n  ")))
    }
}

fn check_file(path: &str, bytes: &[u8], found: &mut Vec<String>) {
    for home in HOMES {
        if let Some(at) = find_path(bytes, format!("/{home}/").as_bytes()) {
            found.push(format!(
                "{path}:{}: an absolute path of one machine (/{home}/...)",
                line_of(bytes, at)
            ));
        }
    }
    if !path.ends_with("Cargo.lock") {
        for registry in REGISTRIES {
            let name = registry.join(".");
            if let Some(at) = find(bytes, name.as_bytes()) {
                found.push(format!("{path}:{}: names the package registry {name}", line_of(bytes, at)));
            }
        }
    }
    if path.ends_with(".rs") {
        let text = String::from_utf8_lossy(bytes);
        for (i, line) in text.lines().enumerate() {
            let line = without_comment(line);
            if !RAW.iter().any(|raw| path.starts_with(raw)) && has_word(line, concat!("un", "safe")) {
                found.push(format!("{path}:{}: raw code outside {}", i + 1, RAW.join(", ")));
            }
            if path.starts_with("gemma4/src/") && !is_test(path) && reads_environment(line) {
                found.push(format!("{path}:{}: reads the environment; make it a typed option", i + 1));
            }
        }
    }
}

/// Files that hold nothing but tests.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs")
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

/// `std::env` and what is called through it. The macro `env!` is the compiler's and is fine.
fn reads_environment(line: &str) -> bool {
    has_word(line, "std::env")
        || ["env::var", "env::vars", "env::var_os", "env::args"].iter().any(|f| has_word(line, f))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

/// As [`find`], where an absolute path begins: not in the middle of a relative one or of an address.
fn find_path(bytes: &[u8], what: &[u8]) -> Option<usize> {
    let inside = |c: &u8| c.is_ascii_alphanumeric() || b"_.~-/})>*".contains(c);
    let mut from = 0;
    while let Some(at) = find(&bytes[from..], what).map(|at| from + at) {
        if at == 0 || !inside(&bytes[at - 1]) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

fn line_of(bytes: &[u8], at: usize) -> usize {
    bytes[..at].iter().filter(|b| **b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> usize {
        let mut found = Vec::new();
        check_file(path, text.as_bytes(), &mut found);
        found.len()
    }

    #[test]
    fn machine_paths() {
        let home = concat!("/ho", "me/me/x");
        assert_eq!(broken("a.md", &format!("see {home}")), 1);
        assert_eq!(broken("a.md", &format!("see http://host{home} and a{home} and ~{home}")), 0);
        assert_eq!(broken("a.gguf", &format!("\u{0}{home}")), 1);
    }

    #[test]
    fn registries() {
        let host = REGISTRIES[0].join(".");
        assert_eq!(broken("a.toml", &format!("index = \"{host}\"")), 1);
        assert_eq!(broken("x/Cargo.lock", &host), 0);
        assert_eq!(broken("a.toml", "[patch.crates-io]"), 0);
    }

    #[test]
    fn raw_code() {
        let code = concat!("un", "safe { f() }");
        assert_eq!(broken("gemma4/src/model/mod.rs", code), 1);
        assert_eq!(broken("gemma4/src/ggml/mod.rs", code), 0);
        assert_eq!(broken("gemma4/src/model/tests.rs", code), 1);
        assert_eq!(broken("tests/tests/x.rs", code), 1);
        assert_eq!(broken("ggml-sys/tests/x.rs", code), 0);
        assert_eq!(broken("gemma4/src/model/mod.rs", &format!("x // {code}")), 0);
        assert_eq!(broken("gemma4/src/lib.rs", concat!("deny(un", "safe_op_in_un", "safe_fn)")), 0);
    }

    #[test]
    fn environment() {
        assert_eq!(broken("gemma4/src/model/mod.rs", "let x = std::env::var(\"X\");"), 1);
        assert_eq!(broken("gemma4/src/model/mod.rs", "let x = env::var_os(\"X\");"), 1);
        assert_eq!(broken("gemma4/src/model/tests.rs", "let x = env::var_os(\"X\");"), 0);
        assert_eq!(broken("gemma4/src/model/mod.rs", "let x = env!(\"CARGO_MANIFEST_DIR\");"), 0);
        assert_eq!(broken("examples/src/main.rs", "let x = std::env::args();"), 0);
    }
}
