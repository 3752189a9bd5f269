//! Connecting and logging in over ssh. Secure defaults, deadlines on everything, no prompt ever.

use crate::TransportError;
use crate::known_hosts::{KnownHosts, Policy};
use crate::session::SshSession;
use russh::client::{self, AuthResult, DisconnectReason, Handle};
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Preferred, cipher, compression, kex, mac};
use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Deadline of the key exchange, and of the login.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// Keys offered at most: servers cut the line after six.
const MAX_TRIES: usize = 6;

/// Everything needed to reach one host.
#[derive(Debug, Clone)]
pub struct SshOptions {
    /// The host's name in messages.
    pub name: String,
    /// Host name or address to dial.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Login user.
    pub user: String,
    /// Private key files to try. A named one must be usable; default ones are skipped when they are not.
    pub keys: Vec<PathBuf>,
    /// Whether `keys` were named by the user.
    pub named_key: bool,
    /// Socket of the agent; not asked when a key was named.
    pub agent_socket: Option<PathBuf>,
    /// Host keys.
    pub known_hosts: KnownHosts,
    /// Deadline for the TCP connection.
    pub connect_timeout: Duration,
}

impl SshOptions {
    /// What a user's own ssh would use: agent, the usual key files, known_hosts files. Name, address and user are to be filled in.
    pub fn with_user_defaults(home: &Path, agent_socket: Option<PathBuf>) -> Self {
        let ssh = home.join(".ssh");
        Self {
            name: String::new(),
            address: String::new(),
            port: 22,
            user: String::new(),
            keys: ["id_ed25519", "id_ecdsa", "id_rsa"].iter().map(|k| ssh.join(k)).collect(),
            named_key: false,
            agent_socket,
            known_hosts: KnownHosts {
                policy: Policy::Strict,
                files: vec![ssh.join("known_hosts"), ssh.join("known_hosts2"), "/etc/ssh/ssh_known_hosts".into()],
            },
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// Uses this key file and nothing else.
    pub fn use_key(&mut self, key: PathBuf) {
        self.keys = vec![key];
        self.named_key = true;
    }

    /// Trusts only the host key with this fingerprint.
    pub fn pin(&mut self, fingerprint: String) {
        self.known_hosts.policy = Policy::Pinned(fingerprint);
    }

    /// Learns unknown host keys.
    pub fn accept_new(&mut self) {
        self.known_hosts.policy = Policy::AcceptNew;
    }
}

/// Why the session died, told by the connection's own task.
pub(crate) type LostReason = Arc<Mutex<Option<String>>>;

/// Judges the host key and notes how the connection ended. Refuses whatever the server wants to open.
pub(crate) struct Client {
    known_hosts: KnownHosts,
    address: String,
    port: u16,
    verdict: Arc<Mutex<Option<TransportError>>>,
    lost: LostReason,
}

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let result = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.known_hosts.check(&self.address, self.port, key),
            PublicKeyOrCertificate::Certificate(_) => {
                Err(TransportError::Protocol("host certificates are not accepted yet".into()))
            }
        };
        let trusted = result.is_ok();
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = result.err();
        Ok(trusted)
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Self::Error>) -> Result<(), Self::Error> {
        let (text, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => (format!("the host said goodbye: {}", info.message), Ok(())),
            DisconnectReason::Error(e) => (e.to_string(), Err(e)),
        };
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        result
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        reply.reject(russh::ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }
}

fn config(known: &[Algorithm]) -> client::Config {
    let mut keys = vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    // As OpenSSH does: what we know the host by comes first, or a known host would look like an unknown one.
    let is_known =
        |a: &Algorithm| known.iter().any(|k| k == a || matches!((k, a), (Algorithm::Rsa { .. }, Algorithm::Rsa { .. })));
    keys.sort_by_key(|a| !is_known(a));
    client::Config {
        preferred: Preferred {
            kex: Cow::Borrowed(&[
                kex::MLKEM768X25519_SHA256,
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::DH_G16_SHA512,
                kex::DH_G18_SHA512,
                kex::DH_G14_SHA256,
                kex::EXTENSION_SUPPORT_AS_CLIENT,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            ]),
            key: Cow::Owned(keys),
            host_key_certificates: Cow::Borrowed(&[]),
            // AES-GCM is 1.5 times as fast as chacha20 here, and is not touched by the prefix truncation attack.
            cipher: Cow::Borrowed(&[
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
                cipher::AES_128_CTR,
            ]),
            mac: Cow::Borrowed(&[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM, mac::HMAC_SHA512, mac::HMAC_SHA256]),
            // Packages are compressed already.
            compression: Cow::Borrowed(&[compression::NONE]),
        },
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 3,
        inactivity_timeout: None,
        nodelay: true,
        ..client::Config::default()
    }
}

/// Connects, checks the host key, logs in.
///
/// # Errors
/// [`TransportError`] telling apart: no address, refused, timed out, host key, login.
pub async fn connect(options: SshOptions) -> Result<Arc<SshSession>, TransportError> {
    let stream = dial(&options).await?;
    let verdict = Arc::new(Mutex::new(None));
    let lost: LostReason = Arc::default();
    let client = Client {
        known_hosts: options.known_hosts.clone(),
        address: options.address.clone(),
        port: options.port,
        verdict: verdict.clone(),
        lost: lost.clone(),
    };
    let known = options.known_hosts.known_algorithms(&options.address, options.port);
    let handshake = client::connect_stream(Arc::new(config(&known)), stream, client);
    let late =
        |what: &str| TransportError::TimedOut { what: format!("{what} `{}`", options.address), seconds: HANDSHAKE.as_secs() };
    let mut handle = match timeout(HANDSHAKE, handshake).await {
        Err(_) => return Err(late("the ssh handshake with")),
        Ok(Ok(handle)) => handle,
        Ok(Err(error)) => {
            let judged = verdict.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(judged.unwrap_or_else(|| TransportError::Protocol(format!("the handshake failed: {error}"))));
        }
    };
    match timeout(HANDSHAKE, log_in(&mut handle, &options)).await {
        Err(_) => Err(late("the login at")),
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) => Ok(Arc::new(SshSession::new(handle, lost))),
    }
}

