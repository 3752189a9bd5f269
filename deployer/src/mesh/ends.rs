//! How a round ends where it did not come to a change.

use super::{MeshReport, Round, Seen, close};
use crate::failure::Failure;
use crate::report::{report, report_failure};
use crate::request::TaskReport;
use roadie_model::definition::Host;
use roadie_model::event::{EventKind, HostReport};
use roadie_model::id::HostName;
use roadie_model::outcome::Outcome;
use roadie_planner as planner;

impl<'a> Round<'a> {
    pub(super) fn finished(&self, host: &Host, report: HostReport) -> TaskReport {
        self.controller.emit(&host.name, &self.service.name, EventKind::Finished { report: Box::new(report.clone()) });
        TaskReport { host: host.name.clone(), service: self.service.name.clone(), report }
    }

    pub(super) async fn let_all_go(&self, seen: Vec<Seen<'a>>, failed: Vec<(&'a Host, HostReport)>) -> MeshReport {
        let culprit = failed.first().map(|(host, _)| host.name.to_string()).unwrap_or_default();
        let mut result = MeshReport::default();
        for (host, report) in failed {
            result.reports.push(self.finished(host, report));
        }
        let reason = format!("not begun: `{culprit}` cannot take part, so no host was changed");
        self.not_begun(seen, &reason, &mut result).await;
        result
    }

    pub(super) async fn refused(&self, seen: Vec<Seen<'a>>, refusals: &[planner::MeshRefusal]) -> MeshReport {
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

    pub(super) async fn give_up(&self, seen: Vec<Seen<'a>>, host: &HostName, failure: &Failure) -> MeshReport {
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

    pub(super) async fn interrupted(&self, seen: Vec<Seen<'a>>) -> MeshReport {
        let mut result = MeshReport::default();
        for at in seen {
            result.reports.push(self.finished(at.host, report(Outcome::Interrupted, "interrupted; no host was changed")));
            close(at.shell).await;
        }
        result
    }

    pub(super) async fn not_begun(&self, seen: Vec<Seen<'a>>, reason: &str, result: &mut MeshReport) {
        for at in seen {
            result.reports.push(self.finished(at.host, report(Outcome::FailedUnchanged, reason)));
            close(at.shell).await;
        }
    }
}
