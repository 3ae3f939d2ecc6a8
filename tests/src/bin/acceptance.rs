//! Accepted tokens a round of tiny-gemma4's drafters behind prompts of its validation texts, by type of the cache,
//! beside the recorded figures, as a table in Markdown.
//!
//! usage: acceptance [--own-text] [PROMPTS [KV,KV,...]], with caches in the words of docs/kv-cache.md
//!
//! Drafts are for the recorded text, or for what the model itself writes over that cache.

use gemma4::{Drafter, DrafterOptions, KvPolicy};
use gemma4_tests::acceptance::{PROMPTS, Recorded, measure};
use gemma4_tests::tiny;

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    let own_text = args.next_if_eq("--own-text").is_some();
    let n: usize = args.next().and_then(|n| n.parse().ok()).unwrap_or(PROMPTS).clamp(1, PROMPTS);
    let kv = args.next().unwrap_or_else(|| "f16".into());
    let kv: Vec<(&str, KvPolicy)> =
        kv.split(',').map(|kv| (kv, kv.parse().unwrap_or_else(|e| panic!("{e}")))).collect();
    let model = tiny::model();
    let recorded: Recorded = tiny::json("acceptance.json");
    let prompts: Vec<usize> = (0..n).map(|i| i * PROMPTS / n).collect();
    let head: String = kv.iter().map(|(kv, _)| format!(" {kv} |")).collect();
    println!("| text | drafts | recorded |{head}");
    println!("| --- | --- | --- |{}", " --- |".repeat(kv.len()));
    for text in ["code", "prose"] {
        let written = (!own_text).then_some(recorded[text].written.as_slice());
        let tokens = tiny::tokens(&model, &format!("val-{text}.txt"));
        for (name, gammas) in [("mtp", vec![1, 2, 3, 4]), ("dflash", vec![3, 7, 15])] {
            let path = tiny::path(&format!("tiny-gemma4-{name}-q8_0.gguf"));
            let options = DrafterOptions::default().dflash_mask(tiny::MASK);
            let drafter = Drafter::load_with(path, &model, &options).unwrap_or_else(|e| panic!("{e}"));
            let by_kv: Vec<_> = kv
                .iter()
                .map(|(_, kv)| measure(&model, &drafter, &tokens, &prompts, written, &gammas, kv))
                .collect();
            for (i, gamma) in gammas.iter().enumerate() {
                let key = format!("{name} {gamma}");
                let [a, b] = recorded[text].sum(&key, &prompts);
                let rate = |accepted: usize, rounds: usize| {
                    let mean = accepted as f64 / rounds as f64;
                    format!("{mean:.3} ({:.1} %)", 100.0 * mean / *gamma as f64)
                };
                let found: String =
                    by_kv.iter().map(|sums| format!(" {} |", rate(sums[i][0], sums[i][1]))).collect();
                println!("| {text} | {key} | {} |{found}", rate(a, b));
            }
        }
    }
}
