//! The fault campaign: deployments on real hosts with faults at every step or at random moments, judged by an oracle that
//! shares no code with what deploys.
//!
//! ```text
//!     campaign exhaustive [--part I/N] [--only WORDS]     every point and every fault, or the I-th of N parts
//!     campaign guard [--part I/N] [--only WORDS]          the same on the guard's own way back
//!     campaign random --trials N --seed S [--minutes M] [--log FILE]
//!     campaign two-at-once | killed-holders | downtime [--times N]
//!     campaign bugs [--only WORDS]                        seeded bugs: each must be caught by the invariant meant for it
//! ```
//!
//! It needs the lab's hosts (`ci/lab env`), works on all of them side by side, and exits 1 on a violation. With `--log` every
//! trial is a line of the file, and a run that is started again goes on behind the last one.

#![expect(clippy::print_stdout, clippy::exit, reason = "a program for developers: it talks and exits")]

mod bugs;
mod fault;
mod host;
mod lock;
mod oracle;
mod trial;

use fault::{Fault, Point};
use host::Host;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use trial::{Bench, Verdict};

/// One trial to do.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    number: u64,
    fault: Fault,
    point: Point,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let number = |name: &str, default: u64| value(name).map_or(default, |v| v.parse().unwrap_or_else(|_| usage()));
    let hosts: Vec<Host> = roadie_tests::lab_hosts().into_iter().map(Host::new).collect();
    if hosts.is_empty() {
        println!("campaign: no hosts; `ci/lab up 3`, then `eval \"$(ci/lab env)\"`");
        std::process::exit(2);
    }
    let log = value("--log").map(PathBuf::from);
    let minutes = number("--minutes", 24 * 60);
    let good = match args.first().map(String::as_str) {
        Some(lane @ ("exhaustive" | "guard")) => {
            let part = value("--part").unwrap_or_else(|| "1/1".into());
            let (i, n) =
                part.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?))).unwrap_or_else(|| usage());
            let only = value("--only").unwrap_or_default();
            run(&hosts, every(lane, i, n, &only), minutes, log.as_deref(), None).good()
        }
        Some("random") => {
            let cases = random(number("--trials", 50), number("--seed", 1));
            run(&hosts, cases, minutes, log.as_deref(), None).good()
        }
        Some("two-at-once") => lock::two_at_once(&hosts, number("--times", 100)),
        Some("killed-holders") => lock::killed_holders(&hosts, number("--times", 200), number("--seed", 1)),
        Some("downtime") => lock::downtime(&hosts, number("--times", 15)),
        Some("bugs") => bugs::all_are_caught(&hosts, &value("--only").unwrap_or_default()),
        _ => usage(),
    };
    std::process::exit(i32::from(!good));
}

fn usage() -> ! {
    println!(
        "usage: campaign exhaustive | guard [--part I/N] [--only WORDS] | random --trials N --seed S | two-at-once | killed-holders | downtime [--times N] | bugs  [--minutes M] [--log FILE]"
    );
    std::process::exit(2);
}

/// Every point and every fault of a lane; spread so that each part has some of all.
fn every(lane: &str, part: usize, of: usize, only: &str) -> VecDeque<Case> {
    let (points, faults) = match lane {
        "guard" => (Point::way_back(), &Fault::ON_THE_WAY_BACK[..]),
        _ => (Point::all(), &Fault::EXHAUSTIVE[..]),
    };
    let cases = points.into_iter().flat_map(|point| faults.iter().map(move |fault| (*fault, point)));
    let cases = cases.filter(|(fault, point)| format!("{fault} {point}").contains(only));
    let faults = faults.len();
    let numbered = cases.enumerate().filter(|(n, _)| (n % faults + n / faults) % of == (part - 1) % of);
    numbered.map(|(n, (fault, point))| Case { number: n as u64 + 1, fault, point }).collect()
}

