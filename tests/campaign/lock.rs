//! The lock: two at once, holders that are killed, and what a routine deployment costs those who use the service.

use crate::host::Host;
use crate::trial::{Bench, within};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A killed holder's lock is free within.
const FREE_WITHIN: Duration = Duration::from_secs(15);

/// On all hosts side by side, `times` in all; gives what went wrong.
fn on_all(hosts: &[Host], times: u64, work: impl Fn(&mut Bench, u64) -> Result<(), String> + Sync) -> Vec<String> {
    let (left, problems) = (Mutex::new(times), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for host in hosts {
            scope.spawn(|| {
                let mut bench = Bench::new(host.clone(), None);
                loop {
                    let number = match left.lock() {
                        Ok(mut left) if *left > 0 => {
                            *left -= 1;
                            times - *left
                        }
                        _ => break,
                    };
                    if let Err(problem) = work(&mut bench, number)
                        && let Ok(mut problems) = problems.lock()
                    {
                        println!("#{number} on host {}: {problem}", host.lab.number);
                        problems.push(problem);
                    }
                }
                host.lab.reset();
            });
        }
    });
    problems.into_inner().unwrap_or_default()
}

/// Two deployments of different versions at once: one wins, the other says who holds the lock, and nothing is mixed.
pub fn two_at_once(hosts: &[Host], times: u64) -> bool {
    let waits = Mutex::new(0_u64);
    let problems = on_all(hosts, times, |bench, _| {
        bench.next_version();
        let first = bench.start();
        let other = format!("{}-other", bench.version());
        let second = bench.start_as(&other);
        let ends = [first.finish(), second.finish()];
        let codes = [ends[0].0, ends[1].0];
        let winner = match codes {
            [Some(0), Some(7)] => bench.version(),
            [Some(7), Some(0)] => other,
            // One was through before the other came.
            [Some(0), Some(0)] => {
                if let Ok(mut waits) = waits.lock() {
                    *waits += 1;
                }
                bench.host.version().unwrap_or_default()
            }
            _ => return Err(format!("exit codes {codes:?}:\n{}\n{}", ends[0].1, ends[1].1)),
        };
        for (code, text) in &ends {
            if *code == Some(7) && !(text.contains("another run holds the lock: ") && text.contains(", pid ")) {
                return Err(format!("the loser does not say who holds the lock:\n{text}"));
            }
        }
        let served = bench.host.version();
        let current = bench.host.current().unwrap_or_default();
        let damage = bench.host.damage(&current);
        if served.as_deref() != Some(winner.as_str()) || damage.is_some() || !bench.host.leftovers().is_empty() {
            return Err(format!("{winner} won, {served:?} is served, damage {damage:?}, left {:?}", bench.host.leftovers()));
        }
        Ok(())
    });
    println!(
        "two at once: {times} times, {} one behind the other, {} violations",
        waits.into_inner().unwrap_or(0),
        problems.len()
    );
    problems.is_empty()
}

/// Holders killed at random moments: the lock is free soon, and the next run gets it without anybody's help.
pub fn killed_holders(hosts: &[Host], times: u64, seed: u64) -> bool {
    let longest = Mutex::new(Duration::ZERO);
    let problems = on_all(hosts, times, |bench, number| {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number));
        bench.next_version();
        let mut running = bench.start();
        std::thread::sleep(Duration::from_millis(rng.u64(0..1800)));
        running.kill();
        let began = Instant::now();
        if !within(FREE_WITHIN, || bench.host.lock_is_free()) {
            return Err(format!("the lock is not free {FREE_WITHIN:?} after its holder was killed"));
        }
        if let Ok(mut longest) = longest.lock() {
            *longest = (*longest).max(began.elapsed());
        }
        let (code, text) = bench.deploy_to_end();
        if code != Some(0) || bench.host.version() != Some(bench.version()) {
            return Err(format!("the next run ended with {code:?}:\n{text}"));
        }
        Ok(())
    });
    let longest = longest.into_inner().unwrap_or_default();
    println!("killed holders: {times}, lock free after {:.1} s at most, {} violations", longest.as_secs_f64(), problems.len());
    problems.is_empty()
}

/// Routine deployments: how long nobody answers, beside a bare `systemctl restart` of the same service. One after the other: several
/// at once would measure how they share the machine.
pub fn downtime(hosts: &[Host], times: u64) -> bool {
    let gaps = Mutex::new((Vec::new(), Vec::new()));
    let problems = on_all(&hosts[..1], times, |bench, _| {
        let restart = bench.gap(|bench| {
            bench.host.lab.root("systemctl restart roadie-hello");
        });
        bench.next_version();
        let mut end = None;
        let deploy = bench.gap(|bench| end = Some(bench.deploy_to_end()));
        if let Ok(mut gaps) = gaps.lock() {
            gaps.0.push(restart);
            gaps.1.push(deploy);
        }
        match end {
            Some((Some(0), _)) if deploy <= restart + Duration::from_millis(200) => Ok(()),
            Some((Some(0), _)) => Err(format!("nobody answered for {deploy:?}; a bare restart takes {restart:?}")),
            other => Err(format!("the deployment failed: {other:?}")),
        }
    });
    let (mut restarts, mut deploys) = gaps.into_inner().unwrap_or_default();
    restarts.sort();
    deploys.sort();
    let middle = |list: &[Duration]| list.get(list.len() / 2).copied().unwrap_or_default();
    println!(
        "downtime of {times} deployments: median {:?}, longest {:?}; bare restarts: median {:?}, longest {:?}; {} beyond restart + 200 ms",
        middle(&deploys),
        deploys.last().copied().unwrap_or_default(),
        middle(&restarts),
        restarts.last().copied().unwrap_or_default(),
        problems.len()
    );
    problems.is_empty()
}
