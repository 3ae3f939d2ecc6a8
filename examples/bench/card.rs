//! What a graphics card of NVIDIA's says of itself, through `nvidia-smi`: power, and memory in use. Where there is none,
//! nobody is told.

use gemma4::Device;
use serde::Serialize;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The card's readings are means over about a second.
const SETTLE: Duration = Duration::from_millis(1500);

/// One reading.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    watts: Option<f64>,
    mib: f64,
}

/// A program and its first arguments.
type Program = &'static [&'static str];

/// The cards of this machine, before anything was loaded.
pub struct Cards {
    program: Program,
    readings: Vec<Reading>,
}

impl Cards {
    /// Asks once. Empty where there is no answer.
    pub fn idle() -> Cards {
        Cards::by(&["nvidia-smi"])
    }

    fn by(program: Program) -> Cards {
        Cards { program, readings: read(program, None) }
    }

    /// The card that computes as `device`.
    pub fn of(&self, device: Device) -> Option<Card> {
        let index: usize = device.name().strip_prefix("CUDA")?.parse().ok()?;
        self.get(index)
    }

    fn get(&self, index: usize) -> Option<Card> {
        Some(Card { program: self.program, index, before: self.readings.get(index)?.mib })
    }
}

/// A card, and what was in use before.
#[derive(Clone, Copy, Debug)]
pub struct Card {
    program: Program,
    index: usize,
    before: f64,
}

/// What a piece of work took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Energy {
    /// Mean power of the card, in watts.
    pub watts: f64,
    /// Energy for each token, in joules.
    pub joules: f64,
}

impl Card {
    /// MiB in use beyond those before the model was loaded.
    pub fn used_mib(&self) -> Option<f64> {
        Some(read(self.program, Some(self.index)).first()?.mib - self.before)
    }

    /// Energy of `work`, which computes `n` tokens, over `seconds` and more of it. `None` where the card does not tell.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn energy<E>(
        &self,
        n: u32,
        seconds: f64,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<Option<Energy>, E> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readings = scope.spawn(|| {
                let mut all = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match read(self.program, Some(self.index)).first() {
                        Some(reading) => all.push(*reading),
                        // Without a card there is nothing to wait for.
                        None => break,
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                all
            });
            let mut run = || -> Result<(Instant, f64, u32), E> {
                let begun = Instant::now();
                while begun.elapsed() < SETTLE {
                    work()?;
                }
                let (from, mut times) = (Instant::now(), 0);
                while from.elapsed().as_secs_f64() < seconds {
                    work()?;
                    times += 1;
                }
                Ok((from, from.elapsed().as_secs_f64(), times))
            };
            let done = run();
            stop.store(true, Ordering::Relaxed);
            let readings = readings.join().unwrap_or_default();
            let (from, took, times) = done?;
            let watts: Vec<f64> = readings.iter().filter(|r| r.at >= from).filter_map(|r| r.watts).collect();
            if watts.is_empty() || times == 0 {
                return Ok(None);
            }
            let watts = watts.iter().sum::<f64>() / watts.len() as f64;
            Ok(Some(Energy { watts, joules: watts * took / (f64::from(times) * f64::from(n)) }))
        })
    }
}

/// A reading of each card, or of one.
fn read(program: Program, card: Option<usize>) -> Vec<Reading> {
    let [program, arguments @ ..] = program else { return Vec::new() };
    let mut command = Command::new(program);
    command.args(arguments);
    command.args(["--query-gpu=power.draw,memory.used", "--format=csv,noheader,nounits"]);
    if let Some(card) = card {
        command.args(["-i", &card.to_string()]);
    }
    let Ok(output) = command.stderr(Stdio::null()).output() else { return Vec::new() };
    let at = Instant::now();
    String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| parse(at, line)).collect()
}

/// `123.45, 6789`; a card may have no number for its power.
fn parse(at: Instant, line: &str) -> Option<Reading> {
    let (watts, mib) = line.split_once(',')?;
    Some(Reading { at, watts: watts.trim().parse().ok(), mib: mib.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings() {
        let read = |line| parse(Instant::now(), line).map(|r| (r.watts, r.mib));
        assert_eq!(read("345.67, 12345"), Some((Some(345.67), 12345.0)));
        assert_eq!(read("[N/A], 12"), Some((None, 12.0)));
        assert_eq!(read("NVIDIA-SMI has failed"), None);
        assert_eq!(read("1.0, [N/A]"), None);
    }

    #[test]
    fn no_card() {
        assert!(Cards::by(&["no-such-program"]).get(0).is_none());
    }

    #[cfg(unix)]
    #[test]
    fn energy_of_a_steady_load() {
        // Two cards, or the one that is asked for. A script in a file would do too, were it not that the file cannot run
        // while it is open for writing, and a process that another test starts may have inherited it so.
        let cards = Cards::by(&["sh", "-c", "echo 200.0, 1500; [ $# -gt 2 ] || echo 60.0, 9", "nvidia-smi"]);
        assert!(cards.get(2).is_none());
        assert_eq!(cards.get(1).unwrap().used_mib(), Some(1491.0));
        let card = cards.get(0).unwrap();
        assert_eq!(card.used_mib(), Some(0.0));
        // A mean lies between the shortest time from one call to the next and the longest, however busy the machine is.
        let mut calls = Vec::new();
        let work = || {
            calls.push(Instant::now());
            std::thread::sleep(Duration::from_millis(40));
            Ok::<(), ()>(())
        };
        let energy = card.energy(4, 1.0, work).unwrap().unwrap();
        calls.push(Instant::now());
        let longest = calls.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).fold(0.001, f64::max);
        assert_eq!(energy.watts, 200.0);
        assert!(
            (200.0 * 0.04 / 4.0..=200.0 * longest / 4.0).contains(&energy.joules),
            "{energy:?} {longest}"
        );
        assert_eq!(card.energy(4, 0.5, || Err(())).unwrap_err(), ());
    }
}
