//! Sessions on several threads, handles that outlive what they point to, and computations that are stopped.

use gemma4::{CancelHandle, Error, GenerateOptions, LoadOptions, Model, Session, SessionOptions, StopReason};
use gemma4_tests::{repo, tiny};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

fn dense() -> Model {
    Model::load(repo("tests/data/golden/a-dense.f16.gguf")).unwrap()
}

fn greedy(n: usize) -> GenerateOptions {
    GenerateOptions::greedy().max_tokens(n).ignore_eos(true)
}

fn prompt(n: usize) -> Vec<u32> {
    let golden: Vec<tiny::Golden> = tiny::json("golden.json");
    let tokens = golden.iter().flat_map(|g| g.prompt_ids[1..].iter().chain(&g.greedy_ids));
    std::iter::once(2).chain(tokens.copied().cycle()).take(n).collect()
}

fn session(model: &Model, n_batch: u32) -> Session {
    Session::new(model, &SessionOptions::default().n_ctx(4096).n_batch(n_batch).n_threads(1)).unwrap()
}

fn tokens(session: &mut Session, prompt: &[u32], n: usize) -> Vec<u32> {
    session.generate(prompt, &greedy(n)).unwrap().filter_map(|p| p.unwrap().token).collect()
}

#[test]
fn sessions_side_by_side() {
    let model = tiny::model();
    let golden: Vec<tiny::Golden> = tiny::json("golden.json");
    let run = |model: &Model, i: usize| {
        let mut session = session(model, 64);
        let first = tokens(&mut session, &golden[i].prompt_ids, 24);
        let more = tokens(&mut session, &golden[i].prompt_ids[1..], 8);
        (first, more, session.logits().to_vec())
    };
    let alone: Vec<_> = (0..4).map(|i| run(&model, i)).collect();
    let threads: Vec<_> = (0..4)
        .map(|i| {
            let (model, golden_run) = (model.clone(), &run);
            (i, model, golden_run)
        })
        .collect();
    thread::scope(|scope| {
        let handles: Vec<_> =
            threads.into_iter().map(|(i, model, run)| scope.spawn(move || run(&model, i))).collect();
        for (handle, alone) in handles.into_iter().zip(&alone) {
            assert_eq!(&handle.join().unwrap(), alone);
        }
    });
    // Interleaved on one thread.
    let mut sessions: Vec<_> = (0..4).map(|_| session(&model, 64)).collect();
    let mut got = vec![Vec::new(); 4];
    for step in 0..24 {
        for (i, session) in sessions.iter_mut().enumerate() {
            let prompt = if step == 0 { golden[i].prompt_ids.clone() } else { vec![*got[i].last().unwrap()] };
            got[i].extend(tokens(session, &prompt, 1));
        }
    }
    for (got, alone) in got.iter().zip(&alone) {
        assert_eq!(got, &alone.0);
    }
}

#[test]
fn loading_on_several_threads() {
    let want = tokens(&mut session(&dense(), 64), &[2, 7, 8], 8);
    let handles: Vec<_> =
        (0..6).map(|_| thread::spawn(|| tokens(&mut session(&dense(), 64), &[2, 7, 8], 8))).collect();
    for handle in handles {
        assert_eq!(handle.join().unwrap(), want);
    }
}

#[test]
fn any_drop_order() {
    let want = tokens(&mut session(&dense(), 64), &[2, 7, 8], 8);
    let model = dense();
    let (mut first, second) = (session(&model, 64), session(&model, 64));
    let (tokenizer, clone) = (model.tokenizer().clone(), model.clone());
    drop(model);
    drop(second);
    assert_eq!(tokens(&mut first, &[2, 7, 8], 8), want, "the model is gone");
    drop(clone);
    // To another thread, and the end there.
    let handle = thread::spawn(move || {
        let mut moved = first;
        moved.clear();
        tokens(&mut moved, &[2, 7, 8], 8)
    });
    assert_eq!(handle.join().unwrap(), want);
    assert!(!tokenizer.decode(&want).is_empty(), "and the tokenizer lives on");

    let model = dense();
    let mut session = session(&model, 64);
    let handles: Vec<CancelHandle> = (0..3).map(|_| session.cancel_handle()).collect();
    let mut run = session.generate(&[2, 7, 8], &greedy(8)).unwrap();
    let got: Vec<u32> = run.by_ref().take(3).filter_map(|p| p.unwrap().token).collect();
    assert_eq!(got, want[..3]);
    // A generation that is dropped half way leaves the tokens that were computed.
    drop(run);
    assert_eq!(session.tokens(), [&[2, 7, 8], &want[..2]].concat());
    assert_eq!(tokens(&mut session, &[], 6), want[2..]);
    drop(session);
    drop(model);
    for handle in handles {
        handle.cancel();
        assert!(handle.is_cancelled());
        handle.reset();
        assert!(!handle.is_cancelled());
    }
}

