//! Grammars of answers: calls of tools in the model's own notation, and JSON, with or without a thought before.

use gemma4::Result;
use gemma4::chat::Tool;
use gemma4::grammar::Grammar;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Deeper schemas are not enforced below this level.
const MAX_DEPTH: usize = 12;

/// White space in JSON as `Grammar::json_schema` allows it.
const WHITE_SPACE: &str = r"\x20|\r?\n[\x20\t]{0,32}";

/// What an answer may consist of.
#[derive(Clone, Debug, Default)]
pub struct Shape<'a> {
    /// Whether a thought may come first.
    pub thinking: bool,
    /// Tools that may be called, instead of JSON if there is a schema.
    pub tools: &'a [Tool],
    /// Whether several tools may be called.
    pub parallel: bool,
    /// Schema of the answer.
    pub schema: Option<&'a Value>,
}

impl Shape<'_> {
    /// The grammar of answers of this shape.
    ///
    /// # Errors
    /// As [`Grammar::json_schema`] and [`Grammar::lark`].
    pub fn grammar(&self) -> Result<Grammar> {
        if let (Some(schema), [], false) = (self.schema, self.tools, self.thinking) {
            return Grammar::json_schema(schema);
        }
        let mut lark = String::from("start: ");
        if self.thinking {
            lark.push_str("thought? ");
        }
        let calls = if self.parallel { "call+" } else { "call" };
        match (self.schema.is_some(), self.tools.is_empty()) {
            (true, true) => lark.push_str("json\n"),
            (true, false) => writes(&mut lark, format_args!("(json | {calls})\n")),
            _ => writes(&mut lark, format_args!("{calls}\n")),
        }
        if self.thinking {
            lark.push_str("thought: \"<|channel>thought\\n\" /([^<]|<[^c<])*/ \"<channel|>\"\n");
        }
        if let Some(schema) = self.schema {
            writes(&mut lark, format_args!("json: %json {}\n", with_white_space(schema)));
        }
        if !self.tools.is_empty() {
            lark.push_str(&call_rules(self.tools));
        }
        Grammar::lark(&lark)
    }
}

fn with_white_space(schema: &Value) -> Value {
    let mut members = match schema {
        Value::Object(members) => members.clone(),
        _ => Map::new(),
    };
    members.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": WHITE_SPACE }));
    Value::Object(members)
}

/// Writing to a string cannot fail.
fn writes(out: &mut String, text: std::fmt::Arguments) {
    let _ = out.write_fmt(text);
}

fn call_rules(tools: &[Tool]) -> String {
    let mut rules = Rules::default();
    let calls: Vec<String> = tools
        .iter()
        .map(|tool| {
            let arguments = rules.value(&tool.parameters, &tool.parameters, 0, true);
            format!("{} {arguments}", quoted(&format!("<|tool_call>call:{}", tool.name)))
        })
        .collect();
    let mut out = format!("call: ({}) \"<tool_call|>\"\n", calls.join(" | "));
    out.push_str(&rules.out);
    out.push_str(
        r#"string: "<|\"|>" /([^<]|<[^|<])*/ "<|\"|>"
integer: /-?(0|[1-9][0-9]{0,17})/
number: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][-+]?[0-9]{1,3})?/
boolean: "true" | "false"
any_value: string | number | boolean | "null" | any_list | any_map
any_list: "[" (any_value ("," any_value)*)? "]"
any_map: "{" (any_member ("," any_member)*)? "}"
any_member: /[A-Za-z_][A-Za-z0-9_]*/ ":" any_value
"#,
    );
    out
}

/// A text as a literal of Lark.
fn quoted(text: &str) -> String {
    // JSON's escapes are among Lark's.
    Value::from(text).to_string()
}

#[derive(Default)]
struct Rules {
    out: String,
    n: usize,
}

impl Rules {
    fn add(&mut self, body: &str) -> String {
        self.n += 1;
        let name = format!("r{}", self.n);
        writes(&mut self.out, format_args!("{name}: {body}\n"));
        name
    }

