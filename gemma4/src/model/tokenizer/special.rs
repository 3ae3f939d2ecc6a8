//! Finding special tokens in raw text.

/// A set of texts, searched leftmost first and, at one place, longest first.
///
/// A sorted list is enough: almost every byte of a text starts no special token, which one look-up in `starts`
/// tells; for the others the list is narrowed byte by byte.
pub(super) struct Matcher {
    /// Sorted by text, each text once and none empty.
    entries: Vec<(Box<str>, u32)>,
    /// For each first byte, the range of entries that start with it.
    starts: Vec<(usize, usize)>,
}

impl Matcher {
    /// Of equal texts the last wins, as in llama.cpp.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Matcher {
        let mut entries: Vec<(Box<str>, u32)> =
            tokens.filter(|(text, _)| !text.is_empty()).map(|(text, id)| (text.into(), id)).collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        entries.dedup_by(|later, kept| later.0 == kept.0);
        let first = |entry: &(Box<str>, u32)| entry.0.as_bytes().first().copied();
        let starts = (0..=u8::MAX)
            .map(|byte| {
                let from = entries.partition_point(|entry| first(entry) < Some(byte));
                (from, entries.partition_point(|entry| first(entry) <= Some(byte)))
            })
            .collect();
        Matcher { entries, starts }
    }

    /// The id of exactly this text.
    pub(super) fn get(&self, text: &str) -> Option<u32> {
        let i = self.entries.binary_search_by(|entry| (*entry.0).cmp(text)).ok()?;
        self.entries.get(i).map(|entry| entry.1)
    }

    /// The first match as (start, end, id), in bytes.
    ///
    /// Both ends are character boundaries: a valid text can only match at the start of a character.
    pub(super) fn find(&self, text: &str) -> Option<(usize, usize, u32)> {
        if self.entries.is_empty() {
            return None;
        }
        let bytes = text.as_bytes();
        bytes.iter().enumerate().find_map(|(start, &byte)| {
            let range = self.starts.get(usize::from(byte)).copied().filter(|(from, to)| from < to)?;
            let (len, id) = self.longest(bytes.get(start..)?, range)?;
            Some((start, start.saturating_add(len), id))
        })
    }

    /// The longest entry of the range that `rest` starts with; the range shares the first byte of `rest`.
    fn longest(&self, rest: &[u8], range: (usize, usize)) -> Option<(usize, u32)> {
        let mut entries = self.entries.get(range.0..range.1)?;
        let mut best = None;
        // All of `entries` share the first `depth` bytes of `rest`.
        for depth in 1.. {
            // The shortest sorts first.
            if let Some((entry, longer)) = entries.split_first()
                && entry.0.len() == depth
            {
                best = Some((depth, entry.1));
                entries = longer;
            }
            let (Some(&byte), false) = (rest.get(depth), entries.is_empty()) else { break };
            let at = |entry: &(Box<str>, u32)| entry.0.as_bytes().get(depth).copied();
            let from = entries.partition_point(|entry| at(entry) < Some(byte));
            let to = entries.partition_point(|entry| at(entry) <= Some(byte));
            entries = entries.get(from..to)?;
        }
        best
    }
}
