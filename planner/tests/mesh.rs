//! The plans of a mesh: addresses that stay, tunnels that fit each other from both ends, and what is refused beforehand.

use ipnet::{Ipv4Net, Ipv6Net};
use roadie_model::definition::{Host, Service};
use roadie_model::facts::{HostFacts, ReleaseFacts, ReleaseState, ServiceState};
use roadie_model::id::{HostName, PackageId, ServiceName};
use roadie_model::mesh::{Endpoint, Engine, Member, Mesh, MeshFacts, NamesMode, Topology};
use roadie_model::plan::{Action, HostPlan, Undo};
use roadie_planner::{MeshHost, MeshInput, MeshPlan, MeshRefusal, departed, plan_mesh, plan_mesh_rollback, unmeasured};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn name(text: &str) -> HostName {
    HostName::new(text).expect("a host name")
}

fn key(number: usize) -> String {
    format!("{number:0>43}=")
}

/// A fleet with a mesh, as a definition and its hosts' facts.
#[derive(Clone)]
struct Fleet {
    mesh: Mesh,
    services: BTreeMap<ServiceName, Service>,
    hosts: BTreeMap<HostName, Host>,
    facts: BTreeMap<HostName, (HostFacts, MeshFacts)>,
    rotating: BTreeMap<HostName, String>,
}

impl Fleet {
    fn new(count: usize) -> Self {
        let names: Vec<HostName> = (1..=count).map(|i| name(&format!("edge-{i}"))).collect();
        let mesh = Mesh {
            hosts: names.clone(),
            interface: "roadie0".into(),
            network: "10.86.0.0/16".parse().expect("a network"),
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
        let host = |(i, n): (usize, &HostName)| {
            (n.clone(), Host { name: n.clone(), address: format!("192.0.2.{}", i + 1), local: false, ..Host::local() })
        };
        let facts = |(i, n): (usize, &HostName)| {
            let facts = HostFacts { systemd: Some(252), root: "/opt/roadie/mesh.roadie0".into(), ..HostFacts::default() };
            let mesh = MeshFacts { engine: Engine::Kernel, public_key: Some(key(i + 1)), ..MeshFacts::default() };
            (n.clone(), (facts, mesh))
        };
        Self {
            mesh,
            services: BTreeMap::new(),
            hosts: names.iter().enumerate().map(host).collect(),
            facts: names.iter().enumerate().map(facts).collect(),
            rotating: BTreeMap::new(),
        }
    }

    fn service(&mut self, service: &str, hosts: &[&str], ports: &[u16], depends_on: &[&str]) {
        let id = |s: &str| ServiceName::new(s).expect("a service name");
        let of = hosts.iter().map(|h| self.hosts[&name(h)].clone()).collect();
        let made = Service {
            name: id(service),
            ports: ports.to_vec(),
            depends_on: depends_on.iter().map(|s| id(s)).collect(),
            ..Service::of_mesh(&self.mesh, of)
        };
        self.services.insert(id(service), made);
    }

    fn with<T>(&self, work: impl FnOnce(&MeshInput<'_>) -> T) -> T {
        let hosts: Vec<MeshHost<'_>> =
            self.facts.iter().map(|(n, (facts, mesh))| MeshHost { host: &self.hosts[n], facts, mesh }).collect();
        work(&MeshInput {
            mesh: &self.mesh,
            services: &self.services,
            all: &self.hosts,
            hosts: &hosts,
            rotating: &self.rotating,
            fresh_v6: "fd12:3456:789a::/48".parse::<Ipv6Net>().expect("a network"),
        })
    }

    fn plan(&self) -> MeshPlan {
        self.with(plan_mesh).expect("a plan")
    }

    fn refusals(&self) -> Vec<MeshRefusal> {
        self.with(plan_mesh).expect_err("refused")
    }

    /// The fleet as it is when `plan` was carried out.
    fn after(&self, plan: &MeshPlan) -> Self {
        let mut after = self.clone();
        for host in &plan.hosts {
            let (facts, mesh) = after.facts.get_mut(&host.host).expect("observed");
            let id = host.release.clone().expect("a release");
            facts.service.state = ServiceState::Running;
            facts.current = Some(id.clone());
            facts.epoch += 1;
            facts.releases.insert(
                0,
                ReleaseFacts {
                    package: PackageId::new(id.as_str()).expect("an id"),
                    id,
                    version: host.version.clone(),
                    state: ReleaseState::Proven,
                    epoch: facts.epoch,
                    changed_at: 0,
                    complete: true,
                    health: None,
                },
            );
            mesh.members.clone_from(&plan.members);
            if let Some(key) = self.rotating.get(&host.host) {
                mesh.public_key = Some(key.clone());
            }
        }
        after.rotating.clear();
        after
    }
}

/// What a host's script says.
#[derive(Debug)]
struct Told {
    text: String,
    peers: Vec<(HostName, String, String, u32, BTreeSet<String>)>,
}

fn told(plan: &HostPlan) -> Told {
    let text = plan.rendered.as_ref().expect("rendered").run.reveal().to_owned();
    let block = block(&text, "PEERS");
    let peers = block
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let allowed = words[4].split(',').map(str::to_owned).collect();
            (name(words[0]), words[1].into(), words[2].into(), words[3].parse().expect("seconds"), allowed)
        })
        .collect();
    Told { text, peers }
}