async fn dial(options: &SshOptions) -> Result<TcpStream, TransportError> {
    let (address, port) = (options.address.clone(), options.port);
    let resolved = tokio::net::lookup_host((options.address.as_str(), port));
    let timed_out = |what: &str| TransportError::TimedOut {
        what: format!("{what} `{}` port {port}", options.address),
        seconds: options.connect_timeout.as_secs(),
    };
    let found: Vec<_> = match timeout(options.connect_timeout, resolved).await {
        Err(_) => return Err(timed_out("resolving")),
        Ok(Err(source)) => return Err(TransportError::Resolve { address, source }),
        Ok(Ok(found)) => found.collect(),
    };
    let stream = match timeout(options.connect_timeout, TcpStream::connect(found.as_slice())).await {
        Err(_) => return Err(timed_out("connecting to")),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => return Err(TransportError::Refused { address, port }),
        Ok(Err(source)) => {
            return Err(TransportError::Local { what: format!("cannot connect to `{address}` port {port}"), source });
        }
        Ok(Ok(stream)) => stream,
    };
    // `connect_stream` leaves the socket as it is: without this, small requests wait for Nagle.
    stream.set_nodelay(true).map_err(|source| TransportError::Local { what: "cannot set TCP_NODELAY".into(), source })?;
    Ok(stream)
}

async fn log_in(handle: &mut Handle<Client>, options: &SshOptions) -> Result<(), TransportError> {
    let mut tried: Vec<String> = Vec::new();
    if !options.named_key
        && let Some(socket) = &options.agent_socket
        && try_agent(handle, options, socket, &mut tried).await?
    {
        return Ok(());
    }
    for path in &options.keys {
        if tried.len() >= MAX_TRIES {
            break;
        }
        let key = match read_key(path) {
            Ok(key) => key,
            Err(error) if options.named_key => return Err(error),
            Err(TransportError::KeyFile { reason, .. }) if path.exists() => {
                tried.push(format!("{} not usable: {reason}", path.display()));
                continue;
            }
            Err(_) => continue,
        };
        tried.push(path.display().to_string());
        let hash = rsa_hash(handle, key.public_key()).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        let result = handle.authenticate_publickey(options.user.clone(), key).await;
        if accepted(result)? {
            return Ok(());
        }
    }
    if tried.is_empty() {
        tried.push("no key: neither an agent nor a key file".to_owned());
    }
    Err(TransportError::AuthRefused { user: options.user.clone(), tried: tried.join(", ") })
}

async fn try_agent(
    handle: &mut Handle<Client>,
    options: &SshOptions,
    socket: &Path,
    tried: &mut Vec<String>,
) -> Result<bool, TransportError> {
    let Ok(mut agent) = AgentClient::connect_uds(socket).await else {
        tracing::debug!(socket = %socket.display(), "no agent answers");
        return Ok(false);
    };
    let identities = agent.request_identities().await.unwrap_or_default();
    for identity in identities.into_iter().take(MAX_TRIES) {
        let key: PublicKey = identity.public_key().into_owned();
        tried.push(format!("agent key {}", key.fingerprint(HashAlg::Sha256)));
        let hash = rsa_hash(handle, &key).await?;
        match handle.authenticate_publickey_with(options.user.clone(), key, hash, &mut agent).await {
            Ok(AuthResult::Success) => return Ok(true),
            Ok(AuthResult::Failure { .. }) => {}
            // An agent that declines to sign with one key may sign with the next.
            Err(error) => tracing::debug!(%error, "the agent did not sign"),
        }
    }
    Ok(false)
}

/// RSA keys sign with SHA-2: what the server names, else SHA-512, which every sshd of the last ten years takes.
async fn rsa_hash(handle: &Handle<Client>, key: &PublicKey) -> Result<Option<HashAlg>, TransportError> {
    if !matches!(key.algorithm(), Algorithm::Rsa { .. }) {
        return Ok(None);
    }
    let best = handle.best_supported_rsa_hash().await.map_err(|e| protocol(&e))?;
    Ok(best.flatten().or(Some(HashAlg::Sha512)))
}

fn accepted(result: Result<AuthResult, russh::Error>) -> Result<bool, TransportError> {
    match result {
        Ok(result) => Ok(result.success()),
        Err(error) => Err(protocol(&error)),
    }
}

fn protocol(error: &russh::Error) -> TransportError {
    TransportError::Protocol(format!("the login failed: {error}"))
}

fn read_key(path: &Path) -> Result<PrivateKey, TransportError> {
    let unusable = |reason: String| TransportError::KeyFile { path: path.to_owned(), reason };
    let meta = std::fs::metadata(path).map_err(|e| unusable(e.to_string()))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(unusable(format!("others may read it (mode {mode:04o}): chmod 600 it")));
    }
    russh::keys::load_secret_key(path, None).map_err(|error| match error {
        russh::keys::Error::KeyIsEncrypted => unusable("it has a passphrase: load it into ssh-agent".into()),
        other => unusable(other.to_string()),
    })
}
