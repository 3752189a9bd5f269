//! Plans for the private network of a definition's hosts: who gets which address, who dials whom, what each host is told.
//!
//! To a host its mesh is a release like that of a service: a unit, and a script that carries all data in it (`templates/mesh.sh`
//! behind a few assignments). So it has the same way back, the same guard, and the same answer to "is there anything to do".
//! All hosts are planned together, because each is told of all others.

mod address;
mod check;
mod release;
mod routes;
mod rules;

use crate::deploy::{Steps, beyond, by};
use address::Roster;
use ipnet::Ipv6Net;
use roadie_model::definition::{Health, Host, Lifecycle, Scope, Service};
use roadie_model::facts::{HostFacts, ReleaseState, ServiceState};
use roadie_model::id::{HostName, PackageId, ReleaseId, ServiceName};
use roadie_model::mesh::{Member, Mesh, MeshFacts};
use roadie_model::plan::{Action, HostPlan, Refusal, Rendered, Source, Stage, Undo};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};

pub use release::SCRIPT;

/// Seconds until a mesh that was not confirmed goes back by itself: within 30 s also when it cut our own way in.
const GUARD_S: u64 = 20;
/// Seconds that the host waits for a controller that went away.
const GRACE_S: u64 = 3;
/// Seconds that peers have to answer: longer than WireGuard's pause between two handshakes (5 s and a little).
const ANSWER_S: u64 = 8;
/// Releases that stay on a host.
const KEPT: usize = 5;

/// One host of the mesh as it was observed.
#[derive(Debug, Clone, Copy)]
pub struct MeshHost<'a> {
    /// Which.
    pub host: &'a Host,
    /// Its facts, of the mesh's own record.
    pub facts: &'a HostFacts,
    /// What its mesh is.
    pub mesh: &'a MeshFacts,
}

/// What the plans of a mesh are made from.
#[derive(Debug, Clone, Copy)]
pub struct MeshInput<'a> {
    /// What is wanted.
    pub mesh: &'a Mesh,
    /// The definition's services: their names resolve, their ports are opened.
    pub services: &'a BTreeMap<ServiceName, Service>,
    /// All hosts of the file by name: where they are dialled.
    pub all: &'a BTreeMap<HostName, Host>,
    /// Those that were observed.
    pub hosts: &'a [MeshHost<'a>],
    /// Hosts that take a new key in: the others learn it first.
    pub rotating: &'a BTreeMap<HostName, String>,
    /// The /48 that private IPv6 addresses come from where no host has one yet.
    pub fresh_v6: Ipv6Net,
}

/// The plans of all observed hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshPlan {
    /// One for each observed host, in their order.
    pub hosts: Vec<HostPlan>,
    /// Everybody in the network, sorted by name.
    pub members: Vec<Member>,
    /// What a person should know although nothing stops for it.
    pub warnings: Vec<String>,
}

/// A host that cannot take part.
pub type MeshRefusal = (HostName, Refusal);

/// Pairs of hosts whose path was not measured yet: for each observed host, names and addresses to ask.
pub fn unmeasured(input: &MeshInput<'_>) -> BTreeMap<HostName, Vec<(HostName, String)>> {
    let mut asks = BTreeMap::new();
    if input.mesh.mtu.is_some() {
        return asks;
    }
    for at in input.hosts {
        let unknown = |peer: &HostName| !at.mesh.paths.contains_key(peer);
        let direct = routes::tunnels(input.mesh, &at.host.name).into_iter().filter(|t| t.dialled && unknown(&t.peer));
        let list: Vec<_> = direct.filter_map(|t| Some((t.peer.clone(), routes::endpoint(input, &t.peer)?.host))).collect();
        if !list.is_empty() {
            asks.insert(at.host.name.clone(), list);
        }
    }
    asks
}

/// Every host that cannot take part and why. Needs no keys: it is asked before any is made.
pub fn check_mesh(input: &MeshInput<'_>) -> Vec<MeshRefusal> {
    check::check(input)
}

