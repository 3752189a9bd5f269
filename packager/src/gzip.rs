//! gzip by several threads, with the same bytes for any number of them: blocks of a fixed size, each deflated on its own and
//! ended at a byte boundary, joined in one member.

use flate2::{Compress, Compression, FlushCompress, Status};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Bytes of a block before compression. Part of the format: another size gives other bytes.
const BLOCK: usize = 1 << 20;
/// That of archives.
const LEVEL: u32 = 4;
/// No name, no time, unknown system; the two bits that this level leaves clear.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

struct Block {
    number: u64,
    data: Vec<u8>,
    last: bool,
}

struct Deflated {
    number: u64,
    bytes: io::Result<Vec<u8>>,
    crc: crc32fast::Hasher,
}

/// A writer whose input comes out compressed in `to`.
pub struct Gzip<W> {
    to: W,
    buffer: Vec<u8>,
    number: u64,
    /// Sent and not yet written.
    under_way: u64,
    most: u64,
    work: Option<SyncSender<Block>>,
    done: Receiver<Deflated>,
    threads: Vec<JoinHandle<()>>,
    waiting: BTreeMap<u64, Deflated>,
    written: u64,
    crc: crc32fast::Hasher,
    length: u64,
}

impl<W: Write> Gzip<W> {
    /// Compresses with `threads` threads.
    ///
    /// # Errors
    /// When the header cannot be written.
    pub fn new(to: W, threads: usize) -> io::Result<Self> {
        Self::with_level(to, threads, LEVEL)
    }

    /// The same at another level than that of archives.
    ///
    /// # Errors
    /// When the header cannot be written.
    pub fn with_level(mut to: W, threads: usize, level: u32) -> io::Result<Self> {
        to.write_all(&HEADER)?;
        let count = threads.max(1);
        let (work, blocks) = sync_channel::<Block>(count);
        let (send, done) = sync_channel::<Deflated>(count * 2 + 2);
        let blocks = Arc::new(Mutex::new(blocks));
        let worker = |_| {
            let (blocks, send) = (blocks.clone(), send.clone());
            std::thread::spawn(move || {
                let mut compress = Compress::new(Compression::new(level), false);
                loop {
                    let next = blocks.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(block) = next else { return };
                    if send.send(deflate(&mut compress, &block)).is_err() {
                        return;
                    }
                }
            })
        };
        Ok(Self {
            to,
            buffer: Vec::with_capacity(BLOCK),
            number: 0,
            under_way: 0,
            most: count as u64 + 1,
            threads: (0..count).map(worker).collect(),
            work: Some(work),
            done,
            waiting: BTreeMap::new(),
            written: 0,
            crc: crc32fast::Hasher::new(),
            length: 0,
        })
    }

    fn send(&mut self, last: bool) -> io::Result<()> {
        while self.under_way >= self.most {
            self.take()?;
        }
        let data = std::mem::replace(&mut self.buffer, Vec::with_capacity(if last { 0 } else { BLOCK }));
        self.length += data.len() as u64;
        let block = Block { number: self.number, data, last };
        self.number += 1;
        self.under_way += 1;
        let gone = || io::Error::other("a compressing thread ended");
        self.work.as_ref().ok_or_else(gone)?.send(block).map_err(|_| gone())
    }

    /// Waits for one block, and writes those whose turn it is.
    fn take(&mut self) -> io::Result<()> {
        let block = self.done.recv().map_err(|_| io::Error::other("a compressing thread ended"))?;
        self.waiting.insert(block.number, block);
        while let Some(block) = self.waiting.remove(&self.written) {
            self.to.write_all(&block.bytes?)?;
            self.crc.combine(&block.crc);
            self.written += 1;
            self.under_way -= 1;
        }
        Ok(())
    }

    /// Writes what is left; the writer behind.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.send(true)?;
        while self.under_way > 0 {
            self.take()?;
        }
        self.work = None;
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| io::Error::other("a compressing thread panicked"))?;
        }
        let crc = std::mem::take(&mut self.crc).finalize();
        self.to.write_all(&crc.to_le_bytes())?;
        // The format counts modulo 4 GiB.
        let length = u32::try_from(self.length & u64::from(u32::MAX)).unwrap_or(0);
        self.to.write_all(&length.to_le_bytes())?;
        Ok(self.to)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == BLOCK {
            self.send(false)?;
        }
        let taken = data.len().min(BLOCK - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn deflate(compress: &mut Compress, block: &Block) -> Deflated {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&block.data);
    compress.reset();
    let flush = if block.last { FlushCompress::Finish } else { FlushCompress::Full };
    let mut out = Vec::with_capacity(block.data.len() / 2 + 1024);
    let mut run = || -> io::Result<()> {
        loop {
            let (before_in, before_out) = (compress.total_in(), out.len());
            let read = usize::try_from(before_in).unwrap_or(usize::MAX).min(block.data.len());
            let status = compress.compress_vec(&block.data[read..], &mut out, flush).map_err(io::Error::other)?;
            let all_in = compress.total_in() == block.data.len() as u64;
            // With room to spare nothing is left inside.
            if status == Status::StreamEnd || (!block.last && all_in && out.len() < out.capacity()) {
                return Ok(());
            }
            if out.len() == before_out && compress.total_in() == before_in && out.len() < out.capacity() {
                return Err(io::Error::other("the compressor makes no progress"));
            }
            out.reserve(64 << 10);
        }
    };
    let result = run();
    Deflated { number: block.number, bytes: result.map(|()| out), crc }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn gzip(data: &[u8], threads: usize, chunk: usize) -> Vec<u8> {
        let mut writer = Gzip::new(Vec::new(), threads).expect("starts");
        data.chunks(chunk).for_each(|c| writer.write_all(c).expect("writes"));
        writer.finish().expect("finishes")
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes_that_others_read() {
        let mut rng = fastrand::Rng::with_seed(4);
        for size in [0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 77] {
            // Half of it compresses.
            let data: Vec<u8> = (0..size).map(|i| if i % 2048 < 1024 { rng.u8(..) } else { b'a' }).collect();
            let one = gzip(&data, 1, 70_000);
            for (threads, chunk) in [(1, 512), (2, 70_000), (3, 1 << 22), (8, 4096)] {
                assert!(gzip(&data, threads, chunk) == one, "{size} bytes, {threads} threads");
            }
            let mut back = Vec::new();
            flate2::read::GzDecoder::new(one.as_slice()).read_to_end(&mut back).expect("decodes");
            assert!(back == data);
            let mut child =
                std::process::Command::new("gzip").arg("-t").stdin(std::process::Stdio::piped()).spawn().expect("gzip");
            child.stdin.take().expect("pipe").write_all(&one).expect("writes");
            assert!(child.wait().expect("ends").success(), "gzip -t, {size} bytes");
        }
    }
}
