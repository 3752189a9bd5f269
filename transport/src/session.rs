//! An ssh connection as a [`Session`]: commands, forwarding, and the count of round trips.
//!
//! **A round trip** is counted when we, having sent something since we last heard, wait and hear. So opening a channel is one;
//! starting a command is that one only, for nobody waits for the answer to `exec`; what a command says first after its start
//! or after a write is one; a write that waits for flow control is none. What runs beside other work counts when it is waited
//! for. An upload is two, of a new file one, over however many channels it goes: what they open beside the first is nothing more to wait for.

use crate::link::Link;
use crate::process::{self, Buffered, Reader};
use crate::sftp::Uploader;
use crate::ssh::{Client, LostReason};
use crate::{Chunk, Exit, Output, Process, Progress, Sent, Session, Stream, TransportError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use roadie_model::sh::quote;
use russh::client::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Disconnect, Sig};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

/// sshd's `MaxSessions` is 10 by default.
const MAX_CHANNELS: usize = 10;
/// Of these for commands: sshd counts one until it has reaped it, which may be later than we heard of its end.
const MAX_COMMANDS: usize = 8;
/// Left for commands by what an upload could do without.
const KEPT_FREE: usize = 1;
/// How often, and after which pause, a session channel that sshd has no place for is asked for again.
const REOPENS: u32 = 20;
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked whether the connection is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long a channel that we close early may hold its place: a server with a command that still runs does not answer.
pub(crate) const CLOSING: Duration = Duration::from_secs(5);

/// Counts exchanges in which we sent something and then had to wait to hear.
#[derive(Debug, Clone, Default)]
pub(crate) struct RoundTrips(Arc<AtomicU64>);

impl RoundTrips {
    pub(crate) fn count(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, trips: u64) {
        self.0.fetch_add(trips, Ordering::Relaxed);
    }
}

/// The right to one channel, while it is open.
pub(crate) struct Place {
    _command: Option<OwnedSemaphorePermit>,
    _channel: OwnedSemaphorePermit,
}

/// An open channel, and its right to be.
type Placed = (Channel<Msg>, Place);

/// What the session shares with its background work.
pub(crate) struct Connection {
    handle: Handle<Client>,
    lost: LostReason,
    channels: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    /// A channel for the next command, opened ahead of it.
    ahead: Mutex<Option<JoinHandle<Option<Placed>>>>,
    /// One that was opened ahead was used.
    began: AtomicBool,
    pub(crate) link: Link,
    pub(crate) round_trips: RoundTrips,
}

