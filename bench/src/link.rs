//! When a byte that was sent now arrives: a link's delay and rate, as arithmetic on instants.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a link is like, the same in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// One way.
    pub delay: Duration,
    /// Without it, any number at once.
    pub bytes_per_second: Option<f64>,
}

/// What waits before the slow part of a link is as much as it sends in this time; more is not taken off the sender's hands. The
/// queue of a home router, about. Without a bound one stream's megabytes would stand before another's single byte for seconds.
const QUEUE: Duration = Duration::from_millis(100);

/// One direction of a link that all connections share.
#[derive(Debug)]
pub struct Direction {
    line: Line,
    /// When the last byte that was taken has left.
    free: Mutex<Option<Instant>>,
}

impl Direction {
    /// An idle one.
    pub fn new(line: Line) -> Self {
        Self { line, free: Mutex::new(None) }
    }

    /// Bytes to take at once: small where a rate counts, because a chunk travels as one and arrives when its last byte does.
    pub fn chunk(&self) -> usize {
        if self.line.bytes_per_second.is_some() { 4 << 10 } else { 64 << 10 }
    }

    /// When `bytes` that are sent at `now` arrive. They leave behind all that was sent before.
    pub fn send(&self, bytes: usize, now: Instant) -> Instant {
        let Some(rate) = self.line.bytes_per_second else { return now + self.line.delay };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = free.map_or(now, |free| free.max(now));
        #[expect(clippy::cast_precision_loss, reason = "a chunk is some thousand bytes")]
        let left = begins + Duration::from_secs_f64(bytes as f64 / rate);
        *free = Some(left);
        left + self.line.delay
    }

    /// How long to wait before more is taken: until the queue is short enough.
    pub fn full(&self, now: Instant) -> Duration {
        let free = *self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.map_or(Duration::ZERO, |free| free.saturating_duration_since(now).saturating_sub(QUEUE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn without_a_rate_all_arrives_after_the_delay() {
        let way = Direction::new(Line { delay: 25 * MS, bytes_per_second: None });
        let now = Instant::now();
        assert_eq!(way.send(1 << 30, now), now + 25 * MS);
        assert_eq!(way.send(1, now), now + 25 * MS);
        assert_eq!(way.full(now), Duration::ZERO);
    }

    #[test]
    fn with_a_rate_chunks_leave_one_behind_the_other() {
        let way = Direction::new(Line { delay: 25 * MS, bytes_per_second: Some(1000.0) });
        let now = Instant::now();
        assert_eq!(way.send(100, now), now + 125 * MS);
        assert_eq!(way.send(200, now), now + 325 * MS, "it waits for the first");
        assert_eq!(way.full(now), 200 * MS, "300 ms wait, 100 ms of that may");
        assert_eq!(way.full(now + 250 * MS), Duration::ZERO);
        assert_eq!(way.send(100, now + 1000 * MS), now + 1125 * MS, "an idle link saves nothing up");
    }
}
