//! Text that has to keep to a schema, a regular expression or a grammar.

use gemma4::grammar::Grammar;
use gemma4::{
    Acceptance, Drafter, EncodeOptions, Error, GenerateOptions, Model, NgramOptions, Session, SessionOptions,
    Speculation, StopReason,
};
use gemma4_tests::tiny;
use serde_json::{Value, json};
use std::time::Instant;

fn session(model: &Model) -> Session {
    Session::new(model, &SessionOptions::default().n_ctx(1024).n_threads(1)).unwrap()
}

fn prompt(model: &Model) -> Vec<u32> {
    model.tokenizer().encode("Once upon a time", EncodeOptions::TEXT).unwrap()
}

fn sampled(seed: u64, temperature: f32) -> GenerateOptions {
    let mut options = GenerateOptions::default();
    options.sampling.seed = Some(seed);
    options.sampling.temperature = temperature;
    options.sampling.top_k = 0;
    options.sampling.top_p = 1.0;
    options
}

/// All options that a property is checked with: greedy, the defaults, and ever more random.
fn many() -> impl Iterator<Item = GenerateOptions> {
    let mut defaults = GenerateOptions::default();
    defaults.sampling.seed = Some(7);
    let random = (0..4).flat_map(|seed| [0.7, 1.5, 5.0].map(|temperature| sampled(seed, temperature)));
    [GenerateOptions::greedy(), defaults].into_iter().chain(random)
}

fn run(session: &mut Session, options: &GenerateOptions) -> (String, StopReason) {
    let prompt = prompt(session.model());
    session.clear();
    let mut generation = session.generate(&prompt, options).unwrap();
    let text = generation.text().unwrap();
    let reason = generation.stop_reason().unwrap().clone();
    (text, reason)
}

fn is_done(reason: &StopReason) -> bool {
    matches!(reason, StopReason::GrammarEnd | StopReason::EndToken(_))
}

