//! Wrong input and bad hosts: each with its exit code, a message that a stranger understands, and the host as it was.

use roadie_tests::{LabHost, Project, lab};
use std::path::Path;

/// A project with the example server for one host; `host` and `deploy` are added to the YAML.
fn project(host: &str, deploy: &str) -> Project {
    let project = Project::new();
    project.add_hello();
    project.write(
        "roadie.yaml",
        &format!(
            "services:\n  hello:\n    hosts: [{{{host}}}]\n    build: {{type: prebuilt, path: hello}}\n    deploy:\n      \
             args: [--listen, \"127.0.0.1:8080\"]\n{deploy}"
        ),
    );
    project
}

fn on(host: &LabHost, user: &str) -> String {
    format!("address: {}, user: {user}", host.address)
}

const HEALTHY: &str = "      health: {http: \"http://127.0.0.1:8080/health\", timeout: 3s, interval: 200ms, stable_for: 500ms}\n";

#[track_caller]
fn untouched(host: &LabHost) {
    let left = host.root("ls -d /opt/roadie /etc/systemd/system/roadie-* ~/.roadie /home/*/.roadie 2>/dev/null");
    assert_eq!(left, "", "the host is as it was");
}

#[test]
fn hosts_that_cannot_be_reached_or_trusted() {
    let Some(hosts) = lab("hosts_that_cannot_be_reached_or_trusted", 1) else { return };
    let host = &hosts[0];
    let good = on(host, "root");

    project("address: no-such-host.invalid", "")
        .roadie(&["deploy"])
        .exits(4)
        .says("cannot resolve `no-such-host.invalid`")
        .says("hint:");
    project(&format!("{good}, port: 1"), "").roadie(&["deploy"]).exits(4).says("refused the connection");
    host.lab("cut", &[]);
    let filtered =
        project(&format!("{good}, timeout: 2s"), "").roadie(&["deploy"]).exits(4).says("took longer than 2 s").says("firewall");
    host.lab("heal", &[]);
    assert!(filtered.took.as_secs() < 8, "took {:?}", filtered.took);

    let unknown = project(&good, "");
    std::fs::remove_file(unknown.home.join(".ssh/known_hosts")).expect("removes");
    unknown.roadie(&["deploy"]).exits(9).says("is not known").says("SHA256:").says("--accept-new-host-keys");
    assert!(!unknown.home.join(".ssh/known_hosts").exists(), "nothing is learnt unasked");

    let changed = project(&good, "");
    let known = std::fs::read_to_string(changed.home.join(".ssh/known_hosts")).expect("reads");
    let wrong = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    std::fs::write(changed.home.join(".ssh/known_hosts"), format!("{} {wrong}\n", host.address)).expect("writes");
    changed.roadie(&["deploy"]).exits(9).says("known_hosts:1 says SHA256:");
    changed.roadie(&["deploy", "--accept-new-host-keys"]).exits(9).says("known_hosts:1 says SHA256:");
    std::fs::write(
        changed.home.join(".ssh/known_hosts"),
        format!(
            "{known}\n@revoked * {}",
            known.lines().map(|l| l.split_once(' ').map_or("", |p| p.1)).collect::<Vec<_>>().join("\n@revoked * ")
        ),
    )
    .expect("writes");
    changed.roadie(&["deploy"]).exits(9).says("is revoked by");

    project(&format!("{good}, host_key: \"SHA256:{}\"", "A".repeat(43)), "")
        .roadie(&["deploy"])
        .exits(9)
        .says("the definition pins SHA256:AAA");

    let refused = project(&on(host, "nobody"), "");
    refused.roadie(&["deploy"]).exits(4).says("login as `nobody` refused").says("id_ed25519");
    let key = refused.home.join(".ssh/id_ed25519");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
    let open = project(&format!("{good}, ssh_key: \"{}\"", key.display()), "");
    open.roadie(&["deploy"]).exits(4).says("others may read it").says("chmod 600");
    project(&format!("{good}, ssh_key: ~/.ssh/none"), "")
        .roadie(&["deploy"])
        .exits(4)
        .says("cannot use key")
        .says("no such file");

    project(&on(host, "locked"), "")
        .roadie(&["deploy"])
        .exits(8)
        .says("sudo does not let `locked` run /usr/bin/sh without a password")
        .says("NOPASSWD");
    project(&on(host, "plain"), "").roadie(&["deploy"]).exits(8).says("sudo");
    untouched(host);
}

