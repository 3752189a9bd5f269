//! Hosts that take uploads, each with a folder of its own.

use crate::common::{OpenSsh, noise, options};
use bytes::Bytes;
use roadie_transport::embedded::{EmbeddedOptions, EmbeddedSshd};
use roadie_transport::session::SshSession;
use roadie_transport::ssh::{SshOptions, connect};
use roadie_transport::testing::Relay;
use roadie_transport::{Exit, Sent, Session as _, TransportError};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A server, and a folder with a local file in it.
pub struct Host {
    pub options: SshOptions,
    pub folder: tempfile::TempDir,
    pub data: Vec<u8>,
    _server: Box<dyn std::any::Any + Send + Sync>,
}

impl Host {
    pub async fn embedded(sftp: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options_ = EmbeddedOptions { sftp, ..EmbeddedOptions::default() };
        let server = EmbeddedSshd::start_with(folder.path(), &folder.path().join("keys"), options_).await.unwrap();
        let options = options(server.addr().port(), "anyone", server.client_key_path(), server.host_fingerprint());
        Self { options, folder, data: Vec::new(), _server: Box::new(server) }
    }

    pub async fn openssh(extra: &str) -> Option<Self> {
        let server = OpenSsh::start(extra).await?;
        Some(Self {
            options: server.options(),
            folder: tempfile::tempdir().unwrap(),
            data: Vec::new(),
            _server: Box::new(server),
        })
    }

    /// Every kind of host, those without sftp too.
    pub async fn all() -> Vec<Self> {
        let mut hosts = vec![Self::embedded(true).await, Self::embedded(false).await];
        for extra in ["", "# no Subsystem"] {
            hosts.extend(Self::openssh(extra).await);
        }
        hosts
    }

    pub async fn with_sftp() -> Vec<Self> {
        let mut hosts = vec![Self::embedded(true).await];
        hosts.extend(Self::openssh("").await);
        hosts
    }

    pub async fn relay(&self, delay: u64) -> Relay {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, self.options.port));
        Relay::start(to, Duration::from_millis(delay)).await.unwrap()
    }

    pub async fn near(&self) -> Arc<SshSession> {
        connect(self.options.clone()).await.unwrap()
    }

    pub async fn through(&self, relay: &Relay) -> Arc<SshSession> {
        connect(SshOptions { port: relay.addr().port(), ..self.options.clone() }).await.unwrap()
    }

    /// Makes the local file, `length` bytes of noise.
    pub fn file(&mut self, length: u64) {
        self.data = noise(usize::try_from(length).unwrap());
        std::fs::write(self.folder.path().join("local"), &self.data).unwrap();
    }

    pub fn remote(&self) -> PathBuf {
        self.folder.path().join("re mote/file")
    }

    pub async fn upload(&self, session: &SshSession) -> Result<Sent, TransportError> {
        let told = Mutex::new(Vec::new());
        let progress = |bytes| told.lock().unwrap().push(bytes);
        let remote = self.remote().display().to_string();
        let sent = session.upload(&self.folder.path().join("local"), &remote, &progress).await?;
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted(), "{told:?}");
        assert_eq!(told.last().copied().unwrap_or(0), self.data.len() as u64, "progress ends at the size");
        assert_eq!(sent.bytes + sent.resumed, self.data.len() as u64);
        if sent.resumed > 0 {
            assert_eq!(told[0], sent.resumed, "what was there counts from the beginning");
        }
        Ok(sent)
    }

    /// The same as a new file, with marks beside it.
    pub async fn upload_new(&self, session: &SshSession) -> Result<Sent, TransportError> {
        let told = Mutex::new(Vec::new());
        let progress = |bytes| told.lock().unwrap().push(bytes);
        let (remote, mark) = (self.remote().display().to_string(), self.mark().display().to_string());
        let sent = session.upload_new(&self.folder.path().join("local"), &remote, &mark, &progress).await?;
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted(), "{told:?}");
        assert_eq!(told.last().copied().unwrap_or(0), self.data.len() as u64, "progress ends at the size");
        Ok(sent)
    }

    pub fn mark(&self) -> PathBuf {
        self.remote().with_file_name("ma rk")
    }

    /// Takes away the marks, all private folders, and gives back their ends, as `2.1`, in order.
    pub fn marks(&self) -> Vec<String> {
        let Ok(folder) = std::fs::read_dir(self.remote().parent().unwrap()) else { return Vec::new() };
        let mut marks = Vec::new();
        for entry in folder.map(Result::unwrap) {
            if let Some(end) = entry.file_name().to_str().unwrap().strip_prefix("ma rk.") {
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
                std::fs::remove_dir(entry.path()).unwrap();
                marks.push(end.to_owned());
            }
        }
        marks.sort();
        marks
    }

    /// A session whose channels for so many bytes are open.
    pub async fn ahead(&self, relay: &Relay, bytes: u64) -> Arc<SshSession> {
        let session = self.through(relay).await;
        session.prepare_upload(Some(bytes)).await;
        for _ in 0..5 {
            works(&session).await;
        }
        session
    }

    /// Nothing is there any more.
    pub fn clear(&self) {
        let folder = self.remote().parent().unwrap().to_owned();
        let _ = std::fs::remove_file(&folder);
        let _ = std::fs::remove_dir_all(&folder);
    }

    pub fn check(&self) {
        let arrived = std::fs::read(self.remote()).unwrap();
        assert_eq!(arrived.len(), self.data.len());
        assert!(arrived == self.data, "other content");
        assert_eq!(std::fs::metadata(self.remote()).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    /// Puts `content` where the file goes, readable by all.
    pub fn leave(&self, content: &[u8]) {
        std::fs::create_dir_all(self.remote().parent().unwrap()).unwrap();
        std::fs::write(self.remote(), content).unwrap();
        std::fs::set_permissions(self.remote(), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
}

pub async fn works(session: &SshSession) {
    assert_eq!(session.run("exit 3", Bytes::new(), 10).await.unwrap().exit, Exit::Status(3));
}
