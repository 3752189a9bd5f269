//! Who is in the mesh, and whether what the section says of its hosts can be.

use super::decode::Word;
use super::mesh::{Given, RawMesh};
use super::problems::Problems;
use super::resolve::{Hosts, Known};
use super::tree::{Key, Place};
use crate::definition::{RuntimeKind, Service};
use crate::id::{HostName, ServiceName};
use crate::mesh::{Endpoint, Mesh, NamesMode, Topology, is_dns_name};
use core::net::{IpAddr, Ipv4Addr};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Longest name that DNS has, without the last dot.
const LONGEST_NAME: usize = 253;

/// `keys` are those of the services.
pub fn resolve(
    raw: RawMesh,
    hosts: &Hosts,
    services: &BTreeMap<ServiceName, Service>,
    keys: &[Key],
    problems: &mut Problems,
) -> Mesh {
    let members = Members::of(&raw, hosts, problems);
    let network = raw.network.map(|(place, network)| {
        members.check_room(place, network, problems);
        network
    });
    let mesh = Mesh {
        hosts: members.known.keys().map(|name| (*name).clone()).collect(),
        network: network.unwrap_or(raw.mesh.network),
        topology: members.topology(raw.hub.as_ref(), raw.via_key, problems),
        via: members.via(&raw.via, problems),
        endpoints: members.endpoints(&raw.endpoints, network, problems),
        addresses: members.addresses(&raw.addresses, network, problems),
        ..raw.mesh
    };
    let told_via = raw.via.iter().map(|given| given.host.scalar.text.as_str()).collect();
    members.check_dialled(&mesh, &told_via, network, problems);
    if mesh.names == NamesMode::Hosts {
        members.check_names(&mesh, problems);
        members.check_services(services, keys, problems);
    }
    mesh
}

/// The hosts of the mesh.
struct Members<'h> {
    known: BTreeMap<&'h HostName, &'h Known>,
    /// Names that hints may print.
    told: Vec<&'h str>,
}

impl<'h> Members<'h> {
    /// Those under `hosts`, or all of the file.
    fn of(raw: &RawMesh, hosts: &'h Hosts, problems: &mut Problems) -> Self {
        let mut complete = true;
        let known: BTreeMap<&HostName, &Known> = match &raw.hosts {
            None => hosts.known.iter().collect(),
            Some((_, words)) => {
                let mut names = BTreeSet::new();
                for word in words {
                    let found = hosts.names(word, problems);
                    complete &= !found.is_empty();
                    names.extend(found);
                }
                names.iter().filter_map(|name| hosts.known.get_key_value(name)).collect()
            }
        };
        if complete && known.len() < 2 {
            let place = raw.hosts.as_ref().map_or(raw.place, |(place, _)| *place);
            let hint = "name more hosts, or take `mesh` away".to_owned();
            problems.add(place, format!("a mesh has at least two hosts, this one {}", known.len()), Some(hint));
        }
        let told = known.iter().filter(|(_, known)| known.told).map(|(name, _)| name.as_str()).collect();
        Self { known, told }
    }

    fn find(&self, word: &Word, problems: &mut Problems) -> Option<HostName> {
        let name = HostName::new(word.scalar.text.as_str()).ok().filter(|name| self.known.contains_key(name));
        if name.is_none() {
            let message = format!("no host of the mesh is called `{}`", word.scalar.shown());
            if self.told.is_empty() {
                problems.add(word.place, message, None);
            } else {
                problems.unknown(word.place, message, &word.scalar, self.told.iter().copied());
            }
        }
        name
    }

    /// The first and the last address of a network are nobody's.
    fn check_room(&self, place: Place, network: Ipv4Net, problems: &mut Problems) {
        let room = (1_usize << (32 - network.prefix_len())) - 2;
        if room < self.known.len() {
            let message = format!("the network of the mesh is too small for its {} hosts", self.known.len());
            problems.add(place, message, Some("choose a `network` with a shorter prefix".to_owned()));
        }
    }

    fn topology(&self, hub: Option<&Word>, via: Option<Place>, problems: &mut Problems) -> Topology {
        if let (Some(_), Some(place)) = (hub, via) {
            let hint = "take `via` away: all of them reach each other through the hub".to_owned();
            problems.add(place, "`via` is of no use with a hub", Some(hint));
        }
        hub.and_then(|word| self.find(word, problems)).map_or(Topology::Full, Topology::Hub)
    }

    fn via(&self, raw: &[Given<()>], problems: &mut Problems) -> BTreeMap<HostName, HostName> {
        let behind: BTreeSet<&str> = raw.iter().map(|given| given.host.scalar.text.as_str()).collect();
        let mut via = BTreeMap::new();
        for Given { host, word, .. } in raw {
            let (Some(from), Some(through)) = (self.find(host, problems), self.find(word, problems)) else { continue };
            let hint = "name a host that can be dialled".to_owned();
            if from == through {
                problems.add(word.place, "a host is not reached through itself", Some(hint));
            } else if behind.contains(through.as_str()) {
                let message = format!("`{}` stands under `via` itself", word.scalar.shown());
                problems.add(word.place, message, Some(hint));
            } else {
                via.insert(from, through);
            }
        }
        via
    }

    fn endpoints(
        &self,
        raw: &[Given<Endpoint>],
        network: Option<Ipv4Net>,
        problems: &mut Problems,
    ) -> BTreeMap<HostName, Endpoint> {
        let mut endpoints = BTreeMap::new();
        for Given { host, word, value } in raw {
            check_outside(&value.host, &word.scalar.shown(), word.place, network, problems);
            endpoints.extend(self.find(host, problems).map(|name| (name, value.clone())));
        }
        endpoints
    }

