//! How many drafted tokens a round of greedy decoding accepts, by the protocol of the training programs.
//!
//! A prompt is `<bos>` and 127 tokens, spread evenly over a text. The model writes 128 more. A round starts at a
//! token, drafts up to `gamma` tokens behind it, and the next one starts behind the first wrong one. Rounds that
//! start in the last 16 tokens are left out, so that none is cut short.

use gemma4::{Drafter, GenerateOptions, KvPolicy, Model, Session, SessionOptions, Speculation};
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

/// A session that drafts, over a cache as `kv` says.
fn session(model: &Model, drafter: &Drafter, kv: &KvPolicy) -> Session {
    let options = SessionOptions::default().n_ctx(512).n_threads(1).kv(kv.clone()).drafter(drafter.clone());
    Session::new(model, &options).unwrap_or_else(|e| panic!("{e}"))
}

fn draft(session: &mut Session, token: u32, depth: u32) -> Vec<u32> {
    let steps = session.trace_draft(token, depth).unwrap_or_else(|e| panic!("{e}"));
    steps.iter().map(|step| step.token).collect()
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
    let mut session = session(model, drafter, kv);
    session.prefill(prompt).unwrap_or_else(|e| panic!("{e}"));
    let (mut text, mut drafts) = (Vec::new(), Vec::new());
    for i in 0..WRITTEN {
        let own = || gemma4::sampling::argmax(session.logits()).unwrap_or_else(|| panic!("no logits"));
        let token = written.map_or_else(own, |written| written[i]);
        text.push(token);
        if text.len() <= WRITTEN - BLOCK {
            drafts.push(draft(&mut session, token, depth));
        }
        session.prefill(&[token]).unwrap_or_else(|e| panic!("{e}"));
    }
    let correct = |(i, draft): (usize, &Vec<u32>)| {
        draft.iter().zip(&text[i + 1..]).take_while(|(drafted, written)| drafted == written).count()
    };
    drafts.iter().enumerate().map(correct).collect()
}

/// What came of the drafts of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Drafts that stood.
    pub accepted: usize,
    /// Rounds.
    pub rounds: usize,
    /// Rounds with a wrong draft. Those behind the first wrong one are not judged.
    pub rejected: usize,
}

impl Sums {
    /// Adds a round of `gamma` drafts of which the first `n` stood.
    fn round(&mut self, n: usize, gamma: usize) {
        *self = total(&[*self, Self { accepted: n, rounds: 1, rejected: usize::from(n < gamma) }]);
    }
}

/// Drafts that stood, and drafts they are a part of.
pub type Part = [usize; 2];

/// Of all drafts, `gamma` a round.
pub fn of_drafted(gamma: usize) -> impl Fn(&Sums) -> Part {
    move |sums| [sums.accepted, sums.rounds * gamma]
}

/// Of the drafts that were judged: the acceptance rate, alpha, of Leviathan et al. It is the chance of a draft whose
/// predecessors stood, where a part of all drafts counts a wrong one once for each behind it as well.
pub fn of_judged(sums: &Sums) -> Part {
    [sums.accepted, sums.accepted + sums.rejected]
}

/// A walk with drafts of up to `gamma`.
pub fn rounds(runs: &[usize], gamma: usize) -> Sums {
    let (mut sums, mut at) = (Sums::default(), 0);
    while let Some(&run) = runs.get(at) {
        let n = run.min(gamma);
        sums.round(n, gamma);
        at += n + 1;
    }
    sums
}

/// Generating, by the protocol, with drafts of `gamma`.
fn walk(session: &mut Session, prompt: &[u32], gamma: usize) -> Sums {
    session.clear();
    let how = Speculation::Fixed(gamma as u32);
    let n = WRITTEN - BLOCK + 2 * gamma;
    let how = GenerateOptions::greedy().max_tokens(n).ignore_eos(true).speculation(how);
    let mut generation = session.generate(prompt, &how).unwrap_or_else(|e| panic!("{e}"));
    // A pass shows when its first token comes, and began with the token before that.
    let (mut starts, mut passes) = (Vec::new(), 0);
    for at in 0.. {
        let Some(piece) = generation.next() else { break };
        piece.unwrap_or_else(|e| panic!("{e}"));
        if generation.stats().decode_steps > passes {
            passes = generation.stats().decode_steps;
            starts.push(at - 1);
        }
    }
    let mut sums = Sums::default();
    let pairs = starts.windows(2).take_while(|pair| pair[0] < WRITTEN - BLOCK);
    pairs.for_each(|pair| sums.round(pair[1] - pair[0] - 1, gamma));
    sums
}

