//! Uploads over SFTP: a deep write pipeline over one channel or several, with CLOSE right behind the last write. What an earlier
//! upload left is kept. Without sftp: a command reads the file from its input.

use crate::session::Connection;
use crate::{Progress, Sent, TransportError};
use channel::{Found, GREETING, NoServer, Opened, Server, Sftp};
use job::{Failure, Job};
use russh_sftp::client::error::Error as SftpError;
use source::Source;
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::OnceCell;

mod channel;
mod exec;
mod job;
mod new;
mod pipe;
mod resume;
mod source;
mod spare;

use spare::Spares;

/// Channels that are opened ahead at most: commands of other services want places too.
const AHEAD: usize = 4;

/// What came of making a file.
type Created = Result<Opened, SftpError>;

/// The first sftp channel of a session: opened on first use, or ahead of it, and kept.
struct Opening {
    connection: Arc<Connection>,
    sftp: OnceCell<Option<Arc<Sftp>>>,
    /// The host has answered for the channel, which is there.
    answered: Arc<AtomicBool>,
    started: AtomicBool,
}

/// An sftp channel with a server behind it.
struct Ready<T> {
    sftp: Arc<Sftp>,
    server: Server,
    /// What came of what was sent right behind the greeting.
    done: Option<T>,
}

impl Opening {
    /// The channel, whatever is behind it; and whether it was this call that opened it. `None` when there is no channel to be had.
    /// Adds to `waits` if an answer has to be waited for.
    async fn channel(&self, waits: &mut u64) -> (Option<Arc<Sftp>>, bool) {
        if let Some(sftp) = self.sftp.get() {
            return (sftp.clone(), false);
        }
        *waits += 1;
        let mut here = false;
        let open = async || {
            here = true;
            let (channel, place) = self.connection.open().await.ok()?;
            self.answered.store(true, Ordering::Relaxed);
            Sftp::open(channel, place).await.map(Arc::new)
        };
        let sftp = self.sftp.get_or_init(open).await.clone();
        (sftp, here)
    }

    /// The channel and the server behind it.
    async fn get(&self) -> Result<Ready<()>, Failure> {
        self.get_and(&mut 0, async |_| ()).await
    }

    /// Does `then` as well, in the same flight, if it was this call that opened the channel.
    async fn get_and<T>(&self, waits: &mut u64, then: impl AsyncFnOnce(&Sftp) -> T) -> Result<Ready<T>, Failure> {
        let (sftp, here) = self.channel(waits).await;
        let sftp = sftp.ok_or(Failure::NoSftp(NoServer::Ended))?;
        if let Some(known) = sftp.known()
            && !here
        {
            return known.map(|server| Ready { sftp, server, done: None }).map_err(Failure::NoSftp);
        }
        *waits += 1;
        let then = async { if here { Some(then(&sftp).await) } else { None } };
        let (server, done) = tokio::select! {
            both = async { futures::join!(sftp.server(), then) } => both,
            why = sftp.absent(GREETING) => (Err(why), None),
        };
        server.map(|server| Ready { sftp, server, done }).map_err(Failure::NoSftp)
    }

    /// Whether it turned out that the host has no sftp.
    fn is_absent(&self) -> bool {
        self.sftp.get().is_some_and(|sftp| sftp.as_ref().is_none_or(|sftp| sftp.is_absent()))
    }
}

/// Uploads of one session.
pub(crate) struct Uploader {
    opening: Arc<Opening>,
    spares: Spares,
    /// Folders known to exist.
    folders: Mutex<HashSet<String>>,
}

