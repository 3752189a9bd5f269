//! `packages sign`, `verify`, `sbom` and `provenance` as people type them: real keys, a real ssh-agent, and the command that does
//! the same by hand.

use roadie_tests::{Project, Run};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A project with one packed script, and its id.
fn packed() -> (Project, String) {
    let project = Project::new();
    project.write("roadie.yaml", "services:\n  hello:\n    runtime: local\n    build: {type: prebuilt, path: hello}\n");
    project.write("hello", "#!/bin/sh\nsleep 100\n");
    let run = project.roadie(&["pack", "--json"]).exits(0);
    let id = run.json()[0]["package"]["id"].as_str().expect("an id").to_owned();
    (project, id)
}

fn keygen(project: &Project, name: &str, passphrase: &str) -> String {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-C", "", "-N", passphrase, "-f"]).arg(project.dir.join(name));
    assert!(command.status().expect("ssh-keygen").success());
    std::fs::read_to_string(project.dir.join(format!("{name}.pub"))).expect("reads").trim().to_owned()
}

/// Runs the printed command; its exit code.
fn by_hand(run: &Run, folder: &Path) -> i32 {
    let line = run.stdout.lines().find_map(|l| l.strip_prefix("by hand: ")).expect("a command").to_owned();
    let output = Command::new("sh").arg("-c").arg(&line).current_dir(folder).output().expect("sh");
    output.status.code().unwrap_or(-1)
}

#[test]
fn a_signature_is_required_where_signers_are_named() {
    let (project, id) = packed();
    let short = &id[..12];
    let mine = keygen(&project, "my key", "");
    let other = keygen(&project, "other", "");
    project.write("allowed", &format!("# who may\nme@x namespaces=\"roadie-*\" {mine}\n"));
    project.roadie(&["packages", "verify"]).exits(0).says(&format!("ok {short}"));
    project.roadie(&["packages", "verify", "--allowed-signers", "allowed"]).exits(9).says("refused").says("nobody signed it");
    project.run_with(&["packages", "verify", short], &[("ROADIE_ALLOWED_SIGNERS", "allowed")]).exits(9).says("packages sign");

    project.roadie(&["packages", "sign", short, "--key", "my key"]).exits(0).says("signed").says("SHA256:");
    let good = project.roadie(&["packages", "verify", short, "--allowed-signers", "allowed"]).exits(0).says("signed by me@x");
    assert_eq!(by_hand(&good, Path::new("/")), 0, "the command needs no folder of ours: {}", good.stdout);
    project.run_with(&["packages", "verify"], &[("ROADIE_ALLOWED_SIGNERS", "allowed")]).exits(0).says("me@x");
    let json = project.roadie(&["packages", "verify", "--allowed-signers", "allowed", "--json"]).exits(0).json();
    assert_eq!((json[0]["ok"].as_bool(), json[0]["principal"].as_str()), (Some(true), Some("me@x")));
    assert!(
        json[0]["by_hand"].as_str().is_some_and(|c| c.starts_with("ssh-keygen -Y verify")) && json[0]["fingerprint"].is_string()
    );

    let verify = |args: &[&str]| project.roadie(&[&["packages", "verify", "--allowed-signers", "allowed"], args].concat());
    verify(&["--identity", "me@x"]).exits(0);
    verify(&["--identity", "boss@x"]).exits(9).says("not `boss@x`");
    project.write("revoked", &format!("{other}\n"));
    let with_list = verify(&["--revoked", "revoked"]).exits(0).says(" -r ");
    assert_eq!(by_hand(&with_list, Path::new("/")), 0);
    project.write("revoked", &format!("{mine}\n"));
    verify(&["--revoked", "revoked"]).exits(9).says("was revoked");
    project.run_with(&["packages", "verify", "--allowed-signers", "allowed"], &[("ROADIE_REVOKED_SIGNERS", "revoked")]).exits(9);
    let refused = verify(&["--revoked", "revoked", "--json"]).exits(9).json();
    assert_eq!((refused[0]["ok"].as_bool(), refused[1]["exit_code"].as_u64()), (Some(false), Some(9)));
    project.write("allowed", &format!("you@x {other}\n"));
    verify(&[]).exits(9).says("is not in allowed_signers").says("NAME ssh-");

    project.write("allowed", &format!("me@x cert-authority {mine}\nme@x {mine}\nwhat\n"));
    verify(&[]).exits(2).says("`allowed` cannot be used: line 1: `cert-authority` is not supported").says("line 3:");
    project.roadie(&["packages", "verify", "--allowed-signers", "none"]).exits(2).says("cannot read `none`");
    project.roadie(&["packages", "verify", "--revoked", "revoked"]).exits(2).says("--allowed-signers");

    // The statement is changed: both notice.
    project.write("allowed", &format!("me@x {mine}\n"));
    let hand = verify(&[]).exits(0);
    let find = Command::new("find").arg(&project.home).args(["-name", "*.statement"]).output().expect("find");
    let statement = PathBuf::from(String::from_utf8_lossy(&find.stdout).trim());
    let text = std::fs::read_to_string(&statement).expect("one statement");
    assert!(text.starts_with(&format!("roadie-package-v1\npackage sha256:{id}\nname hello\nversion -\ntarget ")), "{text}");
    std::fs::write(&statement, text.replace("hello", "hallo")).expect("writes");
    verify(&[]).exits(9).says("tampered with");
    assert_ne!(by_hand(&hand, Path::new("/")), 0);
}

