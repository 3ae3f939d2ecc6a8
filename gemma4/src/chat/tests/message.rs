//! Messages in OpenAI's JSON.

use super::*;
use serde_json::{from_value, to_value};

#[test]
fn plain() {
    let message = Message::user("Hi");
    assert_eq!(to_value(&message).unwrap(), json!({ "role": "user", "content": "Hi" }));
    assert_eq!(from_value::<Message>(json!({ "role": "user", "content": "Hi" })).unwrap(), message);
    let nothing = Message::new(Role::Assistant, "");
    assert_eq!(
        from_value::<Message>(json!({ "role": "assistant", "content": null, "tool_calls": null })).unwrap(),
        nothing
    );
    assert_eq!(from_value::<Message>(json!({ "role": "assistant" })).unwrap(), nothing);
    assert!(from_value::<Message>(json!({ "role": "king", "content": "" })).is_err());
}

#[test]
fn parts() {
    let parts = json!({ "role": "user", "content": [
        { "type": "text", "text": "a" }, { "type": "text", "text": "b" } ] });
    assert_eq!(from_value::<Message>(parts).unwrap(), Message::user("ab"));
    let image = json!({ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] });
    assert!(from_value::<Message>(image).unwrap_err().to_string().contains("image_url"));
}

#[test]
fn calls() {
    let message =
        Message::assistant("")
            .with_reasoning("why")
            .with_tool_calls([call("f", json!({ "a": 1 })).with_id("id")]);
    let wire = json!({
        "role": "assistant", "content": "", "reasoning_content": "why",
        "tool_calls": [{ "id": "id", "type": "function",
                         "function": { "name": "f", "arguments": "{\"a\":1}" } }],
    });
    assert_eq!(to_value(&message).unwrap(), wire);
    assert_eq!(from_value::<Message>(wire).unwrap(), message);
    let read = |arguments| {
        from_value::<ToolCall>(json!({ "function": { "name": "f", "arguments": arguments } }))
            .unwrap()
            .arguments
    };
    assert_eq!(read(json!({ "a": 1 })), json!({ "a": 1 }));
    assert_eq!(read(json!("")), json!({}));
    assert_eq!(read(json!(null)), json!({}));
    assert_eq!(read(json!("{broken")), json!("{broken"));
    let result = Message::tool("f", "1").with_tool_call_id("id");
    let wire = json!({ "role": "tool", "content": "1", "name": "f", "tool_call_id": "id" });
    assert_eq!(to_value(&result).unwrap(), wire);
}

#[test]
fn tools() {
    let tool = Tool::new("f", "does", json!({ "type": "object" }));
    let bare = json!({ "name": "f", "description": "does", "parameters": { "type": "object" } });
    let wire = json!({ "type": "function", "function": bare });
    assert_eq!(to_value(&tool).unwrap(), wire);
    assert_eq!(from_value::<Tool>(wire).unwrap(), tool);
    assert_eq!(from_value::<Tool>(bare).unwrap(), tool);
    let least = from_value::<Tool>(json!({ "function": { "name": "f", "description": null } })).unwrap();
    assert_eq!(least, Tool::new("f", "", json!(null)));
}