impl Uploader {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        let answered = Arc::new(AtomicBool::new(false));
        let spares = Spares::new(connection.clone(), answered.clone());
        let (sftp, started) = (OnceCell::new(), AtomicBool::new(false));
        Self { opening: Arc::new(Opening { connection, sftp, answered, started }), spares, folders: Mutex::default() }
    }

    /// Opens the channels in the background, once.
    pub(crate) async fn prepare(&self, bytes: Option<u64>) {
        if !self.opening.started.swap(true, Ordering::Relaxed) {
            let opening = self.opening.clone();
            let first = async move { drop(opening.channel(&mut 0).await) };
            let wanted = bytes.map_or(1, |bytes| self.opening.connection.link.channels(bytes));
            self.spares.prepare(first, wanted.min(AHEAD) - 1).await;
        }
    }

    /// Two round trips over sftp: one for the folders and the file, one for all its bytes and its end. Without a channel that was
    /// opened ahead it is three: the file is made together with the start of sftp. The host's answers on what it has already are
    /// two more, and one is for the end of such an upload.
    pub(crate) async fn upload(&self, local: &Path, remote: &str, progress: Progress<'_>) -> Result<Sent, TransportError> {
        let source = Arc::new(Source::open(local).await?);
        let connection = &self.opening.connection;
        let job = Job::new(&source, progress);
        // Where it is known already that there is no sftp, no channel can be of use.
        let channels = if self.opening.is_absent() { 1 } else { connection.link.channels(source.size()) };
        let under_way = connection.link.under_way();
        tracing::debug!(remote, bytes = source.size(), round_trip = ?connection.link.round_trip(), channels, under_way, "upload");
        let missing = self.missing(remote);
        let first = self.first(&job, remote, &missing, under_way);
        let work = job.run(first, (1..channels).map(|_| self.spares.work(&job, remote, &missing, under_way)));
        let done = tokio::select! {
            done = work => done,
            reason = connection.gone() => Err(Failure::Here(TransportError::Disconnected { reason })),
        };
        self.spares.let_go();
        let done = match done {
            Ok(()) => self.verify(&job, remote).await,
            Err(failure) => Err(failure),
        };
        match done {
            Ok(()) => Ok(job.sent()),
            Err(Failure::NoSftp(_)) => {
                drop(job);
                exec::upload(connection, &source, remote, progress).await
            }
            Err(Failure::Here(error)) => Err(error),
            Err(Failure::There(error)) => Err(match self.opening.get().await {
                Ok(ready) => ready.sftp.explain(connection, remote, &error).await,
                Err(_) => channel::unexplained(connection, remote, &error),
            }),
        }
    }

    /// Whether the server has `copy-data`.
    pub(crate) async fn copies_files(&self) -> bool {
        self.opening.get().await.is_ok_and(|ready| ready.server.copies)
    }

    /// Makes the file, finds out what is to be sent, and sends of it what no other channel takes.
    async fn first(&self, job: &Job<'_>, remote: &str, folders: &[&str], under_way: u64) -> Result<(), Failure> {
        let connection = &self.opening.connection;
        let mut waits = 0;
        let got = self.opening.get_and(&mut waits, async |sftp| channel::create(sftp, folders, remote).await).await;
        // Only what this upload had to wait for: the rest was heard beside other work.
        connection.round_trips.add(waits);
        let Ready { sftp, done: created, .. } = got?;
        let sftp = &*sftp;
        let mut opened = self.create(sftp, remote, created).await?;
        let size = job.source.size();
        let mut missing: Vec<_> = std::iter::once(0..size).collect();
        // The mode comes before any content, whichever channel that goes over. Of a new file it is right.
        match opened.found {
            Found::Nothing => {}
            Found::Link => {
                tracing::warn!(remote, "a symbolic link stands there: replaced");
                if !opened.handle.is_empty() {
                    channel::forget(&sftp.raw, &opened.handle);
                }
                // The others have opened what it points to.
                job.go_alone();
                opened.handle = self.replace(sftp, remote, connection.link.channels(size)).await?;
            }
            Found::Other => return Err(Failure::There(SftpError::UnexpectedBehavior("it is no regular file".into()))),
            Found::File { size: there, mode } => {
                let asked = resume::Blocks::of(size).worth_asking(there);
                let kept = if asked { resume::check(connection, job.source, remote, there).await? } else { None };
                let empty = kept.is_none() && there > 0;
                let mode = (mode != 0o600).then_some(0o600);
                if empty || mode.is_some() {
                    sftp.change(&opened.handle, empty.then_some(0), mode).await?;
                    connection.round_trips.count();
                }
                if let Some(kept) = kept {
                    missing = kept;
                }
            }
        }
        job.begin(missing);
        connection.round_trips.count();
        job.write(sftp, &opened.handle, under_way).await
    }

    /// Puts a file of our own in place of what stands at `remote`. Each of the other `channels` that was about to begin makes the file
    /// if it comes between, once.
    async fn replace(&self, sftp: &Sftp, remote: &str, channels: usize) -> Result<String, SftpError> {
        let mut tries = 0;
        loop {
            self.opening.connection.round_trips.count();
            tries += 1;
            match sftp.replace(remote).await {
                Err(SftpError::Status(_)) if tries < channels => {}
                done => return done,
            }
        }
    }

    /// An upload that went on with an old file may have met somebody who does so too.
    async fn verify(&self, job: &Job<'_>, remote: &str) -> Result<(), Failure> {
        if job.sent().resumed == 0 {
            return Ok(());
        }
        let ready = self.opening.get().await?;
        let there = ready.sftp.raw.lstat(remote).await?.attrs.size;
        self.opening.connection.round_trips.count();
        if there != Some(job.source.size()) {
            return Err(Failure::There(SftpError::UnexpectedBehavior("its size changes while it is written".into())));
        }
        Ok(())
    }

    /// Makes the folders and the file, unless that was `created` with the channel. Folders that were there for an earlier upload
    /// are taken for granted, until that fails.
    async fn create(&self, sftp: &Sftp, remote: &str, created: Option<Created>) -> Result<Opened, SftpError> {
        let connection = &self.opening.connection;
        let parents = channel::parents(remote);
        let missing = self.missing(remote);
        let mut created = match created {
            Some(created) => created,
            None => {
                let begun = Instant::now();
                connection.round_trips.count();
                let created = channel::create(sftp, &missing, remote).await;
                if matches!(created, Ok(_) | Err(SftpError::Status(_))) {
                    connection.link.heard(begun, 1);
                }
                created
            }
        };
        if created.is_err() && missing.len() < parents.len() {
            self.known().clear();
            connection.round_trips.count();
            created = channel::create(sftp, &parents, remote).await;
        }
        if created.is_ok() {
            self.known().extend(parents.into_iter().map(str::to_owned));
        }
        created
    }

    /// Folders above `remote` that are to be made.
    fn missing<'r>(&self, remote: &'r str) -> Vec<&'r str> {
        let known = self.known();
        channel::parents(remote).into_iter().filter(|p| !known.contains(*p)).collect()
    }

    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
