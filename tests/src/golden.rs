//! Checks a model against recorded outputs of the reference implementation.
//!
//! A fixture is a set of files in one folder: `NAME.PRECISION.gguf` with the weights and
//! `NAME.expect.safetensors` with what transformers computes from them in float32. The format is described
//! in `data/golden/README.md`; a new fixture needs no new code.

use crate::golden_draft::{check_draft, draft_fixtures};
use crate::tiny;
use gemma4::{DType, KvConfig, Session, SessionOptions};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// An error as text: fixtures are read by people.
pub type Result<T> = std::result::Result<T, String>;

/// Largest distances that are accepted, by precision of weights and cache.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Logits and the recorded best ones.
    pub logits: f32,
    /// Hidden states and layer outputs.
    pub hidden: f32,
    /// Where the router's probabilities of the last expert that is chosen and the first that is not are closer than this,
    /// the other one may be chosen, which changes the logits of a token and says nothing about the code.
    pub near_tie: f32,
}

impl Tolerance {
    /// ggml's CPU backend reads GELU from a half-precision table, so even float32 is not exact.
    const F32: Tolerance = Tolerance { logits: 0.1, hidden: 0.05, near_tie: 0.0 };
    /// Half-precision weights or cache. The generator holds the routes of prompts to this distance, but not those of what is
    /// generated (`ROUTE_GAP_PROMPT` in `generate/expect.py`).
    const F16: Tolerance = Tolerance { logits: 0.25, hidden: 0.1, near_tie: 2e-3 };
}

/// One model file with its expectations.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Name of the variant, such as `a-dense`.
    pub name: String,
    /// Weights.
    pub model: PathBuf,
    /// Expectations.
    pub expect: PathBuf,
    /// Whether the weights are half precision.
    pub is_half: bool,
}

/// Distances of one fixture under one configuration.
#[derive(Clone, Debug)]
pub struct Report {
    /// Fixture and configuration.
    pub what: String,
    /// Largest distance of the last position's logits and of the best eight of every position.
    pub logits: f32,
    /// Where that was.
    pub logits_at: String,
    /// Steps with a near tie of the router that fell the other way: their logits do not count, their choices do.
    pub ties: Vec<String>,
    /// Largest distance of the last position's hidden state and layer outputs.
    pub hidden: f32,
    /// Continuation tokens that were not the most likely one, of all that were checked.
    pub greedy_misses: usize,
    /// The first of them.
    pub first_miss: Option<String>,
    /// Continuation tokens checked.
    pub greedy: usize,
    /// What was accepted.
    pub tolerance: Tolerance,
}

impl Report {
    fn worsen_logits(&mut self, distance: f32, at: impl FnOnce() -> String) {
        let before = self.logits;
        worsen(&mut self.logits, distance);
        if self.logits.to_bits() != before.to_bits() {
            self.logits_at = at();
        }
    }

    /// Whether everything is within tolerance.
    pub fn passes(&self) -> bool {
        self.logits <= self.tolerance.logits
            && self.hidden <= self.tolerance.hidden
            && self.greedy > 0
            && self.greedy_misses == 0
    }
}

/// All targets of a folder, in order of name. Drafters (`e-...`) have expectations of another kind: see
/// [`draft_fixtures`].
pub fn fixtures(dir: &Path) -> Result<Vec<Fixture>> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let mut targets = Vec::new();
    for file in names.iter().filter(|n| n.ends_with(".gguf")) {
        let stem = file.trim_end_matches(".gguf");
        let Some((name, precision)) = stem.rsplit_once('.') else { continue };
        let name = name.trim_end_matches(".ordered");
        let expect = dir.join(format!("{name}.expect.safetensors"));
        if !name.contains("-draft-") && expect.is_file() {
            let (name, is_half) = (name.to_owned(), precision != "f32");
            targets.push(Fixture { name, model: dir.join(file), expect, is_half });
        }
    }
    if targets.is_empty() {
        return Err(format!("{} holds no NAME.PRECISION.gguf with a NAME.expect.safetensors", dir.display()));
    }
    Ok(targets)
}

