//! A toy upstream of one header and one source, and a series of two patches on it.

use super::*;
use crate::patches::{Series, write_series};
use crate::process::TempDir;

const HEADER: &str =
    "enum ggml_type {\n    GGML_TYPE_F32   = 0,\n    GGML_TYPE_F16   = 1,\n    GGML_TYPE_COUNT = 2,\n};\n";
const SOURCE: &str = "int a;\nint b;\nint c;\nint d;\nint e;\nint f;\n";

/// An upstream of this header and source, below `dir`.
fn tree(dir: &TempDir, name: &str, header: &str, source: &str) -> PathBuf {
    let root = dir.path().join(name);
    fs::create_dir_all(root.join("include")).unwrap();
    fs::write(root.join("include/ggml.h"), header).unwrap();
    fs::write(root.join("code.c"), source).unwrap();
    // What upstream ignores is shipped all the same.
    fs::write(root.join(".gitignore"), "*.c\n").unwrap();
    root
}

fn commit(scratch: &Scratch, subject: &str, file: &str, from: &str, to: &str) {
    let path = scratch.dir().join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    fs::write(&path, text.replace(from, to)).unwrap();
    scratch.git(&["commit", "--quiet", "--all", "--message", subject]).unwrap();
}

/// A scratch tree on version 1 with a series of two, which is written to `patches`.
fn series(dir: &TempDir) -> (Scratch, PathBuf) {
    let scratch = Scratch::create(&dir.path().join("ggml")).unwrap();
    let one = tree(dir, "one", HEADER, SOURCE);
    // The next version has it no more.
    fs::write(one.join("gone.h"), "int gone;\n").unwrap();
    scratch.import(&one, "1").unwrap();
    scratch.note("version", "1").unwrap();
    let count = "    GGML_TYPE_COUNT = 2,";
    let ours = "    GGML_TYPE_OURS  = 224,\n    GGML_TYPE_COUNT = 225,";
    commit(&scratch, "header: a type of ours", "include/ggml.h", count, ours);
    commit(&scratch, "code: faster", "code.c", "int e;", "int e = 1;");
    let patches = dir.path().join("patches");
    fs::create_dir(&patches).unwrap();
    fs::write(patches.join("series"), "# In order.\n").unwrap();
    write_series(&scratch, "1", &patches).unwrap();
    (scratch, patches)
}

