//! Text to tokens and back.
//!
//! The byte-pair encoding itself is the `tokenizers` crate's. Around it stand, by hand, the three things that
//! have to be exact: special tokens, which are cut out of the raw text before anything is normalised; the
//! space, which becomes U+2581; and decoding, which joins the bytes of pieces before it reads them as UTF-8.

mod build;
mod special;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

use crate::error::{Error, Result};
use crate::ggml::gguf::{GgufFile, Metadata, Strings};
use special::Matcher;
pub use stream::TokenStream;

/// What stands for a space in the vocabulary.
const SPACE: &str = "\u{2581}";
/// What an id outside the vocabulary decodes to: U+FFFD.
const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// How [`Tokenizer::encode`] treats a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncodeOptions {
    /// Put the beginning-of-sequence token first, unless the text starts with it already.
    ///
    /// Gemma needs exactly one. A file that says otherwise in `tokenizer.ggml.add_bos_token` is wrong.
    pub add_bos: bool,
    /// Read the text of a control token (`<|turn>`) as that token. Right for chat templates; wrong for text
    /// from users, who could then write turns of their own.
    ///
    /// Tokens that the file calls user-defined (`<|tool_call>`, `<|channel>`) are matched in any case.
    pub parse_special: bool,
}

impl EncodeOptions {
    /// A rendered chat template or a prompt that the program wrote: BOS and control tokens.
    pub const TEMPLATE: EncodeOptions = EncodeOptions { add_bos: true, parse_special: true };
    /// Plain text of unknown origin from the start of a context: BOS, but control tokens are text.
    pub const TEXT: EncodeOptions = EncodeOptions { add_bos: true, parse_special: false };
    /// Text of unknown origin that continues a context: no BOS, and control tokens are text.
    pub const CONTINUATION: EncodeOptions = EncodeOptions { add_bos: false, parse_special: false };

    /// Sets [`add_bos`](Self::add_bos).
    pub const fn add_bos(mut self, yes: bool) -> Self {
        self.add_bos = yes;
        self
    }

    /// Sets [`parse_special`](Self::parse_special).
    pub const fn parse_special(mut self, yes: bool) -> Self {
        self.parse_special = yes;
        self
    }
}

/// What a file says a token is, numbered as in `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The tokenizer of a Gemma 4 model. Cloning is cheap; clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// The text of each token as the file has it.
    texts: Strings,
    /// What each token decodes to, one after the other, and where each ends.
    pieces: Vec<u8>,
    piece_ends: Vec<usize>,
    kinds: Vec<Kind>,
    bpe: BPE,
    n_merges: usize,
    /// Control, unknown and user-defined tokens.
    all_special: Matcher,
    /// User-defined tokens only.
    user_special: Matcher,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    mask: Option<u32>,
    eot: Option<u32>,
    /// Sorted.
    eog: Vec<u32>,
    suppressed: Vec<u32>,
    chat_template: Option<String>,
    /// What grammars need of the vocabulary, made on first use.
    #[cfg(feature = "grammar")]
    grammar: crate::grammar::Cache,
}

/// A tokenizer that does not keep the vocabulary alive.
#[cfg(feature = "grammar")]
#[derive(Clone)]
pub(crate) struct WeakTokenizer(std::sync::Weak<Inner>);

#[cfg(feature = "grammar")]
impl WeakTokenizer {
    pub(crate) fn upgrade(&self) -> Option<Tokenizer> {
        self.0.upgrade().map(|inner| Tokenizer { inner })
    }
}

impl Tokenizer {
    /// Bytes of memory, about: tables of tokens and merges, and what making them leaves to the allocator.
    /// Measured with vocabularies of 4096 and 262,144 tokens; `tests/process_memory.rs` holds it to that.
    pub(crate) fn host_bytes(&self) -> u64 {
        const BASE: u64 = 3 << 20;
        const TOKEN: u64 = 160;
        const MERGE: u64 = 150;
        BASE + TOKEN * self.inner.texts.len() as u64 + MERGE * self.inner.n_merges as u64
    }

