//! What is refused, and how.

mod common;

use axum::body::Body;
use axum::http::Request;
use common::{app, app_of, chat, config, get, post, send};
use gemma4_server::Config;
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn bad_requests_say_what_is_wrong() {
    let app = app();
    let long = "word ".repeat(4000);
    let schema = |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } } });
    let tool = json!([{ "type": "function", "function": { "name": "a b" } }]);
    let cases: Vec<(Value, u16, Value, Value)> = vec![
        (json!({ "model": "gpt-4" }), 404, json!("model_not_found"), json!("model")),
        (json!({ "messages": [] }), 400, Value::Null, json!("messages")),
        (json!({ "n": 2 }), 400, Value::Null, json!("n")),
        (json!({ "temperature": 1e300 }), 400, Value::Null, json!("temperature")),
        (json!({ "top_p": 1.5 }), 400, Value::Null, json!("top_p")),
        (json!({ "max_tokens": 0 }), 400, Value::Null, json!("max_tokens")),
        (json!({ "logprobs": true, "top_logprobs": 21 }), 400, Value::Null, json!("top_logprobs")),
        (json!({ "stop": [""] }), 400, Value::Null, json!("stop")),
        (json!({ "logit_bias": { "999999": 1 } }), 400, Value::Null, json!("logit_bias")),
        (json!({ "tool_choice": "required" }), 400, Value::Null, json!("tool_choice")),
        (json!({ "tools": tool }), 400, Value::Null, json!("tools")),
        (schema(json!({ "type": "nonsense" })), 400, json!("invalid_grammar"), json!("response_format")),
        (
            json!({ "messages": [{ "role": "user", "content": long }] }),
            400,
            json!("context_length_exceeded"),
            Value::Null,
        ),
        (
            json!({ "chat_template_kwargs": { "x": "<|turn>" } }),
            400,
            Value::Null,
            json!("chat_template_kwargs"),
        ),
    ];
    for (extra, status, code, param) in cases {
        let error = chat(&app, "Hello", extra.clone()).await.error(status);
        assert_eq!((&error["code"], &error["param"]), (&code, &param), "{extra}: {error}");
    }
    for extra in [
        json!({ "echo": true }),
        json!({ "suffix": "x" }),
        json!({ "prompt": ["a", "b"] }),
        json!({ "prompt": [9999999] }),
    ] {
        let mut body = json!({ "prompt": "a" });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        post(&app, "/v1/completions", body).await.error(400);
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let app = app();
    let path = "/v1/chat/completions";
    let raw = |kind: &str, body: &str| {
        Request::post(path).header("content-type", kind).body(Body::from(body.to_owned())).unwrap()
    };
    send(&app, raw("application/json", "{")).await.error(400);
    send(&app, raw("application/json", "{}")).await.error(400);
    send(&app, raw("text/plain", "{}")).await.error(415);
    let image = json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] });
    post(&app, path, image).await.error(400);
    get(&app, "/nothing").await.error(404);
    get(&app, path).await.error(405);
    get(&app, "/v1/models/other").await.error(404);
}

#[tokio::test]
async fn large_and_slow_bodies_are_refused() {
    let app = app_of(512, Config { max_body: 1000, body_timeout: Duration::from_millis(50), ..config() });
    chat(&app, &"x".repeat(2000), json!({})).await.error(413);
    // Without a length that would give it away.
    let parts = futures_util::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>("xxxxxxxxxxxxxxxxxxxx")));
    let request = Request::post("/v1/completions").header("content-type", "application/json");
    send(&app, request.body(Body::from_stream(parts)).unwrap()).await.error(413);
    let never = futures_util::stream::pending::<Result<&str, std::io::Error>>();
    let request = Request::post("/v1/completions").header("content-type", "application/json");
    send(&app, request.body(Body::from_stream(never)).unwrap()).await.error(408);
}

#[tokio::test]
async fn a_key_is_asked_for() {
    let app = app_of(512, Config { api_key: Some("secret".into()), ..config() });
    let with = |key: &str| {
        let request = Request::get("/v1/models").header("authorization", key);
        send(&app, request.body(Body::empty()).unwrap())
    };
    assert_eq!(with("Bearer secret").await.status, 200);
    for wrong in ["Bearer secre", "Bearer secrets", "secret", "Bearer "] {
        let error = with(wrong).await;
        assert_eq!(error.headers["www-authenticate"], "Bearer");
        assert_eq!(error.error(401)["code"], "invalid_api_key");
    }
    get(&app, "/metrics").await.error(401);
    assert_eq!(get(&app, "/health").await.status, 200);
    assert_eq!(get(&app, "/").await.status, 200);
}

#[tokio::test]
async fn other_hosts_are_refused_on_the_loopback_address() {
    let app = app_of(512, Config { local_only: true, ..config() });
    for (host, status) in [
        ("localhost:80", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("10.0.0.1", 403),
    ] {
        let request = Request::get("/health").header("host", host).body(Body::empty()).unwrap();
        assert_eq!(send(&app, request).await.status, status, "{host}");
    }
}
