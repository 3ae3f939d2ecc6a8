//! Models by name: `hf:OWNER/REPO[@REVISION][:FILE-OR-QUANT]`.
//!
//! Files go into the cache that Hugging Face's own tools use, and are taken from there without a network. As
//! theirs, this reads `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`.

#[cfg(feature = "hub")]
mod download;

use crate::Failure;
use std::path::PathBuf;

#[cfg(feature = "hub")]
pub use download::Hub;

/// What such names begin with.
const PREFIX: &str = "hf:";

/// Quantisations to take if a name does not say, the best first.
const PREFERRED: [&str; 4] = ["Q4_K_M", "Q8_0", "Q4_0", "BF16"];

/// A model in a repository of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// `OWNER/REPO`.
    pub repo: String,
    /// A branch, a tag or a commit. Default `main`.
    pub revision: String,
    /// A file's name or a quantisation.
    pub wanted: Option<String>,
}

impl HubName {
    /// Reads a name; `None` if it is a path of this machine.
    ///
    /// # Errors
    /// If it begins like one and is none.
    pub fn parse(name: &str) -> Result<Option<HubName>, Failure> {
        let Some(rest) = name.strip_prefix(PREFIX) else { return Ok(None) };
        let (place, wanted) = match rest.split_once(':') {
            Some((place, wanted)) => (place, Some(wanted.to_owned())),
            None => (rest, None),
        };
        let (repo, revision) = place.split_once('@').unwrap_or((place, "main"));
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_word = |s: &str| !s.is_empty() && s != "." && s != ".." && s.chars().all(is_part);
        let is_repo = repo.split_once('/').is_some_and(|(owner, repo)| is_word(owner) && is_word(repo));
        let is_file = |file: &String| !file.is_empty() && file.split('/').all(is_word);
        if !is_repo || !revision.split('/').all(is_word) || !wanted.as_ref().is_none_or(is_file) {
            return Err(format!(
                "{name:?} is no model: write hf:OWNER/REPO, hf:OWNER/REPO:Q4_0 or \
                                hf:OWNER/REPO:FILE.gguf, with @REVISION after REPO if need be"
            )
            .into());
        }
        Ok(Some(HubName { repo: repo.to_owned(), revision: revision.to_owned(), wanted }))
    }
}

/// The local file of a model that was named by its path or by its place in the hub; of a split model, the first.
///
/// # Errors
/// If the name is malformed, or the file is not in the cache and cannot be downloaded.
pub fn resolve(name: &str) -> Result<PathBuf, Failure> {
    match HubName::parse(name)? {
        None => Ok(name.into()),
        #[cfg(feature = "hub")]
        Some(name) => Hub::from_env().fetch(&name),
        #[cfg(not(feature = "hub"))]
        Some(_) => Err("this program was built without the feature `hub`; give the path of a file".into()),
    }
}

/// The files of a repository that make up the wanted model, in order.
///
/// # Errors
/// If there is none, or more than one; the message lists what there is.
pub fn choose(files: &[String], wanted: Option<&str>) -> Result<Vec<String>, Failure> {
    let base = |file: &str| file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
    let is_model = |file: &&String| {
        // Encoders of images and tables of importance lie beside models.
        let base = base(file);
        base.ends_with(".gguf") && !base.contains("mmproj") && !base.contains("imatrix")
    };
    let models: Vec<&String> =
        files.iter().filter(is_model).filter(|file| part(file).is_none_or(|p| p.0 == 1)).collect();
    let matching = |wanted: &str| -> Vec<&String> {
        models
            .iter()
            .copied()
            .filter(|file| {
                *file == wanted || base(file) == wanted.to_ascii_lowercase() || has_quant(file, wanted)
            })
            .collect()
    };
    let found = match wanted {
        Some(wanted) => matching(wanted),
        None if models.len() == 1 => models.clone(),
        None => PREFERRED
            .iter()
            .map(|quant| matching(quant))
            .find(|m| m.len() == 1)
            .unwrap_or_else(|| models.clone()),
    };
    match found.as_slice() {
        [one] => parts(one, files),
        [] if models.is_empty() => Err("the repository has no GGUF file".into()),
        [] => {
            Err(format!("no file matches {:?}; there are {}", wanted.unwrap_or_default(), list(&models))
                .into())
        }
        several => Err(format!("say which one, after a colon: {}", list(several)).into()),
    }
}

