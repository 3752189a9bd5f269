//! The `mesh` section as it stands. What needs the hosts of the file is asked in `members`.

use super::decode::{Fields, Word, string, wrong};
use super::keys::{MESH, TOPOLOGY};
use super::problems::Problems;
use super::tree::{Key, Kind, Node, Place, Scalar, truth};
use crate::id::HostName;
use crate::mesh::{Endpoint, Mesh, NamesMode, Topology, is_dns_name};
use core::net::{Ipv4Addr, Ipv6Addr};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::time::Duration;

const NAMES: [(&str, NamesMode); 2] = [("hosts", NamesMode::Hosts), ("none", NamesMode::None)];

/// Space that nobody on the internet has (RFC 1918, RFC 6598).
const PRIVATE: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
];
const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 86, 0, 0), 16);

/// What one host is given: its name, the value as it stands, and as it was read.
pub struct Given<T> {
    pub host: Word,
    pub word: Word,
    pub value: T,
}

/// The section; names of hosts are not looked up yet.
pub struct RawMesh {
    /// Where the section begins.
    pub place: Place,
    pub hosts: Option<(Place, Vec<Word>)>,
    /// Where the network stands, and the network; `None` when it was none.
    pub network: Option<(Place, Ipv4Net)>,
    pub hub: Option<Word>,
    /// Where `via` stands.
    pub via_key: Option<Place>,
    pub via: Vec<Given<()>>,
    pub endpoints: Vec<Given<Endpoint>>,
    pub addresses: Vec<Given<Ipv4Addr>>,
    /// Everything else; empty where a host is named.
    pub mesh: Mesh,
}

/// `None` when no mesh is wanted, or nobody can say which.
pub fn decode(place: Place, node: &Node, problems: &mut Problems) -> Option<RawMesh> {
    let on = node.scalar().filter(|s| s.may_be_typed()).and_then(|s| truth(&s.text));
    let fields = match (on, &node.kind) {
        (Some(false), _) => return None,
        (Some(true), _) => Fields::none(place),
        (None, Kind::Map(_)) => Fields::open(node, "`mesh`", MESH, problems)?,
        (None, _) => return wrong(node, "mesh", "true, false or a map", problems),
    };
    let mesh = settings(&fields, problems);
    let network = network(&fields, place, problems);
    Some(RawMesh {
        place,
        hosts: fields.get("hosts").map(|n| (n.place, fields.names("hosts", problems))),
        network,
        hub: hub(&fields, problems),
        via_key: fields.entry("via").map(|(key, _)| key.place),
        via: given(&fields, "via", |_| Some(()), "", problems),
        endpoints: given(&fields, "endpoints", |text| endpoint(text, mesh.port), ENDPOINT, problems),
        addresses: given(&fields, "addresses", |text| text.parse().ok(), "an IPv4 address: `10.86.0.7`", problems),
        mesh,
    })
}

/// What no host is named in.
fn settings(fields: &Fields<'_>, problems: &mut Problems) -> Mesh {
    let interface =
        checked(fields, "interface", is_interface, "1 to 15 characters a-z, 0-9 and -, starting with a letter", problems);
    let domain = checked(fields, "domain", is_domain, "labels of a-z, 0-9 and - with dots between them: `mesh.local`", problems);
    let why = "IPv6 needs 1280, and no device carries more than 9000";
    let mtu = fields.number_because("mtu", (1280, 9000), why, problems);
    Mesh {
        hosts: Vec::new(),
        interface: interface.unwrap_or_else(|| "roadie0".into()),
        network: NETWORK,
        domain: domain.unwrap_or_else(|| "mesh.local".into()),
        port: fields.port("port", problems).unwrap_or(51820),
        topology: Topology::Full,
        via: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        addresses: BTreeMap::new(),
        names: fields.choice("names", &NAMES, problems).ok().flatten().unwrap_or(NamesMode::Hosts),
        keepalive: keepalive(fields, problems).unwrap_or(Duration::from_secs(25)),
        mtu: mtu.and_then(|n| u16::try_from(n).ok()),
        default_drop: fields.bool("default_drop", problems).unwrap_or(false),
        open: open(fields, problems),
    }
}