impl Connection {
    /// Opens a session channel; does not count: some are opened beside other work.
    pub(crate) async fn open(&self) -> Result<Placed, TransportError> {
        let gone = |_| self.dead(&russh::Error::Disconnect);
        let command = self.commands.clone().acquire_owned().await.map_err(gone)?;
        let channel = self.channels.clone().acquire_owned().await.map_err(gone)?;
        let place = Place { _command: Some(command), _channel: channel };
        let mut tries = 0;
        loop {
            match self.open_session().await {
                Ok(channel) => return Ok((channel, place)),
                // sshd counts a command as open until it has reaped it, which may be later than we heard of its end.
                Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed)) if tries < REOPENS => {
                    tries += 1;
                    tokio::time::sleep(REOPEN_PAUSE).await;
                }
                Err(error) => return Err(self.dead(&error)),
            }
        }
    }

    /// Opens a session channel that nothing depends on: only where there is a place for it, here at once (`None` else), and on
    /// the host at the first try.
    pub(crate) async fn open_spare(&self) -> Option<Result<Placed, TransportError>> {
        if self.channels.available_permits() <= KEPT_FREE {
            return None;
        }
        let place = Place { _command: None, _channel: self.channels.clone().try_acquire_owned().ok()? };
        Some(self.open_session().await.map(|channel| (channel, place)).map_err(|e| self.dead(&e)))
    }

    /// Opens a channel ahead of the next command, unless that was done.
    fn prepare_command(self: &Arc<Self>) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.is_none() {
            let connection = self.clone();
            *ahead = Some(tokio::spawn(async move {
                let command = connection.commands.clone().try_acquire_owned().ok()?;
                let (channel, place) = connection.open_spare().await?.ok()?;
                Some((channel, Place { _command: Some(command), ..place }))
            }));
        }
    }

    /// The channel that was opened ahead, if it is still good. Counts what has to be waited for; the first of a session always
    /// is, for it was asked for right behind the login.
    async fn opened_ahead(&self) -> Option<Placed> {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let first = !self.began.swap(true, Ordering::Relaxed);
        let waits = first || !ahead.is_finished();
        let (mut channel, place) = ahead.await.ok()??;
        if waits {
            self.round_trips.count();
        }
        while let Some(message) = channel.wait().now_or_never() {
            if matches!(message, None | Some(ChannelMsg::Close | ChannelMsg::Eof)) {
                // A server may close what is not used. One that is gone need not be told.
                let _ = channel.close().await;
                return None;
            }
        }
        Some((channel, place))
    }

    async fn open_session(&self) -> Result<Channel<Msg>, russh::Error> {
        let begun = Instant::now();
        let opened = self.handle.channel_open_session().await;
        // An answer, and not the news that nobody is there.
        if matches!(opened, Ok(_) | Err(russh::Error::ChannelOpenFailure(_))) {
            self.link.heard(begun, 1);
        }
        opened
    }

    pub(crate) async fn start(&self, command: &str) -> Result<SshProcess, TransportError> {
        let (channel, place) = match self.opened_ahead().await {
            Some(both) => both,
            None => {
                let both = self.open().await?;
                self.round_trips.count();
                both
            }
        };
        let (half, writer) = channel.split();
        let reader = SshReader { half, exit: None, ended: false, sent: true, round_trips: self.round_trips.clone() };
        let open = Open { reader: Buffered::new(reader), writer, _place: place };
        // No reply is waited for: a refused exec shows as a closed channel.
        let sent = open.writer.exec(false, for_any_shell(command)).await;
        let process = SshProcess { open: Some(open) };
        sent.map_err(|e| self.dead(&e))?;
        Ok(process)
    }

    pub(crate) fn lost(&self) -> Option<String> {
        let reason = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        reason.or_else(|| self.handle.is_closed().then(|| "the connection is closed".to_owned()))
    }

    /// Returns when the connection is lost. For requests of the sftp library, which waits out its time for one that was made a
    /// moment after the end.
    pub(crate) async fn gone(&self) -> String {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            if let Some(reason) = self.lost() {
                return reason;
            }
        }
    }

    fn dead(&self, error: &russh::Error) -> TransportError {
        match error {
            russh::Error::ChannelOpenFailure(reason) => {
                TransportError::Refusal { what: "a session channel".into(), reason: said(reason) }
            }
            _ => TransportError::Disconnected { reason: self.lost().unwrap_or_else(|| error.to_string()) },
        }
    }
}

fn said(reason: &ChannelOpenFailure) -> String {
    match reason {
        ChannelOpenFailure::AdministrativelyProhibited => "administratively prohibited".into(),
        ChannelOpenFailure::ResourceShortage => "resource shortage".into(),
        other => format!("{other:?}"),
    }
}

/// An open ssh connection. At most eight commands and ten channels are open on it at once; further ones wait for a place.
///
/// Output must be read: the library stops reading the whole connection when one channel has 1024 unread messages.
pub struct SshSession {
    connection: Arc<Connection>,
    uploader: Uploader,
    is_openssh: bool,
}

impl SshSession {
    pub(crate) fn new(handle: Handle<Client>, lost: LostReason, link: Link, is_openssh: bool) -> Self {
        let (channels, commands) = (Arc::new(Semaphore::new(MAX_CHANNELS)), Arc::new(Semaphore::new(MAX_COMMANDS)));
        let round_trips = RoundTrips::default();
        let (ahead, began) = (Mutex::default(), AtomicBool::new(false));
        let connection = Arc::new(Connection { handle, lost, channels, commands, ahead, began, link, round_trips });
        Self { uploader: Uploader::new(connection.clone()), connection, is_openssh }
    }
}

