//! One command packs a workspace for four targets with real toolchains; each runs where it should and nowhere else.

use roadie_tests::{LabHost, Project, lab, old_host, skip, workspace};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGETS: [&str; 4] =
    ["x86_64-unknown-linux-gnu", "x86_64-unknown-linux-gnu.2.17", "x86_64-unknown-linux-musl", "aarch64-unknown-linux-gnu"];

/// A workspace with the example server and a service that has C and assembly in it. It stays where it is, with what was built: a
/// second run builds little.
fn source() -> PathBuf {
    let dir = workspace().join("target/cross");
    let write = |path: &str, text: &str| {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
        if std::fs::read_to_string(&path).ok().as_deref() != Some(text) {
            std::fs::write(&path, text).expect("writes");
        }
    };
    let hello = std::fs::read_to_string(workspace().join("examples/hello/src/main.rs")).expect("reads");
    write("Cargo.toml", "[workspace]\nmembers = [\"crates/*\"]\nresolver = \"3\"\n[profile.release]\nopt-level = 1\n");
    write("crates/hello/Cargo.toml", "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
    write("crates/hello/src/main.rs", &hello);
    write(
        "crates/sealed/Cargo.toml",
        "[package]\nname = \"sealed\"\nversion = \"0.2.0\"\nedition = \"2024\"\n[dependencies]\nring = \"0.17\"\n",
    );
    let main = "fn main() {\n    println!(\"{:?}\", ring::digest::digest(&ring::digest::SHA256, b\"abc\"));\n}\n";
    write("crates/sealed/src/main.rs", main);
    dir
}

fn define(project: &Project, source: &Path, hosts: &[&LabHost], targets: &str) {
    let list: Vec<String> =
        hosts.iter().map(|h| format!("{{address: {}, user: root, ssh_key: \"{}\"}}", h.address, h.key().display())).collect();
    let list = list.join(", ");
    project.write(
        "roadie.yaml",
        &format!(
            "services:\n  hello:\n    hosts: [{list}]\n    build: &build\n      type: cargo\n      manifest_dir: {}\n      targets: [{targets}]\n      \
             toolchain: {{x86_64-unknown-linux-musl: build-std}}\n    deploy:\n      args: [--listen, \"127.0.0.1:8080\"]\n      \
             health: {{http: \"http://127.0.0.1:8080/health\", timeout: 5s, interval: 200ms, stable_for: 300ms}}\n  \
             sealed:\n    hosts: [{list}]\n    build: *build\n",
            source.display()
        ),
    );
}

fn unpack(archive: &str, into: &Path) {
    std::fs::create_dir_all(into).expect("makes");
    let status = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(into).status().expect("tar");
    assert!(status.success());
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn one_command_packs_for_four_targets() {
    let test = "one_command_packs_for_four_targets";
    if std::env::var_os("ROADIE_TOOLCHAINS").is_none() {
        return skip(test, "the cross toolchains are not installed: ci/toolchains");
    }
    let (Some(new), Some(old)) = (lab(test, 1), old_host(test)) else { return };
    let new = &new[0];
    let source = source();
    let project = Project::new();
    project.knows(&old);
    define(&project, &source, &[new], &TARGETS.join(", "));
    let home = std::env::var("HOME").expect("HOME");
    project.run_with(&["doctor"], &[]).exits(0);
    let run = project.run_with(&["pack", "--json"], &[]).exits(0);
    let lines: Vec<serde_json::Value> = run.stdout.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let packed: Vec<&serde_json::Value> = lines.iter().filter(|l| l["event"] == "packed").collect();
    assert_eq!(packed.len(), 8, "two services, four targets");
    assert!(lines.iter().filter(|l| l["event"] == "toolchain").all(|l| !l["reason"].as_str().unwrap_or_default().is_empty()));

    for object in &packed {
        let package = &object["package"];
        let (service, target) =
            (object["service"].as_str().expect("a name"), package["metadata"]["target"].as_str().expect("one"));
        let folder = project.dir.join(format!("{service}-{target}"));
        unpack(package["archive"].as_str().expect("an archive"), &folder);
        let binary = folder.join("bin").join(service).display().to_string();
        let header = output("readelf", &["-hdl", &binary]);
        let requires = &package["metadata"]["requires"];
        match target {
            "aarch64-unknown-linux-gnu" => assert!(header.contains("AArch64") && requires["libc"] == "glibc", "{header}"),
            "x86_64-unknown-linux-musl" => {
                assert!(!header.contains("NEEDED") && !header.contains("INTERP") && requires["libc"] == "static", "{header}");
            }
            "x86_64-unknown-linux-gnu.2.17" => {
                let versions = output("readelf", &["--version-info", &binary]);
                let newest = versions
                    .split("GLIBC_2.")
                    .skip(1)
                    .filter_map(|v| v.split([' ', '\n', ')']).next()?.split('.').next()?.parse::<u32>().ok());
                assert!(newest.max() <= Some(17), "{versions}");
            }
            _ => assert!(header.contains("X86-64") && requires["glibc_min"].as_str() > Some("2.31"), "{requires}"),
        }
        let text = std::fs::read(&binary).expect("reads");
        for path in [source.display().to_string(), home.clone() + "/"] {
            assert!(memchr::memmem::find(&text, path.as_bytes()).is_none(), "{binary} names {path}");
        }
        if service == "sealed" {
            let emulated = target.starts_with("aarch64");
            let said = match emulated {
                true => output("qemu-aarch64-static", &["-L", "/usr/aarch64-linux-gnu", &binary]),
                false => output(&binary, &[]),
            };
            assert!(said.contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "{target}: {said}");
        }
    }

    // The host's own architecture and libc decide.
    define(&project, &source, &[&old], "x86_64-unknown-linux-gnu");
    let refused = project.run_with(&["deploy", "hello", "--json"], &[]).exits(8).summary()["hosts"][0].clone();
    let why = refused["summary"].as_str().expect("a reason");
    assert!(why.contains("the host has 2.31") && why.contains("@GLIBC_2.3"), "{why}");
    assert_eq!(refused["sent_bytes"], 0);
    define(&project, &source, &[&old, new], "x86_64-unknown-linux-gnu, x86_64-unknown-linux-gnu.2.17, aarch64-unknown-linux-gnu");
    project.run_with(&["deploy", "hello"], &[]).exits(0);
    for host in [&old, new] {
        assert_eq!(host.root("perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(\"127.0.0.1:8080\") or exit 1; print $s \"GET /health HTTP/1.0\\r\\n\\r\\n\"; print <$s>' | head -n 1 | tr -d '\\r'"), "HTTP/1.1 200 OK");
    }
}
