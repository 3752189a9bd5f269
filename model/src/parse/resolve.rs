//! From raw values to a [`Definition`]: names resolved, defaults filled in, references checked.

use super::decode::Word;
use super::file::{HostRef, RawFile, RawHost, RawService};
use super::graph;
use super::problems::Problems;
use super::tree::{Place, printable};
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
    Definition { dir, services, hosts: BTreeMap::new(), mesh: None }
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
        ports: Vec::new(),
        peers: BTreeMap::new(),
        build: raw.build,
        config: raw.config,
        vars: raw.vars,
        files: raw.files,
        deploy: raw.deploy,
    })
}

/// The hosts of the file and how they are found.
struct Hosts {
    named: Vec<Host>,
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
                Ok(name) => hosts.add(name, raw),
                Err(error) => problems.invalid(key.place, &printable(&key.name), &error),
            }
        }
        hosts
    }

    fn add(&mut self, name: HostName, raw: &RawHost) {
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
        self.named.push(host(name, raw, &self.defaults));
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
            self.say_unknown(word, tag.is_some(), problems);
        }
        // Cut off here too: the list is not made before it is found too long.
        found.iter().take(self.left + 1).map(|at| self.named[*at].clone()).collect()
    }

    fn say_unknown(&self, word: &Word, tag: bool, problems: &mut Problems) {
        let message = format!("no host is called `{}`", word.scalar.shown());
        let nothing = if tag { self.told_tags.is_empty() } else { self.named.is_empty() };
        if nothing {
            problems.add(word.place, message, Some("write `{address: ...}`, or add it under `hosts:`".into()));
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
