//! Which host keys are trusted: our own reading of known_hosts files (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
//!
//! Own code, because the SSH library's check was seen to accept keys that a `@revoked` line forbids, and to call a second valid
//! key a changed one. A bad line is skipped; a file that exists and cannot be read fails the check.
//!
//! `@cert-authority` lines are read, and do not make any key known: host certificates are not accepted yet. A host that has
//! nothing but a certificate shows its plain key to us, which must then be known or pinned itself.

use crate::TransportError;
use base64::Engine as _;
use hmac::{Hmac, KeyInit, Mac};
use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, HashAlg};
use sha1::Sha1;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
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
        let mut verdict = judge(&self.lines()?, &name, key);
        if verdict == Verdict::Unknown && self.policy == Policy::AcceptNew {
            verdict = self.learn(&name, key)?;
        }
        let address = address.to_owned();
        match verdict {
            Verdict::Known => Ok(()),
            Verdict::Revoked(by) => Err(TransportError::HostKeyRevoked { address, fingerprint, by }),
            Verdict::Changed(expected) => Err(TransportError::HostKeyChanged { address, fingerprint, expected }),
            Verdict::Unknown => {
                let line = format!("{name} {}", key_text(key));
                Err(TransportError::HostKeyUnknown { address, algorithm: key.algorithm().to_string(), fingerprint, line })
            }
        }
    }

    /// Algorithms under which the host is known, so that they are asked for first.
    pub fn known_algorithms(&self, address: &str, port: u16) -> Vec<Algorithm> {
        let name = host_pattern(address, port);
        let lines = self.lines().unwrap_or_default();
        let plain = lines.iter().filter(|l| l.marker == Marker::None && l.matches(&name));
        plain.filter_map(|l| Some(l.key()?.algorithm())).collect()
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

    /// Adds a key to the first file. Readers see the file before or after, never between; of two processes that learn at once
    /// the second finds what the first has learnt.
    fn learn(&self, name: &str, key: &PublicKey) -> Result<Verdict, TransportError> {
        let Some(path) = self.files.first() else { return Ok(Verdict::Unknown) };
        let failed = |source| TransportError::Local { what: format!("cannot write `{}`", path.display()), source };
        // The file may be a link into somebody's collection of settings: the link stays.
        let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        // Held until it is closed; a lock on the folder leaves no file behind.
        let lock = std::fs::File::open(folder).map_err(failed)?;
        lock.lock().map_err(failed)?;
        match judge(&self.lines()?, name, key) {
            Verdict::Unknown => {}
            learnt => return Ok(learnt),
        }
        replace(path, folder, &format!("{name} {}\n", key_text(key))).map_err(failed)?;
        Ok(Verdict::Known)
    }
}

/// Puts the text of `path` and `line` in its place, with the mode it had, or 0600.
fn replace(path: &Path, folder: &Path, line: &str) -> std::io::Result<()> {
    let (mut text, permissions) = match std::fs::read(path) {
        Ok(text) => (text, Some(std::fs::metadata(path)?.permissions())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => (Vec::new(), None),
        Err(e) => return Err(e),
    };
    if text.last().is_some_and(|b| *b != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(&text)?;
    if let Some(permissions) = permissions {
        new.as_file().set_permissions(permissions)?;
    }
    new.as_file().sync_all()?;
    new.persist(path)?;
    Ok(())
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
    /// Kind and content as they stand there: of thousands of hosts, one is asked for.
    key: String,
}

fn parse(path: &Path, bytes: &[u8]) -> Vec<Line> {
    let lines = bytes.split(|b| *b == b'\n').enumerate();
    lines
        // A comment may be in any encoding; hosts and keys are ASCII.
        .filter_map(|(index, line)| parse_line(&String::from_utf8_lossy(line), format!("{}:{}", path.display(), index + 1)))
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
    let key = format!("{} {}", words.next()?, words.next()?);
    Some(Line { place, marker, hosts: hosts.to_owned(), key })
}

impl Line {
    /// `None` when it is no key that we know.
    fn key(&self) -> Option<PublicKey> {
        PublicKey::from_openssh(&self.key).ok()
    }

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
    let matching = lines.iter().filter(|l| l.matches(name));
    let matching: Vec<(&Line, PublicKey)> = matching.filter_map(|l| Some((l, l.key()?))).collect();
    // The comment takes part in comparing whole keys: compare the key data.
    let is_same = |known: &PublicKey| known.key_data() == key.key_data();
    if let Some((line, _)) = matching.iter().find(|(l, known)| l.marker == Marker::Revoked && is_same(known)) {
        return Verdict::Revoked(line.place.clone());
    }
    let plain: Vec<_> = matching.iter().filter(|(l, _)| l.marker == Marker::None).collect();
    if plain.iter().any(|(_, known)| is_same(known)) {
        return Verdict::Known;
    }
    let other = plain.iter().find(|(_, known)| known.algorithm() == key.algorithm()).or(plain.first());
    match other {
        Some((line, known)) => Verdict::Changed(format!("{} says {}", line.place, known.fingerprint(HashAlg::Sha256))),
        None => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests;
