//! The built-in format, against prompts written by hand from its grammar.

use super::*;

fn render(messages: &[Message], options: &ChatOptions) -> String {
    ChatTemplate::builtin().render(messages, options).unwrap()
}

#[test]
fn one_question() {
    let expected = "<bos><|turn>user\nHello there<turn|>\n<|turn>model\n";
    assert_eq!(render(&[Message::user("  Hello there\n")], &ChatOptions::default()), expected);
}

#[test]
fn no_messages() {
    assert_eq!(render(&[], &ChatOptions::default()), "<bos><|turn>model\n");
    assert_eq!(render(&[], &ChatOptions::default().add_generation_prompt(false)), "<bos>");
}

#[test]
fn system_and_thinking() {
    let messages = [Message::system(" Be brief. "), Message::user("Hi")];
    let thinking = ChatOptions::default().thinking(true);
    let expected = "<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n";
    assert_eq!(render(&messages, &thinking), expected);
    let expected = "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n";
    assert_eq!(render(&messages, &ChatOptions::default()), expected);
    let developer = [Message::developer("Be brief."), Message::user("Hi")];
    assert_eq!(render(&developer, &ChatOptions::default()), expected);
    let expected = "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n";
    assert_eq!(render(&messages[1..], &thinking), expected);
}

#[test]
fn closed_thought() {
    let messages = [Message::user("Hi")];
    let open = "<bos><|turn>user\nHi<turn|>\n<|turn>model\n";
    let closed = "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>";
    let large = ChatTemplate::builtin().close_thought(true);
    let options = ChatOptions::default();
    assert_eq!(large.render(&messages, &options).unwrap(), closed);
    assert_eq!(large.render(&messages, &options.clone().close_thought(false)).unwrap(), open);
    assert_eq!(render(&messages, &options), open);
    assert_eq!(render(&messages, &options.clone().close_thought(true)), closed);
    let thinking = large.render(&messages, &options.clone().thinking(true)).unwrap();
    assert!(thinking.ends_with("<turn|>\n<|turn>model\n"));
    let none = large.render(&messages, &options.add_generation_prompt(false)).unwrap();
    assert_eq!(none, "<bos><|turn>user\nHi<turn|>\n");
}

#[test]
fn declaration() {
    let prompt = render(&[Message::user("Hi")], &ChatOptions::default().tools([booking()]));
    let expected = concat!(
        "<bos><|turn>system\n<|tool>declaration:book_table{description:<|\"|>Reserves a table.<|\"|>,",
        "parameters:{properties:{",
        "area:{description:<|\"|>Where to sit.<|\"|>,enum:[<|\"|>inside<|\"|>,<|\"|>garden<|\"|>],",
        "type:<|\"|>STRING<|\"|>},",
        "contact:{description:<|\"|>Whom to ask.<|\"|>,properties:{phone:{description:<|\"|>Number.<|\"|>,",
        "type:<|\"|>STRING<|\"|>}},required:[<|\"|>phone<|\"|>],type:<|\"|>OBJECT<|\"|>},",
        "guests:{description:<|\"|>How many.<|\"|>,nullable:true,type:<|\"|>INTEGER<|\"|>},",
        "when:{description:<|\"|>Day and hour.<|\"|>,type:<|\"|>STRING<|\"|>},",
        "wishes:{description:<|\"|>Free text.<|\"|>,items:{type:<|\"|>STRING<|\"|>},type:<|\"|>ARRAY<|\"|>}},",
        "required:[<|\"|>when<|\"|>,<|\"|>guests<|\"|>],type:<|\"|>OBJECT<|\"|>}}<tool|><turn|>\n",
        "<|turn>user\nHi<turn|>\n<|turn>model\n",
    );
    assert_eq!(prompt, expected);
}

