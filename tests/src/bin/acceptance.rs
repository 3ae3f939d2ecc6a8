//! Accepted tokens a round of tiny-gemma4's drafters behind prompts of its validation texts, by type of the cache,
//! as a table in Markdown.
//!
//! usage: acceptance [--own-text] [--gate mtp|dflash|all] [--models DIR] [--texts DIR] [PROMPTS [KV,KV,...]]
//!
//! Caches are in the words of docs/kv-cache.md; `:unrotated` behind one stores it as it is. Drafts are for the recorded
//! text, beside the recorded figures, or for what the model itself writes over that cache. `--models` takes the files of
//! another edition, for its own text.
//!
//! `--gate` compares caches with F16, over the same prompts, in points of a hundred of the drafts that stood, with the
//! standard error of the difference: MTP 4 and DFlash 3, the lengths that the gate is read at. The first table is of all
//! drafts, the second of those that were judged: drafts behind the first wrong one are not.

use gemma4::{Drafter, DrafterOptions, KvPolicy, Model, Rotation, SessionOptions};
use gemma4_tests::acceptance::{
    Case, PROMPTS, Part, Recorded, Sums, difference, measure, of_drafted, of_judged, prompt, total, walks,
};
use gemma4_tests::tiny;
use std::path::PathBuf;

struct Args {
    own_text: bool,
    gate: Option<String>,
    models: PathBuf,
    texts: PathBuf,
    n: usize,
    kv: Vec<String>,
}

fn args() -> Args {
    let (mut own_text, mut gate, mut rest) = (false, None, Vec::new());
    let (mut models, mut texts) = (tiny::path(""), tiny::path(""));
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--own-text" => own_text = true,
            "--gate" => gate = args.next(),
            "--models" => models = args.next().unwrap_or_default().into(),
            "--texts" => texts = args.next().unwrap_or_default().into(),
            _ => rest.push(arg),
        }
    }
    // Another edition did not write what is recorded.
    own_text |= models != tiny::path("");
    let n = rest.first().and_then(|n| n.parse().ok()).unwrap_or(PROMPTS).max(1);
    let kv = rest.get(1).map_or("f16", String::as_str).split(',').map(str::to_owned).collect();
    Args { own_text, gate, models, texts, n: if own_text { n } else { n.min(PROMPTS) }, kv }
}

fn policy(model: &Model, text: &str) -> KvPolicy {
    let parse = |text: &str| text.parse::<KvPolicy>().unwrap_or_else(|e| panic!("{e}"));
    let Some(text) = text.strip_suffix(":unrotated") else { return parse(text) };
    let config = parse(text).resolve(model.hparams(), &SessionOptions::default(), u64::MAX);
    let mut config = config.unwrap_or_else(|e| panic!("{e}"));
    config.rotation = Rotation::Never;
    config.into()
}

fn percent([stood, of]: Part) -> f64 {
    100.0 * stood as f64 / of as f64
}

fn rate([accepted, rounds]: Part, gamma: usize) -> String {
    let mean = accepted as f64 / rounds as f64;
    format!(" {mean:.3} ({:.1} %) |", 100.0 * mean / gamma as f64)
}

/// With the part of the judged drafts, which is not recorded.
fn rates(sums: &Sums, gamma: usize) -> String {
    let all = rate([sums.accepted, sums.rounds], gamma);
    all.replace(" %)", &format!(" %, of judged {:.1} %)", percent(of_judged(sums))))
}

struct Texts {
    model: Model,
    recorded: Recorded,
    args: Args,
}

impl Texts {
    fn drafter(&self, name: &str) -> Drafter {
        let path = self.args.models.join(format!("tiny-gemma4-{name}-q8_0.gguf"));
        let options = DrafterOptions::default().dflash_mask(tiny::MASK);
        Drafter::load_with(path, &self.model, &options).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Recorded prompts, spread evenly; or as many as were asked for.
    fn chosen(&self) -> Vec<usize> {
        let step = if self.args.own_text { 1 } else { PROMPTS / self.args.n };
        (0..self.args.n).map(|i| i * step).collect()
    }

    fn cases(&self, text: &str) -> Vec<Case<'_>> {
        let tokens = tiny::tokens_of(&self.model, &self.args.texts.join(format!("val-{text}.txt")));
        let of = if self.args.own_text { self.args.n } else { PROMPTS };
        let written = |i: usize| (!self.args.own_text).then(|| self.recorded[text].written[i].as_slice());
        self.chosen().iter().map(|&i| (prompt(&tokens, i, of), written(i))).collect()
    }
}

