//! The file, its hosts and its services: from nodes to raw values with places.

use super::decode::{Fields, Word, json, string};
use super::keys::{DEFAULTS, FILE, FILES, HOST, SERVICE};
use super::mesh::{self, RawMesh};
use super::problems::Problems;
use super::tree::{Key, Kind, Node, Place, printable};
use super::{build, deploy};
use crate::definition::{Build, Deploy, ExtraFile, RuntimeKind};
use crate::id::HostName;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Connection settings; those of a host fall back to the defaults.
#[derive(Debug, Clone, Default)]
pub struct RawHost {
    pub address: Option<Word>,
    pub user: Option<String>,
    pub port: Option<u16>,
    pub ssh_key: Option<PathBuf>,
    pub host_key: Option<String>,
    pub tags: Vec<Word>,
    pub timeout: Option<Duration>,
}

/// How a service names its hosts.
pub enum HostRef {
    Named(Word),
    Inline(Place, Box<RawHost>),
}

pub struct RawService {
    pub key: Key,
    pub runtime: RuntimeKind,
    pub hosts: Vec<HostRef>,
    pub depends_on: Vec<Word>,
    pub ports: Vec<u16>,
    pub build: Build,
    pub config: Option<PathBuf>,
    pub vars: BTreeMap<String, serde_json::Value>,
    pub files: Vec<ExtraFile>,
    pub deploy: Deploy,
}

#[derive(Default)]
pub struct RawFile {
    pub defaults: RawHost,
    pub hosts: Vec<(Key, RawHost)>,
    pub mesh: Option<RawMesh>,
    /// Every name, also of services that could not be decoded: they are not unknown.
    pub names: Vec<Key>,
    pub services: Vec<RawService>,
}

pub fn decode(root: &Node, problems: &mut Problems) -> RawFile {
    let mut file = RawFile::default();
    let Some(fields) = Fields::open(root, "the file", FILE, problems) else { return file };
    if let Some(node) = fields.get("defaults") {
        file.defaults = host(node, "`defaults`", DEFAULTS, problems);
    }
    for (key, node) in fields.entries_of("hosts", problems) {
        let host = host(node, "a host", HOST, problems);
        if matches!(&node.kind, Kind::Map(entries) if !entries.iter().any(|(k, _)| k.name == "address")) {
            problems.add(key.place, format!("host `{}` needs an `address`", printable(&key.name)), None);
        }
        file.hosts.push((key.clone(), host));
    }
    file.mesh = fields.entry("mesh").and_then(|(key, node)| mesh::decode(key.place, node, problems));
    for (key, node) in fields.entries_of("services", problems) {
        file.names.push(key.clone());
        file.services.extend(service(key, node, problems));
    }
    let at_least = || Some("a definition has at least one service".to_owned());
    match fields.get("services") {
        None => problems.add(fields.place, "missing field `services`", at_least()),
        Some(Node { place, kind: Kind::Map(entries) }) if entries.is_empty() => {
            problems.add(*place, "`services` is empty", at_least());
        }
        Some(_) => {}
    }
    file
}

fn host(node: &Node, what: &str, known: &[&str], problems: &mut Problems) -> RawHost {
    let Some(fields) = Fields::open(node, what, known, problems) else { return RawHost::default() };
    RawHost {
        address: address(&fields, problems),
        user: fields.text("user", problems),
        port: fields.port("port", problems),
        ssh_key: fields.path("ssh_key", problems),
        host_key: host_key(&fields, problems),
        tags: tags(&fields, problems),
        timeout: fields.duration("timeout", Duration::from_millis(100), problems),
    }
}

fn address(fields: &Fields<'_>, problems: &mut Problems) -> Option<Word> {
    let node = fields.get("address")?;
    let scalar = string(node, "address", problems)?.clone();
    if HostName::new(scalar.text.as_str()).is_err() {
        let hint = "a host name or an IP address, without user or port".to_owned();
        problems.add(node.place, format!("`{}` is not an address", scalar.shown()), Some(hint));
        return None;
    }
    Some(Word { place: node.place, scalar })
}

fn host_key(fields: &Fields<'_>, problems: &mut Problems) -> Option<String> {
    let node = fields.get("host_key")?;
    let text = string(node, "host_key", problems)?.text.clone();
    if !is_fingerprint(&text) {
        let hint = "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the host prints it: `SHA256:` and 43 characters";
        problems.add(node.place, "`host_key` is not a fingerprint", Some(hint.to_owned()));
    }
    Some(text)
}