fn why(grammar: gemma4::Result<Grammar>) -> String {
    match grammar {
        Err(Error::Grammar(why)) => {
            assert!(!why.is_empty() && !why.contains('<') || why.len() < 300, "{why}");
            why
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn json_satisfies_its_schema() {
    let model = tiny::model();
    let mut session = session(&model);
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "colour": { "enum": ["red", "green", "blue"] },
            "alive": { "type": "boolean" },
            "friends": { "type": "array", "items": { "$ref": "#/$defs/friend" }, "minItems": 1, "maxItems": 2 }
        },
        "required": ["name", "age", "colour", "alive", "friends"],
        "additionalProperties": false,
        "$defs": { "friend": { "type": "string", "pattern": "^[A-Z][a-z]{1,8}$" } }
    });
    let grammar = Grammar::json_schema(&schema).unwrap();
    let mut texts = Vec::new();
    for options in many() {
        let options = options.max_tokens(800).grammar(grammar.clone());
        let (text, reason) = run(&mut session, &options);
        if reason == StopReason::MaxTokens {
            assert!(options.sampling.temperature > 1.0, "{text}");
            continue;
        }
        assert!(is_done(&reason), "{reason:?}: {text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let object = value.as_object().unwrap();
        assert_eq!(object.len(), 5, "{text}");
        assert!(object["name"].as_str().unwrap().chars().count() <= 12, "{text}");
        assert!(object["age"].as_u64().unwrap() <= 150, "{text}");
        assert!(["red", "green", "blue"].contains(&object["colour"].as_str().unwrap()), "{text}");
        assert!(object["alive"].is_boolean(), "{text}");
        let friends = object["friends"].as_array().unwrap();
        assert!((1..=2).contains(&friends.len()), "{text}");
        for friend in friends {
            let friend = friend.as_str().unwrap();
            assert!(friend.starts_with(|c: char| c.is_ascii_uppercase()), "{text}");
            assert!((2..=9).contains(&friend.len()), "{text}");
            assert!(friend[1..].chars().all(|c| c.is_ascii_lowercase()), "{text}");
        }
        texts.push(text);
    }
    assert!(texts.len() >= 8, "{texts:#?}");
    texts.sort();
    texts.dedup();
    assert!(texts.len() >= 5, "samples differ: {texts:#?}");
}

#[test]
fn a_regular_expression_matches_all_of_it() {
    let model = tiny::model();
    let mut session = session(&model);
    let grammar = Grammar::regex(r"[A-Z]{2}-[0-9]{4}/(ä|→|日本)+!").unwrap();
    for options in many() {
        let (text, reason) = run(&mut session, &options.max_tokens(200).grammar(grammar.clone()));
        if reason == StopReason::MaxTokens {
            continue; // `+` has no end for a hot model
        }
        assert_eq!(reason, StopReason::GrammarEnd, "{text}");
        let bytes = text.as_bytes();
        assert!(bytes[..2].iter().all(u8::is_ascii_uppercase), "{text}");
        assert_eq!(bytes[2], b'-');
        assert!(bytes[3..7].iter().all(u8::is_ascii_digit), "{text}");
        let rest = text[7..].strip_prefix('/').unwrap().strip_suffix('!').unwrap();
        assert!(!rest.is_empty());
        assert_eq!(rest.replace("日本", "").trim_matches(['ä', '→']), "", "{text}");
    }
}

#[test]
fn one_possible_text_is_the_text() {
    let model = tiny::model();
    let mut session = session(&model);
    let only = "The quick brown fox, \"jumps\" över\n日本 😀.";
    let literal = json!(only).to_string();
    let grammars = [
        Grammar::lark(&format!("start: {literal}")).unwrap(),
        Grammar::regex(only.replace('.', r"\.").as_str()).unwrap(),
    ];
    for grammar in grammars {
        for options in [GenerateOptions::greedy(), sampled(1, 3.0)] {
            for ignore_eos in [false, true] {
                let options = options.clone().ignore_eos(ignore_eos).grammar(grammar.clone());
                let (text, reason) = run(&mut session, &options);
                assert_eq!((text.as_str(), reason), (only, StopReason::GrammarEnd));
            }
        }
    }
    // Forced text comes in the tokens that the tokenizer makes of it.
    let options = sampled(1, 3.0).grammar(Grammar::lark(&format!("start: {literal}")).unwrap());
    let prompt = prompt(&model);
    session.clear();
    let tokens: Vec<u32> =
        session.generate(&prompt, &options).unwrap().filter_map(|p| p.unwrap().token).collect();
    assert_eq!(tokens, model.tokenizer().encode(only, EncodeOptions::CONTINUATION).unwrap());

    let constant = Grammar::json_schema(&json!({ "const": { "a": [1, null, "x"] } })).unwrap();
    let (text, _) = run(&mut session, &GenerateOptions::greedy().max_tokens(100).grammar(constant));
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({ "a": [1, null, "x"] }));
}

#[test]
fn regular_expressions_are_quoted_for_the_engine() {
    let model = tiny::model();
    let mut session = session(&model);
    for (regex, text) in [
        ("a/b", "a/b"),
        (r"a\/b", "a/b"),
        ("//", "//"),
        ("a\nb", "a\nb"),
        ("/i", "/i"),
        (r"\\", r"\"),
        ("", ""),
    ] {
        let options = sampled(1, 1.0).max_tokens(20).grammar(Grammar::regex(regex).unwrap());
        assert_eq!(run(&mut session, &options), (text.to_owned(), StopReason::GrammarEnd), "{regex}");
    }
}

#[test]
fn any_json_and_the_order_of_properties() {
    let model = tiny::model();
    let mut session = session(&model);
    let any = Grammar::json_schema(&json!(true)).unwrap();
    for seed in 0..5 {
        let (text, reason) = run(&mut session, &sampled(seed, 2.0).max_tokens(300).grammar(any.clone()));
        assert!(!is_done(&reason) || serde_json::from_str::<Value>(&text).is_ok(), "{text}");
    }
    let schema = r#"{ "properties": { "z": { "const": 1 }, "a": { "const": 2 } }, "required": ["z", "a"],
        "type": "object", "additionalProperties": false }"#;
    let grammar = Grammar::json_schema(&serde_json::from_str(schema).unwrap()).unwrap();
    let (text, _) = run(&mut session, &GenerateOptions::greedy().grammar(grammar));
    assert!(text.find("\"z\"").unwrap() < text.find("\"a\"").unwrap(), "{text}");
}

