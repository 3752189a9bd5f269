//! One upload: what is still to be sent, taken piece by piece by as many channels as there are.

use super::channel::{NoServer, Sftp};
use super::pipe::Piece;
use super::source::Source;
use crate::{Progress, Sent, TransportError, link};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use russh_sftp::client::error::Error as SftpError;
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

/// Bytes that all uploads of this process together have under way. What a host does not take at once it keeps in a buffer that it
/// copies whenever it grows: where many take turns at the same line or the same cores, a whole window for each only makes them slow.
const ROOM: u64 = 16 << 20;
/// Uploads that share it.
static UPLOADS: AtomicU64 = AtomicU64::new(0);

/// An upload's part in that.
struct Share;

impl Share {
    fn take() -> Self {
        UPLOADS.fetch_add(1, Ordering::Relaxed);
        Self
    }

    fn bytes(&self) -> u64 {
        ROOM / UPLOADS.load(Ordering::Relaxed).max(1)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        UPLOADS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What ends an upload.
pub(super) enum Failure {
    /// Something on this side, told as it is.
    Here(TransportError),
    /// The host's answer, to be explained.
    There(SftpError),
    /// The host has no sftp.
    NoSftp(NoServer),
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
    pub(super) source: &'a Arc<Source>,
    progress: Progress<'a>,
    phase: watch::Sender<Phase>,
    /// Byte ranges that nobody has taken yet.
    left: Mutex<VecDeque<Range<u64>>>,
    resumed: AtomicU64,
    /// When the first piece was given out.
    began: OnceLock<Instant>,
    /// Since it was known what is to be sent.
    share: OnceLock<Share>,
    /// Bytes that were given out.
    taken: AtomicU64,
    /// The host has confirmed some, or nobody is to take more.
    answered: Notify,
    /// Bytes that the host has confirmed.
    sent: AtomicU64,
    /// Channels that have taken something.
    channels: AtomicUsize,
    /// Channels that have something under way.
    busy: AtomicUsize,
}

impl<'a> Job<'a> {
    pub(super) fn new(source: &'a Arc<Source>, progress: Progress<'a>) -> Self {
        Self {
            source,
            progress,
            phase: watch::Sender::new(Phase::Looking),
            left: Mutex::default(),
            resumed: AtomicU64::new(0),
            began: OnceLock::new(),
            share: OnceLock::new(),
            taken: AtomicU64::new(0),
            answered: Notify::new(),
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
        self.share.get_or_init(Share::take);
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

    /// Nobody is to take more.
    pub(super) fn stop(&self) {
        self.ranges().clear();
        self.answered.notify_waiters();
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
        self.taken.fetch_add(length as u64, Ordering::Relaxed);
        Some((at, length))
    }

    /// Waits until what was given out may be sent: how fast the host takes it is not known before its first answer.
    async fn pace(&self) {
        let began = *self.began.get_or_init(Instant::now);
        if self.sent.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep_until(began + link::pace(self.taken.load(Ordering::Relaxed))).await;
        }
    }

    /// Whether more has to wait, because its share is under way. One that has nothing under way may send a piece all the same.
    fn is_full(&self) -> bool {
        let under_way = self.taken.load(Ordering::Relaxed) - self.sent.load(Ordering::Relaxed);
        let full = under_way > 0 && self.share.get().is_some_and(|share| under_way >= share.bytes());
        full && !self.ranges().is_empty()
    }

    /// The host has confirmed so many more bytes.
    fn arrived(&self, bytes: u64) {
        if bytes > 0 {
            let sent = self.sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
            (self.progress)(self.resumed.load(Ordering::Relaxed) + sent);
            self.answered.notify_waiters();
        }
    }

    fn ranges(&self) -> MutexGuard<'_, VecDeque<Range<u64>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes pieces over one channel until none is left, with so many bytes under way, and closes `handle`. CLOSE is sent behind
    /// the writes without waiting for them: the server works in order, and every reply is looked at.
    pub(super) async fn write(&self, sftp: &Sftp, handle: &str, under_way: u64) -> Result<(), Failure> {
        let mut flight = Flight::new(self, sftp);
        flight.pieces(handle, under_way).await;
        flight.add(sftp.raw.close(handle));
        flight.end().await
    }
}

/// Requests over one channel, sent in the order they come in and without waiting. The host is to grant all of them.
pub(super) struct Flight<'f> {
    job: &'f Job<'f>,
    sftp: &'f Sftp,
    answers: FuturesUnordered<BoxFuture<'f, Answered>>,
    /// Bytes of the file that are under way.
    bytes: u64,
    failed: Option<Failure>,
    busy: Option<Busy<'f>>,
}

/// Bytes of the file in a request, and what the host said to it.
type Answered = (u64, Result<(), SftpError>);

impl<'f> Flight<'f> {
    pub(super) fn new(job: &'f Job<'f>, sftp: &'f Sftp) -> Self {
        Self { job, sftp, answers: FuturesUnordered::new(), bytes: 0, failed: None, busy: None }
    }

    /// Sends a request behind the others.
    pub(super) fn add<T>(&mut self, request: impl Future<Output = Result<T, SftpError>> + Send + 'f) {
        self.send(0, request);
    }

    /// Writes pieces until none is left or something has failed, with so many bytes under way. Returns when all of them were read.
    pub(super) async fn pieces(&mut self, handle: &'f str, under_way: u64) {
        let (job, sftp) = (self.job, self.sftp);
        let (failed, mut failures) = mpsc::unbounded_channel();
        while !self.has_failed() {
            self.room().await;
            let write = sftp.write_size();
            let depth = (under_way / write as u64).max(1) * write as u64;
            let Some((at, length)) = job.take(write) else { break };
            self.busy.get_or_insert_with(|| Busy::new(job));
            job.pace().await;
            let piece = Piece { source: job.source.clone(), at, length, failed: failed.clone() };
            self.send(length as u64, sftp.write(handle, piece));
            while let Some(answered) = self.next_if(self.bytes >= depth).await {
                self.note(answered);
            }
            if let Ok(failure) = failures.try_recv() {
                self.fail(failure);
            }
        }
        drop(failed);
        while !self.has_failed() {
            tokio::select! {
                failure = failures.recv() => match failure {
                    Some(failure) => self.fail(failure),
                    None => break,
                },
                Some(answered) = self.answers.next() => self.note(answered),
            }
        }
    }

    /// Waits until the upload may have more under way, over whichever channel.
    async fn room(&mut self) {
        loop {
            let answered = self.job.answered.notified();
            if !self.job.is_full() {
                return;
            }
            tokio::select! {
                Some(answered) = self.answers.next() => self.note(answered),
                () = answered => {}
            }
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Waits for all answers.
    pub(super) async fn end(mut self) -> Result<(), Failure> {
        while let Some(answered) = self.answers.next().await {
            self.note(answered);
        }
        self.failed.map_or(Ok(()), Err)
    }

    /// The library sends a request, into a queue without bounds, when it is first polled. That is not left to the set, which polls
    /// in an order of its own.
    fn send<T>(&mut self, bytes: u64, request: impl Future<Output = Result<T, SftpError>> + Send + 'f) {
        self.bytes += bytes;
        let mut answer: BoxFuture<'f, Answered> = Box::pin(async move { (bytes, request.await.map(|_| ())) });
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answered) => self.note(answered),
            Poll::Pending => self.answers.push(answer),
        }
    }

    /// An answer; waits for one only if told to.
    async fn next_if(&mut self, wait: bool) -> Option<Answered> {
        if wait {
            return self.answers.next().await;
        }
        std::future::poll_fn(|context| match self.answers.poll_next_unpin(context) {
            Poll::Ready(answered) => Poll::Ready(answered),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn note(&mut self, (bytes, result): Answered) {
        self.bytes -= bytes;
        match result {
            Ok(()) => self.job.arrived(bytes),
            Err(error) => self.fail(Failure::There(error)),
        }
    }

    /// One channel's failure is that of the upload.
    fn fail(&mut self, failure: Failure) {
        self.job.stop();
        self.failed.get_or_insert(failure);
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