/// The value of an assignment in single quotes.
fn block(text: &str, variable: &str) -> String {
    let begin = text.find(&format!("\n{variable}=")).unwrap_or_else(|| panic!("no {variable}")) + variable.len() + 2;
    let rest = &text[begin..];
    match rest.strip_prefix('\'') {
        Some(quoted) => quoted[..quoted.find('\'').expect("closed")].to_owned(),
        None => rest.lines().next().unwrap_or_default().to_owned(),
    }
}

fn addresses(plan: &MeshPlan) -> BTreeMap<HostName, (std::net::Ipv4Addr, std::net::Ipv6Addr)> {
    plan.members.iter().map(|m| (m.name.clone(), (m.v4, m.v6))).collect()
}

#[test]
fn everybody_reaches_everybody_whatever_the_shape() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..400 {
        let mut fleet = Fleet::new(random.usize(2..9));
        let names = fleet.mesh.hosts.clone();
        if random.u8(0..3) == 0 {
            fleet.mesh.topology = Topology::Hub(names[random.usize(0..names.len())].clone());
        } else {
            let hub_count = random.usize(1..=names.len());
            for hidden in &names[hub_count..] {
                fleet.mesh.via.insert(hidden.clone(), names[random.usize(0..hub_count)].clone());
            }
        }
        let plan = fleet.plan();
        let told: BTreeMap<HostName, Told> = plan.hosts.iter().map(|p| (p.host.clone(), told(p))).collect();
        for (host, said) in &told {
            let all: Vec<&String> = said.peers.iter().flat_map(|p| &p.4).collect();
            let distinct: BTreeSet<&String> = all.iter().copied().collect();
            assert_eq!(all.len(), distinct.len(), "seed {seed}, round {round}: {host} has an address at two peers");
        }
        for from in &names {
            for to in names.iter().filter(|n| *n != from) {
                travels(&told, &plan, from, to);
            }
        }
    }
}

/// Follows a packet: at each hop the next is whoever has the address, and takes it only if the sender's is allowed from there.
fn travels(told: &BTreeMap<HostName, Told>, plan: &MeshPlan, from: &HostName, to: &HostName) {
    let address = |n: &HostName| format!("{}/32", addresses(plan)[n].0);
    let (source, target) = (address(from), address(to));
    let mut at = from.clone();
    for _ in 0..3 {
        let next = told[&at].peers.iter().find(|p| p.4.contains(&target)).unwrap_or_else(|| panic!("{at} has no way to {to}"));
        let next = next.0.clone();
        let back = told[&next].peers.iter().find(|p| p.0 == at).unwrap_or_else(|| panic!("{next} does not know {at}"));
        assert!(back.4.contains(&source), "{next} refuses {from}'s packets from {at}");
        let (dials, dialled_back) = (&told[&at].peers.iter().find(|p| p.0 == next).expect("found").2, &back.2);
        assert!(dials != "-" || dialled_back != "-", "neither {at} nor {next} dials");
        if next == *to {
            return;
        }
        assert_eq!(block(&told[&next].text, "FORWARD"), "1", "{next} does not pass packets on");
        at = next;
    }
    panic!("{from} does not reach {to}");
}