#[test]
fn packages_that_do_not_run_there() {
    let Some(hosts) = lab("packages_that_do_not_run_there", 1) else { return };
    let host = &hosts[0];
    // The example server, made to look like one for another machine, for a target to match.
    let foreign = project(&on(host, "root"), "");
    let binary = foreign.dir.join("hello");
    let mut elf = std::fs::read(&binary).expect("reads");
    elf[18..20].copy_from_slice(&183u16.to_le_bytes());
    std::fs::write(&binary, elf).expect("writes");
    foreign.roadie(&["deploy"]).exits(1).says("is built for aarch64").says("x86_64-unknown-linux-gnu");
    let yaml = std::fs::read_to_string(foreign.dir.join("roadie.yaml")).expect("reads");
    foreign.write("roadie.yaml", &yaml.replace("path: hello", "path: hello, target: aarch64-unknown-linux-gnu"));
    let run = foreign
        .roadie(&["deploy"])
        .exits(8)
        .says("the package is built for aarch64, the host is x86_64")
        .says("nothing was changed");
    assert!(!run.stderr.contains("upload"), "nothing was sent");

    // Less room than the package needs.
    let large = project(&on(host, "root"), HEALTHY);
    host.lab("disk", &["20"]);
    large.roadie(&["deploy"]).exits(8).says("MiB free for /opt/roadie/hello").says("hint: free space there");
    assert_eq!(host.root("ls -A /opt/roadie"), "");
    host.lab("undisk", &[]);
    host.root("rmdir /opt/roadie");

    // A user without a systemd of their own. A user made for this: logind takes minutes to forget that it was refused one.
    host.root(
        "useradd -m -s /bin/sh alone; cp -r /home/plain/.ssh /home/alone/; chown -R alone: /home/alone/.ssh; \
         systemctl mask --runtime user@$(id -u alone).service",
    );
    let run = project(&on(host, "alone"), "      scope: user\n").roadie(&["deploy"]);
    host.root("systemctl unmask --runtime user@$(id -u alone).service; loginctl terminate-user alone; userdel -rf alone");
    run.exits(8).says("no systemd user manager answers").says("lifecycle: simple");
    untouched(host);
}

/// A disk that fills up while the release is unpacked: the check before it cannot know.
#[test]
fn a_disk_that_fills_up_on_the_way() {
    let Some(hosts) = lab("a_disk_that_fills_up_on_the_way", 1) else { return };
    let host = &hosts[0];
    let project = project(
        &on(host, "root"),
        &format!("      setup_commands: [\"dd if=/dev/zero of=/opt/roadie/fill bs=1M 2>/dev/null; true\"]\n{HEALTHY}"),
    );
    host.lab("disk", &["200"]);
    project.roadie(&["deploy"]).exits(1).says("disk full?").says("nothing in service was changed");
    assert_eq!(host.root("readlink /opt/roadie/hello/current; systemctl is-active roadie-hello"), "inactive");
    host.root("rm /opt/roadie/fill");
    let yaml = std::fs::read_to_string(project.dir.join("roadie.yaml")).expect("reads");
    project.write("roadie.yaml", &yaml.replace("dd if=/dev/zero", "true"));
    project.roadie(&["deploy"]).exits(0);
}

