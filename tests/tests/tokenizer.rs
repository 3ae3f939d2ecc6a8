//! The tokenizer of a model file against the `tokenizers` library, which reads the same vocabulary from
//! `tokenizer.json`.

use gemma4::{EncodeOptions, Tokenizer};
use proptest::prelude::*;
use std::sync::LazyLock;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/tiny-gemma4-q8_0.gguf");
const JSON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/tokenizer.json");
const CODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/val-code.txt");
const PROSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/val-prose.txt");

const PARSED: EncodeOptions = EncodeOptions::CONTINUATION.parse_special(true);
const PLAIN: EncodeOptions = EncodeOptions::CONTINUATION;

static OURS: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_gguf(MODEL).unwrap());
/// Special tokens are read as such.
static REFERENCE: LazyLock<tokenizers::Tokenizer> =
    LazyLock::new(|| tokenizers::Tokenizer::from_file(JSON).unwrap());
/// Control tokens are text. The JSON calls user-defined tokens special as well; the GGUF knows which are not.
static REFERENCE_PLAIN: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| {
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(JSON).unwrap()).unwrap();
    for token in json["added_tokens"].as_array_mut().unwrap() {
        let id = u32::try_from(token["id"].as_u64().unwrap()).unwrap();
        token["special"] = OURS.is_control(id).into();
    }
    let mut reference: tokenizers::Tokenizer = json.to_string().parse().unwrap();
    reference.set_encode_special_tokens(true);
    reference
});

fn check(text: &str) {
    for (options, reference) in [(PARSED, &*REFERENCE), (PLAIN, &*REFERENCE_PLAIN)] {
        let ours = OURS.encode(text, options).unwrap();
        let theirs = reference.encode(text, false).unwrap();
        assert_eq!(ours, theirs.get_ids(), "{options:?} {text:?}");
        assert_eq!(OURS.decode_with(&ours, true), reference.decode(&ours, false).unwrap(), "{text:?}");
        if options == PLAIN {
            assert!(!ours.iter().any(|&id| OURS.is_control(id)), "{text:?}");
            assert_eq!(OURS.decode(&ours), text.replace('\u{2581}', " "));
        }
        let mut stream = OURS.stream(true);
        let mut streamed: String = ours.iter().map(|&id| stream.push(id)).collect();
        streamed += &stream.finish();
        assert_eq!(streamed, OURS.decode_with(&ours, true));
    }
}

#[test]
fn whole_files() {
    for path in [CODE, PROSE] {
        check(&std::fs::read_to_string(path).unwrap());
    }
}

#[test]
fn runs_of_white_space() {
    for n in 0..=40 {
        for unit in ["\n", " ", "\t", "\r\n", "\n ", " \n", "\u{2581}", "\u{A0}"] {
            let run = unit.repeat(n);
            check(&run);
            check(&format!("def{run}x = 1{run}"));
        }
    }
}

#[test]
fn scripts_and_emoji() {
    let texts = [
        "",
        "\0\u{1}\u{7f}\u{feff}",
        "👩‍💻👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
        "漢字かな交じり文、한국어 텍스트。",
        "مرحبا بالعالم שלום",
        "naïve nai\u{308}ve ﬁ Å A\u{30a}",
        "ÀÉÎõü\u{10ffff}\u{fffd}",
        "<0x0A><0xff><unused0>",
        "▁▁a▁b",
    ];
    texts.iter().for_each(|text| check(text));
}

#[test]
fn specials_in_and_out_of_parsing() {
    let specials: Vec<&str> = (0..17).map(|id| OURS.token_text(id).unwrap()).collect();
    for a in &specials {
        check(a);
        check(&format!(" {a} "));
        check(&format!("x\n{a}\n\n{a}{a} y"));
        check(&a[..a.len() - 1]);
        check(&a[1..]);
        for b in &specials {
            check(&format!("{a}{b}"));
            check(&format!("{}{b}", &a[..a.len() - 1]));
        }
    }
}

#[test]
fn bos_is_added_once() {
    let bos = OURS.bos().unwrap();
    let with = OURS.encode("Hello", EncodeOptions::TEXT).unwrap();
    assert_eq!(with[0], bos);
    assert_eq!(with[1..], OURS.encode("Hello", PLAIN).unwrap());
    assert_eq!(OURS.encode("<bos>Hello", EncodeOptions::TEMPLATE).unwrap(), with);
}

#[test]
fn every_token_spells_itself() {
    let t = &*OURS;
    assert_eq!(t.n_vocab(), 4096);
    for id in 0..4096 {
        assert_eq!(t.token_id(t.token_text(id).unwrap()), Some(id));
        assert_eq!(t.decode_with(&[id], true), String::from_utf8_lossy(t.token_bytes(id).unwrap()));
    }
    assert_eq!((t.bos(), t.eos(), t.pad(), t.eot()), (Some(2), Some(1), Some(0), Some(6)));
    assert_eq!(t.eog_tokens(), [1, 6, 14]);
    assert!(t.chat_template().unwrap().contains("<|turn>"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text(text in any::<String>()) {
        check(&text);
    }

    #[test]
    fn text_like_code(text in "([a-z]{1,6}|[ \\n\\t]{1,5}|[(){}=+.,:;<>|_/\"'0-9]|<\\|turn>|<turn\\||<bos>|é|中|😀){0,60}") {
        check(&text);
    }

    #[test]
    fn any_tokens_stream_as_they_decode(ids in prop::collection::vec(0..4200u32, 0..80), print_control: bool) {
        let mut stream = OURS.stream(print_control);
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text += &stream.finish();
        prop_assert_eq!(text, OURS.decode_with(&ids, print_control));
    }
}
