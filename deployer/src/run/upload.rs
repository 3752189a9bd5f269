//! How a package gets to a host: as the difference from one that is there, or whole. Any doubt, and all of it is sent.

use super::passing::Turn;
use super::{Run, StepFailure, fetch};
use crate::engine::Task;
use crate::failure::{Failure, Resend};
use crate::shell::{BEAT, Frame, HostShell, Stage};
use roadie_model::event::EventKind;
use roadie_model::facts::ReleaseFacts;
use roadie_model::id::ReleaseId;
use roadie_model::outcome::Outcome;
use roadie_model::package::{Delta, Means, Package};
use roadie_model::plan::{Action, HostPlan, Step, StepId};
use roadie_model::sh::quote;
use roadie_transport::{Exit, Session};
use std::collections::VecDeque;
use std::path::Path;
use std::pin::pin;
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

/// So long it may take to hear what the host has seen go wrong with an upload.
const AFTERWORDS: Duration = Duration::from_secs(1);

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

impl<'a> Run<'a> {
    /// Sends the package, or what is missing of it. The host unpacks it while it arrives, by the steps `take_in`. With our word that
    /// all was sent go the steps that follow; it does them when it has come so far.
    pub(super) async fn bring(
        &mut self,
        id: StepId,
        take_in: &'a [Step],
        then: &'a [Step],
        last: bool,
    ) -> Result<(), StepFailure> {
        self.begin(id);
        let Some(package) = self.package else {
            return Err(self.not_sent(id, Failure::new(Outcome::Bug, "the plan uploads a package that the run was not given")));
        };
        self.way = match self.find_way(package).await {
            Ok(way) => way,
            Err(failure) => return Err(self.not_sent(id, failure)),
        };
        // Whatever goes wrong with a difference, all of it is sent. And what was not taken in one go may be sent with a look at what
        // is there.
        let mut looks = false;
        loop {
            let failed = match self.bring_by_way(id, package, looks, take_in, then, last).await {
                Err(failed) if !failed.failure.lost && failed.failure.outcome != Outcome::Interrupted => failed,
                other => return other,
            };
            match (&self.way, failed.failure.resend) {
                (_, Some(Resend::Looking)) if !looks => {
                    tracing::debug!(why = failed.failure.problem, "sent again, with a look at what is there");
                    looks = true;
                }
                (Way::Patch(..), Some(_)) => {
                    self.task.warn(format!("{}; sending the whole package", failed.failure.problem));
                    if let Err(failure) = self.clear_difference(package).await {
                        return Err(self.not_sent(id, failure));
                    }
                    (self.way, looks) = (Way::Whole, false);
                }
                _ => return Err(failed),
            }
            // What was begun with it is begun anew, and what was sent behind it was not done.
            self.sent_switch = false;
            self.begun.retain(|begun| take_in.iter().all(|s| s.id != *begun));
        }
    }

    /// It may have to be found first: the host is told meanwhile that we are there.
    async fn find_way(&mut self, package: &Package) -> Result<Way, Failure> {
        tokio::select! {
            found = difference(self.task, self.plan, &self.session, package) => {
                Ok(found.map_or(Way::Whole, |(base, delta)| Way::Patch(base, delta)))
            }
            failure = self.shell.beats() => Err(failure),
            () = self.task.controller.cancel.reached(1) => {
                Err(Failure::new(Outcome::Interrupted, "interrupted before the upload"))
            }
        }
    }

