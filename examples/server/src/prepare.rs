//! From the body of a request to a task for a session.

use crate::calls::Shape;
use crate::error::ApiError;
use crate::pool::Task;
use crate::request::{ChatRequest, Common, CompletionRequest, Prompt, ResponseFormat, Stop};
use gemma4::chat::{ChatOptions, Role, Tool};
use gemma4::grammar::Grammar;
use gemma4::{EncodeOptions, GenerateOptions, Model, SamplingOptions, Speculation};
use serde_json::{Value, json};

/// Most stop texts of a request.
const MAX_STOPS: usize = 16;
/// Most alternatives listed for a token, as OpenAI has it.
const MAX_TOP: usize = 20;

/// What a model and its sessions can do, for checking requests.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Capacity of a session in tokens.
    pub n_ctx: u32,
    /// Tokens generated if a request does not say; `None` until the context is full.
    pub max_tokens: Option<u32>,
    /// Whether the model thinks if a request does not say.
    pub thinking: bool,
    /// How many tokens are drafted at once.
    pub speculation: Speculation,
}

/// A task, and how its answer is written.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What the session computes.
    pub task: Task,
    /// How the answer is written.
    pub style: Style,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Whether it is a message or plain text.
    pub chat: bool,
    /// Whether it comes in pieces.
    pub stream: bool,
    /// Whether a stream tells the usage.
    pub include_usage: bool,
    /// Whether log-probabilities are listed.
    pub logprobs: bool,
}

/// Reads a conversation.
///
/// # Errors
/// What the client has to change.
pub fn chat(model: &Model, limits: &Limits, request: ChatRequest) -> Result<Prepared, ApiError> {
    if request.messages.is_empty() {
        return Err(ApiError::invalid("messages", "there must be at least one message"));
    }
    check_tools(&request.tools)?;
    let choice = choice(&request)?;
    let tools = if matches!(choice, Choice::None) { Vec::new() } else { request.tools.clone() };
    let thinking = thinking(&request).unwrap_or(limits.thinking);
    let options = ChatOptions::default().tools(tools.clone()).thinking(thinking);
    for (name, value) in request.chat_template_kwargs.iter().flatten() {
        if name != "enable_thinking" {
            // Their text counts as the template's own; a client must not write control tokens.
            return Err(ApiError::invalid(
                "chat_template_kwargs",
                format!("{name:?} ({value}) cannot be set"),
            ));
        }
    }
    let prompt = model.encode_chat(&request.messages, &options)?;
    let grammar = grammar(&request, &choice, &tools, thinking)?;
    let wanted = request.max_completion_tokens.or(request.common.max_tokens);
    let n_top = match (request.logprobs, request.top_logprobs) {
        (Some(true), n) => n.unwrap_or(0),
        (_, Some(n)) if n > 0 => {
            return Err(ApiError::invalid("top_logprobs", "set logprobs to true with it"));
        }
        _ => 0,
    };
    let generate = generate_options(model, limits, &request.common, wanted, n_top)?.grammar(grammar);
    let style = style(&request.common, true, request.logprobs == Some(true));
    let is_system = matches!(request.messages[0].role, Role::System | Role::Developer) || !tools.is_empty();
    // The first turn is the system's: another conversation may branch off where the second begins.
    let turn = model.tokenizer().token_id("<|turn>");
    let checkpoint = prompt.iter().enumerate().filter(|&(_, &t)| Some(t) == turn).nth(1).map(|(at, _)| at);
    let checkpoint = checkpoint.filter(|_| is_system);
    let use_cache = request.common.cache_prompt.unwrap_or(true);
    check_length(&prompt, limits)?;
    Ok(Prepared { task: Task { prompt, checkpoint, options: generate, use_cache }, style })
}

