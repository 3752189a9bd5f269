//! The main job on real hosts: from nothing to healthy, through all verbs, and back.

use roadie_tests::{LabHost, Project, Run, lab, signal};

/// A definition of the example server on all hosts: the first as root, the others through sudo.
fn definition(hosts: &[LabHost], lifecycle: &str, scope: &str, extra: &str) -> String {
    let mut text = String::from("hosts:\n");
    for host in hosts {
        let user = if host.number == 1 { "root" } else { "deploy" };
        text.push_str(&format!("  h{}: {{address: {}, user: {user}, tags: [edge]}}\n", host.number, host.address));
    }
    text + &format!(
        "services:\n  hello:\n    hosts: [\"tag:edge\"]\n    build: {{type: prebuilt, path: hello}}\n    config: hello.toml.hbs\n\
         \x20   vars: {{listen: \"127.0.0.1:8080\", greeting: \"${{GREETING:-hi}}\"}}\n    deploy:\n      lifecycle: {lifecycle}\n\
         \x20     scope: {scope}\n      args: [\"--config\", \"{{{{config_path}}}}\"]\n\
         \x20     env: {{HELLO_VERSION: \"${{V:-1}}\", HELLO_UNHEALTHY: \"${{BAD:-0}}\", QUOTED: \"a b\\\"c'd$$e%f\"}}\n{extra}\
         \x20     health: {{http: \"http://127.0.0.1:8080/health\", interval: 200ms, timeout: 4s, stable_for: 1s}}\n"
    )
}

fn project(hosts: &[LabHost], lifecycle: &str, scope: &str, extra: &str) -> Project {
    let project = Project::new();
    project.add_hello();
    project.write("hello.toml.hbs", "listen = {{toml listen}}\ngreeting = \"{{greeting}} from {{host.name}}\"\n");
    project.write("roadie.yaml", &definition(hosts, lifecycle, scope, extra));
    project
}

/// What the running server itself says.
fn ask(host: &LabHost, path: &str) -> String {
    let script = format!(
        "perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(PeerAddr=>\"127.0.0.1:8080\",Timeout=>3) or exit 1; \
         print $s \"GET {path} HTTP/1.0\\r\\n\\r\\n\"; local $/; $_=<$s>; s/.*?\\r\\n\\r\\n//s; print'"
    );
    host.root(&script)
}

fn each_report(run: &Run) -> Vec<serde_json::Value> {
    run.summary()["hosts"].as_array().cloned().unwrap_or_default()
}

fn invocations(hosts: &[LabHost]) -> Vec<String> {
    hosts.iter().map(|h| h.root("systemctl show roadie-hello -p InvocationID,NRestarts")).collect()
}

