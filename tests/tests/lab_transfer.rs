//! What travels to real hosts: of a small change a small part, and all of it whenever there is any doubt.

use roadie_tests::{LabHost, Project, Relay, Run, lab};

const MIB: u64 = 1 << 20;

/// Far enough for a difference to be worth finding.
const FAR_MS: u32 = 10;

/// The example server with a large file that does not compress, on a host at the end of a long link.
fn project(host: &LabHost, user: &str) -> (Project, Relay, Vec<u8>) {
    let project = Project::new();
    let relay = Relay::start(host, FAR_MS, &project.home);
    project.add_hello();
    project.write(
        "roadie.yaml",
        &format!(
            "services:\n  hello:\n    hosts: [{{address: 127.0.0.1, port: {}, user: {user}}}]\n    build: {{type: prebuilt, path: hello}}\n    \
             files: [{{from: data, to: share/data}}]\n    deploy:\n      args: [--listen, \"127.0.0.1:8080\"]\n      \
             health: {{stable_for: 300ms}}\n",
            relay.port
        ),
    );
    let mut random = fastrand::Rng::with_seed(6);
    let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(4 * MIB as usize).collect();
    std::fs::write(project.dir.join("data"), &data).expect("writes");
    (project, relay, data)
}

/// Puts something into the middle and deploys it; what the host then has is asserted.
fn change(project: &Project, data: &mut Vec<u8>, host: &LabHost) -> (Run, u64) {
    let middle = data.len() / 2;
    data.splice(middle..middle + 3, b"a small change".iter().copied());
    let file = project.dir.join("data");
    std::fs::write(&file, &*data).expect("writes");
    let run = project.roadie(&["deploy", "--json"]).exits(0);
    let there = host.root("sha256sum </opt/roadie/hello/current/share/data");
    let here = std::process::Command::new("sha256sum").stdin(std::fs::File::open(file).expect("opens")).output().expect("runs");
    assert_eq!(there.trim(), String::from_utf8_lossy(&here.stdout).trim());
    assert_eq!(host.root("ls -A ~deploy/.roadie/incoming ~root/.roadie/incoming 2>/dev/null | grep -e gz -e tar"), "");
    let sent = run.summary()["hosts"][0]["sent_bytes"].as_u64().expect("a number");
    (run, sent)
}

/// A host without something, for as long as this lives.
struct Without<'h> {
    host: &'h LabHost,
    back: String,
}

impl<'h> Without<'h> {
    fn perl(host: &'h LabHost) -> Self {
        host.root("chmod -x /usr/bin/perl");
        Self { host, back: "chmod +x /usr/bin/perl".into() }
    }

    fn way_to(host: &'h LabHost, other: &LabHost) -> Self {
        host.root(&format!("ip route add unreachable {}", other.address));
        Self { host, back: format!("ip route del unreachable {}", other.address) }
    }
}

impl Drop for Without<'_> {
    fn drop(&mut self) {
        self.host.root(&self.back);
    }
}

#[test]
fn a_small_change_sends_a_small_part() {
    let Some(hosts) = lab("a_small_change_sends_a_small_part", 2) else { return };
    for (host, user) in hosts.iter().zip(["root", "deploy"]) {
        let (project, _relay, mut data) = project(host, user);
        project.roadie(&["deploy", "--accept-new-host-keys"]).exits(0);
        let (_, small) = change(&project, &mut data, host);
        assert!(small > 0 && small < 40_000, "{small} bytes for a small change");

        // A base that is not what it was: noticed on the host, and all of it is sent.
        host.root(
            "cd /opt/roadie/hello/current/share && head -c 100 /dev/zero | dd of=data bs=1 seek=1000 conv=notrunc 2>/dev/null",
        );
        let (run, whole) = change(&project, &mut data, host);
        assert!(whole > 4 * MIB, "{whole} bytes");
        assert!(run.stdout.contains("sending the whole package"), "{}", run.stdout);

        // Without perl its sftp server copies what is as it was.
        let without_perl = Without::perl(host);
        let (run, small) = change(&project, &mut data, host);
        assert!(small > 0 && small < 40_000, "{small} bytes for a small change");
        assert!(!run.stdout.contains("sending the whole package"), "{}", run.stdout);
        // A base that is not what it was.
        host.root("printf x | dd of=/opt/roadie/hello/current/share/data bs=1 seek=1000 conv=notrunc 2>/dev/null");
        let (run, whole) = change(&project, &mut data, host);
        assert!(whole > 4 * MIB, "{whole} bytes");
        assert!(run.stdout.contains("sending the whole package"), "{}", run.stdout);
        // One that its sftp server cannot read.
        host.root("chmod 600 /opt/roadie/hello/current/share/data");
        let (run, bytes) = change(&project, &mut data, host);
        drop(without_perl);
        assert_eq!(bytes > 4 * MIB, user != "root", "{bytes} bytes");
        assert_eq!(run.stdout.contains("sending the whole package"), user != "root", "{}", run.stdout);

        // What a host runs stays in the store, whatever is deleted there.
        project.roadie(&["packages", "gc", "--keep", "0", "--yes"]).exits(0);
        let (_, small) = change(&project, &mut data, host);
        assert!(small < 40_000, "{small} bytes were sent");
        project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
    }
}

