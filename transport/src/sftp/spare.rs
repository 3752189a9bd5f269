//! The further channels of an upload. The host may refuse any of them: then there are fewer.

use super::channel::{self, Found, Sftp};
use super::job::{Failure, Job};
use crate::session::{Connection, Place};
use russh::Channel;
use russh::client::Msg;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

/// Opens further channels, and keeps those that were opened ahead of an upload.
pub(super) struct Spares {
    connection: Arc<Connection>,
    /// The host has no place left for one.
    refused: Arc<AtomicBool>,
    /// Answers heard over the first channel.
    first: Arc<AtomicU64>,
    ready: Mutex<Vec<JoinHandle<Option<Sftp>>>>,
}

impl Spares {
    pub(super) fn new(connection: Arc<Connection>, first: Arc<AtomicU64>) -> Self {
        Self { connection, refused: Arc::default(), first, ready: Mutex::default() }
    }

    /// Opens so many in the background.
    pub(super) fn prepare(&self, count: usize) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.extend((0..count).map(|_| {
            let (connection, refused) = (self.connection.clone(), self.refused.clone());
            tokio::spawn(async move { open(&connection, &refused).await })
        }));
    }

    /// Whether one more goes back: a host that is full has no place for a command either. And the first channel is not to wait for a
    /// place because others have it.
    fn is_full(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed) || self.first.load(Ordering::Relaxed) == 0
    }

    /// Gives back the places of channels that no upload has used.
    pub(super) fn let_go(&self) {
        for unused in self.ready.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            unused.abort();
        }
    }

    /// Those of them that can be used, at most so many, once all are ready or this time is over. The others stay for another upload.
    pub(super) async fn ready(&self, most: usize, patience: Duration) -> Vec<Sftp> {
        let deadline = Instant::now() + patience;
        let mut asked = {
            let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = ready.len().saturating_sub(most);
            ready.split_off(kept)
        };
        let mut spares = Vec::new();
        let mut late = Vec::new();
        for mut opening in asked.drain(..) {
            match timeout_at(deadline.into(), &mut opening).await {
                Ok(opened) => spares.extend(opened.ok().flatten()),
                Err(_) => late.push(opening),
            }
        }
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).extend(late);
        // All were asked for at once, so all answers are here by now.
        spares.retain(|_| !self.is_full());
        spares
    }

    /// Takes part in `job` over one more channel. Ends without failure when there is none to be had: only what goes wrong with
    /// bytes that it has taken fails the upload.
    pub(super) async fn work(&self, job: &Job<'_>, remote: &str, folders: &[&str], under_way: u64) -> Result<(), Failure> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let opened = match ready {
            Some(ready) => ready.await.ok().flatten(),
            None => open(&self.connection, &self.refused).await,
        };
        let Some(sftp) = opened else { return Ok(()) };
        let opened = tokio::select! {
            // Behind the first answer, by when all channels that were asked for at the same time are answered as well.
            (server, opened) = async { futures::join!(sftp.server(), channel::create(&sftp, folders, remote)) } => {
                server.is_ok().then_some(opened)
            }
            _ = sftp.absent() => None,
        };
        let Some(Ok(opened)) = opened.filter(|_| !self.is_full()) else { return Ok(()) };
        if !job.begun().await || matches!(opened.found, Found::Link | Found::Other) {
            return Ok(());
        }
        job.write(&sftp, &opened.handle, under_way).await
    }
}

async fn open(connection: &Connection, refused: &AtomicBool) -> Option<Sftp> {
    let (channel, place): (Channel<Msg>, Place) = match connection.open_spare().await? {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(%error, "no further channel");
            refused.store(true, Ordering::Relaxed);
            return None;
        }
    };
    Sftp::open(channel, place).await
}