#[async_trait]
impl Session for SshSession {
    async fn start(&self, command: &str) -> Result<Box<dyn Process>, TransportError> {
        Ok(Box::new(self.connection.start(command).await?))
    }

    async fn run(&self, command: &str, stdin: Bytes, limit: usize) -> Result<Output, TransportError> {
        Ok(self.connection.start(command).await?.run(stdin, limit).await)
    }

    fn prepare_command(&self) {
        self.connection.prepare_command();
    }

    fn takes_long_commands(&self) -> bool {
        self.is_openssh
    }

    async fn prepare_upload(&self, bytes: Option<u64>) {
        self.uploader.prepare(bytes).await;
    }

    async fn upload(&self, local: &Path, remote: &str, progress: Progress<'_>) -> Result<Sent, TransportError> {
        self.uploader.upload(local, remote, progress).await
    }

    async fn upload_new(&self, local: &Path, remote: &str, mark: &str, progress: Progress<'_>) -> Result<Sent, TransportError> {
        if !self.is_openssh {
            return self.uploader.upload(local, remote, progress).await;
        }
        self.uploader.upload_new(local, remote, mark, progress).await
    }

    async fn copies_files(&self) -> bool {
        self.uploader.copies_files().await
    }

    async fn forward(&self, host: &str, port: u16) -> Result<Box<dyn Stream>, TransportError> {
        // Takes no place among the channels: `MaxSessions` counts commands and subsystems only.
        let opened = self.connection.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0).await;
        self.connection.round_trips.count();
        match opened {
            Ok(channel) => Ok(Box::new(CountedStream {
                inner: channel.into_stream(),
                sent: AtomicBool::new(false),
                round_trips: self.connection.round_trips.clone(),
            })),
            Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed)) => {
                Err(TransportError::PortClosed { port, reason: "the connection failed".into() })
            }
            Err(russh::Error::ChannelOpenFailure(reason)) => {
                Err(TransportError::Refusal { what: "to forward a port".into(), reason: said(&reason) })
            }
            Err(error) => Err(self.connection.dead(&error)),
        }
    }

    fn round_trip_time(&self) -> Option<Duration> {
        self.connection.link.round_trip()
    }

    fn round_trips(&self) -> u64 {
        self.connection.round_trips.0.load(Ordering::Relaxed)
    }

    fn lost(&self) -> Option<String> {
        self.connection.lost()
    }

    async fn close(&self) {
        // The other side may be gone; there is nothing to do about it then.
        let _ = self.connection.handle.disconnect(Disconnect::ByApplication, "", "en").await;
    }
}

/// The command line by which any login shell has `sh` carry out `command`. Words of fish and csh end differently where a quoted text
/// holds quotes, newlines or backslashes, so such a text travels as escapes that only printf reads.
fn for_any_shell(command: &str) -> String {
    if !command.contains(['\'', '\n', '\\', '!']) {
        return format!("exec sh -c {}", quote(command));
    }
    let mut text = String::with_capacity(command.len() * 2);
    let mut rest = command;
    // All of one byte each.
    while let Some(at) = rest.bytes().position(|b| matches!(b, b'\'' | b'"' | b'\\' | b'\n' | b'!' | b'$' | b'`' | b'%')) {
        let octal = [6, 3, 0].map(|shift| char::from(b'0' + (rest.as_bytes()[at] >> shift) % 8));
        text.push_str(&rest[..at]);
        text.push_str("\\0");
        text.extend(octal);
        rest = &rest[at + 1..];
    }
    text.push_str(rest);
    format!("exec sh -c 'eval \"$(printf %b \"{text}\")\"'")
}

/// What a command on an ssh channel says.
struct SshReader {
    half: ChannelReadHalf,
    exit: Option<Exit>,
    ended: bool,
    /// Something was sent since we last heard.
    sent: bool,
    round_trips: RoundTrips,
}

impl SshReader {
    fn heard(&mut self) {
        if std::mem::take(&mut self.sent) {
            self.round_trips.count();
        }
    }
}

