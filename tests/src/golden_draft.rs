//! Checks assistants against recorded chains of the reference implementation: the fixtures `e-draft-...`.

use crate::golden::{Expect, Result, far, worsen};
use gemma4::{DType, Drafter, DrafterOptions, KvConfig, Session, SessionOptions};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// Steps of a recorded chain.
const STEPS: u32 = 4;

/// An assistant with the target that it belongs to.
#[derive(Clone, Debug)]
pub struct DraftFixture {
    /// File name of the assistant.
    pub name: String,
    /// Weights of the assistant.
    pub drafter: PathBuf,
    /// Weights of its target.
    pub target: PathBuf,
    /// Expectations of the assistant.
    pub expect: PathBuf,
    /// Expectations of the target, which hold the prompts.
    pub prompts: PathBuf,
    /// Whether the weights are half precision.
    pub is_half: bool,
    /// Whether the file has the ordered head.
    pub has_centroids: bool,
}

/// Largest distances of one assistant under one configuration.
#[derive(Clone, Debug, Default)]
pub struct DraftReport {
    /// Fixture and configuration.
    pub what: String,
    /// Logits of the first step.
    pub first: f32,
    /// Logits of all steps.
    pub chain: f32,
    /// Hidden states after the last norm, and those handed on.
    pub hidden: f32,
    /// Drafted tokens checked.
    pub drafted: usize,
    /// Of these, tokens that differ.
    pub misses: usize,
    /// What was accepted for logits and hidden states.
    pub tolerance: [f32; 2],
}

impl DraftReport {
    /// Whether everything is within tolerance.
    pub fn passes(&self) -> bool {
        self.chain <= self.tolerance[0]
            && self.hidden <= self.tolerance[1]
            && self.drafted > 0
            && self.misses == 0
    }
}

/// All assistants of a folder, in order of name.
pub fn draft_fixtures(dir: &Path) -> Result<Vec<DraftFixture>> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let mut found = Vec::new();
    for file in names.iter().filter(|n| n.ends_with(".gguf") && n.contains("-draft-")) {
        let Some((stem, precision)) = file.trim_end_matches(".gguf").rsplit_once('.') else { continue };
        let name = stem.trim_end_matches(".ordered");
        let expect = dir.join(format!("{name}.expect.safetensors"));
        let bytes = std::fs::read(&expect).map_err(|e| format!("{}: {e}", expect.display()))?;
        let (_, meta) = SafeTensors::read_metadata(&bytes).map_err(|e| e.to_string())?;
        let target = meta.metadata().as_ref().and_then(|m| m.get("target")).cloned();
        let Some(target) = target else { return Err(format!("{}: names no target", expect.display())) };
        found.push(DraftFixture {
            name: file.clone(),
            drafter: dir.join(file),
            target: dir.join(format!("{target}.{precision}.gguf")),
            expect,
            prompts: dir.join(format!("{target}.expect.safetensors")),
            is_half: precision != "f32",
            has_centroids: stem.ends_with(".ordered"),
        });
    }
    Ok(found)
}

/// Checks one assistant with one cache type, by its ordered head or by the full one.
pub fn check_draft(fixture: &DraftFixture, kv: DType, ordered: bool) -> Result<DraftReport> {
    let text = |e: gemma4::Error| e.to_string();
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let model = crate::load(&fixture.target).map_err(text)?;
    let options = DrafterOptions::default().ordered_head(ordered);
    let drafter = Drafter::load_with(&fixture.drafter, &model, &options).map_err(text)?;
    let (bytes, prompts) = (read(&fixture.expect)?, read(&fixture.prompts)?);
    let (expect, prompts) = (Expect::parse(&bytes)?, Expect::parse(&prompts)?);
    let exact = !fixture.is_half && kv == DType::F32;
    let mut report = DraftReport {
        what: format!("{} kv {kv} {}", fixture.name, if ordered { "ordered" } else { "full" }),
        // The assistant's rows of the fixtures' table of tolerances.
        tolerance: if exact { [0.3, 0.1] } else { [1.0, 0.35] },
        ..DraftReport::default()
    };
    for prompt in prompts.prefixes() {
        let tokens: Vec<u32> = prompts.i32(&format!("{prompt}.tokens"))?.iter().map(|&t| t as u32).collect();
        let options = SessionOptions::default().n_ctx(512).n_threads(1);
        let options = options.kv(KvConfig::uniform(kv)).drafter(drafter.clone());
        let mut session = Session::new(&model, &options).map_err(text)?;
        session.prefill(&tokens).map_err(text)?;
        let start = expect.i32(&format!("{prompt}.start_token"))?[0] as u32;
        let steps = session.trace_draft(start, STEPS).map_err(text)?;
        if steps.len() != STEPS as usize {
            return Err(format!("{}: {} steps", report.what, steps.len()));
        }
        let head = format!("{prompt}.strict.{}", if ordered { "ordered" } else { "full" });
        compare(&steps, &expect, &head, &mut report)?;
    }
    Ok(report)
}

fn compare(
    steps: &[gemma4::DraftStep],
    expect: &Expect<'_>,
    head: &str,
    report: &mut DraftReport,
) -> Result<()> {
    let drafted = expect.i32(&format!("{head}.drafted"))?;
    let row = |name: &str, i: usize| {
        let all = expect.f32(&format!("{head}.{name}"))?;
        let width = all.len() / steps.len();
        Ok::<_, String>(all[i * width..(i + 1) * width].to_vec())
    };
    for (i, step) in steps.iter().enumerate() {
        let want = row("logits", i)?;
        // Of an ordered head only what it scored can be compared: the rest is a filler.
        let want: Vec<f32> = if step.ids.is_empty() {
            want
        } else {
            let lowest = want.iter().copied().fold(f32::INFINITY, f32::min);
            let scored = want.iter().filter(|&&z| z > lowest).count();
            if scored != step.ids.len() {
                return Err(format!("{head} step {i}: {} scores, {scored} recorded", step.ids.len()));
            }
            step.ids.iter().map(|&id| want[id as usize]).collect()
        };
        let distance = far(&step.logits, &want);
        if i == 0 {
            worsen(&mut report.first, distance);
        }
        worsen(&mut report.chain, distance);
        worsen(&mut report.hidden, far(&step.hidden, &row("hidden", i)?));
        worsen(&mut report.hidden, far(&step.hidden_out, &row("hidden_out", i)?));
        report.drafted += 1;
        report.misses += usize::from(step.token != drafted[i] as u32);
    }
    Ok(())
}