#[test]
fn packing_signs_too() {
    let (project, id) = packed();
    let mine = keygen(&project, "key", "");
    project.write("allowed", &format!("me@x {mine}\n"));
    keygen(&project, "locked", "secret");
    project.roadie(&["pack", "--sign", "locked"]).exits(2).says("has a passphrase").says("ssh-add locked");
    project.roadie(&["pack", "--sign", "key.pub"]).exits(2).says("is a public key");
    // What the store had already is signed as well.
    let run = project.roadie(&["pack", "--sign", "key", "--json"]).exits(0).json();
    assert_eq!((run[0]["unchanged"].as_bool(), run[1]["event"].as_str()), (Some(true), Some("signed")));
    assert_eq!(run[1]["package"], id.as_str());
    project.roadie(&["packages", "verify", "--allowed-signers", "allowed"]).exits(0).says("me@x");
    project.write("hello", "#!/bin/sh\nsleep 200\n");
    project.roadie(&["pack", "--sign", "key"]).exits(0).says("packed hello").says("signed");
    assert_eq!(
        project.roadie(&["packages", "verify", "--allowed-signers", "allowed"]).exits(0).stdout.matches("me@x (").count(),
        2
    );
    project.roadie(&["packages", "ls", "--json"]).exits(0).says(&id);
}

/// Times without a `Z` are local, for ssh-keygen and for us.
#[test]
fn times_of_signers_are_local() {
    let (project, _) = packed();
    let mine = keygen(&project, "key", "");
    project.roadie(&["packages", "sign", "--key", "key"]).exits(0);
    project.write("allowed", &format!("me@x {mine}\n"));
    let hand = project.roadie(&["packages", "verify", "--allowed-signers", "allowed"]).exits(0);
    let date = Command::new("date").args(["-u", "+%Y%m%d%H%M%S"]).output().expect("date");
    let utc = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    project.write("allowed", &format!("me@x valid-after=\"{utc}\" {mine}\n"));
    // East of Greenwich that time is over since hours, west of it it is still to come.
    for (zone, code) in [("XXX-5", 0), ("XXX5", 9)] {
        project.run_with(&["packages", "verify", "--allowed-signers", "allowed"], &[("TZ", zone)]).exits(code);
        let line = hand.stdout.lines().find_map(|l| l.strip_prefix("by hand: ")).expect("a command");
        let stock = Command::new("sh").arg("-c").arg(line).env("TZ", zone).output().expect("sh");
        assert_eq!(stock.status.success(), code == 0, "{zone}");
    }
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_agent_signs() {
    let (project, _) = packed();
    let socket = project.dir.join("agent");
    let env = [("SSH_AUTH_SOCK", socket.to_str().expect("text"))];
    let sign = ["packages", "sign", "--agent"];
    project.roadie(&["packages", "sign"]).exits(2).says("--key");
    project.roadie(&sign).exits(1).says("SSH_AUTH_SOCK is not set").says("ssh-add");
    project.run_with(&sign, &env).exits(1).says("cannot talk to the ssh-agent");
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let _agent = Agent(quiet(Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket)));
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    project.run_with(&sign, &env).exits(1).says("holds no key");
    let keys = ["one", "two"].map(|name| keygen(&project, name, ""));
    for name in ["one", "two"] {
        let mut add = Command::new("ssh-add");
        assert!(add.arg("-q").arg(project.dir.join(name)).envs(env).status().expect("ssh-add").success());
    }
    project.run_with(&sign, &env).exits(1).says("several keys").says("--agent=SHA256:");
    project.run_with(&["packages", "sign", "--agent=two.pub"], &env).exits(0).says("signed");
    project.write("allowed", &format!("two@x {}\n", keys[1]));
    let good = project.roadie(&["packages", "verify", "--allowed-signers", "allowed"]).exits(0).says("two@x");
    assert_eq!(by_hand(&good, Path::new("/")), 0);
}

#[test]
fn what_is_in_it_and_how_it_came_to_be() {
    let (project, id) = packed();
    let short = &id[..12];
    project.roadie(&["packages", "sbom", short]).exits(1).says("says what it was built from").says("cargo auditable");
    let note = project.roadie(&["packages", "provenance", short, "--json"]).exits(0).json().remove(0);
    assert_eq!(note["subject"][0]["digest"]["sha256"], id.as_str());
    project.roadie(&["packages", "provenance", short]).exits(0).says("https://slsa.dev/provenance/v1");

    let section = project.dir.join("section");
    // `{"packages":[{"name":"a","version":"1.0.0","source":"local","root":true}]}` in zlib's format, stored as it is.
    let list = br#"{"packages":[{"name":"a","version":"1.0.0","source":"local","root":true}]}"#;
    std::fs::write(&section, zlib_stored(list)).expect("writes");
    let argument = format!(".dep-v0={}", section.display());
    let added = Command::new("objcopy").args(["--add-section", &argument, "/bin/true"]).arg(project.dir.join("hello")).status();
    assert!(added.expect("objcopy").success());
    let run = project.roadie(&["pack", "--json"]).exits(0);
    let id = run.json()[0]["package"]["id"].as_str().expect("an id").to_owned();
    let bom = project.roadie(&["packages", "sbom", &id[..12], "--json"]).exits(0).json().remove(0);
    assert_eq!((bom["bomFormat"].as_str(), bom["components"][0]["name"].as_str()), (Some("CycloneDX"), Some("a")));
    let (one, two) = (project.roadie(&["packages", "sbom", &id[..12]]), project.roadie(&["packages", "sbom", &id[..12]]));
    assert_eq!(one.exits(0).stdout, two.stdout);
}

/// RFC 1950 around one stored block.
fn zlib_stored(data: &[u8]) -> Vec<u8> {
    let size = u16::try_from(data.len()).expect("short");
    let (mut a, mut b) = (1u32, 0u32);
    for byte in data {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    [&[0x78, 0x01, 0x01][..], &size.to_le_bytes(), &(!size).to_le_bytes(), data, &(b << 16 | a).to_be_bytes()].concat()
}
