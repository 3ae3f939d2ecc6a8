//! How many tokens to draft: a model of what a round yields and costs, fed by what rounds did.
//!
//! With `a_i` the chance that draft `i` stands if all before it did, a round of `n` drafts yields
//! `E(n) = 1 + a_1 + a_1 a_2 + .. + a_1 .. a_n` tokens and takes `D(n) + V(n)`: drafting, and one pass of the
//! target over `n + 1` tokens. The policy takes the `n` with the most tokens a second; `n = 0` is plain decoding,
//! one token in `V(0)`.
//!
//! Estimates can be wrong, so it keeps books as well: **debt** is the time that rounds took beyond what plain
//! decoding would have taken for the same tokens. A round may only start if even its complete failure leaves the
//! debt within a small part of all time. So speculation never costs more than that part, whatever the drafter.
//!
//! A graph's first run takes longer, on a graphics card as long as many plain steps, and the second one too, in which the card
//! records it. Every size has these every 256 tokens. They measure nothing, and what they take more is **invested**: it
//! buys later rounds of the size, and what they gain pays it back. Another size is only begun if what was invested before
//! is paid back, or is small; a try without evidence, if its own first run is small too.

use std::fmt;

/// Whether a generation drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Speculation {
    /// Never: one token for each pass of the model.
    Off,
    /// This many tokens every round, as far as the drafter has them.
    Fixed(u32),
    /// As many as pay, by what acceptance and time were measured to be; none if none do.
    #[default]
    Auto,
}

/// Drafts that are worth a graph of their own. Others are rounded down.
const LADDER: [u32; 10] = [1, 2, 3, 4, 5, 6, 8, 11, 15, 23];

/// Part of all time that may be lost to failing rounds.
const MAX_LOSS: f64 = 0.015;
/// And plain steps that may be lost before there is time to take a part of.
const HEAD_START: f64 = 3.0;
/// Plain steps' worth of gains that may be staked again.
const MAX_CREDIT: f64 = 16.0;
/// Rounds after which a plain step is measured again.
const REFRESH: u32 = 64;
/// Of so many rounds, one tries a longer and one a shorter draft.
const EXPLORE: u32 = 24;
const EXPLORE_UP: u32 = 7;
const EXPLORE_DOWN: u32 = 19;
/// Plain steps before a drafter that did not pay is tried again, at first and at most.
const RETRY: [u32; 2] = [32, 1024];
/// Plain steps before a try whose rows are shown to the drafter, so that it has something to go by.
const WATCH: u32 = 32;
/// Drafts of the first round of all at most: nothing is known of its cost.
const FIRST_DRAFTS: u32 = 3;
/// Gain below which speculation is not worth its jitter.
const MIN_GAIN: f64 = 1.03;
/// Tokens over which a first run must pay: half of those between two of them.
const FIRST_RUN_TOKENS: f64 = 128.0;
/// Of so many measurements the smallest counts: a graph is captured in one of its first runs.
const SETTLE: u32 = 3;
/// Weight that a measurement keeps when the next one comes.
const KEEP_TIME: f64 = 0.8;
/// The same for acceptance: the last 30 or so judgements count.
const KEEP_ACCEPT: f64 = 0.97;
/// Judgements' worth of trust in what is assumed of a position before it was tried.
const PRIOR: f64 = 1.0;
/// Acceptance that is assumed of the first position.
const FIRST_GUESS: f64 = 0.7;

/// A running mean of seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    mean: Option<f64>,
    n: u32,
}

impl Cost {
    fn add(&mut self, seconds: f64) {
        self.n = self.n.saturating_add(1);
        self.mean = Some(match self.mean {
            Some(mean) if self.n <= SETTLE => mean.min(seconds),
            // One hiccup of the system must not decide for long.
            Some(mean) => KEEP_TIME * mean + (1.0 - KEEP_TIME) * seconds.min(3.0 * mean),
            None => seconds,
        });
    }
}

/// Running acceptance of one position.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    judged: f64,
    accepted: f64,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Round {
    /// Tokens that were verified besides the one that was known.
    pub drafted: u32,
    /// Seconds for drafting and for showing the drafter what was committed, without the building of graphs: that
    /// is no matter of how many tokens are drafted, as all sizes need it every 256 tokens.
    pub draft: f64,
    /// Seconds for the target's pass, in the same way.
    pub verify: f64,
    /// Whether a graph, the target's or the drafter's, was built and ran for the first time.
    pub is_first: bool,
    /// Whether one took longer than later times will: in its first run, on a card in the second one too.
    pub is_settling: bool,
}