#[test]
fn setup_that_goes_wrong() {
    let Some(hosts) = lab("setup_that_goes_wrong", 1) else { return };
    let host = &hosts[0];
    for (command, says, exit) in [
        ("echo about to fail; false", "setup ended with status 1", 1),
        ("read answer", "setup ended with status", 1),
        ("sh -c 'kill -9 $$'", "one of its commands was killed, maybe for want of memory", 1),
        ("trap '' TERM; sleep 987", "setup took longer than 2 s", 1),
        ("(setsid sleep 986 &); sleep 985", "setup took longer than 2 s", 1),
    ] {
        let deploy = format!("      setup_timeout: 2s\n      setup_commands: [\"{command}\"]\n{HEALTHY}");
        let run = project(&on(host, "deploy"), &deploy)
            .roadie(&["deploy"])
            .exits(exit)
            .says(says)
            .says("nothing in service was changed");
        assert!(run.stderr.contains("setup has no terminal"), "{}", run.stderr);
        assert!(run.took.as_secs() < 25, "{command}: took {:?}", run.took);
        assert_eq!(host.root("pgrep -f 'sleep 98[0-9]'"), "", "{command}: no process of it is left");
        assert_eq!(host.root("readlink /opt/roadie/hello/current"), "");
    }
    // systemd forks it and fails before our first word, as it does when it loses the unit's control group to a clean-up: nothing
    // was run, so it is tried again.
    let setup = format!("      setup_commands: [\"echo x >>/opt/times\"]\n{HEALTHY}");
    let drop_in = |more: &str| {
        host.root(&format!(
            "mkdir -p /run/systemd/system/roadie-setup-hello.service.d; rm -rf /opt/needed /opt/times
             printf '[Unit]\\n{more}\\n[Service]\\nBindPaths=/opt/needed:/mnt\\n' >/run/systemd/system/roadie-setup-hello.service.d/x.conf
             printf '[Service]\\nType=oneshot\\nExecStart=mkdir /opt/needed\\n' >/run/systemd/system/remedy.service; systemctl daemon-reload"
        ));
    };
    drop_in("");
    project(&on(host, "root"), &setup)
        .roadie(&["deploy"])
        .exits(1)
        .says("systemd could not start setup: status 226")
        .says("roadie-setup");
    drop_in("OnFailure=remedy.service");
    project(&on(host, "root"), &setup).roadie(&["deploy"]).exits(0);
    assert_eq!(host.root("cat /opt/times"), "x", "once");
    host.root(
        "rm -rf /run/systemd/system/roadie-setup-hello.service.d /run/systemd/system/remedy.service; systemctl daemon-reload",
    );
    host.reset();
    // Without systemd's help as well: the simple lifecycle in the user's scope.
    let deploy = "      lifecycle: simple\n      scope: user\n      setup_timeout: 2s\n      setup_commands: [\"trap '' TERM; sleep 984\"]\n";
    project(&on(host, "plain"), deploy).roadie(&["deploy"]).exits(1).says("setup took longer than 2 s");
    assert_eq!(host.root("pgrep -f 'sleep 98[0-9]'"), "");
}