    /// The rule for a value of `schema`. What is not understood allows any value.
    fn value(&mut self, schema: &Value, root: &Value, depth: usize, is_arguments: bool) -> String {
        let any = if is_arguments { "any_map" } else { "any_value" }.to_owned();
        let Value::Object(map) = schema else { return any };
        if depth > MAX_DEPTH {
            return any;
        }
        if let Some(target) = map.get("$ref").and_then(Value::as_str) {
            let target = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
            return target.map_or(any, |schema| self.value(schema, root, depth + 1, is_arguments));
        }
        if let Some(values) = map.get("enum").and_then(Value::as_array) {
            let all: Vec<_> = values.iter().filter_map(literal).collect();
            return if all.len() == values.len() && !all.is_empty() {
                self.add(&all.join(" | "))
            } else {
                any
            };
        }
        if let Some(literal) = map.get("const").and_then(literal) {
            return self.add(&literal);
        }
        if let Some(Value::Array(options)) = map.get("anyOf").or_else(|| map.get("oneOf")) {
            let all: Vec<_> = options.iter().map(|s| self.value(s, root, depth + 1, is_arguments)).collect();
            return if all.is_empty() { any } else { self.add(&all.join(" | ")) };
        }
        match map.get("type") {
            Some(Value::String(kind)) => self.typed(kind, map, root, depth, is_arguments),
            Some(Value::Array(kinds)) => {
                let kinds = kinds.iter().filter_map(Value::as_str);
                let all: Vec<_> = kinds.map(|kind| self.typed(kind, map, root, depth, false)).collect();
                if all.is_empty() { any } else { self.add(&all.join(" | ")) }
            }
            _ if map.contains_key("properties") => self.object(map, root, depth),
            _ => any,
        }
    }

    fn typed(
        &mut self,
        kind: &str,
        map: &Map<String, Value>,
        root: &Value,
        depth: usize,
        is_arguments: bool,
    ) -> String {
        match kind {
            "string" | "integer" | "number" | "boolean" => kind.to_owned(),
            "null" => self.add("\"null\""),
            "array" => {
                let item = self.value(map.get("items").unwrap_or(&Value::Null), root, depth + 1, false);
                self.add(&format!("\"[\" ({item} (\",\" {item})*)? \"]\""))
            }
            "object" if map.contains_key("properties") => self.object(map, root, depth),
            "object" => "any_map".to_owned(),
            _ if is_arguments => "any_map".to_owned(),
            _ => "any_value".to_owned(),
        }
    }

    /// Members in the order in which the model has learned to write them: by name.
    fn object(&mut self, map: &Map<String, Value>, root: &Value, depth: usize) -> String {
        let Some(Value::Object(properties)) = map.get("properties") else { return "any_map".to_owned() };
        let required = map.get("required").and_then(Value::as_array);
        let is_required = |name: &str| required.is_some_and(|r| r.iter().any(|x| x.as_str() == Some(name)));
        let mut members: Vec<_> = properties.iter().collect();
        members.sort_by_cached_key(|(name, _)| name.to_lowercase());
        // What may follow if members were written before, and if none was.
        let (mut after, mut first) = (None::<String>, None::<String>);
        for (name, schema) in members.into_iter().rev() {
            let value = self.value(schema, root, depth + 1, false);
            let member =
                format!("{} {value} {}", quoted(&format!("{name}:")), after.as_deref().unwrap_or(""));
            let mut with = format!("\",\" {member}");
            let mut begin = member;
            if !is_required(name) {
                with = format!("{with} | {}", after.as_deref().unwrap_or("\"\""));
                begin = format!("{begin} | {}", first.as_deref().unwrap_or("\"\""));
            }
            after = Some(self.add(&with));
            first = Some(self.add(&begin));
        }
        let inside = first.unwrap_or_else(|| "\"\"".to_owned());
        self.add(&format!("\"{{\" {inside} \"}}\""))
    }
}

/// A fixed value in the notation of calls.
fn literal(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.contains('<') => Some(quoted(&format!("<|\"|>{text}<|\"|>"))),
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(quoted(&value.to_string())),
        _ => None,
    }
}
