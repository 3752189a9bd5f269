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
    assert_eq!(host.root("ls -A ~deploy/.roadie/incoming ~root/.roadie/incoming 2>/dev/null | grep gz"), "");
    let sent = run.summary()["hosts"][0]["sent_bytes"].as_u64().expect("a number");
    (run, sent)
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

        // Without perl nothing can be patched there.
        host.root("chmod -x /usr/bin/perl");
        let (_, whole) = change(&project, &mut data, host);
        host.root("chmod +x /usr/bin/perl");
        assert!(whole > 4 * MIB, "{whole} bytes");

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
    project.roadie(&["deploy"]).exits(0).says("nothing to do");
    let (nothing, nothing_bytes) = turns();
    let (run, _) = change(&project, &mut data, &hosts[0]);
    let (small, small_bytes) = turns();
    // Eight are the handshake, the login and the goodbye; an upload without bounds is told how much more it may send.
    assert!(
        nothing <= 10 && small <= nothing + 3 + beats && whole <= 30,
        "turns: {nothing} for nothing, {small} for a change, {whole} for all"
    );
    // Most of what travels for nothing is the host script.
    assert!(
        nothing_bytes < 60_000 && small_bytes < nothing_bytes + 40_000 && whole_bytes > 4 * MIB,
        "{nothing_bytes}, {small_bytes}, {whole_bytes}"
    );
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
}
    // A sign of life now and then is no wait, and the link cannot tell.
    let beats = run.took.as_secs() / 3;
