//! A server in the test's own process, and a small client.

#![allow(dead_code)] // not every test uses everything

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use gemma4::{Drafter, Model, SessionOptions};
use gemma4_server::{App, Config, router};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};
use tower::ServiceExt;

pub fn model() -> Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::load(gemma4_examples::TINY).unwrap()).clone()
}

/// One thread computes: tests run side by side.
pub fn app_of(n_ctx: u32, config: Config) -> Arc<App> {
    App::new(model(), &SessionOptions::default().n_ctx(n_ctx).n_batch(128).n_threads(1), config).unwrap()
}

/// As [`app_of`], with the MTP drafter that comes with the model.
pub fn drafting_app(n_ctx: u32, config: Config) -> Arc<App> {
    let model = model();
    let path = gemma4_examples::TINY.replace("-q8_0.gguf", "-mtp-q8_0.gguf");
    let drafter = Drafter::load(path, &model).unwrap();
    let options = SessionOptions::default().n_ctx(n_ctx).n_batch(128).n_threads(1).drafter(drafter);
    App::new(model, &options, config).unwrap()
}

pub fn config() -> Config {
    Config { names: vec!["tiny".into()], parallel: 1, ..Config::default() }
}

pub fn app() -> Arc<App> {
    app_of(2048, config())
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The data of a stream, without the end mark, which must be there.
    pub fn chunks(&self) -> Vec<Value> {
        let mut data: Vec<_> = self.text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.text);
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|m| m.len() > 10), "{error}");
        assert!(error["type"].is_string(), "{error}");
        error
    }
}

pub async fn send(app: &Arc<App>, request: Request<Body>) -> Answer {
    let service: Router = router(Arc::clone(app));
    let response = service.oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, headers, text: String::from_utf8(body.to_vec()).unwrap() }
}

pub async fn get(app: &Arc<App>, path: &str) -> Answer {
    send(app, Request::get(path).body(Body::empty()).unwrap()).await
}

pub async fn post(app: &Arc<App>, path: &str, body: Value) -> Answer {
    let request = Request::post(path).header("content-type", "application/json");
    send(app, request.body(Body::from(body.to_string())).unwrap()).await
}

/// A request for a greedy answer, with `extra` fields.
pub fn chat_body(text: &str, extra: Value) -> Value {
    let mut body = json!({
        "model": "tiny", "messages": [{ "role": "user", "content": text }], "temperature": 0, "max_tokens": 24,
    });
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub async fn chat(app: &Arc<App>, text: &str, extra: Value) -> Answer {
    post(app, "/v1/chat/completions", chat_body(text, extra)).await
}

pub fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

pub fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}
