//! Prompt look-up: what followed the last few tokens when they occurred before.

use super::{DraftMode, Propose, Proposed, Setup, Source, Target};
use crate::ggml::Engine;
use crate::{Error, Result};
use std::collections::HashMap;

/// How the n-gram drafter looks. Start from [`Default`] and chain setters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NgramOptions {
    /// The most last tokens that must have occurred before; longer matches are tried first. Default 4.
    pub max_match: usize,
    /// The fewest. Fewer means more drafts, and more that fail. Default 2.
    pub min_match: usize,
    /// The most tokens of a draft. Default 15.
    pub max_draft: u32,
}

impl Default for NgramOptions {
    fn default() -> Self {
        NgramOptions { max_match: 4, min_match: 2, max_draft: 15 }
    }
}

impl NgramOptions {
    /// Sets the most last tokens that must have occurred before.
    #[must_use]
    pub fn max_match(mut self, n: usize) -> Self {
        self.max_match = n;
        self
    }

    /// Sets the fewest last tokens that must have occurred before.
    #[must_use]
    pub fn min_match(mut self, n: usize) -> Self {
        self.min_match = n;
        self
    }

    /// Sets the most tokens of a draft.
    #[must_use]
    pub fn max_draft(mut self, n: u32) -> Self {
        self.max_draft = n;
        self
    }

    fn check(&self) -> Result<()> {
        let bad = |option, value: usize, why: &str| {
            Err(Error::Option { option, value: value.to_string(), why: why.into() })
        };
        if self.min_match == 0 {
            return bad("min_match", 0, "at least one token must match");
        }
        if self.max_match < self.min_match || self.max_match > MAX_MATCH {
            return bad("max_match", self.max_match, "it is from min_match to 16");
        }
        Ok(())
    }
}

/// Longer matches hardly ever tell more.
const MAX_MATCH: usize = 16;

/// The drafter: there is nothing but its options.
pub(super) struct Ngram(NgramOptions);

impl Ngram {
    pub fn new(options: &NgramOptions) -> Result<Ngram> {
        options.check()?;
        Ok(Ngram(options.clone()))
    }
}

impl Source for Ngram {
    fn kind(&self) -> &'static str {
        "ngram"
    }

    fn max_draft(&self) -> u32 {
        self.0.max_draft
    }

    fn start(&self, _setup: &Setup<'_>, _engine: &mut Engine) -> Result<Box<dyn Propose>> {
        Ok(Box::new(LookUp { index: Index::new(&self.0), text: Vec::new() }))
    }
}

/// One session's index and a copy of what was indexed.
struct LookUp {
    index: Index,
    text: Vec<u32>,
}

impl Propose for LookUp {
    fn draft(
        &mut self,
        t: &mut Target<'_>,
        token: u32,
        n: u32,
        _how: DraftMode<'_>,
        out: &mut Vec<Proposed>,
    ) -> Result<()> {
        // The session may have been cut and grown again, or restored to another text.
        let same = self.text.iter().zip(t.tokens).take_while(|(a, b)| a == b).count();
        if same < self.text.len() {
            self.index.truncate(&self.text, same);
            self.text.truncate(same);
        }
        for &next in &t.tokens[same..] {
            self.text.push(next);
            self.index.push(&self.text);
        }
        self.text.push(token);
        out.extend(self.index.find(&self.text, n as usize).map(|token| Proposed { token, p: 1.0, q: None }));
        self.text.pop();
        Ok(())
    }
}

/// Where each n-gram last ended, by its hash: a collision costs a comparison and no more.
struct Index {
    options: NgramOptions,
    ends: HashMap<u64, Ends>,
}

/// The last place where an n-gram ended and the one before, each as the number of tokens up to there. The newest
/// n-gram itself must not be found.
#[derive(Clone, Copy)]
struct Ends {
    last: u32,
    before: u32,
}

impl Index {
    fn new(options: &NgramOptions) -> Index {
        Index { options: options.clone(), ends: HashMap::new() }
    }

    fn lengths(&self) -> std::ops::RangeInclusive<usize> {
        self.options.min_match..=self.options.max_match
    }

    /// Adds the n-grams that end with `text`.
    fn push(&mut self, text: &[u32]) {
        for n in self.lengths().take_while(|&n| n <= text.len()) {
            let end = text.len() as u32;
            let ends = self.ends.entry(hash(&text[text.len() - n..])).or_insert(Ends { last: 0, before: 0 });
            *ends = Ends { last: end, before: ends.last };
        }
    }

