//! Raw bindings of the patched headers.

use crate::fail;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::Command;

#[derive(Debug)]
struct Names {
    prefix: Option<&'static str>,
}

impl bindgen::callbacks::ParseCallbacks for Names {
    fn generated_link_name_override(&self, item: bindgen::callbacks::ItemInfo<'_>) -> Option<String> {
        self.prefix.map(|prefix| format!("{prefix}{}", item.name))
    }
}

/// Whether bindgen can load libclang. It says no by a panic.
pub fn libclang_works() -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let works =
        catch_unwind(|| bindgen::builder().header_contents("probe.h", "int probe;").generate().is_ok());
    std::panic::set_hook(hook);
    works.unwrap_or(false)
}

/// Writes the bindings of everything public in ggml, its patches and the exception shim.
pub fn generate(tree: &Path, shim: &Path, prefix: Option<&'static str>, to: &Path) {
    let mut builder = bindgen::builder()
        .header(shim.join("bindings.h").display().to_string())
        .clang_arg(format!("-I{}", tree.join("include").display()))
        .allowlist_item("(ggml|gguf|GGML|GGUF)_.*")
        .blocklist_type("FILE|_IO_.*")
        .raw_line("/// C's stdio stream.\npub type FILE = core::ffi::c_void;")
        .use_core()
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .layout_tests(true)
        .parse_callbacks(Box::new(Names { prefix }));
    if let Some(dir) = compiler_headers() {
        // The libclang of a Python wheel comes without its own stdbool.h and friends.
        builder = builder.clang_arg(format!("-idirafter{dir}"));
    }
    let bindings =
        builder.generate().unwrap_or_else(|e| fail(&format!("bindgen cannot read ggml's headers: {e}")));
    if let Err(e) = bindings.write_to_file(to) {
        fail(&format!("cannot write {}: {e}", to.display()));
    }
}

fn compiler_headers() -> Option<String> {
    let done = Command::new("cc").arg("-print-file-name=include").output().ok()?;
    let dir = String::from_utf8(done.stdout).ok()?.trim().to_owned();
    Path::new(&dir).is_dir().then_some(dir)
}
