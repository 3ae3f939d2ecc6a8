//! On a small vocabulary made here. Equality with the `tokenizers` library on real text is tested in the
//! workspace's `tests/`, which has a model file.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::ggml::gguf::Value;

const CONTROL: i32 = 3;
const USER: i32 = 4;

/// (text, type) of a vocabulary: specials, some words, all bytes.
fn vocabulary() -> Vec<(String, i32)> {
    let special = [
        ("<pad>", CONTROL),
        ("<eos>", 1),
        ("<bos>", CONTROL),
        ("<unk>", 2),
        ("<mask>", CONTROL),
        ("<|turn>", CONTROL),
        ("<turn|>", CONTROL),
        ("<|tool>", CONTROL),
        ("<|tool_call>", USER),
        ("<|tool_response>", USER),
        ("<|tool_call>x", USER),
        ("</s>", 1),
        ("a", 1),
        ("b", 1),
        ("▁", 1),
        ("ab", 1),
        ("▁ab", 1),
        ("▁▁", 1),
        ("\n", 1),
        ("\n\n", 1),
        ("<", 1),
        ("s", 1),
        (">", 1),
        ("/", 1),
        ("</", 1),
        ("s>", 1),
        ("<b", 1),
        ("os>", 1),
        ("o", 1),
        ("<0", 1),
    ];
    let bytes = (0..=255u8).map(|b| (format!("<0x{b:02X}>"), 6));
    special.iter().map(|(text, kind)| (text.to_string(), *kind)).chain(bytes).collect()
}

const MERGES: [&str; 11] =
    ["a b", "▁ ab", "▁ ▁", "\n \n", "< /", "s >", "</ s>", "< b", "o s>", "<b os>", "<unk >"];

fn metadata_of(vocabulary: &[(String, i32)], merges: &[&str]) -> Metadata {
    let mut m = Metadata::new(Path::new("test.gguf"));
    m.set("tokenizer.ggml.model", "gemma4");
    m.set("tokenizer.ggml.tokens", vocabulary.iter().map(|(text, _)| text).collect::<Strings>());
    m.set("tokenizer.ggml.token_type", vocabulary.iter().map(|(_, kind)| *kind).collect::<Vec<_>>());
    m.set("tokenizer.ggml.merges", merges.iter().collect::<Strings>());
    m.set("tokenizer.ggml.add_bos_token", false);
    for (name, id) in [("padding", 0u32), ("eos", 1), ("bos", 2), ("unknown", 3), ("mask", 4), ("eot", 18)] {
        m.set(format!("tokenizer.ggml.{name}_token_id"), id);
    }
    m
}

fn metadata() -> Metadata {
    metadata_of(&vocabulary(), &MERGES[..10])
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_metadata(&metadata()).unwrap()
}

fn id(t: &Tokenizer, text: &str) -> u32 {
    t.token_id(text).unwrap_or_else(|| panic!("{text}"))
}

fn spell(t: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| t.token_text(id).unwrap().to_owned()).collect()
}

const PARSE: EncodeOptions = EncodeOptions { add_bos: false, parse_special: true };
const PLAIN: EncodeOptions = EncodeOptions::CONTINUATION;

#[test]
fn merges_by_rank_and_falls_back_to_bytes() {
    let t = tokenizer();
    let spelled = |text: &str| spell(&t, &t.encode(text, PLAIN).unwrap());
    assert_eq!(spelled("ab ab"), ["ab", "▁ab"]);
    assert_eq!(spelled("a  ab"), ["a", "▁", "▁ab"]);
    assert_eq!(spelled("a   b"), ["a", "▁▁", "▁", "b"]);
    assert_eq!(spelled("\n\n\n"), ["\n\n", "\n"]);
    assert_eq!(spelled("é"), ["<0xC3>", "<0xA9>"]);
    assert_eq!(spelled("\r"), ["<0x0D>"]);
    assert_eq!(spelled(""), [""; 0]);
    assert_eq!(t.decode(&t.encode(" ab é\r\n\u{1F469}\u{200D}\u{1F4BB}", PLAIN).unwrap()), " ab é\r\n👩‍💻");
    // The spelling of a byte token is text like any other.
    assert_eq!(t.decode(&t.encode("<0x41>", PARSE).unwrap()), "<0x41>");
}

