//! Two conversations on one model, streamed side by side in a tokio program.
//!
//! The library computes on the calling thread. So each session lives on a blocking thread and sends its text
//! through a channel; dropping the receiver stops the computation.

use clap::Parser;
use gemma4::chat::{ChatOptions, Message};
use gemma4::{CancelHandle, GenerateOptions, Model, SamplingOptions, Session, SessionOptions};
use gemma4_examples::{Failure, ModelArgs, SamplingArgs, run_main};
use std::process::ExitCode;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

#[derive(Parser)]
#[command(about = "Runs two conversations at the same time in an async program")]
struct Cli {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// What the first conversation asks
    #[arg(default_value = "Define the word house.")]
    first: String,
    /// What the second conversation asks
    #[arg(default_value = "Define the word river.")]
    second: String,
    /// Most tokens of each answer
    #[arg(short = 'n', long, default_value_t = 48)]
    max_tokens: usize,
}

/// A conversation: messages in order, and the session that remembers them.
struct Conversation {
    session: Session,
    messages: Vec<Message>,
}

/// An answer on its way.
struct Answer {
    text: mpsc::Receiver<String>,
    cancel: CancelHandle,
    /// Gives the conversation back, with the answer in it.
    done: JoinHandle<gemma4::Result<Conversation>>,
}

impl Conversation {
    fn new(model: &Model, options: &SessionOptions) -> gemma4::Result<Conversation> {
        Ok(Conversation { session: Session::new(model, options)?, messages: Vec::new() })
    }

    /// Asks, and returns at once. Must be called within tokio.
    fn ask(mut self, question: &str, options: GenerateOptions) -> Answer {
        self.messages.push(Message::user(question));
        // A slow reader slows the computation down.
        let (sender, text) = mpsc::channel(16);
        let cancel = self.session.cancel_handle();
        let done = tokio::task::spawn_blocking(move || {
            let prompt = self.session.model().encode_chat(&self.messages, &ChatOptions::default())?;
            let kept = self.session.reuse_prefix(&prompt);
            let mut answer = String::new();
            for piece in self.session.generate(&prompt[kept..], &options)? {
                let piece = piece?;
                answer += &piece.text;
                if sender.blocking_send(piece.text).is_err() {
                    break; // nobody reads any more
                }
            }
            self.messages.push(Message::assistant(answer));
            Ok(self)
        });
        Answer { text, cancel, done }
    }
}

/// Prints both answers as they come, each word with the number of its conversation.
async fn show(mut answers: [Answer; 2]) -> Result<[Conversation; 2], Failure> {
    let (mut open, mut last) = ([true; 2], None);
    while open.contains(&true) {
        let [first, second] = &mut answers;
        let (i, piece) = tokio::select! {
            piece = first.text.recv(), if open[0] => (0, piece),
            piece = second.text.recv(), if open[1] => (1, piece),
            _ = tokio::signal::ctrl_c() => {
                answers.iter().for_each(|answer| answer.cancel.cancel());
                println!("\n(stopped)");
                break;
            }
        };
        match piece {
            None => open[i] = false,
            Some(text) if last == Some(i) => print!("{text}"),
            Some(text) => print!("\n[{}] {text}", i + 1),
        }
        last = Some(i);
    }
    println!();
    let [first, second] = answers;
    drop((first.text, second.text));
    Ok([first.done.await??, second.done.await??])
}

async fn converse(cli: Cli) -> Result<(), Failure> {
    let model = tokio::task::block_in_place(|| cli.model.load())?;
    let sampling = cli.sampling.over(SamplingOptions::default());
    let options = GenerateOptions::default().sampling(sampling).max_tokens(cli.max_tokens);
    let new = || Conversation::new(&model, &cli.model.session(2048));
    let mut conversations = [new()?, new()?];
    for questions in [[&*cli.first, &*cli.second], ["And another one?"; 2]] {
        let [first, second] = conversations;
        let answers = [first.ask(questions[0], options.clone()), second.ask(questions[1], options.clone())];
        conversations = show(answers).await?;
    }
    for (i, conversation) in conversations.iter().enumerate() {
        println!(
            "conversation {}: {} messages, {} tokens remembered",
            i + 1,
            conversation.messages.len(),
            conversation.session.len()
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(converse(Cli::parse()))
    })
}