/// Rounds of a size whose cost was not known, and what they were taken to cost.
#[derive(Clone, Copy)]
struct Guess {
    drafts: usize,
    rounds: u32,
    seconds: f64,
}

/// Chooses the number of drafts for each round.
#[derive(Clone)]
pub(crate) struct Policy {
    ladder: Vec<u32>,
    /// Seconds of a pass over `n` drafts and one token, by `n`.
    verify: Vec<Cost>,
    /// Seconds of drafting `n` tokens, by `n`.
    draft: Vec<Cost>,
    /// What a round with first runs takes more, and one with second runs.
    first: [Cost; 2],
    /// Whether rounds of `n` drafts need no first run, by `n`.
    ready: Vec<bool>,
    /// By position, from the first draft on.
    accept: Vec<Rate>,
    debt: f64,
    /// Seconds of first runs that later rounds have not paid back.
    invested: f64,
    /// Settling rounds of a size without a known cost, until a later round shows what they should have been booked at.
    guessed: Option<Guess>,
    /// Seconds of all rounds.
    total: f64,
    rounds_since_plain: u32,
    plain_since_try: u32,
    retry: u32,
    /// The next round is one of those.
    is_try: bool,
    /// Whether drafting pays, by what is known, or might.
    pays: bool,
    /// Drafts of the longest round so far.
    tried: u32,
    last: u32,
}

impl Policy {
    /// For drafts of up to `max` tokens.
    pub fn new(max: u32) -> Policy {
        let mut ladder: Vec<u32> = LADDER.into_iter().filter(|&n| n < max).collect();
        if max > 0 {
            ladder.push(max);
        }
        let n = max as usize + 1;
        Policy {
            ladder,
            verify: vec![Cost::default(); n],
            draft: vec![Cost::default(); n],
            first: [Cost::default(); 2],
            ready: vec![false; n],
            accept: vec![Rate::default(); max as usize],
            debt: 0.0,
            invested: 0.0,
            guessed: None,
            total: 0.0,
            rounds_since_plain: 0,
            plain_since_try: 0,
            retry: RETRY[0],
            is_try: false,
            pays: true,
            tried: 0,
            last: 0,
        }
    }

    /// The numbers of drafts that rounds can have, ascending.
    pub fn ladder(&self) -> &[u32] {
        &self.ladder
    }

    /// The largest number of the ladder that is at most `n`; 0 if there is none.
    fn round_down(&self, n: u32) -> u32 {
        self.ladder.iter().copied().rfind(|&rung| rung <= n).unwrap_or(0)
    }

    /// How many of `n` drafts a round takes: what was asked for, or a number of the ladder.
    pub fn usable(&self, how: Speculation, n: u32) -> u32 {
        match how {
            Speculation::Fixed(wanted) if wanted == n => n,
            _ => self.round_down(n),
        }
    }

    /// Drafts for the next round, at most `limit`.
    pub fn choose(&mut self, how: Speculation, limit: u32) -> u32 {
        let n = match how {
            Speculation::Off => 0,
            Speculation::Fixed(n) => self.usable(how, n.min(limit).min(self.accept.len() as u32)),
            Speculation::Auto => self.choose_auto(limit),
        };
        self.pays |= how != Speculation::Auto;
        if n != self.last {
            tracing::debug!(from = self.last, to = n, policy = ?self, "drafts for each round");
            self.last = n;
        }
        n
    }

    /// Whether the drafter should be shown what is committed. Taking rows in is not free for every drafter, so one
    /// that does not pay sees only those before it is tried again.
    pub fn watches(&self) -> bool {
        self.pays || self.plain_since_try + WATCH >= self.retry
    }

