//! Places to run the same tests on: this machine's shell, the embedded server, a real OpenSSH.

#![expect(dead_code, reason = "each test file uses a part")]
#![expect(clippy::unwrap_used, reason = "failing loudly is what tests do")]

use roadie_transport::Session;
use roadie_transport::embedded::EmbeddedSshd;
use roadie_transport::known_hosts::{KnownHosts, Policy};
use roadie_transport::local::LocalSession;
use roadie_transport::ssh::{SshOptions, connect};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Options that reach nothing by themselves: no agent, no keys, no known hosts.
pub fn options(port: u16, user: &str, key: &Path, fingerprint: &str) -> SshOptions {
    let mut options = SshOptions::with_user_defaults(Path::new("/nonexistent"), None);
    options.name = "test".into();
    options.address = "127.0.0.1".into();
    options.port = port;
    options.user = user.into();
    options.use_key(key.to_owned());
    options.known_hosts = KnownHosts { policy: Policy::Pinned(fingerprint.into()), files: vec![] };
    options.connect_timeout = Duration::from_secs(5);
    options
}

/// Bytes that look random, always the same ones.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

/// The sha256, as `sha256sum` prints it.
pub fn sha(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

/// Who runs the tests.
pub fn me() -> String {
    let output = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs `ssh-keygen` and gives back the key's path.
pub fn keygen(folder: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let mut command = std::process::Command::new("ssh-keygen");
    let passphrase: &[&str] = if arguments.contains(&"-N") { &[] } else { &["-N", ""] };
    let status = command.args(["-q", "-f"]).arg(&path).args(passphrase).args(arguments).status().unwrap();
    assert!(status.success());
    path
}

/// The fingerprint of a public key file, `SHA256:...`.
pub fn fingerprint(public: &Path) -> String {
    let output = std::process::Command::new("ssh-keygen").arg("-lf").arg(public).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
}

/// A real OpenSSH server of the user who runs the tests.
pub struct OpenSsh {
    pub folder: TempDir,
    pub port: u16,
    pub child: Child,
}

impl OpenSsh {
    /// `None`, with a loud line, where there is no sshd. `extra` lines go first in its configuration, so that they win;
    /// one that says `Subsystem`, even in a comment, stands for the usual one.
    pub async fn start(extra: &str) -> Option<Self> {
        let sshd = ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|p| Path::new(p).exists());
        let Some(sshd) = sshd else {
            roadie_tests::skip("the tests against OpenSSH", "no sshd on this machine");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        keygen(folder.path(), "host_ed25519", &["-t", "ed25519"]);
        keygen(folder.path(), "host_rsa", &["-t", "rsa", "-b", "2048"]);
        keygen(folder.path(), "user_ed25519", &["-t", "ed25519"]);
        std::fs::copy(at("user_ed25519.pub"), at("authorized_keys")).unwrap();
        // Without it sshd started by root refuses to run.
        if me() == "root" {
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let f = folder.path().display();
        let sftp = if extra.contains("Subsystem") { "" } else { "Subsystem sftp internal-sftp" };
        // `SHLVL` keeps bash from reading the tester's own .bashrc, which may be slow and say things.
        let config = format!(
            "{extra}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {f}/host_ed25519\nHostKey {f}/host_rsa\nPidFile none\n\
             AuthorizedKeysFile {f}/authorized_keys\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nUsePAM no\nLogLevel VERBOSE\nSetEnv SHLVL=9\n{sftp}\n"
        );
        std::fs::write(at("sshd_config"), config).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let child = Command::new(sshd)
            .args(["-D", "-e", "-f"])
            .arg(at("sshd_config"))
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        for _ in 0..100 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(Self { folder, port, child });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("sshd did not start: {}", std::fs::read_to_string(at("log")).unwrap());
    }

    pub fn options(&self) -> SshOptions {
        let at = |name: &str| self.folder.path().join(name);
        options(self.port, &me(), &at("user_ed25519"), &fingerprint(&at("host_ed25519.pub")))
    }
}

/// A place, what keeps it running, and a folder in it that tests may use.
pub struct Place {
    pub session: Arc<dyn Session>,
    pub folder: TempDir,
    /// The pid that serves our connection, where one does.
    pub server: Server,
}

pub enum Server {
    None,
    Embedded(EmbeddedSshd),
    OpenSsh(OpenSsh),
}

pub async fn local() -> Option<Place> {
    let folder = tempfile::tempdir().unwrap();
    let session = Arc::new(LocalSession::new(folder.path().to_owned()));
    Some(Place { session, folder, server: Server::None })
}

pub async fn embedded() -> Option<Place> {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let server =
        EmbeddedSshd::start(&home, &folder.path().join("keys"), vec![("PLACE".into(), "embedded".into())]).await.unwrap();
    let options = options(server.addr().port(), "anyone", server.client_key_path(), server.host_fingerprint());
    let session = connect(options).await.unwrap();
    Some(Place { session, folder, server: Server::Embedded(server) })
}

pub async fn openssh() -> Option<Place> {
    let server = OpenSsh::start("").await?;
    let session = connect(server.options()).await.unwrap();
    Some(Place { session, folder: tempfile::tempdir().unwrap(), server: Server::OpenSsh(server) })
}
