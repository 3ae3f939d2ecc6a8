//! The turns of a conversation, and the session that remembers them.

use crate::Thinking;
use gemma4::chat::{AnswerParser, AnswerPart, ChatOptions, Message, ParsedAnswer, Role};
use gemma4::{
    CancelHandle, GenerateOptions, GenerationStats, MemoryPlan, Model, SamplingOptions, Session,
    SessionOptions, Snapshot, Speculation, StopReason, WhenFull,
};
use gemma4_examples::{Failure, progress_bar};
use serde::{Deserialize, Serialize};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// What Ctrl-C does depends on whether an answer is running.
#[derive(Default)]
struct Interrupt {
    answering: AtomicBool,
    handle: Mutex<Option<CancelHandle>>,
}

/// A conversation as it is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    messages: Vec<Message>,
}

/// Messages, and the session that has read them.
pub struct Conversation {
    model: Model,
    session: Session,
    plan: MemoryPlan,
    messages: Vec<Message>,
    options: ChatOptions,
    sampling: SamplingOptions,
    max_tokens: Option<usize>,
    thinking: Thinking,
    has_drafter: bool,
    /// How much the drafter drafts, and whether it does.
    speculation: Speculation,
    drafting: bool,
    interrupt: Arc<Interrupt>,
    /// Where the last answer began, if the session cannot go back there by itself.
    before_answer: Option<Snapshot>,
    last: Option<(GenerationStats, usize)>,
}

impl Conversation {
    /// An empty conversation.
    pub fn new(
        model: &Model,
        options: &SessionOptions,
        sampling: SamplingOptions,
    ) -> Result<Conversation, Failure> {
        Ok(Conversation {
            model: model.clone(),
            session: Session::new(model, options)?,
            plan: Session::plan(model, options)?,
            messages: Vec::new(),
            options: ChatOptions::default(),
            sampling,
            max_tokens: None,
            thinking: Thinking::Off,
            has_drafter: false,
            speculation: Speculation::Auto,
            drafting: true,
            interrupt: Arc::default(),
            before_answer: None,
            last: None,
        })
    }

    /// One line about the model.
    pub fn about(&self) -> String {
        let name = self.model.path().file_name().unwrap_or_default().to_string_lossy();
        format!("{name} on {}, {} tokens of context", self.plan.device, self.session.n_ctx())
    }

    /// Has Ctrl-C stop the running answer, and end the program when there is none.
    pub fn stop_on_interrupt(&self) -> Result<(), Failure> {
        let lock = self.interrupt.handle.lock();
        *lock.unwrap_or_else(PoisonError::into_inner) = Some(self.session.cancel_handle());
        let interrupt = Arc::clone(&self.interrupt);
        ctrlc::set_handler(move || {
            let handle = interrupt.handle.lock().unwrap_or_else(PoisonError::into_inner);
            match &*handle {
                Some(handle) if interrupt.answering.load(Ordering::Relaxed) => handle.cancel(),
                _ => std::process::exit(130),
            }
        })?;
        Ok(())
    }

    /// Sets the most tokens of an answer.
    pub fn set_max_tokens(&mut self, n: Option<usize>) {
        self.max_tokens = n;
    }

    /// Tells whether the session has a drafter, and how much it drafts.
    pub fn set_drafter(&mut self, present: bool, speculation: Speculation) {
        self.has_drafter = present;
        self.speculation = speculation;
    }

    /// Turns the drafter on or off. False if there is none.
    pub fn set_drafting(&mut self, on: bool) -> bool {
        self.drafting = on;
        self.has_drafter
    }

    /// Sets whether the model thinks, and what is seen of it.
    pub fn set_thinking(&mut self, thinking: Thinking) {
        self.thinking = thinking;
        self.options.thinking = thinking != Thinking::Off;
    }

