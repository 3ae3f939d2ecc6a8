//! Decoding with and without drafters, over four kinds of text.

use gemma4::{Drafter, EncodeOptions, GenerateOptions, Model, Session, SpeculationStats};
use gemma4_examples::{Failure, ModelArgs, named};

/// What a drafter does depends on the text, so that one kind of it proves nothing.
const TEXTS: [(&str, &str); 4] = [
    ("code", CODE),
    ("prose", "In the beginning God created the heaven and the earth. And the earth was"),
    ("json", JSON),
    ("long", ""),
];

const CODE: &str = "class Stack:\n    \"\"\"A last-in, first-out stack.\"\"\"\n\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n";
const JSON: &str = "[\n  {\"id\": 1, \"name\": \"alpha\", \"tags\": [\"a\", \"b\"], \"active\": true},\n  {\"id\": 2, \"name\": \"beta\", \"tags\": [\"b\"], \"active\": false},\n  {\"id\": 3,";
/// Repetitions of the prose and the code that make the long prompt.
const LONG: usize = 12;

/// One text with one drafter, or with none.
pub struct Row {
    text: &'static str,
    drafter: String,
    rate: f64,
    speed_up: f64,
    same: bool,
    stats: Option<SpeculationStats>,
}

impl Row {
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "text": self.text, "drafter": self.drafter, "tokens_per_second": self.rate,
            "speed_up": self.speed_up, "same_text": self.same,
            "accepted_per_round": self.stats.as_ref().map(SpeculationStats::mean_accepted),
            "shares": self.stats.as_ref().map(SpeculationStats::shares),
        })
    }
}

fn prompt(name: &str, text: &str) -> String {
    if name == "long" {
        [TEXTS[1].1, "\n", CODE, "        pass\n\n"].concat().repeat(LONG)
    } else {
        text.to_owned()
    }
}

/// Generates every text `repeat` times, with all drafters in turn, so that a change of the machine meets all alike.
pub fn measure(
    model: &Model,
    args: &ModelArgs,
    names: &[String],
    n: usize,
    repeat: usize,
) -> Result<Vec<Row>, Failure> {
    let mut drafters: Vec<(String, Option<Drafter>)> = vec![("none".into(), None)];
    for name in names {
        let drafter = named(name, model)?;
        drafters.push((drafter.kind().to_owned(), Some(drafter)));
    }
    let mut rows = Vec::new();
    for (text, prompt) in TEXTS.map(|(name, text)| (name, prompt(name, text))) {
        let tokens = model.tokenizer().encode(&prompt, EncodeOptions::TEXT)?;
        let n_ctx = (tokens.len() + n + 1) as u32;
        let how = GenerateOptions::greedy().max_tokens(n).ignore_eos(true);
        let mut sessions = Vec::new();
        for (_, drafter) in &drafters {
            sessions.push(Session::new(model, &args.session(n_ctx).drafter(drafter.clone()))?);
        }
        let mut rates = vec![Vec::new(); sessions.len()];
        let mut last = vec![(Vec::new(), None); sessions.len()];
        // The first round warms caches up and builds graphs.
        for round in 0..=repeat {
            for (i, session) in sessions.iter_mut().enumerate() {
                session.clear();
                let mut generation = session.generate(&tokens, &how)?;
                let tokens =
                    generation.by_ref().filter_map(|piece| piece.map(|piece| piece.token).transpose());
                let out = tokens.collect::<gemma4::Result<Vec<u32>>>()?;
                let stats = generation.stats();
                if round > 0 {
                    rates[i].push(stats.decode_tokens_per_second());
                }
                last[i] = (out, stats.speculation);
            }
        }
        for (i, (name, _)) in drafters.iter().enumerate() {
            // Round by round, so that a machine that slows down for a while slows both down.
            let ratios = rates[i].iter().zip(&rates[0]).map(|(with, without)| with / without).collect();
            rows.push(Row {
                text,
                drafter: name.clone(),
                rate: median(rates[i].clone()),
                speed_up: median(ratios),
                same: last[i].0 == last[0].0,
                stats: last[i].1.clone(),
            });
        }
    }
    Ok(rows)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints a table, if there is anything in it.
pub fn print(rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    println!(
        "\n{:<6} {:<8} {:>10} {:>8} {:>9} {:>9}  same text",
        "text", "drafter", "tokens/s", "speed", "accepted", "of drafts"
    );
    for row in rows {
        // Nothing was drafted where it does not pay.
        let (accepted, part) = match row.stats.as_ref().filter(|stats| stats.drafted > 0) {
            None => ("-".to_owned(), "-".to_owned()),
            Some(stats) => {
                let part = 100.0 * stats.accepted as f64 / stats.drafted as f64;
                (format!("{:.2}", stats.mean_accepted()), format!("{part:.0}%"))
            }
        };
        let same = if row.same { "yes" } else { "no" };
        println!(
            "{:<6} {:<8} {:>10.1} {:>7.2}x {:>9} {:>9}  {same}",
            row.text, row.drafter, row.rate, row.speed_up, accepted, part
        );
    }
}
