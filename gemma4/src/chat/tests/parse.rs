//! Answers taken apart.

use super::super::{builtin::write_call, value};
use super::*;
use proptest::prelude::*;
use serde_json::{Map, Value};

fn answer(reasoning: &str, content: &str, tool_calls: Vec<ToolCall>) -> ParsedAnswer {
    ParsedAnswer { reasoning: reasoning.into(), content: content.into(), tool_calls }
}

/// Content only.
fn says(text: &str) -> String {
    let parsed = ParsedAnswer::parse(text);
    assert_eq!(parsed, answer("", &parsed.content, vec![]), "{text}");
    parsed.content
}

/// The arguments of the one call `call:f{…}`; `None` if it stays content.
fn arguments(members: &str) -> Option<Value> {
    let text = format!("<|tool_call>call:f{{{members}}}<tool_call|>");
    let parsed = ParsedAnswer::parse(&text);
    match parsed.tool_calls.first() {
        Some(only) => {
            assert_eq!(parsed, answer("", "", vec![call("f", only.arguments.clone())]), "{text}");
            Some(only.arguments.clone())
        }
        None => {
            assert_eq!(parsed, answer("", &text, vec![]), "{text}");
            None
        }
    }
}

#[test]
fn text() {
    assert_eq!(says(""), "");
    assert_eq!(says(" \n Hello,\n world! \n"), "Hello,\n world!");
    assert_eq!(says("<|turn>model\nHello"), "Hello");
    assert_eq!(says("a < b <| c <|chan"), "a < b <| c <|chan");
    assert_eq!(says("a<channel|>b<|channel>c<|channel><channel|>"), "abc");
}

#[test]
fn thoughts() {
    let parse = ParsedAnswer::parse;
    let both = answer("Hm.", "Yes.", vec![]);
    assert_eq!(parse("<|channel>thought\nHm.\n<channel|>Yes."), both);
    assert_eq!(parse("<|turn>model\n<|channel>thought Hm.<channel|>\n\nYes.\n<channel|>"), both);
    assert_eq!(parse("<|channel>thought\n<channel|><|channel>thought\nHm.<channel|>Yes."), both);
    assert_eq!(parse("<|channel><|channel>thought\nHm.<channel|>Yes.<|channel>thought\n<channel|>"), both);
    assert_eq!(parse("<|channel>thought\n<|channel>thought\nHm.<channel|>Yes."), both);
    assert_eq!(parse("<|channel>thought\nH<|channel>m.<channel|>Yes."), both);
    assert_eq!(parse("<|channel>thought\n \n<channel|>Yes."), answer("", "Yes.", vec![]));
    let two = "<|channel>thought\nOne.\n<channel|>A<|channel>thought\nTwo.<channel|>B";
    assert_eq!(parse(two), answer("One.\n\nTwo.", "AB", vec![]));
    assert_eq!(parse("<|channel>thought\nNever ends"), answer("Never ends", "", vec![]));
    let draft = "<|channel>thought\nMaybe <|tool_call>call:f{}<tool_call|><channel|>No.";
    assert_eq!(parse(draft), answer("Maybe <|tool_call>call:f{}<tool_call|>", "No.", vec![]));
    assert_eq!(parse("<|channel>"), answer("", "", vec![]));
    assert_eq!(parse("<|channel>thou"), answer("", "thou", vec![]));
}

#[test]
fn calls() {
    let parse = ParsedAnswer::parse;
    let one = call("get_weather", json!({ "city": "Oslo" }));
    let text = "<|tool_call>call:get_weather{city:<|\"|>Oslo<|\"|>}<tool_call|>";
    assert_eq!(parse(text), answer("", "", vec![one.clone()]));
    let twice = format!("<|channel>thought\nAsk.<channel|>I ask.\n{text}\n{text}");
    assert_eq!(parse(&twice), answer("Ask.", "I ask.", vec![one.clone(), one.clone()]));
    let without_end = text.strip_suffix("<tool_call|>").unwrap();
    assert_eq!(parse(without_end), answer("", "", vec![one.clone()]));
    assert_eq!(
        parse(&format!("{without_end}<tool_c")).tool_calls.len(),
        0,
        "half a marker is no white space"
    );
    let nested = call("f", json!({ "a": { "b": [1, { "c": null }], "d": "}" }, "e": [] }));
    let text = "<|tool_call> call: f {a:{b:[1,{c:null}],d:<|\"|>}<|\"|>},e:[]} <tool_call|>";
    assert_eq!(parse(text), answer("", "", vec![nested]));
}

