//! The same two sides for a host without perl, whose SFTP server copies whole stretches by itself (`copy-data`): it is told to, and
//! to write what differs over it.

use super::bytes::common_prefix;
use super::patch::frames;
use super::requests::Requests;
use super::sides::OldSide;
use std::io::{self, Write};
use std::ops::Range;

/// Shorter stretches are written: each request takes the server some five microseconds, and seven bytes on the wire.
const LEAST: u64 = 32;
/// Changed bytes that are nearer to each other are written in one go, with those between them.
const NEAR: usize = 16;

/// A part of the new side that stands in an old file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Which old file, counted from 0.
    pub file: usize,
    /// Where in that file, bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Where in the new side, bytes.
    pub to: u64,
}

/// Finds the stretches of the new side that are nearly the same in the old one, in the order of the new side and without overlaps.
/// None spans two files; `sizes` are those of the old side's files, in order.
pub fn copies(old: &[u8], new: &[u8], sizes: &[u64], threads: usize) -> Vec<Stretch> {
    let found = frames(old, new, threads, |runs, _, _| {
        let stretch = |run: &super::diagonals::Run| {
            let (offset, to) = (run.old_from() as u64, run.from as u64);
            Stretch { file: 0, offset, length: (run.to - run.from) as u64, to }
        };
        runs.iter().map(stretch).collect::<Vec<_>>()
    });
    let mut found = at_borders(joined(found.flatten()), sizes);
    found.retain(|copy| copy.length >= LEAST);
    found
}

/// Writes the requests that make `new` of `old` by `stretches`; with `to` comes how many bytes they are.
///
/// # Errors
/// When `to` cannot be written.
pub fn write_requests<W: Write>(old: &OldSide, new: &[u8], stretches: &[Stretch], to: W) -> io::Result<(W, u64)> {
    let begins = begins(&old.sizes);
    let mut requests = Requests::new(to)?;
    let mut done = 0;
    for copy in stretches {
        let (from, length) = (index(copy.to), index(copy.length));
        let place = index(begins[copy.file] + copy.offset);
        requests.write(done, &new[done..from])?;
        requests.copy(copy.file, &old.paths[copy.file], copy.offset, copy.length, copy.to)?;
        done = from + length;
        for range in changed(&old.bytes[place..place + length], &new[from..done]) {
            requests.write(from + range.start, &new[from + range.start..from + range.end])?;
        }
    }
    requests.write(done, &new[done..])?;
    requests.finish()
}

/// Where two sides of the same length differ.
fn changed<'a>(old: &'a [u8], new: &'a [u8]) -> impl Iterator<Item = Range<usize>> + 'a {
    let same = |at: usize| common_prefix(&old[at..], &new[at..]);
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + same(at);
        let mut end = start;
        at = start;
        while at < new.len() && at - end < NEAR {
            end = at + 1;
            at = end + same(end);
        }
        (start < end).then_some(start..end)
    })
}

/// Frames cut what belongs together, and a few changed bytes do not part a stretch.
fn joined(found: impl Iterator<Item = Stretch>) -> Vec<Stretch> {
    let mut all: Vec<Stretch> = Vec::new();
    for copy in found {
        match all.last_mut() {
            Some(last) if last.to + copy.offset == last.offset + copy.to && copy.to - (last.to + last.length) <= LEAST => {
                last.length = copy.to + copy.length - last.to;
            }
            _ => all.push(copy),
        }
    }
    all
}

/// Splits at the borders of files, and counts offsets from where each begins.
fn at_borders(found: Vec<Stretch>, sizes: &[u64]) -> Vec<Stretch> {
    let begins = begins(sizes);
    let mut split = Vec::with_capacity(found.len());
    for mut copy in found {
        while copy.length > 0 {
            let file = begins.partition_point(|begin| *begin <= copy.offset).saturating_sub(1);
            let (Some(begin), Some(size)) = (begins.get(file), sizes.get(file)) else { break };
            let length = copy.length.min(begin + size - copy.offset);
            if length == 0 {
                break;
            }
            split.push(Stretch { file, offset: copy.offset - begin, length, to: copy.to });
            copy = Stretch { file: 0, offset: copy.offset + length, length: copy.length - length, to: copy.to + length };
        }
    }
    split
}

fn begins(sizes: &[u64]) -> Vec<u64> {
    let begin = |before: &mut u64, size: &u64| Some(std::mem::replace(before, *before + size));
    sizes.iter().scan(0, begin).collect()
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
