//! A small ssh server inside this process, for `roadie demo` and for tests: loopback only, throw-away keys, one login key.
//!
//! It runs commands with the real `sh`, writes real files and reaches real ports, all as the user who started it, in a home
//! folder the caller names. It is no server for others: it has no users, no terminals and no forwarding beyond loopback.

use crate::TransportError;
use russh::keys::ssh_key::{LineEnding, PublicKey};
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

mod exec;
mod sftp;

/// What all connections of one server share.
struct Shared {
    home: PathBuf,
    env: Vec<(String, String)>,
    authorized: Mutex<Vec<PublicKey>>,
    sftp: bool,
    /// Process groups of commands that run now.
    running: Mutex<HashSet<u32>>,
}

impl Shared {
    fn knows(&self, key: &PublicKey) -> bool {
        lock(&self.authorized).iter().any(|known| known.key_data() == key.key_data())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the server behaves, beyond the defaults.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Added to the environment of every command.
    pub env: Vec<(String, String)>,
    /// Whether it serves sftp.
    pub sftp: bool,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { env: Vec::new(), sftp: true }
    }
}

/// A running server. Dropping it stops it as [`EmbeddedSshd::shutdown`] does, without waiting.
pub struct EmbeddedSshd {
    addr: SocketAddr,
    client_key: PathBuf,
    fingerprint: String,
    host_key: PublicKey,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    accepting: Option<JoinHandle<()>>,
}

impl EmbeddedSshd {
    /// Starts a server on a free loopback port. `home` is where commands run and relative sftp paths begin. The private key for
    /// logging in is written to `keys_dir`, mode 0600; the host key never leaves memory. `env` is added to every command.
    ///
    /// # Errors
    /// [`TransportError::Local`] when the key cannot be made or written, or no port is free.
    pub async fn start(home: &Path, keys_dir: &Path, env: Vec<(String, String)>) -> Result<Self, TransportError> {
        Self::start_with(home, keys_dir, EmbeddedOptions { env, ..EmbeddedOptions::default() }).await
    }

    /// Like [`EmbeddedSshd::start`], with all options.
    ///
    /// # Errors
    /// As [`EmbeddedSshd::start`].
    pub async fn start_with(home: &Path, keys_dir: &Path, options: EmbeddedOptions) -> Result<Self, TransportError> {
        let host = new_key()?;
        let client = new_key()?;
        let client_key = keys_dir.join("id_ed25519");
        write_key(&client, keys_dir, &client_key)?;
        let local = |source| TransportError::Local { what: "cannot open a loopback port".into(), source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(local)?;
        let addr = listener.local_addr().map_err(local)?;
        let host_key = host.public_key().clone();
        let shared = Arc::new(Shared {
            home: home.to_owned(),
            env: options.env,
            authorized: Mutex::new(vec![client.public_key().clone()]),
            sftp: options.sftp,
            running: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, Arc::new(config(host)), shared.clone(), stopped));
        let fingerprint = host_key.fingerprint(HashAlg::Sha256).to_string();
        Ok(Self { addr, client_key, fingerprint, host_key, shared, stop, accepting: Some(accepting) })
    }

    /// Where it listens: `127.0.0.1` and a free port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The private key that may log in, under any user name.
    pub fn client_key_path(&self) -> &Path {
        &self.client_key
    }

    /// The host key's fingerprint, `SHA256:...`, to pin.
    pub fn host_fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The host key as it stands in a known_hosts line, `ssh-ed25519 AAAA...`.
    pub fn host_key(&self) -> String {
        self.host_key.to_openssh().unwrap_or_default()
    }

    /// Lets a further key in, given as in `authorized_keys`.
    ///
    /// # Errors
    /// [`TransportError::Protocol`] when it is no public key.
    pub fn authorize(&self, public_key: &str) -> Result<(), TransportError> {
        let key = PublicKey::from_openssh(public_key).map_err(|e| TransportError::Protocol(format!("not a public key: {e}")))?;
        lock(&self.shared.authorized).push(key);
        Ok(())
    }

    /// Cuts all connections, kills the commands that still run, and waits until the port is free.
    /// What a command started in a session of its own (`setsid`) lives on.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if let Some(accepting) = self.accepting.take() {
            // It ends by itself after the stop; a panic in it was reported already.
            let _ = accepting.await;
        }
        // After the goodbye: to a client, a server that goes down is no command that was killed.
        self.kill();
    }

    fn kill(&self) {
        for group in lock(&self.shared.running).drain() {
            crate::local::kill_group(group);
        }
    }
}

