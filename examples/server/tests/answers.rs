//! What answers look like.

mod common;

use common::{app, chat, content, get, post};
use gemma4::{EncodeOptions, GenerateOptions, Session, SessionOptions};
use serde_json::{Value, json};

#[tokio::test]
async fn a_message_is_answered() {
    let app = app();
    let answer = chat(&app, "Define the word house.", json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let answer = answer.json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "tiny");
    assert!(!content(&answer).is_empty());
    let usage = &answer["usage"];
    let n = |name: &str| usage[name].as_u64().unwrap();
    assert!(n("prompt_tokens") > 5 && n("completion_tokens") > 1, "{usage}");
    assert_eq!(n("total_tokens"), n("prompt_tokens") + n("completion_tokens"));
    let finish = answer["choices"][0]["finish_reason"].as_str().unwrap();
    assert!(finish == "stop" || n("completion_tokens") == 24 && finish == "length", "{answer}");
}

#[tokio::test]
async fn a_stream_tells_the_same_as_a_whole_answer() {
    let app = app();
    let whole = chat(&app, "Define the word tree.", json!({})).await.json();
    let extra = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let stream = chat(&app, "Define the word tree.", extra).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    let chunks = stream.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let delta = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned();
    assert_eq!(chunks.iter().map(delta).collect::<String>(), content(&whole));
    let [.., last, usage] = chunks.as_slice() else { panic!("{}", stream.text) };
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
}

#[tokio::test]
async fn completions_are_what_the_library_generates() {
    let app = app();
    let prompt = "def add(a, b):\n";
    let body = json!({ "prompt": prompt, "temperature": 0, "max_tokens": 20, "logprobs": 2 });
    let answer = post(&app, "/v1/completions", body.clone()).await.json();
    let model = common::model();
    let tokens = model.tokenizer().encode(prompt, EncodeOptions::TEXT).unwrap();
    let mut session = Session::new(&model, &SessionOptions::default().n_threads(1)).unwrap();
    let text = session.generate(&tokens, &GenerateOptions::greedy().max_tokens(20)).unwrap().text().unwrap();
    assert_eq!(answer["choices"][0]["text"], text);

    let logprobs = &answer["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let tokens: Vec<_> = list("tokens").iter().map(|t| t.as_str().unwrap().to_owned()).collect();
    assert_eq!(tokens.concat(), text);
    for (i, token) in tokens.iter().enumerate() {
        let offset = list("text_offset")[i].as_u64().unwrap() as usize;
        assert!(text[offset..].starts_with(token), "{logprobs}");
        let top = list("top_logprobs")[i].as_object().unwrap().clone();
        // Greedy: the chosen token is the best one.
        assert_eq!(top[token], list("token_logprobs")[i]);
        assert!(top.values().all(|p| p.as_f64().unwrap() <= top[token].as_f64().unwrap()));
    }

    let mut stream = body;
    stream["stream"] = true.into();
    let chunks = post(&app, "/v1/completions", stream).await.chunks();
    let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, text);

    let stop = json!({ "prompt": prompt, "temperature": 0, "max_tokens": 20, "stop": ["return"] });
    let stopped = post(&app, "/v1/completions", stop).await.json();
    assert_eq!(stopped["choices"][0]["text"], text.split("return").next().unwrap());
}

#[tokio::test]
async fn chat_logprobs_spell_the_answer() {
    let app = app();
    let extra = json!({ "logprobs": true, "top_logprobs": 3 });
    let answer = chat(&app, "Define the word river.", extra).await.json();
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes).trim(), content(&answer));
    assert!(entries.iter().all(|entry| entry["top_logprobs"].as_array().unwrap().len() == 3));
}

#[tokio::test]
async fn a_seed_repeats_an_answer() {
    let app = app();
    let mut answers = Vec::new();
    for seed in [7, 7, 8, -1] {
        let extra = json!({ "temperature": 1.0, "seed": seed });
        answers.push(content(&chat(&app, "Tell me something.", extra).await.json()).to_owned());
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[1] != answers[2] || answers[2] != answers[3], "{answers:?}");
}

