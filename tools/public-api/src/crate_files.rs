//! The files of a crate as a tree of modules.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use syn::{Item, UseTree, Visibility};

/// What a public name stands for.
pub enum Found<'a> {
    /// A module, by its path from the crate's root.
    Module(Vec<String>),
    /// Anything else.
    Item(&'a Item),
}

/// The parsed modules, by their paths.
pub struct Sources(BTreeMap<Vec<String>, Vec<Item>>);

impl Sources {
    /// Reads the crate whose `lib.rs` is in `dir`.
    pub fn read(dir: &Path) -> Result<Sources, String> {
        let mut modules = BTreeMap::new();
        read_module(&dir.join("lib.rs"), dir, Vec::new(), &mut modules)?;
        Ok(Sources(modules))
    }

    /// All items of all modules.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.0.values().flatten()
    }

    fn module(&self, path: &[String]) -> &[Item] {
        self.0.get(path).map_or(&[], Vec::as_slice)
    }

    /// Names that a module shows to everybody.
    pub fn public_names(&self, path: &[String]) -> Vec<String> {
        let mut names = Vec::new();
        for item in self.module(path) {
            if let Item::Use(item) = item
                && is_public(&item.vis)
            {
                for (target, name) in leaves(&item.tree, &[]) {
                    if name == "*" {
                        names.extend(self.public_names(&absolute(path, &target)));
                    } else {
                        names.push(name);
                    }
                }
            } else if let Some((name, vis)) = name(item)
                && is_public(vis)
            {
                names.push(name);
            }
        }
        names
    }

    /// What `name` in the module at `path` is, through whatever `use` brings it there.
    pub fn resolve(&self, path: &[String], name: &str) -> Option<Found<'_>> {
        for item in self.module(path) {
            if self::name(item).is_some_and(|(n, _)| n == name) {
                if let Item::Mod(_) = item {
                    return Some(Found::Module([path, &[name.to_owned()]].concat()));
                }
                return Some(Found::Item(item));
            }
        }
        for item in self.module(path) {
            let Item::Use(item) = item else { continue };
            for (target, leaf) in leaves(&item.tree, &[]) {
                let found = match leaf.as_str() {
                    "*" => self.resolve(&absolute(path, &target), name),
                    leaf if leaf == name => {
                        let (last, module) = target.split_last()?;
                        self.resolve(&absolute(path, module), last)
                    }
                    _ => None,
                };
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }
}

fn read_module(
    file: &Path,
    dir: &Path,
    path: Vec<String>,
    modules: &mut BTreeMap<Vec<String>, Vec<Item>>,
) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let items = syn::parse_file(&text).map_err(|e| format!("{}: {e}", file.display()))?.items;
    add_module(items, dir, path, modules)
}

fn add_module(
    items: Vec<Item>,
    dir: &Path,
    path: Vec<String>,
    modules: &mut BTreeMap<Vec<String>, Vec<Item>>,
) -> Result<(), String> {
    let items: Vec<_> = items.into_iter().filter(|item| !is_test(item)).collect();
    for item in &items {
        let Item::Mod(module) = item else { continue };
        let name = module.ident.to_string();
        let inner = [&path[..], std::slice::from_ref(&name)].concat();
        match &module.content {
            Some((_, items)) => add_module(items.clone(), &dir.join(&name), inner, modules)?,
            None => {
                let flat = dir.join(format!("{name}.rs"));
                let file = if flat.is_file() { flat } else { dir.join(&name).join("mod.rs") };
                read_module(&file, &dir.join(&name), inner, modules)?;
            }
        }
    }
    modules.insert(path, items);
    Ok(())
}

fn is_test(item: &Item) -> bool {
    let Item::Mod(module) = item else { return false };
    module.attrs.iter().any(|attr| {
        attr.path().is_ident("cfg") && attr.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

/// Whether everybody sees it: not `pub(crate)`.
pub fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

fn name(item: &Item) -> Option<(String, &Visibility)> {
    Some(match item {
        Item::Const(x) => (x.ident.to_string(), &x.vis),
        Item::Enum(x) => (x.ident.to_string(), &x.vis),
        Item::Fn(x) => (x.sig.ident.to_string(), &x.vis),
        Item::Mod(x) => (x.ident.to_string(), &x.vis),
        Item::Static(x) => (x.ident.to_string(), &x.vis),
        Item::Struct(x) => (x.ident.to_string(), &x.vis),
        Item::Trait(x) => (x.ident.to_string(), &x.vis),
        Item::Type(x) => (x.ident.to_string(), &x.vis),
        _ => return None,
    })
}

/// The paths of a `use`, each with the name it has afterwards; `*` for all.
fn leaves(tree: &UseTree, before: &[String]) -> Vec<(Vec<String>, String)> {
    let with = |name: String| [before, &[name]].concat();
    match tree {
        UseTree::Path(path) => leaves(&path.tree, &with(path.ident.to_string())),
        UseTree::Name(name) if name.ident == "self" => {
            let name = before.last().cloned().unwrap_or_default();
            vec![(before.to_vec(), name)]
        }
        UseTree::Name(name) => vec![(with(name.ident.to_string()), name.ident.to_string())],
        UseTree::Rename(name) => vec![(with(name.ident.to_string()), name.rename.to_string())],
        UseTree::Glob(_) => vec![(before.to_vec(), "*".to_owned())],
        UseTree::Group(group) => group.items.iter().flat_map(|tree| leaves(tree, before)).collect(),
    }
}

/// A path as written in the module `here`, from the crate's root.
fn absolute(here: &[String], path: &[String]) -> Vec<String> {
    let mut out = here.to_vec();
    for (i, part) in path.iter().enumerate() {
        match part.as_str() {
            "crate" if i == 0 => out.clear(),
            "self" => {}
            "super" => {
                out.pop();
            }
            part => out.push(part.to_owned()),
        }
    }
    out
}
