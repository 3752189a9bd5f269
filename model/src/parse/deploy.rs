//! The `deploy` section, `health` in it.

use super::decode::Fields;
use super::keys::{DEPLOY, HEALTH};
use super::problems::Problems;
use super::tree::{Node, Place, printable};
use crate::definition::{
    Deploy, Health, Lifecycle, OnFailure, Probe, Profile, RollbackRule, RuntimeKind, Scope, SetupRun, Strategy,
};
use std::collections::BTreeMap;
use std::time::Duration;

const LIFECYCLES: [(&str, Lifecycle); 2] = [("systemd", Lifecycle::Systemd), ("simple", Lifecycle::Simple)];
const SCOPES: [(&str, Scope); 2] = [("system", Scope::System), ("user", Scope::User)];
const PROFILES: [(&str, Profile); 4] =
    [("web", Profile::Web), ("worker", Profile::Worker), ("jit", Profile::Jit), ("legacy", Profile::Legacy)];
const SETUP_RUNS: [(&str, SetupRun); 2] = [("changed", SetupRun::Changed), ("always", SetupRun::Always)];
const STRATEGIES: [(&str, Strategy); 3] = [("all", Strategy::All), ("rolling", Strategy::Rolling), ("canary", Strategy::Canary)];

const ROLLBACKS: [(&str, RollbackRule); 2] = [("automatic", RollbackRule::Automatic), ("forbidden", RollbackRule::Forbidden)];
const ON_FAILURE: [(&str, OnFailure); 2] = [("hold", OnFailure::Hold), ("rollback_all", OnFailure::RollbackAll)];

pub fn deploy(node: Option<&Node>, service: Place, runtime: RuntimeKind, problems: &mut Problems) -> Deploy {
    let opened = node.and_then(|n| Fields::open(n, "`deploy`", DEPLOY, problems));
    let fields = opened.unwrap_or_else(|| Fields::none(service));
    let lifecycle = lifecycle(&fields, runtime, problems);
    let on_failure = fields.choice("on_failure", &ON_FAILURE, problems).ok().flatten().unwrap_or(OnFailure::Hold);
    let health = health(fields.get("health"), problems);
    let scope = fields.choice("scope", &SCOPES, problems).ok().flatten();
    Deploy {
        lifecycle,
        scope: if runtime == RuntimeKind::Local { Scope::User } else { scope.unwrap_or(Scope::System) },
        args: fields.words("args", problems),
        env: env(&fields, problems),
        setup: fields.path("setup", problems),
        setup_commands: fields.texts("setup_commands", problems),
        setup_timeout: fields.duration("setup_timeout", Duration::from_secs(1), problems).unwrap_or(Duration::from_secs(300)),
        setup_run: fields.choice("setup_run", &SETUP_RUNS, problems).ok().flatten().unwrap_or(SetupRun::Changed),
        unit: fields.path("unit", problems),
        profile: profile(&fields, &health, problems),
        health,
        guard_grace: fields.duration("guard_grace", Duration::from_secs(1), problems).unwrap_or(Duration::from_secs(30)),
        keep_releases: fields.number("keep_releases", 2, 1000, problems).unwrap_or(5),
        strategy: fields.choice("strategy", &STRATEGIES, problems).ok().flatten().unwrap_or(Strategy::All),
        max_failures: fields.number("max_failures", 0, 10_000, problems).unwrap_or(0),
        on_failure,
        rollback: rollback(&fields, on_failure, problems),
    }
}

fn rollback(fields: &Fields<'_>, on_failure: OnFailure, problems: &mut Problems) -> RollbackRule {
    let rule = fields.choice("rollback", &ROLLBACKS, problems).ok().flatten().unwrap_or(RollbackRule::Automatic);
    if rule == RollbackRule::Forbidden && on_failure == OnFailure::RollbackAll {
        let place = fields.get("rollback").map_or(fields.place, |n| n.place);
        problems.add(place, "`rollback: forbidden` and `on_failure: rollback_all` exclude each other", None);
    }
    rule
}

fn profile(fields: &Fields<'_>, health: &Health, problems: &mut Problems) -> Profile {
    let profile = fields.choice("profile", &PROFILES, problems).ok().flatten();
    let place = fields.get("profile").map_or(fields.place, |n| n.place);
    if profile.is_some() && fields.get("unit").is_some() {
        problems.add(place, "`profile` is about the generated unit, and `unit` names your own", None);
    }
    if profile == Some(Profile::Worker) && matches!(health.probe, Probe::Http(_) | Probe::Tcp(_)) {
        let hint = "it has no network: ask by `exec` or `notify`, or set `profile: web`".to_owned();
        problems.add(place, "nothing can connect to a service with `profile: worker`", Some(hint));
    }
    profile.unwrap_or_default()
}

