//! The control tokens of the chat format, and how to find them in text.

pub(super) const BOS: &str = "<bos>";
pub(super) const EOS: &str = "<eos>";
pub(super) const TURN: &str = "<|turn>";
pub(super) const TURN_END: &str = "<turn|>";
pub(super) const THINK: &str = "<|think|>";
pub(super) const CHANNEL: &str = "<|channel>";
pub(super) const CHANNEL_END: &str = "<channel|>";
pub(super) const TOOL: &str = "<|tool>";
pub(super) const TOOL_END: &str = "<tool|>";
pub(super) const CALL: &str = "<|tool_call>";
pub(super) const CALL_END: &str = "<tool_call|>";
pub(super) const RESPONSE: &str = "<|tool_response>";
pub(super) const RESPONSE_END: &str = "<tool_response|>";
pub(super) const QUOTE: &str = "<|\"|>";
/// What opens the model's turn.
pub(super) const MODEL_TURN: &str = "<|turn>model\n";
/// A thought that is over before it began: it keeps the larger models from thinking.
pub(super) const CLOSED_THOUGHT: &str = "<|channel>thought\n<channel|>";

/// What [`find`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The marker of this index begins at this byte.
    Marker { at: usize, which: usize },
    /// From this byte on the text is the beginning of a marker.
    Partial(usize),
    /// Neither.
    Nothing,
}

/// Looks for the first of `markers`, each of which begins with `<`, in `text`.
pub(super) fn find(text: &str, markers: &[&str]) -> Found {
    for (at, _) in text.match_indices('<') {
        let rest = &text[at..];
        if let Some(which) = markers.iter().position(|marker| rest.starts_with(marker)) {
            return Found::Marker { at, which };
        }
        if markers.iter().any(|marker| marker.starts_with(rest)) {
            return Found::Partial(at);
        }
    }
    Found::Nothing
}

/// Bytes of the control token at the very beginning of `text`, by its form: `<|name>`, `<name|>`, `<|name|>`
/// or one of the few names without a bar.
pub(super) fn token_len(text: &str) -> Option<usize> {
    const PLAIN: [&str; 5] = [BOS, EOS, "<pad>", "<unk>", "<mask>"];
    const LONGEST_NAME: usize = 40;
    if let Some(plain) = PLAIN.iter().find(|plain| text.starts_with(**plain)) {
        return Some(plain.len());
    }
    let inner = text.strip_prefix('<')?;
    let opened = inner.strip_prefix('|');
    let name = opened.unwrap_or(inner);
    let n = name
        .bytes()
        .take(LONGEST_NAME + 1)
        .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'"'))
        .count();
    if n == 0 || n > LONGEST_NAME {
        return None;
    }
    let after = &name[n..];
    let closed = after.strip_prefix('|');
    if opened.is_none() && closed.is_none() {
        return None;
    }
    let rest = closed.unwrap_or(after).strip_prefix('>')?;
    Some(text.len() - rest.len())
}

/// The first control token of `text` by its form, as a byte range.
pub(super) fn find_token(text: &str) -> Option<(usize, usize)> {
    text.match_indices('<').find_map(|(at, _)| token_len(&text[at..]).map(|n| (at, at + n)))
}
