//! Copies upstream into the build folder with the patch series applied.

use crate::fail;
use diffy::patch_set::{FileOperation, ParseOptions, PatchKind, PatchSet};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Backends that this crate never builds: a third of upstream's files.
const UNUSED: [&str; 13] = [
    "ggml-blas",
    "ggml-cann",
    "ggml-et",
    "ggml-hexagon",
    "ggml-musa",
    "ggml-opencl",
    "ggml-openvino",
    "ggml-rpc",
    "ggml-sycl",
    "ggml-virtgpu",
    "ggml-webgpu",
    "ggml-zdnn",
    "ggml-zendnn",
];

type Files = BTreeMap<String, Vec<u8>>;

/// Writes the patched tree to `tree`. Files whose content is the same are left alone, so that CMake
/// rebuilds only what a patch changed.
pub fn stage(upstream: &Path, patches: &Path, tree: &Path) {
    println!("cargo:rerun-if-changed={}", patches.display());
    println!("cargo:rerun-if-env-changed=GGML_SYS_NO_PATCHES");
    let mut files = Files::new();
    read_tree(upstream, "", &mut files);
    // For a GGML_SYS_SOURCE_DIR that carries the series already.
    if std::env::var_os("GGML_SYS_NO_PATCHES").is_none() {
        for name in series(patches) {
            apply(&patches.join(&name), &name, &mut files);
        }
    }
    write_tree(tree, &files);
}

fn io<T>(what: &str, path: &Path, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|e| fail(&format!("cannot {what} {}: {e}", path.display())))
}

fn read_tree(root: &Path, below: &str, files: &mut Files) {
    let dir = root.join(below);
    for entry in io("list", &dir, fs::read_dir(&dir)) {
        let entry = io("list", &dir, entry);
        let name = entry.file_name().to_string_lossy().into_owned();
        let inner = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        let path = entry.path();
        // Only what a build reads: a checkout may hold tests, examples, .git and build folders.
        let wanted =
            !below.is_empty() || matches!(name.as_str(), "include" | "src" | "cmake" | "CMakeLists.txt");
        if !wanted || UNUSED.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            read_tree(root, &inner, files);
        } else {
            files.insert(inner, io("read", &path, fs::read(&path)));
        }
    }
}

fn series(patches: &Path) -> Vec<String> {
    let path = patches.join("series");
    let text = io("read", &path, fs::read_to_string(&path));
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect()
}

/// Applies one git-format patch, exactly: hunks may have moved, but no context line may differ.
fn apply(path: &Path, name: &str, files: &mut Files) {
    let text = io("read", path, fs::read_to_string(path));
    let refuse = |what: String| -> ! {
        fail(&format!(
            "patch {name} does not apply: {what}\n\
             The series is made for the ggml version pinned in vendor/Cargo.toml. With another source, rebase it \
             (patches/README.md), or set GGML_SYS_NO_PATCHES=1 if the source is patched already."
        ))
    };
    for part in PatchSet::parse(&text, ParseOptions::gitdiff()) {
        let part = part.unwrap_or_else(|e| refuse(format!("it is no git-format patch: {e}")));
        let PatchKind::Text(patch) = part.patch() else { refuse("it changes a binary file".into()) };
        // git prefixes both sides: a/ and b/.
        let operation = part.operation().strip_prefix(1);
        let (old, new) = match &operation {
            FileOperation::Create(to) => (None, Some(to.to_string())),
            FileOperation::Delete(from) => (Some(from.to_string()), None),
            FileOperation::Modify { original, modified } => {
                (Some(original.to_string()), Some(modified.to_string()))
            }
            FileOperation::Rename { from, to } => (Some(from.to_string()), Some(to.to_string())),
            FileOperation::Copy { .. } => refuse("it copies a file; write the copy out".into()),
        };
        let label = old.clone().or_else(|| new.clone()).unwrap_or_default();
        if part_is_unused(&label) {
            continue;
        }
        let before = match &old {
            None if new.as_ref().is_some_and(|n| files.contains_key(n)) => {
                refuse(format!("{label}: the file it creates exists"))
            }
            None => String::new(),
            Some(old) => match files.remove(old) {
                Some(bytes) => {
                    String::from_utf8(bytes).unwrap_or_else(|_| refuse(format!("{label}: not UTF-8 text")))
                }
                None => refuse(format!("{label}: no such file")),
            },
        };
        let after = diffy::apply(&before, patch).unwrap_or_else(|e| refuse(format!("{label}: {e}")));
        if let Some(new) = new {
            files.insert(new, after.into_bytes());
        }
    }
}

fn part_is_unused(path: &str) -> bool {
    path.split('/').any(|dir| UNUSED.contains(&dir))
}

fn write_tree(tree: &Path, files: &Files) {
    let mut stray = Vec::new();
    list_files(tree, tree, &mut stray);
    for (name, bytes) in files {
        let path = tree.join(name);
        if fs::read(&path).is_ok_and(|have| have == *bytes) {
            continue;
        }
        if let Some(dir) = path.parent() {
            io("create", dir, fs::create_dir_all(dir));
        }
        io("write", &path, fs::write(&path, bytes));
    }
    for (name, path) in stray {
        if !files.contains_key(&name) {
            io("remove", &path, fs::remove_file(&path));
        }
    }
}

fn list_files(root: &Path, dir: &Path, found: &mut Vec<(String, PathBuf)>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            list_files(root, &path, found);
        } else if let Ok(below) = path.strip_prefix(root) {
            found.push((below.to_string_lossy().replace('\\', "/"), path.clone()));
        }
    }
}
