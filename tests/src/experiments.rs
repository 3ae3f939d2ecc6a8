//! Choices of the cache's encoding, judged by a model's own keys and values: what is in the cache of a text is
//! rounded in Rust, and the tokens that follow are predicted from it.

use crate::perplexity::WINDOW;
use crate::quality::Quality;
use crate::quantise::{Code, Scale, Turn, relative_error, round};
use crate::rows::Rows;
use gemma4::{DType, EncodeOptions, KvConfig, Model, Result, Session, SessionOptions};

/// Tokens of a window whose keys and values are rounded; the rest of the window is predicted.
const ROUNDED: usize = 768;

/// What is rounded how.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// What the table calls it.
    pub name: &'static str,
    /// The codes.
    pub code: Code,
    /// The rotation for heads of this many values.
    pub turn: fn(usize) -> Turn,
}

/// Effect of a choice.
#[derive(Clone, Debug, Default)]
pub struct Effect {
    /// Relative squared error of the rounded side, mean over layers and windows.
    pub error: f64,
    /// `sum x y / sum x^2`: by how much products grow or shrink.
    pub gain: f64,
    /// The predictions, beside those of the exact cache.
    pub quality: Quality,
    n: usize,
}

/// The choices of the experiment.
pub fn choices() -> Vec<Choice> {
    let tq3 = Code::Tq3(Scale::Gain1);
    let choice = |name, code, turn| Choice { name, code, turn };
    vec![
        choice("TQ3_0, not rotated", tq3, |_| Turn::No),
        choice("TQ3_0, H, 64", tq3, |_| Turn::Plain(64)),
        choice("TQ3_0, H, head", tq3, Turn::Plain),
        choice("TQ3_0, signs and H, 64", tq3, |_| Turn::Signed(64)),
        choice("TQ3_0, signs and H, 128", tq3, |_| Turn::Signed(128)),
        choice("TQ3_0, signs and H, head", tq3, Turn::Signed),
        choice("least squares, signs and H, 64", Code::Tq3(Scale::LeastSquares), |_| Turn::Signed(64)),
        choice("least squares, signs and H, head", Code::Tq3(Scale::LeastSquares), Turn::Signed),
        choice("Q4_0, H, 64", Code::Q4, |_| Turn::Plain(64)),
        choice("Q4_0, H, head", Code::Q4, Turn::Plain),
        choice("Q4_0, signs and H, head", Code::Q4, Turn::Signed),
    ]
}

/// Rounds keys (`half` 0) or values (1) by each choice over `n_windows` of a text.
pub fn run(
    model: &Model,
    text: &str,
    n_windows: usize,
    half: usize,
    choices: &[Choice],
    n_threads: usize,
) -> Result<Vec<Effect>> {
    let options = SessionOptions::default().n_ctx(WINDOW as u32).n_batch(512).n_threads(n_threads);
    let mut session = Session::new(model, &options.kv(KvConfig::uniform(DType::F32)))?;
    let n_vocab = model.hparams().n_vocab as usize;
    let tokens = model.tokenizer().encode(text, EncodeOptions::CONTINUATION)?;
    let mut effects = vec![Effect::default(); choices.len()];
    for run in tokens.chunks_exact(WINDOW - 1).take(n_windows) {
        let window: Vec<u32> = model.tokenizer().bos().into_iter().chain(run.iter().copied()).collect();
        let (head, tail) = window.split_at(ROUNDED);
        session.clear();
        session.prefill(head)?;
        let exact = session.snapshot()?;
        let wanted = session.evaluate(tail, false)?.logits;
        for (choice, effect) in choices.iter().zip(&mut effects) {
            let mut rows = Rows::of(&exact);
            for i in 0..rows.layers.len() {
                let head_dim = model.hparams().layers[rows.layers[i].layer as usize].head_dim as usize;
                let x = rows.f32s(i, half);
                let mut y = x.clone();
                let turn = (choice.turn)(head_dim);
                turn.forward(&mut y);
                round(&mut y, choice.code);
                turn.inverse(&mut y);
                let dot = |a: &[f32], b: &[f32]| {
                    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                };
                effect.error += relative_error(&x, &y);
                effect.gain += dot(&x, &y) / dot(&x, &x);
                effect.n += 1;
                rows.set_f32s(i, half, &y);
            }
            session.restore(&rows.snapshot()?)?;
            let got = session.evaluate(tail, false)?.logits;
            let pairs = wanted.chunks_exact(n_vocab).zip(got.chunks_exact(n_vocab));
            for ((wanted, got), &next) in pairs.zip(&tail[1..]) {
                effect.quality.count(wanted, got, next);
            }
        }
    }
    for effect in &mut effects {
        effect.error /= effect.n as f64;
        effect.gain /= effect.n as f64;
    }
    Ok(effects)
}

impl Effect {
    /// Takes in another text.
    pub fn add(&mut self, other: &Effect) {
        let (a, b) = (self.n as f64, other.n as f64);
        self.error = (self.error * a + other.error * b) / (a + b);
        self.gain = (self.gain * a + other.gain * b) / (a + b);
        self.n += other.n;
        self.quality.add(&other.quality);
    }
}
