//! Covers a piece of the new side by diagonals: stretches that stand in the old side at a constant distance, most of them with
//! a few changed bytes in between.
//!
//! An edit in a program moves all code behind it, so every relative call and every address in a table differs. What stays is the
//! diagonal: it is followed as long as it fits well enough, and left where the index knows a clearly better one.

use super::bytes::{common_prefix, common_suffix, equal_places, word};
use super::index::{Index, PIECE, STRIDE};

/// A diagonal is left for another one that has so many more equal bytes.
const GAIN: usize = 12;
/// Equal bytes that begin a diagonal, when the index found it.
const ANCHOR: usize = 20;
/// The same for a diagonal that was followed a moment ago.
const KNOWN_ANCHOR: usize = 12;
/// So much behind a changed byte is looked at,
const AHEAD: usize = 32;
/// and with so many equal bytes in it there is no look at the index.
const GOOD: usize = 24;
/// A diagonal ends when its score (1 for an equal byte, -1 for another) fell by so much.
const FADE: i64 = 32;
/// Diagonals that are tried without asking the index.
const RECENT: usize = 2;

/// A stretch of the new side that is like one of the old side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where it begins in the new side.
    pub from: usize,
    /// Where it ends in the new side.
    pub to: usize,
    /// Offset in the old side minus offset in the new one.
    pub shift: i64,
}

impl Run {
    /// Where it begins in the old side.
    pub fn old_from(&self) -> usize {
        moved(self.from, self.shift)
    }

    /// Where it ends in the old side.
    pub fn old_to(&self) -> usize {
        moved(self.to, self.shift)
    }
}

fn moved(at: usize, shift: i64) -> usize {
    usize::try_from(i64::try_from(at).unwrap_or(i64::MAX).saturating_add(shift)).unwrap_or(usize::MAX)
}

fn distance(old: usize, new: usize) -> i64 {
    i64::try_from(old).unwrap_or(i64::MAX) - i64::try_from(new).unwrap_or(0)
}

/// The runs that cover `from..to` of `new`, in order and without overlaps. What is between them is like nothing in `old`.
pub fn cover(old: &[u8], new: &[u8], index: &Index, from: usize, to: usize) -> Vec<Run> {
    let piece = Piece { old, new: &new[..to], index };
    let mut runs = Vec::new();
    let mut recent = [0; RECENT];
    let mut at = from;
    while let Some(mut anchor) = piece.seek(at, &recent) {
        loop {
            remember(&mut recent, anchor.shift);
            let (run, next) = piece.follow(anchor, &recent);
            at = run.to.max(anchor.from + 1);
            runs.push(run);
            match next {
                Some(better) => anchor = better,
                None => break,
            }
        }
    }
    piece.settle(&runs, from)
}

/// The newest first.
fn remember(recent: &mut [i64; RECENT], shift: i64) {
    let place = recent.iter().position(|known| *known == shift).unwrap_or(RECENT - 1);
    recent[..=place].rotate_right(1);
    recent[0] = shift;
}

struct Piece<'a> {
    old: &'a [u8],
    /// Up to the end of the piece.
    new: &'a [u8],
    index: &'a Index,
}

