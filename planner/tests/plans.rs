//! Plans by table: what was observed on a host, and the steps with their way back that follow from it.
//!
//! `plans.txt` holds the cases; `BLESS=1` writes down what is planned: read the difference before you keep it.

use roadie_model::definition::{Definition, Service};
use roadie_model::facts::{GuardFacts, HostFacts, Listener, ReleaseFacts, ReleaseState, ServiceState};
use roadie_model::id::{PackageId, ReleaseId};
use roadie_model::package::{BuildFacts, FileEntry, Metadata, Package, Requires, Role};
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::plan::{HostPlan, Undo};
use roadie_planner::{
    Input, PlanError, plan_cleanup, plan_deploy, plan_remove, plan_restart, plan_rollback, plan_start, plan_stop,
};
use std::fmt::Write as _;

fn definition(extra: &str) -> Definition {
    let text = format!(
        "services:\n  api:\n    hosts: [{{address: h1}}]\n    build: {{type: prebuilt, path: api, target: x86_64-unknown-linux-gnu}}\n    \
         deploy:\n      args: [\"--config\", \"{{{{config_path}}}}\"]\n      keep_releases: 2\n{extra}"
    );
    let base = SourceFile { name: "roadie.yaml".into(), text };
    parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: "/p".into() }).expect("parses")
}

fn id(digit: char) -> String {
    std::iter::repeat_n(digit, 64).collect()
}

fn package(setup: &str) -> Package {
    let file =
        |path: &str, size: u64| FileEntry { path: path.into(), role: Role::File, mode: "0755".into(), size, sha256: id('e') };
    Package {
        id: PackageId::new(id('a')).expect("valid"),
        archive_sha256: id('b'),
        archive_bytes: 1000,
        archive: "/store/a.tar.gz".into(),
        metadata: Metadata {
            build: BuildFacts::default(),
            schema: roadie_model::package::SCHEMA.into(),
            name: roadie_model::id::ServiceName::new("api").expect("valid"),
            version: "1.2.3".into(),
            target: roadie_model::target::TargetTriple::new("x86_64-unknown-linux-gnu").expect("valid"),
            binary: "api".into(),
            files: vec![file("bin/api", 2000), file("setup.sh", setup.len() as u64)],
            requires: Requires {
                arch: "x86_64".into(),
                libc: "glibc".into(),
                glibc_min: Some("2.34".into()),
                ..Requires::default()
            },
        },
        metadata_sha256: id('c'),
        unit_template: String::new(),
        config_template: "x = 1\n".into(),
        setup: setup.into(),
    }
}

fn empty_host() -> HostFacts {
    HostFacts {
        machine: "x86_64".into(),
        root: "/opt/roadie/api".into(),
        glibc: Some("2.36".into()),
        systemd: Some(252),
        free_bytes: 10 << 30,
        ..HostFacts::default()
    }
}

fn release(digit: char, state: ReleaseState, epoch: u64) -> ReleaseFacts {
    ReleaseFacts {
        id: ReleaseId::new(id(digit)).expect("valid"),
        package: PackageId::new(id(digit)).expect("valid"),
        version: format!("0.{digit}"),
        state,
        epoch,
        changed_at: 0,
        complete: true,
        health: None,
    }
}

/// A host that runs `1`, and had others before it.
fn running_host(others: &[ReleaseFacts]) -> HostFacts {
    let mut facts = empty_host();
    facts.releases = vec![release('1', ReleaseState::Proven, 9)];
    facts.releases.extend_from_slice(others);
    facts.current = Some(facts.releases[0].id.clone());
    facts.service.state = ServiceState::Running;
    facts
}

/// A host that runs exactly what is wanted.
fn deployed(service: &Service, package: &Package, mut facts: HostFacts) -> HostFacts {
    let plan = plan_deploy(input(service, &facts), std::slice::from_ref(package)).expect("a plan");
    let wanted = plan.release.expect("a release");
    let proven = ReleaseFacts { id: wanted.clone(), package: package.id.clone(), ..release('1', ReleaseState::Proven, 10) };
    facts.releases.insert(0, proven);
    facts.current = Some(wanted);
    facts.service.state = ServiceState::Running;
    facts
}

