//! What is in a cache, and whether attention undoes it: findings 5 and 12 of the specification. A type tag that
//! is cast away, and a rotation that is lost or done twice, show here.

use gemma4::{DType, KvConfig, Rotation, Session, SessionOptions};
use gemma4_tests::quality::compare;
use gemma4_tests::quantise::{Turn, decode_q8, decode_tq3, relative_error};
use gemma4_tests::rows::Rows;
use gemma4_tests::tiny;

const TEXT: &str =
    "The cache holds what was said, in other words and in fewer bits, until it is asked for again.";

fn rows(config: KvConfig) -> Rows {
    let model = tiny::model();
    let tokens = model.tokenizer().encode(TEXT, gemma4::EncodeOptions::TEXT).unwrap();
    let options = SessionOptions::default().n_ctx(256).n_threads(1).kv(config);
    let mut session = Session::new(&model, &options).unwrap();
    session.prefill(&tokens).unwrap();
    Rows::of(&session.snapshot().unwrap())
}

/// A type with its decoder, ggml's id, bytes of 32 values and the error it may have on rotated values.
type Stored = (DType, fn(&[u8]) -> Vec<f32>, u32, usize, f64);

#[test]
fn rows_are_stored_in_their_type_and_rotated_once() {
    let exact = rows(KvConfig::uniform(DType::F32));
    let stored: [Stored; 2] =
        [(DType::TQ3_0, decode_tq3, 224, 14, 0.035), (DType::Q8_0, decode_q8, 8, 34, 2e-4)];
    for (dtype, decode, id, bytes, bound) in stored {
        for signs in [true, false] {
            let mut config = KvConfig::uniform(dtype);
            (config.rotation, config.signs) = (Rotation::Always, signs);
            let got = rows(config);
            // Layer 0 is the first sliding-window layer, whose input no cache has touched.
            for (half, block) in [(0, 256), (1, 64)] {
                let (x, layer) = (exact.f32s(0, half), &got.layers[0]);
                assert_eq!(layer.types[half], id);
                assert_eq!(layer.row_bytes[half], exact.layers[0].row_bytes[half] / 4 / 32 * bytes);
                assert_eq!(layer.rotations[half], block as u32 | if signs { 1 << 31 } else { 0 });
                let y = decode(got.bytes(0, half));
                let turn = if signs { Turn::Signed(block) } else { Turn::Plain(block) };
                let times = |n: usize| {
                    let mut x = x.clone();
                    (0..n).for_each(|_| turn.forward(&mut x));
                    relative_error(&x, &y)
                };
                println!(
                    "{dtype}, half {half}, signs {signs}: {:.5} {:.3} {:.3}",
                    times(1),
                    times(0),
                    times(2)
                );
                assert!(times(1) < bound, "{dtype}, half {half}, signs {signs}: error {}", times(1));
                assert!(times(0) > 0.3 && times(2) > 0.3, "not rotated, or twice");
            }
        }
    }
}

/// The other side: queries are rotated as keys are, and the output is taken back. Q8_0 is exact enough for any
/// slip to show.
#[test]
fn attention_undoes_what_the_cache_does() {
    let model = tiny::model();
    let text = std::fs::read_to_string(tiny::path("val-code.txt")).unwrap();
    let mut configs = Vec::new();
    for (signs, value_block) in [(true, 64), (false, 64), (true, 256), (true, 512)] {
        let mut config = KvConfig::uniform(DType::Q8_0);
        (config.rotation, config.signs, config.value_block) = (Rotation::Always, signs, value_block);
        configs.push(config);
    }
    let found = compare(&model, &text, 1, &KvConfig::uniform(DType::F16), &configs, 1).unwrap();
    for (config, quality) in configs.iter().zip(found) {
        let (kl, top) = (quality.mean_kl(), quality.top_1());
        println!("signs {}, values by {}: KL {kl:.6}, top-1 {top:.4}", config.signs, config.value_block);
        assert!(kl < 3e-3 && top > 0.97, "{config:?}: KL {kl}, top-1 {top}");
    }
}

#[test]
fn snapshots_know_their_rotation() {
    let model = tiny::model();
    let session = |change: fn(&mut KvConfig)| {
        let mut config = KvConfig::uniform(DType::TQ3_0);
        change(&mut config);
        Session::new(&model, &SessionOptions::default().n_ctx(256).n_threads(1).kv(config)).unwrap()
    };
    let mut origin = session(|_| {});
    origin.prefill(&[2, 7, 9]).unwrap();
    let snapshot = origin.snapshot().unwrap();
    session(|_| {}).restore(&snapshot).unwrap();
    let others: [fn(&mut KvConfig); 3] =
        [|c| c.signs = false, |c| c.value_block = 128, |c| c.rotation = Rotation::Never];
    for change in others {
        let refused = session(change).restore(&snapshot).unwrap_err().to_string();
        assert!(refused.contains("rotations"), "{refused}");
    }
}

#[test]
fn impossible_value_blocks_are_refused() {
    let model = tiny::model();
    for block in [0, 1, 48] {
        let mut config = KvConfig::uniform(DType::TQ3_0);
        config.value_block = block;
        let error = Session::new(&model, &SessionOptions::default().kv(config)).err().unwrap().to_string();
        assert!(error.contains("power of two"), "{error}");
    }
}