    async fn bring_by_way(
        &mut self,
        id: StepId,
        package: &Package,
        looks: bool,
        take_in: &'a [Step],
        then: &'a [Step],
        last: bool,
    ) -> Result<(), StepFailure> {
        let mark = format!("{}.{}", package.id, crate::shell::tag().trim_start_matches("@roadie-"));
        let mut stage = Stage::default();
        self.begin_run(&mut stage);
        if let Some(seconds) = then.iter().find_map(|step| match &step.action {
            Action::ArmGuard { deadline_s, .. } => Some(deadline_s.to_string()),
            _ => None,
        }) {
            stage.call("get_ready", &[&seconds]);
        }
        stage.step(0, "await_upload", &[&mark]);
        self.add_all(&mut stage, take_in);
        stage.step(0, "all_sent", &[]);
        if let Err(failure) = self.shell.send_listening(&stage).await {
            return Err(self.not_sent(id, failure));
        }
        let transfer = Transfer { task: self.task, plan: self.plan, session: self.session.clone(), id, looks, mark };
        let cancel = self.task.controller.cancel.clone();
        let sent = {
            let (early, shell) = (&mut self.early, &mut self.shell);
            let mut sending = pin!(transfer.of(package, &self.way));
            tokio::select! {
                sent = &mut sending => sent.map(Some),
                stopped = attend(shell, early) => match stopped {
                    // What it got may be wrong because the upload was, of which we hear about now.
                    Ok(()) => tokio::time::timeout(AFTERWORDS, sending).await.map_or(Ok(None), |sent| sent.map(Some)),
                    Err(lost) => Err(lost),
                },
                () = cancel.reached(1) => Err(Failure::new(Outcome::Interrupted, "interrupted during the upload")),
            }
        };
        let sent = match (sent, self.stop_if_cancelled(id)) {
            (Ok(_), Err(cancelled)) => Err(cancelled.failure),
            (sent, _) => sent,
        };
        match sent {
            Ok(Some(bytes)) if !self.early.iter().any(|frame| matches!(frame, Frame::Fail(..))) => {
                self.sent_bytes += bytes;
                self.done(id, String::new());
                self.conclude(id, then, last).await
            }
            // The host's own failure.
            Ok(_) => self.give_up().await.map_err(|failed| of_upload(id, failed)),
            Err(failure) => {
                if !failure.lost
                    && let Err(failed) = self.give_up().await
                    && failed.failure.lost
                {
                    return Err(of_upload(id, failed));
                }
                Err(self.not_sent(id, failure))
            }
        }
    }

    /// Says that all was sent, and what follows; reads what became of both.
    async fn conclude(&mut self, id: StepId, then: &'a [Step], last: bool) -> Result<(), StepFailure> {
        let lost = |failure| StepFailure { id, failure };
        self.hear_it_begin().await.map_err(lost)?;
        let mut next = Stage::default();
        self.add_all(&mut next, then);
        let sent = self.shell.conclude(&next, last).await;
        let taken_in = self.read_after(sent, id).await.map_err(|failed| of_upload(id, failed));
        match (next.is_empty(), taken_in) {
            (false, Ok(())) => self.read_after(Ok(()), id).await,
            (false, Err(failed)) if !failed.failure.lost => {
                // It does nothing, and says so.
                self.read_frames().await?;
                Err(failed)
            }
            (_, taken_in) => taken_in,
        }
    }

    /// Tells the host that no more is sent, and hears how its stage ends.
    async fn give_up(&mut self) -> Result<(), StepFailure> {
        let lost = |failure| StepFailure { id: 0, failure };
        self.hear_it_begin().await.map_err(lost)?;
        let sent = self.shell.unsent().await.map_err(|failure| Failure { lost: true, ..failure });
        self.read_after(sent, 0).await
    }

    /// Nothing may be sent behind a stage before something of it was heard.
    async fn hear_it_begin(&mut self) -> Result<(), Failure> {
        if self.early.is_empty() {
            let frame = self.shell.frame().await.map_err(|failure| Failure { lost: true, ..failure })?;
            self.early.push_back(frame);
        }
        Ok(())
    }

    fn not_sent(&self, id: StepId, failure: Failure) -> StepFailure {
        // One that is mended is no failure of the step.
        if failure.resend.is_none() {
            self.task.emit(EventKind::StepFailed { step: id, reason: failure.problem.clone() });
        }
        StepFailure { id, failure }
    }

