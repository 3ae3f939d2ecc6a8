//! How a prompt is made.

use super::message::Tool;
use serde_json::{Map, Value};

/// How messages become a prompt. Start from [`Default`] and chain setters.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ChatOptions {
    /// Tools that the model may call. Default none.
    pub tools: Vec<Tool>,
    /// Whether the prompt ends with the beginning of the model's turn. Default true.
    pub add_generation_prompt: bool,
    /// Whether the model thinks before it answers. Default false.
    pub thinking: bool,
    /// Whether the model's turn begins with an empty thought when it shall not think. Default: as the template
    /// does, see [`ChatTemplate::close_thought`](super::ChatTemplate::close_thought).
    pub close_thought: Option<bool>,
    /// More variables for the template. Their text counts as the template's own, so control tokens in it
    /// work. What this struct has a field for cannot be set here.
    pub variables: Map<String, Value>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        ChatOptions {
            tools: Vec::new(),
            add_generation_prompt: true,
            thinking: false,
            close_thought: None,
            variables: Map::new(),
        }
    }
}

impl ChatOptions {
    /// Sets the tools that the model may call.
    #[must_use]
    pub fn tools(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.tools = tools.into_iter().collect();
        self
    }

    /// Sets whether the prompt ends with the beginning of the model's turn.
    #[must_use]
    pub fn add_generation_prompt(mut self, yes: bool) -> Self {
        self.add_generation_prompt = yes;
        self
    }

    /// Sets whether the model thinks before it answers.
    #[must_use]
    pub fn thinking(mut self, yes: bool) -> Self {
        self.thinking = yes;
        self
    }

    /// Sets whether the model's turn begins with an empty thought when it shall not think; `None` for as the
    /// template does.
    #[must_use]
    pub fn close_thought(mut self, yes: impl Into<Option<bool>>) -> Self {
        self.close_thought = yes.into();
        self
    }

    /// Adds a variable for the template.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }
}