#[test]
fn systemd_as_root_and_through_sudo() {
    let Some(hosts) = lab("systemd_as_root_and_through_sudo", 3) else { return };
    let project = project(&hosts, "systemd", "system", "      setup_commands: [\"touch /opt/set-up-$(hostname)\"]\n");

    // From nothing to healthy on all hosts.
    let first = project.roadie(&["deploy", "--json"]).exits(0);
    for (host, report) in hosts.iter().zip(each_report(&first)) {
        assert_eq!(ask(host, "/version"), "1");
        assert_eq!(ask(host, "/"), format!("hi from h{}", host.number));
        assert!(report["sent_bytes"].as_u64() > Some(100_000), "{report}");
        assert_eq!(host.root("ls /opt/set-up-host*"), format!("/opt/set-up-host{}", host.lab_number));
        assert_eq!(host.root("stat -c %a /opt/roadie/hello/current/env"), "600", "the environment is for root alone");
        assert_eq!(host.root("systemctl show roadie-hello -p DynamicUser --value"), "yes");
        let pid = host.root("systemctl show roadie-hello -p MainPID --value");
        let quoted = host.root(&format!("tr '\\0' '\\n' </proc/{pid}/environ | sed -n 's/^QUOTED=//p'"));
        assert_eq!(quoted, "a b\"c'd$e%f", "a value arrives as it was written");
    }
    assert!(!first.stdout.contains("a b\\\\\\\"c"), "values of the environment are in no output");

    // The same again: nothing.
    let before = invocations(&hosts);
    // The host's own systemd says how far the unit is locked in; old ones know fewer directives, and say more.
    let exposure = hosts[0]
        .root("systemd-analyze security roadie-hello.service --no-pager | sed -n 's/.*level for .*: \\([0-9.]*\\) .*/\\1/p'");
    let exposure: f32 = exposure.parse().unwrap_or_else(|_| panic!("a score: {exposure}"));
    assert!(exposure <= 1.5, "exposure {exposure}");

    let again = project.roadie(&["deploy", "--json"]).exits(0);
    for report in each_report(&again) {
        assert_eq!((report["sent_bytes"].as_u64(), report["outcome"].as_str()), (Some(0), Some("done")), "{report}");
        assert!(report["summary"].as_str().is_some_and(|s| s.starts_with("nothing to do")), "{report}");
    }
    assert_eq!(invocations(&hosts), before, "no restart");

    // A new version; then one that never gets healthy comes with another unit and config, and all of it goes back.
    project.run_with(&["deploy"], &[("V", "2"), ("GREETING", "ho")]).exits(0);
    let unit = |h: &LabHost| {
        h.root("cat /etc/systemd/system/roadie-hello.service; readlink /opt/roadie/hello/current; cat /opt/roadie/hello/current/config.toml")
    };
    let good: Vec<String> = hosts.iter().map(unit).collect();
    project.write(
        "roadie.yaml",
        &definition(&hosts, "systemd", "system", "      setup_commands: [\"true\"]\n")
            .replace("[\"--config\"", "[\"--crash-after\", \"3000\", \"--config\""),
    );
    let failed = project.run_with(&["deploy", "--json"], &[("V", "3"), ("BAD", "1"), ("GREETING", "xx")]).exits(5);
    for (host, report) in hosts.iter().zip(each_report(&failed)) {
        assert_eq!(report["outcome"], "rolled_back", "{report}");
        assert!(report["causes"][0].as_str().is_some_and(|c| c.contains("answered 503")), "{report}");
        assert!(report["last_output"].to_string().contains("GET /health 503"), "{report}");
        assert_eq!((ask(host, "/version"), ask(host, "/")), ("2".into(), format!("ho from h{}", host.number)));
    }
    assert_eq!(hosts.iter().map(unit).collect::<Vec<_>>(), good, "unit, link and config are the old ones");

    // The failed release is remembered as such and can be read about.
    let releases = project.roadie(&["releases"]).exits(0);
    assert_eq!(releases.stdout.matches("failed").count(), 3, "{}", releases.stdout);
    let failed_id =
        each_report(&failed)[0]["hint"].as_str().and_then(|h| h.split("--release ").nth(1)?.split('`').next().map(str::to_owned));
    let failed_id = failed_id.expect("the hint names the release");
    project.roadie(&["logs", "--host", "h1", "--release", &failed_id]).exits(0).says("hello 3 listens");

    // By hand: back to version 1, and forth again.
    project.roadie(&["rollback"]).exits(0);
    assert!(hosts.iter().all(|h| ask(h, "/version") == "1"));
    project.roadie(&["rollback"]).exits(0);
    assert!(hosts.iter().all(|h| ask(h, "/version") == "2"));

    stop_start_restart(&project, &hosts);
    let status = project.roadie(&["status", "--json"]).exits(0);
    assert!(each_report(&status).iter().all(|r| r["data"]["service"]["state"] == "running"));
    project.roadie(&["exec", "--host", "h2", "--", "sh", "-c", "id -un; exit 7"]).exits(7).says("deploy");

    remove_and_check(&project, &hosts);
}

fn stop_start_restart(project: &Project, hosts: &[LabHost]) {
    project.roadie(&["stop"]).exits(0);
    assert!(hosts.iter().all(|h| ask(h, "/version").is_empty()), "nothing answers");
    project.roadie(&["stop"]).exits(0).says("nothing to do");
    project.roadie(&["start"]).exits(0);
    project.roadie(&["start"]).exits(0).says("nothing to do");
    let pids = |hosts: &[LabHost]| hosts.iter().map(|h| h.root("pgrep -x hello")).collect::<Vec<_>>();
    let before = pids(hosts);
    project.roadie(&["restart"]).exits(0);
    let after = pids(hosts);
    assert!(before.iter().zip(&after).all(|(b, a)| !a.is_empty() && a != b), "{before:?} {after:?}");
    assert!(hosts.iter().all(|h| ask(h, "/version") == "2"));
}

