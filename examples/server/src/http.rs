//! Routes, and what is checked before a handler runs.

use crate::App;
use crate::answer::Writer;
use crate::error::ApiError;
use crate::pool::{Event, Ticket};
use crate::prepare::{self, Prepared};
use crate::request::{ChatRequest, CompletionRequest};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use gemma4::StopReason;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Only the page's own files, from this server, and no frame around it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                           img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route(CHAT, post(chat))
        .route(COMPLETIONS, post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(one_model))
        .route("/metrics", get(metrics))
        .layer(from_fn_with_state(Arc::clone(&app), check_key));
    Router::new()
        .route("/", get(|| page("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route("/page.css", get(|| page("text/css; charset=utf-8", include_str!("page/page.css"))))
        .route("/page.js", get(|| page("text/javascript; charset=utf-8", include_str!("page/page.js"))))
        .route("/health", get(health))
        .merge(guarded)
        .fallback(|request: Request| async move {
            let what = format!("{} is not here; see /v1/models and {CHAT}", request.uri().path());
            ApiError::refused(StatusCode::NOT_FOUND, "not_found", what)
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let what = format!("{} cannot be {}", request.uri().path(), request.method());
            ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", what)
        })
        .layer(from_fn_with_state(Arc::clone(&app), check_host))
        .with_state(app)
}

/// Answers requests until `shutdown` is ready, and then finishes those that were accepted.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    // Tokens are small packets; none shall wait for the next.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let closing = Arc::clone(&app);
    let shutdown = async move {
        shutdown.await;
        closing.pool.close();
    };
    axum::serve(listener, router(app)).with_graceful_shutdown(shutdown).await
}

async fn check_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Some(key) = &app.config.api_key {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        // In constant time, so that timing tells nothing about the key.
        if !bool::from(given.trim().as_bytes().ct_eq(key.as_bytes())) {
            app.metrics.request(request.uri().path(), StatusCode::UNAUTHORIZED.as_u16());
            return ApiError::unauthorized().into_response();
        }
    }
    next.run(request).await
}

async fn check_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.config.local_only {
        let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
        let name =
            host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(n, _)| n);
        let is_local = matches!(name, "" | "localhost" | "[::1]")
            || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
        if !is_local {
            let what =
                format!("the host {host:?} is not this machine; start the server with --host to allow it");
            return ApiError::refused(StatusCode::FORBIDDEN, "wrong_host", what).into_response();
        }
    }
    next.run(request).await
}

async fn page(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

async fn health(State(app): State<Arc<App>>) -> Json<Value> {
    let (running, waiting) = app.pool.load();
    let (cache_bytes, snapshots) = app.pool.cache();
    let config = app.pool.config();
    Json(json!({
        "status": "ok", "model": app.name(), "n_ctx": app.limits.n_ctx, "parallel": config.parallel,
        "queue": config.queue, "running": running, "waiting": waiting,
        "prefix_cache": { "bytes": cache_bytes, "snapshots": snapshots, "limit": config.cache_bytes },
    }))
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.page(&app.pool))
}

