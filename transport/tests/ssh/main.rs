//! What only ssh has: keys and host keys (`login`), deadlines, lost contact, the count of round trips.

#![expect(clippy::unwrap_used, reason = "failing loudly is what tests do")]

#[path = "../common/mod.rs"]
mod common;
mod login;

use bytes::Bytes;
use common::{OpenSsh, fingerprint, keygen, options};
use roadie_transport::embedded::{EmbeddedOptions, EmbeddedSshd};
use roadie_transport::known_hosts::{KnownHosts, Policy};
use roadie_transport::ssh::{SshOptions, connect};
use roadie_transport::testing::Relay;
use roadie_transport::{Chunk, Exit, Session, TransportError};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

async fn works(options: SshOptions) -> Arc<dyn Session> {
    let session = connect(options).await.unwrap();
    let output = session.run("echo works", Bytes::new(), 100).await.unwrap();
    assert_eq!((output.stdout, output.exit), (b"works\n".to_vec(), Exit::Status(0)));
    session
}

async fn fails(options: SshOptions) -> TransportError {
    match tokio::time::timeout(Duration::from_secs(20), connect(options)).await.expect("no deadline") {
        Ok(_) => panic!("connected"),
        Err(error) => error,
    }
}

struct Embedded {
    folder: tempfile::TempDir,
    server: EmbeddedSshd,
}

impl Embedded {
    async fn start(options: EmbeddedOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = EmbeddedSshd::start_with(folder.path(), &folder.path().join("keys"), options).await.unwrap();
        Self { folder, server }
    }

    fn options(&self) -> SshOptions {
        options(self.server.addr().port(), "anyone", self.server.client_key_path(), self.server.host_fingerprint())
    }

    fn known(&self, policy: Policy, text: &str) -> SshOptions {
        let file = self.folder.path().join("known_hosts");
        std::fs::write(&file, text).unwrap();
        SshOptions { known_hosts: KnownHosts { policy, files: vec![file] }, ..self.options() }
    }

    fn name(&self) -> String {
        format!("[127.0.0.1]:{}", self.server.addr().port())
    }
}

async fn embedded() -> Embedded {
    Embedded::start(EmbeddedOptions::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_silent_and_unresolvable_are_told_apart() {
    let place = embedded().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = fails(SshOptions { port: free, ..place.options() }).await;
    assert!(matches!(&error, TransportError::Refused { port, .. } if *port == free), "{error:?}");

    let error = fails(SshOptions { address: "no-such-host.invalid".into(), ..place.options() }).await;
    assert!(matches!(&error, TransportError::Resolve { .. } | TransportError::TimedOut { .. }), "{error:?}");

    // Nobody can be connected to there: the kernel says so at once, as it does of a host that is down in its own network.
    let error = fails(SshOptions { address: "255.255.255.255".into(), ..place.options() }).await;
    assert!(matches!(&error, TransportError::NoRoute { .. }), "{error:?}");

    // A full queue of connections: the kernel drops what comes, as a firewall would.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let waiting: Vec<_> = (0..6).map(|_| tokio::spawn(tokio::net::TcpStream::connect(address))).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let error = fails(SshOptions { port: address.port(), connect_timeout: Duration::from_secs(1), ..place.options() }).await;
    assert!(matches!(&error, TransportError::TimedOut { what, seconds: 1 } if what.starts_with("connecting")), "{error:?}");
    waiting.into_iter().for_each(|task| task.abort());

    // Accepts, and never speaks.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let begun = Instant::now();
    let error = fails(SshOptions { port, login_timeout: Duration::from_secs(1), ..place.options() }).await;
    assert!(matches!(&error, TransportError::TimedOut { what, seconds: 1 } if what.contains("handshake")), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(3));

    // Speaks something else.
    let web = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = web.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = web.accept().await {
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        }
    });
    let error = fails(SshOptions { port, login_timeout: Duration::from_secs(2), ..place.options() }).await;
    assert!(matches!(&error, TransportError::TurnedAway { .. } | TransportError::TimedOut { .. }), "{error:?}");
    server.abort();
}