fn input<'a>(service: &'a Service, facts: &'a HostFacts) -> Input<'a> {
    Input { service, host: &service.hosts[0], facts }
}

fn show(plan: Result<HostPlan, PlanError>) -> String {
    let mut text = String::new();
    match plan {
        Err(error) => writeln!(text, "refused: {error}").expect("writes"),
        Ok(plan) if plan.is_noop() => text.push_str("nothing to do\n"),
        Ok(plan) => {
            for step in &plan.steps {
                let undo = match &step.undo {
                    Undo::Nothing => String::new(),
                    Undo::By { step } => format!("  <- {step}"),
                    Undo::Stays { .. } => "  <- stays".into(),
                };
                writeln!(text, "{:?} {}{undo}", step.stage, step.action).expect("writes");
            }
            // The new release's id is a digest of all that is rendered: it has a golden of its own.
            if let Some(release) = &plan.release {
                text = text.replace(release.short(), "NEW");
            }
        }
    }
    text
}

fn cases() -> String {
    let definition = definition("");
    let service = definition.services.values().next().expect("one service");
    let plain = package("");
    let with_setup = package("true\n");
    let deploy = |facts: &HostFacts, package: &Package| show(plan_deploy(input(service, facts), std::slice::from_ref(package)));
    let old =
        [release('2', ReleaseState::Proven, 8), release('3', ReleaseState::Failed, 7), release('4', ReleaseState::Proven, 6)];
    let running = running_host(&old);
    let mut out = String::new();
    let mut case = |name: &str, steps: String| write!(out, "== {name}\n{steps}").expect("writes");

    case("deploy to an empty host", deploy(&empty_host(), &plain));
    case("deploy to an empty host, with setup", deploy(&empty_host(), &with_setup));
    case("deploy over a running release; old ones beyond two are deleted, good ones last", deploy(&running, &plain));
    case("deploy what runs already", deploy(&deployed(service, &plain, running_host(&old)), &plain));
    let mut stopped = deployed(service, &plain, running_host(&[]));
    stopped.service.state = ServiceState::Stopped;
    case("deploy what is there but stopped", deploy(&stopped, &plain));
    let mut unconfirmed = running_host(&old);
    unconfirmed.releases[0].state = ReleaseState::Active;
    let back_to = unconfirmed.releases.get(1).map(|r| r.id.clone());
    unconfirmed.guard = Some(GuardFacts { back_to, epoch: 2 });
    case("deploy over a release that was never confirmed", deploy(&unconfirmed, &plain));
    let mut same_package = running_host(&[]);
    same_package.releases[0].package = plain.id.clone();
    case("deploy other settings of a package that is there", deploy(&same_package, &plain));

    case("roll back", show(plan_rollback(input(service, &running), None)));
    case("roll back to a release that failed", show(plan_rollback(input(service, &running), Some("3333"))));
    case("roll back to nothing", show(plan_rollback(input(service, &running_host(&[])), None)));

    case("start what runs", show(plan_start(input(service, &running))));
    case("start what is stopped", show(plan_start(input(service, &stopped))));
    case("start what was never deployed", show(plan_start(input(service, &empty_host()))));
    case("stop", show(plan_stop(input(service, &running))));
    case("stop what is stopped", show(plan_stop(input(service, &stopped))));
    case("restart", show(plan_restart(input(service, &running))));
    case("cleanup", show(Ok(plan_cleanup(input(service, &running)))));
    case("remove", show(Ok(plan_remove(input(service, &running)))));
    case("remove from an empty host", show(Ok(plan_remove(input(service, &empty_host())))));

    let refuse = |change: &dyn Fn(&mut HostFacts)| {
        let mut facts = empty_host();
        change(&mut facts);
        deploy(&facts, &plain)
    };
    case("another architecture", refuse(&|f| f.machine = "aarch64".into()));
    case("an older glibc", refuse(&|f| f.glibc = Some("2.31".into())));
    case("no systemd", refuse(&|f| f.systemd = None));
    case("a systemd that is too old", refuse(&|f| f.systemd = Some(237)));
    case("tools missing", refuse(&|f| f.missing_tools = vec!["flock".into(), "tar".into()]));
    case("no room", refuse(&|f| f.free_bytes = 1 << 20));
    case("no inodes", refuse(&|f| f.free_inodes = Some(3)));
    out
}

