//! Whose signatures count: OpenSSH's `allowed_signers` (ssh-keygen(1), ALLOWED SIGNERS) and a list of revoked keys.
//!
//! The same file serves `ssh-keygen -Y verify` and us, so where the manual leaves room we read it as OpenSSH's code does. One
//! difference is deliberate: a line that cannot be read makes the whole file unusable, where ssh-keygen stops at it only when it
//! gets there. What nobody can read must not decide silently who is trusted.

use super::refusal::Refusal;
use jiff::{Timestamp, civil, tz::TimeZone};
use ssh_key::PublicKey;
use ssh_key::public::KeyData;
use std::path::{Path, PathBuf};

/// The namespace of a package's signature: nothing that the same key signed for another purpose passes for one.
pub const NAMESPACE: &str = "roadie-package-v1";

/// A mistake in a file of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct LineError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The disk.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its text.
    #[error("`{}` cannot be used: {}", path.display(), mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Lines {
        /// The file.
        path: PathBuf,
        /// Every mistake, at least one.
        mistakes: Vec<LineError>,
    },
}

/// One line of `allowed_signers`.
#[derive(Debug, Clone)]
struct Allowed {
    principals: String,
    key: KeyData,
    namespaces: Option<String>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
}

/// Whose signatures count.
#[derive(Debug, Clone, Default)]
pub struct AllowedSigners {
    lines: Vec<Allowed>,
}

impl AllowedSigners {
    /// Reads the file; times without a `Z` are of `zone`, as they are for ssh-keygen.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn read(path: &Path, zone: &TimeZone) -> Result<Self, KeyFileError> {
        let text = std::fs::read(path).map_err(|source| KeyFileError::Io { path: path.to_owned(), source })?;
        Self::parse(&text, zone).map_err(|mistakes| KeyFileError::Lines { path: path.to_owned(), mistakes })
    }

    /// Reads the text.
    ///
    /// # Errors
    /// Every line that cannot be used.
    pub fn parse(text: &[u8], zone: &TimeZone) -> Result<Self, Vec<LineError>> {
        Ok(Self { lines: each_line(text, |line| allowed(line, zone))? })
    }

    /// The principal that `key` signs packages as at `now`: `identity` where one is asked for, else the first that its line names.
    ///
    /// # Errors
    /// [`Refusal`] says what came nearest.
    pub fn principal(&self, key: &KeyData, identity: Option<&str>, now: Timestamp) -> Result<String, Refusal> {
        let fingerprint = key.fingerprint(ssh_key::HashAlg::Sha256).to_string();
        let mut refusal = Refusal::UnknownSigner { fingerprint };
        for line in self.lines.iter().filter(|line| line.key == *key) {
            let Some(principal) = line.principal(identity) else {
                if let Some(wanted) = identity {
                    refusal = Refusal::OtherSigner { wanted: wanted.into(), principals: line.principals.clone() };
                }
                continue;
            };
            if line.namespaces.as_ref().is_some_and(|list| !matches_list(NAMESPACE, list)) {
                refusal = Refusal::NotForPackages { principal };
            } else if let Some(after) = line.after.filter(|after| now < *after) {
                refusal = Refusal::NotYetValid { principal, after };
            } else if let Some(before) = line.before.filter(|before| now > *before) {
                refusal = Refusal::Expired { principal, before };
            } else {
                return Ok(principal);
            }
        }
        Err(refusal)
    }
}

impl Allowed {
    /// A name that this line is for, as `ssh-keygen -I` takes it; a pattern stands for itself where no plain name is given.
    fn principal(&self, identity: Option<&str>) -> Option<String> {
        if let Some(identity) = identity {
            return matches_list(identity, &self.principals).then(|| identity.to_owned());
        }
        let fits = |name: &&str| !name.is_empty() && !name.starts_with('!') && matches_list(name, &self.principals);
        let names = || self.principals.split(',').filter(fits);
        names().find(|name| !name.contains(['*', '?'])).or_else(|| names().next()).map(str::to_owned)
    }
}

