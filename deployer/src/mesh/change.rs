//! The second round: the change, on all hosts or on none.

use super::{Meeting, MeshReport, Reach, Replaced, Round, Seen, about, close, engine_name, facts};
use crate::engine::{Task, millis};
use crate::failure::Failure;
use crate::report::{report, report_failure};
use crate::request::TaskReport;
use crate::run::{Run, RunEnd};
use futures::future::join_all;
use roadie_model::event::{EventKind, HostReport};
use roadie_model::facts::{HostFacts, ReleaseState};
use roadie_model::id::HostName;
use roadie_model::mesh::MeshFacts;
use roadie_model::outcome::Outcome;
use roadie_model::plan::{Action, HostPlan};
use roadie_planner::{self as planner, MeshHost};
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Round<'a> {
    pub(super) async fn apply(&self, seen: Vec<Seen<'a>>, rotating: &BTreeMap<HostName, String>) -> MeshReport {
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
    pub(super) async fn carry_out(&self, seen: Vec<Seen<'a>>, plans: &[HostPlan], result: &mut MeshReport) {
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

    pub(super) async fn carry_out_one(
        &self,
        at: Seen<'a>,
        plan: &HostPlan,
        meeting: &Meeting,
    ) -> (TaskReport, MeshFacts, Vec<Reach>) {
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
    pub(super) async fn take_off(&self, at: Seen<'a>, others_did: bool) -> TaskReport {
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
    pub(super) async fn roll_back(&self, seen: Vec<Seen<'a>>, to: Option<&str>) -> MeshReport {
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
    pub(super) async fn undo(&self, seen: Vec<Seen<'a>>, change: &Replaced) -> MeshReport {
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

    pub(super) async fn to_generation(&self, seen: Vec<Seen<'a>>, generation: &str) -> MeshReport {
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
pub(super) fn generations(facts: &HostFacts) -> Vec<String> {
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