#[test]
fn addresses_stay_when_hosts_come_and_go_and_keys_change() {
    let fleet = Fleet::new(5);
    let before = addresses(&fleet.plan());
    assert_eq!(before.len(), 5);
    let distinct: BTreeSet<_> = before.values().map(|a| a.0).collect();
    assert_eq!(distinct.len(), 5);
    let mut after = fleet.after(&fleet.plan());
    // One leaves, one comes, one has a new key, and the order is another.
    after.mesh.hosts.retain(|h| h.as_str() != "edge-2");
    let (gone, _) = (after.facts.remove(&name("edge-2")), after.hosts.get(&name("edge-2")));
    assert!(gone.is_some());
    let newcomer = name("another");
    after.mesh.hosts.push(newcomer.clone());
    after
        .hosts
        .insert(newcomer.clone(), Host { name: newcomer.clone(), address: "192.0.2.99".into(), local: false, ..Host::local() });
    let (facts, mesh) = Fleet::new(1).facts.remove(&name("edge-1")).expect("a host");
    after.facts.insert(newcomer.clone(), (facts, MeshFacts { public_key: Some(key(99)), ..mesh }));
    after.rotating.insert(name("edge-3"), key(33));
    assert_eq!(after.with(departed), [name("edge-2")].into());
    let plan = after.plan();
    let now = addresses(&plan);
    for host in ["edge-1", "edge-3", "edge-4", "edge-5"].map(name) {
        assert_eq!(now[&host], before[&host], "{host}");
    }
    assert!(now.contains_key(&newcomer) && !now.contains_key(&name("edge-2")));
    let said = told(plan.hosts.iter().find(|p| p.host.as_str() == "edge-1").expect("planned"));
    assert!(said.peers.iter().any(|p| p.1 == key(33)), "the new key is told");
    assert!(!said.text.contains(&key(2)), "who left is forgotten");
}

#[test]
fn fixed_addresses_are_taken_and_never_given_twice() {
    let mut fleet = Fleet::new(3);
    fleet.mesh.addresses.insert(name("edge-2"), "10.86.7.7".parse().expect("an address"));
    assert_eq!(addresses(&fleet.plan())[&name("edge-2")].0.to_string(), "10.86.7.7");
    // The address that another host has by its record.
    let mut after = fleet.after(&fleet.plan());
    let of_three = addresses(&fleet.plan())[&name("edge-3")].0;
    after.mesh.addresses.insert(name("edge-1"), of_three);
    let refusals = after.refusals();
    assert!(refusals[0].1.problem.contains(&of_three.to_string()) && refusals[0].1.problem.contains("edge-3"), "{refusals:?}");
}

#[test]
fn a_network_that_is_full_says_so_and_one_that_just_fits_does() {
    let mut fleet = Fleet::new(6);
    fleet.mesh.network = "10.86.0.0/29".parse::<Ipv4Net>().expect("a network");
    let found: BTreeSet<_> = addresses(&fleet.plan()).values().map(|a| a.0).collect();
    assert_eq!(found.len(), 6);
    let mut fleet = Fleet::new(7);
    fleet.mesh.network = "10.86.0.0/29".parse().expect("a network");
    assert!(fleet.refusals()[0].1.problem.contains("no address is left in 10.86.0.0/29"));
}

#[test]
fn nothing_changed_means_no_step_and_drift_means_taking_it_in_again() {
    let fleet = Fleet::new(3);
    let first = fleet.plan();
    assert!(first.hosts.iter().all(|p| !p.is_noop()));
    let mut after = fleet.after(&first);
    let again = after.plan();
    assert!(again.hosts.iter().all(HostPlan::is_noop), "{:?}", again.hosts[0].steps);
    assert_eq!(
        again.hosts.iter().map(|p| &p.release).collect::<Vec<_>>(),
        first.hosts.iter().map(|p| &p.release).collect::<Vec<_>>()
    );
    after.facts.get_mut(&name("edge-2")).expect("there").1.drift.push("peer edge-1 is missing".into());
    let mended = after.plan();
    let busy: Vec<&str> = mended.hosts.iter().filter(|p| !p.is_noop()).map(|p| p.host.as_str()).collect();
    assert_eq!(busy, ["edge-2"]);
    let plan = mended.hosts.iter().find(|p| !p.is_noop()).expect("one");
    assert!(plan.steps.iter().any(|s| matches!(s.action, Action::Reload { .. })));
    assert!(!plan.steps.iter().any(|s| matches!(s.action, Action::Switch { .. } | Action::Unpack { .. })));
}

