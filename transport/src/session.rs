//! An ssh connection as a [`Session`]: commands, forwarding, and the count of round trips.

use crate::sftp::Uploader;
use crate::ssh::{Client, LostReason};
use crate::{Chunk, Exit, Output, Process, Progress, Session, Stream, TransportError, process};
use async_trait::async_trait;
use bytes::Bytes;
use russh::client::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, Disconnect};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// sshd's `MaxSessions` is 10 by default; two are kept for what others do on the connection.
const MAX_CHANNELS: usize = 8;

/// Counts exchanges in which we sent something and then had to wait to hear.
#[derive(Debug, Clone, Default)]
pub(crate) struct RoundTrips(Arc<AtomicU64>);

impl RoundTrips {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An open ssh connection.
pub struct SshSession {
    handle: Handle<Client>,
    lost: LostReason,
    channels: Arc<Semaphore>,
    round_trips: RoundTrips,
    uploader: Uploader,
}

impl SshSession {
    pub(crate) fn new(handle: Handle<Client>, lost: LostReason) -> Self {
        let round_trips = RoundTrips::default();
        Self {
            handle,
            lost,
            channels: Arc::new(Semaphore::new(MAX_CHANNELS)),
            uploader: Uploader::new(round_trips.clone()),
            round_trips,
        }
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, TransportError> {
        self.channels.clone().acquire_owned().await.map_err(|_| self.dead(&russh::Error::Disconnect))
    }

    /// Opens a session channel; does not count: some are opened beside other work.
    pub(crate) async fn open(&self) -> Result<(Channel<Msg>, OwnedSemaphorePermit), TransportError> {
        let permit = self.permit().await?;
        let channel = self.handle.channel_open_session().await.map_err(|e| self.dead(&e))?;
        Ok((channel, permit))
    }

    pub(crate) fn dead(&self, error: &russh::Error) -> TransportError {
        match error {
            russh::Error::ChannelOpenFailure(reason) => {
                TransportError::Refusal { what: "a session channel".into(), reason: format!("{reason:?}") }
            }
            _ => TransportError::Disconnected { reason: self.lost().unwrap_or_else(|| error.to_string()) },
        }
    }
}

#[async_trait]
impl Session for SshSession {
    async fn start(&self, command: &str) -> Result<Box<dyn Process>, TransportError> {
        let (channel, permit) = self.open().await?;
        self.round_trips.count();
        // No reply is waited for: a refused exec shows as a closed channel.
        channel.exec(false, command).await.map_err(|e| self.dead(&e))?;
        Ok(Box::new(SshProcess {
            channel,
            exit: None,
            ended: false,
            sent: true,
            round_trips: self.round_trips.clone(),
            _permit: permit,
        }))
    }

    async fn run(&self, command: &str, stdin: Bytes, limit: usize) -> Result<Output, TransportError> {
        process::run(self.start(command).await?, stdin, limit).await
    }

    async fn prepare_upload(&self) {
        self.uploader.prepare(self).await;
    }

    async fn upload(&self, local: &Path, remote: &str, progress: Progress<'_>) -> Result<(), TransportError> {
        self.uploader.upload(self, local, remote, progress).await
    }

    async fn forward(&self, host: &str, port: u16) -> Result<Box<dyn Stream>, TransportError> {
        let permit = self.permit().await?;
        self.round_trips.count();
        let opened = self.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0).await;
        match opened {
            Ok(channel) => Ok(Box::new(CountedStream {
                inner: channel.into_stream(),
                sent: AtomicBool::new(false),
                round_trips: self.round_trips.clone(),
                _permit: permit,
            })),
            Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed)) => {
                Err(TransportError::PortClosed { port, reason: "connection refused".into() })
            }
            Err(russh::Error::ChannelOpenFailure(reason)) => {
                Err(TransportError::Refusal { what: "to forward a port".into(), reason: format!("{reason:?}") })
            }
            Err(error) => Err(self.dead(&error)),
        }
    }

    fn round_trips(&self) -> u64 {
        self.round_trips.0.load(Ordering::Relaxed)
    }

    fn lost(&self) -> Option<String> {
        let reason = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        reason.or_else(|| self.handle.is_closed().then(|| "the connection is closed".to_owned()))
    }

    async fn close(&self) {
        // The other side may be gone; there is nothing to do about it then.
        let _ = self.handle.disconnect(Disconnect::ByApplication, "", "en").await;
    }
}

/// A command on an ssh channel.
pub struct SshProcess {
    channel: Channel<Msg>,
    exit: Option<Exit>,
    ended: bool,
    /// Something was sent since we last heard.
    sent: bool,
    round_trips: RoundTrips,
    _permit: OwnedSemaphorePermit,
}

impl SshProcess {
    fn heard(&mut self) {
        if std::mem::take(&mut self.sent) {
            self.round_trips.count();
        }
    }
}

#[async_trait]
impl Process for SshProcess {
    async fn write(&mut self, data: Bytes) -> Result<(), TransportError> {
        self.sent = true;
        self.channel.data_bytes(data).await.map_err(|e| TransportError::Disconnected { reason: e.to_string() })
    }

    async fn close_stdin(&mut self) -> Result<(), TransportError> {
        self.channel.eof().await.map_err(|e| TransportError::Disconnected { reason: e.to_string() })
    }

    async fn next(&mut self) -> Option<Chunk> {
        while !self.ended {
            match self.channel.wait().await {
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
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    self.exit = Some(Exit::Signal(format!("{signal_name:?}")));
                }
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

/// A forwarded stream that counts its round trips.
struct CountedStream<S> {
    inner: S,
    sent: AtomicBool,
    round_trips: RoundTrips,
    _permit: OwnedSemaphorePermit,
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
