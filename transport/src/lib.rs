//! Sessions to a place: ssh (russh) or the local shell. The only crate that knows SSH.
//!
//! A [`Session`] is an open connection to one place. It runs commands, streams files, reaches ports, and counts its round
//! trips. It knows nothing about services or releases. A non-zero exit status is not an error here: the caller knows what it
//! means.

use async_trait::async_trait;
use bytes::Bytes;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

pub mod embedded;
mod error;
pub mod known_hosts;
mod link;
pub mod local;
mod login;
mod process;
mod prompt;
pub mod session;
mod sftp;
pub mod ssh;
pub mod testing;
pub use error::TransportError;

/// A byte stream to a port of the place, for example for a health probe.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(u32),
    /// By this signal, named without `SIG`.
    Signal(String),
    /// Contact was lost before it was known.
    Lost,
}

/// Something a process wrote, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// On standard output.
    Stdout(Bytes),
    /// On standard error.
    Stderr(Bytes),
    /// It ended; always the last chunk, after all output.
    Exit(Exit),
}

/// A running command with its standard input still open.
#[async_trait]
pub trait Process: Send {
    /// Sends bytes to its standard input; waits only for flow control. What the process says meanwhile is kept for
    /// [`Process::next`]. Fails when the process has ended or reads no more: its exit is the next thing to read.
    async fn write(&mut self, data: Bytes) -> Result<(), TransportError>;
    /// Closes its standard input.
    async fn close_stdin(&mut self) -> Result<(), TransportError>;
    /// The next chunk; after [`Chunk::Exit`] always `None`. Cancel-safe.
    async fn next(&mut self) -> Option<Chunk>;
}

/// What a short command gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output, capped by the caller's limit.
    pub stdout: Vec<u8>,
    /// Standard error, capped likewise.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: Exit,
}

/// Told how many bytes of the file are there so far, those that were there already among them.
pub type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// What an upload took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Bytes of the file that were sent.
    pub bytes: u64,
    /// Bytes of it that were there already, left by an upload that was cut short, and are right.
    pub resumed: u64,
    /// Channels that bytes went over.
    pub channels: usize,
}

/// An open connection to one place.
#[async_trait]
pub trait Session: Send + Sync {
    /// Starts `command` (text for the place's `sh`), no terminal, with pipes.
    async fn start(&self, command: &str) -> Result<Box<dyn Process>, TransportError>;

    /// Runs `command` to its end with `stdin`, keeping at most `limit` bytes of each output (the rest is read and dropped).
    async fn run(&self, command: &str, stdin: Bytes, limit: usize) -> Result<Output, TransportError>;

    /// Readies the session for its next command in the background, where that saves a round trip. Nothing has to come of it.
    fn prepare_command(&self) {}

    /// Whether a command may be of some 30 KB. Dropbear ends the connection over one of 9 KB.
    fn takes_long_commands(&self) -> bool {
        false
    }

    /// Opens what an upload needs ahead of time, so that the first one costs no extra round trip: one channel, or, when it will be
    /// of so many `bytes`, up to four of those that it would use. Errors wait for the upload. What
    /// it does not use it gives back; without one it stays until the session ends.
    async fn prepare_upload(&self, bytes: Option<u64>);

    /// Puts a local file at `remote` (relative to the login user's home, parent folders made with mode 0700), mode 0600. Large
    /// files go over several channels when the host is far away. A symbolic link at `remote` is replaced, not followed.
    ///
    /// What an earlier upload left there is used: the host tells the sha256 of each of its blocks (1 MiB, or a 64th of the file),
    /// and only those that differ are sent. `progress` begins with what was there.
    ///
    /// The bytes are complete when this returns; whether they are durable and right is for the host to check.
    async fn upload(&self, local: &Path, remote: &str, progress: Progress<'_>) -> Result<Sent, TransportError>;

    /// The same for a file of which nothing is there yet, in one round trip where the server allows that. And the host can see when
    /// all of it is there, sooner than this returns: behind its last bytes, each channel that they go over makes a folder
    /// `{mark}.{channels}.{n}`, `n` from 1, without looking at how its writes ended. So `mark` must be new as well, and its
    /// parent that of `remote`.
    ///
    /// A place that does not work like that gets the file as [`Session::upload`] brings it, and no mark.
    ///
    /// # Errors
    /// [`TransportError::NotNew`]: something stood there, or the host did not take all of it. What is there now, and which marks, is
    /// unknown; `upload` makes it right, and says what is wrong with the host.
    async fn upload_new(&self, local: &Path, remote: &str, mark: &str, progress: Progress<'_>) -> Result<Sent, TransportError> {
        let _ = mark;
        self.upload(local, remote, progress).await
    }

    /// Whether the place has an sftp server that copies between its own files (the extension `copy-data`).
    async fn copies_files(&self) -> bool {
        false
    }

    /// Connects to `host:port` as seen from the place (`127.0.0.1` is the place itself).
    async fn forward(&self, host: &str, port: u16) -> Result<Box<dyn Stream>, TransportError>;

    /// How long the host takes to answer at the quickest so far, its own work included: the line's round trip or a little more.
    /// `None` on this machine.
    fn round_trip_time(&self) -> Option<Duration> {
        None
    }

    /// Round trips since login. One is counted when we, having sent something since we last heard, wait and hear: opening a
    /// channel, a command's first word after its start or after a write. Waits for flow control are not counted, nor is what
    /// was heard in the background before anybody waited for it. Always 0 on this machine.
    fn round_trips(&self) -> u64;

    /// Why the session died, once it did.
    fn lost(&self) -> Option<String>;

    /// Says goodbye. Dropping without it is allowed.
    async fn close(&self);
}
