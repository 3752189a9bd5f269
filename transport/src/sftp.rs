//! Uploads over SFTP: a deep write pipeline, with CLOSE right behind the last write. Without sftp: `cat` over exec.

use crate::session::Connection;
use crate::{Exit, Process as _, Progress, TransportError};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use roadie_model::sh::quote;
use russh::client::Msg;
use russh::{Channel, ChannelMsg};
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::rawsession::RawSftpSession;
use russh_sftp::protocol::{FileAttributes, OpenFlags, StatusCode};
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, oneshot};

/// Bytes per write at most: what OpenSSH takes (`limits@openssh.com` says 261120).
const MAX_WRITE: usize = 255 << 10;
/// Bytes per write that every server takes.
const SAFE_WRITE: u64 = 32 << 10;
/// Writes under way: 16 MiB cover 160 MB/s at 100 ms.
const IN_FLIGHT: usize = 64;
/// A deep queue on a slow link takes its time: the library counts from queueing.
const REQUEST_TIMEOUT_S: u64 = 600;
/// Small requests with nothing queued before them.
const INIT_TIMEOUT_S: u64 = 20;
/// With less than this free, a write that failed did so for want of space.
const NEARLY_FULL: u64 = 1 << 20;

/// An sftp channel that is ready for use.
struct Sftp {
    raw: RawSftpSession,
    /// Bytes per write.
    write: usize,
    /// Folders known to exist.
    folders: Mutex<HashSet<String>>,
    _permit: OwnedSemaphorePermit,
}

/// The one sftp channel of a session: opened on first use, or ahead of it.
struct Opening {
    connection: Arc<Connection>,
    sftp: OnceCell<Option<Arc<Sftp>>>,
    /// Answers heard while opening.
    heard: AtomicU64,
    started: AtomicBool,
}

impl Opening {
    /// `None` when the host has no sftp.
    async fn get(&self) -> Option<Arc<Sftp>> {
        self.sftp.get_or_init(|| async { self.open().await.map(Arc::new) }).await.clone()
    }

    /// Two answers: to the channel, and to all requests behind it, which are sent at once.
    async fn open(&self) -> Option<Sftp> {
        let (channel, permit) = self.connection.open().await.ok()?;
        self.heard.fetch_add(1, Ordering::Relaxed);
        channel.request_subsystem(true, "sftp").await.ok()?;
        let config = russh_sftp::client::Config { request_timeout_secs: INIT_TIMEOUT_S, ..russh_sftp::client::Config::default() };
        let (pipe, ended) = stream(channel);
        let raw = RawSftpSession::new_with_config(pipe, config);
        // Sent in this order; a server without the extension says so and goes on.
        let opened = async { futures::join!(raw.init(), raw.limits()) };
        // The library does not see an end that comes before its first request, and would wait out its time.
        let (version, limits) = tokio::select! {
            both = opened => both,
            _ = ended => return None,
        };
        self.heard.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = version {
            tracing::debug!(%error, "no sftp here, uploads go through a shell");
            return None;
        }
        raw.set_timeout(REQUEST_TIMEOUT_S);
        let allowed = limits.ok().map(|l| l.max_write_len).filter(|bytes| *bytes > 0);
        let write = usize::try_from(allowed.unwrap_or(SAFE_WRITE)).unwrap_or(MAX_WRITE).min(MAX_WRITE);
        Some(Sftp { raw, write, folders: Mutex::default(), _permit: permit })
    }
}

/// The channel as a stream that ends when the server refuses the subsystem: OpenSSH leaves the channel open then, and requests
/// on it would wait for ever. The receiver resolves when it has ended.
fn stream(channel: Channel<Msg>) -> (DuplexStream, oneshot::Receiver<()>) {
    let (mut half, writer) = channel.split();
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (end, ended) = oneshot::channel();
    tokio::spawn(async move {
        let _end: oneshot::Sender<()> = end;
        let (mut requests, mut replies) = tokio::io::split(ours);
        let send = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(MAX_WRITE);
                let read = requests.read_buf(&mut buffer).await.unwrap_or(0);
                if read == 0 || writer.data_bytes(buffer.split().freeze()).await.is_err() {
                    break;
                }
            }
        };
        let receive = async {
            while let Some(message) = half.wait().await {
                match message {
                    ChannelMsg::Data { data } if replies.write_all(&data).await.is_ok() => {}
                    ChannelMsg::Success | ChannelMsg::WindowAdjusted { .. } | ChannelMsg::ExtendedData { .. } => {}
                    _ => break,
                }
            }
        };
        tokio::select! {
            () = send => {}
            () = receive => {}
        }
        // Closed already, or nobody is left to tell.
        let _ = writer.close().await;
    });
    (theirs, ended)
}

/// Uploads of one session.
pub(crate) struct Uploader {
    opening: Arc<Opening>,
}