#[tokio::test]
async fn a_schema_is_kept_to() {
    let app = app();
    let schema = json!({
        "type": "object",
        "properties": {
            "word": { "enum": ["house", "tree"] }, "count": { "type": "integer", "minimum": 0, "maximum": 99 },
        },
        "required": ["word", "count"], "additionalProperties": false,
    });
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema, "strict": true } });
    let extra = json!({ "response_format": format, "max_tokens": 64 });
    let answer = chat(&app, "Give me JSON.", extra).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    let object: Value = serde_json::from_str(content(&answer)).unwrap();
    assert!(["house", "tree"].contains(&object["word"].as_str().unwrap()), "{object}");
    assert!(object["count"].as_u64().unwrap() <= 99, "{object}");
}

fn weather() -> Value {
    json!([{ "type": "function", "function": {
        "name": "weather", "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": { "enum": ["Oslo", "Rome"] }, "days": { "type": "integer" },
                "where": { "type": "object", "properties": { "indoors": { "type": "boolean" } },
                           "required": ["indoors"] },
            },
            "required": ["city", "where"],
        },
    } }])
}

fn check_call(call: &Value) {
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"]["name"], "weather");
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
    assert!(arguments["where"]["indoors"].is_boolean(), "{arguments}");
}

#[tokio::test]
async fn a_tool_is_called_when_it_must_be() {
    let app = app();
    let choice = json!({ "type": "function", "function": { "name": "weather" } });
    for choice in [choice, json!("required")] {
        let extra = json!({
            "tools": weather(), "tool_choice": choice, "parallel_tool_calls": false, "max_tokens": 200,
        });
        let answer = chat(&app, "How is it in Oslo?", extra.clone()).await.json();
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(answer["choices"][0]["message"]["content"], Value::Null);
        let call = answer["choices"][0]["message"]["tool_calls"][0].clone();
        check_call(&call);

        let mut extra = extra;
        extra["stream"] = true.into();
        let chunks = chat(&app, "How is it in Oslo?", extra).await.chunks();
        let calls: Vec<_> = chunks
            .iter()
            .filter_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array())
            .flatten()
            .collect();
        assert_eq!(calls.len(), 1, "{chunks:?}");
        assert_eq!(calls[0]["index"], 0);
        assert_eq!(calls[0]["function"], call["function"]);
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

        // The answer and the result go back into a conversation.
        let messages = json!([
            { "role": "user", "content": "How is it in Oslo?" },
            answer["choices"][0]["message"],
            { "role": "tool", "tool_call_id": call["id"], "content": "{\"sky\": \"clear\"}" },
        ]);
        let next = chat(&app, "", json!({ "messages": messages, "tools": weather() })).await;
        assert_eq!(next.status, 200, "{}", next.text);
    }
}

#[tokio::test]
async fn a_thought_may_come_before_json() {
    let app = app();
    let extra = json!({
        "reasoning_effort": "high", "response_format": { "type": "json_schema", "json_schema": { "name": "x",
            "schema": { "enum": ["yes", "no"] } } },
        // Ends the thought that the tiny model would never end.
        "logit_bias": { (common::model().tokenizer().token_id("<channel|>").unwrap().to_string()): 100 },
    });
    let answer = chat(&app, "Is it?", extra).await.json();
    assert!(["\"yes\"", "\"no\""].contains(&content(&answer)), "{answer}");
}

#[tokio::test]
async fn models_health_and_metrics() {
    let app = app();
    let models = get(&app, "/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(get(&app, "/v1/models/tiny").await.json()["object"], "model");
    let health = get(&app, "/health").await.json();
    assert_eq!((&health["status"], &health["n_ctx"]), (&json!("ok"), &json!(2048)));
    let answer = chat(&app, "Hello", json!({})).await.json();
    let page = get(&app, "/metrics").await.text;
    let n = &answer["usage"]["completion_tokens"];
    for line in [
        "gemma4_requests_total{endpoint=\"/v1/chat/completions\",status=\"200\"} 1".to_owned(),
        format!("gemma4_generated_tokens_total {n}"),
        "gemma4_time_to_first_token_seconds_count 1".to_owned(),
        "# EOF".to_owned(),
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is missing in\n{page}");
    }
}

#[tokio::test]
async fn the_page_comes_whole_from_this_server() {
    let app = app();
    let page = get(&app, "/").await;
    assert!(page.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    for file in ["page.js", "page.css"] {
        assert!(page.text.contains(file));
        let file = get(&app, &format!("/{file}")).await;
        assert_eq!(file.status, 200);
        assert!(!file.text.contains("http://") && !file.text.contains("https://"));
    }
}
