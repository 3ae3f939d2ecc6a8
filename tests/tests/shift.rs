//! A full context ends a generation, or forgets its oldest part.

use gemma4::{Error, GenerateOptions, Session, SessionOptions, StopReason, WhenFull};
use gemma4_tests::tiny;

fn session(n_ctx: u32) -> Session {
    let options = SessionOptions::default().n_ctx(n_ctx).n_batch(64).n_threads(1);
    Session::new(&tiny::model(), &options).unwrap()
}

fn options() -> GenerateOptions {
    GenerateOptions::greedy().ignore_eos(true)
}

#[test]
fn a_generation_goes_on_beyond_the_context() {
    let prompt: Vec<u32> = std::iter::once(2).chain(300..340).collect();
    let mut s = session(128);
    let mut generation = s.generate(&prompt, &options().max_tokens(300)).unwrap();
    generation.by_ref().for_each(|piece| drop(piece.unwrap()));
    assert_eq!(generation.stop_reason(), Some(&StopReason::ContextFull));

    let mut s = session(128);
    let policy = options().max_tokens(300).when_full(WhenFull::Shift { keep: 8 });
    let mut generation = s.generate(&prompt, &policy).unwrap();
    let tokens: Vec<u32> = generation.by_ref().filter_map(|piece| piece.unwrap().token).collect();
    assert_eq!((tokens.len(), generation.stop_reason()), (300, Some(&StopReason::MaxTokens)));
    assert_eq!(s.tokens()[..8], prompt[..8]);
    // What the session holds is the kept beginning and the newest tokens: as if it had been given so.
    let held = s.tokens().to_vec();
    assert!(tokens[..299].ends_with(&held[8..]));
    let mut fresh = session(128);
    let want = tiny::greedy(&mut fresh, &held, 1);
    assert_eq!(want, tokens[299..]);
}

#[test]
fn what_remains_starts_with_a_turn() {
    let model = tiny::model();
    let turn = model.tokenizer().token_id("<|turn>").unwrap();
    let mut tokens = vec![2, 400, 401];
    for start in [500, 600, 700, 800] {
        tokens.push(turn);
        tokens.extend(start..start + 20);
    }
    let mut s = session(128);
    s.prefill(&tokens).unwrap();
    let dropped = s.shift(3).unwrap();
    assert_eq!(s.tokens()[..3], tokens[..3]);
    assert_eq!(s.tokens()[3], turn);
    assert_eq!(s.tokens()[3..], tokens[3 + dropped..]);
    assert_eq!(dropped, 42, "two turns of 21 tokens");
    assert!(!s.logits().is_empty());
}

#[test]
fn nothing_to_drop_is_an_error_and_changes_nothing() {
    let mut s = session(128);
    assert!(matches!(s.shift(0), Err(Error::Option { option: "keep", .. })));
    s.prefill(&[2, 300, 301]).unwrap();
    assert!(matches!(s.shift(2), Err(Error::Option { option: "keep", .. })));
    assert_eq!(s.tokens(), [2, 300, 301]);
    assert_eq!(s.shift(0).unwrap(), 1);
    assert_eq!(s.tokens(), [2, 301], "the beginning of the sequence stays");
}
