//! The mesh of a definition: what is said when little stands there, and what of all that can stand there.

use roadie_model::definition::Definition;
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
