//! What an earlier upload left behind: the host tells the sha256 of each block of it, and only the blocks that differ are sent.
//!
//! Sizes would not do: several channels leave holes, and a host that lost power may have a file of the right size and zeros in
//! it. Anything odd in the answer means that all is sent.

use super::source::{Source, Sum};
use crate::session::Connection;
use crate::{Exit, TransportError};
use bytes::Bytes;
use roadie_model::sh::quote;
use std::ops::Range;
use std::time::Duration;

/// Blocks are a multiple of this many bytes, and `dd` reads so many at once.
pub(super) const UNIT: u64 = 1 << 20;
/// Blocks of a file at most: their digests must be a small answer.
const MAX_BLOCKS: u64 = 64;
/// Bytes of the answer: 64 lines of digests, and the size.
pub(super) const ANSWER: usize = 16 << 10;

/// How a file is cut into blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    /// Bytes of the whole file.
    size: u64,
    /// Units in a block.
    pub(super) units: u64,
}

impl Blocks {
    pub(super) fn of(size: u64) -> Self {
        Self { size, units: size.div_ceil(MAX_BLOCKS * UNIT).max(1) }
    }

    /// Byte ranges of all blocks, in order.
    pub(super) fn ranges(self) -> Vec<Range<u64>> {
        let block = self.units * UNIT;
        (0..self.size.div_ceil(block)).map(|n| n * block..self.size.min((n + 1) * block)).collect()
    }

    /// Whether a file of `size` bytes may hold something of this one that is worth asking for: two exchanges.
    pub(super) fn worth_asking(self, size: u64) -> bool {
        (UNIT..=self.size).contains(&size)
    }

    /// Shell text that prints the size of `$f`, then the sha256 of each block of it. Only the size when it is longer than ours
    /// or too short, nothing when there is no such file. POSIX sh, dd, wc, cut, sha256sum, as in busybox.
    pub(super) fn question(self) -> String {
        let Self { size, units } = self;
        format!(
            "s=$(wc -c <\"$f\") && echo $s && if [ $s -le {size} ] && [ $s -ge {UNIT} ]; then i=0; \
             while [ $((i*{units}*{UNIT})) -lt $s ]; do \
             dd if=\"$f\" bs={UNIT} skip=$((i*{units})) count={units} 2>/dev/null | sha256sum | cut -c1-64; i=$((i+1)); done; fi"
        )
    }

    /// The blocks that a file of `size` bytes reaches into.
    pub(super) fn reached(self, size: u64) -> Vec<Range<u64>> {
        self.ranges().into_iter().filter(|block| block.start < size).collect()
    }

    /// Byte ranges that `answer` does not prove to be there, neighbours joined. `ours` are the digests of the first blocks here.
    pub(super) fn missing(self, answer: &Answer, ours: &[Sum]) -> Vec<Range<u64>> {
        let mut missing: Vec<Range<u64>> = Vec::new();
        for (n, block) in self.ranges().into_iter().enumerate() {
            if ours.get(n).is_some_and(|ours| answer.sums.get(n) == Some(&Some(*ours))) {
                continue;
            }
            match missing.last_mut() {
                Some(last) if last.end == block.start => last.end = block.end,
                _ => missing.push(block),
            }
        }
        missing
    }
}

/// What the host says of the file.
pub(super) struct Answer {
    /// Bytes; 0 also when there is none.
    pub(super) size: u64,
    /// Of each block; `None` for a line that is no digest.
    sums: Vec<Option<Sum>>,
}

impl Answer {
    pub(super) fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let size = lines.next().and_then(|line| line.trim().parse().ok()).unwrap_or(0);
        Self { size, sums: lines.map(parse).collect() }
    }
}

fn parse(line: &str) -> Option<Sum> {
    let mut sum = Sum::default();
    if line.len() != 2 * sum.len() || !line.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in sum.iter_mut().zip((0..line.len()).step_by(2)) {
        *byte = u8::from_str_radix(&line[at..at + 2], 16).ok()?;
    }
    Some(sum)
}

/// How long a host may take for the digests of so many bytes: half a minute, and a second for each 4 MiB.
pub(super) fn patience(bytes: u64) -> Duration {
    Duration::from_secs(30 + (bytes >> 22))
}

/// What of `source` is missing in `remote`, which had `size` bytes; `None` when that cannot be told, or when the shell finds
/// another file there than sftp did. Two round trips: a channel, an answer.
pub(super) async fn check(
    connection: &Connection,
    source: &Source,
    remote: &str,
    size: u64,
) -> Result<Option<Vec<Range<u64>>>, TransportError> {
    let blocks = Blocks::of(source.size());
    let command = format!("f={}; {}", quote(remote), blocks.question());
    // A host that runs no command for us has no say, but may well take the file.
    let Ok(process) = connection.start(&command).await else { return Ok(None) };
    let asked = tokio::time::timeout(patience(size), process.run(Bytes::new(), ANSWER));
    let (output, ours) = futures::join!(asked, source.sums(blocks.reached(size)));
    let (Ok(output), ours) = (output, ours?) else { return Ok(None) };
    let answer = Answer::parse(&String::from_utf8_lossy(&output.stdout));
    let told = output.exit == Exit::Status(0) && answer.size == size;
    Ok(told.then(|| blocks.missing(&answer, &ours)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_file_and_are_few() {
        for size in [0, 1, UNIT - 1, UNIT, UNIT + 1, 64 * UNIT, 64 * UNIT + 1, 1000 * UNIT + 7, 1 << 40] {
            let ranges = Blocks::of(size).ranges();
            assert!(ranges.len() <= 64, "{size}");
            let end = ranges.iter().fold(0, |at, r| if r.start == at && r.end > at { r.end } else { u64::MAX });
            assert_eq!(end, size);
        }
        assert_eq!(Blocks::of(64 * UNIT).units, 1);
        assert_eq!(Blocks::of(64 * UNIT + 1).units, 2);
    }

    #[test]
    fn only_digests_are_digests() {
        assert_eq!(parse(&"0f".repeat(32)), Some([15; 32]));
        for odd in ["", "0f", &"0f".repeat(33), &"zz".repeat(32), &"é".repeat(32), &"+f".repeat(32)] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }
}
