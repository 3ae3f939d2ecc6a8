//! Continues a text: the prompt comes from the command line, a file or stdin, the answer streams to stdout.

use clap::Parser;
use gemma4::{EncodeOptions, GenerateOptions, SamplingOptions, Session, StopReason};
use gemma4_examples::{DrafterArgs, Failure, ModelArgs, SamplingArgs, progress_bar, run_main};
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the tiny model continues when nothing else is given.
const DEFAULT_PROMPT: &str = "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n";

#[derive(Parser)]
#[command(about = "Continues a text with a Gemma 4 model")]
struct Cli {
    /// Text to continue [default: stdin if it is not a terminal, else a line of code]
    prompt: Option<String>,
    /// Read the text from a file
    #[arg(short, long, conflicts_with = "prompt")]
    file: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    drafter: DrafterArgs,
    /// Most tokens to generate
    #[arg(short = 'n', long, default_value_t = 200)]
    max_tokens: usize,
    /// Capacity in tokens, prompt and answer together [default: as much as needed]
    #[arg(short = 'c', long)]
    n_ctx: Option<u32>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// End at this text; may be given several times
    #[arg(long)]
    stop: Vec<String>,
    /// Read control tokens such as <|turn> in the prompt as tokens and not as text
    #[arg(long)]
    special: bool,
    /// Do not repeat the prompt before the answer
    #[arg(long)]
    no_echo: bool,
}

impl Cli {
    fn prompt(&self) -> std::io::Result<String> {
        if let Some(prompt) = &self.prompt {
            return Ok(prompt.clone());
        }
        if let Some(file) = &self.file {
            return std::fs::read_to_string(file);
        }
        let mut text = String::new();
        if !std::io::stdin().is_terminal() {
            std::io::stdin().read_to_string(&mut text)?;
        }
        Ok(if text.is_empty() { DEFAULT_PROMPT.into() } else { text })
    }

    fn options(&self) -> GenerateOptions {
        let sampling = self.sampling.over(SamplingOptions::default().temperature(0.0));
        let options = GenerateOptions::default()
            .sampling(sampling)
            .max_tokens(self.max_tokens)
            .speculation(self.drafter.draft_max);
        self.stop.iter().fold(options, GenerateOptions::stop)
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let prompt = cli.prompt().map_err(|e| format!("cannot read the prompt: {e}"))?;
    let model = cli.model.load()?;
    let encode = EncodeOptions::TEXT.parse_special(cli.special);
    let tokens = model.tokenizer().encode(&prompt, encode)?;
    let n_ctx = cli.n_ctx.unwrap_or((tokens.len() + cli.max_tokens + 1) as u32);
    let options = cli.drafter.attach(&model, cli.model.session(n_ctx))?;
    let mut session = Session::new(&model, &options)?;

    let bar = progress_bar("reading the prompt", "{pos}/{len} tokens");
    bar.set_length(tokens.len() as u64);
    let mut generation =
        session.generate_with(&tokens, &cli.options(), |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let mut out = std::io::stdout().lock();
    // A closed pipe is the reader's way to say that it has enough.
    let mut open = cli.no_echo || write!(out, "{prompt}").and_then(|()| out.flush()).is_ok();
    for piece in &mut generation {
        open = open && write!(out, "{}", piece?.text).and_then(|()| out.flush()).is_ok();
        if !open {
            break;
        }
    }
    let _ = writeln!(out);
    let reason = match generation.stop_reason() {
        Some(StopReason::EndToken(_)) => "the model ended the text".to_owned(),
        Some(StopReason::StopString(text)) => format!("stop string {text:?}"),
        Some(StopReason::MaxTokens) => format!("{} tokens were generated (-n)", cli.max_tokens),
        Some(StopReason::ContextFull) => "the context is full (-c)".to_owned(),
        other => format!("{other:?}"),
    };
    eprintln!("\nended because {reason}\n{}", generation.stats());
    Ok(())
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || run(&Cli::parse()))
}