impl Uploader {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        let (sftp, heard, started) = (OnceCell::new(), AtomicU64::new(0), AtomicBool::new(false));
        Self { opening: Arc::new(Opening { connection, sftp, heard, started }) }
    }

    /// Opens the channel in the background, once.
    pub(crate) fn prepare(&self) {
        if !self.opening.started.swap(true, Ordering::Relaxed) {
            let opening = self.opening.clone();
            tokio::spawn(async move { opening.get().await.is_some() });
        }
    }

    pub(crate) async fn upload(&self, local: &Path, remote: &str, progress: Progress<'_>) -> Result<(), TransportError> {
        let file = open_local(local).await?;
        let heard = self.opening.heard.load(Ordering::Relaxed);
        let sftp = self.opening.get().await;
        // Only what this upload had to wait for: the rest was heard beside other work.
        let connection = &self.opening.connection;
        connection.round_trips.add(self.opening.heard.load(Ordering::Relaxed) - heard);
        let mut file = LocalFile { file, path: local };
        match sftp {
            Some(sftp) => sftp.upload(connection, &mut file, remote, progress).await,
            None => over_exec(connection, &mut file, remote, progress).await,
        }
    }
}

impl Sftp {
    /// Two round trips: one for the folders and the file, one for all its bytes and its end.
    async fn upload(
        &self,
        connection: &Connection,
        file: &mut LocalFile<'_>,
        remote: &str,
        progress: Progress<'_>,
    ) -> Result<(), TransportError> {
        let handle = match self.create(connection, remote).await {
            Ok(handle) => handle,
            Err(error) => return Err(self.explain(connection, remote, &error).await),
        };
        connection.round_trips.count();
        let written = self.write(file, &handle, progress).await;
        match written? {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(connection, remote, &error).await),
        }
    }

    /// Writes all of `file` and closes `handle`. CLOSE is sent behind the writes without waiting for them: the server works in
    /// order, and every reply is looked at.
    async fn write(
        &self,
        file: &mut LocalFile<'_>,
        handle: &str,
        progress: Progress<'_>,
    ) -> Result<Result<(), SftpError>, TransportError> {
        let mut writes = FuturesUnordered::new();
        let mut tally = Tally { sent: 0, progress, failed: None };
        let mut offset = 0u64;
        let read = loop {
            let data = match file.read(self.write).await {
                Ok(data) if data.is_empty() => break Ok(()),
                Ok(data) => data,
                Err(error) => break Err(error),
            };
            let length = data.len() as u64;
            let mut write = Box::pin(write_at(&self.raw, handle, offset, data));
            offset += length;
            // The first poll sends: not left to the set, which polls in an order of its own, so that none goes behind the CLOSE.
            match futures::poll!(&mut write) {
                Poll::Ready(done) => tally.note(done),
                Poll::Pending => writes.push(write),
            }
            while let Some(done) = next_if(&mut writes, IN_FLIGHT).await {
                tally.note(done);
            }
            if tally.failed.is_some() {
                break Ok(());
            }
        };
        let mut close = Box::pin(self.raw.close(handle));
        let closed = futures::poll!(&mut close);
        while let Some(done) = writes.next().await {
            tally.note(done);
        }
        let closed = match closed {
            Poll::Ready(closed) => closed,
            Poll::Pending => close.await,
        };
        read?;
        Ok(tally.failed.map_or(closed.map(|_| ()), Err))
    }

    /// Makes the folders and the file. Folders that were there for an earlier upload are taken for granted, until that fails.
    async fn create(&self, connection: &Connection, remote: &str) -> Result<String, SftpError> {
        let parents = || remote.match_indices('/').map(|(at, _)| &remote[..at]).filter(|p| !p.is_empty());
        let missing: Vec<&str> = parents().filter(|p| !self.known().contains(*p)).collect();
        let all_tried = missing.len() == parents().count();
        connection.round_trips.count();
        let mut created = self.create_in(&missing, remote).await;
        if created.is_err() && !all_tried {
            self.known().clear();
            connection.round_trips.count();
            created = self.create_in(&parents().collect::<Vec<_>>(), remote).await;
        }
        if created.is_ok() {
            self.known().extend(parents().map(str::to_owned));
        }
        created
    }

    /// One flight: the server works in order, and a folder that exists is no error. Neither is a file that does not exist when
    /// it is made private: that is for one which exists, and which nobody may read once it has the new content.
    async fn create_in(&self, folders: &[&str], remote: &str) -> Result<String, SftpError> {
        let folder = FileAttributes { permissions: Some(0o700), ..FileAttributes::empty() };
        let private = FileAttributes { permissions: Some(0o600), ..FileAttributes::empty() };
        let made = folders.iter().map(|p| self.raw.mkdir(*p, folder.clone()));
        let flags = OpenFlags::CREATE | OpenFlags::TRUNCATE | OpenFlags::WRITE;
        let (_, _, handle) = futures::join!(
            futures::future::join_all(made),
            self.raw.setstat(remote, private.clone()),
            self.raw.open(remote, flags, private.clone()),
        );
        Ok(handle?.handle)
    }

    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// sftp says only "Failure" for a full disk: the file system is asked for the cause.
    async fn explain(&self, connection: &Connection, remote: &str, error: &SftpError) -> TransportError {
        if let Some(reason) = connection.lost() {
            return TransportError::Disconnected { reason };
        }
        self.raw.set_timeout(INIT_TIMEOUT_S);
        connection.round_trips.count();
        let reason = self.file_system(remote).await.unwrap_or_else(|| plain(error));
        self.raw.set_timeout(REQUEST_TIMEOUT_S);
        TransportError::Upload { path: remote.to_owned(), reason }
    }

    /// What is wrong with the file system that `remote` would be on, if anything.
    async fn file_system(&self, remote: &str) -> Option<String> {
        let top = if remote.starts_with('/') { "/" } else { "." };
        let parents = remote.match_indices('/').rev().map(|(at, _)| &remote[..at]).filter(|p| !p.is_empty()).chain([top]);
        // All at once; the nearest that exists counts.
        let answers = futures::future::join_all(parents.map(|p| self.raw.statvfs(p))).await;
        let fs = answers.into_iter().find_map(Result::ok)?;
        let free = fs.blocks_avail.saturating_mul(fs.fragment_size);
        if fs.flags & 1 != 0 {
            Some("the file system is read-only".into())
        } else if fs.blocks > 0 && free < NEARLY_FULL {
            Some(format!("no space left on the disk ({} KiB free)", free >> 10))
        } else if fs.inodes > 0 && fs.inodes_avail == 0 {
            Some("no inodes left on the disk".into())
        } else {
            None
        }
    }
}

