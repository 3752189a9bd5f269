//! Uploads over SFTP: a deep write pipeline, with CLOSE right behind the last write. Without sftp: `cat` over exec.

use crate::session::{RoundTrips, SshSession};
use crate::{Exit, Progress, Session, TransportError};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use roadie_model::sh::quote;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::rawsession::{Limits, RawSftpSession};
use russh_sftp::protocol::{FileAttributes, OpenFlags, StatusCode};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{OnceCell, OwnedSemaphorePermit};

/// What OpenSSH takes per write (`limits@openssh.com` says 261120).
const WRITE: usize = 255 << 10;
/// Writes under way: 16 MiB cover 160 MB/s at 100 ms.
const IN_FLIGHT: usize = 64;
/// A deep queue on a slow link takes its time: the library counts from queueing.
const REQUEST_TIMEOUT_S: u64 = 600;

struct Sftp {
    raw: RawSftpSession,
    _permit: OwnedSemaphorePermit,
}

/// The one sftp channel of a session, opened on first use or ahead of it.
pub(crate) struct Uploader {
    sftp: OnceCell<Option<Arc<Sftp>>>,
    round_trips: RoundTrips,
}

impl Uploader {
    pub(crate) fn new(round_trips: RoundTrips) -> Self {
        Self { sftp: OnceCell::new(), round_trips }
    }

    pub(crate) async fn prepare(&self, session: &SshSession) {
        self.sftp(session).await;
    }

    /// `None` when the host has no sftp.
    async fn sftp(&self, session: &SshSession) -> Option<Arc<Sftp>> {
        self.sftp.get_or_init(|| async { open(session).await.map(Arc::new) }).await.clone()
    }

    pub(crate) async fn upload(
        &self,
        session: &SshSession,
        local: &Path,
        remote: &str,
        progress: Progress<'_>,
    ) -> Result<(), TransportError> {
        if !self.sftp.initialized() {
            // Nobody opened it ahead: opening the channel and the subsystem are two waits.
            self.round_trips.count();
            self.round_trips.count();
        }
        match self.sftp(session).await {
            Some(sftp) => self.over_sftp(session, &sftp.raw, local, remote, progress).await,
            None => over_exec(session, local, remote, progress).await,
        }
    }

    async fn over_sftp(
        &self,
        session: &SshSession,
        raw: &RawSftpSession,
        local: &Path,
        remote: &str,
        progress: Progress<'_>,
    ) -> Result<(), TransportError> {
        let mut file = open_local(local).await?;
        self.round_trips.count();
        let handle = match create(raw, remote).await {
            Ok(handle) => handle,
            Err(error) => return Err(explain(session, raw, remote, &error).await),
        };
        let sent = AtomicU64::new(0);
        let mut writes = FuturesUnordered::new();
        let mut offset = 0u64;
        let mut failed: Option<SftpError> = None;
        self.round_trips.count();
        loop {
            let mut buffer = vec![0; WRITE];
            let read = read_full(&mut file, &mut buffer, local).await?;
            if read == 0 {
                break;
            }
            buffer.truncate(read);
            writes.push(write_at(raw, &handle, offset, buffer));
            offset += read as u64;
            // Requests are sent when they are first polled; past the depth, room is made before the next one.
            while let Some(done) = next_if(&mut writes, IN_FLIGHT).await {
                note(done, &sent, progress, &mut failed);
            }
            if failed.is_some() {
                break;
            }
        }
        // Sent behind the writes without waiting for them: the server answers in order.
        let close = raw.close(handle.clone());
        let drain = async {
            while let Some(done) = writes.next().await {
                note(done, &sent, progress, &mut failed);
            }
        };
        let ((), closed) = futures::join!(drain, close);
        match failed.or(closed.err()) {
            None => Ok(()),
            Some(error) => Err(explain(session, raw, remote, &error).await),
        }
    }
}

type Written = (u64, Result<russh_sftp::protocol::Status, SftpError>);

/// One write request; sent when it is first polled.
async fn write_at(raw: &RawSftpSession, handle: &str, offset: u64, data: Vec<u8>) -> Written {
    (data.len() as u64, raw.write(handle, offset, data).await)
}

