//! From `mesh_...` fact lines to [`MeshFacts`]: total, so that a strange host gives missing facts and never a panic.

use roadie_model::id::HostName;
use roadie_model::mesh::{Engine, Member, MeshFacts, PeerFacts};

/// Takes one line in; `key` comes without its `mesh_`.
pub fn add(facts: &mut MeshFacts, key: &str, value: &str) {
    match key {
        "missing" => facts.missing.push(value.to_owned()),
        "engine" => {
            facts.engine = match value {
                "kernel" => Engine::Kernel,
                "wireguard-go" => Engine::WireguardGo,
                "notun" => Engine::NoTun,
                _ => Engine::Absent,
            }
        }
        "public" => facts.public_key = Some(value.to_owned()).filter(|key| is_key(key)),
        "member" => facts.members.extend(member(value)),
        "path" => {
            let (name, size) = value.split_once(' ').unwrap_or((value, ""));
            if let Ok(name) = HostName::new(name) {
                // A dash: nothing answered.
                facts.paths.insert(name, size.parse().unwrap_or(0));
            }
        }
        "drift" => facts.drift.push(value.to_owned()),
        "route" => facts.routes.push(value.to_owned()),
        "taken" => facts.taken.push(value.to_owned()),
        "mtu" => facts.mtu = value.parse().unwrap_or(0),
        "peer" => facts.peers.extend(peer(value)),
        _ => {}
    }
}

/// 32 bytes in base64.
fn is_key(text: &str) -> bool {
    text.len() == 44 && text.ends_with('=') && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
}

/// `NAME KEY V4 V6`
fn member(line: &str) -> Option<Member> {
    let mut words = line.split(' ');
    let name = HostName::new(words.next()?).ok()?;
    let public_key = words.next().filter(|key| is_key(key))?.to_owned();
    Some(Member { name, public_key, v4: words.next()?.parse().ok()?, v6: words.next()?.parse().ok()? })
}

/// `KEY ENDPOINT AGE RECEIVED SENT`, a dash for what there is not.
fn peer(line: &str) -> Option<PeerFacts> {
    let mut words = line.split(' ');
    let public_key = words.next().filter(|key| is_key(key))?.to_owned();
    let endpoint = words.next().filter(|e| *e != "-").unwrap_or_default().to_owned();
    let handshake_age_s = words.next().and_then(|age| age.parse().ok());
    let mut number = || words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    Some(PeerFacts { public_key, endpoint, handshake_age_s, received: number(), sent: number() })
}

/// How a peer answered through the mesh.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Reach {
    /// The peer.
    pub name: HostName,
    /// Milliseconds there and back over IPv4; `None`: no answer.
    pub v4_ms: Option<f64>,
    /// The same over IPv6.
    pub v6_ms: Option<f64>,
    /// How many of a hundred small packets got no answer.
    pub loss_percent: u8,
    /// Whether the largest packets of the mesh get there.
    pub full_size: bool,
}

/// `NAME V4MS V6MS LOSS FULL`
pub fn reach(line: &str) -> Option<Reach> {
    let mut words = line.split(' ');
    let name = HostName::new(words.next()?).ok()?;
    let mut ms = || words.next().and_then(|ms| ms.parse::<f64>().ok()).filter(|ms| ms.is_finite());
    let (v4_ms, v6_ms) = (ms(), ms());
    let loss_percent = words.next().and_then(|l| l.parse().ok()).unwrap_or(100);
    Some(Reach { name, v4_ms, v6_ms, loss_percent, full_size: words.next() == Some("ok") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn lines_are_read() {
        let mut facts = MeshFacts::default();
        for (key, value) in [
            ("engine", "wireguard-go"),
            ("public", KEY),
            ("member", &format!("edge-1 {KEY} 10.86.0.3 fd00::3")),
            ("path", "edge-2 1300"),
            ("path", "edge-3 -"),
            ("peer", &format!("{KEY} - - 5 6")),
        ] {
            add(&mut facts, key, value);
        }
        assert_eq!((facts.engine, facts.public_key.as_deref()), (Engine::WireguardGo, Some(KEY)));
        assert_eq!((facts.members.len(), facts.paths.values().copied().collect::<Vec<_>>()), (1, vec![1300, 0]));
        let peer = &facts.peers[0];
        assert_eq!((peer.endpoint.as_str(), peer.handshake_age_s, peer.received, peer.sent), ("", None, 5, 6));
    }

    #[test]
    fn garbage_gives_missing_facts() {
        let mut facts = MeshFacts::default();
        for (key, value) in
            [("public", "short"), ("member", "a b c d"), ("path", "-x 1"), ("peer", ""), ("mtu", "many"), ("?", "")]
        {
            add(&mut facts, key, value);
        }
        assert_eq!(facts, MeshFacts::default());
        let nothing = reach("edge-1 nan - 100 -").expect("a host's word");
        assert_eq!((nothing.v4_ms, nothing.v6_ms, nothing.loss_percent, nothing.full_size), (None, None, 100, false));
        let well = reach("edge-1 0.4 0.5 0 ok").expect("a host's word");
        assert_eq!((well.v4_ms, well.loss_percent, well.full_size), (Some(0.4), 0, true));
    }
}
