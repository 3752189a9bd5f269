//! The private network of a definition's hosts: what is wanted of it, and what was observed on a host.

use crate::id::{HostName, ServiceName};
use core::net::{Ipv4Addr, Ipv6Addr};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A WireGuard network between hosts, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Its hosts; all of the file unless told.
    pub hosts: Vec<HostName>,
    /// Name of the interface on each host, at most 15 characters; two meshes on one host differ in it.
    pub interface: String,
    /// Where addresses come from.
    pub network: Ipv4Net,
    /// Suffix of names: `edge-1.mesh.local`, `postgres.mesh.local`.
    pub domain: String,
    /// UDP port that each host listens on.
    pub port: u16,
    /// Who has a tunnel to whom.
    pub topology: Topology,
    /// Hosts that cannot be dialled, each with the host that two of them reach each other through.
    pub via: BTreeMap<HostName, HostName>,
    /// Where a host is dialled when that is not its ssh address and [`Mesh::port`].
    pub endpoints: BTreeMap<HostName, Endpoint>,
    /// Addresses that are not chosen by roadie.
    pub addresses: BTreeMap<HostName, Ipv4Addr>,
    /// How names resolve.
    pub names: NamesMode,
    /// Pause between two packets that keep the way in open to a host that cannot be dialled.
    pub keepalive: Duration,
    /// Instead of what the path is found to carry.
    pub mtu: Option<u16>,
    /// Whether only what a service's dependents need comes in through the interface.
    pub default_drop: bool,
    /// TCP ports that are open to all of the mesh even so.
    pub open: Vec<u16>,
}

impl Mesh {
    /// What a host is called in the mesh, in lower case: `edge-1.mesh.local`. `None` when names do not resolve, and for a host
    /// that is called by its address or by what is no name in DNS.
    pub fn name_of(&self, host: &HostName) -> Option<String> {
        let text = host.as_str();
        let named = self.names == NamesMode::Hosts && is_dns_name(text) && text.parse::<Ipv4Addr>().is_err();
        named.then(|| format!("{}.{}", text.to_ascii_lowercase(), self.domain))
    }

    /// What a service is called in the mesh: `postgres.mesh.local`. `None` when names do not resolve.
    pub fn name_of_service(&self, service: &ServiceName) -> Option<String> {
        (self.names == NamesMode::Hosts).then(|| format!("{service}.{}", self.domain))
    }
}

/// Whether a text is labels of letters, digits and `-` with dots between them (RFC 1123, section 2.1).
pub(crate) fn is_dns_name(text: &str) -> bool {
    let label = |l: &str| {
        let letters = l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (1..=63).contains(&l.len()) && letters && !l.starts_with('-') && !l.ends_with('-')
    };
    text.split('.').all(label)
}

/// Who has a tunnel to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// Every host to every other.
    Full,
    /// Every host to this one, which passes packets on.
    Hub(HostName),
}

/// Where a host is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Host name or IP address (an IPv6 address without brackets).
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// How names of the mesh resolve on its hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamesMode {
    /// By a marked block in `/etc/hosts`.
    Hosts,
    /// Not at all.
    None,
}

/// What the mesh of a host was observed to be. Everything is as the host said it; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeshFacts {
    /// Programs that are not there, of `wg`, `ip`, `nft` and `ping`.
    pub missing: Vec<String>,
    /// What would carry, or carries, the interface.
    pub engine: Engine,
    /// Public key in use; `None` before the first one is born.
    pub public_key: Option<String>,
    /// Who is in the network by the host's current record, itself included.
    pub members: Vec<Member>,
    /// What the paths to other hosts were found to carry, bytes; 0 where nothing answered.
    pub paths: BTreeMap<HostName, u16>,
    /// What differs between the record and what is in force, a sentence part each.
    pub drift: Vec<String>,
    /// Networks that are routed elsewhere: `10.0.0.0/24 eth0`.
    pub routes: Vec<String>,
    /// Why the interface's name or port cannot be had, a sentence part each.
    pub taken: Vec<String>,
    /// Peers as the interface knows them.
    pub peers: Vec<PeerFacts>,
    /// MTU of the interface, 0 when it is not there.
    pub mtu: u16,
}

/// What carries a WireGuard interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Engine {
    /// Nothing that could.
    #[default]
    #[serde(rename = "none")]
    Absent,
    /// The kernel.
    #[serde(rename = "kernel")]
    Kernel,
    /// wireguard-go, in user space.
    #[serde(rename = "wireguard-go")]
    WireguardGo,
    /// wireguard-go is there and `/dev/net/tun` is not.
    #[serde(rename = "no tun")]
    NoTun,
}

/// A host of a mesh as its records know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: HostName,
    /// Its public key, base64.
    pub public_key: String,
    /// Its private IPv4 address.
    pub v4: Ipv4Addr,
    /// Its private IPv6 address.
    pub v6: Ipv6Addr,
}

/// A peer as the interface knows it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerFacts {
    /// Its public key, base64.
    pub public_key: String,
    /// Where it was last heard from or is dialled, or empty.
    pub endpoint: String,
    /// Seconds since the last handshake; `None`: there was none.
    pub handshake_age_s: Option<u64>,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}
