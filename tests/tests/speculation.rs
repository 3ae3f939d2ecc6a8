//! Speculation: the text is what it would be without, whatever the drafter, and rounds commit what they should.

use gemma4::sampling::{Distribution, SamplingOptions};
use gemma4::{
    Acceptance, ContextPolicy, DType, Drafter, EncodeOptions, GenerateOptions, KvConfig, Model, NgramOptions,
    Proposal, Session, SessionOptions, Speculation, SpeculationStats, StopReason,
};
use gemma4_tests::tiny;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn options(kv: DType) -> SessionOptions {
    SessionOptions::default().n_ctx(2048).n_threads(1).kv(KvConfig::uniform(kv))
}

/// `n` prompts of `len` tokens, half code and half prose.
fn prompts(model: &Model, n: usize, len: usize) -> Vec<Vec<u32>> {
    let mut out = Vec::new();
    for name in ["val-code.txt", "val-prose.txt"] {
        let text = std::fs::read_to_string(tiny::path(name)).unwrap();
        let tokens = model.tokenizer().encode(&text, EncodeOptions::TEXT).unwrap();
        let step = (tokens.len() - len) / n;
        for i in 0..n.div_ceil(2) {
            let mut prompt = vec![2];
            prompt.extend_from_slice(&tokens[i * step..i * step + len - 1]);
            out.push(prompt);
        }
    }
    out.truncate(n);
    out
}

fn greedy(n: usize) -> GenerateOptions {
    GenerateOptions::greedy().max_tokens(n).ignore_eos(true)
}

/// The tokens of a generation, what the drafter did, and why it ended.
fn generate(
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
) -> (Vec<u32>, Option<SpeculationStats>, StopReason) {
    let mut generation = session.generate(prompt, options).unwrap();
    let tokens = generation.by_ref().map(|piece| piece.unwrap().token).collect();
    (tokens, generation.stats().speculation, generation.stop_reason().unwrap().clone())
}

/// A drafter that knows the text, and one that is wrong about every token.
fn knows(text: Vec<u32>) -> Drafter {
    Drafter::from_fn(16, move |tokens: &[u32], n| {
        text[tokens.len().min(text.len())..].iter().copied().take(n).collect::<Vec<_>>()
    })
}

fn is_wrong(text: Vec<u32>) -> Drafter {
    Drafter::from_fn(16, move |tokens: &[u32], n| {
        text[tokens.len().min(text.len())..].iter().map(|&t| (t + 1) % 4096).take(n).collect::<Vec<_>>()
    })
}

#[test]
fn oracle_and_all_wrong_drafters_write_the_same_text() {
    let model = tiny::model();
    for kv in [DType::F16, DType::Q8_0] {
        for prompt in prompts(&model, 4, 40) {
            let mut plain = Session::new(&model, &options(kv)).unwrap();
            // One token more: the last draft of the last round.
            let (want, none, _) = generate(&mut plain, &prompt, &greedy(121));
            assert_eq!(none, None);
            let text = [&prompt[..], &want].concat();
            for gamma in [1, 2, 3, 7, 15] {
                let how = greedy(120).speculation(Speculation::Fixed(gamma));
                let oracle = options(kv).drafter(knows(text.clone()));
                let mut session = Session::new(&model, &oracle).unwrap();
                let (tokens, stats, reason) = generate(&mut session, &prompt, &how);
                assert_eq!(tokens, want[..120], "{kv} gamma {gamma}");
                assert_eq!(reason, StopReason::MaxTokens);
                let stats = stats.unwrap();
                // The first token is the prompt's; a round of gamma drafts commits gamma + 1.
                let full = 119 / (gamma as usize + 1);
                assert!(stats.rounds >= full && stats.rounds <= full + 5, "{gamma}: {stats:?}");
                assert_eq!(stats.accepted, stats.drafted, "{stats:?}");
                assert_eq!(stats.rounds + stats.plain_steps + stats.accepted, 119, "{stats:?}");

                let wrong = options(kv).drafter(is_wrong(text.clone()));
                let mut session = Session::new(&model, &wrong).unwrap();
                let (tokens, stats, _) = generate(&mut session, &prompt, &how);
                assert_eq!(tokens, want[..120], "{kv} gamma {gamma}, all wrong");
                let stats = stats.unwrap();
                assert_eq!(stats.accepted, 0);
                assert_eq!(stats.rounds + stats.plain_steps, 119, "one token a round");
                assert!(
                    stats.rounds >= 118 && stats.drafted > (118 - gamma as usize) * gamma as usize,
                    "{stats:?}"
                );
            }
        }
    }
}
