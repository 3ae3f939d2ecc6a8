//! Conversations: from messages to a prompt, and from the model's text back to messages.
//!
//! [`ChatTemplate`] writes [`Message`]s in the format that the model was trained on. [`AnswerParser`] takes
//! apart what the model writes: its thoughts, its answer, and its calls of tools.
//!
//! ```
//! use gemma4::chat::{ChatOptions, ChatTemplate, Message, ParsedAnswer, Tool};
//! use serde_json::json;
//!
//! let weather = Tool::new(
//!     "weather",
//!     "Tells the weather.",
//!     json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] }),
//! );
//! let options = ChatOptions::default().tools([weather]).thinking(true);
//! let template = ChatTemplate::builtin();
//! let mut messages = vec![Message::user("Do I need an umbrella in Oslo?")];
//! let _prompt = template.render_segments(&messages, &options)?;
//!
//! let text = "<|channel>thought\nAsk the tool.<channel|><|tool_call>call:weather{city:<|\"|>Oslo<|\"|>}<tool_call|>";
//! let answer = ParsedAnswer::parse(text);
//! assert_eq!(answer.tool_calls[0].arguments, json!({ "city": "Oslo" }));
//! messages.push(answer.into_message());
//! messages.push(Message::tool("weather", r#"{"sky": "clear"}"#));
//! let prompt = template.render(&messages, &options)?;
//! assert!(prompt.ends_with("<|tool_response>response:weather{sky:<|\"|>clear<|\"|>}<tool_response|>"));
//! # Ok::<(), gemma4::Error>(())
//! ```

mod builtin;
mod guard;
mod history;
mod jinja;
mod markers;
mod message;
mod options;
mod parse;
mod template;
#[cfg(test)]
mod tests;
mod value;

use crate::error::Result;

pub use message::{Message, Role, Tool, ToolCall};
pub use options::ChatOptions;
pub use parse::{AnswerParser, AnswerPart, ParsedAnswer};
pub use template::{ChatTemplate, Segment};
