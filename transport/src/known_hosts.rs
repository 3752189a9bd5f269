//! Which host keys are trusted: our own reading of known_hosts files (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
//!
//! Own code, because the SSH library's check was seen to accept keys that a `@revoked` line forbids, and to call a second valid
//! key a changed one. A bad line is skipped; a file that exists and cannot be read fails the check.

use crate::TransportError;
use base64::Engine as _;
use hmac::{Hmac, KeyInit, Mac};
use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, HashAlg};
use sha1::Sha1;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// How host keys are judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// Only keys in known_hosts.
    Strict,
    /// Unknown keys are written into the first known_hosts file; changed ones are refused.
    AcceptNew,
    /// Only the key with this fingerprint (`SHA256:...`); files are not asked.
    Pinned(String),
}

/// The files and the policy.
#[derive(Debug, Clone)]
pub struct KnownHosts {
    /// Judged by.
    pub policy: Policy,
    /// Files, the user's own first: new keys are written there.
    pub files: Vec<PathBuf>,
}

/// What the files say of a key.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Known,
    Revoked(String),
    Changed(String),
    Unknown,
}

impl KnownHosts {
    /// Judges the key that `address:port` shows.
    ///
    /// # Errors
    /// [`TransportError`]: unknown, changed, revoked, or a file that cannot be read.
    pub fn check(&self, address: &str, port: u16, key: &PublicKey) -> Result<(), TransportError> {
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        if let Policy::Pinned(pinned) = &self.policy {
            if *pinned == fingerprint {
                return Ok(());
            }
            let expected = format!("the definition pins {pinned}");
            return Err(TransportError::HostKeyChanged { address: address.to_owned(), fingerprint, expected });
        }
        let name = host_pattern(address, port);
        match judge(&self.lines()?, &name, key) {
            Verdict::Known => Ok(()),
            Verdict::Revoked(by) => Err(TransportError::HostKeyRevoked { address: address.to_owned(), fingerprint, by }),
            Verdict::Changed(expected) => {
                Err(TransportError::HostKeyChanged { address: address.to_owned(), fingerprint, expected })
            }
            Verdict::Unknown => {
                let line = format!("{name} {}", key_text(key));
                if self.policy == Policy::AcceptNew {
                    return self.learn(&line);
                }
                let algorithm = key.algorithm().to_string();
                Err(TransportError::HostKeyUnknown { address: address.to_owned(), algorithm, fingerprint, line })
            }
        }
    }

    /// Algorithms under which the host is known, so that they are asked for first.
    pub fn known_algorithms(&self, address: &str, port: u16) -> Vec<Algorithm> {
        let name = host_pattern(address, port);
        let lines = self.lines().unwrap_or_default();
        lines.iter().filter(|l| l.marker == Marker::None && l.matches(&name)).map(|l| l.key.algorithm()).collect()
    }

    fn lines(&self) -> Result<Vec<Line>, TransportError> {
        let mut lines = Vec::new();
        for path in &self.files {
            match std::fs::read(path) {
                Ok(bytes) => lines.extend(parse(path, &bytes)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(TransportError::KnownHosts { path: path.clone(), source }),
            }
        }
        Ok(lines)
    }

    /// Appends a line with one write: two processes that learn at once both get theirs in.
    fn learn(&self, line: &str) -> Result<(), TransportError> {
        let Some(path) = self.files.first() else { return Ok(()) };
        let failed = |source| TransportError::Local { what: format!("cannot write `{}`", path.display()), source };
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        }
        let ends_open = std::fs::read(path).is_ok_and(|text| text.last().is_some_and(|b| *b != b'\n'));
        let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        let text = format!("{}{line}\n", if ends_open { "\n" } else { "" });
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)
    }
}

/// How the host is written in the files: lower case, with brackets when the port is not 22.
fn host_pattern(address: &str, port: u16) -> String {
    let address = address.to_ascii_lowercase();
    if port == 22 { address } else { format!("[{address}]:{port}") }
}

fn key_text(key: &PublicKey) -> String {
    let mut key = key.clone();
    key.set_comment("");
    key.to_openssh().unwrap_or_default().trim().to_owned()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    None,
    Revoked,
    CertAuthority,
}

#[derive(Debug)]
struct Line {
    place: String,
    marker: Marker,
    hosts: String,
    key: PublicKey,
}

fn parse(path: &Path, bytes: &[u8]) -> Vec<Line> {
    let lines = bytes.split(|b| *b == b'\n').enumerate();
    lines
        .filter_map(|(index, line)| parse_line(std::str::from_utf8(line).ok()?, format!("{}:{}", path.display(), index + 1)))
        .collect()
}

