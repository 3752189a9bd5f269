//! The guard: whatever happens to the controller or the host, the host finds its way back alone.

use roadie_tests::{LabHost, Project, lab, signal};
use std::process::Child;
use std::time::{Duration, Instant};

/// The example server, which goes on being probed for a minute when it is not healthy.
fn project(host: &LabHost, lifecycle: &str) -> Project {
    let project = Project::new();
    project.add_hello();
    project.write(
        "roadie.yaml",
        &format!(
            "services:\n  hello:\n    hosts: [{{address: {}, user: deploy}}]\n    build: {{type: prebuilt, path: hello}}\n    deploy:\n      \
             lifecycle: {lifecycle}\n      guard_grace: 3s\n      args: [--listen, \"127.0.0.1:8080\"]\n      \
             env: {{HELLO_VERSION: \"${{V:-1}}\", HELLO_UNHEALTHY: \"${{BAD:-0}}\"}}\n      \
             health: {{http: \"http://127.0.0.1:8080/health\", timeout: 60s, interval: 200ms, stable_for: 300ms}}\n",
            host.address
        ),
    );
    project
}

/// A deploy of a version that never gets healthy, up to the moment when it is in service.
fn start_bad(project: &Project, host: &LabHost) -> Child {
    let child = project
        .command(&["deploy"])
        .envs([("V", "2"), ("BAD", "1")])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    within("the new version runs", Duration::from_secs(30), || version(host) == "2");
    child
}

fn version(host: &LabHost) -> String {
    host.root("tr '\\0' '\\n' </proc/$(pgrep -x hello | head -n 1)/environ 2>/dev/null | sed -n 's/^HELLO_VERSION=//p'")
}

fn current(host: &LabHost) -> String {
    host.root("readlink /opt/roadie/hello/current")
}

fn within(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    began.elapsed()
}

fn lock_is_free(host: &LabHost) -> bool {
    host.root("flock -n /opt/roadie/hello/.roadie/lock true && echo free") == "free"
}

fn journal(host: &LabHost) -> String {
    host.root("cat /opt/roadie/hello/.roadie/journal.jsonl")
}

/// The host is as it was, and says by itself what happened; the next run converges.
fn went_back(project: &Project, host: &LabHost, old: &str, what: &str) {
    assert_eq!((current(host).as_str(), version(host).as_str()), (old, "1"), "{what}: {}", journal(host));
    project.roadie(&["status"]).exits(0).says("running").says("by itself:").says("went back to release");
    let left =
        host.root("ls /opt/roadie/hello/.roadie/guard 2>/dev/null; systemctl list-units --all --no-legend 'roadie-guard*'");
    assert_eq!(left, "", "{what}: the guard is not armed any more");
    project.roadie(&["deploy"]).exits(0).says("nothing to do");
    project.run_with(&["deploy"], &[("V", "3")]).exits(0);
    assert_eq!(version(host), "3", "{what}");
    project.roadie(&["rollback"]).exits(0);
    assert_eq!(version(host), "1", "{what}: the failed release is no way back");
}

#[test]
fn a_controller_that_is_killed() {
    let Some(hosts) = lab("a_controller_that_is_killed", 1) else { return };
    let host = &hosts[0];
    for lifecycle in ["systemd", "simple"] {
        let project = project(host, lifecycle);
        project.roadie(&["deploy"]).exits(0);
        let old = current(host);
        let mut child = start_bad(&project, host);
        child.kill().expect("kills");
        child.wait().expect("ends");
        within("the lock is free", Duration::from_secs(15), || lock_is_free(host));
        within("the host went back", Duration::from_secs(20), || version(host) == "1" && lock_is_free(host));
        went_back(&project, host, &old, lifecycle);
        project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
        assert_eq!(host.root("ls -d /opt/roadie 2>/dev/null; ls /etc/systemd/system | grep roadie; pgrep -f host.s[h]"), "");
    }
}

/// sshd does not notice: the watchdog on the host does.
#[test]
fn a_controller_whose_link_is_cut_for_good() {
    let Some(hosts) = lab("a_controller_whose_link_is_cut_for_good", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "systemd");
    project.roadie(&["deploy"]).exits(0);
    let old = current(host);
    let mut child = start_bad(&project, host);
    host.lab("cut", &[]);
    child.kill().expect("kills");
    child.wait().expect("ends");
    std::thread::sleep(Duration::from_secs(22));
    host.lab("heal", &[]);
    within("the host answers", Duration::from_secs(10), || lock_is_free(host));
    assert!(journal(host).contains("was not heard"), "{}", journal(host));
    went_back(&project, host, &old, "cut");
}

