use super::*;

const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGNdLvn7lBqz6ZeGmzXhSGeXBnAIy8hLvTjNpVFPn0bT";

fn key(text: &str) -> PublicKey {
    PublicKey::from_openssh(text).expect("a key")
}

fn verdict(file: &str, name: &str, shown: &str) -> Verdict {
    judge(&parse(Path::new("kh"), file.as_bytes()), name, &key(shown))
}

#[test]
fn any_matching_line_with_the_key_will_do() {
    assert_eq!(verdict(&format!("h {B}\nh {A} comment\n"), "h", A), Verdict::Known);
    assert!(matches!(verdict(&format!("h {B}\n"), "h", A), Verdict::Changed(by) if by.starts_with("kh:1 says SHA256:")));
    assert_eq!(verdict(&format!("other {A}\n"), "h", A), Verdict::Unknown);
}

#[test]
fn revoked_beats_everything() {
    assert_eq!(verdict(&format!("h {A}\n@revoked * {A}\n"), "h", A), Verdict::Revoked("kh:2".into()));
    assert_eq!(verdict(&format!("@cert-authority h {A}\n"), "h", A), Verdict::Unknown);
}

#[test]
fn patterns_negation_case_ports_tabs_and_garbage() {
    assert_eq!(verdict(&format!("\t*.lab,!bad.lab\t{A}\n"), "x.lab", A), Verdict::Known);
    assert_eq!(verdict(&format!("*.lab,!bad.lab {A}\n"), "bad.lab", A), Verdict::Unknown);
    assert_eq!(verdict(&format!("EXAMPLE {A}\n"), "example", A), Verdict::Known);
    assert_eq!(verdict(&format!("[h]:2222 {A}\n"), &host_pattern("H", 2222), A), Verdict::Known);
    assert_eq!(verdict(&format!("garbage\n\u{fffd} x y\nh {A}\n"), "h", A), Verdict::Known);
    assert!(wildcard(b"1?.*.9", b"10.1.2.9") && !wildcard(b"a*b", b"ac"));
}

/// Every host is looked up by us and by `ssh-keygen -F`, in a file with all forms, plain and then hashed.
#[test]
fn the_file_agrees_with_ssh_keygen() {
    let folder = tempfile::tempdir().expect("temp");
    let path = folder.path().join("known_hosts");
    let text = format!(
        "plain.example,alias {A}\n  indented {A}\n\ttabbed\t{A}\nUPPER.Example {A}\n[p.example]:2022 {B}\n10.1.*.9 {A}\n\
         host?.lab,!host3.lab {B}\n!only.negated {A}\n*.wild,!*.not.wild {A}\n[*.ports]:22?? {A}\nnokey\n# comment {A}\n\
         bad ssh-ed25519 AAAA\n@cert-authority *.ca {A}\n::1,fe80::* {A}\n"
    );
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(format!("latin {A} caf\u{e9}").as_bytes());
    bytes.extend_from_slice(b" \xe9\xff\n");
    std::fs::write(&path, bytes).expect("write");
    let hosts = [
        ("plain.example", 22),
        ("alias", 22),
        ("PLAIN.example", 22),
        ("plain.example", 2022),
        ("indented", 22),
        ("tabbed", 22),
        ("upper.example", 22),
        ("p.example", 2022),
        ("p.example", 22),
        ("10.1.2.9", 22),
        ("10.1.2.3.9", 22),
        ("10.2.2.9", 22),
        ("host1.lab", 22),
        ("host3.lab", 22),
        ("host12.lab", 22),
        ("only.negated", 22),
        ("x.wild", 22),
        ("x.not.wild", 22),
        ("a.ports", 2201),
        ("a.ports", 22),
        ("nokey", 22),
        ("::1", 22),
        ("fe80::7", 22),
        ("latin", 22),
        ("other", 22),
    ];
    let known = KnownHosts { policy: Policy::Strict, files: vec![path.clone()] };
    for form in ["plain", "hashed"] {
        for (host, port) in hosts {
            let name = host_pattern(host, port);
            let theirs = std::process::Command::new("ssh-keygen").args(["-F", &name, "-f"]).arg(&path).output();
            let Ok(theirs) = theirs else {
                return roadie_tests::skip("the_file_agrees_with_ssh_keygen", "no ssh-keygen");
            };
            assert_eq!(!known.known_algorithms(host, port).is_empty(), theirs.status.success(), "{form} {name}");
        }
        // A file with bad lines is not hashed: they go first.
        let text = String::from_utf8_lossy(&std::fs::read(&path).expect("reads"))
            .replace("nokey\n", "")
            .replace("bad ssh-ed25519 AAAA\n", "");
        std::fs::write(&path, text).expect("write");
        let hashed = std::process::Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(&path).output().expect("runs");
        assert!(hashed.status.success(), "{}", String::from_utf8_lossy(&hashed.stderr));
    }
    assert!(std::fs::read_to_string(&path).expect("reads").contains("|1|"));
}

