//! Interruptions: signals, lost contact, two at once. The host is never left in a state nobody understands.

use roadie_tests::{LabHost, Project, Run, finished, lab, signal};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn project(host: &LabHost, extra: &str) -> Project {
    let project = Project::new();
    project.add_hello();
    project.write(
        "roadie.yaml",
        &format!(
            "services:\n  hello:\n    hosts: [{{address: {}, user: deploy}}]\n    build: {{type: prebuilt, path: hello}}\n    deploy:\n      \
             args: [--listen, \"127.0.0.1:8080\"]\n      env: {{HELLO_VERSION: \"${{V:-1}}\", HELLO_UNHEALTHY: \"${{BAD:-0}}\"}}\n{extra}\
             \x20     health: {{http: \"http://127.0.0.1:8080/health\", timeout: 20s, interval: 200ms, stable_for: \"${{STABLE:-500ms}}\"}}\n",
            host.address
        ),
    );
    project
}

/// Starts a deploy and waits until its standard error says `mark`.
fn start_until(project: &Project, env: &[(&str, &str)], mark: &str) -> (Child, Instant) {
    let log = project.dir.join("stderr.log");
    let file = std::fs::File::create(&log).expect("creates");
    let began = Instant::now();
    let child = project.command(&["deploy"]).envs(env.iter().copied()).stderr(file).spawn().expect("starts");
    while !std::fs::read_to_string(&log).unwrap_or_default().contains(mark) {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "`{mark}` was never said: {}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    (child, began)
}

fn end(project: &Project, child: Child, began: Instant) -> Run {
    let mut run = finished(&child.wait_with_output().expect("waits"), began);
    run.stderr = std::fs::read_to_string(project.dir.join("stderr.log")).unwrap_or_default();
    run
}

fn running_version(host: &LabHost) -> String {
    host.root("tr '\\0' '\\n' </proc/$(pgrep -x hello)/environ | sed -n 's/^HELLO_VERSION=//p'")
}

#[test]
fn ctrl_c_during_the_health_window_takes_the_run_back() {
    let Some(hosts) = lab("ctrl_c_during_the_health_window_takes_the_run_back", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "");
    project.roadie(&["deploy"]).exits(0);
    let release = host.root("readlink /opt/roadie/hello/current");
    // While probes are made from here; and while the host itself waits for it to be stable.
    for (env, mark) in
        [([("V", "2"), ("BAD", "1")], "restart the service"), ([("V", "3"), ("STABLE", "15s")], "wait until healthy")]
    {
        for name in ["INT", "TERM"] {
            let (child, began) = start_until(&project, &env, mark);
            std::thread::sleep(Duration::from_millis(700));
            signal(&child, name);
            let run = end(&project, child, began).exits(130).says("interrupted").says("rolled back to release");
            assert!(run.took < Duration::from_secs(12), "took {:?}", run.took);
            assert_eq!(host.root("readlink /opt/roadie/hello/current"), release);
            assert_eq!(running_version(host), "1");
            assert_eq!(host.root("ls /opt/roadie/hello/.roadie/guard /opt/roadie/hello/.roadie/cancel 2>/dev/null"), "");
        }
    }
    project.run_with(&["deploy"], &[("V", "2")]).exits(0);
}

#[test]
fn ctrl_c_during_setup_ends_the_setup() {
    let Some(hosts) = lab("ctrl_c_during_setup_ends_the_setup", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "      setup_commands: [\"echo begun; sleep 977\"]\n");
    let (child, began) = start_until(&project, &[], "| begun");
    signal(&child, "INT");
    end(&project, child, began).exits(130).says("nothing in service was changed");
    assert_eq!(host.root("pgrep -f 'sleep 97[7]'; readlink /opt/roadie/hello/current"), "");
}

#[test]
fn an_upload_that_was_interrupted_goes_on_where_it_was() {
    let Some(hosts) = lab("an_upload_that_was_interrupted_goes_on_where_it_was", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "");
    // Something that does not compress, so that the upload takes its time on a slowed link.
    let mut noise = vec![0u8; 30 << 20];
    let mut random = 88_172_645_463_325_252_u64;
    for chunk in noise.chunks_exact_mut(8) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        chunk.copy_from_slice(&random.to_le_bytes());
    }
    std::fs::write(project.dir.join("noise"), noise).expect("writes");
    let yaml = std::fs::read_to_string(project.dir.join("roadie.yaml")).expect("reads");
    project.write("roadie.yaml", &yaml.replace("    deploy:\n", "    files: [{from: noise, to: share/noise}]\n    deploy:\n"));
    project.roadie(&["pack"]).exits(0);
    host.lab("slow", &["16000"]);
    let here = || -> u64 { host.root("cat /home/deploy/.roadie/incoming/hello.* 2>/dev/null | wc -c").parse().unwrap_or(0) };
    for (signalled, more) in [("INT", 2u64 << 20), ("KILL", 4 << 20)] {
        let began = Instant::now();
        let already = here();
        let child = project.command(&["deploy"]).spawn().expect("starts");
        while here() < already + more {
            assert!(began.elapsed() < Duration::from_secs(60), "the upload does not move: {} bytes", here());
        }
        signal(&child, signalled);
        let output = child.wait_with_output().expect("waits");
        if signalled == "INT" {
            finished(&output, began).exits(130).says("interrupted").says("nothing in service was changed");
        }
        assert_eq!(host.root("ls -A /opt/roadie/hello/releases 2>/dev/null"), "", "it is no release");
        assert_eq!(host.root("ls /home/deploy/.roadie/incoming | wc -l"), "1");
    }
    host.lab("heal", &[]);
    project.roadie(&["releases", "--lock-wait", "20s"]).exits(0).says("no releases");
    let already = here();
    let run = project.roadie(&["deploy", "--json", "--lock-wait", "20s"]).exits(0);
    let sent = run.summary()["hosts"][0]["sent_bytes"].as_u64().expect("a number");
    // What was on its way when it was cut is verified by blocks of a MiB, and may have holes.
    assert!(sent > 20 << 20 && sent < (31 << 20) - already / 2, "{already} bytes were there, {sent} more were sent");
    assert_eq!(host.root("ls -A /home/deploy/.roadie/incoming"), "", "nothing of it is left");
    assert_eq!(running_version(host), "1");
}