#[test]
fn every_case_of_the_table() {
    let found = cases();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans.txt"), &found).expect("writes");
    }
    assert_eq!(
        found,
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans.txt")).expect("reads")
    );
}

/// What decides how a service runs is in the release id; what does not, is not.
#[test]
fn the_release_id_covers_all_that_is_rendered() {
    let release = |extra: &str, package: &Package| {
        let definition = definition(extra);
        let service = definition.services.values().next().expect("one service").clone();
        plan_deploy(input(&service, &empty_host()), std::slice::from_ref(package)).expect("a plan").release.expect("a release")
    };
    let base = release("", &package(""));
    assert_eq!(base, release("      health: {tcp: 80}\n", &package("")), "health is no part of what runs");
    assert_ne!(base, release("      env: {A: b}\n", &package("")));
    assert_ne!(base, release("      lifecycle: simple\n", &package("")));
    let mut other = package("");
    other.config_template = "x = 2\n".into();
    assert_ne!(base, release("", &other));
    other = package("");
    other.id = PackageId::new(id('f')).expect("valid");
    assert_ne!(base, release("", &other));
}

/// The package says which systemd its unit needs; never less than the host script does.
#[test]
fn a_systemd_older_than_the_unit_needs_is_refused() {
    let definition = definition("");
    let service = definition.services.values().next().expect("one");
    for (needs, has, least) in [
        (Some(253), 252, Some(253)),
        (Some(253), 253, None),
        (Some(247), 246, Some(247)),
        (Some(247), 247, None),
        (Some(219), 239, Some(240)),
        (Some(219), 240, None),
        (None, 239, Some(240)),
        (None, 240, None),
    ] {
        let (mut facts, mut package) = (empty_host(), package(""));
        facts.systemd = Some(has);
        package.metadata.requires.systemd_min = needs;
        let said = plan_deploy(input(service, &facts), std::slice::from_ref(&package)).map(drop).map_err(|e| e.to_string());
        match least {
            None => assert_eq!(said, Ok(()), "{needs:?} {has}"),
            Some(least) => {
                let sentence = format!("its systemd is {has}, the unit needs {least}");
                assert!(said.as_ref().is_err_and(|s| s.contains(&sentence)), "{needs:?} {has}: {said:?}");
            }
        }
    }
}

