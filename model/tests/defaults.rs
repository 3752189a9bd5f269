//! What a definition says when its file says little, and how the reference tells it.

use roadie_model::definition::{Build, CargoBuild, Definition, Deploy, Health, Host, Lifecycle, OnFailure, Probe, Profile};
use roadie_model::definition::{RollbackRule, RuntimeKind, Scope, Service, SetupRun, Strategy, ToolchainKind};
use roadie_model::id::{HostName, ServiceName};
use roadie_model::parse::{Inputs, KEYS, SourceFile, parse};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn only_service(text: &str) -> Service {
    let base = SourceFile { name: "roadie.yaml".into(), text: text.into() };
    let parsed = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: "/project".into() });
    let Definition { dir, mut services, .. } = parsed.expect("parses");
    assert_eq!(dir.to_str(), Some("/project"));
    let (name, service) = services.pop_first().expect("a service");
    assert!(services.is_empty() && name == service.name, "{name}");
    service
}

/// The remote service with nothing but a host. Each value is written out: a test that asked the code would agree with anything.
fn least() -> Service {
    let host = Host {
        name: HostName::new("10.0.0.1").expect("valid"),
        address: "10.0.0.1".into(),
        port: 22,
        user: None,
        ssh_key: None,
        host_key: None,
        connect_timeout: Duration::from_secs(10),
        tags: Vec::new(),
        local: false,
    };
    let cargo = CargoBuild {
        manifest_dir: ".".into(),
        package: None,
        bins: Vec::new(),
        toolchain: ToolchainKind::Auto,
        toolchains: BTreeMap::new(),
        features: Vec::new(),
        default_features: true,
        profile: "release".into(),
        locked: false,
        targets: Vec::new(),
    };
    let health = Health {
        probe: Probe::StaysUp,
        interval: Duration::from_millis(500),
        timeout: Duration::from_secs(30),
        good: 1,
        stable_for: Duration::from_secs(2),
        expect: None,
    };
    let deploy = Deploy {
        lifecycle: Lifecycle::Systemd,
        scope: Scope::System,
        args: Vec::new(),
        env: BTreeMap::new(),
        setup: None,
        setup_commands: Vec::new(),
        setup_timeout: Duration::from_secs(300),
        guard_grace: Duration::from_secs(30),
        setup_run: SetupRun::Changed,
        unit: None,
        profile: Profile::Web,
        health,
        keep_releases: 5,
        strategy: Strategy::All,
        max_failures: 0,
        on_failure: OnFailure::Hold,
        rollback: RollbackRule::Automatic,
    };
    Service {
        name: ServiceName::new("a").expect("valid"),
        runtime: RuntimeKind::Remote,
        hosts: vec![host],
        depends_on: Vec::new(),
        ports: Vec::new(),
        peers: BTreeMap::new(),
        build: Build::Cargo(cargo),
        config: None,
        vars: BTreeMap::new(),
        files: Vec::new(),
        deploy,
    }
}

#[test]
fn a_remote_service_needs_only_a_host() {
    assert_eq!(only_service("services: {a: {hosts: {address: 10.0.0.1}}}\n"), least());
    // Sections that stand there empty say no more than those that do not.
    let empty = "services:\n  a:\n    hosts: [{address: 10.0.0.1}]\n    build: {}\n    deploy: {health: {}}\n    vars: {}\n";
    assert_eq!(only_service(empty), least());
}

#[test]
fn a_local_service_needs_nothing() {
    let mut expected = Service { runtime: RuntimeKind::Local, hosts: vec![Host::local()], ..least() };
    expected.deploy.lifecycle = Lifecycle::Simple;
    expected.deploy.scope = Scope::User;
    assert_eq!(only_service("services: {a: {runtime: local}}\n"), expected);
}

#[test]
fn the_defaults_of_the_file_reach_named_and_inline_hosts_but_give_way() {
    let text = "defaults: {user: u, port: 2200, ssh_key: k, timeout: 3s}\n\
                hosts: {h: {address: 10.0.0.1}}\n\
                services:\n  a:\n    hosts: [h, {address: 10.0.0.2}, {address: 10.0.0.3, user: v, port: 1, ssh_key: l, timeout: 1s}]\n";
    let told = |h: &Host| (h.user.clone(), h.port, h.ssh_key.clone(), h.connect_timeout.as_secs());
    let told: Vec<_> = only_service(text).hosts.iter().map(told).collect();
    let defaults = (Some("u".into()), 2200, Some("k".into()), 3);
    assert_eq!(told, [defaults.clone(), defaults, (Some("v".into()), 1, Some("l".into()), 1)]);
}

/// The words in backticks of each row's first cell under a heading of the reference.
fn rows(heading: &str) -> BTreeSet<String> {
    let reference = include_str!("../../docs/definition.md");
    let from = reference.find(&format!("## {heading}\n")).unwrap_or_else(|| panic!("no heading `{heading}`"));
    let section = reference[from + 3..].split("\n## ").next().unwrap_or_default();
    let cells = section.lines().filter(|l| l.starts_with("| `")).filter_map(|l| l.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

/// By section and both ways: `timeout` of hosts does not document that of `health`, and a key that is gone must go there too.
#[test]
fn the_reference_has_the_keys_of_every_section_and_no_others() {
    let headings = [
        ("file", "Top level"),
        ("host", "`defaults` and hosts"),
        ("service", "Services"),
        ("build", "`build`"),
        ("deploy", "`deploy`"),
        ("health", "`health`"),
        ("mesh", "`mesh`"),
    ];
    for (section, heading) in headings {
        let (_, keys) = KEYS.iter().find(|(name, _)| *name == section).expect("known section");
        assert_eq!(rows(heading), keys.iter().map(|k| (*k).to_owned()).collect(), "{heading}");
    }
    // Some sections have no table of their own.
    let reference = include_str!("../../docs/definition.md");
    for sentence in ["`defaults` takes `user`, `ssh_key`, `port` and `timeout`", "list of `{from, to}`", "`{hub: NAME}`"] {
        assert!(reference.contains(sentence), "{sentence}");
    }
    let told: BTreeSet<&str> = KEYS.iter().map(|(name, _)| *name).collect();
    assert_eq!(told, ["file", "defaults", "host", "service", "files", "build", "deploy", "health", "mesh", "topology"].into());
}
