//! Runs a plan on one host: flights of steps down, frames back up, and on a failure the undo list newest first.

mod back;
mod calls;
mod fetch;
mod frames;
pub mod passing;
mod upload;

use self::upload::Way;
use crate::engine::{PlannedPackage, Task};
use crate::failure::Failure;
use crate::health;
use crate::mesh::Meeting;
use crate::shell::{Frame, HostShell, Stage};
use roadie_model::definition::Health;
use roadie_model::event::EventKind;
use roadie_model::outcome::Outcome;
use roadie_model::plan::{Action, HostPlan, Step, StepId};
use roadie_transport::Session;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// How a run ended.
#[derive(Debug, Clone)]
pub enum RunEnd {
    /// All steps done; `warning` when something after the commit was not.
    Completed {
        /// What could not be tidied up.
        warning: Option<String>,
    },
    /// Failed before anything in service changed.
    Unchanged(Failure),
    /// Failed, undone, and the earlier release confirmed.
    RolledBack(Failure),
    /// Failed at something that is not undone (start, stop, restart).
    Left(Failure),
    /// Failed, and undoing failed.
    NotRestored {
        /// The first failure.
        failure: Failure,
        /// The failure of the way back.
        undo: Failure,
    },
    /// Another run has taken over while contact was lost.
    Superseded(Failure),
    /// Contact was lost for good with changes under way.
    Unknown(Failure),
}

/// A step that failed.
struct StepFailure {
    id: StepId,
    failure: Failure,
}

/// One plan being run.
pub struct Run<'a> {
    task: &'a Task<'a>,
    session: Arc<dyn Session>,
    shell: HostShell,
    plan: &'a HostPlan,
    package: PlannedPackage<'a>,
    began_run: bool,
    /// A stage that changes what is in service was sent.
    sent_switch: bool,
    undoing: bool,
    begun: Vec<StepId>,
    started_at: HashMap<StepId, Instant>,
    invocation: String,
    last_output: Vec<String>,
    sent_bytes: u64,
    way: Way,
    heard: Vec<(String, String)>,
    /// What the host told while we were sending.
    early: VecDeque<Frame>,
    /// Of each shell that was ours: the host knows a run by that.
    tags: Vec<String>,
}

impl<'a> Run<'a> {
    /// Nothing done yet; `shell` holds the lock.
    pub fn new(
        task: &'a Task<'a>,
        session: Arc<dyn Session>,
        shell: HostShell,
        plan: &'a HostPlan,
        package: PlannedPackage<'a>,
    ) -> Self {
        let invocation = plan.assumes.service.invocation.clone().unwrap_or_default();
        let tags = vec![shell.tag().to_owned()];
        Self {
            task,
            session,
            shell,
            plan,
            package,
            began_run: false,
            sent_switch: false,
            undoing: false,
            begun: Vec::new(),
            started_at: HashMap::new(),
            invocation,
            last_output: Vec::new(),
            sent_bytes: 0,
            way: Way::Whole,
            heard: Vec::new(),
            early: VecDeque::new(),
            tags,
        }
    }

    /// Bytes of package that were sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// The last lines that the failed step printed.
    pub fn take_last_output(&mut self) -> Vec<String> {
        std::mem::take(&mut self.last_output)
    }