    fn addresses(
        &self,
        raw: &[Given<Ipv4Addr>],
        network: Option<Ipv4Net>,
        problems: &mut Problems,
    ) -> BTreeMap<HostName, Ipv4Addr> {
        let (mut addresses, mut taken) = (BTreeMap::new(), BTreeSet::new());
        for Given { host, word, value } in raw {
            let shown = word.scalar.shown();
            let mut refuse = |message: String, hint: &str| problems.add(word.place, message, Some(hint.to_owned()));
            match network {
                Some(network) if !network.contains(value) => {
                    refuse(format!("`{shown}` is not in the network of the mesh"), "choose one of `network`");
                }
                Some(network) if *value == network.network() || *value == network.broadcast() => {
                    refuse(format!("`{shown}` is the network's own address"), "the first and the last of it are no host's");
                }
                _ if !taken.insert(*value) => refuse(format!("address `{shown}` stands twice"), "each host has its own"),
                _ => {}
            }
            addresses.extend(self.find(host, problems).map(|name| (name, *value)));
        }
        addresses
    }

    /// What stands under `via` is not dialled.
    fn check_dialled(&self, mesh: &Mesh, via: &BTreeSet<&str>, network: Option<Ipv4Net>, problems: &mut Problems) {
        let mut machines: HashMap<(&str, u16), &str> = HashMap::new();
        for (name, known) in &self.known {
            if let Some(other) = machines.insert((known.host.address.as_str(), known.host.port), &known.shown) {
                let message = format!("`{}` and `{other}` are one machine: it can be in the mesh once", known.shown);
                problems.add(
                    known.address,
                    message,
                    Some("name it once, or say under `hosts` of the mesh which is meant".into()),
                );
            }
            if via.contains(name.as_str()) || mesh.endpoints.contains_key(name) {
                continue;
            }
            if is_loopback(&known.host.address) {
                let hint = "say under `endpoints` of the mesh where others reach it, or under `via` through whom".to_owned();
                problems.add(
                    known.address,
                    format!("others cannot dial `{}`: its address leads each host to itself", known.shown),
                    Some(hint),
                );
            }
            check_outside(&known.host.address, &known.shown, known.address, network, problems);
        }
    }

    /// What is named under `hosts:` must have a name in the mesh; addresses, and inline hosts of other names, have none.
    fn check_names(&self, mesh: &Mesh, problems: &mut Problems) {
        let mut seen: HashMap<String, &str> = HashMap::new();
        for (name, known) in &self.known {
            let place = known.key.unwrap_or(known.address);
            let text = name.as_str();
            if known.key.is_some() && !is_dns_name(text) && text.parse::<IpAddr>().is_err() {
                let hint = "letters, digits and -, dots between; or set `names: none` under `mesh`".to_owned();
                problems.add(place, format!("`{}` cannot be a name in the mesh", known.shown), Some(hint));
            }
            let Some(full) = mesh.name_of(name) else { continue };
            let short = || Some("give the host a shorter name, or the mesh a shorter `domain`".to_owned());
            if full.len() > LONGEST_NAME {
                problems.add(place, format!("`{}` with the mesh's domain is longer than a name can be", known.shown), short());
            }
            if let Some(other) = seen.insert(full, &known.shown) {
                let message = format!("`{}` and `{other}` are one name in the mesh", known.shown);
                problems.add(place, message, Some("names are the same whatever their case: rename one".to_owned()));
            }
        }
    }

    /// A service is found as its name, like a host: both may have it only where they are the same machine.
    fn check_services(&self, services: &BTreeMap<ServiceName, Service>, keys: &[Key], problems: &mut Problems) {
        let lower: HashMap<String, (&HostName, &Known)> =
            self.known.iter().map(|(name, known)| (name.as_str().to_ascii_lowercase(), (*name, *known))).collect();
        let service = |name: &str| ServiceName::new(name).ok().and_then(|name| services.get(&name));
        for key in keys {
            let (Some((host, known)), Some(service)) = (lower.get(&key.name), service(&key.name)) else { continue };
            let alone = service.hosts.len() == 1 && service.hosts[0].name == **host;
            if service.runtime == RuntimeKind::Remote && !alone {
                let message = format!("service `{}` and host `{}` would have one name in the mesh", key.name, known.shown);
                let hint = "rename one of them, or set `names: none` under `mesh`".to_owned();
                problems.add(key.place, message, Some(hint));
            }
        }
    }
}

/// A tunnel cannot carry its own packets.
fn check_outside(address: &str, shown: &str, place: Place, network: Option<Ipv4Net>, problems: &mut Problems) {
    let inside = address.parse::<Ipv4Addr>().is_ok_and(|a| network.is_some_and(|n| n.contains(&a)));
    if inside {
        let hint = "choose another `network` for the mesh, or say under its `endpoints` where the host is dialled".to_owned();
        problems.add(place, format!("`{shown}` would be dialled through the mesh that it is to carry"), Some(hint));
    }
}

fn is_loopback(address: &str) -> bool {
    let name = address.to_ascii_lowercase();
    let own = |a: IpAddr| a.to_canonical().is_loopback() || a.is_unspecified();
    name == "localhost" || name.ends_with(".localhost") || address.parse().is_ok_and(own)
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn loopback_in_all_its_forms() {
        for own in ["localhost", "LocalHost", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"]
        {
            assert!(is_loopback(own), "{own}");
        }
        for other in ["localhost.example", "128.0.0.1", "::2", "h", "127.0.0.1.example"] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
