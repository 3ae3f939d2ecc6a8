//! What a KV type costs: perplexity, and the distance of every next-token distribution from that of a
//! reference cache.

use crate::perplexity::WINDOW;
use gemma4::sampling::Divergence;
use gemma4::{DType, EncodeOptions, KvConfig, KvTypes, Model, Result, Rotation, Session, SessionOptions};

/// Distance of one configuration from the reference over a text.
#[derive(Clone, Debug, Default)]
pub struct Quality {
    loss: f64,
    kl: Vec<f64>,
    same_top: usize,
}

impl Quality {
    /// Tokens that were predicted.
    pub fn n(&self) -> usize {
        self.kl.len()
    }

    /// `exp` of the mean negative log-probability.
    pub fn perplexity(&self) -> f64 {
        (self.loss / self.n() as f64).exp()
    }

    /// Mean KL divergence from the reference, in nats.
    pub fn mean_kl(&self) -> f64 {
        self.kl.iter().sum::<f64>() / self.n() as f64
    }

    /// The divergence that 99 of 100 tokens stay below.
    pub fn kl_99(&self) -> f64 {
        let mut all = self.kl.clone();
        all.sort_by(f64::total_cmp);
        all[(all.len() - 1) * 99 / 100]
    }

    /// Share of tokens with the same most likely prediction, from 0 to 1.
    pub fn top_1(&self) -> f64 {
        self.same_top as f64 / self.n() as f64
    }

    /// Takes in the figures of another text.
    pub fn add(&mut self, other: &Quality) {
        self.loss += other.loss;
        self.kl.extend_from_slice(&other.kl);
        self.same_top += other.same_top;
    }

    /// One more prediction of `next`.
    pub fn count(&mut self, reference: &[f32], logits: &[f32], next: u32) {
        let Some(Divergence { kl, same_top, .. }) = Divergence::of(reference, logits) else { return };
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from((l - max).exp())).sum();
        self.loss += sum.ln() - f64::from(logits[next as usize] - max);
        self.kl.push(kl);
        self.same_top += usize::from(same_top);
    }
}

/// Runs each configuration over the first `n_windows` windows of `text`, by the protocol of
/// [`perplexity`](crate::perplexity::perplexity), beside a reference.
pub fn compare(
    model: &Model,
    text: &str,
    n_windows: usize,
    reference: &KvConfig,
    configs: &[KvConfig],
    n_threads: usize,
) -> Result<Vec<Quality>> {
    let session = |kv: &KvConfig| {
        let options = SessionOptions::default().n_ctx(WINDOW as u32).n_batch(512).n_threads(n_threads);
        Session::new(model, &options.kv(kv.clone()))
    };
    let mut exact = session(reference)?;
    let mut sessions = configs.iter().map(session).collect::<Result<Vec<_>>>()?;
    let mut found = vec![Quality::default(); configs.len()];
    let n_vocab = model.hparams().n_vocab as usize;
    let tokens = model.tokenizer().encode(text, EncodeOptions::CONTINUATION)?;
    for run in tokens.chunks_exact(WINDOW - 1).take(n_windows) {
        let window: Vec<u32> = model.tokenizer().bos().into_iter().chain(run.iter().copied()).collect();
        exact.clear();
        let wanted = exact.evaluate(&window, false)?.logits;
        for (session, quality) in sessions.iter_mut().zip(&mut found) {
            session.clear();
            let got = session.evaluate(&window, false)?.logits;
            let rows = wanted.chunks_exact(n_vocab).zip(got.chunks_exact(n_vocab));
            for ((wanted, got), &next) in rows.zip(&window[1..]) {
                quality.count(wanted, got, next);
            }
        }
    }
    Ok(found)
}

/// A configuration with a name, and whom it must not exceed by how much.
#[derive(Clone, Debug)]
pub struct Row {
    /// What the table calls it.
    pub name: &'static str,
    /// The types.
    pub config: KvConfig,
    /// Name of the row that has Q4_0 with the peer's rotation where this one has TQ3_0.
    pub gate: Option<&'static str>,
}