fn remove_and_check(project: &Project, hosts: &[LabHost]) {
    project.roadie(&["cleanup"]).exits(0);
    project.roadie(&["cleanup", "--all"]).exits(2).says("--yes");
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
    for host in hosts {
        assert_eq!(host.root("pgrep -x hello; pgrep -f roadie"), "", "no process is left");
        let left = host.root("ls -d /opt/roadie /etc/systemd/system/roadie-* /etc/systemd/system/*.wants/roadie-* ~/.roadie /home/deploy/.roadie /home/deploy/.local/share/roadie/* 2>/dev/null");
        assert_eq!(left, "", "no file is left");
        assert!(host.root("systemctl status roadie-hello 2>&1").contains("could not be found"));
    }
    project.roadie(&["status"]).exits(0).says("absent");
}

#[test]
fn simple_as_root_and_through_sudo() {
    let Some(hosts) = lab("simple_as_root_and_through_sudo", 3) else { return };
    simple(&hosts, "system");
}

#[test]
fn simple_in_the_users_own_scope() {
    let Some(hosts) = lab("simple_in_the_users_own_scope", 3) else { return };
    simple(&hosts, "user");
    for host in &hosts[1..] {
        assert_eq!(host.root("ls -d /opt/roadie 2>/dev/null"), "", "the user's scope is the user's home");
    }
}

/// No root at all: the user's own systemd.
#[test]
fn systemd_in_the_users_own_scope() {
    let Some(hosts) = lab("systemd_in_the_users_own_scope", 1) else { return };
    let hosts = &hosts[..1];
    let project = project(hosts, "systemd", "user", "");
    let text =
        definition(hosts, "systemd", "user", "").replace("user: root", "user: plain").replace("user: deploy", "user: plain");
    project.write("roadie.yaml", &text);
    project.roadie(&["deploy"]).exits(0);
    assert_eq!(hosts[0].root("ps -o user= -p $(pgrep -x hello)"), "plain");
    project.run_with(&["deploy"], &[("V", "2")]).exits(0);
    project.run_with(&["deploy"], &[("V", "3"), ("BAD", "1")]).exits(5).says("rolled back to release");
    assert_eq!(ask(&hosts[0], "/version"), "2");
    project.roadie(&["deploy"]).exits(0);
    project.roadie(&["rollback"]).exits(0);
    project.roadie(&["logs", "-n", "50"]).exits(0).says("hello 2 listens");
    stop_start_restart(&project, hosts);
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
    assert_eq!(hosts[0].root("pgrep -x hello; ls -d /opt/roadie /home/plain/.config/systemd/user/roadie-* 2>/dev/null"), "");
}

fn simple(hosts: &[LabHost], scope: &str) {
    let project = project(hosts, "simple", scope, "      setup_commands: [\"echo set up\"]\n");
    project.roadie(&["deploy"]).exits(0);
    assert!(hosts.iter().all(|h| ask(h, "/version") == "1"));
    let owner = hosts[1].root("ps -o user= -p $(pgrep -x hello)");
    assert_eq!(owner, if scope == "user" { "deploy" } else { "root" });
    let pids = || hosts.iter().map(|h| h.root("pgrep -x hello")).collect::<Vec<_>>();
    let before = pids();
    project.roadie(&["deploy"]).exits(0).says("nothing to do");
    assert_eq!(pids(), before, "no restart");

    project.run_with(&["deploy"], &[("V", "2")]).exits(0);
    let failed = project.run_with(&["deploy", "--json"], &[("V", "3"), ("BAD", "1")]).exits(5);
    assert!(each_report(&failed).iter().all(|r| r["outcome"] == "rolled_back"));
    assert!(hosts.iter().all(|h| ask(h, "/version") == "2"));

    // A crash is mended by the supervisor, and shows.
    hosts[0].root("pkill -KILL -x hello");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(ask(&hosts[0], "/version"), "2");
    let status = project.roadie(&["status", "--json", "--host", "h1"]).exits(0);
    assert_eq!(each_report(&status)[0]["data"]["service"]["restarts"], 1);

    project.roadie(&["logs", "-n", "20", "--host", "h1"]).exits(0).says("hello 2 listens");
    project.roadie(&["rollback"]).exits(0);
    assert!(hosts.iter().all(|h| ask(h, "/version") == "1"));
    project.roadie(&["rollback"]).exits(0);
    stop_start_restart(&project, hosts);
    remove_and_check(&project, hosts);
}