    /// Sets or removes the system prompt.
    pub fn set_system(&mut self, text: Option<String>) {
        self.messages.retain(|message| message.role != Role::System);
        if let Some(text) = text {
            self.messages.insert(0, Message::system(text));
        }
    }

    /// The system prompt.
    pub fn system(&self) -> Option<&str> {
        self.messages.iter().find(|m| m.role == Role::System).map(|m| m.content.as_str())
    }

    /// Forgets all turns but the system prompt.
    pub fn reset(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
        self.before_answer = None;
        self.last = None;
    }

    /// Takes back the last question and its answer. Returns the question.
    pub fn undo(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|message| message.role == Role::User)?;
        let question = self.messages.drain(at..).next()?;
        Some(question.content)
    }

    /// What the last answer cost, and the session as a whole.
    pub fn stats(&self) -> String {
        let used = format!("context: {} of {} tokens used", self.session.len(), self.session.n_ctx());
        let last = match &self.last {
            Some((stats, kept)) => format!("{stats}\nprompt tokens remembered from before: {kept}\n"),
            None => "no answer yet\n".to_owned(),
        };
        format!("{last}{used}\n{}", self.plan)
    }

    /// Writes the conversation to `path`, and what the session remembers beside it.
    pub fn save(&self, path: &Path) -> Result<PathBuf, Failure> {
        let saved = Saved { messages: self.messages.clone() };
        std::fs::write(path, serde_json::to_string_pretty(&saved)?)?;
        let memory = memory_path(path);
        self.session.snapshot()?.save(&memory)?;
        Ok(memory)
    }

    /// Reads a conversation. Without its memory, or with that of another model, it is read again when needed.
    pub fn load(&mut self, path: &Path) -> Result<usize, Failure> {
        let saved: Saved = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        self.messages = saved.messages;
        self.before_answer = None;
        self.last = None;
        match Snapshot::load(memory_path(path)).and_then(|snapshot| self.session.restore(&snapshot)) {
            Ok(()) => {}
            Err(e) => println!("(the model reads it again with the next message: {e})"),
        }
        Ok(self.messages.len())
    }

    /// Answers a message, and prints the answer while it comes.
    pub fn say(&mut self, text: &str) -> Result<(), Failure> {
        self.messages.push(Message::user(text));
        self.interrupt.answering.store(true, Ordering::Relaxed);
        let answered = self.answer();
        self.interrupt.answering.store(false, Ordering::Relaxed);
        // Ctrl-C may have come after the last token.
        self.session.cancel_handle().reset();
        match answered {
            Ok(answer) => self.messages.push(answer.into_message()),
            Err(e) => {
                self.messages.pop();
                return Err(e);
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<ParsedAnswer, Failure> {
        let prompt = self.fitting_prompt()?;
        let kept = self.adopt(&prompt);
        let started = Instant::now();
        let bar = progress_bar("reading", "{pos}/{len} tokens");
        bar.set_length((prompt.len() - kept) as u64);
        let read = self.session.prefill_with(&prompt[kept..], |done| bar.set_position(done as u64));
        bar.finish_and_clear();
        read?;
        let is_past_window = prompt.len() > self.model.hparams().window as usize;
        // The thoughts will not be part of the next prompt, so the session must come back here.
        self.before_answer =
            if is_past_window && self.options.thinking { Some(self.session.snapshot()?) } else { None };
        let options = GenerateOptions::default()
            .sampling(self.sampling.clone())
            .max_tokens(self.max_tokens)
            .when_full(WhenFull::Stop)
            .speculation(if self.drafting { self.speculation } else { Speculation::Off });
        let mut generation = self.session.generate(&[], &options)?;
        let prompt_time = started.elapsed();
        let mut parser = AnswerParser::new();
        let mut answer = ParsedAnswer::default();
        let mut printer = Printer::new(self.thinking);
        for piece in &mut generation {
            let events = parser.push(&piece?.text);
            events.iter().for_each(|event| printer.print(event));
            answer.extend(events);
        }
        let rest = parser.finish();
        rest.iter().for_each(|event| printer.print(event));
        answer.extend(rest);
        printer.end(generation.stop_reason());
        // The prompt was read before the generation, which therefore does not count it.
        let mut stats = generation.stats();
        (stats.prompt_tokens, stats.prompt_time) = (prompt.len() - kept, prompt_time);
        stats.time_to_first_token = stats.time_to_first_token.map(|time| time + prompt_time);
        self.last = Some((stats, kept));
        Ok(answer)
    }

    /// The prompt of all messages; the oldest turns go if it does not leave room for an answer.
    fn fitting_prompt(&mut self) -> Result<Vec<u32>, Failure> {
        loop {
            let prompt = self.model.encode_chat(&self.messages, &self.options)?;
            let room = self.session.n_ctx() as usize;
            if prompt.len() + room / 8 < room {
                return Ok(prompt);
            }
            let first = self.messages.iter().position(|message| message.role == Role::User);
            let second = first.and_then(|first| {
                self.messages[first + 1..].iter().position(|m| m.role == Role::User).map(|i| first + 1 + i)
            });
            let (Some(first), Some(second)) = (first, second) else {
                return Err(format!(
                    "the message has {} tokens; {room} is all there is (--n-ctx)",
                    prompt.len()
                )
                .into());
            };
            self.messages.drain(first..second);
            println!("(the context is full: the oldest turn is forgotten)");
        }
    }

    /// Has the session hold the beginning of the prompt as far as it can. Returns how many tokens.
    fn adopt(&mut self, prompt: &[u32]) -> usize {
        let kept = self.session.reuse_prefix(prompt);
        let Some(snapshot) = self.before_answer.take() else { return kept.min(prompt.len() - 1) };
        if prompt.starts_with(snapshot.tokens()) && snapshot.tokens().len() > kept {
            let _ = self.session.restore(&snapshot); // if not, the session is empty and reads all
            return self.session.reuse_prefix(prompt);
        }
        kept
    }
}

fn memory_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".memory");
    name.into()
}