fn accept_new(file: PathBuf) -> KnownHosts {
    KnownHosts { policy: Policy::AcceptNew, files: vec![file] }
}

#[test]
fn accept_new_learns_once_and_refuses_a_change() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("temp");
    let known = accept_new(folder.path().join(".ssh/known_hosts"));
    known.check("h", 2222, &key(A)).expect("learns");
    known.check("h", 2222, &key(A)).expect("knows");
    assert!(matches!(known.check("h", 2222, &key(B)), Err(TransportError::HostKeyChanged { .. })));
    let text = std::fs::read_to_string(&known.files[0]).expect("reads");
    assert_eq!(text, format!("[h]:2222 {A}\n"));
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&known.files[0]), mode(&folder.path().join(".ssh"))), (0o600, 0o700));
}

#[test]
fn accept_new_keeps_links_modes_and_open_last_lines() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("temp");
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    std::fs::write(&real, format!("old {B}")).expect("write");
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    std::os::unix::fs::symlink(&real, &link).expect("link");
    accept_new(link.clone()).check("new", 22, &key(A)).expect("learns");
    assert!(link.is_symlink());
    assert_eq!(std::fs::read_to_string(&real).expect("reads"), format!("old {B}\nnew {A}\n"));
    assert_eq!(std::fs::metadata(&real).expect("there").permissions().mode() & 0o777, 0o644);
}

#[test]
fn twenty_who_learn_at_once_all_learn() {
    let folder = tempfile::tempdir().expect("temp");
    let known = accept_new(folder.path().join("known_hosts"));
    std::thread::scope(|scope| {
        for n in 0..20 {
            let known = &known;
            scope.spawn(move || known.check(&format!("h{}", n % 10), 22, &key(A)).expect("learns"));
        }
    });
    let text = std::fs::read_to_string(&known.files[0]).expect("reads");
    assert_eq!((text.lines().count(), parse(Path::new("kh"), text.as_bytes()).len()), (10, 10), "{text}");
}

#[test]
fn unreadable_is_not_missing() {
    let folder = tempfile::tempdir().expect("temp");
    let check = |file: PathBuf| KnownHosts { policy: Policy::Strict, files: vec![file] }.check("h", 22, &key(A));
    assert!(matches!(check(folder.path().join("missing")), Err(TransportError::HostKeyUnknown { .. })));
    // Root may read any file, but nobody reads a folder.
    assert!(matches!(check(folder.path().to_owned()), Err(TransportError::KnownHosts { .. })));
}

#[test]
fn pins_ask_no_file() {
    let pinned = key(A).fingerprint(HashAlg::Sha256).to_string();
    let known = KnownHosts { policy: Policy::Pinned(pinned), files: vec![] };
    known.check("h", 22, &key(A)).expect("pinned");
    assert!(matches!(known.check("h", 22, &key(B)), Err(TransportError::HostKeyChanged { .. })));
}