#[test]
fn declarations_without_much() {
    let declared = |parameters| {
        let tool = Tool::new("t", "d", parameters);
        let prompt = render(&[], &ChatOptions::default().tools([tool]).add_generation_prompt(false));
        let start = prompt.find("<|\"|>d<|\"|>").unwrap() + "<|\"|>d<|\"|>".len();
        prompt[start..prompt.find("}<tool|>").unwrap()].to_owned()
    };
    assert_eq!(declared(json!(null)), "");
    assert_eq!(declared(json!({})), "");
    assert_eq!(declared(json!({ "type": "object" })), ",parameters:{type:<|\"|>OBJECT<|\"|>}");
    let several = json!({ "properties": { "type": { "type": ["null", "number"] } } });
    let expected = concat!(
        ",parameters:{properties:{type:{nullable:true,type:<|\"|>NUMBER<|\"|>}},",
        "type:<|\"|>OBJECT<|\"|>}"
    );
    assert_eq!(declared(several), expected);
    let alternatives =
        json!({ "properties": { "a": { "anyOf": [{ "type": "string" }, { "type": "null" }] } } });
    assert!(declared(alternatives).contains("a:{nullable:true,type:<|\"|>STRING<|\"|>}"));
    let nested = json!({ "properties": { "a": { "type": "array", "items": {
        "type": "object", "required": ["b"], "description": null,
        "properties": { "b": { "type": "boolean" } }, "x-note": { "k": [1, 2.5] } } } } });
    let expected = concat!(
        "a:{items:{properties:{b:{type:<|\"|>BOOLEAN<|\"|>}},required:[<|\"|>b<|\"|>],",
        "type:<|\"|>OBJECT<|\"|>,x-note:{<|\"|>k<|\"|>:[1,2.5]}},type:<|\"|>ARRAY<|\"|>}"
    );
    assert!(declared(nested.clone()).contains(expected), "{}", declared(nested));
}

#[test]
fn several_turns_lose_thoughts() {
    let messages = [
        Message::user("One?"),
        Message::assistant("<|channel>thought\nhm<channel|>Yes. ").with_reasoning("long ago"),
        Message::user("Two?"),
        Message::assistant("No.<channel|>").with_reasoning("no calls"),
        Message::user("Three?"),
    ];
    let expected = concat!(
        "<bos><|turn>user\nOne?<turn|>\n<|turn>model\nYes.<turn|>\n",
        "<|turn>user\nTwo?<turn|>\n<|turn>model\nNo.<turn|>\n<|turn>user\nThree?<turn|>\n<|turn>model\n",
    );
    assert_eq!(render(&messages, &ChatOptions::default()), expected);
}