    /// Facts that its steps told.
    pub fn take_heard(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.heard)
    }

    /// Leaves the host; the lock is free.
    pub async fn close(self) {
        self.shell.close().await;
    }

    /// Runs all steps, and on a failure the way back.
    pub async fn run(&mut self) -> RunEnd {
        match self.forward().await {
            Ok(()) => {
                self.last_output.clear();
                RunEnd::Completed { warning: None }
            }
            Err(failed) => self.after_failure(failed).await,
        }
    }

    async fn forward(&mut self) -> Result<(), StepFailure> {
        let mut rest = self.plan.steps.as_slice();
        while let Some(step) = rest.first() {
            if matches!(step.action, Action::Upload { .. }) {
                self.stop_if_cancelled(step.id)?;
                let takes_in =
                    |s: &Step| matches!(s.action, Action::Unpack { .. } | Action::WriteFiles { .. } | Action::Seal { .. });
                let (take_in, after) = split(&rest[1..], takes_in);
                let (then, after) = split(after, |s| !self.is_ours(&s.action));
                self.bring(step.id, take_in, then, after.is_empty()).await?;
                rest = after;
            } else if self.is_ours(&step.action) {
                self.stop_if_cancelled(step.id)?;
                self.do_ours(step).await?;
                self.stop_if_cancelled(step.id)?;
                rest = &rest[1..];
            } else {
                let (flight, after) = split(rest, |s| !self.is_ours(&s.action));
                self.fly(flight, after.is_empty()).await?;
                rest = after;
            }
        }
        Ok(())
    }

    fn stop_if_cancelled(&self, id: StepId) -> Result<(), StepFailure> {
        if self.task.controller.cancel.level() > 0 && !self.undoing {
            return Err(StepFailure { id, failure: Failure::new(Outcome::Interrupted, "interrupted") });
        }
        Ok(())
    }

    /// Steps that the controller itself does.
    fn is_ours(&self, action: &Action) -> bool {
        match action {
            Action::Upload { .. } | Action::AwaitPeers | Action::CheckPeers { .. } => true,
            Action::CheckHealth { health } => health::is_remote(&health.probe),
            _ => false,
        }
    }

    async fn do_ours(&mut self, step: &Step) -> Result<(), StepFailure> {
        if let Action::CheckPeers { .. } = &step.action {
            return self.check_peers(step).await.map_err(|failed| self.unless_interrupted(failed));
        }
        self.begin(step.id);
        let result = match &step.action {
            Action::CheckHealth { health } => self.check(step.id, health).await,
            Action::AwaitPeers => self.meet(Meeting::first_applied).await,
            _ => Ok(()),
        };
        match result {
            Ok(()) => {
                self.done(step.id, String::new());
                Ok(())
            }
            Err(failure) => {
                self.task.emit(EventKind::StepFailed { step: step.id, reason: failure.problem.clone() });
                Err(StepFailure { id: step.id, failure })
            }
        }
    }

    async fn check(&mut self, id: StepId, health: &Health) -> Result<(), Failure> {
        let cancel = self.task.controller.cancel.clone();
        let level = if self.undoing { 2 } else { 1 };
        let result = tokio::select! {
            result = health::wait(&self.session, health) => result,
            failure = self.shell.beats() => return Err(failure),
            () = cancel.reached(level) => return Err(Failure::new(Outcome::Interrupted, "interrupted during the health check")),
        };
        let Err(reason) = result else { return Ok(()) };
        if let Some(lost) = self.session.lost() {
            return Err(Failure::lost(lost));
        }
        let mut failure = Failure::new(Outcome::FailedUnchanged, format!("`{}` failed its health check", self.plan.service));
        failure.causes.push(reason);
        let mut stage = Stage::default();
        stage.call(&format!("step_id={id}; last_words"), &["20"]);
        self.shell.send(&stage).await?;
        self.read_frames().await.map_err(|f| f.failure)?;
        Err(failure)
    }

    /// Waits at the meeting of the hosts that are changed together, if there is one.
    async fn meet<W>(&mut self, waiting: impl FnOnce(&'a Meeting) -> W) -> Result<(), Failure>
    where
        W: Future<Output = Result<(), String>>,
    {
        let Some(meeting) = self.task.meeting else { return Ok(()) };
        let cancel = self.task.controller.cancel.clone();
        tokio::select! {
            result = waiting(meeting) => result.map_err(other_failed),
            failure = self.shell.beats() => Err(failure),
            () = cancel.reached(1) => Err(Failure::new(Outcome::Interrupted, "interrupted while waiting for the other hosts")),
        }
    }

    /// What failed after an interruption failed because the other hosts were on their way back.
    fn unless_interrupted(&self, failed: StepFailure) -> StepFailure {
        if failed.failure.lost || self.task.controller.cancel.level() == 0 {
            return failed;
        }
        StepFailure { failure: Failure::new(Outcome::Interrupted, "interrupted while the hosts asked each other"), ..failed }
    }

    /// When the change is in force on all hosts: each asks its peers, and lets us in anew. None confirms before all can.
    async fn check_peers(&mut self, step: &Step) -> Result<(), StepFailure> {
        let (task, id) = (self.task, step.id);
        let failed = |failure: Failure| {
            task.emit(EventKind::StepFailed { step: id, reason: failure.problem.clone() });
            StepFailure { id, failure }
        };
        if let Some(meeting) = task.meeting {
            meeting.applied(&task.host.name);
        }
        self.meet(Meeting::all_applied).await.map_err(failed)?;
        let mut stage = Stage::default();
        self.add(&mut stage, id, &step.action);
        let knocking = async {
            match task.meeting {
                Some(meeting) => {
                    meeting.in_time(task.controller.knock(task.host)).await.unwrap_or_else(|why| Err(other_failed(why)))
                }
                None => task.controller.knock(task.host).await,
            }
        };
        let (asked, let_in) = tokio::join!(self.send_and_read(&stage, id), knocking);
        asked?;
        let_in.map_err(failed)?;
        if let Some(meeting) = task.meeting {
            meeting.checked(&task.host.name);
        }
        self.meet(Meeting::all_checked).await.map_err(failed)
    }
}

/// The steps up to the first that is not `one_of` them, and the rest.
fn split(steps: &[Step], one_of: impl Fn(&Step) -> bool) -> (&[Step], &[Step]) {
    steps.split_at(steps.iter().position(|s| !one_of(s)).unwrap_or(steps.len()))
}

/// What ends a meeting for those who wait.
fn other_failed(why: String) -> Failure {
    Failure { causes: vec![why], ..Failure::new(Outcome::FailedUnchanged, "another host of the mesh did not come as far") }
}