/// A package that needs a lot: every one of these hosts lacks something else, and each is told in a sentence of its own.
#[test]
fn broken_hosts_are_refused_each_with_its_own_sentence() {
    type Break = fn(&mut HostFacts);
    let systemd: &[(Break, &str)] = &[
        (|f| f.machine = "aarch64".into(), "the package is built for x86_64, the host is aarch64"),
        (|f| f.machine = "armv7l".into(), "the package is built for x86_64, the host is armv7l"),
        (|f| f.machine = "i686".into(), "the package is built for x86_64, the host is i686"),
        (|f| f.machine = "riscv64".into(), "the package is built for x86_64, the host is riscv64"),
        (|f| f.machine = "s390x".into(), "the package is built for x86_64, the host is s390x"),
        (|f| f.machine = String::new(), "the package is built for x86_64, the host is an architecture that it does not name"),
        (|f| f.glibc = None, "it needs glibc 2.34, the host has another C library"),
        (|f| f.glibc = Some("2.31".into()), "it needs glibc 2.34, the host has 2.31"),
        (|f| f.glibc = Some("2.4".into()), "it needs glibc 2.34, the host has 2.4"),
        (|f| f.glibc = Some("garbage".into()), "it needs glibc 2.34, the host has garbage"),
        (|f| f.page_size = 16384, "its segments are aligned to 4096 bytes, the host's pages have 16384"),
        (|f| f.page_size = 65536, "its segments are aligned to 4096 bytes, the host's pages have 65536"),
        (
            |f| f.lacks = vec!["/lib64/ld-linux-x86-64.so.2".into()],
            "the program interpreter /lib64/ld-linux-x86-64.so.2 is not there",
        ),
        (|f| f.lacks = vec!["libssl.so.3".into()], "it needs the shared libraries libssl.so.3, which are not there"),
        (
            |f| f.lacks = vec!["libz.so.1".into(), "libssl.so.3".into()],
            "it needs the shared libraries libssl.so.3, libz.so.1, which are not there",
        ),
        (|f| f.systemd = None, "systemd does not run there"),
        (|f| f.systemd = Some(239), "its systemd is 239, the unit needs 240"),
        (|f| f.systemd = Some(219), "its systemd is 219, the unit needs 240"),
        (|f| f.missing_tools = vec!["flock".into()], "the host lacks flock"),
        (|f| f.missing_tools = vec!["tar".into()], "the host lacks tar"),
        (|f| f.missing_tools = vec!["gzip".into()], "the host lacks gzip"),
        (|f| f.missing_tools = vec!["sha256sum".into()], "the host lacks sha256sum"),
        (|f| f.missing_tools = vec!["readlink".into()], "the host lacks readlink"),
        (|f| f.missing_tools = vec!["base64".into()], "the host lacks base64"),
        (|f| f.missing_tools = vec!["mkfifo".into()], "the host lacks mkfifo"),
        (|f| f.missing_tools = vec!["awk".into()], "the host lacks awk"),
        (|f| f.missing_tools = vec!["setsid".into()], "the host lacks setsid"),
        (|f| f.missing_tools = vec!["find".into()], "the host lacks find"),
        (|f| f.missing_tools = vec!["sync".into(), "df".into()], "the host lacks sync, df"),
        (|f| f.free_bytes = 0, "it needs 65 MiB free for /opt/roadie/api, there are 0 MiB"),
        (|f| f.free_bytes = 50 << 20, "it needs 65 MiB free for /opt/roadie/api, there are 50 MiB"),
        (|f| f.free_inodes = Some(0), "it needs 66 free inodes for /opt/roadie/api, there are 0"),
        (|f| f.free_inodes = Some(65), "it needs 66 free inodes for /opt/roadie/api, there are 65"),
        (|f| f.mount_flags = vec!["ro".into()], "/, which holds /opt/roadie/api, is mounted read-only"),
        (
            |f| (f.mount, f.mount_flags) = ("/opt".into(), vec!["rw".into(), "noexec".into()]),
            "/opt, which holds /opt/roadie/api, is mounted noexec: nothing there can be started",
        ),
        (|f| f.loose = vec!["/opt everybody".into()], "/opt may be written by everybody, who could replace what runs as root"),
        (|f| f.loose = vec!["/opt group 50".into()], "/opt may be written by group 50, who could replace what runs as root"),
        (
            |f| f.loose = vec!["/opt/roadie user 1000".into()],
            "/opt/roadie may be written by user 1000, who could replace what runs as root",
        ),
        (
            |f| f.listener = Some(Listener { port: 8080, pid: Some(7), name: "nginx".into() }),
            "port 8080 is taken by `nginx` (process 7): the health check would ask that one",
        ),
        (
            |f| f.listener = Some(Listener { port: 80, pid: Some(8), name: String::new() }),
            "port 80 is taken by process 8: the health check would ask that one",
        ),
        (
            |f| f.listener = Some(Listener { port: 443, pid: None, name: String::new() }),
            "port 443 is taken by a process that cannot be seen from here: the health check would ask that one",
        ),
    ];
    let user: &[(Break, &str)] = &[(|f| f.systemd = None, "no systemd user manager answers")];
    let mut needy = package("");
    needy.metadata.requires.interpreter = Some("/lib64/ld-linux-x86-64.so.2".into());
    needy.metadata.requires.sonames = vec!["libc.so.6".into(), "libssl.so.3".into(), "libz.so.1".into()];
    needy.metadata.requires.page_align = 4096;
    let mut sentences = std::collections::BTreeSet::new();
    for (extra, table) in [("", systemd), ("      scope: user\n", user)] {
        let definition = definition(extra);
        let service = definition.services.values().next().expect("one");
        let mut good = empty_host();
        (good.page_size, good.mount, good.free_inodes) = (4096, "/".into(), Some(1000));
        plan_deploy(input(service, &good), std::slice::from_ref(&needy)).expect("the host that is whole takes it");
        for (broken, sentence) in table {
            let mut facts = good.clone();
            broken(&mut facts);
            let PlanError::Refused(refusal) =
                plan_deploy(input(service, &facts), std::slice::from_ref(&needy)).expect_err(sentence)
            else {
                panic!("{sentence}: another error")
            };
            assert_eq!(&refusal.problem, sentence);
            assert!(!refusal.hint.is_empty(), "{sentence}");
            assert!(sentences.insert(refusal.problem), "said twice: {sentence}");
        }
    }
    assert!(sentences.len() >= 40, "{}", sentences.len());
}

