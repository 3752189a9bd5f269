//! The mesh of a definition: what is said when little stands there, and what of all that can stand there.

use roadie_model::definition::{Definition, Peer};
use roadie_model::id::{HostName, ServiceName};
use roadie_model::mesh::{Endpoint, Mesh, NamesMode, Topology};
use roadie_model::parse::{Inputs, SourceFile, parse};
use std::collections::BTreeMap;
use std::time::Duration;

fn definition(text: &str) -> Definition {
    let base = SourceFile { name: "roadie.yaml".into(), text: text.into() };
    let env = |name: &str| (name == "ADDRESS").then(|| "192.0.2.7".to_owned());
    parse(&Inputs { base: &base, overlay: None, env: &env, dir: "/project".into() }).unwrap_or_else(|e| panic!("{text}{e:?}"))
}

fn mesh(text: &str) -> Mesh {
    definition(text).mesh.expect("a mesh")
}

fn name(text: &str) -> HostName {
    HostName::new(text).expect("valid")
}

const HOSTS: &str = "hosts:\n  c: {address: 192.0.2.3, tags: [edge]}\n  a: {address: 192.0.2.1, tags: [edge]}\n  b: {address: 192.0.2.2}\n\
                     services: {s: {hosts: a}}\n";

/// Each value is written out: a test that asked the code would agree with anything.
#[test]
fn every_default_of_the_mesh() {
    let expected = Mesh {
        hosts: vec![name("a"), name("b"), name("c")],
        interface: "roadie0".into(),
        network: "10.86.0.0/16".parse().expect("valid"),
        domain: "mesh.local".into(),
        port: 51820,
        topology: Topology::Full,
        via: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        addresses: BTreeMap::new(),
        names: NamesMode::Hosts,
        keepalive: Duration::from_secs(25),
        mtu: None,
        default_drop: false,
        open: Vec::new(),
    };
    for section in ["true", "\"${NONE:-true}\"", "{}", "{topology: full, names: hosts, hosts: null}", "{hosts: [c, a, b, a]}"] {
        assert_eq!(mesh(&format!("mesh: {section}\n{HOSTS}")), expected, "{section}");
    }
    for none in ["", "mesh: false\n", "mesh: null\n", "mesh: \"${NONE:-false}\"\n"] {
        assert_eq!(definition(&format!("{none}{HOSTS}")).mesh, None, "{none}");
    }
}

#[test]
fn every_key_of_the_mesh() {
    let text = "mesh:\n  hosts: [\"tag:edge\", b]\n  interface: wg-a\n  network: 100.64.0.0/29\n  domain: m.internal\n  port: 5000\n  \
                via: {c: a}\n  endpoints: {a: h.example, b: \"[2001:db8::1]:70\"}\n  addresses: {c: 100.64.0.6}\n  names: none\n  \
                keepalive: 65535s\n  mtu: 1280\n  default_drop: true\n  open: [22, 443]\n";
    let expected = Mesh {
        hosts: vec![name("a"), name("b"), name("c")],
        interface: "wg-a".into(),
        network: "100.64.0.0/29".parse().expect("valid"),
        domain: "m.internal".into(),
        port: 5000,
        topology: Topology::Full,
        via: [(name("c"), name("a"))].into(),
        endpoints: [
            (name("a"), Endpoint { host: "h.example".into(), port: 5000 }),
            (name("b"), Endpoint { host: "2001:db8::1".into(), port: 70 }),
        ]
        .into(),
        addresses: [(name("c"), "100.64.0.6".parse().expect("valid"))].into(),
        names: NamesMode::None,
        keepalive: Duration::from_secs(65535),
        mtu: Some(1280),
        default_drop: true,
        open: vec![22, 443],
    };
    assert_eq!(mesh(&format!("{text}{HOSTS}")), expected);
    let hub = mesh(&format!("mesh: {{topology: {{hub: b}}, mtu: 9000, open: [], default_drop: true}}\n{HOSTS}"));
    assert_eq!((hub.topology, hub.mtu), (Topology::Hub(name("b")), Some(9000)));
}

