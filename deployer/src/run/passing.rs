//! Hosts that reach each other pass files on: the first gets a file from here, the others from that one, each verifies it. Whatever
//! goes wrong with that, a host gets it from here.

use crate::shell::tag;
use bytes::Bytes;
use roadie_model::id::ServiceName;
use roadie_model::sh::quote;
use roadie_transport::{Chunk, Exit, Process, Session};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Gives and takes.
const SCRIPT: &str = include_str!("../../../templates/pass.pl");
/// A host that does not begin to give by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Taking a file may take so long,
const LEAST_S: u64 = 15;
/// and at this rate, bytes a second. A link between hosts that is slower is given up, however slow the one from here is.
const LEAST_RATE: u64 = 500_000;
/// Bytes of an answer that are read.
const MAX_WORDS: usize = 4 << 10;

/// What a run knows of the hosts of each service while it works on them, and of the files that they have.
#[derive(Default)]
pub struct Passing(Mutex<HashMap<ServiceName, Fellows>>);

/// The hosts of a service that are worked on.
#[derive(Default)]
struct Fellows {
    hosts: usize,
    /// By sha256.
    files: HashMap<String, watch::Sender<Arrival>>,
}

/// Where the first copy of a file is.
#[derive(Clone)]
enum Arrival {
    Coming,
    There(Arc<Giver>),
    /// It did not arrive, or cannot be given.
    Not,
}

/// A host that gives a file to others, for as long as this lives.
struct Giver {
    /// Under which it may be reached.
    names: Vec<String>,
    port: u16,
    token: String,
    _process: Mutex<Box<dyn Process>>,
}

/// Whose turn it is.
pub enum Turn {
    /// This host gets the file from here, and then gives it to the others.
    First(First),
    /// Another one was first.
    Next(Next),
}

/// The first host with a file. Dropped without [`First::give`], the others get it from here.
pub struct First(watch::Sender<Arrival>);

/// A host behind the first.
pub struct Next(watch::Receiver<Arrival>);

impl Passing {
    /// Work on so many hosts of a service begins.
    pub fn begin(&self, service: &ServiceName, hosts: usize) {
        self.services().entry(service.clone()).or_default().hosts = hosts;
    }

    /// And is over: nobody gives its files any more, which takes a place among the commands of a connection.
    pub fn end(&self, service: &ServiceName) {
        self.services().remove(service);
    }

    /// Whether more than one host of the service is worked on.
    pub fn several(&self, service: &ServiceName) -> bool {
        self.services().get(service).is_some_and(|fellows| fellows.hosts > 1)
    }

    /// Whether somebody has this file already, or is about to.
    pub fn turn(&self, service: &ServiceName, sha256: &str) -> Turn {
        let mut services = self.services();
        let files = &mut services.entry(service.clone()).or_default().files;
        match files.get(sha256) {
            Some(known) => Turn::Next(Next(known.subscribe())),
            None => {
                let arrival = watch::channel(Arrival::Coming).0;
                files.insert(sha256.to_owned(), arrival.clone());
                Turn::First(First(arrival))
            }
        }
    }

    fn services(&self) -> MutexGuard<'_, HashMap<ServiceName, Fellows>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl First {
    /// Has the host give the file at `remote`, which may be deleted then, to the others. `address` is the host's as we know it.
    pub async fn give(self, session: &Arc<dyn Session>, remote: &str, address: &str) {
        match tokio::time::timeout(PATIENCE, give(session, remote, address)).await {
            Ok(Some(giver)) => {
                tracing::debug!(names = ?giver.names, port = giver.port, "gives to other hosts");
                self.0.send_replace(Arrival::There(Arc::new(giver)));
            }
            _ => tracing::debug!(address, "cannot give to other hosts"),
        }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.0.send_if_modified(|arrival| {
            let coming = matches!(arrival, Arrival::Coming);
            if coming {
                *arrival = Arrival::Not;
            }
            coming
        });
    }
}

impl Next {
    /// Waits until the first host has the file, and takes it from there. Whether it is at `remote`, whole.
    pub async fn take(mut self, session: &Arc<dyn Session>, remote: &str, bytes: u64, sha256: &str) -> bool {
        let arrived = match self.0.wait_for(|arrival| !matches!(arrival, Arrival::Coming)).await {
            Ok(arrival) => arrival.clone(),
            Err(_) => return false,
        };
        let Arrival::There(giver) = arrived else { return false };
        // Into a file of its own: one that is late does not write into what is sent from here instead.
        let part = quote(&format!("{remote}.{}.part", &tag()[8..24]));
        let (remote, names) = (quote(remote), giver.names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(" "));
        let seconds = LEAST_S + bytes / LEAST_RATE;
        let command = format!(
            "umask 077; mkdir -p \"$(dirname {remote})\" && perl -e {} -- take {part} {bytes} {seconds} {} {names} && \
             sha256sum <{part} && mv -f {part} {remote} || {{ rm -f {part}; exit 1; }}",
            quote(SCRIPT),
            giver.port
        );
        let token = Bytes::from(format!("{}\n", giver.token));
        // The wait for a place to run it, too.
        let taken = tokio::time::timeout(Duration::from_secs(seconds + LEAST_S), session.run(&command, token, MAX_WORDS));
        let Ok(Ok(output)) = taken.await else { return false };
        let whole = output.exit == Exit::Status(0) && output.stdout.starts_with(sha256.as_bytes());
        if !whole {
            let said = crate::shell::sanitise(&String::from_utf8_lossy(&output.stderr));
            tracing::debug!(said, "not passed on");
        }
        whole
    }
}

async fn give(session: &Arc<dyn Session>, remote: &str, address: &str) -> Option<Giver> {
    // Its own address as the connection shows it comes before the one that only we may know it by.
    let command = format!("set -- $SSH_CONNECTION; echo \"${{3:-}}\"; exec perl -e {} -- give {}", quote(SCRIPT), quote(remote));
    let mut process = session.start(&command).await.ok()?;
    let token = tag();
    process.write(Bytes::from(format!("{token}\n"))).await.ok()?;
    let mut said = Vec::new();
    let (own, port) = loop {
        match process.next().await? {
            Chunk::Stdout(data) if said.len() < MAX_WORDS => said.extend_from_slice(&data),
            Chunk::Stdout(_) | Chunk::Exit(_) => return None,
            Chunk::Stderr(_) => {}
        }
        let text = String::from_utf8_lossy(&said);
        if let Some((own, (port, _))) = text.split_once('\n').and_then(|(own, rest)| Some((own, rest.split_once('\n')?))) {
            break (own.to_owned(), port.parse().ok()?);
        }
    };
    let names = [own, address.to_owned()].into_iter().filter(|name| !name.is_empty()).collect();
    Some(Giver { names, port, token, _process: Mutex::new(process) })
}