/// Keys that do not count any more, whoever they belong to.
#[derive(Debug, Clone, Default)]
pub struct RevokedKeys {
    keys: Vec<KeyData>,
}

impl RevokedKeys {
    /// Reads the file: one public key per line.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let text = std::fs::read(path).map_err(|source| KeyFileError::Io { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|mistakes| KeyFileError::Lines { path: path.to_owned(), mistakes })
    }

    /// Reads the text.
    ///
    /// # Errors
    /// Every line that cannot be used.
    pub fn parse(text: &[u8]) -> Result<Self, Vec<LineError>> {
        if text.starts_with(b"SSHKRL\n\0") {
            let problem = "it is a binary KRL, which roadie does not read: list the public keys, one per line".to_owned();
            return Err(vec![LineError { line: 1, problem }]);
        }
        Ok(Self { keys: each_line(text, public_key)? })
    }

    /// Whether `key` is among them.
    pub fn contains(&self, key: &KeyData) -> bool {
        self.keys.contains(key)
    }
}

fn each_line<T>(text: &[u8], read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Vec<LineError>> {
    let (mut good, mut mistakes) = (Vec::new(), Vec::new());
    for (index, bytes) in text.split(|b| *b == b'\n').enumerate() {
        let line = String::from_utf8_lossy(bytes);
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match read(line) {
            Ok(value) => good.push(value),
            Err(problem) => mistakes.push(LineError { line: index + 1, problem }),
        }
    }
    if mistakes.is_empty() { Ok(good) } else { Err(mistakes) }
}

/// `type base64 [comment]`
fn public_key(text: &str) -> Result<KeyData, String> {
    let mut words = text.split_ascii_whitespace();
    let (Some(kind), Some(data)) = (words.next(), words.next()) else {
        return Err("a public key is expected here, as in a .pub file: `ssh-ed25519 AAAA...`".into());
    };
    let key = PublicKey::from_openssh(&format!("{kind} {data}")).map_err(|e| format!("the public key cannot be read: {e}"))?;
    let key = KeyData::from(key);
    match key {
        KeyData::Ed25519(_) | KeyData::Ecdsa(_) | KeyData::Rsa(_) | KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_) => {
            Ok(key)
        }
        KeyData::Certificate(_) => Err("certificates are not supported: list the key itself".into()),
        _ => Err(format!("keys of type `{kind}` are not supported: use ssh-ed25519, ecdsa-sha2-* or ssh-rsa")),
    }
}

/// `principals [options] type base64 [comment]`
fn allowed(line: &str, zone: &TimeZone) -> Result<Allowed, String> {
    let (principals, rest) = principals(line)?;
    if principals.is_empty() || principals.split(',').any(str::is_empty) {
        return Err("a principal is empty".into());
    }
    // As OpenSSH does it: what is not a key must be options, and then a key.
    let begins_with_key = ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| rest.starts_with(kind));
    let (options, key) = if begins_with_key { ("", rest) } else { split_options(rest)? };
    let options = Options::parse(options, zone)?;
    Ok(Allowed {
        principals: principals.to_owned(),
        key: public_key(key)?,
        namespaces: options.namespaces,
        after: options.after,
        before: options.before,
    })
}

/// The principals, which may stand in quotes, and what follows them.
fn principals(line: &str) -> Result<(&str, &str), String> {
    let found = match line.strip_prefix('"') {
        Some(quoted) => Some(quoted.split_once('"').ok_or("the quote around the principals is not closed")?),
        None => line.split_once([' ', '\t']),
    };
    let (principals, rest) = found.ok_or("there is no key behind the principals")?;
    Ok((principals, rest.trim_start_matches([' ', '\t'])))
}