/// A controller that sleeps loses the lock; when it wakes it changes nothing any more and says so.
#[test]
fn a_controller_that_sleeps_and_wakes() {
    let Some(hosts) = lab("a_controller_that_sleeps_and_wakes", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "systemd");
    project.roadie(&["deploy"]).exits(0);
    let child = start_bad(&project, host);
    signal(&child, "STOP");
    within("the lock is free", Duration::from_secs(15), || lock_is_free(host));
    let other = project.run_with(&["deploy"], &[("V", "3")]);
    assert_eq!((other.code, version(host).as_str()), (0, "3"), "{}", other.stderr);
    let (now, before) = (current(host), journal(host));
    signal(&child, "CONT");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((current(host), version(host), journal(host)), (now, "3".into(), before), "the sleeper changed nothing");
}

/// A deployment's timer is made before its guard, and may be of one that takes longer: it is for the guard's deadline to say.
#[test]
fn a_timer_that_ends_before_the_deadline() {
    let Some(hosts) = lab("a_timer_that_ends_before_the_deadline", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "systemd");
    project.roadie(&["deploy"]).exits(0);
    let old = current(host);
    let mut child = start_bad(&project, host);
    let timers = host.root("systemctl list-units --no-legend --plain 'roadie-guard-hello:*.timer' | cut -d' ' -f1");
    assert_eq!(timers.lines().count(), 1, "{timers}");
    host.root(&format!("systemctl start '{}.service'", timers.trim_end_matches(".timer")));
    let holder = || host.root("cat /opt/roadie/hello/.roadie/pid");
    let held_by = holder();
    // So long one whose time has come waits for the lock before it ends who holds it.
    std::thread::sleep(Duration::from_secs(7));
    assert!(child.try_wait().expect("is ours").is_none(), "the run goes on");
    assert_eq!(holder(), held_by, "in the same shell");
    assert_eq!((version(host).as_str(), journal(host).contains("\"event\":\"guard\"")), ("2", false), "{}", journal(host));
    signal(&child, "INT");
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    assert_eq!((current(host), version(host).as_str()), (old, "1"));
}

/// A power cut while unconfirmed: at boot the old release starts, and never the new one.
#[test]
fn a_host_that_loses_power_while_unconfirmed() {
    let Some(hosts) = lab("a_host_that_loses_power_while_unconfirmed", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "systemd");
    project.roadie(&["deploy"]).exits(0);
    let old = current(host);
    let mut child = start_bad(&project, host);
    host.lab("power", &[]);
    child.kill().expect("kills");
    child.wait().expect("ends");
    host.lab("boot", &[]);
    within("the old version runs", Duration::from_secs(30), || version(host) == "1");
    let starts = host.root("journalctl -b -u roadie-hello -o cat | grep -c 'hello 2 listens'");
    assert_eq!(starts, "0", "the unconfirmed release was not started after the boot");
    went_back(&project, host, &old, "power");
    // Nothing is left to settle at the next boot.
    host.lab("power", &[]);
    host.lab("boot", &[]);
    within("it runs", Duration::from_secs(30), || version(host) == "1");
    assert_eq!(host.root("systemctl show roadie-boot-hello -p ConditionResult --value"), "no");
}

/// A first deployment that is never confirmed leaves nothing in service.
#[test]
fn a_first_deploy_that_is_never_confirmed() {
    let Some(hosts) = lab("a_first_deploy_that_is_never_confirmed", 1) else { return };
    let host = &hosts[0];
    for power in [false, true] {
        let project = project(host, "systemd");
        let mut child = start_bad(&project, host);
        if power {
            host.lab("power", &[]);
        }
        child.kill().expect("kills");
        child.wait().expect("ends");
        if power {
            host.lab("boot", &[]);
        }
        within("it is gone", Duration::from_secs(30), || {
            host.root("pgrep -x hello; ls -d /opt/roadie/hello/current /etc/systemd/system/roadie-hello.service 2>/dev/null")
                .is_empty()
                && journal(host).contains("settled")
        });
        project.roadie(&["status"]).exits(0).says("there was none before");
        project.roadie(&["deploy"]).exits(0);
        assert_eq!(version(host), "1");
        project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
    }
}