    /// Forgets the n-grams that end behind the first `len` tokens of `text`.
    fn truncate(&mut self, text: &[u32], len: usize) {
        for end in (len + 1..=text.len()).rev() {
            for n in self.lengths().take_while(|&n| n <= end) {
                let key = hash(&text[end - n..end]);
                let Some(ends) = self.ends.get_mut(&key) else { continue };
                // What came before the one before is not known any more.
                if ends.before == 0 {
                    self.ends.remove(&key);
                } else {
                    *ends = Ends { last: ends.before, before: 0 };
                }
            }
        }
    }

    /// At most `n` tokens that followed the longest earlier match of the end of `text`.
    fn find<'a>(&self, text: &'a [u32], n: usize) -> impl Iterator<Item = u32> + 'a + use<'a> {
        let found = self.lengths().rev().filter(|&m| m <= text.len()).find_map(|m| {
            let end = &text[text.len() - m..];
            let ends = self.ends.get(&hash(end))?;
            [ends.last, ends.before]
                .into_iter()
                .map(|at| at as usize)
                .find(|&at| (m..text.len()).contains(&at) && text[at - m..at] == *end)
        });
        // The text goes on where it ends: of a repeated phrase, more can be drafted than was written.
        let start = found.unwrap_or(text.len());
        let period = text.len() - start;
        (0..n).map_while(move |i| (period > 0).then(|| text[start + i % period.max(1)]))
    }
}

/// FNV-1a over the tokens' bytes, with their number.
fn hash(tokens: &[u32]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ tokens.len() as u64;
    for byte in tokens.iter().flat_map(|token| token.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slow way: the latest earlier place of the longest match.
    fn naive(text: &[u32], options: &NgramOptions, n: usize) -> Vec<u32> {
        for m in (options.min_match..=options.max_match).rev().filter(|&m| m < text.len()) {
            let end = &text[text.len() - m..];
            if let Some(at) = (m..text.len()).rev().find(|&at| text[at - m..at] == *end) {
                let period = text.len() - at;
                return (0..n).map(|i| text[at + i % period]).collect();
            }
        }
        Vec::new()
    }

    fn indexed(options: &NgramOptions, text: &[u32]) -> Index {
        let mut index = Index::new(options);
        (1..=text.len()).for_each(|n| index.push(&text[..n]));
        index
    }

    fn noise(n: usize, words: u32) -> Vec<u32> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % words
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn finds_what_a_search_finds() {
        let options = NgramOptions::default().max_match(5).min_match(1);
        for words in [2, 5, 40] {
            let text = noise(300, words);
            let mut index = Index::new(&options);
            for end in 1..text.len() {
                // As in a session: the newest token is not committed yet.
                let found: Vec<u32> = index.find(&text[..end], 7).collect();
                assert_eq!(found, naive(&text[..end], &options, 7), "{words} words, {end} tokens");
                index.push(&text[..end]);
            }
        }
    }

    #[test]
    fn what_was_cut_off_is_not_found() {
        let options = NgramOptions::default();
        let text = [1, 2, 3, 4, 5, 1, 2, 3, 9, 9];
        let mut index = indexed(&options, &text);
        let with_1_2_3 = |text: &[u32]| [text, &[1, 2, 3]].concat();
        assert_eq!(index.find(&with_1_2_3(&text), 2).collect::<Vec<_>>(), [9, 9]);
        index.truncate(&text, 5);
        assert_eq!(index.find(&with_1_2_3(&text[..5]), 2).collect::<Vec<_>>(), [4, 5]);
        index.truncate(&text[..5], 0);
        assert!(index.ends.is_empty());
    }

    #[test]
    fn a_repeated_phrase_goes_on() {
        let text = [7, 8, 7, 8, 7];
        let index = indexed(&NgramOptions::default(), &text);
        assert_eq!(index.find(&[7, 8, 7, 8, 7, 8], 5).collect::<Vec<_>>(), [7, 8, 7, 8, 7]);
    }

    #[test]
    fn impossible_options_are_refused() {
        let options = NgramOptions::default();
        for bad in [options.clone().min_match(0), options.clone().min_match(5), options.clone().max_match(17)]
        {
            assert!(Ngram::new(&bad).is_err(), "{bad:?}");
        }
        assert!(Ngram::new(&options).is_ok());
    }
}
