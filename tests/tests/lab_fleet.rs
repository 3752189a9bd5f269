//! Several hosts as one, and one as another: nothing is changed before all can take part, then the policies; and plans that are kept.

use roadie_tests::{LabHost, Project, Run, lab};
use std::time::{Duration, Instant};

/// The example server on all hosts. Version 3 never gets healthy on the second one.
fn project(hosts: &[LabHost], deploy: &str) -> Project {
    let project = Project::new();
    project.add_hello();
    let list: Vec<String> =
        hosts.iter().map(|h| format!("  h{}: {{address: {}, user: root, timeout: 4s}}\n", h.number, h.address)).collect();
    project.write(
        "roadie.yaml",
        &format!(
            "hosts:\n{}services:\n  hello:\n    hosts: [h1, h2, h3]\n    build: {{type: prebuilt, path: hello}}\n    deploy:\n      \
             args: [--listen, \"127.0.0.1:8080\"]\n      env: {{HELLO_VERSION: \"${{V:-1}}\"}}\n{deploy}      \
             health: {{exec: \"! grep -q HELLO_VERSION=.3 env || test $(hostname) != host{}\", timeout: 2s, interval: 200ms, stable_for: 200ms}}\n",
            list.concat(),
            hosts.get(1).map_or(0, |h| h.lab_number),
        ),
    );
    project
}

fn versions(hosts: &[LabHost]) -> Vec<String> {
    let script = "tr '\\0' '\\n' </proc/$(pgrep -x hello)/environ 2>/dev/null | sed -n 's/^HELLO_VERSION=//p'";
    hosts.iter().map(|h| h.root(script)).collect()
}

