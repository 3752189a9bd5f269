//! One sftp channel: opening it, and making folders and files over it.

use super::pipe::{self, Piece, Pieces, Pipe, Request, Requests};
use crate::TransportError;
use crate::session::{CLOSING, Connection, Place};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelWriteHalf};
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::rawsession::RawSftpSession;
use russh_sftp::protocol::{FileAttributes, OpenFlags, Status, StatusCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::oneshot;

/// Bytes per write at most: what OpenSSH takes (`limits@openssh.com` says 261120).
pub(super) const MAX_WRITE: usize = 255 << 10;
/// Bytes per write that every server takes.
const SAFE_WRITE: usize = 32 << 10;
/// Bytes that are read at once: four packets of OpenSSH.
const STEP: usize = 128 << 10;
/// A deep queue on a slow link takes its time: the library counts from queueing.
const REQUEST_TIMEOUT_S: u64 = 600;
/// Small requests with nothing queued before them.
const SMALL_TIMEOUT_S: u64 = 20;
/// A server that has nothing else to do says so soon what it is.
pub(super) const GREETING: Duration = Duration::from_secs(SMALL_TIMEOUT_S);
/// One that does not know what it is asked for beside that may not even say so.
const LIMITS: Duration = Duration::from_secs(SMALL_TIMEOUT_S / 2);
/// With less than this free, a write that failed did so for want of space.
const NEARLY_FULL: u64 = 1 << 20;
/// Copies between open files, on the server: draft-ietf-secsh-filexfer-extensions-00, section 7.
const COPY_DATA: &str = "copy-data";
/// What OpenSSH's server offers. Others offer these too: it takes the name of the ssh server beside them.
const OPENSSH: [&str; 3] = ["posix-rename@openssh.com", "hardlink@openssh.com", "fsync@openssh.com"];
/// The bits of a mode that say what kind of file it is, and those of a regular file and a symbolic link.
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An sftp channel. It can be used at once: the server works in order, and what it says of itself is its first answer.
pub(super) struct Sftp {
    pub(super) raw: Arc<RawSftpSession>,
    pieces: Pieces,
    greeting: Shared<BoxFuture<'static, Greeting>>,
    handles: Mutex<Handles>,
}

/// The first answer over a channel.
type Greeting = Result<Server, NoServer>;

/// What a server says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server {
    /// Bytes per write.
    pub(super) write: usize,
    /// It has `copy-data` (OpenSSH 9.0 and later).
    pub(super) copies: bool,
    /// It offers what OpenSSH's server does.
    pub(super) openssh: bool,
}

/// Why there is no server behind a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoServer {
    /// The channel ended without a word.
    Ended,
    /// Something answered that is no sftp server, or nothing in time. There may be one behind it.
    Strange,
}

/// What we know of the handles that the server gives on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handles {
    /// None is out, and never was more than one.
    None,
    /// One was asked for, none is known to be given back.
    One,
    /// Several may be, or were.
    Several,
}

/// The answer to opening a file for writing.
pub(super) struct Opened {
    pub(super) handle: String,
    /// What was there before.
    pub(super) found: Found,
}

/// What stood where a file is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: the file is new, empty and private.
    Nothing,
    /// A regular file of this many bytes, with these permissions.
    File { size: u64, mode: u32 },
    /// A symbolic link. Nobody has written through it yet.
    Link,
    /// Something else, or the server does not say what.
    Other,
}

impl Sftp {
    /// Asks for the server. Nothing is waited for.
    pub(super) async fn open(channel: Channel<Msg>, place: Place) -> Option<Self> {
        channel.request_subsystem(true, "sftp").await.ok()?;
        let (pipe, pieces, ended) = carry(channel, place);
        Some(Self::over(pipe, pieces, ended))
    }