#[test]
fn the_way_back_is_in_the_plan_and_tunnels_stay_up_on_it() {
    let fleet = Fleet::new(3);
    let mut after = fleet.after(&fleet.plan());
    after.mesh.port = 51999;
    let plan = &after.plan().hosts[0];
    let undo = |wanted: fn(&Action) -> bool| plan.steps.iter().find(|s| wanted(&s.action)).map(|s| s.undo.clone());
    assert_eq!(undo(|a| matches!(a, Action::Reload { .. })), Some(Undo::Nothing), "stopping it would end all tunnels");
    let armed = undo(|a| matches!(a, Action::ArmGuard { .. }));
    assert!(matches!(armed, Some(Undo::By { step: Action::Restore { .. } })), "{armed:?}");
    let order: Vec<usize> = [
        |a: &Action| matches!(a, Action::ArmGuard { .. }),
        |a: &Action| matches!(a, Action::Switch { .. }),
        |a: &Action| matches!(a, Action::Reload { .. }),
        |a: &Action| matches!(a, Action::CheckPeers { .. }),
        |a: &Action| matches!(a, Action::Confirm { .. }),
    ]
    .iter()
    .map(|wanted| plan.steps.iter().position(|s| wanted(&s.action)).expect("is there"))
    .collect();
    assert!(order.is_sorted(), "{order:?}");
    // The first mesh of a host has nothing to go back to but none.
    let first = &fleet.plan().hosts[0];
    let restart = first.steps.iter().find(|s| matches!(s.action, Action::Reload { .. })).expect("is there");
    assert_eq!(restart.undo, Undo::By { step: Action::Stop });
}

#[test]
fn who_gets_a_new_key_waits_for_the_others() {
    let fleet = Fleet::new(3);
    let mut after = fleet.after(&fleet.plan());
    after.rotating.insert(name("edge-2"), key(22));
    let plan = after.plan();
    for host in &plan.hosts {
        let waits = host.steps.iter().position(|s| matches!(s.action, Action::AwaitPeers));
        let takes = host.steps.iter().position(|s| matches!(s.action, Action::Reload { .. }));
        match host.host.as_str() {
            "edge-2" => assert!(waits.expect("waits") < takes.expect("takes it in")),
            _ => assert_eq!(waits, None),
        }
    }
    let back = after.after(&plan);
    let (facts, mesh) = &back.facts[&name("edge-2")];
    let generation = after.facts[&name("edge-2")].0.releases[0].version.clone();
    let at = MeshHost { host: &back.hosts[&name("edge-2")], facts, mesh };
    let rollback = plan_mesh_rollback(&back.mesh, at, Vec::new(), &generation).expect("a plan");
    assert_eq!(rollback.release, after.facts[&name("edge-2")].0.current);
    assert!(plan_mesh_rollback(&back.mesh, at, Vec::new(), "no such").is_none());
}

#[test]
fn who_cannot_be_dialled_goes_when_the_others_are_ready() {
    let mut fleet = Fleet::new(3);
    fleet.mesh.via.insert(name("edge-3"), name("edge-1"));
    let waits = |plan: &HostPlan| plan.steps.iter().any(|s| matches!(s.action, Action::AwaitPeers));
    assert_eq!(fleet.plan().hosts.iter().map(waits).collect::<Vec<_>>(), [false, false, true]);
}