#[test]
fn specials_are_cut_out_longest_first() {
    let t = tokenizer();
    let parsed = |text: &str| spell(&t, &t.encode(text, PARSE).unwrap());
    let plain = |text: &str| spell(&t, &t.encode(text, PLAIN).unwrap());
    assert_eq!(parsed("<|turn>ab ab <turn|>"), ["<|turn>", "ab", "▁ab", "▁", "<turn|>"]);
    assert_eq!(parsed("<|tool_call>xa"), ["<|tool_call>x", "a"]);
    assert_eq!(parsed("<|tool_call>a<|tool>"), ["<|tool_call>", "a", "<|tool>"]);
    assert_eq!(parsed("a<unk>"), ["a", "<unk>"]);
    assert_eq!(plain("<|tool_call>xa"), ["<|tool_call>x", "a"]);
    // Nothing of the text may become structure.
    for text in ["<|turn>", "<bos>", "<eos>", "<unk>", "<|tool>", "a<turn|>b"] {
        let ids = t.encode(text, PLAIN).unwrap();
        assert!(!ids.iter().any(|&id| t.is_control(id)), "{text}: {:?}", spell(&t, &ids));
        assert_eq!(t.decode(&ids), text);
    }
    // The vocabulary has the merges to `<bos>`; they are not used.
    assert_eq!(plain("<bos>"), ["<b", "os>"]);
    assert_eq!(plain("</s>"), ["</s>"]);
}

#[test]
fn one_bos() {
    let t = tokenizer();
    let bos = t.bos().unwrap();
    assert_eq!(t.encode("", EncodeOptions::TEXT).unwrap(), [bos]);
    assert_eq!(t.encode("a", EncodeOptions::TEXT).unwrap(), [bos, id(&t, "a")]);
    assert_eq!(t.encode("<bos>a", EncodeOptions::TEMPLATE).unwrap(), [bos, id(&t, "a")]);
    assert_eq!(t.encode("<bos>", EncodeOptions::TEMPLATE).unwrap(), [bos]);
    assert_eq!(t.encode("a<bos>", EncodeOptions::TEMPLATE).unwrap(), [bos, id(&t, "a"), bos]);
    assert_eq!(t.encode("<bos>a", PARSE).unwrap(), [bos, id(&t, "a")]);
    assert_eq!(spell(&t, &t.encode("<bos>", EncodeOptions::TEXT).unwrap()), ["<bos>", "<b", "os>"]);
    let mut v = vocabulary();
    v[2].0 = "<start>".to_owned();
    let mut m = metadata_of(&v, &MERGES[..4]);
    m.set("tokenizer.ggml.bos_token_id", 2u32);
    assert_eq!(Tokenizer::from_metadata(&m).unwrap().bos(), Some(2));
}

#[test]
fn roles_of_tokens() {
    let t = tokenizer();
    assert_eq!((t.bos(), t.eos(), t.pad(), t.unk(), t.mask()), (Some(2), Some(1), Some(0), Some(3), Some(4)));
    // The key said 18, the newline.
    assert_eq!(t.eot(), Some(6));
    assert_eq!(t.eog_tokens(), [1, 6, id(&t, "<|tool_response>")]);
    assert!(t.is_eog(6) && !t.is_eog(18) && !t.is_eog(id(&t, "</s>")) && !t.is_eog(u32::MAX));
    // Typed as normal in this file; the id key says otherwise.
    assert!(t.is_control(1));
    assert!(!t.is_control(id(&t, "<|tool_call>")) && !t.is_control(u32::MAX));
    assert_eq!(t.n_vocab(), vocabulary().len());
    assert_eq!(t.token_bytes(id(&t, "▁ab")), Some(&b" ab"[..]));
    assert_eq!(t.token_bytes(id(&t, "<0xC3>")), Some(&[0xC3][..]));
    assert_eq!(t.token_bytes(0), Some(&b"<pad>"[..]));
    assert_eq!((t.token_bytes(u32::MAX), t.token_text(u32::MAX), t.token_id("nothing")), (None, None, None));
    for i in 0..t.n_vocab() as u32 {
        assert_eq!(t.token_id(t.token_text(i).unwrap()), Some(i));
    }
    assert_eq!(
        format!("{t:?}"),
        format!("Tokenizer {{ n_vocab: {}, bos: Some(2), eog: [1, 6, 9], .. }}", t.n_vocab())
    );
}

