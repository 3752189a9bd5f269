//! From `fact` lines to [`HostFacts`]: total, so that a strange host gives missing facts and never a panic.

use crate::mesh::facts as mesh;
use base64::Engine as _;
use roadie_model::facts::{GuardFacts, HostFacts, Listener, ReleaseFacts, ReleaseState, ServiceState, Settled};
use roadie_model::id::{PackageId, ReleaseId};
use roadie_model::plan::SecretText;

/// Collects fact lines.
#[derive(Debug, Default)]
pub struct Observation {
    facts: HostFacts,
    unit: UnitState,
}

#[derive(Debug, Default)]
struct UnitState {
    load: String,
    active: String,
    sub: String,
    result: String,
    status: String,
    entered_us: u64,
    uptime_s: f64,
}

impl Observation {
    /// Takes one line in.
    pub fn add(&mut self, key: &str, value: &str) {
        let facts = &mut self.facts;
        match key {
            "machine" => facts.machine = value.to_owned(),
            "uid" => facts.uid = value.parse().unwrap_or(u32::MAX),
            "home" => facts.home = value.to_owned(),
            "root" => facts.root = value.to_owned(),
            "glibc" => facts.glibc = value.strip_prefix("glibc ").map(str::to_owned),
            "systemd" => facts.systemd = value.split_whitespace().nth(1).and_then(leading_number),
            "missing" => facts.missing_tools.push(value.to_owned()),
            "has" => facts.has_perl |= value == "perl",
            "sftp_server" => facts.sftp_server = Some(value.to_owned()),
            "incoming" => facts.incoming.push(value.to_owned()),
            "space" => facts.free_bytes = column(value, 3).unwrap_or(0) * 1024,
            "inodes" => facts.free_inodes = column(value, 3).filter(|_| column(value, 1).is_some_and(|total| total > 0)),
            "page_size" => facts.page_size = value.parse().unwrap_or(0),
            "lacks" => facts.lacks.push(value.to_owned()),
            "mount" => {
                let (point, flags) = value.split_once(' ').unwrap_or((value, ""));
                facts.mount = point.to_owned();
                facts.mount_flags = flags.split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect();
            }
            "loose" => facts.loose.push(value.to_owned()),
            "listener" => facts.listener = listener(value),
            "epoch" => {
                let (number, tag) = value.split_once(' ').unwrap_or((value, ""));
                (facts.epoch, facts.epoch_tag) = (number.parse().unwrap_or(0), tag.to_owned());
            }
            "came_with" => facts.came_with = Some(value.to_owned()),
            "current" => facts.current = ReleaseId::new(value).ok(),
            "text" => {
                let (name, value) = value.split_once(' ').unwrap_or((value, ""));
                let text = decode(value).map(SecretText::new);
                match name {
                    "unit" => facts.texts.unit = text,
                    "config.toml" => facts.texts.config = text,
                    "env" => facts.texts.env = text,
                    _ => {}
                }
            }
            "release" => facts.releases.extend(release(value)),
            "health" => {
                let (id, json) = value.split_once(' ').unwrap_or((value, ""));
                if let Some(release) = facts.releases.iter_mut().find(|r| r.id.as_str() == id) {
                    release.health = serde_json::from_str(json).ok();
                }
            }
            "installed_unit" => facts.unit_sha256 = Some(value.to_owned()),
            "setup" => facts.setup_digest = Some(value.to_owned()),
            "guard" => facts.guard = Some(guard(value)),
            "settled" => facts.settled = settled(value),
            "unit_state" => self.unit_state(value),
            "uptime" => self.unit.uptime_s = value.parse().unwrap_or(0.0),
            "simple_state" => self.simple_state(value),
            _ => {
                if let Some(key) = key.strip_prefix("mesh_") {
                    mesh::add(facts.mesh.get_or_insert_default(), key, value);
                }
            }
        }
    }

    fn unit_state(&mut self, line: &str) {
        let Some((key, value)) = line.split_once('=') else {
            return;
        };
        let (unit, service) = (&mut self.unit, &mut self.facts.service);
        match key {
            "LoadState" => unit.load = value.to_owned(),
            "ActiveState" => unit.active = value.to_owned(),
            "SubState" => unit.sub = value.to_owned(),
            "Result" => unit.result = value.to_owned(),
            "ExecMainStatus" => unit.status = value.to_owned(),
            "ActiveEnterTimestampMonotonic" => unit.entered_us = value.parse().unwrap_or(0),
            "InvocationID" => service.invocation = Some(value.to_owned()).filter(|v| !v.is_empty()),
            "MainPID" => service.pid = value.parse().ok().filter(|pid| *pid > 0),
            "NRestarts" => service.restarts = value.parse().unwrap_or(0),
            _ => {}
        }
    }

    /// `STATE CHILD RESTARTS SINCE NOW DETAIL...`
    fn simple_state(&mut self, line: &str) {
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap_or_default().to_owned();
        let (state, child, restarts, since, now) = (next(), next(), next(), next(), next());
        let service = &mut self.facts.service;
        service.detail = words.collect::<Vec<_>>().join(" ");
        service.state = match state.as_str() {
            "running" => ServiceState::Running,
            "waiting" => ServiceState::Changing,
            "failed" => ServiceState::Failed,
            "stopped" => ServiceState::Stopped,
            _ => ServiceState::Absent,
        };
        service.restarts = restarts.parse().unwrap_or(0);
        if service.state == ServiceState::Running {
            service.pid = child.split('-').next().and_then(|pid| pid.parse().ok());
            service.invocation = Some(child);
            service.up_s = since.parse::<u64>().ok().zip(now.parse::<u64>().ok()).map(|(since, now)| now.saturating_sub(since));
        }
    }

