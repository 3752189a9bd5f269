//! How a package gets to a host: as the difference from one that is there, or whole. Any doubt, and all of it is sent.

use super::passing::Turn;
use super::{Run, StepFailure, fetch};
use crate::engine::Task;
use crate::failure::Failure;
use crate::shell::{Frame, Stage};
use roadie_model::event::EventKind;
use roadie_model::facts::ReleaseFacts;
use roadie_model::id::{PackageId, ReleaseId};
use roadie_model::outcome::Outcome;
use roadie_model::package::{Delta, Means, Package};
use roadie_model::plan::{Action, HostPlan, Step, StepId};
use roadie_model::sh::quote;
use roadie_transport::{Exit, Session};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Makes a package out of the files of an older one and a patch.
const PATCH_SCRIPT: &str = include_str!("../../../templates/patch.pl");
/// The same with requests to an sftp server instead of a patch.
const COPY_SCRIPT: &str = include_str!("../../../templates/copied.sh");

/// From this round trip on, a difference that has to be found first is waited for.
const FAR: Duration = Duration::from_millis(5);
/// And from this size of the archive on wherever the host is.
const ALWAYS: u64 = 64 << 20;

/// A difference that takes longer to find is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A host has this long to complete what it got from what it has.
const COPIED: Duration = Duration::from_secs(50);
/// The same with the wait for a place to run a command.
const COMPLETED: Duration = Duration::from_secs(60);

/// Bytes of an error message that are read.
const MAX_WORDS: usize = 4 << 10;

/// How the package of a run travels.
pub enum Way {
    /// All of it.
    Whole,
    /// The difference from the package of this release.
    Patch(ReleaseId, Arc<Delta>),
}

/// A file to be sent.
struct Parcel<'p> {
    file: &'p Path,
    sha256: &'p str,
    bytes: u64,
}

impl<'p> Parcel<'p> {
    fn whole(package: &'p Package) -> Self {
        Self { file: &package.archive, sha256: &package.archive_sha256, bytes: package.archive_bytes }
    }

    fn of(delta: &'p Delta) -> Self {
        Self { file: &delta.file, sha256: &delta.sha256, bytes: delta.bytes }
    }
}

impl Run<'_> {
    /// Sends the package, or what is missing of it.
    pub(super) async fn upload(&mut self, id: StepId) -> Result<(), Failure> {
        let Some(package) = self.package else {
            return Err(Failure::new(Outcome::Bug, "the plan uploads a package that the run was not given"));
        };
        // It may have to be found first: the host is told meanwhile that we are there.
        let found = tokio::select! {
            found = difference(self.task, self.plan, &self.session, package) => found,
            failure = self.shell.beats() => return Err(failure),
            () = self.task.controller.cancel.reached(1) => {
                return Err(Failure::new(Outcome::Interrupted, "interrupted before the upload"));
            }
        };
        if let Some((base, delta)) = found {
            match self.send_difference(id, &base, &delta, package).await {
                Ok(()) => {
                    self.way = Way::Patch(base, delta);
                    return Ok(());
                }
                Err(failure) if failure.lost || failure.outcome == Outcome::Interrupted => return Err(failure),
                // The patch may have been deleted from the store meanwhile.
                Err(failure) => self.task.warn(format!("{}; sending the whole package", failure.problem)),
            }
        }
        self.send(id, &Parcel::whole(package), &self.incoming(&package.id, "tar.gz")).await
    }

    /// Sends a patch; or what an sftp server is to do, and has the host do it.
    async fn send_difference(&mut self, id: StepId, base: &ReleaseId, delta: &Delta, package: &Package) -> Result<(), Failure> {
        let ending = if delta.means == Means::Perl { "patch.gz" } else { "requests.gz" };
        let (parcel, tar) = (self.incoming(&package.id, ending), self.incoming(&package.id, "tar"));
        let mut sent = self.send(id, &Parcel::of(delta), &parcel).await;
        if sent.is_ok() && delta.means == Means::Copies {
            sent = self.complete(base, &parcel, &tar).await;
        }
        if sent.as_ref().is_err_and(|failure| !failure.lost && failure.outcome != Outcome::Interrupted) {
            // All of it is sent now: that wants the space. Under the lock, so it is nobody else's.
            let mut stage = Stage::default();
            [ending, "tar"].iter().for_each(|ending| stage.call("clear_incoming", &[&format!("{}.{ending}", package.id)]));
            self.shell.send(&stage).await?;
            while self.shell.frame().await? != Frame::End {}
        }
        sent
    }

    /// Has the host's sftp server make `tar` as the requests say.
    async fn complete(&mut self, base: &ReleaseId, requests: &str, tar: &str) -> Result<(), Failure> {
        let facts = &self.plan.assumes;
        let release = format!("{}/releases/{base}", facts.root);
        let (server, seconds) = (facts.sftp_server.as_deref().unwrap_or_default(), COPIED.as_secs().to_string());
        let words = [&release, requests, tar, server, &seconds].map(quote).join(" ");
        let session = self.session.clone();
        tokio::select! {
            made = tokio::time::timeout(COMPLETED, lay_down(&session, &words)) => made.unwrap_or_else(|_| {
                Err(Failure::new(Outcome::FailedUnchanged, "the host takes too long to complete what was sent"))
            }),
            failure = self.shell.beats() => Err(failure),
            () = self.task.controller.cancel.reached(1) => {
                Err(Failure::new(Outcome::Interrupted, "interrupted during the upload"))
            }
        }
    }

    async fn send(&mut self, id: StepId, parcel: &Parcel<'_>, remote: &str) -> Result<(), Failure> {
        let (task, session) = (self.task, self.session.clone());
        let Parcel { file, sha256, bytes: total } = *parcel;
        let progress = move |bytes: u64| task.emit(EventKind::Progress { step: id, bytes, total });
        let passing = &task.controller.passing;
        let passes = task.controller.options.rollout.pass_on && passing.several(&task.service.name) && self.plan.assumes.has_perl;
        let arrive = async {
            let mut first = None;
            if passes {
                match passing.turn(&task.service.name, sha256) {
                    Turn::First(turn) => first = Some(turn),
                    Turn::Next(next) => {
                        if next.take(&session, remote, total, sha256).await {
                            return Ok(0);
                        }
                    }
                }
            }
            let sent = session.upload(file, remote, &progress).await.map_err(Failure::transport)?;
            if let Some(first) = first {
                first.give(&session, remote, &task.host.address).await;
            }
            Ok(sent.bytes)
        };
        let sent = tokio::select! {
            result = arrive => result?,
            failure = self.shell.beats() => return Err(failure),
            () = task.controller.cancel.reached(1) => {
                return Err(Failure::new(Outcome::Interrupted, "interrupted during the upload"));
            }
        };
        self.sent_bytes += sent;
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
            if let Err(failure) = self.send(step.id, &Parcel::whole(package), &remote).await {
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
            // The login user put it together: it is checked like all else that arrives.
            Way::Patch(_, delta) if delta.means == Means::Copies => stage.step(id, "unpack_copied", &[release.as_str(), package]),
            Way::Patch(base, delta) => {
                let mut words = vec![release.as_str(), package, &delta.sha256, base.as_str(), PATCH_SCRIPT];
                words.extend(delta.sources.iter().map(String::as_str));
                stage.step(id, "unpack_patch", &words);
            }
        }
    }
}

