//! From GGUF keys to a tokenizer, with every contradiction found before it can hurt.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::special::Matcher;
use super::{Inner, Kind, SPACE};
use crate::error::{Error, Result};
use crate::ggml::gguf::{Metadata, Strings};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
/// Longest token text in bytes; the longest real one has 93.
const MAX_TOKEN: usize = 1024;

pub(super) fn inner(metadata: &Metadata) -> Result<Inner> {
    let broken = |what: String| Error::Tokenizer(format!("{}: {what}", metadata.path().display()));
    let missing = |key: &str| broken(format!("{key} is missing; the file has no usable tokenizer"));
    match metadata.str("tokenizer.ggml.model")? {
        Some("gemma4") => {}
        Some(other) => {
            return Err(metadata.wrong("tokenizer.ggml.model", format!("{other:?}"), "\"gemma4\""));
        }
        None => return Err(missing("tokenizer.ggml.model")),
    }
    let texts = metadata.strings(TOKENS)?.ok_or_else(|| missing(TOKENS))?.clone();
    if texts.is_empty() || i32::try_from(texts.len()).is_err() {
        return Err(broken(format!("{TOKENS} has {} entries", texts.len())));
    }
    if let Some((i, text)) = texts.iter().enumerate().find(|(_, t)| t.is_empty() || t.len() > MAX_TOKEN) {
        let len = text.len();
        return Err(broken(format!("{TOKENS}[{i}] has {len} bytes; tokens have 1 to {MAX_TOKEN}")));
    }
    let mut kinds = kinds(metadata, texts.len(), &missing, &broken)?;
    let named = Named::find(metadata, &texts)?;
    named.mark_control(&mut kinds);

    let merges = metadata.strings(MERGES)?.ok_or_else(|| missing(MERGES))?;
    let bpe = model(&texts, &kinds, merges, named.unk, &broken)?;
    let of = |wanted: fn(Kind) -> bool| {
        Matcher::new(ids(&texts).zip(&kinds).filter(|(_, kind)| wanted(**kind)).map(|(token, _)| token))
    };
    let all_special = of(|kind| matches!(kind, Kind::Control | Kind::Unknown | Kind::UserDefined));
    let user_special = of(|kind| kind == Kind::UserDefined);
    let (pieces, piece_ends) = pieces(&texts);
    let n_vocab = texts.len();
    // Ids outside the vocabulary are dropped, as in llama.cpp: the keys are copied from larger siblings.
    let suppressed = metadata.ints("tokenizer.ggml.suppress_tokens")?.unwrap_or_default();
    let in_vocab = |id: i64| u32::try_from(id).ok().filter(|&id| (id as usize) < n_vocab);
    Ok(Inner {
        n_merges: merges.len(),
        texts,
        pieces,
        piece_ends,
        kinds,
        bpe,
        all_special,
        user_special,
        bos: named.bos,
        eos: named.eos,
        pad: named.pad,
        unk: named.unk,
        mask: named.mask,
        eot: named.eot,
        eog: named.eog,
        suppressed: suppressed.into_iter().filter_map(in_vocab).collect(),
        chat_template: metadata.str("tokenizer.chat_template")?.map(str::to_owned),
        #[cfg(feature = "grammar")]
        grammar: crate::grammar::Cache::default(),
    })
}

/// Texts with their ids.
fn ids(texts: &Strings) -> impl Iterator<Item = (&str, u32)> {
    texts.iter().zip(0u32..)
}

fn kinds(
    metadata: &Metadata,
    n_vocab: usize,
    missing: &dyn Fn(&str) -> Error,
    broken: &dyn Fn(String) -> Error,
) -> Result<Vec<Kind>> {
    let types = metadata.ints(TYPES)?.ok_or_else(|| missing(TYPES))?;
    if types.len() != n_vocab {
        return Err(broken(format!("{TYPES} has {} entries for {n_vocab} tokens", types.len())));
    }
    let kind = |(i, id): (usize, i64)| match id {
        // 0 is "undefined", which llama.cpp reads as normal text too.
        0 | 1 => Ok(Kind::Normal),
        2 => Ok(Kind::Unknown),
        3 => Ok(Kind::Control),
        4 => Ok(Kind::UserDefined),
        5 => Ok(Kind::Unused),
        6 => Ok(Kind::Byte),
        _ => Err(broken(format!("{TYPES}[{i}] is {id}; types go from 1 to 6"))),
    };
    types.into_iter().enumerate().map(kind).collect()
}

/// The tokens with a role.
struct Named {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    mask: Option<u32>,
    eot: Option<u32>,
    eog: Vec<u32>,
}