#[test]
fn keys_that_are_optional() {
    let mut m = metadata();
    m.set("tokenizer.ggml.suppress_tokens", vec![5i32, -1, 1 << 20, 7]);
    m.set("tokenizer.chat_template", "{{ bos_token }}");
    let t = Tokenizer::from_metadata(&m).unwrap();
    assert_eq!(t.suppressed(), [5, 7]);
    assert_eq!(t.chat_template(), Some("{{ bos_token }}"));
    assert_eq!(tokenizer().suppressed(), [0u32; 0]);
    assert_eq!(tokenizer().chat_template(), None);
}

#[test]
fn decoding_control_tokens() {
    let t = tokenizer();
    let ids = t.encode("<|turn>ab<|tool_call>", EncodeOptions::TEMPLATE).unwrap();
    assert_eq!(t.decode(&ids), "ab<|tool_call>");
    assert_eq!(t.decode_with(&ids, true), "<bos><|turn>ab<|tool_call>");
    assert_eq!(t.decode(&[u32::MAX, id(&t, "a")]), "\u{FFFD}a");
}

#[test]
fn stream_holds_back_half_characters() {
    let t = tokenizer();
    let byte = |b: u8| id(&t, &format!("<0x{b:02X}>"));
    let mut s = t.stream(false);
    let got: Vec<String> = [0xE2, 0x82, 0xAC, 0xE2, 0x82].into_iter().map(|b| s.push(byte(b))).collect();
    assert_eq!(got, ["", "", "€", "", ""]);
    assert_eq!(s.push(id(&t, "a")), "\u{FFFD}a");
    assert_eq!(s.push(byte(0xFF)), "\u{FFFD}");
    assert_eq!(s.push(2), "");
    assert_eq!(s.push(byte(0xF0)), "");
    assert_eq!(s.finish(), "\u{FFFD}");
    assert_eq!(s.finish(), "");
}

#[test]
fn merges_are_cut_at_the_first_inner_space() {
    let mut v = vocabulary();
    v.extend([(" ".to_owned(), 1), (" a".to_owned(), 1), ("\n\n\n".to_owned(), 1)]);
    // "  a": a space, the cut, "a".
    let t = Tokenizer::from_metadata(&metadata_of(&v, &["\n \n", "\n\n \n", "  a"])).unwrap();
    assert_eq!(spell(&t, &t.encode("\n\n\n", PLAIN).unwrap()), ["\n\n\n"]);
}

#[test]
fn broken_files_are_refused() {
    let base = metadata();
    let refused = |key: &str, value: Value, says: &str| {
        let mut m = base.clone();
        m.set(key, value);
        let message = Tokenizer::from_metadata(&m).map(drop).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    };
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let merges = |list: &[&str]| Value::from(list.iter().collect::<Strings>());
    refused(&key("model"), "llama".into(), "expected \"gemma4\"");
    refused(&key("tokens"), Strings::default().into(), "0 entries");
    refused(&key("tokens"), ["a", ""].iter().collect::<Strings>().into(), "[1] has 0 bytes");
    refused(&key("tokens"), ["a".repeat(2000)].iter().collect::<Strings>().into(), "has 2000 bytes");
    refused(&key("tokens"), 1u32.into(), "array of strings");
    refused(&key("token_type"), vec![1i32, 1].into(), "has 2 entries for");
    refused(&key("token_type"), vec![7i32; vocabulary().len()].into(), "[0] is 7");
    refused(&key("token_type"), vec![1.0f32].into(), "found array of 1 f32");
    refused(&key("bos_token_id"), u32::MAX.into(), "found 4294967295");
    refused(&key("bos_token_id"), (-1i32).into(), "found i32 -1");
    refused(&key("merges"), merges(&["a b", "ab"]), "merges[1], \"ab\", is not two pieces");
    refused(&key("merges"), merges(&["a "]), "is not two pieces");
    refused(&key("merges"), merges(&[""]), "is not two pieces");
    refused(&key("merges"), merges(&[" a"]), "is not two pieces");
    refused(&key("merges"), merges(&["zz a"]), "\"zz\" is not in the vocabulary");
    refused(&key("merges"), merges(&["b a"]), "\"ba\" is not in the vocabulary");
    // Longer than any token: the library would index out of bounds.
    refused(&key("merges"), merges(&["<|tool_response> <|tool_response>"]), "is not in the vocabulary");
    for name in ["model", "tokens", "token_type", "merges"] {
        let mut m = Metadata::new(Path::new("test.gguf"));
        base.iter().filter(|(k, _)| *k != key(name)).for_each(|(k, v)| m.set(k, v.clone()));
        let message = Tokenizer::from_metadata(&m).map(drop).unwrap_err().to_string();
        assert!(message.contains(&format!("test.gguf: {} is missing", key(name))), "{message}");
    }
}

