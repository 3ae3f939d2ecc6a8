//! Bytes of the caches of the published models, by policy, against arithmetic and llama.cpp's rule.

use gemma4::Session;
use gemma4_tests::memory::{CONTEXTS, PEER_TYPES, hollow_model, options, ours, peer};

/// Values of one position in all full layers and in all sliding-window layers, keys and values.
const SIZES: [(&str, u64, u64); 2] = [("31b", 40_960, 409_600), ("26b-a4b", 10_240, 102_400)];

#[test]
fn caches_take_what_the_table_says() {
    let dir = tempfile::tempdir().unwrap();
    for (name, full, swa) in SIZES {
        let model = hollow_model(name, dir.path()).unwrap();
        let h = model.hparams();
        for n_ctx in CONTEXTS {
            let n = u64::from(n_ctx);
            // Full and ring at these bytes for 32 values; a ring of window and batch is 1536 slots.
            let by_hand = |a: u64, b: u64| n * full / 32 * a + 1536 * swa / 32 * b;
            for (text, bytes) in PEER_TYPES {
                assert_eq!(ours(h, text, n_ctx).unwrap(), by_hand(bytes, bytes), "{name} {text} {n_ctx}");
                // At one type for all, we and llama.cpp take the same.
                assert_eq!(peer(h, bytes, n_ctx), by_hand(bytes, bytes), "{name} {text} {n_ctx}");
            }
            assert_eq!(ours(h, "tq3_0", n_ctx).unwrap(), by_hand(14, 14));
            assert_eq!(ours(h, "swa_q8_full_tq3", n_ctx).unwrap(), by_hand(14, 34));
            assert_eq!(ours(h, "swa_tq3_full_q8", n_ctx).unwrap(), by_hand(34, 14));
            assert_eq!(ours(h, "k_q8_v_tq3", n_ctx).unwrap(), by_hand((34 + 14) / 2, 34));
            // The last of ten or five full layers in Q8_0.
            let layers = if name == "31b" { 10 } else { 5 };
            let raised = n * full / layers / 32 * (34 - 14);
            assert_eq!(ours(h, "captured", n_ctx).unwrap(), by_hand(14, 14) + raised);
        }
        // The plan, which asks the device's allocator, agrees.
        let options = options("tq3_0", 65_536).unwrap();
        let plan = Session::plan(&model, &options).unwrap();
        let computed = ours(h, "tq3_0", 65_536).unwrap();
        assert!(plan.kv >= computed && plan.kv < computed + (2 << 20), "{} {computed}", plan.kv);
    }
}

/// A million tokens of the 26B-A4B in 4.44 GiB: the figure that TQ3_0 is for.
#[test]
fn a_million_tokens_fit_a_small_card() {
    let dir = tempfile::tempdir().unwrap();
    let model = hollow_model("26b-a4b", dir.path()).unwrap();
    let gib = |policy| ours(model.hparams(), policy, 1 << 20).unwrap() as f64 / f64::from(1 << 30);
    assert!((gib("tq3_0") - 4.44).abs() < 0.01, "{}", gib("tq3_0"));
    assert!((gib("f16") - 20.29).abs() < 0.01, "{}", gib("f16"));
}