/// Text that follows a rule.
fn checked(fields: &Fields<'_>, name: &str, rule: fn(&str) -> bool, hint: &str, problems: &mut Problems) -> Option<String> {
    let node = fields.get(name)?;
    let scalar = string(node, name, problems)?;
    if !rule(&scalar.text) {
        problems.add(node.place, format!("`{name}` cannot be `{}`", scalar.shown()), Some(hint.to_owned()));
        return None;
    }
    Some(scalar.text.clone())
}

/// The kernel takes 15 characters, and shells and nft take these without quotes.
fn is_interface(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=15).contains(&text.len()) && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(letter)
}

/// Short enough for the longest name of a service before it. A number at the end would make an address of it to some readers.
fn is_domain(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or_default();
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    text.len() <= 200 && lower && is_dns_name(text) && !last.bytes().all(|b| b.is_ascii_digit())
}

fn network(fields: &Fields<'_>, place: Place, problems: &mut Problems) -> Option<(Place, Ipv4Net)> {
    let Some(node) = fields.get("network") else { return Some((place, NETWORK)) };
    let scalar = string(node, "network", problems)?;
    let mut refuse = |message: &str, hint: String| {
        problems.add(node.place, format!("`{}` {message}", scalar.shown()), Some(hint));
        None
    };
    let Some(network) = net(&scalar.text) else {
        return refuse("is not an IPv4 network", "an address, a slash and the length of the prefix: `10.86.0.0/16`".into());
    };
    if !(8..=29).contains(&network.prefix_len()) {
        return refuse("has a prefix that is not 8 to 29 bits long", "write `10.86.0.0/16`".into());
    }
    if network.trunc() != network {
        // What a variable says is not told, neither is what follows from it.
        let exact = scalar.written.is_none().then(|| format!("write `{}`", network.trunc()));
        return refuse("has bits set behind its prefix", exact.unwrap_or_else(|| "write its first address".into()));
    }
    if !PRIVATE.iter().any(|private| private.contains(&network)) {
        let all = PRIVATE.map(|p| p.to_string()).join(", ");
        return refuse("is not private", format!("choose it from {all}"));
    }
    Some((node.place, network))
}

/// As strict as the standard library: `ipnet` takes leading zeros.
fn net(text: &str) -> Option<Ipv4Net> {
    let (address, prefix) = text.split_once('/')?;
    let digits = (1..=2).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_digit()) && !prefix.starts_with('0');
    Ipv4Net::new(address.parse().ok()?, digits.then(|| prefix.parse().ok())??).ok()
}

fn hub(fields: &Fields<'_>, problems: &mut Problems) -> Option<Word> {
    let node = fields.get("topology")?;
    if let Kind::Map(_) = &node.kind {
        let fields = Fields::open(node, "`topology`", TOPOLOGY, problems)?;
        let Some(hub) = fields.get("hub") else {
            problems.add(node.place, "missing field `hub`", Some(TOPOLOGIES.to_owned()));
            return None;
        };
        return Some(Word { place: hub.place, scalar: string(hub, "hub", problems)?.clone() });
    }
    let word = string(node, "topology", problems)?;
    if word.text != "full" {
        problems.add(node.place, format!("`topology` cannot be `{}`", word.shown()), Some(TOPOLOGIES.to_owned()));
    }
    None
}

const TOPOLOGIES: &str = "write `topology: full`, or `topology: {hub: NAME}`";

/// A map from hosts to text.
fn given<T>(
    fields: &Fields<'_>,
    name: &str,
    read: impl Fn(&str) -> Option<T>,
    hint: &str,
    problems: &mut Problems,
) -> Vec<Given<T>> {
    let mut all = Vec::new();
    for (key, node) in fields.entries_of(name, problems) {
        let Some(scalar) = string(node, name, problems) else { continue };
        match read(&scalar.text) {
            Some(value) => all.push(Given { host: word(key), word: Word { place: node.place, scalar: scalar.clone() }, value }),
            None => problems.add(node.place, format!("`{name}` cannot be `{}`", scalar.shown()), Some(hint.to_owned())),
        }
    }
    all
}