impl Reader for SshReader {
    async fn next(&mut self) -> Option<Chunk> {
        while !self.ended {
            match self.half.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    self.heard();
                    return Some(Chunk::Stdout(data));
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    self.heard();
                    return Some(Chunk::Stderr(data));
                }
                // Output may still follow the status: the end is the close of the channel.
                Some(ChannelMsg::ExitStatus { exit_status }) => self.exit = Some(Exit::Status(exit_status)),
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => self.exit = Some(Exit::Signal(name(signal_name))),
                Some(ChannelMsg::Close) | None => {
                    self.ended = true;
                    self.heard();
                    return Some(Chunk::Exit(self.exit.take().unwrap_or(Exit::Lost)));
                }
                Some(_) => {}
            }
        }
        None
    }
}

fn name(signal: Sig) -> String {
    match signal {
        Sig::Custom(name) => name,
        known => format!("{known:?}"),
    }
}

/// A channel with a command on it: closed when dropped, and its place is free once the server agreed.
struct Open {
    reader: Buffered<SshReader>,
    writer: ChannelWriteHalf<Msg>,
    _place: Place,
}

/// A command on an ssh channel.
pub struct SshProcess {
    /// `Some` until dropped.
    open: Option<Open>,
}

impl SshProcess {
    pub(crate) async fn run(mut self, stdin: Bytes, limit: usize) -> Output {
        let Some(open) = &mut self.open else { return Output { stdout: vec![], stderr: vec![], exit: Exit::Lost } };
        let writer = &open.writer;
        let feed = async {
            if writer.data_bytes(stdin).await.is_ok() {
                // Fails only when the command has ended, which is about to be heard.
                let _ = writer.eof().await;
            }
        };
        process::run(&mut open.reader, feed, limit).await
    }
}

fn ended() -> TransportError {
    TransportError::Disconnected { reason: "the command has ended".into() }
}

#[async_trait]
impl Process for SshProcess {
    async fn write(&mut self, data: Bytes) -> Result<(), TransportError> {
        let open = self.open.as_mut().ok_or_else(ended)?;
        // What is heard while we send is no answer to it.
        open.reader.reader.sent = false;
        let sent = open.reader.while_sending(open.writer.data_bytes(data)).await;
        open.reader.reader.sent = true;
        sent.and_then(Result::ok).ok_or_else(ended)
    }

    async fn close_stdin(&mut self) -> Result<(), TransportError> {
        let open = self.open.as_mut().ok_or_else(ended)?;
        open.reader.reader.sent = true;
        open.writer.eof().await.map_err(|_| ended())
    }

    async fn next(&mut self) -> Option<Chunk> {
        self.open.as_mut()?.reader.next().await
    }
}

impl Drop for SshProcess {
    fn drop(&mut self) {
        let Some(mut open) = self.open.take().filter(|open| !open.reader.reader.ended) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if open.writer.close().await.is_ok() {
                let _ = tokio::time::timeout(CLOSING, async { while open.reader.next().await.is_some() {} }).await;
            }
        });
    }
}

/// A forwarded stream that counts its round trips.
struct CountedStream<S> {
    inner: S,
    sent: AtomicBool,
    round_trips: RoundTrips,
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        if result.is_ready() && self.sent.swap(false, Ordering::Relaxed) {
            self.round_trips.count();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        self.sent.store(true, Ordering::Relaxed);
        Pin::new(&mut self.inner).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::for_any_shell;
    use std::process::Command;

    #[test]
    fn any_text_survives_any_login_shell() {
        let hostile = "printf '%s|' 'it'\\''s' \"q\" \\\\ '!x' '`id`' '$HOME' '100%' '%s\\n' 'ü'\nprintf '%s' 'second line'";
        let expected = Command::new("sh").args(["-c", hostile]).output().unwrap_or_else(|e| panic!("{e}")).stdout;
        assert!(expected.ends_with(b"|second line"), "{}", String::from_utf8_lossy(&expected));
        for shell in ["sh", "dash", "bash", "fish", "tcsh"] {
            // Those that are here.
            let Ok(output) = Command::new(shell).args(["-c", &for_any_shell(hostile)]).output() else { continue };
            assert_eq!(String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&expected), "{shell}");
        }
        assert_eq!(for_any_shell("true"), "exec sh -c true");
    }
}