#[test]
fn hosts_of_the_file_are_those_that_are_named_and_those_of_remote_services() {
    let text = "defaults: {user: u}\nhosts: {b: {address: 192.0.2.2}, a: {address: 192.0.2.1, port: 1}}\nservices:\n  \
                s: {hosts: [b, {address: 192.0.2.3, port: 3}]}\n  t: {hosts: [{address: 192.0.2.3, port: 4}, {address: a}]}\n  \
                l: {runtime: local}\n  d: {runtime: docker, hosts: {address: 192.0.2.9}, build: {type: image, image: i}}\n";
    let told = |d: Definition| d.hosts.into_iter().map(|(n, h)| (n.to_string(), h.port)).collect::<Vec<_>>();
    let expected = [("192.0.2.3".to_owned(), 3), ("a".to_owned(), 1), ("b".to_owned(), 22)];
    assert_eq!(told(definition(text)), expected);
    assert_eq!(told(definition(&format!("mesh: true\n{text}"))), expected);
    assert_eq!(definition(text).hosts[&name("192.0.2.3")].user.as_deref(), Some("u"));
    assert_eq!(mesh(&format!("mesh: true\n{text}")).hosts, [name("192.0.2.3"), name("a"), name("b")]);
    // An inline host is named by its address.
    assert_eq!(mesh(&format!("mesh: {{hosts: [a, 192.0.2.3]}}\n{text}")).hosts, [name("192.0.2.3"), name("a")]);
}

/// Hosts that look like what is refused, and are not.
#[test]
fn what_is_no_mistake() {
    let files = [
        // Dialled elsewhere, or not at all.
        "mesh: {endpoints: {a: 192.0.2.1}}\nhosts: {a: {address: localhost}, b: {address: 192.0.2.2}}\nservices: {s: {hosts: a}}\n",
        "mesh: {via: {a: b}}\nhosts: {a: {address: 127.0.0.1}, b: {address: 192.0.2.2}}\nservices: {s: {hosts: a}}\n",
        // Not in the mesh.
        "mesh: {hosts: [b, c]}\nhosts: {a_b: {address: 127.0.0.1}, b: {address: 192.0.2.2}, c: {address: 192.0.2.3}}\nservices: {s: {hosts: b}}\n",
        // The same machine under both names; a service that has none in the mesh; no names at all.
        "mesh: true\nhosts: {db: {address: 192.0.2.1}, b: {address: 192.0.2.2}}\nservices: {db: {hosts: db}}\n",
        "mesh: true\nhosts: {db: {address: 192.0.2.1}, b: {address: 192.0.2.2}}\nservices: {db: {runtime: local}}\n",
        "mesh: {names: none}\nhosts: {db: {address: 192.0.2.1}, b_: {address: 192.0.2.2}}\nservices: {db: {hosts: [db, b_]}}\n",
        // Addresses are names of hosts, with none in the mesh.
        "mesh: true\nhosts: {192.0.2.1: {address: 192.0.2.1}, \"2001:db8::1\": {address: h}}\nservices: {db: {hosts: {address: a_b}}}\n",
        // Six hosts fit a /29; the network may be as large as private space is.
        "mesh: {network: 10.0.0.0/8}\nhosts: {a: {address: 192.0.2.1}, b: {address: 11.0.0.1}}\nservices: {s: {hosts: a}}\n",
        // A name may begin as keys do that are ignored, and takes variables all the same.
        "mesh: {endpoints: {x-a: \"${ADDRESS}\"}}\nhosts: {x-a: {address: localhost}, b: {address: h}}\nservices: {s: {hosts: b}}\n",
    ];
    for text in files {
        assert!(definition(text).mesh.is_some(), "{text}");
    }
    let filled = mesh(files[files.len() - 1]);
    assert_eq!(filled.endpoints[&name("x-a")], Endpoint { host: "192.0.2.7".into(), port: 51820 });
    let six: String = (1..=6).map(|i| format!("h{i}: {{address: 192.0.2.{i}}}, ")).collect();
    assert_eq!(
        mesh(&format!("mesh: {{network: 10.0.0.0/29}}\nhosts: {{{six}}}\nservices: {{s: {{hosts: h1}}}}\n")).hosts.len(),
        6
    );
}

