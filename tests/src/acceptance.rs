//! How many drafted tokens a round of greedy decoding accepts, by the protocol of the training programs.
//!
//! A prompt is `<bos>` and 127 tokens, spread evenly over a text. The model writes 128 more. A round starts at a
//! token, drafts up to `gamma` tokens behind it, and the next one starts behind the first wrong one. Rounds that
//! start in the last 16 tokens are left out, so that none is cut short.

use gemma4::{Drafter, KvPolicy, Model, Session, SessionOptions};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Prompts of a text.
pub const PROMPTS: usize = 64;
const PROMPT: usize = 128;
const WRITTEN: usize = 128;
const BLOCK: usize = 16;

/// Figures of one drafter and draft length, as stored in `acceptance.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Figures {
    /// Mean accepted tokens of a round.
    pub accepted: f64,
    /// Accepted tokens and rounds of every prompt.
    pub by_prompt: Vec<[usize; 2]>,
}

/// What PyTorch wrote and drafted along one text.
#[derive(Clone, Debug, Deserialize)]
pub struct RecordedText {
    /// The tokens written behind every prompt.
    pub written: Vec<Vec<u32>>,
    /// By drafter and draft length, such as `mtp 3`.
    #[serde(flatten)]
    pub figures: BTreeMap<String, Figures>,
}

impl RecordedText {
    /// Accepted tokens and rounds of some of the prompts.
    pub fn sum(&self, key: &str, prompts: &[usize]) -> [usize; 2] {
        prompts.iter().fold([0, 0], |[a, b], &prompt| {
            let [accepted, rounds] = self.figures[key].by_prompt[prompt];
            [a + accepted, b + rounds]
        })
    }
}

/// By text: `code`, `prose`.
pub type Recorded = BTreeMap<String, RecordedText>;

/// Prompt number `i` of `of` of a text that `tokens` are, with the token that begins it.
pub fn prompt(tokens: &[u32], i: usize, of: usize) -> Vec<u32> {
    let (bos, text) = (tokens[0], &tokens[1..]);
    let start = i * ((text.len() - PROMPT) / of);
    std::iter::once(bos).chain(text[start..start + PROMPT - 1].iter().copied()).collect()
}

/// Correct tokens of a draft of `depth` behind every token that a round can start at, over a cache as `kv` says.
/// The text behind the prompt is `written`, or what the model itself writes.
pub fn runs(
    model: &Model,
    drafter: &Drafter,
    prompt: &[u32],
    written: Option<&[u32]>,
    depth: u32,
    kv: &KvPolicy,
) -> Vec<usize> {
    let options = SessionOptions::default().n_ctx(512).n_threads(1).kv(kv.clone()).drafter(drafter.clone());
    let mut session = Session::new(model, &options).unwrap_or_else(|e| panic!("{e}"));
    session.prefill(prompt).unwrap_or_else(|e| panic!("{e}"));
    let (mut text, mut drafts) = (Vec::new(), Vec::new());
    for i in 0..WRITTEN {
        let own = || gemma4::sampling::argmax(session.logits()).unwrap_or_else(|| panic!("no logits"));
        let token = written.map_or_else(own, |written| written[i]);
        text.push(token);
        if text.len() <= WRITTEN - BLOCK {
            let steps = session.trace_draft(token, depth).unwrap_or_else(|e| panic!("{e}"));
            drafts.push(steps.iter().map(|step| step.token).collect::<Vec<_>>());
        }
        session.prefill(&[token]).unwrap_or_else(|e| panic!("{e}"));
    }
    let correct = |(i, draft): (usize, &Vec<u32>)| {
        draft.iter().zip(&text[i + 1..]).take_while(|(drafted, written)| drafted == written).count()
    };
    drafts.iter().enumerate().map(correct).collect()
}

/// Accepted tokens and rounds of a walk with drafts of up to `gamma`.
pub fn rounds(runs: &[usize], gamma: usize) -> [usize; 2] {
    let (mut accepted, mut rounds, mut at) = (0, 0, 0);
    while let Some(&run) = runs.get(at) {
        let n = run.min(gamma);
        (accepted, rounds, at) = (accepted + n, rounds + 1, at + n + 1);
    }
    [accepted, rounds]
}

/// A prompt, and the text behind it if the model does not write that itself.
pub type Case<'a> = (Vec<u32>, Option<&'a [u32]>);

/// Accepted tokens and rounds by draft length, over all cases.
pub fn measure(
    model: &Model,
    drafter: &Drafter,
    cases: &[Case<'_>],
    gammas: &[usize],
    kv: &KvPolicy,
) -> Vec<[usize; 2]> {
    let depth = gammas.iter().copied().max().unwrap_or(1) as u32;
    let share = |cases: &[Case<'_>]| {
        let mut sums = vec![[0, 0]; gammas.len()];
        for (prompt, written) in cases {
            let runs = runs(model, drafter, prompt, *written, depth, kv);
            for (sum, &gamma) in sums.iter_mut().zip(gammas) {
                let [accepted, n] = rounds(&runs, gamma);
                *sum = [sum[0] + accepted, sum[1] + n];
            }
        }
        sums
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        let parts = cases.chunks(cases.len().div_ceil(threads).max(1));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || share(part))).collect();
        parts.into_iter().fold(vec![[0, 0]; gammas.len()], |sums, part| {
            let part = part.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
            sums.iter().zip(part).map(|([a, b], [c, d])| [a + c, b + d]).collect()
        })
    })
}
