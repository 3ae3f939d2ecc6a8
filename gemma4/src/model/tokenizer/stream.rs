//! Decoding token by token.

use std::str::from_utf8;

use super::Tokenizer;

/// Decodes tokens as they arrive, without ever giving out half a character.
///
/// What [`push`](TokenStream::push) and [`finish`](TokenStream::finish) return, put together, is what
/// [`Tokenizer::decode_with`] returns for all ids.
#[derive(Debug, Clone)]
pub struct TokenStream {
    tokenizer: Tokenizer,
    print_control: bool,
    /// The start of a character, at most three bytes between calls.
    pending: Vec<u8>,
}

impl TokenStream {
    pub(super) fn new(tokenizer: Tokenizer, print_control: bool) -> TokenStream {
        TokenStream { tokenizer, print_control, pending: Vec::new() }
    }

    /// Takes a token and returns the text that is complete now; empty while a character is unfinished, and for
    /// control tokens that are not printed.
    pub fn push(&mut self, id: u32) -> String {
        self.pending.extend_from_slice(self.tokenizer.printed(id, self.print_control));
        let mut out = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (good, bad) = rest.split_at_checked(e.valid_up_to()).unwrap_or_default();
                    out.push_str(from_utf8(good).unwrap_or_default());
                    rest = bad;
                    // No length: the end of the input may still become a character.
                    let Some(len) = e.error_len() else { break };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = bad.get(len..).unwrap_or_default();
                }
            }
        }
        let done = self.pending.len().saturating_sub(rest.len());
        self.pending.drain(..done);
        out
    }

    /// Ends the text: returns U+FFFD if a character was left unfinished, else nothing. The stream is then as
    /// new.
    pub fn finish(&mut self) -> String {
        let out = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        out
    }
}