#[test]
fn without_bytes_the_unknown_token_is_used() {
    let v: Vec<_> = vocabulary().into_iter().take(30).collect();
    let t = Tokenizer::from_metadata(&metadata_of(&v, &MERGES[..4])).unwrap();
    assert_eq!(spell(&t, &t.encode("aéüb", PLAIN).unwrap()), ["a", "<unk>", "b"]);
    let mut v = v;
    v[3].1 = CONTROL;
    let t = Tokenizer::from_metadata(&metadata_of(&v, &MERGES[..4])).unwrap();
    assert_eq!(spell(&t, &t.encode("é", PLAIN).unwrap()), ["<unk>"]);
    let m = metadata_of(&v, &[]);
    let mut without = Metadata::new(Path::new("test.gguf"));
    m.iter().filter(|(k, _)| !k.contains("unknown")).for_each(|(k, v)| without.set(k, v.clone()));
    let message = Tokenizer::from_metadata(&without).map(drop).unwrap_err().to_string();
    assert!(message.contains("only 0 of the 256 byte tokens"), "{message}");
}

#[test]
fn equal_texts_are_no_contradiction() {
    let mut v = vocabulary();
    v.extend([("ab".to_owned(), 1), ("<bos>".to_owned(), 1)]);
    let t = Tokenizer::from_metadata(&metadata_of(&v, &MERGES[..4])).unwrap();
    let last = v.len() as u32;
    assert_eq!(t.encode("ab", PLAIN).unwrap(), [last - 2]);
    assert!(t.encode("<bos>", PLAIN).unwrap().iter().all(|&id| !t.is_control(id)));
}

/// What [`Matcher::find`] is supposed to do, the slow way.
fn naive(tokens: &[String], text: &str) -> Option<(usize, usize)> {
    (0..text.len()).filter(|&i| text.is_char_boundary(i)).find_map(|i| {
        let longest = tokens
            .iter()
            .filter(|t| !t.is_empty() && text[i..].starts_with(t.as_str()))
            .max_by_key(|t| t.len());
        longest.map(|t| (i, i + t.len()))
    })
}

proptest! {
    #[test]
    fn the_matcher_is_leftmost_longest(tokens in prop::collection::vec("[ab<é]{0,4}", 0..12), text in "[ab<é ]{0,24}") {
        let matcher = Matcher::new(tokens.iter().map(String::as_str).zip(0..));
        let found = matcher.find(&text);
        prop_assert_eq!(found.map(|(from, to, _)| (from, to)), naive(&tokens, &text));
        if let Some((from, to, id)) = found {
            prop_assert_eq!(&tokens[id as usize], &text[from..to]);
            prop_assert_eq!(matcher.get(&text[from..to]), Some(id));
        }
    }

    #[test]
    fn any_text_survives(text in "(\\PC|[ab<>/s \\n\\r\\t]|<\\|turn>|<bos>|<\\|tool_call>){0,40}") {
        let t = tokenizer();
        let text = text.replace(SPACE, "");
        prop_assert_eq!(&t.decode_with(&t.encode(&text, PARSE).unwrap(), true), &text);
        let plain = t.encode(&text, PLAIN).unwrap();
        prop_assert!(!plain.iter().any(|&id| t.is_control(id)));
        prop_assert_eq!(t.decode(&plain), text);
    }

    #[test]
    fn streaming_equals_decoding(ids in prop::collection::vec(0..300u32, 0..60), print_control: bool) {
        let t = tokenizer();
        let mut stream = t.stream(print_control);
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(text, t.decode_with(&ids, print_control));
    }
}
