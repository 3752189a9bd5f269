//! Deployments over a host in memory, with something going wrong at any boundary between two steps: hundreds of thousands of
//! them, in virtual time. The same seed gives the same deployment.
//!
//! `SIMULATED=N` sets how many; `SIMULATED_SEED=S` runs one alone.

mod host;

use host::{Fault, Shared, ToMemory, World, look};
use roadie_deployer::{Controller, Group, Options, Rollout, TaskReport, Verb};
use roadie_model::definition::Service;
use roadie_model::id::{PackageId, ServiceName};
use roadie_model::outcome::Outcome;
use roadie_model::package::{BuildFacts, FileEntry, Metadata, Package, Requires, Role, SCHEMA};
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::target::TargetTriple;
use std::sync::Arc;
use std::time::Duration;

fn service(version: u64) -> Service {
    let text = format!(
        "services:\n  api:\n    hosts: [{{address: h1}}]\n    build: {{type: prebuilt, path: api, target: x86_64-unknown-linux-gnu}}\n    \
         deploy:\n      keep_releases: 2\n      env: {{V: \"{version}\"}}\n      setup_commands: [\"true\"]\n      setup_run: always\n      \
         health: {{tcp: 80, timeout: 2s, interval: 200ms, stable_for: 1s}}\n"
    );
    let base = SourceFile { name: "roadie.yaml".into(), text };
    let parsed = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: "/project".into() });
    let definition = parsed.unwrap_or_else(|e| panic!("{e:?}"));
    definition.services.into_values().next().unwrap_or_else(|| panic!("one service"))
}

fn package(number: u64) -> Package {
    let file =
        |path: &str| FileEntry { path: path.into(), role: Role::File, mode: "0755".into(), size: 10, sha256: "e".repeat(64) };
    Package {
        id: PackageId::new(format!("{number:064x}")).unwrap_or_else(|e| panic!("{e}")),
        archive_sha256: "b".repeat(64),
        archive_bytes: 100,
        archive: "/nowhere".into(),
        metadata: Metadata {
            build: BuildFacts::default(),
            schema: SCHEMA.into(),
            name: ServiceName::new("api").unwrap_or_else(|e| panic!("{e}")),
            version: "1".into(),
            target: TargetTriple::new("x86_64-unknown-linux-gnu").unwrap_or_else(|e| panic!("{e}")),
            binary: "api".into(),
            files: vec![file("bin/api")],
            requires: Requires { arch: "x86_64".into(), libc: "static".into(), ..Requires::default() },
        },
        metadata_sha256: "c".repeat(64),
        unit_template: String::new(),
        config_template: String::new(),
        setup: "true\n".into(),
    }
}

async fn run(world: &Shared, service: &Service, verb: Verb) -> Option<TaskReport> {
    let (cancel, killed) = {
        let mut world = look(world);
        world.cancel.reset();
        world.killed = Arc::default();
        (world.cancel.clone(), world.killed.clone())
    };
    let options = Options { max_concurrent: 4, lock_wait: Duration::ZERO, rollout: Rollout::default(), identity: "sim".into() };
    let controller = Controller::new(Arc::new(ToMemory(world.clone())), options, Arc::new(|_| ()), cancel);
    let group = Group { service: service.clone(), hosts: service.hosts.clone(), verb };
    tokio::select! {
        biased;
        reports = controller.run(vec![vec![group]]) => reports.into_iter().next(),
        () = killed.notified() => None,
    }
}

fn deploy(package: &Package) -> Verb {
    Verb::Deploy { packages: vec![package.clone()], skip_health: false, saved: None }
}

/// What is true on the host is what was reported, and nothing else is in service than the old or the new release.
fn judge(world: &Shared, old: Option<&str>, new: Option<&str>, report: Option<&TaskReport>, problems: &mut Vec<String>) {
    let world = look(world);
    let current = world.disk.current.as_deref();
    let running = world.process.as_ref().map(|(release, _)| release.as_str());
    if current != old && current != new {
        problems.push(format!("I2: current is {current:?}, neither {old:?} nor {new:?}"));
    }
    if running != current {
        problems.push(format!("I4: {running:?} runs, current is {current:?}"));
    }
    let state = current.and_then(|c| world.disk.records.get(c)).map(|r| r.state.as_str());
    if current.is_some() && state != Some("proven") {
        problems.push(format!("I4: current is recorded as {state:?}"));
    }
    if world.disk.guard.is_some() {
        problems.push("I4: the guard is still armed".into());
    }
    let Some(report) = report else { return };
    let truth = match report.report.outcome {
        Outcome::Done => current == new,
        Outcome::Unknown => true,
        Outcome::Bug | Outcome::Usage | Outcome::Mixed | Outcome::NotRestored => false,
        _ => current == old,
    };
    if !truth {
        let said = (report.report.outcome, &report.report.summary, &report.report.causes);
        problems.push(format!("I7: {said:?}, but {old:?} -> {new:?} has current {current:?}"));
    }
    problems.extend(world.violations.iter().cloned());
}