fn model_json(app: &App, name: &str) -> Value {
    let hparams = app.model.hparams();
    json!({
        "id": name, "object": "model", "created": 0, "owned_by": "local",
        "meta": {
            "name": app.model.name(), "n_ctx": app.limits.n_ctx, "n_ctx_train": hparams.n_ctx_train,
            "n_vocab": hparams.n_vocab, "n_layer": hparams.n_layer(), "size": app.model.weight_bytes(),
        },
    })
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<_> = app.config.names.iter().map(|name| model_json(&app, name)).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn one_model(
    State(app): State<Arc<App>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Json<Value>, ApiError> {
    check_model(&app, Some(&name))?;
    Ok(Json(model_json(&app, &name)))
}

fn check_model(app: &App, name: Option<&str>) -> Result<(), ApiError> {
    match name {
        Some(name) if !app.config.names.iter().any(|known| known == name) => {
            let known = app.config.names.join(", ");
            let what = format!("the model {name:?} is not loaded; this server has {known}");
            let error = ApiError::refused(StatusCode::NOT_FOUND, "model_not_found", what);
            Err(ApiError { param: Some("model".into()), ..error })
        }
        _ => Ok(()),
    }
}

async fn chat(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    let answered = answer(&app, &headers, body, |app, request: ChatRequest| {
        check_model(app, request.model.as_deref())?;
        prepare::chat(&app.model, &app.limits, request)
    });
    counted(&app, CHAT, answered.await)
}

async fn completions(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    let answered = answer(&app, &headers, body, |app, request: CompletionRequest| {
        check_model(app, request.model.as_deref())?;
        prepare::completion(&app.model, &app.limits, request)
    });
    counted(&app, COMPLETIONS, answered.await)
}

fn counted(app: &App, endpoint: &str, result: Result<Response, ApiError>) -> Response {
    let response = result.unwrap_or_else(IntoResponse::into_response);
    app.metrics.request(endpoint, response.status().as_u16());
    response
}

/// Reads a body, has a session compute what it asks for, and writes the answer.
async fn answer<T: DeserializeOwned + Send + 'static>(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: Body,
    prepare: impl FnOnce(&App, T) -> Result<Prepared, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let body = read_body(app, headers, body).await?;
    let place = app.pool.reserve()?;
    let worker = Arc::clone(app);
    // Templates, tokens and grammars of a long request take too long for the asynchronous threads.
    let prepared = tokio::task::spawn_blocking(move || {
        let request = serde_json::from_slice(&body)
            .map_err(|e| ApiError::invalid(None, format!("the body is not what is expected: {e}")))?;
        prepare(&worker, request)
    });
    let Prepared { task, style } = prepared
        .await
        .map_err(|e| ApiError::internal(format!("the request could not be prepared: {e}")))??;
    let writer = Writer::new(app.model.clone(), app.name().to_owned(), style, task.prompt.len());
    let ticket = app.pool.submit(place, task);
    if style.stream {
        let keep_alive = KeepAlive::default();
        return Ok(Sse::new(event_stream(ticket, writer)).keep_alive(keep_alive).into_response());
    }
    whole(ticket, writer).await.map(|answer| Json(answer).into_response())
}

async fn read_body(app: &App, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    // Also what keeps other web pages out: a browser asks before it sends this type elsewhere.
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        let what = "send the body with `Content-Type: application/json`";
        return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong_content_type", what));
    }
    let limit = app.config.max_body;
    let too_large = || {
        let what = format!("the body is larger than {limit} bytes");
        ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", what)
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|n| n > limit) {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(app.config.body_timeout, Limited::new(body, limit).collect());
    match collected.await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(ApiError::invalid(None, format!("the body could not be read: {e}"))),
        Err(_) => {
            let what = format!("the body did not arrive within {:?}", app.config.body_timeout);
            Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, "body_timeout", what))
        }
    }
}

async fn whole(mut ticket: Ticket, mut writer: Writer) -> Result<Value, ApiError> {
    loop {
        match ticket.next().await {
            Some(Event::Done(outcome)) if outcome.reason != StopReason::Cancelled => {
                return Ok(writer.whole(&outcome));
            }
            Some(Event::Failed(e)) => return Err(e.into()),
            // Somebody still waits, so it was the server that cancelled.
            None | Some(Event::Done(_)) => return Err(ApiError::closing()),
            Some(event) => writer.collect(&event),
        }
    }
}

/// A stream's state: what is to be sent before the next event is awaited.
struct Streaming {
    ticket: Ticket,
    writer: Writer,
    ready: VecDeque<String>,
    is_over: bool,
}

impl Streaming {
    fn push(&mut self, chunks: impl IntoIterator<Item = Value>) {
        self.ready.extend(chunks.into_iter().map(|chunk| chunk.to_string()));
    }

    fn end(&mut self, chunks: Vec<Value>) {
        self.push(chunks);
        self.ready.push_back("[DONE]".to_owned());
        self.is_over = true;
    }

    async fn next(mut self) -> Option<(Result<sse::Event, Infallible>, Streaming)> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some((Ok(sse::Event::default().data(data)), self));
            }
            if self.is_over {
                return None;
            }
            match self.ticket.next().await {
                Some(Event::Piece(piece)) => {
                    let chunks = self.writer.piece(&piece);
                    self.push(chunks);
                }
                Some(Event::Text(text)) => {
                    let chunks = self.writer.stream_text(&text);
                    self.push(chunks);
                }
                Some(Event::Done(outcome)) if outcome.reason != StopReason::Cancelled => {
                    let chunks = self.writer.end(&outcome);
                    self.end(chunks);
                }
                Some(Event::Failed(e)) => self.end(vec![ApiError::from(e).json()]),
                None | Some(Event::Done(_)) => self.end(vec![ApiError::closing().json()]),
            }
        }
    }
}

/// The events of a stream. Dropping it cancels the computation.
fn event_stream(ticket: Ticket, writer: Writer) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let mut streaming = Streaming { ticket, writer, ready: VecDeque::new(), is_over: false };
    let start = streaming.writer.start();
    streaming.push(start);
    stream::unfold(streaming, Streaming::next)
}
