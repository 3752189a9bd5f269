//! The same two sides for a host without perl: whole stretches that an SFTP server copies by itself (`copy-data`), and the bytes
//! in between.
//!
//! A request costs some hundred bytes on the wire, so short stretches travel as literals.

use super::diagonals::Run;
use super::patch::frames;
use crate::gzip::Gzip;
use roadie_model::package::Stretch;
use std::io::{self, Write};

/// Bytes on the wire of one request: 62, and its share of the packet that it travels in with others.
pub const REQUEST: u64 = 66;
/// Bytes of literals that are compressed to see how well they do.
const SAMPLE: usize = 1 << 20;
/// Shortest stretches that are tried.
const LEAST: [u64; 9] = [64, 96, 128, 192, 256, 384, 512, 1024, 4096];

/// How the new side is made by copying.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copies {
    /// In the order of the new side, without overlaps. None spans two files.
    pub stretches: Vec<Stretch>,
    /// What is between the copies, one behind the other.
    pub literals: Vec<u8>,
    /// Bytes of the new side.
    pub length: u64,
}

impl Copies {
    /// Writes the new side with zeros where a copy belongs: compressed they cost next to nothing, and every literal is in its
    /// place already. One stream lays it down, then the copies fill the holes.
    ///
    /// # Errors
    /// When `to` cannot be written.
    pub fn write_with_holes(&self, mut to: impl Write) -> io::Result<()> {
        let mut literals = self.literals.as_slice();
        let mut at = 0;
        for copy in &self.stretches {
            let count = usize::try_from(copy.to - at).unwrap_or(usize::MAX).min(literals.len());
            let (now, rest) = literals.split_at(count);
            to.write_all(now)?;
            literals = rest;
            io::copy(&mut io::Read::take(io::repeat(0), copy.length), &mut to)?;
            at = copy.to + copy.length;
        }
        to.write_all(literals)
    }
}

/// Finds the copies that cost the fewest bytes on the wire. `sizes` are those of the old side's files, in order.
///
/// # Errors
/// When the literals cannot be compressed, which is how they are weighed.
pub fn copies(old: &[u8], new: &[u8], sizes: &[u64], threads: usize) -> io::Result<Copies> {
    let found: Vec<Stretch> = frames(old, new, threads, |runs, _, _| exact(old, new, runs)).flatten().collect();
    let found = at_borders(joined(found), sizes);
    // One weighing is enough: how well literals compress depends little on which they are.
    let middle = literals(new, &found, 256);
    let begin = (middle.len() / 2).saturating_sub(SAMPLE / 2);
    let sample = &middle[begin..middle.len().min(begin + SAMPLE)];
    let ratio = compressed(sample, threads)? as f64 / sample.len().max(1) as f64;
    let cost = |least: &u64| {
        let taken = found.iter().filter(|copy| copy.length >= *least);
        let (count, bytes) = taken.fold((0, 0), |(count, bytes), copy| (count + 1, bytes + copy.length));
        count * REQUEST + ((new.len() as u64 - bytes) as f64 * ratio) as u64
    };
    let least = LEAST.into_iter().min_by_key(cost).unwrap_or(256);
    let literals = literals(new, &found, least);
    let stretches: Vec<Stretch> = found.into_iter().filter(|copy| copy.length >= least).collect();
    Ok(Copies { stretches, literals, length: new.len() as u64 })
}

/// The equal stretches of the runs; offsets are those of the whole old side.
fn exact(old: &[u8], new: &[u8], runs: &[Run]) -> Vec<Stretch> {
    let mut found = Vec::new();
    for run in runs {
        let (old, new) = (&old[run.old_from()..run.old_to()], &new[run.from..run.to]);
        let mut at = 0;
        while at < new.len() {
            let same = super::bytes::common_prefix(&old[at..], &new[at..]);
            if same as u64 >= LEAST[0] {
                let offset = (run.old_from() + at) as u64;
                found.push(Stretch { file: 0, offset, length: same as u64, to: (run.from + at) as u64 });
            }
            at += same + 1;
        }
    }
    found
}

/// Frames cut what belongs together.
fn joined(found: Vec<Stretch>) -> Vec<Stretch> {
    let mut all: Vec<Stretch> = Vec::with_capacity(found.len());
    for copy in found {
        match all.last_mut() {
            Some(last) if last.to + last.length == copy.to && last.offset + last.length == copy.offset => {
                last.length += copy.length;
            }
            _ => all.push(copy),
        }
    }
    all
}

/// Splits at the borders of files, and counts offsets from where each begins.
fn at_borders(found: Vec<Stretch>, sizes: &[u64]) -> Vec<Stretch> {
    let begin = |before: &mut u64, size: &u64| Some(std::mem::replace(before, *before + size));
    let begins: Vec<u64> = sizes.iter().scan(0, begin).collect();
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

fn literals(new: &[u8], found: &[Stretch], least: u64) -> Vec<u8> {
    let mut literals = Vec::new();
    let mut at = 0;
    let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(new.len());
    for copy in found.iter().filter(|copy| copy.length >= least) {
        literals.extend_from_slice(&new[at..place(copy.to)]);
        at = place(copy.to + copy.length);
    }
    literals.extend_from_slice(&new[at..]);
    literals
}

fn compressed(bytes: &[u8], threads: usize) -> io::Result<u64> {
    let mut gzip = Gzip::new(Vec::new(), threads)?;
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?.len() as u64)
}
