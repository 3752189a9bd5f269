//! One service on one host: connect, lock, observe, plan, run, and always find the way back.

use crate::controller::Controller;
use crate::failure::Failure;
use crate::mesh::Meeting;
use crate::observe::Observation;
use crate::report::{current, report, report_failure};
use crate::request::{TaskReport, Verb};
use crate::run::{Run, RunEnd};
use crate::shell::{BEAT, Frame, HostShell, Stage};
use crate::{health, sudo};
use roadie_model::definition::{Host, Scope, Service};
use roadie_model::event::{EventKind, HostReport};
use roadie_model::facts::HostFacts;
use roadie_model::id::ReleaseId;
use roadie_model::outcome::Outcome;
use roadie_model::package::{Means, Package};
use roadie_model::plan::{Action, HostPlan};
use roadie_planner as planner;
use roadie_transport::Session;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Pause between two looks at a lock that another run holds.
pub const LOCK_POLL: Duration = Duration::from_secs(1);

pub fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Everything that one task needs to talk and act.
pub struct Task<'a> {
    pub controller: &'a Controller,
    pub service: &'a Service,
    pub host: &'a Host,
    /// Where hosts whose changes belong together wait for each other.
    pub meeting: Option<&'a Meeting>,
}

impl Task<'_> {
    pub fn emit(&self, kind: EventKind) {
        self.controller.emit(&self.host.name, &self.service.name, kind);
    }

    pub fn warn(&self, text: impl Into<String>) {
        self.emit(EventKind::Warning { text: text.into() });
    }
}

/// What a host held before a run changed it: where a fleet that is rolled back as one goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// The run changed nothing.
    Untouched,
    /// This release was in service.
    Release(ReleaseId),
    /// The service was not known there.
    Nothing,
    /// Releases, but none in service.
    NoneCurrent,
}

/// One service on one host as far as it is known before anything is changed.
pub enum Prepared {
    /// There is nothing to do, or it failed: nothing was changed.
    Over(HostReport),
    /// The host is locked and waits, the plan is made.
    Held(Box<Held>),
    /// The plan can be carried out; the host was let go and is looked at again at its turn.
    LetGo,
}

/// What an observation looks for besides the facts that every one has.
#[derive(Debug, Default)]
pub struct LookFor {
    /// Port of the health check on the host itself, or empty.
    port: String,
    /// Libraries by their name, interpreters by their path.
    files: BTreeSet<String>,
    /// Whether the texts of the current release are read.
    texts: bool,
    /// Interface and port of the mesh, when it is looked at.
    mesh: Option<(String, u16)>,
}

impl LookFor {
    /// The mesh on this interface and port.
    pub fn mesh(interface: &str, port: u16) -> Self {
        Self { mesh: Some((interface.to_owned(), port)), ..Self::default() }
    }
}

/// A locked host with its plan. Its shell is told now and then that we are there.
pub struct Held {
    session: Arc<dyn Session>,
    shell: HeldShell,
    plan: HostPlan,
    trips_before: u64,
    began: Instant,
}

impl Held {
    /// Lets the host go, unchanged.
    pub async fn let_go(self) {
        if let Ok(shell) = self.shell.take().await {
            shell.close().await;
        }
    }
}

/// A shell in the hands of a task that sends its beats.
pub struct HeldShell(Option<Beating>);

struct Beating {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<HostShell, Failure>>,
}

impl HeldShell {
    /// Sends beats until it is taken.
    pub fn hold(shell: HostShell) -> Self {
        let mut held = Self(None);
        held.give_back(shell);
        held
    }

    /// The shell, when it is still there.
    pub async fn take(mut self) -> Result<HostShell, Failure> {
        self.borrow().await
    }

    /// The shell for a while: nobody sends its beats until [`HeldShell::give_back`].
    pub async fn borrow(&mut self) -> Result<HostShell, Failure> {
        let Some(Beating { stop, task }) = self.0.take() else {
            return Err(Failure::new(Outcome::Bug, "the shell was taken before"));
        };
        let _ = stop.send(());
        task.await.unwrap_or_else(|e| Err(Failure::new(Outcome::Bug, e.to_string())))
    }

    /// Ends a [`HeldShell::borrow`].
    pub fn give_back(&mut self, mut shell: HostShell) {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = &mut stopped => return Ok(shell),
                    () = tokio::time::sleep(BEAT) => shell.beat().await?,
                }
            }
        });
        self.0 = Some(Beating { stop, task });
    }
}

