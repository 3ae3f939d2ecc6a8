//! Gemma 4's chat format in plain Rust, for files without a template.

use super::ChatOptions;
use super::history::{Conversation, Turn};
use super::markers::{
    BOS, CALL, CALL_END, CHANNEL, CHANNEL_END, CLOSED_THOUGHT, MODEL_TURN, RESPONSE, RESPONSE_END, THINK,
    TOOL, TOOL_END, TURN, TURN_END,
};
use super::message::{Message, Role, Tool, ToolCall};
use super::value::{sorted, write, write_members, write_str};
use serde_json::{Map, Value};

/// Renders a conversation whose results are attached. `close_thought` tells whether the model needs the empty
/// thought when it shall not think.
pub(super) fn render(conversation: &Conversation, options: &ChatOptions, close_thought: bool) -> String {
    let mut out = BOS.to_owned();
    let (system, turns) = match conversation.turns.split_first() {
        Some((first, rest)) if is_system(first.message.role) => (Some(first.message.content.trim()), rest),
        _ => (None, conversation.turns.as_slice()),
    };
    if system.is_some() || options.thinking || !conversation.tools.is_empty() {
        open_turn(&mut out, "system");
        if options.thinking {
            out.push_str(THINK);
            out.push('\n');
        }
        out.push_str(system.unwrap_or_default());
        conversation.tools.iter().for_each(|tool| declare(&mut out, tool));
        close_turn(&mut out);
    }
    let mut open = false;
    for (i, turn) in turns.iter().enumerate() {
        if turn.message.role == Role::Assistant {
            if !open {
                out.push_str(MODEL_TURN);
            }
            write_model(&mut out, turn);
            let waits = !turn.message.tool_calls.is_empty() || !turn.responses.is_empty();
            let goes_on = turns.get(i + 1).is_none_or(|next| next.message.role == Role::Assistant);
            open = waits && goes_on;
            if !open {
                close_turn(&mut out);
            }
        } else {
            open_turn(&mut out, if turn.message.role == Role::User { "user" } else { "system" });
            out.push_str(turn.message.content.trim());
            close_turn(&mut out);
        }
    }
    if options.add_generation_prompt && !open {
        out.push_str(MODEL_TURN);
        if close_thought && !options.thinking {
            out.push_str(CLOSED_THOUGHT);
        }
    }
    out
}

fn is_system(role: Role) -> bool {
    matches!(role, Role::System | Role::Developer)
}

fn open_turn(out: &mut String, role: &str) {
    out.push_str(TURN);
    out.push_str(role);
    out.push('\n');
}

fn close_turn(out: &mut String) {
    out.push_str(TURN_END);
    out.push('\n');
}

/// What stands in a model's turn, in the order in which the model writes it.
fn write_model(out: &mut String, turn: &Turn) {
    let Message { content, reasoning, tool_calls, .. } = &turn.message;
    if let Some(thought) = reasoning {
        out.push_str(CHANNEL);
        out.push_str("thought\n");
        out.push_str(thought.trim());
        out.push('\n');
        out.push_str(CHANNEL_END);
    }
    out.push_str(content.trim());
    tool_calls.iter().for_each(|call| write_call(out, call));
    for response in &turn.responses {
        out.push_str(RESPONSE);
        out.push_str("response:");
        out.push_str(&response.name);
        out.push('{');
        match &response.value {
            Value::Object(map) => write_members(out, map, false),
            other => {
                out.push_str("value:");
                write(out, other, false);
            }
        }
        out.push('}');
        out.push_str(RESPONSE_END);
    }
}

/// Writes a call as the model does.
pub(super) fn write_call(out: &mut String, call: &ToolCall) {
    out.push_str(CALL);
    out.push_str("call:");
    out.push_str(&call.name);
    out.push('{');
    match &call.arguments {
        Value::Object(map) => write_members(out, map, false),
        Value::String(raw) => out.push_str(raw),
        Value::Null => {}
        other => {
            out.push_str("value:");
            write(out, other, false);
        }
    }
    out.push('}');
    out.push_str(CALL_END);
}

fn declare(out: &mut String, tool: &Tool) {
    out.push_str(TOOL);
    out.push_str("declaration:");
    out.push_str(&tool.name);
    out.push_str("{description:");
    write_str(out, &tool.description);
    if let Some(schema) = tool.parameters.as_object().filter(|schema| !schema.is_empty()) {
        out.push_str(",parameters:{");
        let mut list = List::new(out);
        write_object_schema(&mut list, schema, false);
        list.next("type:");
        write_str(list.out, &type_of(schema).0);
        out.push('}');
    }
    out.push('}');
    out.push_str(TOOL_END);
}

