//! A TCP relay for tests: it counts, delays, and cuts what goes through it.

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

#[derive(Debug)]
struct Counts {
    up: AtomicU64,
    /// Bytes from clients after which all is cut.
    up_to: AtomicU64,
    down: AtomicU64,
    turns: AtomicU64,
    /// The client sent since the server last did.
    asked: AtomicBool,
}

/// A relay on a loopback port. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    counts: Arc<Counts>,
    cut: watch::Sender<bool>,
    held: watch::Sender<bool>,
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
        let counts = Arc::new(Counts {
            up: AtomicU64::new(0),
            up_to: AtomicU64::new(u64::MAX),
            down: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            asked: AtomicBool::new(false),
        });
        let (cut, held) = (watch::Sender::new(false), watch::Sender::new(false));
        let accepting = tokio::spawn(accept(listener, to, delay, counts.clone(), cut.clone(), held.clone()));
        Ok(Self { addr, counts, cut, held, accepting })
    }

    /// Where to connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes from clients to the server so far.
    pub fn bytes_up(&self) -> u64 {
        self.counts.up.load(Ordering::Relaxed)
    }

    /// Bytes from the server to clients so far.
    pub fn bytes_down(&self) -> u64 {
        self.counts.down.load(Ordering::Relaxed)
    }

    /// How often the server spoke after a client had: an upper bound for round trips, as several answers to one flight of
    /// requests count once each when requests and answers overlap.
    pub fn turns(&self) -> u64 {
        self.counts.turns.load(Ordering::Relaxed)
    }

    /// Cuts all connections once clients have sent so many bytes in all; of the last ones, some may not arrive.
    pub fn cut_after(&self, bytes_up: u64) {
        self.counts.up_to.store(bytes_up, Ordering::Relaxed);
    }

    /// From now on takes what clients send, and hands nothing of it on.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Cuts all connections and takes no new ones, as a pulled cable would if it told.
    pub fn cut(&self) {
        self.cut.send_replace(true);
        self.accepting.abort();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    to: SocketAddr,
    delay: Duration,
    counts: Arc<Counts>,
    cut: watch::Sender<bool>,
    held: watch::Sender<bool>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (counts, cut, mut is_cut, held) = (counts.clone(), cut.clone(), cut.subscribe(), held.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                _ = is_cut.wait_for(|cut| *cut) => {}
                _ = relay(client, to, delay, counts, cut, held) => {}
            }
        });
    }
}

async fn relay(
    client: TcpStream,
    to: SocketAddr,
    delay: Duration,
    counts: Arc<Counts>,
    cut: watch::Sender<bool>,
    held: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let free = watch::Sender::new(false).subscribe();
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = |bytes: u64| {
        let up = counts.up.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if up >= counts.up_to.load(Ordering::Relaxed) {
            cut.send_replace(true);
        }
        counts.asked.store(true, Ordering::Relaxed);
    };
    let down = |bytes: u64| {
        counts.down.fetch_add(bytes, Ordering::Relaxed);
        if counts.asked.swap(false, Ordering::Relaxed) {
            counts.turns.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::try_join!(one_way(from_client, to_server, delay, held, up), one_way(from_server, to_client, delay, free, down))?;
    Ok(())
}

/// Chunks under way at most: enough for any link a test imagines.
const UNDER_WAY: usize = 4096;

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    mut held: watch::Receiver<bool>,
    count: impl Fn(u64),
) -> std::io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(UNDER_WAY);
    let read = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(64 << 10);
            let bytes = from.read_buf(&mut buffer).await?;
            count(bytes as u64);
            if bytes == 0 || sender.send((Instant::now() + delay, buffer.split().freeze())).await.is_err() {
                return std::io::Result::Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, data)) = receiver.recv().await {
            sleep_until(due).await;
            // Or nobody is there any more who could say so.
            drop(held.wait_for(|held| !held).await);
            to.write_all(&data).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write)?;
    Ok(())
}
