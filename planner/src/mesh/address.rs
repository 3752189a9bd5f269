//! Who has which address. Allocated by host name, kept by the hosts' own records: a new key or another order changes none.

use super::{MeshHost, MeshInput, MeshRefusal};
use core::net::{Ipv4Addr, Ipv6Addr};
use ipnet::{Ipv4Net, Ipv6Net};
use roadie_model::id::HostName;
use roadie_model::mesh::{Member, Mesh};
use roadie_model::plan::Refusal;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Everybody in the network.
#[derive(Debug, Clone)]
pub struct Roster {
    /// By name; only those whose public key is known.
    pub members: BTreeMap<HostName, Member>,
    /// Hosts that are left out, a sentence each.
    pub warnings: Vec<String>,
}

impl Roster {
    /// Takes what the records know and allocates the rest.
    ///
    /// # Errors
    /// Hosts whose fixed address another host has by its record.
    pub fn of(input: &MeshInput<'_>) -> Result<Self, Vec<MeshRefusal>> {
        let known = known(input);
        let v6 = prefix(&known).unwrap_or(input.fresh_v6);
        let addresses = allocate(input.mesh, &known)?;
        let (mut members, mut warnings) = (BTreeMap::new(), Vec::new());
        for name in &input.mesh.hosts {
            let observed = input.hosts.iter().find(|h| &h.host.name == name).and_then(|h| h.mesh.public_key.clone());
            let key = input.rotating.get(name).cloned().or(observed).or_else(|| known.get(name).map(|m| m.public_key.clone()));
            let (Some(public_key), Some(v4)) = (key, addresses.get(name)) else {
                warnings.push(format!("`{name}` is left out of the mesh until it can be reached: nobody knows its key"));
                continue;
            };
            members.insert(name.clone(), Member { name: name.clone(), public_key, v4: *v4, v6: beside(v6, *v4) });
        }
        match twins(&members) {
            refusals if refusals.is_empty() => Ok(Self { members, warnings }),
            refusals => Err(refusals),
        }
    }
}

/// Hosts with the key of another: a copied disk. Neither would be told from the other.
fn twins(members: &BTreeMap<HostName, Member>) -> Vec<MeshRefusal> {
    let all: Vec<&Member> = members.values().collect();
    let of = |(at, member): (usize, &&Member)| {
        let twin = all[..at].iter().find(|other| other.public_key == member.public_key)?;
        let problem = format!("it has the same key as `{}`: its disk is a copy", twin.name);
        let hint = "delete /opt/roadie/mesh.* on one of them (its mesh ends until the next run)".to_owned();
        Some((member.name.clone(), Refusal { problem, hint }))
    };
    all.iter().enumerate().filter_map(of).collect()
}

/// What records say of the definition's hosts: each one's own word, and of those that are not there what most others say.
fn known(input: &MeshInput<'_>) -> BTreeMap<HostName, Member> {
    let mut known = BTreeMap::new();
    for name in &input.mesh.hosts {
        let said = |at: &MeshHost<'_>| at.mesh.members.iter().find(|m| &m.name == name).cloned();
        let own = input.hosts.iter().find(|at| &at.host.name == name).and_then(said);
        if let Some(member) = own.or_else(|| most(input.hosts.iter().filter_map(said))) {
            known.insert(name.clone(), member);
        }
    }
    known
}

/// What is said most often; of several the first.
fn most<T: PartialEq>(words: impl Iterator<Item = T>) -> Option<T> {
    let mut counted: Vec<(T, usize)> = Vec::new();
    for word in words {
        match counted.iter_mut().find(|(known, _)| *known == word) {
            Some((_, count)) => *count += 1,
            None => counted.push((word, 1)),
        }
    }
    let best = counted.iter().map(|(_, count)| *count).max()?;
    counted.into_iter().find(|(_, count)| *count == best).map(|(word, _)| word)
}

/// The /48 that most have; only of the private space, whatever a host says.
fn prefix(known: &BTreeMap<HostName, Member>) -> Option<Ipv6Net> {
    let nets = known.values().filter_map(|m| Ipv6Net::new(m.v6, 48).ok()).map(|net| net.trunc());
    most(nets.filter(|net| net.network().segments()[0] & 0xfe00 == 0xfc00))
}

/// The IPv6 address of a host: its IPv4 address behind the network.
fn beside(net: Ipv6Net, v4: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(net.network()) | u128::from(u32::from(v4)))
}

fn allocate(mesh: &Mesh, known: &BTreeMap<HostName, Member>) -> Result<BTreeMap<HostName, Ipv4Addr>, Vec<MeshRefusal>> {
    let mut taken: BTreeMap<Ipv4Addr, HostName> = mesh.addresses.iter().map(|(name, v4)| (*v4, name.clone())).collect();
    let mut refusals = Vec::new();
    let kept = |name: &HostName| known.get(name).map(|m| m.v4).filter(|v4| is_free_for_hosts(mesh.network, *v4));
    let mut found = mesh.addresses.clone();
    for name in mesh.hosts.iter().filter(|name| !mesh.addresses.contains_key(*name)) {
        let Some(v4) = kept(name) else { continue };
        match taken.get(&v4) {
            Some(other) if mesh.addresses.get(other) == Some(&v4) => refusals.push((
                other.clone(),
                Refusal {
                    problem: format!("the address {v4} that `mesh.addresses` gives it is that of `{name}`"),
                    hint: "give it another one, or fix that of the other host too".into(),
                },
            )),
            // Two records that disagree: the first by name keeps it.
            Some(_) => {}
            None => {
                taken.insert(v4, name.clone());
                found.insert(name.clone(), v4);
            }
        }
    }
    for name in &mesh.hosts {
        if !found.contains_key(name) {
            let Some(v4) = first_free(mesh.network, name, &taken) else {
                refusals.push((name.clone(), full(mesh.network)));
                continue;
            };
            taken.insert(v4, name.clone());
            found.insert(name.clone(), v4);
        }
    }
    if refusals.is_empty() { Ok(found) } else { Err(refusals) }
}

fn full(network: Ipv4Net) -> Refusal {
    Refusal { problem: format!("no address is left in {network}"), hint: "set a larger `mesh.network`".into() }
}

fn is_free_for_hosts(network: Ipv4Net, v4: Ipv4Addr) -> bool {
    network.contains(&v4) && v4 != network.network() && v4 != network.broadcast()
}

/// The address that the name's digest points at, or the next one that is free: whoever else is there, it is mostly the same.
fn first_free(network: Ipv4Net, name: &HostName, taken: &BTreeMap<Ipv4Addr, HostName>) -> Option<Ipv4Addr> {
    let count = (1_u64 << (32 - u32::from(network.prefix_len()))).saturating_sub(2);
    let digest = Sha256::digest(name.as_str().as_bytes());
    let start = digest.iter().take(8).fold(0_u64, |sum, b| sum << 8 | u64::from(*b)) % count.max(1);
    let first = u32::from(network.network());
    (0..count.min(taken.len() as u64 + 1)).find_map(|offset| {
        let index = u32::try_from((start + offset) % count).ok()?;
        let v4 = Ipv4Addr::from(first.checked_add(index)?.checked_add(1)?);
        (!taken.contains_key(&v4)).then_some(v4)
    })
}