/// Does `verb` for one service on one host and reports how it ended. Never panics on what a host says.
pub async fn run_task(controller: &Controller, service: &Service, host: &Host, verb: &Verb) -> (TaskReport, Before) {
    let prepared = prepare(controller, service, host, verb, How::default()).await;
    proceed(controller, service, host, verb, prepared).await
}

/// How a host is prepared.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// The host stays locked until its turn.
    pub keep: bool,
    /// Another run's lock is waited for here. Who holds several hosts must not: two such runs would wait for each other.
    pub wait: bool,
    /// It was tried before: nobody is told again.
    pub again: bool,
}

impl Default for How {
    fn default() -> Self {
        Self { keep: true, wait: true, again: false }
    }
}

/// Connects, locks (if `verb` changes anything), observes and plans.
pub async fn prepare(controller: &Controller, service: &Service, host: &Host, verb: &Verb, how: How) -> Prepared {
    let began = Instant::now();
    let task = Task { controller, service, host, meeting: None };
    match task.prepare(verb, began, how).await {
        Prepared::Held(held) if !how.keep => {
            held.let_go().await;
            Prepared::LetGo
        }
        other => other,
    }
}

/// Carries out what was prepared.
pub async fn proceed(
    controller: &Controller,
    service: &Service,
    host: &Host,
    verb: &Verb,
    prepared: Prepared,
) -> (TaskReport, Before) {
    let task = Task { controller, service, host, meeting: None };
    let prepared = match prepared {
        Prepared::LetGo => task.prepare(verb, Instant::now(), How { again: true, ..How::default() }).await,
        other => other,
    };
    let (report, before) = match prepared {
        Prepared::Over(report) => (report, Before::Untouched),
        Prepared::Held(held) => task.execute(*held, verb).await,
        Prepared::LetGo => (report(Outcome::Bug, "the host was let go twice"), Before::Untouched),
    };
    task.emit(EventKind::Finished { report: Box::new(report.clone()) });
    (TaskReport { host: host.name.clone(), service: service.name.clone(), report }, before)
}

/// Takes in what a stage tells, up to its end. A shell that failed has left.
async fn hear(mut shell: HostShell, observation: &mut Observation) -> Result<HostShell, Failure> {
    loop {
        match shell.frame().await? {
            Frame::Fact(key, value) => observation.add(&key, &value),
            Frame::Fail(_, kind, text) => {
                shell.close().await;
                return Err(Failure::host(&kind, &text));
            }
            Frame::End => return Ok(shell),
            _ => {}
        }
    }
}

