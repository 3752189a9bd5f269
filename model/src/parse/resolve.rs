//! From raw values to a [`Definition`]: names resolved, defaults filled in, references checked.

use super::decode::{Problems, suggest};
use super::schema::{HostRef, RawFile, RawHost, RawService, Spanned};
use super::tree::Place;
use crate::definition::{Definition, Host, RuntimeKind, Service};
use crate::id::{HostName, ServiceName};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub fn resolve(file: RawFile, dir: PathBuf, problems: &mut Problems) -> Definition {
    let hosts = named_hosts(&file, problems);
    let names: Vec<String> = file.services.iter().map(|s| s.value.name.clone()).collect();
    let graph = dependencies(&file.services, &names, problems);
    let mut services = BTreeMap::new();
    for Spanned { place, value } in file.services {
        refuse_cycle(&value.name, place, &graph, problems);
        if let Some(service) = service(value, place, &hosts, &file.defaults, problems) {
            services.insert(service.name.clone(), service);
        }
    }
    Definition { dir, services }
}

fn named_hosts(file: &RawFile, problems: &mut Problems) -> Vec<Host> {
    let mut hosts = Vec::new();
    for (name, raw) in &file.hosts {
        match HostName::new(name.value.clone()) {
            Ok(id) => hosts.push(host(id, raw, &file.defaults)),
            Err(error) => problems.invalid(name.place, &error),
        }
    }
    hosts
}

fn host(name: HostName, raw: &RawHost, defaults: &RawHost) -> Host {
    Host {
        address: raw.address.clone().unwrap_or_default(),
        port: raw.port.or(defaults.port).unwrap_or(22),
        user: raw.user.clone().or_else(|| defaults.user.clone()),
        ssh_key: raw.ssh_key.clone().or_else(|| defaults.ssh_key.clone()),
        host_key: raw.host_key.clone(),
        connect_timeout: raw.timeout.or(defaults.timeout).unwrap_or(Duration::from_secs(10)),
        tags: raw.tags.clone(),
        local: false,
        name,
    }
}

fn service(raw: RawService, place: Place, named: &[Host], defaults: &RawHost, problems: &mut Problems) -> Option<Service> {
    let name = match ServiceName::new(raw.name) {
        Ok(name) => name,
        Err(error) => {
            problems.invalid(place, &error);
            return None;
        }
    };
    let mut hosts: Vec<Host> = Vec::new();
    for reference in &raw.hosts {
        for host in find(reference, named, defaults, problems) {
            if !hosts.iter().any(|h| h.name == host.name) {
                hosts.push(host);
            }
        }
    }
    if raw.runtime == RuntimeKind::Local {
        hosts = vec![Host::local()];
    }
    let depends_on = raw.depends_on.into_iter().filter_map(|d| ServiceName::new(d.value).ok()).collect();
    Some(Service {
        name,
        runtime: raw.runtime,
        hosts,
        depends_on,
        build: raw.build,
        config: raw.config,
        vars: raw.vars,
        files: raw.files,
        deploy: raw.deploy,
    })
}

fn find(reference: &Spanned<HostRef>, named: &[Host], defaults: &RawHost, problems: &mut Problems) -> Vec<Host> {
    match &reference.value {
        HostRef::Inline(raw) => {
            let name = raw.address.clone().and_then(|a| HostName::new(a).ok());
            name.map(|name| host(name, raw, defaults)).into_iter().collect()
        }
        HostRef::Named(text) => {
            let found: Vec<Host> = match text.strip_prefix("tag:") {
                Some(tag) => named.iter().filter(|h| h.tags.iter().any(|t| t == tag)).cloned().collect(),
                None => named.iter().filter(|h| h.name.as_str() == text).cloned().collect(),
            };
            if found.is_empty() {
                let known: Vec<String> = match text.strip_prefix("tag:") {
                    Some(_) => named.iter().flat_map(|h| h.tags.iter().map(|t| format!("tag:{t}"))).collect(),
                    None => named.iter().map(|h| h.name.to_string()).collect(),
                };
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                let hint = if known.is_empty() {
                    "write `{address: ...}`, or add it under `hosts:`".into()
                } else {
                    suggest(text, &known)
                };
                problems.add(reference.place, &format!("no host is called `{text}`"), Some(hint));
            }
            found
        }
    }
}

type Graph = BTreeMap<String, Vec<String>>;

fn dependencies(services: &[Spanned<RawService>], names: &[String], problems: &mut Problems) -> Graph {
    let mut graph = Graph::new();
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    for Spanned { value, .. } in services {
        for dependency in &value.depends_on {
            // A service of another file may be meant; what looks like one of this file is a slip.
            let hint = suggest(&dependency.value, &known);
            if !names.contains(&dependency.value) && hint.starts_with("did you mean") {
                problems.add(dependency.place, &format!("no service is called `{}`", dependency.value), Some(hint));
            }
            graph.entry(value.name.clone()).or_default().push(dependency.value.clone());
        }
    }
    graph
}

/// Says so at each service that depends on itself in the end.
fn refuse_cycle(name: &str, place: Place, graph: &Graph, problems: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    let mut open: Vec<&str> = vec![name];
    while let Some(at) = open.pop() {
        for next in graph.get(at).into_iter().flatten() {
            if next == name {
                problems.add(
                    place,
                    &format!("service `{name}` depends on itself"),
                    Some(format!("remove a `depends_on`; the last in the circle is `{at}`")),
                );
                return;
            }
            if !seen.contains(&next.as_str()) {
                seen.push(next);
                open.push(next);
            }
        }
    }
}
