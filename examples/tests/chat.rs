//! The program `chat`, driven through pipes.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

struct Chat {
    child: Child,
    input: Option<ChildStdin>,
}

impl Chat {
    fn start(arguments: &[&str]) -> Chat {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chat"))
            .args(["--threads", "1", "--no-history"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        Chat { child, input }
    }

    fn write(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Closes the input and returns what remains of the output. The program must end well.
    fn end(mut self) -> String {
        self.input = None;
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "{text}");
        text
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(arguments: &[&str], input: &str) -> String {
    let mut chat = Chat::start(&[&["--temperature", "0"], arguments].concat());
    chat.write(input);
    chat.end()
}

#[test]
fn a_conversation_is_saved_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    let file = file.to_str().unwrap();
    let first = run(
        &["--max-tokens", "24"],
        &format!(
            "/system Be brief.\nDefine the word house.\nDefine the word \\\ntree.\n/save {file}\n/stats\n/nonsense\n"
        ),
    );
    assert!(first.contains("anew") && first.contains("(saved in"), "{first}");
    assert!(first.contains("tokens/s") && first.contains("context:"), "{first}");
    assert!(first.contains("no command /nonsense"), "{first}");

    let text = std::fs::read_to_string(file).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&text).unwrap();
    let messages = saved["messages"].as_array().unwrap();
    let roles: Vec<_> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(messages[3]["content"], "Define the word \ntree.");
    // What was said is what was shown.
    assert!(first.contains(messages[4]["content"].as_str().unwrap()), "{first}");

    // The memory was saved too, so that the next message computes little.
    let then =
        run(&["--max-tokens", "8"], &format!("/load {file}\nAnd now?\n/stats\n/undo\n/undo\n/undo\n/undo\n"));
    assert!(then.contains("(5 messages)"), "{then}");
    let kept = then.lines().find_map(|line| line.strip_prefix("prompt tokens remembered from before: "));
    assert!(kept.unwrap().parse::<usize>().unwrap() > 20, "{then}");
    assert!(then.contains("(taken back: And now?)") && then.contains("nothing to take back"), "{then}");

    let answers = |text: &str| text.lines().filter(|line| !line.starts_with(['(', '/'])).count();
    let again =
        run(&["--max-tokens", "24"], "Define the word house.\n/retry\n/reset\nDefine the word house.\n");
    assert!(answers(&again) >= 3, "{again}");
}

#[test]
fn the_oldest_turns_are_forgotten_when_the_context_is_full() {
    let line = format!("{}\n", "house and tree ".repeat(12));
    let text = run(&["--n-ctx", "256", "--max-tokens", "16"], &line.repeat(6));
    assert!(text.contains("the oldest turn is forgotten"), "{text}");
    let text = run(&["--n-ctx", "256"], &format!("{}\n/quit\n", "house and tree ".repeat(100)));
    assert!(text.contains("256 is all there is"), "{text}");
}

/// An interrupt stops the answer and not the program; without an answer it ends the program.
#[cfg(unix)]
#[test]
fn an_interrupt_stops_the_answer_only() {
    // Nearly every token is as likely as any other, so that an answer seldom ends by itself.
    let arguments =
        ["--temperature", "100", "--top-k", "0", "--top-p", "1", "--n-ctx", "100000", "--seed", "1"];
    let mut chat = Chat::start(&arguments);
    let mut output = BufReader::new(chat.child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert!(line.contains("/help"), "{line}");
    chat.write("Tell me everything.\n");
    let mut some = [0; 40];
    output.read_exact(&mut some).unwrap();
    let interrupt = |child: &Child| {
        let done = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(done.success());
    };
    let before = Instant::now();
    interrupt(&chat.child);
    let mut rest = Vec::new();
    while !String::from_utf8_lossy(&rest).contains("(stopped)\n") {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        rest.push(byte[0]);
    }
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    chat.write("/stats\n");
    line.clear();
    output.read_line(&mut line).unwrap();
    assert!(line.contains("prompt"), "{line}");
    interrupt(&chat.child);
    assert_eq!(chat.child.wait().unwrap().code(), Some(130));
}
