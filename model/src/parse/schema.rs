//! The keys of the file: from nodes to raw values with places, one function per section.

use super::decode::{Fields, Problems, json, string};
use super::tree::{Kind, Node, Place};
use crate::definition::{Build, CargoBuild, Deploy, ExtraFile, Health, Lifecycle, Probe, RuntimeKind, Scope, SetupRun, Strategy};
use crate::target::TargetTriple;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Every section of the file and the keys it knows: the reference in the docs is checked against it.
pub const KEYS: &[(&str, &[&str])] = &[
    ("file", FILE),
    ("defaults", DEFAULTS),
    ("host", HOST),
    ("service", SERVICE),
    ("build", BUILD),
    ("files", FILES),
    ("deploy", DEPLOY),
    ("health", HEALTH),
];
const FILE: &[&str] = &["defaults", "hosts", "services"];
const DEFAULTS: &[&str] = &["user", "ssh_key", "port", "timeout"];
const HOST: &[&str] = &["address", "user", "port", "ssh_key", "host_key", "tags", "timeout"];
const SERVICE: &[&str] = &["runtime", "hosts", "depends_on", "build", "config", "vars", "files", "deploy"];
const BUILD: &[&str] = &[
    "type",
    "package",
    "bin",
    "features",
    "default_features",
    "profile",
    "locked",
    "manifest_dir",
    "target",
    "targets",
    "path",
    "run",
    "inputs",
    "output",
    "image",
];
const FILES: &[&str] = &["from", "to"];
const DEPLOY: &[&str] = &[
    "lifecycle",
    "scope",
    "args",
    "env",
    "setup",
    "setup_commands",
    "setup_timeout",
    "setup_run",
    "unit",
    "health",
    "keep_releases",
    "strategy",
];
const HEALTH: &[&str] = &["http", "tcp", "exec", "notify", "interval", "timeout", "good", "stable_for"];

/// Something written in the file, and where.
#[derive(Debug, Clone)]
pub struct Spanned<T> {
    pub place: Place,
    pub value: T,
}

/// Connection settings; those of a host fall back to the defaults.
#[derive(Debug, Clone, Default)]
pub struct RawHost {
    pub address: Option<String>,
    pub user: Option<String>,
    pub port: Option<u16>,
    pub ssh_key: Option<PathBuf>,
    pub host_key: Option<String>,
    pub tags: Vec<String>,
    pub timeout: Option<Duration>,
}

/// How a service names its hosts.
pub enum HostRef {
    Named(String),
    Inline(Box<RawHost>),
}

pub struct RawService {
    pub name: String,
    pub runtime: RuntimeKind,
    pub hosts: Vec<Spanned<HostRef>>,
    pub depends_on: Vec<Spanned<String>>,
    pub build: Build,
    pub config: Option<PathBuf>,
    pub vars: BTreeMap<String, serde_json::Value>,
    pub files: Vec<ExtraFile>,
    pub deploy: Deploy,
}

#[derive(Default)]
pub struct RawFile {
    pub defaults: RawHost,
    pub hosts: Vec<(Spanned<String>, RawHost)>,
    pub services: Vec<Spanned<RawService>>,
}

pub fn decode_file(root: &Node, problems: &mut Problems) -> RawFile {
    let mut file = RawFile::default();
    let Some(fields) = Fields::open(root, "the file", FILE, problems) else { return file };
    if let Some(node) = fields.get("defaults") {
        file.defaults = host(node, "`defaults`", DEFAULTS, problems);
    }
    for (key, node) in fields.entries_of("hosts", problems) {
        let host = host(node, "a host", HOST, problems);
        if host.address.is_none() && matches!(node.kind, Kind::Map(_)) {
            problems.add(key.place, &format!("host `{}` needs an `address`", key.name), None);
        }
        file.hosts.push((Spanned { place: key.place, value: key.name.clone() }, host));
    }
    for (key, node) in fields.entries_of("services", problems) {
        if key.name.starts_with("x-") {
            continue;
        }
        if let Some(value) = service(&key.name, key.place, node, problems) {
            file.services.push(Spanned { place: key.place, value });
        }
    }
    if fields.get("services").is_none() {
        problems.add(fields.place, "missing field `services`", Some("a definition has at least one service".into()));
    }
    file
}

