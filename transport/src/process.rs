//! What all kinds of processes share: reading goes on while we write, or both sides could wait for each other forever.

use crate::{Chunk, Exit, Output};
use std::collections::VecDeque;
use std::pin::pin;

/// Output kept while a write waits. Beyond it, a command that never reads its input is left to wait.
const MAX_HELD: usize = 64 << 20;

/// The receiving side of a process; `next` as in [`crate::Process`], cancel-safe.
pub(crate) trait Reader: Send {
    fn next(&mut self) -> impl Future<Output = Option<Chunk>> + Send;
}

/// A reader whose output can be set aside.
pub(crate) struct Buffered<R> {
    pub(crate) reader: R,
    backlog: VecDeque<Chunk>,
    held: usize,
}

impl<R: Reader> Buffered<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, backlog: VecDeque::new(), held: 0 }
    }

    /// Waits for `send` while setting aside what the process says. `None` when the process ended first.
    pub(crate) async fn while_sending<T>(&mut self, send: impl Future<Output = T>) -> Option<T> {
        let mut send = pin!(send);
        loop {
            tokio::select! {
                biased;
                sent = &mut send => return Some(sent),
                chunk = self.reader.next(), if self.held < MAX_HELD => {
                    let chunk = chunk?;
                    let ended = matches!(chunk, Chunk::Exit(_));
                    self.held += length(&chunk);
                    self.backlog.push_back(chunk);
                    if ended {
                        return None;
                    }
                }
            }
        }
    }
}

impl<R: Reader> Reader for Buffered<R> {
    async fn next(&mut self) -> Option<Chunk> {
        match self.backlog.pop_front() {
            Some(chunk) => {
                self.held -= length(&chunk);
                Some(chunk)
            }
            None => self.reader.next().await,
        }
    }
}

fn length(chunk: &Chunk) -> usize {
    match chunk {
        Chunk::Stdout(data) | Chunk::Stderr(data) => data.len(),
        Chunk::Exit(_) => 0,
    }
}

/// Reads to the end while `feed` sends the input; keeps at most `limit` bytes of each output.
/// A command that ends without reading its input is no failure: its status tells.
pub(crate) async fn run<R: Reader>(reader: &mut R, feed: impl Future<Output = ()>, limit: usize) -> Output {
    let mut collected = pin!(collect(reader, limit));
    tokio::select! {
        biased;
        output = &mut collected => output,
        () = feed => collected.await,
    }
}

async fn collect<R: Reader>(reader: &mut R, limit: usize) -> Output {
    let mut output = Output { stdout: Vec::new(), stderr: Vec::new(), exit: Exit::Lost };
    while let Some(chunk) = reader.next().await {
        match chunk {
            Chunk::Stdout(data) => keep(&mut output.stdout, &data, limit),
            Chunk::Stderr(data) => keep(&mut output.stderr, &data, limit),
            Chunk::Exit(exit) => output.exit = exit,
        }
    }
    output
}

fn keep(buffer: &mut Vec<u8>, data: &[u8], limit: usize) {
    let room = limit.saturating_sub(buffer.len());
    buffer.extend_from_slice(&data[..data.len().min(room)]);
}