fn contents(dir: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read_to_string(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_series_that_nobody_touched_is_written_back_byte_for_byte() {
    let dir = TempDir::new("round-trip").unwrap();
    let (_, patches) = series(&dir);
    // A gap in the numbers, as between groups of patches.
    fs::rename(patches.join("0002-code-faster.patch"), patches.join("0010-code-faster.patch")).unwrap();
    fs::write(
        patches.join("series"),
        "# In order.\n0001-header-a-type-of-ours.patch\n0010-code-faster.patch\n",
    )
    .unwrap();
    let before = contents(&patches);
    let again = Scratch::create(&dir.path().join("again")).unwrap();
    again.import(&dir.path().join("one"), "1").unwrap();
    again.apply(&Series::read(&patches).unwrap().paths(), false).unwrap();
    write_series(&again, "1", &patches).unwrap();
    assert_eq!(contents(&patches), before);

    // A patch in between takes the next number, one at the end the one after the last.
    again.git(&["reset", "--quiet", "--hard", "HEAD~1"]).unwrap();
    commit(&again, "code: between", "code.c", "int a;", "int a = 1;");
    again.apply(&Series::read(&patches).unwrap().paths()[1..], true).unwrap();
    commit(&again, "code: last", "code.c", "int c;", "int c = 1;");
    write_series(&again, "1", &patches).unwrap();
    let names: Vec<_> = contents(&patches).into_iter().map(|(name, _)| name).collect();
    let wanted = [
        "0001-header-a-type-of-ours.patch",
        "0002-code-between.patch",
        "0010-code-faster.patch",
        "0011-code-last.patch",
        "series",
    ];
    assert_eq!(names, wanted);
}

#[test]
fn what_is_unfinished_is_not_exported() {
    let dir = TempDir::new("unfinished").unwrap();
    let (scratch, patches) = series(&dir);
    let before = contents(&patches);
    let refused = |scratch: &Scratch, why: &str| {
        let error = write_series(scratch, "1", &patches).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(contents(&patches), before);
    };
    fs::write(scratch.dir().join("new.c"), "int x;\n").unwrap();
    // Upstream ignores *.c: a new file that is not added is the user's to see.
    fs::write(scratch.dir().join("new.h"), "int x;\n").unwrap();
    refused(&scratch, "belong to no commit");
    scratch.git(&["clean", "-fdxq"]).unwrap();
    commit(&scratch, "code: blanks", "code.c", "int a;", "int a; ");
    refused(&scratch, "\"code: blanks\" leaves whitespace errors");
    scratch.git(&["reset", "--quiet", "--hard", "HEAD~1"]).unwrap();
    commit(&scratch, "header: miscounts", "include/ggml.h", "COUNT = 225", "COUNT = 43");
    refused(&scratch, "it must be 225");
}

#[test]
fn a_rebase_moves_the_series() {
    let dir = TempDir::new("rebase").unwrap();
    let (scratch, patches) = series(&dir);
    let two = tree(&dir, "two", HEADER, &SOURCE.replace("int a;", "int z;\nint a;"));
    scratch.import_after(&two, "1", "2").unwrap();
    assert_eq!(scratch.rebase("1", "2").unwrap(), None);
    write_series(&scratch, "2", &patches).unwrap();
    assert!(!scratch.dir().join("gone.h").exists());
    let fresh = Scratch::create(&dir.path().join("fresh")).unwrap();
    fresh.import(&two, "2").unwrap();
    fresh.apply(&Series::read(&patches).unwrap().paths(), false).unwrap();
    assert!(fs::read_to_string(fresh.dir().join("code.c")).unwrap().contains("int e = 1;"));
}

#[test]
fn a_rebase_that_stops_says_where_and_goes_on() {
    let dir = TempDir::new("stop").unwrap();
    let (scratch, patches) = series(&dir);
    let header = HEADER.replace("COUNT = 2,", "Q2_0  = 2,\n    GGML_TYPE_COUNT = 3,");
    let two = tree(&dir, "two", &header, &SOURCE.replace("int e;", "long e;"));
    scratch.import_after(&two, "1", "2").unwrap();
    let stop = scratch.rebase("1", "2").unwrap().unwrap();
    assert_eq!((stop.patch, stop.conflicts.len()), (0, 1));
    assert_eq!(stop.conflicts[0].file, "include/ggml.h");
    assert!(stop.conflicts[0].what.contains("same lines") && !stop.conflicts[0].replayed);
    assert!(stop.diff.contains("GGML_TYPE_OURS") && stop.diff.contains("GGML_TYPE_Q2_0"), "{}", stop.diff);

    let before = contents(&patches);
    assert!(write_series(&scratch, "2", &patches).unwrap_err().contains("a rebase is in progress"));
    assert_eq!(contents(&patches), before);
    assert!(scratch.resume().unwrap_err().contains("include/ggml.h is not resolved"));
    scratch.git(&["add", "include/ggml.h"]).unwrap();
    assert!(scratch.resume().unwrap_err().contains("conflict markers are left"));

    let resolved = header.replace("COUNT = 3,", "OURS  = 224,\n    GGML_TYPE_COUNT = 225,");
    fs::write(scratch.dir().join("include/ggml.h"), resolved).unwrap();
    scratch.git(&["add", "include/ggml.h"]).unwrap();
    let stop = scratch.resume().unwrap().unwrap();
    assert_eq!((stop.patch, stop.conflicts[0].file.as_str()), (1, "code.c"));
    // Upstream has it now: the patch is dropped.
    assert_eq!(scratch.skip().unwrap(), None);
    write_series(&scratch, "2", &patches).unwrap();
    let names: Vec<_> = contents(&patches).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["0001-header-a-type-of-ours.patch", "series"]);
}

#[test]
fn a_resolution_is_offered_again_but_not_taken_silently() {
    let dir = TempDir::new("again").unwrap();
    let (scratch, _) = series(&dir);
    let two = tree(&dir, "two", HEADER, &SOURCE.replace("int e;", "long e;"));
    scratch.import_after(&two, "1", "2").unwrap();
    for replayed in [false, true] {
        let stop = scratch.rebase("1", "2").unwrap().unwrap();
        assert_eq!(stop.conflicts[0].replayed, replayed);
        if replayed {
            let text = fs::read_to_string(scratch.dir().join("code.c")).unwrap();
            assert!(text.contains("long e = 1;"));
        }
        fs::write(scratch.dir().join("code.c"), SOURCE.replace("int e;", "long e = 1;")).unwrap();
        scratch.git(&["add", "code.c"]).unwrap();
        scratch.git(&["rerere"]).unwrap();
        if !replayed {
            scratch.abort().unwrap();
        }
    }
    assert_eq!(scratch.resume().unwrap(), None);
}
