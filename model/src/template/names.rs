//! The names that templates may use: with their values when a host was looked at, as shapes before.
//!
//! Both stand side by side here, so that one cannot get a name that the other lacks; a test compares them.

use super::{Shape, Style};
use crate::definition::{Host, Peer, Scope, Service};
use crate::facts::HostFacts;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What kind of text a config of this name is: TOML when it says so.
pub fn config_style(path: &Path) -> Style {
    if path.to_string_lossy().contains(".toml") { Style::Toml } else { Style::Plain }
}

/// What config and `deploy.args` may name. Variables stand at the top too, unless they would hide one of roadie's own names.
pub fn context(service: &Service, host: &Host, facts: &HostFacts) -> Value {
    let root = &facts.root;
    let mut map: Map<String, Value> = service.vars.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let own = json!({
        "service": service.name.as_str(),
        "root": root,
        "release_dir": format!("{root}/current"),
        "config_path": format!("{root}/current/config.toml"),
        "env_file": format!("{root}/current/env"),
        "user_scope": service.deploy.scope == Scope::User,
        "vars": service.vars,
        "env": service.deploy.env,
        "host": { "name": host.name.as_str(), "address": host.address, "tags": host.tags },
        "facts": { "machine": facts.machine, "glibc": facts.glibc, "systemd": facts.systemd, "home": facts.home },
        "services": services(service),
    });
    if let Value::Object(own) = own {
        map.extend(own);
    }
    Value::Object(map)
}

/// Where the other services are. Known from the definition alone, so its shape is exact: a port that is not there is null.
fn services(service: &Service) -> Value {
    let told = |peer: &Peer| json!({ "address": peer.address, "addresses": peer.addresses, "port": peer.port });
    service.peers.iter().map(|(name, peer)| (name.to_string(), told(peer))).collect()
}

/// What a unit may name: the same and its command line, but no environment: everybody can read a unit.
pub fn unit_context(service: &Service, host: &Host, facts: &HostFacts, exec: &str, release: &str) -> Value {
    let mut context = context(service, host, facts);
    if let Value::Object(map) = &mut context {
        map.remove("env");
        map.insert("exec".into(), exec.into());
        map.insert("release".into(), release.into());
    }
    context
}

/// The shape of [`context`] for any host.
pub fn declared(service: &Service) -> Shape {
    let scalars = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), Shape::Scalar)).collect::<BTreeMap<_, _>>();
    let vars: BTreeMap<String, Shape> = service.vars.iter().map(|(k, v)| (k.clone(), Shape::of(v))).collect();
    let env = service.deploy.env.keys().map(|k| (k.clone(), Shape::Scalar)).collect();
    let mut host = scalars(&["name", "address"]);
    host.insert("tags".into(), Shape::List(Box::new(Shape::Scalar)));

    let mut all = vars.clone();
    all.extend(scalars(&["service", "root", "release_dir", "config_path", "env_file", "user_scope"]));
    all.insert("vars".into(), Shape::Map(vars));
    all.insert("env".into(), Shape::Map(env));
    all.insert("host".into(), Shape::Map(host));
    all.insert("facts".into(), Shape::Map(scalars(&["machine", "glibc", "systemd", "home"])));
    all.insert("services".into(), Shape::of(&services(service)));
    Shape::Map(all)
}

/// The shape of [`unit_context`] for any host.
pub fn unit_declared(service: &Service) -> Shape {
    let mut shape = declared(service);
    if let Shape::Map(map) = &mut shape {
        map.remove("env");
        map.insert("exec".into(), Shape::Scalar);
        map.insert("release".into(), Shape::Scalar);
    }
    shape
}