impl Task<'_> {
    async fn prepare(&self, verb: &Verb, began: Instant, how: How) -> Prepared {
        if !how.again {
            self.emit(EventKind::Connecting);
        }
        if self.controller.cancel.level() > 0 {
            return Prepared::Over(report(Outcome::Interrupted, "interrupted before it began"));
        }
        self.make_ready(verb);
        let session = tokio::select! {
            session = self.controller.session(self.host) => session,
            () = self.controller.cancel.reached(1) => Err(Failure::new(Outcome::Interrupted, "interrupted while connecting")),
        };
        let mut report = match session {
            Ok(session) => {
                let trips_before = session.round_trips();
                match self.look(&session, verb, how.wait).await {
                    Ok((shell, plan)) => {
                        let shell = HeldShell::hold(shell);
                        return Prepared::Held(Box::new(Held { session, shell, plan, trips_before, began }));
                    }
                    Err(report) => HostReport { round_trips: session.round_trips().saturating_sub(trips_before), ..*report },
                }
            }
            Err(failure) => report_failure(&failure, "nothing was changed"),
        };
        report.ms = millis(began);
        Prepared::Over(report)
    }

    /// Begins to work out, beside the connecting, what will have to be sent.
    fn make_ready(&self, verb: &Verb) {
        let Verb::Deploy { packages, .. } = verb else { return };
        if self.host.local {
            return;
        }
        let Some(last) = self.controller.stock.last(&self.service.name, &self.host.name) else { return };
        if packages.iter().any(|p| p.id == last) || !self.controller.stock.has(&last) {
            return;
        }
        for package in packages.clone() {
            let (stock, last) = (self.controller.stock.clone(), last.clone());
            // By what nearly all hosts have.
            tokio::spawn(async move { stock.delta(&last, &package, Means::Perl).await.is_some() });
        }
    }

    /// As far as is known here, the host runs one of these packages.
    fn has_one_of(&self, packages: &[Package]) -> bool {
        let last = self.controller.stock.last(&self.service.name, &self.host.name);
        packages.iter().any(|p| Some(&p.id) == last.as_ref())
    }

    /// As far as is known here, the host has never seen us. Not with sudo, which writes whole commands into the system's log.
    fn is_new_to_host(&self) -> bool {
        let direct = self.host.user.as_deref() == Some("root") || self.service.deploy.scope == Scope::User;
        direct && !self.host.local && self.controller.stock.last(&self.service.name, &self.host.name).is_none()
    }

    /// Observes and plans. `Err` is a report: what was only to be read, nothing to do, or a failure.
    async fn look(&self, session: &Arc<dyn Session>, verb: &Verb, wait: bool) -> Result<(HostShell, HostPlan), Box<HostReport>> {
        if let Verb::Deploy { packages, .. } = verb
            && !self.has_one_of(packages)
        {
            // Opened while the host is observed: an upload then costs no extra round trip. Where an older package is known it will
            // likely be a difference, which is small.
            let all = packages.iter().map(|p| p.archive_bytes).max();
            let bytes = all.filter(|_| self.controller.stock.last(&self.service.name, &self.host.name).is_none());
            let session = session.clone();
            tokio::spawn(async move { session.prepare_upload(bytes).await });
        }
        let (shell, facts) = match self.observe_when_free(session, !verb.reads_only(), &self.looks_for(verb), wait).await {
            Ok(both) => both,
            Err(failure) => return Err(Box::new(report_failure(&failure, "nothing was changed"))),
        };
        if matches!(verb, Verb::Status | Verb::Releases) {
            self.let_leave(shell, &facts).await;
            return Err(Box::new(self.reading_report(&facts)));
        }
        let plan = match self.plan(verb, &facts) {
            Ok(mut plan) => {
                if let (Verb::Plan { .. }, Some(rendered)) = (verb, &plan.rendered) {
                    plan.changes = planner::changes(&facts.texts, rendered);
                }
                plan
            }
            Err(failure) => {
                self.let_leave(shell, &facts).await;
                let report = report_failure(&failure, "nothing was changed");
                return Err(Box::new(HostReport { current: current(&facts), ..report }));
            }
        };
        self.emit(EventKind::Planned { plan: Box::new(plan.clone()) });
        if plan.is_noop() || matches!(verb, Verb::Plan { .. }) {
            self.let_leave(shell, &facts).await;
            return Err(Box::new(self.unchanged_report(verb, &plan)));
        }
        Ok((shell, plan))
    }

    /// Lets a shell go that has changed nothing. Waits for its end where dropping it would kill it, and where it has to hand the
    /// guard of another run back first.
    async fn let_leave(&self, shell: HostShell, facts: &HostFacts) {
        if self.host.local || facts.unconfirmed() { shell.close().await } else { shell.leave().await }
    }

    /// Observes; when another run holds the lock, again until it is free or [`crate::Options::lock_wait`] is over.
    pub async fn observe_when_free(
        &self,
        session: &Arc<dyn Session>,
        lock: bool,
        look_for: &LookFor,
        wait: bool,
    ) -> Result<(HostShell, HostFacts), Failure> {
        let began = Instant::now();
        let mut said = false;
        loop {
            let result = self.observe(session, lock, look_for).await;
            let Err(failure) = &result else { return result };
            let over = !wait || began.elapsed() >= self.controller.options.lock_wait;
            if failure.outcome != Outcome::Locked || over {
                return result;
            }
            if !std::mem::replace(&mut said, true) {
                self.warn(format!("waiting: {}", failure.problem));
            }
            tokio::select! {
                () = tokio::time::sleep(LOCK_POLL) => {}
                () = self.controller.cancel.reached(1) => {
                    return Err(Failure::new(Outcome::Interrupted, "interrupted while waiting for the lock"));
                }
            }
        }
    }

    /// Opens a shell, takes the lock if asked to, and reads the host: one round trip on an open channel.
    pub async fn observe(
        &self,
        session: &Arc<dyn Session>,
        lock: bool,
        look_for: &LookFor,
    ) -> Result<(HostShell, HostFacts), Failure> {
        let limit = self.host.connect_timeout + Duration::from_secs(20);
        let work = async {
            let mut stage = Stage::default();
            if lock {
                stage.call("lock", &[&self.controller.options.identity]);
            }
            let mut words = vec![look_for.port.as_str()];
            words.extend(look_for.files.iter().map(String::as_str));
            stage.call("observe", &words);
            if look_for.texts {
                stage.call("texts", &[]);
            }
            let mut shell = HostShell::open(session, self.service, &stage, self.is_new_to_host()).await?;
            let mut observation = Observation::default();
            shell = hear(shell, &mut observation).await?;
            if let Some((interface, port)) = &look_for.mesh {
                // Too long to be a part of a command.
                let mut stage = Stage::default();
                stage.call("eval", &[planner::MESH_SCRIPT]);
                stage.call("mesh_observe", &[interface, &port.to_string()]);
                shell.send(&stage).await?;
                shell = hear(shell, &mut observation).await?;
            }
            Ok((shell, observation.finish()))
        };
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(both)) => Ok(both),
            Ok(Err(failure)) => Err(sudo::explain(session, failure).await),
            Err(_) => Err(Failure {
                lost: true,
                ..Failure::new(Outcome::Unreachable, format!("the host gave no answer within {limit:.0?}"))
            }),
        }
    }

    fn plan(&self, verb: &Verb, facts: &HostFacts) -> Result<HostPlan, Failure> {
        let input = planner::Input { service: self.service, host: self.host, facts };
        let plan = match verb {
            Verb::Deploy { packages, .. } | Verb::Plan { packages } => planner::plan_deploy(input, packages),
            Verb::Rollback { to } => planner::plan_rollback(input, to.as_deref()),
            Verb::Start => planner::plan_start(input),
            Verb::Stop => planner::plan_stop(input),
            Verb::Restart => planner::plan_restart(input),
            Verb::Cleanup => Ok(planner::plan_cleanup(input)),
            Verb::Remove | Verb::Status | Verb::Releases => Ok(planner::plan_remove(input)),
        };
        let mut plan = plan.map_err(Failure::plan)?;
        if let Verb::Deploy { saved: Some(saved), .. } = verb {
            self.as_saved(saved, &plan)?;
        }
        if let Verb::Deploy { skip_health: true, .. } = verb {
            skip_health(&mut plan);
        }
        Ok(plan)
    }

    /// What a new release needs of the host.
    fn looks_for(&self, verb: &Verb) -> LookFor {
        let (Verb::Deploy { packages, .. } | Verb::Plan { packages }) = verb else { return LookFor::default() };
        let port = health::port(&self.service.deploy.health.probe).map(|p| p.to_string()).unwrap_or_default();
        let needed = packages.iter().flat_map(|p| {
            let requires = &p.metadata.requires;
            requires.interpreter.iter().chain(&requires.sonames).cloned()
        });
        LookFor { port, files: needed.collect(), texts: matches!(verb, Verb::Plan { .. }), mesh: None }
    }

    /// A plan that was kept is carried out as it is, or not at all.
    fn as_saved(&self, saved: &planner::SavedPlan, plan: &HostPlan) -> Result<(), Failure> {
        let here = saved.hosts.iter().find(|h| h.host == self.host.name && h.service == self.service.name);
        let difference = match here {
            None => Some("the plan says nothing about this host".to_owned()),
            Some(here) => planner::difference(here, plan),
        };
        match difference {
            None => Ok(()),
            Some(why) => Err(Failure::new(Outcome::Refused, why).hint("make a new plan: `roadie plan --out FILE`")),
        }
    }

    async fn execute(&self, held: Held, verb: &Verb) -> (HostReport, Before) {
        let Held { session, shell, plan, trips_before, began } = held;
        let shell = match shell.take().await {
            Ok(shell) => shell,
            Err(failure) => return (report_failure(&failure, "nothing was changed"), Before::Untouched),
        };
        let package = match verb {
            Verb::Deploy { packages, .. } => packages.iter().find(|p| Some(&p.id) == plan.package.as_ref()),
            _ => None,
        };
        let mut run = Run::new(self, session.clone(), shell, &plan, package);
        let end = run.run().await;
        let mut report = self.end_report(self.done_sentence(verb, &plan), &plan, &end);
        report.last_output = run.take_last_output();
        report.sent_bytes = run.sent_bytes();
        run.close().await;
        report.round_trips = session.round_trips().saturating_sub(trips_before);
        report.ms = millis(began);
        let before = match (&end, &plan.assumes.current) {
            (RunEnd::Completed { .. }, Some(release)) => Before::Release(release.clone()),
            (RunEnd::Completed { .. }, None) if plan.assumes.releases.is_empty() => Before::Nothing,
            (RunEnd::Completed { .. }, None) => Before::NoneCurrent,
            _ => Before::Untouched,
        };
        (report, before)
    }
}

/// Leaves the health check out and confirms at once.
fn skip_health(plan: &mut HostPlan) {
    plan.steps.retain(|s| !matches!(s.action, Action::CheckHealth { .. }));
    for step in &mut plan.steps {
        if let Action::Confirm { stable_ms, .. } = &mut step.action {
            *stable_ms = 0;
        }
    }
}

/// The package of a plan, for the run.
pub type PlannedPackage<'a> = Option<&'a Package>;
