//! Who has a tunnel to whom, who dials, and what travels through it.

use super::MeshInput;
use super::address::Roster;
use roadie_model::id::HostName;
use roadie_model::mesh::{Endpoint, Mesh, Topology};

/// A tunnel of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The other end.
    pub peer: HostName,
    /// Hosts that are reached through it besides the peer.
    pub carries: Vec<HostName>,
    /// Whether this host dials the peer.
    pub dialled: bool,
    /// Whether this end keeps the way in open.
    pub keepalive: bool,
}

/// The tunnels of `host`, by name of the peer.
pub fn tunnels(mesh: &Mesh, host: &HostName) -> Vec<Tunnel> {
    let others = || mesh.hosts.iter().filter(move |h| *h != host);
    let hidden = |h: &HostName| mesh.via.contains_key(h);
    match &mesh.topology {
        Topology::Hub(hub) if hub != host => {
            let carries = others().filter(|h| *h != hub).cloned().collect();
            vec![Tunnel { peer: hub.clone(), carries, dialled: true, keepalive: true }]
        }
        // Spokes dial in; they are dialled as well, for the sooner of both.
        Topology::Hub(_) => {
            others().map(|peer| Tunnel { peer: peer.clone(), carries: Vec::new(), dialled: true, keepalive: false }).collect()
        }
        Topology::Full => {
            let direct = others().filter(|peer| relay(mesh, host, peer).is_none());
            let tunnel = |peer: &HostName| Tunnel {
                peer: peer.clone(),
                carries: others().filter(|far| relay(mesh, host, far) == Some(peer)).cloned().collect(),
                dialled: !hidden(peer),
                keepalive: hidden(host),
            };
            direct.map(tunnel).collect()
        }
    }
}

/// The host through which `a` and `b` reach each other: the same seen from both ends, or what comes back would be refused.
fn relay<'m>(mesh: &'m Mesh, a: &HostName, b: &HostName) -> Option<&'m HostName> {
    mesh.via.get(b)?;
    mesh.via.get(a)?;
    mesh.via.get(a.min(b))
}

/// Whether packets between others pass through `host`.
pub fn forwards(mesh: &Mesh, host: &HostName) -> bool {
    match &mesh.topology {
        Topology::Hub(hub) => hub == host,
        Topology::Full => {
            let hidden: Vec<&HostName> = mesh.via.keys().collect();
            let pairs = hidden.iter().enumerate().flat_map(|(i, a)| hidden[i + 1..].iter().map(move |b| (*a, *b)));
            pairs.into_iter().any(|(a, b)| relay(mesh, a, b) == Some(host))
        }
    }
}

/// Where a host is dialled from outside of the mesh.
pub fn endpoint(input: &MeshInput<'_>, host: &HostName) -> Option<Endpoint> {
    if let Some(endpoint) = input.mesh.endpoints.get(host) {
        return Some(endpoint.clone());
    }
    input.all.get(host).map(|h| Endpoint { host: h.address.clone(), port: input.mesh.port })
}

/// What WireGuard adds to a packet at most: IPv6, UDP and its own header.
const OVERHEAD: u16 = 80;
/// What a path carries that nobody could measure.
const USUAL_PATH: u16 = 1500;
/// No path carries less, or something else is wrong.
const LEAST_PATH: u16 = 576;

/// What the ways from a host carry.
#[derive(Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The interface's own: what the widest way carries.
    pub mtu: u16,
    /// Who is reached by a narrower way, and what that carries.
    pub narrow: Vec<(HostName, u16)>,
}

/// The largest packet of the mesh for each way from `host`. One narrow way makes no other narrow.
pub fn sizes(input: &MeshInput<'_>, roster: &Roster, host: &HostName) -> Sizes {
    if let Some(mtu) = input.mesh.mtu {
        return Sizes { mtu, narrow: Vec::new() };
    }
    let mut ways: Vec<(HostName, u16)> = Vec::new();
    for tunnel in tunnels(input.mesh, host).iter().filter(|t| roster.members.contains_key(&t.peer)) {
        let first = path(input, host, &tunnel.peer);
        ways.push((tunnel.peer.clone(), first));
        let beyond = tunnel.carries.iter().filter(|far| roster.members.contains_key(*far));
        ways.extend(beyond.map(|far| (far.clone(), first.min(path(input, &tunnel.peer, far)))));
    }
    for (_, size) in &mut ways {
        *size = (*size).max(LEAST_PATH) - OVERHEAD;
    }
    // IPv6 needs 1280 bytes of an interface.
    let mtu = ways.iter().map(|(_, size)| *size).max().unwrap_or(USUAL_PATH - OVERHEAD).max(1280);
    ways.retain(|(_, size)| *size < mtu);
    ways.sort();
    Sizes { mtu, narrow: ways }
}

/// What the path between two hosts carries, by whichever of them measured it; the smaller when both did.
fn path(input: &MeshInput<'_>, a: &HostName, b: &HostName) -> u16 {
    let seen = |from: &HostName, to: &HostName| {
        input.hosts.iter().find(|h| &h.host.name == from).and_then(|h| h.mesh.paths.get(to)).copied()
    };
    seen(a, b).into_iter().chain(seen(b, a)).filter(|size| *size > 0).min().unwrap_or(USUAL_PATH)
}
