//! What the system refuses is an error, and the session goes on. Each test runs in a process with limits.

#![cfg(target_os = "linux")]

use gemma4::{Error, Model, Session, SessionOptions};
use gemma4_tests::tiny;
use std::process::Command;

/// Runs the ignored test `name` of this file under limits of the shell's `ulimit`.
fn limited(ulimit: &str, name: &str) {
    let out = Command::new("sh")
        .args(["-c", &format!("ulimit {ulimit} && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture", "--test-threads", "1"])
        .output()
        .unwrap();
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    // An abort of ggml would end the child by a signal.
    assert!(out.status.success(), "{:?}\n{text}\n{errors}", out.status);
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn threads_that_the_system_refuses() {
    // 512 threads with stacks of 8 MiB are 4 GiB of addresses.
    limited("-v 2000000", "refused_threads");
}

#[test]
#[ignore = "started by threads_that_the_system_refuses"]
fn refused_threads() {
    let model = tiny::model();
    let options = SessionOptions::default().n_ctx(256);
    match Session::new(&model, &options.clone().n_threads(512)) {
        Err(Error::Option { option: "n_threads", why, .. }) => assert!(why.contains("the system"), "{why}"),
        other => panic!("{other:?}"),
    }
    let mut session = Session::new(&model, &options.n_threads(2)).unwrap();
    session.prefill(&[2, 300, 301]).unwrap();
}

#[test]
fn memory_that_the_system_refuses() {
    limited("-v 600000", "refused_memory");
}

#[test]
#[ignore = "started by memory_that_the_system_refuses"]
fn refused_memory() {
    let model: Model = tiny::model();
    let options = SessionOptions::default().n_ctx(2048).n_batch(2048).n_threads(1);
    let mut session = Session::new(&model, &options).unwrap();
    let text: Vec<u32> = (0..40).map(|i| 300 + i).collect();
    session.prefill(&text).unwrap();
    let want = session.logits().to_vec();
    // Takes what is left, in small pieces that the allocator returns at once.
    let mut hog: Vec<Vec<u8>> = Vec::new();
    let mut piece = Vec::new();
    while piece.try_reserve_exact(8 << 20).is_ok() {
        hog.push(std::mem::take(&mut piece));
    }
    // Room for what Rust takes: the results and the mask. Outputs of all layers at once, and logits of all
    // tokens, want more than the graph of a chunk has.
    hog.truncate(hog.len() - 5);
    let long: Vec<u32> = (0..1900).map(|i| 300 + i).collect();
    let refused = session.evaluate(&long, true).map(|all| all.logits.len());
    drop(hog);
    match refused {
        Err(Error::OutOfMemory { what, .. }) => println!("refused: {what}"),
        other => panic!("{:?}", other),
    }
    // The sequence is what it was, and the session computes as before.
    assert_eq!(session.tokens(), text);
    session.clear();
    session.prefill(&text).unwrap();
    assert_eq!(session.logits(), want);
    assert_eq!(session.score(&long[..100]).unwrap().len(), 100);
}