/// Reads a text to continue.
///
/// # Errors
/// What the client has to change.
pub fn completion(model: &Model, limits: &Limits, request: CompletionRequest) -> Result<Prepared, ApiError> {
    if request.echo == Some(true) {
        return Err(ApiError::invalid("echo", "the prompt cannot be repeated in the answer"));
    }
    if request.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::invalid("suffix", "Gemma 4 cannot fill a gap"));
    }
    if request.best_of.is_some_and(|n| n > 1) {
        return Err(ApiError::invalid("best_of", "only one answer is generated"));
    }
    let one = "a request has exactly one prompt";
    let text = |text: &str| model.tokenizer().encode(text, EncodeOptions::TEXT);
    let prompt = match request.prompt {
        Prompt::Text(only) => text(&only)?,
        Prompt::Texts(all) => match all.as_slice() {
            [only] => text(only)?,
            _ => return Err(ApiError::invalid("prompt", one)),
        },
        Prompt::Tokens(tokens) => tokens,
        Prompt::TokenLists(mut all) if all.len() == 1 => all.remove(0),
        Prompt::TokenLists(_) => return Err(ApiError::invalid("prompt", one)),
    };
    let n_vocab = model.hparams().n_vocab;
    if let Some(bad) = prompt.iter().find(|&&token| token >= n_vocab) {
        let why = format!("token {bad} is outside the vocabulary of {n_vocab}");
        return Err(ApiError::invalid("prompt", why));
    }
    check_length(&prompt, limits)?;
    // OpenAI's default for this endpoint.
    let wanted = request.common.max_tokens.or(Some(16));
    let n_top = request.logprobs.unwrap_or(0);
    let options = generate_options(model, limits, &request.common, wanted, n_top)?;
    let style = style(&request.common, false, request.logprobs.is_some());
    let use_cache = request.common.cache_prompt.unwrap_or(true);
    Ok(Prepared { task: Task { prompt, checkpoint: None, options, use_cache }, style })
}

fn style(common: &Common, chat: bool, logprobs: bool) -> Style {
    let stream = common.stream.unwrap_or(false);
    let include_usage = common.stream_options.unwrap_or_default().include_usage;
    Style { chat, stream, include_usage, logprobs }
}

fn check_length(prompt: &[u32], limits: &Limits) -> Result<(), ApiError> {
    let n = prompt.len();
    if n == 0 {
        return Err(ApiError::invalid("prompt", "the prompt is empty"));
    }
    // One more is needed for an answer.
    if n >= limits.n_ctx as usize {
        let (used, n_ctx) = (0, limits.n_ctx as usize);
        return Err(gemma4::Error::ContextFull { used, requested: n + 1, n_ctx }.into());
    }
    Ok(())
}

fn generate_options(
    model: &Model,
    limits: &Limits,
    common: &Common,
    max_tokens: Option<u32>,
    n_top: usize,
) -> Result<GenerateOptions, ApiError> {
    if common.n.is_some_and(|n| n != 1) {
        return Err(ApiError::invalid("n", "only one answer is generated: n must be 1"));
    }
    if n_top > MAX_TOP {
        return Err(ApiError::invalid("top_logprobs", format!("at most {MAX_TOP} alternatives are listed")));
    }
    if max_tokens == Some(0) {
        return Err(ApiError::invalid("max_tokens", "at least one token is generated"));
    }
    let mut sampling = SamplingOptions::default().n_logprobs(n_top);
    let set = |field: &mut f32, value: Option<f32>| *field = value.unwrap_or(*field);
    set(&mut sampling.temperature, common.temperature);
    set(&mut sampling.top_p, common.top_p);
    set(&mut sampling.min_p, common.min_p);
    set(&mut sampling.frequency_penalty, common.frequency_penalty);
    set(&mut sampling.presence_penalty, common.presence_penalty);
    set(&mut sampling.repetition_penalty, common.repetition_penalty);
    sampling.top_k = common.top_k.unwrap_or(sampling.top_k);
    sampling.seed = common.seed.map(|seed| seed as u64);
    sampling.logit_bias = logit_bias(model, common)?;
    sampling.validate()?;
    let max_tokens = max_tokens.or(limits.max_tokens).map(|n| n as usize);
    let options =
        GenerateOptions::default().sampling(sampling).max_tokens(max_tokens).speculation(limits.speculation);
    let stops = match &common.stop {
        None => &[][..],
        Some(Stop::One(one)) => std::slice::from_ref(one),
        Some(Stop::Many(many)) => many,
    };
    if stops.len() > MAX_STOPS || stops.iter().any(String::is_empty) {
        let why = format!("at most {MAX_STOPS} stop texts, none of them empty");
        return Err(ApiError::invalid("stop", why));
    }
    Ok(stops.iter().fold(options, GenerateOptions::stop))
}