/// Starts a command, ends contact by `end`, and gives back why it was lost.
async fn lose<F: AsyncFnOnce()>(session: &Arc<dyn Session>, end: F) -> String {
    let mut process = session.start("echo begun; sleep 30; echo never").await.unwrap();
    assert_eq!(process.next().await, Some(Chunk::Stdout(Bytes::from_static(b"begun\n"))));
    assert_eq!(session.lost(), None);
    end().await;
    let exit = tokio::time::timeout(Duration::from_secs(5), process.next()).await.expect("not noticed");
    assert_eq!(exit, Some(Chunk::Exit(Exit::Lost)));
    assert_eq!(process.next().await, None);
    for _ in 0..50 {
        if session.lost().is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let Err(error) = session.start("true").await else { panic!("started") };
    assert!(matches!(error, TransportError::Disconnected { .. }), "{error:?}");
    session.lost().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leaves_is_noticed() {
    let place = embedded().await;
    let session = works(place.options()).await;
    let Embedded { server, folder: _folder } = place;
    let reason = lose(&session, async || server.shutdown().await).await;
    assert_eq!(reason, "the host said goodbye: shutting down");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_line_is_noticed() {
    let place = embedded().await;
    let relay = Relay::start(place.server.addr(), Duration::ZERO).await.unwrap();
    let session = works(SshOptions { port: relay.addr().port(), ..place.options() }).await;
    let reason = lose(&session, async || relay.cut()).await;
    assert_eq!(reason, "the host closed the connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sshd_is_noticed() {
    let Some(server) = OpenSsh::start("").await else { return };
    let session = works(server.options()).await;
    // Its own connection's process: found by asking from inside.
    let output = session.run("ps -o ppid= -p $$", Bytes::new(), 100).await.unwrap();
    let pid: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let reason = lose(&session, async || {
        let killed = tokio::process::Command::new("kill").args(["-9", &pid.to_string()]).status().await.unwrap();
        assert!(killed.success());
    })
    .await;
    assert!(!reason.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_forbidden_is_not_a_closed_port() {
    let Some(server) = OpenSsh::start("AllowTcpForwarding no").await else { return };
    let session = works(server.options()).await;
    let Err(error) = session.forward("127.0.0.1", server.port).await else { panic!("connected") };
    assert_eq!(error.to_string(), "the host refuses to forward a port: administratively prohibited");
    let place = embedded().await;
    let session = works(place.options()).await;
    let Err(error) = session.forward("192.0.2.1", 80).await else { panic!("connected") };
    assert!(matches!(error, TransportError::Refusal { .. }), "{error:?}");
}

async fn uploads_without_sftp(session: &Arc<dyn Session>, folder: &Path) {
    let data: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let (from, to) = (folder.join("from"), folder.join("a b/c/to"));
    std::fs::write(&from, &data).unwrap();
    let begun = Instant::now();
    session.upload(&from, &to.display().to_string(), &|_| {}).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "waits for an answer that never comes");
    assert!(std::fs::read(&to).unwrap() == data);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&to), mode(&folder.join("a b")), mode(&folder.join("a b/c"))), (0o600, 0o700, 0o700));
    let error = session.upload(&from, &format!("{}/x", to.display()), &|_| {}).await.unwrap_err();
    assert!(matches!(&error, TransportError::Upload { reason, .. } if reason.contains("a b/c/to")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_sftp_uploads_go_through_a_shell() {
    let place = Embedded::start(EmbeddedOptions { sftp: false, ..EmbeddedOptions::default() }).await;
    uploads_without_sftp(&works(place.options()).await, place.folder.path()).await;
    for subsystem in ["# no Subsystem", "Subsystem sftp /nonexistent"] {
        let Some(server) = OpenSsh::start(subsystem).await else { return };
        uploads_without_sftp(&works(server.options()).await, server.folder.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(&disk).status();
    if !mount.is_ok_and(|status| status.success()) {
        return roadie_tests::skip("a_full_disk_is_named", "cannot mount a small disk");
    }
    let from = folder.path().join("from");
    std::fs::write(&from, vec![7; 5 << 20]).unwrap();
    let place = embedded().await;
    let mut sessions = vec![works(place.options()).await];
    let server = OpenSsh::start("").await;
    if let Some(server) = &server {
        sessions.push(works(server.options()).await);
    }
    let mut results = Vec::new();
    for session in sessions {
        results.push(session.upload(&from, &format!("{}/file", disk.display()), &|_| {}).await);
        let _ = std::fs::remove_file(disk.join("file"));
    }
    assert!(std::process::Command::new("umount").arg(&disk).status().unwrap().success());
    for result in results {
        let error = result.unwrap_err();
        assert!(matches!(&error, TransportError::Upload { reason, .. } if reason.starts_with("no space left")), "{error:?}");
    }
}

/// Time is the witness: behind a slow line every wait that is made costs its delay, counted or not.
#[tokio::test(flavor = "multi_thread")]
async fn round_trips_are_what_the_clock_says() {
    const ONE_WAY: Duration = Duration::from_millis(100);
    let place = embedded().await;
    let relay = Relay::start(place.server.addr(), ONE_WAY).await.unwrap();
    let session = connect(SshOptions { port: relay.addr().port(), ..place.options() }).await.unwrap();
    assert_eq!(session.round_trips(), 0);
    let file = place.folder.path().join("file");
    std::fs::write(&file, vec![1; 1 << 20]).unwrap();
    let mut count = 0;
    let mut clock = Instant::now();
    let mut spent = |session: &dyn Session, expected: u64, what: &str| {
        let trips = session.round_trips() - count;
        let measured = clock.elapsed().as_secs_f64() / (2.0 * ONE_WAY.as_secs_f64());
        assert_eq!(trips, expected, "{what}: took {measured:.2}");
        assert!(
            measured > expected as f64 - 0.1 && measured < expected as f64 + 0.8,
            "{what}: {trips} counted, took {measured:.2}"
        );
        (count, clock) = (session.round_trips(), Instant::now());
    };
    session.run("true", Bytes::new(), 10).await.unwrap();
    spent(&*session, 2, "run: channel, answer");
    session.prepare_upload(None).await;
    let mut shell = session.start("exec sh -s").await.unwrap();
    spent(&*session, 1, "start: channel");
    for _ in 0..3 {
        shell.write(Bytes::from_static(b"echo x\n")).await.unwrap();
        assert!(shell.next().await.is_some());
    }
    spent(&*session, 3, "three scripts in an open shell");
    session.upload(&file, "new/folder/one", &|_| {}).await.unwrap();
    spent(&*session, 2, "upload over the prepared channel: create, write and close");
    session.upload(&file, "new/folder/two", &|_| {}).await.unwrap();
    spent(&*session, 2, "second upload");

    let session = connect(SshOptions { port: relay.addr().port(), ..place.options() }).await.unwrap();
    (count, clock) = (0, Instant::now());
    let spent = |expected: u64| {
        let measured = clock.elapsed().as_secs_f64() / (2.0 * ONE_WAY.as_secs_f64());
        assert_eq!(session.round_trips() - count, expected, "took {measured:.2}");
        assert!((measured - expected as f64).abs() < 0.8, "{measured:.2}");
    };
    session.upload(&file, "three", &|_| {}).await.unwrap();
    spent(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_hangs_up() {
    let place = embedded().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = place.server.addr();
    let relay = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    });
    let session = works(SshOptions { port, ..place.options() }).await;
    session.prepare_upload(None).await;
    let process = session.start("cat").await.unwrap();
    drop((process, session));
    let _ = tokio::time::timeout(Duration::from_secs(10), relay).await.expect("the connection stays open").unwrap();
}

/// The embedded server is ours, and so is the client: a stranger is asked too.
#[tokio::test(flavor = "multi_thread")]
async fn openssh_clients_are_served() {
    let place = embedded().await;
    let home = place.folder.path();
    std::fs::write(home.join("known"), format!("{} {}\n", place.name(), place.server.host_key())).unwrap();
    std::fs::write(
        home.join("batch"),
        "mkdir d\nput batch d/x\nrename d/x d/y\nls -l d\nget d/y got\nchmod 640 d/y\ndf d\nrm d/y\nrmdir d\n",
    )
    .unwrap();
    let client = |program: &str, arguments: &[&str]| {
        let mut command = tokio::process::Command::new(program);
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i"]).arg(place.server.client_key_path());
        command.arg("-o").arg(format!("UserKnownHostsFile={}", home.join("known").display()));
        command.args(["-P", "-p"].iter().filter(|p| (**p == "-P") == (program == "sftp")));
        command.arg(place.server.addr().port().to_string()).args(arguments).current_dir(home);
        command
    };
    let Ok(output) =
        client("ssh", &["x@127.0.0.1", "cat; echo err >&2; exit 7"]).stdin(std::process::Stdio::null()).output().await
    else {
        roadie_tests::skip("openssh_clients_are_served", "no ssh");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.as_str()), (Some(7), "err\n"));
    let output = client("sftp", &["-b", "batch", "x@127.0.0.1"]).output().await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("d/y"), "{said}");
    assert_eq!(std::fs::read(home.join("got")).unwrap(), std::fs::read(home.join("batch")).unwrap());
    assert!(!home.join("d").exists());
}

/// A server that turns around and opens channels towards us.
struct Intruder(tokio::sync::mpsc::UnboundedSender<Vec<bool>>);

impl russh::server::Handler for Intruder {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _: &str,
        _: russh::server::PublicKeyOffer<'_>,
    ) -> Result<russh::server::Auth, russh::Error> {
        Ok(russh::server::Auth::Accept)
    }

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: russh::server::VerifiedPublicKey<'_>,
    ) -> Result<russh::server::Auth, russh::Error> {
        Ok(russh::server::Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut russh::server::Session) -> Result<(), russh::Error> {
        let (handle, report) = (session.handle(), self.0.clone());
        tokio::spawn(async move {
            let opened = vec![
                handle.channel_open_forwarded_tcpip("localhost", 80, "localhost", 1).await.is_ok(),
                handle.channel_open_forwarded_streamlocal("/run/x").await.is_ok(),
                handle.channel_open_x11("localhost", 1).await.is_ok(),
                handle.channel_open_agent().await.is_ok(),
                handle.channel_open_session().await.is_ok(),
                handle.channel_open_direct_tcpip("localhost", 22, "localhost", 1).await.is_ok(),
                handle.channel_open_direct_streamlocal("/run/x").await.is_ok(),
            ];
            report.send(opened).unwrap();
        });
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_open_nothing_towards_us() {
    let folder = tempfile::tempdir().unwrap();
    let host = keygen(folder.path(), "host", &["-t", "ed25519"]);
    let key = keygen(folder.path(), "key", &["-t", "ed25519"]);
    let keys = vec![russh::keys::load_secret_key(&host, None).unwrap()];
    let config = Arc::new(russh::server::Config { keys, ..russh::server::Config::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, mut report) = tokio::sync::mpsc::unbounded_channel();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        russh::server::run_stream(config, stream, Intruder(sender)).await.unwrap().await
    });
    let session = connect(options(port, "x", &key, &fingerprint(&host.with_extension("pub")))).await.unwrap();
    let opened = tokio::time::timeout(Duration::from_secs(10), report.recv()).await.unwrap().unwrap();
    assert_eq!(opened, [false; 7]);
    assert_eq!(session.lost(), None);
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn chacha20_without_strict_key_exchange_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let host = keygen(folder.path(), "host", &["-t", "ed25519"]);
    let offer = async |strict: bool, ciphers: &'static [russh::cipher::Name]| {
        let mut kex = vec![russh::kex::CURVE25519];
        if strict {
            kex.push(russh::kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER);
        }
        let preferred = russh::Preferred { kex: kex.into(), cipher: ciphers.into(), ..russh::Preferred::DEFAULT };
        let keys = vec![russh::keys::load_secret_key(&host, None).unwrap()];
        let config = Arc::new(russh::server::Config { keys, preferred, ..russh::server::Config::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (sender, _report) = tokio::sync::mpsc::unbounded_channel();
            let _ = russh::server::run_stream(config, stream, Intruder(sender)).await.unwrap().await;
        });
        let result = connect(options(port, "x", &host, &fingerprint(&host.with_extension("pub")))).await;
        server.abort();
        result.map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(offer(true, &[russh::cipher::CHACHA20_POLY1305]).await, Ok(()));
    assert_eq!(offer(false, &[russh::cipher::AES_256_GCM, russh::cipher::CHACHA20_POLY1305]).await, Ok(()));
    let refused = offer(false, &[russh::cipher::CHACHA20_POLY1305]).await.unwrap_err();
    assert!(refused.contains("CVE-2023-48795"), "{refused}");
}

/// Takes `refusals` connections and closes them at once, then relays to `to`; the port, and how many came in all.
async fn turnstile(to: u16, refusals: usize) -> (u16, Arc<std::sync::atomic::AtomicUsize>) {
    let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = door.local_addr().unwrap().port();
    let came = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = came.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = door.accept().await {
            if count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= refusals {
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
            }
        }
    });
    (port, came)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_turns_away_is_asked_again() {
    let place = embedded().await;
    let came = |count: &std::sync::atomic::AtomicUsize| count.load(std::sync::atomic::Ordering::Relaxed);
    let (port, count) = turnstile(place.options().port, 3).await;
    connect(SshOptions { port, ..place.options() }).await.expect("the fourth time it is let in");
    assert_eq!(came(&count), 4);
    let (port, count) = turnstile(place.options().port, usize::MAX).await;
    let error = fails(SshOptions { port, ..place.options() }).await;
    assert!(matches!(&error, TransportError::TurnedAway { attempts: 5, .. }), "{error:?}");
    assert_eq!(came(&count), 5);
    // A refused login is never repeated: penalties would follow.
    let (port, count) = turnstile(place.options().port, 0).await;
    let stranger = keygen(place.folder.path(), "stranger", &["-t", "ed25519"]);
    let error = fails(SshOptions { port, keys: vec![stranger], ..place.options() }).await;
    assert!(matches!(&error, TransportError::AuthRefused { .. }), "{error:?}");
    assert_eq!(came(&count), 1);
}