fn host(node: &Node, what: &str, known: &[&str], problems: &mut Problems) -> RawHost {
    let Some(fields) = Fields::open(node, what, known, problems) else { return RawHost::default() };
    let host_key = fields.string("host_key", problems);
    if let Some(key) = &host_key
        && !is_fingerprint(key)
    {
        let place = fields.get("host_key").map_or(fields.place, |n| n.place);
        let hint =
            "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the host prints it: SHA256 and 43 characters".to_owned();
        problems.add(place, "`host_key` is not a fingerprint", Some(hint));
    }
    RawHost {
        address: fields.string("address", problems).filter(|a| check_address(a, &fields, problems)),
        user: fields.string("user", problems),
        port: fields.port("port", problems),
        ssh_key: fields.string("ssh_key", problems).map(PathBuf::from),
        host_key,
        tags: fields.strings("tags", problems),
        timeout: fields.duration("timeout", problems),
    }
}

fn check_address(address: &str, fields: &Fields<'_>, problems: &mut Problems) -> bool {
    let result = crate::id::HostName::new(address);
    if let Err(error) = &result {
        let place = fields.get("address").map_or(fields.place, |n| n.place);
        problems.add(
            place,
            &format!("`{}` is not an address", error.value),
            Some("a host name or an IP address, without user or port".into()),
        );
    }
    result.is_ok()
}

/// The form only: a fingerprint that is not the host's never matches, and the refusal then shows both.
fn is_fingerprint(text: &str) -> bool {
    let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'.');
    text.strip_prefix("SHA256:").is_some_and(|hash| (1..=43).contains(&hash.len()) && hash.bytes().all(base64))
}

fn service(name: &str, place: Place, node: &Node, problems: &mut Problems) -> Option<RawService> {
    let fields = Fields::open(node, "a service", SERVICE, problems)?;
    let runtimes = [("local", RuntimeKind::Local), ("docker", RuntimeKind::Docker), ("remote", RuntimeKind::Remote)];
    let chosen = fields.choice("runtime", &runtimes, problems);
    let misspelt = chosen.is_none() && fields.get("runtime").is_some();
    let runtime = chosen.unwrap_or(RuntimeKind::Remote);
    let hosts = if runtime == RuntimeKind::Local { &[] } else { fields.list("hosts") };
    let hosts = hosts.iter().filter_map(|n| host_ref(n, problems)).collect();
    if runtime == RuntimeKind::Remote && !misspelt && fields.list("hosts").is_empty() {
        let hint = Some("add `hosts:`, or set `runtime: local`".to_owned());
        problems.add(place, &format!("service `{name}` has no hosts"), hint);
    }
    if runtime == RuntimeKind::Local
        && let Some(node) = fields.get("hosts")
    {
        problems.add(node.place, "`runtime: local` has no hosts", Some("remove `hosts`, or set `runtime: remote`".into()));
    }
    let depends_on = fields.list("depends_on").iter();
    Some(RawService {
        name: name.to_owned(),
        runtime,
        hosts,
        depends_on: depends_on
            .filter_map(|n| Some(Spanned { place: n.place, value: string(n, "depends_on", problems)? }))
            .collect(),
        build: build(fields.get("build"), problems),
        config: fields.string("config", problems).map(PathBuf::from),
        vars: fields.entries_of("vars", problems).iter().map(|(k, v)| (k.name.clone(), json(v))).collect(),
        files: fields.list("files").iter().filter_map(|n| extra_file(n, problems)).collect(),
        deploy: deploy(fields.get("deploy"), place, runtime, problems),
    })
}

fn host_ref(node: &Node, problems: &mut Problems) -> Option<Spanned<HostRef>> {
    let value = match &node.kind {
        Kind::Map(_) => {
            let host = host(node, "a host", HOST, problems);
            if host.address.is_none() {
                problems.add(node.place, "an inline host needs an `address`", None);
                return None;
            }
            HostRef::Inline(Box::new(host))
        }
        _ => HostRef::Named(string(node, "hosts", problems)?),
    };
    Some(Spanned { place: node.place, value })
}

