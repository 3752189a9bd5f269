//! The further channels of an upload. The host may refuse any of them: then there are fewer.

use super::channel::{self, Found, GREETING, Sftp};
use super::job::{Failure, Job};
use crate::TransportError;
use crate::session::Connection;
use futures::future::{Either, join_all, maybe_done, select};
use futures::poll;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Opens further channels, and keeps those that were opened ahead of an upload.
pub(super) struct Spares {
    connection: Arc<Connection>,
    /// The host has no place left for one.
    refused: AtomicBool,
    /// The host has answered for the first channel.
    first: Arc<AtomicBool>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    opening: Option<JoinHandle<Vec<Sftp>>>,
    ready: Vec<Sftp>,
}

impl Kept {
    /// Waits for those that are being opened. Nothing is lost when it is given up.
    async fn all(&mut self) -> &mut Vec<Sftp> {
        if let Some(opening) = &mut self.opening {
            // One that panicked has none.
            let opened = opening.await.unwrap_or_default();
            self.opening = None;
            self.ready.extend(opened);
        }
        &mut self.ready
    }
}

impl Spares {
    pub(super) fn new(connection: Arc<Connection>, first: Arc<AtomicBool>) -> Self {
        Self { connection, refused: AtomicBool::new(false), first, kept: Mutex::default() }
    }

    /// Opens the first channel and so many more in the background. The first is asked for when this returns: whoever else wants it
    /// then waits for the same one.
    pub(super) async fn prepare(&self, first: impl Future<Output = ()> + Send + 'static, count: usize) {
        let (connection, answered) = (self.connection.clone(), self.first.clone());
        let mut first = Box::pin(maybe_done(first));
        let _ = poll!(&mut first);
        let opening = tokio::spawn(async move {
            let more = pin!(join_all((0..count).map(|_| open(&connection))));
            // All are asked for at once, and answered in this order.
            let (more, first) = match select(first, more).await {
                Either::Left(((), more)) => (more.await, None),
                Either::Right((more, first)) => (more, Some(first)),
            };
            let late = !answered.load(Ordering::Relaxed);
            let mut full = late;
            let mut opened = Vec::new();
            for one in more {
                match one {
                    Ok(sftp) => opened.push(sftp),
                    Err(NotOpened::Here) => {}
                    Err(NotOpened::Refused) => full = true,
                }
            }
            // A host that is full has no place for a command either. And the first is not to wait for a place because others have it.
            opened.truncate(opened.len().saturating_sub(usize::from(full) + usize::from(late)));
            if let Some(first) = first {
                first.await;
            }
            opened
        });
        self.kept.lock().await.opening = Some(opening);
    }

    /// Gives back the places of channels that no upload has used.
    pub(super) fn let_go(&self) {
        self.refused.store(false, Ordering::Relaxed);
        // Else another upload is about to use them.
        if let Ok(mut kept) = self.kept.try_lock() {
            // Those that are just being opened are closed as soon as they are open: the host has to hear of it.
            kept.opening = None;
            kept.ready.clear();
        }
    }

    /// Takes at most so many of them, once all are ready, if that is in time. The others stay for another upload.
    pub(super) async fn ready(&self, most: usize, patience: Duration) -> Vec<Sftp> {
        if most == 0 {
            return Vec::new();
        }
        let take = async {
            let mut kept = self.kept.lock().await;
            let ready = kept.all().await;
            let left = ready.len().saturating_sub(most);
            ready.split_off(left)
        };
        timeout(patience, take).await.unwrap_or_default()
    }

    /// Takes them back.
    pub(super) async fn keep(&self, spares: Vec<Sftp>) {
        if !spares.is_empty() {
            self.kept.lock().await.ready.extend(spares);
        }
    }

    /// Takes part in `job` over one more channel. Ends without failure when there is none to be had: only what goes wrong with
    /// bytes that it has taken fails the upload.
    pub(super) async fn work(&self, job: &Job<'_>, remote: &str, folders: &[&str], under_way: u64) -> Result<(), Failure> {
        let ready = self.kept.lock().await.all().await.pop();
        let ahead = ready.is_some();
        let sftp = match ready {
            Some(ready) => ready,
            None => match open(&self.connection).await {
                Ok(sftp) => sftp,
                Err(NotOpened::Here) => return Ok(()),
                Err(NotOpened::Refused) => {
                    self.refused.store(true, Ordering::Relaxed);
                    return Ok(());
                }
            },
        };
        let opened = async { futures::join!(sftp.server(), channel::create(&sftp, folders, remote)) };
        let opened = tokio::select! {
            (server, opened) = opened => server.is_ok().then_some(opened),
            _ = sftp.absent(GREETING) => None,
        };
        // By now all channels that were asked for at the same time are answered as well. Where the host is full, one goes back, as above.
        let full = || self.refused.swap(false, Ordering::Relaxed) || !self.first.load(Ordering::Relaxed);
        let Some(Ok(opened)) = opened.filter(|_| ahead || !full()) else { return Ok(()) };
        if !job.begun().await || matches!(opened.found, Found::Link | Found::Other) {
            return Ok(());
        }
        job.write(&sftp, &opened.handle, under_way).await
    }
}

/// Why there is not one more channel.
enum NotOpened {
    /// All places are taken on this side.
    Here,
    /// The host said no.
    Refused,
}

async fn open(connection: &Connection) -> Result<Sftp, NotOpened> {
    let refused = |error: TransportError| {
        tracing::debug!(%error, "no further channel");
        NotOpened::Refused
    };
    let (channel, place) = connection.open_spare().await.ok_or(NotOpened::Here)?.map_err(refused)?;
    Sftp::open(channel, place).await.ok_or(NotOpened::Here)
}