/// mini-redis: a published server that is not ours, as a prebuilt binary; as root, through sudo, and on this machine.
#[test]
fn a_server_that_is_not_ours() {
    let Some(hosts) = lab("a_server_that_is_not_ours", 3) else { return };
    let Some(peer) = std::env::var_os("ROADIE_PEER") else {
        return roadie_tests::skip("a_server_that_is_not_ours", "ROADIE_PEER names no server");
    };
    let user = |h: &LabHost| if h.number == 1 { "root" } else { "deploy" };
    let list: Vec<String> = hosts.iter().map(|h| format!("{{address: {}, user: {}}}", h.address, user(h))).collect();
    let remote = format!("hosts: [{}]", list.join(", "));
    let get = "*2\r\n$3\r\nget\r\n$1\r\nx\r\n";
    let escaped = get.replace('$', "\\$").replace('\r', "\\r").replace('\n', "\\n");
    let on_hosts = || {
        let script = format!(
            "perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(PeerAddr=>\"127.0.0.1:6400\",Timeout=>3) or exit 1; \
             print $s \"{escaped}\"; print scalar <$s>'"
        );
        hosts.iter().all(|h| h.root(&script) == "$-1")
    };
    for lifecycle in ["systemd", "simple"] {
        not_ours(&peer, &remote, hosts.len(), lifecycle, &on_hosts);
        assert!(hosts.iter().all(|h| h.root("pgrep -f mini-[r]edis; ls -d /opt/roadie 2>/dev/null").is_empty()), "{lifecycle}");
    }
    let here = || {
        use std::io::{BufRead as _, Write as _};
        let mut line = String::new();
        if let Ok(mut stream) = std::net::TcpStream::connect("127.0.0.1:6400") {
            let _ = stream.write_all(get.as_bytes());
            let _ = std::io::BufReader::new(stream).read_line(&mut line);
        }
        line.trim() == "$-1"
    };
    not_ours(&peer, "runtime: local", 1, "simple", &here);
    assert!(!here(), "it is gone");
}

/// While `logs -f` runs, the server is started again on each of the places: each says so once, under its own name.
fn follows(project: &Project, places: usize) {
    use std::io::BufRead as _;
    let mut child = project.command(&["logs", "-f", "-n", "1"]).spawn().expect("starts");
    let (said, lines) = std::sync::mpsc::channel();
    let stdout = child.stdout.take().expect("is piped");
    let reader = std::thread::spawn(move || {
        for line in std::io::BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = said.send(line);
        }
    });
    let within = std::time::Duration::from_secs(20);
    // The last line of each place is said first: from then on all are followed.
    let before: Vec<String> = (0..places).map(|_| lines.recv_timeout(within).expect("the last line")).collect();
    project.roadie(&["restart"]).exits(0);
    let mut after = Vec::new();
    while after.len() < places {
        let line = lines.recv_timeout(within).unwrap_or_else(|e| panic!("{after:?} after {before:?}: {e}"));
        if line.contains("accepting inbound connections") {
            after.push(line);
        }
    }
    signal(&child, "INT");
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    reader.join().expect("reads to the end");
    let names = |lines: &[String]| {
        let mut names: Vec<String> = lines.iter().filter_map(|l| Some(l.split_once(" | ")?.0.to_owned())).collect();
        names.sort();
        names.dedup();
        let wanted = if places == 1 { 0 } else { places };
        assert_eq!(names.len(), wanted, "each place once, and by its name where there are several: {lines:?}");
        names
    };
    assert_eq!(names(&after), names(&before));
}

