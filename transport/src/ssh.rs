//! Connecting over ssh. Secure defaults, deadlines on everything, no prompt ever.

use crate::TransportError;
use crate::known_hosts::{KnownHosts, Policy};
use crate::link::Link;
use crate::login::Login;
use crate::prompt::Prompt;
use crate::session::SshSession;
use backon::{ExponentialBuilder, Retryable as _};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use russh::Names;
use russh::client::{self, ChannelOpenHandle, DisconnectReason, Msg};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKeyOrCertificate};
use russh::{Channel, Preferred, cipher, compression, kex, mac};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How OpenSSH's sshd greets.
const OPENSSH: &[u8] = b"SSH-2.0-OpenSSH";
/// How the reason begins when the host ended the connection on purpose.
pub(crate) const GOODBYE: &str = "the host said goodbye";
/// Head start of each address of a host over its next one.
const HEAD_START: Duration = Duration::from_millis(250);
/// A server that turned us away is asked so many times more: 300 ms, 600 ms and so on behind, about 5 s in all.
const TURNS: usize = 4;

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
    /// Socket of the agent. When a key was named it is asked for that key only, and only if the file has a passphrase.
    pub agent_socket: Option<PathBuf>,
    /// Host keys.
    pub known_hosts: KnownHosts,
    /// Deadline for the TCP connection.
    pub connect_timeout: Duration,
    /// Deadline of the key exchange, and again of the login.
    pub login_timeout: Duration,
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
            login_timeout: Duration::from_secs(20),
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
    is_openssh: Arc<AtomicBool>,
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

    async fn kex_done(&mut self, _: Option<&[u8]>, names: &Names, session: &mut client::Session) -> Result<(), Self::Error> {
        self.is_openssh.store(session.remote_sshid().starts_with(OPENSSH), Ordering::Relaxed);
        if names.cipher == cipher::CHACHA20_POLY1305 && !names.strict_kex() {
            // Open to the prefix truncation attack (CVE-2023-48795); AES comes first, so the server can do nothing better.
            let why = "the server offers only chacha20-poly1305 without strict key exchange, which is open to CVE-2023-48795";
            *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(TransportError::Protocol(why.into()));
            return Err(russh::Error::KexInit);
        }
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Self::Error>) -> Result<(), Self::Error> {
        let (text, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => (format!("{GOODBYE}: {}", info.message.trim()), Ok(())),
            DisconnectReason::Error(e) => (why(&e), Err(e)),
        };
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        result
    }

    // A server has no reason to open anything towards us. The default would accept; dropping the handle refuses.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
}

/// In words, why the connection ended.
fn why(error: &russh::Error) -> String {
    match error {
        russh::Error::KeepaliveTimeout => "the host stopped answering".into(),
        russh::Error::Disconnect | russh::Error::HUP => "the host closed the connection".into(),
        russh::Error::IO(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => "the host closed the connection".into(),
        other => other.to_string(),
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
        // Output that waits to be read must not hold up the other channels, uploads least of all.
        channel_buffer_size: 1024,
        ..client::Config::default()
    }
}

/// Connects, checks the host key, logs in.
///
/// # Errors
/// [`TransportError`] telling apart: no address, refused, timed out, host key, login.
///
/// A server that turns us away before the handshake is asked again, four times with growing pauses; nothing else is.
pub async fn connect(options: SshOptions) -> Result<Arc<SshSession>, TransportError> {
    let attempts = AtomicUsize::new(0);
    let again =
        ExponentialBuilder::new().with_min_delay(Duration::from_millis(300)).with_factor(2.0).with_max_times(TURNS).with_jitter();
    let once = || async {
        let result = connect_once(&options).await;
        let attempt = attempts.fetch_add(1, Ordering::Relaxed) + 1;
        result.map_err(|error| match error {
            TransportError::TurnedAway { address, port, reason, .. } => {
                TransportError::TurnedAway { address, port, reason, attempts: attempt }
            }
            other => other,
        })
    };
    once.retry(again).when(|e| matches!(e, TransportError::TurnedAway { .. })).await
}

async fn connect_once(options: &SshOptions) -> Result<Arc<SshSession>, TransportError> {
    let stream = dial(options).await?;
    let verdict = Arc::new(Mutex::new(None));
    let lost: LostReason = Arc::default();
    let is_openssh = Arc::new(AtomicBool::new(false));
    let client = Client {
        known_hosts: options.known_hosts.clone(),
        address: options.address.clone(),
        port: options.port,
        verdict: verdict.clone(),
        lost: lost.clone(),
        is_openssh: is_openssh.clone(),
    };
    let known = options.known_hosts.known_algorithms(&options.address, options.port);
    let handshake = client::connect_stream(Arc::new(config(&known)), Prompt::new(stream), client);
    let late = |what: &str| TransportError::TimedOut {
        what: format!("{what} `{}`", options.address),
        seconds: options.login_timeout.as_secs(),
    };
    let mut handle = match timeout(options.login_timeout, handshake).await {
        Err(_) => return Err(late("the ssh handshake with")),
        Ok(Ok(handle)) => handle,
        Ok(Err(error)) => {
            let judged = verdict.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(judged.unwrap_or_else(|| handshake_failed(options, &error)));
        }
    };
    let link = Link::default();
    let login = Login::new(&mut handle, options, lost.clone(), &link);
    match timeout(options.login_timeout, login.run()).await {
        Err(_) => Err(late("the login at")),
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) => Ok(Arc::new(SshSession::new(handle, lost, link, is_openssh.load(Ordering::Relaxed)))),
    }
}

/// A connection that ends before the server has shown its key was not meant for us in particular.
fn handshake_failed(options: &SshOptions, error: &russh::Error) -> TransportError {
    match error {
        russh::Error::Disconnect | russh::Error::HUP | russh::Error::IO(_) => TransportError::TurnedAway {
            address: options.address.clone(),
            port: options.port,
            reason: error.to_string(),
            attempts: 1,
        },
        other => TransportError::Protocol(format!("the handshake failed: {other}")),
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
    let stream = match timeout(options.connect_timeout, first_of(&found)).await {
        Err(_) => return Err(timed_out("connecting to")),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => return Err(TransportError::Refused { address, port }),
        Ok(Err(source)) => return Err(TransportError::NoRoute { address, port, source }),
        Ok(Ok(stream)) => stream,
    };
    // `connect_stream` leaves the socket as it is: without this, small requests wait for Nagle.
    stream.set_nodelay(true).map_err(|source| TransportError::Local { what: "cannot set TCP_NODELAY".into(), source })?;
    Ok(stream)
}

/// The first address that answers: one that is a dead end must not eat the time of the next.
async fn first_of(addresses: &[SocketAddr]) -> std::io::Result<TcpStream> {
    let mut attempts: FuturesUnordered<_> = (0u32..)
        .zip(addresses)
        .map(|(index, address)| async move {
            tokio::time::sleep(HEAD_START * index).await;
            TcpStream::connect(address).await
        })
        .collect();
    let mut failure = std::io::Error::other("the name has no address");
    while let Some(result) = attempts.next().await {
        match result {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
