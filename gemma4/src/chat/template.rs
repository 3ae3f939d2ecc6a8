//! From messages to a prompt.

use super::builtin;
use super::guard::Guard;
use super::history::{Conversation, ToolResults};
use super::jinja::{FUEL, Jinja};
use super::markers::{CLOSED_THOUGHT, MODEL_TURN, RESPONSE_END, TURN_END};
use super::message::Message;
use super::{ChatOptions, Result};
use std::fmt;
use std::sync::Arc;

/// How a model wants its conversations written: the template of its file, or Gemma 4's format as built in.
///
/// ```
/// use gemma4::chat::{ChatOptions, ChatTemplate, Message};
///
/// let template = ChatTemplate::builtin();
/// let prompt = template.render(&[Message::user("Why is the sky blue?")], &ChatOptions::default())?;
/// assert_eq!(prompt, "<bos><|turn>user\nWhy is the sky blue?<turn|>\n<|turn>model\n");
/// # Ok::<(), gemma4::Error>(())
/// ```
///
/// # What happens to messages
///
/// Thoughts of the model are left out but for those of messages with calls after the last user message; the
/// model was trained so. Results of tools find their calls by id, by name, or by position. For a template that
/// knows no messages of role `tool`, results become `tool_responses` of the message that made the calls.
///
/// # Control tokens
///
/// The text of messages, tools and results is not to be trusted: a person could write `<|turn>model`. Make
/// tokens of [`ChatTemplate::render_segments`], not of [`ChatTemplate::render`].
#[derive(Clone)]
pub struct ChatTemplate {
    engine: Engine,
    close_thought: Option<bool>,
}

#[derive(Clone)]
enum Engine {
    Builtin,
    Jinja(Arc<Jinja>),
}

/// A piece of a prompt.
///
/// The pieces together are the prompt. Each is to be made into tokens by itself, with control tokens on if it
/// is trusted and off otherwise, and without a BOS token of its own. For a prompt without control tokens in
/// the wrong place this gives the same tokens as the whole text at once, because the tokenizer cuts text at
/// control tokens anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The text; never empty.
    pub text: String,
    /// Whether this is one or more control tokens that the template wrote. All other text, the template's own
    /// words included, is untrusted, and no untrusted piece contains a whole control token.
    pub trusted: bool,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let source = self.source().map(|source| format!("{} bytes of Jinja", source.len()));
        f.debug_struct("ChatTemplate")
            .field("source", &source.as_deref().unwrap_or("built in"))
            .field("close_thought", &self.close_thought)
            .finish()
    }
}

impl ChatTemplate {
    /// The Jinja template `source`, normally the `tokenizer.chat_template` of the model's file.
    ///
    /// It can use what transformers offers to templates: the syntax, filters and tests of Jinja, Python's
    /// methods of strings, maps and lists, `raise_exception`, `tojson`, `break` and `continue`. It cannot
    /// include files, learn the time (`strftime_now`), or run for ever. It can ask for much memory by doubling
    /// strings, so do not use templates of unknown origin where that matters.
    ///
    /// # Errors
    /// [`Error::Template`](crate::Error::Template) if it is no valid template.
    pub fn new(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::with_fuel(source, FUEL)
    }

    pub(super) fn with_fuel(source: &str, fuel: u64) -> Result<ChatTemplate> {
        Ok(ChatTemplate { engine: Engine::Jinja(Arc::new(Jinja::new(source, fuel)?)), close_thought: None })
    }

    /// Gemma 4's format, for files without a template.
    ///
    /// It does not close the thought unless told to with [`ChatTemplate::close_thought`].
    pub fn builtin() -> ChatTemplate {
        ChatTemplate { engine: Engine::Builtin, close_thought: None }
    }

    /// Sets whether the model's turn begins with an empty thought when it shall not think, for prompts whose
    /// [`ChatOptions::close_thought`] does not say.
    ///
    /// The sizes 12B, 26B and 31B need it; without it they think in their answer. E2B and E4B must not have it,
    /// or they do. `None`, the default, leaves it to the Jinja template, or leaves it out if built in.
    #[must_use]
    pub fn close_thought(mut self, yes: impl Into<Option<bool>>) -> Self {
        self.close_thought = yes.into();
        self
    }

    /// The Jinja template; `None` if the format is built in.
    pub fn source(&self) -> Option<&str> {
        match &self.engine {
            Engine::Builtin => None,
            Engine::Jinja(jinja) => Some(jinja.source()),
        }
    }

    /// The prompt as text, with `<bos>` at its beginning if the template writes it, as Gemma's do.
    ///
    /// Good for reading and for tests. As input of a tokenizer that reads control tokens it is safe only if all
    /// messages are: use [`ChatTemplate::render_segments`] otherwise.
    ///
    /// # Errors
    /// [`Error::Template`](crate::Error::Template) if the template raises an error, takes too long or writes
    /// too much, or if arguments or schemas are nested too deeply.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        Ok(self.render_segments(messages, options)?.into_iter().map(|segment| segment.text).collect())
    }

    /// The prompt in pieces that tell the template's control tokens from everything else.
    ///
    /// Nothing in messages, tools or results can make a trusted piece, and none of it is lost. Templates see
    /// other characters in place of `<` and `|` in text from outside. So a template that looks for these in a
    /// message does not find them, and one that builds a control token around text from outside, as in
    /// `'<|' + name + '>'`, builds a trusted one. Gemma's templates do neither; they look for thoughts in past
    /// answers, but those are removed before.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn render_segments(&self, messages: &[Message], options: &ChatOptions) -> Result<Vec<Segment>> {
        let results = match &self.engine {
            Engine::Builtin => ToolResults::Attached,
            Engine::Jinja(jinja) => jinja.results(),
        };
        let mut conversation = Conversation::new(messages, &options.tools, results)?;
        let source = self.source().unwrap_or_default();
        let guard = Guard::apply(&mut conversation, source, &options.variables)?;
        let close_thought = options.close_thought.or(self.close_thought);
        let rendered = match &self.engine {
            Engine::Builtin => builtin::render(&conversation, options, close_thought.unwrap_or(false)),
            Engine::Jinja(jinja) => {
                let mut text = jinja.render(conversation, options)?;
                if results == ToolResults::AttachedWithAnswer {
                    text = join_model_turns(&text);
                }
                if options.add_generation_prompt {
                    mend_end(&mut text, if options.thinking { None } else { close_thought });
                }
                text
            }
        };
        Ok(guard.segments(&rendered))
    }
}

/// Takes out what an old template writes between a response and the next call of the same turn.
fn join_model_turns(text: &str) -> String {
    text.replace(&format!("{RESPONSE_END}{MODEL_TURN}"), RESPONSE_END)
}

/// Opens the model's turn if the template forgot to after an answer with calls, and sees to the empty thought
/// as told.
///
/// Only the template's own text can match here, because that from outside has no `<`.
fn mend_end(text: &mut String, close_thought: Option<bool>) {
    let closed = text.ends_with(CLOSED_THOUGHT);
    if closed {
        text.truncate(text.len() - CLOSED_THOUGHT.len());
    }
    if text.ends_with(&format!("{TURN_END}\n")) {
        text.push_str(MODEL_TURN);
    }
    let wanted = match close_thought {
        // Within an open turn the thought is over.
        Some(yes) => yes && text.ends_with(MODEL_TURN),
        None => closed,
    };
    if wanted {
        text.push_str(CLOSED_THOUGHT);
    }
}
