//! Perplexity over the validation texts, by the protocol that `models/tiny-gemma4/README.md` states.

use gemma4::{EncodeOptions, Result, Session};

/// Tokens of one window, the beginning-of-sequence token included.
pub const WINDOW: usize = 1024;

/// Perplexity of the first `n_windows` windows of `text`: each is `<bos>` and the next 1023 tokens, starts
/// from an empty cache, and every token after `<bos>` is scored.
pub fn perplexity(session: &mut Session, text: &str, n_windows: usize) -> Result<f64> {
    let tokenizer = session.model().tokenizer().clone();
    let n_vocab = session.model().hparams().n_vocab as usize;
    let tokens = tokenizer.encode(text, EncodeOptions::CONTINUATION)?;
    let (mut sum, mut count) = (0.0, 0);
    for run in tokens.chunks_exact(WINDOW - 1).take(n_windows) {
        let window: Vec<u32> = tokenizer.bos().into_iter().chain(run.iter().copied()).collect();
        session.clear();
        let logits = session.evaluate(&window, false)?.logits;
        for (row, &next) in logits.chunks_exact(n_vocab).zip(&window[1..]) {
            sum -= log_prob(row, next as usize);
            count += 1;
        }
    }
    Ok((sum / f64::from(count)).exp())
}

/// Natural logarithm of the probability of entry `i` under softmax.
fn log_prob(row: &[f32], i: usize) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(row[i] - max) - sum.ln()
}
