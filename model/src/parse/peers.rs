//! Services are told where the others are.

use super::problems::Problems;
use super::tree::Key;
use crate::definition::{Peer, RuntimeKind, Service};
use crate::id::ServiceName;
use crate::mesh::Mesh;
use std::collections::{BTreeMap, BTreeSet};

/// Most addresses that all services are told together: it grows with the square of the file.
const MOST: usize = 50_000;

/// Where one service is found, from within the mesh and from elsewhere.
struct Found {
    private: Option<Peer>,
    public: Peer,
}

/// Fills in [`Service::peers`]: all other remote services of the file, or, where that is too much, those of `depends_on`.
pub fn fill(services: &mut BTreeMap<ServiceName, Service>, mesh: Option<&Mesh>, keys: &[Key], problems: &mut Problems) {
    let remote = services.values().filter(|s| s.runtime == RuntimeKind::Remote);
    let found: BTreeMap<ServiceName, Found> = remote.filter_map(|s| Some((s.name.clone(), find(s, mesh)?))).collect();
    let all: usize = found.values().map(|f| f.public.addresses.len()).sum();
    let few = all.saturating_mul(services.len()) <= MOST;
    let mut left = MOST;
    for service in services.values_mut() {
        let inside = mesh.is_some_and(|mesh| is_inside(mesh, service));
        let told: BTreeSet<&ServiceName> = if few { found.keys().collect() } else { service.depends_on.iter().collect() };
        let others = told.into_iter().filter(|name| **name != service.name).filter_map(|name| found.get_key_value(name));
        let mut peers = BTreeMap::new();
        for (name, found) in others {
            let Some(rest) = left.checked_sub(found.public.addresses.len()) else {
                return say_too_many(&service.name, keys, problems);
            };
            left = rest;
            peers.insert(name.clone(), found.private.as_ref().filter(|_| inside).unwrap_or(&found.public).clone());
        }
        service.peers = peers;
    }
}

fn say_too_many(service: &ServiceName, keys: &[Key], problems: &mut Problems) {
    let Some(key) = keys.iter().find(|key| key.name == service.as_str()) else { return };
    let message = format!("the services before and this one depend on more than {MOST} hosts in all");
    problems.add(key.place, message, Some("make two files of it".to_owned()));
}

/// Whether all of its hosts are in the mesh.
fn is_inside(mesh: &Mesh, service: &Service) -> bool {
    service.hosts.iter().all(|host| mesh.hosts.binary_search(&host.name).is_ok())
}

/// `None` for a service without hosts: that is a mistake that has been told.
fn find(service: &Service, mesh: Option<&Mesh>) -> Option<Found> {
    let first = service.hosts.first()?;
    let port = service.ports.first().copied();
    let addresses: Vec<String> = service.hosts.iter().map(|host| host.address.clone()).collect();
    let named = mesh.filter(|mesh| is_inside(mesh, service)).and_then(|mesh| {
        let names: Vec<String> = service.hosts.iter().filter_map(|host| mesh.name_of(&host.name)).collect();
        // Hosts written inline by their address have no name of their own.
        let addresses = if names.is_empty() { addresses.clone() } else { names };
        Some(Peer { address: mesh.name_of_service(&service.name)?, addresses, port })
    });
    Some(Found { private: named, public: Peer { address: first.address.clone(), addresses, port } })
}
