//! A long link between a client and servers, on one machine: connections through it meet delay and rate, and are counted.
//!
//! Delay is added to every byte both ways, and as much may be under way as anybody sends: what limits a stream is then its own
//! protocol, as on a real link without losses. Neither TCP's slow start nor its headers are in it.
//!
//! **The handshake.** On a real link with one-way delay `d`, a client's `connect` returns after `2d`, the server hears of the
//! connection at `3d` and its greeting arrives at `4d`. Here `connect` returns at once. So the server is dialled `3d` after
//! that; and what the client says before it has heard anything, it says `2d` too early: it is held back by so much, one round
//! trip. Both then come to what a real link gives.
//!
//! Threads and not tasks: tokio rounds its timers up to whole milliseconds, which over some ten turns would be several.

use crate::link::{Direction, Line};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A running relay; it runs as long as its process.
pub struct Relay {
    ports: Vec<u16>,
}

/// What all connections share.
struct Shared {
    line: Line,
    up: Direction,
    down: Direction,
    began: Instant,
    stats: Option<Mutex<File>>,
}

impl Relay {
    /// Listens on loopback at each port, 0 for a free one, and relays to the address beside it.
    ///
    /// # Errors
    /// When a port is taken or the file for figures cannot be opened.
    pub fn start(maps: &[(u16, String)], line: Line, stats: Option<&Path>) -> Result<Self, String> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map(Mutex::new).map_err(|e| format!("cannot open `{}`: {e}", path.display()))
        };
        let (up, down) = (Direction::new(line), Direction::new(line));
        let shared = Arc::new(Shared { line, up, down, began: Instant::now(), stats: stats.map(open).transpose()? });
        let mut ports = Vec::new();
        for (port, to) in maps {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).map_err(|e| format!("port {port}: {e}"))?;
            ports.push(listener.local_addr().map_err(|e| e.to_string())?.port());
            let (to, shared) = (to.clone(), shared.clone());
            thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    let (to, shared, accepted) = (to.clone(), shared.clone(), Instant::now());
                    thread::spawn(move || {
                        // A client that went away, or a server that is not there: the connection ends, which the client sees.
                        let _ = connection(&client, &to, &shared, accepted);
                    });
                }
            });
        }
        Ok(Self { ports })
    }

    /// Where it listens, in the order given.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }
}

/// What went through one connection.
#[derive(Debug, Default)]
struct Counts {
    up: AtomicU64,
    down: AtomicU64,
    /// How often the client began to speak: at first, and each time after it was given something.
    turns: AtomicU64,
    /// It has spoken and was not given anything since.
    speaking: AtomicBool,
    /// It was given something at least once.
    greeted: AtomicBool,
}

