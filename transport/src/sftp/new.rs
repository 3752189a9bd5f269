//! Uploads of a file of which nothing is there yet: in one round trip, and the host sees the end of them without our telling it.
//!
//! OpenSSH's server numbers its open files, beginning with 0, and tells the number of one that was closed to the next. So where no
//! other file is open on a channel, the handle is known before the answer to OPEN: the bytes, CLOSE and a mark go right behind it.
//! The server works in order. All answers are looked at in the end, also what the server says of itself: sshd has taken the greeting
//! for it a round trip later than a command that was started at the same time.

use super::Uploader;
use super::channel::{self, Found, GREETING, NoServer, Sftp};
use super::job::{Failure, Flight, Job};
use super::source::Source;
use crate::{Progress, Sent, TransportError};
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::OpenFlags;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The handle of the only open file of a channel: four bytes of a number.
const FIRST: &str = "\0\0\0\0";

/// Bytes per second of the slowest link over which a server is waited for as long as it takes.
const SLOW: u64 = 32 << 10;

/// An upload of a new file. Which channels take part is known before the first byte is sent: their number is in the marks.
struct New<'n> {
    job: &'n Job<'n>,
    remote: &'n str,
    mark: &'n str,
    /// Folders that are to be made.
    folders: Vec<&'n str>,
    channels: usize,
    /// Bytes under way on each channel.
    under_way: u64,
}

impl Uploader {
    /// One round trip over OpenSSH's sftp server, where a channel was opened ahead; two else. Goes over that channel, and those
    /// that were opened beside it and are ready. Where it cannot be done like this, `upload` does it.
    pub(crate) async fn upload_new(
        &self,
        local: &Path,
        remote: &str,
        mark: &str,
        progress: Progress<'_>,
    ) -> Result<Sent, TransportError> {
        let connection = &self.opening.connection;
        let source = Arc::new(Source::open(local).await?);
        let mut waits = 0;
        let (first, _) = self.opening.channel(&mut waits).await;
        // Only what had to be waited for: the rest was heard beside other work.
        connection.round_trips.add(waits);
        // What the server says of itself is not waited for: that would be a round trip more than the first command takes.
        let Some(first) = first.filter(|first| first.is_unused() && may_be_openssh(first)) else {
            return self.upload(local, remote, progress).await;
        };
        let wanted = connection.link.channels(source.size());
        // The other way costs a whole round trip.
        let patience = connection.link.round_trip().unwrap_or_default() / 2;
        let spares = self.spares.ready(wanted - 1, patience).await;
        // With much fewer channels than it wants, the bytes take longer than what is saved.
        if 2 * (1 + spares.len()) < wanted {
            self.spares.keep(spares).await;
            return self.upload(local, remote, progress).await;
        }
        let job = Job::new(&source, progress);
        job.begin(std::iter::once(0..source.size()).collect());
        let (channels, under_way) = (1 + spares.len(), connection.link.under_way());
        let new = New { job: &job, remote, mark, folders: self.missing(remote), channels, under_way };
        tracing::debug!(remote, bytes = source.size(), channels, under_way, "upload of a new file");
        // Another upload may have come between.
        let Some(over_first) = new.begin(&first) else {
            drop(job);
            self.spares.keep(spares).await;
            return self.upload(local, remote, progress).await;
        };
        let over_spares = spares.iter().filter_map(|sftp| Some((sftp, new.begin(sftp)?)));
        let all = std::iter::once((&*first, over_first)).chain(over_spares);
        let all: Vec<_> = all.zip(1..).map(|((sftp, flight), n)| new.bring(sftp, flight, n)).collect();
        connection.round_trips.count();
        let done = tokio::select! {
            // All of them: what a channel has sent is answered before anybody else uses it.
            done = futures::future::join_all(all) => done.into_iter().collect(),
            reason = connection.gone() => Err(Failure::Here(TransportError::Disconnected { reason })),
        };
        self.spares.let_go();
        match done {
            Ok(()) => {
                self.known().extend(channel::parents(remote).into_iter().map(str::to_owned));
                Ok(job.sent())
            }
            Err(Failure::Here(error)) => Err(error),
            Err(Failure::There(error)) => {
                // One of them may be gone.
                self.known().clear();
                Err(not_new(connection.lost(), remote, channel::plain(&error)))
            }
            // Nobody has got anything of it.
            Err(Failure::NoSftp(NoServer::Ended)) if first.is_absent() => {
                drop((spares, job));
                self.upload(local, remote, progress).await
            }
            Err(Failure::NoSftp(_)) => Err(not_new(connection.lost(), remote, "no sftp server answers".into())),
        }
    }
}