/// Plans the mesh of all observed hosts. A host whose plan has no steps is as wanted already.
///
/// # Errors
/// Every host that cannot take part and why; nothing was changed.
pub fn plan_mesh(input: &MeshInput<'_>) -> Result<MeshPlan, Vec<MeshRefusal>> {
    let refusals = check::check(input);
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let roster = Roster::of(input)?;
    let mut warnings = roster.warnings.clone();
    warnings.extend(
        departed(input).iter().map(|name| format!("`{name}` was in this mesh and is not any more: the others forget it")),
    );
    let generation = generation(input, &roster);
    let rendered: Vec<_> =
        input.hosts.iter().map(|at| release::render(input, &roster, *at, &generation, &mut warnings)).collect();
    let hosts = input.hosts.iter().zip(rendered).map(|(at, (id, text))| host_plan(input, *at, id, text, &generation));
    Ok(MeshPlan { hosts: hosts.collect(), members: roster.members.values().cloned().collect(), warnings })
}

/// Names what all hosts have together: each host's record carries it, so a change of it changes all of them. What only one host
/// measured is not in it, nor who could be reached.
fn generation(input: &MeshInput<'_>, roster: &Roster) -> String {
    let mut digest = Sha256::new();
    digest.update(serde_json::to_vec(input.mesh).unwrap_or_default());
    for member in roster.members.values() {
        let endpoint = routes::endpoint(input, &member.name).map(|e| format!("{}:{}", e.host, e.port)).unwrap_or_default();
        digest.update(format!("{} {} {} {} {endpoint}\n", member.name, member.public_key, member.v4, member.v6));
    }
    for service in input.services.values() {
        let hosts: Vec<&str> = service.hosts.iter().map(|h| h.name.as_str()).collect();
        digest.update(format!("{} {hosts:?} {:?} {:?}\n", service.name, service.ports, service.depends_on));
    }
    crate::render::hex(&digest.finalize())[..12].to_owned()
}

/// Whose new mesh the others must know before it is in force: a handshake that meets nobody is repeated only 5 s later.
fn goes_second(input: &MeshInput<'_>, host: &HostName) -> bool {
    input.rotating.contains_key(host) || input.mesh.via.contains_key(host)
}

/// The other hosts that are looked at in this run.
fn others(input: &MeshInput<'_>, host: &HostName) -> Vec<HostName> {
    input.hosts.iter().map(|h| h.host.name.clone()).filter(|name| name != host).collect()
}

fn host_plan(input: &MeshInput<'_>, at: MeshHost<'_>, release: ReleaseId, rendered: Rendered, generation: &str) -> HostPlan {
    let peers = others(input, &at.host.name);
    let waits = goes_second(input, &at.host.name) && input.hosts.iter().any(|h| !goes_second(input, &h.host.name));
    let as_wanted = is_in_force(at, &release);
    let steps = if as_wanted { Vec::new() } else { steps(at.facts, &release, generation, peers, waits) };
    HostPlan {
        host: at.host.name.clone(),
        service: ServiceName::of_mesh(&input.mesh.interface),
        lifecycle: Lifecycle::Systemd,
        scope: Scope::System,
        release: Some(release),
        package: None,
        version: generation.to_owned(),
        rendered: Some(rendered),
        assumes: Box::new(at.facts.clone()),
        steps,
        changes: Vec::new(),
    }
}

fn is_in_force(at: MeshHost<'_>, release: &ReleaseId) -> bool {
    let facts = at.facts;
    facts.current.as_ref() == Some(release)
        && !facts.unconfirmed()
        && facts.service.state == ServiceState::Running
        && facts.release(release).is_some_and(|r| r.state == ReleaseState::Proven && r.complete)
        && at.mesh.drift.is_empty()
}

fn steps(
    facts: &HostFacts,
    to: &ReleaseId,
    generation: &str,
    peers: Vec<HostName>,
    waits: bool,
) -> Vec<roadie_model::plan::Step> {
    let mut steps = Steps::default();
    if !facts.release(to).is_some_and(|r| r.complete) {
        let discard = by(Action::Discard { release: to.clone(), package: None });
        steps.push(Stage::Prepare, Action::Unpack { release: to.clone(), source: Source::Rendered }, discard);
        steps.push(Stage::Prepare, Action::WriteFiles { release: to.clone() }, Undo::Nothing);
    }
    // There is no package: the release is its own content.
    let package = PackageId::new(to.as_str()).unwrap_or_else(|_| unreachable!("a release id is a sha256 too"));
    steps.push(Stage::Prepare, Action::Seal { release: to.clone(), package, version: generation.to_owned() }, Undo::Nothing);
    switch(&mut steps, facts, to, peers, waits);
    let remove = beyond(facts, to, KEPT);
    if !remove.is_empty() {
        steps.push(Stage::Finish, Action::Prune { remove }, Undo::Nothing);
    }
    steps.push(Stage::Finish, Action::PruneKeys, Undo::Nothing);
    steps.finish()
}

