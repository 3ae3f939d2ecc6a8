//! From messages as they come to turns as a template wants them.

use super::Result;
use super::markers::{CHANNEL, CHANNEL_END};
use super::message::{Message, Role, Tool, ToolCall};
use super::value::{MAX_DEPTH, depth_fits};
use crate::Error;
use serde_json::{Map, Value};

/// A message with the results of its calls, if results do not stand alone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Turn {
    pub message: Message,
    pub responses: Vec<Response>,
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Response {
    pub name: String,
    pub value: Value,
}

/// Everything a template gets that came from outside.
#[derive(Clone, Debug)]
pub(super) struct Conversation {
    pub turns: Vec<Turn>,
    pub tools: Vec<Tool>,
}

/// What becomes of messages of role `tool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToolResults {
    /// They stay messages.
    Alone,
    /// They become responses of the assistant's message before them.
    Attached,
    /// The same, for templates that write text after responses: text before a call becomes a message of its
    /// own, and the answer that follows the responses joins them.
    AttachedWithAnswer,
}

impl Conversation {
    /// Applies the rules of the history: thoughts go, results find their calls.
    pub fn new(messages: &[Message], tools: &[Tool], results: ToolResults) -> Result<Conversation> {
        check_depth(messages, tools)?;
        let mut messages = messages.to_vec();
        drop_thoughts(&mut messages);
        link_results(&mut messages);
        let mut turns = Vec::with_capacity(messages.len());
        for message in messages {
            if message.role != Role::Tool || results == ToolResults::Alone {
                turns.push(Turn { message, responses: Vec::new() });
                continue;
            }
            if turns.last().is_none_or(|turn: &Turn| turn.message.role != Role::Assistant) {
                turns.push(Turn { message: Message::assistant(""), responses: Vec::new() });
            }
            // Read here, before characters are replaced: JSON's escapes could make new ones.
            let value = serde_json::from_str(&message.content).ok().filter(depth_fits);
            let value = value.unwrap_or(Value::String(message.content));
            let response = Response { name: message.tool_name.unwrap_or_default(), value };
            if let Some(turn) = turns.last_mut() {
                turn.responses.push(response);
            }
        }
        if results == ToolResults::AttachedWithAnswer {
            turns = text_after_responses(turns);
        }
        Ok(Conversation { turns, tools: tools.to_vec() })
    }

    /// Calls `f` with every string from outside, keys of objects included.
    pub fn each_string(&mut self, f: &mut dyn FnMut(&mut String)) {
        for Turn { message, responses } in &mut self.turns {
            f(&mut message.content);
            [&mut message.reasoning, &mut message.tool_name, &mut message.tool_call_id]
                .into_iter()
                .flatten()
                .for_each(&mut *f);
            for call in &mut message.tool_calls {
                call.id.iter_mut().for_each(&mut *f);
                f(&mut call.name);
                each_string_of(&mut call.arguments, f);
            }
            for response in responses {
                f(&mut response.name);
                each_string_of(&mut response.value, f);
            }
        }
        for tool in &mut self.tools {
            f(&mut tool.name);
            f(&mut tool.description);
            each_string_of(&mut tool.parameters, f);
        }
    }
}

/// Calls `f` with every string in a value, keys included.
pub(super) fn each_string_of(value: &mut Value, f: &mut dyn FnMut(&mut String)) {
    match value {
        Value::String(text) => f(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each_string_of(item, f)),
        Value::Object(map) => {
            for (mut key, mut value) in std::mem::take(map) {
                f(&mut key);
                each_string_of(&mut value, f);
                map.insert(key, value);
            }
        }
        _ => {}
    }
}

fn check_depth(messages: &[Message], tools: &[Tool]) -> Result<()> {
    let too_deep = |what: &str, name: &str| {
        Err(Error::Template(format!("the {what} {name:?} are nested more than {MAX_DEPTH} levels deep")))
    };
    for call in messages.iter().flat_map(|message| &message.tool_calls) {
        if !depth_fits(&call.arguments) {
            return too_deep("arguments of the call of", &call.name);
        }
    }
    match tools.iter().find(|tool| !depth_fits(&tool.parameters)) {
        Some(tool) => too_deep("parameters of the tool", &tool.name),
        None => Ok(()),
    }
}

