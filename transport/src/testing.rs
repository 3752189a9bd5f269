//! A TCP relay for tests: it counts, delays, holds up and cuts what goes through it.

use bytes::{Bytes, BytesMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Chunks under way at most: enough for any link a test imagines.
const UNDER_WAY: usize = 4096;

/// From clients to the server, or back.
#[derive(Debug, Clone, Copy)]
enum Way {
    Up,
    Down,
}

/// What all connections through a relay have in common.
#[derive(Debug)]
struct Line {
    to: SocketAddr,
    delay: Duration,
    up: AtomicU64,
    /// Bytes from clients after which all is cut.
    up_to: AtomicU64,
    down: AtomicU64,
    turns: AtomicU64,
    /// The client sent since the server last did.
    asked: AtomicBool,
    cut: watch::Sender<bool>,
    /// Nothing from clients is handed on.
    held: watch::Sender<bool>,
}

/// A relay on a loopback port. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    line: Arc<Line>,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// Relays to `to`; every byte arrives `delay` later than without it, each way, at any rate.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(to: SocketAddr, delay: Duration) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let line = Arc::new(Line {
            to,
            delay,
            up: AtomicU64::new(0),
            up_to: AtomicU64::new(u64::MAX),
            down: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            cut: watch::Sender::new(false),
            held: watch::Sender::new(false),
        });
        let accepting = tokio::spawn(accept(listener, line.clone()));
        Ok(Self { addr, line, accepting })
    }

    /// Where to connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes from clients to the server so far.
    pub fn bytes_up(&self) -> u64 {
        self.line.up.load(Ordering::Relaxed)
    }

    /// Bytes from the server to clients so far.
    pub fn bytes_down(&self) -> u64 {
        self.line.down.load(Ordering::Relaxed)
    }

    /// How often the server spoke after a client had: an upper bound for round trips, as several answers to one flight of
    /// requests count once each when requests and answers overlap.
    pub fn turns(&self) -> u64 {
        self.line.turns.load(Ordering::Relaxed)
    }

    /// Cuts all connections once clients have sent so many bytes in all; of the last ones, some may not arrive.
    pub fn cut_after(&self, bytes_up: u64) {
        self.line.up_to.store(bytes_up, Ordering::Relaxed);
    }

    /// From now on takes what clients send and hands nothing of it on, or does again.
    pub fn hold(&self, held: bool) {
        self.line.held.send_replace(held);
    }

    /// Cuts all connections and takes no new ones, as a pulled cable would if it told.
    pub fn cut(&self) {
        self.line.cut.send_replace(true);
        self.accepting.abort();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Line {
    /// So many bytes were taken.
    fn took(&self, way: Way, bytes: u64) {
        match way {
            Way::Up => {
                let up = self.up.fetch_add(bytes, Ordering::Relaxed) + bytes;
                if up >= self.up_to.load(Ordering::Relaxed) {
                    self.cut.send_replace(true);
                }
                self.asked.store(true, Ordering::Relaxed);
            }
            Way::Down => {
                self.down.fetch_add(bytes, Ordering::Relaxed);
                if self.asked.swap(false, Ordering::Relaxed) {
                    self.turns.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    async fn relay(&self, client: TcpStream) -> std::io::Result<()> {
        let server = TcpStream::connect(self.to).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::try_join!(self.carry(Way::Up, from_client, to_server), self.carry(Way::Down, from_server, to_client))?;
        Ok(())
    }

    async fn carry(&self, way: Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> std::io::Result<()> {
        let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(UNDER_WAY);
        let read = async move {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(64 << 10);
                let bytes = from.read_buf(&mut buffer).await?;
                self.took(way, bytes as u64);
                if bytes == 0 || sender.send((Instant::now() + self.delay, buffer.split().freeze())).await.is_err() {
                    return std::io::Result::Ok(());
                }
            }
        };
        let write = async move {
            while let Some((due, data)) = receiver.recv().await {
                sleep_until(due).await;
                if let Way::Up = way {
                    // The sender lives as long as we.
                    let _ = self.held.subscribe().wait_for(|held| !held).await;
                }
                to.write_all(&data).await?;
            }
            to.shutdown().await
        };
        tokio::try_join!(read, write)?;
        Ok(())
    }
}

async fn accept(listener: TcpListener, line: Arc<Line>) {
    while let Ok((client, _)) = listener.accept().await {
        let (line, mut cut) = (line.clone(), line.cut.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                _ = cut.wait_for(|cut| *cut) => {}
                _ = line.relay(client) => {}
            }
        });
    }
}