fn lifecycle(fields: &Fields<'_>, runtime: RuntimeKind, problems: &mut Problems) -> Lifecycle {
    let chosen = fields.choice("lifecycle", &LIFECYCLES, problems).ok().flatten();
    match (runtime, chosen) {
        (RuntimeKind::Local, Some(Lifecycle::Systemd)) => {
            let place = fields.get("lifecycle").map_or(fields.place, |n| n.place);
            let hint = "set `lifecycle: simple`".to_owned();
            problems.add(place, "`runtime: local` has the simple lifecycle only", Some(hint));
            Lifecycle::Simple
        }
        (RuntimeKind::Local, _) => Lifecycle::Simple,
        (_, chosen) => chosen.unwrap_or(Lifecycle::Systemd),
    }
}

fn env(fields: &Fields<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    for (key, _) in fields.entries_of("env", problems) {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let digit_first = key.name.starts_with(|c: char| c.is_ascii_digit());
        if key.name.is_empty() || digit_first || !key.name.bytes().all(word) {
            let hint = "letters, digits and _, not a digit first".to_owned();
            problems.add(key.place, format!("`{}` is not a variable name", printable(&key.name)), Some(hint));
        }
    }
    fields.scalars("env", problems)
}

fn health(node: Option<&Node>, problems: &mut Problems) -> Health {
    let mut health = Health {
        probe: Probe::StaysUp,
        interval: Duration::from_millis(500),
        timeout: Duration::from_secs(30),
        good: 1,
        stable_for: Duration::from_secs(2),
        expect: None,
    };
    let Some(fields) = node.and_then(|n| Fields::open(n, "`health`", HEALTH, problems)) else { return health };
    // Faster than that, the probes are the load.
    let least = Duration::from_millis(50);
    health.interval = fields.duration("interval", least, problems).unwrap_or(health.interval);
    health.timeout = fields.duration("timeout", Duration::from_millis(100), problems).unwrap_or(health.timeout);
    health.good = fields.number("good", 1, 1000, problems).unwrap_or(health.good);
    health.stable_for = fields.duration("stable_for", Duration::ZERO, problems).unwrap_or(health.stable_for);
    health.probe = probe(&fields, problems);
    health.expect = fields.text("expect", problems);
    if health.expect.is_some() && !matches!(health.probe, Probe::Http(_)) {
        let place = fields.get("expect").map_or(fields.place, |n| n.place);
        problems.add(place, "`expect` is about the answer to `http`", Some("add `http: URL`".to_owned()));
    }
    health
}

fn probe(fields: &Fields<'_>, problems: &mut Problems) -> Probe {
    let probes = [
        http(fields, problems).map(Probe::Http),
        fields.port("tcp", problems).map(Probe::Tcp),
        fields.text("exec", problems).map(Probe::Exec),
        fields.bool("notify", problems).filter(|on| *on).map(|_| Probe::Notify),
    ];
    let mut written = ["http", "tcp", "exec", "notify"].iter().filter_map(|name| fields.entry(name));
    if let (Some(first), Some((second, _))) = (written.next(), written.next()) {
        let later = second.place.max(first.0.place);
        problems.add(later, "`health` takes one of http, tcp, exec, notify", None);
    }
    probes.into_iter().flatten().next().unwrap_or(Probe::StaysUp)
}

fn http(fields: &Fields<'_>, problems: &mut Problems) -> Option<String> {
    let url = fields.text("http", problems)?;
    if !is_http_url(&url) {
        let place = fields.get("http").map_or(fields.place, |n| n.place);
        let hint = "write `http://127.0.0.1:PORT/PATH`, as seen from the host itself".to_owned();
        problems.add(place, "`http` is not a plain http URL", Some(hint));
    }
    Some(url)
}

/// `http://`, a name or an address (IPv6 in brackets), maybe a port, maybe a path and a query; no user, no fragment.
fn is_http_url(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((host, port)) => (host, port),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let bracketed = authority.starts_with('[');
    let letter = |b: u8| match bracketed {
        true => b.is_ascii_hexdigit() || matches!(b, b':' | b'.'),
        false => b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'),
    };
    let host = !host.is_empty() && host.bytes().all(letter) && (!bracketed || host.contains(':'));
    let number = |p: &str| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|p| p > 0);
    let port = port.is_empty() || port.strip_prefix(':').is_some_and(number);
    host && port && url.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'\\')
}

#[cfg(test)]
mod tests {
    use super::is_http_url;

    #[test]
    fn urls_have_a_host_and_a_port_that_exists() {
        for good in ["http://h", "http://127.0.0.1:8080/health?x=1", "http://[::1]:80/", "http://a.b-c_d:1", "http://h?x"] {
            assert!(is_http_url(good), "{good}");
        }
        let bad = "https://h http://h:0 http://h:65536 http://h:80:90/ http://u@h http:// http:///x http://h:/ http://[::1 \
                   http://[x]:80 http://[1]:80 http://h:+80 http://h/#x http://h/\u{e4} ftp://h HTTP://h http://[::1]x";
        for bad in bad.split(' ') {
            assert!(!is_http_url(bad), "{bad}");
        }
        assert!(!is_http_url("http://h/a b") && !is_http_url("http://h\n"));
    }
}