impl Drop for EmbeddedSshd {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.kill();
    }
}

fn new_key() -> Result<PrivateKey, TransportError> {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)
        .map_err(|e| TransportError::Protocol(format!("cannot make a key: {e}")))
}

fn write_key(key: &PrivateKey, folder: &Path, path: &Path) -> Result<(), TransportError> {
    use std::io::Write as _;
    let failed = |source| TransportError::Local { what: format!("cannot write `{}`", path.display()), source };
    let text = key.to_openssh(LineEnding::LF).map_err(|e| failed(std::io::Error::other(e)))?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

fn config(host: PrivateKey) -> server::Config {
    server::Config {
        keys: vec![host],
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        // Nobody guesses keys on loopback; waiting would only slow down key after key.
        auth_rejection_time: Duration::ZERO,
        nodelay: true,
        inactivity_timeout: None,
        // A command that reads its input late must not hold up the other channels.
        channel_buffer_size: 1024,
        ..server::Config::default()
    }
}

async fn accept(listener: TcpListener, config: Arc<server::Config>, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut connections = tokio::task::JoinSet::new();
    let each = stopped.clone();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => break,
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(serve(stream, config.clone(), shared.clone(), each.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(stream: TcpStream, config: Arc<server::Config>, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    // Best effort: it only makes small answers slower.
    let _ = stream.set_nodelay(true);
    let handler = Connection { shared, channels: HashMap::new() };
    let session = async {
        let mut running = server::run_stream(config, stream, handler).await?;
        let stopped = async { stopped.wait_for(|stop| *stop).await.is_ok() };
        tokio::select! {
            result = &mut running => return result,
            _ = stopped => {}
        }
        let handle = running.handle();
        let goodbye = handle.disconnect(russh::Disconnect::ByApplication, "shutting down".into(), "en".into());
        // A client that reads nothing cannot be told.
        let _ = tokio::time::timeout(Duration::from_secs(1), async { (goodbye.await, running.await) }).await;
        Ok(())
    };
    if let Err(error) = session.await {
        tracing::debug!(%error, "embedded ssh connection ended");
    }
}

/// One client's connection.
struct Connection {
    shared: Arc<Shared>,
    /// Channels that wait for their exec or subsystem request.
    channels: HashMap<ChannelId, Channel<Msg>>,
}

impl Connection {
    fn judge(&self, key: &PublicKey) -> Auth {
        if self.shared.knows(key) { Auth::Accept } else { Auth::reject() }
    }
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(self.judge(offer.public_key))
    }

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.judge(key.public_key))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        let Some(channel) = self.channels.remove(&id) else { return session.channel_failure(id) };
        match exec::spawn(&self.shared, command) {
            Ok(child) => {
                session.channel_success(id)?;
                tokio::spawn(exec::pump(self.shared.clone(), child, channel, session.handle()));
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%error, "embedded ssh server cannot start `sh`");
                session.channel_failure(id)?;
                session.close(id)
            }
        }
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<(), Self::Error> {
        let channel = self.channels.remove(&id);
        match channel {
            Some(channel) if name == "sftp" && self.shared.sftp => {
                session.channel_success(id)?;
                russh_sftp::server::run(channel.into_stream(), sftp::Files::new(self.shared.home.clone())).await;
                Ok(())
            }
            _ => {
                session.channel_failure(id)?;
                session.close(id)
            }
        }
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let address = if host == "localhost" { Some(IpAddr::V4(Ipv4Addr::LOCALHOST)) } else { host.parse().ok() };
        let (Some(address), Ok(port)) = (address.filter(IpAddr::is_loopback), u16::try_from(port)) else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        tokio::spawn(relay(channel, SocketAddr::new(address, port), reply));
        Ok(())
    }
}

async fn relay(channel: Channel<Msg>, to: SocketAddr, reply: ChannelOpenHandle) {
    let Ok(mut stream) = TcpStream::connect(to).await else {
        reply.reject(ChannelOpenFailure::ConnectFailed).await;
        return;
    };
    reply.accept().await;
    // Either side may hang up at any time; that ends the relay.
    let _ = tokio::io::copy_bidirectional(&mut channel.into_stream(), &mut stream).await;
}
