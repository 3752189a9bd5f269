//! The firewall of an interface: closed, but for what the dependents of a host's services need.

use super::MeshInput;
use super::address::Roster;
use roadie_model::id::HostName;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Text for `nft -f -` that replaces the table as a whole; empty when nothing is closed.
pub fn rules(input: &MeshInput<'_>, roster: &Roster, host: &HostName) -> String {
    let mesh = input.mesh;
    if !mesh.default_drop {
        return String::new();
    }
    let (table, interface) = (format!("inet roadie_{}", mesh.interface), &mesh.interface);
    let mut text = format!("table {table} {{}}\ndelete table {table}\ntable {table} {{\n");
    text.push_str("  chain input {\n    type filter hook input priority 0; policy accept;\n");
    let _ = writeln!(text, "    iifname != \"{interface}\" accept");
    // ICMP and ICMPv6, by number: their names are in a file that a small host does not have.
    text.push_str("    ct state established,related accept\n    meta l4proto { 1, 58 } accept\n");
    if !mesh.open.is_empty() {
        let _ = writeln!(text, "    tcp dport {{ {} }} accept", listed(&mesh.open));
    }
    for service in input.services.values().filter(|s| !s.ports.is_empty() && s.hosts.iter().any(|h| &h.name == host)) {
        let dependents = input.services.values().filter(|d| d.depends_on.contains(&service.name));
        let sources: BTreeSet<&HostName> = dependents.flat_map(|d| d.hosts.iter().map(|h| &h.name)).collect();
        let members: Vec<_> = sources.iter().filter_map(|name| roster.members.get(*name)).collect();
        if members.is_empty() {
            continue;
        }
        let (v4, v6): (Vec<_>, Vec<_>) = members.iter().map(|m| (m.v4, m.v6)).unzip();
        let ports = listed(&service.ports);
        let _ = writeln!(text, "    ip saddr {{ {} }} tcp dport {{ {ports} }} accept", listed(&v4));
        let _ = writeln!(text, "    ip6 saddr {{ {} }} tcp dport {{ {ports} }} accept", listed(&v6));
    }
    text.push_str("    drop\n  }\n}\n");
    text
}

fn listed<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
