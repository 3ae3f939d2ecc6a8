//! The bodies of requests, in OpenAI's field names. Fields that are not listed are ignored.

use gemma4::chat::{Message, Tool};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Body of `/v1/chat/completions`.
#[derive(Clone, Debug, Deserialize)]
pub struct ChatRequest {
    /// Name of the model, if given.
    pub model: Option<String>,
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// What both kinds of requests can say.
    #[serde(flatten)]
    pub common: Common,
    /// `max_tokens` by its newer name.
    pub max_completion_tokens: Option<u32>,
    /// Tools that the model may call.
    #[serde(default, deserialize_with = "null_is_none")]
    pub tools: Vec<Tool>,
    /// `"none"`, `"auto"`, `"required"`, or one function.
    pub tool_choice: Option<Value>,
    /// Whether several tools may be called at once.
    pub parallel_tool_calls: Option<bool>,
    /// What the answer must look like.
    pub response_format: Option<ResponseFormat>,
    /// Whether log-probabilities are wanted.
    pub logprobs: Option<bool>,
    /// How many alternatives of each token.
    pub top_logprobs: Option<usize>,
    /// `"none"` and `"minimal"` turn thinking off, anything else turns it on.
    pub reasoning_effort: Option<String>,
    /// Variables of the template; `enable_thinking` is understood.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// Body of `/v1/completions`.
#[derive(Clone, Debug, Deserialize)]
pub struct CompletionRequest {
    /// Name of the model, if given.
    pub model: Option<String>,
    /// The text to continue.
    pub prompt: Prompt,
    /// What both kinds of requests can say.
    #[serde(flatten)]
    pub common: Common,
    /// How many alternatives of each token.
    pub logprobs: Option<usize>,
    /// Whether the prompt is repeated in the answer.
    pub echo: Option<bool>,
    /// Text after the gap to fill; not possible with these models.
    pub suffix: Option<String>,
    /// Only 1 is possible.
    pub best_of: Option<u32>,
}

/// Fields of both kinds of requests.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Common {
    /// Most tokens to generate.
    pub max_tokens: Option<u32>,
    /// Randomness.
    pub temperature: Option<f32>,
    /// Candidates: the smallest set with this probability.
    pub top_p: Option<f32>,
    /// Candidates: the most likely ones. Not OpenAI's.
    pub top_k: Option<usize>,
    /// Candidates: at least this part of the best one's probability. Not OpenAI's.
    pub min_p: Option<f32>,
    /// Makes repeating less likely.
    pub frequency_penalty: Option<f32>,
    /// Makes repeating less likely, once.
    pub presence_penalty: Option<f32>,
    /// Makes repeating less likely, by a factor. Not OpenAI's.
    pub repetition_penalty: Option<f32>,
    /// Added to the logits of tokens.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Makes random choices repeatable. Negative numbers are as good as others.
    pub seed: Option<i64>,
    /// Texts that end the answer.
    pub stop: Option<Stop>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// What else a stream tells.
    pub stream_options: Option<StreamOptions>,
    /// Number of answers; only 1 is possible.
    pub n: Option<u32>,
    /// Whether results of earlier requests may be used. Not OpenAI's.
    pub cache_prompt: Option<bool>,
}

/// One stop text or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// What else a stream tells.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamOptions {
    /// Whether the last piece tells the usage.
    #[serde(default)]
    pub include_usage: bool,
}

/// The text to continue.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// One text.
    Text(String),
    /// A list of texts, of which there must be one.
    Texts(Vec<String>),
    /// Tokens.
    Tokens(Vec<u32>),
    /// A list of lists of tokens, of which there must be one.
    TokenLists(Vec<Vec<u32>>),
}

/// What the answer must look like.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Anything.
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema {
        /// The schema and its name.
        json_schema: JsonSchema,
    },
}

/// A schema in OpenAI's envelope.
#[derive(Clone, Debug, Deserialize)]
pub struct JsonSchema {
    /// The schema.
    pub schema: Value,
}

fn null_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Tool>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