#[test]
fn values() {
    assert_eq!(arguments(""), Some(json!({})));
    assert_eq!(arguments(" \n"), Some(json!({})));
    assert_eq!(
        arguments("a:1,b:-2.5e3,c:true,d:false,e:null"),
        Some(json!({ "a": 1, "b": -2.5e3, "c": true, "d": false, "e": null }))
    );
    assert_eq!(arguments(" a : 1 ,\n b :[ 1 , 2 ] "), Some(json!({ "a": 1, "b": [1, 2] })));
    assert_eq!(arguments("a:None,b:True"), Some(json!({ "a": null, "b": true })));
    assert_eq!(arguments("a:<|\"|><|\"|>"), Some(json!({ "a": "" })));
    assert_eq!(
        arguments("a:<|\"|>x\"\\n{,<tool_call|><|tool_call><|\"|>"),
        Some(json!({ "a": "x\"\\n{,<tool_call|><|tool_call>" }))
    );
    assert_eq!(arguments("\"a b\":\"c\\n\\\"d\""), Some(json!({ "a b": "c\n\"d" })));
    assert_eq!(arguments("<|\"|>a:b<|\"|>:1"), Some(json!({ "a:b": 1 })));
    assert_eq!(arguments("two words:1"), Some(json!({ "two words": 1 })));
    assert_eq!(arguments("a:1,a:2"), Some(json!({ "a": 2 })));
}

#[test]
fn malformed_calls_stay_content() {
    for members in [
        "a", "a:", ":1", "a:1,", "a:1 b:2", "a:Oslo", "a:[1", "a:[1,]", "a:{", "a:1}", "a:01", "a:1e999",
        "a:-", "a:\"open", "a:nul", "a:1]", ",", "{}", "a:<b>",
    ] {
        assert_eq!(arguments(members), None, "{members}");
    }
    let deep = format!("a:{}1{}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(arguments(&deep), None);
    for text in [
        "<|tool_call><tool_call|>",
        "<|tool_call>call:<tool_call|>",
        "<|tool_call>call:{}<tool_call|>",
        "<|tool_call>f{}<tool_call|>",
        "<|tool_call>call:a b{}<tool_call|>",
        "<|tool_call>call:f{} more<tool_call|>",
        "<|tool_call>call:f{a:1",
        "<|tool_call>call:f{a:<|\"|>never closed}<tool_call|>and more",
        "<|tool_call>",
        "<tool_call|>",
    ] {
        assert_eq!(says(text), text);
    }
}

#[test]
fn calls_after_broken_ones() {
    let good = "<|tool_call>call:g{}<tool_call|>";
    for broken in
        ["<|tool_call>call:f{a:1", "<|tool_call>call:f{a:<|\"|>x}<tool_call|>", "<|tool_call>call:f{a:<|\"|>"]
    {
        let parsed = ParsedAnswer::parse(&format!("{broken}{good}"));
        assert_eq!(parsed, answer("", broken, vec![call("g", json!({}))]));
    }
}

#[test]
fn streams_as_soon_as_it_is_certain() {
    let mut parser = AnswerParser::new();
    let content = |text: &str| AnswerPart::Content(text.into());
    assert_eq!(parser.push("<|chan"), []);
    assert_eq!(parser.push("nel>thought\nI "), [AnswerPart::Reasoning("I".into())]);
    assert_eq!(parser.push("see <"), [AnswerPart::Reasoning(" see".into())]);
    assert_eq!(parser.push("3\n<channel|>"), [AnswerPart::Reasoning(" <3".into())]);
    assert_eq!(parser.push("Oh"), [content("Oh")]);
    assert_eq!(parser.push(" <|tool"), []);
    assert_eq!(parser.push("s <|tool_call>call:f{a:<|\"|>1"), [content(" <|tools")]);
    assert_eq!(
        parser.push("<|\"|>}<tool_call|>x"),
        [AnswerPart::ToolCall(call("f", json!({ "a": "1" }))), content(" x")]
    );
    assert_eq!(parser.push(" <"), []);
    assert_eq!(parser.finish(), [content(" <")]);
}

#[test]
fn becomes_a_message() {
    let parsed = ParsedAnswer::parse("<|channel>thought\nr<channel|>c<|tool_call>call:f{}<tool_call|>");
    let expected = Message::assistant("c").with_reasoning("r").with_tool_calls([call("f", json!({}))]);
    assert_eq!(parsed.into_message(), expected);
    assert_eq!(ParsedAnswer::parse("c").into_message(), Message::assistant("c"));
}

#[test]
fn large_and_hostile() {
    for unit in [
        "<|tool_call>",
        "<|tool_call>call:f{a:<|\"|>",
        "<|\"|><tool_call|>",
        "<|channel>",
        "<|channel>thought",
        "<",
        "\n",
    ] {
        let text = unit.repeat(20_000);
        let mut parser = AnswerParser::new();
        let mut parsed = ParsedAnswer::default();
        for piece in text.as_bytes().chunks(997) {
            parsed.extend(parser.push(std::str::from_utf8(piece).unwrap()));
        }
        parsed.extend(parser.finish());
        assert_eq!(parsed, ParsedAnswer::parse(&text));
    }
}

/// Answers made of markers, pieces of them and other text.
fn pieces() -> impl Strategy<Value = Vec<String>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "<|channel>", "thought", "\n", "<channel|>", "<|tool_call>", "<tool_call|>", "<|\"|>", "call:f{",
            "call:f{}<tool_call|>", "<|tool_call>call:f{a:<|\"|>b<|\"|>}<tool_call|>", "a:1", "}", "{", "[", "]",
            ",", "<|turn>model\n", "<|", "<", "|>", "<tool", " ", "x", "\"",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    prop::collection::vec(piece, 0..16)
}

