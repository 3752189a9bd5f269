//! Looks at a host from outside, all the time while a trial runs, and shares no code with what deploys.

use crate::host::Host;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Every release that `current` named.
    pub releases: BTreeSet<String>,
    /// Broken invariants, as they were seen.
    pub violations: Vec<String>,
    /// How often `current` was looked at.
    pub looks: u64,
    /// Longest time without an answer of the service.
    pub longest_gap: Duration,
}

/// A running look.
pub struct Oracle {
    stop: Arc<AtomicBool>,
    eyes: Vec<JoinHandle<Seen>>,
}

impl Oracle {
    /// Only asks the service, so that the looking does not slow down what is measured.
    pub fn watch_service(host: &Host) -> Self {
        Self::with(host, "", &[watch_service])
    }

    /// Begins to look. `secret` must be in no process's arguments.
    pub fn watch(host: &Host, secret: &str) -> Self {
        Self::with(host, secret, &[watch_current, watch_processes, watch_service])
    }

    fn with(host: &Host, secret: &str, looks: &[fn(&Host, &str, &AtomicBool) -> Seen]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let eye = |look: &fn(&Host, &str, &AtomicBool) -> Seen| {
            let (look, host, secret, stop) = (*look, host.clone(), secret.to_owned(), stop.clone());
            std::thread::spawn(move || look(&host, &secret, &stop))
        };
        Self { eyes: looks.iter().map(eye).collect(), stop }
    }

    /// Stops and says what was seen.
    pub fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for eye in self.eyes {
            match eye.join() {
                Ok(seen) => {
                    all.releases.extend(seen.releases);
                    all.violations.extend(seen.violations);
                    all.looks += seen.looks;
                    all.longest_gap = all.longest_gap.max(seen.longest_gap);
                }
                Err(_) => all.violations.push("the oracle itself failed".into()),
            }
        }
        all
    }
}

/// I1 and I2, a thousand times a second: `current` is there and names a whole release.
fn watch_current(host: &Host, _: &str, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut last = None;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
        // The plug is pulled: its disk is not mounted.
        if !host.path("/etc/os-release").exists() {
            continue;
        }
        let now = host.current();
        seen.looks += 1;
        if now == last {
            continue;
        }
        match &now {
            // Twice, because the disk may have gone away between the two looks.
            None if host.path("/etc/os-release").exists() && host.current().is_none() && host.service().exists() => {
                seen.violations.push("I1: current is absent".into());
            }
            None => continue,
            Some(release) => {
                seen.releases.insert(release.clone());
                if let Some(damage) = host.damage(release)
                    // The plug is being pulled: its disk does not answer.
                    && !damage.contains("(os error 5)")
                    && host.path("/etc/os-release").exists()
                    && host.current().as_ref() == Some(release)
                {
                    seen.violations.push(format!("I1: current is damaged: {damage}"));
                }
            }
        }
        last = now;
    }
    seen
}

/// I9: no secret in the arguments of any process, ours included.
fn watch_processes(_: &Host, secret: &str, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()) {
                continue;
            }
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&arguments).contains(secret) && seen.violations.is_empty() {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                seen.violations.push(format!("I9: a secret is among the arguments of `{}`", name.trim()));
            }
        }
    }
    seen
}

/// I5: how long nobody answered.
fn watch_service(host: &Host, _: &str, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut since = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if host.version().is_some() {
            seen.longest_gap = seen.longest_gap.max(since.elapsed());
            since = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    seen
}
