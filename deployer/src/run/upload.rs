//! How a package gets to a host: as the difference from one that is there, or whole. Any doubt, and all of it is sent.

use super::{Run, StepFailure};
use crate::engine::Task;
use crate::failure::Failure;
use crate::shell::Stage;
use futures::FutureExt as _;
use roadie_model::event::EventKind;
use roadie_model::facts::ReleaseFacts;
use roadie_model::id::{PackageId, ReleaseId};
use roadie_model::outcome::Outcome;
use roadie_model::package::{Delta, Package};
use roadie_model::plan::{Action, HostPlan, Step, StepId};
use std::path::Path;
use std::time::Duration;

/// Makes a package out of the files of an older one and a patch.
const PATCH_SCRIPT: &str = include_str!("../../../templates/patch.pl");

/// From this round trip on, a difference that has to be found first is waited for.
const FAR: Duration = Duration::from_millis(5);
/// And from this size of the archive on wherever the host is.
const ALWAYS: u64 = 64 << 20;

/// A difference that takes longer to find is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the package of a run travels.
pub enum Way {
    /// All of it.
    Whole,
    /// The difference from the package of this release.
    Patch(ReleaseId, Delta),
}

impl Run<'_> {
    /// Sends the package, or what is missing of it.
    pub(super) async fn upload(&mut self, id: StepId) -> Result<(), Failure> {
        let Some(package) = self.package else {
            return Err(Failure::new(Outcome::Bug, "the plan uploads a package that the run was not given"));
        };
        // It may have to be found first: the host is told meanwhile that we are there.
        let finding = difference(self.task, self.plan, self.session.round_trip_time(), package);
        let found = tokio::select! {
            found = tokio::time::timeout(PATIENCE, finding) => found.ok().flatten(),
            failure = self.shell.beats() => return Err(failure),
            () = self.task.controller.cancel.reached(1) => {
                return Err(Failure::new(Outcome::Interrupted, "interrupted before the upload"));
            }
        };
        if let Some((base, delta)) = found {
            match self.send(id, &delta.file, &self.incoming(&package.id, "patch.gz"), delta.bytes).await {
                Ok(()) => {
                    self.way = Way::Patch(base, delta);
                    return Ok(());
                }
                Err(failure) if failure.lost || failure.outcome == Outcome::Interrupted => return Err(failure),
                // The patch may have been deleted from the store meanwhile.
                Err(failure) => self.task.warn(format!("{}; sending the whole package", failure.problem)),
            }
        }
        self.send(id, &package.archive, &self.incoming(&package.id, "tar.gz"), package.archive_bytes).await
    }

    async fn send(&mut self, id: StepId, file: &Path, remote: &str, total: u64) -> Result<(), Failure> {
        let task = self.task;
        let progress = move |bytes: u64| task.emit(EventKind::Progress { step: id, bytes, total });
        let sent = tokio::select! {
            result = self.session.upload(file, remote, &progress) => result.map_err(Failure::transport)?,
            failure = self.shell.beats() => return Err(failure),
            () = self.task.controller.cancel.reached(1) => {
                return Err(Failure::new(Outcome::Interrupted, "interrupted during the upload"));
            }
        };
        self.sent_bytes += sent.bytes;
        Ok(())
    }

    /// Where the host script looks for it, from the login user's home.
    fn incoming(&self, package: &PackageId, ending: &str) -> String {
        format!(".roadie/incoming/{}.{package}.{ending}", self.plan.service)
    }

    /// Flies; where a patch did not give the package, sends all of it and flies again.
    pub(super) async fn fly_or_resend(&mut self, steps: &[&Step], last: bool) -> Result<(), StepFailure> {
        let failed = match self.fly(steps, last).await {
            Err(failed) if failed.failure.resend => failed.failure,
            other => return other,
        };
        self.task.warn(format!("{}; sending the whole package", failed.problem));
        self.way = Way::Whole;
        let uploads = |s: &&Step| matches!(s.action, Action::Upload { .. });
        if let (Some(step), Some(package)) = (self.plan.steps.iter().find(uploads), self.package) {
            let remote = self.incoming(&package.id, "tar.gz");
            if let Err(failure) = self.send(step.id, &package.archive, &remote, package.archive_bytes).await {
                // Nothing was unpacked: what was sent stays.
                self.begun.retain(|id| *id == step.id);
                self.task.emit(EventKind::StepFailed { step: step.id, reason: failure.problem.clone() });
                return Err(StepFailure { id: step.id, failure });
            }
        }
        self.fly(steps, last).await
    }

    pub(super) fn add_unpack(&self, stage: &mut Stage, id: StepId, release: &ReleaseId, sha256: &str) {
        let package = self.plan.package.as_ref().map_or("", |p| p.as_str());
        match &self.way {
            Way::Whole => stage.step(id, "unpack_archive", &[release.as_str(), package, sha256]),
            Way::Patch(base, delta) => {
                let mut words = vec![release.as_str(), package, &delta.sha256, base.as_str(), PATCH_SCRIPT];
                words.extend(delta.sources.iter().map(String::as_str));
                stage.step(id, "unpack_patch", &words);
            }
        }
    }
}

/// The release whose package the new one is made from, and the patch.
async fn difference(
    task: &Task<'_>,
    plan: &HostPlan,
    round_trip: Option<Duration>,
    package: &Package,
) -> Option<(ReleaseId, Delta)> {
    let facts = &plan.assumes;
    if !facts.has_perl {
        return None;
    }
    let base = best_base(facts.current.as_ref(), &facts.releases)?;
    let made = task.controller.stock.delta(&base.package, package);
    // A near host takes all of it in less time than the difference takes to be found.
    let delta = match round_trip {
        Some(time) if time >= FAR || package.archive_bytes >= ALWAYS => made.await,
        Some(_) => made.now_or_never().flatten(),
        // This machine: a copy is quicker.
        None => None,
    }?;
    tracing::debug!(bytes = delta.bytes, of = package.archive_bytes, base = base.id.short(), "sending the difference");
    Some((base.id.clone(), delta))
}

/// The release on the host that is likely to differ least: the current one, else the newest.
fn best_base<'f>(current: Option<&ReleaseId>, releases: &'f [ReleaseFacts]) -> Option<&'f ReleaseFacts> {
    let mut complete = releases.iter().filter(|r| r.complete);
    complete.clone().find(|r| Some(&r.id) == current).or_else(|| complete.next())
}