/// Checks one fixture with one cache type and chunk size.
pub fn check(fixture: &Fixture, kv: DType, n_batch: u32) -> Result<Report> {
    let model = crate::load(&fixture.model).map_err(|e| e.to_string())?;
    let bytes = std::fs::read(&fixture.expect).map_err(|e| format!("{}: {e}", fixture.expect.display()))?;
    let expect =
        Expect(SafeTensors::deserialize(&bytes).map_err(|e| format!("{}: {e}", fixture.expect.display()))?);
    let tolerance = if fixture.is_half || kv != DType::F32 { Tolerance::F16 } else { Tolerance::F32 };
    let mut report = Report {
        what: format!(
            "{} {} kv {kv} chunks of {n_batch}",
            fixture.name,
            if fixture.is_half { "f16" } else { "f32" }
        ),
        logits: 0.0,
        logits_at: String::new(),
        ties: Vec::new(),
        hidden: 0.0,
        greedy_misses: 0,
        first_miss: None,
        greedy: 0,
        tolerance,
    };
    for prefix in expect.prefixes() {
        let options =
            SessionOptions::default().n_ctx(512).n_batch(n_batch).n_threads(1).kv(KvConfig::uniform(kv));
        let mut session = Session::new(&model, &options).map_err(|e| e.to_string())?;
        check_prompt(&mut session, &expect, &prefix, &mut report)?;
    }
    Ok(report)
}

fn check_prompt(session: &mut Session, expect: &Expect<'_>, prefix: &str, report: &mut Report) -> Result<()> {
    let model = session.model().clone();
    let (n_vocab, n_embd) = (model.hparams().n_vocab as usize, model.hparams().n_embd as usize);
    let tokens: Vec<u32> = expect.i32(&format!("{prefix}.tokens"))?.iter().map(|&t| t as u32).collect();
    let n = tokens.len();
    let got = session.evaluate(&tokens, true).map_err(|e| e.to_string())?;

    report.worsen_logits(
        far(&got.logits[(n - 1) * n_vocab..], &expect.f32(&format!("{prefix}.logits_last"))?),
        || format!("{prefix}, all of the last position"),
    );
    worsen(
        &mut report.hidden,
        far(&got.hidden[(n - 1) * n_embd..], &expect.f32(&format!("{prefix}.hidden_last"))?),
    );
    let layers = expect.f32(&format!("{prefix}.layers_last"))?;
    for (il, want) in layers.chunks(n_embd).enumerate() {
        let at = (il * n + n - 1) * n_embd;
        worsen(&mut report.hidden, far(&got.layers[at..at + n_embd], want));
    }
    let (ids, values) =
        (expect.i32(&format!("{prefix}.top8_ids"))?, expect.f32(&format!("{prefix}.top8_values"))?);
    for (row, (ids, values)) in ids.chunks(8).zip(values.chunks(8)).enumerate() {
        let distance = top8(&got.logits[row * n_vocab..(row + 1) * n_vocab], ids, values);
        report.worsen_logits(distance, || format!("{prefix}, position {row}"));
    }

    // The continuation is fed, not followed, so that one miss does not hide the next.
    let greedy = expect.i32(&format!("{prefix}.greedy_ids"))?;
    let ids = expect.i32(&format!("{prefix}.greedy_top8_ids"))?;
    let values = expect.f32(&format!("{prefix}.greedy_top8_values"))?;
    let gaps = expect.f32(&format!("{prefix}.greedy_route_gap")).unwrap_or_default();
    for (i, &token) in greedy.iter().enumerate() {
        let logits = session.logits();
        let distance = top8(logits, &ids[i * 8..i * 8 + 8], &values[i * 8..i * 8 + 8]);
        match gaps.get(i) {
            Some(gap) if distance > report.tolerance.logits && *gap < report.tolerance.near_tie => {
                report.ties.push(format!("{prefix} step {i}, gap {gap:.1e}, logits {distance:.1e}"));
            }
            _ => report.worsen_logits(distance, || format!("{prefix}, step {i}")),
        }
        report.greedy += 1;
        if gemma4::sampling::argmax(logits) != Some(token as u32) {
            report.greedy_misses += 1;
            report.first_miss.get_or_insert_with(|| format!("{prefix} step {i}"));
        }
        session.prefill(&[token as u32]).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// The larger of two distances. NaN, which `f32::max` would drop, is the largest of all.
fn worst(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

pub(crate) fn worsen(have: &mut f32, distance: f32) {
    *have = worst(*have, distance);
}

/// Largest distance of two rows; NaN if their lengths differ.
pub(crate) fn far(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::NAN;
    }
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, worst)
}

/// Largest distance of eight recorded logits.
fn top8(logits: &[f32], ids: &[i32], values: &[f32]) -> f32 {
    ids.iter().zip(values).map(|(&id, value)| (logits[id as usize] - value).abs()).fold(0.0, worst)
}

/// Tensors of an expectation file.
pub(crate) struct Expect<'a>(SafeTensors<'a>);