/// Random moments up to beyond the end of a deployment; a third power cuts. The same seed gives the same trials.
fn random(trials: u64, seed: u64) -> VecDeque<Case> {
    const FAULTS: [Fault; 9] = [
        Fault::Power,
        Fault::Power,
        Fault::Power,
        Fault::Kill,
        Fault::Kill,
        Fault::Terminate,
        Fault::Session,
        Fault::Reboot,
        Fault::DiskFull,
    ];
    let mut rng = fastrand::Rng::with_seed(seed);
    let case = |number| {
        let fault = if rng.u8(..) < 6 { Fault::Sleep } else { FAULTS[rng.usize(..FAULTS.len())] };
        Case { number, fault, point: Point::After(rng.u64(0..2400)) }
    };
    (1..=trials).map(case).collect()
}

/// What many trials showed.
#[derive(Debug, Default)]
pub struct Tally {
    trials: u64,
    missed: u64,
    looks: u64,
    faults: BTreeMap<String, u64>,
    violations: Vec<String>,
}

impl Tally {
    fn good(&self) -> bool {
        self.violations.is_empty() && self.trials > 0
    }
}

/// Does the cases on all hosts side by side, and says each.
fn run(hosts: &[Host], cases: VecDeque<Case>, minutes: u64, log: Option<&Path>, binary: Option<&Path>) -> Tally {
    let done_before = log.map(done).unwrap_or_default();
    let cases: VecDeque<Case> = cases.into_iter().filter(|c| !done_before.contains(&c.number)).collect();
    let total = cases.len();
    let began = Instant::now();
    let deadline = began + Duration::from_secs(minutes * 60);
    let (queue, tally) = (Mutex::new(cases), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for host in hosts {
            scope.spawn(|| {
                let mut bench = Bench::new(host.clone(), binary);
                while Instant::now() < deadline {
                    let Some(case) = queue.lock().ok().and_then(|mut q| q.pop_front()) else { break };
                    let at = Instant::now();
                    let verdict = bench.trial(case.fault, case.point);
                    let bad = !verdict.violations.is_empty();
                    if let Ok(mut tally) = tally.lock() {
                        tell(&mut tally, case, host, &verdict, at.elapsed(), total, log);
                    }
                    if bad {
                        // What follows must not be judged by what this one left.
                        bench = Bench::new(host.clone(), binary);
                    }
                }
                host.lab.reset();
            });
        }
    });
    let tally = tally.into_inner().unwrap_or_default();
    let faults: Vec<String> = tally.faults.iter().map(|(f, n)| format!("{f} {n}")).collect();
    println!(
        "{} trials ({}), {} done before, {} missed their point, current looked at {} times, {} violations, {:.0} min",
        tally.trials,
        faults.join(", "),
        done_before.len(),
        tally.missed,
        tally.looks,
        tally.violations.len(),
        began.elapsed().as_secs_f64() / 60.0
    );
    tally
}

fn tell(tally: &mut Tally, case: Case, host: &Host, verdict: &Verdict, took: Duration, total: usize, log: Option<&Path>) {
    tally.trials += 1;
    tally.missed += u64::from(verdict.missed);
    tally.looks += verdict.looks;
    *tally.faults.entry(case.fault.to_string()).or_default() += 1;
    let code = verdict.code.map_or("-".to_owned(), |c| c.to_string());
    let word = if !verdict.violations.is_empty() {
        "VIOLATION"
    } else if verdict.missed {
        "missed"
    } else {
        "ok"
    };
    let line = format!(
        "{}/{total} #{} {} {} on host {}: exit {code}, {:.1} s: {word}",
        tally.trials,
        case.number,
        case.fault,
        case.point,
        host.lab.number,
        took.as_secs_f64()
    );
    println!("{line}");
    for violation in &verdict.violations {
        println!("    {violation}");
        tally.violations.push(violation.clone());
    }
    if let Some(log) = log
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(log)
    {
        let _ = writeln!(file, "{} {word} {line}", case.number);
    }
}

/// Numbers of the trials that a log holds.
fn done(log: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|l| l.split(' ').next()?.parse().ok()).collect()
}