/// Removes thoughts but for those with calls after the last user message: while tools are at work the model
/// needs its train of thought, and later it was trained without.
fn drop_thoughts(messages: &mut [Message]) {
    let last_user = messages.iter().rposition(|message| message.role == Role::User);
    for (i, message) in messages.iter_mut().enumerate() {
        if message.role != Role::Assistant {
            message.reasoning = None;
            continue;
        }
        if let Some((text, thought)) = split_thoughts(&message.content) {
            message.content = text;
            message.reasoning = message.reasoning.take().or(Some(thought));
        }
        let keep = !message.tool_calls.is_empty() && last_user.is_none_or(|last| i > last);
        message.reasoning = message.reasoning.take().filter(|thought| keep && !thought.trim().is_empty());
    }
}

/// Text and thoughts of a model's turn that still has its markers; `None` without any.
fn split_thoughts(content: &str) -> Option<(String, String)> {
    if !content.contains(CHANNEL) && !content.contains(CHANNEL_END) {
        return None;
    }
    let (mut text, mut thoughts) = (String::new(), String::new());
    for part in content.split(CHANNEL_END) {
        let (said, thought) = part.split_once(CHANNEL).unwrap_or((part, ""));
        text.push_str(said);
        thoughts.push_str(thought.strip_prefix("thought").unwrap_or(thought).trim_start());
    }
    Some((text, thoughts))
}

/// Gives every call an id and every result the id and the name of its call.
///
/// Templates compare ids; without any, all results would seem to belong to the last call.
fn link_results(messages: &mut [Message]) {
    let mut calls: Vec<(String, String, bool)> = Vec::new();
    for (i, message) in messages.iter_mut().enumerate() {
        match message.role {
            Role::Assistant => {
                calls.clear();
                for (j, ToolCall { id, name, .. }) in message.tool_calls.iter_mut().enumerate() {
                    let id = id.get_or_insert_with(|| format!("call_{i}_{j}")).clone();
                    calls.push((id, name.clone(), false));
                }
            }
            Role::Tool => {
                let found = find_call(message, &calls);
                if let Some((id, name, answered)) = found.and_then(|found| calls.get_mut(found)) {
                    *answered = true;
                    message.tool_name.get_or_insert_with(|| name.clone());
                    message.tool_call_id.get_or_insert_with(|| id.clone());
                }
                let id = message.tool_call_id.as_deref();
                message.tool_name.get_or_insert_with(|| id.unwrap_or("unknown").to_owned());
            }
            _ => calls.clear(),
        }
    }
}

/// Which of `calls` (id, name, answered) a result belongs to.
fn find_call(result: &Message, calls: &[(String, String, bool)]) -> Option<usize> {
    if let Some(id) = &result.tool_call_id
        && let Some(found) = calls.iter().position(|(other, ..)| other == id)
    {
        return Some(found);
    }
    calls
        .iter()
        .position(|(_, name, answered)| !answered && result.tool_name.as_ref().is_none_or(|n| n == name))
}

/// See [`ToolResults::AttachedWithAnswer`].
fn text_after_responses(turns: Vec<Turn>) -> Vec<Turn> {
    let mut out: Vec<Turn> = Vec::with_capacity(turns.len());
    for mut turn in turns {
        let is_answer = turn.message.role == Role::Assistant
            && turn.message.tool_calls.is_empty()
            && turn.responses.is_empty();
        let last =
            out.last_mut().filter(|last| !last.responses.is_empty() && last.message.content.is_empty());
        if let (true, Some(last)) = (is_answer, last) {
            last.message.content = turn.message.content;
            continue;
        }
        if !turn.responses.is_empty() && !turn.message.content.trim().is_empty() {
            let text = std::mem::take(&mut turn.message.content);
            out.push(Turn { message: Message::assistant(text), responses: Vec::new() });
        }
        out.push(turn);
    }
    out
}

/// The JSON that a template sees of a turn, in OpenAI's names, with arguments as objects.
pub(super) fn to_json(turn: Turn) -> Value {
    let Turn { message, responses } = turn;
    let mut map = Map::new();
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let role = match message.role {
        Role::System => "system",
        Role::Developer => "developer",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    set("role", role.into());
    set("content", message.content.into());
    let optional = [
        ("reasoning_content", message.reasoning),
        ("name", message.tool_name),
        ("tool_call_id", message.tool_call_id),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            set(key, value.into());
        }
    }
    let call = |call: ToolCall| {
        serde_json::json!({
            "id": call.id, "type": "function",
            "function": { "name": call.name, "arguments": call.arguments },
        })
    };
    if !message.tool_calls.is_empty() {
        set("tool_calls", message.tool_calls.into_iter().map(call).collect());
    }
    let response =
        |response: Response| serde_json::json!({ "name": response.name, "response": response.value });
    if !responses.is_empty() {
        set("tool_responses", responses.into_iter().map(response).collect());
    }
    Value::Object(map)
}
