//! The patch series as commits: upstream's tree, a commit for each patch, and git in between.
//!
//! A scratch tree is a repository of its own. So what lies above it does not matter: inside a folder that a
//! repository ignores, `git apply` would succeed and change nothing. It obeys no configuration of the user
//! while we drive it, and keeps what it needs in its own, so that the user's git does the same in between.

use crate::process::{Result, git, read};
use std::fs;
use std::path::{Path, PathBuf};

/// Settings of a scratch tree. Conflicts show the common ancestor; a resolution made once is offered again,
/// but not staged, because an old answer need not fit a newer upstream.
const SETTINGS: [[&str; 2]; 8] = [
    ["user.name", "gemma4 maintainers"],
    ["user.email", "maintainers@gemma4.invalid"],
    ["core.autocrlf", "false"],
    ["commit.gpgsign", "false"],
    ["rerere.enabled", "true"],
    ["rerere.autoupdate", "false"],
    ["merge.conflictStyle", "zdiff3"],
    ["advice.mergeConflict", "false"],
];

/// How patches are written: nothing in them depends on when, where or by which git.
const FORMAT: [&str; 8] = [
    "--zero-commit",
    "--no-signature",
    "--no-numbered",
    "--no-stat",
    "--full-index",
    "-U1",
    "--no-renames",
    "--diff-algorithm=myers",
];

/// The branch that carries the series.
const BRANCH: &str = "series";

/// A patch as git would write it.
#[derive(Debug, PartialEq)]
pub struct Formatted {
    /// The file's name without its number: `0001-cuda-faster.patch` gives `cuda-faster.patch`.
    pub slug: String,
    /// The file's content.
    pub bytes: Vec<u8>,
}

/// A file that git could not merge.
#[derive(Debug, PartialEq)]
pub struct Conflict {
    /// Its path in ggml.
    pub file: String,
    /// What happened to it, in words.
    pub what: &'static str,
    /// Whether an earlier resolution was filled in.
    pub replayed: bool,
}

/// Where a rebase has stopped.
#[derive(Debug, PartialEq)]
pub struct Stop {
    /// Index of the patch in the series, from 0.
    pub patch: usize,
    /// What could not be merged; empty if the patch has become empty or was stopped by hand.
    pub conflicts: Vec<Conflict>,
    /// The conflicting places, as git shows them.
    pub diff: String,
}