#[test]
fn two_at_once_one_wins() {
    let Some(hosts) = lab("two_at_once_one_wins", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "");
    let (first, began) = start_until(&project, &[("STABLE", "5s")], "restart the service");
    project.run_with(&["deploy"], &[("V", "2")]).exits(7).says("another run holds the lock: ").says("since 20");
    project.roadie(&["status"]).exits(0).says("running");
    end(&project, first, began).exits(0);
    assert_eq!(running_version(host), "1");
    // Killed outright: the lock is free at once or when the stage that runs has ended.
    let (killed, _) = start_until(&project, &[("V", "2"), ("BAD", "1")], "restart the service");
    signal(&killed, "KILL");
    drop(end(&project, killed, began));
    let began = Instant::now();
    while project.run_with(&["deploy"], &[("V", "3")]).code == 7 {
        assert!(began.elapsed() < Duration::from_secs(15), "the lock is stale");
    }
    assert_eq!(running_version(host), "3");
    project.roadie(&["releases"]).exits(0).says("proven");
}

#[test]
fn contact_lost_in_the_health_window() {
    let Some(hosts) = lab("contact_lost_in_the_health_window", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "");
    project.roadie(&["deploy"]).exits(0);
    let release = host.root("readlink /opt/roadie/hello/current");
    // The host ends our connection in the middle: contact is made again and the run taken back.
    let (child, began) = start_until(&project, &[("V", "2"), ("BAD", "1")], "restart the service");
    std::thread::sleep(Duration::from_millis(500));
    host.root("pkill -f 'sshd: deploy'");
    end(&project, child, began).exits(5).says("contact was lost").says("rolled back to release");
    assert_eq!((host.root("readlink /opt/roadie/hello/current"), running_version(host)), (release, "1".into()));
    // Connections keep working afterwards, and the next run converges.
    project.run_with(&["deploy"], &[("V", "3")]).exits(0);
}