#[test]
fn packets_are_as_large_as_their_own_way_carries() {
    /// The interface's MTU, and name and size of each narrower way.
    fn sizes(fleet: &Fleet, host: &str) -> String {
        let plan = fleet.plan();
        let said = told(plan.hosts.iter().find(|p| p.host.as_str() == host).expect("planned")).text;
        let narrow = block(&said, "NARROW");
        let words = narrow.lines().map(|l| l.split(' ').collect::<Vec<_>>());
        let ways = words.map(|w| format!(" {} {}", w[0], w[3])).collect::<String>();
        format!("{}{ways}", block(&said, "MTU"))
    }
    let mut fleet = Fleet::new(3);
    assert_eq!(sizes(&fleet, "edge-1"), "1420");
    // One side measured it; both are told, and nobody else is slowed down.
    fleet.facts.get_mut(&name("edge-1")).expect("there").1.paths = [(name("edge-2"), 1300), (name("edge-3"), 1500)].into();
    assert_eq!(sizes(&fleet, "edge-1"), "1420 edge-2 1220");
    assert_eq!(sizes(&fleet, "edge-2"), "1420 edge-1 1220");
    assert_eq!(sizes(&fleet, "edge-3"), "1420");
    // What could not be measured decides nothing.
    fleet.facts.get_mut(&name("edge-3")).expect("there").1.paths = [(name("edge-2"), 0)].into();
    assert_eq!(sizes(&fleet, "edge-3"), "1420");
    // Behind a hub, the far half of the way counts too. An interface has at least what IPv6 needs.
    fleet.mesh.topology = Topology::Hub(name("edge-1"));
    assert_eq!(sizes(&fleet, "edge-3"), "1420 edge-2 1220");
    assert_eq!(sizes(&fleet, "edge-2"), "1280 edge-1 1220 edge-3 1220");
    fleet.mesh.mtu = Some(1380);
    assert_eq!(sizes(&fleet, "edge-2"), "1380");
    assert!(fleet.with(unmeasured).is_empty());
}

#[test]
fn only_unknown_paths_of_dialled_peers_are_measured() {
    let mut fleet = Fleet::new(3);
    fleet.mesh.via.insert(name("edge-3"), name("edge-1"));
    fleet.facts.get_mut(&name("edge-1")).expect("there").1.paths = [(name("edge-2"), 1500)].into();
    let asks = fleet.with(unmeasured);
    assert_eq!(asks.get(&name("edge-1")), None, "edge-2 is known, edge-3 is not dialled");
    let peers: Vec<&str> = asks[&name("edge-3")].iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(peers, ["edge-1", "edge-2"]);
}

#[test]
fn endpoints_are_written_as_wireguard_reads_them() {
    let mut fleet = Fleet::new(3);
    fleet.hosts.get_mut(&name("edge-1")).expect("there").address = "2001:db8::1".into();
    fleet.mesh.endpoints.insert(name("edge-2"), Endpoint { host: "gate.example.org".into(), port: 4000 });
    let plan = fleet.plan();
    let said = told(plan.hosts.iter().find(|p| p.host.as_str() == "edge-3").expect("planned"));
    let endpoints: Vec<&str> = said.peers.iter().map(|p| p.2.as_str()).collect();
    assert_eq!(endpoints, ["[2001:db8::1]:51820", "gate.example.org:4000"]);
    assert!(said.peers.iter().all(|p| p.3 == 0), "nobody hides, so nobody keeps a way open");
}

#[test]
fn names_lead_to_hosts_and_to_whoever_runs_a_service() {
    let mut fleet = Fleet::new(3);
    fleet.service("postgres", &["edge-2"], &[5432], &[]);
    fleet.service("api", &["edge-1", "edge-3"], &[8080], &["postgres"]);
    let plan = fleet.plan();
    let names = block(&told(&plan.hosts[0]).text, "NAMES");
    let of = |host: &str| addresses(&plan)[&name(host)];
    assert!(names.contains(&format!("{} edge-2.mesh.local postgres.mesh.local\n", of("edge-2").0)), "{names}");
    assert!(names.contains(&format!("{} edge-2.mesh.local postgres.mesh.local\n", of("edge-2").1)), "{names}");
    assert_eq!(names.matches("api.mesh.local").count(), 4, "{names}");
    fleet.mesh.names = NamesMode::None;
    assert_eq!(block(&told(&fleet.plan().hosts[0]).text, "NAMES"), "");
}