fn outcomes(run: &Run) -> Vec<String> {
    let hosts = run.summary()["hosts"].as_array().cloned().unwrap_or_default();
    hosts.iter().map(|h| h["outcome"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn all_can_take_part_or_none_is_changed() {
    let Some(hosts) = lab("all_can_take_part_or_none_is_changed", 3) else { return };
    let project = project(&hosts, "");
    project.roadie(&["deploy"]).exits(0);
    let journals = || hosts.iter().map(|h| h.root("cat /opt/roadie/hello/.roadie/journal.jsonl")).collect::<Vec<_>>();
    let before = journals();
    hosts[1].lab("cut", &[]);
    let run = project.run_with(&["deploy"], &[("V", "2")]).exits(4);
    run.says("not begun: `h2` cannot take part, so no host was changed").says("took longer than 4 s");
    hosts[1].lab("heal", &[]);
    assert_eq!((versions(&hosts), journals()), (vec!["1".to_owned(); 3], before), "no host was changed, not even its journal");

    // Left out when asked to, and the others do not wait for it.
    hosts[1].lab("cut", &[]);
    let began = Instant::now();
    let run = project.run_with(&["deploy", "--skip-unreachable", "--json"], &[("V", "2")]).exits(11);
    assert_eq!(outcomes(&run), ["done", "unreachable", "done"], "{:?}", began.elapsed());
    hosts[1].lab("heal", &[]);
    assert_eq!(versions(&hosts), ["2", "1", "2"]);

    // A host that cannot take the package stops the others too.
    hosts[2].lab("disk", &["20"]);
    project.run_with(&["deploy"], &[("V", "4")]).exits(8).says("not begun: `h3` cannot take part").says("MiB free");
    hosts[2].lab("undisk", &[]);
    assert_eq!(versions(&hosts), ["2", "1", "2"]);
    // It converges.
    project.run_with(&["deploy"], &[("V", "2")]).exits(0);
    assert_eq!(versions(&hosts), ["2", "2", "2"]);
}

#[test]
fn rolling_canary_and_what_becomes_of_the_others() {
    let Some(hosts) = lab("rolling_canary_and_what_becomes_of_the_others", 3) else { return };
    let project = project(&hosts, "      strategy: rolling\n");
    project.roadie(&["deploy"]).exits(0);
    let bad = [("V", "3")];

    let run = project.run_with(&["deploy", "--json"], &bad).exits(11);
    assert_eq!((outcomes(&run), versions(&hosts)), (texts(["done", "rolled_back", "failed_unchanged"]), texts(["3", "1", "1"])));
    let run = project.run_with(&["deploy", "--json", "--on-failure", "rollback_all"], &[("V", "1")]).exits(0);
    assert_eq!(outcomes(&run), texts(["done", "done", "done"]));

    let run = project.run_with(&["deploy", "--json", "--on-failure", "rollback_all"], &bad).exits(5);
    assert_eq!(
        (outcomes(&run), versions(&hosts)),
        (texts(["rolled_back", "rolled_back", "failed_unchanged"]), texts(["1", "1", "1"]))
    );
    assert!(run.stdout.contains("rolled back with the fleet"), "{}", run.stdout);

    let run = project.run_with(&["deploy", "--json", "--max-failures", "1"], &bad).exits(11);
    assert_eq!((outcomes(&run), versions(&hosts)), (texts(["done", "rolled_back", "done"]), texts(["3", "1", "3"])));
    project.roadie(&["deploy"]).exits(0);

    // The canary is the first: the second fails only together with the third.
    let run = project.run_with(&["deploy", "--json", "--strategy", "canary"], &bad).exits(11);
    assert_eq!((outcomes(&run), versions(&hosts)), (texts(["done", "rolled_back", "done"]), texts(["3", "1", "3"])));
    project.roadie(&["deploy"]).exits(0);

    // A first deployment that is taken back with the fleet leaves nothing.
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
    project.run_with(&["deploy", "--strategy", "all", "--on-failure", "rollback_all"], &bad).exits(5);
    for host in &hosts {
        assert_eq!(host.root("pgrep -x hello; ls -d /opt/roadie/hello/current /etc/systemd/system/roadie-* 2>/dev/null"), "");
    }
}

fn texts(words: [&str; 3]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[test]
fn a_kept_plan_is_carried_out_as_it_is_or_not_at_all() {
    let Some(hosts) = lab("a_kept_plan_is_carried_out_as_it_is_or_not_at_all", 3) else { return };
    let project = project(&hosts, "");
    let secret = [("V", "s3cr3t-version")];
    project.run_with(&["plan", "--out", "first.plan"], &secret).exits(0);
    let text = std::fs::read_to_string(project.dir.join("first.plan")).expect("was written");
    assert!(text.contains("\"roadie.plan/1\"") && !text.contains("s3cr3t"), "no value of the environment is in it");

    project
        .run_with(&["deploy", "--plan", "first.plan"], &[("V", "other")])
        .exits(8)
        .says("the definition or its environment changed");
    assert!(versions(&hosts).iter().all(String::is_empty));
    project.run_with(&["deploy", "--plan", "first.plan"], &secret).exits(0);
    assert!(versions(&hosts).iter().all(|v| v == "s3cr3t-version"));
    // The host is not as it was when the plan was made: it was carried out.
    project
        .run_with(&["deploy", "--plan", "first.plan"], &secret)
        .exits(8)
        .says("the host moved since the plan was made: current was none");

    project.run_with(&["plan", "--out", "second.plan"], &[("V", "2")]).exits(0);
    project.roadie(&["stop", "--host", "h3"]).exits(0);
    let run = project.run_with(&["deploy", "--plan", "second.plan"], &[("V", "2")]).exits(8);
    run.says("the service was running, it is stopped").says("not begun: `h3` cannot take part");
    assert_eq!(versions(&hosts)[0], "s3cr3t-version");
    // Only some of its hosts.
    project.run_with(&["deploy", "--plan", "second.plan", "--host", "h1"], &[("V", "2")]).exits(0);
    assert_eq!(versions(&hosts)[0], "2");

    project.write("no.plan", "{}");
    project.roadie(&["deploy", "--plan", "no.plan"]).exits(2).says("is not a plan of this roadie");
    project.roadie(&["deploy", "--plan", "missing.plan"]).exits(2).says("No such file");
    hosts[1].lab("cut", &[]);
    project.roadie(&["plan", "--out", "third.plan"]).exits(4).says("no plan was written");
    hosts[1].lab("heal", &[]);
    assert!(!project.dir.join("third.plan").exists());
}

#[test]
fn waiting_for_the_lock() {
    let Some(hosts) = lab("waiting_for_the_lock", 3) else { return };
    let slow = project(&hosts, "      setup_commands: [\"sleep 8\"]\n");
    let mut holder = slow.command(&["deploy"]).env("V", "1").spawn().expect("starts");
    let began = Instant::now();
    while hosts.iter().any(|h| h.root("cat /opt/roadie/hello/.roadie/holder 2>/dev/null").is_empty()) {
        assert!(began.elapsed() < Duration::from_secs(20), "the lock is never taken");
        std::thread::sleep(Duration::from_millis(100));
    }
    let other = project(&hosts, "");
    other.run_with(&["deploy"], &[("V", "2")]).exits(7).says("another run holds the lock: ").says("pid").says("--lock-wait");
    let run = other.run_with(&["deploy", "--lock-wait", "60s"], &[("V", "2")]).exits(0);
    run.says("waiting: another run holds the lock");
    assert!(holder.wait().expect("ends").success());
    assert_eq!(versions(&hosts), ["2", "2", "2"]);
    other.roadie(&["deploy", "--lock-wait", "soon"]).exits(2);
    // Two that want the same hosts, the other way round: they do not wait for each other for ever.
    let turned = project(&hosts, "");
    let yaml = std::fs::read_to_string(turned.dir.join("roadie.yaml")).expect("reads");
    turned.write("roadie.yaml", &yaml.replace("[h1, h2, h3]", "[h3, h2, h1]"));
    let run = |project: &Project, version: &str| {
        project.command(&["deploy", "--lock-wait", "60s"]).env("V", version).spawn().expect("starts")
    };
    let mut both = [run(&other, "4"), run(&turned, "5")];
    assert!(both.iter_mut().all(|child| child.wait().expect("ends").success()));
    assert!(versions(&hosts).iter().all(|v| v == "4") || versions(&hosts).iter().all(|v| v == "5"), "{:?}", versions(&hosts));
}

/// A host is lost; a new one gets what the old one had, and goes on as if it were it.
#[test]
fn a_lost_host_is_rebuilt_from_its_backup() {
    let Some(hosts) = lab("a_lost_host_is_rebuilt_from_its_backup", 3) else { return };
    let (old, new) = (&hosts[..1], &hosts[1..2]);
    let one = |host: &LabHost| {
        let project = project(&hosts, "");
        let yaml = std::fs::read_to_string(project.dir.join("roadie.yaml")).expect("reads");
        let yaml = yaml.replace("hosts: [h1, h2, h3]", "hosts: [lost]").replace(&format!("  h{}: ", host.number), "  lost: ");
        project.write("roadie.yaml", &yaml);
        project
    };
    let before = one(&old[0]);
    before.roadie(&["backup", "lost"]).exits(1).says("it is not deployed there");
    before.roadie(&["deploy"]).exits(0);
    before.run_with(&["deploy"], &[("V", "2")]).exits(0);
    let backup = before.command(&["backup", "lost"]).output().expect("runs");
    assert!(backup.status.success() && backup.stdout.len() > 100_000, "{}", String::from_utf8_lossy(&backup.stderr));
    before.roadie(&["backup", "other"]).exits(2).says("no host matches `other`");

    let after = one(&new[0]);
    let restore = |bytes: &[u8]| {
        use std::io::Write as _;
        let mut child = after.command(&["restore", "lost"]).stdin(std::process::Stdio::piped()).spawn().expect("starts");
        let _ = child.stdin.take().expect("is piped").write_all(bytes);
        roadie_tests::finished(&child.wait_with_output().expect("waits"), Instant::now())
    };
    restore(b"no tar at all").exits(2).says("standard input is not a backup");
    let mut damaged = backup.stdout.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    restore(&damaged).exits(9);
    assert_eq!(versions(new), [""]);
    restore(&backup.stdout).exits(0).says("restored and running");
    assert_eq!(versions(new), ["2"]);
    restore(&backup.stdout).exits(1).says("it is deployed there already").says("cleanup --all");
    // It has its past, and goes on with it: nothing to do, back to version 1, and a version 3.
    after.run_with(&["deploy"], &[("V", "2")]).exits(0).says("nothing to do");
    after.roadie(&["rollback"]).exits(0);
    assert_eq!(versions(new), ["1"]);
    after.run_with(&["deploy"], &[("V", "4")]).exits(0);
    new[0].lab("power", &[]);
    new[0].lab("boot", &[]);
    let began = Instant::now();
    while versions(new) != ["4"] {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not start at boot");
        std::thread::sleep(Duration::from_millis(200));
    }
}
