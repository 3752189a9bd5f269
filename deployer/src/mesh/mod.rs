//! The mesh: all its hosts are looked at, planned together, changed side by side, and confirmed only when all reach each other.
//!
//! Two rounds, because the plan needs what only hosts can make and measure: first every host is locked and observed, a key is
//! born where there is none and paths are measured that nobody knows; then the plan of all is made and carried out by the same
//! engine that runs services (`run.rs`). What must not come in: addresses, routes, texts. They are the planner's.

pub(crate) mod facts;
mod meeting;

pub use facts::Reach;
pub use meeting::Meeting;

use crate::controller::Controller;
use crate::engine::{self, HeldShell, LookFor, Task, millis, report, report_failure};
use crate::failure::Failure;
use crate::request::TaskReport;
use crate::run::{Run, RunEnd};
use crate::shell::{Frame, HostShell, Stage};
use futures::future::join_all;
use ipnet::Ipv6Net;
use roadie_model::definition::{Definition, Host, Service};
use roadie_model::event::{EventKind, HostReport};
use roadie_model::facts::{HostFacts, ReleaseState};
use roadie_model::id::{HostName, ServiceName};
use roadie_model::mesh::{Engine, Member, Mesh, MeshFacts};
use roadie_model::outcome::Outcome;
use roadie_model::plan::{Action, HostPlan};
use roadie_planner::{self as planner, MeshHost, MeshInput};
use roadie_transport::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

    // ---- first round: what there is ------------------------------------------------------------------------------------------

    /// Looks at all hosts side by side; while another run holds one of them, none is held.
    async fn look_at_all(&self) -> (Vec<Seen<'a>>, Vec<(&'a Host, HostReport)>) {
        let began = Instant::now();
        loop {
            let looks = join_all(self.service.hosts.iter().map(|host| self.look(host))).await;
            let (seen, failed): (Vec<_>, Vec<_>) = looks.into_iter().partition(Result::is_ok);
            let seen: Vec<Seen<'a>> = seen.into_iter().filter_map(Result::ok).collect();
            let failed: Vec<_> = failed.into_iter().filter_map(Result::err).collect();
            let locked = failed.iter().find(|(_, r)| r.outcome == Outcome::Locked);
            let Some((host, why)) = locked.filter(|_| began.elapsed() < self.controller.options.lock_wait) else {
                return (seen, failed);
            };
            self.task(host).warn(format!("waiting: {}", why.summary));
            join_all(seen.into_iter().map(|s| close(s.shell))).await;
            tokio::select! {
                () = tokio::time::sleep(engine::LOCK_POLL.mul_f32(1.0 + fastrand::f32())) => {}
                () = self.controller.cancel.reached(1) => {}
            }
        }
    }

    async fn look(&self, host: &'a Host) -> Result<Seen<'a>, (&'a Host, HostReport)> {
        let began = Instant::now();
        let task = self.task(host);
        let failed =
            |failure: &Failure| (host, HostReport { ms: millis(began), ..report_failure(failure, "nothing was changed") });
        task.emit(EventKind::Connecting);
        if self.controller.cancel.level() > 0 {
            return Err(failed(&Failure::new(Outcome::Interrupted, "interrupted before it began")));
        }
        let session = tokio::select! {
            session = self.controller.session(host) => session.map_err(|f| failed(&f))?,
            () = self.controller.cancel.reached(1) => return Err(failed(&Failure::new(Outcome::Interrupted, "interrupted while connecting"))),
        };
        let trips_before = session.round_trips();
        let look_for = LookFor::mesh(&self.mesh.interface, self.mesh.port);
        let (shell, mut facts) =
            task.observe_when_free(&session, !self.reads_only(), &look_for, false).await.map_err(|f| failed(&f))?;
        let mesh = facts.mesh.take().map(|m| *m).unwrap_or_default();
        Ok(Seen { host, session, shell: HeldShell::hold(shell), facts, mesh, trips_before, began })
    }

    /// Keys are born and paths measured where that is still to be done. Gives the new keys of hosts that rotate theirs.
    async fn prepare(&self, seen: &mut [Seen<'a>]) -> Result<BTreeMap<HostName, String>, (HostName, Failure)> {
        let none = BTreeMap::new();
        let asks = self.with_input(seen, &none, planner::unmeasured);
        let rotates = |host: &HostName| matches!(self.work, MeshWork::Rotate(hosts) if hosts.contains(host));
        let preparing = seen.iter_mut().map(|at| {
            let mut stage = Stage::default();
            let rotates = rotates(&at.host.name);
            if rotates || at.mesh.public_key.is_none() {
                stage.step(0, "mesh_new_key", &[]);
            }
            let words: Vec<&str> =
                asks.get(&at.host.name).into_iter().flatten().flat_map(|(name, address)| [name.as_str(), address]).collect();
            if !words.is_empty() {
                stage.step(0, "mesh_probe", &words);
            }
            async move {
                let old = at.mesh.public_key.clone();
                if !stage.is_empty() {
                    let heard = in_shell(&mut at.shell, &stage).await.map_err(|f| (at.host.name.clone(), f))?;
                    for (key, value) in heard {
                        if let Some(key) = key.strip_prefix("mesh_") {
                            facts::add(&mut at.mesh, key, &value);
                        }
                    }
                }
                let new = at.mesh.public_key.clone();
                if rotates && old.is_some() {
                    at.mesh.public_key = old;
                    return Ok(new.map(|key| (at.host.name.clone(), key)));
                }
                Ok(None)
            }
        });
        let done: Result<Vec<_>, _> = join_all(preparing).await.into_iter().collect();
        Ok(done?.into_iter().flatten().collect())
    }

    fn with_input<T>(
        &self,
        seen: &[Seen<'a>],
        rotating: &BTreeMap<HostName, String>,
        work: impl FnOnce(&MeshInput<'_>) -> T,
    ) -> T {
        let hosts: Vec<MeshHost<'_>> = seen.iter().map(|s| MeshHost { host: s.host, facts: &s.facts, mesh: &s.mesh }).collect();
        let wanted = match self.work {
            MeshWork::Remove(leaving) => without(self.mesh, leaving),
            _ => self.mesh.clone(),
        };
        let staying: Vec<MeshHost<'_>> = hosts.into_iter().filter(|h| wanted.hosts.contains(&h.host.name)).collect();
        work(&MeshInput {
            mesh: &wanted,
            services: &self.definition.services,
            all: &self.definition.hosts,
            hosts: &staying,
            rotating,
            fresh_v6: fresh_v6(),
        })
    }

    // ---- second round: the change --------------------------------------------------------------------------------------------

    async fn apply(&self, seen: Vec<Seen<'a>>, rotating: &BTreeMap<HostName, String>) -> MeshReport {
        let plan = match self.with_input(&seen, rotating, planner::plan_mesh) {
            Ok(plan) => plan,
            Err(refusals) => return self.refused(seen, &refusals).await,
        };
        if self.controller.cancel.level() > 0 {
            return self.interrupted(seen).await;
        }
        let mut result = MeshReport { members: plan.members, warnings: plan.warnings, ..MeshReport::default() };
        let (leaving, staying): (Vec<_>, Vec<_>) =
            seen.into_iter().partition(|s| !plan.hosts.iter().any(|p| p.host == s.host.name));
        self.carry_out(staying, &plan.hosts, &mut result).await;
        let all_in = result.outcome() == Outcome::Done && self.controller.cancel.level() == 0;
        for at in leaving {
            let report = self.take_off(at, all_in).await;
            result.reports.push(report);
        }
        result
    }

    /// Runs the plans side by side; hosts that are as wanted are let go.
    async fn carry_out(&self, seen: Vec<Seen<'a>>, plans: &[HostPlan], result: &mut MeshReport) {
        let busy = || plans.iter().filter(|p| !p.is_noop());
        let waits = |p: &&HostPlan| p.steps.iter().any(|s| matches!(s.action, Action::AwaitPeers));
        let first = busy().filter(|p| !waits(p)).map(|p| p.host.clone()).collect();
        let busy = busy().map(|p| p.host.clone()).collect();
        let meeting = Meeting::new(busy, first);
        let before: BTreeMap<HostName, String> =
            seen.iter().filter_map(|s| Some((s.host.name.clone(), generation(&s.facts)?))).collect();
        let runs = seen.into_iter().filter_map(|at| {
            let plan = plans.iter().find(|p| p.host == at.host.name)?;
            Some(self.carry_out_one(at, plan, &meeting))
        });
        for (report, mesh, reach) in join_all(runs).await {
            if !reach.is_empty() {
                result.reach.insert(report.host.clone(), reach);
            }
            result.seen.insert(report.host.clone(), mesh);
            let new = plans.iter().find(|p| p.host == report.host).map(|p| p.version.clone()).unwrap_or_default();
            if let Some(old) = before.get(&report.host).filter(|old| **old != new && report.report.outcome == Outcome::Done) {
                result.replaced.insert(report.host.clone(), Replaced { old: old.clone(), new });
            }
            result.reports.push(report);
        }
    }

    async fn carry_out_one(&self, at: Seen<'a>, plan: &HostPlan, meeting: &Meeting) -> (TaskReport, MeshFacts, Vec<Reach>) {
        let task = Task { meeting: Some(meeting), ..self.task(at.host) };
        task.emit(EventKind::Planned { plan: Box::new(plan.clone()) });
        let Seen { host, session, shell, mesh, trips_before, began, .. } = at;
        if plan.is_noop() {
            close(shell).await;
            let summary = format!("nothing to do: in the mesh with {}", about(&mesh));
            let current = plan.release.as_ref().map(|r| r.short().to_owned());
            let round_trips = session.round_trips().saturating_sub(trips_before);
            let report = HostReport { current, ms: millis(began), round_trips, ..report(Outcome::Done, summary) };
            return (self.finished(host, report), mesh, Vec::new());
        }
        let shell = match shell.take().await {
            Ok(shell) => shell,
            Err(failure) => {
                meeting.fail(&host.name, &failure.problem);
                return (self.finished(host, report_failure(&failure, "nothing was changed")), mesh, Vec::new());
            }
        };
        let mut run = Run::new(&task, session.clone(), shell, plan, None);
        let end = run.run().await;
        if !matches!(end, RunEnd::Completed { .. }) {
            meeting.fail(&host.name, "its part failed");
        }
        let reach: Vec<Reach> =
            run.take_heard().iter().filter(|(k, _)| k == "mesh_reach").filter_map(|(_, v)| facts::reach(v)).collect();
        let done = format!("in the mesh, {} peer(s) answered, {}", reach.len(), engine_name(mesh.engine));
        let mut report = task.end_report(done, plan, &end);
        report.hint = report.hint.map(|_| format!("`roadie mesh show` says what is in force on `{}`", host.name));
        report.last_output = run.take_last_output();
        run.close().await;
        report.round_trips = session.round_trips().saturating_sub(trips_before);
        report.ms = millis(began);
        (self.finished(host, report), mesh, reach)
    }

    /// A host that leaves: everybody else has forgotten it, now it forgets too.
    async fn take_off(&self, at: Seen<'a>, others_did: bool) -> TaskReport {
        let task = self.task(at.host);
        if !others_did {
            close(at.shell).await;
            let why = "not taken out: the others could not forget it first";
            return self.finished(at.host, report(Outcome::FailedUnchanged, why));
        }
        let input = planner::Input { service: self.service, host: at.host, facts: &at.facts };
        let plan = planner::plan_remove(input);
        task.emit(EventKind::Planned { plan: Box::new(plan.clone()) });
        if plan.is_noop() {
            close(at.shell).await;
            return self.finished(at.host, report(Outcome::Done, "nothing to do: it has no mesh"));
        }
        let shell = match at.shell.take().await {
            Ok(shell) => shell,
            Err(failure) => return self.finished(at.host, report_failure(&failure, "its mesh was left as it is")),
        };
        let mut run = Run::new(&task, at.session.clone(), shell, &plan, None);
        let end = run.run().await;
        let mut report = task.end_report("out of the mesh, its key deleted".into(), &plan, &end);
        report.hint = report.hint.map(|_| "run it again".to_owned());
        run.close().await;
        report.ms = millis(at.began);
        self.finished(at.host, report)
    }

    /// All hosts together to a generation that all of them have.
    async fn roll_back(&self, seen: Vec<Seen<'a>>, to: Option<&str>) -> MeshReport {
        match earlier_generation(&seen, to) {
            Ok(generation) => self.to_generation(seen, &generation).await,
            Err((host, why)) => {
                let failure = Failure::new(Outcome::FailedUnchanged, why)
                    .hint("`roadie mesh show` lists what each host keeps; or change the definition and run `roadie mesh apply`");
                self.give_up(seen, &host, &failure).await
            }
        }
    }

    /// Only where it is still the last change: a later one is somebody else's.
    async fn undo(&self, seen: Vec<Seen<'a>>, change: &Replaced) -> MeshReport {
        let now: BTreeSet<Option<String>> = seen.iter().map(|s| generation(&s.facts)).collect();
        let is = |wanted: &str| now.len() == 1 && now.iter().flatten().any(|g| g == wanted);
        let why = match seen.iter().find(|s| !keeps(s, &change.old)) {
            _ if is(&change.old) => None,
            _ if !is(&change.new) => Some(format!("it was changed again since generation {}", change.new)),
            Some(at) => Some(format!("`{}` was not in generation {}", at.host.name, change.old)),
            None => return self.to_generation(seen, &change.old).await,
        };
        join_all(seen.into_iter().map(|s| close(s.shell))).await;
        let warnings = why.map(|why| format!("the mesh stays as it is: {why}")).into_iter().collect();
        MeshReport { warnings, ..MeshReport::default() }
    }

    async fn to_generation(&self, seen: Vec<Seen<'a>>, generation: &str) -> MeshReport {
        if self.controller.cancel.level() > 0 {
            return self.interrupted(seen).await;
        }
        let plan = |at: &Seen<'a>| {
            let others = seen.iter().map(|s| s.host.name.clone()).filter(|name| name != &at.host.name).collect();
            let at = MeshHost { host: at.host, facts: &at.facts, mesh: &at.mesh };
            planner::plan_mesh_rollback(self.mesh, at, others, generation)
        };
        let plans: Vec<HostPlan> = seen.iter().filter_map(plan).collect();
        let mut result = MeshReport::default();
        self.carry_out(seen, &plans, &mut result).await;
        result
    }

    // ---- without a change ----------------------------------------------------------------------------------------------------

    async fn plan_only(&self, mut seen: Vec<Seen<'a>>) -> MeshReport {
        for at in &mut seen {
            // It is born when the plan is carried out.
            at.mesh.public_key.get_or_insert_with(|| "(born on the host)".into());
        }
        let plan = match self.with_input(&seen, &BTreeMap::new(), planner::plan_mesh) {
            Ok(plan) => plan,
            Err(refusals) => return self.refused(seen, &refusals).await,
        };
        let mut result = MeshReport { members: plan.members, warnings: plan.warnings, ..MeshReport::default() };
        for at in seen {
            let Some(plan) = plan.hosts.iter().find(|p| p.host == at.host.name) else { continue };
            self.task(at.host).emit(EventKind::Planned { plan: Box::new(plan.clone()) });
            let (outcome, summary) = match plan.is_noop() {
                true => (Outcome::Done, format!("nothing to do: in the mesh with {}", about(&at.mesh))),
                false => (Outcome::ChangesPending, format!("{} steps", plan.steps.len())),
            };
            result.reports.push(self.finished(at.host, HostReport { ms: millis(at.began), ..report(outcome, summary) }));
            result.seen.insert(at.host.name.clone(), at.mesh);
            close(at.shell).await;
        }
        result
    }

    /// Every host asks each of its peers, all at once.
    async fn show(&self, seen: Vec<Seen<'a>>) -> MeshReport {
        let asked = join_all(seen.into_iter().map(|mut at| async move {
            let mut stage = Stage::default();
            stage.step(0, "mesh_verify", &["2", "10"]);
            let heard = match at.facts.current {
                Some(_) => in_shell(&mut at.shell, &stage).await,
                None => Ok(Vec::new()),
            };
            (at, heard)
        }))
        .await;
        let sessions: Vec<(&HostName, &Arc<dyn Session>)> = asked.iter().map(|(at, _)| (&at.host.name, &at.session)).collect();
        let ports = join_all(self.dependencies().filter_map(|(from, service, on)| {
            let (_, session) = sessions.iter().find(|(name, _)| *name == from)?;
            Some(ask_port(session, from, service, on))
        }))
        .await;
        let mut result = MeshReport { ports, ..MeshReport::default() };
        for (at, heard) in asked {
            let (report, reach) = match heard {
                Ok(heard) => {
                    let reach: Vec<Reach> =
                        heard.iter().filter(|(k, _)| k == "mesh_reach").filter_map(|(_, v)| facts::reach(v)).collect();
                    let summary = match at.facts.current {
                        Some(_) => about(&at.mesh),
                        None => "not in the mesh".into(),
                    };
                    (report(Outcome::Done, summary), reach)
                }
                Err(failure) => (report_failure(&failure, "nothing was changed"), Vec::new()),
            };
            for member in &at.mesh.members {
                if !result.members.iter().any(|m| m.name == member.name) {
                    result.members.push(member.clone());
                }
            }
            result.reach.insert(at.host.name.clone(), reach);
            result.generations.insert(at.host.name.clone(), generations(&at.facts));
            result.seen.insert(at.host.name.clone(), at.mesh);
            let current = at.facts.current.as_ref().map(|r| r.short().to_owned());
            result.reports.push(self.finished(at.host, HostReport { current, ms: millis(at.began), ..report }));
            close(at.shell).await;
        }
        result.members.sort_by(|a, b| a.name.cmp(&b.name));
        result
    }

    /// Every host of a service with each service with ports that it depends on.
    fn dependencies(&self) -> impl Iterator<Item = (&'a HostName, &'a Service, &'a Service)> {
        let services = &self.definition.services;
        let with_ports = |s: &'a Service| s.depends_on.iter().filter_map(|d| services.get(d)).filter(|d| !d.ports.is_empty());
        let of = move |s: &'a Service| with_ports(s).flat_map(move |on| s.hosts.iter().map(move |h| (&h.name, s, on)));
        services.values().flat_map(of)
    }

    // ---- ends ----------------------------------------------------------------------------------------------------------------

    fn finished(&self, host: &Host, report: HostReport) -> TaskReport {
        self.controller.emit(&host.name, &self.service.name, EventKind::Finished { report: Box::new(report.clone()) });
        TaskReport { host: host.name.clone(), service: self.service.name.clone(), report }
    }

    async fn let_all_go(&self, seen: Vec<Seen<'a>>, failed: Vec<(&'a Host, HostReport)>) -> MeshReport {
        let culprit = failed.first().map(|(host, _)| host.name.to_string()).unwrap_or_default();
        let mut result = MeshReport::default();
        for (host, report) in failed {
            result.reports.push(self.finished(host, report));
        }
        let reason = format!("not begun: `{culprit}` cannot take part, so no host was changed");
        self.not_begun(seen, &reason, &mut result).await;
        result
    }

    async fn refused(&self, seen: Vec<Seen<'a>>, refusals: &[planner::MeshRefusal]) -> MeshReport {
        let mut result = MeshReport::default();
        let mut others = Vec::new();
        for at in seen {
            let mut own = refusals.iter().filter(|(host, _)| host == &at.host.name).map(|(_, refusal)| refusal);
            let Some(first) = own.next() else {
                others.push(at);
                continue;
            };
            let failure = Failure::new(Outcome::Refused, first.problem.clone()).hint(first.hint.clone());
            let mut report = report_failure(&failure, "nothing was changed");
            report.causes.extend(own.map(|more| format!("also: {} ({})", more.problem, more.hint)));
            result.reports.push(self.finished(at.host, report));
            close(at.shell).await;
        }
        let culprit = refusals.first().map(|(host, _)| host.to_string()).unwrap_or_default();
        let reason = format!("not begun: `{culprit}` cannot take part, so no host was changed");
        self.not_begun(others, &reason, &mut result).await;
        result
    }

    async fn give_up(&self, seen: Vec<Seen<'a>>, host: &HostName, failure: &Failure) -> MeshReport {
        let mut result = MeshReport::default();
        let (culprit, others): (Vec<_>, Vec<_>) = seen.into_iter().partition(|s| &s.host.name == host);
        for at in culprit {
            result.reports.push(self.finished(at.host, report_failure(failure, "nothing was changed")));
            close(at.shell).await;
        }
        let reason = format!("not begun: `{host}` cannot take part, so no host was changed");
        self.not_begun(others, &reason, &mut result).await;
        result
    }

    async fn interrupted(&self, seen: Vec<Seen<'a>>) -> MeshReport {
        let mut result = MeshReport::default();
        for at in seen {
            result.reports.push(self.finished(at.host, report(Outcome::Interrupted, "interrupted; no host was changed")));
            close(at.shell).await;
        }
        result
    }

    async fn not_begun(&self, seen: Vec<Seen<'a>>, reason: &str, result: &mut MeshReport) {
        for at in seen {
            result.reports.push(self.finished(at.host, report(Outcome::FailedUnchanged, reason)));
            close(at.shell).await;
        }
    }
}

/// Longest wait for a port.
const PORT_ANSWERS: Duration = Duration::from_secs(3);

/// Through sshd of the host that asks: it needs no tool of its own.
async fn ask_port(session: &Arc<dyn Session>, from: &HostName, service: &Service, on: &Service) -> PortAsked {
    let host = service.peers.get(&on.name).map(|p| p.address.clone()).unwrap_or_default();
    let port = on.ports.first().copied().unwrap_or_default();
    let problem = match tokio::time::timeout(PORT_ANSWERS, session.forward(&host, port)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {PORT_ANSWERS:.0?}")),
    };
    let (service, on) = (service.name.clone(), on.name.clone());
    PortAsked { from: from.clone(), service, on, address: format!("{host}:{port}"), problem }
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

/// The generation of the mesh in force on a host.
fn generation(facts: &HostFacts) -> Option<String> {
    facts.current.as_ref().and_then(|id| facts.release(id)).map(|r| r.version.clone())
}

/// Whether a host has a proven release of a generation.
fn keeps(at: &Seen<'_>, generation: &str) -> bool {
    at.facts.releases.iter().any(|r| r.version == generation && r.complete && r.state == ReleaseState::Proven)
}

/// The generation in force, then the earlier ones, newest first.
fn generations(facts: &HostFacts) -> Vec<String> {
    let now = generation(facts);
    let proven = facts.releases.iter().filter(|r| r.complete && r.state == ReleaseState::Proven);
    let mut all: Vec<String> = now.into_iter().collect();
    for release in proven {
        if !all.contains(&release.version) {
            all.push(release.version.clone());
        }
    }
    all
}

/// The generation to go back to, which every host keeps: the newest before the one in force, or the one that `to` begins.
/// `Err`: whom that fails at, and why.
fn earlier_generation(seen: &[Seen<'_>], to: Option<&str>) -> Result<String, (HostName, String)> {
    let Some(first) = seen.first() else { return Err((HostName::local(), "no host answered".into())) };
    let all = generations(&first.facts);
    let found: Vec<&String> = match to {
        Some(prefix) => all.iter().filter(|g| g.starts_with(prefix)).collect(),
        None => all.iter().skip(1).take(1).collect(),
    };
    let at = |why: String| (first.host.name.clone(), why);
    let generation = match found.as_slice() {
        [] => return Err(at(to.map_or("no earlier mesh was proven here".into(), |g| format!("no generation `{g}` here")))),
        [one] => (*one).clone(),
        many => return Err(at(format!("{} generations begin so", many.len()))),
    };
    match seen.iter().find(|s| !keeps(s, &generation)) {
        Some(lacking) => {
            Err((lacking.host.name.clone(), format!("it does not have generation {generation}, which the others keep")))
        }
        None => Ok(generation),
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

/// A random /48 of the private IPv6 space (RFC 4193).
fn fresh_v6() -> Ipv6Net {
    let random = u128::from(fastrand::u64(..)) & 0xff_ffff_ffff;
    let address = Ipv6Addr::from(0xfd_u128 << 120 | random << 80);
    Ipv6Net::new_assert(address, 48)
}
