//! The drafters that come with tiny-gemma4, and look-up: the same text, and rounds as they should be.

use gemma4::{
    DType, Drafter, GenerateOptions, KvConfig, KvPolicy, NgramOptions, Session, SessionOptions, Speculation,
};
use gemma4_tests::{acceptance, tiny};

fn options(kv: DType) -> SessionOptions {
    SessionOptions::default().n_ctx(512).n_threads(1).kv(KvConfig::uniform(kv))
}

fn greedy(n: usize) -> GenerateOptions {
    GenerateOptions::greedy().max_tokens(n).ignore_eos(true)
}

fn same_text(kv: DType) {
    let model = tiny::model();
    let drafters =
        [Drafter::ngram(&NgramOptions::default()).unwrap(), tiny::mtp(&model), tiny::dflash(&model)];
    let mut plain = Session::new(&model, &options(kv)).unwrap();
    let mut sessions: Vec<Session> =
        drafters.iter().map(|d| Session::new(&model, &options(kv).drafter(d.clone())).unwrap()).collect();
    let mut accepted = [[0, 0]; 3];
    for (i, prompt) in tiny::prompts(&model, 20, 60).iter().enumerate() {
        plain.clear();
        let want = tiny::greedy(&mut plain, prompt, 256);
        for ((drafter, session), sum) in drafters.iter().zip(&mut sessions).zip(&mut accepted) {
            let how = [Speculation::Auto, Speculation::Fixed(4), Speculation::Fixed(15)][i % 3];
            session.clear();
            let mut generation = session.generate(prompt, &greedy(256).speculation(how)).unwrap();
            let got: Vec<u32> = generation.by_ref().filter_map(|piece| piece.unwrap().token).collect();
            let at = got.iter().zip(&want).position(|(a, b)| a != b);
            assert!(
                at.is_none() && got.len() == 256,
                "{drafter:?}, {kv}, prompt {i}, {how:?}: differs at {at:?}"
            );
            let stats = generation.stats().speculation.unwrap();
            *sum = [sum[0] + stats.rounds, sum[1] + stats.accepted];
        }
    }
    for (drafter, [rounds, accepted]) in drafters.iter().zip(accepted) {
        println!("{drafter:?}, {kv}: {accepted} accepted in {rounds} rounds");
        assert!(
            rounds > 50 && accepted > rounds,
            "{drafter:?}, {kv}: {accepted} accepted in {rounds} rounds"
        );
    }
}

#[test]
fn text_is_the_same_with_every_drafter_f16() {
    same_text(DType::F16);
}

#[test]
fn text_is_the_same_with_every_drafter_q8_0() {
    same_text(DType::Q8_0);
}

#[test]
fn text_is_the_same_with_every_drafter_tq3_0() {
    same_text(DType::TQ3_0);
}

/// A round drafts from what the last verification left behind, after all, some or none of its drafts were accepted.
/// Its drafts are those that a session draws that computed every token by itself.
#[test]
fn rounds_are_those_of_single_steps() {
    const GAMMA: usize = 4;
    let model = tiny::model();
    for drafter in [tiny::mtp(&model), tiny::dflash(&model)] {
        let mut session = Session::new(&model, &options(DType::F16).drafter(drafter.clone())).unwrap();
        for (file, i) in [("val-code.txt", 9), ("val-prose.txt", 33)] {
            let prompt = acceptance::prompt(&tiny::tokens(&model, file), i, acceptance::PROMPTS);
            let runs =
                acceptance::runs(&model, &drafter, &prompt, None, GAMMA as u32, &KvPolicy::from(DType::F16));
            let mut want = vec![0];
            while let Some(run) = runs.get(want[want.len() - 1]) {
                want.push(want[want.len() - 1] + run.min(&GAMMA) + 1);
            }
            session.clear();
            let how = greedy(runs.len() + 2 * GAMMA).speculation(Speculation::Fixed(GAMMA as u32));
            let mut generation = session.generate(&prompt, &how).unwrap();
            let (mut got, mut passes) = (Vec::new(), 0);
            for at in 0.. {
                let Some(piece) = generation.next() else { break };
                piece.unwrap();
                // A pass began with the token before this one.
                if generation.stats().decode_steps > passes {
                    passes += 1;
                    got.push(at - 1);
                }
            }
            got.truncate(want.len());
            assert_eq!(got, want, "{drafter:?}, {file}: tokens that rounds begin with");
        }
    }
}

/// Time that this thread has had of a processor, where the system says, in milliseconds. A session of one thread computes
/// on the caller's.
fn processor_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns / 1e6)
}

/// Four rings of 512 slots and more, with every drafter: memory as planned, and in later quarters no more graphs than in the
/// first. Times are printed, not judged.
#[test]
fn long_generations_keep_memory_and_graphs() {
    const QUARTER: usize = 540;
    let model = tiny::model();
    let prompt = &tiny::prompts(&model, 1, 40)[0];
    let lookup = Drafter::ngram(&NgramOptions::default()).unwrap();
    let long = options(DType::F16).n_ctx(2304).n_batch(128);
    let without = Session::plan(&model, &long.clone().drafter(lookup.clone())).unwrap().compute;
    let four = Speculation::Fixed(4);
    for (name, drafter, how) in [
        ("none", lookup.clone(), Speculation::Off),
        ("n-gram", lookup, four),
        ("MTP", tiny::mtp(&model), four),
        ("DFlash", tiny::dflash(&model), four),
    ] {
        let options = long.clone().drafter(drafter);
        let threads = options.clone().n_threads(2);
        let plan = Session::plan(&model, &threads).unwrap();
        assert_eq!(plan.compute, Session::new(&model, &threads).unwrap().compute_bytes(), "{name}");
        let plan = Session::plan(&model, &options).unwrap();
        let mut session = Session::new(&model, &options).unwrap();
        let how = greedy(QUARTER).speculation(how);
        let (mut next, mut built) = (prompt.clone(), Vec::new());
        for quarter in 1..=4 {
            let (before, start) = (session.graphs_built(), processor_ms());
            let mut generation = session.generate(&next, &how).unwrap();
            let tokens: Vec<u32> = generation.by_ref().filter_map(|piece| piece.unwrap().token).collect();
            let stats = generation.stats().speculation.unwrap();
            drop(generation);
            let ms = processor_ms() - start;
            assert_eq!(tokens.len(), QUARTER);
            // The last token is chosen and not computed.
            next = tokens[QUARTER - 1..].to_vec();
            built.push(session.graphs_built() - before);
            let rounds = (stats.rounds + stats.plain_steps) as f64;
            println!(
                "{name}, quarter {quarter}: {:.2} ms a token, {:.2} ms a round, {} graphs",
                ms / QUARTER as f64,
                ms / rounds,
                built[quarter - 1]
            );
            // A drafter's largest graph is planned. Each number of drafts has one of its own, which takes memory when it
            // is first used: at four drafts a round together less than the largest.
            let more = session.compute_bytes() - plan.compute;
            println!("{more} bytes of {} beyond the plan", plan.compute);
            assert!(plan.kv == session.kv_bytes() && more <= plan.compute - without, "{name}: {more}");
        }
        assert!(session.len() > 4 * 512);
        // A size is built anew when a view grows, every 256 tokens.
        assert!(built[1..].iter().all(|&n| n <= built[0]), "{name}: {built:?} graphs");
    }
}
