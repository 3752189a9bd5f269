//! The mesh: all its hosts are looked at, planned together, changed side by side, and confirmed only when all reach each other.
//!
//! Two rounds, because the plan needs what only hosts can make and measure: first every host is locked and observed, a key is
//! born where there is none and paths are measured that nobody knows; then the plan of all is made and carried out by the same
//! engine that runs services (`run.rs`). What must not come in: addresses, routes, texts. They are the planner's.

mod change;
mod ends;
pub(crate) mod facts;
mod look;
mod meeting;
mod show;

pub use facts::Reach;
pub use meeting::Meeting;

use crate::controller::Controller;
use crate::engine::{HeldShell, Task};
use crate::failure::Failure;
use crate::request::TaskReport;
use crate::shell::{Frame, HostShell, Stage};
use roadie_model::definition::{Definition, Host, Service};
use roadie_model::event::HostReport;
use roadie_model::facts::HostFacts;
use roadie_model::id::{HostName, ServiceName};
use roadie_model::mesh::{Engine, Member, Mesh, MeshFacts};
use roadie_model::outcome::Outcome;
use roadie_planner as planner;
use roadie_transport::Session;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What is to be done with the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshWork {
    /// Brings all hosts to what the definition wants.
    Apply,
    /// Says what [`MeshWork::Apply`] would do; reads only.
    Plan,
    /// Reads what there is, and asks every pair.
    Show,
    /// Gives these hosts new keys.
    Rotate(Vec<HostName>),
    /// Takes these hosts out everywhere, then off themselves.
    Remove(Vec<HostName>),
    /// Brings all hosts back to a generation that they had: the one before, or the one named by its first digits.
    Rollback(Option<String>),
    /// Undoes one change of the mesh, when it is still the last one; otherwise leaves all as it is.
    Undo(Replaced),
}

/// How the work ended.
#[derive(Debug, Default)]
pub struct MeshReport {
    /// One for each host of the mesh.
    pub reports: Vec<TaskReport>,
    /// Who is in the network now, as far as it is known.
    pub members: Vec<Member>,
    /// What each host said of its mesh, in the order of the reports; only of hosts that answered.
    pub seen: BTreeMap<HostName, MeshFacts>,
    /// Who reaches whom, when that was asked.
    pub reach: BTreeMap<HostName, Vec<Reach>>,
    /// Whether services reach the ports of those they depend on, when that was asked.
    pub ports: Vec<PortAsked>,
    /// What a person should know although nothing stopped for it.
    pub warnings: Vec<String>,
    /// What became of the generation of each changed host.
    pub replaced: BTreeMap<HostName, Replaced>,
    /// The generation in force on each host that answered, then the earlier ones that it keeps, newest first.
    pub generations: BTreeMap<HostName, Vec<String>>,
}

/// A generation that took the place of another, written `OLD>NEW`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replaced {
    /// What was there before.
    pub old: String,
    /// What is there now.
    pub new: String,
}

impl std::fmt::Display for Replaced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}>{}", self.old, self.new)
    }
}

impl Replaced {
    /// Reads what was written.
    pub fn parse(text: &str) -> Option<Self> {
        text.split_once('>').map(|(old, new)| Self { old: old.to_owned(), new: new.to_owned() })
    }
}

/// A port of a service, asked from the host of one that depends on it, by the name that it is told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PortAsked {
    /// The host that asked.
    pub from: HostName,
    /// The service that depends on the other.
    pub service: ServiceName,
    /// The other.
    pub on: ServiceName,
    /// What was asked: `postgres.mesh.local:5432`.
    pub address: String,
    /// Why it could not be reached; `None`: it was.
    pub problem: Option<String>,
}

impl MeshReport {
    /// The one outcome of all hosts.
    pub fn outcome(&self) -> Outcome {
        let outcomes: Vec<Outcome> = self.reports.iter().map(|r| r.report.outcome).collect();
        Outcome::of_fleet(&outcomes, false)
    }
}

/// A host that was looked at and is locked, or only read.
struct Seen<'a> {
    host: &'a Host,
    session: Arc<dyn Session>,
    shell: HeldShell,
    facts: HostFacts,
    mesh: MeshFacts,
    trips_before: u64,
    began: Instant,
}

/// Does `work` for the mesh of `definition`.
pub async fn run(controller: &Controller, definition: &Definition, work: &MeshWork) -> MeshReport {
    let Some(mesh) = &definition.mesh else { return MeshReport::default() };
    let service = Service::of_mesh(mesh, mesh.hosts.iter().filter_map(|name| definition.hosts.get(name)).cloned().collect());
    let round = Round { controller, definition, mesh, service: &service, work };
    round.run().await
}

