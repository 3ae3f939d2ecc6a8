//! The pin of upstream in `vendor/`: a published package, by version and checksum.

use crate::process::{Result, cargo, read, root, show};
use std::fs;
use std::path::{Path, PathBuf};

/// The package that carries ggml.
const PACKAGE: &str = "llama-cpp-sys-2";

/// Downloads the pinned source and every crate of the workspace into cargo's own store.
pub fn fetch() -> Result {
    show(&mut cargo(["fetch", "--locked"]))?;
    show(cargo(["fetch", "--locked", "--manifest-path"]).arg(Pin::ours().manifest()))?;
    println!("all there: `cargo build --offline` works now, without a network");
    Ok(())
}

/// A folder that pins a version: `vendor/`, or a copy of it for another version.
pub struct Pin {
    dir: PathBuf,
}

impl Pin {
    /// The pin of this repository.
    pub fn ours() -> Pin {
        Pin { dir: root().join("vendor") }
    }

    /// A pin that was made before.
    pub fn open(dir: &Path) -> Pin {
        Pin { dir: dir.to_owned() }
    }

    /// Makes a pin of another version in `dir`, with a lock of its own.
    pub fn of_version(dir: &Path, version: &str) -> Result<Pin> {
        let ours = Pin::ours();
        if dir.exists() {
            fs::remove_dir_all(dir).map_err(|e| format!("cannot empty {}: {e}", dir.display()))?;
        }
        copy(&ours.dir, dir)?;
        let pin = Pin { dir: dir.to_owned() };
        let manifest = text(&pin.manifest())?;
        let (old, new) = (requirement(&ours.version()?), requirement(version));
        write(&pin.manifest(), &manifest.replace(&old, &new))?;
        pin.lock()?;
        Ok(pin)
    }

    fn manifest(&self) -> PathBuf {
        self.dir.join("Cargo.toml")
    }

    /// The version that the manifest asks for.
    pub fn version(&self) -> Result<String> {
        let manifest = text(&self.manifest())?;
        pinned_version(&manifest)
            .map(str::to_owned)
            .ok_or_else(|| format!("{} pins no {PACKAGE} with version = \"=...\"", self.manifest().display()))
    }

    /// Makes the lock. The package's build dependencies are stubs of a fixed version: where it asks for
    /// another one, the stub follows; a dependency that it did not have before gets a stub.
    fn lock(&self) -> Result {
        for _ in 0..8 {
            let lock = self.dir.join("Cargo.lock");
            let _ = fs::remove_file(&lock);
            let args = ["generate-lockfile", "--quiet", "--manifest-path"];
            let resolve = |offline: &[&str]| read(cargo(args).arg(self.manifest()).args(offline));
            resolve(&["--offline"]).or_else(|_| resolve(&[]))?;
            let strangers = strangers(&text(&lock)?);
            if strangers.is_empty() {
                return Ok(());
            }
            for (name, version) in strangers {
                self.stub(&name, &version)?;
            }
        }
        Err(format!("no stubs in {} satisfy {PACKAGE}: set their versions by hand", self.dir.display()))
    }

    /// Gives the stub of a package a version, or makes one.
    fn stub(&self, name: &str, version: &str) -> Result {
        let manifest = self.dir.join("stubs").join(name).join("Cargo.toml");
        if let Ok(have) = text(&manifest) {
            let lines = have.lines().map(|line| match line.strip_prefix("version = ") {
                Some(_) => format!("version = \"{version}\"\n"),
                None => format!("{line}\n"),
            });
            return write(&manifest, &lines.collect::<String>());
        }
        fs::create_dir_all(self.dir.join("stubs").join(name))
            .map_err(|e| format!("cannot make a stub: {e}"))?;
        let package = format!("[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2021\"\n");
        write(&manifest, &format!("{package}\n[lib]\npath = \"../../empty.rs\"\n"))?;
        let all = text(&self.manifest())?;
        write(&self.manifest(), &format!("{all}{name} = {{ path = \"stubs/{name}\" }}\n"))
    }