fn plain(error: &SftpError) -> String {
    match error {
        SftpError::Status(status) => match status.status_code {
            StatusCode::PermissionDenied => "permission denied".into(),
            StatusCode::NoSuchFile => "its folder cannot be made".into(),
            _ => format!("the host says `{}`", status.error_message),
        },
        other => other.to_string(),
    }
}

/// What became of the writes so far.
struct Tally<'a> {
    sent: u64,
    progress: Progress<'a>,
    failed: Option<SftpError>,
}

impl Tally<'_> {
    fn note(&mut self, (bytes, result): Written) {
        match result {
            Ok(_) => {
                self.sent += bytes;
                (self.progress)(self.sent);
            }
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }
}

type Written = (u64, Result<russh_sftp::protocol::Status, SftpError>);

/// One write request; sent when it is first polled, that is, into a queue without bounds.
async fn write_at(raw: &RawSftpSession, handle: &str, offset: u64, data: Vec<u8>) -> Written {
    (data.len() as u64, raw.write(handle, offset, data).await)
}

/// A write that is done; waits for one only when `depth` are under way.
async fn next_if<F: Future>(writes: &mut FuturesUnordered<F>, depth: usize) -> Option<F::Output> {
    if writes.len() >= depth {
        return writes.next().await;
    }
    std::future::poll_fn(|context| match writes.poll_next_unpin(context) {
        Poll::Ready(done) => Poll::Ready(done),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn open_local(path: &Path) -> Result<tokio::fs::File, TransportError> {
    tokio::fs::File::open(path).await.map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: std::io::Error) -> TransportError {
    TransportError::Local { what: format!("cannot read `{}`", path.display()), source }
}

/// The file to send.
struct LocalFile<'a> {
    file: tokio::fs::File,
    path: &'a Path,
}

impl LocalFile<'_> {
    /// The next `length` bytes; fewer, or none, at the end.
    async fn read(&mut self, length: usize) -> Result<Vec<u8>, TransportError> {
        let mut data = Vec::with_capacity(length);
        let mut part = (&mut self.file).take(length as u64);
        part.read_to_end(&mut data).await.map_err(|source| unreadable(self.path, source))?;
        Ok(data)
    }
}

async fn over_exec(
    connection: &Connection,
    file: &mut LocalFile<'_>,
    remote: &str,
    progress: Progress<'_>,
) -> Result<(), TransportError> {
    let folder = remote.rsplit_once('/').map_or(".", |(folder, _)| folder);
    let made = if folder.is_empty() { String::new() } else { format!("mkdir -p -- {} && ", quote(folder)) };
    let mut process = connection
        .start(&format!("umask 077; {made}{{ chmod 600 {file} 2>/dev/null; cat >{file}; }}", file = quote(remote)))
        .await?;
    let mut sent = 0;
    loop {
        let data = file.read(MAX_WRITE).await?;
        if data.is_empty() {
            break;
        }
        sent += data.len() as u64;
        // A command that stopped reading tells why when it ends.
        if process.write(Bytes::from(data)).await.is_err() {
            break;
        }
        progress(sent);
    }
    let output = process.run(Bytes::new(), 4096).await;
    match output.exit {
        Exit::Status(0) => Ok(()),
        Exit::Lost => Err(TransportError::Disconnected { reason: connection.lost().unwrap_or_else(|| "closed".into()) }),
        _ => {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(TransportError::Upload { path: remote.to_owned(), reason })
        }
    }
}
