//! `roadie mesh`: the private network between the hosts, for people.

use crate::args::{Global, MeshVerb};
use crate::fleet::Fleet;
use crate::out::{self, Fatal};
use crate::packages::ago;
use crate::report;
use indicatif::HumanBytes;
use roadie_deployer::{MeshReport, MeshWork, PortAsked, Reach};
use roadie_model::definition::Definition;
use roadie_model::id::HostName;
use roadie_model::mesh::{Engine, Mesh, MeshFacts, Topology};
use roadie_model::outcome::Outcome;
use serde_json::json;
use std::collections::BTreeSet;

/// The work that a verb means.
pub fn work(verb: &MeshVerb, mesh: &Mesh) -> Result<MeshWork, Fatal> {
    Ok(match verb {
        MeshVerb::Show => MeshWork::Show,
        MeshVerb::Plan { .. } => MeshWork::Plan,
        MeshVerb::Apply { .. } => MeshWork::Apply,
        MeshVerb::Rotate { names } => MeshWork::Rotate(hosts(names, mesh)?),
        MeshVerb::Remove { names } => MeshWork::Remove(dispensable(hosts(names, mesh)?, mesh)?),
        MeshVerb::Rollback { to } => MeshWork::Rollback(to.clone()),
    })
}

/// Refuses hosts that others are reached through.
fn dispensable(leaving: Vec<HostName>, mesh: &Mesh) -> Result<Vec<HostName>, Fatal> {
    for host in &leaving {
        let hub = matches!(&mesh.topology, Topology::Hub(hub) if hub == host);
        let relay = mesh.via.iter().find(|(behind, through)| *through == host && !leaving.contains(behind));
        let why = match (hub, relay) {
            (true, _) => "it is the hub (`mesh.topology`)".to_owned(),
            (_, Some((behind, _))) => format!("`{behind}` is reached through it (`mesh.via`)"),
            (false, None) => continue,
        };
        return Err(Fatal::usage(format!("`{host}` cannot leave the mesh: {why}")).hint("change that in the definition first"));
    }
    if mesh.hosts.len() < leaving.len() + 2 && mesh.hosts.len() != leaving.len() {
        return Err(Fatal::usage("a single host would be left").hint("name all hosts to take the whole mesh away"));
    }
    Ok(leaving)
}

fn hosts(names: &[String], mesh: &Mesh) -> Result<Vec<HostName>, Fatal> {
    let of_mesh = |name: &String| {
        mesh.hosts.iter().find(|h| h.as_str() == name).cloned().ok_or_else(|| {
            let all: Vec<&str> = mesh.hosts.iter().map(HostName::as_str).collect();
            Fatal::usage(format!("no host of the mesh is called `{name}`")).hint(format!("there are: {}", all.join(", ")))
        })
    };
    names.iter().map(of_mesh).collect()
}

/// Does one verb and says how it ended.
pub async fn run(fleet: &Fleet, definition: &Definition, verb: &MeshVerb) -> Result<u8, Fatal> {
    let Some(mesh) = &definition.mesh else {
        return Err(Fatal::usage("the definition has no mesh").hint("add a line `mesh: true`"));
    };
    let work = work(verb, mesh)?;
    ask(fleet.global(), verb)?;
    let report = fleet.mesh(definition, &work).await;
    if work == MeshWork::Plan && !fleet.global().json {
        fleet.print_plans();
        report.seen.iter().flat_map(|(host, facts)| facts.drift.iter().map(move |d| (host, d))).for_each(|(host, drift)| {
            out::line(&format!("{host}: {drift}"));
        });
    }
    let outcome = tell(&report, &work, fleet.global().json);
    let detailed = matches!(verb, MeshVerb::Plan { detailed_exitcode: true });
    Ok(if outcome == Outcome::ChangesPending && !detailed { 0 } else { outcome.exit_code() })
}

fn ask(global: &Global, verb: &MeshVerb) -> Result<(), Fatal> {
    match verb {
        MeshVerb::Remove { names } => out::confirm(global.yes, &format!("This takes {} out of the mesh", names.join(", "))),
        _ => Ok(()),
    }
}