    /// Greets the server at the other end of `pipe`. What is asked for behind it is sent in the same flight.
    pub(super) fn over(pipe: Pipe, pieces: Pieces, ended: oneshot::Receiver<bool>) -> Self {
        let config =
            russh_sftp::client::Config { request_timeout_secs: REQUEST_TIMEOUT_S, ..russh_sftp::client::Config::default() };
        let raw = Arc::new(RawSftpSession::new_with_config(pipe, config));
        let greeting = greet(raw.clone(), ended).boxed().shared();
        let sftp = Self { raw, pieces, greeting, handles: Mutex::new(Handles::None) };
        // Looked for once, which sends it.
        sftp.known();
        sftp
    }

    /// Waits for what the server says of itself.
    pub(super) async fn server(&self) -> Greeting {
        self.greeting.clone().await
    }

    /// The same if it was heard already.
    pub(super) fn known(&self) -> Option<Greeting> {
        // Whether or not this task has done much already: all that is sent goes behind the greeting.
        tokio::task::unconstrained(self.greeting.clone()).now_or_never()
    }

    /// Returns when it turns out that there is no server, or when it has said nothing in this time. The library may miss an end that
    /// comes just before a request, and would wait out its time.
    pub(super) async fn absent(&self, patience: Duration) -> NoServer {
        match tokio::time::timeout(patience, self.server()).await {
            Ok(Ok(_)) => std::future::pending().await,
            Ok(Err(why)) => why,
            Err(_) => {
                // Its place is free then.
                let _ = self.raw.close_session();
                NoServer::Strange
            }
        }
    }