/// One host's life: a first release, then several deployments and rollbacks with faults, each followed by a clean run.
async fn life(seed: u64, deployments: u64) -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let world = World::new(seed ^ 0x5eed);
    let mut problems = Vec::new();
    let mut number = rng.u64(1..1_000_000);
    for _ in 0..deployments {
        number += 1;
        let (service, package) = (service(number), package(if rng.bool() { number } else { 1 }));
        let old = look(&world).disk.current.clone();
        // Its id is known once it was planned on a host that is just like this one.
        let facts_new = planned(&world, &service, &package).await;
        let (new, healthy) = (facts_new, rng.u8(0..4) > 0);
        {
            let mut world = look(&world);
            if !healthy && let Some(new) = &new {
                if rng.bool() {
                    world.unhealthy.insert(new.clone())
                } else {
                    world.broken.insert(new.clone())
                };
            }
            let faults =
                [Fault::Kill, Fault::Cancel, Fault::CancelTwice, Fault::Link, Fault::Power, Fault::DiskFull, Fault::StepFails];
            world.fault = (rng.u8(0..8) > 0).then(|| (rng.u32(0..40), faults[rng.usize(..faults.len())]));
            world.fired = false;
        }
        let report = run(&world, &service, deploy(&package)).await;
        let mut found = Vec::new();
        // Who says that it is done, taken back or unchanged leaves nothing for the guard to do.
        if report.as_ref().is_some_and(|r| r.report.outcome != Outcome::Unknown) {
            judge(&world, old.as_deref(), new.as_deref(), report.as_ref(), &mut found);
        }
        // The next run comes at once, or when the host has settled by itself.
        let alone = rng.bool();
        let fault = {
            let mut world = look(&world);
            if alone {
                world.settle();
            }
            world.let_in();
            world.fault.take()
        };
        let what = format!("seed {seed}, deployment {number}, fault left {fault:?}");
        if alone {
            judge(&world, old.as_deref(), new.as_deref(), report.as_ref(), &mut found);
        }
        // The next clean run, of a release that is good.
        {
            let mut world = look(&world);
            world.unhealthy.clear();
            world.broken.clear();
        }
        let clean = run(&world, &service, deploy(&package)).await;
        look(&world).settle();
        let done = clean.as_ref().is_some_and(|r| r.report.outcome == Outcome::Done);
        if !done {
            found.push(format!(
                "I3: the clean run ended as {:?}",
                clean.as_ref().map(|r| (&r.report.outcome, &r.report.summary, &r.report.causes))
            ));
        }
        judge(&world, new.as_deref(), new.as_deref(), clean.as_ref(), &mut found);
        let left = {
            let w = look(&world);
            (w.disk.incoming.len(), w.disk.unpacked.len())
        };
        if left != (0, 0) {
            found.push(format!("I3: left behind: {left:?}"));
        }
        if !found.is_empty() {
            problems.extend(found.into_iter().map(|f| format!("{what}: {f}")));
            break;
        }
    }
    problems
}

/// The release that a deployment would make.
async fn planned(world: &Shared, service: &Service, package: &Package) -> Option<String> {
    let plans = Arc::new(std::sync::Mutex::new(None));
    let keep = plans.clone();
    let sink = Arc::new(move |event: roadie_model::event::Event| {
        if let roadie_model::event::EventKind::Planned { plan } = event.kind {
            *keep.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = plan.release.map(|r| r.as_str().to_owned());
        }
    });
    let options = Options { max_concurrent: 4, lock_wait: Duration::ZERO, rollout: Rollout::default(), identity: "sim".into() };
    let cancel = roadie_deployer::Cancel::new();
    let controller = Controller::new(Arc::new(ToMemory(world.clone())), options, sink, cancel);
    let verb = Verb::Plan { packages: vec![package.clone()] };
    controller.run(vec![vec![Group { service: service.clone(), hosts: service.hosts.clone(), verb }]]).await;
    plans.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
}

#[test]
fn whatever_goes_wrong_in_memory() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    // Each life is ten deployments with a fault, ten clean ones.
    let lives = number("SIMULATED").unwrap_or(2000).div_ceil(20);
    let seeds: Vec<u64> = number("SIMULATED_SEED").map_or_else(|| (0..lives).collect(), |seed| vec![seed]);
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap_or_else(|e| panic!("{e}"))
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let chunks: Vec<&[u64]> = seeds.chunks(seeds.len().div_ceil(threads)).collect();
    let problems: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = chunks
            .into_iter()
            .map(|seeds| {
                scope.spawn(move || seeds.iter().flat_map(|seed| runtime().block_on(life(*seed, 10))).collect::<Vec<_>>())
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_else(|_| vec!["a life panicked".into()])).collect()
    });
    let shown: Vec<&String> = problems.iter().take(10).collect();
    assert!(problems.is_empty(), "{} violations in {} lives, among them {shown:#?}", problems.len(), seeds.len());
}