fn not_ours(peer: &std::ffi::OsStr, place: &str, places: usize, lifecycle: &str, answers: &dyn Fn() -> bool) {
    let project = Project::new();
    std::fs::copy(peer, project.dir.join("mini-redis-server")).expect("copies");
    let text = format!(
        "services:\n  redis:\n    {place}\n    build: {{type: prebuilt, path: mini-redis-server}}\n    deploy:\n      \
         lifecycle: {lifecycle}\n      args: [\"--port\", \"${{PORT:-6400}}\"]\n      env: {{RUST_LOG: info}}\n      \
         health: {{tcp: 6400, timeout: 3s, interval: 200ms, stable_for: 500ms}}\n"
    );
    project.write("roadie.yaml", &text);
    project.roadie(&["pack"]).exits(0);
    project.roadie(&["deploy"]).exits(0);
    assert!(answers(), "{place} {lifecycle}");
    project.roadie(&["status"]).exits(0).says("running");
    project.roadie(&["logs"]).exits(0).says("accepting inbound connections");
    follows(&project, places);
    // A version that listens elsewhere fails its health check; the old one is back.
    project.run_with(&["deploy"], &[("PORT", "6401")]).exits(5).says("found nobody listening").says("rolled back");
    assert!(answers(), "{place} {lifecycle}");
    // One that does not start at all.
    project.write("roadie.yaml", &text.replace("[\"--port\"", "[\"--no-such-option\""));
    project.roadie(&["deploy"]).exits(5).says("rolled back");
    assert!(answers(), "{place} {lifecycle}");
    // A new good version, stop, start, restart, and back.
    project.write("roadie.yaml", &text.replace("RUST_LOG: info", "RUST_LOG: debug"));
    project.roadie(&["deploy"]).exits(0);
    for verb in ["stop", "start", "restart", "rollback"] {
        project.roadie(&[verb]).exits(0);
    }
    assert!(answers(), "{place} {lifecycle}");
    project.write("roadie.yaml", &text);
    project.roadie(&["deploy"]).exits(0).says("nothing to do");
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
}

/// Round trips after the login are counted by the transport. They grow neither with files, nor with steps, nor with hosts.
#[test]
fn round_trips_of_a_routine_deploy() {
    let Some(hosts) = lab("round_trips_of_a_routine_deploy", 3) else { return };
    let project = Project::new();
    project.add_hello();
    for n in 0..60 {
        project.write(&format!("static/{n}.txt"), &format!("file {n}\n"));
    }
    let text = |hosts: &[LabHost], files: &str, extra: &str, health: &str| {
        let list: Vec<String> = hosts.iter().map(|h| format!("{{address: {}, user: deploy}}", h.address)).collect();
        format!(
            "services:\n  hello:\n    hosts: [{}]\n    build: {{type: prebuilt, path: hello}}\n{files}    deploy:\n      \
             args: [--listen, \"127.0.0.1:8080\"]\n{extra}      health: {{{health}}}\n",
            list.join(", ")
        )
    };
    let trips = |text: &str| -> Vec<u64> {
        project.write("roadie.yaml", text);
        let run = project.roadie(&["deploy", "--json"]).exits(0);
        let reports = each_report(&run);
        assert!(reports.iter().all(|r| r["sent_bytes"].as_u64() > Some(0)), "each deploy sends a package: {reports:?}");
        reports.iter().map(|r| r["round_trips"].as_u64().expect("a number")).collect()
    };
    let stays = "stable_for: 300ms";
    let files = "    files: [{from: static, to: share/static}]\n";
    // The first one brings the host script along, for which it is asked.
    let first = trips(&text(&hosts, files, "", stays));
    let small = trips(&text(&hosts[..1], "", "", stays));
    let large = trips(&text(&hosts[..1], files, "      setup_commands: [\"true\", \"true\", \"true\"]\n", stays));
    let fleet = trips(&text(&hosts, files, "      setup_commands: [\"true\", \"echo done\"]\n", stays));
    assert!(first.iter().all(|n| *n == small[0] + 1), "{first:?} {small:?}");
    assert!(small[0] > 0 && small == large && fleet.iter().all(|n| *n == small[0]), "{small:?} {large:?} {fleet:?}");
    // With a probe over the connection. One that comes before the server listens is made again: the best of some counts.
    let mut best = u64::MAX;
    for n in 0..5 {
        project.write("static/new.txt", &format!("round {n}\n"));
        let probed = trips(&text(&hosts, files, "", "http: \"http://127.0.0.1:8080/health\", interval: 3s, stable_for: 300ms"));
        best = best.min(probed.iter().copied().max().unwrap_or(u64::MAX));
        if best <= 8 {
            break;
        }
    }
    assert!(best <= 8, "without a probe {small:?}, with one {best}");
    // Nothing to do: fewer still.
    let again = project.roadie(&["deploy", "--json"]).exits(0);
    assert!(each_report(&again).iter().all(|r| r["round_trips"].as_u64() < Some(small[0] - 1)));
}