    /// Whether that is known.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self.known(), Some(Err(_)))
    }

    /// Bytes per write: what every server takes, until this one has said more.
    pub(super) fn write_size(&self) -> usize {
        self.known().and_then(Result::ok).map_or(SAFE_WRITE, |server| server.write)
    }

    /// Whether no file is open on it, and never was more than one at once.
    pub(super) fn is_unused(&self) -> bool {
        *self.handles() == Handles::None
    }

    /// Lets `send` send a request to open one file, if the channel is unused. Nobody comes between.
    pub(super) fn open_first<T>(&self, send: impl FnOnce() -> T) -> Option<T> {
        let mut handles = self.handles();
        if *handles != Handles::None {
            return None;
        }
        *handles = Handles::One;
        Some(send())
    }

    /// The file that was opened by `open_first` is closed: the host said so.
    pub(super) fn closed_first(&self) {
        let mut handles = self.handles();
        if *handles == Handles::One {
            *handles = Handles::None;
        }
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the host to write `piece` where it is in its file. That is asked when this returns, and its bytes are read when they can go.
    pub(super) fn write<'s>(&'s self, handle: &'s str, piece: Piece) -> BoxFuture<'s, Result<Status, SftpError>> {
        let mut written = self.raw.write(handle, piece.at, Vec::new()).boxed();
        let mut pieces = self.pieces.lock();
        pieces.push_back(piece);
        // The library sends a request, into a queue without bounds, when it is first polled.
        match written.poll_unpin(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => written,
            Poll::Ready(result) => {
                pieces.pop_back();
                std::future::ready(result).boxed()
            }
        }
    }

    /// Sends a change of a file's size or permissions and waits for the answer.
    pub(super) async fn change(&self, handle: &str, size: Option<u64>, mode: Option<u32>) -> Result<(), SftpError> {
        let attributes = FileAttributes { size, permissions: mode, ..FileAttributes::empty() };
        self.raw.fsetstat(handle, attributes).await.map(|_| ())
    }

    /// Takes away what stands at `remote` and makes a file of our own there. One flight.
    pub(super) async fn replace(&self, remote: &str) -> Result<String, SftpError> {
        let flags = OpenFlags::CREATE | OpenFlags::EXCLUDE | OpenFlags::WRITE;
        let (_, handle) = futures::join!(self.raw.remove(remote), self.raw.open(remote, flags, private()));
        Ok(handle?.handle)
    }

    /// sftp says only "Failure" for a full disk: the file system is asked for the cause.
    pub(super) async fn explain(&self, connection: &Connection, remote: &str, error: &SftpError) -> TransportError {
        if let Some(reason) = connection.lost() {
            return TransportError::Disconnected { reason };
        }
        self.raw.set_timeout(SMALL_TIMEOUT_S);
        connection.round_trips.count();
        let reason = self.file_system(remote).await.unwrap_or_else(|| plain(error));
        self.raw.set_timeout(REQUEST_TIMEOUT_S);
        TransportError::Upload { path: remote.to_owned(), reason }
    }

    /// What is wrong with the file system that `remote` would be on, if anything.
    async fn file_system(&self, remote: &str) -> Option<String> {
        let top = if remote.starts_with('/') { "/" } else { "." };
        let parents = parents(remote).into_iter().rev().chain([top]);
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

async fn greet(raw: Arc<RawSftpSession>, ended: oneshot::Receiver<bool>) -> Greeting {
    let greeting = greeted(&raw, ended).await;
    if greeting.is_err() {
        // Nobody uses the channel any more: its place is free then.
        let _ = raw.close_session();
    }
    greeting
}

async fn greeted(raw: &RawSftpSession, ended: oneshot::Receiver<bool>) -> Greeting {
    // Sent in this order; a server without the extension says so and goes on.
    let (version, limits) = tokio::select! {
        // With the end of a channel its requests fail.
        biased;
        heard = ended => return Err(if heard == Ok(false) { NoServer::Ended } else { NoServer::Strange }),
        both = async { futures::join!(raw.init(), tokio::time::timeout(LIMITS, raw.limits())) } => both,
    };
    let version = version.map_err(|error| {
        tracing::debug!(%error, "no sftp here, uploads go through a shell");
        NoServer::Strange
    })?;
    let allowed = limits.ok().and_then(Result::ok).map(|l| l.max_write_len).filter(|bytes| *bytes > 0);
    Ok(Server {
        write: allowed.map_or(SAFE_WRITE, |bytes| usize::try_from(bytes).unwrap_or(MAX_WRITE).min(MAX_WRITE)),
        copies: version.extensions.contains_key(COPY_DATA),
        openssh: OPENSSH.iter().all(|name| version.extensions.contains_key(*name)),
    })
}

/// The folders above `remote`, the outermost first.
pub(super) fn parents(remote: &str) -> Vec<&str> {
    remote.match_indices('/').map(|(at, _)| &remote[..at]).filter(|p| !p.is_empty()).collect()
}

pub(super) fn private() -> FileAttributes {
    FileAttributes { permissions: Some(0o600), ..FileAttributes::empty() }
}

pub(super) fn private_folder() -> FileAttributes {
    FileAttributes { permissions: Some(0o700), ..FileAttributes::empty() }
}

/// Makes `folders` and opens `remote` in one flight: the server works in order, and a folder that exists is no error.
///
/// Opened twice: as a new file, which follows no symbolic link, and as one that exists, which neither makes nor empties anything.
/// So nothing has happened yet when the answers tell what stood there.
pub(super) async fn create(sftp: &Sftp, folders: &[&str], remote: &str) -> Result<Opened, SftpError> {
    // Before anything is sent.
    *sftp.handles() = Handles::Several;
    let raw = &sftp.raw;
    let made = folders.iter().map(|p| raw.mkdir(*p, private_folder()));
    let (_, there, new, old) = futures::join!(
        futures::future::join_all(made),
        raw.lstat(remote),
        raw.open(remote, OpenFlags::CREATE | OpenFlags::EXCLUDE | OpenFlags::WRITE, private()),
        raw.open(remote, OpenFlags::WRITE, FileAttributes::empty()),
    );
    match (new, old) {
        (Ok(new), old) => {
            if let Ok(old) = old {
                forget(raw, &old.handle);
            }
            Ok(Opened { handle: new.handle, found: Found::Nothing })
        }
        (Err(_), Ok(old)) => {
            let found = match there {
                Ok(there) => found(&there.attrs),
                // Made since by another channel of the same upload, as a new file.
                Err(SftpError::Status(status)) if status.status_code == StatusCode::NoSuchFile => Found::Nothing,
                Err(_) => Found::Other,
            };
            Ok(Opened { handle: old.handle, found })
        }
        (Err(new), Err(old)) => {
            let there = there.ok().map(|there| found(&there.attrs));
            match there {
                // One that points nowhere.
                Some(Found::Link) => Ok(Opened { handle: String::new(), found: Found::Link }),
                Some(_) => Err(old),
                None => Err(new),
            }
        }
    }
}

pub(super) fn found(attributes: &FileAttributes) -> Found {
    match (attributes.permissions, attributes.size) {
        (Some(mode), Some(size)) if mode & KIND == REGULAR => Found::File { size, mode: mode & 0o7777 },
        (Some(mode), _) if mode & KIND == SYMLINK => Found::Link,
        _ => Found::Other,
    }
}

/// Sends a MKDIR that nobody waits for: a folder that exists is no error, and one that is missing shows in what follows.
pub(super) fn make(raw: &RawSftpSession, folder: &str) {
    let _ = raw.mkdir(folder, private_folder()).now_or_never();
}

/// Sends a CLOSE that nobody waits for.
pub(super) fn forget(raw: &RawSftpSession, handle: &str) {
    // Polled once, which sends it; its answer finds nobody.
    let _ = raw.close(handle).now_or_never();
}

/// The host's answer when the host cannot be asked for more.
pub(super) fn unexplained(connection: &Connection, remote: &str, error: &SftpError) -> TransportError {
    match connection.lost() {
        Some(reason) => TransportError::Disconnected { reason },
        None => TransportError::Upload { path: remote.to_owned(), reason: plain(error) },
    }
}

/// The host's answer for people.
pub(super) fn plain(error: &SftpError) -> String {
    match error {
        SftpError::Status(status) => match status.status_code {
            StatusCode::PermissionDenied => "permission denied".into(),
            StatusCode::NoSuchFile => "its folder cannot be made".into(),
            _ => format!("the host says `{}`", status.error_message),
        },
        other => other.to_string(),
    }
}

/// The channel as a pipe that ends when the server refuses the subsystem: OpenSSH leaves the channel open then, and requests
/// on it would wait for ever. The receiver resolves when it has ended: to whether anything was heard over it. The channel's place is
/// free once the server agreed to its end.
fn carry(channel: Channel<Msg>, place: Place) -> (Pipe, Pieces, oneshot::Receiver<bool>) {
    let (mut half, writer) = channel.split();
    let (pipe, requests, mut answers, pieces) = pipe::pipe();
    let (end, ended) = oneshot::channel();
    tokio::spawn(async move {
        let mut heard = false;
        let receive = async {
            while let Some(message) = half.wait().await {
                match message {
                    ChannelMsg::Data { data } => {
                        heard = true;
                        if answers.write_all(&data).await.is_err() {
                            break;
                        }
                    }
                    ChannelMsg::Success | ChannelMsg::WindowAdjusted { .. } | ChannelMsg::ExtendedData { .. } => {}
                    _ => break,
                }
            }
        };
        tokio::select! {
            _ = send(&writer, requests) => {}
            () = receive => {}
        }
        // Nobody may be left to tell.
        let _ = end.send(heard);
        drop(answers);
        // Closed already, or nobody is left to tell.
        if writer.close().await.is_ok() {
            let _ = tokio::time::timeout(CLOSING, async { while half.wait().await.is_some() {} }).await;
        }
        drop(place);
    });
    (pipe, pieces, ended)
}

/// Sends requests, and what goes with them, until there are no more or the channel is gone.
async fn send(writer: &ChannelWriteHalf<Msg>, mut requests: Requests) -> Result<(), russh::Error> {
    while let Some(request) = requests.next().await {
        match request {
            Request::Whole(request) => writer.data_bytes(request).await?,
            Request::Write(head, mut piece) => {
                writer.data_bytes(head).await?;
                while piece.length > 0 {
                    // Returns when the host has a place for them.
                    writer.data_bytes(piece.read(STEP).await).await?;
                }
            }
        }
    }
    Ok(())
}