#[test]
fn a_long_prefill_stops_within_an_operation() {
    let model = tiny::model();
    let prompt = prompt(3500);
    let mut plain = session(&model, 4096);
    let started = Instant::now();
    plain.prefill(&prompt).unwrap();
    let whole = started.elapsed();
    let want = plain.logits().to_vec();

    let mut session = session(&model, 4096);
    let mut in_time = 0;
    for share in [2, 3, 5, 20] {
        session.clear();
        let handle = session.cancel_handle();
        let other = thread::spawn(move || {
            thread::sleep(whole / share);
            handle.cancel();
            Instant::now()
        });
        let result = session.prefill(&prompt);
        let ended = Instant::now();
        let asked = other.join().unwrap();
        if result.is_ok() {
            // A thread that woke too late, on a busy machine.
            session.cancel_handle().reset();
            continue;
        }
        assert!(matches!(result, Err(Error::Cancelled)), "{share}: {result:?}");
        // The graph has twelve layers of dozens of operations; other tests run beside this one.
        let wait = ended.saturating_duration_since(asked);
        assert!(
            wait < whole / 3 + Duration::from_millis(100),
            "{wait:?} after the request; whole: {whole:?}"
        );
        in_time += 1;
        assert_eq!((session.len(), session.logits().len()), (0, 0));
        assert!(!session.cancel_handle().is_cancelled(), "the request has been noticed");
    }
    assert!(in_time >= 3, "the machine is too fast for this test");
    session.prefill(&prompt).unwrap();
    assert_eq!(session.logits(), want, "as if nothing had happened");
}

#[test]
fn a_prefill_of_chunks_keeps_what_is_done() {
    let model = tiny::model();
    let prompt = prompt(1000);
    let (mut session, mut plain) = (session(&model, 100), session(&model, 100));
    let handle = session.cancel_handle();
    let result = session.prefill_with(&prompt, |done| {
        if done == 600 {
            handle.cancel();
        }
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!(session.tokens(), &prompt[..600]);

    // The rest follows, and the text is that of a session that was left alone.
    let want = tokens(&mut plain, &prompt, 24);
    assert_eq!(tokens(&mut session, &prompt[600..], 24), want);
    assert_eq!(session.logits(), plain.logits());

    // In the middle of a chunk, from a thread. On a busy machine one may wake too late.
    let mut in_time = 0;
    for delay in [1u64, 3, 9, 27] {
        session.clear();
        let handle = session.cancel_handle();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(delay));
            handle.cancel();
        });
        let mut run = session.generate(&prompt, &greedy(24)).unwrap();
        let kept: Vec<u32> = run.by_ref().filter_map(|p| p.unwrap().token).collect();
        assert_eq!(run.stats().generated_tokens, kept.len());
        let reason = run.stop_reason().cloned();
        other.join().unwrap();
        session.cancel_handle().reset();
        if !kept.is_empty() {
            continue;
        }
        in_time += 1;
        assert_eq!(reason, Some(StopReason::Cancelled));
        let done = session.len();
        assert!(done.is_multiple_of(100) && done <= 1000, "{done}");
        // Going on from where it stands, also without another token.
        if done > 0 {
            plain.clear();
            plain.prefill(&prompt[..done]).unwrap();
            assert_eq!(tokens(&mut session, &[], 6), tokens(&mut plain, &[], 6), "{done}");
            session.truncate(done).unwrap();
        }
        assert_eq!(tokens(&mut session, &prompt[done..], 24), want);
    }
    assert!(in_time >= 3, "the machine is too fast for this test");
}

