//! Hosts that reach each other pass files on: the first gets a file from here, the others from that one, each verifies it. Whatever
//! goes wrong with that, a host gets it from here.

use crate::shell::tag;
use bytes::Bytes;
use roadie_model::sh::quote;
use roadie_transport::{Chunk, Exit, Process, Session};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Gives and takes.
const SCRIPT: &str = include_str!("../../../templates/pass.pl");
/// A host that does not begin to give by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read.
const MAX_WORDS: usize = 4 << 10;

/// What a run knows of files that hosts have. Keyed by sha256.
#[derive(Default)]
pub struct Passing(Mutex<HashMap<String, watch::Sender<Arrival>>>);

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
    /// Whether somebody has this file already, or is about to.
    pub fn turn(&self, sha256: &str) -> Turn {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match files.get(sha256) {
            Some(known) => Turn::Next(Next(known.subscribe())),
            None => {
                let arrival = watch::channel(Arrival::Coming).0;
                files.insert(sha256.to_owned(), arrival.clone());
                Turn::First(First(arrival))
            }
        }
    }

    /// Nobody gives any more.
    pub fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
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
        let (remote, names) = (quote(remote), giver.names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(" "));
        let command = format!(
            "umask 077; mkdir -p \"$(dirname {remote})\" && perl -e {} -- take {remote} {bytes} {} {names} && sha256sum <{remote}",
            quote(SCRIPT),
            giver.port
        );
        let Ok(output) = session.run(&command, Bytes::from(format!("{}\n", giver.token)), MAX_WORDS).await else { return false };
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
