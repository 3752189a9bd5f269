//! What became of a task, for people and programs.

use crate::engine::Task;
use crate::failure::Failure;
use crate::request::Verb;
use crate::run::RunEnd;
use roadie_model::event::HostReport;
use roadie_model::facts::HostFacts;
use roadie_model::outcome::Outcome;
use roadie_model::plan::{Action, HostPlan, Undo};

/// An empty report of class `outcome`.
pub fn report(outcome: Outcome, summary: impl Into<String>) -> HostReport {
    HostReport {
        outcome,
        summary: summary.into(),
        causes: Vec::new(),
        last_output: Vec::new(),
        hint: None,
        current: None,
        ms: 0,
        round_trips: 0,
        sent_bytes: 0,
        data: serde_json::Value::Null,
    }
}

/// The report of a failure; `state` says what the host was left in, or is empty.
pub fn report_failure(failure: &Failure, state: &str) -> HostReport {
    let summary = if state.is_empty() { failure.problem.clone() } else { format!("{}; {state}", failure.problem) };
    HostReport { causes: failure.causes.clone(), hint: failure.hint.clone(), ..report(failure.outcome, summary) }
}

impl Task<'_> {
    /// How a run ended, for people; `done` is what is said when all went well.
    pub fn end_report(&self, done: String, plan: &HostPlan, end: &RunEnd) -> HostReport {
        let new = plan.release.as_ref().map(|r| r.short().to_owned());
        let old = current(&plan.assumes);
        match end {
            RunEnd::Completed { warning } => {
                let mut report = HostReport { current: new, ..report(Outcome::Done, done) };
                report.causes.extend(warning.clone());
                report
            }
            RunEnd::Unchanged(failure) => {
                HostReport { current: old, ..report_failure(failure, "nothing in service was changed") }
            }
            RunEnd::RolledBack(failure) => self.rolled_back_report(plan, failure),
            RunEnd::Left(failure) => {
                let failure = Failure { outcome: Outcome::NotRestored, ..failure.clone() };
                let hint =
                    failure.hint.clone().or_else(|| Some(format!("roadie logs {} --host {}", self.service.name, self.host.name)));
                HostReport { current: new, hint, ..report_failure(&failure, "it was left as it is") }
            }
            RunEnd::NotRestored { failure, undo } => {
                let failure = Failure { outcome: Outcome::NotRestored, ..failure.clone() };
                let mut report = report_failure(&failure, "the way back failed too");
                report.causes.push(format!("way back: {}", undo.problem));
                report.causes.extend(undo.causes.clone());
                report.hint = Some(format!(
                    "look at the host, then `roadie rollback {0} --host {1}` or deploy again",
                    self.service.name, self.host.name
                ));
                report
            }
            RunEnd::Superseded(failure) => report_failure(failure, "what this run had begun is settled by that one"),
            RunEnd::Unknown(failure) => {
                let failure = Failure { outcome: Outcome::Unknown, ..failure.clone() };
                let mut report = report_failure(
                    &failure,
                    "the outcome is unknown: the host finishes the stage it was in, then goes back by itself unless it was confirmed",
                );
                report.hint = Some(format!(
                    "when it answers again: `roadie status {0} --host {1}`, then deploy again",
                    self.service.name, self.host.name
                ));
                report
            }
        }
    }

    fn rolled_back_report(&self, plan: &HostPlan, failure: &Failure) -> HostReport {
        let interrupted = failure.outcome == Outcome::Interrupted;
        let back = plan.steps.iter().find_map(|s| match &s.action {
            Action::ArmGuard { back_to, .. } => Some(back_to.clone()),
            _ => None,
        });
        let back = back.flatten().map(|r| r.short().to_owned());
        let runs_again = plan.steps.iter().any(|s| matches!(s.undo, Undo::By { step: Action::Restore { .. } }));
        let state = match &back {
            Some(release) if self.service.name.is_mesh() => format!("back at release {release}, its tunnels stayed up"),
            Some(release) if runs_again => format!("rolled back to release {release}"),
            Some(release) => format!("back at release {release}, stopped as it was before"),
            None if self.service.name.is_mesh() => "there was none before, and there is none now".to_owned(),
            None => "there was no earlier release: the service is stopped and not installed".to_owned(),
        };
        let outcome = match (interrupted, &back) {
            (true, _) => Outcome::Interrupted,
            // Nothing healthy runs: that is how it was found.
            (false, Some(_)) if !runs_again => Outcome::FailedUnchanged,
            (false, _) => Outcome::RolledBack,
        };
        let mut report = report_failure(&Failure { outcome, ..failure.clone() }, &state);
        report.current = back;
        if report.hint.is_none() && !interrupted {
            let release = plan.release.as_ref().map(|r| r.short().to_owned()).unwrap_or_default();
            report.hint = Some(format!(
                "read the rest with `roadie logs {} --host {} --release {release}`",
                self.service.name, self.host.name
            ));
        }
        report
    }

    pub fn done_sentence(&self, verb: &Verb, plan: &HostPlan) -> String {
        let release = plan.release.as_ref().map(|r| r.short().to_owned()).unwrap_or_default();
        match verb {
            Verb::Deploy { skip_health: true, .. } => format!("release {release} is in service, its health was not checked"),
            Verb::Deploy { .. } => format!("release {release} is in service and healthy"),
            Verb::Rollback { .. } => format!("rolled back to release {release}, healthy"),
            Verb::Start => "started and healthy".into(),
            Verb::Restart => "restarted and healthy".into(),
            Verb::Stop => "stopped".into(),
            Verb::Remove => "removed".into(),
            Verb::Cleanup => "old releases deleted".into(),
            Verb::Plan { .. } | Verb::Status | Verb::Releases => String::new(),
        }
    }

    pub fn unchanged_report(&self, verb: &Verb, plan: &HostPlan) -> HostReport {
        let facts = &plan.assumes;
        let summary = match verb {
            Verb::Plan { .. } if !plan.is_noop() => format!("{} steps, {} bytes to send", plan.steps.len(), plan.upload_bytes()),
            Verb::Deploy { .. } | Verb::Plan { .. } | Verb::Rollback { .. } => {
                format!("nothing to do: release {} is in service", current(facts).unwrap_or_default())
            }
            Verb::Start => "nothing to do: it runs".into(),
            Verb::Stop => "nothing to do: it does not run".into(),
            Verb::Remove => "nothing to do: it is not installed".into(),
            _ => "nothing to do".into(),
        };
        let pending = matches!(verb, Verb::Plan { .. }) && !plan.is_noop();
        let outcome = if pending { Outcome::ChangesPending } else { Outcome::Done };
        HostReport { current: current(facts), ..report(outcome, summary) }
    }

    pub fn reading_report(&self, facts: &HostFacts) -> HostReport {
        let summary = match current(facts) {
            Some(release) => format!("{}, release {release}", facts.service.state),
            None => "not deployed".into(),
        };
        let data = serde_json::to_value(facts).unwrap_or_default();
        HostReport { current: current(facts), data, ..report(Outcome::Done, summary) }
    }
}

pub fn current(facts: &HostFacts) -> Option<String> {
    facts.current.as_ref().map(|r| r.short().to_owned())
}
