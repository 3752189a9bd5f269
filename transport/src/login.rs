//! Logging in with keys: those of an agent, or key files. No passphrase is asked for.

use crate::TransportError;
use crate::link::Link;
use crate::ssh::{Client, GOODBYE, LostReason, SshOptions};
use russh::client::{AuthResult, Handle};
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Keys offered at most: servers cut the line after six.
const MAX_TRIES: usize = 6;
/// Why a key file with a passphrase cannot be used: nobody is asked for one.
const PASSPHRASE: &str = "it has a passphrase: load it into ssh-agent";

/// Offers one key after another.
pub(crate) struct Login<'a> {
    handle: &'a mut Handle<Client>,
    options: &'a SshOptions,
    lost: LostReason,
    link: &'a Link,
    tried: Vec<String>,
    offered: usize,
}

impl<'a> Login<'a> {
    /// Nothing was offered yet.
    pub(crate) fn new(handle: &'a mut Handle<Client>, options: &'a SshOptions, lost: LostReason, link: &'a Link) -> Self {
        Self { handle, options, lost, link, tried: Vec::new(), offered: 0 }
    }

    pub(crate) async fn run(mut self) -> Result<(), TransportError> {
        let agent_first = !self.options.named_key && self.agent(None).await?;
        if agent_first || self.files().await? {
            return Ok(());
        }
        Err(self.refused())
    }

    fn refused(&self) -> TransportError {
        let none = || "no key: neither an agent nor a key file".to_owned();
        let tried = if self.tried.is_empty() { none() } else { self.tried.join(", ") };
        TransportError::AuthRefused { user: self.options.user.clone(), tried }
    }

    async fn files(&mut self) -> Result<bool, TransportError> {
        for path in &self.options.keys {
            if self.offered >= MAX_TRIES {
                break;
            }
            match read_key(path) {
                Ok(key) => {
                    if self.file(path, key).await? {
                        return Ok(true);
                    }
                }
                Err(error) if self.options.named_key => {
                    // The agent may hold this very key, opened.
                    let locked = matches!(&error, TransportError::KeyFile { reason, .. } if reason == PASSPHRASE);
                    let public = if locked { public_half(path) } else { None };
                    return if public.is_some() && self.agent(public.as_ref()).await? { Ok(true) } else { Err(error) };
                }
                Err(TransportError::KeyFile { reason, .. }) if path.exists() => {
                    self.tried.push(format!("{} not usable: {reason}", path.display()));
                }
                Err(_) => {}
            }
        }
        Ok(false)
    }

    async fn file(&mut self, path: &Path, key: PrivateKey) -> Result<bool, TransportError> {
        self.offer(path.display().to_string());
        let hash = rsa_hash(self.handle, key.public_key()).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        let begun = Instant::now();
        let result = self.handle.authenticate_publickey(self.options.user.clone(), key).await;
        match result {
            Ok(AuthResult::Success) => {
                self.link.heard(begun, self.exchanges());
                Ok(true)
            }
            Ok(AuthResult::Failure { .. }) if !self.handle.is_closed() => Ok(false),
            Ok(AuthResult::Failure { .. }) => Err(self.cut()),
            Err(_) if self.handle.is_closed() => Err(self.cut()),
            Err(error) => Err(protocol(&error)),
        }
    }

    fn offer(&mut self, what: String) {
        self.offered += 1;
        self.tried.push(what);
    }

    /// Requests behind the login with the key offered last: for the service before the first one, then the key, then the proof.
    fn exchanges(&self) -> u32 {
        if self.offered == 1 { 3 } else { 2 }
    }

    /// The connection is gone: a server that has seen enough keys says goodbye, all else is an accident.
    fn cut(&mut self) -> TransportError {
        let reason = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match reason {
            Some(reason) if reason.starts_with(GOODBYE) => {
                self.tried.push(reason);
                self.refused()
            }
            reason => TransportError::Disconnected { reason: reason.unwrap_or_else(|| "the connection is closed".into()) },
        }
    }

    /// Tries what the agent holds, or only the key `wanted`. No agent is no failure.
    async fn agent(&mut self, wanted: Option<&PublicKey>) -> Result<bool, TransportError> {
        let Some(socket) = &self.options.agent_socket else { return Ok(false) };
        let Ok(mut agent) = AgentClient::connect_uds(socket).await else {
            tracing::debug!(socket = %socket.display(), "no agent answers");
            return Ok(false);
        };
        for identity in agent.request_identities().await.unwrap_or_default() {
            let key: PublicKey = identity.public_key().into_owned();
            if wanted.is_some_and(|wanted| wanted.key_data() != key.key_data()) {
                continue;
            }
            if self.offered >= MAX_TRIES {
                break;
            }
            self.offer(format!("agent key {}", key.fingerprint(HashAlg::Sha256)));
            let hash = rsa_hash(self.handle, &key).await?;
            let begun = Instant::now();
            match self.handle.authenticate_publickey_with(self.options.user.clone(), key, hash, &mut agent).await {
                Ok(AuthResult::Success) => {
                    self.link.heard(begun, self.exchanges());
                    return Ok(true);
                }
                _ if self.handle.is_closed() => return Err(self.cut()),
                Ok(AuthResult::Failure { .. }) => {}
                // An agent that declines to sign with one key may sign with the next.
                Err(error) => tracing::debug!(%error, "the agent did not sign"),
            }
        }
        Ok(false)
    }
}

/// RSA keys sign with SHA-2: what the server names, else SHA-512, which every sshd of the last ten years takes.
async fn rsa_hash(handle: &Handle<Client>, key: &PublicKey) -> Result<Option<HashAlg>, TransportError> {
    if !matches!(key.algorithm(), Algorithm::Rsa { .. }) {
        return Ok(None);
    }
    let best = handle.best_supported_rsa_hash().await.map_err(|e| protocol(&e))?;
    Ok(best.flatten().or(Some(HashAlg::Sha512)))
}

fn protocol(error: &russh::Error) -> TransportError {
    TransportError::Protocol(format!("the login failed: {error}"))
}

fn read_key(path: &Path) -> Result<PrivateKey, TransportError> {
    let unusable = |reason: String| TransportError::KeyFile { path: path.to_owned(), reason };
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => unusable("no such file".into()),
        _ => unusable(e.to_string()),
    })?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(unusable(format!("others may read it (mode {mode:04o}): chmod 600 it")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
    // What the library would call a syntax error.
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        return Err(unusable(PASSPHRASE.into()));
    }
    russh::keys::decode_secret_key(&text, None).map_err(|error| match error {
        russh::keys::Error::KeyIsEncrypted => unusable(PASSPHRASE.into()),
        other => unusable(other.to_string()),
    })
}

/// The public key of a private key file that may have a passphrase.
fn public_half(path: &Path) -> Option<PublicKey> {
    let text = std::fs::read(path).ok()?;
    Some(PrivateKey::from_openssh(text).ok()?.public_key().clone())
}