    /// Unpacks the package into `to` and returns the root of ggml in it. As `ggml-sys/build/source.rs` does
    /// it: cargo checks the checksum, and the network is asked only if its store lacks the package.
    pub fn unpack(&self, to: &Path) -> Result<PathBuf> {
        let args = [
            "vendor",
            "--locked",
            "--respect-source-config",
            "--versioned-dirs",
            "--quiet",
            "--manifest-path",
        ];
        let vendor = |offline: &[&str]| read(cargo(args).arg(self.manifest()).args(offline).arg(to));
        vendor(&["--offline"]).or_else(|_| vendor(&[]))?;
        let packages = fs::read_dir(to).map_err(|e| format!("cannot list {}: {e}", to.display()))?;
        packages
            .flatten()
            .map(|package| package.path().join("llama.cpp/ggml"))
            .find(|ggml| ggml.join("include/ggml.h").is_file())
            .ok_or_else(|| format!("the package pinned in {} holds no llama.cpp/ggml", self.dir.display()))
    }

    /// Makes this the pin of the repository: manifest, lock and stubs. The README's table says the same.
    pub fn install(&self, ggml: &str) -> Result {
        let ours = Pin::ours();
        let (old, new) = (ours.version()?, self.version()?);
        copy(&self.dir, &ours.dir)?;
        let readme = ours.dir.join("README.md");
        let lines = text(&readme)?;
        let lines = lines.lines().map(|line| match line.split_once("which carries llama.cpp with ggml ") {
            Some((before, _)) => {
                format!("{}which carries llama.cpp with ggml {ggml} |\n", before.replace(&old, &new))
            }
            None => format!("{}\n", line.replace(&requirement(&old), &requirement(&new))),
        });
        write(&readme, &lines.collect::<String>())
    }
}

/// Version of the ggml in a tree, as its CMakeLists.txt says it.
pub fn ggml_version(tree: &Path) -> Result<String> {
    let cmake = text(&tree.join("CMakeLists.txt"))?;
    let part = |name: &str| {
        let line = cmake.lines().find_map(|l| l.trim().strip_prefix(&format!("set(GGML_VERSION_{name} ")));
        line.and_then(|rest| rest.split(')').next()).unwrap_or("?").to_owned()
    };
    Ok(format!("{}.{}.{}", part("MAJOR"), part("MINOR"), part("PATCH")))
}

fn requirement(version: &str) -> String {
    format!("={version}")
}

fn pinned_version(manifest: &str) -> Option<&str> {
    let line = manifest.lines().find(|line| line.starts_with(PACKAGE))?;
    line.split_once("\"=")?.1.split('"').next()
}

/// Packages of a lock that come from a registry, the pinned one aside: name and version.
fn strangers(lock: &str) -> Vec<(String, String)> {
    let field = |block: &str, key: &str| {
        let line = block.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]").skip(1).filter(|block| field(block, "source").is_some());
    blocks
        .filter_map(|block| Some((field(block, "name")?, field(block, "version")?)))
        .filter(|(name, _)| name != PACKAGE)
        .collect()
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn write(path: &Path, content: &str) -> Result {
    fs::write(path, content).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Copies a small folder.
fn copy(from: &Path, to: &Path) -> Result {
    fs::create_dir_all(to).map_err(|e| format!("cannot create {}: {e}", to.display()))?;
    for entry in fs::read_dir(from).map_err(|e| format!("cannot list {}: {e}", from.display()))?.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target)?;
        } else {
            fs::copy(&source, &target).map_err(|e| format!("cannot copy {}: {e}", source.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_manifest() {
        let manifest =
            "[dependencies]\nllama-cpp-sys-2 = { version = \"=0.1.161\", default-features = false }\n";
        assert_eq!(pinned_version(manifest), Some("0.1.161"));
        assert_eq!(pinned_version("[dependencies]\n"), None);
        assert!(Pin::ours().version().is_ok());
    }

    #[test]
    fn packages_without_a_stub_are_found() {
        let lock = "version = 4\n\n[[package]]\nname = \"cc\"\nversion = \"1.2.61\"\n\n[[package]]\n\
                    name = \"glob\"\nversion = \"0.3.4\"\nsource = \"registry+x\"\nchecksum = \"y\"\n\n[[package]]\n\
                    name = \"llama-cpp-sys-2\"\nversion = \"0.1.161\"\nsource = \"registry+x\"\n";
        assert_eq!(strangers(lock), [("glob".to_owned(), "0.3.4".to_owned())]);
    }
}
