//! Generation that keeps to a JSON schema, a regular expression or a grammar.
//!
//! Before each token is chosen, the logits of all tokens that would leave the grammar become minus infinity. The
//! masks come from the `llguidance` crate. Set one with
//! [`GenerateOptions::grammar`](crate::GenerateOptions::grammar):
//!
//! ```no_run
//! # fn main() -> gemma4::Result<()> {
//! use gemma4::grammar::Grammar;
//! use gemma4::{EncodeOptions, GenerateOptions, Model, Session, SessionOptions};
//!
//! let model = Model::load("gemma-4.gguf")?;
//! let schema = serde_json::json!({
//!     "type": "object",
//!     "properties": { "city": { "type": "string" }, "people": { "type": "integer" } },
//!     "required": ["city", "people"],
//!     "additionalProperties": false
//! });
//! let options = GenerateOptions::default().grammar(Grammar::json_schema(&schema)?);
//! let prompt = model.tokenizer().encode("The largest city of France as JSON: ", EncodeOptions::TEXT)?;
//! let text = Session::new(&model, &SessionOptions::default())?.generate(&prompt, &options)?.text()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What ends a generation
//!
//! [`StopReason::GrammarEnd`](crate::StopReason::GrammarEnd) once nothing can follow;
//! [`StopReason::EndToken`](crate::StopReason::EndToken) if the text is complete but could go on (`a+`) and the
//! model ends it. Under `ignore_eos` the model never ends it. Any other reason may leave the text incomplete:
//! check it before you parse.
//!
//! # What is never generated
//!
//! Control tokens, unused tokens and tokens that the model's file forbids are not text: no string, character
//! class or schema matches them. A Lark grammar can ask for one by name (`<|turn>`), outside of quotes.
//!
//! # Trust
//!
//! Grammars and schemas may come from strangers: sizes, nesting and the work for one token are limited, and a
//! `$ref` reaches only into its own schema (`#/...`). What exceeds a limit is
//! [`Error::Grammar`]. Internal failures of `llguidance` become errors too, if the program
//! is compiled with unwinding panics, which is Rust's default.

mod constraint;
mod vocabulary;

use std::fmt;
use std::sync::Arc;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities};
use llguidance::{Matcher, ParserFactory, panic_utils};
use serde_json::{Map, Value};

use crate::{Error, Result};
pub(crate) use constraint::Constraint;
pub(crate) use vocabulary::Cache;

/// Most bytes of a grammar, and of a schema written as JSON.
const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting of a schema: what `serde_json` reads by default.
const MAX_DEPTH: usize = 128;
/// Most rules of a Lark grammar. Compilation recurses along chains of rules and takes quadratic time.
const MAX_RULES: usize = 3_000;
/// Bytes of stack for compilation: several times what the longest chain takes. Systems give it out as it is used.
const STACK: usize = 128 << 20;

/// White space between two parts of a JSON text: one space, or a line break with indentation. JSON allows any amount,
/// in which a small model can lose itself.
const WHITE_SPACE: &str = r"\x20|\r?\n[\x20\t]{0,32}";

/// What a generated text must look like. Cloning is cheap.
#[derive(Clone)]
pub struct Grammar {
    inner: Arc<Inner>,
}

#[derive(PartialEq)]
enum Source {
    JsonSchema(Value),
    Regex(String),
    Lark(String),
}

struct Inner {
    source: Source,
    top: TopLevelGrammar,
}

impl Grammar {
    /// JSON that satisfies a [JSON schema](https://json-schema.org).
    ///
    /// Properties come in the order of the schema. Note that by the standard, properties are optional unless
    /// `required` names them, and others may be added unless `additionalProperties` is false. Strings, numbers and
    /// arrays are unbounded unless the schema bounds them: a small model may never end one.
    ///
    /// Between the parts of the text there is no white space, a space, or a line break and up to 32 characters of
    /// indentation.
    ///
    /// # Errors
    /// [`Error::Grammar`] if the schema is malformed, unsatisfiable, too large, or uses a keyword that cannot be
    /// enforced.
    pub fn json_schema(schema: &Value) -> Result<Grammar> {
        if !is_shallow(schema, MAX_DEPTH) {
            return Err(Error::Grammar(format!("the schema is nested more than {MAX_DEPTH} levels deep")));
        }
        check_size(schema.to_string().len())?;
        let mut compiled =
            if schema == &Value::Bool(true) { Value::Object(Map::new()) } else { schema.clone() };
        if let Value::Object(members) = &mut compiled {
            members.entry("x-guidance").or_insert_with(|| {
                Value::Object(Map::from_iter([("whitespace_pattern".into(), WHITE_SPACE.into())]))
            });
        }
        Self::new(Source::JsonSchema(schema.clone()), TopLevelGrammar::from_json_schema(compiled))
    }

