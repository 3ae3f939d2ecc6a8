//! A model's vocabulary as the grammar engine wants it.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{ParserFactory, panic_utils};

use crate::model::{EncodeOptions, Tokenizer, WeakTokenizer};
use crate::{Error, Result};

/// Longest token in bytes: the engine counts the levels of its tree in ten bits.
const MAX_TOKEN: usize = 1000;
/// Most tokens: the engine counts the nodes of its tree in 22 bits.
const MAX_VOCABULARY: usize = 1 << 20;

/// The tree of a vocabulary, built once for all clones of a tokenizer. It takes 0.3 s for a quarter of a million
/// tokens.
#[derive(Default)]
pub(crate) struct Cache(OnceLock<std::result::Result<ParserFactory, String>>);

impl Cache {
    /// The factory for grammars over this vocabulary.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<&ParserFactory> {
        let cell = &tokenizer.grammar_cache().0;
        cell.get_or_init(|| build(tokenizer)).as_ref().map_err(|why| Error::Grammar(why.clone()))
    }
}

fn build(tokenizer: &Tokenizer) -> std::result::Result<ParserFactory, String> {
    let n_vocab = tokenizer.n_vocab();
    if n_vocab > MAX_VOCABULARY {
        return Err(format!("the vocabulary has {n_vocab} tokens; grammars work for up to {MAX_VOCABULARY}"));
    }
    let ends = tokenizer.eog_tokens();
    let Some(&end) = ends.first() else {
        return Err("the vocabulary has no end token, which grammars need".to_owned());
    };
    let suppressed: HashSet<u32> = tokenizer.suppressed().iter().copied().collect();
    let words: Vec<Vec<u8>> =
        (0..n_vocab as u32).map(|id| word(tokenizer, id, suppressed.contains(&id))).collect();
    let info = TokRxInfo {
        tok_bos: tokenizer.bos(),
        tok_pad: tokenizer.pad(),
        tok_unk: tokenizer.unk(),
        tok_end_of_turn: tokenizer.eot(),
        ..TokRxInfo::new(n_vocab as u32, end)
    };
    let make = || {
        let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
        let env: TokEnv = Arc::new(Env { trie, tokenizer: tokenizer.downgrade() });
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)?;
        factory.quiet();
        *factory.limits_mut() = super::limits();
        Ok(factory)
    };
    panic_utils::catch_unwind(std::panic::AssertUnwindSafe(make))
        .map_err(|e| super::error(&e.to_string()).to_string())
}

/// The bytes that a token stands for. Special tokens begin with a byte that no text has; what has no bytes is
/// never generated.
fn word(tokenizer: &Tokenizer, id: u32, is_suppressed: bool) -> Vec<u8> {
    const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    let is_special =
        is_suppressed || tokenizer.is_control(id) || tokenizer.is_eog(id) || tokenizer.is_unused(id);
    let word = if is_special {
        let name = tokenizer.token_text(id).unwrap_or_default();
        std::iter::once(MARKER).chain(name.bytes()).collect()
    } else {
        tokenizer.token_bytes(id).unwrap_or_default().to_vec()
    };
    // A byte token may be the marker itself.
    let is_usable = word.len() <= MAX_TOKEN && (is_special || word.first() != Some(&MARKER));
    if is_usable { word } else { Vec::new() }
}

/// The tree, and how text is really cut into tokens: where the grammar leaves one continuation, the tokens are
/// those that the model has learned to expect.
struct Env {
    trie: TokTrie,
    /// The tokenizer owns this, so it must not own the tokenizer.
    tokenizer: WeakTokenizer,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let encoded =
                self.tokenizer.upgrade().and_then(|t| t.encode(text, EncodeOptions::CONTINUATION).ok());
            encoded
                .filter(|ids| {
                    ids.iter().all(|&id| !self.trie.is_special_token(id) && !self.trie.token(id).is_empty())
                })
                .unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}