impl Piece<'_> {
    fn old_at(&self, at: usize, shift: i64) -> &[u8] {
        self.old.get(moved(at, shift)..).unwrap_or_default()
    }

    /// The first anchor at or behind `at`.
    fn seek(&self, mut at: usize, recent: &[i64]) -> Option<Run> {
        let begin = at;
        while at + PIECE <= self.new.len() {
            if let Some(found) = self.anchor_at(at, begin, recent) {
                return Some(found);
            }
            // What is new over a long way is looked at ever more coarsely.
            at += 1 + (at - begin) / 4096;
        }
        None
    }

    /// The longest stretch of equal bytes over `at`, not before `floor`.
    fn anchor_at(&self, at: usize, floor: usize, recent: &[i64]) -> Option<Run> {
        let guess = self.index.guess(self.new, at).map(|old| (distance(old, at), ANCHOR));
        let known = recent.iter().map(|shift| (*shift, KNOWN_ANCHOR));
        let here = word(self.new, at);
        let found = known.chain(guess).filter_map(|(shift, least)| {
            let from = moved(at, shift);
            // Most end here.
            if from >= self.old.len() || word(self.old, from) != here {
                return None;
            }
            let ahead = common_prefix(&self.old[from..], &self.new[at..]);
            let behind = common_suffix(&self.old[..from], &self.new[floor..at]);
            (ahead + behind >= least).then_some(Run { from: at - behind, to: at + ahead, shift })
        });
        // The first of equals: `max_by_key` would take the last.
        found.reduce(|best, next| if next.to - next.from > best.to - best.from { next } else { best })
    }

    /// Follows the diagonal of `anchor` to where it fits no more, or to where another one fits better.
    fn follow(&self, anchor: Run, recent: &[i64]) -> (Run, Option<Run>) {
        let shift = anchor.shift;
        let mut at = anchor.to;
        // Score at `at`, and the best one with its place.
        let (mut score, mut best, mut end) = (0, 0, at);
        let mut looked = at;
        let run = |end| Run { to: end, ..anchor };
        while at < self.new.len() {
            let (old, new) = (self.old_at(at, shift), &self.new[at..]);
            if old.is_empty() {
                break;
            }
            let same = common_prefix(old, new);
            if same > 0 {
                at += same;
                score += i64::try_from(same).unwrap_or(0);
                if score >= best {
                    (best, end) = (score, at);
                }
                continue;
            }
            let ahead = AHEAD.min(new.len());
            if equal_places(&old[..old.len().min(ahead)], &new[..ahead]) * AHEAD < GOOD * ahead {
                let until = (at + 1 + STRIDE).min(self.new.len());
                for place in looked.max(at)..until {
                    let found = self.anchor_at(place, anchor.from, recent);
                    if let Some(better) = found.filter(|found| self.beats(found, shift)) {
                        return (run(end), Some(better));
                    }
                }
                looked = until.max(looked);
            }
            at += 1;
            score -= 1;
            if score < best - FADE {
                break;
            }
        }
        (run(end), None)
    }

    /// Whether a stretch of equal bytes is clearly better than the diagonal `shift` over the same bytes.
    fn beats(&self, found: &Run, shift: i64) -> bool {
        if found.shift == shift {
            return false;
        }
        // Enough to tell; an anchor may be megabytes long.
        let length = (found.to - found.from).min(256);
        let here = &self.new[found.from..found.from + length];
        equal_places(self.old_at(found.from, shift), here) + GAIN <= length
    }

    /// Extends the runs backward, and moves the border of two that meet to where both fit best.
    fn settle(&self, runs: &[Run], start: usize) -> Vec<Run> {
        let mut settled: Vec<Run> = Vec::with_capacity(runs.len());
        for run in runs.iter().filter(|run| run.from < run.to) {
            let floor = settled.last().map_or(start, |before| before.to);
            let mut run = Run { from: self.extend_back(run, floor), ..*run };
            if let Some(before) = settled.last_mut().filter(|before| before.to >= run.from) {
                let border = self.border(before, &run);
                (before.to, run.from) = (border, border);
                if before.from >= before.to {
                    settled.pop();
                }
            }
            match settled.last_mut() {
                // Cheaper as one with a few changed bytes.
                Some(before) if before.shift == run.shift && before.to + 8 >= run.from => before.to = run.to,
                _ if run.from < run.to => settled.push(run),
                _ => {}
            }
        }
        settled
    }

    fn extend_back(&self, run: &Run, floor: usize) -> usize {
        let (mut score, mut best, mut from) = (0, 0, run.from);
        let mut at = run.from;
        while at > floor && moved(at, run.shift) > 0 && score >= best - FADE {
            at -= 1;
            score += if self.fits(at, run.shift) { 1 } else { -1 };
            if score > best {
                (best, from) = (score, at);
            }
        }
        from
    }

    fn fits(&self, at: usize, shift: i64) -> bool {
        self.old.get(moved(at, shift)).is_some_and(|byte| *byte == self.new[at])
    }

    /// Where `before` should give way to `run`, which begins in it or at its end.
    fn border(&self, before: &Run, run: &Run) -> usize {
        // Where the later run has no old bytes it cannot begin.
        let least = usize::try_from(-run.shift).unwrap_or(0);
        let low = run.from.saturating_sub(64).max(before.from).max(least);
        let high = before.to.min(run.to).max(low);
        let (mut score, mut best, mut border) = (0_i32, 0, low);
        for at in low..high {
            score += i32::from(self.fits(at, before.shift)) - i32::from(self.fits(at, run.shift));
            if score > best {
                (best, border) = (score, at + 1);
            }
        }
        border
    }
}