/// The link's own count: neither files nor what there is to send make a deployment wait more often.
#[test]
fn what_is_waited_for_on_the_link() {
    let Some(hosts) = lab("what_is_waited_for_on_the_link", 1) else { return };
    let (project, relay, mut data) = project(&hosts[0], "deploy");
    let mut counted = 0;
    let mut turns = || loop {
        let now = relay.counted();
        if now.len() > counted {
            counted = now.len();
            break (now[counted - 1]["turns"].as_u64().expect("a number"), now[counted - 1]["up"].as_u64().expect("a number"));
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    project.roadie(&["deploy", "--accept-new-host-keys"]).exits(0);
    let (whole, whole_bytes) = turns();
    // What a busy machine sends in two pieces instead of one, with something heard in between, is one turn more on the link, and so
    // is a sign of life now and then. Waiting once more would be one more every time: the best of some counts.
    let (mut nothing, mut nothing_bytes, mut small, mut small_bytes) = (u64::MAX, u64::MAX, u64::MAX, u64::MAX);
    for _ in 0..4 {
        project.roadie(&["deploy"]).exits(0).says("nothing to do");
        let (turns_of_nothing, bytes) = turns();
        (nothing, nothing_bytes) = (nothing.min(turns_of_nothing), nothing_bytes.min(bytes));
        change(&project, &mut data, &hosts[0]);
        let (turns_of_change, bytes) = turns();
        (small, small_bytes) = (small.min(turns_of_change), small_bytes.min(bytes));
    }
    // Eight are the handshake, the login and the goodbye; an upload without bounds is told how much more it may send.
    assert!(nothing <= 9 && small <= 13 && whole <= 30, "turns: {nothing} for nothing, {small} for a change, {whole} for all");
    // The host has the host script from the first time.
    assert!(
        nothing_bytes < 6_000 && small_bytes < nothing_bytes + 40_000 && whole_bytes > 4 * MIB,
        "{nothing_bytes}, {small_bytes}, {whole_bytes}"
    );
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
}

/// The store is empty, as on another machine: one host gives the old package back, and both get the difference.
#[test]
fn a_package_that_only_hosts_have_is_fetched_back() {
    let Some(hosts) = lab("a_package_that_only_hosts_have_is_fetched_back", 2) else { return };
    let project = Project::new();
    let folders = ["one", "two"].map(|name| project.home.join(name));
    folders.iter().for_each(|folder| std::fs::create_dir(folder).expect("makes"));
    let relays: Vec<Relay> = hosts.iter().zip(&folders).map(|(host, folder)| Relay::start(host, FAR_MS, folder)).collect();
    project.add_hello();
    let host = |n: usize, user: &str| format!("  h{n}: {{address: 127.0.0.1, port: {}, user: {user}}}\n", relays[n].port);
    project.write(
        "roadie.yaml",
        &format!(
            "hosts:\n{}{}services:\n  hello:\n    hosts: [h0, h1]\n    build: {{type: prebuilt, path: hello}}\n    \
             files: [{{from: data, to: share/data}}]\n    deploy:\n      \
             args: [--listen, \"127.0.0.1:8080\"]\n      health: {{stable_for: 300ms}}\n",
            host(0, "root"),
            host(1, "deploy"),
        ),
    );
    let mut random = fastrand::Rng::with_seed(8);
    let mut data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(4 * MIB as usize).collect();
    let mut deploy = |forget: bool| {
        data.splice(MIB as usize..MIB as usize, random.u8(..).to_string().bytes());
        std::fs::write(project.dir.join("data"), &data).expect("writes");
        if forget {
            std::fs::remove_dir_all(project.home.join(".cache/roadie/packages")).expect("removes");
        }
        let run = project.roadie(&["deploy", "--json", "--accept-new-host-keys"]).exits(0);
        let sent = |n: usize| run.summary()["hosts"][n]["sent_bytes"].as_u64().expect("a number");
        (sent(0), sent(1))
    };
    deploy(false);
    let (one, two) = deploy(true);
    assert!(one > 0 && one < 40_000 && two > 0 && two < 40_000, "{one} and {two} bytes for a small change");
    let kept = project.home.join(".cache/roadie/packages/fetched/objects");
    assert_eq!(std::fs::read_dir(&kept).expect("it was fetched").count(), 1);
    // For comparing only: a host said what it was.
    assert_eq!(project.roadie(&["packages", "ls", "--json"]).exits(0).stdout.lines().count(), 1);
    project.roadie(&["packages", "verify"]).exits(0);

    // What a host gives is not believed.
    for host in &hosts {
        host.root("printf x | dd of=/opt/roadie/hello/current/share/data bs=1 seek=1000 conv=notrunc 2>/dev/null");
    }
    let (one, two) = deploy(true);
    assert!(one > 4 * MIB && two > 4 * MIB, "{one} and {two} bytes");
    assert!(!kept.exists() || std::fs::read_dir(&kept).expect("reads").count() == 0);
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
}

/// One host gets all of it and gives it to those that reach it; the others get it from here.
#[test]
fn hosts_pass_a_package_on() {
    let Some(hosts) = lab("hosts_pass_a_package_on", 3) else { return };
    let project = Project::new();
    project.add_hello();
    let host = |n: usize, user: &str| format!("  h{n}: {{address: {}, user: {user}}}\n", hosts[n].address);
    project.write(
        "roadie.yaml",
        &format!(
            "hosts:\n{}{}{}services:\n  hello:\n    hosts: [h0, h1, h2]\n    build: {{type: prebuilt, path: hello}}\n    \
             files: [{{from: data, to: share/data}}]\n    deploy:\n      args: [--listen, \"127.0.0.1:8080\"]\n      \
             health: {{stable_for: 300ms}}\n",
            host(0, "root"),
            host(1, "deploy"),
            host(2, "root"),
        ),
    );
    let mut random = fastrand::Rng::with_seed(9);
    let mut data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(4 * MIB as usize).collect();
    let mut deploy = |arguments: &[&str]| {
        data.reverse();
        data.push(7);
        std::fs::write(project.dir.join("data"), &data).expect("writes");
        let run = project.roadie(&[&["deploy", "--json", "--accept-new-host-keys"], arguments].concat()).exits(0);
        for host in &hosts {
            let there = host.root("stat -c %s /opt/roadie/hello/current/share/data");
            assert_eq!(there.trim(), data.len().to_string());
            assert_eq!(host.root("pgrep -x perl || true"), "", "nobody gives any more");
        }
        let summary = run.summary();
        let sent = |n: usize| summary["hosts"][n]["sent_bytes"].as_u64().expect("a number");
        [sent(0), sent(1), sent(2)].into_iter().filter(|bytes| *bytes > 4 * MIB).count()
    };
    assert_eq!(deploy(&[]), 3);
    assert_eq!(deploy(&["--pass-on"]), 1);
    // One at a time: each of the later ones has somebody to take it from.
    assert_eq!(deploy(&["--pass-on", "--strategy", "rolling"]), 1);
    // The network between two of them is cut.
    let cut = [(0, 2), (1, 2), (2, 0), (2, 1)].map(|(n, other)| Without::way_to(&hosts[n], &hosts[other]));
    let uploads = deploy(&["--pass-on"]);
    drop(cut);
    // Whoever was first: with the third alone on its side there are two that get it from here, or all three.
    assert!((2..=3).contains(&uploads), "{uploads}");
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
}
