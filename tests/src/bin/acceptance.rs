//! Accepted tokens a round of tiny-gemma4's drafters behind prompts of its validation texts, by type of the cache,
//! as a table in Markdown.
//!
//! usage: acceptance [--own-text] [--models DIR] [--texts DIR] [PROMPTS [KV,KV,...]]
//!
//! Caches are in the words of docs/kv-cache.md. Drafts are for the recorded text, beside the recorded figures, or for
//! what the model itself writes over that cache. `--models` takes the files of another edition, for its own text.

use gemma4::{Drafter, DrafterOptions, KvPolicy, Model};
use gemma4_tests::acceptance::{Case, PROMPTS, Recorded, measure, prompt};
use gemma4_tests::tiny;
use std::path::PathBuf;

struct Args {
    own_text: bool,
    models: PathBuf,
    texts: PathBuf,
    n: usize,
    kv: Vec<String>,
}

fn args() -> Args {
    let (mut own_text, mut models, mut texts, mut rest) = (false, tiny::path(""), tiny::path(""), Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--own-text" => own_text = true,
            "--models" => models = args.next().unwrap_or_default().into(),
            "--texts" => texts = args.next().unwrap_or_default().into(),
            _ => rest.push(arg),
        }
    }
    // Another edition did not write what is recorded.
    own_text |= models != tiny::path("");
    let n = rest.first().and_then(|n| n.parse().ok()).unwrap_or(PROMPTS).max(1);
    let kv = rest.get(1).map_or("f16", String::as_str).split(',').map(str::to_owned).collect();
    Args { own_text, models, texts, n: if own_text { n } else { n.min(PROMPTS) }, kv }
}

fn rate([accepted, rounds]: [usize; 2], gamma: usize) -> String {
    let mean = accepted as f64 / rounds as f64;
    format!(" {mean:.3} ({:.1} %) |", 100.0 * mean / gamma as f64)
}

fn main() {
    let args = args();
    let model = Model::load(args.models.join("tiny-gemma4-q8_0.gguf")).unwrap_or_else(|e| panic!("{e}"));
    let recorded: Recorded = tiny::json("acceptance.json");
    let policy = |kv: &String| kv.parse::<KvPolicy>().unwrap_or_else(|e| panic!("{e}"));
    let policies: Vec<KvPolicy> = args.kv.iter().map(policy).collect();
    let recorded_head = if args.own_text { "" } else { " recorded |" };
    println!("| text | drafts |{recorded_head} {} |", args.kv.join(" | "));
    println!("| --- | --- |{}{}", recorded_head.replace("recorded", "---"), " --- |".repeat(args.kv.len()));
    for text in ["code", "prose"] {
        let tokens = tiny::tokens_of(&model, &args.texts.join(format!("val-{text}.txt")));
        // Recorded prompts, spread evenly; or as many as were asked for.
        let (of, step) = if args.own_text { (args.n, 1) } else { (PROMPTS, PROMPTS / args.n) };
        let chosen: Vec<usize> = (0..args.n).map(|i| i * step).collect();
        let written = |i: usize| (!args.own_text).then(|| recorded[text].written[i].as_slice());
        let cases: Vec<Case<'_>> = chosen.iter().map(|&i| (prompt(&tokens, i, of), written(i))).collect();
        for (name, gammas) in [("mtp", vec![1, 2, 3, 4]), ("dflash", vec![3, 7, 15])] {
            let path = args.models.join(format!("tiny-gemma4-{name}-q8_0.gguf"));
            let options = DrafterOptions::default().dflash_mask(tiny::MASK);
            let drafter = Drafter::load_with(path, &model, &options).unwrap_or_else(|e| panic!("{e}"));
            let by_kv: Vec<_> =
                policies.iter().map(|kv| measure(&model, &drafter, &cases, &gammas, kv)).collect();
            for (i, &gamma) in gammas.iter().enumerate() {
                let key = format!("{name} {gamma}");
                let stored = match args.own_text {
                    true => String::new(),
                    false => rate(recorded[text].sum(&key, &chosen), gamma),
                };
                let found: String = by_kv.iter().map(|sums| rate(sums[i], gamma)).collect();
                println!("| {text} | {key} |{stored}{found}");
            }
        }
    }
}