#[test]
fn the_empty_text_needs_no_token() {
    let model = tiny::model();
    let mut session = session(&model);
    let grammar = Grammar::lark(r#"start: """#).unwrap();
    let prompt = prompt(&model);
    let mut generation = session.generate(&prompt, &GenerateOptions::greedy().grammar(grammar)).unwrap();
    assert!(generation.next().is_none());
    assert_eq!(generation.stop_reason(), Some(&StopReason::GrammarEnd));
    assert_eq!(generation.stats().generated_tokens, 0);
}

#[test]
fn a_grammar_for_anything_changes_nothing() {
    let model = tiny::model();
    let mut session = session(&model);
    let grammar = Grammar::regex(r"(?s:.*)").unwrap();
    let golden: Vec<tiny::Golden> = tiny::json("golden.json");
    for golden in &golden {
        let mut greedy = GenerateOptions::greedy().max_tokens(60);
        greedy.sampling.n_logprobs = 3;
        session.clear();
        let want: Vec<_> =
            session.generate(&golden.prompt_ids, &greedy).unwrap().map(|p| p.unwrap()).collect();
        let with = greedy.grammar(grammar.clone());
        session.clear();
        let got: Vec<_> = session.generate(&golden.prompt_ids, &with).unwrap().map(|p| p.unwrap()).collect();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert_eq!((got.token, &got.text, &got.top), (want.token, &want.text, &want.top));
            assert!((got.logprob - want.logprob).abs() < 1e-4);
        }
    }
}

#[test]
fn logprobs_are_the_models_own() {
    let model = tiny::model();
    let mut session = session(&model);
    let mut options = GenerateOptions::greedy().grammar(Grammar::regex("zebra").unwrap());
    options.sampling.n_logprobs = 2;
    let prompt = prompt(&model);
    let pieces: Vec<_> = session.generate(&prompt, &options).unwrap().map(|p| p.unwrap()).collect();
    let first = &pieces[0];
    let token = first.token.unwrap();
    assert!(first.logprob < first.top[0].1, "{first:?}");
    assert_ne!(token, first.top[0].0);
    session.clear();
    session.prefill(&prompt).unwrap();
    let sum: f64 = session.logits().iter().map(|&l| f64::from(l).exp()).sum();
    let want = f64::from(session.logits()[token as usize]) - sum.ln();
    assert!((f64::from(first.logprob) - want).abs() < 1e-3, "{first:?}, {want}");
}

#[test]
fn limits_of_the_generation_cut_it() {
    let model = tiny::model();
    let mut session = session(&model);
    let grammar = Grammar::regex("[a-z ]{200}").unwrap();
    let (text, reason) = run(&mut session, &GenerateOptions::greedy().max_tokens(5).grammar(grammar.clone()));
    assert_eq!(reason, StopReason::MaxTokens);
    assert!(!text.is_empty() && text.len() < 200 && text.chars().all(|c| c == ' ' || c.is_ascii_lowercase()));

    let stop = GenerateOptions::greedy().stop("cc").grammar(Grammar::regex("aabbccdd").unwrap());
    assert_eq!(run(&mut session, &stop), ("aabb".into(), StopReason::StopString("cc".into())));

    // A text that may end at any time goes on under `ignore_eos`.
    let open = Grammar::regex("(ab)*").unwrap();
    let (text, reason) =
        run(&mut session, &sampled(3, 2.0).max_tokens(40).ignore_eos(true).grammar(open.clone()));
    assert_eq!(reason, StopReason::MaxTokens);
    assert!(text.len() >= 40 && text.replace("ab", "").len() <= 1, "{text}");
    // The model may end it otherwise, and here must.
    let mut ends = sampled(3, 1.0).max_tokens(40).grammar(open);
    ends.sampling.logit_bias = model.tokenizer().eog_tokens().iter().map(|&t| (t, 100.0)).collect();
    let (text, reason) = run(&mut session, &ends);
    assert!(matches!(reason, StopReason::EndToken(_)), "{reason:?}");
    assert_eq!(text, "");

    // The session goes on after the end of a grammar, and its logits are not those behind the mask.
    let prompt = prompt(&model);
    session.clear();
    let mut generation = session.generate(&prompt, &GenerateOptions::greedy().grammar(grammar)).unwrap();
    generation.next().unwrap().unwrap();
    drop(generation);
    assert!(session.logits().iter().filter(|l| l.is_finite()).count() > 700);
    assert!(session.generate(&[], &GenerateOptions::greedy().max_tokens(3)).unwrap().text().is_ok());
}