#[test]
fn following_logs_of_several_hosts_until_ctrl_c() {
    let Some(hosts) = lab("following_logs_of_several_hosts_until_ctrl_c", 3) else { return };
    let project = Project::new();
    project.add_hello();
    let list: Vec<String> = hosts.iter().map(|h| format!("{{address: {}, user: deploy}}", h.address)).collect();
    for lifecycle in ["systemd", "simple"] {
        let text = format!(
            "services:\n  hello:\n    hosts: [{}]\n    build: {{type: prebuilt, path: hello}}\n    deploy:\n      lifecycle: {lifecycle}\n      \
             args: [--listen, \"127.0.0.1:8080\"]\n      health: {{http: \"http://127.0.0.1:8080/health\", stable_for: 0s}}\n",
            list.join(", ")
        );
        project.write("roadie.yaml", &text);
        project.roadie(&["deploy"]).exits(0);
        let began = Instant::now();
        let out = project.dir.join("logs.txt");
        let child = project
            .command(&["logs", "-f", "-n", "5"])
            .stdout(std::fs::File::create(&out).expect("creates"))
            .spawn()
            .expect("starts");
        std::thread::sleep(Duration::from_secs(2));
        for (round, host) in hosts.iter().cycle().take(6).enumerate() {
            host.root(&format!(
                "perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(PeerAddr=>\"127.0.0.1:8080\");print $s \"GET /line{round} HTTP/1.0\\r\\n\\r\\n\";<$s>'"
            ));
            std::thread::sleep(Duration::from_millis(1100));
        }
        std::thread::sleep(Duration::from_secs(1));
        signal(&child, "INT");
        finished(&child.wait_with_output().expect("waits"), began).exits(130);
        let text = std::fs::read_to_string(&out).expect("reads");
        let lines: Vec<&str> = text.lines().filter(|l| l.contains("GET /line")).collect();
        let order: Vec<String> =
            hosts.iter().cycle().take(6).enumerate().map(|(n, h)| format!("hello@{} | GET /line{n} 404", h.address)).collect();
        assert_eq!(lines, order, "{lifecycle}: every line once, with its host, in order\n{text}");
        std::thread::sleep(Duration::from_millis(500));
        assert!(hosts.iter().all(|h| h.root("pgrep -x journalctl; pgrep -x tail").is_empty()), "no reader is left on a host");
    }
}

/// What nobody reads keeps nobody.
#[test]
fn ctrl_c_ends_what_nobody_reads() {
    let Some(hosts) = lab("ctrl_c_ends_what_nobody_reads", 1) else { return };
    let project = project(&hosts[0], "");
    let began = Instant::now();
    let mut child =
        project.command(&["exec", "--", "seq", "150000"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    std::thread::sleep(Duration::from_secs(3));
    let ended = |child: &mut Child| child.try_wait().expect("waits").is_some();
    assert!(!ended(&mut child), "all of it fits into what waits");
    for _ in 0..3 {
        signal(&child, "INT");
        std::thread::sleep(Duration::from_millis(500));
    }
    let by_itself = ended(&mut child);
    let run = finished(&child.wait_with_output().expect("reads and waits"), began);
    assert!(by_itself && run.code == 10, "exit {}", run.code);
}

/// The host is gone for good in the middle: nothing is claimed about it. It goes back alone, and the next run goes on.
#[test]
fn a_host_that_stays_away() {
    let Some(hosts) = lab("a_host_that_stays_away", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "");
    let yaml = std::fs::read_to_string(project.dir.join("roadie.yaml")).expect("reads");
    let yaml =
        yaml.replace("user: deploy}", "user: deploy, timeout: 2s}").replace("deploy:\n", "deploy:\n      guard_grace: 2s\n");
    project.write("roadie.yaml", &yaml);
    project.roadie(&["deploy"]).exits(0);
    let (child, began) = start_until(&project, &[("V", "2"), ("BAD", "1")], "restart the service");
    host.lab("cut", &[]);
    let run = end(&project, child, began);
    host.lab("heal", &[]);
    run.exits(10).says("the outcome is unknown").says("roadie status hello --host");
    // Its sshd does not know yet that we are gone. The host did: it freed the lock and went back.
    project.roadie(&["status"]).exits(0).says("by itself:").says("went back to release");
    assert_eq!(running_version(host), "1");
    project.run_with(&["deploy"], &[("V", "3")]).exits(0);
    assert_eq!(running_version(host), "3");
}

/// The way back is broken: that is said, and not dressed up.
#[test]
fn an_old_release_that_does_not_start_again() {
    let Some(hosts) = lab("an_old_release_that_does_not_start_again", 1) else { return };
    let host = &hosts[0];
    let project = project(host, "");
    project.roadie(&["deploy"]).exits(0);
    let yaml = std::fs::read_to_string(project.dir.join("roadie.yaml")).expect("reads");
    let broken = "    deploy:\n      setup_commands: [\"rm /opt/roadie/hello/current/bin/hello\"]\n";
    project.write("roadie.yaml", &yaml.replace("    deploy:\n", broken));
    let run = project.run_with(&["deploy"], &[("V", "2"), ("BAD", "1")]).exits(6);
    run.says("failed its health check").says("the way back failed too").says("roadie rollback hello --host");
    // The files of the damaged release are not used for a new one.
    project.write("roadie.yaml", &yaml);
    project.run_with(&["deploy"], &[("V", "3")]).exits(9).says("was damaged on the host");
    project.run_with(&["deploy"], &[("V", "3")]).exits(0);
    assert_eq!(running_version(host), "3");
}
