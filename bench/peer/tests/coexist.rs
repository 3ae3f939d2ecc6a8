//! This project's ggml and llama.cpp's in one program: both work, before, between and after each other,
//! and at the same time. The two differ (this project patches ggml), so sharing symbols would corrupt memory.

use std::path::Path;
use std::thread;

use gemma4_bench_peer::ours::Ours;
use gemma4_bench_peer::peer::Peer;
use gemma4_bench_peer::{Kv, Settings};

const PROMPT: [u32; 6] = [2, 1124, 1930, 273, 1124, 1874];

fn settings() -> Settings {
    Settings {
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-gemma4/tiny-gemma4-q8_0.gguf"),
        threads: 2,
        kv: Kv::F16,
        batch: 64,
        context: 256,
    }
}

fn ours() -> Vec<f32> {
    let logits =
        Ours::open(&settings()).expect("gemma4 loads the model").evaluate(&PROMPT).expect("logits").to_vec();
    assert!(logits.iter().all(|x| x.is_finite()));
    logits
}

fn theirs(peer: &mut Peer) -> Vec<f32> {
    peer.clear();
    peer.evaluate(0, &PROMPT).expect("logits").to_vec()
}

// One test, because the order matters and llama.cpp's backend is initialised once.
#[test]
fn both_ggmls_work_in_one_program() {
    let (a, b) =
        (ggml_sys::ggml_init as *const () as usize, llama_cpp_sys_2::ggml_init as *const () as usize);
    assert_ne!(a, b, "one ggml_init serves both: the symbols were merged");

    let first = ours();
    let mut peer = Peer::open(&settings()).expect("llama.cpp loads the model");
    let theirs_first = theirs(&mut peer);
    let far = first.iter().zip(&theirs_first).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 0.5, "the two disagree by {far}");
    assert_eq!(first, ours(), "gemma4 computes something else after llama.cpp ran");
    assert_eq!(theirs_first, theirs(&mut peer), "llama.cpp computes something else after gemma4 ran");

    let expected = first.clone();
    let worker = thread::spawn(move || (0..5).for_each(|_| assert_eq!(expected, ours())));
    for _ in 0..10 {
        assert_eq!(theirs_first, theirs(&mut peer));
    }
    worker.join().expect("gemma4, beside llama.cpp");
    drop(peer);
    assert_eq!(first, ours());
}