#[test]
fn services_that_do_not_start_or_stay() {
    let Some(hosts) = lab("services_that_do_not_start_or_stay", 1) else { return };
    let host = &hosts[0];
    let gone = |host: &LabHost| {
        assert_eq!(
            host.root("readlink /opt/roadie/hello/current; ls /etc/systemd/system/roadie-* 2>/dev/null; pgrep -x hello"),
            ""
        );
    };
    // Ends at once.
    let project_of = |args: &str, health: &str| {
        let p = project(&on(host, "root"), health);
        let yaml = std::fs::read_to_string(p.dir.join("roadie.yaml")).expect("reads");
        p.write("roadie.yaml", &yaml.replace("[--listen, \"127.0.0.1:8080\"]", args));
        p
    };
    project_of("[--no-such-argument]", HEALTHY)
        .roadie(&["deploy"])
        .exits(5)
        .says("unknown argument --no-such-argument")
        .says("there was no earlier release");
    gone(host);
    // Without any probe it must stay up; it crashes within the window.
    project_of("[--listen, \"127.0.0.1:8080\", --crash-after, \"1\"]", "      health: {stable_for: 3s}\n")
        .roadie(&["deploy"])
        .exits(5)
        .says("crashing as asked");
    gone(host);
    // A command that is never content; then one that is.
    let exec = "      health: {exec: \"bin/hello --check --listen 127.0.0.1:9\", timeout: 2s, interval: 200ms}\n";
    project_of("[--listen, \"127.0.0.1:8080\"]", exec).roadie(&["deploy"]).exits(5).says("ended with status 1");
    gone(host);
    let exec = exec.replace("127.0.0.1:9\"", "127.0.0.1:8080\"");
    project_of("[--listen, \"127.0.0.1:8080\"]", &exec).roadie(&["deploy"]).exits(0);
    // sd_notify: systemd itself waits for it.
    project_of("[--listen, \"127.0.0.1:8080\", --notify]", "      health: {notify: true, stable_for: 1s}\n")
        .roadie(&["deploy"])
        .exits(0);
    assert_eq!(host.root("systemctl show roadie-hello -p Type --value"), "notify");
    // A unit of the user's own that systemd refuses.
    let own = project(&on(host, "root"), &format!("      unit: own.service\n{HEALTHY}"));
    own.write("own.service", "[Service]\nExecStart=relative/path\n");
    own.roadie(&["deploy"]).exits(5).says("rolled back to release");
    assert_eq!(host.root("systemctl show roadie-hello -p Type,ActiveState --value"), "notify\nactive");
}

#[test]
fn one_bad_host_among_good_ones() {
    let Some(hosts) = lab("one_bad_host_among_good_ones", 3) else { return };
    let project = Project::new();
    project.add_hello();
    let list: Vec<String> =
        hosts.iter().map(|h| format!("  h{}: {{address: {}, user: root, timeout: 3s}}\n", h.number, h.address)).collect();
    let text = format!(
        "hosts:\n{}services:\n  hello:\n    hosts: [h1, h2, h3]\n    build: {{type: prebuilt, path: hello}}\n    deploy:\n      \
         args: [--listen, \"127.0.0.1:8080\"]\n      env: {{V: \"${{V:-1}}\"}}\n{HEALTHY}",
        list.concat()
    );
    project.write("roadie.yaml", &text);
    hosts[1].lab("cut", &[]);
    let run = project.roadie(&["deploy", "--json", "--skip-unreachable"]).exits(11);
    let reports = run.summary()["hosts"].clone();
    assert_eq!(
        (reports[0]["outcome"].as_str(), reports[1]["outcome"].as_str(), reports[2]["outcome"].as_str()),
        (Some("done"), Some("unreachable"), Some("done"))
    );
    project.roadie(&["status"]).exits(4).says("took longer than 3 s").says("running");
    hosts[1].lab("heal", &[]);
    project.run_with(&["deploy"], &[("V", "2")]).exits(0);
    // Selection by name, tag and wildcard; what matches nothing is said.
    project.roadie(&["status", "--host", "h[12]"]).exits(0);
    project.roadie(&["status", "--host", "x*"]).exits(2).says("no host matches `x*`").says("h1, h2, h3");
    assert!(Path::new(&project.dir).exists());
}