fn table(texts: &Texts) {
    let args = &texts.args;
    let policies: Vec<KvPolicy> = args.kv.iter().map(|kv| policy(&texts.model, kv)).collect();
    let recorded_head = if args.own_text { "" } else { " recorded |" };
    println!("| text | drafts |{recorded_head} {} |", args.kv.join(" | "));
    println!("| --- | --- |{}{}", recorded_head.replace("recorded", "---"), " --- |".repeat(args.kv.len()));
    for text in ["code", "prose"] {
        let cases = texts.cases(text);
        for (name, gammas) in [("mtp", vec![1, 2, 3, 4]), ("dflash", vec![3, 7, 15])] {
            let drafter = texts.drafter(name);
            let by_kv: Vec<_> =
                policies.iter().map(|kv| measure(&texts.model, &drafter, &cases, &gammas, kv)).collect();
            for (i, &gamma) in gammas.iter().enumerate() {
                let key = format!("{name} {gamma}");
                let stored = match args.own_text {
                    true => String::new(),
                    false => rate(texts.recorded[text].sum(&key, &texts.chosen()), gamma),
                };
                let found: String = by_kv.iter().map(|sums| rates(&sums[i], gamma)).collect();
                println!("| {text} | {key} |{stored}{found}");
            }
        }
    }
}

fn gate(texts: &Texts, drafters: &str) {
    let args = &texts.args;
    let mut places =
        vec![("code", "mtp", 4), ("prose", "mtp", 4), ("code", "dflash", 3), ("prose", "dflash", 3)];
    places.retain(|(_, name, _)| drafters == "all" || drafters == *name);
    let heads: String = places.iter().map(|(text, name, n)| format!(" {text}, {name} {n} |")).collect();
    let measure = |kv: &str| {
        let kv = policy(&texts.model, kv);
        let at = |&(text, name, n): &(&str, &str, usize)| {
            walks(&texts.model, &texts.drafter(name), &texts.cases(text), n, &kv)
        };
        places.iter().map(at).collect::<Vec<_>>()
    };
    let kinds: Vec<&String> = args.kv.iter().filter(|kv| *kv != "f16").collect();
    let exact = measure("f16");
    let found: Vec<_> = kinds.iter().map(|kv| measure(kv)).collect();
    for (title, judged) in [("Of all drafts", false), ("Of judged drafts", true)] {
        let part = |n: usize| move |sums: &Sums| if judged { of_judged(sums) } else { of_drafted(n)(sums) };
        println!(
            "\n{title}, per cent; others less F16\n\n| cache |{heads}\n| --- |{}",
            " --- |".repeat(places.len())
        );
        let absolute = |(sums, (.., n)): (&Vec<Sums>, &(_, _, usize))| {
            let sums = total(sums);
            format!(
                " {:.1}, {:.3} a round |",
                percent(part(*n)(&sums)),
                sums.accepted as f64 / sums.rounds as f64
            )
        };
        println!("| f16 |{}", exact.iter().zip(&places).map(absolute).collect::<String>());
        for (kv, found) in kinds.iter().zip(&found) {
            let cell = |((got, exact), &(.., n)): ((&Vec<Sums>, &Vec<Sums>), &(_, _, usize))| {
                let (by, error) = difference(got, exact, part(n));
                let all = percent(part(n)(&total(got)));
                format!(" {all:.1}, {:+.1} ± {:.1} |", 100.0 * by, 100.0 * error)
            };
            println!("| {kv} |{}", found.iter().zip(&exact).zip(&places).map(cell).collect::<String>());
        }
    }
}

fn main() {
    let args = args();
    let model = Model::load(args.models.join("tiny-gemma4-q8_0.gguf")).unwrap_or_else(|e| panic!("{e}"));
    let texts = Texts { model, recorded: tiny::json("acceptance.json"), args };
    match &texts.args.gate {
        Some(drafters) => gate(&texts, drafters),
        None => table(&texts),
    }
}