impl<'a> Expect<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        SafeTensors::deserialize(bytes).map(Expect).map_err(|e| e.to_string())
    }

    /// `p7`, `p40`, ...: one for each prompt.
    pub(crate) fn prefixes(&self) -> Vec<String> {
        let mut found: Vec<_> =
            self.0.names().iter().filter_map(|n| n.strip_suffix(".tokens").map(str::to_owned)).collect();
        found.sort();
        found
    }

    fn bytes(&self, name: &str) -> Result<Vec<[u8; 4]>> {
        let tensor = self.0.tensor(name).map_err(|e| format!("{name}: {e}"))?;
        Ok(tensor.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect())
    }

    pub(crate) fn f32(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.bytes(name)?.into_iter().map(f32::from_le_bytes).collect())
    }

    pub(crate) fn i32(&self, name: &str) -> Result<Vec<i32>> {
        Ok(self.bytes(name)?.into_iter().map(i32::from_le_bytes).collect())
    }
}

/// Checks every fixture of a folder with F32 and F16 caches, prompts whole and in pieces. Prints a table;
/// `Err` names what failed. A folder with a `golden.json` is a trained model's: see [`check_trained`].
pub fn check_folder(dir: &Path) -> Result<()> {
    if dir.join("golden.json").is_file() {
        return check_trained(dir);
    }
    let targets = fixtures(dir)?;
    println!("{:<44} {:>9} {:>9} {:>9}  {:>5}", "fixture", "logits", "hidden", "greedy", "");
    let mut failed = Vec::new();
    for fixture in &targets {
        for (kv, n_batch) in [(DType::F32, 512), (DType::F32, 16), (DType::F16, 512), (DType::F16, 16)] {
            let r = check(fixture, kv, n_batch)?;
            let verdict = if r.passes() { "ok" } else { "FAILED" };
            let greedy = format!("{}/{}", r.greedy - r.greedy_misses, r.greedy);
            println!("{:<44} {:>9.2e} {:>9.2e} {:>9}  {:>5}", r.what, r.logits, r.hidden, greedy, verdict);
            for tie in &r.ties {
                println!("    a near tie of the router fell the other way: {tie}");
            }
            if !r.passes() {
                println!("    farthest logits: {}", r.logits_at);
                if let Some(miss) = &r.first_miss {
                    println!("    first other choice: {miss}");
                }
                failed.push(r.what);
            }
        }
    }
    let drafters = draft_fixtures(dir)?;
    if !drafters.is_empty() {
        println!("{:<44} {:>9} {:>9} {:>9}", "assistant", "chain", "hidden", "drafted");
    }
    for fixture in &drafters {
        for (kv, ordered) in [(DType::F32, false), (DType::F16, false), (DType::F32, true)] {
            if ordered && !fixture.has_centroids {
                continue;
            }
            let r = check_draft(fixture, kv, ordered)?;
            let verdict = if r.passes() { "ok" } else { "FAILED" };
            let drafted = format!("{}/{}", r.drafted - r.misses, r.drafted);
            println!("{:<44} {:>9.2e} {:>9.2e} {:>9}  {:>5}", r.what, r.chain, r.hidden, drafted, verdict);
            if !r.passes() {
                failed.push(r.what);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("beyond tolerance: {}", failed.join("; "))) }
}

/// Compares the greedy continuations of every target model in a folder with those of its `golden.json`.
/// F16 weights must give the same tokens; of quantised ones the count is printed.
pub fn check_trained(dir: &Path) -> Result<()> {
    let text = std::fs::read_to_string(dir.join("golden.json")).map_err(|e| e.to_string())?;
    let golden: Vec<tiny::Golden> = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let entries = std::fs::read_dir(dir).map_err(|e| e.to_string())?;
    let mut files: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|p| p.extension().is_some_and(|x| x == "gguf"));
    files.sort();
    let (mut checked, mut failed) = (0, Vec::new());
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let model = match crate::load(&path) {
            Ok(model) => model,
            Err(gemma4::Error::Model { key, found, .. }) if key == "general.architecture" => {
                println!("{name:<28} {found}: not checked by this program");
                continue;
            }
            Err(e) => return Err(e.to_string()),
        };
        let equal = |g: &&tiny::Golden| {
            tiny::greedy(&mut tiny::session(&model, 512), &g.prompt_ids, g.greedy_ids.len()) == g.greedy_ids
        };
        let n = golden.iter().filter(equal).count();
        println!("{name:<28} {n} of {} greedy continuations equal", golden.len());
        checked += 1;
        if name.contains("f16") && n < golden.len() {
            failed.push(name);
        }
    }
    match (checked, failed.is_empty()) {
        (0, _) => Err(format!("{} holds no target model", dir.display())),
        (_, true) => Ok(()),
        (_, false) => Err(format!("not equal: {}", failed.join(", "))),
    }
}