#[test]
fn a_closed_mesh_opens_what_dependents_need_and_nothing_else() {
    let mut fleet = Fleet::new(3);
    fleet.service("postgres", &["edge-2"], &[5432], &[]);
    fleet.service("api", &["edge-1"], &[8080], &["postgres"]);
    assert_eq!(block(&told(&fleet.plan().hosts[1]).text, "RULES"), "");
    fleet.mesh.default_drop = true;
    fleet.mesh.open = vec![22];
    let plan = fleet.plan();
    let rules = block(&told(&plan.hosts[1]).text, "RULES");
    let api = addresses(&plan)[&name("edge-1")];
    assert!(rules.contains(&format!("ip saddr {{ {} }} tcp dport {{ 5432 }} accept", api.0)), "{rules}");
    assert!(rules.contains(&format!("ip6 saddr {{ {} }} tcp dport {{ 5432 }} accept", api.1)), "{rules}");
    assert!(rules.contains("tcp dport { 22 } accept") && rules.trim_end().ends_with("drop\n  }\n}"), "{rules}");
    let api_host = block(&told(&plan.hosts[0]).text, "RULES");
    assert!(!api_host.contains("8080"), "nobody depends on it: {api_host}");
}

#[test]
fn hosts_that_cannot_take_part_are_refused_with_what_to_do() {
    type Spoil = fn(&mut HostFacts, &mut MeshFacts);
    let cases: [(Spoil, &str, &str); 9] = [
        (|_, m| m.missing.push("wg".into()), "`wg`", "apt-get install wireguard-tools"),
        (|_, m| m.missing.push("ip".into()), "`ip`", "apt-get install iproute2"),
        (|_, m| m.engine = Engine::Absent, "neither the kernel nor wireguard-go", "wireguard-go"),
        (|_, m| m.engine = Engine::NoTun, "/dev/net/tun", "tun"),
        (|_, m| m.taken.push("UDP port 51820 belongs to `wg0`".into()), "belongs to `wg0`", "mesh.port"),
        (|_, m| m.routes.push("10.86.3.0/24 eth1".into()), "overlaps with 10.86.3.0/24", "mesh.network"),
        (|_, m| m.routes.push("10.0.0.0/8 eth1".into()), "overlaps with 10.0.0.0/8", "mesh.network"),
        (|_, m| m.routes.push("10.86.9.9 eth1".into()), "overlaps with 10.86.9.9", "mesh.network"),
        (|f, _| f.systemd = None, "systemd", "mesh.hosts"),
    ];
    for (spoil, problem, hint) in cases {
        let mut fleet = Fleet::new(2);
        let (facts, mesh) = fleet.facts.get_mut(&name("edge-2")).expect("there");
        spoil(facts, mesh);
        let refusals = fleet.refusals();
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        assert_eq!(refusals[0].0.as_str(), "edge-2");
        assert!(refusals[0].1.problem.contains(problem) && refusals[0].1.hint.contains(hint), "{refusals:?}");
    }
    let mut fleet = Fleet::new(2);
    fleet.facts.get_mut(&name("edge-1")).expect("there").1.missing.push("nft".into());
    assert!(fleet.with(plan_mesh).is_ok(), "nft is only needed for rules");
    fleet.mesh.default_drop = true;
    assert!(fleet.refusals()[0].1.problem.contains("`nft`"));
    // Its neighbours' networks are no concern of the mesh.
    let mut fleet = Fleet::new(2);
    fleet.facts.get_mut(&name("edge-1")).expect("there").1.routes = vec!["10.85.0.0/16 eth0".into(), "garbage".into()];
    assert!(fleet.with(plan_mesh).is_ok());
}

#[test]
fn a_host_that_cannot_be_reached_stays_known_by_the_others_records() {
    let fleet = Fleet::new(3);
    let mut after = fleet.after(&fleet.plan());
    after.facts.remove(&name("edge-3"));
    let plan = after.plan();
    assert!(plan.hosts.iter().all(HostPlan::is_noop), "{:?}", plan.hosts[0].steps);
    assert!(plan.members.iter().any(|m| m.name.as_str() == "edge-3"));
    // One that nobody ever met is left out, and that is said.
    let mut fleet = Fleet::new(3);
    fleet.facts.remove(&name("edge-3"));
    let plan = fleet.plan();
    assert!(!plan.members.iter().any(|m| m.name.as_str() == "edge-3"));
    assert!(plan.warnings[0].contains("`edge-3` is left out"), "{:?}", plan.warnings);
}

