//! The local shell as a session: the same engine works on this very machine.

use crate::{Chunk, Exit, Output, Process, Progress, Session, Stream, TransportError, process};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
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

    fn spawn(&self, command: &str) -> std::io::Result<Child> {
        Command::new("sh")
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
            .spawn()
    }
}

/// A local child process.
pub struct LocalProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    out: BytesMut,
    err: BytesMut,
    ended: bool,
}

const READ: usize = 64 << 10;

#[async_trait]
impl Process for LocalProcess {
    async fn write(&mut self, data: Bytes) -> Result<(), TransportError> {
        let gone = || TransportError::Disconnected { reason: "the command reads no more input".into() };
        let stdin = self.stdin.as_mut().ok_or_else(gone)?;
        stdin.write_all(&data).await.map_err(|_| gone())?;
        stdin.flush().await.map_err(|_| gone())
    }

    async fn close_stdin(&mut self) -> Result<(), TransportError> {
        self.stdin = None;
        Ok(())
    }

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
        let mut child =
            self.spawn(command).map_err(|source| TransportError::Local { what: "cannot start `sh`".into(), source })?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        Ok(Box::new(LocalProcess { child, stdin, stdout, stderr, out: BytesMut::new(), err: BytesMut::new(), ended: false }))
    }

    async fn run(&self, command: &str, stdin: Bytes, limit: usize) -> Result<Output, TransportError> {
        process::run(self.start(command).await?, stdin, limit).await
    }

    async fn prepare_upload(&self) {}

    async fn upload(&self, local: &Path, remote: &str, progress: Progress<'_>) -> Result<(), TransportError> {
        let target = self.home.join(remote);
        let failed = |e: std::io::Error| TransportError::Upload { path: remote.to_owned(), reason: e.to_string() };
        if let Some(folder) = target.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        }
        let mut from = tokio::fs::File::open(local)
            .await
            .map_err(|source| TransportError::Local { what: format!("cannot read `{}`", local.display()), source })?;
        let part = target.with_extension("part");
        let to = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part).map_err(failed)?;
        let mut to = tokio::fs::File::from_std(to);
        let bytes = tokio::io::copy(&mut from, &mut to).await.map_err(failed)?;
        to.flush().await.map_err(failed)?;
        std::fs::rename(&part, &target).map_err(failed)?;
        progress(bytes);
        Ok(())
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
