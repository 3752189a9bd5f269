//! Signatures in OpenSSH's format (PROTOCOL.sshsig): `ssh-keygen -Y verify` takes ours, and we take those of `ssh-keygen -Y sign`.

use super::agent::Agent;
use super::allowed::{AllowedSigners, NAMESPACE, RevokedKeys};
use super::refusal::Refusal;
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};
use std::io;
use std::path::{Path, PathBuf};

/// Fewer bits of RSA are refused, by NIST SP 800-131A as well.
const MIN_RSA_BITS: u32 = 2048;

/// Why nothing can be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The private key cannot be used.
    #[error("cannot sign with `{}`: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The agent cannot be used.
    #[error("cannot sign through ssh-agent: {reason}")]
    Agent {
        /// Why.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The agent's socket.
    #[error("cannot talk to the ssh-agent at `{}`", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was made does not verify.
    #[error("the signature that {fingerprint} made does not verify; it was thrown away")]
    Useless {
        /// The key.
        fingerprint: String,
    },
}

impl SignError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            SignError::Key { hint, .. } | SignError::Agent { hint, .. } => hint.clone(),
            SignError::Socket { .. } => "start one with `eval $(ssh-agent)` and load a key with `ssh-add FILE`".into(),
            SignError::Useless { .. } => {
                "try another key; if it is on a token, make sure it answers `ssh-keygen -Y sign` too".into()
            }
        })
    }
}

/// Who signs.
#[derive(Debug)]
pub enum Signer {
    /// A private key.
    Key {
        /// The key.
        key: Box<PrivateKey>,
        /// Its file.
        path: PathBuf,
    },
    /// A key that an agent holds.
    Agent {
        /// The agent's socket.
        socket: PathBuf,
        /// The key.
        key: Box<PublicKey>,
    },
}

impl Signer {
    /// Reads a private key in OpenSSH's format that has no passphrase.
    ///
    /// # Errors
    /// [`SignError::Key`].
    pub fn from_file(path: &Path) -> Result<Self, SignError> {
        let failed = |reason: &str, hint: String| SignError::Key { path: path.to_owned(), reason: reason.to_owned(), hint };
        let shown = path.display();
        let text = std::fs::read(path)
            .map_err(|e| failed(&e.to_string(), "name a private key file, for example ~/.ssh/id_ed25519".into()))?;
        let key = match PrivateKey::from_openssh(&text) {
            Ok(key) => key,
            Err(_) if std::str::from_utf8(&text).is_ok_and(|text| PublicKey::from_openssh(text).is_ok()) => {
                let hint = "name the private key beside it, or the agent that holds it: `--agent=FILE.pub`";
                return Err(failed("it is a public key", hint.into()));
            }
            Err(_) if text.starts_with(b"-----BEGIN ") && !text.starts_with(b"-----BEGIN OPENSSH") => {
                return Err(failed("it is not in OpenSSH's format", format!("rewrite it with `ssh-keygen -p -f {shown}`")));
            }
            Err(e) => return Err(failed(&format!("it is no private key ({e})"), "make one with `ssh-keygen -t ed25519`".into())),
        };
        let agent = format!("load it with `ssh-add {shown}` and sign with --agent");
        if key.is_encrypted() {
            return Err(failed("it has a passphrase, which roadie does not ask for", agent));
        }
        match key.algorithm() {
            Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. } => {
                Ok(Self::Key { key: Box::new(key), path: path.to_owned() })
            }
            Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => Err(failed("the key itself is on a token", agent)),
            other => {
                Err(failed(&format!("keys of type `{other}` are not supported"), "make one with `ssh-keygen -t ed25519`".into()))
            }
        }
    }

    /// Chooses a key of the agent at `socket`: by `SHA256:...` fingerprint, by a public key file, or the only one.
    ///
    /// # Errors
    /// [`SignError::Agent`] and [`SignError::Socket`].
    pub fn from_agent(socket: Option<&Path>, wanted: Option<&str>) -> Result<Self, SignError> {
        let failed = |reason: String, hint: &str| SignError::Agent { reason, hint: hint.to_owned() };
        let start = "start one with `eval $(ssh-agent)` and load a key with `ssh-add FILE`";
        let socket = socket.ok_or_else(|| failed("SSH_AUTH_SOCK is not set".into(), start))?;
        let io = |source| SignError::Socket { path: socket.to_owned(), source };
        let mut keys = Agent::connect(socket).and_then(|mut agent| agent.keys()).map_err(io)?;
        keys.retain(|key| !key.key_data().is_certificate());
        let fingerprint = match wanted {
            Some(print) if print.starts_with("SHA256:") => Some(print.to_owned()),
            Some(path) => {
                let reason = |e: &dyn std::fmt::Display| {
                    failed(format!("`{path}` is no public key file: {e}"), "name a .pub file or a SHA256:... fingerprint")
                };
                let text = std::fs::read_to_string(path).map_err(|e| reason(&e))?;
                Some(fingerprint(PublicKey::from_openssh(&text).map_err(|e| reason(&e))?.key_data()))
            }
            None => None,
        };
        if let Some(wanted) = &fingerprint {
            keys.retain(|key| self::fingerprint(key.key_data()) == *wanted);
        }
        match (keys.len(), fingerprint) {
            (1, _) => Ok(Self::Agent { socket: socket.to_owned(), key: Box::new(keys.remove(0)) }),
            (0, Some(wanted)) => {
                Err(failed(format!("it does not hold {wanted}"), "`ssh-add -l` lists its keys, `ssh-add FILE` loads one"))
            }
            (0, None) => Err(failed("it holds no key".into(), "load one with `ssh-add FILE`")),
            _ => {
                let all: Vec<String> =
                    keys.iter().map(|key| format!("{} {}", self::fingerprint(key.key_data()), key.comment())).collect();
                Err(failed(
                    format!("it holds several keys: {}", all.join(", ")),
                    "choose one: --agent=SHA256:... or --agent=FILE.pub",
                ))
            }
        }
    }

    /// The public half.
    pub fn public_key(&self) -> &KeyData {
        match self {
            Self::Key { key, .. } => key.public_key().key_data(),
            Self::Agent { key, .. } => key.key_data(),
        }
    }

    /// A signature over `statement`, as text.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn sign(&self, statement: &[u8]) -> Result<String, SignError> {
        let signature = match self {
            Self::Key { key, path } => key.sign(NAMESPACE, HashAlg::Sha512, statement).map_err(|e| {
                let hint = "make another with `ssh-keygen -t ed25519`".to_owned();
                SignError::Key { path: path.clone(), reason: e.to_string(), hint }
            })?,
            Self::Agent { socket, key } => {
                let io = |source| SignError::Socket { path: socket.clone(), source };
                let data = SshSig::signed_data(NAMESPACE, HashAlg::Sha512, statement).map_err(|e| io(io::Error::other(e)))?;
                let made = Agent::connect(socket).and_then(|mut agent| agent.sign(key, &data)).map_err(io)?;
                SshSig::new(key.key_data().clone(), NAMESPACE, HashAlg::Sha512, made).map_err(|e| io(io::Error::other(e)))?
            }
        };
        let useless = || SignError::Useless { fingerprint: fingerprint(self.public_key()) };
        let text = signature.to_pem(LineEnding::LF).map_err(|_| useless())?;
        // Nobody should find out later what we can find out now.
        if signer(statement, text.as_bytes()).is_err() {
            return Err(useless());
        }
        Ok(text)
    }
}