/// Prints the parts of an answer.
struct Printer {
    thinking: Thinking,
    styled: bool,
    in_thought: bool,
    begun: bool,
}

impl Printer {
    fn new(thinking: Thinking) -> Printer {
        Printer { thinking, styled: std::io::stdout().is_terminal(), in_thought: false, begun: false }
    }

    fn print(&mut self, event: &AnswerPart) {
        let mut out = std::io::stdout().lock();
        // A closed terminal ends the program by its signal; nothing is to be done about it here.
        let _ = match event {
            AnswerPart::Reasoning(_) if self.thinking == Thinking::Hidden && self.in_thought => Ok(()),
            AnswerPart::Reasoning(_) if self.thinking == Thinking::Hidden => {
                self.in_thought = true;
                write!(out, "(thinking) ")
            }
            AnswerPart::Reasoning(text) => {
                let dim = if self.styled && !self.in_thought { DIM } else { "" };
                self.in_thought = true;
                write!(out, "{dim}{text}")
            }
            AnswerPart::Content(text) => {
                let plain = if self.styled && self.in_thought { PLAIN } else { "" };
                let gap = if self.in_thought && !self.begun { "\n\n" } else { "" };
                (self.in_thought, self.begun) = (false, true);
                write!(out, "{plain}{gap}{text}")
            }
            AnswerPart::ToolCall(call) => write!(out, "[calls {}({})]", call.name, call.arguments),
        };
        let _ = out.flush();
    }

    fn end(&self, reason: Option<&StopReason>) {
        let plain = if self.styled && self.in_thought { PLAIN } else { "" };
        let why = match reason {
            Some(StopReason::Cancelled) => " (stopped)",
            Some(StopReason::MaxTokens) => " (cut off by --max-tokens)",
            Some(StopReason::ContextFull) => " (the context is full)",
            _ => "",
        };
        println!("{plain}{why}");
    }
}