/// Polls all writes once (that sends the new ones); waits for one only when `depth` are under way.
async fn next_if<F: Future>(writes: &mut FuturesUnordered<F>, depth: usize) -> Option<F::Output> {
    if writes.len() >= depth {
        return writes.next().await;
    }
    std::future::poll_fn(|context| match writes.poll_next_unpin(context) {
        std::task::Poll::Ready(done) => std::task::Poll::Ready(done),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

fn note(done: Written, sent: &AtomicU64, progress: Progress<'_>, failed: &mut Option<SftpError>) {
    match done {
        (bytes, Ok(_)) => progress(sent.fetch_add(bytes, Ordering::Relaxed) + bytes),
        (_, Err(error)) => {
            failed.get_or_insert(error);
        }
    }
}

async fn open_local(local: &Path) -> Result<tokio::fs::File, TransportError> {
    tokio::fs::File::open(local)
        .await
        .map_err(|source| TransportError::Local { what: format!("cannot read `{}`", local.display()), source })
}

async fn read_full(file: &mut tokio::fs::File, buffer: &mut [u8], local: &Path) -> Result<usize, TransportError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let read = file.read(&mut buffer[filled..]).await;
        match read.map_err(|source| TransportError::Local { what: format!("cannot read `{}`", local.display()), source })? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

async fn open(session: &SshSession) -> Option<Sftp> {
    let (channel, permit) = session.open().await.ok()?;
    // Without waiting: a server that has no sftp closes the channel, and INIT fails.
    channel.request_subsystem(false, "sftp").await.ok()?;
    let config = russh_sftp::client::Config { request_timeout_secs: REQUEST_TIMEOUT_S, ..russh_sftp::client::Config::default() };
    let mut raw = RawSftpSession::new_with_config(channel.into_stream(), config);
    raw.set_timeout(20);
    raw.init().await.ok()?;
    raw.set_timeout(REQUEST_TIMEOUT_S);
    raw.set_limits(Limits::default());
    Some(Sftp { raw, _permit: permit })
}

/// Makes the folders and the file in one flight: the server works in order, and a folder that exists is no error.
async fn create(raw: &RawSftpSession, remote: &str) -> Result<String, SftpError> {
    let folder = FileAttributes { permissions: Some(0o700), ..FileAttributes::empty() };
    let parents = remote.match_indices('/').map(|(at, _)| &remote[..at]).filter(|p| !p.is_empty());
    let folders: Vec<_> = parents.map(|p| raw.mkdir(p, folder.clone())).collect();
    let file = FileAttributes { permissions: Some(0o600), ..FileAttributes::empty() };
    let flags = OpenFlags::CREATE | OpenFlags::TRUNCATE | OpenFlags::WRITE;
    let (_, handle) = futures::join!(futures::future::join_all(folders), raw.open(remote, flags, file));
    Ok(handle?.handle)
}

/// sftp says only "Failure" for a full disk: the file system is asked for the cause.
async fn explain(session: &SshSession, raw: &RawSftpSession, remote: &str, error: &SftpError) -> TransportError {
    if let Some(reason) = session.lost() {
        return TransportError::Disconnected { reason };
    }
    let mut reason = match error {
        SftpError::Status(status) if status.status_code == StatusCode::PermissionDenied => "permission denied".to_owned(),
        SftpError::Status(status) if status.status_code == StatusCode::NoSuchFile => "the folder cannot be made".to_owned(),
        other => other.to_string(),
    };
    if let Ok(fs) = raw.statvfs(".").await {
        if fs.flags & 1 != 0 {
            reason = "the file system is read-only".into();
        } else if fs.blocks_avail == 0 {
            reason = "no space left on the disk".into();
        } else if fs.inodes > 0 && fs.inodes_avail == 0 {
            reason = "no inodes left on the disk".into();
        }
    }
    TransportError::Upload { path: remote.to_owned(), reason }
}

async fn over_exec(session: &SshSession, local: &Path, remote: &str, progress: Progress<'_>) -> Result<(), TransportError> {
    let folder = remote.rsplit_once('/').map_or(".", |(folder, _)| folder);
    let command = format!("umask 077; mkdir -p {} && cat >{}", quote(folder), quote(remote));
    let mut process = session.start(&format!("exec sh -c {}", quote(&command))).await?;
    let mut file = open_local(local).await?;
    let mut sent = 0;
    loop {
        let mut buffer = vec![0; WRITE];
        let read = read_full(&mut file, &mut buffer, local).await?;
        if read == 0 {
            break;
        }
        buffer.truncate(read);
        process.write(Bytes::from(buffer)).await?;
        sent += read as u64;
        progress(sent);
    }
    process.close_stdin().await?;
    let output = crate::process::run(process, Bytes::new(), 4096).await?;
    match output.exit {
        Exit::Status(0) => Ok(()),
        Exit::Lost => Err(TransportError::Disconnected { reason: session.lost().unwrap_or_else(|| "closed".into()) }),
        _ => {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(TransportError::Upload { path: remote.to_owned(), reason })
        }
    }
}
