//! A model file's own template, run by `minijinja`.

use super::history::{Conversation, ToolResults, to_json};
use super::markers::{BOS, EOS, RESPONSE};
use super::message::{Message, ToolCall};
use super::{ChatOptions, Result};
use crate::Error;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, json};
use std::io;

/// How many instructions a rendering may take. A long conversation takes a few million; the newest template
/// looks back from every message, so its cost grows with the square of their number.
pub(super) const FUEL: u64 = 100_000_000;
/// How long a rendering may get, in bytes.
const MAX_OUTPUT: usize = 256 << 20;
const NAME: &str = "chat_template";

/// A compiled template.
#[derive(Clone, Debug)]
pub(super) struct Jinja {
    source: String,
    environment: Environment<'static>,
    results: ToolResults,
}

impl Jinja {
    pub fn new(source: &str, fuel: u64) -> Result<Jinja> {
        let mut environment = Environment::new();
        // As transformers sets it; templates are written for that.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(fuel));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // The grammar of calls writes null so; Python would write None.
        environment.set_formatter(|out, state, value| match value.is_none() {
            true => out.write_str("null").map_err(minijinja::Error::from),
            false => minijinja::escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json_text);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| failed(&error))?;
        let mut jinja = Jinja { source: source.to_owned(), environment, results: ToolResults::Alone };
        if source.contains("tool_responses") && !jinja.knows_tool_role() {
            jinja.results = ToolResults::AttachedWithAnswer;
        }
        Ok(jinja)
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// What the template wants done with results.
    pub fn results(&self) -> ToolResults {
        self.results
    }

    /// Whether a message of role `tool` comes out as a response. Asked of the template itself: its wording
    /// has changed from version to version.
    fn knows_tool_role(&self) -> bool {
        const RESULT: &str = "result of the tool";
        let messages = [
            Message::user("question"),
            Message::assistant("").with_tool_calls([ToolCall::new("f", json!({})).with_id("id")]),
            Message::tool("f", RESULT).with_tool_call_id("id"),
        ];
        let rendered = Conversation::new(&messages, &[], ToolResults::Alone)
            .and_then(|conversation| self.render(conversation, &ChatOptions::default()));
        rendered.is_ok_and(|text| text.contains(RESPONSE) && text.contains(RESULT))
    }

    pub fn render(&self, conversation: Conversation, options: &ChatOptions) -> Result<String> {
        let Conversation { turns, tools } = conversation;
        let mut context = Map::new();
        context.insert("bos_token".to_owned(), BOS.into());
        context.insert("eos_token".to_owned(), EOS.into());
        context.extend(options.variables.clone());
        context.insert("messages".to_owned(), turns.into_iter().map(to_json).collect());
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        context.insert("enable_thinking".to_owned(), options.thinking.into());
        // Null as in transformers if there are none.
        let tools = (!tools.is_empty()).then(|| json!(tools));
        context.insert("tools".to_owned(), tools.unwrap_or_default());
        let mut out = Bounded(Vec::new());
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        template.render_captured_to(&context, &mut out).map_err(|error| failed(&error))?;
        String::from_utf8(out.0).map_err(|_| Error::Template("the rendering is not UTF-8".to_owned()))
    }
}

fn failed(error: &minijinja::Error) -> Error {
    match error.kind() {
        ErrorKind::OutOfFuel => {
            Error::Template("the template takes too many steps; it may never end".to_owned())
        }
        _ => Error::Template(error.to_string()),
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON as transformers writes it: no escapes for HTML, a space after `,` and `:`.
fn to_json_text(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    let _ = options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            serde::Serialize::serialize(
                value,
                &mut serde_json::Serializer::with_formatter(&mut out, formatter),
            )
        }
        None => {
            serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut out, Spaced))
        }
    };
    let bad = |what: String| minijinja::Error::new(ErrorKind::BadSerialization, what);
    written.map_err(|error| bad(error.to_string()))?;
    String::from_utf8(out).map_err(|error| bad(error.to_string()))
}

/// Python's separators.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// A buffer that refuses to grow beyond [`MAX_OUTPUT`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("the rendering is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
