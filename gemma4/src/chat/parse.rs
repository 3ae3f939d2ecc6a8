//! What the model wrote, taken apart: thoughts, text and calls.

use super::markers::{CALL, CALL_END, CHANNEL, CHANNEL_END, Found, MODEL_TURN, QUOTE, find};
use super::message::{Message, ToolCall};
use super::value;

/// What opens a thought, after [`CHANNEL`].
const THOUGHT: &str = "thought";

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerPart {
    /// More of what the model thinks.
    Reasoning(String),
    /// More of what it says.
    Content(String),
    /// A complete call of a tool, without an id.
    ToolCall(ToolCall),
}

/// A whole answer of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParsedAnswer {
    /// What the model thought. Several thoughts are separated by an empty line.
    pub reasoning: String,
    /// What it said, without white space at either end.
    pub content: String,
    /// The tools it called, in order.
    pub tool_calls: Vec<ToolCall>,
}

impl ParsedAnswer {
    /// Takes a whole answer apart. See [`AnswerParser`] for the rules.
    pub fn parse(text: &str) -> ParsedAnswer {
        let mut parser = AnswerParser::new();
        let mut answer = ParsedAnswer::default();
        answer.extend(parser.push(text));
        answer.extend(parser.finish());
        answer
    }

    /// The answer as a message for the next prompt.
    pub fn into_message(self) -> Message {
        let mut message = Message::assistant(self.content).with_tool_calls(self.tool_calls);
        message.reasoning = (!self.reasoning.is_empty()).then_some(self.reasoning);
        message
    }
}

impl Extend<AnswerPart> for ParsedAnswer {
    fn extend<I: IntoIterator<Item = AnswerPart>>(&mut self, events: I) {
        for event in events {
            match event {
                AnswerPart::Reasoning(text) => self.reasoning.push_str(&text),
                AnswerPart::Content(text) => self.content.push_str(&text),
                AnswerPart::ToolCall(call) => self.tool_calls.push(call),
            }
        }
    }
}

/// Takes an answer apart while it is written.
///
/// The text must hold the markers of channels and calls, which the tokenizer prints even where it hides
/// control tokens. How it is cut into pieces makes no difference to what comes out, only to when.
///
/// * A thought is `<|channel>thought` … `<channel|>`. Empty thoughts vanish. A thought that is not closed
///   reaches to the end. Any other `<|channel>` and any `<channel|>` without a thought vanish.
/// * A call is `<|tool_call>call:name{…}<tool_call|>`. What has the markers but is no well-formed call stays
///   in the content, markers and all. At the end of the text a complete call may lack its last marker.
///   A call is held back until it is complete; if a quote in it is never closed, until the end of the text.
/// * White space at the ends of the content and of each thought is dropped. It is held back until something
///   follows, as is what may be the beginning of a marker.
#[derive(Clone, Debug, Default)]
pub struct AnswerParser {
    state: State,
    /// Text that is not dealt with yet begins at `pos`.
    held: String,
    pos: usize,
    /// Within a call: how far after `pos` the search for its end has come, and whether that is in a string.
    scanned: usize,
    in_string: bool,
    content: Trimmer,
    reasoning: Trimmer,
    events: Vec<AnswerPart>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    /// Before the first character: the prompt's `<|turn>model` may be echoed.
    #[default]
    Start,
    Content,
    /// After `<|channel>`, within a thought or not.
    Channel {
        thinking: bool,
    },
    Thought,
    /// After `<|tool_call>`, at which `pos` points.
    Call,
}

impl AnswerParser {
    /// A parser at the beginning of an answer.
    pub fn new() -> AnswerParser {
        AnswerParser::default()
    }