#[test]
fn a_request_ahead_stops_the_next_call_only() {
    let model = dense();
    let mut session = session(&model, 64);
    let handle = session.cancel_handle();
    handle.cancel();
    assert!(matches!(session.prefill(&[2, 7, 8]), Err(Error::Cancelled)));
    assert!(session.is_empty() && !handle.is_cancelled());
    let want = tokens(&mut session, &[2, 7, 8], 8);

    session.clear();
    handle.cancel();
    assert!(matches!(session.evaluate(&[2, 7, 8], false), Err(Error::Cancelled)));
    handle.cancel();
    let mut run = session.generate(&[2, 7, 8], &greedy(8)).unwrap();
    assert!(run.next().is_none());
    assert_eq!(run.stop_reason(), Some(&StopReason::Cancelled));
    assert_eq!(run.stats().prompt_tokens, 0);
    assert_eq!(tokens(&mut session, &[2, 7, 8], 8), want);

    // Logits are at hand: nothing has to be computed, and still the request counts.
    session.clear();
    session.prefill(&[2, 7, 8]).unwrap();
    handle.cancel();
    let mut run = session.generate(&[], &greedy(8)).unwrap();
    assert!(run.next().is_none());
    assert_eq!(run.stop_reason(), Some(&StopReason::Cancelled));
    // Logits are not at hand, so that the last token is computed again: it must not get lost.
    session.prefill(&[9]).unwrap();
    session.truncate(3).unwrap();
    handle.cancel();
    let mut run = session.generate(&[], &greedy(8)).unwrap();
    assert!(run.next().is_none());
    assert_eq!(run.stop_reason(), Some(&StopReason::Cancelled));
    assert_eq!(session.tokens(), [2, 7, 8]);
    assert_eq!(tokens(&mut session, &[], 8), want);

    // Taken back in time.
    session.clear();
    handle.cancel();
    handle.reset();
    assert_eq!(tokens(&mut session, &[2, 7, 8], 8), want);
}

#[test]
fn a_generation_stops_between_tokens() {
    let model = tiny::model();
    let mut session = session(&model, 64);
    let want = tokens(&mut session, &prompt(40), 400);
    session.clear();
    let handle = session.cancel_handle();
    let (send, receive) = mpsc::channel();
    let other = thread::spawn(move || {
        // After the tenth token.
        for _ in 0..10 {
            receive.recv().unwrap();
        }
        handle.cancel();
    });
    let mut run = session.generate(&prompt(40), &greedy(400)).unwrap();
    let mut got = Vec::new();
    for piece in run.by_ref() {
        got.extend(piece.unwrap().token);
        let _ = send.send(());
    }
    assert_eq!(run.stop_reason(), Some(&StopReason::Cancelled));
    other.join().unwrap();
    assert!((10..400).contains(&got.len()), "{}", got.len());
    assert_eq!(got, want[..got.len()]);
    // The last token was given out but not computed.
    let kept = session.len() - 40;
    assert_eq!((kept, &session.tokens()[40..]), (got.len() - 1, &want[..kept]));
    assert_eq!(tokens(&mut session, &[], 400 - kept), want[kept..]);
}

#[test]
fn loading_can_be_stopped() {
    for use_mmap in [true, false] {
        let options = LoadOptions::default().use_mmap(use_mmap);
        for stop_at in 0..3 {
            let mut calls = 0;
            let result = Model::load_with(tiny::path("tiny-gemma4-q8_0.gguf"), &options, |p| {
                assert!(p.done <= p.total);
                calls += 1;
                if calls > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            // A mapped file is there at once.
            if use_mmap && stop_at > 0 {
                assert!(result.is_ok());
            } else {
                assert!(
                    matches!(result, Err(Error::Cancelled)),
                    "{use_mmap} {stop_at}: {:?}",
                    result.map(drop)
                );
                assert_eq!(calls, stop_at + 1, "it was called again after it broke off");
            }
        }
    }
}

#[test]
fn a_panic_while_loading_poisons_nothing() {
    let path = repo("tests/data/golden/a-dense.f16.gguf");
    let want = tokens(&mut session(&dense(), 64), &[2, 7, 8], 8);
    for use_mmap in [true, false] {
        for panic_at in 0..2 {
            let options = LoadOptions::default().use_mmap(use_mmap);
            let mut calls = 0;
            let load = || {
                Model::load_with(&path, &options, |_| {
                    calls += 1;
                    if calls > panic_at {
                        std::panic::resume_unwind(Box::new("from the callback"));
                    }
                    ControlFlow::Continue(())
                })
            };
            match catch_unwind(AssertUnwindSafe(load)) {
                Err(panic) => assert_eq!(panic.downcast_ref::<&str>(), Some(&"from the callback")),
                Ok(model) => assert!(use_mmap && panic_at > 0 && model.is_ok()),
            }
            assert_eq!(tokens(&mut session(&dense(), 64), &[2, 7, 8], 8), want);
        }
    }
    // In the callback of a prefill: what was computed stays, and the session goes on.
    let mut session = session(&dense(), 4);
    let prompt: Vec<u32> = (2..12).collect();
    let call = AssertUnwindSafe(|| {
        session.prefill_with(&prompt, |done| {
            if done == 8 {
                std::panic::resume_unwind(Box::new(()));
            }
        })
    });
    assert!(catch_unwind(call).is_err());
    assert_eq!(session.tokens(), &prompt[..8]);
    let got = tokens(&mut session, &prompt[8..], 4);
    session.clear();
    assert_eq!(tokens(&mut session, &prompt, 4), got);
}