fn parse_line(line: &str, place: String) -> Option<Line> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let mut words = line.split_ascii_whitespace();
    let mut hosts = words.next()?;
    let marker = match hosts {
        "@revoked" => Marker::Revoked,
        "@cert-authority" => Marker::CertAuthority,
        marker if marker.starts_with('@') => return None,
        _ => Marker::None,
    };
    if marker != Marker::None {
        hosts = words.next()?;
    }
    let key = PublicKey::from_openssh(&format!("{} {}", words.next()?, words.next()?)).ok()?;
    Some(Line { place, marker, hosts: hosts.to_owned(), key })
}

impl Line {
    fn matches(&self, name: &str) -> bool {
        if let Some(hashed) = self.hosts.strip_prefix("|1|") {
            return hash_matches(hashed, name).unwrap_or(false);
        }
        let mut matched = false;
        for pattern in self.hosts.split(',') {
            let pattern = pattern.to_ascii_lowercase();
            match pattern.strip_prefix('!') {
                Some(negated) if wildcard(negated.as_bytes(), name.as_bytes()) => return false,
                Some(_) => {}
                None => matched |= wildcard(pattern.as_bytes(), name.as_bytes()),
            }
        }
        matched
    }
}

fn hash_matches(hashed: &str, name: &str) -> Option<bool> {
    let (salt, digest) = hashed.split_once('|')?;
    let engine = base64::engine::general_purpose::STANDARD;
    let mut mac = Hmac::<Sha1>::new_from_slice(&engine.decode(salt).ok()?).ok()?;
    mac.update(name.as_bytes());
    Some(mac.verify_slice(&engine.decode(digest).ok()?).is_ok())
}

/// `*` and `?` as OpenSSH knows them; linear in time apart from one backtrack point.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    p = at + 1;
                    t = from + 1;
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

fn judge(lines: &[Line], name: &str, key: &PublicKey) -> Verdict {
    // The comment takes part in comparing whole keys: compare the key data.
    let same = |l: &&Line| l.key.key_data() == key.key_data();
    let matching: Vec<&Line> = lines.iter().filter(|l| l.matches(name)).collect();
    if let Some(line) = matching.iter().find(|l| l.marker == Marker::Revoked && same(l)) {
        return Verdict::Revoked(line.place.clone());
    }
    let plain: Vec<&&Line> = matching.iter().filter(|l| l.marker == Marker::None).collect();
    if plain.iter().any(|l| same(l)) {
        return Verdict::Known;
    }
    let other = plain.iter().find(|l| l.key.algorithm() == key.algorithm()).or(plain.first());
    match other {
        Some(line) => Verdict::Changed(format!("{} says {}", line.place, line.key.fingerprint(HashAlg::Sha256))),
        None => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn the_file_agrees_with_ssh_keygen() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("known_hosts");
        std::fs::write(&path, format!("plain.example {A}\n[p.example]:2022 {B}\n10.1.*.9 {A}\n")).expect("write");
        let hashed = std::process::Command::new("ssh-keygen").args(["-H", "-f"]).arg(&path).output();
        if !hashed.is_ok_and(|o| o.status.success()) {
            eprintln!("SKIPPED (no ssh-keygen): the_file_agrees_with_ssh_keygen");
            return;
        }
        let known = KnownHosts { policy: Policy::Strict, files: vec![path.clone()] };
        for (host, port) in [("plain.example", 22), ("p.example", 2022), ("10.1.2.9", 22), ("p.example", 22), ("other", 22)] {
            let name = host_pattern(host, port);
            let theirs = std::process::Command::new("ssh-keygen").args(["-F", &name, "-f"]).arg(&path).output().expect("runs");
            assert_eq!(!known.known_algorithms(host, port).is_empty(), theirs.status.success(), "{name}");
        }
    }

    #[test]
    fn accept_new_learns_once_and_refuses_a_change() {
        let folder = tempfile::tempdir().expect("temp");
        let known = KnownHosts { policy: Policy::AcceptNew, files: vec![folder.path().join(".ssh/known_hosts")] };
        known.check("h", 2222, &key(A)).expect("learns");
        known.check("h", 2222, &key(A)).expect("knows");
        assert!(matches!(known.check("h", 2222, &key(B)), Err(TransportError::HostKeyChanged { .. })));
        let text = std::fs::read_to_string(&known.files[0]).expect("reads");
        assert_eq!(text, format!("[h]:2222 {A}\n"));
    }

    #[test]
    fn pins_ask_no_file() {
        let pinned = key(A).fingerprint(HashAlg::Sha256).to_string();
        let known = KnownHosts { policy: Policy::Pinned(pinned), files: vec![] };
        known.check("h", 22, &key(A)).expect("pinned");
        assert!(matches!(known.check("h", 22, &key(B)), Err(TransportError::HostKeyChanged { .. })));
    }
}