/// A question, two calls at once, their results, one more call.
fn with_tools() -> Vec<Message> {
    vec![
        Message::user("Table for two?"),
        Message::assistant("Let me look.").with_reasoning("Ask both.").with_tool_calls([
            call("free", json!({ "when": "today", "Guests": 2, "inside": true })).with_id("a"),
            call("menu", json!({})).with_id("b"),
        ]),
        Message::tool("menu", r#"["soup", {"price": null}]"#).with_tool_call_id("b"),
        Message::new(Role::Tool, r#"{"tables": [3, 4.5], "note": "by the \"door\""}"#).with_tool_call_id("a"),
        Message::assistant("")
            .with_reasoning("Take it.")
            .with_tool_calls([call("take", json!({ "table": 3 }))]),
    ]
}

const WITH_TOOLS: &str = concat!(
    "<bos><|turn>user\nTable for two?<turn|>\n",
    "<|turn>model\n<|channel>thought\nAsk both.\n<channel|>Let me look.",
    "<|tool_call>call:free{Guests:2,inside:true,when:<|\"|>today<|\"|>}<tool_call|>",
    "<|tool_call>call:menu{}<tool_call|>",
    "<|tool_response>response:menu{value:[<|\"|>soup<|\"|>,{price:null}]}<tool_response|>",
    "<|tool_response>response:free{note:<|\"|>by the \"door\"<|\"|>,tables:[3,4.5]}<tool_response|>",
    "<|channel>thought\nTake it.\n<channel|><|tool_call>call:take{table:3}<tool_call|>",
);

#[test]
fn calls_and_responses() {
    let mut messages = with_tools();
    let options = ChatOptions::default().close_thought(true);
    assert_eq!(render(&messages, &options), WITH_TOOLS, "a call without result leaves the turn open");
    messages.push(Message::new(Role::Tool, "done"));
    let done = format!("{WITH_TOOLS}<|tool_response>response:take{{value:<|\"|>done<|\"|>}}<tool_response|>");
    assert_eq!(render(&messages, &options), done, "generation goes on after a response");
    messages.push(Message::assistant("Table 3 is yours."));
    let answered = format!("{done}Table 3 is yours.<turn|>\n");
    let end = "<|turn>model\n<|channel>thought\n<channel|>";
    assert_eq!(render(&messages, &options), format!("{answered}{end}"));
    messages.push(Message::user("Thanks!"));
    let later = render(&messages, &options);
    assert!(!later.contains("Ask both.") && !later.contains("Take it."), "{later}");
    assert!(later.ends_with(&format!("Table 3 is yours.<turn|>\n<|turn>user\nThanks!<turn|>\n{end}")));
}

#[test]
fn results_that_belong_to_nothing() {
    let messages = [Message::user("Hi"), Message::new(Role::Tool, "odd"), Message::user("Hm")];
    let expected = concat!(
        "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|tool_response>response:unknown{value:<|\"|>odd<|\"|>}",
        "<tool_response|><turn|>\n<|turn>user\nHm<turn|>\n<|turn>model\n",
    );
    assert_eq!(render(&messages, &ChatOptions::default()), expected);
}

#[test]
fn results_find_their_calls() {
    let named = |results: Vec<Message>| {
        let mut messages =
            vec![Message::assistant("").with_tool_calls([call("f", json!({})), call("g", json!({}))])];
        messages.extend(results);
        let text = render(&messages, &ChatOptions::default());
        let names = text.split("response:").skip(1).map(|part| part.split('{').next().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    let result = |content: &str| Message::new(Role::Tool, content);
    assert_eq!(named(vec![result("1"), result("2"), result("3")]), ["f", "g", "unknown"]);
    assert_eq!(named(vec![Message::tool("g", "1"), result("2")]), ["g", "f"]);
    assert_eq!(named(vec![result("1").with_tool_call_id("x")]), ["f"]);
    assert_eq!(named(vec![Message::tool("h", "1").with_tool_call_id("x")]), ["h"]);
}

#[test]
fn odd_arguments() {
    let text = |arguments| {
        let message = Message::assistant("").with_tool_calls([call("f", arguments)]);
        render(&[message], &ChatOptions::default()).split_off("<bos><|turn>model\n".len())
    };
    assert_eq!(text(json!("a:1")), "<|tool_call>call:f{a:1}<tool_call|>");
    assert_eq!(text(json!(null)), "<|tool_call>call:f{}<tool_call|>");
    assert_eq!(text(json!([1])), "<|tool_call>call:f{value:[1]}<tool_call|>");
    assert_eq!(text(json!({ "a:b": 1 })), "<|tool_call>call:f{<|\"|>a:b<|\"|>:1}<tool_call|>");
}

#[test]
fn too_deep() {
    let deep = (0..100).fold(json!(1), |value, _| json!([value]));
    let message = Message::assistant("").with_tool_calls([call("f", deep.clone())]);
    let error = ChatTemplate::builtin().render(&[message], &ChatOptions::default()).unwrap_err();
    assert!(error.to_string().contains("nested"), "{error}");
    let options = ChatOptions::default().tools([Tool::new("t", "", deep.clone())]);
    assert!(ChatTemplate::builtin().render(&[], &options).is_err());
    // A result is text after all.
    let result = Message::tool("f", deep.to_string());
    assert!(render(&[result], &ChatOptions::default()).contains("{value:<|\"|>[[[["));
}