/// Tables for people, one object for programs; then how each host ended.
pub fn tell(result: &MeshReport, work: &MeshWork, json: bool) -> Outcome {
    if json {
        out::line(&object(result).to_string());
    } else if matches!(work, MeshWork::Show) {
        hosts_table(result);
        matrix(result);
        ports(result);
        advice(result);
    }
    for warning in &result.warnings {
        out::note(&format!("warning: {warning}"));
    }
    let changes = !matches!(work, MeshWork::Show | MeshWork::Plan);
    let shown = matches!(work, MeshWork::Show) && !json;
    let bad: Vec<_> = result.reports.iter().filter(|r| !shown || r.report.outcome != Outcome::Done).cloned().collect();
    report::summary(&bad, changes, json)
}

/// All went well: one line, behind which services follow.
pub fn in_short(result: &MeshReport, json: bool) {
    if json {
        out::line(&object(result).to_string());
        return;
    }
    for warning in &result.warnings {
        out::note(&format!("warning: {warning}"));
    }
    let (there, missing): (Vec<_>, Vec<_>) = result.reports.iter().partition(|r| r.report.outcome == Outcome::Done);
    if there.is_empty() && missing.is_empty() {
        return;
    }
    let unchanged = there.iter().all(|r| r.report.summary.starts_with("nothing to do"));
    let what = if unchanged { "nothing to do" } else { "in force, they reach each other" };
    out::line(&format!("{} mesh of {} hosts: {what}", out::green("ok"), there.len()));
    for report in missing {
        out::note(&format!("warning: {} was left out: {}", report.host, report.report.summary));
    }
}

fn object(result: &MeshReport) -> serde_json::Value {
    json!({
        "event": "mesh",
        "members": result.members,
        "hosts": result.seen,
        "reach": result.reach,
        "ports": result.ports,
        "generations": result.generations,
        "warnings": result.warnings,
    })
}

fn engine(engine: Engine) -> &'static str {
    match engine {
        Engine::Kernel => "kernel",
        Engine::WireguardGo => "wireguard-go",
        Engine::NoTun => "none (no /dev/net/tun)",
        Engine::Absent => "none",
    }
}

fn hosts_table(result: &MeshReport) {
    let member = |name: &HostName| result.members.iter().find(|m| &m.name == name);
    let generation = |name: &HostName| result.generations.get(name).and_then(|all| all.first()).cloned().unwrap_or_default();
    let row = |name: &HostName, facts: &MeshFacts| {
        let (v4, v6) = member(name).map(|m| (m.v4.to_string(), m.v6.to_string())).unwrap_or_default();
        let oldest = facts.peers.iter().map(|p| p.handshake_age_s).max_by_key(|age| age.unwrap_or(u64::MAX));
        let handshake = match oldest {
            Some(Some(age)) => format!("{} ago", ago(age)),
            Some(None) => "never".into(),
            None => String::new(),
        };
        let (received, sent) = facts.peers.iter().fold((0, 0), |(r, s), p| (r + p.received, s + p.sent));
        vec![
            name.to_string(),
            v4,
            v6,
            engine(facts.engine).to_owned(),
            if facts.mtu > 0 { facts.mtu.to_string() } else { "-".into() },
            facts.peers.len().to_string(),
            handshake,
            HumanBytes(received).to_string(),
            HumanBytes(sent).to_string(),
            generation(name),
        ]
    };
    let rows: Vec<_> = result.seen.iter().map(|(name, facts)| row(name, facts)).collect();
    if rows.is_empty() {
        out::line("no host of the mesh answered");
    } else {
        out::table(
            &["HOST", "IPV4", "IPV6", "ENGINE", "MTU", "PEERS", "OLDEST HANDSHAKE", "RECEIVED", "SENT", "GENERATION"],
            rows,
        );
    }
}