    fn choose_auto(&mut self, limit: u32) -> u32 {
        self.is_try = false;
        let Some(plain) = self.verify[0].mean else { return 0 };
        if self.rounds_since_plain >= REFRESH && self.first_run(0) <= HEAD_START * plain {
            return 0;
        }
        // Until one round's cost is known, what was tried is tried again: guesses of cost are too low on purpose, and
        // one lucky round would lead to the longest draft there is.
        let known = self.verify[1..].iter().any(|cost| cost.mean.is_some());
        let most = if known { limit } else { limit.min(self.tried.max(FIRST_DRAFTS)) };
        let within = self.round_down(most);
        let allowed = HEAD_START * plain + MAX_LOSS * self.total;
        let affordable = |n: &u32| {
            let first_run = self.ready[*n as usize] || self.invested <= allowed;
            *n <= within && first_run && self.debt + self.round_cost(*n, plain) - plain <= allowed
        };
        let speed = |n: u32| {
            let expected = self.expected(n);
            let first = self.first_run(n) * expected / FIRST_RUN_TOKENS;
            expected / (self.round_cost(n, plain) + first)
        };
        let rungs: Vec<u32> = self.ladder.iter().copied().filter(affordable).collect();
        let best = rungs.iter().copied().max_by(|&a, &b| speed(a).total_cmp(&speed(b)));
        self.pays = best.is_some_and(|best| speed(best) * plain > MIN_GAIN);
        if let (Some(best), true) = (best, self.pays) {
            self.retry = RETRY[0];
            return self.explore(best, &rungs);
        }
        if within == 0 || self.plain_since_try < self.retry {
            return 0;
        }
        // It does not pay by what is known, and what is known may be out of date.
        let cheap = |n: &u32| self.invested + self.first_run(*n) <= allowed;
        if let Some(n) = rungs.into_iter().find(cheap) {
            self.is_try = true;
            return n;
        }
        // Nothing could start now. Come back later, or the drafter would be watching all the while.
        (self.plain_since_try, self.retry) = (0, (2 * self.retry).min(RETRY[1]));
        0
    }

    /// `best`, or now and then its neighbour: costs and chances change with the context.
    fn explore(&self, best: u32, rungs: &[u32]) -> u32 {
        let at = rungs.iter().position(|&rung| rung == best).unwrap_or(0);
        let other = match self.rounds_since_plain % EXPLORE {
            EXPLORE_UP => at + 1,
            EXPLORE_DOWN => at.saturating_sub(1),
            _ => at,
        };
        // A look at a neighbour is not worth a first run that is dear.
        let plain = self.verify[0].mean.unwrap_or(0.0);
        let cheap = |n: &u32| self.first_run(*n) <= HEAD_START * plain;
        rungs.get(other).copied().filter(cheap).unwrap_or(best)
    }

    /// Seconds that a round of `n` drafts takes more because its graphs have not run yet.
    fn first_run(&self, n: u32) -> f64 {
        let is_ready = self.ready.get(n as usize).is_some_and(|&ready| ready);
        if is_ready { 0.0 } else { self.first.iter().filter_map(|cost| cost.mean).sum() }
    }

    /// Tokens that a round of `n` drafts is expected to yield.
    pub fn expected(&self, n: u32) -> f64 {
        let (mut sum, mut chance) = (1.0, 1.0);
        for i in 0..n as usize {
            chance *= self.acceptance(i);
            sum += chance;
        }
        sum
    }

    /// Chance that draft `i`, from 0 on, stands if those before it did. A position without a history is like
    /// the one before.
    fn acceptance(&self, i: usize) -> f64 {
        self.accept[..=i.min(self.accept.len() - 1)]
            .iter()
            .fold(FIRST_GUESS, |before, rate| (rate.accepted + PRIOR * before) / (rate.judged + PRIOR))
    }

    /// Expected seconds of a round of `n` drafts.
    fn round_cost(&self, n: u32, plain: f64) -> f64 {
        // Before anything is known, assume little: it costs one round to know better.
        let verify = estimate(&self.verify, n as usize, 0.03 * plain).max(plain);
        let draft = estimate(&self.draft, n as usize, 0.03 * plain);
        verify + draft
    }

    /// Says whether draft `i`, from 0 on, stood.
    pub fn judged(&mut self, i: usize, accepted: bool) {
        if let Some(rate) = self.accept.get_mut(i) {
            rate.judged = KEEP_ACCEPT * rate.judged + 1.0;
            rate.accepted = KEEP_ACCEPT * rate.accepted + f64::from(u8::from(accepted));
        }
    }

