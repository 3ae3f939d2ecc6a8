//! The patch series in `patches/`: to a git tree and back.

use crate::process::{Result, TempDir, git, read, root};
use crate::scratch::{Formatted, Scratch, upstream};
use crate::vendor::Pin;
use std::fs;
use std::path::{Path, PathBuf};

/// The scratch tree that people edit, from the root.
const TREE: &str = "target/patches/ggml";

/// The scratch tree's place.
pub fn tree() -> PathBuf {
    root().join(TREE)
}

/// Checks that `patches/series` names every patch once, that the series applies to the pinned source with
/// exact context, and that writing it back changes no byte.
pub fn check() -> Result {
    let series = Series::read(&root().join("patches"))?;
    let dir = TempDir::new("patches")?;
    let pin = Pin::ours();
    let version = pin.version()?;
    let ggml = pin.unpack(&dir.path().join("upstream"))?;
    let scratch = Scratch::create(&dir.path().join("ggml"))?;
    scratch.import(&ggml, &version)?;
    scratch.apply(&series.paths(), false)?;
    scratch.check_complete(&version)?;
    for Change { name, before, after } in series.compare(&scratch.format(&version)?) {
        match (before, after) {
            (Some(before), Some(after)) if before == after => {
                println!("{name}: applies, same when written back")
            }
            (Some(_), Some(_)) => return Err(format!("{name} changes when it is written back: {EXPORT}")),
            _ => return Err(format!("{name} is not what git would call it: {EXPORT}")),
        }
    }
    Ok(())
}

const EXPORT: &str = "run `cargo xtask patches edit` and `cargo xtask patches export`";

/// Turns the series into a git tree for a person to edit.
pub fn edit() -> Result {
    let version = Pin::ours().version()?;
    let scratch = open_series()?;
    let dir = scratch.dir().display();
    println!(
        "{dir}: ggml of {version} with a commit for each patch\n\
         change a patch   git rebase --interactive {base}, or git commit --fixup and --autosquash\n\
         add one          git commit\n\
         then             cargo xtask patches export",
        base = upstream(&version),
    );
    Ok(())
}

/// The scratch tree with the series of `patches/`: the one that is there if it holds unwritten work and stands
/// on the same upstream, else a fresh one.
pub fn open_series() -> Result<Scratch> {
    let series = Series::read(&root().join("patches"))?;
    let version = Pin::ours().version()?;
    if let Some(scratch) = Scratch::open(&tree()) {
        let dir = scratch.dir().display();
        let touched = !scratch.is_tidy()? || scratch.noted("clean") != Some(scratch.head()?);
        if touched && (scratch.in_progress().is_some() || scratch.noted("version").as_ref() != Some(&version))
        {
            return Err(format!("{dir} holds unfinished work: finish it, abort it, or delete the folder"));
        }
        if touched {
            println!("work that is not exported yet is kept");
            return Ok(scratch);
        }
    }
    let dir = TempDir::new("upstream")?;
    let ggml = Pin::ours().unpack(&dir.path().join("upstream"))?;
    let scratch = Scratch::create(&tree())?;
    scratch.import(&ggml, &version)?;
    scratch.apply(&series.paths(), true)?;
    scratch.note("version", &version)?;
    scratch.note("clean", &scratch.head()?)?;
    Ok(scratch)
}

/// Writes the scratch tree's commits back to `patches/`.
pub fn export() -> Result {
    let version = Pin::ours().version()?;
    let none = || format!("there is no {TREE}: run `cargo xtask patches edit` first");
    let scratch = Scratch::open(&tree()).ok_or_else(none)?;
    if let Some(stands_on) = scratch.noted("version").filter(|v| *v != version) {
        return Err(format!("{TREE} stands on {stands_on}, the pin is {version}: delete the folder"));
    }
    write_series(&scratch, &version, &root().join("patches"))
}