/// A repository with a version of upstream and the series on top.
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// Makes a repository in `dir`, which may not exist or is emptied first. Recorded resolutions of
    /// conflicts survive.
    pub fn create(dir: &Path) -> Result<Scratch> {
        let cache = dir.join(".git/rr-cache");
        let aside = dir.with_extension("rr-cache");
        if cache.is_dir() {
            fs::rename(&cache, &aside).map_err(|e| format!("cannot move {}: {e}", cache.display()))?;
        }
        if dir.exists() {
            fs::remove_dir_all(dir).map_err(|e| format!("cannot empty {}: {e}", dir.display()))?;
        }
        fs::create_dir_all(dir).map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
        let scratch = Scratch { dir: dir.to_owned() };
        // No template: a user's hooks have nothing to do here.
        scratch.git(&["init", "--quiet", "--template=", "--initial-branch", BRANCH])?;
        if aside.is_dir() {
            fs::rename(&aside, &cache).map_err(|e| format!("cannot move {}: {e}", aside.display()))?;
        }
        for [key, value] in SETTINGS {
            scratch.git(&["config", key, value])?;
        }
        Ok(scratch)
    }

    /// The repository in `dir`, if there is one.
    pub fn open(dir: &Path) -> Option<Scratch> {
        dir.join(".git/config").is_file().then(|| Scratch { dir: dir.to_owned() })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn git(&self, args: &[&str]) -> Result<String> {
        read(&mut git(&self.dir, args))
    }

    /// Commits upstream's `tree` as `upstream/VERSION` on top of what is checked out, and checks it out.
    pub fn import(&self, tree: &Path, version: &str) -> Result {
        let tree = tree.to_str().ok_or_else(|| format!("{} is no UTF-8", tree.display()))?;
        let own = self.dir.join(".git");
        let own = own.to_str().ok_or_else(|| format!("{} is no UTF-8", own.display()))?;
        // --force: upstream ignores some of what it ships.
        let add = ["--git-dir", own, "--work-tree", tree, "add", "--all", "--force", "."];
        read(&mut git(Path::new(tree), add))?;
        // Two versions may carry one and the same tree.
        self.git(&["commit", "--quiet", "--allow-empty", "--message", &format!("upstream {version}")])?;
        self.git(&["tag", "--force", &upstream(version)])?;
        self.git(&["reset", "--quiet", "--hard"])?;
        // Files of the version before, which this one has no more.
        self.git(&["clean", "--quiet", "-d", "-x", "--force"]).map(drop)
    }

    /// Commits the patches, with exact context. With `three_way`, a patch whose context has changed is
    /// merged instead.
    pub fn apply(&self, patches: &[PathBuf], three_way: bool) -> Result {
        for patch in patches {
            let mut am = git(&self.dir, ["am", "--quiet", "--keep-cr", "--whitespace=error"]);
            if three_way {
                am.arg("--3way");
            }
            if let Err(e) = read(am.arg(patch)) {
                let _ = self.git(&["am", "--abort"]);
                let name = patch.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(format!("{name} does not apply to the pinned source: {e}"));
            }
        }
        Ok(())
    }

    /// The patches between upstream's `version` and what is checked out.
    pub fn format(&self, version: &str) -> Result<Vec<Formatted>> {
        let out = self.dir.join(".git/export");
        let _ = fs::remove_dir_all(&out);
        let range = format!("{}..HEAD", upstream(version));
        let mut command = git(&self.dir, ["format-patch", "--quiet"]);
        read(command.args(FORMAT).arg("--output-directory").arg(&out).arg(&range))?;
        let mut patches = Vec::new();
        let mut paths: Vec<_> =
            fs::read_dir(&out).into_iter().flatten().flatten().map(|e| e.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let slug = name.split_once('-').map_or(name.as_str(), |(_, slug)| slug).to_owned();
            let bytes = fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
            patches.push(Formatted { slug, bytes });
        }
        let _ = fs::remove_dir_all(&out);
        Ok(patches)
    }

    /// What git is in the middle of, if anything.
    pub fn in_progress(&self) -> Option<&'static str> {
        let states = [
            ("rebase-merge", "a rebase"),
            ("rebase-apply", "a rebase or `git am`"),
            ("MERGE_HEAD", "a merge"),
            ("CHERRY_PICK_HEAD", "a cherry-pick"),
        ];
        states.into_iter().find(|(file, _)| self.dir.join(".git").join(file).exists()).map(|(_, what)| what)
    }

    /// Refuses if the commits between `version` and what is checked out are no series that can be written:
    /// work in progress, uncommitted changes, another base, merges, or traces of a conflict.
    pub fn check_complete(&self, version: &str) -> Result {
        if let Some(what) = self.in_progress() {
            return Err(format!("{what} is in progress in {}: finish or abort it first", self.dir.display()));
        }
        let dirty = self.git(&["status", "--porcelain"])?;
        if !dirty.is_empty() {
            let dir = self.dir.display();
            return Err(format!("{dir} has changes that belong to no commit:\n{}", dirty.trim_end()));
        }
        let base = upstream(version);
        self.git(&["merge-base", "--is-ancestor", &base, "HEAD"]).map_err(|_| {
            format!("what is checked out in {} does not stem from {base}", self.dir.display())
        })?;
        let range = format!("{base}..HEAD");
        let merges = self.git(&["rev-list", "--merges", &range])?;
        if !merges.is_empty() {
            return Err(format!("a series holds no merges; rebase instead: {}", merges.trim_end()));
        }
        // Each commit, not only the sum: a marker that a later patch removes is still in a patch.
        for commit in self.git(&["rev-list", "--reverse", &range])?.lines() {
            let mut check = git(&self.dir, ["diff", "--check", &format!("{commit}~"), commit]);
            let done = check.output().map_err(|e| format!("cannot run git: {e}"))?;
            if !done.status.success() {
                let subject = self.git(&["log", "-1", "--format=%s", commit])?;
                let found = String::from_utf8_lossy(&done.stdout);
                return Err(format!(
                    "the patch \"{}\" leaves whitespace errors or conflict markers:\n{}",
                    subject.trim_end(),
                    found.trim_end()
                ));
            }
        }
        let header = self.dir.join("include/ggml.h");
        if let Ok(header) = fs::read_to_string(header) {
            check_type_count(&header)?;
        }
        Ok(())
    }

    /// The commit that is checked out.
    pub fn head(&self) -> Result<String> {
        Ok(self.git(&["rev-parse", "HEAD"])?.trim_end().to_owned())
    }

    /// Whether nothing but committed work is there.
    pub fn is_tidy(&self) -> Result<bool> {
        Ok(self.in_progress().is_none() && self.git(&["status", "--porcelain"])?.is_empty())
    }

    /// Keeps a note in the repository.
    pub fn note(&self, key: &str, value: &str) -> Result {
        self.git(&["config", &format!("gemma4.{key}"), value]).map(drop)
    }

    /// Reads a note.
    pub fn noted(&self, key: &str) -> Option<String> {
        Some(self.git(&["config", "--get", &format!("gemma4.{key}")]).ok()?.trim_end().to_owned())
    }

    /// Adds another version of upstream after the one that the series stands on, and goes back to the series.
    pub fn import_after(&self, tree: &Path, old: &str, new: &str) -> Result {
        self.git(&["checkout", "--quiet", "--detach", &upstream(old)])?;
        self.import(tree, new)?;
        self.git(&["checkout", "--quiet", BRANCH]).map(drop)
    }

    /// Moves the series from one version of upstream to another. `Some` if it stops.
    pub fn rebase(&self, old: &str, new: &str) -> Result<Option<Stop>> {
        self.go(&["rebase", "--quiet", "--onto", &upstream(new), &upstream(old), BRANCH])
    }

    /// Goes on after a stop.
    pub fn resume(&self) -> Result<Option<Stop>> {
        let unmerged = self.conflicts()?;
        if let Some(first) = unmerged.first() {
            return Err(format!("{} is not resolved yet: edit it, then `git add` it", first.file));
        }
        let done = git(&self.dir, ["diff", "--cached", "--check"]).output();
        let done = done.map_err(|e| format!("cannot run git: {e}"))?;
        if !done.status.success() {
            let found = String::from_utf8_lossy(&done.stdout);
            return Err(format!("whitespace errors or conflict markers are left:\n{}", found.trim_end()));
        }
        self.go(&["rebase", "--continue"])
    }

    /// Drops the patch at which the rebase has stopped.
    pub fn skip(&self) -> Result<Option<Stop>> {
        self.go(&["rebase", "--skip"])
    }

    /// Gives the rebase up.
    pub fn abort(&self) -> Result {
        self.git(&["rebase", "--abort"]).map(drop)
    }

    fn go(&self, args: &[&str]) -> Result<Option<Stop>> {
        // The messages are the patches' own: nothing to edit.
        match read(git(&self.dir, args).env("GIT_EDITOR", "true")) {
            Ok(_) if self.in_progress().is_none() => Ok(None),
            Ok(_) => self.stopped().map(Some),
            Err(_) if self.in_progress().is_some() => self.stopped().map(Some),
            Err(e) => Err(e),
        }
    }

    fn stopped(&self) -> Result<Stop> {
        let at = self.git(&["rev-parse", "REBASE_HEAD"])?;
        // The branch itself moves when the rebase ends: until then it is the old series.
        let old = self.noted("version").ok_or("the scratch tree does not know its version")?;
        let range = format!("{}..{BRANCH}", upstream(&old));
        let commits = self.git(&["rev-list", "--reverse", &range])?;
        let patch = commits.lines().position(|commit| commit == at.trim_end()).unwrap_or_default();
        let diff = self.git(&["diff", "--no-color", "--no-ext-diff"])?;
        Ok(Stop { patch, conflicts: self.conflicts()?, diff })
    }

    fn conflicts(&self) -> Result<Vec<Conflict>> {
        let status = self.git(&["status", "--porcelain", "-z", "--no-renames"])?;
        let mut found = Vec::new();
        for entry in status.split_terminator('\0') {
            let (Some(code), Some(file)) = (entry.get(..2), entry.get(3..)) else { continue };
            // In a rebase, "ours" is the new upstream and "theirs" is the patch.
            let what = match code {
                "UU" => "upstream and the patch change the same lines",
                "AA" => "upstream and the patch create it",
                "DU" => "upstream deleted it, the patch changes it",
                "UD" => "the patch deletes it, upstream changes it",
                "AU" | "UA" | "DD" => "it was renamed or deleted",
                _ => continue,
            };
            let text = fs::read(self.dir.join(file)).unwrap_or_default();
            let marked = text.split(|&b| b == b'\n').any(|line| line.starts_with(b"<<<<<<< "));
            found.push(Conflict { file: file.to_owned(), what, replayed: code == "UU" && !marked });
        }
        Ok(found)
    }
}

/// The tag of a version of upstream.
pub fn upstream(version: &str) -> String {
    format!("upstream/{version}")
}

/// When both sides append a type and write the same count, git merges the count without a conflict, and
/// wrong. Types beyond the count index past the end of ggml's tables.
fn check_type_count(header: &str) -> Result {
    let mut highest = None;
    let mut count = None;
    for line in header.lines() {
        let Some((name, value)) = line.trim().strip_prefix("GGML_TYPE_").and_then(|l| l.split_once('='))
        else {
            continue;
        };
        let digits: String = value.trim().chars().take_while(char::is_ascii_digit).collect();
        let Ok(value) = digits.parse::<u32>() else { continue };
        match name.trim() {
            "COUNT" => count = Some(value),
            _ => highest = highest.max(Some(value)),
        }
    }
    match (highest, count) {
        (Some(highest), Some(count)) if count != highest + 1 => Err(format!(
            "include/ggml.h: GGML_TYPE_COUNT is {count}, but the highest type is {highest}: it must be {}",
            highest + 1
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "scratch_tests.rs"]
mod tests;
