//! Nothing stays behind: what fails, what is stopped and what is dropped gives its memory and its threads back.
//!
//! One test, alone in its process, because it looks at the whole process. `LEAK_ROUNDS=1` is enough under
//! valgrind: `LEAK_ROUNDS=1 valgrind --leak-check=full target/debug/deps/leaks-*`.
#![cfg(target_os = "linux")]

use gemma4::{
    DType, Drafter, Error, GenerateOptions, KvConfig, LoadOptions, Model, Session, SessionOptions,
    Speculation,
};
use gemma4_tests::bad::{Bench, Parts, id};
use gemma4_tests::repo;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A figure of this process from `/proc/self/status`.
fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A bit of everything that can go right or wrong.
fn round(bench: &Bench<tempfile::TempDir>, whole: &Parts) {
    let path = repo("tests/data/golden/a-dense.f16.gguf");
    let copied = LoadOptions::default().use_mmap(false);
    // Loads that fail late: at the last tensor, by the callback, by a panic of the callback.
    let mut parts = whole.clone();
    parts.remove_tensor("output_norm.weight");
    bench.error("no norm", &parts);
    let bytes = whole.bytes();
    bench.load_bytes(&bytes[..bytes.len() - 40]).map(drop).unwrap_err();
    let stopped = Model::load_with(&path, &copied, |p| match p.done {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let panic = || Model::load_with(&path, &copied, |_| std::panic::resume_unwind(Box::new(())));
    assert!(catch_unwind(AssertUnwindSafe(panic)).is_err());

    let model = Model::load(&path).unwrap();
    let options = SessionOptions::default().n_ctx(64).n_batch(16).n_threads(2);
    Session::new(&model, &options.clone().n_threads(0)).map(drop).unwrap_err();
    Session::new(&model, &options.clone().n_ctx(1 << 31)).map(drop).unwrap_err();
    Session::new(&model, &options.clone().kv(KvConfig::uniform(DType::I32))).map(drop).unwrap_err();
    let mut session = Session::new(&model, &options).unwrap();
    let handle = session.cancel_handle();
    drop(model);
    session.prefill(&[999]).unwrap_err();
    session.prefill(&[7; 65]).unwrap_err();
    let mut run = session.generate(&[2, 7, 8], &GenerateOptions::default().max_tokens(6)).unwrap();
    run.next().unwrap().unwrap();
    handle.cancel();
    run.by_ref().for_each(drop);
    session.truncate(2).unwrap();
    session.evaluate(&[7; 20], true).unwrap();
    let snapshot = session.snapshot().unwrap();
    session.fork().unwrap().prefill(&[8]).unwrap();
    session.clear();
    session.restore(&snapshot).unwrap();
    drop(session);
    handle.cancel();

    let target = Model::load(repo("tests/data/golden/b-keqv.f16.gguf")).unwrap();
    let drafter = Drafter::load(repo("tests/data/golden/e-draft-b.f16.gguf"), &target).unwrap();
    let options = options.kv(KvConfig::uniform(DType::TQ3_0)).drafter(drafter);
    let mut session = Session::new(&target, &options).unwrap();
    let how = GenerateOptions::greedy().max_tokens(9).ignore_eos(true).speculation(Speculation::Fixed(3));
    let mut run = session.generate(&[2, 7, 8], &how).unwrap();
    run.by_ref().for_each(|piece| drop(piece.unwrap()));
    assert!(run.stats().speculation.unwrap().rounds > 0);
}

/// Settings with which glibc returns what was freed at once. With its own, one large block more or less in the
/// heap's gaps moves the resident size by tens of megabytes, and nothing leaked.
const STRICT: [(&str, &str); 4] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "16384"),
    ("MALLOC_TRIM_THRESHOLD_", "16384"),
    ("MALLOC_TOP_PAD_", "0"),
];

#[test]
fn rounds_do_not_add_up() {
    let is_strict = STRICT.iter().all(|(key, value)| std::env::var(key).is_ok_and(|is| is == *value));
    if is_strict || std::env::var_os("LEAK_ROUNDS").is_some() {
        return measure();
    }
    // The settings are read when a process starts.
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.envs(STRICT).args(["--exact", "rounds_do_not_add_up", "--nocapture"]);
    assert!(again.status().unwrap().success(), "the same test in a process of its own, see above");
}

fn measure() {
    let bench = Bench::new(tempfile::tempdir().unwrap());
    let whole = Parts::micro(32, 16, id::F16);
    // Under valgrind one round is enough, and slow.
    let rounds = std::env::var("LEAK_ROUNDS").map_or(24, |n| n.parse().unwrap());
    for _ in 0..rounds.min(10) {
        round(&bench, &whole);
    }
    let before = (status("VmRSS"), status("Threads"), open_files());
    for _ in 0..rounds {
        round(&bench, &whole);
    }
    let after = (status("VmRSS"), status("Threads"), open_files());
    assert_eq!((before.1, before.2), (after.1, after.2), "threads and open files");
    if rounds < 10 {
        return;
    }
    // A model is 1.2 MB and a session more: either would grow by five times this.
    assert!(after.0 < before.0 + 5 * 1024, "{} KiB grew to {} KiB in {rounds} rounds", before.0, after.0);
}