    /// All of it is sent now: that wants the space. Under the lock, so it is nobody else's.
    async fn clear_difference(&mut self, package: &Package) -> Result<(), Failure> {
        let mut stage = Stage::default();
        for ending in ["patch.gz", "requests.gz", "tar"] {
            stage.call("clear_incoming", &[&format!("{}.{ending}", package.id)]);
        }
        self.shell.send(&stage).await?;
        while self.shell.frame().await? != Frame::End {}
        Ok(())
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

/// What is no step of the plan belongs to the upload.
fn of_upload(id: StepId, failed: StepFailure) -> StepFailure {
    StepFailure { id: if failed.id == 0 { id } else { failed.id }, ..failed }
}

/// One try to bring the package.
struct Transfer<'a> {
    task: &'a Task<'a>,
    plan: &'a HostPlan,
    session: Arc<dyn Session>,
    id: StepId,
    /// What is there of it already is looked at first.
    looks: bool,
    /// The host waits for this behind what arrives.
    mark: String,
}

impl Transfer<'_> {
    /// Bytes that were sent.
    async fn of(&self, package: &Package, way: &Way) -> Result<u64, Failure> {
        let Way::Patch(base, delta) = way else {
            return self.send(&Parcel::whole(package), &format!("{}.tar.gz", package.id), &self.mark).await;
        };
        let sent = match delta.means {
            Means::Perl => self.send(&Parcel::of(delta), &format!("{}.patch.gz", package.id), &self.mark).await,
            Means::Copies => {
                let (requests, tar) = (format!("{}.requests.gz", package.id), format!("{}.tar", package.id));
                // By when all has arrived there is a channel for the command.
                self.session.prepare_command();
                // What arrives is not yet what the host waits for.
                match self.send(&Parcel::of(delta), &requests, &unseen(&self.mark)).await {
                    Ok(bytes) => self.complete(base, &requests, &tar).await.map(|()| bytes),
                    Err(failure) => Err(failure),
                }
            }
        };
        // The patch may have been deleted from the store meanwhile.
        sent.map_err(|failure| Failure { resend: failure.resend.or(Some(Resend::Whole)), ..failure })
    }

    /// Has the host's sftp server make `tar` as the requests say.
    async fn complete(&self, base: &ReleaseId, requests: &str, tar: &str) -> Result<(), Failure> {
        let facts = &self.plan.assumes;
        let release = format!("{}/releases/{base}", facts.root);
        let (server, seconds) = (facts.sftp_server.as_deref().unwrap_or_default(), COPIED.as_secs().to_string());
        // As an upload over one channel makes it.
        let mark = format!("{}.1.1", self.incoming(&self.mark));
        let words = [&release, &self.incoming(requests), &self.incoming(tar), server, &seconds, &mark].map(quote).join(" ");
        tokio::time::timeout(COMPLETED, lay_down(&self.session, &words))
            .await
            .unwrap_or_else(|_| Err(Failure::new(Outcome::FailedUnchanged, "the host takes too long to complete what was sent")))
    }

    async fn send(&self, parcel: &Parcel<'_>, name: &str, mark: &str) -> Result<u64, Failure> {
        let (task, step, remote) = (self.task, self.id, self.incoming(name));
        let Parcel { file, sha256, bytes: total } = *parcel;
        let progress = move |bytes: u64| task.emit(EventKind::Progress { step, bytes, total });
        let passing = &task.controller.passing;
        let passes = task.controller.options.rollout.pass_on && passing.several(&task.service.name) && self.plan.assumes.has_perl;
        let mut first = None;
        if passes {
            match passing.turn(&task.service.name, sha256) {
                Turn::First(turn) => first = Some(turn),
                Turn::Next(next) => {
                    if next.take(&self.session, &remote, total, sha256).await {
                        return Ok(0);
                    }
                }
            }
        }
        // It is still needed there when all has arrived: the host goes on when we say so.
        let mark = if first.is_some() { unseen(mark) } else { mark.to_owned() };
        let is_new = !self.looks && !self.plan.assumes.incoming.contains(&format!("{}.{name}", self.plan.service));
        let sent = if is_new {
            self.session.upload_new(file, &remote, &self.incoming(&mark), &progress).await
        } else {
            self.session.upload(file, &remote, &progress).await
        };
        let sent = sent.map_err(Failure::transport)?;
        if let Some(first) = first {
            first.give(&self.session, &remote, &task.host.address).await;
        }
        Ok(sent.bytes)
    }

    /// Where the host script looks for it, from the login user's home.
    fn incoming(&self, name: &str) -> String {
        format!(".roadie/incoming/{}.{name}", self.plan.service)
    }
}

/// A mark that the host does not wait for.
fn unseen(mark: &str) -> String {
    format!("{mark}-unseen")
}

/// Says now and then that we are there, and keeps what the host tells, up to a step that fails.
async fn attend(shell: &mut HostShell, early: &mut VecDeque<Frame>) -> Result<(), Failure> {
    loop {
        tokio::select! {
            frame = shell.frame() => {
                let frame = frame.map_err(|failure| Failure { lost: true, ..failure })?;
                let over = matches!(frame, Frame::Fail(..) | Frame::End);
                early.push_back(frame);
                if over {
                    return Ok(());
                }
            }
            () = tokio::time::sleep(BEAT), if !early.is_empty() => {
                shell.beat().await.map_err(|failure| Failure { lost: true, ..failure })?;
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
