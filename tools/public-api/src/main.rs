//! Lists every public item of the crate `gemma4`, one a line, from its sources.
//!
//! `cargo public-api` needs a nightly compiler; this needs none. It reads files and `use` declarations and does not
//! expand macros or infer types: an item made by a macro, and auto traits such as `Send`, are not listed. Methods
//! are found by the name of their type.

mod crate_files;
mod render;

use crate_files::{Found, Sources};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use syn::{Item, ItemImpl, Type};

/// Lines of all that is visible below a module.
struct Listing<'a> {
    sources: &'a Sources,
    lines: BTreeSet<String>,
}

impl Listing<'_> {
    /// Everything that the module at `path` shows, under the name `shown`.
    fn module(&mut self, path: &[String], shown: &str) {
        let public: Vec<_> = self.sources.public_names(path);
        for name in public {
            match self.sources.resolve(path, &name) {
                Some(found) => self.item(&found, &name, shown),
                None => self.lines.push_unknown(shown, &name),
            }
        }
    }

    fn item(&mut self, found: &Found, name: &str, shown: &str) {
        let at = format!("{shown}::{name}");
        match found {
            Found::Module(path) => {
                self.lines.insert(format!("pub mod {at}"));
                self.module(path, &at);
            }
            Found::Item(item) => {
                self.lines.extend(render::item(item, &at));
                if matches!(item, Item::Struct(_) | Item::Enum(_)) {
                    self.implementations(name, &at);
                }
            }
        }
    }

    fn implementations(&mut self, name: &str, at: &str) {
        for block in self.sources.items().filter_map(|item| match item {
            Item::Impl(block) if is_for(block, name) => Some(block),
            _ => None,
        }) {
            self.lines.extend(render::implementation(block, at));
        }
    }
}

/// A name that is public and cannot be found is shown, so that nothing is lost in silence.
trait PushUnknown {
    fn push_unknown(&mut self, shown: &str, name: &str);
}

impl PushUnknown for BTreeSet<String> {
    fn push_unknown(&mut self, shown: &str, name: &str) {
        self.insert(format!("pub use {shown}::{name} (not found in the sources)"));
    }
}

fn is_for(block: &ItemImpl, name: &str) -> bool {
    match &*block.self_ty {
        Type::Path(path) => path.path.segments.last().is_some_and(|segment| segment.ident == name),
        _ => false,
    }
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../gemma4/src");
    let sources = match Sources::read(&root) {
        Ok(sources) => sources,
        Err(e) => {
            eprintln!("public-api: {e}");
            return ExitCode::FAILURE;
        }
    };
    let mut listing = Listing { sources: &sources, lines: BTreeSet::new() };
    listing.module(&[], "gemma4");
    for line in listing.lines {
        println!("{line}");
    }
    ExitCode::SUCCESS
}
