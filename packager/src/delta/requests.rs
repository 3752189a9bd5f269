//! What an sftp server is told to make the new side of the old one: requests of the protocol's version 3, as they would go over
//! the wire to it, one behind the other. Nobody reads what it answers.
//!
//! It works in a folder with `old`, the old release, and makes `new` there. As a file of their own the requests are compressed,
//! and then one takes some seven bytes; sent as requests are, each takes more than sixty.
//!
//! A server reads faster than it works, and moves what it has read whenever that grows. So it is fed [`SECTION`] by section: within
//! each it writes a line [`MORE`] into `turn`, a fifo, when it is through with nearly all of it. What comes last is too long
//! for a request: the server exits with 11, and only then is known to have done the rest.

use std::io::{self, Write};

/// Bytes that the server is given at once.
const SECTION: u64 = 1 << 20;
/// What it says in `turn`, with a newline behind it.
const MORE: &str = "more";
/// Bytes per write that every server takes. Also more than one reads at a time, so it does not pile them up.
const WRITE: usize = 32 << 10;
/// Handles are numbers, the lowest that is free.
const NEW: u32 = 0;
const TURN: u32 = 1;
const OLD: u32 = 2;
/// Bytes of the request that writes into `turn`.
const TURN_BYTES: u64 = 29 + MORE.len() as u64 + 1;
/// The flags of OPEN.
const READ: u32 = 1;
const TO_WRITE: u32 = 2;
const APPEND: u32 = 4;
const CREATE: u32 = 8;

/// Writes requests into `to`.
pub struct Requests<W> {
    to: W,
    /// Bytes written, and where the section ends whose turn has not been written yet.
    at: u64,
    section: u64,
    /// The old file that is open.
    source: Option<usize>,
}

impl<W: Write> Requests<W> {
    /// Begins: opens what is written.
    ///
    /// # Errors
    /// When `to` cannot be written, here and below.
    pub fn new(to: W) -> io::Result<Self> {
        let mut requests = Self { to, at: 0, section: SECTION, source: None };
        requests.send(&[&[1], &number(3)])?;
        requests.open("new", TO_WRITE | CREATE)?;
        // Appended: another write would seek, which a fifo does not.
        requests.open("turn", TO_WRITE | APPEND)?;
        Ok(requests)
    }

    /// Puts `data` at `at` of the new side.
    pub fn write(&mut self, at: usize, data: &[u8]) -> io::Result<()> {
        for (number, part) in data.chunks(WRITE).enumerate() {
            self.write_to(NEW, (at + number * WRITE) as u64, part)?;
        }
        Ok(())
    }

    /// Copies `length` bytes at `offset` of the old file `file`, at `path` in its release, to `at` of the new side.
    pub fn copy(&mut self, file: usize, path: &str, offset: u64, length: u64, at: u64) -> io::Result<()> {
        if self.source != Some(file) {
            if self.source.is_some() {
                self.send(&[&[4], &number(0), &handle(OLD)])?;
            }
            self.open(&format!("old/{path}"), READ)?;
            self.source = Some(file);
        }
        let (offset, length, at) = (offset.to_be_bytes(), length.to_be_bytes(), at.to_be_bytes());
        self.send(&[&[200], &number(0), &text(b"copy-data"), &handle(OLD), &offset, &length, &handle(NEW), &at])
    }

    /// Ends the server. With `to` comes how many bytes all of it is.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        const END: [u8; 16] = [0xff; 16];
        self.to.write_all(&END)?;
        Ok((self.to, self.at + END.len() as u64))
    }

    fn open(&mut self, path: &str, flags: u32) -> io::Result<()> {
        // The mode of a new file.
        let attributes = [number(4), number(0o600)].concat();
        self.send(&[&[3], &number(0), &text(path.as_bytes()), &number(flags), &attributes])
    }

    fn write_to(&mut self, to: u32, at: u64, data: &[u8]) -> io::Result<()> {
        self.send(&[&[6], &number(0), &handle(to), &at.to_be_bytes(), &text(data)])
    }

    /// All have the same id: answers come in order, and nobody reads them.
    fn send(&mut self, request: &[&[u8]]) -> io::Result<()> {
        let bytes: usize = request.iter().map(|part| part.len()).sum();
        if self.at + 4 + bytes as u64 + TURN_BYTES > self.section {
            self.section += SECTION;
            self.write_to(TURN, 0, format!("{MORE}\n").as_bytes())?;
        }
        self.at += 4 + bytes as u64;
        self.to.write_all(&number(u32::try_from(bytes).map_err(io::Error::other)?))?;
        request.iter().try_for_each(|part| self.to.write_all(part))
    }
}

fn number(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

fn text(text: &[u8]) -> Vec<u8> {
    [&number(u32::try_from(text.len()).unwrap_or(u32::MAX)), text].concat()
}

fn handle(handle: u32) -> [u8; 8] {
    let mut bytes = [0, 0, 0, 4, 0, 0, 0, 0];
    bytes[4..].copy_from_slice(&number(handle));
    bytes
}