/// As far as the server has said. That sshd is OpenSSH's is known.
fn may_be_openssh(sftp: &Sftp) -> bool {
    sftp.known().is_none_or(|greeting| greeting.is_ok_and(|server| server.openssh))
}

fn not_new(lost: Option<String>, remote: &str, reason: String) -> TransportError {
    match lost {
        Some(reason) => TransportError::Disconnected { reason },
        None => TransportError::NotNew { path: remote.to_owned(), reason },
    }
}

impl<'n> New<'n> {
    /// Sends all that goes before the bytes; `None` when other files are, or were, open on the channel.
    fn begin(&self, sftp: &'n Sftp) -> Option<Flight<'n>> {
        sftp.open_first(|| {
            let mut flight = Flight::new(self.job, sftp);
            for folder in &self.folders {
                channel::make(&sftp.raw, folder);
            }
            flight.add(open(sftp, self.remote, self.channels));
            flight.add(look(sftp, self.remote, self.job.source.size()));
            flight
        })
    }

    /// Sends bytes of the file, as long as there are any, and behind them the end and the mark.
    async fn bring(&self, sftp: &'n Sftp, flight: Flight<'n>, n: usize) -> Result<(), Failure> {
        // What it says of itself may come behind all that is under way.
        let before = (self.under_way * self.channels as u64).min(self.job.source.size());
        let patience = GREETING + Duration::from_secs(before / SLOW);
        let done = tokio::select! {
            done = self.send(sftp, flight, n) => done,
            why = sftp.absent(patience) => {
                self.job.stop();
                Err(Failure::NoSftp(why))
            }
        };
        match (done, sftp.known()) {
            (Err(Failure::There(_)), Some(Err(why))) => Err(Failure::NoSftp(why)),
            (done, _) => done,
        }
    }

    async fn send(&self, sftp: &'n Sftp, mut flight: Flight<'n>, n: usize) -> Result<(), Failure> {
        flight.pieces(FIRST, self.under_way).await;
        flight.add(sftp.raw.close(FIRST));
        // All marks mean that all bytes were sent, and that they are those of the file.
        if !flight.has_failed() {
            let mark = format!("{}.{}.{n}", self.mark, self.channels);
            flight.add(sftp.raw.mkdir(mark, channel::private_folder()));
        }
        flight.end().await?;
        sftp.closed_first();
        Ok(())
    }
}

/// Opens the new file; fails when it has another handle than the bytes go to. Of several channels any may be the one that makes the
/// file. One alone does not open what is there.
async fn open(sftp: &Sftp, remote: &str, channels: usize) -> Result<(), SftpError> {
    let alone = if channels == 1 { OpenFlags::EXCLUDE } else { OpenFlags::empty() };
    let handle = sftp.raw.open(remote, OpenFlags::CREATE | OpenFlags::WRITE | alone, channel::private()).await?.handle;
    if handle == FIRST {
        return Ok(());
    }
    channel::forget(&sftp.raw, &handle);
    Err(SftpError::UnexpectedBehavior("the host numbers its open files in a way of its own".into()))
}

/// Whether that is a file as we make it, or one of ours that will be like it. Nothing is cut off: one that was longer stays so.
async fn look(sftp: &Sftp, remote: &str, size: u64) -> Result<(), SftpError> {
    match channel::found(&sftp.raw.lstat(remote).await?.attrs) {
        Found::File { size: there, mode: 0o600 } if there <= size => Ok(()),
        _ => Err(SftpError::UnexpectedBehavior("something else stands there".into())),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "failing loudly is what tests do")]
mod tests {
    use super::super::pipe::{self, Request, Requests};
    use super::*;
    use russh_sftp::protocol::{Attrs, FileAttributes, Handle, Status, StatusCode};
    use russh_sftp::server::Handler;
    use std::sync::Mutex;
    use tokio::io::{AsyncWriteExt as _, DuplexStream};

    /// A server that takes all, and has handles of its own.
    struct Server {
        handle: &'static str,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        fn note(&self, asked: String) -> Result<Status, StatusCode> {
            self.asked.lock().unwrap().push(asked);
            Err(StatusCode::Ok)
        }
    }

    impl Handler for Server {
        type Error = StatusCode;

        fn unimplemented(&self) -> StatusCode {
            StatusCode::OpUnsupported
        }