fn list(files: &[&String]) -> String {
    files.iter().map(|file| file.as_str()).collect::<Vec<_>>().join(", ")
}

/// Number of a part and of all parts, and what stands before, of `NAME-00001-of-00003.gguf`.
fn part(file: &str) -> Option<(u32, u32, &str)> {
    let stem = file.strip_suffix(".gguf")?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| if s.len() == 5 { s.parse().ok() } else { None };
    Some((digits(number)?, digits(total)?, name))
}

/// All parts of a split file, or the file itself.
fn parts(file: &str, files: &[String]) -> Result<Vec<String>, Failure> {
    let Some((_, total, name)) = part(file) else { return Ok(vec![file.to_owned()]) };
    let all: Vec<_> = (1..=total).map(|i| format!("{name}-{i:05}-of-{total:05}.gguf")).collect();
    match all.iter().find(|part| !files.contains(part)) {
        Some(missing) => Err(format!("the repository lacks {missing}").into()),
        None => Ok(all),
    }
}

/// Whether a file's name says that it has this quantisation: as a whole word, upper or lower case.
fn has_quant(file: &str, quant: &str) -> bool {
    let (file, quant) = (file.to_ascii_lowercase(), quant.to_ascii_lowercase());
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    file.match_indices(&quant).any(|(at, _)| {
        !is_word(file[..at].chars().next_back()) && !is_word(file[at + quant.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(repo: &str, revision: &str, wanted: Option<&str>) -> HubName {
        HubName { repo: repo.into(), revision: revision.into(), wanted: wanted.map(Into::into) }
    }

    #[test]
    fn names() {
        let parse = |text| HubName::parse(text).unwrap();
        assert_eq!(parse("models/a.gguf"), None);
        assert_eq!(parse("hf:a/b"), Some(name("a/b", "main", None)));
        assert_eq!(parse("hf:a/b-1.0@v2:Q4_0"), Some(name("a/b-1.0", "v2", Some("Q4_0"))));
        assert_eq!(parse("hf:a/b:x/y.gguf"), Some(name("a/b", "main", Some("x/y.gguf"))));
        for bad in
            ["hf:", "hf:a", "hf:a/b/c", "hf:a/../b", "hf:a/b:", "hf:a/b:../x.gguf", "hf:a/b@:x", "hf:../b"]
        {
            assert!(HubName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn choices() {
        let files: Vec<String> = [
            "README.md",
            "g-Q4_K_M.gguf",
            "g-Q4_K_S.gguf",
            "g-UD-Q8_0.gguf",
            "mmproj-F16.gguf",
            "BF16/g-BF16-00001-of-00002.gguf",
            "BF16/g-BF16-00002-of-00002.gguf",
        ]
        .map(Into::into)
        .to_vec();
        let choose = |wanted| choose(&files, wanted).map_err(|e| e.to_string());
        assert_eq!(choose(None).unwrap(), ["g-Q4_K_M.gguf"]);
        assert_eq!(choose(Some("q4_k_s")).unwrap(), ["g-Q4_K_S.gguf"]);
        assert_eq!(choose(Some("Q8_0")).unwrap(), ["g-UD-Q8_0.gguf"]);
        assert_eq!(choose(Some("bf16")).unwrap(), &files[5..]);
        assert_eq!(choose(Some("g-ud-q8_0.gguf")).unwrap(), ["g-UD-Q8_0.gguf"]);
        assert!(choose(Some("Q4_K")).unwrap_err().contains("g-Q4_K_M.gguf"));
        assert!(choose(Some("F16")).is_err());
        assert!(super::choose(&files[..1], None).unwrap_err().to_string().contains("no GGUF"));
        let two: Vec<String> = ["x-Q4_0.gguf", "y-Q4_0.gguf"].map(Into::into).to_vec();
        assert!(super::choose(&two, Some("Q4_0")).unwrap_err().to_string().contains("say which"));
        assert!(super::choose(&files[5..6], None).unwrap_err().to_string().contains("lacks"));
    }
}
