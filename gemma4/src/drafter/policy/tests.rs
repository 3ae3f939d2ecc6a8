//! The policy on synthetic machines: what it loses at worst, and what it wins.

use super::*;

/// Seconds of a pass of `n` drafts and one token, and of drafting `n`.
struct Machine {
    name: &'static str,
    verify: fn(u32) -> f64,
    draft: fn(u32) -> f64,
    /// Taking in what was committed, before every pass.
    watch: f64,
    /// What a graph's first run takes more, for every number of drafts and every 256 tokens.
    first: f64,
    /// What the second one takes more.
    second: f64,
}

const fn machine(name: &'static str, verify: fn(u32) -> f64, draft: fn(u32) -> f64) -> Machine {
    Machine { name, verify, draft, watch: 0.0, first: 0.0, second: 0.0 }
}

/// A graphics card that waits for memory; a processor that computes; one with steps at multiples of a tile; a
/// drafter that costs as much as the model.
const MACHINES: [Machine; 5] = [
    machine("card, MTP", |n| 10.0 + 0.2 * n as f64, |n| 0.4 * n as f64),
    Machine { watch: 0.3, ..machine("card, block", |n| 10.0 + 0.2 * n as f64, |n| 1.0 + 0.05 * n as f64) },
    machine("processor", |n| 10.0 + 5.0 * n as f64, |n| 0.5 * n as f64),
    machine("tiles", |n| if n < 8 { 10.0 + n as f64 } else { 30.0 }, |_| 0.1),
    machine("slow drafter", |n| 10.0 + 0.5 * n as f64, |n| 9.0 * n as f64),
];

struct Run {
    time: f64,
    tokens: u32,
    drafted_late: u32,
    rounds_late: u32,
}

/// Random numbers in `[0, 1)`.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1u64 << 31) as f64
    }
}

/// `tokens` tokens with acceptance `accept(position, token number)`, times that vary by `jitter`.
fn run(
    machine: &Machine,
    how: Speculation,
    tokens: u32,
    jitter: f64,
    mut accept: impl FnMut(u32, u32) -> f64,
) -> Run {
    let mut policy = Policy::new(15);
    let mut noise = Noise(7);
    let mut built = [(None, 0); 16];
    let mut out = Run { time: 0.0, tokens: 0, drafted_late: 0, rounds_late: 0 };
    while out.tokens < tokens {
        let watch = if policy.watches() { machine.watch } else { 0.0 };
        let n = policy.choose(how, 15);
        let mut vary = |t: f64| t * (1.0 + jitter * (noise.next() - 0.5));
        let bucket = Some(out.tokens / 256);
        let (held, runs) = &mut built[n as usize];
        *runs = if *held == bucket { *runs + 1 } else { 1 };
        *held = bucket;
        let is_settling = *runs == 1 || (*runs == 2 && machine.second > 0.0);
        let more = [0.0, machine.first, machine.second].get(*runs).copied().unwrap_or(0.0);
        let round = Round {
            drafted: n,
            draft: watch + if n > 0 { more + vary((machine.draft)(n)) } else { 0.0 },
            verify: more + vary((machine.verify)(n)),
            is_first: *runs == 1,
            is_settling,
        };
        policy.measured(&round);
        out.time += round.draft + round.verify;
        policy.yielded(&round);
        let mut got = 1;
        for i in 0..n {
            let stands = noise.next() < accept(i, out.tokens);
            policy.judged(i as usize, stands);
            if !stands {
                break;
            }
            policy.yielded(&round);
            got += 1;
        }
        out.tokens += got;
        if out.tokens > tokens / 2 {
            out.rounds_late += 1;
            out.drafted_late += n;
        }
    }
    out
}

#[test]
fn never_slower_than_plain_by_more_than_three_percent() {
    for machine in &MACHINES {
        for accept in [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0] {
            for (tokens, jitter) in [(256, 0.0), (1000, 0.2), (8000, 0.5)] {
                let run = run(machine, Speculation::Auto, tokens, jitter, |_, _| accept);
                let plain = run.tokens as f64 * (machine.verify)(0);
                let loss = run.time / plain - 1.0;
                assert!(
                    loss < 0.03,
                    "{}, acceptance {accept}, jitter {jitter}: {tokens} tokens are {:.1} % slower",
                    machine.name,
                    100.0 * loss
                );
            }
        }
    }
}