/// Runs the script that does so with its words, seen from the login user's home.
async fn lay_down(session: &Arc<dyn Session>, words: &str) -> Result<(), Failure> {
    let command = format!("exec sh -c {} sh {words}", quote(COPY_SCRIPT));
    let output = session.run(&command, bytes::Bytes::new(), MAX_WORDS).await.map_err(Failure::transport)?;
    match output.exit {
        Exit::Status(0) => Ok(()),
        Exit::Lost => Err(Failure::lost("connection closed".into())),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).lines().map(crate::shell::sanitise).collect::<Vec<_>>().join(" ");
            Err(Failure::new(Outcome::FailedUnchanged, format!("the host could not copy what is old: {said}")))
        }
    }
}

/// The release whose package the new one is made from, and what makes it.
async fn difference(
    task: &Task<'_>,
    plan: &HostPlan,
    session: &Arc<dyn Session>,
    package: &Package,
) -> Option<(ReleaseId, Arc<Delta>)> {
    let facts = &plan.assumes;
    let base = best_base(facts.current.as_ref(), &facts.releases)?;
    // To this machine a copy is quicker.
    let round_trip = session.round_trip_time()?;
    let means = if facts.has_perl {
        Means::Perl
    } else if facts.sftp_server.is_some() && session.copies_files().await {
        Means::Copies
    } else {
        return None;
    };
    let stock = &task.controller.stock;
    // A near host takes all of it in less time than the difference takes to be found.
    let delta = if round_trip < FAR && package.archive_bytes < ALWAYS {
        stock.made(&base.package, package, means)?
    } else {
        fetch::package_of(task, session, &facts.root, base).await.then_some(())?;
        tokio::time::timeout(PATIENCE, stock.delta(&base.package, package, means)).await.ok().flatten()?
    };
    tracing::debug!(
        bytes = delta.bytes,
        means = ?delta.means,
        of = package.archive_bytes,
        base = base.id.short(),
        "sending the difference"
    );
    Some((base.id.clone(), delta))
}

/// The release on the host that is likely to differ least: the current one, else the newest.
fn best_base<'f>(current: Option<&ReleaseId>, releases: &'f [ReleaseFacts]) -> Option<&'f ReleaseFacts> {
    let mut complete = releases.iter().filter(|r| r.complete);
    complete.clone().find(|r| Some(&r.id) == current).or_else(|| complete.next())
}
