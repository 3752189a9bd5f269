//! Faults of the network, of sshd, of sudo and of the service that the campaign does not have, each with its outcome.

use roadie_tests::{LabHost, Project, finished, lab, signal};
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

const HEALTH: &str = "http: \"http://127.0.0.1:8080/health\", timeout: 3s, interval: 200ms, stable_for: 300ms";

/// The example server for one host: `service` and `deploy` are added to the YAML at their places.
fn project(host: &LabHost, user: &str, service: &str, health: &str, deploy: &str) -> Project {
    let project = Project::new();
    project.add_hello();
    define(&project, host, user, service, health, deploy);
    project
}

fn define(project: &Project, host: &LabHost, user: &str, service: &str, health: &str, deploy: &str) {
    project.write(
        "roadie.yaml",
        &format!(
            "services:\n  hello:\n    hosts: [{{address: {}, user: {user}}}]\n    build: {{type: prebuilt, path: hello}}\n{service}    deploy:\n      \
             args: [--listen, \"127.0.0.1:8080\"]\n      health: {{{health}}}\n{deploy}",
            host.address
        ),
    );
}

fn current(host: &LabHost) -> String {
    host.root("readlink /opt/roadie/hello/current; cat /opt/roadie/hello/current/env 2>/dev/null")
}

fn sshd(host: &LabHost, settings: &str) {
    host.root(&format!("printf '{settings}' >/etc/ssh/sshd_config.d/z.conf; systemctl reload ssh"));
    // It starts itself anew, and listens again a moment later.
    std::thread::sleep(Duration::from_secs(1));
    while std::net::TcpStream::connect((host.address.as_str(), 22)).is_err() {
        std::thread::sleep(Duration::from_millis(50));
    }
    // That look itself counts as a login that starts.
    std::thread::sleep(Duration::from_millis(500));
}

/// After a crash loop systemd refuses further starts for a while. Who mended the cause and asks for a start gets one.
#[test]
fn a_service_that_crashed_often_starts_as_soon_as_it_is_mended() {
    let Some(hosts) = lab("a_service_that_crashed_often_starts_as_soon_as_it_is_mended", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "deploy", "", HEALTH, "");
    project.roadie(&["deploy"]).exits(0);
    host.root(
        "chmod -x /opt/roadie/hello/current/bin/hello; systemctl kill -s KILL roadie-hello; n=0; \
         until systemctl is-failed -q roadie-hello; do n=$((n+1)); [ $n -lt 600 ] || exit 1; systemctl start roadie-hello 2>/dev/null; sleep 0.1; done; \
         ! systemctl start roadie-hello 2>/dev/null; chmod +x /opt/roadie/hello/current/bin/hello",
    );
    project.roadie(&["restart"]).exits(0);
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
}

#[test]
fn links_that_lose_or_are_slow() {
    let Some(hosts) = lab("links_that_lose_or_are_slow", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "deploy", "", HEALTH, "      env: {V: \"${V:-1}\"}\n");
    host.lab("lossy", &["10"]);
    let lossy = project.roadie(&["deploy"]);
    host.lab("heal", &[]);
    lossy.exits(0);
    host.root("rm -rf /opt/roadie/hello/releases/*/COMPLETE");
    host.lab("slow", &["1000"]);
    let slow = project.run_with(&["deploy", "--json"], &[("V", "2")]);
    host.lab("heal", &[]);
    let report = slow.exits(0).summary()["hosts"][0].clone();
    let (bytes, ms) = (report["sent_bytes"].as_u64().expect("bytes"), report["ms"].as_u64().expect("ms"));
    assert!(bytes > 400_000 && ms > bytes * 8 / 1000 * 7 / 10, "{bytes} bytes in {ms} ms: the link was not slow");
}

#[test]
fn keys_renewed_in_the_middle_of_an_upload() {
    let Some(hosts) = lab("keys_renewed_in_the_middle_of_an_upload", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "root", "    files: [{from: blob, to: blob}]\n", HEALTH, "");
    let mut blob = vec![0; 48 << 20];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut blob)).expect("reads");
    std::fs::write(project.dir.join("blob"), &blob).expect("writes");
    sshd(host, "RekeyLimit 1M\\n");
    let run = project.roadie(&["deploy", "--json"]);
    host.root("rm /etc/ssh/sshd_config.d/z.conf; systemctl reload ssh");
    assert!(run.exits(0).summary()["hosts"][0]["sent_bytes"].as_u64() > Some(48 << 20));
}

