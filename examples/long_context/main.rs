//! A long document and a question about it. Says what memory that takes before it takes it.

use clap::Parser;
use gemma4::chat::{AnswerParser, AnswerPart, ChatOptions, Message};
use gemma4::{GenerateOptions, Model, PrefillOptions, SamplingOptions, Session, SparsePrefill};
use gemma4_examples::{DrafterArgs, Failure, ModelArgs, SamplingArgs, progress_bar, run_main};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// A document that comes with the repository.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/val-prose.txt");
/// Of which this much is read: the tiny model has learned contexts of 4096 tokens.
const DEFAULT_BYTES: usize = 8000;

#[derive(Parser)]
#[command(about = "Summarises a long document")]
struct Cli {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    drafter: DrafterArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// The document; - for stdin [default: the beginning of a text of the repository]
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// What to do with it
    #[arg(default_value = "Summarise this document.")]
    question: String,
    /// Most tokens of the answer
    #[arg(short = 'n', long, default_value_t = 256)]
    max_tokens: usize,
    /// Capacity in tokens [default: what document and answer need]
    #[arg(short = 'c', long)]
    n_ctx: Option<u32>,
    /// Read only the parts of the document that may matter, which is faster and approximate (docs/prefill.md): from
    /// this share of the best score on
    #[arg(long, value_name = "ALPHA", num_args = 0..=1, require_equals = true, default_missing_value = "0.12")]
    sparse: Option<f32>,
    /// Only tell what memory it takes
    #[arg(long)]
    plan: bool,
}

impl Cli {
    fn document(&self) -> Result<String, Failure> {
        match &self.file {
            Some(path) if path.as_os_str() == "-" => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                Ok(text)
            }
            Some(path) => {
                Ok(std::fs::read_to_string(path)
                    .map_err(|e| format!("cannot read {}: {e}", path.display()))?)
            }
            None => {
                let text = std::fs::read_to_string(DOCUMENT)?;
                let end = (0..=DEFAULT_BYTES.min(text.len())).rev().find(|&i| text.is_char_boundary(i));
                Ok(text[..end.unwrap_or(0)].to_owned())
            }
        }
    }

    fn prompt(&self, model: &Model) -> Result<Vec<u32>, Failure> {
        let text = format!("{}\n\n{}", self.document()?, self.question);
        Ok(model.encode_chat(&[Message::user(text)], &ChatOptions::default())?)
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let model = cli.model.load()?;
    let prompt = cli.prompt(&model)?;
    let needed = (prompt.len() + cli.max_tokens + 1) as u32;
    let sparse = cli.sparse.map(|alpha| SparsePrefill::default().alpha(alpha));
    let options = cli.model.session(cli.n_ctx.unwrap_or(needed));
    let options = options.prefill(PrefillOptions::default().sparse(sparse));
    let options = cli.drafter.attach(&model, options)?;
    println!("document and question: {} tokens; answer: up to {}", prompt.len(), cli.max_tokens);
    println!("{}", Session::plan(&model, &options)?);
    let trained = model.hparams().n_ctx_train;
    if options.n_ctx > trained {
        println!("note: the model was trained for {trained} tokens; beyond them its answers get worse\n");
    }
    if cli.plan {
        return Ok(());
    }
    let mut session = Session::new(&model, &options)?;
    let bar = progress_bar("reading", "{pos}/{len} tokens, {per_sec}, {eta} left");
    bar.set_length(prompt.len() as u64);
    let sampling = cli.sampling.over(SamplingOptions::default());
    let how = GenerateOptions::default()
        .sampling(sampling)
        .max_tokens(cli.max_tokens)
        .speculation(cli.drafter.draft_max);
    let mut generation = session.generate_with(&prompt, &how, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let mut parser = AnswerParser::new();
    let mut out = std::io::stdout().lock();
    for piece in &mut generation {
        for event in parser.push(&piece?.text) {
            if let AnswerPart::Content(text) = event {
                write!(out, "{text}")?;
                out.flush()?;
            }
        }
    }
    for event in parser.finish() {
        if let AnswerPart::Content(text) = event {
            write!(out, "{text}")?;
        }
    }
    writeln!(out, "\n\n{}", generation.stats())?;
    Ok(())
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || run(&Cli::parse()))
}