#[test]
fn a_drafter_that_is_all_wrong_is_left_alone() {
    for machine in &MACHINES {
        let run = run(machine, Speculation::Auto, 4000, 0.1, |_, _| 0.0);
        assert!(run.drafted_late < run.rounds_late / 100, "{}: {} drafts", machine.name, run.drafted_late);
    }
}

#[test]
fn close_to_the_best_fixed_number() {
    for machine in &MACHINES {
        for accept in [0.5, 0.7, 0.85, 0.95] {
            let speed = |how| {
                let run = run(machine, how, 6000, 0.1, |_, _| accept);
                run.tokens as f64 / run.time
            };
            let plain = 1.0 / (machine.verify)(0);
            let best = LADDER.iter().map(|&n| speed(Speculation::Fixed(n))).fold(plain, f64::max);
            let auto = speed(Speculation::Auto);
            assert!(
                auto > 0.93 * best,
                "{}, acceptance {accept}: {:.3} of the best speed",
                machine.name,
                auto / best
            );
        }
    }
}

#[test]
fn a_drafter_that_becomes_right_is_found() {
    for machine in &MACHINES[..2] {
        // 3000 tokens of what it does not know, and 5000 of what it does.
        let run = run(machine, Speculation::Auto, 8000, 0.1, |_, at| if at < 3000 { 0.0 } else { 0.9 });
        let plain = run.tokens as f64 * (machine.verify)(0);
        assert!(run.time < 0.7 * plain, "{}: {:.2} of the time", machine.name, run.time / plain);
    }
}

#[test]
fn later_positions_that_fail_are_not_drafted() {
    // As DFlash on text that it does not know: the first three stand, the rest never.
    let run = run(&MACHINES[2], Speculation::Auto, 4000, 0.0, |i, _| if i < 3 { 0.95 } else { 0.0 });
    let mean = f64::from(run.drafted_late) / f64::from(run.rounds_late);
    assert!(mean < 3.3, "{mean} drafts a round");
}

#[test]
fn fixed_and_off_do_as_they_are_told() {
    let mut policy = Policy::new(15);
    assert_eq!(policy.choose(Speculation::Off, 15), 0);
    assert_eq!(policy.choose(Speculation::Fixed(7), 15), 7);
    assert_eq!(policy.choose(Speculation::Fixed(7), 5), 5);
    assert_eq!(policy.choose(Speculation::Fixed(40), 15), 15);
    assert_eq!(policy.choose(Speculation::Auto, 15), 0, "nothing is known yet");
    assert_eq!(policy.usable(Speculation::Fixed(7), 7), 7);
    assert_eq!(policy.usable(Speculation::Auto, 7), 6);
    assert_eq!(Policy::new(0).choose(Speculation::Fixed(3), 9), 0);
    assert_eq!(Policy::new(3).ladder(), [1, 2, 3]);
}

#[test]
fn expectations_follow_acceptance() {
    let mut policy = Policy::new(4);
    for _ in 0..500 {
        policy.judged(0, true);
        policy.judged(1, false);
    }
    assert!(policy.expected(1) > 1.95);
    assert!(policy.expected(4) < 2.2, "{}", policy.expected(4));
}

#[test]
fn costs_are_interpolated() {
    let known = |pairs: &[(usize, f64)]| {
        let mut costs = vec![Cost::default(); 16];
        pairs.iter().for_each(|&(n, seconds)| costs[n].add(seconds));
        costs
    };
    let costs = known(&[(0, 10.0), (4, 14.0)]);
    assert_eq!(estimate(&costs, 2, 0.0), 12.0);
    assert_eq!(estimate(&costs, 8, 0.0), 18.0);
    assert_eq!(estimate(&known(&[(0, 10.0)]), 5, 0.3), 11.5);
    assert_eq!(estimate(&known(&[(4, 2.0)]), 8, 0.3), 4.0);
    assert_eq!(estimate(&known(&[(4, 2.0)]), 2, 0.3), 1.0);
    assert_eq!(estimate(&known(&[]), 2, 0.3), 0.6);
}