/// Who pages through logs is still connected when they go on, though more waits for them than roadie keeps.
#[test]
fn a_reader_that_takes_its_time_costs_no_connection() {
    let Some(hosts) = lab("a_reader_that_takes_its_time_costs_no_connection", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "root", "", HEALTH, "      lifecycle: simple\n");
    project.roadie(&["deploy"]).exits(0);
    sshd(host, "ClientAliveInterval 1\\nClientAliveCountMax 2\\n");
    let say = |what: &str, times: u32| {
        let line = format!("$(date -u +%Y-%m-%dT%H:%M:%SZ) 0 {what}");
        host.root(&format!("yes \"{line}\" | head -n {times} >>/opt/roadie/hello/.roadie/simple/log"));
    };
    // Far more than a pipe holds.
    say("$(printf %0500d 0)", 10_000);
    let began = Instant::now();
    let mut child =
        project.command(&["logs", "-f", "-n", "10000"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    std::thread::sleep(Duration::from_secs(8));
    say("behind them", 1);
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("reads"));
    let before = lines.by_ref().take_while(|line| line != "behind them").count();
    signal(&child, "INT");
    let run = finished(&child.wait_with_output().expect("waits"), began).exits(130);
    host.root("rm /etc/ssh/sshd_config.d/z.conf; systemctl reload ssh");
    assert!(before >= 9999 && !run.stderr.contains("error"), "{before} lines, {}", run.stderr);
}

#[test]
fn an_sshd_that_turns_us_away_for_a_while() {
    let Some(hosts) = lab("an_sshd_that_turns_us_away_for_a_while", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "root", "", HEALTH, "");
    sshd(host, "MaxStartups 1:100:1\\n");
    // One that never logs in has the only place.
    let stranger = std::net::TcpStream::connect((host.address.as_str(), 22)).expect("connects");
    std::thread::sleep(Duration::from_millis(300));
    let run = project.roadie(&["deploy"]);
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(
        run.stderr.contains("closed the connection before the handshake") && run.stderr.contains("5 times"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("MaxStartups"), "{}", run.stderr);
    assert!(run.took.as_secs() < 15, "took {:?}", run.took);
    // It leaves while we wait: nothing is seen of it.
    let leaves = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(600));
        drop(stranger);
    });
    let run = project.roadie(&["deploy"]);
    leaves.join().expect("ends");
    host.root("rm /etc/ssh/sshd_config.d/z.conf; systemctl reload ssh");
    run.exits(0);
}

#[test]
fn sudo_that_says_no() {
    let Some(hosts) = lab("sudo_that_says_no", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "locked", "", HEALTH, "");
    let refused = project.roadie(&["deploy"]).exits(8);
    refused.says("sudo does not let `locked` run /usr/bin/sh without a password");
    // The line that it gives is the one that helps.
    let run = project.roadie(&["deploy"]);
    let line = run.stderr.split('`').find(|part| part.starts_with("locked ALL=")).expect("a line").to_owned();
    host.root(&format!("echo '{line}' >/etc/sudoers.d/roadie; chmod 440 /etc/sudoers.d/roadie"));
    let allowed = project.roadie(&["deploy"]);
    // What is allowed elsewhere is shown; then nothing is.
    host.root("echo 'locked ALL=(root) NOPASSWD: /usr/bin/true' >/etc/sudoers.d/roadie");
    let other = project.roadie(&["status"]);
    host.root("rm /etc/sudoers.d/roadie; mv /usr/bin/sudo /usr/bin/sudo.gone");
    let none = project.roadie(&["status"]);
    host.root("mv /usr/bin/sudo.gone /usr/bin/sudo");
    allowed.exits(0);
    other.exits(8).says("sudo allows `locked`: (root) NOPASSWD: /usr/bin/true");
    none.exits(8).says("there is no sudo on the host");

    // Taken away in the middle of a run: the shell that has it goes on; who comes behind is refused, and the old release serves.
    let revoke = "      setup_commands: [\"mv /etc/sudoers.d/deploy /etc/deploy.sudoers\"]\n      env: {V: \"2\"}\n";
    define(&project, host, "deploy", "", HEALTH, revoke);
    let run = project.roadie(&["deploy"]);
    let behind = project.roadie(&["status"]);
    host.root("mv /etc/deploy.sudoers /etc/sudoers.d/deploy");
    run.exits(0);
    behind.exits(8).says("sudo does not let `deploy` run");
    project.roadie(&["status"]).exits(0).says("running");
}