fn logit_bias(model: &Model, common: &Common) -> Result<Vec<(u32, f32)>, ApiError> {
    let n_vocab = model.hparams().n_vocab;
    let entries = common.logit_bias.iter().flatten();
    entries
        .map(|(token, &bias)| match token.parse() {
            // OpenAI's scale ends at -100, which bans a token.
            Ok(id) if id < n_vocab => Ok((id, if bias <= -100.0 { f32::NEG_INFINITY } else { bias })),
            _ => Err(ApiError::invalid("logit_bias", format!("{token:?} is no token id below {n_vocab}"))),
        })
        .collect()
}

/// What the client says about calling tools.
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

fn choice(request: &ChatRequest) -> Result<Choice, ApiError> {
    let bad = |why: String| Err(ApiError::invalid("tool_choice", why));
    let choice = match &request.tool_choice {
        None | Some(Value::Null) => Choice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "none" => Choice::None,
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            other => return bad(format!("{other:?} is none of none, auto, required")),
        },
        Some(object) => match object.pointer("/function/name").and_then(Value::as_str) {
            Some(name) => Choice::Named(name.to_owned()),
            None => return bad("an object must name a function: {\"function\": {\"name\": ...}}".into()),
        },
    };
    match &choice {
        Choice::Required if request.tools.is_empty() => bad("there are no tools to call".into()),
        Choice::Named(name) if !request.tools.iter().any(|tool| &tool.name == name) => {
            bad(format!("there is no tool {name:?}"))
        }
        _ => Ok(choice),
    }
}

fn check_tools(tools: &[Tool]) -> Result<(), ApiError> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    for tool in tools {
        if tool.name.is_empty() || tool.name.len() > 64 || !tool.name.chars().all(is_part) {
            let why = format!("{:?}: a name has 1 to 64 of A-Z a-z 0-9 _ - .", tool.name);
            return Err(ApiError::invalid("tools", why));
        }
    }
    Ok(())
}

fn thinking(request: &ChatRequest) -> Option<bool> {
    let by_template = request.chat_template_kwargs.as_ref().and_then(|v| v.get("enable_thinking")?.as_bool());
    by_template
        .or_else(|| request.reasoning_effort.as_deref().map(|effort| !matches!(effort, "none" | "minimal")))
}

/// The grammar that the request asks for, if any.
fn grammar(
    request: &ChatRequest,
    choice: &Choice,
    tools: &[Tool],
    thinking: bool,
) -> Result<Option<Grammar>, ApiError> {
    let any_object = json!({ "type": "object" });
    let schema = match &request.response_format {
        None | Some(ResponseFormat::Text) => None,
        Some(ResponseFormat::JsonObject) => Some(&any_object),
        Some(ResponseFormat::JsonSchema { json_schema }) => Some(&json_schema.schema),
    };
    let named: Vec<_> = match choice {
        Choice::Named(name) => tools.iter().filter(|tool| &tool.name == name).cloned().collect(),
        _ => tools.to_vec(),
    };
    let is_forced = matches!(choice, Choice::Required | Choice::Named(_));
    let parallel =
        matches!(choice, Choice::Required | Choice::Auto) && request.parallel_tool_calls != Some(false);
    let shape = Shape { thinking, tools: &named, parallel, schema: schema.filter(|_| !is_forced) };
    if !is_forced && schema.is_none() {
        return Ok(None);
    }
    let param = if is_forced { "tools" } else { "response_format" };
    shape.grammar().map(Some).map_err(|e| ApiError { param: Some(param.to_owned()), ..e.into() })
}