    /// Says what a round took, before its tokens are judged.
    pub fn measured(&mut self, round: &Round) {
        let n = round.drafted as usize;
        if n == 0 {
            self.rounds_since_plain = 0;
            self.plain_since_try = self.plain_since_try.saturating_add(1);
        } else {
            self.rounds_since_plain += 1;
            self.plain_since_try = 0;
            self.tried = self.tried.max(round.drafted);
            // A drafter that had nothing to say was not tried.
            if self.is_try {
                self.retry = (2 * self.retry).min(RETRY[1]);
            }
        }
        let mut took = round.draft + round.verify;
        if round.is_first {
            // A size that was ready is so no more: all sizes begin anew.
            if self.ready.get(n).is_some_and(|&ready| ready) {
                self.ready.fill(false);
            }
            if let Some(ready) = self.ready.get_mut(n) {
                *ready = true;
            }
        }
        if round.is_settling {
            if let (Some(plain), 1..) = (self.verify[0].mean, n) {
                let usual = self.round_cost(round.drafted, plain).min(took);
                let known = self.verify.get(n).is_some_and(|cost| cost.mean.is_some());
                let before = self.guessed.filter(|guess| guess.drafts == n);
                let (rounds, seconds) = before.map_or((0, 0.0), |guess| (guess.rounds, guess.seconds));
                let guess = Guess { drafts: n, rounds: rounds + 1, seconds: seconds + usual };
                self.guessed = (!known).then_some(guess);
                self.first[usize::from(!round.is_first)].add(took - usual);
                self.invested += took - usual;
                took = usual;
            }
        } else {
            if let Some(guess) = self.guessed.take_if(|guess| guess.drafts == n) {
                // What is usual was no investment.
                let rounds = f64::from(guess.rounds);
                let more = (took * rounds - guess.seconds).clamp(0.0, self.invested);
                self.invested -= more;
                self.debt += more;
                for mean in self.first.iter_mut().filter_map(|cost| cost.mean.as_mut()) {
                    *mean = (*mean - more / rounds).max(0.0);
                }
            }
            if let Some(cost) = self.verify.get_mut(n) {
                cost.add(round.verify);
            }
            if n > 0
                && let Some(cost) = self.draft.get_mut(n)
            {
                cost.add(round.draft);
            }
        }
        // A plain step is what the others are compared with; only the search for drafts was lost.
        self.debt += if n == 0 { round.draft } else { took };
        self.total += round.draft + round.verify;
    }

    /// Says that a round has yielded a token.
    pub fn yielded(&mut self, round: &Round) {
        let Some(plain) = self.verify[0].mean else {
            self.debt = 0.0;
            return;
        };
        if round.drafted > 0 {
            self.debt -= plain;
        }
        let back = self.invested.min(-self.debt).max(0.0);
        self.invested -= back;
        self.debt += back;
        self.debt = self.debt.max(-MAX_CREDIT * plain);
    }

    /// Seconds of a plain step, if one was measured.
    pub fn plain_step(&self) -> Option<f64> {
        self.verify.first()?.mean
    }
}

/// Cost of `n` where it was measured; else on the line through its neighbours, or through the last two; `step` for
/// each more where only one is known.
fn estimate(costs: &[Cost], n: usize, step: f64) -> f64 {
    let known = |i: usize| costs.get(i).and_then(|cost| cost.mean);
    if let Some(cost) = known(n) {
        return cost;
    }
    let below = (0..n).rev().find_map(|i| Some((i, known(i)?)));
    let above = (n + 1..costs.len()).find_map(|i| Some((i, known(i)?)));
    let line = |(i, a): (usize, f64), (j, b): (usize, f64)| {
        let slope = ((b - a) / (j as f64 - i as f64)).max(0.0);
        a + slope * (n as f64 - i as f64)
    };
    match (below, above) {
        (Some(low), Some(high)) => line(low, high),
        (Some(low), None) => {
            let lower = (0..low.0).rev().find_map(|i| Some((i, known(i)?)));
            match lower {
                Some(lower) => line(lower, low),
                None if low.0 == 0 => low.1 + step * n as f64,
                None => low.1 * n as f64 / low.0 as f64,
            }
        }
        (None, Some((high, cost))) => cost * n as f64 / high as f64,
        (None, None) => step * n as f64,
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |costs: &[Cost]| -> Vec<(usize, f64)> {
            let known = costs.iter().enumerate().filter_map(|(n, cost)| Some((n, cost.mean?)));
            known.map(|(n, seconds)| (n, (seconds * 1e5).round() / 1e2)).collect()
        };
        let accept: Vec<f64> =
            (0..self.accept.len().min(8)).map(|i| (self.acceptance(i) * 100.0).round() / 100.0).collect();
        f.debug_struct("Policy")
            .field("acceptance", &accept)
            .field("verify_ms", &ms(&self.verify))
            .field("draft_ms", &ms(&self.draft))
            .field("debt_ms", &((self.debt * 1e5).round() / 1e2))
            .field("invested_ms", &((self.invested * 1e5).round() / 1e2))
            .finish()
    }
}

#[cfg(test)]
mod tests;