/// The most that TQ3_0 may lose, as a multiple of Q4_0's mean KL divergence with the peer's rotation.
pub const MAX_KL_RATIO: f64 = 3.0;
/// The least share of equal predictions.
pub const MIN_TOP_1: f64 = 0.97;

/// Whether a row passes the gates beside its Q4_0 row.
pub fn passes(row: &Quality, q4_0: &Quality) -> bool {
    row.mean_kl() <= MAX_KL_RATIO * q4_0.mean_kl() && row.top_1() >= MIN_TOP_1
}

/// All configurations of the quality table.
pub fn rows() -> Vec<Row> {
    use DType as D;
    let kinds = |full: [DType; 2], swa: [DType; 2]| {
        let mut config = KvConfig::uniform(D::F16);
        config.full = KvTypes { k: full[0], v: full[1] };
        config.swa = KvTypes { k: swa[0], v: swa[1] };
        config
    };
    let plain = |mut config: KvConfig| {
        config.signs = false;
        config
    };
    let unrotated = |mut config: KvConfig| {
        config.rotation = Rotation::Never;
        config
    };
    let all = KvConfig::uniform;
    let (q8, q4, tq3) = ([D::Q8_0; 2], [D::Q4_0; 2], [D::TQ3_0; 2]);
    let row = |name, config| Row { name, config, gate: None };
    let gated = |name, config, gate| Row { name, config, gate: Some(gate) };
    vec![
        row("F16", all(D::F16)),
        row("Q8_0", all(D::Q8_0)),
        row("Q5_0", all(D::Q5_0)),
        row("Q4_0, not rotated", unrotated(all(D::Q4_0))),
        row("Q4_0, H", plain(all(D::Q4_0))),
        row("Q4_0", all(D::Q4_0)),
        row("IQ4_NL", all(D::IQ4_NL)),
        row("TQ3_0, not rotated", unrotated(all(D::TQ3_0))),
        gated("TQ3_0, H", plain(all(D::TQ3_0)), "Q4_0, H"),
        gated("TQ3_0", all(D::TQ3_0), "Q4_0, H"),
        row("SWA Q4_0 H, full Q8_0", plain(kinds(q8, q4))),
        gated("SWA TQ3_0, full Q8_0", kinds(q8, tq3), "SWA Q4_0 H, full Q8_0"),
        row("SWA Q8_0, full Q4_0 H", plain(kinds(q4, q8))),
        gated("SWA Q8_0, full TQ3_0", kinds(tq3, q8), "SWA Q8_0, full Q4_0 H"),
        row("SWA Q8_0, full Q8_0/Q4_0 H", plain(kinds([D::Q8_0, D::Q4_0], q8))),
        gated("SWA Q8_0, full Q8_0/TQ3_0", kinds([D::Q8_0, D::TQ3_0], q8), "SWA Q8_0, full Q8_0/Q4_0 H"),
        row("Q8_0/Q4_0 H", plain(kinds([D::Q8_0, D::Q4_0], [D::Q8_0, D::Q4_0]))),
        gated("Q8_0/TQ3_0", kinds([D::Q8_0, D::TQ3_0], [D::Q8_0, D::TQ3_0]), "Q8_0/Q4_0 H"),
        row("Q4_0/Q8_0 H", plain(kinds([D::Q4_0, D::Q8_0], [D::Q4_0, D::Q8_0]))),
        gated("TQ3_0/Q8_0", kinds([D::TQ3_0, D::Q8_0], [D::TQ3_0, D::Q8_0]), "Q4_0/Q8_0 H"),
        gated("Q4_0/TQ3_0", kinds([D::Q4_0, D::TQ3_0], [D::Q4_0, D::TQ3_0]), "Q4_0, H"),
        // The reference's rule: Q8_0 where an MTP drafter reads, which is the last full layer.
        gated("captured", all(D::TQ3_0).layer(11, KvTypes { k: D::Q8_0, v: D::Q8_0 }), "Q4_0, H"),
    ]
}
