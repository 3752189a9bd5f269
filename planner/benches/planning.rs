//! How long planning takes: it is done for every host of every run, between two round trips.
//!
//! `cargo bench -p roadie-planner`

#![allow(missing_docs, reason = "criterion's macros write functions without")]

use criterion::{Criterion, criterion_group, criterion_main};
use roadie_model::definition::{Definition, Service};
use roadie_model::facts::{HostFacts, ReleaseFacts, ReleaseState, ServiceState};
use roadie_model::id::{PackageId, ReleaseId, ServiceName};
use roadie_model::package::{BuildFacts, FileEntry, Metadata, Package, Requires, Role};
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::target::TargetTriple;
use roadie_planner::{Input, plan_deploy, render};
use std::hint::black_box;

fn definition() -> Definition {
    let text = "services:
  api:
    hosts: [{address: h1}]
    build: {type: prebuilt, path: api, target: x86_64-unknown-linux-gnu}
    config: api.toml.hbs
    vars: {listen: '127.0.0.1:8080', peers: [a, b, c, d]}
    deploy:
      args: ['--config', '{{config_path}}']
      env: {DATABASE_URL: 'postgres://db.mesh.local:5432', WORKERS: '4'}
      health: {http: 'http://127.0.0.1:8080/health'}
";
    let base = SourceFile { name: "roadie.yaml".into(), text: text.into() };
    parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: "/p".into() }).expect("parses")
}

fn id(number: usize) -> String {
    format!("{number:064x}")
}

fn package() -> Package {
    let file =
        |n: usize| FileEntry { path: format!("share/{n}"), role: Role::File, mode: "0644".into(), size: 200_000, sha256: id(n) };
    Package {
        id: PackageId::new(id(1000)).expect("valid"),
        archive_sha256: id(1001),
        archive_bytes: 7_400_000,
        archive: "/store/a.tar.gz".into(),
        metadata: Metadata {
            build: BuildFacts::default(),
            schema: roadie_model::package::SCHEMA.into(),
            name: ServiceName::new("api").expect("valid"),
            version: "1.2.3".into(),
            target: TargetTriple::new("x86_64-unknown-linux-gnu").expect("valid"),
            binary: "api".into(),
            files: (0..31).map(file).collect(),
            requires: Requires {
                arch: "x86_64".into(),
                libc: "glibc".into(),
                glibc_min: Some("2.34".into()),
                ..Requires::default()
            },
        },
        metadata_sha256: id(1002),
        unit_template: "[Service]\nExecStart={{exec}}\nEnvironmentFile={{env_file}}\nWorkingDirectory={{release_dir}}\n".into(),
        config_template: "listen = {{toml listen}}\npeers = {{toml peers}}\nhost = {{toml host.name}}\n".into(),
        setup: String::new(),
    }
}

/// A host that has had `count` releases, the newest in service.
fn facts(count: usize) -> HostFacts {
    let release = |n: usize| ReleaseFacts {
        id: ReleaseId::new(id(n)).expect("valid"),
        package: PackageId::new(id(500 + n)).expect("valid"),
        version: format!("0.{n}"),
        state: ReleaseState::Proven,
        epoch: n as u64,
        changed_at: 0,
        complete: true,
        health: None,
    };
    let mut facts = HostFacts {
        machine: "x86_64".into(),
        root: "/opt/roadie/api".into(),
        glibc: Some("2.36".into()),
        systemd: Some(252),
        free_bytes: 10 << 30,
        releases: (0..count).rev().map(release).collect(),
        ..HostFacts::default()
    };
    facts.current = facts.releases.first().map(|r| r.id.clone());
    facts.service.state = ServiceState::Running;
    facts
}

fn planning(criterion: &mut Criterion) {
    let definition = definition();
    let service: &Service = definition.services.values().next().expect("a service");
    let (package, facts) = (package(), facts(50));
    let input = Input { service, host: &service.hosts[0], facts: &facts };
    let packages = std::slice::from_ref(&package);
    assert!(!plan_deploy(input, packages).expect("a plan").steps.is_empty());

    let mut wanted = facts.clone();
    let release = plan_deploy(input, packages).expect("a plan").release.expect("a release");
    wanted.releases[0].id = release.clone();
    wanted.releases[0].package = package.id.clone();
    wanted.current = Some(release);
    let same = Input { facts: &wanted, ..input };
    assert!(plan_deploy(same, packages).expect("a plan").steps.is_empty());

    criterion.bench_function("plan_deploy, 50 releases known", |b| b.iter(|| plan_deploy(black_box(input), packages)));
    criterion.bench_function("plan_deploy, nothing to do", |b| b.iter(|| plan_deploy(black_box(same), packages)));
    criterion.bench_function("render", |b| b.iter(|| render(service, &service.hosts[0], black_box(&package), &facts)));
}

criterion_group!(benches, planning);
criterion_main!(benches);
