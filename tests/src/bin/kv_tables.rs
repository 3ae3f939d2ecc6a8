//! `kv-tables [quality|experiments|memory|allocate|million|bound] [--windows N] [--threads N] [--keep DIR] [--write]`:
//! prints the tables of docs/kv-cache.md, or writes them there; `bound`: the column of docs/benchmarks.md. `--keep`: where the
//! models of `allocate` go and stay.

use gemma4::{DType, KvConfig, Result, Session};
use gemma4_tests::quality::{Quality, compare, passes, rows};
use gemma4_tests::{experiments, memory, repo, synth, tiny};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The document that holds the tables, between comments that name them.
const DOCUMENT: &str = "docs/kv-cache.md";

struct Args {
    tables: Vec<&'static str>,
    windows: usize,
    threads: usize,
    keep: Option<PathBuf>,
    write: bool,
}

fn args() -> Option<Args> {
    let mut args = Args { tables: Vec::new(), windows: 8, threads: 2, keep: None, write: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "quality" => args.tables.push("quality"),
            "experiments" => args.tables.push("experiments"),
            "memory" => args.tables.push("memory"),
            "allocate" => args.tables.push("allocate"),
            "million" => args.tables.push("million"),
            "bound" => args.tables.push("bound"),
            "--keep" => args.keep = Some(words.next()?.into()),
            "--windows" => args.windows = words.next()?.parse().ok()?,
            "--threads" => args.threads = words.next()?.parse().ok()?,
            "--write" => args.write = true,
            _ => return None,
        }
    }
    if args.tables.is_empty() {
        args.tables = vec!["quality", "experiments", "memory"];
    }
    Some(args)
}

fn texts() -> [String; 2] {
    ["val-code.txt", "val-prose.txt"]
        .map(|name| std::fs::read_to_string(tiny::path(name)).unwrap_or_else(|e| panic!("{name}: {e}")))
}

fn quality(args: &Args) -> Result<String> {
    let (model, rows) = (tiny::model(), rows());
    let configs: Vec<_> = rows.iter().map(|row| row.config.clone()).collect();
    let reference = KvConfig::uniform(DType::F16);
    let mut found = Vec::new();
    for text in texts() {
        found.push(compare(&model, &text, args.windows, &reference, &configs, args.threads)?);
    }
    let both: Vec<Quality> = found[0]
        .iter()
        .zip(&found[1])
        .map(|(code, prose)| {
            let mut sum = code.clone();
            sum.add(prose);
            sum
        })
        .collect();
    let document = std::fs::read_to_string(repo(DOCUMENT)).unwrap_or_default();
    let mut out = format!(
        "{} windows of 1024 tokens each of code and prose: {} predictions.\n\n\
         | cache | bits | code | prose | mean KL, 1e-3 | 99 % KL, 1e-3 | top-1, % | gates | drafts, own text | drafts, fed |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        args.windows,
        both[0].n()
    );
    for (i, row) in rows.iter().enumerate() {
        let gate = row.gate.and_then(|name| rows.iter().position(|row| row.name == name));
        let verdict = match gate {
            None => String::new(),
            Some(gate) => {
                let ratio = both[i].mean_kl() / both[gate].mean_kl();
                let passed = if passes(&both[i], &both[gate]) { "pass" } else { "**fail**" };
                format!("{passed}, {ratio:.1} x {}", rows[gate].name)
            }
        };
        let _ = writeln!(
            out,
            "| {} | {:.2} | {:.4} | {:.4} | {:.3} | {:.2} | {:.2} | {verdict} |{} |",
            row.name,
            bits(&row.config)?,
            found[0][i].perplexity(),
            found[1][i].perplexity(),
            1e3 * both[i].mean_kl(),
            1e3 * both[i].kl_99(),
            100.0 * both[i].top_1(),
            drafts(&document, row.name),
        );
    }
    Ok(out)
}

/// The last two cells of a row, which `acceptance --gate` measures: they stay as they are.
fn drafts(document: &str, name: &str) -> String {
    let (_, table) = document.split_once("<!-- table quality -->").unwrap_or_default();
    let row = table.lines().find(|line| line.starts_with(&format!("| {name} |")));
    let row = row.and_then(|row| row.strip_suffix(" |")).unwrap_or_default();
    let cells: Vec<&str> = row.split(" |").collect();
    if cells.len() == 10 { cells[8..].join(" |") } else { " |".into() }
}