/// One piece of work on one mesh.
struct Round<'a> {
    controller: &'a Controller,
    definition: &'a Definition,
    mesh: &'a Mesh,
    service: &'a Service,
    work: &'a MeshWork,
}

impl<'a> Round<'a> {
    fn task(&self, host: &'a Host) -> Task<'a> {
        Task { controller: self.controller, service: self.service, host, meeting: None }
    }

    fn reads_only(&self) -> bool {
        matches!(self.work, MeshWork::Plan | MeshWork::Show)
    }

    async fn run(&self) -> MeshReport {
        let (mut seen, failed) = self.look_at_all().await;
        let leaves = |host: &Host| matches!(self.work, MeshWork::Remove(hosts) if hosts.contains(&host.name));
        // The others can forget a host that is gone for good.
        let gone = |host: &Host, report: &HostReport| leaves(host) && report.outcome == Outcome::Unreachable;
        let stops = failed.iter().any(|(host, report)| !self.controller.may_be_missing(report) && !gone(host, report));
        if stops && !matches!(self.work, MeshWork::Show) {
            return self.let_all_go(seen, failed).await;
        }
        if !matches!(self.work, MeshWork::Show | MeshWork::Rollback(_) | MeshWork::Undo(_)) {
            let refusals = self.with_input(&seen, &BTreeMap::new(), planner::check_mesh);
            if !refusals.is_empty() {
                return self.refused(seen, &refusals).await;
            }
        }
        let mut result = match self.work {
            MeshWork::Show => self.show(seen).await,
            MeshWork::Plan => self.plan_only(seen).await,
            MeshWork::Rollback(to) => self.roll_back(seen, to.as_deref()).await,
            MeshWork::Undo(change) => self.undo(seen, change).await,
            _ => match self.prepare(&mut seen).await {
                Ok(rotating) => self.apply(seen, &rotating).await,
                Err((host, failure)) => self.give_up(seen, &host, &failure).await,
            },
        };
        for (host, report) in failed {
            let forgotten = gone(host, &report) && result.outcome() == Outcome::Done;
            let report = match forgotten {
                true => HostReport {
                    outcome: Outcome::Done,
                    summary: format!("forgotten by the others; {}", report.summary),
                    ..report
                },
                false => report,
            };
            result.reports.push(self.finished(host, report));
        }
        result
    }
}

async fn close(shell: HeldShell) {
    if let Ok(shell) = shell.take().await {
        shell.close().await;
    }
}

/// Runs one stage in a held shell and gives the facts that it printed.
async fn in_shell(held: &mut HeldShell, stage: &Stage) -> Result<Vec<(String, String)>, Failure> {
    let mut shell = held.borrow().await?;
    let heard = heard(&mut shell, stage).await;
    held.give_back(shell);
    heard
}

async fn heard(shell: &mut HostShell, stage: &Stage) -> Result<Vec<(String, String)>, Failure> {
    shell.send(stage).await?;
    let (mut facts, mut failure) = (Vec::new(), None);
    loop {
        match shell.frame().await? {
            Frame::Fact(key, value) => facts.push((key, value)),
            // A peer that does not answer is no failure of the question.
            Frame::Fail(_, kind, _) if kind == "mesh" => {}
            Frame::Fail(_, kind, text) => failure = Some(Failure::host(&kind, &text)),
            Frame::End => return failure.map_or(Ok(facts), Err),
            Frame::Begin(_) | Frame::Out(..) | Frame::Done(..) => {}
        }
    }
}

/// The mesh without hosts that leave.
fn without(mesh: &Mesh, leaving: &[HostName]) -> Mesh {
    let mut rest = mesh.clone();
    rest.hosts.retain(|h| !leaving.contains(h));
    rest.via.retain(|h, _| !leaving.contains(h));
    rest.addresses.retain(|h, _| !leaving.contains(h));
    rest.endpoints.retain(|h, _| !leaving.contains(h));
    rest
}

fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Kernel => "WireGuard of the kernel",
        Engine::WireguardGo => "wireguard-go",
        Engine::NoTun | Engine::Absent => "no WireGuard",
    }
}

fn about(mesh: &MeshFacts) -> String {
    format!("{} peer(s), {}, MTU {}", mesh.peers.len(), engine_name(mesh.engine), mesh.mtu)
}