        async fn mkdir(&mut self, _: u32, path: String, _: FileAttributes) -> Result<Status, StatusCode> {
            self.note(format!("mkdir {path}"))
        }

        async fn open(&mut self, id: u32, path: String, _: OpenFlags, _: FileAttributes) -> Result<Handle, StatusCode> {
            let _ = self.note(format!("open {path}"));
            Ok(Handle { id, handle: self.handle.into() })
        }

        async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, StatusCode> {
            let _ = self.note(format!("lstat {path}"));
            let attrs = FileAttributes { size: Some(0), permissions: Some(0o100_600), ..FileAttributes::empty() };
            Ok(Attrs { id, attrs })
        }

        async fn write(&mut self, _: u32, handle: String, _: u64, _: Vec<u8>) -> Result<Status, StatusCode> {
            self.note(format!("write {handle:?}"))
        }

        async fn close(&mut self, _: u32, handle: String) -> Result<Status, StatusCode> {
            self.note(format!("close {handle:?}"))
        }
    }

    /// Carries requests and answers as a channel does.
    async fn over_stream(stream: DuplexStream, mut requests: Requests, mut answers: DuplexStream) {
        let (mut from, mut to) = tokio::io::split(stream);
        let send = async {
            while let Some(request) = requests.next().await {
                match request {
                    Request::Whole(request) => to.write_all(&request).await.unwrap(),
                    Request::Write(head, mut piece) => {
                        to.write_all(&head).await.unwrap();
                        while piece.length > 0 {
                            to.write_all(&piece.read(1000).await).await.unwrap();
                        }
                    }
                }
            }
        };
        let _ = futures::join!(send, tokio::io::copy(&mut from, &mut answers));
    }

    /// Uploads 8 MiB.
    async fn bring(sftp: &Sftp) -> Result<(), Failure> {
        let local = tempfile::NamedTempFile::new().unwrap();
        local.as_file().set_len(8 << 20).unwrap();
        let source = Arc::new(Source::open(local.path()).await.unwrap());
        let job = Job::new(&source, &|_| {});
        job.begin(std::iter::once(0..8 << 20).collect());
        let (folders, under_way) = (vec!["a", "a/b"], 512 << 10);
        let new = New { job: &job, remote: "a/b/file", mark: "a/b/mark", folders, channels: 2, under_way };
        let flight = new.begin(sftp).unwrap();
        assert!(new.begin(sftp).is_none(), "one at once");
        new.bring(sftp, flight, 2).await
    }

    /// The same to a server that gives `handle`; gives back what came of it, what the server was asked, and whether the channel is
    /// as good as new.
    async fn upload(handle: &'static str) -> (Result<(), Failure>, Vec<String>, bool) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let asked = Arc::new(Mutex::new(Vec::new()));
        russh_sftp::server::run(theirs, Server { handle, asked: asked.clone() }).await;
        let (_end, ended) = tokio::sync::oneshot::channel();
        let (pipe, requests, answers, pieces) = pipe::pipe();
        tokio::spawn(over_stream(ours, requests, answers));
        let sftp = Sftp::over(pipe, pieces, ended);
        let done = bring(&sftp).await;
        // Behind what nobody waits for.
        let _ = sftp.raw.lstat("end").await;
        let asked = asked.lock().unwrap().clone();
        (done, asked, sftp.is_unused())
    }

    #[tokio::test]
    async fn all_goes_in_order() {
        let (done, mut asked, unused) = upload(FIRST).await;
        assert!(done.is_ok());
        assert!(unused);
        let write = format!("write {FIRST:?}");
        assert_eq!(asked.iter().filter(|asked| **asked == write).count(), 256);
        asked.dedup();
        let close = format!("close {FIRST:?}");
        let expected =
            ["mkdir a", "mkdir a/b", "open a/b/file", "lstat a/b/file", &write, &close, "mkdir a/b/mark.2.2", "lstat end"];
        assert_eq!(asked, expected);
    }

    #[tokio::test]
    async fn another_handle_is_seen_and_given_back() {
        let (done, asked, unused) = upload("seven").await;
        assert!(matches!(done, Err(Failure::There(SftpError::UnexpectedBehavior(_)))));
        assert!(!unused);
        assert!(asked.contains(&"close \"seven\"".to_owned()), "{asked:?}");
        assert!(!asked.contains(&"mkdir a/b/mark.2.2".to_owned()), "{asked:?}");
        let writes = asked.iter().filter(|asked| asked.starts_with("write")).count();
        assert!(writes < 64, "{writes} of 256 in spite of it");
    }
}