/// Bits of a value of the tiny model's cache at 1024 tokens.
fn bits(config: &KvConfig) -> Result<f64> {
    let model = tiny::model();
    let options = gemma4::SessionOptions::default().n_ctx(1024);
    let bytes = |config: &KvConfig| config.bytes(model.hparams(), &options).map(|n| n as f64);
    Ok(16.0 * bytes(config)? / bytes(&KvConfig::uniform(DType::F16))?)
}

fn experiment(args: &Args) -> Result<String> {
    let (model, choices) = (tiny::model(), experiments::choices());
    let mut out = String::new();
    for (half, side) in ["keys", "values"].into_iter().enumerate() {
        let mut sum: Option<Vec<experiments::Effect>> = None;
        for text in texts() {
            let effects = experiments::run(&model, &text, args.windows, half, &choices, args.threads)?;
            match &mut sum {
                None => sum = Some(effects),
                Some(sum) => sum.iter_mut().zip(&effects).for_each(|(sum, effect)| sum.add(effect)),
            }
        }
        let _ = writeln!(
            out,
            "{}| {side} rounded | relative error | gain | mean KL, 1e-3 | top-1, % |\n| --- | --- | --- | --- | --- |",
            if half == 0 { "" } else { "\n" }
        );
        for (choice, effect) in choices.iter().zip(sum.unwrap_or_default()) {
            let _ = writeln!(
                out,
                "| {} | {:.4} | {:.4} | {:.3} | {:.2} |",
                choice.name,
                effect.error,
                effect.gain,
                1e3 * effect.quality.mean_kl(),
                100.0 * effect.quality.top_1()
            );
        }
    }
    Ok(out)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn memory_table() -> Result<String> {
    let dir = std::env::temp_dir().join(format!("gemma4-hollow-{}", std::process::id()));
    let _ = std::fs::create_dir(&dir);
    let mut out = String::from("| cache, GiB |");
    let names = ["31b", "26b-a4b"];
    for name in ["31B", "26B-A4B"] {
        let _ = write!(out, " {name} 64K | 256K | 1M |");
    }
    out += "\n| --- | --- | --- | --- | --- | --- | --- |\n";
    let models = names.map(|name| memory::hollow_model(name, &dir));
    let mut hparams = Vec::new();
    for model in &models {
        match model {
            Ok(model) => hparams.push(model.hparams()),
            Err(e) => panic!("{e}"),
        }
    }
    for (name, bytes) in memory::PEER_TYPES {
        let _ = write!(out, "| llama.cpp {name} |");
        for h in &hparams {
            memory::CONTEXTS.iter().for_each(|&n| {
                let _ = write!(out, " {:.2} |", gib(memory::peer(h, bytes, n)));
            });
        }
        out.push('\n');
    }
    for policy in memory::POLICIES {
        let _ = write!(out, "| `{policy}` |");
        for h in &hparams {
            for &n in &memory::CONTEXTS {
                let _ = write!(out, " {:.2} |", gib(memory::ours(h, policy, n)?));
            }
        }
        out.push('\n');
    }
    let _ = std::fs::remove_dir_all(&dir);
    Ok(out)
}

/// A number of kB that the system reports.
fn kib(file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0)
}

/// Memory of the process that is no file's, in bytes.
fn resident() -> u64 {
    1024 * kib("/proc/self/status", "RssAnon:")
}

/// Takes caches for real, one at a time, where the machine has the memory.
fn allocate(args: &Args) -> Result<String> {
    let temporary = std::env::temp_dir().join(format!("gemma4-hollow-{}", std::process::id()));
    let dir = args.keep.as_ref().unwrap_or(&temporary);
    let _ = std::fs::create_dir(dir);
    let places = [("31b", "31B", 65_536), ("26b-a4b", "26B-A4B", 65_536), ("26b-a4b", "26B-A4B", 262_144)];
    let mut rows: Vec<String> = memory::POLICIES.iter().map(|policy| format!("| `{policy}` |")).collect();
    let (mut heads, mut lines) = (String::from("| cache, GiB |"), String::from("| --- |"));
    for (name, title, n_ctx) in places {
        let _ = write!(heads, " {title} {}K | allocated | resident |", n_ctx / 1024);
        lines += " --- | --- | --- |";
        let model = memory::hollow_model(name, dir)?;
        for (policy, row) in memory::POLICIES.iter().zip(&mut rows) {
            let computed = memory::ours(model.hparams(), policy, n_ctx)?;
            let _ = write!(row, " {:.3} |", gib(computed));
            // Beside it the buffers of what is computed, and other programs.
            if 1024 * kib("/proc/meminfo", "MemAvailable:") < computed + (3 << 30) {
                row.push_str(" | |");
                continue;
            }
            let before = resident();
            let session = Session::new(&model, &memory::options(policy, n_ctx)?.n_threads(1))?;
            let grown = resident().saturating_sub(before);
            let _ = write!(row, " {:.3} | {:.3} |", gib(session.kv_bytes()), gib(grown));
        }
    }
    let _ = std::fs::remove_dir_all(&temporary);
    Ok(format!("{heads}\n{lines}\n{}\n", rows.join("\n")))
}

