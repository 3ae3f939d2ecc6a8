//! Perplexity over the validation texts, by the protocol that `models/tiny-gemma4/README.md` states.

use gemma4::{EncodeOptions, Result, Session};

/// Tokens of one window, the beginning-of-sequence token included.
pub const WINDOW: usize = 1024;

/// Perplexity of the first `n_windows` windows of `text`: each is `<bos>` and the next 1023 tokens, starts
/// from an empty cache, and every token after `<bos>` is scored.
pub fn perplexity(session: &mut Session, text: &str, n_windows: usize) -> Result<f64> {
    let tokenizer = session.model().tokenizer().clone();
    let tokens = tokenizer.encode(text, EncodeOptions::CONTINUATION)?;
    let (mut sum, mut count) = (0.0, 0);
    for run in tokens.chunks_exact(WINDOW - 1).take(n_windows) {
        let window: Vec<u32> = tokenizer.bos().into_iter().chain(run.iter().copied()).collect();
        session.clear();
        let scores = session.score(&window)?;
        sum -= scores.iter().map(|&s| f64::from(s)).sum::<f64>();
        count += scores.len();
    }
    Ok((sum / count as f64).exp())
}