fn extra_file(node: &Node, problems: &mut Problems) -> Option<ExtraFile> {
    let fields = Fields::open(node, "an entry of `files`", FILES, problems)?;
    let mut path = |name: &str| {
        let text = fields.string(name, problems);
        if text.is_none() && fields.get(name).is_none() {
            problems.add(fields.place, &format!("missing field `{name}`"), None);
        }
        text.map(PathBuf::from)
    };
    let (from, to) = (path("from"), path("to"));
    let to = to?;
    if !is_inside(&to) {
        let place = fields.get("to").map_or(fields.place, |n| n.place);
        problems.add(place, "`to` must be a relative path inside of the package, without `..`", None);
    }
    Some(ExtraFile { from: from?, to })
}

fn is_inside(path: &Path) -> bool {
    path.components().all(|c| matches!(c, Component::Normal(_))) && path.components().count() > 0
}

fn build(node: Option<&Node>, problems: &mut Problems) -> Build {
    let cargo = CargoBuild {
        manifest_dir: PathBuf::from("."),
        default_features: true,
        profile: "release".into(),
        ..CargoBuild::default()
    };
    let Some(node) = node else { return Build::Cargo(cargo) };
    let Some(fields) = Fields::open(node, "`build`", BUILD, problems) else { return Build::Cargo(cargo) };
    let kind = fields.choice("type", &[("cargo", 0), ("prebuilt", 1), ("command", 2), ("image", 3)], problems).unwrap_or(0);
    let targets = targets(&fields, problems);
    let own: [&[&str]; 4] = [
        &["package", "bin", "features", "default_features", "profile", "locked", "manifest_dir", "target", "targets"],
        &["path", "target", "targets"],
        &["run", "inputs", "output", "target", "targets"],
        &["image"],
    ];
    refuse_foreign(&fields, own[kind], ["cargo", "prebuilt", "command", "image"][kind], problems);
    match kind {
        1 => Build::Prebuilt { path: required(&fields, "path", problems).into(), targets },
        2 => Build::Command {
            run: required(&fields, "run", problems),
            inputs: fields.strings("inputs", problems),
            output: required(&fields, "output", problems).into(),
            targets,
        },
        3 => Build::Image { image: required(&fields, "image", problems) },
        _ => Build::Cargo(CargoBuild {
            manifest_dir: fields.string("manifest_dir", problems).map_or(cargo.manifest_dir, PathBuf::from),
            package: fields.string("package", problems),
            bin: fields.string("bin", problems),
            features: fields.strings("features", problems),
            default_features: fields.bool("default_features", problems).unwrap_or(true),
            profile: fields.string("profile", problems).unwrap_or(cargo.profile),
            locked: fields.bool("locked", problems).unwrap_or(false),
            targets,
        }),
    }
}

/// A key that belongs to another build type.
fn refuse_foreign(fields: &Fields<'_>, own: &[&str], kind: &str, problems: &mut Problems) {
    for key in BUILD.iter().filter(|k| **k != "type" && !own.contains(k)) {
        if let Some(node) = fields.get(key) {
            problems.add(
                node.place,
                &format!("`{key}` does not belong to `type: {kind}`"),
                Some(format!("it takes {}", own.join(", "))),
            );
        }
    }
}

fn required(fields: &Fields<'_>, name: &str, problems: &mut Problems) -> String {
    if fields.get(name).is_none() {
        problems.add(fields.place, &format!("missing field `{name}`"), None);
    }
    fields.string(name, problems).unwrap_or_default()
}

fn targets(fields: &Fields<'_>, problems: &mut Problems) -> Vec<TargetTriple> {
    if let (Some(_), Some(node)) = (fields.get("target"), fields.get("targets")) {
        problems.add(node.place, "`target` and `targets` cannot both stand", Some("put all of them under `targets`".into()));
    }
    let mut targets = Vec::new();
    for (name, node) in ["target", "targets"].iter().flat_map(|n| fields.list(n).iter().map(move |node| (n, node))) {
        let Some(text) = string(node, name, problems) else { continue };
        match TargetTriple::new(&text) {
            Ok(target) => targets.push(target),
            Err(error) => problems.invalid(node.place, &error),
        }
    }
    targets
}