#[test]
fn a_copied_disk_is_refused_before_two_hosts_are_taken_for_one() {
    let mut fleet = Fleet::new(3);
    fleet.facts.get_mut(&name("edge-3")).expect("there").1.public_key = Some(key(1));
    let refusals = fleet.refusals();
    assert_eq!(refusals[0].0.as_str(), "edge-3");
    assert!(refusals[0].1.problem.contains("same key as `edge-1`"), "{refusals:?}");
}

#[test]
fn no_host_decides_for_the_others_what_they_take_for_private() {
    let fleet = Fleet::new(3);
    let mut after = fleet.after(&fleet.plan());
    let own = |members: &[Member]| members.iter().find(|m| m.name.as_str() == "edge-2").expect("known").clone();
    let kept = own(&after.facts[&name("edge-2")].1.members);
    let lies = &mut after.facts.get_mut(&name("edge-1")).expect("there").1.members;
    for member in lies.iter_mut() {
        member.v6 = "2001:db8::1".parse().expect("an address");
        member.public_key = key(66);
    }
    lies.push(Member {
        name: name("a-stranger"),
        public_key: key(67),
        v4: "10.86.0.9".parse().expect("v4"),
        v6: "2001:db8::9".parse().expect("v6"),
    });
    let plan = after.plan();
    let now = own(&plan.members);
    assert_eq!(now, kept, "each host's own word counts, and the prefix that most have");
    assert!(!plan.members.iter().any(|m| m.name.as_str() == "a-stranger"));
    // Of one that cannot be asked, most records decide.
    after.facts.remove(&name("edge-2"));
    let third = after.facts.get(&name("edge-3")).expect("there").clone();
    after.hosts.insert(name("edge-4"), Host { name: name("edge-4"), address: "192.0.2.4".into(), local: false, ..Host::local() });
    after.mesh.hosts.push(name("edge-4"));
    after.facts.insert(name("edge-4"), (third.0, MeshFacts { public_key: Some(key(4)), ..third.1 }));
    assert_eq!(own(&after.plan().members).public_key, kept.public_key);
    // Only a public one: a new one is made.
    let mut alone = Fleet::new(2);
    for (_, mesh) in alone.facts.values_mut() {
        mesh.members = vec![Member {
            name: name("edge-1"),
            public_key: key(1),
            v4: "10.86.0.9".parse().expect("v4"),
            v6: "2001:db8::9".parse().expect("v6"),
        }];
    }
    assert!(alone.plan().members.iter().all(|m| m.v6.to_string().starts_with("fd12:3456:789a:")));
}

#[test]
fn all_hosts_have_one_generation_whoever_answers_and_whatever_they_measured() {
    let fleet = Fleet::new(3);
    let of = |plan: &MeshPlan| plan.hosts.iter().map(|p| p.version.clone()).collect::<BTreeSet<_>>();
    let first = of(&fleet.plan());
    assert_eq!(first.len(), 1);
    let mut after = fleet.after(&fleet.plan());
    after.facts.get_mut(&name("edge-1")).expect("there").1.paths.insert(name("edge-2"), 1300);
    assert_eq!(of(&after.plan()), first);
    after.facts.remove(&name("edge-3"));
    assert_eq!(of(&after.plan()), first);
    after.hosts.get_mut(&name("edge-1")).expect("there").address = "192.0.2.77".into();
    let moved = after.plan();
    assert_ne!(of(&moved), first);
    assert!(moved.hosts.iter().all(|p| !p.is_noop()), "the host itself as well, so that all can go back together");
    // Only those that take part are asked.
    let asked = moved.hosts[0].steps.iter().find_map(|s| match &s.action {
        Action::CheckPeers { peers, .. } => Some(peers.clone()),
        _ => None,
    });
    assert_eq!(asked, Some(vec![name("edge-2")]));
}

#[test]
fn a_host_without_ipv6_has_no_name_there_and_is_not_asked_for_it() {
    let mut fleet = Fleet::new(2);
    fleet.facts.get_mut(&name("edge-2")).expect("there").1.missing.push("ipv6".into());
    let plan = fleet.plan();
    let said = told(&plan.hosts[0]).text;
    assert_eq!(block(&said, "WITHOUT6"), "edge-2\n");
    assert_eq!(block(&said, "NAMES").matches("edge-2.mesh.local").count(), 1);
    assert_eq!(block(&said, "NAMES").matches("edge-1.mesh.local").count(), 2);
}
