mod builtin;
mod guard;
mod jinja;
mod message;
mod parse;

use super::*;
use serde_json::json;

/// A tool with a parameter of every kind.
fn booking() -> Tool {
    Tool::new(
        "book_table",
        "Reserves a table.",
        json!({
            "type": "object",
            "properties": {
                "when": { "type": "string", "description": "Day and hour." },
                "area": { "type": "string", "description": "Where to sit.", "enum": ["inside", "garden"] },
                "guests": { "type": "integer", "description": "How many.", "nullable": true },
                "contact": {
                    "type": "object",
                    "description": "Whom to ask.",
                    "properties": { "phone": { "type": "string", "description": "Number." } },
                    "required": ["phone"]
                },
                "wishes": { "type": "array", "description": "Free text.", "items": { "type": "string" } }
            },
            "required": ["when", "guests"]
        }),
    )
}

fn call(name: &str, arguments: serde_json::Value) -> ToolCall {
    ToolCall::new(name, arguments)
}

/// A template in the style of Gemma's, written for these tests: it knows messages of role `tool` and writes
/// thoughts, but no parameters.
const MODERN: &str = include_str!("modern.jinja");
/// The same for results as `tool_responses` only, as in the first published templates.
const OLD: &str = include_str!("old.jinja");