/// What a look at a real host finds before a byte is sent; each leaves it as it was.
#[test]
fn hosts_that_cannot_take_it() {
    let Some(hosts) = lab("hosts_that_cannot_take_it", 1) else { return };
    let host = &hosts[0];
    let project = project(&on(host, "deploy"), HEALTHY);
    let refused = |broken: &str, mended: &str, sentence: &str| {
        host.root(broken);
        let run = project.roadie(&["deploy", "--json"]);
        host.root(mended);
        assert_eq!(run.code, 8, "{sentence}: {}", run.stderr);
        let report = run.summary()["hosts"][0].clone();
        assert!(report["summary"].as_str().is_some_and(|s| s.contains(sentence)), "{sentence}: {report}");
        assert_eq!(report["sent_bytes"], 0);
        assert_eq!(host.root("ls -A /opt/roadie ~deploy/.roadie/incoming 2>/dev/null"), "", "{sentence}");
    };
    let mount = |options: &str| format!("mkdir -p /opt/roadie && mount -t tmpfs -o {options} lab /opt/roadie");
    let unmount = "umount -l /opt/roadie; rmdir /opt/roadie";
    refused(&mount("size=200m,noexec"), unmount, "/opt/roadie, which holds /opt/roadie/hello, is mounted noexec");
    refused(&mount("size=200m,nr_inodes=60"), unmount, "free inodes for /opt/roadie/hello, there are ");
    refused(&mount("size=20m"), unmount, "MiB free for /opt/roadie/hello, there are ");
    refused(&mount("size=200m,ro"), unmount, "cannot write /opt/roadie/hello/.roadie");
    refused("chmod o+w /opt", "chmod o-w /opt", "/opt may be written by everybody");
    refused("chgrp deploy /opt; chmod g+w /opt", "chmod g-w /opt; chgrp root /opt", "/opt may be written by group ");
    refused("chown plain /opt", "chown root /opt", "/opt may be written by user ");
    refused(
        "echo 'use IO::Socket::INET; $s = IO::Socket::INET->new(Listen => 1, LocalAddr => q(127.0.0.1:8080), ReuseAddr => 1); sleep' \
         >/run/squat.pl; systemctl reset-failed squatter; systemd-run -q --unit=squatter perl /run/squat.pl; sleep 1",
        "systemctl stop squatter; rm /run/squat.pl",
        "port 8080 is taken by `perl` (process ",
    );
    refused("mv /usr/bin/base64 /usr/bin/base64.gone", "mv /usr/bin/base64.gone /usr/bin/base64", "the host lacks base64");
    refused(
        "mkdir /gone; mv /lib/x86_64-linux-gnu/libgcc_s.so.1 /gone/; ldconfig",
        "mv /gone/libgcc_s.so.1 /lib/x86_64-linux-gnu/; ldconfig; rmdir /gone",
        "it needs the shared libraries libgcc_s.so.1, which are not there",
    );
    // Whole again, it takes the package; its own listener is no stranger.
    project.roadie(&["deploy"]).exits(0);
    project.roadie(&["plan"]).exits(0).says("nothing to do");
    project.roadie(&["stop"]).exits(0);
    project.roadie(&["deploy"]).exits(0);
}

/// Hosts that flood us with output: neither our memory nor their disk grows with it.
#[test]
fn hosts_that_flood() {
    let Some(hosts) = lab("hosts_that_flood", 3) else { return };
    let project = Project::new();
    project.add_hello();
    let list: Vec<String> = hosts.iter().map(|h| format!("{{{}}}", on(h, "deploy"))).collect();
    let flood = "yes 'a line of the flood' | head -c 500000000; head -c 30000000 /dev/zero";
    project.write(
        "roadie.yaml",
        &format!(
            "services:\n  hello:\n    hosts: [{}]\n    build: {{type: prebuilt, path: hello}}\n    deploy:\n      \
             args: [--listen, \"127.0.0.1:8080\"]\n      setup_commands: [\"{flood}\"]\n{HEALTHY}",
            list.join(", ")
        ),
    );
    project.roadie(&["pack"]).exits(0);
    let mut child = project
        .command(&["deploy", "--json"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    let mut peak_kib = 0;
    while child.try_wait().expect("waits").is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
        peak_kib = peak_kib.max(peak.unwrap_or(0));
        let largest = "stat -c %s /opt/roadie/hello/.roadie/setup-*.log 2>/dev/null | sort -n | tail -n 1";
        let log: u64 = hosts[0].root(largest).parse().unwrap_or(0);
        assert!(log < 300 << 20, "the log of setup has {log} bytes");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(child.wait().expect("ends").success());
    assert!(peak_kib > 0 && peak_kib < (64 + 4 * 3) << 10, "the controller took {peak_kib} KiB");
    assert_eq!(
        hosts[0].root("sed -n 2p /opt/roadie/hello/.roadie/setup-*.log.head"),
        "a line of the flood",
        "its beginning is kept"
    );
}