fn word(key: &Key) -> Word {
    Word { place: key.place, scalar: Scalar { text: key.name.clone(), plain: true, written: None } }
}

const ENDPOINT: &str = "write `HOST`, `HOST:PORT`, or `[ADDRESS]:PORT` for IPv6, in quotes";

/// `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`. Without brackets nobody can say where an IPv6 address ends.
fn endpoint(text: &str, usual: u16) -> Option<Endpoint> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once(']').filter(|(host, _)| host.parse::<Ipv6Addr>().is_ok())?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let number = |p: &str| p.bytes().all(|b| b.is_ascii_digit()).then(|| p.parse::<u16>().ok()).flatten().filter(|p| *p > 0);
    let port = if rest.is_empty() { usual } else { number(rest.strip_prefix(':')?)? };
    HostName::new(host).is_ok().then(|| Endpoint { host: host.to_owned(), port })
}

/// WireGuard counts whole seconds in 16 bits.
fn keepalive(fields: &Fields<'_>, problems: &mut Problems) -> Option<Duration> {
    let most = (Duration::from_secs(65535), "65535s");
    let keepalive = fields.duration_within("keepalive", Duration::from_secs(1), most, problems)?;
    if keepalive.subsec_nanos() > 0 {
        let place = fields.get("keepalive").map_or(fields.place, |n| n.place);
        problems.add(place, "`keepalive` must be whole seconds", Some("write `25s`".to_owned()));
        return None;
    }
    Some(keepalive)
}

fn open(fields: &Fields<'_>, problems: &mut Problems) -> Vec<u16> {
    let drop = fields.get("default_drop").and_then(Node::scalar).and_then(|s| truth(&s.text));
    let closed = fields.get("default_drop").is_some() && drop != Some(false);
    if let (Some((key, _)), false) = (fields.entry("open"), closed) {
        let hint = "add `default_drop: true`, or take `open` away".to_owned();
        problems.add(key.place, "`open` is of no use where nothing is closed", Some(hint));
    }
    fields.ports("open", problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_host_and_perhaps_a_port() {
        let read = |text: &str| endpoint(text, 7).map(|e| format!("{} {}", e.host, e.port));
        let good = [
            ("h", "h 7"),
            ("h.example:1", "h.example 1"),
            ("192.0.2.1:65535", "192.0.2.1 65535"),
            ("[2001:db8::1]:2", "2001:db8::1 2"),
            ("[::1]", "::1 7"),
        ];
        for (text, expected) in good {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
        for bad in
            ["", ":1", "h:", "h:0", "h:65536", "h:+1", "h:1:2", "::1", "[h]:1", "[::1", "[::1]1", "[]:1", "h h", "u@h", "-h"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks_are_read_strictly() {
        for bad in ["10.0.0.0", "10.0.0.0/", "010.0.0.0/8", "10.0.0.0/08", "10.0.0.0/+8", "10.0.0.0/33", "10.0.0/8", "::/8", "/8"]
        {
            assert_eq!(net(bad), None, "{bad}");
        }
        assert_eq!(net("10.0.0.0/8").map(|n| n.to_string()).as_deref(), Some("10.0.0.0/8"));
    }

    #[test]
    fn names_of_interfaces_and_domains() {
        for good in ["a", "roadie0", "wg-a", "abcdefghijklmno"] {
            assert!(is_interface(good), "{good}");
        }
        for bad in ["", "0a", "-a", "A", "a_b", "a b", "a/b", "abcdefghijklmnop"] {
            assert!(!is_interface(bad), "{bad}");
        }
        for good in ["local", "mesh.local", "a-1.b2"] {
            assert!(is_domain(good), "{good}");
        }
        let long = "a.".repeat(101) + "a";
        for bad in ["", ".", "a.", ".a", "a..b", "A.b", "-a.b", "a-.b", "a_b", "a.1", "1", &long, &"a".repeat(64)] {
            assert!(!is_domain(bad), "{bad}");
        }
    }
}
