//! The quality of KV types in bands, and that presets follow from it. `docs/kv-cache.md` has the whole table.

use gemma4::{DType, KvConfig, KvPolicy, SessionOptions};
use gemma4_tests::quality::{MAX_KL_RATIO, Quality, compare, rows};
use gemma4_tests::tiny;

fn measure(configs: &[KvConfig]) -> Vec<Quality> {
    let model = tiny::model();
    let mut all = vec![Quality::default(); configs.len()];
    for name in ["val-code.txt", "val-prose.txt"] {
        let text = std::fs::read_to_string(tiny::path(name)).unwrap();
        let found = compare(&model, &text, 1, &KvConfig::uniform(DType::F16), configs, 1).unwrap();
        all.iter_mut().zip(&found).for_each(|(sum, quality)| sum.add(quality));
    }
    all
}

#[test]
fn quality_is_in_its_bands_and_orders_the_ladder() {
    let model = tiny::model();
    let options = SessionOptions::default().n_ctx(1024);
    let mut configs: Vec<_> =
        KvPolicy::LADDER.iter().map(|step| step.resolve(model.hparams(), &options, 0).unwrap()).collect();
    // Beside the ladder: values in TQ3_0 on full layers, and Q4_0 with the peer's rotation there.
    let ladder = configs.len();
    configs.push(KvPolicy::K_Q8_V_TQ3.resolve(model.hparams(), &options, 0).unwrap());
    let mut peers = KvPolicy::K_Q8_V_Q4.resolve(model.hparams(), &options, 0).unwrap();
    peers.signs = false;
    configs.push(peers);
    let found = measure(&configs);
    // Mean KL divergence in thousandths, and top-1 agreement in %, each with room for another edition of the
    // model's weights.
    let bands = [
        (0.0..=0.0, 100.0),
        (0.2..=2.5, 97.5),
        (0.5..=4.0, 96.5),
        (0.8..=6.0, 96.0),
        (2.0..=15.0, 94.0),
        (6.0..=40.0, 91.0),
        (18.0..=120.0, 85.0),
    ];
    for ((step, quality), (kl, top)) in KvPolicy::LADDER.iter().zip(&found).zip(bands) {
        let got = (1e3 * quality.mean_kl(), 100.0 * quality.top_1());
        println!("{step}: KL {:.3}e-3, top-1 {:.2} %", got.0, got.1);
        assert!(kl.contains(&got.0) && got.1 >= top, "{step}: {got:?}");
    }
    // A step that loses more than the one below it has no place there.
    for (pair, steps) in found[..ladder].windows(2).zip(KvPolicy::LADDER.windows(2)) {
        assert!(pair[0].mean_kl() <= 1.2 * pair[1].mean_kl(), "{} above {}", steps[0], steps[1]);
    }
    // The gates. Over eight windows of each text agreement is 97.5 %; two windows have an error of 0.4 %.
    let (tq3, q4) = (&found[ladder], &found[ladder + 1]);
    let ratio = tq3.mean_kl() / q4.mean_kl();
    println!("values of full layers in TQ3_0: {ratio:.2} times Q4_0, top-1 {:.4}", tq3.top_1());
    assert!(ratio <= MAX_KL_RATIO && tq3.top_1() >= 0.96, "{ratio}, {}", tq3.top_1());
}

/// What no preset is, or none that passes the gates: rows of the quality table, in bands around what is measured over
/// these two windows: half and twice the divergence, three points of agreement.
#[test]
fn other_layouts_are_in_their_bands() {
    let bands = [
        ("Q4_0, not rotated", 11.0..=44.0, 91.0),
        ("SWA Q4_0 H, full Q8_0", 6.0..=25.0, 93.0),
        ("SWA TQ3_0, full Q8_0", 23.0..=93.0, 88.0),
        ("SWA Q8_0, full TQ3_0", 3.0..=12.0, 94.0),
        ("Q8_0/TQ3_0", 8.0..=33.0, 92.0),
        ("TQ3_0/Q8_0", 17.0..=67.0, 89.5),
        ("captured", 23.0..=93.0, 88.0),
    ];
    let rows = rows();
    let config = |name: &str| rows.iter().find(|row| row.name == name).unwrap().config.clone();
    let found = measure(&bands.clone().map(|(name, ..)| config(name)));
    for ((name, kl, top), quality) in bands.iter().zip(&found) {
        let got = (1e3 * quality.mean_kl(), 100.0 * quality.top_1());
        println!("{name}: KL {:.3}e-3, top-1 {:.2} %", got.0, got.1);
        assert!(kl.contains(&got.0) && got.1 >= *top, "{name}: {got:?}");
    }
    let [.., swa_q4, swa, full, values, keys, captured] = &found[..] else { panic!("seven rows") };
    let kl = Quality::mean_kl;
    // Where the bits matter: sliding-window layers before full ones, keys before values.
    assert!(kl(swa) > 2.0 * kl(full) && kl(keys) > kl(values));
    // TQ3_0 costs more than Q4_0 at the same place, and one full layer in Q8_0 does not mend it.
    assert!(kl(swa) > 2.0 * kl(swa_q4) && kl(captured) > 0.5 * kl(swa));
}