#[test]
fn healthy_but_of_the_wrong_version() {
    let Some(hosts) = lab("healthy_but_of_the_wrong_version", 1) else { return };
    let host = &hosts[0];
    let health = |version: &str| format!("{}, expect: \"{version}\"", HEALTH.replace("/health", "/version"));
    let project = project(host, "deploy", "", &health("build 411"), "      env: {HELLO_VERSION: build 411}\n");
    project.roadie(&["deploy"]).exits(0);
    let good = current(host);
    define(&project, host, "deploy", "", &health("build 412"), "      env: {HELLO_VERSION: build 4111}\n");
    let run = project.roadie(&["deploy"]).exits(5);
    run.says("answered `build 4111`, expected `build 412`");
    assert_eq!(current(host), good);
    // The way back asks the old one for its own version.
    project.roadie(&["status"]).exits(0).says("running");
}

#[test]
fn a_release_that_must_not_be_taken_back() {
    let Some(hosts) = lab("a_release_that_must_not_be_taken_back", 1) else { return };
    let host = &hosts[0];
    let rule =
        |bad: &str, version: &str| format!("      rollback: forbidden\n      env: {{HELLO_VERSION: \"{version}\"{bad}}}\n");
    let project = project(host, "deploy", "", HEALTH, &rule("", "1"));
    project.roadie(&["deploy"]).exits(0);
    let old = current(host);
    define(&project, host, "deploy", "", HEALTH, &rule(", HELLO_UNHEALTHY: \"1\"", "2"));
    let run = project.roadie(&["deploy"]).exits(6);
    run.says("answered 503").says("it was left as it is").says("rollback: forbidden");
    assert_ne!(current(host), old, "the new one stays");
    assert_eq!(host.root("ls /opt/roadie/hello/.roadie/guard 2>/dev/null"), "", "the host does not take it back either");
    project.roadie(&["rollback"]).exits(0);
    assert_eq!(current(host), old, "by hand it can be");
    define(&project, host, "deploy", "", HEALTH, &rule("", "3"));
    project.roadie(&["deploy"]).exits(0);
}

#[test]
fn plans_tell_what_changes_and_no_secret() {
    let Some(hosts) = lab("plans_tell_what_changes_and_no_secret", 1) else { return };
    let host = &hosts[0];
    let config = "    config: config.toml.hbs\n";
    let env = |secret: &str, level: &str| format!("      env: {{TOKEN: \"{secret}\", LEVEL: {level}}}\n");
    let project = project(host, "deploy", config, HEALTH, &env("hunter2-old", "info"));
    project.write("config.toml.hbs", "token = {{toml env.TOKEN}}\ngreeting = \"a\"\n");
    project.roadie(&["deploy"]).exits(0);
    define(&project, host, "deploy", config, HEALTH, &env("hunter2-new", "warning"));
    project.write("config.toml.hbs", "# more\ntoken = {{toml env.TOKEN}}\ngreeting = \"b\"\n");
    for words in
        [&["plan"][..], &["plan", "--json"], &["status", "--json"], &["deploy", "--dry-run"], &["plan", "--out", "p.json"]]
    {
        let run = project.roadie(words);
        assert!(!run.stdout.contains("hunter2") && !run.stderr.contains("hunter2"), "{words:?}: {}", run.stdout);
    }
    assert!(!std::fs::read_to_string(project.dir.join("p.json")).expect("reads").contains("hunter2"));
    let plan = project.roadie(&["plan"]);
    for line in ["token = \"<env.TOKEN>\"", "-greeting = \"a\"", "+greeting = \"b\"", "+TOKEN (new value)", "-LEVEL (old value)"]
    {
        assert!(plan.stdout.contains(line), "{line}: {}", plan.stdout);
    }
    let json = project.roadie(&["plan", "--json"]);
    assert!(json.stdout.contains("<env.TOKEN>"), "programs get it as well: {}", json.stdout);
}

