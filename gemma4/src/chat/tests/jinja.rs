//! Templates from files.

use super::*;
use crate::Error;

fn render(source: &str, messages: &[Message], options: &ChatOptions) -> String {
    ChatTemplate::new(source).unwrap().render(messages, options).unwrap()
}

fn error(source: &str) -> String {
    let result = ChatTemplate::with_fuel(source, 1_000_000)
        .and_then(|template| template.render(&[Message::user("Hi")], &ChatOptions::default()));
    match result {
        Err(Error::Template(what)) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn small() {
    let source = "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}";
    let messages = [Message::user(" a "), Message::assistant("b"), Message::tool("f", "c")];
    let expected =
        "<bos><|turn>user\na<turn|>\n<|turn>model\nb<turn|>\n<|turn>tool\nc<turn|>\n<|turn>model\n";
    assert_eq!(render(source, &messages, &ChatOptions::default()), expected);
    let template = ChatTemplate::new(source).unwrap();
    assert_eq!(template.source(), Some(source));
    assert!(format!("{template:?}").contains("bytes of Jinja"));
}

#[test]
fn agrees_with_the_builtin() {
    let conversations = [
        vec![Message::user("Hi <b>|</b>")],
        vec![Message::system(" s "), Message::user("a"), Message::assistant(" b"), Message::user("c")],
        vec![
            Message::user("q"),
            Message::assistant("text").with_reasoning("r").with_tool_calls([
                call("f", json!({ "b": [1, null, true], "A": { "x": "y", "e": {} }, "c": -2.5 })),
                call("g", json!({})),
            ]),
            Message::tool("g", "one"),
            Message::new(Role::Tool, "two"),
        ],
    ];
    let tool = Tool::new("t", "Does it.", json!(null));
    for messages in conversations {
        for options in [
            ChatOptions::default(),
            ChatOptions::default().thinking(true).add_generation_prompt(false),
            ChatOptions::default().tools([tool.clone()]).close_thought(true),
        ] {
            let builtin = ChatTemplate::builtin().render(&messages, &options).unwrap();
            assert_eq!(render(MODERN, &messages, &options), builtin);
        }
    }
}

#[test]
fn old_templates_get_responses() {
    let messages = [
        Message::user("q"),
        Message::assistant("Looking.")
            .with_tool_calls([call("f", json!({ "a": "x" })), call("g", json!({}))]),
        Message::new(Role::Tool, "{\"k\": 1}"),
        Message::new(Role::Tool, "plain"),
        Message::assistant("").with_tool_calls([call("h", json!({}))]),
        Message::tool("h", "3"),
        Message::assistant("Done."),
    ];
    let head = concat!(
        "<bos><|turn>user\nq<turn|>\n<|turn>model\nLooking.<turn|>\n<|turn>model\n",
        "<|tool_call>call:f{a:<|\"|>x<|\"|>}<tool_call|><|tool_call>call:g{}<tool_call|>",
        "<|tool_response>response:f{value:{\"k\": 1}}<tool_response|>",
        "<|tool_response>response:g{value:plain}<tool_response|>",
        "<|tool_call>call:h{}<tool_call|><|tool_response>response:h{value:3}<tool_response|>",
    );
    let thinking = ChatOptions::default().thinking(true);
    assert_eq!(render(OLD, &messages[..6], &thinking), head);
    let all = format!("{head}Done.<turn|>\n<|turn>model\n");
    assert_eq!(render(OLD, &messages, &thinking), all, "the turn that the template forgets");
    let closed = "<|channel>thought\n<channel|>";
    assert_eq!(render(OLD, &messages, &ChatOptions::default()), format!("{all}{closed}"));
    assert_eq!(render(OLD, &messages, &ChatOptions::default().close_thought(false)), all);
    assert_eq!(render(OLD, &messages[..6], &ChatOptions::default().close_thought(true)), head);
    let small = ChatTemplate::new(OLD).unwrap().close_thought(false);
    assert_eq!(small.render(&messages, &ChatOptions::default()).unwrap(), all);
}

#[test]
fn what_templates_may_use() {
    let show = |source: &str| {
        let options = ChatOptions::default().variable("v", json!({ "a": [1, "<é>"], "b": null }));
        render(source, &[Message::user("a,b")], &options)
    };
    assert_eq!(show("{{ messages[0].content.split(',')[1].upper() }}"), "B");
    assert_eq!(
        show("{{ ' x '.strip() }}{{ 'abc'.startswith('ab') }}{{ {'k': 1}.items() | list }}"),
        "xTrue[[\"k\", 1]]"
    );
    assert_eq!(show("{{ v | tojson }}"), r#"{"a": [1, "<é>"], "b": null}"#);
    assert_eq!(show("{{ {'a': 1} | tojson(indent=2) }}"), "{\n  \"a\": 1\n}");
    assert_eq!(show("{{ nothing | upper }}{{ nothing | default('d') }}{{ none }}"), "dnull");
    assert_eq!(show("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"), "1");
    assert_eq!(show("{{ ['a', 'b'] | map('upper') | list | join('+') }}{{ v is mapping }}"), "A+BTrue");
    assert_eq!(show("  {% if true %}\nx\n{% endif %}\n"), "x\n");
    assert_eq!(show("{% if tools is none %}none{% endif %}"), "none");
}

#[test]
fn variables() {
    let options = ChatOptions::default().variable("name", "<|turn>x").variable("messages", "no");
    let segments = ChatTemplate::new("{{ name }}{{ messages[0].content }}{{ bos_token }}")
        .unwrap()
        .render_segments(&[Message::user("<|turn>")], &options)
        .unwrap();
    let trusted: Vec<_> = segments.iter().filter(|s| s.trusted).map(|s| s.text.as_str()).collect();
    assert_eq!(trusted, ["<|turn>", "<bos>"]);
    let options = ChatOptions::default().variable("bos_token", "[BOS]");
    assert_eq!(render("{{ bos_token }}", &[], &options), "[BOS]");
}

#[test]
fn failures() {
    assert!(error("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
    assert!(error("{% if %}").contains("syntax error"));
    assert!(error("{{ messages[0].content.nothing() }}").contains("nothing"));
    assert!(error("{{ strftime_now('%d') }}").contains("strftime_now"));
    assert!(error("{% include 'other' %}").contains("template"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
    assert!(error(endless).contains("never end"));
    error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
    error("{% include 'chat_template' %}");
    let long = "{% set s = 'x' * 90000000 %}{{ s }}{{ s }}{{ s }}";
    assert!(!error(long).is_empty());
}

#[test]
fn many_messages() {
    let messages: Vec<_> = (0..2000).map(|i| Message::user(i.to_string())).collect();
    assert!(render(MODERN, &messages, &ChatOptions::default()).contains("1999<turn|>"));
}
