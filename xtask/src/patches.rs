//! The patch series in `patches/`.

use crate::process::{Result, TempDir, git, read, root};
use crate::vendor;
use std::fs;

/// Checks that `patches/series` names every patch once, and that the series applies to the pinned source
/// with exact context.
pub fn check() -> Result {
    let names = series()?;
    let dir = TempDir::new("patches")?;
    let ggml = vendor::unpack(&dir)?;
    // Inside a folder that a repository ignores, `git apply` succeeds and changes nothing. A repository of
    // the tree's own rules that out, whatever is above it.
    read(&mut git(&ggml, ["init", "--quiet"]))?;
    for name in &names {
        let patch = root().join("patches").join(name);
        let report = read(git(&ggml, ["apply", "--whitespace=error", "--numstat", "--apply"]).arg(&patch))
            .map_err(|e| format!("{name} does not apply to the pinned source: {e}"))?;
        let added: u32 = report.lines().filter_map(|l| l.split('\t').next()?.parse::<u32>().ok()).sum();
        println!("{name}: applies, {} files, {added} lines added", report.lines().count());
    }
    Ok(())
}

/// The patches in order, after a check that file and folder agree.
fn series() -> Result<Vec<String>> {
    let dir = root().join("patches");
    let path = dir.join("series");
    let text = fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let listed: Vec<_> =
        text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    let entries = fs::read_dir(&dir).map_err(|e| format!("cannot list {}: {e}", dir.display()))?;
    let mut there: Vec<_> = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".patch"))
        .collect();
    there.sort();
    if listed != there {
        // Numbers order the files, so the sorted folder is the series.
        return Err(format!(
            "patches/series and the folder differ.\n  series: {}\n  folder: {}",
            listed.join(", "),
            there.join(", ")
        ));
    }
    Ok(there)
}