/// Takes the cache of a million tokens for real.
fn million() -> Result<String> {
    let dir = std::env::temp_dir().join(format!("gemma4-hollow-{}", std::process::id()));
    let _ = std::fs::create_dir(&dir);
    let model = memory::hollow_model("26b-a4b", &dir)?;
    // A small batch: masks of a million slots are the largest part of what is computed in.
    let options = memory::options("tq3_0", 1 << 20)?.n_batch(32).n_threads(1);
    let plan = Session::plan(&model, &options)?;
    let session = Session::new(&model, &options)?;
    let _ = std::fs::remove_dir_all(&dir);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    Ok(format!(
        "26b-a4b, 1048576 tokens, tq3_0: planned {:.3} GiB, allocated {:.3} GiB, compute {:.3} GiB; {resident}\n",
        gib(plan.kv),
        gib(session.kv_bytes()),
        gib(session.compute_bytes()),
    ))
}

/// Tokens a second of decoding if a graphics card did nothing but read, at 3 TB/s, what a token needs.
fn bound() -> Result<String> {
    const BYTES_A_SECOND: f64 = 3e12;
    let dir = std::env::temp_dir().join(format!("gemma4-hollow-{}", std::process::id()));
    let _ = std::fs::create_dir(&dir);
    let mut out =
        String::from("| model, GB a token | depth | F16 | Q8_0 | TQ3_0 |\n| --- | --- | --- | --- | --- |\n");
    for size in synth::sizes().iter().filter(|size| ["26b-a4b", "31b"].contains(&size.name)) {
        let weights = synth::token_bytes(size);
        let model = memory::hollow_model(size.name, &dir)?;
        for depth in [0, 8192, 32_768, 65_536, 131_072, 253_952, 524_288, 1_048_000] {
            let _ = write!(out, "| {}, {:.2} | {depth} |", size.name, weights as f64 / 1e9);
            for bytes_of_32 in [64, 34, 14] {
                let read = weights + memory::read_at(model.hparams(), bytes_of_32, depth);
                let _ = write!(out, " {:.0} |", BYTES_A_SECOND / read as f64);
            }
            out.push('\n');
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    Ok(out)
}

/// Puts a table into the document.
fn write_table(name: &str, table: &str) {
    let path = repo(DOCUMENT);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (start, end) = (format!("<!-- table {name} -->\n"), format!("<!-- end {name} -->"));
    let (Some(from), Some(to)) = (text.find(&start), text.find(&end)) else {
        panic!("{DOCUMENT} has no place for the table {name}");
    };
    let from = from + start.len();
    let text = format!("{}\n{table}\n{}", &text[..from], &text[to..]);
    std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn main() -> ExitCode {
    let Some(args) = args() else {
        eprintln!(
            "usage: kv-tables [quality|experiments|memory|allocate|million|bound] [--windows N] [--threads N] \
             [--keep DIR] [--write]"
        );
        return ExitCode::FAILURE;
    };
    for &name in &args.tables {
        let table = match name {
            "quality" => quality(&args),
            "experiments" => experiment(&args),
            "memory" => memory_table(),
            "allocate" => allocate(&args),
            "bound" => bound(),
            _ => million(),
        };
        match table {
            Ok(table) => {
                println!("{name}\n\n{table}");
                if args.write && !["million", "bound"].contains(&name) {
                    write_table(name, &table);
                }
            }
            Err(e) => {
                eprintln!("kv-tables: {name}: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
