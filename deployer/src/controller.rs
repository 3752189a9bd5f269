//! The entry: options, cancellation, and the calls that users of the library make.

use crate::backup;
use crate::connect::Connector;
use crate::failure::Failure;
use crate::logs::{self, ExecResult, LogQuery, LogSink};
use crate::mesh::{self, MeshReport, MeshWork};
use crate::request::{Group, TaskReport};
use crate::rollout;
use crate::run::passing::Passing;
use crate::stock::{NoStock, Stock};
use roadie_model::definition::{Definition, Host, OnFailure, Service, Strategy};
use roadie_model::event::{Event, EventKind, HostReport};
use roadie_model::id::{HostName, PackageId, ServiceName};
use roadie_model::outcome::Outcome;
use roadie_transport::Session;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::sync::{OnceCell, Semaphore, watch};

/// Told of each event, from any task; must not block.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// How rollouts over several hosts go, where it is not as the definition says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rollout {
    /// Instead of `strategy`.
    pub strategy: Option<Strategy>,
    /// Instead of `max_failures`.
    pub max_failures: Option<u32>,
    /// Instead of `on_failure`.
    pub on_failure: Option<OnFailure>,
    /// Hosts that cannot be reached are left out instead of stopping it all, and nobody waits for them.
    pub skip_unreachable: bool,
    /// The first host passes packages on to the others, which have to reach it. What passes between them is not encrypted.
    pub pass_on: bool,
}

/// How runs are done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Hosts worked on at the same time.
    pub max_concurrent: usize,
    /// How long to wait for the lock of another run.
    pub lock_wait: Duration,
    /// How rollouts over several hosts go, where it is not as the definition says.
    pub rollout: Rollout,
    /// Who runs this, for lock holders and the journal: `user@machine`.
    pub identity: String,
}

/// Asks running work to stop: once means finish the step and take the run back, twice means leave at once.
#[derive(Debug, Clone)]
pub struct Cancel {
    sender: Arc<watch::Sender<u8>>,
}

impl Cancel {
    /// Nothing asked yet.
    pub fn new() -> Self {
        Self { sender: Arc::new(watch::channel(0).0) }
    }

    /// Asks once more.
    pub fn request(&self) {
        self.sender.send_modify(|level| *level = level.saturating_add(1));
    }

    /// Forgets what was asked, for work that comes after an interruption.
    pub fn reset(&self) {
        self.sender.send_replace(0);
    }

    /// How often it was asked.
    pub fn level(&self) -> u8 {
        *self.sender.borrow()
    }

