//! What one host is told: the unit, and the script with its data.

use super::address::Roster;
use super::{MeshHost, MeshInput, routes, rules};
use crate::render::{manifest, release_id};
use roadie_model::definition::Health;
use roadie_model::id::{HostName, ReleaseId, ServiceName};
use roadie_model::mesh::{Member, NamesMode};
use roadie_model::plan::{Rendered, SecretText};
use roadie_model::sh::quote;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What does the work on the host.
pub const SCRIPT: &str = include_str!("../../../templates/mesh.sh");

/// Takes a new mesh in without a restart.
const LIFECYCLE: &str = "systemd reload";

/// The release of one host.
pub fn render(
    input: &MeshInput<'_>,
    roster: &Roster,
    at: MeshHost<'_>,
    generation: &str,
    warnings: &mut Vec<String>,
) -> (ReleaseId, Rendered) {
    let host = &at.host.name;
    let run = format!("#!/bin/sh\n# generation {generation}\n{}{SCRIPT}", data(input, roster, at));
    let unit = unit(&input.mesh.interface, &at.facts.root);
    let id = release_id(&["mesh", LIFECYCLE, &unit, "", "", &run]);
    let mut rendered = Rendered {
        unit,
        config: SecretText::default(),
        env: SecretText::default(),
        run: SecretText::new(run),
        health: serde_json::to_string(&Health::is_up()).unwrap_or_default(),
        lifecycle: LIFECYCLE.into(),
        manifest: String::new(),
    };
    rendered.manifest = manifest(&rendered, Vec::new());
    if at.mesh.missing.iter().any(|m| m == "ping") && input.mesh.mtu.is_none() {
        warnings.push(format!("`{host}` has no `ping`: what its paths carry is not measured, 1500 bytes are assumed"));
    }
    (id, rendered)
}

/// Taken down twice: by hand while its process lives, which ends it at once; and behind a start that failed. Before the network counts as online: what waits for that can use the mesh's names and addresses at once.
fn unit(interface: &str, root: &str) -> String {
    let script = format!("/bin/sh {root}/current/run.sh");
    format!(
        "[Unit]\nDescription=roadie mesh {interface}\nWants=network-pre.target\nAfter=network-pre.target systemd-sysctl.service nftables.service\n\
         Before=network-online.target\nRequiresMountsFor={root}\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=30\nTimeoutStopSec=10\nExecStart={script} up\nExecReload={script} apply\n\
         ExecStop={script} down\nExecStopPost={script} down\n\n[Install]\nWantedBy=multi-user.target\n"
    )
}

fn data(input: &MeshInput<'_>, roster: &Roster, at: MeshHost<'_>) -> String {
    let (mesh, host) = (input.mesh, &at.host.name);
    let Some(own) = roster.members.get(host) else { return String::new() };
    let sizes = routes::sizes(input, roster, host);
    let lines = [
        ("IFACE", mesh.interface.clone()),
        ("PORT", mesh.port.to_string()),
        ("MTU", sizes.mtu.to_string()),
        ("NARROW", narrow(roster, &sizes.narrow)),
        ("PUBLIC", own.public_key.clone()),
        ("KEYS", format!("{}/.roadie/keys", at.facts.root)),
        ("ADDR4", format!("{}/{}", own.v4, mesh.network.prefix_len())),
        ("ADDR6", format!("{}/48", own.v6)),
        ("FORWARD", u8::from(routes::forwards(mesh, host)).to_string()),
        ("NAMES", names(input, roster)),
        ("RULES", rules::rules(input, roster, host)),
        ("PEERS", peers(input, roster, at)),
        ("MEMBERS", roster.members.values().map(member).collect()),
        ("PATHS", paths(input, roster, at)),
        ("WITHOUT6", without_v6(input)),
    ];
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name}={}", quote(value));
        text
    })
}

fn member(m: &Member) -> String {
    format!("{} {} {} {}\n", m.name, m.public_key, m.v4, m.v6)
}

fn narrow(roster: &Roster, ways: &[(HostName, u16)]) -> String {
    let line = |(name, size): &(HostName, u16)| roster.members.get(name).map(|m| format!("{name} {} {} {size}\n", m.v4, m.v6));
    ways.iter().filter_map(line).collect()
}

/// Hosts whose kernel has no IPv6.
fn without_v6(input: &MeshInput<'_>) -> String {
    let lacking = input.hosts.iter().filter(|h| lacks_v6(h));
    lacking.map(|h| format!("{}\n", h.host.name)).collect()
}

fn lacks_v6(at: &MeshHost<'_>) -> bool {
    at.mesh.missing.iter().any(|m| m == "ipv6")
}

/// What this host measured, for those that are still there.
fn paths(input: &MeshInput<'_>, roster: &Roster, at: MeshHost<'_>) -> String {
    if input.mesh.mtu.is_some() {
        return String::new();
    }
    let known = at.mesh.paths.iter().filter(|(peer, _)| roster.members.contains_key(*peer));
    known.map(|(peer, mtu)| format!("{peer} {mtu}\n")).collect()
}

fn peers(input: &MeshInput<'_>, roster: &Roster, at: MeshHost<'_>) -> String {
    let mut text = String::new();
    for tunnel in routes::tunnels(input.mesh, &at.host.name) {
        let Some(peer) = roster.members.get(&tunnel.peer) else { continue };
        let far = tunnel.carries.iter().filter_map(|name| roster.members.get(name));
        let allowed: Vec<String> =
            std::iter::once(peer).chain(far).flat_map(|m| [format!("{}/32", m.v4), format!("{}/128", m.v6)]).collect();
        let endpoint = if tunnel.dialled { routes::endpoint(input, &tunnel.peer) } else { None };
        let endpoint = match endpoint {
            Some(e) if e.host.contains(':') => format!("[{}]:{}", e.host, e.port),
            Some(e) => format!("{}:{}", e.host, e.port),
            None => "-".to_owned(),
        };
        let keepalive = if tunnel.keepalive { input.mesh.keepalive.as_secs() } else { 0 };
        let _ = writeln!(text, "{} {} {endpoint} {keepalive} {}", peer.name, peer.public_key, allowed.join(","));
    }
    text
}

/// One line for each address: the host's own name, then those of the services that run there.
fn names(input: &MeshInput<'_>, roster: &Roster) -> String {
    let mesh = input.mesh;
    if mesh.names == NamesMode::None {
        return String::new();
    }
    let mut services: BTreeMap<&HostName, Vec<&ServiceName>> = BTreeMap::new();
    for service in input.services.values() {
        for host in &service.hosts {
            services.entry(&host.name).or_default().push(&service.name);
        }
    }
    let mut text = String::new();
    for member in roster.members.values() {
        let of_services = services.get(&member.name).into_iter().flatten().filter_map(|s| mesh.name_of_service(s));
        let mut all: Vec<String> = mesh.name_of(&member.name).into_iter().collect();
        for name in of_services {
            if !all.contains(&name) {
                all.push(name);
            }
        }
        if all.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{} {}", member.v4, all.join(" "));
        if !input.hosts.iter().any(|h| h.host.name == member.name && lacks_v6(h)) {
            let _ = writeln!(text, "{} {}", member.v6, all.join(" "));
        }
    }
    text
}