/// Writes the commits after upstream's `version` as the series in `dir`, unless they are unfinished.
pub fn write_series(scratch: &Scratch, version: &str, dir: &Path) -> Result {
    scratch.check_complete(version)?;
    let series = Series::read(dir)?;
    let patches = scratch.format(version)?;
    let mut changes = 0;
    for Change { name, before, after } in series.compare(&patches) {
        let path = dir.join(&name);
        match after {
            Some(after) if before == Some(after) => continue,
            Some(after) => {
                fs::write(&path, after).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
                println!("{name}: {}", if before.is_some() { "changed" } else { "added" });
            }
            None => {
                fs::remove_file(&path).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
                println!("{name}: removed");
            }
        }
        changes += 1;
    }
    let list: String =
        series.comments.iter().cloned().chain(series.names(&patches)).map(|line| line + "\n").collect();
    let path = dir.join("series");
    fs::write(&path, list).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    scratch.note("clean", &scratch.head()?)?;
    println!("{} patches, {changes} files changed", patches.len());
    Ok(())
}

/// The series as files.
pub struct Series {
    dir: PathBuf,
    /// Lines of the list that start with `#`.
    comments: Vec<String>,
    /// File names in order, with their contents.
    patches: Vec<(String, Vec<u8>)>,
}

impl Series {
    /// Reads the series after a check that list and folder agree.
    pub fn read(dir: &Path) -> Result<Series> {
        let path = dir.join("series");
        let text = fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
        let (comments, listed): (Vec<_>, Vec<_>) = lines.map(str::to_owned).partition(|l| l.starts_with('#'));
        let entries = fs::read_dir(dir).map_err(|e| format!("cannot list {}: {e}", dir.display()))?;
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
        let mut patches = Vec::new();
        for name in there {
            let path = dir.join(&name);
            let bytes = fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
            patches.push((name, bytes));
        }
        Ok(Series { dir: dir.to_owned(), comments, patches })
    }

    /// Name of the patch at a place.
    pub fn name(&self, index: usize) -> &str {
        self.patches.get(index).map_or("a patch that the series lacks", |(name, _)| name)
    }

    /// Number of patches.
    pub fn len(&self) -> usize {
        self.patches.len()
    }

    /// The files in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.patches.iter().map(|(name, _)| self.dir.join(name)).collect()
    }

    /// File names for patches: a patch that is in the series keeps its number, so that gaps between groups of
    /// patches stay; others count on from the patch before.
    fn names(&self, patches: &[Formatted]) -> Vec<String> {
        let mut last = 0;
        let mut names = Vec::new();
        for patch in patches {
            let known = self.patches.iter().filter_map(|(name, _)| {
                let (number, slug) = name.split_once('-')?;
                (slug == patch.slug).then(|| number.parse::<u32>().ok()).flatten()
            });
            last = known.filter(|&number| number > last).min().unwrap_or(last + 1);
            names.push(format!("{last:04}-{}", patch.slug));
        }
        names
    }

    /// Every file of the old and the new series, with both contents.
    fn compare<'a>(&'a self, new: &'a [Formatted]) -> Vec<Change<'a>> {
        let names = self.names(new);
        let before = |name: &str| self.patches.iter().find(|(n, _)| n == name).map(|(_, b)| b.as_slice());
        let gone = self.patches.iter().filter(|(name, _)| !names.contains(name));
        let gone = gone.map(|(name, bytes)| Change { name: name.clone(), before: Some(bytes), after: None });
        let there = names.iter().zip(new).map(|(name, patch)| Change {
            name: name.clone(),
            before: before(name),
            after: Some(&patch.bytes),
        });
        there.chain(gone).collect()
    }
}

/// A file of the series, as it is and as it will be.
struct Change<'a> {
    name: String,
    before: Option<&'a [u8]>,
    after: Option<&'a [u8]>,
}

/// Lines of this repository that name a version of the pin.
pub fn mentions(version: &str) -> String {
    let args = ["grep", "--fixed-strings", "--line-number", version, "--", ":!patches"];
    // An error means that there are none, or no repository to look into.
    read(&mut git(root(), args)).unwrap_or_default().trim_end().to_owned()
}
