//! Values in the notation of calls: strings stand between `<|"|>`, keys of objects are bare.

use super::markers::QUOTE;
use serde_json::{Map, Number, Value};

/// Deeper values are refused, in writing and in reading: both descend by recursion.
pub(super) const MAX_DEPTH: usize = 64;

/// Whether a value is nested no deeper than [`MAX_DEPTH`].
pub(super) fn depth_fits(value: &Value) -> bool {
    fn fits(value: &Value, left: usize) -> bool {
        match value {
            Value::Array(items) => left > 0 && items.iter().all(|item| fits(item, left - 1)),
            Value::Object(map) => left > 0 && map.values().all(|item| fits(item, left - 1)),
            _ => true,
        }
    }
    fits(value, MAX_DEPTH)
}

/// The members of an object in the order of Jinja's `dictsort`: by key, without regard to case.
pub(super) fn sorted(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<_> = map.iter().collect();
    members.sort_by_cached_key(|(key, _)| key.to_lowercase());
    members
}

/// Writes a string with its quotes.
pub(super) fn write_str(out: &mut String, text: &str) {
    out.push_str(QUOTE);
    out.push_str(text);
    out.push_str(QUOTE);
}

/// Writes a value. `quote_keys` puts the keys of objects in quotes, as declarations want it.
pub(super) fn write(out: &mut String, value: &Value, quote_keys: bool) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => write_str(out, text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(out, item, quote_keys);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            write_members(out, map, quote_keys);
            out.push('}');
        }
    }
}

/// Writes what stands between the braces of an object.
pub(super) fn write_members(out: &mut String, map: &Map<String, Value>, quote_keys: bool) {
    for (i, (key, value)) in sorted(map).into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        if quote_keys || needs_quotes(key) {
            write_str(out, key);
        } else {
            out.push_str(key);
        }
        out.push(':');
        write(out, value, quote_keys);
    }
}

/// Whether a key would be read back as something else without quotes.
fn needs_quotes(key: &str) -> bool {
    key.is_empty() || key.trim() != key || key.contains([':', '}', '"', '<'])
}

/// Reads a value that is the whole of `text`, but for white space around it.
#[cfg(test)]
pub(super) fn read(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.rest.trim().is_empty().then_some(value)
}

/// Reads `{` members `}` that is the whole of `text`, but for white space around it.
pub(super) fn read_object(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text };
    reader.skip("{").then_some(())?;
    let value = reader.members(0)?;
    reader.rest.trim().is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    /// Skips white space, then `what` if it comes next.
    fn skip(&mut self, what: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(what) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        if self.skip(QUOTE) {
            return self.raw_string().map(|text| Value::String(text.to_owned()));
        }
        if self.skip("{") {
            return self.members(depth);
        }
        if self.skip("[") {
            return self.items(depth);
        }
        if self.rest.starts_with('"') {
            return self.json_string().map(Value::String);
        }
        self.word()
    }

    /// The rest of a string whose opening quote is read. Nothing in it is an escape.
    fn raw_string(&mut self) -> Option<&'a str> {
        let (text, rest) = self.rest.split_once(QUOTE)?;
        self.rest = rest;
        Some(text)
    }

    /// A string in plain JSON, which models write now and then.
    fn json_string(&mut self) -> Option<String> {
        let mut escaped = false;
        let end = self.rest.bytes().enumerate().skip(1).find_map(|(i, byte)| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends.then_some(i + 1)
        })?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        serde_json::from_str(text).ok()
    }

    /// A number, `true`, `false` or `null`. Python's spellings appear because templates are written for it.
    fn word(&mut self) -> Option<Value> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "true" | "True" => Some(Value::Bool(true)),
            "false" | "False" => Some(Value::Bool(false)),
            "null" | "None" => Some(Value::Null),
            _ => serde_json::from_str::<Number>(word).ok().map(Value::Number),
        }
    }

    /// The rest of an array whose bracket is read.
    fn items(&mut self, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        if self.skip("]") {
            return Some(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.skip("]") {
                return Some(Value::Array(items));
            }
            self.skip(",").then_some(())?;
        }
    }

    /// The rest of an object whose brace is read.
    fn members(&mut self, depth: usize) -> Option<Value> {
        let mut map = Map::new();
        if self.skip("}") {
            return Some(Value::Object(map));
        }
        loop {
            let key = self.key()?;
            self.skip(":").then_some(())?;
            map.insert(key, self.value(depth + 1)?);
            if self.skip("}") {
                return Some(Value::Object(map));
            }
            self.skip(",").then_some(())?;
        }
    }

    fn key(&mut self) -> Option<String> {
        if self.skip(QUOTE) {
            return self.raw_string().map(str::to_owned);
        }
        if self.rest.starts_with('"') {
            return self.json_string();
        }
        let end = self.rest.find([':', '}'])?;
        let (key, rest) = self.rest.split_at(end);
        self.rest = rest;
        let key = key.trim_end();
        (!key.is_empty()).then(|| key.to_owned())
    }
}