/// Who reaches whom: milliseconds there and back.
fn matrix(result: &MeshReport) {
    let names: Vec<&HostName> = result.members.iter().map(|m| &m.name).collect();
    if names.is_empty() {
        return;
    }
    let mut header = vec!["FROM \\ TO"];
    header.extend(names.iter().map(|n| n.as_str()));
    let rows = names.iter().map(|from| {
        let asked = result.reach.get(*from);
        let cells = names.iter().map(|to| match asked.and_then(|all| all.iter().find(|r| &r.name == *to)) {
            _ if from == to => "·".to_owned(),
            Some(reach) => cell(reach),
            None => "?".to_owned(),
        });
        std::iter::once(from.to_string()).chain(cells).collect()
    });
    out::line("");
    out::table(&header, rows.collect());
}

fn cell(reach: &Reach) -> String {
    let Some(ms) = reach.v4_ms else { return if reach.v6_ms.is_some() { "IPv6 only" } else { "no answer" }.to_owned() };
    let mut text = format!("{ms:.1} ms");
    if reach.loss_percent > 0 {
        text.push_str(&format!(", {}% lost", reach.loss_percent));
    }
    if reach.v6_ms.is_none() {
        text.push_str(", no IPv6");
    }
    if !reach.full_size {
        text.push_str(", small packets only");
    }
    text
}

/// Whether services reach what they depend on.
fn ports(result: &MeshReport) {
    if result.ports.is_empty() {
        return;
    }
    out::line("");
    for asked in &result.ports {
        let PortAsked { from, service, on, address, problem } = asked;
        match problem {
            None => out::line(&format!("{} {service}@{from} reaches {on} at {address}", out::green("ok"))),
            Some(problem) => {
                out::line(&format!("{} {service}@{from} does not reach {on} at {address}: {problem}", out::red("no")));
            }
        }
    }
}

/// Groups of hosts that reach each other and nobody else, by name.
fn parts(result: &MeshReport) -> Vec<BTreeSet<&HostName>> {
    let mut parts: Vec<BTreeSet<&HostName>> = Vec::new();
    for (from, all) in &result.reach {
        let mut group: BTreeSet<&HostName> = all.iter().filter(|r| r.v4_ms.or(r.v6_ms).is_some()).map(|r| &r.name).collect();
        group.insert(from);
        let (joined, apart) = parts.into_iter().partition(|part: &BTreeSet<&HostName>| !part.is_disjoint(&group));
        parts = apart;
        parts.push(joined.into_iter().chain([group]).flatten().collect());
    }
    parts
}

/// What does not fit, each with what to do.
fn advice(result: &MeshReport) {
    let all: BTreeSet<&String> = result.generations.values().filter_map(|all| all.first()).collect();
    if all.len() > 1 {
        out::note("warning: not all hosts are in the same generation; `roadie mesh apply` brings them together");
    }
    let kept = result.generations.values().next().into_iter().flat_map(|all| all.iter().skip(1));
    let common: Vec<&str> = kept.filter(|g| result.generations.values().all(|all| all.contains(g))).map(String::as_str).collect();
    if !common.is_empty() {
        out::line(&format!("\nearlier generations that all hosts keep, newest first: {}", common.join(", ")));
    }
    let parts = parts(result);
    if parts.len() > 1 {
        let told = parts.iter().map(|p| p.iter().map(|h| h.as_str()).collect::<Vec<_>>().join(", ")).collect::<Vec<_>>();
        out::note(&format!("warning: the mesh is in {} parts that do not reach each other: {}", parts.len(), told.join(" | ")));
    }
    for (host, facts) in &result.seen {
        for drift in &facts.drift {
            out::note(&format!("warning: {host}: {drift}; `roadie mesh apply` mends it"));
        }
    }
    for (from, all) in &result.reach {
        for reach in all.iter().filter(|r| r.v4_ms.is_none() && r.v6_ms.is_none()) {
            out::note(&format!(
                "warning: {from} does not reach {}: is its UDP port open, and its `address` (or `mesh.endpoints`) right from there?",
                reach.name
            ));
        }
        for reach in all.iter().filter(|r| r.v4_ms.is_some() && !r.full_size) {
            out::note(&format!(
                "warning: {from} -> {}: large packets are lost; the path carries less than it did. Set `mesh.mtu`",
                reach.name
            ));
        }
    }
}