/// A host in any state that runs, faults and guards can leave it in.
fn any_host(rng: &mut fastrand::Rng) -> HostFacts {
    use ReleaseState::{Active, Failed, Proven, Staged, Verified};
    let mut facts = empty_host();
    let states = [Staged, Verified, Active, Proven, Proven, Proven, Failed];
    for (number, digit) in "123456".chars().take(rng.usize(0..7)).enumerate() {
        let mut release = release(digit, states[rng.usize(..states.len())], rng.u64(1..20) + number as u64);
        release.complete = rng.u8(0..5) > 0;
        facts.releases.push(release);
    }
    facts.releases.sort_by_key(|r| std::cmp::Reverse(r.epoch));
    facts.epoch = 30;
    let any = |rng: &mut fastrand::Rng, facts: &HostFacts| match facts.releases.len() {
        0 => None,
        n => Some(facts.releases[rng.usize(..n)].id.clone()).filter(|_| rng.bool()),
    };
    facts.current = any(rng, &facts);
    facts.guard = rng.bool().then(|| GuardFacts { back_to: any(rng, &facts), epoch: 30 });
    let service =
        [ServiceState::Absent, ServiceState::Stopped, ServiceState::Changing, ServiceState::Running, ServiceState::Failed];
    facts.service.state = service[rng.usize(..service.len())];
    facts.setup_digest = rng.bool().then(|| id('d'));
    facts.unit_sha256 = rng.bool().then(|| id('e'));
    facts
}

