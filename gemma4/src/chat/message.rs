//! What a conversation is made of, in the field names of the OpenAI API.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Who a [`Message`] is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The same as [`Role::System`] by a newer name.
    Developer,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
    /// The result of a [`ToolCall`].
    Tool,
}

/// One message of a conversation.
///
/// It reads and writes OpenAI's JSON. There, `content` may also be `null` or a list of text parts, which are
/// joined; other kinds of parts are an error.
///
/// ```
/// # use gemma4::chat::Message;
/// let message: Message = serde_json::from_str(r#"{"role": "user", "content": "Hello"}"#)?;
/// assert_eq!(message, Message::user("Hello"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Who it is from.
    pub role: Role,
    /// The text. For [`Role::Tool`] the result: JSON if it parses as such, text otherwise.
    #[serde(default, deserialize_with = "text_or_parts")]
    pub content: String,
    /// What the model thought before it answered, without the markers around it.
    #[serde(
        default,
        rename = "reasoning_content",
        alias = "reasoning",
        skip_serializing_if = "Option::is_none"
    )]
    pub reasoning: Option<String>,
    /// The calls that the model made, for [`Role::Assistant`].
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Name of the tool that was called, for [`Role::Tool`]. If absent it is found by `tool_call_id`, or else
    /// by position: the first result belongs to the first call.
    #[serde(default, rename = "name", skip_serializing_if = "Option::is_none")]
    pub tool_name: Option<String>,
    /// Which call this is the result of, for [`Role::Tool`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message with nothing but text.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message {
            role,
            content: content.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_name: None,
            tool_call_id: None,
        }
    }

    /// Instructions for the whole conversation. Only the first message has the full effect.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new(Role::System, content)
    }

    /// The same as [`Message::system`] by a newer name.
    pub fn developer(content: impl Into<String>) -> Message {
        Message::new(Role::Developer, content)
    }

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new(Role::User, content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new(Role::Assistant, content)
    }

    /// What the tool `name` gave back: JSON, or any text.
    pub fn tool(name: impl Into<String>, content: impl Into<String>) -> Message {
        Message { tool_name: Some(name.into()), ..Message::new(Role::Tool, content) }
    }

    /// Adds what the model thought.
    #[must_use]
    pub fn with_reasoning(mut self, reasoning: impl Into<String>) -> Message {
        self.reasoning = Some(reasoning.into());
        self
    }

    /// Adds the calls that the model made.
    #[must_use]
    pub fn with_tool_calls(mut self, calls: impl IntoIterator<Item = ToolCall>) -> Message {
        self.tool_calls.extend(calls);
        self
    }

    /// Says which call this is the result of.
    #[must_use]
    pub fn with_tool_call_id(mut self, id: impl Into<String>) -> Message {
        self.tool_call_id = Some(id.into());
        self
    }
}

/// A call of a tool by the model.
///
/// In JSON it has OpenAI's form `{"id", "type": "function", "function": {"name", "arguments"}}`, where the
/// arguments are a string that holds JSON. It is read with arguments as an object too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "CallWire", into = "CallWire")]
pub struct ToolCall {
    /// What results refer to. The model gives none; a server makes one up.
    pub id: Option<String>,
    /// Name of the tool.
    pub name: String,
    /// The arguments, normally an object. A string is put between the braces of the call as it is.
    pub arguments: Value,
}

impl ToolCall {
    /// A call without an id.
    pub fn new(name: impl Into<String>, arguments: Value) -> ToolCall {
        ToolCall { id: None, name: name.into(), arguments }
    }

    /// Sets the id.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> ToolCall {
        self.id = Some(id.into());
        self
    }
}

/// A tool that the model may call.
///
/// In JSON it has OpenAI's form `{"type": "function", "function": {"name", "description", "parameters"}}`. It
/// is read without that envelope too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "ToolWire", into = "ToolWire")]
pub struct Tool {
    /// Name that the model calls it by. Letters, digits and `_` are safe.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON schema of the arguments: an object type. `Null` for none.
    pub parameters: Value,
}

impl Tool {
    /// A tool.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: Value) -> Tool {
        Tool { name: name.into(), description: description.into(), parameters }
    }
}

#[derive(Serialize, Deserialize)]
struct CallWire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default = "function", rename = "type")]
    kind: String,
    function: FunctionWire,
}

#[derive(Serialize, Deserialize)]
struct FunctionWire {
    name: String,
    #[serde(default)]
    arguments: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ToolWire {
    Wrapped {
        #[serde(default = "function", rename = "type")]
        kind: String,
        function: DeclarationWire,
    },
    Bare(DeclarationWire),
}

#[derive(Serialize, Deserialize)]
struct DeclarationWire {
    name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    description: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    parameters: Value,
}

fn function() -> String {
    "function".to_owned()
}

impl From<CallWire> for ToolCall {
    fn from(wire: CallWire) -> ToolCall {
        let arguments = match wire.function.arguments {
            Value::Null => Value::Object(Map::new()),
            Value::String(text) if text.trim().is_empty() => Value::Object(Map::new()),
            // Text that is no JSON came from a model that broke off; it is kept as it is.
            Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            other => other,
        };
        ToolCall { id: wire.id, name: wire.function.name, arguments }
    }
}

impl From<ToolCall> for CallWire {
    fn from(call: ToolCall) -> CallWire {
        let arguments = match call.arguments {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let function = FunctionWire { name: call.name, arguments: Value::String(arguments) };
        CallWire { id: call.id, kind: self::function(), function }
    }
}

impl From<ToolWire> for Tool {
    fn from(wire: ToolWire) -> Tool {
        let (ToolWire::Wrapped { function, .. } | ToolWire::Bare(function)) = wire;
        Tool { name: function.name, description: function.description, parameters: function.parameters }
    }
}

impl From<Tool> for ToolWire {
    fn from(tool: Tool) -> ToolWire {
        let Tool { name, description, parameters } = tool;
        ToolWire::Wrapped { kind: function(), function: DeclarationWire { name, description, parameters } }
    }
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The text of a message: a string, nothing, or OpenAI's list of parts.
fn text_or_parts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<Part>),
    }
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        text: String,
    }
    let parts = match Option::<Content>::deserialize(deserializer)? {
        None => return Ok(String::new()),
        Some(Content::Text(text)) => return Ok(text),
        Some(Content::Parts(parts)) => parts,
    };
    if let Some(part) = parts.iter().find(|part| part.kind != "text") {
        return Err(serde::de::Error::custom(format!("content part of type {:?}: only text", part.kind)));
    }
    Ok(parts.into_iter().map(|part| part.text).collect())
}