impl Named {
    fn find(metadata: &Metadata, texts: &Strings) -> Result<Named> {
        let mut by_text = [None; 5];
        const WANTED: [&str; 5] = ["<bos>", "<eos>", "<turn|>", "<|tool_response>", "</s>"];
        for (text, id) in ids(texts).filter(|(text, _)| text.starts_with('<')) {
            for (slot, wanted) in by_text.iter_mut().zip(WANTED) {
                if text == wanted {
                    *slot = Some(id);
                }
            }
        }
        let [bos, eos, turn_end, tool_response, strike_end] = by_text;
        let by_key = |name: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = metadata.u32(&key)?;
            match id {
                Some(id) if id as usize >= texts.len() => {
                    let expected = format!("the id of one of the {} tokens", texts.len());
                    Err(metadata.wrong(&key, id.to_string(), expected))
                }
                id => Ok(id),
            }
        };
        let eos_key = by_key("eos")?;
        // `</s>` closes HTML's strike-through here, whatever a file says: it never ends a text.
        // `eot_token_id` is not read: files have put the newline there, which ends every answer after a line.
        let ends = [eos_key, eos, turn_end, tool_response].into_iter().flatten();
        let mut eog: Vec<u32> = ends.filter(|&id| Some(id) != strike_end).collect();
        eog.sort_unstable();
        eog.dedup();
        Ok(Named {
            bos: by_key("bos")?.or(bos),
            eos: eos_key.or(eos),
            pad: by_key("padding")?,
            unk: by_key("unknown")?,
            mask: by_key("mask")?,
            eot: turn_end,
            eog,
        })
    }

    /// Corrects types: some files call `<eos>` normal text, but what ends a text must not be printed in it.
    fn mark_control(&self, kinds: &mut [Kind]) {
        for id in self.eog.iter().copied().chain(self.bos) {
            if let Some(kind @ (Kind::Normal | Kind::Unused)) = kinds.get_mut(id as usize) {
                tracing::debug!(id, "a token that frames texts is typed as ordinary text; taken for control");
                *kind = Kind::Control;
            }
        }
    }
}

/// The byte of a byte token's text, `<0x00>` to `<0xFF>`.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = digits.len() == 2 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if upper { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// What the tokens decode to, in one piece of memory, and where each ends.
fn pieces(texts: &Strings) -> (Vec<u8>, Vec<usize>) {
    let mut pieces = Vec::new();
    let mut ends = Vec::with_capacity(texts.len());
    for text in texts.iter() {
        match byte_of(text) {
            Some(byte) => pieces.push(byte),
            None => {
                for (i, part) in text.split(SPACE).enumerate() {
                    if i > 0 {
                        pieces.push(b' ');
                    }
                    pieces.extend_from_slice(part.as_bytes());
                }
            }
        }
        ends.push(pieces.len());
    }
    (pieces, ends)
}

/// The byte-pair model.
///
/// Control tokens are left out of it, with the merges that would make them. Where special tokens are parsed this
/// changes nothing: their text never reaches the model. Where they are not, no spelling can produce one. The
/// unknown token is there for what has no spelling, but no merge makes it.
fn model(
    texts: &Strings,
    kinds: &[Kind],
    merges: &Strings,
    unk: Option<u32>,
    broken: &dyn Fn(String) -> Error,
) -> Result<BPE> {
    let unk = unk.and_then(|id| texts.get(id as usize));
    let control = texts.iter().zip(kinds).filter(|(_, kind)| **kind == Kind::Control).map(|(text, _)| text);
    let hidden: HashSet<&str> = control.filter(|text| Some(*text) != unk).collect();
    let mut vocab = Vocab::with_capacity(texts.len());
    let mut bytes = HashSet::new();
    for (text, id) in ids(texts).filter(|(text, _)| !hidden.contains(text)) {
        bytes.extend(byte_of(text));
        vocab.insert(text.to_owned(), id);
    }
    // With some bytes only, a character might vanish or come out of order: all or none.
    let byte_fallback = bytes.len() == 256;
    if !byte_fallback && unk.is_none() {
        return Err(broken(format!(
            "only {} of the 256 byte tokens exist and there is no unknown token: not every text can be encoded",
            bytes.len()
        )));
    }
    let (mut pairs, mut joined) = (Merges::with_capacity(merges.len()), String::new());
    for (i, merge) in merges.iter().enumerate() {
        // The first character may be anything, so the space is looked for after it. Pieces may be newlines:
        // nothing is trimmed.
        let cut = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let (left, right) = cut
            .and_then(|at| Some((merge.get(..at)?, merge.get(at.checked_add(1)?..)?)))
            .filter(|(_, right)| !right.is_empty())
            .ok_or_else(|| {
                broken(format!("{MERGES}[{i}], {merge:?}, is not two pieces with a space between"))
            })?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let parts = [left, right, joined.as_str()];
        match parts.iter().find(|part| !vocab.contains_key(**part)) {
            None if parts.iter().any(|part| Some(*part) == unk) => {}
            None => pairs.push((left.to_owned(), right.to_owned())),
            Some(_) if parts.iter().any(|part| hidden.contains(*part)) => {}
            // The crate would slice out of bounds on some of these.
            Some(part) => {
                return Err(broken(format!("{MERGES}[{i}], {merge:?}: {part:?} is not in the vocabulary")));
            }
        }
    }
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, pairs)
        .fuse_unk(true)
        .byte_fallback(byte_fallback)
        // The cache serves pre-tokenised words. Here a whole text is one word, and what the cache holds would
        // stay in each thread after the tokenizer is gone.
        .cache_capacity(0);
    if let Some(unk) = unk {
        builder = builder.unk_token(unk.to_owned());
    }
    builder.build().map_err(|e| broken(e.to_string()))
}