impl Counts {
    fn client_spoke(&self, bytes: u64) {
        self.up.fetch_add(bytes, Ordering::Relaxed);
        if !self.speaking.swap(true, Ordering::Relaxed) {
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn client_hears(&self) {
        self.greeted.store(true, Ordering::Relaxed);
        self.speaking.store(false, Ordering::Relaxed);
    }
}

fn connection(client: &TcpStream, to: &str, shared: &Shared, accepted: Instant) -> std::io::Result<()> {
    let d = shared.line.delay;
    client.set_nodelay(true)?;
    let counts = Counts::default();
    let (up, down) = (mpsc::channel(), mpsc::channel());
    let dialled = OnceLock::new();
    thread::scope(|scope| {
        let (counts, dialled) = (&counts, &dialled);
        scope.spawn(move || {
            let too_early = || if counts.greeted.load(Ordering::Relaxed) { Duration::ZERO } else { 2 * d };
            take(client, &shared.up, &up.0, too_early, |bytes| counts.client_spoke(bytes));
        });
        wait_until(accepted + 3 * d);
        let server = TcpStream::connect(to).and_then(|server| server.set_nodelay(true).map(|()| server));
        let server = server.inspect_err(|_| {
            let _ = client.shutdown(Shutdown::Both);
        })?;
        let server = dialled.get_or_init(|| server);
        scope.spawn(move || give(&up.1, server, client, || ()));
        scope.spawn(move || give(&down.1, client, server, || counts.client_hears()));
        take(
            server,
            &shared.down,
            &down.0,
            || Duration::ZERO,
            |bytes| {
                counts.down.fetch_add(bytes, Ordering::Relaxed);
            },
        );
        std::io::Result::Ok(())
    })?;
    tell(&counts, to, client, shared, accepted);
    Ok(())
}

/// A piece of a stream and when it arrives; an empty one is its end.
type Piece = (Instant, Vec<u8>);

/// Reads one direction to its end and puts each piece on the way.
fn take(
    mut from: &TcpStream,
    way: &Direction,
    under_way: &mpsc::Sender<Piece>,
    too_early: impl Fn() -> Duration,
    count: impl Fn(u64),
) {
    let mut buffer = vec![0; way.chunk()];
    let mut last = None;
    loop {
        thread::sleep(way.full(Instant::now()));
        let bytes = from.read(&mut buffer).unwrap_or(0);
        let due = way.send(bytes, Instant::now() + too_early());
        // Nothing overtakes what was said before.
        let due = last.map_or(due, |last| due.max(last));
        last = Some(due);
        if bytes > 0 {
            count(bytes as u64);
        }
        if under_way.send((due, buffer[..bytes].to_vec())).is_err() || bytes == 0 {
            return;
        }
    }
}

/// Writes one direction to its end, each piece when it is due.
fn give(under_way: &mpsc::Receiver<Piece>, mut to: &TcpStream, from: &TcpStream, hears: impl Fn()) {
    for (due, data) in under_way {
        wait_until(due);
        if data.is_empty() {
            break;
        }
        // Before it is written: the answer may be read before this thread goes on.
        hears();
        if to.write_all(&data).is_err() {
            // Whoever sends must hear of it, and not fill memory with what nobody reads any more.
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn wait_until(due: Instant) {
    thread::sleep(due.saturating_duration_since(Instant::now()));
}

/// One line for a finished connection.
fn tell(counts: &Counts, to: &str, client: &TcpStream, shared: &Shared, accepted: Instant) {
    let Some(stats) = &shared.stats else { return };
    let line = serde_json::json!({
        "port": client.local_addr().map(|a| a.port()).unwrap_or_default(),
        "to": to,
        "began_s": (accepted - shared.began).as_secs_f64(),
        "took_s": accepted.elapsed().as_secs_f64(),
        "up": counts.up.load(Ordering::Relaxed),
        "down": counts.down.load(Ordering::Relaxed),
        "turns": counts.turns.load(Ordering::Relaxed),
    });
    // In one write, so that a reader finds whole lines.
    let _ = stats.lock().unwrap_or_else(PoisonError::into_inner).write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relay to a server of one connection, and what it told of it.
    fn through(delay_ms: u64, rate: Option<f64>, server: fn(&TcpStream), client: impl FnOnce(TcpStream)) -> serde_json::Value {
        let folder = tempfile::tempdir().expect("a folder");
        let stats = folder.path().join("stats");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let to = listener.local_addr().expect("an address").to_string();
        thread::spawn(move || server(&listener.accept().expect("a client").0));
        let line = Line { delay: Duration::from_millis(delay_ms), bytes_per_second: rate };
        let relay = Relay::start(&[(0, to)], line, Some(&stats)).expect("a relay");
        client(TcpStream::connect((Ipv4Addr::LOCALHOST, relay.ports()[0])).expect("a connection"));
        loop {
            let text = std::fs::read_to_string(&stats).expect("figures");
            if let Some(line) = text.lines().next().filter(|_| text.ends_with('\n')) {
                return serde_json::from_str(line).expect("JSON");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn hear(mut stream: &TcpStream, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        stream.read_exact(&mut buffer).expect("an answer");
        buffer
    }

    fn say(mut stream: &TcpStream, words: &[u8]) {
        stream.write_all(words).expect("is taken");
    }

    fn echo(stream: &TcpStream) {
        let mut out = stream.try_clone().expect("a copy");
        let _ = std::io::copy(&mut &*stream, &mut out);
        let _ = out.shutdown(Shutdown::Write);
    }

    #[test]
    fn bytes_and_turns_are_counted_exactly() {
        let told = through(2, None, echo, |stream| {
            for words in [&b"one"[..], b"two!!", b"three"] {
                say(&stream, words);
                assert_eq!(hear(&stream, words.len()), words);
            }
        });
        assert_eq!((&told["up"], &told["down"], &told["turns"]), (&13.into(), &13.into(), &3.into()));
    }

    #[test]
    fn a_long_stream_is_one_turn_and_comes_whole() {
        fn swallow(stream: &TcpStream) {
            let bytes = std::io::copy(&mut &*stream, &mut std::io::sink()).expect("reads");
            say(stream, &bytes.to_be_bytes());
        }
        let told = through(1, None, swallow, |stream| {
            say(&stream, &vec![7; 3_000_000]);
            stream.shutdown(Shutdown::Write).expect("says that it is done");
            assert_eq!(hear(&stream, 8), 3_000_000u64.to_be_bytes());
        });
        assert_eq!((&told["up"], &told["down"], &told["turns"]), (&3_000_000.into(), &8.into(), &1.into()));
    }

    #[test]
    fn delay_is_met_both_ways_and_by_the_handshake() {
        let d = Duration::from_millis(30);
        let began = Instant::now();
        through(30, None, echo, |stream| {
            say(&stream, b"a");
            hear(&stream, 1);
            assert!(began.elapsed() >= 4 * d, "handshake, there and back: {:?}", began.elapsed());
            let again = Instant::now();
            say(&stream, b"b");
            hear(&stream, 1);
            assert!(again.elapsed() >= 2 * d, "{:?}", again.elapsed());
        });
    }

    #[test]
    fn a_server_that_greets_is_heard_after_two_round_trips() {
        fn greet(stream: &TcpStream) {
            say(stream, b"hello");
            hear(stream, 1);
        }
        let began = Instant::now();
        let told = through(30, None, greet, |stream| {
            hear(&stream, 5);
            assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
            say(&stream, b"x");
        });
        assert_eq!((&told["up"], &told["down"], &told["turns"]), (&1.into(), &5.into(), &1.into()));
    }

    #[test]
    fn a_rate_is_kept() {
        let began = Instant::now();
        let told = through(0, Some(1_000_000.0), echo, |stream| {
            say(&stream, &[1; 100_000]);
            hear(&stream, 100_000);
            // Up and down overlap, but for the last piece.
            assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
        });
        assert_eq!((&told["up"], &told["down"]), (&100_000.into(), &100_000.into()));
    }

    #[test]
    fn a_server_that_is_not_there_ends_the_connection() {
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port").local_addr().expect("an address");
        let line = Line { delay: Duration::ZERO, bytes_per_second: None };
        let relay = Relay::start(&[(0, nobody.to_string())], line, None).expect("a relay");
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.ports()[0])).expect("a connection");
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
    }
}