    /// Text that a regular expression matches from its first to its last character.
    ///
    /// The syntax is that of the `regex` crate without anchors, lazy quantifiers and word boundaries; as there,
    /// nothing looks around or back. `\d`, `\w` and `\s` are those of Unicode: write `[0-9]` for ASCII.
    ///
    /// # Errors
    /// [`Error::Grammar`] if the expression is malformed, too large, or matches nothing.
    pub fn regex(regex: &str) -> Result<Grammar> {
        check_size(regex.len())?;
        let trailing = regex.bytes().rev().take_while(|b| *b == b'\\').count();
        if trailing % 2 == 1 {
            return Err(Error::Grammar("the regular expression ends with a lone backslash".to_owned()));
        }
        Self::new(Source::Regex(regex.to_owned()), TopLevelGrammar::from_regex(regex))
    }

    /// Text of a context-free grammar in `llguidance`'s variant of Lark, whose first rule is `start`.
    ///
    /// # Errors
    /// [`Error::Grammar`] if the grammar is malformed, too large, or matches nothing.
    pub fn lark(grammar: &str) -> Result<Grammar> {
        check_size(grammar.len())?;
        // Each colon outside a string begins a rule, so there are at most as many rules.
        if grammar.matches(':').count() > MAX_RULES {
            return Err(Error::Grammar(format!("there are more than {MAX_RULES} rules (or colons)")));
        }
        Self::new(Source::Lark(grammar.to_owned()), TopLevelGrammar::from_lark(grammar.to_owned()))
    }

    fn new(source: Source, top: TopLevelGrammar) -> Result<Grammar> {
        let inner = Inner { source, top };
        with_stack(|| check(&inner))?;
        Ok(Grammar { inner: Arc::new(inner) })
    }
}

/// Two grammars are equal if they were made from equal sources.
impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner) || self.inner.source == other.inner.source
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner.source {
            Source::JsonSchema(schema) => f.debug_tuple("JsonSchema").field(schema).finish(),
            Source::Regex(text) => f.debug_tuple("Regex").field(text).finish(),
            Source::Lark(text) => f.debug_tuple("Lark").field(text).finish(),
        }
    }
}

/// Compiles the grammar without a model, and asks for its first byte.
fn check(inner: &Inner) -> Result<()> {
    let init = GrammarInit::Serialized(inner.top.clone());
    let compile = || panic_utils::catch_unwind(|| init.to_internal(None, limits()));
    let (grammar, lexer) = compile().map_err(|e| error(&e.to_string()))?;
    // Special tokens are the model's: whether they exist shows when the generation starts.
    let has_special = lexer.render_warnings().iter().any(|warning| warning.contains("no tokenizer"));
    if has_special {
        return Ok(());
    }
    let env = ApproximateTokEnv::single_byte_env();
    let mut factory =
        ParserFactory::new(&env, InferenceCapabilities::default(), &[]).map_err(|e| error(&e.to_string()))?;
    let mut matcher = matcher(&mut factory, GrammarInit::Internal(grammar, lexer))?;
    if matcher.is_stopped() {
        return Ok(()); // only the empty text
    }
    matcher.compute_mask().map(drop).map_err(|e| error(&e.to_string()))
}

/// Starts a grammar; one that allows the empty text alone is stopped at once.
fn matcher(factory: &mut ParserFactory, init: GrammarInit) -> Result<Matcher> {
    factory.quiet();
    *factory.limits_mut() = limits();
    start(factory, init)
}

fn start(factory: &ParserFactory, init: GrammarInit) -> Result<Matcher> {
    let mut matcher = Matcher::new(factory.create_parser_from_init_default(init));
    matcher.consume_tokens(&[]).map_err(|e| error(&e.to_string()))?;
    Ok(matcher)
}

/// The defaults, with less memory for lexer states, and errors without the text so far.
fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 100_000, verbose_errors: false, ..ParserLimits::default() }
}

/// Runs `f` on a thread with room for deep recursion.
fn with_stack<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("gemma4-grammar".into()).stack_size(STACK);
        let handle = thread
            .spawn_scoped(scope, f)
            .map_err(|e| Error::Grammar(format!("no thread to compile the grammar: {e}")))?;
        handle.join().unwrap_or_else(|_| Err(Error::Grammar("the compiler failed".to_owned())))
    })
}

fn check_size(n: usize) -> Result<()> {
    if n > MAX_BYTES {
        return Err(Error::Grammar(format!("there are {n} bytes; at most {MAX_BYTES} are compiled")));
    }
    Ok(())
}

fn is_shallow(value: &Value, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    match value {
        Value::Array(items) => items.iter().all(|item| is_shallow(item, depth)),
        Value::Object(members) => members.values().all(|member| is_shallow(member, depth)),
        _ => true,
    }
}

/// The message without the state and the backtrace that may follow it.
fn error(message: &str) -> Error {
    let end =
        ["\n<state>", "\n<backtrace>", "\n<non-verbose/>"].iter().filter_map(|tag| message.find(tag)).min();
    Error::Grammar(message.get(..end.unwrap_or(message.len())).unwrap_or(message).trim().to_owned())
}

const _: () = {
    const fn shared_between_threads<T: Clone + Send + Sync + 'static>() {}
    shared_between_threads::<Grammar>();
    const fn moved_between_threads<T: Send>() {}
    moved_between_threads::<Constraint>();
};
