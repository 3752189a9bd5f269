//! What travels to real hosts: of a small change a small part, and all of it whenever there is any doubt.

use roadie_tests::{LabHost, Project, Run, lab};

const MIB: u64 = 1 << 20;

/// The example server with a large file that does not compress.
fn project(host: &LabHost, user: &str) -> (Project, Vec<u8>) {
    let project = Project::new();
    project.add_hello();
    project.write(
        "roadie.yaml",
        &format!(
            "services:\n  hello:\n    hosts: [{{address: {}, user: {user}}}]\n    build: {{type: prebuilt, path: hello}}\n    \
             files: [{{from: data, to: share/data}}]\n    deploy:\n      args: [--listen, \"127.0.0.1:8080\"]\n      \
             health: {{stable_for: 300ms}}\n",
            host.address
        ),
    );
    let mut random = fastrand::Rng::with_seed(6);
    let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(4 * MIB as usize).collect();
    std::fs::write(project.dir.join("data"), &data).expect("writes");
    (project, data)
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
        let (project, mut data) = project(host, user);
        project.roadie(&["deploy"]).exits(0);
        // A LAN would take all of it in less time than the difference takes to be found: the link is made long.
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
