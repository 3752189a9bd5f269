//! Large files: over several channels when the host is far, and on from where an earlier upload was cut.

#![expect(clippy::unwrap_used, reason = "failing loudly is what tests do")]

mod common;

use bytes::Bytes;
use common::{OpenSsh, noise, options};
use roadie_transport::embedded::{EmbeddedOptions, EmbeddedSshd};
use roadie_transport::session::SshSession;
use roadie_transport::ssh::{SshOptions, connect};
use roadie_transport::testing::Relay;
use roadie_transport::{Chunk, Exit, Sent, Session, TransportError};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A server, and a folder with a local file in it.
struct Host {
    options: SshOptions,
    folder: tempfile::TempDir,
    data: Vec<u8>,
    _server: Box<dyn std::any::Any + Send + Sync>,
}

impl Host {
    async fn embedded(sftp: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options_ = EmbeddedOptions { sftp, ..EmbeddedOptions::default() };
        let server = EmbeddedSshd::start_with(folder.path(), &folder.path().join("keys"), options_).await.unwrap();
        let options = options(server.addr().port(), "anyone", server.client_key_path(), server.host_fingerprint());
        Self { options, folder, data: Vec::new(), _server: Box::new(server) }
    }

    async fn openssh(extra: &str) -> Option<Self> {
        let server = OpenSsh::start(extra).await?;
        Some(Self {
            options: server.options(),
            folder: tempfile::tempdir().unwrap(),
            data: Vec::new(),
            _server: Box::new(server),
        })
    }

    /// Every kind of host, those without sftp too.
    async fn all() -> Vec<Self> {
        let mut hosts = vec![Self::embedded(true).await, Self::embedded(false).await];
        for extra in ["", "# no Subsystem"] {
            hosts.extend(Self::openssh(extra).await);
        }
        hosts
    }

    async fn with_sftp() -> Vec<Self> {
        let mut hosts = vec![Self::embedded(true).await];
        hosts.extend(Self::openssh("").await);
        hosts
    }