fn switch(steps: &mut Steps, facts: &HostFacts, to: &ReleaseId, peers: Vec<HostName>, waits: bool) {
    let old = crate::deploy::way_back(facts).map(|r| r.id.clone());
    let restore = match &old {
        Some(release) => by(Action::Restore { release: release.clone(), health: Health::is_up() }),
        None => by(Action::DisarmGuard),
    };
    let arm =
        Action::ArmGuard { back_to: old.clone(), to: to.clone(), runs: old.is_some(), deadline_s: GUARD_S, grace_s: GRACE_S };
    steps.push(Stage::Switch, arm, restore);
    if old.as_ref() != Some(to) || facts.current.as_ref() != Some(to) {
        let failed = by(Action::Record { release: to.clone(), state: ReleaseState::Failed });
        steps.push(Stage::Switch, Action::Record { release: to.clone(), state: ReleaseState::Active }, failed);
        let unit_back = old.clone().map_or(Action::RemoveUnit, |release| Action::InstallUnit { release });
        steps.push(Stage::Switch, Action::InstallUnit { release: to.clone() }, by(unit_back));
        let back = Action::Switch { from: Some(to.clone()), to: old.clone() };
        steps.push(Stage::Switch, Action::Switch { from: facts.current.clone(), to: Some(to.clone()) }, by(back));
    }
    if waits {
        steps.push(Stage::Switch, Action::AwaitPeers, Undo::Nothing);
    }
    // With an older mesh to go back to, its tunnels stay up while it is taken in again.
    let undo = if old.is_some() { Undo::Nothing } else { by(Action::Stop) };
    steps.push(Stage::Switch, Action::Reload { release: to.clone() }, undo);
    steps.push(Stage::Switch, Action::CheckPeers { peers, timeout_s: ANSWER_S }, Undo::Nothing);
    steps.push(Stage::Switch, Action::Confirm { release: to.clone(), stable_ms: 0 }, Undo::Nothing);
}

/// Plans the return of one host to the mesh of `generation`; `None` when it has no proven release of it.
///
/// All hosts of a mesh go back together: their keys and ports only fit each other's of the same generation.
pub fn plan_mesh_rollback(mesh: &Mesh, at: MeshHost<'_>, peers: Vec<HostName>, generation: &str) -> Option<HostPlan> {
    let target = at.facts.releases.iter().find(|r| r.version == generation && r.complete && r.state == ReleaseState::Proven)?;
    let as_wanted = is_in_force(at, &target.id);
    let mut facts = at.facts.clone();
    facts.releases.retain(|r| r.id != target.id || facts.current.as_ref() == Some(&r.id));
    let mut steps = Steps::default();
    if !as_wanted {
        let seal = Action::Seal { release: target.id.clone(), package: target.package.clone(), version: target.version.clone() };
        steps.push(Stage::Prepare, seal, Undo::Nothing);
        switch(&mut steps, &facts, &target.id, peers, false);
    }
    Some(HostPlan {
        host: at.host.name.clone(),
        service: ServiceName::of_mesh(&mesh.interface),
        lifecycle: Lifecycle::Systemd,
        scope: Scope::System,
        release: Some(target.id.clone()),
        package: None,
        version: generation.to_owned(),
        rendered: None,
        assumes: Box::new(at.facts.clone()),
        steps: steps.finish(),
        changes: Vec::new(),
    })
}

/// Hosts that some record knows as members and the definition does not any more.
pub fn departed(input: &MeshInput<'_>) -> BTreeSet<HostName> {
    let known = input.hosts.iter().flat_map(|h| &h.mesh.members).map(|m| m.name.clone());
    known.filter(|name| !input.mesh.hosts.contains(name)).collect()
}