#[test]
fn names_of_hosts_and_services() {
    let mut mesh = mesh(&format!("mesh: true\n{HOSTS}"));
    let cases = [
        ("Edge-1", Some("edge-1.mesh.local")),
        ("edge.example", Some("edge.example.mesh.local")),
        ("192.0.2.1", None),
        ("2001:db8::1", None),
        ("a_b", None),
        ("a.", None),
        ("a-", None),
    ];
    for (host, expected) in cases {
        assert_eq!(mesh.name_of(&name(host)).as_deref(), expected, "{host}");
    }
    let service = ServiceName::new("db").expect("valid");
    assert_eq!(mesh.name_of_service(&service).as_deref(), Some("db.mesh.local"));
    mesh.names = NamesMode::None;
    assert_eq!((mesh.name_of(&name("edge")), mesh.name_of_service(&service)), (None, None));
}

/// What `from` is told of `to`.
fn told(text: &str, from: &str, to: &str) -> Option<(String, String, Option<u16>)> {
    let service = |name: &str| ServiceName::new(name).expect("valid");
    let peer = definition(text).services[&service(from)].peers.get(&service(to)).cloned();
    peer.map(|Peer { address, addresses, port }| (address, addresses.join(" "), port))
}

#[test]
fn services_are_told_where_the_others_are() {
    let file = |mesh: &str, more: &str| {
        format!(
            "{mesh}hosts:\n  b: {{address: 192.0.2.2}}\n  a: {{address: 192.0.2.1}}\n  out: {{address: 192.0.2.3}}\n\
             services:\n  api: {{hosts: a}}\n  db: {{hosts: [b, a], ports: [5432, 1]}}\n  far: {{hosts: [out, a]}}\n  \
             here: {{runtime: local}}\n  inline: {{hosts: [{{address: 192.0.2.8}}, {{address: 192.0.2.9}}], ports: 9}}\n\
             {more}"
        )
    };
    let is = |mesh: &str, from: &str, to: &str, address: &str, all: &str, port: Option<u16>| {
        let expected = Some((address.to_owned(), all.to_owned(), port));
        assert_eq!(told(&file(mesh, ""), from, to), expected, "{from} of {to} with {mesh}");
    };
    let public = |mesh: &str, from: &str| is(mesh, from, "db", "192.0.2.2", "192.0.2.2 192.0.2.1", Some(5432));
    let private = |mesh: &str, from: &str| is(mesh, from, "db", "db.mesh.local", "b.mesh.local a.mesh.local", Some(5432));
    let some = "mesh: {hosts: [a, b]}\n";
    for (mesh, from) in [("", "api"), ("mesh: {names: none}\n", "api"), (some, "far"), (some, "here"), ("mesh: true\n", "here")] {
        public(mesh, from);
    }
    private("mesh: true\n", "api");
    private("mesh: true\n", "far");
    private(some, "api");
    // Not all of its hosts are in the mesh: its name would not lead to all of it.
    is(some, "api", "far", "192.0.2.3", "192.0.2.3 192.0.2.1", None);
    // No host has a name, or one has.
    is("mesh: true\n", "api", "inline", "inline.mesh.local", "192.0.2.8 192.0.2.9", Some(9));
    let mixed = file("mesh: true\n", "  mixed: {hosts: [{address: 192.0.2.8}, out]}\n");
    assert_eq!(told(&mixed, "api", "mixed"), Some(("mixed.mesh.local".into(), "out.mesh.local".into(), None)));
    // Neither itself, nor what runs here.
    assert_eq!((told(&file("", ""), "db", "db"), told(&file("", ""), "db", "here")), (None, None));
}

#[test]
fn in_a_large_file_services_are_told_of_those_they_depend_on() {
    let services = |count: usize| {
        let list: String = (0..count).map(|i| format!("  s{i}: {{hosts: a, depends_on: s{}}}\n", i + 1)).collect();
        definition(&format!("hosts: {{a: {{address: 192.0.2.1}}}}\nservices:\n{list}  s{count}: {{hosts: a}}\n")).services
    };
    let peers = |count: usize| services(count).values().map(|s| s.peers.len()).collect::<Vec<_>>();
    assert!(peers(222).iter().all(|n| *n == 222));
    assert_eq!((peers(223).iter().sum::<usize>(), peers(223).iter().max()), (223, Some(&1)));
}

#[test]
fn the_example_of_the_reference_parses_as_it_stands() {
    let reference = include_str!("../../docs/definition.md");
    let example = reference.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let expected = ("postgres.mesh.local".to_owned(), "edge-1.mesh.local".to_owned(), Some(5432));
    assert_eq!(told(example, "api", "postgres"), Some(expected));
}
