//! What a connection learns about its line: how long an answer takes, and how many channels an upload needs for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// sshd lets so much be under way on a channel, whatever its configuration says.
pub(crate) const WINDOW: u64 = 2 << 20;
/// The round trip up to which one window keeps sshd busy: 2 MiB in 12 ms are 175 MB/s, more than it decrypts.
const NEAR: Duration = Duration::from_millis(12);
/// Bytes under way at least. What sshd has taken and not yet handed on lies in one buffer, which it copies whenever that grows: with
/// its whole window full at a near host, 7 MB take it five times as long as with this.
const LEAST_UNDER_WAY: u64 = 512 << 10;
/// An upload whose answers are still to come begins with so many bytes at once.
pub(crate) const BURST: u64 = LEAST_UNDER_WAY;

/// How long after its beginning an upload sends its byte `at`, as long as it has had no answer: as fast as sshd decrypts. What comes
/// faster fills sshd's buffers, and to let these grow takes it longer than to decrypt.
pub(crate) fn pace(at: u64) -> Duration {
    let nanos = u128::from(at.saturating_sub(BURST)) * NEAR.as_nanos() / u128::from(WINDOW);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Channels of one upload at most. sshd takes ten by default: the others are for the shell and a command beside it.
pub(crate) const MAX_CHANNELS: u64 = 8;

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

    /// How many bytes are best under way on each channel.
    pub(crate) fn under_way(&self) -> u64 {
        under_way(self.round_trip().unwrap_or_default())
    }
}

/// What keeps the host busy through a round trip, and no more than sshd takes at once.
fn under_way(round_trip: Duration) -> u64 {
    let kept_busy = u128::from(WINDOW) * round_trip.as_micros() / NEAR.as_micros();
    u64::try_from(kept_busy).unwrap_or(u64::MAX).clamp(LEAST_UNDER_WAY, WINDOW)
}

/// As many as keep the host busy through a round trip, and as the bytes fill at all.
fn channels(round_trip: Duration, bytes: u64) -> usize {
    let needed = round_trip.as_micros().div_ceil(NEAR.as_micros()).clamp(1, u128::from(MAX_CHANNELS));
    let filled = bytes.div_ceil(WINDOW).max(1);
    usize::try_from(needed.min(u128::from(filled))).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_for_a_line_and_a_size() {
        let on = |ms, mib: u64| channels(Duration::from_millis(ms), mib << 20);
        assert_eq!([on(0, 1000), on(1, 1000), on(12, 1000)], [1, 1, 1], "a near host");
        assert_eq!([on(100, 0), on(100, 1), on(100, 2)], [1, 1, 1], "a small file");
        assert_eq!([on(100, 3), on(100, 8), on(100, 20), on(500, 9999)], [2, 4, 8, 8]);
        assert_eq!([on(13, 1000), on(30, 1000), on(60, 1000)], [2, 3, 5]);
    }

    #[test]
    fn bytes_under_way_for_a_line() {
        let on = |ms| under_way(Duration::from_millis(ms)) >> 10;
        assert_eq!([on(0), on(1), on(6), on(12), on(9999)], [512, 512, 1024, 2048, 2048]);
    }

    #[test]
    fn the_first_bytes_are_paced() {
        assert_eq!([pace(0), pace(BURST)], [Duration::ZERO; 2]);
        assert_eq!(pace(BURST + WINDOW), NEAR);
        assert_eq!(pace(BURST + 4 * WINDOW), 4 * NEAR);
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