    /// Returns when it was asked `level` times.
    pub async fn reached(&self, level: u8) {
        let mut receiver = self.sender.subscribe();
        // The sender lives as long as `self`: waiting cannot fail.
        let _ = receiver.wait_for(|now| *now >= level).await;
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

type Slot = Arc<OnceCell<Result<Arc<dyn Session>, Failure>>>;

/// Works on services and hosts. One connection per host for its whole life.
pub struct Controller {
    connector: Arc<dyn Connector>,
    pub(crate) options: Options,
    events: EventSink,
    pub(crate) cancel: Cancel,
    sessions: Mutex<HashMap<HostName, Slot>>,
    /// What this run changed in the mesh of each host, in one word: see [`crate::mesh::Replaced`].
    replaced: Mutex<HashMap<HostName, String>>,
    pub(crate) permits: Semaphore,
    pub(crate) stock: Arc<dyn Stock>,
    /// Packages that were asked back from hosts, and whether they came.
    fetched: Mutex<HashMap<PackageId, Arc<OnceCell<bool>>>>,
    pub(crate) passing: Passing,
}

impl Controller {
    /// A controller without open connections.
    pub fn new(connector: Arc<dyn Connector>, options: Options, events: EventSink, cancel: Cancel) -> Self {
        let permits = Semaphore::new(options.max_concurrent.max(1));
        Self {
            connector,
            options,
            events,
            cancel,
            sessions: Mutex::default(),
            replaced: Mutex::default(),
            permits,
            stock: Arc::new(NoStock),
            fetched: Mutex::default(),
            passing: Passing::default(),
        }
    }

    /// With a store that knows older packages.
    pub fn with_stock(self, stock: Arc<dyn Stock>) -> Self {
        Self { stock, ..self }
    }

    /// Connects to hosts ahead of their turn, as many as are worked on at the same time. What goes wrong is told when it is
    /// their turn.
    pub fn dial<'h>(&self, hosts: impl Iterator<Item = &'h Host>) {
        for host in hosts.filter(|h| !h.local).take(self.options.max_concurrent) {
            let (slot, connector, host) = (self.slot(host), self.connector.clone(), host.clone());
            tokio::spawn(async move {
                slot.get_or_init(|| async { connector.connect(&host).await.map_err(Failure::transport) }).await.is_ok()
            });
        }
    }

    /// Works through the waves in order and tells how each service ended on each host, in the order given.
    ///
    /// Groups of a wave are worked on side by side. A group whose dependencies failed is not begun.
    pub async fn run(&self, waves: Vec<Vec<Group>>) -> Vec<TaskReport> {
        let reports = rollout::run(self, waves).await;
        // Whoever keeps the sessions is quicker next time.
        let slots: Vec<Slot> = self.slots().values().cloned().collect();
        slots.iter().filter_map(|slot| slot.get()?.as_ref().ok()).for_each(|session| session.prepare_command());
        reports
    }

    /// Whether this failure is one that `skip_unreachable` leaves out.
    pub fn may_be_missing(&self, report: &HostReport) -> bool {
        self.options.rollout.skip_unreachable && report.outcome == Outcome::Unreachable
    }

    /// Does `work` for the mesh of `definition`; nothing without one.
    pub async fn mesh(&self, definition: &Definition, work: &MeshWork) -> MeshReport {
        let report = mesh::run(self, definition, work).await;
        *self.replaced.lock().unwrap_or_else(PoisonError::into_inner) =
            report.replaced.iter().map(|(host, change)| (host.clone(), change.to_string())).collect();
        report
    }

    /// What this run changed in the mesh of `host`.
    pub(crate) fn replaced_mesh(&self, host: &HostName) -> Option<String> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    /// Streams log lines to `sink` until there are no more, or for ever with `follow` until cancelled. Gives an error per
    /// source that could not be read.
    pub async fn logs(
        &self,
        targets: Vec<(Service, Vec<Host>)>,
        query: LogQuery,
        sink: LogSink<'_>,
    ) -> Vec<(HostName, ServiceName, Option<String>)> {
        logs::stream(self, targets, query, sink).await
    }

    /// Runs a shell command on each host as the login user, side by side; results in the order given.
    pub async fn exec(&self, hosts: Vec<Host>, command: String) -> Vec<ExecResult> {
        logs::exec(self, hosts, command).await
    }

    /// Streams all that makes a service on a host into `sink`, as a `.tar.gz`; gives its length.
    ///
    /// # Errors
    /// [`Failure`] with its class and advice; the host is as it was.
    pub async fn backup(
        &self,
        service: &Service,
        host: &Host,
        sink: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<u64, Failure> {
        backup::backup(self, service, host, sink).await
    }

    /// Puts such an archive back on a host that does not have the service, and starts what was current.
    ///
    /// # Errors
    /// [`Failure`] with its class and advice.
    pub async fn restore(&self, service: &Service, host: &Host, archive: &Path, sha256: &str) -> Result<(), Failure> {
        backup::restore(self, service, host, archive, sha256).await
    }

    /// Says goodbye to all hosts.
    pub async fn close(&self) {
        let slots: Vec<Slot> = self.slots().drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            if let Some(Ok(session)) = slot.get() {
                session.close().await;
            }
        }
    }

    pub(crate) fn emit(&self, host: &HostName, service: &ServiceName, kind: EventKind) {
        (self.events)(Event { host: host.clone(), service: service.clone(), kind });
    }

    /// The session to `host`, opened on first use. A host that could not be reached is not dialled again; a session that was
    /// lost while nobody used it is opened anew.
    pub(crate) async fn session(&self, host: &Host) -> Result<Arc<dyn Session>, Failure> {
        let session = self.open(host).await?;
        if session.lost().is_none() {
            return Ok(session);
        }
        // Another service of the host may have opened a new one already.
        let same = |slot: &Slot| matches!(slot.get(), Some(Ok(kept)) if Arc::ptr_eq(kept, &session));
        self.slots().retain(|name, slot| *name != host.name || !same(slot));
        self.open(host).await
    }

    /// Hosts that could not be reached ahead of their turn are tried again when it comes.
    pub fn forget_failed_dials(&self) {
        self.slots().retain(|_, slot| !matches!(slot.get(), Some(Err(_))));
    }

    async fn open(&self, host: &Host) -> Result<Arc<dyn Session>, Failure> {
        let slot = self.slot(host);
        let connect = || async {
            let session = self.connector.connect(host).await.map_err(Failure::transport)?;
            session.prepare_command();
            Ok(session)
        };
        slot.get_or_init(connect).await.clone()
    }

    fn slot(&self, host: &Host) -> Slot {
        self.slots().entry(host.name.clone()).or_default().clone()
    }

    /// Set by whoever fetches this package from a host first; the others wait for it.
    pub(crate) fn fetched(&self, package: &PackageId) -> Arc<OnceCell<bool>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner).entry(package.clone()).or_default().clone()
    }

    /// Opens another connection to `host` and closes it again: whether it still lets us in.
    pub(crate) async fn knock(&self, host: &Host) -> Result<(), Failure> {
        let session = self.connector.connect(host).await.map_err(|error| {
            let failure = Failure::transport(error);
            let causes = std::iter::once(failure.problem.clone()).chain(failure.causes).collect();
            Failure { causes, ..Failure::new(Outcome::FailedUnchanged, "the host does not let us in any more") }
        })?;
        session.close().await;
        Ok(())
    }

    /// A new session to `host` after contact was lost.
    pub(crate) async fn reconnect(&self, host: &Host) -> Result<Arc<dyn Session>, Failure> {
        self.slots().remove(&host.name);
        self.open(host).await
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<HostName, Slot>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