    /// The whole picture, releases newest first.
    pub fn finish(mut self) -> HostFacts {
        self.finish_unit();
        self.facts.releases.sort_by(|a, b| b.epoch.cmp(&a.epoch).then_with(|| a.id.cmp(&b.id)));
        self.facts
    }

    fn finish_unit(&mut self) {
        let (unit, service) = (&self.unit, &mut self.facts.service);
        if unit.load.is_empty() {
            return;
        }
        service.state = match unit.active.as_str() {
            _ if unit.load == "not-found" => ServiceState::Absent,
            "active" => ServiceState::Running,
            "failed" => ServiceState::Failed,
            "inactive" => ServiceState::Stopped,
            // Waiting for its next automatic restart.
            _ => ServiceState::Changing,
        };
        if service.state == ServiceState::Running && unit.entered_us > 0 {
            let entered_s = unit.entered_us / 1_000_000;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "uptime is positive and far below 2^53")]
            let uptime = unit.uptime_s as u64;
            service.up_s = Some(uptime.saturating_sub(entered_s));
        } else {
            service.invocation = None;
            service.pid = None;
        }
        if matches!(service.state, ServiceState::Failed | ServiceState::Changing) {
            service.detail = format!("{} {}", unit.result, unit.status);
        }
    }
}

fn leading_number(text: &str) -> Option<u32> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Number in a column of a `df` line, counted from 0.
fn column(line: &str, index: usize) -> Option<u64> {
    line.split_whitespace().nth(index).and_then(|word| word.parse().ok())
}

fn decode(base64: &str) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).ok()?;
    String::from_utf8(bytes).ok()
}

/// `PORT PID NAME`
fn listener(line: &str) -> Option<Listener> {
    let mut words = line.splitn(3, ' ');
    let port = words.next()?.parse().ok()?;
    let pid = words.next().and_then(|pid| pid.parse().ok());
    Some(Listener { port, pid, name: words.next().unwrap_or_default().trim().to_owned() })
}

/// `BACK-TO EPOCH ...`. One that cannot be read is armed all the same.
fn guard(line: &str) -> GuardFacts {
    let mut words = line.split(' ');
    let back_to = words.next().and_then(|id| ReleaseId::new(id).ok());
    GuardFacts { back_to, epoch: words.next().and_then(|n| n.parse().ok()).unwrap_or(0) }
}

/// `EPOCH TEXT...`
fn settled(line: &str) -> Option<Settled> {
    let (epoch, text) = line.split_once(' ')?;
    Some(Settled { epoch: epoch.parse().ok()?, text: text.to_owned() })
}

/// `ID COMPLETE STATE PACKAGE EPOCH AT VERSION`
fn release(line: &str) -> Option<ReleaseFacts> {
    let mut words = line.split(' ');
    let id = ReleaseId::new(words.next()?).ok()?;
    let complete = words.next()? == "1";
    let state = match words.next()? {
        "staged" => ReleaseState::Staged,
        "verified" => ReleaseState::Verified,
        "active" => ReleaseState::Active,
        "proven" => ReleaseState::Proven,
        _ => ReleaseState::Failed,
    };
    let package = PackageId::new(words.next()?).ok()?;
    let epoch = words.next()?.parse().ok()?;
    let changed_at = words.next()?.parse().ok()?;
    let version = words.next().unwrap_or_default().to_owned();
    Some(ReleaseFacts { id, package, version, state, epoch, changed_at, complete, health: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(lines: &[(&str, &str)]) -> HostFacts {
        let mut observation = Observation::default();
        for (key, value) in lines {
            observation.add(key, value);
        }
        observation.finish()
    }

    #[test]
    fn a_running_unit_is_read() {
        let facts = observe(&[
            ("machine", "x86_64"),
            ("systemd", "systemd 252 (252.39-1~deb12u1)"),
            ("space", "/dev/vda 1000 200 800 20% /"),
            ("inodes", "/dev/vda 0 0 0 - /"),
            ("unit_state", "LoadState=loaded"),
            ("unit_state", "ActiveState=active"),
            ("unit_state", "InvocationID=abc"),
            ("unit_state", "ActiveEnterTimestampMonotonic=5000000"),
            ("uptime", "12.34"),
        ]);
        assert_eq!((facts.systemd, facts.free_bytes, facts.free_inodes), (Some(252), 800 * 1024, None));
        assert_eq!((facts.service.state, facts.service.up_s), (ServiceState::Running, Some(7)));
    }

    #[test]
    fn garbage_gives_missing_facts() {
        let facts =
            observe(&[("release", "../../x 1 proven"), ("space", ""), ("uid", "x"), ("unit", "%%%"), ("simple_state", "")]);
        assert!(facts.releases.is_empty() && facts.texts.unit.is_none() && facts.free_bytes == 0);
    }

    #[test]
    fn releases_come_newest_first() {
        let (a, b, p) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
        let facts =
            observe(&[("release", &format!("{a} 1 proven {p} 1 100 1.0")), ("release", &format!("{b} 0 failed {p} 2 200 "))]);
        assert_eq!(facts.releases[0].id.as_str(), b);
        assert_eq!(facts.previous().map(|r| r.id.as_str()), Some(a.as_str()));
    }
}