/// Also the placeholder of examples, `SHA256:...`: no key has it, so that host is refused until the real one stands there.
fn is_fingerprint(text: &str) -> bool {
    let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    let hash = text.strip_prefix("SHA256:");
    hash.is_some_and(|hash| hash == "..." || (hash.len() == 43 && hash.bytes().all(base64)))
}

fn tags(fields: &Fields<'_>, problems: &mut Problems) -> Vec<Word> {
    let tags = fields.names("tags", problems);
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    for Word { place, scalar } in &tags {
        if scalar.text.is_empty() || !scalar.text.bytes().all(valid) {
            let message = format!("`{}` is not a valid tag", scalar.shown());
            problems.add(*place, message, Some("characters A-Z, a-z, 0-9, . _ and -".into()));
        }
    }
    tags
}

fn service(key: &Key, node: &Node, problems: &mut Problems) -> Option<RawService> {
    let fields = Fields::open(node, "a service", SERVICE, problems)?;
    let (runtime, hosts) = runtime_and_hosts(key, &fields, problems);
    Some(RawService {
        key: key.clone(),
        runtime,
        hosts,
        depends_on: fields.names("depends_on", problems),
        ports: fields.ports("ports", problems),
        build: build::build(fields.get("build"), problems),
        config: fields.path("config", problems),
        vars: fields.entries_of("vars", problems).iter().map(|(k, v)| (k.name.clone(), json(v))).collect(),
        files: fields.list("files").iter().filter_map(|n| extra_file(n, problems)).collect(),
        deploy: deploy::deploy(fields.get("deploy"), key.place, runtime, problems),
    })
}

fn runtime_and_hosts(key: &Key, fields: &Fields<'_>, problems: &mut Problems) -> (RuntimeKind, Vec<HostRef>) {
    let kinds = [("local", RuntimeKind::Local), ("docker", RuntimeKind::Docker), ("remote", RuntimeKind::Remote)];
    let chosen = fields.choice("runtime", &kinds, problems);
    let nodes = fields.list("hosts");
    match (chosen, fields.get("hosts")) {
        (Ok(None | Some(RuntimeKind::Remote)), _) if nodes.is_empty() => {
            let hint = Some("add `hosts:`, or set `runtime: local`".to_owned());
            problems.add(key.place, format!("service `{}` has no hosts", printable(&key.name)), hint);
        }
        (Ok(Some(RuntimeKind::Local)), Some(node)) => {
            let hint = "remove `hosts`, or set `runtime: remote`".to_owned();
            problems.add(node.place, "`runtime: local` has no hosts", Some(hint));
            return (RuntimeKind::Local, Vec::new());
        }
        _ => {}
    }
    let hosts = nodes.iter().filter_map(|n| host_ref(n, problems)).collect();
    (chosen.ok().flatten().unwrap_or(RuntimeKind::Remote), hosts)
}

fn host_ref(node: &Node, problems: &mut Problems) -> Option<HostRef> {
    let Kind::Map(entries) = &node.kind else {
        return Some(HostRef::Named(Word { place: node.place, scalar: string(node, "hosts", problems)?.clone() }));
    };
    let host = host(node, "a host", HOST, problems);
    if !entries.iter().any(|(k, _)| k.name == "address") {
        problems.add(node.place, "an inline host needs an `address`", None);
    }
    host.address.is_some().then(|| HostRef::Inline(node.place, Box::new(host)))
}

fn extra_file(node: &Node, problems: &mut Problems) -> Option<ExtraFile> {
    let fields = Fields::open(node, "an entry of `files`", FILES, problems)?;
    let from = fields.required("from", problems).map(PathBuf::from);
    let to = fields.required("to", problems).map(PathBuf::from)?;
    if !is_inside(&to) {
        let place = fields.get("to").map_or(fields.place, |n| n.place);
        problems.add(place, "`to` must be a relative path inside of the package, without `..`", None);
    }
    Some(ExtraFile { from: from?, to })
}

fn is_inside(path: &Path) -> bool {
    path.components().all(|c| matches!(c, Component::Normal(_))) && path.components().count() > 0
}
