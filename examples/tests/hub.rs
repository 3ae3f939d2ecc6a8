//! Models by name, from a stand-in for the hub on this machine.

use gemma4_examples::TINY;
use gemma4_examples::hub::{Hub, HubName};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with the repository `some/model`.
#[derive(Clone)]
struct StandIn {
    address: String,
    /// Path and range of every request.
    requests: Arc<Mutex<Vec<(String, String)>>>,
    /// Connections still to be broken in the middle of a file.
    breaks: Arc<AtomicUsize>,
}

impl StandIn {
    fn start(files: &[(&str, Vec<u8>)]) -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = StandIn {
            address: format!("http://{}", listener.local_addr().unwrap()),
            requests: Arc::default(),
            breaks: Arc::default(),
        };
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(n, b)| (n.to_string(), b.clone())).collect();
        let (served, files) = (hub.clone(), Arc::new(files));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (served, files) = (served.clone(), Arc::clone(&files));
                std::thread::spawn(move || served.answer(stream.unwrap(), &files));
            }
        });
        hub
    }

    fn answer(&self, mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let path = first.split(' ').nth(1).unwrap().to_owned();
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let range = head.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("range").then(|| value.to_owned())
        });
        let range = range.unwrap_or_default();
        self.requests.lock().unwrap().push((path.clone(), range.clone()));
        let head = |status: &str, more: &str, n: usize| {
            format!("HTTP/1.1 {status}\r\nconnection: close\r\n{more}content-length: {n}\r\n\r\n")
        };
        if path == "/api/models/some/model/revision/main" {
            let siblings: Vec<_> =
                files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "siblings": siblings, "sha": COMMIT }).to_string();
            let _ = stream.write_all((head("200 OK", "", body.len()) + &body).as_bytes());
            return;
        }
        if path.starts_with("/api/models/closed/") {
            let _ = stream.write_all(head("401 Unauthorized", "", 0).as_bytes());
            return;
        }
        let Some(bytes) = path.strip_prefix("/some/model/resolve/main/").and_then(|name| files.get(name))
        else {
            let _ = stream.write_all(head("404 Not Found", "", 0).as_bytes());
            return;
        };
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(bytes.len(), |to: usize| to + 1);
        let more = format!(
            "content-range: bytes {from}-{}/{}\r\netag: \"{:x}\"\r\nx-repo-commit: {COMMIT}\r\n",
            to - 1,
            bytes.len(),
            bytes.len()
        );
        let _ = stream.write_all(head("206 Partial Content", &more, to - from).as_bytes());
        let breaks = to - from > 1
            && self.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        let end = if breaks { from + (to - from) / 3 } else { to };
        let _ = stream.write_all(&bytes[from..end]);
    }

    fn ranges(&self, file: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let wanted = requests.iter().filter(|(path, range)| path.ends_with(file) && range != "bytes=0-0");
        wanted.map(|(_, range)| range.clone()).collect()
    }
}

fn name(text: &str) -> HubName {
    HubName::parse(text).unwrap().unwrap()
}

/// Bytes that differ from place to place, so that a wrong seam shows.
fn bytes(n: usize) -> Vec<u8> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn a_model_is_downloaded_once_and_loads() {
    let model = std::fs::read(TINY).unwrap();
    let stand_in = StandIn::start(&[("README.md", bytes(100)), ("tiny-Q8_0.gguf", model.clone())]);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&stand_in.address, cache.path());
    let path = hub.fetch(&name("hf:some/model:Q8_0")).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), model);
    gemma4::Model::load(&path).unwrap();
    assert_eq!(stand_in.ranges("README.md").len(), 0, "only the model is downloaded");
    let asked = stand_in.requests.lock().unwrap().len();
    // From the cache, without asking anybody: also where nobody would answer.
    for wanted in ["hf:some/model:q8_0", "hf:some/model", "hf:some/model:tiny-Q8_0.gguf"] {
        assert_eq!(hub.fetch(&name(wanted)).unwrap(), path);
        let nowhere = Hub::new("http://127.0.0.1:1", cache.path());
        assert_eq!(nowhere.clone().offline(true).fetch(&name(wanted)).unwrap(), path);
        assert_eq!(nowhere.fetch(&name(wanted)).unwrap(), path);
    }
    assert_eq!(stand_in.requests.lock().unwrap().len(), asked);
}

#[test]
fn a_broken_download_is_continued_where_it_broke() {
    let data = bytes(3_000_000);
    let stand_in = StandIn::start(&[("a-Q4_0.gguf", data.clone())]);
    stand_in.breaks.store(2, Ordering::SeqCst);
    let cache = tempfile::tempdir().unwrap();
    let path = Hub::new(&stand_in.address, cache.path()).fetch(&name("hf:some/model")).unwrap();
    assert!(std::fs::read(path).unwrap() == data, "the seams do not fit");
    let ranges = stand_in.ranges("a-Q4_0.gguf");
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    let starts: Vec<usize> = ranges
        .iter()
        .map(|r| r.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap())
        .collect();
    assert!(starts[0] == 0 && starts[0] < starts[1] && starts[1] < starts[2], "{ranges:?}");
}

#[test]
fn all_parts_of_a_split_file_come() {
    let part = |i: usize| format!("big-Q4_0-{i:05}-of-00003.gguf");
    let parts: Vec<_> = (1..=3).map(|i| (part(i), bytes(1000 + i))).collect();
    let listed: Vec<_> = parts.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let stand_in = StandIn::start(&listed);
    let cache = tempfile::tempdir().unwrap();
    let first = Hub::new(&stand_in.address, cache.path()).fetch(&name("hf:some/model:Q4_0")).unwrap();
    assert!(first.ends_with(part(1)));
    for (name, bytes) in &parts {
        assert_eq!(&std::fs::read(first.with_file_name(name)).unwrap(), bytes);
    }
}

#[test]
fn failures_say_what_to_do() {
    let stand_in = StandIn::start(&[("a-Q4_0.gguf", bytes(10)), ("b-Q4_0.gguf", bytes(11))]);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&stand_in.address, cache.path());
    let why = |hub: &Hub, text: &str| hub.fetch(&name(text)).unwrap_err().to_string();
    assert!(why(&hub, "hf:some/model:Q4_0").contains("a-Q4_0.gguf, b-Q4_0.gguf"));
    assert!(why(&hub, "hf:some/model:Q9").contains("no file matches"));
    assert!(why(&hub, "hf:no/model").contains("no such repository"));
    assert!(why(&hub, "hf:closed/model").contains("HF_TOKEN"));
    let nowhere = Hub::new("http://127.0.0.1:1", cache.path());
    let message = why(&nowhere, "hf:some/model");
    assert!(message.contains("no network") && message.contains("--model"), "{message}");
    assert!(why(&nowhere.offline(true), "hf:some/model").contains("HF_HUB_OFFLINE"));
}
