//! The mesh on real hosts: names, changes under load, the way back, keys that stay where they are.

use roadie_tests::{LabHost, Project, lab, signal, watch::Probe};
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

const BASE: &str = "/opt/roadie/mesh.roadie0";

/// A definition with the hosts (named `a`, `b`, ...), a mesh, and a server on the first host.
fn definition(hosts: &[LabHost], mesh: &str) -> String {
    let mut text = String::from("hosts:\n");
    for (name, host) in named(hosts) {
        // One of them through sudo.
        let user = if name == "b" { "deploy" } else { "root" };
        text.push_str(&format!("  {name}: {{address: {}, user: {user}}}\n", host.address));
    }
    text.push_str(&format!("mesh: {mesh}\n"));
    text.push_str(
        "services:\n  hello:\n    hosts: [a]\n    ports: [8080]\n    build: {type: prebuilt, path: hello}\n    deploy:\n      \
         args: [--listen, \"0.0.0.0:8080\"]\n      env: {HELLO_VERSION: \"${V:-1}\", HELLO_UNHEALTHY: \"${BAD:-0}\"}\n      \
         health: {http: \"http://127.0.0.1:8080/health\", timeout: 5s, interval: 200ms, stable_for: 300ms}\n",
    );
    text
}

fn named(hosts: &[LabHost]) -> Vec<(String, &LabHost)> {
    ('a'..='z').map(String::from).zip(hosts).collect()
}

fn project(hosts: &[LabHost], mesh: &str) -> Project {
    let project = Project::new();
    project.add_hello();
    project.write("roadie.yaml", &definition(hosts, mesh));
    project
}

/// Everything that a mesh with nothing to do must not touch.
fn traces(host: &LabHost) -> String {
    host.root(&format!(
        "readlink {BASE}/current; systemctl show roadie-mesh.roadie0 -p InvocationID,ActiveEnterTimestampMonotonic; \
         stat -c '%i %Y %s' /etc/hosts; wg show roadie0 latest-handshakes | sort; ip -o addr show roadie0; wc -l <{BASE}/.roadie/journal.jsonl"
    ))
}

/// `name -> (bytes received, bytes sent)` of each peer of a host, by public key.
fn counters(host: &LabHost) -> BTreeMap<String, (u64, u64)> {
    let text = host.root("wg show roadie0 transfer");
    let line = |l: &str| {
        let words: Vec<&str> = l.split_whitespace().collect();
        (words[0].to_owned(), (words[1].parse().expect("bytes"), words[2].parse().expect("bytes")))
    };
    text.lines().map(line).collect()
}

fn never_less(before: &BTreeMap<String, (u64, u64)>, after: &BTreeMap<String, (u64, u64)>) {
    for (key, (received, sent)) in before {
        let Some((received_now, sent_now)) = after.get(key) else { continue };
        assert!(received_now >= received && sent_now >= sent, "{key}: {before:?} {after:?}");
    }
}

/// Asks by name, over both families.
fn reaches(from: &LabHost, to: &LabHost, name: &str) {
    for family in ["-4", "-6"] {
        // One that just booted is shaken hands with within WireGuard's own pauses.
        let ask =
            format!("for i in 1 2 3 4 5 6 7 8; do ping {family} -n -q -c 1 -W 2 {name} 2>&1 | grep ' 1 received' && break; done");
        let answer = from.root(&ask);
        if !answer.contains(" 1 received") {
            let state = "date +%T; wg show roadie0; ip -br addr show; ip neigh; systemctl status --no-pager roadie-mesh.roadie0; \
                         tail -n 4 /opt/roadie/mesh.roadie0/.roadie/journal.jsonl";
            panic!(
                "host {} does not reach {name} ({family})\n{}\n---- the other\n{}",
                from.number,
                from.root(state),
                to.root(state)
            );
        }
    }
}

/// Packets that the hosts' sockets had no room for, since they booted.
fn overflows(hosts: &[LabHost]) -> u64 {
    let of = |h: &LabHost| h.root("awk '/^Udp:/ { n = $6 } END { print n }' /proc/net/snmp").parse::<u64>().unwrap_or(0);
    hosts.iter().map(of).sum()
}

/// The sockets of the tunnel, by inode: one that is opened anew loses what waits in the old one.
fn sockets(host: &LabHost) -> String {
    let found = host.root("awk '$2 ~ /:CA6C$/ { print $10 }' /proc/net/udp /proc/net/udp6");
    assert_ne!(found, "", "host {} listens", host.number);
    found
}