/// Over 300 generated states: a kept plan is the plan that is carried out, any move of the host is noticed, and no plan deletes
/// or leads back to what it must not.
#[test]
fn kept_plans_equal_those_carried_out_and_every_move_is_noticed() {
    let definition = definition("");
    let service = definition.services.values().next().expect("one");
    let (mut changes, mut refused) = (0, 0);
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let facts = any_host(&mut rng);
        let wanted = package(if rng.bool() { "" } else { "true\n" });
        let packages = std::slice::from_ref(&wanted);
        let make = |facts: &HostFacts| match seed % 3 {
            0 => plan_rollback(input(service, facts), None),
            _ => plan_deploy(input(service, facts), packages),
        };
        let Ok(plan) = make(&facts) else {
            refused += 1;
            continue;
        };
        // What is kept survives being written and read.
        let text = serde_json::to_string(&roadie_planner::save(&plan)).expect("writes");
        let saved = serde_json::from_str(&text).expect("reads");
        let mut later = facts.clone();
        (later.free_bytes, later.service.up_s, later.service.pid) = (9 << 30, Some(7), Some(8));
        let again = make(&later).expect("the same plan");
        assert_eq!(roadie_planner::difference(&saved, &again), None, "seed {seed}");
        assert_eq!((&again.steps, &again.release), (&plan.steps, &plan.release), "seed {seed}");

        check_plan(&plan, &facts, seed);
        for (what, moved) in moves(&facts) {
            if let Ok(other) = make(&moved) {
                assert!(roadie_planner::difference(&saved, &other).is_some(), "seed {seed}: {what} is not noticed");
                changes += 1;
            }
        }
    }
    assert!(changes > 800 && refused < 150, "{changes} {refused}");
}

fn moves(facts: &HostFacts) -> Vec<(&'static str, HostFacts)> {
    let mut list = Vec::new();
    let mut add = |what, change: &dyn Fn(&mut HostFacts)| {
        let mut moved = facts.clone();
        change(&mut moved);
        if &moved != facts {
            list.push((what, moved));
        }
    };
    add("another current", &|f| f.current = f.releases.iter().map(|r| r.id.clone()).find(|r| Some(r) != f.current.as_ref()));
    add("no current", &|f| f.current = None);
    add("a stopped service", &|f| f.service.state = ServiceState::Stopped);
    add("another unit", &|f| f.unit_sha256 = Some(id('f')));
    add("an armed guard", &|f| f.guard = Some(GuardFacts { back_to: None, epoch: 31 }));
    add("a damaged release", &|f| f.releases.iter_mut().for_each(|r| r.complete = false));
    add("a failed release", &|f| f.releases.iter_mut().for_each(|r| r.state = ReleaseState::Failed));
    add("a new release", &|f| f.releases.insert(0, release('9', ReleaseState::Proven, 40)));
    add("another setup", &|f| f.setup_digest = Some(id('0')));
    list
}

/// What holds for every plan that changes what is in service.
fn check_plan(plan: &HostPlan, facts: &HostFacts, seed: u64) {
    use roadie_model::plan::{Action, Stage};
    let actions: Vec<&Action> = plan.steps.iter().map(|s| &s.action).collect();
    let place = |wanted: &dyn Fn(&Action) -> bool| actions.iter().position(|a| wanted(a));
    assert!(plan.steps.windows(2).all(|pair| pair[0].stage <= pair[1].stage), "seed {seed}: the stages are in order");
    let Some(switch) = place(&|a| matches!(a, Action::Switch { .. } | Action::Restart { .. })) else { return };
    let armed = place(&|a| matches!(a, Action::ArmGuard { .. })).expect("a guard");
    let sealed = place(&|a| matches!(a, Action::Seal { .. })).expect("a seal");
    let confirmed = place(&|a| matches!(a, Action::Confirm { .. })).expect("a confirmation");
    assert!(sealed < armed && armed < switch && switch < confirmed, "seed {seed}");
    assert!(plan.steps[confirmed + 1..].iter().all(|s| s.stage == Stage::Finish), "seed {seed}: the commit is the last");
    let Action::ArmGuard { back_to, .. } = actions[armed] else { return };
    if let Some(back) = back_to {
        let record = facts.release(back).expect("a known release");
        assert!(record.state == ReleaseState::Proven && record.complete, "seed {seed}: the way back leads to a proven one");
    }
    for action in &actions {
        if let Action::Prune { remove } = action {
            let kept = remove.iter().all(|r| Some(r) != plan.release.as_ref() && Some(r) != back_to.as_ref());
            assert!(kept, "seed {seed}: it deletes what it needs");
        }
    }
}
