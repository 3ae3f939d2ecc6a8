//! A restored session computes what the original would have, bit for bit.

use gemma4::{DType, Error, KvConfig, Model, Session, SessionOptions, Snapshot};
use gemma4_tests::{repo, tiny};

/// Irregular text of `n` tokens.
fn text(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| if i == 0 { 2 } else { 300 + i.wrapping_mul(2_654_435_761) % 3000 }).collect()
}

fn options() -> SessionOptions {
    SessionOptions::default().n_ctx(2048).n_batch(128).n_threads(1)
}

fn session(model: &Model) -> Session {
    Session::new(model, &options()).unwrap()
}

/// Logits of the next steps: decode, a small block, a chunk that wraps.
fn future(session: &mut Session) -> Vec<Vec<f32>> {
    let mut out = vec![session.logits().to_vec()];
    for n in [1, 1, 5, 100] {
        session.prefill(&text(n + 7)[7..]).unwrap();
        out.push(session.logits().to_vec());
    }
    out
}

#[test]
fn restored_logits_are_bit_equal_around_the_window() {
    let model = tiny::model();
    let window = model.hparams().window as usize;
    for n in [1, window - 1, window, window + 1, 3 * window] {
        let mut original = session(&model);
        original.prefill(&text(n)).unwrap();
        let snapshot = original.snapshot().unwrap();
        let bytes = snapshot.to_bytes();
        let want = future(&mut original);
        // Into a used session, whose ring holds other rows at the same slots.
        let mut other = session(&model);
        other.prefill(&text(777)[10..]).unwrap();
        other.restore(&Snapshot::from_bytes(&bytes).unwrap()).unwrap();
        assert_eq!(other.tokens(), text(n));
        assert_eq!(future(&mut other), want, "after {n} tokens");
        // The original goes back to where it was, too.
        original.restore(&snapshot).unwrap();
        assert_eq!(future(&mut original), want, "after {n} tokens, the same session");
    }
}

#[test]
fn greedy_text_is_the_same_with_and_without_snapshots() {
    let model = tiny::model();
    for golden in tiny::json::<Vec<tiny::Golden>>("golden.json") {
        let want = tiny::greedy(&mut session(&model), &golden.prompt_ids, 64);
        let mut s = session(&model);
        let mut got = tiny::greedy(&mut s, &golden.prompt_ids, 20);
        // The newest token is chosen but not computed; it starts the continuation.
        let mut s = { s.fork().unwrap() };
        let last = [*got.last().unwrap()];
        got.extend(tiny::greedy(&mut s, &last, 44));
        assert_eq!(got, want);
    }
}

#[test]
fn a_fork_and_its_origin_do_not_disturb_each_other() {
    let model = tiny::model();
    let mut a = session(&model);
    a.prefill(&text(600)).unwrap();
    let mut b = a.fork().unwrap();
    b.prefill(&text(300)).unwrap();
    let mut c = session(&model);
    c.prefill(&text(600)).unwrap();
    assert_eq!(future(&mut a), future(&mut c));
}

#[test]
fn a_file_round_trip_and_damage() {
    let model = tiny::model();
    let mut s = session(&model);
    s.prefill(&text(300)).unwrap();
    let snapshot = s.snapshot().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.g4");
    snapshot.save(&path).unwrap();
    assert!(Snapshot::load(&path).unwrap() == snapshot);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no part of a file stays");

    let bytes = std::fs::read(&path).unwrap();
    for at in [0, 9, 13, 40, 1000, bytes.len() / 2, bytes.len() - 1] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(matches!(Snapshot::from_bytes(&bad), Err(Error::Snapshot(_))), "byte {at}");
    }
    for len in (0..bytes.len()).step_by(4099) {
        assert!(matches!(Snapshot::from_bytes(&bytes[..len]), Err(Error::Snapshot(_))), "{len} bytes");
    }
    assert!(matches!(Snapshot::load(dir.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn other_models_types_and_sizes_are_refused() {
    let model = tiny::model();
    let mut s = session(&model);
    s.prefill(&text(600)).unwrap();
    let snapshot = s.snapshot().unwrap();
    let refused = |session: &mut Session| {
        let before = session.tokens().to_vec();
        let error = session.restore(&snapshot).unwrap_err();
        assert_eq!(session.tokens(), before, "{error}");
        error.to_string()
    };
    let other = Model::load(repo("tests/data/golden/a-dense.f16.gguf")).unwrap();
    assert!(refused(&mut Session::new(&other, &options()).unwrap()).contains("another model"));
    let kv = KvConfig::uniform(DType::Q8_0);
    assert!(refused(&mut Session::new(&model, &options().kv(kv)).unwrap()).contains("KV types"));
    assert!(refused(&mut Session::new(&model, &options().n_ctx(512)).unwrap()).contains("overflow"));
    // A session whose window cache is linear wants rows that the ring has dropped.
    let linear = options().n_ctx(1024).n_batch(1024);
    assert!(refused(&mut Session::new(&model, &linear).unwrap()).contains("needs positions"));
}

#[test]
fn a_shared_prefix_is_not_computed_again() {
    let model = tiny::model();
    let mut s = session(&model);
    s.prefill(&text(200)).unwrap();
    let mut next = text(150);
    next.extend([400, 401, 402]);
    assert_eq!(s.reuse_prefix(&next), 150);
    s.prefill(&next[150..]).unwrap();
    let mut fresh = session(&model);
    fresh.prefill(&next).unwrap();
    let far = s.logits().iter().zip(fresh.logits()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 0.25, "{far}");
    // Far behind the window there is nothing to go back to but the start.
    s.prefill(&text(1200)).unwrap();
    assert_eq!(s.reuse_prefix(&next[..10]), 0);
    assert!(s.is_empty());
}
