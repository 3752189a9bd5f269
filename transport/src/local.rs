//! The local shell as a session: the same engine works on this very machine.

use crate::process::{self, Buffered, Reader};
use crate::{Chunk, Exit, Output, Process, Progress, Sent, Session, Stream, TransportError};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// A session to this machine.
#[derive(Debug, Clone)]
pub struct LocalSession {
    home: PathBuf,
    env: Vec<(String, String)>,
}

impl LocalSession {
    /// A session whose `HOME` and working directory are `home`.
    pub fn new(home: PathBuf) -> Self {
        Self { home, env: Vec::new() }
    }

    /// Adds environment variables to every command.
    pub fn with_env(mut self, env: Vec<(String, String)>) -> Self {
        self.env = env;
        self
    }

    fn spawn(&self, command: &str) -> Result<(LocalReader, Option<ChildStdin>), TransportError> {
        let child = Command::new("sh")
            .args(["-c", command])
            .current_dir(&self.home)
            .env("HOME", &self.home)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C at the terminal is for roadie to handle, not for what it runs.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = child.map_err(|source| TransportError::Local { what: "cannot start `sh`".into(), source })?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        Ok((LocalReader { child, stdout, stderr, out: BytesMut::new(), err: BytesMut::new(), ended: false }, stdin))
    }
}

/// What a local child process says.
struct LocalReader {
    child: Child,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    out: BytesMut,
    err: BytesMut,
    ended: bool,
}

impl Reader for LocalReader {
    async fn next(&mut self) -> Option<Chunk> {
        loop {
            if self.ended {
                return None;
            }
            if self.stdout.is_none() && self.stderr.is_none() {
                let status = self.child.wait().await;
                self.ended = true;
                return Some(Chunk::Exit(status.map_or(Exit::Lost, exit)));
            }
            let (out, err) = (&mut self.out, &mut self.err);
            out.reserve(READ);
            err.reserve(READ);
            tokio::select! {
                read = read_or_wait(&mut self.stdout, out) => match read {
                    0 => self.stdout = None,
                    _ => return Some(Chunk::Stdout(self.out.split().freeze())),
                },
                read = read_or_wait(&mut self.stderr, err) => match read {
                    0 => self.stderr = None,
                    _ => return Some(Chunk::Stderr(self.err.split().freeze())),
                },
            }
        }
    }
}

impl Drop for LocalReader {
    fn drop(&mut self) {
        // The id is there until the child was waited for, so it cannot be another's by now. What the command put into a session
        // of its own lives on.
        if let Some(group) = self.child.id() {
            kill_group(group);
        }
    }
}

/// Kills a group that one of our children leads.
pub(crate) fn kill_group(group: u32) {
    if let Some(group) = i32::try_from(group).ok().and_then(rustix::process::Pid::from_raw) {
        // Gone already is what we want.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

/// A local child process. Dropping it before its end kills it and all of its process group.
pub struct LocalProcess {
    reader: Buffered<LocalReader>,
    stdin: Option<ChildStdin>,
}

const READ: usize = 64 << 10;

fn gone() -> TransportError {
    TransportError::Disconnected { reason: "the command reads no more input".into() }
}

#[async_trait]
impl Process for LocalProcess {
    async fn write(&mut self, data: Bytes) -> Result<(), TransportError> {
        let stdin = self.stdin.as_mut().ok_or_else(gone)?;
        let send = async { stdin.write_all(&data).await.is_ok() && stdin.flush().await.is_ok() };
        match self.reader.while_sending(send).await {
            Some(true) => Ok(()),
            _ => Err(gone()),
        }
    }

    async fn close_stdin(&mut self) -> Result<(), TransportError> {
        self.stdin = None;
        Ok(())
    }

    async fn next(&mut self) -> Option<Chunk> {
        self.reader.next().await
    }
}

/// Bytes read, 0 at the end; never ready when the pipe is closed already.
async fn read_or_wait<R: tokio::io::AsyncRead + Unpin>(pipe: &mut Option<R>, buffer: &mut BytesMut) -> usize {
    match pipe {
        Some(pipe) => pipe.read_buf(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

fn exit(status: std::process::ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Status(u32::try_from(code).unwrap_or(u32::MAX)),
        (None, Some(signal)) => Exit::Signal(signal_name(signal)),
        (None, None) => Exit::Lost,
    }
}

pub(crate) fn signal_name(signal: i32) -> String {
    match signal {
        1 => "HUP".into(),
        2 => "INT".into(),
        6 => "ABRT".into(),
        9 => "KILL".into(),
        11 => "SEGV".into(),
        13 => "PIPE".into(),
        15 => "TERM".into(),
        other => other.to_string(),
    }
}

#[async_trait]
impl Session for LocalSession {
    async fn start(&self, command: &str) -> Result<Box<dyn Process>, TransportError> {
        let (reader, stdin) = self.spawn(command)?;
        Ok(Box::new(LocalProcess { reader: Buffered::new(reader), stdin }))
    }

    async fn run(&self, command: &str, stdin: Bytes, limit: usize) -> Result<Output, TransportError> {
        let (mut reader, pipe) = self.spawn(command)?;
        let feed = async {
            if let Some(mut pipe) = pipe {
                // A command that reads no more says so by its status.
                let _ = pipe.write_all(&stdin).await;
            }
        };
        Ok(process::run(&mut reader, feed, limit).await)
    }

    async fn prepare_upload(&self, _: Option<u64>) {}

    async fn upload(&self, local: &Path, remote: &str, progress: Progress<'_>) -> Result<Sent, TransportError> {
        let target = self.home.join(remote);
        let failed = |e: std::io::Error| TransportError::Upload { path: remote.to_owned(), reason: e.to_string() };
        let mut from = tokio::fs::File::open(local)
            .await
            .map_err(|source| TransportError::Local { what: format!("cannot read `{}`", local.display()), source })?;
        let folder = target.parent().unwrap_or(&self.home);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        // Mode 0600, and removed again if anything below fails.
        let part = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        let mut to = tokio::fs::File::from_std(part.reopen().map_err(failed)?);
        let bytes = tokio::io::copy(&mut from, &mut to).await.map_err(failed)?;
        to.flush().await.map_err(failed)?;
        part.persist(&target).map_err(|e| failed(e.error))?;
        progress(bytes);
        Ok(Sent { bytes, ..Sent::default() })
    }

    async fn forward(&self, host: &str, port: u16) -> Result<Box<dyn Stream>, TransportError> {
        match tokio::net::TcpStream::connect((host, port)).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(e) => Err(TransportError::PortClosed { port, reason: e.to_string() }),
        }
    }

    fn round_trips(&self) -> u64 {
        0
    }

    fn lost(&self) -> Option<String> {
        None
    }

    async fn close(&self) {}
}
