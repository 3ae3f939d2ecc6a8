//! Lines that begin with a slash.

use crate::Thinking;
use crate::conversation::Conversation;
use gemma4_examples::Failure;
use std::path::PathBuf;

const HELP: &str = "\
/reset             forget the conversation; the system prompt stays
/system [TEXT]     show or set the system prompt, and begin anew
/undo              take back the last question and its answer
/retry             answer the last question again
/save FILE         write the conversation to a file, and the model's memory beside it
/load FILE         go on with a saved conversation
/thinking [off|dim|hidden]
                   whether the model thinks first, and whether you see it
/drafter on|off    whether the drafter is used (--drafter); the text is the same
/stats             what the last answer cost
/quit              end; so does Ctrl-D

Ctrl-C stops an answer. A line that ends with \\ goes on in the next.";

/// A command with its argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Help,
    Reset,
    System(Option<String>),
    Undo,
    Retry,
    Save(PathBuf),
    Load(PathBuf),
    Thinking(Option<Thinking>),
    Drafter(bool),
    Stats,
    Quit,
}

impl Command {
    /// Reads a command; `None` if the line is a message, and a line for the user if it is no good command.
    pub fn parse(line: &str) -> Option<Result<Command, String>> {
        let rest = line.strip_prefix('/')?;
        let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let argument = argument.trim();
        let file = || match argument {
            "" => Err(format!("/{name} needs the name of a file")),
            file => Ok(PathBuf::from(file)),
        };
        Some(match name {
            "help" | "?" => Ok(Command::Help),
            "reset" => Ok(Command::Reset),
            "system" => Ok(Command::System((!argument.is_empty()).then(|| argument.to_owned()))),
            "undo" => Ok(Command::Undo),
            "retry" => Ok(Command::Retry),
            "save" => file().map(Command::Save),
            "load" => file().map(Command::Load),
            "thinking" => match argument {
                "" => Ok(Command::Thinking(None)),
                "off" => Ok(Command::Thinking(Some(Thinking::Off))),
                "dim" | "on" => Ok(Command::Thinking(Some(Thinking::Dim))),
                "hidden" => Ok(Command::Thinking(Some(Thinking::Hidden))),
                other => Err(format!("/thinking {other}: say off, dim or hidden")),
            },
            "drafter" => match argument {
                "on" => Ok(Command::Drafter(true)),
                "off" => Ok(Command::Drafter(false)),
                other => Err(format!("/drafter {other}: say on or off")),
            },
            "stats" => Ok(Command::Stats),
            "quit" | "exit" => Ok(Command::Quit),
            other => Err(format!("no command /{other}; /help lists them")),
        })
    }
}

/// Does what a command says. `Quit` is the caller's.
pub fn run(command: Command, conversation: &mut Conversation) -> Result<(), Failure> {
    match command {
        Command::Help => println!("{HELP}"),
        Command::Reset => {
            conversation.reset();
            println!("(forgotten)");
        }
        Command::System(None) => println!("{}", conversation.system().unwrap_or("(no system prompt)")),
        Command::System(Some(text)) => {
            conversation.reset();
            conversation.set_system(Some(text));
            println!("(the conversation begins anew)");
        }
        Command::Undo => match conversation.undo() {
            Some(question) => println!("(taken back: {question})"),
            None => println!("(there is nothing to take back)"),
        },
        Command::Retry => match conversation.undo() {
            Some(question) => conversation.say(&question)?,
            None => println!("(there is nothing to answer)"),
        },
        Command::Save(path) => {
            let memory = conversation.save(&path)?;
            println!("(saved in {} and {})", path.display(), memory.display());
        }
        Command::Load(path) => {
            let n = conversation.load(&path)?;
            println!("({n} messages)");
        }
        Command::Thinking(None) => println!("say off, dim or hidden"),
        Command::Thinking(Some(thinking)) => conversation.set_thinking(thinking),
        Command::Drafter(on) => {
            if !conversation.set_drafting(on) {
                println!("(there is no drafter; start with --drafter)");
            }
        }
        Command::Stats => println!("{}", conversation.stats()),
        Command::Quit => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        assert_eq!(Command::parse("hello /quit"), None);
        assert_eq!(Command::parse("/quit"), Some(Ok(Command::Quit)));
        assert_eq!(Command::parse("/save  a b "), Some(Ok(Command::Save("a b".into()))));
        assert_eq!(Command::parse("/system"), Some(Ok(Command::System(None))));
        assert!(Command::parse("/save").is_some_and(|c| c.is_err()));
        assert!(Command::parse("/nonsense").is_some_and(|c| c.is_err()));
    }
}
