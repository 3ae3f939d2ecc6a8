//! A conversation in the terminal.

mod commands;
mod conversation;

use clap::{Parser, ValueEnum};
use commands::Command;
use conversation::Conversation;
use gemma4::SamplingOptions;
use gemma4_examples::{DrafterArgs, Failure, ModelArgs, SamplingArgs, run_main};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use std::path::PathBuf;
use std::process::ExitCode;

/// Lines of history that are kept.
const HISTORY: usize = 1000;

#[derive(Parser)]
#[command(about = "Talks with a Gemma 4 model")]
struct Cli {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    drafter: DrafterArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Capacity in tokens; the oldest turns are forgotten when it is full
    #[arg(short = 'c', long, default_value_t = 8192)]
    n_ctx: u32,
    /// Most tokens of an answer [default: no limit]
    #[arg(short = 'n', long)]
    max_tokens: Option<usize>,
    /// Instructions for the whole conversation
    #[arg(short, long)]
    system: Option<String>,
    /// Have the model think before it answers, and how that is shown
    #[arg(long, value_enum, default_value_t = Thinking::Off)]
    thinking: Thinking,
    /// Where the lines you write are kept [default: .gemma4_history in the home folder]
    #[arg(long)]
    history: Option<PathBuf>,
    /// Do not keep the lines you write
    #[arg(long, conflicts_with = "history")]
    no_history: bool,
}

/// Whether the model thinks, and what is seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Thinking {
    /// The model answers at once.
    Off,
    /// Thoughts are shown dimmed.
    Dim,
    /// Thoughts are not shown.
    Hidden,
}

impl Cli {
    fn history(&self) -> Option<PathBuf> {
        if self.no_history {
            return None;
        }
        self.history.clone().or_else(|| Some(std::env::home_dir()?.join(".gemma4_history")))
    }
}

/// Reads a message: a line, and those after it as long as each ends with a backslash.
fn read_message(editor: &mut DefaultEditor) -> Result<String, ReadlineError> {
    let mut message = editor.readline("> ")?;
    while message.ends_with('\\') {
        message.pop();
        message.push('\n');
        message += &editor.readline("| ")?;
    }
    Ok(message)
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let model = cli.model.load()?;
    let sampling = cli.sampling.over(SamplingOptions::default());
    let options = cli.drafter.attach(&model, cli.model.session(cli.n_ctx))?;
    let mut conversation = Conversation::new(&model, &options, sampling)?;
    conversation.set_drafter(cli.drafter.drafter.is_some(), cli.drafter.draft_max);
    conversation.set_max_tokens(cli.max_tokens);
    conversation.set_thinking(cli.thinking);
    conversation.set_system(cli.system.clone());
    conversation.stop_on_interrupt()?;
    println!("{}; /help lists the commands", conversation.about());

    let config = Config::builder().max_history_size(HISTORY)?.auto_add_history(true).build();
    let mut editor = DefaultEditor::with_config(config)?;
    let history = cli.history();
    if let Some(path) = &history {
        let _ = editor.load_history(path); // there is none the first time
    }
    loop {
        match read_message(&mut editor) {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => match Command::parse(&line) {
                Some(Ok(Command::Quit)) => break,
                Some(Ok(command)) => report(commands::run(command, &mut conversation)),
                Some(Err(why)) => println!("{why}"),
                None => report(conversation.say(&line)),
            },
            // The line is thrown away, as in a shell.
            Err(ReadlineError::Interrupted) => println!("(Ctrl-D or /quit ends the program)"),
            Err(ReadlineError::Eof) => break,
            Err(e) => return Err(e.into()),
        }
    }
    if let Some(path) = &history
        && let Err(e) = editor.save_history(path)
    {
        eprintln!("chat: cannot keep the history in {}: {e}", path.display());
    }
    Ok(())
}

fn report(result: Result<(), Failure>) {
    if let Err(e) = result {
        println!("error: {e}");
    }
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || run(&Cli::parse()))
}
