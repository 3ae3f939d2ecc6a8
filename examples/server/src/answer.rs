//! From a session's events to the JSON of an answer.

use crate::pool::{Event, Outcome};
use crate::prepare::Style;
use gemma4::chat::{AnswerParser, AnswerPart as Part, ParsedAnswer};
use gemma4::{Model, Piece, StopReason};
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes one answer, in pieces or as a whole.
pub struct Writer {
    model: Model,
    /// Name of the model in the answer.
    name: String,
    style: Style,
    id: String,
    created: u64,
    n_prompt: usize,
    parser: AnswerParser,
    /// The answer so far; only of what does not stream.
    answer: ParsedAnswer,
    text: String,
    /// Log-probabilities that no piece has told yet.
    logprobs: Vec<Token>,
    n_generated: usize,
    n_reasoning: usize,
    n_calls: usize,
    /// Bytes of text before the next token, for `text_offset`.
    offset: usize,
}

/// A token with its alternatives.
struct Token {
    id: u32,
    logprob: f32,
    top: Vec<(u32, f32)>,
}

impl Writer {
    /// A writer at the beginning of an answer to a prompt of `n_prompt` tokens.
    pub fn new(model: Model, name: String, style: Style, n_prompt: usize) -> Writer {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let prefix = if style.chat { "chatcmpl" } else { "cmpl" };
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Writer {
            model,
            name,
            style,
            id: format!("{prefix}-{:x}-{count:x}", now.as_nanos()),
            created: now.as_secs(),
            n_prompt,
            parser: AnswerParser::new(),
            answer: ParsedAnswer::default(),
            text: String::new(),
            logprobs: Vec::new(),
            n_generated: 0,
            n_reasoning: 0,
            n_calls: 0,
            offset: 0,
        }
    }

    /// The first chunk of a stream, which tells the role.
    pub fn start(&self) -> Option<Value> {
        self.style.chat.then(|| self.chunk(json!({ "role": "assistant", "content": "" }), None))
    }

    /// The chunks of a stream that follow from a token.
    pub fn piece(&mut self, piece: &Piece) -> Vec<Value> {
        self.count(piece);
        self.stream_text(&piece.text)
    }

    /// The chunks of a stream that follow from text without a token.
    pub fn stream_text(&mut self, text: &str) -> Vec<Value> {
        if !self.style.chat {
            return if text.is_empty() { Vec::new() } else { vec![self.text_chunk(text, None)] };
        }
        let parts = self.parser.push(text);
        self.stream_parts(parts)
    }

    fn stream_parts(&mut self, parts: Vec<Part>) -> Vec<Value> {
        let is_thought = |part: &Part| matches!(part, Part::Reasoning(_));
        self.n_reasoning += usize::from(!parts.is_empty() && parts.iter().all(is_thought));
        let deltas: Vec<_> = parts.into_iter().map(|part| self.delta(part)).collect();
        deltas.into_iter().map(|delta| self.chunk_with_logprobs(delta, None)).collect()
    }

    fn delta(&mut self, part: Part) -> Value {
        match part {
            Part::Reasoning(text) => json!({ "reasoning_content": text }),
            Part::Content(text) => json!({ "content": text }),
            Part::ToolCall(call) => {
                let mut call = json!(call.with_id(self.call_id()));
                call["index"] = (self.n_calls - 1).into();
                json!({ "tool_calls": [call] })
            }
        }
    }

    /// The last chunks of a stream.
    pub fn end(&mut self, outcome: &Outcome) -> Vec<Value> {
        let parts = std::mem::take(&mut self.parser).finish();
        let mut chunks = if self.style.chat { self.stream_parts(parts) } else { Vec::new() };
        let reason = self.finish_reason(&outcome.reason);
        let mut last = if self.style.chat {
            self.chunk_with_logprobs(json!({}), Some(reason))
        } else {
            self.text_chunk("", Some(reason))
        };
        last["timings"] = timings(outcome, self.n_prompt);
        chunks.push(last);
        if self.style.include_usage {
            let mut usage = self.envelope(Vec::new());
            usage["usage"] = self.usage(outcome);
            chunks.push(usage);
        }
        chunks
    }

    /// Takes part of an answer that does not stream.
    pub fn collect(&mut self, event: &Event) {
        let text = match event {
            Event::Piece(piece) => {
                self.count(piece);
                &piece.text
            }
            Event::Text(text) => text,
            _ => return,
        };
        if self.style.chat {
            let parts = self.parser.push(text);
            let is_thought = |part: &Part| matches!(part, Part::Reasoning(_));
            self.n_reasoning += usize::from(!parts.is_empty() && parts.iter().all(is_thought));
            self.answer.extend(parts);
        } else {
            self.text.push_str(text);
        }
    }

    /// The whole answer.
    pub fn whole(&mut self, outcome: &Outcome) -> Value {
        let choice = if self.style.chat { self.message(outcome) } else { self.text_choice(outcome) };
        let mut whole = self.envelope(vec![choice]);
        whole["object"] = if self.style.chat { "chat.completion" } else { "text_completion" }.into();
        whole["usage"] = self.usage(outcome);
        whole["timings"] = timings(outcome, self.n_prompt);
        whole
    }