/// The same along a text that is there: each round is computed as one, like a verified draft.
fn walk_along(session: &mut Session, prompt: &[u32], text: &[u32], gamma: usize) -> Sums {
    session.clear();
    session.prefill(prompt).unwrap_or_else(|e| panic!("{e}"));
    let (mut sums, mut at) = (Sums::default(), 0);
    while at < WRITTEN - BLOCK {
        let draft = draft(session, text[at], gamma as u32);
        let n = draft.iter().zip(&text[at + 1..]).take_while(|(drafted, written)| drafted == written).count();
        session.prefill(&text[at..=at + n]).unwrap_or_else(|e| panic!("{e}"));
        sums.round(n, gamma);
        at += n + 1;
    }
    sums
}

/// A prompt, and the text behind it if the model does not write that itself.
pub type Case<'a> = (Vec<u32>, Option<&'a [u32]>);

/// What `each` makes of shares of the cases, one share a thread, in the order of the cases.
fn shared<'a, T: Send>(cases: &[Case<'a>], each: impl Fn(&[Case<'a>]) -> Vec<T> + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        let parts = cases.chunks(cases.len().div_ceil(threads).max(1));
        let parts: Vec<_> = parts.map(|part| scope.spawn(|| each(part))).collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect()
    })
}

/// What came of drafts by their length, over all cases.
pub fn measure(
    model: &Model,
    drafter: &Drafter,
    cases: &[Case<'_>],
    gammas: &[usize],
    kv: &KvPolicy,
) -> Vec<Sums> {
    let depth = gammas.iter().copied().max().unwrap_or(1) as u32;
    let all = shared(cases, |cases| {
        cases.iter().map(|(prompt, written)| runs(model, drafter, prompt, *written, depth, kv)).collect()
    });
    let sum = |gamma: &usize| total(&all.iter().map(|runs| rounds(runs, *gamma)).collect::<Vec<_>>());
    gammas.iter().map(sum).collect()
}

/// What came of drafts in every case, with drafts of `gamma`, as sessions do it: a block drafter drafts a block of
/// that length, where [`measure`] cuts the longest.
pub fn walks(model: &Model, drafter: &Drafter, cases: &[Case<'_>], gamma: usize, kv: &KvPolicy) -> Vec<Sums> {
    shared(cases, |cases| {
        let mut session = session(model, drafter, kv);
        let each = |(prompt, written): &Case<'_>| match written {
            Some(text) => walk_along(&mut session, prompt, text, gamma),
            None => walk(&mut session, prompt, gamma),
        };
        cases.iter().map(each).collect()
    })
}

/// All of them together.
pub fn total(by_case: &[Sums]) -> Sums {
    by_case.iter().fold(Sums::default(), |a, b| Sums {
        accepted: a.accepted + b.accepted,
        rounds: a.rounds + b.rounds,
        rejected: a.rejected + b.rejected,
    })
}

/// A part of drafts that stood, less that over another cache of the same cases, and the standard error of the
/// difference: each is a ratio of sums over cases, and what a case adds to its error follows from its residual.
pub fn difference(got: &[Sums], other: &[Sums], part: impl Fn(&Sums) -> Part) -> (f64, f64) {
    let residuals = |by_case: &[Sums]| {
        let [stood, of] = part(&total(by_case)).map(|n| n as f64);
        let residual = |sums: &Sums| {
            let [a, b] = part(sums).map(|n| n as f64);
            (a - stood / of * b) / of
        };
        (stood / of, by_case.iter().map(residual).collect::<Vec<f64>>())
    };
    let ((a, left), (b, right)) = (residuals(got), residuals(other));
    let squares: f64 = left.iter().zip(&right).map(|(x, y)| (x - y).powi(2)).sum();
    let n = got.len() as f64;
    (a - b, (squares * n / (n - 1.0)).sqrt())
}