    /// Reads the tokenizer of the GGUF file at `path`; of a split model, the first file.
    ///
    /// # Errors
    /// Those of [`GgufFile::open`]; [`Error::Tokenizer`] and [`Error::Model`] if the file has no Gemma 4
    /// tokenizer or a broken one.
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let file = GgufFile::open(path.as_ref(), &crate::ggml::gguf::type_layout)?;
        Tokenizer::from_metadata(&file.metadata)
    }

    /// Builds the tokenizer from the keys of an open file.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if a key is missing or the vocabulary contradicts itself, [`Error::Model`] if a key
    /// has the wrong type or names a token that does not exist.
    pub(crate) fn from_metadata(metadata: &Metadata) -> Result<Tokenizer> {
        build::inner(metadata).map(|inner| Tokenizer { inner: Arc::new(inner) })
    }

    /// Turns text into tokens. Any text is fine; the empty one gives no token, or BOS alone.
    ///
    /// Of special tokens that start at the same place the longest is taken, leftmost first. The text around
    /// them is encoded as it is: nothing is stripped, folded or composed.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if BOS is asked for and the vocabulary has none.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        let inner = &*self.inner;
        // Four bytes a token is usual for English and code.
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        if options.add_bos {
            let none =
                || Error::Tokenizer("BOS was asked for, but the vocabulary has no such token".to_owned());
            ids.push(inner.bos.ok_or_else(none)?);
        }
        let special = if options.parse_special { &inner.all_special } else { &inner.user_special };
        let mut normalized = String::new();
        let mut rest = text;
        while let Some((start, end, id)) = special.find(rest) {
            inner.encode_plain(rest.get(..start).unwrap_or_default(), &mut normalized, &mut ids)?;
            ids.push(id);
            rest = rest.get(end..).unwrap_or_default();
        }
        inner.encode_plain(rest, &mut normalized, &mut ids)?;
        if options.add_bos && ids.len() > 1 && ids.first() == ids.get(1) {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Turns tokens into text. Control tokens are left out; see [`Tokenizer::decode_with`].
    ///
    /// Bytes that are not UTF-8, and ids outside the vocabulary, become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, false)
    }

    /// Turns tokens into text, with control tokens (`<|turn>`) written out if `print_control` is set.
    pub fn decode_with(&self, ids: &[u32], print_control: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len().saturating_mul(4));
        for &id in ids {
            bytes.extend_from_slice(self.printed(id, print_control));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A decoder for tokens that arrive one by one. It owns a clone of the tokenizer.
    pub fn stream(&self, print_control: bool) -> TokenStream {
        TokenStream::new(self.clone(), print_control)
    }

    /// What a token decodes to: the text with U+2581 as a space, or the one byte of a byte token, which need
    /// not be UTF-8. `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let i = usize::try_from(id).ok()?;
        let end = *self.inner.piece_ends.get(i)?;
        let start =
            i.checked_sub(1).and_then(|before| self.inner.piece_ends.get(before)).copied().unwrap_or(0);
        self.inner.pieces.get(start..end)
    }

    /// The text of a token as the vocabulary spells it (`▁the`, `<0x0A>`). `None` outside the vocabulary.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.inner.texts.get(usize::try_from(id).ok()?)
    }

    /// The token that the vocabulary spells `text` (`▁the`, `<0x0A>`, `<|turn>`).
    pub fn token_id(&self, text: &str) -> Option<u32> {
        // Control tokens are not in the model: ordinary text must not become one.
        self.inner.all_special.get(text).or_else(|| self.inner.bpe.token_to_id(text))
    }

    /// Number of tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.inner.kinds.len()
    }

    /// Beginning of sequence, `<bos>`.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// End of text, `<eos>`.
    pub fn eos(&self) -> Option<u32> {
        self.inner.eos
    }

    /// Padding, `<pad>`.
    pub fn pad(&self) -> Option<u32> {
        self.inner.pad
    }

    /// The unknown token, `<unk>`. Encoding does not make it where byte tokens exist.
    pub fn unk(&self) -> Option<u32> {
        self.inner.unk
    }

    /// The mask token, which stands for the tokens that a DFlash drafter has to fill in.
    pub fn mask(&self) -> Option<u32> {
        self.inner.mask
    }

    /// End of a turn, `<turn|>`.
    pub fn eot(&self) -> Option<u32> {
        self.inner.eot
    }

    /// Whether generation ends with this token: end of text, end of a turn, or the point where the model waits
    /// for a tool's result.
    pub fn is_eog(&self, id: u32) -> bool {
        self.inner.eog.binary_search(&id).is_ok()
    }

    /// The tokens for which [`Tokenizer::is_eog`] holds, ascending.
    pub fn eog_tokens(&self) -> &[u32] {
        &self.inner.eog
    }

    /// Whether a token is a control token (or the unknown token): structure, not text.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.kind(id), Some(Kind::Control | Kind::Unknown))
    }

    /// Tokens that the model must not generate: their logits are to be set to minus infinity.
    pub fn suppressed(&self) -> &[u32] {
        &self.inner.suppressed
    }

    /// The chat template of the file, in Jinja. It is untrusted: render it in a sandbox.
    pub fn chat_template(&self) -> Option<&str> {
        self.inner.chat_template.as_deref()
    }

    /// Whether a token is a place holder that no training text had.
    #[cfg(feature = "grammar")]
    pub(crate) fn is_unused(&self, id: u32) -> bool {
        self.kind(id) == Some(Kind::Unused)
    }

    #[cfg(feature = "grammar")]
    pub(crate) fn downgrade(&self) -> WeakTokenizer {
        WeakTokenizer(Arc::downgrade(&self.inner))
    }

    #[cfg(feature = "grammar")]
    pub(crate) fn grammar_cache(&self) -> &crate::grammar::Cache {
        &self.inner.grammar
    }

    fn kind(&self, id: u32) -> Option<Kind> {
        self.inner.kinds.get(usize::try_from(id).ok()?).copied()
    }

    /// The bytes that a token adds to decoded text.
    fn printed(&self, id: u32, print_control: bool) -> &[u8] {
        if !print_control && self.is_control(id) { &[] } else { self.token_bytes(id).unwrap_or(REPLACEMENT) }
    }
}

impl Inner {
    /// Appends the tokens of text without special tokens. `normalized` is a buffer to reuse.
    fn encode_plain(&self, text: &str, normalized: &mut String, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        normalized.clear();
        for (i, part) in text.split(' ').enumerate() {
            if i > 0 {
                normalized.push_str(SPACE);
            }
            normalized.push_str(part);
        }
        let tokens = self.bpe.tokenize(normalized).map_err(|e| Error::Tokenizer(e.to_string()))?;
        ids.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("n_vocab", &self.n_vocab())
            .field("bos", &self.inner.bos)
            .field("eog", &self.inner.eog)
            .finish_non_exhaustive()
    }
}

const _: () = {
    const fn shared_between_threads<T: Clone + Send + Sync + 'static>() {}
    shared_between_threads::<Tokenizer>();
    shared_between_threads::<TokenStream>();
};
