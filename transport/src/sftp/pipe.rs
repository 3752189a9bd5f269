//! Between the sftp library and its channel.
//!
//! The library copies what it is given to write, and keeps it from then on. So it gets WRITE requests without their bytes: these are
//! put behind them here, when they are about to go.

use super::job::Failure;
use super::source::Source;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use russh_sftp::client::error::Error as SftpError;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

/// Bytes of answers that wait for the library.
const ANSWERS: usize = 64 << 10;
/// A request is its length after these bytes, then its type: draft-ietf-secsh-filexfer-02, section 3.
const LENGTH: usize = 4;
/// The type of WRITE, which ends with its bytes, and their length before them: section 6.4.
const WRITE: u8 = 6;

/// A part of a local file.
pub(super) struct Piece {
    pub(super) source: Arc<Source>,
    pub(super) at: u64,
    /// Bytes.
    pub(super) length: usize,
    /// Let go when all of it is on its way, and told what happened else.
    pub(super) failed: mpsc::UnboundedSender<Failure>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.length > 0 {
            // Or nobody waits for it any more.
            let _ = self.failed.send(Failure::There(SftpError::UnexpectedBehavior("the channel has ended".into())));
        }
    }
}

/// What the WRITE requests are to carry that the library has not sent on yet, in their order.
#[derive(Clone, Default)]
pub(super) struct Pieces(Arc<Mutex<VecDeque<Piece>>>);

impl Pieces {
    /// Nobody sends a WRITE meanwhile.
    pub(super) fn lock(&self) -> MutexGuard<'_, VecDeque<Piece>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The library's end.
pub(super) struct Pipe {
    begun: BytesMut,
    requests: Option<mpsc::UnboundedSender<Bytes>>,
    answers: DuplexStream,
}

/// The channel's end.
pub(super) struct Requests {
    requests: mpsc::UnboundedReceiver<Bytes>,
    pieces: Pieces,
}

/// A pipe, what comes out of it, where answers go in, and where pieces of files do.
pub(super) fn pipe() -> (Pipe, Requests, DuplexStream, Pieces) {
    let (sender, requests) = mpsc::unbounded_channel();
    let (answers, answer) = tokio::io::duplex(ANSWERS);
    let pieces = Pieces::default();
    let pipe = Pipe { begun: BytesMut::new(), requests: Some(sender), answers };
    (pipe, Requests { requests, pieces: pieces.clone() }, answer, pieces)
}

/// What goes next.
pub(super) enum Request {
    /// All of it.
    Whole(Bytes),
    /// A WRITE but for its bytes, which are these.
    Write(Bytes, Piece),
}

impl Requests {
    /// The next request. `None` when there will be none.
    pub(super) async fn next(&mut self) -> Option<Request> {
        let request = self.requests.recv().await?;
        if request.get(LENGTH) != Some(&WRITE) {
            return Some(Request::Whole(request));
        }
        // Each WRITE has a piece, or they are out of step, and what goes where is not known any more.
        let piece = self.pieces.lock().pop_front().filter(|piece| offset(&request) == Some(piece.at))?;
        Some(Request::Write(with_length(&request, piece.length), piece))
    }
}

impl Piece {
    /// Reads the first bytes that are left, at most `most`. In place of those that cannot be read there are zeros: how many come was
    /// said before.
    pub(super) async fn read(&mut self, most: usize) -> Bytes {
        let length = self.length.min(most);
        let read = self.source.read(self.at, length).await;
        self.at += length as u64;
        self.length -= length;
        read.unwrap_or_else(|error| {
            // Or nobody waits for it any more.
            let _ = self.failed.send(Failure::Here(error));
            vec![0; length].into()
        })
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // They go nowhere.
        self.pieces.lock().clear();
    }
}

/// Where a WRITE of nothing writes: 8 bytes before the length of its bytes.
fn offset(request: &[u8]) -> Option<u64> {
    let (_, mut end) = request.split_at_checked(request.len().checked_sub(8 + LENGTH)?)?;
    end.try_get_u64().ok()
}

/// A WRITE of nothing as one of so many bytes: the length of the request and that of its bytes, which it ends with, are others.
fn with_length(request: &[u8], bytes: usize) -> Bytes {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let mut head = BytesMut::with_capacity(request.len());
    head.put_u32(length(request.len() - LENGTH + bytes));
    head.put_slice(&request[LENGTH..request.len() - LENGTH]);
    head.put_u32(length(bytes));
    head.freeze()
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.begun.extend_from_slice(bytes);
        while let Ok(length) = (&self.begun[..]).try_get_u32() {
            let whole = LENGTH + length as usize;
            if self.begun.len() < whole {
                break;
            }
            let request = self.begun.split_to(whole).freeze();
            if self.requests.as_ref().is_none_or(|requests| requests.send(request).is_err()) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.requests = None;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.answers).poll_read(context, buffer)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "failing loudly is what tests do")]
