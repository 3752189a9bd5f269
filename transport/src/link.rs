//! What a connection learns about its line: how long an answer takes, and how many channels an upload needs for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// sshd lets so much be under way on a channel, whatever its configuration says.
pub(crate) const WINDOW: u64 = 2 << 20;
/// The round trip up to which one window keeps sshd busy: 2 MiB in 12 ms are 175 MB/s, more than it decrypts.
const NEAR: Duration = Duration::from_millis(12);
/// Channels of one upload at most. sshd takes ten by default: the others are for the shell and a command beside it.
pub(crate) const MAX_CHANNELS: u64 = 8;
/// What the first channel sends before a further one is open: less is not worth one.
const HEAD_START: u64 = 2 * WINDOW;

/// The line of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Link(Arc<AtomicU64>);

impl Default for Link {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(u64::MAX)))
    }
}

impl Link {
    /// Notes that `exchanges` requests, each sent after the answer to the one before, took the time since `begun`.
    ///
    /// The host's own work is part of it, so the least of all is the nearest to the line's share. The time of the TCP connect
    /// would say nothing behind a relay, which accepts at once.
    pub(crate) fn heard(&self, begun: Instant, exchanges: u32) {
        let each = begun.elapsed() / exchanges.max(1);
        self.0.fetch_min(u64::try_from(each.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The quickest exchange so far; `None` before the first.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        Some(self.0.load(Ordering::Relaxed)).filter(|micros| *micros != u64::MAX).map(Duration::from_micros)
    }

    /// How many channels `bytes` are best sent over.
    pub(crate) fn channels(&self, bytes: u64) -> usize {
        channels(self.round_trip().unwrap_or_default(), bytes)
    }
}

/// As many as keep the host busy through a round trip, and as the bytes left after the head start fill at all.
fn channels(round_trip: Duration, bytes: u64) -> usize {
    let needed = round_trip.as_micros().div_ceil(NEAR.as_micros()).clamp(1, u128::from(MAX_CHANNELS));
    let filled = 1 + bytes.saturating_sub(HEAD_START).div_ceil(WINDOW);
    usize::try_from(needed.min(u128::from(filled))).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_for_a_line_and_a_size() {
        let on = |ms, mib: u64| channels(Duration::from_millis(ms), mib << 20);
        assert_eq!([on(0, 1000), on(1, 1000), on(12, 1000)], [1, 1, 1], "a near host");
        assert_eq!([on(100, 0), on(100, 1), on(100, 4)], [1, 1, 1], "a small file");
        assert_eq!([on(100, 5), on(100, 8), on(100, 20), on(500, 9999)], [2, 3, 8, 8]);
        assert_eq!([on(13, 1000), on(30, 1000), on(60, 1000)], [2, 3, 5]);
    }

    #[test]
    fn the_quickest_exchange_counts() {
        let link = Link::default();
        assert_eq!((link.round_trip(), link.channels(1 << 30)), (None, 1));
        let ago = |ms| Instant::now().checked_sub(Duration::from_millis(ms)).expect("the clock began earlier");
        link.heard(ago(900), 3);
        link.heard(ago(500), 1);
        let measured = link.round_trip().expect("heard twice");
        assert!((300..400).contains(&measured.as_millis()), "{measured:?}");
    }
}
