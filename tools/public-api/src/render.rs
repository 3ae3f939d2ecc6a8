//! Items as lines of text.

use crate::crate_files::is_public;
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Field, Fields, File, ImplItem, Item, ItemImpl, Signature, Token, TraitItem, Type, parse_quote,
};

/// The lines of an item that is visible as `at`.
pub fn item(item: &Item, at: &str) -> Vec<String> {
    let (attrs, mut lines) = match item {
        Item::Const(x) => (&x.attrs, vec![format!("pub const {at}: {}", ty(&x.ty))]),
        Item::Static(x) => (&x.attrs, vec![format!("pub static {at}: {}", ty(&x.ty))]),
        Item::Type(x) => (&x.attrs, vec![format!("pub type {at}{} = {}", generics(&x.generics), ty(&x.ty))]),
        Item::Fn(x) => (&x.attrs, vec![function(&x.sig, at)]),
        Item::Struct(x) => {
            let mut lines = vec![format!("pub struct {at}{}", generics(&x.generics))];
            lines.extend(fields(&x.fields, at, false));
            lines.extend(derives(&x.attrs, at));
            (&x.attrs, lines)
        }
        Item::Enum(x) => {
            let mut lines = vec![format!("pub enum {at}{}", generics(&x.generics))];
            for variant in &x.variants {
                let at = format!("{at}::{}", variant.ident);
                lines.push(format!("pub {at}"));
                lines.extend(fields(&variant.fields, &at, true));
            }
            lines.extend(derives(&x.attrs, at));
            (&x.attrs, lines)
        }
        Item::Trait(x) => {
            let mut lines = vec![format!("pub trait {at}{}", generics(&x.generics))];
            lines.extend(x.items.iter().filter_map(|item| match item {
                TraitItem::Fn(f) => Some(function(&f.sig, &format!("{at}::{}", f.sig.ident))),
                _ => None,
            }));
            (&x.attrs, lines)
        }
        _ => return Vec::new(),
    };
    mark(attrs, &mut lines);
    lines
}

/// The lines of an `impl` block for the type that is visible as `at`.
pub fn implementation(block: &ItemImpl, at: &str) -> Vec<String> {
    if let Some((_, path, _)) = &block.trait_ {
        let path: Type = parse_quote!(#path);
        let mut lines = vec![format!("impl {} for {at}", ty(&path))];
        mark(&block.attrs, &mut lines);
        return lines;
    }
    let mut all = Vec::new();
    for item in &block.items {
        let (attrs, line) = match item {
            ImplItem::Fn(f) if is_public(&f.vis) => {
                (&f.attrs, function(&f.sig, &format!("{at}::{}", f.sig.ident)))
            }
            ImplItem::Const(c) if is_public(&c.vis) => {
                (&c.attrs, format!("pub const {at}::{}: {}", c.ident, ty(&c.ty)))
            }
            _ => continue,
        };
        let mut lines = vec![line];
        mark(attrs, &mut lines);
        mark(&block.attrs, &mut lines);
        all.extend(lines);
    }
    all
}

/// What the attributes say that matters to callers, after each line.
fn mark(attrs: &[Attribute], lines: &mut [String]) {
    let mut marks = String::new();
    for attr in attrs {
        let text = match attr.meta.path() {
            path if path.is_ident("cfg") => one_line(&attribute(attr)),
            path if path.is_ident("non_exhaustive") => "non_exhaustive".to_owned(),
            path if path.is_ident("deprecated") => "deprecated".to_owned(),
            path if path.is_ident("doc")
                && attr.parse_args::<syn::Path>().is_ok_and(|p| p.is_ident("hidden")) =>
            {
                "hidden".to_owned()
            }
            _ => continue,
        };
        marks += &format!("  [{text}]");
    }
    if let Some(first) = lines.first_mut().filter(|_| !marks.is_empty()) {
        first.push_str(&marks);
    }
}

fn attribute(attr: &Attribute) -> String {
    let item: Item = parse_quote!(#attr struct X;);
    let text = print(item);
    text.trim_start_matches("#[").split(")]").next().map(|s| format!("{s})")).unwrap_or_default()
}

fn fields(fields: &Fields, at: &str, all: bool) -> Vec<String> {
    let shown = |field: &&Field| all || is_public(&field.vis);
    let name =
        |i: usize, field: &Field| field.ident.as_ref().map_or_else(|| i.to_string(), ToString::to_string);
    let numbered = fields.iter().enumerate().filter(|(_, field)| shown(field));
    numbered.map(|(i, field)| format!("pub {at}::{}: {}", name(i, field), ty(&field.ty))).collect()
}

fn derives(attrs: &[Attribute], at: &str) -> Vec<String> {
    let mut out = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("derive")) {
        let paths = attr.parse_args_with(Punctuated::<syn::Path, Token![,]>::parse_terminated);
        for path in paths.into_iter().flatten() {
            let path: Type = parse_quote!(#path);
            out.push(format!("impl {} for {at}", ty(&path)));
        }
    }
    out
}

fn function(sig: &Signature, at: &str) -> String {
    let item: Item = parse_quote!(#sig {});
    let text = one_line(print(item).trim_end().trim_end_matches("{}"));
    // Whether an argument changes inside is the function's own business.
    let text = text.replace("(mut self", "(self").replace(", mut ", ", ");
    text.replacen(&format!("fn {}", sig.ident), &format!("pub fn {at}"), 1)
}

fn generics(generics: &syn::Generics) -> String {
    let item: Item = parse_quote!(struct X #generics;);
    one_line(print(item).trim_start_matches("struct X").trim_end().trim_end_matches(';'))
}

fn ty(ty: &Type) -> String {
    let item: Item = parse_quote!(type X = #ty;);
    one_line(print(item).trim_start_matches("type X =").trim_end().trim_end_matches(';'))
}

fn print(item: Item) -> String {
    prettyplease::unparse(&File { shebang: None, attrs: Vec::new(), items: vec![item] })
}

/// Without line breaks, and without the commas that stood before them.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words
        .join(" ")
        .replace("( ", "(")
        .replace(", )", ")")
        .replace(",)", ")")
        .replace("< ", "<")
        .replace(", >", ">")
}