mod tests {
    use super::*;
    use russh_sftp::protocol::{Close, Packet, Write};
    use std::io::Write as _;
    use tokio::io::AsyncWriteExt as _;

    fn write(offset: u64, data: &[u8]) -> Bytes {
        Packet::Write(Write { id: 7, handle: "handle".into(), offset, data: data.into() }).try_into().unwrap()
    }

    async fn piece(at: u64, length: usize) -> (Piece, mpsc::UnboundedReceiver<Failure>) {
        let mut local = tempfile::NamedTempFile::new().unwrap();
        local.write_all(b"0123456789").unwrap();
        let source = Arc::new(Source::open(local.path()).await.unwrap());
        let (failed, failures) = mpsc::unbounded_channel();
        (Piece { source, at, length, failed }, failures)
    }

    #[tokio::test]
    async fn writes_get_their_bytes_however_they_come_in() {
        let close: Bytes = Packet::Close(Close { id: 8, handle: "handle".into() }).try_into().unwrap();
        let (mut pipe, mut requests, _answers, pieces) = pipe();
        let (piece, mut failures) = piece(3, 5).await;
        pieces.lock().push_back(piece);
        for byte in [write(3, b""), close.clone()].concat() {
            pipe.write_all(&[byte]).await.unwrap();
        }
        let Some(Request::Write(head, mut piece)) = requests.next().await else { panic!("no WRITE") };
        let bytes = [piece.read(2).await, piece.read(100).await];
        assert_eq!([head, bytes.concat().into()].concat(), write(3, b"34567"));
        assert_eq!(piece.length, 0);
        drop(piece);
        assert!(failures.recv().await.is_none(), "all of it went");
        assert!(matches!(requests.next().await, Some(Request::Whole(request)) if request == close));
        pipe.shutdown().await.unwrap();
        assert!(requests.next().await.is_none());
    }

    #[tokio::test]
    async fn a_write_goes_with_its_own_piece_or_not_at_all() {
        for at in [None, Some(2), Some(4)] {
            let (mut pipe, mut requests, _answers, pieces) = pipe();
            let mut failures = None;
            if let Some(at) = at {
                let (piece, told) = piece(at, 5).await;
                pieces.lock().push_back(piece);
                failures = Some(told);
            }
            pipe.write_all(&write(3, b"")).await.unwrap();
            assert!(requests.next().await.is_none(), "{at:?}");
            if let Some(mut failures) = failures {
                assert!(matches!(failures.recv().await, Some(Failure::There(_))));
            }
        }
    }

    #[tokio::test]
    async fn pieces_that_go_nowhere_say_so() {
        let (pipe, requests, answers, pieces) = pipe();
        let (piece, mut failures) = piece(0, 10).await;
        pieces.lock().push_back(piece);
        drop((requests, answers));
        assert!(matches!(failures.recv().await, Some(Failure::There(_))));
        drop(pipe);
    }
}
