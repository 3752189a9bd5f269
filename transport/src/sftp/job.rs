//! One upload: what is still to be sent, taken piece by piece by as many channels as there are.

use super::channel::Sftp;
use super::source::Source;
use crate::{Progress, Sent, TransportError};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::rawsession::RawSftpSession;
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use tokio::sync::watch;

/// What ends an upload.
pub(super) enum Failure {
    /// Something on this side, told as it is.
    Here(TransportError),
    /// The host's answer, to be explained.
    There(SftpError),
    /// The host has no sftp.
    NoSftp,
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        Self::Here(error)
    }
}

impl From<SftpError> for Failure {
    fn from(error: SftpError) -> Self {
        Self::There(error)
    }
}

/// What the channels wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody knows yet what is to be sent.
    Looking,
    /// Everybody may take pieces.
    Sending,
    /// Only the first channel may.
    Alone,
}

/// The state of one upload. All its channels are driven by one task.
pub(super) struct Job<'a> {
    pub(super) source: &'a Source,
    progress: Progress<'a>,
    phase: watch::Sender<Phase>,
    /// Byte ranges that nobody has taken yet.
    left: Mutex<VecDeque<Range<u64>>>,
    resumed: AtomicU64,
    /// Bytes that the host has confirmed.
    sent: AtomicU64,
    /// Channels that have taken something.
    channels: AtomicUsize,
    /// Channels that have something under way.
    busy: AtomicUsize,
}

impl<'a> Job<'a> {
    pub(super) fn new(source: &'a Source, progress: Progress<'a>) -> Self {
        Self {
            source,
            progress,
            phase: watch::Sender::new(Phase::Looking),
            left: Mutex::default(),
            resumed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            channels: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
        }
    }

    /// Drives `first`, and `others` beside it. Those that are not ready in time for any of the work are dropped: nothing waits
    /// for them.
    pub(super) async fn run<F>(
        &self,
        first: impl Future<Output = Result<(), Failure>>,
        others: impl Iterator<Item = F>,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let mut others: FuturesUnordered<F> = others.collect();
        let mut first = pin!(first);
        let mut waits = true;
        while waits || self.busy.load(Ordering::Relaxed) > 0 {
            tokio::select! {
                // The first asks for its channel first: the host may have no place for more.
                biased;
                result = &mut first, if waits => {
                    waits = false;
                    result?;
                }
                Some(result) = others.next() => result?,
                else => break,
            }
        }
        Ok(())
    }

    /// Says what is to be sent; all else of the file is there.
    pub(super) fn begin(&self, ranges: Vec<Range<u64>>) {
        let missing: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        let resumed = self.source.size() - missing;
        self.resumed.store(resumed, Ordering::Relaxed);
        if resumed > 0 {
            tracing::debug!(resumed, missing, "upload goes on with what is there");
            (self.progress)(resumed);
        }
        *self.ranges() = ranges.into_iter().filter(|r| !r.is_empty()).collect();
        self.phase.send_if_modified(|phase| {
            let looking = *phase == Phase::Looking;
            if looking {
                *phase = Phase::Sending;
            }
            looking
        });
    }

    /// From now on only the first channel works.
    pub(super) fn go_alone(&self) {
        self.phase.send_replace(Phase::Alone);
    }

    /// Whether a further channel may take pieces; waits until that is known.
    pub(super) async fn begun(&self) -> bool {
        let mut phase = self.phase.subscribe();
        let told = phase.wait_for(|phase| *phase != Phase::Looking).await;
        told.is_ok_and(|phase| *phase == Phase::Sending)
    }

    /// What became of it.
    pub(super) fn sent(&self) -> Sent {
        Sent {
            bytes: self.sent.load(Ordering::Relaxed),
            resumed: self.resumed.load(Ordering::Relaxed),
            channels: self.channels.load(Ordering::Relaxed),
        }
    }

    /// The next piece, of at most so many bytes: where it begins, and its length.
    fn take(&self, most: usize) -> Option<(u64, usize)> {
        let mut left = self.ranges();
        let range = left.front_mut()?;
        let at = range.start;
        let length = usize::try_from(range.end - at).unwrap_or(most).min(most);
        range.start += length as u64;
        if range.is_empty() {
            left.pop_front();
        }
        Some((at, length))
    }

    fn ranges(&self) -> MutexGuard<'_, VecDeque<Range<u64>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes pieces over one channel until none is left, with so many bytes under way, and closes `handle`. CLOSE is sent behind
    /// the writes without waiting for them: the server works in order, and every reply is looked at.
    pub(super) async fn write(&self, sftp: &Sftp, handle: &str, under_way: u64) -> Result<(), Failure> {
        let depth = usize::try_from(under_way / sftp.write as u64).unwrap_or(1).max(1);
        let mut writes = FuturesUnordered::new();
        let mut failed = None;
        let mut busy = None;
        while failed.is_none()
            && let Some((at, length)) = self.take(sftp.write)
        {
            busy.get_or_insert_with(|| Busy::new(self));
            let data = match self.source.read(at, length).await {
                Ok(data) => data,
                Err(error) => {
                    failed = Some(error.into());
                    break;
                }
            };
            let mut write = Box::pin(write_at(&sftp.raw, handle, at, data));
            // The first poll sends: not left to the set, which polls in an order of its own, so that none goes behind the CLOSE.
            match futures::poll!(&mut write) {
                Poll::Ready(done) => self.note(done, &mut failed),
                Poll::Pending => writes.push(write),
            }
            while let Some(done) = next_if(&mut writes, depth).await {
                self.note(done, &mut failed);
            }
        }
        let mut close = Box::pin(sftp.raw.close(handle));
        let closed = futures::poll!(&mut close);
        while let Some(done) = writes.next().await {
            self.note(done, &mut failed);
        }
        let closed = match closed {
            Poll::Ready(closed) => closed,
            Poll::Pending => close.await,
        };
        drop(busy);
        match failed {
            Some(failed) => Err(failed),
            None => Ok(closed.map(|_| ())?),
        }
    }

    fn note(&self, (bytes, result): Written, failed: &mut Option<Failure>) {
        match result {
            Ok(_) => {
                let sent = self.sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
                (self.progress)(self.resumed.load(Ordering::Relaxed) + sent);
            }
            Err(error) => {
                failed.get_or_insert(Failure::There(error));
            }
        }
    }
}

/// A channel at work.
struct Busy<'j>(&'j AtomicUsize);

impl<'j> Busy<'j> {
    fn new(job: &'j Job<'_>) -> Self {
        job.channels.fetch_add(1, Ordering::Relaxed);
        job.busy.fetch_add(1, Ordering::Relaxed);
        Self(&job.busy)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Written = (u64, Result<russh_sftp::protocol::Status, SftpError>);

/// One write request; sent when it is first polled, that is, into a queue without bounds.
async fn write_at(raw: &RawSftpSession, handle: &str, offset: u64, data: Vec<u8>) -> Written {
    (data.len() as u64, raw.write(handle, offset, data).await)
}

/// A write that is done; waits for one only when `depth` are under way.
async fn next_if<F: Future>(writes: &mut FuturesUnordered<F>, depth: usize) -> Option<F::Output> {
    if writes.len() >= depth {
        return writes.next().await;
    }
    std::future::poll_fn(|context| match writes.poll_next_unpin(context) {
        Poll::Ready(done) => Poll::Ready(done),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