    async fn relay(&self, delay: u64) -> Relay {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, self.options.port));
        Relay::start(to, Duration::from_millis(delay)).await.unwrap()
    }

    async fn near(&self) -> Arc<SshSession> {
        connect(self.options.clone()).await.unwrap()
    }

    async fn through(&self, relay: &Relay) -> Arc<SshSession> {
        connect(SshOptions { port: relay.addr().port(), ..self.options.clone() }).await.unwrap()
    }

    /// Makes the local file, `length` bytes of noise.
    fn file(&mut self, length: u64) {
        self.data = noise(usize::try_from(length).unwrap());
        std::fs::write(self.folder.path().join("local"), &self.data).unwrap();
    }

    fn remote(&self) -> PathBuf {
        self.folder.path().join("re mote/file")
    }

    async fn upload(&self, session: &SshSession) -> Result<Sent, TransportError> {
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
    async fn upload_new(&self, session: &SshSession) -> Result<Sent, TransportError> {
        let told = Mutex::new(Vec::new());
        let progress = |bytes| told.lock().unwrap().push(bytes);
        let (remote, mark) = (self.remote().display().to_string(), self.mark().display().to_string());
        let sent = session.upload_new(&self.folder.path().join("local"), &remote, &mark, &progress).await?;
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted(), "{told:?}");
        assert_eq!(told.last().copied().unwrap_or(0), self.data.len() as u64, "progress ends at the size");
        Ok(sent)
    }

    fn mark(&self) -> PathBuf {
        self.remote().with_file_name("ma rk")
    }

    /// Takes away the marks, all private folders, and gives back their ends, as `2.1`, in order.
    fn marks(&self) -> Vec<String> {
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
    async fn ahead(&self, relay: &Relay, bytes: u64) -> Arc<SshSession> {
        let session = self.through(relay).await;
        session.prepare_upload(Some(bytes)).await;
        for _ in 0..5 {
            works(&session).await;
        }
        session
    }

    /// Nothing is there any more.
    fn clear(&self) {
        let folder = self.remote().parent().unwrap().to_owned();
        let _ = std::fs::remove_file(&folder);
        let _ = std::fs::remove_dir_all(&folder);
    }

    fn check(&self) {
        let arrived = std::fs::read(self.remote()).unwrap();
        assert_eq!(arrived.len(), self.data.len());
        assert!(arrived == self.data, "other content");
        assert_eq!(std::fs::metadata(self.remote()).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    /// Puts `content` where the file goes, readable by all.
    fn leave(&self, content: &[u8]) {
        std::fs::create_dir_all(self.remote().parent().unwrap()).unwrap();
        std::fs::write(self.remote(), content).unwrap();
        std::fs::set_permissions(self.remote(), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
}

async fn works(session: &SshSession) {
    assert_eq!(session.run("exit 3", Bytes::new(), 10).await.unwrap().exit, Exit::Status(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn far_hosts_get_large_files_over_several_channels() {
    for mut host in Host::with_sftp().await {
        let relay = host.relay(20).await;
        let session = host.through(&relay).await;
        let measured = session.round_trip_time().unwrap().as_millis();
        assert!(measured >= 40, "quicker than the line: {measured}");
        for (length, several) in [(8 * MIB, true), (32 * (255 << 10), true), (12 * MIB + 1, true), (4 * MIB, false), (1, false)] {
            host.file(length);
            let _ = std::fs::remove_file(host.remote());
            let before = session.round_trips();
            let sent = host.upload(&session).await.unwrap();
            assert_eq!((sent.bytes, sent.resumed), (length, 0));
            assert_eq!(sent.channels > 1, several, "{length}: {sent:?}");
            assert!(sent.channels <= 8, "{sent:?}");
            let first = u64::from(before == 0);
            assert_eq!(session.round_trips() - before, 2 + first, "{length}: as many as over one channel");
            host.check();
        }
        works(&session).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn near_hosts_get_large_files_over_one_channel() {
    for mut host in Host::with_sftp().await {
        host.file(9 * MIB);
        let session = host.near().await;
        // A busy machine may be slow to answer, but not every time.
        for _ in 0..20 {
            works(&session).await;
        }
        let sent = host.upload(&session).await.unwrap();
        assert_eq!(sent, Sent { bytes: 9 * MIB, resumed: 0, channels: 1 }, "{:?}", session.round_trip_time());
        host.check();
        assert_eq!(host.upload(&session).await.unwrap().bytes, 0, "and nothing when it is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_opened_ahead_are_used() {
    for mut host in Host::with_sftp().await {
        // Those that open beside it begin two round trips later: four windows have brought 24 MiB by then, and there is to be work
        // for them yet, however busy the machine is.
        host.file(48 * MIB);
        let relay = host.relay(60).await;
        let session = host.through(&relay).await;
        session.prepare_upload(Some(48 * MIB)).await;
        for _ in 0..5 {
            works(&session).await;
        }
        let before = session.round_trips();
        assert_eq!(host.upload(&session).await.unwrap().channels, 8);
        assert_eq!(session.round_trips() - before, 2);
        host.check();
        works(&session).await;

        // What an upload does not use, because it is smaller than was thought, holds no places behind it.
        let session = host.through(&relay).await;
        works(&session).await;
        session.prepare_upload(Some(20 * MIB)).await;
        works(&session).await;
        host.file(1000);
        assert_eq!(host.upload(&session).await.unwrap().channels, 1);
        let mut shells = Vec::new();
        for _ in 0..7 {
            shells.push(session.start("cat").await.unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_refuse_channels_get_fewer() {
    for (max, expected) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 3)] {
        let Some(mut host) = Host::openssh(&format!("MaxSessions {max}")).await else { return };
        host.file(16 * MIB);
        let relay = host.relay(50).await;
        let session = host.through(&relay).await;
        let shell = if max > 1 { Some(session.start("cat").await.unwrap()) } else { None };
        let sent = host.upload(&session).await.unwrap();
        host.check();
        // The shell has one; from three on, one is left for a command beside all that.
        assert!((1..=expected.max(1)).contains(&sent.channels), "MaxSessions {max}: {sent:?}");
        assert!(max < 5 || sent.channels > 1, "MaxSessions {max}: {sent:?}");
        if max > 2 {
            works(&session).await;
        }
        drop(shell);
    }
}

/// How much of the local file is not in the remote one, block by block.
fn missing(host: &Host) -> u64 {
    let there = std::fs::read(host.remote()).unwrap_or_default();
    let blocks = host.data.chunks(1 << 20).enumerate();
    let wrong = blocks.filter(|(n, block)| there.get(n << 20..(n << 20) + block.len()) != Some(*block));
    if there.len() < 1 << 20 { host.data.len() as u64 } else { wrong.map(|(_, block)| block.len() as u64).sum() }
}

/// Waits until what was under way has been written: nobody has the file open any more.
async fn settled(path: &Path) {
    let began = Instant::now();
    while is_open(path) {
        assert!(began.elapsed() < Duration::from_secs(60), "{} stays open", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a process of this machine has the file open.
fn is_open(path: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path().join("fd"));
    let open = processes.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    open.filter_map(|link| std::fs::read_link(link.path()).ok()).any(|target| target == path)
}

/// Uploads so many times over lines that are cut somewhere, each time again over another line, and gives back what was resumed.
async fn cut_and_go_on(host: &mut Host, times: usize, delay: u64) -> Vec<u64> {
    let length = 8 * MIB + 5;
    host.file(length);
    let places = noise(8 * times);
    let mut resumed = Vec::new();
    for place in places.chunks(8) {
        let _ = std::fs::remove_file(host.remote());
        let at = u64::from_le_bytes(place.try_into().unwrap()) % length;
        let relay = host.relay(delay).await;
        let session = host.through(&relay).await;
        relay.cut_after(relay.bytes_up() + 20_000 + at);
        let error = host.upload(&session).await.unwrap_err();
        assert!(matches!(error, TransportError::Disconnected { .. }), "{error:?}");
        drop(session);
        settled(&host.remote()).await;
        let missing = missing(host);
        let relay = host.relay(0).await;
        let session = host.through(&relay).await;
        let sent = host.upload(&session).await.unwrap();
        host.check();
        assert!(relay.bytes_up() < missing + missing / 100 + 64_000, "cut at {at}: {} for {missing}", relay.bytes_up());
        if session.round_trips() > 0 {
            assert!(sent.bytes >= missing, "cut at {at}");
        }
        resumed.push(sent.resumed);
    }
    resumed
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_uploads_go_on_where_they_were() {
    for mut host in Host::with_sftp().await {
        let resumed = cut_and_go_on(&mut host, 10, 0).await;
        assert!(resumed.iter().filter(|bytes| **bytes > 0).count() >= 2, "{resumed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_uploads_over_several_channels_leave_holes_that_are_filled() {
    for mut host in Host::with_sftp().await {
        let resumed = cut_and_go_on(&mut host, 5, 10).await;
        assert!(resumed.iter().any(|bytes| *bytes > 0), "{resumed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_uploads_through_a_shell_go_on_behind_what_is_right() {
    let mut host = Host::embedded(false).await;
    let resumed = cut_and_go_on(&mut host, 5, 0).await;
    assert!(resumed.iter().any(|bytes| *bytes > 0), "{resumed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_and_right_is_kept() {
    for mut host in Host::all().await {
        let length = 9 * MIB + 3;
        host.file(length);
        let whole = host.data.clone();
        let session = host.near().await;
        host.upload(&session).await.unwrap();
        let again = host.upload(&session).await.unwrap();
        assert_eq!((again.bytes, again.resumed), (0, length), "the same file");

        let mut damaged = whole.clone();
        damaged[(5 * MIB) as usize] ^= 1;
        host.leave(&damaged);
        let sent = host.upload(&session).await.unwrap();
        assert!(sent.bytes == MIB || sent.bytes == length - 5 * MIB, "one block, or all behind it: {sent:?}");
        host.check();

        host.leave(&[&whole[..], b"more"].concat());
        assert_eq!(host.upload(&session).await.unwrap().bytes, length, "a longer file is written anew");
        host.check();

        host.leave(&whole[..(4 * MIB + 77) as usize]);
        assert_eq!(host.upload(&session).await.unwrap().bytes, length - 4 * MIB, "a part");
        host.check();

        host.leave(&noise(1 << 20).iter().map(|byte| !byte).collect::<Vec<u8>>());
        assert_eq!(host.upload(&session).await.unwrap().bytes, length, "a part of something else");
        host.check();

        host.leave(&whole[..1000]);
        assert_eq!(host.upload(&session).await.unwrap().bytes, length, "too little to ask for");
        host.check();

        // A hole, as several channels leave it, or a lost page.
        std::fs::OpenOptions::new().write(true).open(host.remote()).unwrap().write_all_at(&[0; 2 << 20], 4 * MIB + 9).unwrap();
        let sent = host.upload(&session).await.unwrap();
        assert!(sent.bytes == 3 * MIB || sent.bytes == length - 4 * MIB, "{sent:?}");
        host.check();

        host.file(3);
        assert_eq!(host.upload(&session).await.unwrap().bytes, 3, "a longer file is cut");
        host.check();
        host.file(0);
        assert_eq!(host.upload(&session).await.unwrap(), Sent { bytes: 0, resumed: 0, ..host.upload(&session).await.unwrap() });
        host.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_odd_sizes_arrive() {
    for mut host in Host::all().await {
        let session = host.near().await;
        for length in [0, 1, MIB - 1, MIB, MIB + 1, 255 << 10, (255 << 10) + 1, 2 * MIB, 5 * MIB - 1] {
            host.file(length);
            host.upload(&session).await.unwrap();
            host.check();
            assert_eq!(host.upload(&session).await.unwrap().resumed, if length < MIB { 0 } else { length });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_through_a_link() {
    for mut host in Host::all().await {
        let relay = host.relay(20).await;
        for session in [host.near().await, host.through(&relay).await] {
            host.file(6 * MIB);
            let other = host.folder.path().join("other");
            for there in [&b"not yours"[..], &host.data] {
                std::fs::write(&other, there).unwrap();
                std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o644)).unwrap();
                let _ = std::fs::remove_file(host.remote());
                std::fs::create_dir_all(host.remote().parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(&other, host.remote()).unwrap();
                assert_eq!(host.upload(&session).await.unwrap().bytes, 6 * MIB);
                host.check();
                assert!(!host.remote().is_symlink());
                assert!(std::fs::read(&other).unwrap() == there);
                assert_eq!(std::fs::metadata(&other).unwrap().permissions().mode() & 0o7777, 0o644);
            }
            std::fs::remove_file(&other).unwrap();
            std::fs::remove_file(host.remote()).unwrap();
            std::os::unix::fs::symlink(&other, host.remote()).unwrap();
            host.upload(&session).await.unwrap();
            host.check();
            assert!(!other.exists(), "a link to nowhere");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn going_on_costs_three_more_round_trips() {
    let mut host = Host::embedded(true).await;
    host.file(3 * MIB);
    let session = host.near().await;
    host.upload(&session).await.unwrap();
    assert_eq!(session.round_trips(), 3, "channel, sftp and file, content");
    host.leave(&host.data[..MIB as usize]);
    std::fs::set_permissions(host.remote(), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(host.upload(&session).await.unwrap().resumed, MIB);
    assert_eq!(session.round_trips() - 3, 5, "file, channel, digests, content, size");
    std::fs::remove_file(host.remote()).unwrap();
    host.upload(&session).await.unwrap();
    assert_eq!(session.round_trips() - 8, 2, "nothing there");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_uploads_in_one_process_stay_small() {
    let host = Arc::new({
        let mut host = Host::embedded(true).await;
        host.file(2 * MIB);
        host
    });
    let relay = Arc::new(host.relay(10).await);
    let uploads = (0..30).map(|n| {
        let (host, relay) = (host.clone(), relay.clone());
        tokio::spawn(async move {
            let session = host.through(&relay).await;
            let remote = host.folder.path().join(format!("remote-{n}"));
            session.upload(&host.folder.path().join("local"), &remote.display().to_string(), &|_| {}).await.unwrap();
            assert!(std::fs::read(remote).unwrap() == host.data);
        })
    });
    for upload in futures::future::join_all(uploads).await {
        upload.unwrap();
    }
}

/// The marks of so many channels.
fn marks_of(channels: usize) -> Vec<String> {
    (1..=channels).map(|n| format!("{channels}.{n}")).collect()
}

/// Without an upload, which may never come.
#[tokio::test(flavor = "multi_thread")]
async fn channels_opened_ahead_leave_a_place_for_a_command() {
    for most in [2, 3, 4] {
        let Some(host) = Host::openssh(&format!("MaxSessions {most}")).await else { return };
        let relay = host.relay(20).await;
        let session = host.through(&relay).await;
        let mut shell = session.start("cat").await.unwrap();
        session.prepare_upload(Some(9 * MIB)).await;
        let began = Instant::now();
        // The first of them has its place before the others.
        assert!(session.copies_files().await, "{most}");
        assert!(began.elapsed() < Duration::from_millis(900), "{most}: {:?}", began.elapsed());
        if most > 2 {
            works(&session).await;
        }
        shell.write(Bytes::from_static(b"ok")).await.unwrap();
        assert_eq!(shell.next().await, Some(Chunk::Stdout(Bytes::from_static(b"ok"))), "{most}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_take_one_round_trip() {
    let Some(mut host) = Host::openssh("").await else { return };
    let relay = host.relay(20).await;
    for (length, channels) in [(0, 1), (1, 1), ((255 << 10) + 1, 1), (2 * MIB, 1), (3 * MIB, 2), (9 * MIB + 7, 4), (24 * MIB, 4)]
    {
        host.clear();
        host.file(length);
        let session = host.ahead(&relay, length).await;
        let before = session.round_trips();
        let sent = host.upload_new(&session).await.unwrap();
        assert_eq!(session.round_trips() - before, 1, "{length}");
        assert_eq!(sent, Sent { bytes: length, resumed: 0, channels: if length == 0 { 0 } else { channels } });
        host.check();
        assert_eq!(host.marks(), marks_of(channels), "{length}");
        let folder = std::fs::metadata(host.remote().parent().unwrap()).unwrap();
        assert_eq!(folder.permissions().mode() & 0o7777, 0o700);
        works(&session).await;
    }

    // A channel is good for one more when all is closed. One that was not opened ahead takes an answer more.
    let session = host.through(&relay).await;
    works(&session).await;
    for (n, length) in [3 * MIB, 0, 2 * MIB, 1, 1000].into_iter().enumerate() {
        std::fs::remove_file(host.remote()).unwrap();
        host.file(length);
        let before = session.round_trips();
        host.upload_new(&session).await.unwrap();
        assert_eq!(session.round_trips() - before, if n == 0 { 2 } else { 1 });
        host.check();
        assert_eq!(host.marks(), marks_of(1));
    }
    // One that wants several goes over them the other way.
    std::fs::remove_dir_all(host.remote().parent().unwrap()).unwrap();
    host.file(12 * MIB);
    assert!(host.upload_new(&session).await.unwrap().channels > 1);
    host.check();
    assert_eq!(host.marks(), Vec::<String>::new());
}

/// What is behind a channel that was just opened is not known yet.
#[tokio::test(flavor = "multi_thread")]
async fn new_files_go_before_the_server_has_said_a_word() {
    let cases = [
        ("", Some(2)),
        ("# no Subsystem", None),
        ("Subsystem sftp /nonexistent", None),
        // Something else answers. It cannot be told whether there is a server behind it.
        ("Subsystem sftp cat", None),
    ];
    for (extra, counted) in cases {
        let Some(mut host) = Host::openssh(extra).await else { return };
        host.file(MIB);
        let relay = host.relay(20).await;
        let session = host.through(&relay).await;
        session.prepare_upload(Some(MIB)).await;
        let before = session.round_trips();
        let sent = tokio::time::timeout(Duration::from_secs(20), host.upload_new(&session)).await.expect("it does not wait");
        if extra.contains("cat") {
            assert!(matches!(sent, Err(TransportError::NotNew { .. })), "{sent:?}");
            sent.map(|_| ()).or(host.upload(&session).await.map(|_| ())).unwrap();
        } else {
            sent.unwrap();
        }
        host.check();
        if let Some(counted) = counted {
            assert_eq!(session.round_trips() - before, counted);
            assert_eq!(host.marks(), marks_of(1));
        } else {
            assert_eq!(host.marks(), Vec::<String>::new());
        }
        works(&session).await;
    }
}

/// Time is the witness: one wait, and half of it is the way of the answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_host_sees_a_new_file_end_before_we_do() {
    let Some(mut host) = Host::openssh("").await else { return };
    host.file(MIB);
    let relay = host.relay(200).await;
    let session = host.ahead(&relay, MIB).await;
    let began = Instant::now();
    let mark = host.mark().with_file_name("ma rk.1.1");
    let seen = async {
        while !mark.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let whole = std::fs::metadata(host.remote()).is_ok_and(|file| file.len() == MIB);
        (began.elapsed().as_millis(), whole)
    };
    let sent = async {
        host.upload_new(&session).await.unwrap();
        began.elapsed().as_millis()
    };
    let ((seen, whole), sent) = futures::join!(seen, sent);
    assert!(whole);
    assert!((400..780).contains(&sent), "{sent} ms for one round trip");
    assert!(seen >= 200 && seen + 150 < sent, "seen after {seen} ms of {sent}");
    host.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_arrive_where_there_is_no_such_way_too() {
    let mut hosts = vec![Host::embedded(true).await, Host::embedded(false).await];
    hosts.extend(Host::openssh("# no Subsystem").await);
    for mut host in hosts {
        for length in [0, 1, 3 * MIB] {
            host.clear();
            host.file(length);
            let (as_new, plain) = (host.near().await, host.near().await);
            as_new.prepare_upload(Some(length)).await;
            plain.prepare_upload(Some(length)).await;
            works(&as_new).await;
            works(&plain).await;
            let sent = host.upload_new(&as_new).await.unwrap();
            assert_eq!((sent.bytes, sent.resumed), (length, 0));
            host.check();
            assert_eq!(host.marks(), Vec::<String>::new());
            host.clear();
            host.upload(&plain).await.unwrap();
            assert_eq!(as_new.round_trips(), plain.round_trips(), "{length}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_behind_other_uploads_arrive() {
    let Some(mut host) = Host::openssh("").await else { return };
    let relay = host.relay(20).await;
    for length in [0, 1, 9 * MIB] {
        host.clear();
        host.file(length);
        let session = host.ahead(&relay, length).await;
        host.upload(&session).await.unwrap();
        host.check();
        std::fs::remove_file(host.remote()).unwrap();
        let before = session.round_trips();
        host.upload_new(&session).await.unwrap();
        assert_eq!(session.round_trips() - before, 2, "as any upload");
        host.check();
        assert_eq!(host.marks(), Vec::<String>::new());

        // The other way round, and what is there is kept.
        let session = host.ahead(&relay, length).await;
        std::fs::remove_file(host.remote()).unwrap();
        host.upload_new(&session).await.unwrap();
        host.check();
        assert!(!host.marks().is_empty());
        assert_eq!(host.upload(&session).await.unwrap().resumed, length & !1);
        host.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_beside_a_new_file_do_not_mix_with_it() {
    let Some(mut host) = Host::openssh("").await else { return };
    host.file(MIB + 3);
    let other = host.folder.path().join("other");
    std::fs::write(host.folder.path().join("of other"), noise(5 * MIB as usize).split_off(4 * MIB as usize)).unwrap();
    for n in 0..60 {
        host.clear();
        let _ = std::fs::remove_file(&other);
        let session = host.near().await;
        session.prepare_upload(None).await;
        works(&session).await;
        let session = &session;
        let beside = async {
            tokio::time::sleep(Duration::from_micros(n * 50)).await;
            let remote = other.display().to_string();
            session.upload(&host.folder.path().join("of other"), &remote, &|_| {}).await.unwrap();
        };
        let (new, ()) = if n % 2 == 0 {
            futures::join!(host.upload_new(session), beside)
        } else {
            let ((), new) = futures::join!(beside, host.upload_new(session));
            (new, ())
        };
        new.unwrap();
        host.check();
        assert!(std::fs::read(&other).unwrap() == std::fs::read(host.folder.path().join("of other")).unwrap());
        host.marks();
        std::fs::remove_file(host.remote()).unwrap();
        host.upload_new(session).await.unwrap();
        host.check();
        assert!(std::fs::read(&other).unwrap() == std::fs::read(host.folder.path().join("of other")).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_that_was_given_up_is_left_alone_by_the_next() {
    let Some(mut host) = Host::openssh("").await else { return };
    let relay = host.relay(20).await;
    for given_up_after in [0, 10, 50, 90] {
        host.clear();
        host.file(9 * MIB);
        let session = host.ahead(&relay, 0).await;
        let whole = tokio::time::timeout(Duration::from_millis(given_up_after), host.upload_new(&session)).await;
        assert!(whole.is_err());
        let first = host.folder.path().join("first");
        // The last of it is on its way.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begun = std::fs::rename(host.remote(), &first).is_ok();
        assert!(begun || given_up_after == 0);
        let before = std::fs::read(&first).unwrap_or_default();
        assert!(host.data.len() > before.len() && host.data.starts_with(&before));
        host.data = noise(4 * MIB as usize).split_off(MIB as usize);
        std::fs::write(host.folder.path().join("local"), &host.data).unwrap();
        host.upload_new(&session).await.unwrap();
        host.check();
        assert!(std::fs::read(&first).unwrap_or_default() == before);
        let _ = std::fs::remove_file(&first);
    }
}

/// What a test puts where a new file goes.
type Standing = (&'static str, fn(&Host));

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_where_a_new_file_goes_is_seen() {
    let Some(mut host) = Host::openssh("").await else { return };
    let relay = host.relay(20).await;
    let standing: [Standing; 9] = [
        ("a longer file", |host| {
            host.leave(&[&host.data[..], b"more"].concat());
            std::fs::set_permissions(host.remote(), std::fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("a file of ours", |host| {
            host.leave(&host.data.iter().map(|byte| !byte).collect::<Vec<u8>>());
            std::fs::set_permissions(host.remote(), std::fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("a file for all to read", |host| host.leave(b"public")),
        ("a link", |host| {
            std::fs::write(host.folder.path().join("other"), b"not yours").unwrap();
            std::os::unix::fs::symlink(host.folder.path().join("other"), host.remote()).unwrap();
        }),
        ("a link to nowhere", |host| std::os::unix::fs::symlink(host.folder.path().join("other"), host.remote()).unwrap()),
        ("a folder", |host| std::fs::create_dir(host.remote()).unwrap()),
        ("no folder can be made", |host| {
            host.clear();
            std::fs::write(host.remote().parent().unwrap(), b"").unwrap();
        }),
        ("a mark of one channel", |host| std::fs::create_dir(host.mark().with_file_name("ma rk.1.1")).unwrap()),
        ("a mark of four channels", |host| std::fs::create_dir(host.mark().with_file_name("ma rk.4.3")).unwrap()),
    ];
    for (length, channels) in [(0, 1), (5, 1), (2 * MIB, 1), (9 * MIB, 4)] {
        for (what, stand) in standing {
            let case = format!("{what}, {length} bytes");
            host.clear();
            let _ = std::fs::remove_file(host.folder.path().join("other"));
            std::fs::create_dir(host.remote().parent().unwrap()).unwrap();
            host.file(length);
            stand(&host);
            let session = host.ahead(&relay, length).await;
            let new = host.upload_new(&session).await;
            let right = match what {
                "a file of ours" => channels > 1,
                "a mark of one channel" => channels != 1,
                "a mark of four channels" => channels != 4,
                _ => false,
            };
            if channels == 1 && what == "a link" {
                assert_eq!(std::fs::read(host.folder.path().join("other")).unwrap(), b"not yours", "{case}");
            }
            if channels == 1 && what == "a link to nowhere" {
                assert!(!host.folder.path().join("other").exists(), "{case}");
            }
            match new {
                Ok(_) => {
                    assert!(right, "{case}");
                    host.check();
                }
                Err(TransportError::NotNew { path, reason }) => {
                    assert!(!right, "{case}: {reason}");
                    assert_eq!(Path::new(&path), host.remote());
                    if what == "no folder can be made" {
                        assert_eq!(reason, "its folder cannot be made", "{case}");
                    }
                }
                Err(error) => panic!("{case}: {error}"),
            }
            let plain = host.upload(&session).await;
            if ["a folder", "no folder can be made"].contains(&what) {
                assert!(matches!(plain, Err(TransportError::Upload { .. })), "{case}: {plain:?}");
            } else {
                plain.unwrap();
                host.check();
                assert!(!host.remote().is_symlink());
            }
            works(&session).await;
        }
    }

    // A folder that was there for an earlier one and is gone.
    host.clear();
    host.file(3);
    let session = host.near().await;
    host.upload_new(&session).await.unwrap();
    host.clear();
    let gone = host.upload_new(&session).await;
    assert!(matches!(gone, Err(TransportError::NotNew { .. })), "{gone:?}");
    host.upload(&session).await.unwrap();
    host.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_do_not_fit_on_a_full_disk() {
    let Some(mut host) = Host::openssh("").await else { return };
    let disk = host.remote().parent().unwrap().to_owned();
    std::fs::create_dir(&disk).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(&disk).status();
    if !mount.is_ok_and(|status| status.success()) {
        return roadie_tests::skip("new_files_do_not_fit_on_a_full_disk", "cannot mount a small disk");
    }
    let relay = host.relay(20).await;
    let mut results = Vec::new();
    for length in [3 * MIB, 24 * MIB] {
        host.file(length);
        let session = host.ahead(&relay, length).await;
        results.push((host.upload_new(&session).await, host.upload(&session).await));
        let _ = std::fs::remove_file(host.remote());
        host.marks();
    }
    assert!(std::process::Command::new("umount").arg(&disk).status().unwrap().success());
    for (new, plain) in results {
        assert!(matches!(new, Err(TransportError::NotNew { .. })), "{new:?}");
        let Err(TransportError::Upload { reason, .. }) = plain else { panic!("{plain:?}") };
        assert!(reason.starts_with("no space left"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_say_what_went_wrong_on_the_way() {
    let Some(mut host) = Host::openssh("").await else { return };
    host.file(9 * MIB);
    for (delay, at) in [(0, 100_000), (0, 5 * MIB), (10, 1000), (10, 2 * MIB), (10, 8 * MIB)] {
        host.clear();
        let relay = host.relay(delay).await;
        let session = host.ahead(&relay, 9 * MIB).await;
        relay.cut_after(relay.bytes_up() + at);
        let error = host.upload_new(&session).await.unwrap_err();
        assert!(matches!(error, TransportError::Disconnected { .. }), "cut at {at}: {error:?}");
        drop(session);
        settled(&host.remote()).await;
        let session = host.near().await;
        host.upload(&session).await.unwrap();
        host.check();
    }

    // A file that is said to be longer than it is.
    let short = Path::new("/sys/devices/system/cpu/online");
    for local in [Path::new("/nonexistent"), short] {
        host.clear();
        let session = host.near().await;
        let (remote, mark) = (host.remote().display().to_string(), host.mark().display().to_string());
        let error = session.upload_new(local, &remote, &mark, &|_| {}).await.unwrap_err();
        assert!(matches!(error, TransportError::Local { .. }), "{error:?}");
        assert_eq!(host.marks(), Vec::<String>::new(), "not all of it was sent");
        works(&session).await;
    }
}