#[test]
fn an_old_process_that_ignores_being_told_to_end() {
    let Some(hosts) = lab("an_old_process_that_ignores_being_told_to_end", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "deploy", "", HEALTH, "      env: {HELLO_VERSION: \"${V:-1}\"}\n");
    let deaf = "#!/bin/sh\ntrap '' TERM\nexec ./hello \"$@\"\n";
    project.write("deaf", deaf);
    std::fs::set_permissions(project.dir.join("deaf"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let yaml = std::fs::read_to_string(project.dir.join("roadie.yaml")).expect("reads");
    let unit = "[Unit]\nDescription=deaf\n[Service]\nExecStart={{exec}}\nEnvironmentFile=-{{env_file}}\nWorkingDirectory={{release_dir}}\nTimeoutStopSec=2\n[Install]\nWantedBy=multi-user.target\n";
    project.write("deaf.service", unit);
    project.write(
        "roadie.yaml",
        &yaml
            .replace("path: hello}", "path: deaf}\n    files: [{from: hello, to: hello}]")
            .replace("    deploy:\n", "    deploy:\n      unit: deaf.service\n"),
    );
    project.roadie(&["deploy"]).exits(0);
    let old = host.root("systemctl show roadie-hello -p MainPID --value");
    project.run_with(&["deploy"], &[("V", "2")]).exits(0);
    assert_eq!(host.root(&format!("ls -d /proc/{old} 2>/dev/null")), "", "the deaf one was killed");
    project.roadie(&["status"]).exits(0).says("running");
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
    assert_eq!(host.root("pgrep -x hello; pgrep -x deaf"), "", "nothing of it is left");
}

#[test]
fn a_systemd_that_does_not_answer() {
    let Some(hosts) = lab("a_systemd_that_does_not_answer", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "root", "", HEALTH, "      env: {V: \"${V:-1}\"}\n");
    project.roadie(&["deploy"]).exits(0);
    let old = current(host);
    // daemon-reload alone fails: in the middle of the switch.
    host.root(
        "mv /usr/bin/systemctl /usr/bin/systemctl.real; printf '#!/bin/sh\\ncase \" $* \" in *daemon-reload*) [ -e /run/calm ] || { echo bus is broken >&2; exit 1; } ;; esac\\nexec /usr/bin/systemctl.real \"$@\"\\n' >/usr/bin/systemctl; chmod 755 /usr/bin/systemctl",
    );
    let define_v2 = "      env: {V: \"2\"}\n      args: [--listen, \"127.0.0.1:8080\", --crash-after, \"100000\"]\n";
    let yaml = std::fs::read_to_string(project.dir.join("roadie.yaml")).expect("reads");
    project.write(
        "roadie.yaml",
        &yaml.replace("      args: [--listen, \"127.0.0.1:8080\"]\n", "").replace("      env: {V: \"${V:-1}\"}\n", define_v2),
    );
    let broken = project.roadie(&["deploy"]);
    host.root("touch /run/calm");
    let mended = project.roadie(&["deploy"]);
    host.root("mv /usr/bin/systemctl.real /usr/bin/systemctl; rm -f /run/calm");
    assert!([5, 6].contains(&broken.code), "{}", broken.stderr);
    broken.says("systemctl daemon-reload: bus is broken");
    mended.exits(0);
    assert_ne!(current(host), old);
}

/// Of a unit whose file is gone it keeps the name for as long as it counts as failed, or as others name it.
#[test]
fn a_unit_that_systemd_still_remembers() {
    let Some(hosts) = lab("a_unit_that_systemd_still_remembers", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "root", "", HEALTH, "      env: {V: \"${V:-1}\"}\n");
    let folder = "/etc/systemd/system";
    for (unit, other) in
        [("ExecStart=/bin/false", ""), ("ExecStart=/bin/true", "After=roadie-hello.service\\nWants=roadie-hello.service\\n")]
    {
        host.root(&format!(
            "printf '[Unit]\\n{other}[Service]\\nExecStart=/bin/sleep infinity\\n' >{folder}/other.service; \
             printf '[Service]\\n{unit}\\n' >{folder}/roadie-hello.service; systemctl daemon-reload; systemctl start roadie-hello; \
             rm {folder}/roadie-hello.service; systemctl daemon-reload; systemctl restart other; true"
        ));
        assert_eq!(host.root("systemctl show roadie-hello -p LoadState --value").trim(), "not-found");
        project.roadie(&["deploy"]).exits(0);
        assert_eq!(host.root("systemctl is-active roadie-hello").trim(), "active");
        project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
        host.root(&format!("systemctl stop other; rm {folder}/other.service; systemctl daemon-reload"));
    }
}
