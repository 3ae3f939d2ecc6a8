//! Options of drafters.

use crate::{Failure, hub};
use clap::Args;
use gemma4::{Drafter, Model, NgramOptions, SessionOptions, Speculation};

/// Which drafter, and how much it drafts.
#[derive(Args, Clone, Debug, Default)]
pub struct DrafterArgs {
    /// Drafter that speeds decoding up without changing the text: a GGUF file, a folder of safetensors,
    /// `hf:OWNER/REPO[:FILE]`, or "ngram" for look-up in the text itself
    #[arg(long, value_name = "PATH|hf:...|ngram")]
    pub drafter: Option<String>,
    /// Tokens drafted at once: a number, "auto" for as many as pay, "off" for none
    #[arg(long, value_name = "N|auto|off", default_value = "auto", value_parser = draft_max)]
    pub draft_max: Speculation,
}

fn draft_max(text: &str) -> Result<Speculation, String> {
    match text {
        "auto" => Ok(Speculation::Auto),
        "off" => Ok(Speculation::Off),
        n => n.parse().map(Speculation::Fixed).map_err(|_| "a number, \"auto\" or \"off\"".into()),
    }
}

impl DrafterArgs {
    /// Loads the drafter, if one was asked for.
    pub fn load(&self, model: &Model) -> Result<Option<Drafter>, Failure> {
        self.drafter.as_deref().map(|name| named(name, model)).transpose()
    }

    /// Adds the drafter to the options of a session.
    pub fn attach(&self, model: &Model, options: SessionOptions) -> Result<SessionOptions, Failure> {
        let most = match self.draft_max {
            Speculation::Fixed(n) => Some(n),
            _ => None,
        };
        Ok(options.drafter(self.load(model)?).max_draft(most))
    }
}

/// The drafter of a name: `ngram`, or a path.
pub fn named(name: &str, model: &Model) -> Result<Drafter, Failure> {
    match name {
        "ngram" => Ok(Drafter::ngram(&NgramOptions::default())?),
        path => Ok(Drafter::load(hub::resolve(path)?, model)?),
    }
}