/// Options end at the first blank outside of quotes; `\"` is no quote.
fn split_options(text: &str) -> Result<(&str, &str), String> {
    let (mut quoted, mut escaped) = (false, false);
    for (index, c) in text.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            ' ' | '\t' if !quoted => return Ok((&text[..index], text[index..].trim_start_matches([' ', '\t']))),
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    Err(if quoted {
        "a quote in the options is not closed".into()
    } else {
        format!("`{text}` is neither a key nor options before one")
    })
}

#[derive(Default)]
struct Options {
    namespaces: Option<String>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
}

impl Options {
    fn parse(mut text: &str, zone: &TimeZone) -> Result<Self, String> {
        let mut options = Self::default();
        while !text.is_empty() {
            let end = text.find(['=', ',']).unwrap_or(text.len());
            let name = text[..end].to_ascii_lowercase();
            text = &text[end..];
            match name.as_str() {
                "cert-authority" => {
                    return Err("`cert-authority` is not supported: list the keys that sign, not the authority over them".into());
                }
                "namespaces" => once(&mut options.namespaces, &name, value(&mut text, &name)?)?,
                "valid-after" => once(&mut options.after, &name, time(&value(&mut text, &name)?, zone)?)?,
                "valid-before" => once(&mut options.before, &name, time(&value(&mut text, &name)?, zone)?)?,
                _ => return Err(format!("unknown option `{name}`; there are namespaces, valid-after and valid-before")),
            }
            match text.strip_prefix(',') {
                Some("") => return Err("an option is missing behind the last comma".into()),
                Some(rest) => text = rest,
                None if text.is_empty() => {}
                None => return Err(format!("a comma is missing behind `{name}`")),
            }
        }
        if options.after.zip(options.before).is_some_and(|(after, before)| before <= after) {
            return Err("`valid-before` is not later than `valid-after`".into());
        }
        Ok(options)
    }
}

fn once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    if slot.is_some() {
        return Err(format!("`{name}` is there twice"));
    }
    *slot = Some(value);
    Ok(())
}

/// `="..."`, taken off the front of `text`.
fn value(text: &mut &str, name: &str) -> Result<String, String> {
    let quoted = text.strip_prefix("=\"").ok_or_else(|| format!("`{name}` needs a value in quotes: {name}=\"...\""))?;
    let (mut value, mut escaped) = (String::new(), false);
    for (index, c) in quoted.char_indices() {
        match c {
            '"' if escaped => {
                value.pop();
                value.push('"');
            }
            '"' => {
                *text = &quoted[index + 1..];
                return Ok(value);
            }
            c => value.push(c),
        }
        escaped = c == '\\';
    }
    Err(format!("the quote of `{name}` is not closed"))
}

/// `YYYYMMDD`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, with `Z` or `UTC` behind it for UTC.
fn time(text: &str, zone: &TimeZone) -> Result<Timestamp, String> {
    let bad = || format!("`{text}` is not a time: write YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, with Z behind it for UTC");
    let upper = text.to_ascii_uppercase();
    let utc = upper.strip_suffix("UTC").or_else(|| upper.strip_suffix('Z'));
    let digits = utc.unwrap_or(&upper);
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or("0").parse::<i8>().map_err(|_| bad());
    let year = digits[..4].parse::<i16>().map_err(|_| bad())?;
    let moment = civil::DateTime::new(year, part(4, 6)?, part(6, 8)?, part(8, 10)?, part(10, 12)?, part(12, 14)?, 0);
    let zone = if utc.is_some() { TimeZone::UTC } else { zone.clone() };
    moment.and_then(|moment| zone.to_timestamp(moment)).map_err(|_| bad())
}

/// OpenSSH's pattern list: some pattern fits, and none with `!` before it does.
fn matches_list(text: &str, list: &str) -> bool {
    let mut found = false;
    for pattern in list.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(text, pattern) => return false,
            Some(_) => {}
            None => found |= matches(text, pattern),
        }
    }
    found
}

/// `*` is any number of characters and `?` is one. Goes back to the last `*` only: no input makes it slow.
fn matches(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut t, mut p, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (t, p) = (t + 1, p + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (t, p) = (from + 1, at + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests;