#[test]
fn special_tokens_are_generated_only_by_name() {
    let model = tiny::model();
    let tokenizer = model.tokenizer();
    let mut session = session(&model);
    let prompt = prompt(&model);
    // However likely they are.
    let special: Vec<u32> = (0..tokenizer.n_vocab() as u32).filter(|&id| tokenizer.is_control(id)).collect();
    assert!(special.len() > 3);
    let mut options = sampled(5, 1.0).max_tokens(60).ignore_eos(true);
    options.sampling.logit_bias = special.iter().map(|&t| (t, 50.0)).collect();
    options = options.grammar(Grammar::regex(r"(?s:.*)").unwrap());
    for piece in session.generate(&prompt, &options).unwrap() {
        assert!(piece.unwrap().token.is_none_or(|token| !tokenizer.is_control(token)));
    }
    let turn = tokenizer.token_id("<|turn>").unwrap();
    let named = GenerateOptions::greedy().grammar(Grammar::lark(r#"start: "a" <|turn> "b""#).unwrap());
    session.clear();
    let tokens: Vec<u32> =
        session.generate(&prompt, &named).unwrap().filter_map(|p| p.unwrap().token).collect();
    assert_eq!(tokens.len(), 3);
    assert_eq!(tokens[1], turn);
    session.clear();
    let missing = GenerateOptions::greedy().grammar(Grammar::lark("start: <|no_such_token|>").unwrap());
    assert!(matches!(session.generate(&prompt, &missing), Err(Error::Grammar(_))));
    assert!(session.is_empty(), "found before anything is computed");
}

#[test]
fn malformed_and_impossible_grammars_are_errors() {
    for regex in ["[a-z", "(", "a{2,1}", r"a\", r"(?=a)b", "*", "a**{", r"\1", r"[^\s\S]", "(?P<x"] {
        why(Grammar::regex(regex));
    }
    for lark in ["", "start", "start: missing", "other: \"a\"", "start: \"a", "start: /[/", "%%%"] {
        why(Grammar::lark(lark));
    }
    for schema in [
        json!({ "type": "nonsense" }),
        json!({ "type": "integer", "minimum": 5, "maximum": 3 }),
        json!({ "type": "string", "minLength": 5, "maxLength": 3 }),
        json!({ "allOf": [{ "type": "string" }, { "type": "number" }] }),
        json!({ "$ref": "#/$defs/missing" }),
        json!({ "$ref": "http://localhost/schema" }),
        json!({ "type": "string", "pattern": "(" }),
        json!({ "enum": [] }),
        json!(false),
        json!(17),
        json!("string"),
    ] {
        why(Grammar::json_schema(&schema));
    }
}

#[test]
fn hostile_grammars_are_refused_in_time() {
    let chain = |rule: &str| -> String {
        let rules = (0..2_900).map(|i| format!("{rule}{i}: \"x\" {rule}{} \"y\"\n", i + 1));
        format!("start: {rule}0\n{}{rule}2900: \"z\"", rules.collect::<String>())
    };
    let nested = |n: usize| format!("{}a{}", "(".repeat(n), ")".repeat(n));
    let many: Vec<Value> = (0..200_000).map(Value::from).collect();
    let mut deep = json!({ "type": "string" });
    for _ in 0..5_000 {
        deep = Value::Object([("items".to_owned(), deep)].into_iter().collect());
    }
    // Of some it matters only that they come back.
    let wide: serde_json::Map<String, Value> = (0..5_000).map(|i| (format!("p{i}"), json!({}))).collect();
    let model = tiny::model();
    let mut session = session(&model);
    let prompt = prompt(&model);
    type Make<'a> = &'a dyn Fn() -> gemma4::Result<Grammar>;
    let cases: [(&str, bool, Make<'_>); 14] = [
        ("open", true, &|| Grammar::regex(&"(".repeat(100_000))),
        ("nested regex", true, &|| Grammar::regex(&nested(100_000))),
        ("nested lark", true, &|| Grammar::lark(&format!("start: {}", nested(100_000)))),
        ("repeated", false, &|| Grammar::regex("((((a{1000}){1000}){1000}){1000}){1000}")),
        ("long", true, &|| Grammar::regex(&"a".repeat(2 << 20))),
        ("many rules", true, &|| Grammar::lark(&"a: \"b\"\n".repeat(20_000))),
        ("chain of rules", false, &|| Grammar::lark(&chain("r"))),
        ("chain of terminals", false, &|| Grammar::lark(&chain("R"))),
        ("deep schema", true, &|| Grammar::json_schema(&deep)),
        ("large schema", true, &|| Grammar::json_schema(&json!({ "enum": many }))),
        ("wide schema", false, &|| Grammar::json_schema(&json!({ "properties": wide }))),
        ("circle", true, &|| Grammar::lark("start: start")),
        ("circular schema", false, &|| Grammar::json_schema(&json!({ "$ref": "#" }))),
        ("ambiguous", false, &|| Grammar::lark("start: a\na: a a | \"x\" | \"\"")),
    ];
    for (name, is_error, make) in cases {
        let started = Instant::now();
        let grammar = make();
        if let Ok(grammar) = &grammar {
            // On the small stack of a test. An error is fine.
            session.clear();
            let options = sampled(1, 1.0).max_tokens(20).grammar(grammar.clone());
            let text = session.generate(&prompt, &options).and_then(|mut generation| generation.text());
            println!("{:.200}", format!("{text:?}"));
        }
        let took = started.elapsed();
        println!("{name}: {took:?} {}", grammar.is_ok());
        assert!(took.as_secs() < 60, "{name}: {took:?}");
        if is_error {
            why(grammar);
        }
    }
    // Dropping it recurses, on the small stack of a test.
    std::mem::forget(deep);
}

#[test]
fn grammars_compare_and_print() {
    let grammar = Grammar::regex("a+").unwrap();
    assert_eq!(grammar, grammar.clone());
    assert_eq!(grammar, Grammar::regex("a+").unwrap());
    assert_ne!(grammar, Grammar::regex("b+").unwrap());
    assert_ne!(grammar, Grammar::lark("start: /a+/").unwrap());
    assert_eq!(format!("{grammar:?}"), "Regex(\"a+\")");
    let options = GenerateOptions::greedy().grammar(grammar.clone());
    assert_eq!(options, options.clone());
    assert_ne!(options, options.clone().grammar(None));
}

#[test]
fn sessions_share_a_grammar_between_threads() {
    let model = tiny::model();
    let grammar = Grammar::regex("[a-z]{3} [0-9]{3}").unwrap();
    let run = |seed| run(&mut session(&model), &sampled(seed, 1.5).grammar(grammar.clone()));
    let alone: Vec<_> = (0..3).map(run).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..3).map(|seed| scope.spawn(move || run(seed))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
    assert!(alone.iter().all(|(text, reason)| text.len() == 7 && *reason == StopReason::GrammarEnd));
}

#[test]
fn drafts_obey_the_grammar_too() {
    let model = tiny::model();
    let schema = json!({ "type": "array", "minItems": 6, "maxItems": 6,
        "items": { "type": "object", "properties": { "id": { "type": "integer" }, "ok": { "type": "boolean" } },
            "required": ["id", "ok"], "additionalProperties": false } });
    let mut plain = session(&model);
    let drafters = [
        Drafter::ngram(&NgramOptions::default().min_match(1)).unwrap(),
        Drafter::load(tiny::path("tiny-gemma4-mtp-q8_0.gguf"), &model).unwrap(),
    ];
    for drafter in drafters {
        let options = SessionOptions::default().n_ctx(1024).n_threads(1).drafter(drafter.clone());
        let mut with = Session::new(&model, &options).unwrap();
        for how in [GenerateOptions::greedy(), sampled(3, 0.8)] {
            let how = how.max_tokens(300).grammar(Grammar::json_schema(&schema).unwrap());
            let (want, reason) = run(&mut plain, &how);
            let got = run(&mut with, &how.clone().speculation(Speculation::Fixed(5)));
            assert_eq!(got, (want, reason), "{drafter:?}");
            let (text, reason) = run(&mut with, &how.acceptance(Acceptance::Rejection));
            if is_done(&reason) {
                assert!(serde_json::from_str::<Value>(&text).is_ok(), "{drafter:?}: {text}");
            }
        }
    }
}