    fn message(&mut self, outcome: &Outcome) -> Value {
        self.answer.extend(std::mem::take(&mut self.parser).finish());
        let answer = std::mem::take(&mut self.answer);
        let calls: Vec<_> =
            answer.tool_calls.into_iter().map(|call| json!(call.with_id(self.call_id()))).collect();
        let content =
            if answer.content.is_empty() && !calls.is_empty() { Value::Null } else { answer.content.into() };
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
        if !answer.reasoning.is_empty() {
            message["reasoning_content"] = answer.reasoning.into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        let reason = self.finish_reason(&outcome.reason);
        json!({
            "index": 0, "message": message, "logprobs": self.take_logprobs(), "finish_reason": reason,
        })
    }

    fn text_choice(&mut self, outcome: &Outcome) -> Value {
        let reason = self.finish_reason(&outcome.reason);
        let logprobs = self.take_logprobs();
        json!({ "index": 0, "text": self.text, "logprobs": logprobs, "finish_reason": reason })
    }

    fn count(&mut self, piece: &Piece) {
        let Some(id) = piece.token else { return };
        self.n_generated += 1;
        // The end token is no part of the answer.
        if self.style.logprobs && !self.model.tokenizer().is_eog(id) {
            self.logprobs.push(Token { id, logprob: piece.logprob, top: piece.top.clone() });
        }
    }

    fn call_id(&mut self) -> String {
        self.n_calls += 1;
        format!("call_{}_{}", self.id.trim_start_matches("chatcmpl-"), self.n_calls)
    }

    fn finish_reason(&self, reason: &StopReason) -> &'static str {
        match reason {
            StopReason::MaxTokens | StopReason::ContextFull => "length",
            _ if self.n_calls > 0 => "tool_calls",
            _ => "stop",
        }
    }

    fn envelope(&self, choices: Vec<Value>) -> Value {
        let object = if self.style.chat { "chat.completion.chunk" } else { "text_completion" };
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.name, "choices": choices,
        })
    }

    fn chunk(&self, delta: Value, reason: Option<&str>) -> Value {
        self.envelope(vec![json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason })])
    }

    fn chunk_with_logprobs(&mut self, delta: Value, reason: Option<&str>) -> Value {
        let mut chunk = self.chunk(delta, reason);
        chunk["choices"][0]["logprobs"] = self.take_logprobs();
        chunk
    }

    fn text_chunk(&mut self, text: &str, reason: Option<&str>) -> Value {
        let logprobs = self.take_logprobs();
        self.envelope(vec![
            json!({ "index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason }),
        ])
    }

    fn take_logprobs(&mut self) -> Value {
        let tokens = std::mem::take(&mut self.logprobs);
        if tokens.is_empty() {
            return Value::Null;
        }
        if self.style.chat {
            let content: Vec<_> = tokens
                .iter()
                .map(|token| {
                    let mut entry = self.entry(token.id, token.logprob);
                    let top = token.top.iter().map(|&(id, logprob)| self.entry(id, logprob));
                    entry["top_logprobs"] = top.collect();
                    entry
                })
                .collect();
            return json!({ "content": content, "refusal": null });
        }
        let mut offsets = Vec::new();
        for token in &tokens {
            offsets.push(self.offset);
            self.offset += self.bytes(token.id).len();
        }
        let top = |token: &Token| {
            token
                .top
                .iter()
                .map(|&(id, logprob)| (self.token_text(id), logprob.into()))
                .collect::<Map<_, _>>()
        };
        json!({
            "tokens": tokens.iter().map(|t| self.token_text(t.id)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }

    fn entry(&self, id: u32, logprob: f32) -> Value {
        json!({ "token": self.token_text(id), "logprob": logprob, "bytes": self.bytes(id) })
    }

    fn bytes(&self, id: u32) -> &[u8] {
        self.model.tokenizer().token_bytes(id).unwrap_or_default()
    }

    fn token_text(&self, id: u32) -> String {
        let tokenizer = self.model.tokenizer();
        if tokenizer.is_control(id) {
            return tokenizer.token_text(id).unwrap_or_default().to_owned();
        }
        String::from_utf8_lossy(self.bytes(id)).into_owned()
    }

    fn usage(&self, outcome: &Outcome) -> Value {
        json!({
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_generated,
            "total_tokens": self.n_prompt + self.n_generated,
            "prompt_tokens_details": { "cached_tokens": outcome.cached },
            "completion_tokens_details": { "reasoning_tokens": self.n_reasoning },
        })
    }
}

/// Figures of an answer, in the names of llama.cpp's server.
fn timings(outcome: &Outcome, n_prompt: usize) -> Value {
    let stats = &outcome.stats;
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let n = n_prompt - outcome.cached.min(n_prompt);
    let prompt_ms = ms(outcome.prompt_time);
    let drafts = stats.speculation.as_ref();
    json!({
        "cache_n": outcome.cached,
        "prompt_n": n,
        "prompt_ms": prompt_ms,
        "prompt_per_second": if prompt_ms > 0.0 { n as f64 / prompt_ms * 1e3 } else { 0.0 },
        "predicted_n": stats.generated_tokens,
        "predicted_ms": ms(stats.decode_time),
        "predicted_per_second": stats.decode_tokens_per_second(),
        "first_token_ms": outcome.first_token.map(ms),
        "kv_bytes": stats.kv_bytes,
        "draft_n": drafts.map(|drafts| drafts.drafted),
        "draft_n_accepted": drafts.map(|drafts| drafts.accepted),
    })
}