/// Members separated by commas.
struct List<'a> {
    out: &'a mut String,
    begun: bool,
}

impl<'a> List<'a> {
    fn new(out: &'a mut String) -> List<'a> {
        List { out, begun: false }
    }

    fn next(&mut self, key: &str) {
        if self.begun {
            self.out.push(',');
        }
        self.begun = true;
        self.out.push_str(key);
    }
}

/// The properties of an object type and which of them are required.
fn write_object_schema(list: &mut List, schema: &Map<String, Value>, always: bool) {
    let properties = schema.get("properties").and_then(Value::as_object);
    if always || properties.is_some_and(|properties| !properties.is_empty()) {
        list.next("properties:{");
        write_properties(list.out, properties);
        list.out.push('}');
    }
    if let Some(required) = schema.get("required").and_then(Value::as_array).filter(|r| !r.is_empty()) {
        list.next("required:");
        write(list.out, &Value::Array(required.clone()), true);
    }
}

fn write_properties(out: &mut String, properties: Option<&Map<String, Value>>) {
    let mut list = List::new(out);
    for (name, schema) in properties.map(sorted).unwrap_or_default() {
        list.next(name);
        list.out.push_str(":{");
        write_property(list.out, schema.as_object().unwrap_or(&Map::new()));
        list.out.push('}');
    }
}

fn write_property(out: &mut String, schema: &Map<String, Value>) {
    let mut list = List::new(out);
    let (kind, nullable) = type_of(schema);
    if let Some(description) = schema.get("description").and_then(Value::as_str).filter(|d| !d.is_empty()) {
        list.next("description:");
        write_str(list.out, description);
    }
    if nullable {
        list.next("nullable:true");
    }
    match kind.as_str() {
        "STRING" => {
            if let Some(values) = schema.get("enum").filter(|v| v.as_array().is_some_and(|v| !v.is_empty())) {
                list.next("enum:");
                write(list.out, values, true);
            }
        }
        "OBJECT" => write_object_schema(&mut list, schema, true),
        "ARRAY" => {
            if let Some(items) = schema.get("items").and_then(Value::as_object).filter(|i| !i.is_empty()) {
                list.next("items:{");
                write_items(list.out, items);
                list.out.push('}');
            }
        }
        _ => {}
    }
    list.next("type:");
    write_str(list.out, &kind);
}

/// The type of an array's items: all its keys, in order, unlike a property.
fn write_items(out: &mut String, items: &Map<String, Value>) {
    let mut list = List::new(out);
    for (key, value) in sorted(items) {
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("properties", _) => {
                list.next("properties:{");
                write_properties(list.out, value.as_object());
                list.out.push('}');
            }
            ("type", Value::Array(kinds)) => {
                list.next("type:");
                let kinds = kinds.iter().filter_map(Value::as_str).map(|kind| kind.to_uppercase().into());
                write(list.out, &Value::Array(kinds.collect()), true);
            }
            ("type", Value::String(kind)) => {
                list.next("type:");
                write_str(list.out, &kind.to_uppercase());
            }
            _ => {
                list.next(key);
                list.out.push(':');
                write(list.out, value, true);
            }
        }
    }
}

/// The one type that a declaration can name, and whether null is allowed as well.
///
/// A schema may list several types or leave the type to its alternatives. Then the first that is not null
/// counts, or what the other keys suggest.
fn type_of(schema: &Map<String, Value>) -> (String, bool) {
    let mut nullable = schema.get("nullable").and_then(Value::as_bool).unwrap_or(false);
    let alternatives = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    let mut kinds: Vec<&str> = match schema.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => alternatives.filter_map(|schema| schema.get("type")?.as_str()).collect(),
    };
    let all = kinds.len();
    kinds.retain(|kind| !kind.eq_ignore_ascii_case("null"));
    nullable |= kinds.len() < all && !kinds.is_empty();
    let suggested = match schema {
        _ if schema.contains_key("properties") => "object",
        _ if schema.contains_key("items") => "array",
        _ if all > 0 => "null",
        _ => "string",
    };
    (kinds.first().unwrap_or(&suggested).to_uppercase(), nullable)
}