fn all_reach_all(hosts: &[LabHost]) {
    for (from, at) in named(hosts) {
        for (to, there) in named(hosts).into_iter().filter(|(to, _)| *to != from) {
            reaches(at, there, &format!("{to}.mesh.local"));
        }
    }
}

fn outcome(run: &roadie_tests::Run) -> String {
    run.summary()["outcome"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn three_hosts_then_six_under_load_and_back_without_a_lost_packet() {
    let Some(hosts) = lab("three_hosts_then_six_under_load_and_back_without_a_lost_packet", 6) else { return };
    let three = &hosts[..3];
    let project = project(three, "true");
    project.roadie(&["deploy"]).exits(0).says("mesh of 3 hosts").says("release");
    all_reach_all(three);
    assert!(three[1].root("getent hosts hello.mesh.local").contains("hello.mesh.local"), "the service has a name");
    let answer = three[2].root("exec 3<>/dev/tcp/hello.mesh.local/8080; printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    assert!(answer.contains("200"), "the service answers by its name: {answer}");

    // Nothing changed: nothing is done.
    let before: Vec<String> = three.iter().map(traces).collect();
    project.roadie(&["deploy"]).exits(0).says("mesh of 3 hosts: nothing to do");
    project.roadie(&["plan", "--detailed-exitcode"]).exits(0);
    assert_eq!(three.iter().map(traces).collect::<Vec<_>>(), before);

    // All pairs of the three ask each other every 10 ms, and a stream runs, while three more come.
    let full_before = overflows(three);
    let probes = Probe::between_all(&named(three), "mesh.local");
    let stream = Probe::stream(three[0].clone(), three[1].clone(), "b.mesh.local");
    let counted: Vec<_> = three.iter().map(counters).collect();
    let listening: Vec<_> = three.iter().map(sockets).collect();
    project.write("roadie.yaml", &definition(&hosts, "true"));
    project.roadie(&["deploy"]).exits(0).says("mesh of 6 hosts");
    all_reach_all(&hosts);
    // One leaves: the others forget it first.
    project.roadie(&["mesh", "remove", "f", "--yes"]).exits(0).says("out of the mesh");
    let gone = &hosts[5];
    let left = gone
        .root(&format!("ls -d {BASE} 2>/dev/null; ip link show roadie0 2>/dev/null; grep roadie /etc/hosts; pgrep wireguard-go"));
    assert_eq!(left, "", "nothing of the mesh is left");
    project.write("roadie.yaml", &definition(&hosts[..5], "true"));
    project.roadie(&["deploy"]).exits(0);
    assert!(!three[0].root("wg show roadie0 allowed-ips; cat /etc/hosts").contains("f.mesh.local"));
    for (host, before) in three.iter().zip(&counted) {
        never_less(before, &counters(host));
    }
    assert_eq!(three.iter().map(sockets).collect::<Vec<_>>(), listening, "nobody opened its socket anew");
    for probe in probes {
        let name = probe.name().to_owned();
        let (sent, lost) = probe.end();
        assert!(sent > 300, "{name}: {sent} packets are too few to tell");
        let full = overflows(three) - full_before;
        assert_eq!(lost, 0, "{name}: of {sent}; {full} packets found no room in a socket of these hosts");
    }
    let (moved, broken) = stream.end();
    assert!(moved > 1_000_000 && broken == 0, "{moved} bytes, broken {broken} times");

    // For people and for programs.
    let shown = project.roadie(&["mesh", "show"]).exits(0).says("wireguard-go").says("FROM \\ TO").says(" ms");
    assert!(!shown.stdout.contains("no answer") && !shown.stdout.contains("lost"), "{}", shown.stdout);
    let object =
        project.roadie(&["mesh", "show", "--json"]).exits(0).json().into_iter().find(|v| v["event"] == "mesh").expect("told");
    assert_eq!(object["members"].as_array().map(Vec::len), Some(5));
    assert_eq!(object["reach"]["a"].as_array().map(Vec::len), Some(4));
    assert_eq!(object["hosts"]["a"]["engine"], "wireguard-go");
}

/// Whether `host`'s private keys are in `bytes`, as text or raw.
struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    fn of(hosts: &[LabHost]) -> Self {
        let mut found = Vec::new();
        for host in hosts {
            for text in host.root(&format!("cat {BASE}/.roadie/keys/*")).lines() {
                found.push((text.to_owned(), decode(text)));
            }
        }
        assert!(found.len() >= hosts.len(), "every host has a key");
        Self(found)
    }

    fn are_not_in(&self, what: &str, bytes: &[u8]) {
        for (text, raw) in &self.0 {
            // Without the last characters, which depend on what comes behind.
            let text = &text.as_bytes()[..40];
            assert!(!contains(bytes, text) && !contains(bytes, raw), "a private key is in {what}");
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(bytes, part).is_some()
}

fn decode(base64: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = base64.bytes().filter_map(|b| ALPHABET.iter().position(|a| *a == b)).collect::<Vec<_>>();
    let mut bytes: Vec<u8> = Vec::new();
    let (mut sum, mut have) = (0_u32, 0);
    for six in bits {
        sum = sum << 6 | u32::try_from(six).unwrap_or(0);
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push(u8::try_from(sum >> have & 0xff).unwrap_or(0));
        }
    }
    bytes
}

/// All memory of a process that can be read.
fn memory(pid: u32) -> Vec<u8> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let mut file = std::fs::File::open(format!("/proc/{pid}/mem")).expect("we are root");
    let mut all = Vec::new();
    for line in maps.lines().filter(|l| l.split(' ').nth(1).is_some_and(|flags| flags.starts_with("rw"))) {
        let (from, to) = line.split(' ').next().and_then(|r| r.split_once('-')).expect("a range");
        let (from, to) = (u64::from_str_radix(from, 16).expect("hex"), u64::from_str_radix(to, 16).expect("hex"));
        let mut part = vec![0; usize::try_from(to - from).expect("fits")];
        if file.seek(SeekFrom::Start(from)).is_ok() && file.read_exact(&mut part).is_ok() {
            all.extend(part);
        }
    }
    all
}

#[test]
fn private_keys_stay_where_they_are_born() {
    let Some(hosts) = lab("private_keys_stay_where_they_are_born", 3) else { return };
    let project = project(&hosts, "true");
    // Arguments of all processes of a host, for as long as the deploy takes.
    for host in &hosts {
        host.root("rm -f /tmp/argv; (while [ ! -e /tmp/argv.end ]; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; done >/tmp/argv) >/dev/null 2>&1 &");
    }
    let hold = |on: bool| {
        let verb = if on {
            format!("mkdir -p {BASE}/.roadie; echo 'after mesh_verify' >{BASE}/.roadie/hold")
        } else {
            format!("rm -f {BASE}/.roadie/hold")
        };
        hosts[0].root(&verb);
    };
    hold(true);
    let child =
        project.command(&["mesh", "apply", "--debug"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    within(Duration::from_secs(20), "the check of the peers", || {
        !hosts[0].root(&format!("ls {BASE}/.roadie/hold.reached")).is_empty()
    });
    let secrets = Secrets::of(&hosts);
    secrets.are_not_in("the controller's memory", &memory(child.id()));
    hold(false);
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    secrets.are_not_in("what roadie said", &[output.stdout, output.stderr].concat());
    for host in &hosts {
        host.root("touch /tmp/argv.end; sleep 0.3");
        let seen = host.root("wc -c </tmp/argv");
        assert!(seen.parse::<u64>().unwrap_or(0) > 10_000, "arguments were watched: {seen}");
        for (text, _) in &secrets.0 {
            assert_eq!(
                host.root(&format!("grep -cF -- '{}' /tmp/argv", &text[..40])),
                "0",
                "a private key is in an argument or a variable"
            );
        }
        let mode = host.root(&format!("stat -c %a {BASE}/.roadie {BASE}/.roadie/keys {BASE}/.roadie/keys/* | tr '\\n' ' '"));
        assert_eq!(mode.trim(), "700 700 600");
        let public = secrets.0.iter().map(|(text, _)| &text[..40]);
        for key in public {
            let files = host
                .root(&format!("grep -rlF --exclude-dir=keys -- '{key}' /opt/roadie /etc /run /tmp /root /var/log 2>/dev/null"));
            assert_eq!(files, "", "a private key is in another file");
        }
        host.root("rm -f /tmp/argv /tmp/argv.end");
    }
    for folder in [&project.home, &project.dir] {
        for entry in walk(folder) {
            secrets.are_not_in(&entry.display().to_string(), &std::fs::read(&entry).unwrap_or_default());
        }
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    began.elapsed()
}

#[test]
fn a_mesh_that_cuts_us_off_or_a_host_that_goes_down_settles_alone() {
    let Some(hosts) = lab("a_mesh_that_cuts_us_off_or_a_host_that_goes_down_settles_alone", 3) else { return };
    let project = project(&hosts, "true");
    project.roadie(&["mesh", "apply"]).exits(0);
    let before: Vec<String> = hosts.iter().map(|h| h.root(&format!("readlink {BASE}/current"))).collect();

    // A rule of the new mesh that closes the way in: what the host's own guard is for.
    let hook = format!("{BASE}/.roadie/hold");
    hosts[1].root(&format!("echo 'after restart' >{hook}"));
    project.write("roadie.yaml", &definition(&hosts, "{port: 51999}"));
    let child = project.command(&["mesh", "apply"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    within(Duration::from_secs(20), "the new mesh is in force", || !hosts[1].root(&format!("ls {hook}.reached")).is_empty());
    assert_eq!(hosts[1].root("wg show roadie0 listen-port"), "51999");
    let began = Instant::now();
    hosts[1].lab("cut", &[]);
    std::thread::sleep(Duration::from_secs(29).saturating_sub(began.elapsed()));
    hosts[1].lab("heal", &[]);
    within(Duration::from_secs(3), "the old mesh is back", || hosts[1].root("wg show roadie0 listen-port") == "51820");
    assert_eq!(hosts[1].root(&format!("readlink {BASE}/current")), before[1]);
    hosts[1].root(&format!("rm -f {hook} {hook}.reached"));
    let output = child.wait_with_output().expect("ends");
    assert_ne!(output.status.code(), Some(0));
    within(Duration::from_secs(40), "all are back", || {
        hosts.iter().zip(&before).all(|(h, b)| {
            h.root(&format!("readlink {BASE}/current")) == *b
                && h.root(&format!("ls {BASE}/.roadie/guard 2>/dev/null")).is_empty()
        })
    });
    all_reach_all(&hosts);

    // Power is lost with the new mesh in force and not confirmed.
    hosts[2].root(&format!("echo 'after restart' >{hook}; sync"));
    let child = project.command(&["mesh", "apply"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    within(Duration::from_secs(20), "the new mesh is in force", || !hosts[2].root(&format!("ls {hook}.reached")).is_empty());
    hosts[2].lab("power", &[]);
    hosts[2].lab("boot", &[]);
    within(Duration::from_secs(10), "the old mesh is up after boot", || hosts[2].root("wg show roadie0 listen-port") == "51820");
    assert_eq!(hosts[2].root(&format!("readlink {BASE}/current")), before[2]);
    hosts[2].root(&format!("rm -f {hook} {hook}.reached"));
    let code = child.wait_with_output().expect("ends").status.code();
    assert_ne!(code, Some(0));
    within(Duration::from_secs(40), "all are back", || {
        hosts.iter().zip(&before).all(|(h, b)| h.root(&format!("readlink {BASE}/current")) == *b)
    });
    // And the next run converges.
    project.roadie(&["mesh", "apply"]).exits(0);
    assert!(hosts.iter().all(|h| h.root("wg show roadie0 listen-port") == "51999"));
    all_reach_all(&hosts);

    // Ctrl-C while it is held: everything goes back, and says so.
    let before: Vec<String> = hosts.iter().map(|h| h.root(&format!("readlink {BASE}/current"))).collect();
    project.write("roadie.yaml", &definition(&hosts, "{port: 51888}"));
    hosts[0].root(&format!("echo 'before mesh_verify' >{hook}"));
    let child = project.command(&["mesh", "apply"]).stderr(Stdio::piped()).spawn().expect("starts");
    within(Duration::from_secs(20), "the check of the peers", || !hosts[0].root(&format!("ls {hook}.reached")).is_empty());
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(500));
    hosts[0].root(&format!("rm -f {hook} {hook}.reached"));
    assert_eq!(child.wait_with_output().expect("ends").status.code(), Some(130));
    assert_eq!(hosts.iter().map(|h| h.root(&format!("readlink {BASE}/current"))).collect::<Vec<_>>(), before);
    all_reach_all(&hosts);
}

#[test]
fn a_new_key_costs_its_own_pairs_less_than_two_seconds() {
    let Some(hosts) = lab("a_new_key_costs_its_own_pairs_less_than_two_seconds", 3) else { return };
    let project = project(&hosts, "true");
    project.roadie(&["mesh", "apply"]).exits(0);
    let public = |host: &LabHost| host.root("wg show roadie0 public-key");
    let before: Vec<String> = hosts.iter().map(public).collect();
    let address = hosts[1].root("ip -4 -o addr show roadie0");
    let probes = Probe::between_all(&named(&hosts), "mesh.local");
    project.roadie(&["mesh", "rotate", "b"]).exits(0);
    let after: Vec<String> = hosts.iter().map(public).collect();
    assert_eq!([&before[0], &before[2]], [&after[0], &after[2]]);
    assert_ne!(before[1], after[1]);
    assert_eq!(hosts[1].root("ip -4 -o addr show roadie0"), address, "its address stays");
    std::thread::sleep(Duration::from_secs(1));
    for probe in probes {
        let name = probe.name().to_owned();
        if probe.touches("b") {
            // Asked every 10 ms.
            let longest = probe.longest_gap();
            assert!(longest < Duration::from_secs(2), "{name}: {longest:?}");
        } else {
            let (sent, lost) = probe.end();
            assert_eq!(lost, 0, "{name}: of {sent}");
        }
    }
}

#[test]
fn a_key_that_one_cannot_take_in_is_taken_back_everywhere() {
    let Some(hosts) = lab("a_key_that_one_cannot_take_in_is_taken_back_everywhere", 3) else { return };
    let project = project(&hosts, "true");
    project.roadie(&["mesh", "apply"]).exits(0);
    let public = |host: &LabHost| host.root("wg show roadie0 public-key");
    let before: Vec<String> = hosts.iter().map(public).collect();
    hosts[2].root(&format!("echo 'after restart' >{BASE}/.roadie/hold"));
    let child = project.command(&["mesh", "rotate", "b"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    within(Duration::from_secs(20), "the third host is held", || {
        !hosts[2].root(&format!("ls {BASE}/.roadie/hold.reached")).is_empty()
    });
    hosts[2].lab("power", &[]);
    let code = child.wait_with_output().expect("ends").status.code();
    assert_ne!(code, Some(0));
    hosts[2].lab("boot", &[]);
    hosts[2].root(&format!("rm -f {BASE}/.roadie/hold {BASE}/.roadie/hold.reached"));
    within(Duration::from_secs(40), "the old key is back", || hosts.iter().map(public).collect::<Vec<_>>() == before);
    all_reach_all(&hosts);
    let keys = hosts[1].root(&format!("ls {BASE}/.roadie/keys | wc -l"));
    project.roadie(&["mesh", "rotate", "b"]).exits(0);
    all_reach_all(&hosts);
    assert!(keys.parse::<u32>().unwrap_or(9) <= 2);
}

#[test]
fn narrow_parted_hidden_and_without_ipv4() {
    let Some(hosts) = lab("narrow_parted_hidden_and_without_ipv4", 3) else { return };
    let project = project(&hosts, "true");
    // A way that carries 1300 bytes and says nothing about it.
    hosts[1].lab("mtu", &["1300"]);
    project.roadie(&["mesh", "apply"]).exits(0);
    all_reach_all(&hosts);
    for (from, to) in [(0, "b"), (1, "a"), (0, "c")] {
        let stream = Probe::fast_stream(
            hosts[from].clone(),
            hosts[usize::from(to.as_bytes()[0] - b'a')].clone(),
            &format!("{to}.mesh.local"),
        );
        std::thread::sleep(Duration::from_secs(2));
        let (moved, broken) = stream.end();
        assert!(moved > 5_000_000 && broken == 0, "{from} -> {to}: {moved} bytes in 2 s");
    }
    hosts[1].lab("heal", &[]);

    // Two that cannot dial each other, through a third.
    hosts[0].lab("part", &[&hosts[1].lab_number.to_string()]);
    project.roadie(&["mesh", "show"]).exits(0).says("no answer").says("does not reach b");
    hosts[2].lab("part", &[&hosts[0].lab_number.to_string()]);
    project.roadie(&["mesh", "show"]).exits(0).says("in 2 parts that do not reach each other: a | b, c");
    hosts[2].lab("heal", &[]);
    hosts[0].lab("part", &[&hosts[1].lab_number.to_string()]);
    project.write("roadie.yaml", &definition(&hosts, "{topology: {hub: c}}"));
    project.roadie(&["mesh", "apply"]).exits(0);
    all_reach_all(&hosts);
    project.write("roadie.yaml", &definition(&hosts, "{via: {a: c, b: c}}"));
    project.roadie(&["mesh", "apply"]).exits(0);
    all_reach_all(&hosts);
    let stream = Probe::fast_stream(hosts[0].clone(), hosts[1].clone(), "b.mesh.local");
    std::thread::sleep(Duration::from_secs(2));
    assert!(stream.end().0 > 1_000_000);
    hosts[0].lab("heal", &[]);

    // Below the mesh there is IPv6 only.
    let mut text = definition(&hosts, "true");
    for host in &hosts {
        let six = host.address6.clone().expect("the lab has IPv6");
        text = text.replace(&format!("address: {},", host.address), &format!("address: \"{six}\","));
    }
    project.write("roadie.yaml", &text);
    project.roadie(&["mesh", "apply"]).exits(0);
    all_reach_all(&hosts);
    assert!(hosts[0].root("wg show roadie0 endpoints").contains('['), "tunnels run over IPv6");
}

#[test]
fn hosts_that_cannot_take_a_mesh_are_refused_with_the_fix() {
    let Some(hosts) = lab("hosts_that_cannot_take_a_mesh_are_refused_with_the_fix", 2) else { return };
    let project = project(&hosts, "true");
    let cases = [
        ("mv /usr/bin/wg /usr/bin/wg.away", "mv /usr/bin/wg.away /usr/bin/wg", "needs `wg`", "apt-get install wireguard-tools"),
        ("umount /dev/net/tun; mv /dev/net/tun /dev/net/tun.away", "true", "/dev/net/tun", "let the container have the device"),
        (
            "mv /usr/bin/wireguard-go /usr/bin/wireguard-go.away",
            "mv /usr/bin/wireguard-go.away /usr/bin/wireguard-go",
            "neither the kernel nor wireguard-go",
            "apt-get install wireguard-go",
        ),
        (
            "systemd-run -q --unit=squatter perl -e 'use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 51820, Proto => \"udp\"); sleep 600'; sleep 0.5",
            "systemctl stop squatter",
            "UDP port 51820 is taken by perl",
            "mesh.port",
        ),
        (
            "wireguard-go wg9 && wg set wg9 listen-port 51820 && ip link set wg9 up",
            "ip link del wg9",
            "WireGuard interface wg9",
            "mesh.port",
        ),
        (
            "ip link add roadie0 type veth peer name roadie0-end",
            "ip link del roadie0",
            "interface roadie0 is there and not ours",
            "mesh.interface",
        ),
        ("ip route add 10.86.9.0/24 dev host0", "ip route del 10.86.9.0/24", "overlaps with 10.86.9.0/24", "mesh.network"),
    ];
    let untouched = |host: &LabHost| host.root("ls -d /opt/roadie/mesh.roadie0/releases 2>/dev/null; grep roadie /etc/hosts");
    for (spoil, mend, problem, hint) in cases {
        hosts[1].root(spoil);
        let run = project.roadie(&["mesh", "apply"]);
        hosts[1].root(mend);
        if problem == "/dev/net/tun" {
            // A device that is bound in comes back with the next boot.
            hosts[1].root("mv /dev/net/tun.away /dev/net/tun 2>/dev/null");
            hosts[1].lab("power", &[]);
            hosts[1].lab("boot", &[]);
        }
        assert_eq!(run.code, 8, "{spoil}");
        run.exits(8).says(problem).says(hint).says("so no host was changed");
        assert_eq!(hosts.iter().map(untouched).collect::<String>(), "", "{problem}");
    }
    project.roadie(&["mesh", "apply"]).exits(0);
}

#[test]
fn a_rollback_brings_back_the_mesh_that_was_changed_with_it() {
    let Some(hosts) = lab("a_rollback_brings_back_the_mesh_that_was_changed_with_it", 2) else { return };
    let project = project(&hosts, "true");
    project.roadie(&["deploy"]).exits(0);
    let state = || hosts.iter().map(|h| h.root("wg show roadie0 listen-port")).collect::<Vec<_>>();
    // Both change in one deploy, and go back in one rollback.
    project.write("roadie.yaml", &definition(&hosts, "{port: 51999}"));
    project.run_with(&["deploy"], &[("V", "2")]).exits(0);
    assert_eq!(state(), ["51999", "51999"]);
    project.roadie(&["rollback"]).exits(0);
    assert_eq!(state(), ["51820", "51820"]);
    all_reach_all(&hosts);
    // Only the service changes: the mesh stays as it is.
    project.roadie(&["deploy"]).exits(0);
    project.run_with(&["deploy"], &[("V", "3")]).exits(0);
    project.roadie(&["rollback"]).exits(0);
    assert_eq!(state(), ["51999", "51999"]);
    // A deploy that fails takes its mesh back with it.
    project.write("roadie.yaml", &definition(&hosts, "{port: 51777}"));
    project.run_with(&["deploy"], &[("V", "4"), ("BAD", "1")]).exits(5).says("the mesh went back");
    assert_eq!(state(), ["51999", "51999"]);
    all_reach_all(&hosts);
    assert_eq!(outcome(&project.roadie(&["mesh", "show", "--json"])), "done");
}

#[test]
fn a_closed_mesh_lets_in_what_dependents_need() {
    let Some(hosts) = lab("a_closed_mesh_lets_in_what_dependents_need", 3) else { return };
    let project = project(&hosts, "{default_drop: true, open: [22]}");
    let client = "  client:\n    hosts: [b]\n    depends_on: [hello]\n    build: {type: prebuilt, path: hello}\n    deploy: {args: [--listen, \"127.0.0.1:8081\"]}\n";
    project.write("roadie.yaml", &(definition(&hosts, "{default_drop: true, open: [22]}") + client));
    project.roadie(&["deploy"]).exits(0);
    let opens = |from: &LabHost, port: u16| {
        from.root(&format!("timeout 2 bash -c 'exec 3<>/dev/tcp/a.mesh.local/{port}' 2>/dev/null && echo open")) == "open"
    };
    assert!(opens(&hosts[1], 8080), "who depends on it gets in");
    assert!(!opens(&hosts[2], 8080), "who does not, does not");
    assert!(opens(&hosts[2], 22), "what is open to all is");
    assert!(
        hosts[1]
            .root("cat /proc/$(pgrep -x hello | head -n 1)/environ | tr '\\0' '\\n'")
            .contains("ROADIE_HELLO_ADDRESS=hello.mesh.local")
    );
    let shown = project.roadie(&["mesh", "show"]).exits(0);
    assert!(shown.stdout.contains("ok client@b reaches hello at hello.mesh.local:8080"), "{}", shown.stdout);
    // Opened again, and nothing is left of the rules.
    project.write("roadie.yaml", &(definition(&hosts, "true") + client));
    project.roadie(&["deploy"]).exits(0);
    assert!(opens(&hosts[2], 8080));
    assert_eq!(hosts[0].root("nft list tables | grep roadie"), "");
}

#[test]
fn drift_is_seen_named_and_mended() {
    let Some(hosts) = lab("drift_is_seen_named_and_mended", 2) else { return };
    let project = project(&hosts, "true");
    project.roadie(&["mesh", "apply"]).exits(0);
    let key = hosts[1].root("wg show roadie0 public-key");
    let cases = [
        (format!("wg set roadie0 peer {key} remove"), "peer b is missing"),
        (format!("wg set roadie0 peer {key} allowed-ips 10.86.0.0/16"), "peer b has addresses"),
        ("ip addr add 10.86.1.1/32 dev roadie0".into(), "address 10.86.1.1/32 is not of this mesh"),
        ("ip link set roadie0 mtu 1300".into(), "MTU is 1300"),
        ("ip link set roadie0 down".into(), "interface roadie0 is down"),
        ("sed -i '/mesh.local/d' /etc/hosts".into(), "names in /etc/hosts differ"),
        ("ip link del roadie0".into(), "interface roadie0 is not there"),
        ("wg set roadie0 listen-port 51999".into(), "listens on port 51999"),
        ("ip route add 10.86.2.2/32 dev roadie0 proto 157 mtu 1300".into(), "route to 10.86.2.2 is not of this mesh"),
    ];
    for (spoil, said) in &cases {
        hosts[0].root(spoil);
        project.roadie(&["mesh", "show"]).exits(0).says(said).says("`roadie mesh apply` mends it");
        project.roadie(&["mesh", "plan", "--detailed-exitcode"]).exits(3);
        let other = traces(&hosts[1]);
        project.roadie(&["mesh", "apply"]).exits(0).says("nothing to do");
        assert_eq!(traces(&hosts[1]).lines().next(), other.lines().next(), "the other host has the same release");
        project.roadie(&["mesh", "plan", "--detailed-exitcode"]).exits(0);
        all_reach_all(&hosts);
    }
}

#[test]
fn the_hosts_file_is_left_as_it_was() {
    let Some(hosts) = lab("the_hosts_file_is_left_as_it_was", 2) else { return };
    let project = project(&hosts, "true");
    // A line that ends as on another system, one without an end, and a mode of its own.
    let keep = "cp -a /etc/hosts /var/tmp/hosts.kept; printf '10.9.9.9 odd\\r\\n# roadie other0: begin\\n10.1.1.1 last' >>/etc/hosts; chmod 640 /etc/hosts; chown deploy /etc/hosts";
    let look = |host: &LabHost| host.root("sha256sum </etc/hosts; stat -c '%a %U' /etc/hosts");
    hosts[0].root(keep);
    let before = look(&hosts[0]);
    project.roadie(&["mesh", "apply"]).exits(0);
    let during = hosts[0].root("cat /etc/hosts; stat -c '%a %U' /etc/hosts");
    assert!(during.contains("b.mesh.local") && during.contains("10.1.1.1 last") && during.ends_with("640 deploy"), "{during}");
    project.write("roadie.yaml", &definition(&hosts, "{names: none}"));
    project.roadie(&["mesh", "apply"]).exits(0);
    assert_eq!(look(&hosts[0]), before);
    // In a container the file is a mount: it is written in place.
    hosts[1].root("cp -a /etc/hosts /var/tmp/hosts.mounted; mount --bind /var/tmp/hosts.mounted /etc/hosts");
    project.write("roadie.yaml", &definition(&hosts, "true"));
    project.roadie(&["mesh", "apply"]).exits(0);
    reaches(&hosts[1], &hosts[0], "a.mesh.local");
    project.roadie(&["mesh", "remove", "a", "b", "--yes"]).exits(0);
    assert_eq!(look(&hosts[0]), before);
    assert_eq!(hosts[1].root("grep roadie /etc/hosts; umount /etc/hosts; ls -d /run/roadie-mesh 2>/dev/null"), "");
    hosts[0].root("cp -a /var/tmp/hosts.kept /etc/hosts");
}

#[test]
fn an_endpoint_whose_name_moves_is_found_again() {
    let Some(hosts) = lab("an_endpoint_whose_name_moves_is_found_again", 2) else { return };
    // The second host is not dialled: only it can find the first one.
    let project = project(&hosts, "{via: {b: a}, endpoints: {a: \"gate.example.test:51820\"}}");
    let points_at = |address: &str| {
        hosts[1].root(&format!("sed -i '/gate.example.test/d' /etc/hosts; sed -i '1i {address} gate.example.test' /etc/hosts"));
    };
    points_at(&hosts[0].address);
    project.roadie(&["mesh", "apply"]).exits(0);
    all_reach_all(&hosts);
    // It comes up while the name leads nowhere.
    let nowhere = hosts[0].address.rsplit_once('.').map(|(net, _)| format!("{net}.250")).expect("an address");
    points_at(&nowhere);
    hosts[1].root("systemctl restart roadie-mesh.roadie0");
    let reached = || hosts[1].root("ping -n -q -c 1 -W 1 a.mesh.local").contains(" 1 received");
    assert!(!reached());
    points_at(&hosts[0].address);
    within(Duration::from_secs(60), "the name is looked up anew", reached);
    hosts[1].root("sed -i '/gate.example.test/d' /etc/hosts");
}

#[test]
fn a_host_that_is_gone_keeps_nobody_from_changing() {
    let Some(hosts) = lab("a_host_that_is_gone_keeps_nobody_from_changing", 3) else { return };
    let project = project(&hosts, "true");
    project.roadie(&["mesh", "apply"]).exits(0);
    hosts[2].lab("power", &[]);
    project.write("roadie.yaml", &definition(&hosts, "{port: 51999}").replace("user: root}", "user: root, timeout: 2s}"));
    // Not without being asked to: it would be left behind.
    project.roadie(&["mesh", "apply"]).exits(4).says("so no host was changed");
    project.roadie(&["mesh", "apply", "--skip-unreachable"]).exits(11);
    assert_eq!(hosts[1].root("wg show roadie0 listen-port"), "51999");
    reaches(&hosts[0], &hosts[1], "b.mesh.local");
    project.roadie(&["mesh", "remove", "c", "--yes"]).exits(0).says("forgotten by the others");
    assert!(!hosts[0].root("cat /etc/hosts").contains("c.mesh.local"));
    // It comes back, and is taken in again.
    hosts[2].lab("boot", &[]);
    project.roadie(&["mesh", "apply"]).exits(0);
    all_reach_all(&hosts);
    project.write("roadie.yaml", &definition(&hosts, "{topology: {hub: c}}"));
    project.roadie(&["mesh", "remove", "c", "--yes"]).exits(2).says("it is the hub");
}
