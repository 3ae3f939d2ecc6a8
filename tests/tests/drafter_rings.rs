//! Drafters read caches that have wrapped, and of every type, as they read short plain ones.

use gemma4::{
    DType, DraftStep, Drafter, DrafterOptions, GenerateOptions, KvConfig, LayerKind, Model, Session,
    SessionOptions, Speculation,
};
use gemma4_tests::tiny;

/// Positions of the text: more than five windows, more than two rings.
const TEXT: usize = 1400;
/// A draft is looked at behind so many tokens each. One chunk of every session: other chunks would round otherwise, and
/// narrow types make more of it than a ring may.
const STRIDE: usize = 64;
const N_CTX: u32 = 1536;

fn session(model: &Model, drafter: &Drafter, kv: DType, n_batch: u32) -> Session {
    let options = SessionOptions::default().n_ctx(N_CTX).n_batch(n_batch).n_threads(1);
    let options = options.kv(KvConfig::uniform(kv)).drafter(drafter.clone());
    let plan = Session::plan(model, &options).unwrap();
    let swa = plan.layers.iter().find(|class| class.kind == LayerKind::Swa).unwrap();
    assert_eq!(swa.slots, if n_batch < 256 { 512 } else { N_CTX }, "ring or linear");
    Session::new(model, &options).unwrap()
}

/// Rounds of greedy decoding with drafts of four at points along a real text, since text of the model's own
/// soon repeats itself. Returns drafts, and accepted and judged ones before and behind the third window.
fn walk(mut session: Session, text: &[u32], n: u32) -> (Vec<Vec<DraftStep>>, [[usize; 2]; 2]) {
    let (mut drafts, mut counts) = (Vec::new(), [[0; 2]; 2]);
    let window = session.model().hparams().window as usize;
    for (i, chunk) in text.chunks(STRIDE).enumerate() {
        let options =
            GenerateOptions::greedy().max_tokens(12).ignore_eos(true).speculation(Speculation::Fixed(n));
        let mut generation = session.generate(chunk, &options).unwrap();
        for piece in generation.by_ref() {
            piece.unwrap();
        }
        let stats = generation.stats().speculation.clone().unwrap();
        let late = usize::from(i * STRIDE > 3 * window);
        counts[late][0] += stats.accepted;
        counts[late][1] += stats.positions.iter().map(|p| p[0]).sum::<usize>();
        let len = (i * STRIDE + chunk.len()).min(text.len());
        session.truncate(len - 1).unwrap();
        session.prefill(&text[len - 1..len]).unwrap();
        let next = text.get(len).copied().unwrap_or(0);
        drafts.push(session.trace_draft(next, n).unwrap());
    }
    (drafts, counts)
}

fn rate([accepted, judged]: [usize; 2]) -> f64 {
    assert!(judged >= 30, "{judged} drafts judged");
    accepted as f64 / judged as f64
}

/// Mean distance of the probabilities that two walks give to their drafts, at each place up to the first token
/// that differs; that one counts as 1.
fn distance(a: &[Vec<DraftStep>], b: &[Vec<DraftStep>]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (mut sum, mut n) = (0.0, 0);
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            let is_same = a.token == b.token;
            sum += if is_same { f64::from((a.p - b.p).abs()) } else { 1.0 };
            n += 1;
            if !is_same {
                break;
            }
        }
    }
    assert!(n > 40, "{n} places compared");
    sum / f64::from(n)
}

/// Walks through a ring with each of `types`, and compares with a linear cache of that type: the drafts, which must be closer
/// than the number given, and how many are accepted. About 100 are judged in each half, and a near tie of the
/// model that falls the other way makes another text of 12 tokens: acceptance moves by a few hundredths. An
/// assistant that sees every slot is 0.11 away with an F16 or Q8_0 cache, and 0.21 with Q4_0.
fn compare(drafter: &Drafter, n: u32, types: &[(DType, f64)]) {
    let model = tiny::model();
    let text = &tiny::tokens(&model, "val-code.txt")[..TEXT];
    for &(kv, far) in types {
        let (linear, plain) = walk(session(&model, drafter, kv, N_CTX), text, n);
        let plain = plain.map(rate);
        assert!(plain[0] > 0.3 && plain[1] > 0.3, "{kv}: {plain:?}");
        let (drafts, counts) = walk(session(&model, drafter, kv, 64), text, n);
        let (rates, got) = (counts.map(rate), distance(&drafts, &linear));
        println!("{} {kv}: accepted {rates:.3?}, linear {plain:.3?}; distance {got:.4}", drafter.kind());
        assert!(got < far, "{kv}: {got}");
        for (ring, linear) in rates.iter().zip(&plain) {
            assert!((ring - linear).abs() < 0.12, "{kv}: accepted {rates:?}, linear {plain:?}");
        }
    }
}

#[test]
fn mtp_over_wrapped_rings() {
    let drafter = Drafter::load(tiny::path("tiny-gemma4-mtp-q8_0.gguf"), &tiny::model()).unwrap();
    compare(
        &drafter,
        4,
        &[(DType::F16, 0.05), (DType::Q8_0, 0.05), (DType::Q4_0, 0.05), (DType::TQ3_0, 0.1)],
    );
}

#[test]
fn dflash_over_wrapped_rings() {
    let options = DrafterOptions::default().dflash_mask(tiny::MASK);
    let path = tiny::path("tiny-gemma4-dflash-q8_0.gguf");
    let drafter = Drafter::load_with(path, &tiny::model(), &options).unwrap();
    compare(&drafter, 6, &[(DType::F16, 0.06), (DType::Q4_0, 0.06), (DType::TQ3_0, 0.06)]);
}