/// Taking in every token costs a tenth of a pass: it stops where drafting does not pay, and comes back where it does.
#[test]
fn a_drafter_that_is_dear_to_watch_is_watched_now_and_then() {
    let machine = Machine { watch: 1.0, ..MACHINES[1] };
    let wrong = run(&machine, Speculation::Auto, 8000, 0.1, |_, _| 0.0);
    let loss = wrong.time / (wrong.tokens as f64 * (machine.verify)(0)) - 1.0;
    assert!(loss < 0.02, "{:.1} % slower", 100.0 * loss);
    // Nor is it watched for a try that first runs forbid.
    let captured = Machine { first: 60.0, ..machine };
    let wrong = run(&captured, Speculation::Auto, 8000, 0.1, |_, _| 0.0);
    let firsts = f64::from(wrong.tokens.div_ceil(256) + 2) * captured.first;
    let loss = (wrong.time - firsts) / (wrong.tokens as f64 * (machine.verify)(0)) - 1.0;
    assert!(loss < 0.02, "{:.1} % slower", 100.0 * loss);
    let found = run(&machine, Speculation::Auto, 8000, 0.1, |_, at| if at < 3000 { 0.0 } else { 0.9 });
    let plain = found.tokens as f64 * (machine.verify)(0);
    assert!(found.time < 0.75 * plain, "{:.2} of the time", found.time / plain);
}

/// Graphs that take long when they run first do not keep a drafter from being tried.
#[test]
fn first_runs_are_not_what_later_ones_cost() {
    let machine = Machine { first: 10.0, ..MACHINES[1] };
    let right = run(&machine, Speculation::Auto, 256, 0.1, |_, _| 0.9);
    let plain = right.tokens as f64 * (machine.verify)(0);
    assert!(right.time < 0.6 * plain, "{:.2} of the time", right.time / plain);
}

/// Two cores and a small model: every draft adds most of a pass. One lucky round is no reason to draft the most.
#[test]
fn the_second_round_is_no_longer_than_the_first() {
    let mut policy = Policy::new(15);
    let plain = Round { verify: 0.9, ..Round::default() };
    policy.measured(&plain);
    policy.yielded(&plain);
    let n = policy.choose(Speculation::Auto, 15);
    let first = Round { drafted: n, draft: 0.5, verify: 3.0, is_first: true, is_settling: true };
    policy.measured(&first);
    (0..=n).for_each(|_| policy.yielded(&first));
    (0..n as usize).for_each(|i| policy.judged(i, true));
    assert!(n > 0 && policy.choose(Speculation::Auto, 15) <= n);
}

/// Where first runs take as long as many plain steps, as on a card that captures them, a drafter that is right pays for
/// them within one answer, and one that is wrong costs little more than the one try that shows it.
#[test]
fn first_runs_are_paid_back() {
    for machine in &MACHINES[..2] {
        for first in [30.0, 60.0, 170.0] {
            let machine = Machine { first, ..*machine };
            let time = |tokens: u32, accept: f64| {
                let run = run(&machine, Speculation::Auto, tokens, 0.1, |_, _| accept);
                let plain = f64::from(run.tokens) * (machine.verify)(0);
                // Plain steps have first runs as well.
                (run.time - f64::from(run.tokens.div_ceil(256)) * first, plain)
            };
            let name = machine.name;
            let (took, plain) = time(256, 0.9);
            assert!(took < 0.6 * plain, "{name}, {first}: {:.2} of the time", took / plain);
            for tokens in [256, 1000, 8000] {
                let (took, plain) = time(tokens, 0.0);
                let lost = took - 1.03 * plain - 2.0 * first;
                assert!(lost < 0.0, "{name}, {first}: {tokens} tokens, {lost:.0} more");
            }
        }
    }
}

/// A card records a graph in its second run. tiny-gemma4 on an H100 with MTP: 0.33 ms a plain step, 2.4 the second one; 0.85 a round
/// of three drafts. Plain decoding must not look seven times as slow as it is, nor longer drafts.
#[test]
fn second_runs_are_not_what_later_ones_cost() {
    let card = machine("small model on a card", |n| 10.0 + 1.2 * n as f64, |n| 4.0 * n as f64);
    let card = Machine { first: 70.0, second: 60.0, ..card };
    let time = |tokens: u32, accept: f64| {
        let run = run(&card, Speculation::Auto, tokens, 0.1, |_, _| accept);
        let firsts = f64::from(run.tokens.div_ceil(256)) * (card.first + card.second);
        (run.time - firsts, f64::from(run.tokens) * (card.verify)(0))
    };
    for tokens in [400, 2000] {
        let (took, plain) = time(tokens, 0.97);
        assert!(took < 0.8 * plain, "{tokens} tokens, drafts that stand: {:.2} of the time", took / plain);
        let (took, plain) = time(tokens, 0.3);
        let lost = took - 1.03 * plain - 2.0 * (card.first + card.second);
        assert!(lost < 0.0, "{tokens} tokens, drafts that fail: {lost:.0} more");
    }
}