fn deploy(node: Option<&Node>, service: Place, runtime: RuntimeKind, problems: &mut Problems) -> Deploy {
    let local = runtime == RuntimeKind::Local;
    let usual = if local { Lifecycle::Simple } else { Lifecycle::Systemd };
    let empty = Node { place: service, kind: Kind::Map(Vec::new()) };
    let opened = Fields::open(node.unwrap_or(&empty), "`deploy`", DEPLOY, problems);
    let Some(fields) = opened.or_else(|| Fields::open(&empty, "`deploy`", DEPLOY, problems)) else {
        unreachable!("an empty map opens")
    };
    let lifecycles = [("systemd", Lifecycle::Systemd), ("simple", Lifecycle::Simple)];
    let lifecycle = fields.choice("lifecycle", &lifecycles, problems).unwrap_or(usual);
    if local && lifecycle == Lifecycle::Systemd {
        let place = fields.get("lifecycle").map_or(service, |n| n.place);
        problems.add(place, "`runtime: local` has the simple lifecycle only", Some("set `lifecycle: simple`".into()));
    }
    let scope = fields.choice("scope", &[("system", Scope::System), ("user", Scope::User)], problems);
    let setup_runs = [("changed", SetupRun::Changed), ("always", SetupRun::Always)];
    let strategies = [("all", Strategy::All), ("rolling", Strategy::Rolling), ("canary", Strategy::Canary)];
    Deploy {
        lifecycle,
        scope: if local { Scope::User } else { scope.unwrap_or(Scope::System) },
        args: fields.words("args", problems),
        env: env(&fields, problems),
        setup: fields.string("setup", problems).map(PathBuf::from),
        setup_commands: fields.strings("setup_commands", problems),
        setup_timeout: fields.duration("setup_timeout", problems).unwrap_or(Duration::from_secs(300)),
        setup_run: fields.choice("setup_run", &setup_runs, problems).unwrap_or(SetupRun::Changed),
        unit: fields.string("unit", problems).map(PathBuf::from),
        health: health(fields.get("health"), problems),
        keep_releases: fields.number("keep_releases", 2, 1000, problems).unwrap_or(5),
        strategy: fields.choice("strategy", &strategies, problems).unwrap_or(Strategy::All),
    }
}

fn env(fields: &Fields<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    for (key, node) in fields.entries_of("env", problems) {
        let name = key.name.as_bytes();
        let valid = !name.is_empty() && !name[0].is_ascii_digit() && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
        if !valid {
            problems.add(
                key.place,
                &format!("`{}` is not a variable name", key.name),
                Some("letters, digits and _, not a digit first".into()),
            );
        }
        if let Kind::Text(text) | Kind::Plain(text) | Kind::Filled(text) = &node.kind
            && text.contains('\0')
        {
            problems.add(node.place, "a value cannot hold a NUL character", None);
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
    };
    let Some(fields) = node.and_then(|n| Fields::open(n, "`health`", HEALTH, problems)) else { return health };
    health.interval = fields.duration("interval", problems).unwrap_or(health.interval).max(Duration::from_millis(50));
    health.timeout = fields.duration("timeout", problems).unwrap_or(health.timeout);
    health.good = fields.number("good", 1, 1000, problems).unwrap_or(health.good);
    health.stable_for = fields.duration("stable_for", problems).unwrap_or(health.stable_for);
    let mut probes = Vec::new();
    if let Some(url) = fields.string("http", problems) {
        check_url(&url, fields.get("http").map_or(fields.place, |n| n.place), problems);
        probes.push(Probe::Http(url));
    }
    probes.extend(fields.port("tcp", problems).map(Probe::Tcp));
    probes.extend(fields.string("exec", problems).map(Probe::Exec));
    if fields.bool("notify", problems) == Some(true) {
        probes.push(Probe::Notify);
    }
    if probes.len() > 1 {
        problems.add(fields.place, "`health` takes one of http, tcp, exec, notify", None);
    }
    health.probe = probes.into_iter().next().unwrap_or(Probe::StaysUp);
    health
}

fn check_url(url: &str, place: Place, problems: &mut Problems) {
    let rest = url.strip_prefix("http://");
    let authority = rest.map(|r| r.split(['/', '?']).next().unwrap_or_default());
    let valid = authority.is_some_and(|a| {
        let (host, port) = match a.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().is_ok_and(|p| p > 0)),
            _ => (a, true),
        };
        !host.is_empty() && port && !a.contains('@') && url.chars().all(|c| !c.is_control() && c != ' ')
    });
    if !valid {
        let hint = "write `http://127.0.0.1:PORT/PATH`, as seen from the host itself".to_owned();
        problems.add(place, "`http` is not a plain http URL", Some(hint));
    }
}
