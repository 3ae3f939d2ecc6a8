//! Sessions: what they remember, who waits, who is stopped.

mod common;

use common::{app, app_of, cached, chat, chat_body, config, content, drafting_app, get, model};
use gemma4::Speculation;
use gemma4_server::{Config, serve};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Greedy answers to a conversation, with and without what is remembered, must agree.
async fn same_without_cache(app: &Arc<gemma4_server::App>, messages: &Value) -> Value {
    let with = chat(app, "", json!({ "messages": messages })).await.json();
    let fresh = app_of(2048, Config { cache_bytes: 0, ..config() });
    let without = chat(&fresh, "", json!({ "messages": messages })).await.json();
    assert_eq!(content(&with), content(&without));
    assert_eq!(cached(&without), 0);
    with
}

#[tokio::test]
async fn a_repeated_prompt_costs_nothing() {
    let app = app();
    let first = chat(&app, "Define the word stone.", json!({})).await.json();
    assert_eq!(cached(&first), 0);
    let again = chat(&app, "Define the word stone.", json!({})).await.json();
    let n = again["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(cached(&again) >= n - 1, "{again}");
    assert_eq!(content(&first), content(&again));
    let off = chat(&app, "Define the word stone.", json!({ "cache_prompt": false })).await.json();
    assert_eq!(cached(&off), 0);
    assert_eq!(content(&first), content(&off));
}

#[tokio::test]
async fn a_conversation_goes_on_where_it_was() {
    let app = app();
    let mut messages = json!([{ "role": "user", "content": "Define the word stone." }]);
    let mut before = 0;
    for _ in 0..3 {
        let answer = same_without_cache(&app, &messages).await;
        assert!(cached(&answer) >= before, "{answer}");
        before = answer["usage"]["prompt_tokens"].as_u64().unwrap() - 8;
        let list = messages.as_array_mut().unwrap();
        list.push(json!({ "role": "assistant", "content": content(&answer) }));
        list.push(json!({ "role": "user", "content": "And another one?" }));
    }
}

/// Beyond the sliding window of 256 tokens only snapshots lead back.
#[tokio::test]
async fn conversations_in_turn_are_remembered_by_snapshots() {
    let app = app();
    let system = "You are a dictionary of the English language. ".repeat(50);
    let ask = |text: &str| json!([{ "role": "system", "content": system }, { "role": "user", "content": text.repeat(30) }]);
    let first = same_without_cache(&app, &ask("Define the word house. ")).await;
    let n_prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(n_prompt > 600, "the test wants a prompt beyond the window, not of {n_prompt} tokens");
    assert_eq!(cached(&first), 0);
    // Another question about the same: the system prompt is known.
    let second = same_without_cache(&app, &ask("Tell me of trees. ")).await;
    assert!(cached(&second) > 300 && cached(&second) < n_prompt, "{second}");
    // Back to the first, which another conversation has overwritten: the whole prompt is known.
    let back = same_without_cache(&app, &ask("Define the word house. ")).await;
    assert_eq!(cached(&back), n_prompt);
    let page = get(&app, "/health").await.json();
    assert!(page["prefix_cache"]["snapshots"].as_u64().unwrap() >= 3, "{page}");
}

/// Also behind a restored snapshot, and whatever the drafter has not seen of it.
#[tokio::test]
async fn a_drafter_changes_no_answer() {
    let drafting = drafting_app(2048, Config { speculation: Speculation::Fixed(3), ..config() });
    let plain = app_of(2048, config());
    let long = "A dictionary of the English language. ".repeat(60);
    for text in ["Define the word house.", &long, "Define the word tree.", &long, "Define the word house."] {
        let extra = json!({ "max_tokens": 48 });
        let (with, without) =
            (chat(&drafting, text, extra.clone()).await.json(), chat(&plain, text, extra).await.json());
        assert_eq!(content(&with), content(&without));
        assert_eq!(with["usage"]["completion_tokens"], without["usage"]["completion_tokens"]);
        assert!(with["timings"]["draft_n"].as_u64().unwrap() > 0, "{with}");
        assert_eq!(without["timings"]["draft_n"], Value::Null);
    }
}

#[tokio::test]
async fn snapshots_keep_to_their_bound() {
    let limit = 6 << 20;
    let app = app_of(2048, Config { cache_bytes: limit, ..config() });
    for i in 0..6 {
        chat(&app, &format!("{i} house and tree. ").repeat(60), json!({ "max_tokens": 2 })).await;
        let cache = get(&app, "/health").await.json()["prefix_cache"].clone();
        assert!(cache["bytes"].as_u64().unwrap() <= limit, "{cache}");
        assert!(cache["snapshots"].as_u64().unwrap() >= 1, "{cache}");
    }
    let off = app_of(2048, Config { cache_bytes: 0, ..config() });
    for i in 0..2 {
        chat(&off, &format!("{i} house and tree. ").repeat(60), json!({ "max_tokens": 2 })).await;
    }
    assert_eq!(get(&off, "/health").await.json()["prefix_cache"]["snapshots"], 0);
}

/// An answer that goes on until the context is full.
fn endless(extra: Value) -> Value {
    let tokenizer = model().tokenizer().clone();
    let bans: Value = tokenizer
        .eog_tokens()
        .iter()
        .map(|id| (id.to_string(), json!(-100)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let mut body = chat_body("Tell me everything.", json!({ "max_tokens": 20_000, "logit_bias": bans }));
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// Sends a request over a connection of its own.
async fn connect(port: u16, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

struct Running {
    app: Arc<gemma4_server::App>,
    port: u16,
    shutdown: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn listen(n_ctx: u32, config: Config) -> Running {
    let app = app_of(n_ctx, config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = oneshot::channel::<()>();
    let served = tokio::spawn(serve(listener, Arc::clone(&app), async {
        let _ = receiver.await;
    }));
    Running { app, port, shutdown: Some(sender), served }
}

async fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < Duration::from_secs(20), "in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_stops_its_answer() {
    let running = listen(16_384, config()).await;
    for stream in [true, false] {
        let mut connection = connect(running.port, &endless(json!({ "stream": stream }))).await;
        if stream {
            let mut some = [0; 600];
            connection.read_exact(&mut some).await.unwrap();
        }
        wait_for("the start", || running.app.pool().load().0 == 1).await;
        drop(connection);
        let before = Instant::now();
        wait_for("the end", || running.app.pool().load().0 == 0).await;
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    }
    let page = get(&running.app, "/metrics").await.text;
    assert!(page.contains("gemma4_cancelled_total 2\n"), "{page}");
    // The session is fit for the next one.
    assert_eq!(chat(&running.app, "Hello", json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_when_to_come_back() {
    let running = listen(16_384, Config { queue: 1, ..config() }).await;
    let first = connect(running.port, &endless(json!({ "stream": true }))).await;
    wait_for("the first", || running.app.pool().load() == (1, 0)).await;
    let second = connect(running.port, &endless(json!({}))).await;
    wait_for("the second", || running.app.pool().load() == (1, 1)).await;
    let third = chat(&running.app, "Hello", json!({})).await;
    let seconds: u64 = third.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds));
    assert_eq!(third.error(429)["code"], "queue_full");
    // Who leaves the queue makes room.
    drop(second);
    wait_for("room", || running.app.pool().load() == (1, 0)).await;
    drop(first);
    wait_for("rest", || running.app.pool().load() == (0, 0)).await;
    assert_eq!(chat(&running.app, "Hello", json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_finishes_running_answers() {
    let mut running = listen(512, config()).await;
    let mut streams = Vec::new();
    for stream in [true, false] {
        streams.push(connect(running.port, &endless(json!({ "stream": stream }))).await);
        wait_for("acceptance", || {
            let (running, waiting) = running.app.pool().load();
            running + waiting == streams.len()
        })
        .await;
    }
    running.shutdown.take().unwrap().send(()).unwrap();
    let mut answers = Vec::new();
    for mut stream in streams {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        answers.push(text);
    }
    assert!(answers[0].contains("data: [DONE]") && answers[0].contains("\"length\""), "{}", answers[0]);
    assert!(answers[1].starts_with("HTTP/1.1 200") && answers[1].contains("\"length\""), "{}", answers[1]);
    running.served.await.unwrap().unwrap();
    running.app.pool().join();
    chat(&running.app, "Hello", json!({})).await.error(503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_answer_side_by_side() {
    let app = app_of(1024, Config { parallel: 2, ..config() });
    let words = ["house", "tree", "river", "stone", "bird", "road"];
    let ask = |word: &str| {
        let (app, text) = (Arc::clone(&app), format!("Define the word {word}."));
        tokio::spawn(async move { content(&chat(&app, &text, json!({})).await.json()).to_owned() })
    };
    let together: Vec<_> = words.iter().map(|word| ask(word)).collect();
    for (word, answer) in words.iter().zip(together) {
        assert_eq!(answer.await.unwrap(), ask(word).await.unwrap(), "{word}");
    }
}