    /// Adds text and returns what is certain by now.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        self.held.push_str(text);
        while self.step(false) {}
        self.held.drain(..self.pos);
        self.pos = 0;
        std::mem::take(&mut self.events)
    }

    /// Says that no more text comes, and returns what was held back.
    pub fn finish(mut self) -> Vec<AnswerPart> {
        while self.step(true) {}
        self.events
    }

    /// Goes on as far as one state does. False when there is nothing to do without more text; with `end`,
    /// when all text is used up.
    fn step(&mut self, end: bool) -> bool {
        match self.state {
            State::Start => {
                let rest = &self.held[self.pos..];
                if !end && rest.len() < MODEL_TURN.len() && MODEL_TURN.starts_with(rest) {
                    return false;
                }
                if rest.starts_with(MODEL_TURN) {
                    self.pos += MODEL_TURN.len();
                }
                self.state = State::Content;
                true
            }
            State::Content => self.step_content(end),
            State::Channel { thinking } => {
                let rest = &self.held[self.pos..];
                if rest.starts_with(THOUGHT) {
                    self.pos += THOUGHT.len();
                    self.reasoning.new_block();
                    self.state = State::Thought;
                } else if !end && THOUGHT.starts_with(rest) {
                    return false;
                } else {
                    self.state = if thinking { State::Thought } else { State::Content };
                }
                true
            }
            State::Thought => self.step_thought(end),
            State::Call => self.step_call(end),
        }
    }

    fn step_content(&mut self, end: bool) -> bool {
        let rest = &self.held[self.pos..];
        let (text, next) = match find(rest, &[CHANNEL, CHANNEL_END, CALL]) {
            Found::Marker { at, which: 0 } => (at, Some((CHANNEL.len(), State::Channel { thinking: false }))),
            Found::Marker { at, which: 1 } => (at, Some((CHANNEL_END.len(), State::Content))),
            Found::Marker { at, .. } => (at, Some((0, State::Call))),
            Found::Partial(at) if !end => (at, None),
            _ => (rest.len(), None),
        };
        self.say(text);
        self.enter(next)
    }

    fn step_thought(&mut self, end: bool) -> bool {
        let rest = &self.held[self.pos..];
        let (text, next) = match find(rest, &[CHANNEL, CHANNEL_END]) {
            Found::Marker { at, which: 0 } => (at, Some((CHANNEL.len(), State::Channel { thinking: true }))),
            Found::Marker { at, .. } => (at, Some((CHANNEL_END.len(), State::Content))),
            Found::Partial(at) if !end => (at, None),
            _ => (rest.len(), None),
        };
        if let Some(text) = self.reasoning.push(&self.held[self.pos..self.pos + text]) {
            self.events.push(AnswerPart::Reasoning(text));
        }
        self.pos += text;
        self.enter(next)
    }

    /// Skips a marker and changes the state; false without a next one.
    fn enter(&mut self, next: Option<(usize, State)>) -> bool {
        let Some((skip, state)) = next else { return false };
        self.pos += skip;
        self.state = state;
        self.scanned = CALL.len();
        self.in_string = false;
        true
    }

    /// Uses up `len` bytes as content.
    fn say(&mut self, len: usize) {
        if let Some(text) = self.content.push(&self.held[self.pos..self.pos + len]) {
            self.events.push(AnswerPart::Content(text));
        }
        self.pos += len;
    }

    /// Looks for the end of the call at `pos`, outside strings.
    fn step_call(&mut self, end: bool) -> bool {
        loop {
            let text = &self.held[self.pos..];
            let markers: &[&str] = if self.in_string { &[QUOTE] } else { &[QUOTE, CALL_END, CALL] };
            match find(&text[self.scanned..], markers) {
                Found::Marker { at, which: 0 } => {
                    self.in_string = !self.in_string;
                    self.scanned += at + QUOTE.len();
                }
                Found::Marker { at, which: 1 } => {
                    let body = self.scanned + at;
                    self.end_call(body, body + CALL_END.len());
                    return true;
                }
                // A call within a call: the first has lost its end.
                Found::Marker { at, .. } => {
                    self.say(self.scanned + at);
                    return self.enter(Some((0, State::Call)));
                }
                _ if end => return self.cut_call(),
                Found::Partial(at) => {
                    self.scanned += at;
                    return false;
                }
                Found::Nothing => {
                    self.scanned = text.len();
                    return false;
                }
            }
        }
    }

    /// The call at `pos` ends: its inside at `body`, its last marker at `len`.
    fn end_call(&mut self, body: usize, len: usize) {
        match read_call(&self.held[self.pos + CALL.len()..self.pos + body]) {
            Some(call) => {
                self.events.push(AnswerPart::ToolCall(call));
                self.pos += len;
            }
            None => self.say(len),
        }
        self.state = State::Content;
    }

    /// The text is over within a call. If the call is complete, only its marker is missing. Otherwise a quote
    /// is missing, and the first marker that seemed to be in a string ends the call after all.
    fn cut_call(&mut self) -> bool {
        let text = &self.held[self.pos..];
        let whole = text.len();
        if read_call(&text[CALL.len()..]).is_some() {
            self.end_call(whole, whole);
            return true;
        }
        match find(&text[CALL.len()..], &[CALL_END, CALL]) {
            Found::Marker { at, which: 0 } => {
                self.say(CALL.len() + at + CALL_END.len());
                self.state = State::Content;
                true
            }
            Found::Marker { at, .. } => {
                self.say(CALL.len() + at);
                self.enter(Some((0, State::Call)))
            }
            _ => {
                self.say(whole);
                self.state = State::Content;
                true
            }
        }
    }
}

/// Reads `call:name{…}`, what stands between the markers of a call.
fn read_call(text: &str) -> Option<ToolCall> {
    let rest = text.trim_start().strip_prefix("call:")?;
    let brace = rest.find('{')?;
    let name = rest[..brace].trim();
    let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || "<>}\"".contains(c));
    is_name.then(|| value::read_object(&rest[brace..]).map(|arguments| ToolCall::new(name, arguments)))?
}

/// Lets text through without white space at its ends.
#[derive(Clone, Debug, Default)]
struct Trimmer {
    /// Something came through.
    begun: bool,
    /// Something of the present block came through.
    in_block: bool,
    /// White space that is shown only if something follows.
    space: String,
}

impl Trimmer {
    /// What follows is separated from what was by an empty line.
    fn new_block(&mut self) {
        self.in_block = false;
        self.space.clear();
    }

    fn push(&mut self, text: &str) -> Option<String> {
        let text = if self.in_block { text } else { text.trim_start() };
        let shown = text.trim_end();
        if shown.is_empty() {
            self.space.push_str(text);
            return None;
        }
        let mut out = std::mem::take(&mut self.space);
        if self.begun && !self.in_block {
            out.push_str("\n\n");
        }
        out.push_str(shown);
        self.space.push_str(&text[shown.len()..]);
        (self.begun, self.in_block) = (true, true);
        Some(out)
    }
}