fn values_strategy() -> impl Strategy<Value = Value> {
    let text = any::<String>().prop_filter("no escapes", |text| !text.contains("<|\"|>"));
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9f64).prop_map(|x| Value::from(x.round() / 8.0)),
        text.prop_map(Value::from),
    ];
    let key = prop_oneof!["[a-z_]{1,8}", "[ -~]{0,8}"].prop_filter("no quotes", |key| !key.contains("<|"));
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn cuts_make_no_difference(pieces in pieces(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let text = pieces.concat();
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        at.retain(|&i| text.is_char_boundary(i));
        at.extend([0, text.len()]);
        at.sort_unstable();
        let mut parser = AnswerParser::new();
        let mut parsed = ParsedAnswer::default();
        for range in at.windows(2) {
            parsed.extend(parser.push(&text[range[0]..range[1]]));
        }
        parsed.extend(parser.finish());
        prop_assert_eq!(&parsed, &ParsedAnswer::parse(&text));
        let mut parser = AnswerParser::new();
        let mut single = ParsedAnswer::default();
        for c in text.chars() {
            single.extend(parser.push(c.encode_utf8(&mut [0; 4])));
        }
        single.extend(parser.finish());
        prop_assert_eq!(single, parsed);
    }

    #[test]
    fn calls_come_back(value in values_strategy(), name in "[a-z][a-zA-Z0-9_.:-]{0,12}", raw in any::<String>()) {
        let sent = call(&name, json!({ "v": value }));
        let mut text = String::new();
        write_call(&mut text, &sent);
        prop_assert_eq!(ParsedAnswer::parse(&text).tool_calls, vec![sent]);
        let mut text = String::new();
        value::write(&mut text, &value, true);
        prop_assert_eq!(value::read(&text), Some(value));
        let _ = value::read(&raw);
    }

    #[test]
    fn plain_text_is_not_changed(text in "[^<]*") {
        prop_assert_eq!(ParsedAnswer::parse(&text).content, text.trim());
    }
}
