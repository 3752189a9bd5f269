//! From raw values to a [`Definition`]: names resolved, defaults filled in, references checked.

use super::decode::Word;
use super::file::{HostRef, RawFile, RawHost, RawService};
use super::problems::Problems;
use super::tree::{Key, Place, printable};
use super::{graph, members, peers};
use crate::definition::{Definition, Host, RuntimeKind, Service};
use crate::id::{HostName, ServiceName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

/// Most hosts of all services together: tags multiply, and a small file can name millions.
const MOST_HOSTS: usize = 10_000;

pub fn resolve(file: RawFile, dir: PathBuf, problems: &mut Problems) -> Definition {
    graph::check(&file, problems);
    let mut hosts = Hosts::new(&file, problems);
    let mut services = BTreeMap::new();
    for raw in file.services {
        let found = hosts.of(&raw, problems);
        if let Some(service) = service(raw, found, problems) {
            services.insert(service.name.clone(), service);
        }
    }
    let mesh = file.mesh.map(|raw| members::resolve(raw, &hosts, &services, &file.names, problems));
    peers::fill(&mut services, mesh.as_ref(), &file.names, problems);
    let hosts = hosts.known.into_iter().map(|(name, known)| (name, known.host)).collect();
    Definition { dir, services, hosts, mesh }
}

fn service(raw: RawService, hosts: Vec<Host>, problems: &mut Problems) -> Option<Service> {
    let name = match ServiceName::new(raw.key.name.as_str()) {
        Ok(name) => name,
        Err(error) => {
            problems.invalid(raw.key.place, &printable(&raw.key.name), &error);
            return None;
        }
    };
    let mut depends_on: Vec<ServiceName> = Vec::new();
    for Word { place, scalar } in raw.depends_on {
        match ServiceName::new(scalar.text.as_str()) {
            Ok(name) if depends_on.contains(&name) => {}
            Ok(name) => depends_on.push(name),
            Err(error) => problems.invalid(place, &scalar.shown(), &error),
        }
    }
    Some(Service {
        name,
        runtime: raw.runtime,
        hosts,
        depends_on,
        ports: raw.ports,
        peers: BTreeMap::new(),
        build: raw.build,
        config: raw.config,
        vars: raw.vars,
        files: raw.files,
        deploy: raw.deploy,
    })
}

/// A host of the file, and what messages may say of it.
pub struct Known {
    pub host: Host,
    /// Where its address stands.
    pub address: Place,
    /// Where its name stands, under `hosts:`; an inline host has none but its address.
    pub key: Option<Place>,
    /// Its name as it stands in the file.
    pub shown: String,
    /// Whether a hint may name it: not when a variable says the name.
    pub told: bool,
}

/// The hosts of the file and how they are found.
pub struct Hosts {
    named: Vec<Host>,
    /// Also those that remote services name inline. One name is one machine: what stands under `hosts:` comes first, then the file's
    /// order.
    pub known: BTreeMap<HostName, Known>,
    by_name: HashMap<String, usize>,
    by_tag: BTreeMap<String, Vec<usize>>,
    /// Tags that hints may print: not those that a variable says.
    told_tags: BTreeSet<String>,
    defaults: RawHost,
    left: usize,
}

impl Hosts {
    fn new(file: &RawFile, problems: &mut Problems) -> Self {
        let mut hosts = Self {
            named: Vec::new(),
            known: BTreeMap::new(),
            by_name: HashMap::new(),
            by_tag: BTreeMap::new(),
            told_tags: BTreeSet::new(),
            defaults: file.defaults.clone(),
            left: MOST_HOSTS,
        };
        for (key, raw) in &file.hosts {
            if key.name.starts_with("tag:") {
                let message = format!("`{}` is not a valid host name", printable(&key.name));
                problems.add(key.place, message, Some("`tag:` in front means all hosts with that tag".into()));
                continue;
            }
            match HostName::new(key.name.as_str()) {
                Ok(name) => hosts.add(name, key, raw),
                Err(error) => problems.invalid(key.place, &printable(&key.name), &error),
            }
        }
        hosts
    }

    fn add(&mut self, name: HostName, key: &Key, raw: &RawHost) {
        let at = self.named.len();
        self.by_name.insert(name.to_string(), at);
        for tag in &raw.tags {
            let tagged = self.by_tag.entry(tag.scalar.text.clone()).or_default();
            if tagged.last() != Some(&at) {
                tagged.push(at);
            }
            if tag.scalar.written.is_none() {
                self.told_tags.insert(format!("tag:{}", tag.scalar.text));
            }
        }
        let host = host(name.clone(), raw, &self.defaults);
        let address = raw.address.as_ref().map_or(key.place, |a| a.place);
        let shown = printable(&key.name);
        self.known.insert(name, Known { host: host.clone(), address, key: Some(key.place), shown, told: true });
        self.named.push(host);
    }

    /// Takes a host that a remote service names inline among those of the file.
    fn know(&mut self, reference: &HostRef, host: &Host) {
        let HostRef::Inline(_, raw) = reference else { return };
        let Some(word) = &raw.address else { return };
        let (shown, told) = (word.scalar.shown(), word.scalar.written.is_none());
        let known = || Known { host: host.clone(), address: word.place, key: None, shown, told };
        self.known.entry(host.name.clone()).or_insert_with(known);
    }

    /// Names of the hosts that a word means: of the one with that name, or of all with that tag.
    pub fn names(&self, word: &Word, problems: &mut Problems) -> Vec<HostName> {
        let text = word.scalar.text.as_str();
        let found: Vec<HostName> = match text.strip_prefix("tag:") {
            Some(tag) => self.by_tag.get(tag).into_iter().flatten().map(|at| self.named[*at].name.clone()).collect(),
            None => HostName::new(text).ok().filter(|name| self.known.contains_key(name)).into_iter().collect(),
        };
        if found.is_empty() {
            self.say_unknown(word, "add it under `hosts:`", problems);
        }
        found
    }

    /// The hosts of a service, each once.
    fn of(&mut self, raw: &RawService, problems: &mut Problems) -> Vec<Host> {
        if raw.runtime == RuntimeKind::Local {
            return vec![Host::local()];
        }
        let mut hosts: Vec<Host> = Vec::new();
        let mut places: HashMap<HostName, usize> = HashMap::new();
        for reference in &raw.hosts {
            for (place, host) in self.find(reference, problems) {
                if raw.runtime == RuntimeKind::Remote {
                    self.know(reference, &host);
                }
                match places.get(&host.name) {
                    // One name is one machine to everything that follows.
                    Some(at) if hosts[*at] != host => {
                        let message = "the same address stands twice here, with different settings";
                        problems.add(place, message, Some("name both under `hosts:`".into()));
                    }
                    Some(_) => {}
                    None => {
                        places.insert(host.name.clone(), hosts.len());
                        hosts.push(host);
                    }
                }
            }
        }
        hosts
    }

    fn find(&mut self, reference: &HostRef, problems: &mut Problems) -> Vec<(Place, Host)> {
        let (place, found) = match reference {
            HostRef::Inline(place, raw) => {
                let name = raw.address.as_ref().and_then(|a| HostName::new(a.scalar.text.as_str()).ok());
                (*place, name.map(|name| host(name, raw, &self.defaults)).into_iter().collect())
            }
            HostRef::Named(word) => (word.place, self.named(word, problems)),
        };
        let left = self.left.checked_sub(found.len());
        if left.is_none() && self.left > 0 {
            let message = format!("more than {MOST_HOSTS} hosts, over all services");
            problems.add(place, message, None);
        }
        self.left = left.unwrap_or(0);
        if left.is_none() { Vec::new() } else { found.into_iter().map(|host| (place, host)).collect() }
    }

    fn named(&self, word: &Word, problems: &mut Problems) -> Vec<Host> {
        let text = word.scalar.text.as_str();
        let tag = text.strip_prefix("tag:");
        let found: &[usize] = match tag {
            Some(tag) => self.by_tag.get(tag).map_or(&[], Vec::as_slice),
            None => self.by_name.get(text).map_or(&[], std::slice::from_ref),
        };
        if found.is_empty() {
            self.say_unknown(word, "write `{address: ...}`, or add it under `hosts:`", problems);
        }
        // Cut off here too: the list is not made before it is found too long.
        found.iter().take(self.left + 1).map(|at| self.named[*at].clone()).collect()
    }

    fn say_unknown(&self, word: &Word, mend: &str, problems: &mut Problems) {
        let tag = word.scalar.text.starts_with("tag:");
        let message = format!("no host is called `{}`", word.scalar.shown());
        let nothing = if tag { self.told_tags.is_empty() } else { self.named.is_empty() };
        if nothing {
            problems.add(word.place, message, Some(mend.into()));
        } else if tag {
            problems.unknown(word.place, message, &word.scalar, self.told_tags.iter().map(String::as_str));
        } else {
            problems.unknown(word.place, message, &word.scalar, self.named.iter().map(|h| h.name.as_str()));
        }
    }
}

fn host(name: HostName, raw: &RawHost, defaults: &RawHost) -> Host {
    Host {
        address: raw.address.as_ref().map(|a| a.scalar.text.clone()).unwrap_or_default(),
        port: raw.port.or(defaults.port).unwrap_or(22),
        user: raw.user.clone().or_else(|| defaults.user.clone()),
        ssh_key: raw.ssh_key.clone().or_else(|| defaults.ssh_key.clone()),
        host_key: raw.host_key.clone(),
        connect_timeout: raw.timeout.or(defaults.timeout).unwrap_or(Duration::from_secs(10)),
        tags: raw.tags.iter().map(|t| t.scalar.text.clone()).collect(),
        local: false,
        name,
    }
}
