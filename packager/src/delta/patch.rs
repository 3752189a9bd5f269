//! The patch: what makes the new side from the old one, in a form that a few lines of perl apply quickly.
//!
//! Before gzip it is [`MAGIC`], then frames, then a frame of nothing. Each frame makes the next [`FRAME`] bytes of the new side
//! (the last one fewer) and knows nothing of the others, so they are made in parallel and applied in little memory:
//!
//! | what | form |
//! |---|---|
//! | header | five big-endian u32: bytes that it makes, then the bytes of each of the four sections |
//! | moves | BER integers (perl's `w`) in threes: how many literals, how many bytes of the old side, and how far their offset is from the end of those before, zigzag. The first offset of a frame counts from 0 |
//! | gaps | BER integers: equal bytes between one changed field and the next, counted in what the moves made |
//! | adds | little-endian i32: what is added to each changed field, a little-endian u32, modulo 2^32 |
//! | literals | bytes |
//!
//! The fields are why it is small: behind an edit, an address that moved differs from the old one by the same number as its
//! neighbours. As that number, they repeat; as a difference byte by byte, carries spoil it. There may be 200,000 of them, and what perl
//! does with each one is most of its work: so they are in the form that it reads quickest, though gzip makes a tenth more of that.

use super::bytes::{common_prefix, half};
use super::diagonals::{Run, cover};
use super::index::Index;
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How a patch begins.
pub const MAGIC: &[u8; 8] = b"RDPATCH2";
/// Bytes of the new side that a frame makes. Part of the format: those who apply a patch refuse larger ones.
pub const FRAME: usize = 1 << 20;
/// Bytes of a section, at most. Part of the format as well.
pub const SECTION: usize = 1 << 24;
/// A changed field: the width of an address or a distance in code.
pub const FIELD: usize = 4;

/// Writes the patch from `old` to `new`, not compressed, using `threads` threads: the bytes are the same for any number.
///
/// # Errors
/// When `to` cannot be written.
pub fn write(old: &[u8], new: &[u8], threads: usize, mut to: impl Write) -> io::Result<()> {
    to.write_all(MAGIC)?;
    for frame in frames(old, new, threads, |runs, from, to| frame(old, new, runs, from, to)) {
        to.write_all(&frame)?;
    }
    to.write_all(&[0; 20])
}

/// What `make` gives for each piece of the new side and the runs that cover it, in order.
pub fn frames<T: Send>(
    old: &[u8],
    new: &[u8],
    threads: usize,
    make: impl Fn(&[Run], usize, usize) -> T + Sync,
) -> impl Iterator<Item = T> {
    let index = Index::new(old);
    let count = new.len().div_ceil(FRAME);
    let next = AtomicUsize::new(0);
    let made: Vec<Mutex<Option<T>>> = std::iter::repeat_with(|| Mutex::new(None)).take(count).collect();
    let work = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(place) = made.get(number) else { return };
        let (from, to) = (number * FRAME, new.len().min((number + 1) * FRAME));
        let frame = make(&cover(old, new, &index, from, to), from, to);
        *place.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(frame);
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, count.max(1)) {
            scope.spawn(work);
        }
        work();
    });
    made.into_iter().filter_map(|place| place.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

#[derive(Default)]
struct Sections {
    moves: Vec<u8>,
    gaps: Vec<u8>,
    adds: Vec<u8>,
    literals: Vec<u8>,
    /// End of the last changed field, in the new side.
    changed: usize,
}

fn frame(old: &[u8], new: &[u8], runs: &[Run], from: usize, to: usize) -> Vec<u8> {
    let mut sections = Sections { changed: from, ..Sections::default() };
    let (mut at, mut old_at) = (from, 0);
    for run in runs {
        let end = sections.fields(&old[run.old_from()..run.old_to()], &new[run.from..run.to], run.from);
        if end == run.from {
            continue;
        }
        sections.literals.extend_from_slice(&new[at..run.from]);
        ber(&mut sections.moves, (run.from - at) as u64);
        ber(&mut sections.moves, (end - run.from) as u64);
        ber(&mut sections.moves, zigzag(signed(run.old_from()) - signed(old_at)));
        (at, old_at) = (end, run.old_from() + end - run.from);
    }
    if at < to {
        sections.literals.extend_from_slice(&new[at..to]);
        ber(&mut sections.moves, (to - at) as u64);
        sections.moves.extend([0, 0]);
    }
    sections.join(to - from)
}

impl Sections {
    /// Writes down the changed fields of a run that begins at `from` of the new side. Where it ends: a changed byte too near to
    /// its end for a whole field cuts it.
    fn fields(&mut self, old: &[u8], new: &[u8], from: usize) -> usize {
        let mut at = 0;
        loop {
            at += common_prefix(&old[at..], &new[at..]);
            if at + FIELD > new.len() {
                return from + at;
            }
            ber(&mut self.gaps, (from + at - self.changed) as u64);
            self.adds.extend(half(new, at).wrapping_sub(half(old, at)).to_le_bytes());
            at += FIELD;
            self.changed = from + at;
        }
    }

    fn join(self, makes: usize) -> Vec<u8> {
        let sections = [self.moves, self.gaps, self.adds, self.literals];
        let sizes = std::iter::once(makes).chain(sections.iter().map(Vec::len));
        let mut frame: Vec<u8> = sizes.flat_map(|size| u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes()).collect();
        sections.iter().for_each(|section| frame.extend_from_slice(section));
        frame
    }
}

fn signed(offset: usize) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// Small for small numbers of either sign: 0, -1, 1, -2, ...
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

/// Seven bits a byte, the most significant first; the high bit says that more follow.
fn ber(to: &mut Vec<u8>, number: u64) {
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(7).max(1);
    for digit in (0..digits).rev() {
        let seven = (number >> (7 * digit)) & 0x7f;
        let more = if digit > 0 { 0x80 } else { 0 };
        to.push(u8::try_from(seven).unwrap_or(0) | more);
    }
}