/// `SHA256:...`, as `ssh-keygen -l` prints it.
pub fn fingerprint(key: &KeyData) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Whose signatures count, and when.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Whose.
    pub allowed: AllowedSigners,
    /// Keys that do not count any more.
    pub revoked: RevokedKeys,
    /// The one signer that is wanted, if only one is.
    pub identity: Option<String>,
    /// When.
    pub now: jiff::Timestamp,
}

/// The key that made `signature` over `statement`: mathematics only, nobody is trusted yet.
///
/// # Errors
/// [`Refusal`].
pub fn signer(statement: &[u8], signature: &[u8]) -> Result<KeyData, Refusal> {
    let malformed = |reason: String| Refusal::Malformed { reason };
    let signature = SshSig::from_pem(signature).map_err(|e| malformed(e.to_string()))?;
    if signature.version() != SshSig::VERSION {
        return Err(malformed(format!("its version is {}", signature.version())));
    }
    if signature.namespace() != NAMESPACE {
        return Err(Refusal::WrongNamespace { found: signature.namespace().to_owned() });
    }
    let key = signature.public_key().clone();
    match (&key, signature.algorithm()) {
        (KeyData::Certificate(_), _) => {
            return Err(malformed("it was made with a certificate, which roadie does not read".into()));
        }
        (KeyData::Rsa(_), Algorithm::Rsa { hash: None }) => return Err(Refusal::Weak { reason: "RSA with SHA-1".into() }),
        (KeyData::Rsa(rsa), Algorithm::Rsa { .. }) if rsa.key_size() < MIN_RSA_BITS => {
            let reason = format!("an RSA key of {} bits, at least {MIN_RSA_BITS} are needed", rsa.key_size());
            return Err(Refusal::Weak { reason });
        }
        (KeyData::Rsa(_), Algorithm::Rsa { .. }) => {}
        (key, algorithm) if key.algorithm() == algorithm => {}
        (key, algorithm) => {
            return Err(malformed(format!("a key of type `{}` cannot make a `{algorithm}` signature", key.algorithm())));
        }
    }
    let good = PublicKey::new(key.clone(), "").verify(NAMESPACE, statement, &signature);
    good.map_err(|_| Refusal::Tampered { fingerprint: fingerprint(&key) })?;
    Ok(key)
}
