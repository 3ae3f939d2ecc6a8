//! `cargo xtask vendor rebase`: the series and the pin move to another published version of upstream.

use crate::patches::{self, Series};
use crate::process::{Result, TempDir, root};
use crate::scratch::{Scratch, Stop};
use crate::vendor::{Pin, ggml_version};
use std::path::PathBuf;

/// Most lines of a conflict that are printed.
const DIFF_LINES: usize = 80;

/// The pin that the series is on its way to.
fn new_pin() -> PathBuf {
    root().join("target/patches/vendor")
}

/// Starts a rebase onto `version`.
pub fn start(version: &str) -> Result {
    let old = Pin::ours().version()?;
    if version == old {
        return Err(format!("the pin is {version} already"));
    }
    if !version.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("{version} is no version of the package, such as {old}"));
    }
    let pin = Pin::of_version(&new_pin(), version)?;
    let dir = TempDir::new("upstream")?;
    let tree = pin.unpack(&dir.path().join("upstream"))?;
    let (scratch, series) = (patches::open_series()?, Series::read(&root().join("patches"))?);
    if scratch.noted("clean") != Some(scratch.head()?) {
        return Err(format!(
            "{} holds work that is not in patches/: `cargo xtask patches export` or delete the folder",
            scratch.dir().display()
        ));
    }
    scratch.import_after(&tree, &old, version)?;
    scratch.note("to", version)?;
    scratch.note("ggml", &ggml_version(&tree)?)?;
    println!("{} patches from {old} to {version}, ggml {}", series.len(), ggml_version(&tree)?);
    let outcome = scratch.rebase(&old, version)?;
    proceed(&scratch, outcome)
}

/// Goes on after a stop: with what the user has resolved, without the patch, or not at all.
pub fn go_on(how: &str) -> Result {
    let scratch = Scratch::open(&patches::tree()).ok_or("no rebase was started")?;
    if scratch.in_progress().is_none() {
        // The user's own `git rebase --continue` may have come to the end.
        return match (how, scratch.noted("to")) {
            ("--continue", Some(to)) if scratch.noted("version").as_ref() != Some(&to) => finish(&scratch),
            _ => Err("no rebase is in progress".into()),
        };
    }
    let outcome = match how {
        "--continue" => scratch.resume()?,
        "--skip" => scratch.skip()?,
        _ => {
            scratch.abort()?;
            println!("given up: patches/ and vendor/ are as they were");
            return Ok(());
        }
    };
    proceed(&scratch, outcome)
}

fn proceed(scratch: &Scratch, outcome: Option<Stop>) -> Result {
    match outcome {
        None => finish(scratch),
        Some(stop) => Err(report(scratch, &stop)?),
    }
}

/// Writes the series and the pin: both or, if the series is not complete, neither.
fn finish(scratch: &Scratch) -> Result {
    let old = Pin::ours().version()?;
    let new = scratch.noted("to").ok_or("the scratch tree does not know where the series is going")?;
    let pin = Pin::open(&new_pin());
    if pin.version()? != new {
        return Err(format!("{} pins another version than {new}", new_pin().display()));
    }
    patches::write_series(scratch, &new, &root().join("patches")).map_err(|e| {
        format!("{e}\nPut it right there, commit, then: cargo xtask vendor rebase --continue")
    })?;
    pin.install(&scratch.noted("ggml").unwrap_or_else(|| "?".into()))?;
    scratch.note("version", &new)?;
    println!(
        "the series and the pin are on {new} now. Next: cargo xtask patches check, cargo xtask test, and a line \
         in CHANGELOG.md"
    );
    let mentions = patches::mentions(&old);
    if !mentions.is_empty() {
        println!("{old} is still named in\n{mentions}");
    }
    Ok(())
}

/// Which patch, which files, what in them, and what to do.
fn report(scratch: &Scratch, stop: &Stop) -> Result<String> {
    let series = Series::read(&root().join("patches"))?;
    let mut lines = vec![format!(
        "the rebase stops at patch {} of {}: {}",
        stop.patch + 1,
        series.len(),
        series.name(stop.patch)
    )];
    for conflict in &stop.conflicts {
        let replayed = if conflict.replayed { "; an earlier resolution was filled in: read it" } else { "" };
        lines.push(format!("  {}: {}{replayed}", conflict.file, conflict.what));
    }
    if stop.conflicts.is_empty() {
        lines.push("  nothing of it is left to change: upstream may have it".into());
    }
    let diff: Vec<_> = stop.diff.lines().collect();
    lines.push(String::new());
    lines.extend(diff.iter().take(DIFF_LINES).map(|line| format!("  {line}")));
    if diff.len() > DIFF_LINES {
        lines.push(format!("  ... and {} lines more: git diff", diff.len() - DIFF_LINES));
    }
    lines.push(format!(
        "\nTo go on, in {}:\n\
         edit each file: above ||||||| is the new upstream, below it the old one, below ======= the patch\n\
         git add FILE\n\
         then, from the repository:\n\
         cargo xtask vendor rebase --continue\n\
         or, if upstream has what the patch does: cargo xtask vendor rebase --skip\n\
         or give up: cargo xtask vendor rebase --abort",
        scratch.dir().display()
    ));
    Ok(lines.join("\n"))
}
