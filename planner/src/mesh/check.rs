//! What keeps a host out of a mesh, found before anything is changed.

use super::{MeshHost, MeshInput, MeshRefusal};
use ipnet::Ipv4Net;
use roadie_model::mesh::Engine;
use roadie_model::plan::Refusal;

/// systemd that has all that the mesh's unit and timer use.
const LEAST_SYSTEMD: u32 = 240;

/// Every host that cannot take part, with each reason.
pub fn check(input: &MeshInput<'_>) -> Vec<MeshRefusal> {
    let mut refusals = Vec::new();
    for at in input.hosts {
        refusals.extend(reasons(input, at).into_iter().map(|refusal| (at.host.name.clone(), refusal)));
    }
    refusals
}

fn refusal(problem: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal { problem: problem.into(), hint: hint.into() }
}

fn reasons(input: &MeshInput<'_>, at: &MeshHost<'_>) -> Vec<Refusal> {
    let (mesh, facts) = (input.mesh, at.mesh);
    let lacks = |tool: &str| facts.missing.iter().any(|m| m == tool);
    let mut found = Vec::new();
    if at.facts.systemd.is_none_or(|version| version < LEAST_SYSTEMD) {
        let hint = "take it out of `mesh.hosts`: without systemd nothing would bring the mesh back at boot";
        found.push(refusal(format!("the mesh needs systemd {LEAST_SYSTEMD} or newer"), hint));
    }
    if !at.facts.missing_tools.is_empty() {
        let hint = "install coreutils and util-linux there";
        found.push(refusal(format!("the host lacks {}", at.facts.missing_tools.join(", ")), hint));
    }
    if lacks("wg") {
        found.push(refusal("the mesh needs `wg`, which is not there", "apt-get install wireguard-tools"));
    }
    if lacks("ip") {
        found.push(refusal("the mesh needs `ip`, which is not there", "apt-get install iproute2"));
    }
    if mesh.default_drop && lacks("nft") {
        let hint = "apt-get install nftables, or leave `mesh.default_drop` out";
        found.push(refusal("`mesh.default_drop` needs `nft`, which is not there", hint));
    }
    found.extend(engine(facts.engine));
    for taken in &facts.taken {
        found.push(refusal(taken.clone(), "set another `mesh.interface` or `mesh.port`"));
    }
    found.extend(overlaps(mesh.network, &facts.routes));
    found
}

fn engine(engine: Engine) -> Option<Refusal> {
    match engine {
        Engine::Kernel | Engine::WireguardGo => None,
        Engine::NoTun => Some(refusal(
            "the kernel has no WireGuard, and wireguard-go needs /dev/net/tun, which is not there",
            "load the module `tun`, or let the container have the device /dev/net/tun",
        )),
        Engine::Absent => Some(refusal(
            "neither the kernel nor wireguard-go can carry a WireGuard interface",
            "load the kernel module `wireguard`, or apt-get install wireguard-go",
        )),
    }
}

/// Routes are said as `10.0.0.0/24 eth0`; a host route has no prefix.
fn overlaps(network: Ipv4Net, routes: &[String]) -> Option<Refusal> {
    let clash = routes.iter().find(|route| {
        let text = route.split(' ').next().unwrap_or_default();
        let net = text.parse::<Ipv4Net>().or_else(|_| format!("{text}/32").parse());
        net.is_ok_and(|net| net.contains(&network.network()) || network.contains(&net.network()))
    })?;
    let (net, device) = clash.split_once(' ').unwrap_or((clash, "?"));
    Some(refusal(
        format!("the mesh's network {network} overlaps with {net}, which is routed through {device}"),
        "set another `mesh.network`",
    ))
}
