//! Accepted tokens a round of tiny-gemma4's drafters on its validation texts, beside the recorded figures.
//!
//! usage: acceptance [PROMPTS]

use gemma4::{Drafter, DrafterOptions};
use gemma4_tests::acceptance::{PROMPTS, Recorded, measure};
use gemma4_tests::tiny;

fn main() {
    let n: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(PROMPTS).clamp(1, PROMPTS);
    let model = tiny::model();
    let recorded: Option<Recorded> =
        tiny::path("acceptance.json").is_file().then(|| tiny::json("acceptance.json"));
    let prompts: Vec<usize> = (0..n).map(|i| i * PROMPTS / n).collect();
    println!("{:<8} {:<10} {:>9} {:>9}", "text", "drafter", "accepted", "recorded");
    for text in ["code", "prose"] {
        let tokens = tiny::tokens(&model, &format!("val-{text}.txt"));
        for (name, gammas) in [("mtp", vec![1, 2, 3, 4]), ("dflash", vec![3, 7, 15])] {
            let path = tiny::path(&format!("tiny-gemma4-{name}-q8_0.gguf"));
            let options = DrafterOptions::default().dflash_mask(tiny::MASK);
            let drafter = Drafter::load_with(path, &model, &options).unwrap_or_else(|e| panic!("{e}"));
            let sums = measure(&model, &drafter, &tokens, &prompts, &gammas);
            for ([accepted, rounds], gamma) in sums.into_iter().zip(gammas) {
                let key = format!("{name} {gamma}");
                let figures = recorded.as_ref().and_then(|r| r.get(text)?.get(&key));
                let figures = figures.map_or(String::new(), |figures| {
                    let [a, b] = prompts.iter().fold([0, 0], |[a, b], &i| {
                        let [accepted, rounds] = figures.by_prompt[i];
                        [a + accepted, b + rounds]
                    });
                    format!("{:.3}", a as f64 / b as f64)
                });
                println!("{text:<8} {key:<10} {:>9.3} {figures:>9}", accepted as f64 / rounds as f64);
            }
        }
    }
}
