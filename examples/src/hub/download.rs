//! Files from the hub, through the crate `hf-hub`.

use super::{HubName, choose};
use crate::{Failure, progress_bar};
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use indicatif::ProgressBar;
use std::path::PathBuf;

/// How often a broken download is taken up again.
const RETRIES: usize = 5;

/// Where files come from and where they are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    cache: Cache,
    endpoint: Option<String>,
    token: Option<String>,
    offline: bool,
}

impl Hub {
    /// As Hugging Face's own tools are set up.
    pub fn from_env() -> Hub {
        let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = var("HF_HUB_CACHE").map_or_else(Cache::from_env, |dir| Cache::new(dir.into()));
        let offline =
            var("HF_HUB_OFFLINE").is_some_and(|v| !matches!(&*v.to_lowercase(), "0" | "false" | "no"));
        Hub { token: var("HF_TOKEN").or_else(|| cache.token()), endpoint: var("HF_ENDPOINT"), offline, cache }
    }

    /// A hub at another address, with a cache of its own.
    pub fn new(endpoint: impl Into<String>, cache: impl Into<PathBuf>) -> Hub {
        Hub { cache: Cache::new(cache.into()), endpoint: Some(endpoint.into()), token: None, offline: false }
    }

    /// Sets whether only files of the cache are used.
    #[must_use]
    pub fn offline(mut self, yes: bool) -> Hub {
        self.offline = yes;
        self
    }

    /// The local file of a model, which is downloaded if the cache does not have it; of a split model, the first.
    ///
    /// # Errors
    /// If the model is neither in the cache nor to be had.
    pub fn fetch(&self, name: &HubName) -> Result<PathBuf, Failure> {
        let repo = Repo::with_revision(name.repo.clone(), RepoType::Model, name.revision.clone());
        let cached = self.cache.repo(repo.clone());
        if let Some(path) = self.cached(&cached, name) {
            return Ok(path);
        }
        if self.offline {
            return Err(format!(
                "{} is not in {}, and HF_HUB_OFFLINE forbids to download it",
                describe(name),
                self.cache.path().display()
            )
            .into());
        }
        let api = self.api().map_err(|e| explain(&e, name))?.repo(repo);
        let info = api.info().map_err(|e| explain(&e, name))?;
        let files: Vec<_> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let files = choose(&files, name.wanted.as_deref()).map_err(|e| format!("{}: {e}", describe(name)))?;
        let mut first = None;
        for file in &files {
            let path = match cached.get(file) {
                Some(path) => path,
                None => download(&api, file).map_err(|e| explain(&e, name))?,
            };
            first.get_or_insert(path);
        }
        first.ok_or_else(|| format!("{} has no files", describe(name)).into())
    }

    /// What the cache has, if it has all parts of exactly one model that fits.
    fn cached(&self, cached: &CacheRepo, name: &HubName) -> Option<PathBuf> {
        // A file names the commit of a branch; a commit is its own name.
        let commit = std::fs::read_to_string(self.refs(name)).unwrap_or_else(|_| name.revision.clone());
        let folder = cached.pointer_path(commit.trim());
        let mut files = Vec::new();
        list(&folder, "", &mut files);
        // Without a wish the network is asked first: the cache may hold a part of the repository only.
        if name.wanted.is_none() && !self.offline && files.len() != 1 {
            return None;
        }
        let chosen = choose(&files, name.wanted.as_deref()).ok()?;
        Some(folder.join(chosen.first()?))
    }

    fn refs(&self, name: &HubName) -> PathBuf {
        let folder = Repo::new(name.repo.clone(), RepoType::Model).folder_name();
        self.cache.path().join(folder).join("refs").join(&name.revision)
    }

    fn api(&self) -> Result<Api, ApiError> {
        let builder = ApiBuilder::from_cache(self.cache.clone()).with_token(self.token.clone());
        // Its own retries lose the place in the file when nothing has come yet.
        let builder =
            builder.with_retries(0).with_progress(false).with_user_agent("gemma4", env!("CARGO_PKG_VERSION"));
        match &self.endpoint {
            Some(endpoint) => builder.with_endpoint(endpoint.trim_end_matches('/').to_owned()).build(),
            None => builder.build(),
        }
    }
}

/// Files below a folder, by their paths from there.
fn list(folder: &std::path::Path, before: &str, out: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{before}{}", entry.file_name().to_string_lossy());
        // Through links: a link whose target is gone is no file.
        if entry.path().is_dir() {
            list(&entry.path(), &format!("{name}/"), out);
        } else if entry.path().exists() {
            out.push(name);
        }
    }
}

/// Downloads a file. What a broken attempt has left is continued, now or in a later run.
fn download(api: &ApiRepo, file: &str) -> Result<PathBuf, ApiError> {
    let mut attempt = 0;
    loop {
        match api.download_with_progress(file, Bar::new(file)) {
            // An answer is an answer; a broken connection may do better.
            Err(ApiError::RequestError(e))
                if !matches!(*e, ureq::Error::StatusCode(_)) && attempt < RETRIES =>
            {
                attempt += 1;
                std::thread::sleep(std::time::Duration::from_millis(200 << attempt));
            }
            Err(ApiError::IoError(_)) if attempt < RETRIES => {
                attempt += 1;
                std::thread::sleep(std::time::Duration::from_millis(200 << attempt));
            }
            other => return other,
        }
    }
}

struct Bar(ProgressBar);

impl Bar {
    fn new(file: &str) -> Bar {
        let bar = progress_bar("", "{bytes}/{total_bytes} {bytes_per_sec} {eta}");
        bar.set_message(format!("downloading {file}"));
        Bar(bar)
    }
}

impl Progress for Bar {
    fn init(&mut self, size: usize, _: &str) {
        self.0.set_length(size as u64);
        self.0.set_position(0);
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}

fn describe(name: &HubName) -> String {
    let wanted = name.wanted.as_ref().map(|wanted| format!(":{wanted}")).unwrap_or_default();
    format!("hf:{}{wanted}", name.repo)
}

/// What a person can do about it.
fn explain(error: &ApiError, name: &HubName) -> String {
    let what = describe(name);
    let error = match error {
        ApiError::RequestError(error) => error,
        ApiError::LockAcquisition(path) => {
            return format!("{what}: another program is downloading it ({})", path.display());
        }
        ApiError::InvalidResume => {
            return format!(
                "{what}: what an earlier download left does not fit; remove its .part file in the cache"
            );
        }
        other => return format!("{what}: {other}"),
    };
    match &**error {
        ureq::Error::StatusCode(404) => format!("{what}: there is no such repository or file"),
        ureq::Error::StatusCode(401 | 403) => format!(
            "{what}: not allowed, or no such repository. If it asks for consent, give it on its page and log in \
             with Hugging Face's tools, or set HF_TOKEN"
        ),
        ureq::Error::StatusCode(status) => {
            format!("{what}: the server answered with status {status}; try again later")
        }
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Io(_)
        | ureq::Error::Timeout(_) => format!(
            "{what}: no network ({error}). A model that was downloaded before needs none; otherwise download the \
             file elsewhere and give its path with --model"
        ),
        other => format!("{what}: {other}"),
    }
}
