//! Runs a plan on one host: flights of steps down, frames back up, and on a failure the undo list newest first.

mod fetch;
pub mod passing;
mod upload;

use self::upload::Way;
use crate::engine::{LookFor, PlannedPackage, Task};
use crate::failure::Failure;
use crate::health;
use crate::mesh::Meeting;
use crate::shell::{Frame, HostShell, Stage, one_shot};
use bytes::Bytes;
use roadie_model::definition::{Health, Probe};
use roadie_model::event::EventKind;
use roadie_model::outcome::Outcome;
use roadie_model::plan::{Action, HostPlan, Source, Stage as PlanStage, Step, StepId, Undo};
use roadie_transport::Session;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// What the host turned out to have done while contact was lost.
enum Found {
    /// All of it, the commit included.
    Finished,
    /// Nothing that is in service: no guard is armed, and none has acted.
    Unchanged,
    /// Its guard took the way back; undoing again makes sure of it.
    WentBack(String),
    /// Another run, with this epoch, has taken over: nothing there is ours to undo.
    Superseded(u64),
}

/// Lines of output kept for the report.
const LAST_OUTPUT: usize = 20;
/// How often the way back is taken when contact is lost on it.
const WAYS_BACK: u32 = 3;
/// How long telling the host to stop may take.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// The host's word when a package does not come.
const UNSENT: &str = "unsent";
/// How often contact is sought again before the outcome is called unknown.
const RECONNECTS: u32 = 5;

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

    /// Sends steps as one stage and follows its frames.
    async fn fly(&mut self, steps: &[Step], last: bool) -> Result<(), StepFailure> {
        let Some(first) = steps.first() else {
            return Ok(());
        };
        let id = first.id;
        let mut stage = Stage::default();
        self.begin_run(&mut stage);
        self.add_all(&mut stage, steps);
        let sent = if last { self.shell.send_last(&stage).await } else { self.shell.send(&stage).await };
        self.read_after(sent, id).await
    }

    async fn send_and_read(&mut self, stage: &Stage, first: StepId) -> Result<(), StepFailure> {
        let sent = self.shell.send(stage).await;
        self.read_after(sent, first).await
    }

    async fn read_after(&mut self, sent: Result<(), Failure>, first: StepId) -> Result<(), StepFailure> {
        if let Err(failure) = sent {
            return Err(StepFailure { id: first, failure });
        }
        let mut read = Box::pin(Self::read_frames_of(self));
        read.as_mut().await
    }

    async fn read_frames_of(run: &mut Run<'a>) -> Result<(), StepFailure> {
        let cancel = run.task.controller.cancel.clone();
        let level = cancel.level();
        if run.undoing {
            return run.read_frames().await;
        }
        let session = run.session.clone();
        let stop = one_shot(run.task.service, &stop_script(run.plan));
        tokio::select! {
            result = run.read_frames() => return result,
            () = cancel.reached(1.max(level)) => {}
        }
        // The host is told beside the running stage: the step at work ends, or stops where it polls for this.
        let told = tokio::time::timeout(TOLD_WITHIN, session.run(&stop, Bytes::new(), 4096)).await;
        if !matches!(told, Ok(Ok(_))) {
            run.task.warn("could not tell the host to stop; waiting for the stage to end");
        }
        tokio::select! {
            result = run.read_frames() => result,
            () = cancel.reached(2) => {
                let id = run.begun.last().copied().unwrap_or(0);
                Err(StepFailure { id, failure: interrupted_twice() })
            }
        }
    }

    /// The first stage of a run takes a new epoch and leaves what later work on the host needs.
    fn begin_run(&mut self, stage: &mut Stage) {
        if self.began_run {
            return;
        }
        self.began_run = true;
        stage.step(0, "begin_run", &[&self.task.controller.options.identity]);
    }

    async fn read_frames(&mut self) -> Result<(), StepFailure> {
        let mut failed = None;
        loop {
            let frame = match self.early.pop_front() {
                Some(frame) => Ok(frame),
                None => self.shell.frame().await,
            };
            match frame {
                Ok(Frame::Begin(id)) => self.begin(id),
                Ok(Frame::Out(id, line)) => self.output(id, line),
                Ok(Frame::Done(id, note)) => self.done(id, note),
                Ok(Frame::Fact(key, value)) => {
                    if key == "invocation" {
                        self.invocation = value;
                    } else {
                        self.heard.push((key, value));
                    }
                }
                Ok(Frame::Fail(id, kind, text)) => {
                    // Of what we ourselves have told the host it is not told back.
                    if kind != UNSENT {
                        self.task.emit(EventKind::StepFailed { step: id, reason: text.clone() });
                    }
                    failed = Some(StepFailure { id, failure: Failure::host(&kind, &text) });
                }
                Ok(Frame::End) => return failed.map_or(Ok(()), Err),
                Err(mut failure) => {
                    failure.lost = true;
                    let id = self.begun.last().copied().unwrap_or(0);
                    return Err(failed.unwrap_or(StepFailure { id, failure }));
                }
            }
        }
    }

    fn begin(&mut self, id: StepId) {
        self.started_at.insert(id, Instant::now());
        let Some(step) = self.step(id) else { return };
        let title = match (&step.undo, self.undoing) {
            (Undo::By { step }, true) => step.to_string(),
            _ => step.action.to_string(),
        };
        if !self.undoing {
            self.begun.push(id);
            self.last_output.clear();
        }
        self.task.emit(EventKind::StepStarted { step: id, title, undoing: self.undoing });
    }

    fn output(&mut self, id: StepId, line: String) {
        if !self.undoing {
            if self.last_output.len() >= LAST_OUTPUT {
                self.last_output.remove(0);
            }
            self.last_output.push(line.clone());
        }
        self.task.emit(EventKind::Output { step: id, line });
    }

    fn done(&mut self, id: StepId, note: String) {
        if id == 0 {
            return;
        }
        let ms = self.started_at.get(&id).map_or(0, |at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.task.emit(EventKind::StepDone { step: id, note, ms });
    }

    fn step(&self, id: StepId) -> Option<&'a Step> {
        self.plan.steps.iter().find(|s| s.id == id)
    }

    // ---- the way back --------------------------------------------------------------------------------------------------

    async fn after_failure(&mut self, failed: StepFailure) -> RunEnd {
        let mut failure = failed.failure;
        if let Some(meeting) = self.task.meeting {
            meeting.fail(&self.task.host.name, &failure.problem);
        }
        if self.step(failed.id).is_some_and(|s| s.stage == PlanStage::Finish) && !failure.lost {
            return RunEnd::Completed { warning: Some(failure.problem) };
        }
        if self.step(failed.id).is_some_and(|s| {
            matches!(
                s.action,
                Action::CheckHealth { .. }
                    | Action::Restart { .. }
                    | Action::Reload { .. }
                    | Action::CheckPeers { .. }
                    | Action::Confirm { .. }
            )
        }) {
            failure = self.name_the_service(failure);
        }
        let mut lost = failure.lost;
        // Contact may be lost on the way back as well; all of it can be repeated.
        for _ in 0..WAYS_BACK {
            if lost && let Some(end) = self.truth_after_loss(failed.id, &mut failure).await {
                return end;
            }
            match self.undo().await {
                Err(undo) if undo.lost => {
                    failure.causes.push("contact was lost on the way back".into());
                    lost = true;
                }
                // Asked twice to leave: the guard is armed, and takes the way from here.
                Err(undo) if undo.outcome == Outcome::Interrupted => return RunEnd::Unknown(failure),
                Err(undo) if self.changed_service() => return RunEnd::NotRestored { failure, undo },
                // What was prepared stays behind: the next run deletes or replaces it.
                Err(undo) => {
                    failure.causes.push(format!("what was prepared could not be taken away: {}", undo.problem));
                    return RunEnd::Unchanged(failure);
                }
                Ok(()) if !self.changed_service() => return RunEnd::Unchanged(failure),
                Ok(()) => {
                    let Some(why) = self.stays() else { return RunEnd::RolledBack(failure) };
                    failure.causes.push(format!("it is not taken back: {why}"));
                    return RunEnd::Left(failure);
                }
            }
        }
        RunEnd::Unknown(failure)
    }

    /// Why something that was begun is not undone, if there is such a thing.
    fn stays(&self) -> Option<&'a str> {
        let begun = self.begun.iter().filter_map(|id| self.step(*id)).filter(|s| s.stage == PlanStage::Switch);
        begun.into_iter().find_map(|s| if let Undo::Stays { why } = &s.undo { Some(why.as_str()) } else { None })
    }

    /// Whether this plan arms the guard before it changes anything in service.
    fn arms(&self) -> bool {
        self.plan.steps.iter().any(|s| matches!(s.action, Action::ArmGuard { .. }))
    }

    /// Finds the host again and reads what it did meanwhile. `None`: the way back is ours to take.
    async fn truth_after_loss(&mut self, step: StepId, failure: &mut Failure) -> Option<RunEnd> {
        if self.task.controller.cancel.level() >= 2 {
            return Some(RunEnd::Unknown(failure.clone()));
        }
        let mut last = PlanStage::Switch;
        match self.find_again().await {
            Ok(None) => {}
            Ok(Some(Found::Unchanged)) => last = PlanStage::Prepare,
            Ok(Some(Found::Finished)) => {
                let warning = "contact was lost in between; the host finished by itself";
                return Some(RunEnd::Completed { warning: Some(warning.into()) });
            }
            Ok(Some(Found::Superseded(epoch))) => return Some(RunEnd::Superseded(Failure::superseded(epoch))),
            Ok(Some(Found::WentBack(how))) => failure.causes.push(format!("the host did not wait: {how}")),
            Err(_) if !self.changed_service() && !self.sent_switch => return Some(RunEnd::Unchanged(failure.clone())),
            Err(_) => return Some(RunEnd::Unknown(failure.clone())),
        }
        if self.step(step).is_some_and(|s| s.stage == PlanStage::Finish) {
            return Some(RunEnd::Completed { warning: Some(failure.problem.clone()) });
        }
        // Undoing tolerates steps that were never done: after a loss of contact, all that were sent are undone.
        self.begun = self.plan.steps.iter().filter(|s| s.stage <= last).map(|s| s.id).collect();
        None
    }

    /// Makes a supervisor's word a sentence about the service.
    fn name_the_service(&self, failure: Failure) -> Failure {
        let health = "failed its health check";
        if self.plan.service.is_mesh() {
            let causes = std::iter::once(failure.problem.clone()).chain(failure.causes.clone()).collect();
            return Failure { problem: "the mesh did not come about".into(), causes, ..failure };
        }
        if failure.outcome == Outcome::Interrupted || failure.problem.contains(health) {
            return failure;
        }
        let mut causes = vec![failure.problem.clone()];
        causes.extend(failure.causes.clone());
        Failure { problem: format!("`{}` {health}", self.plan.service), causes, ..failure }
    }

    fn changed_service(&self) -> bool {
        self.begun.iter().filter_map(|id| self.step(*id)).any(|s| s.stage == PlanStage::Switch)
    }

    async fn undo(&mut self) -> Result<(), Failure> {
        self.undoing = true;
        let mut stage = Stage::default();
        stage.call("undoing", &[]);
        self.begin_run(&mut stage);
        let ids: Vec<StepId> = self.begun.iter().rev().copied().collect();
        for id in ids {
            let Some(Step { undo: Undo::By { step }, .. }) = self.step(id) else {
                continue;
            };
            self.add(&mut stage, id, step);
            if let Action::Restore { health, .. } = step {
                self.send_and_read(&std::mem::take(&mut stage), id).await.map_err(|f| f.failure)?;
                if health::is_remote(&health.probe) {
                    self.check(id, health).await?;
                }
                stage.step(id, "stays_up_as", &[&self.invocation, &tenths(health.stable_for)]);
                stage.step(id, "disarm_guard", &[]);
            }
        }
        self.send_and_read(&stage, 0).await.map_err(|f| f.failure)
    }

    /// Seeks contact again and reads what is true. `Ok(None)`: it is as we left it.
    async fn find_again(&mut self) -> Result<Option<Found>, Failure> {
        self.task.warn("contact was lost; looking for the host again");
        let mut last = Failure::lost("the host did not answer again".into());
        for attempt in 0..RECONNECTS {
            tokio::time::sleep(Duration::from_secs(1 << attempt.min(3))).await;
            match self.look_again().await {
                Ok(end) => return Ok(end),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn look_again(&mut self) -> Result<Option<Found>, Failure> {
        self.session = self.task.controller.reconnect(self.task.host).await?;
        // While the stage that lost us still runs, it holds the lock: that is an error here, and the next attempt's turn.
        let (shell, facts) = self.task.observe(&self.session, true, &LookFor::default()).await?;
        let began = self.tags.contains(&facts.epoch_tag);
        self.tags.push(shell.tag().to_owned());
        self.shell = shell;
        // What the one before told is of no use to this one.
        self.early.clear();
        if !began && facts.epoch > self.plan.assumes.epoch {
            return Ok(Some(Found::Superseded(facts.epoch)));
        }
        self.began_run = false;
        if let Some(settled) = facts.settled.as_ref().filter(|s| began && s.epoch == facts.epoch) {
            return Ok(Some(Found::WentBack(settled.text.clone())));
        }
        let new = facts.current.is_some() && facts.current == self.plan.release && !facts.unconfirmed();
        if new && facts.current != self.plan.assumes.current {
            return Ok(Some(Found::Finished));
        }
        if !facts.unconfirmed() && facts.current == self.plan.assumes.current && self.arms() {
            return Ok(Some(Found::Unchanged));
        }
        Ok(None)
    }

    // ---- from actions to calls of the host script ----------------------------------------------------------------------

    /// Adds steps to a stage that is about to be sent.
    fn add_all(&mut self, stage: &mut Stage, steps: &[Step]) {
        self.sent_switch |= steps.iter().any(|s| s.stage == PlanStage::Switch);
        for step in steps {
            self.add(stage, step.id, &step.action);
        }
    }

    fn add(&self, stage: &mut Stage, id: StepId, action: &Action) {
        match action {
            Action::Upload { .. } => {}
            Action::Unpack { release, source: Source::Archive { sha256 } } => self.add_unpack(stage, id, release, sha256),
            Action::Unpack { release, source: Source::Release(from) } => {
                stage.step(id, "unpack_release", &[release.as_str(), from.as_str()]);
            }
            Action::Unpack { release, source: Source::Rendered } => stage.step(id, "unpack_nothing", &[release.as_str()]),
            Action::WriteFiles { release } => self.add_files(stage, id, release.as_str()),
            Action::Seal { release, package, version } => {
                let manifest = self.plan.rendered.as_ref().map(|r| crate::shell::sha256(&r.manifest)).unwrap_or_default();
                stage.step(id, "seal", &[release.as_str(), package.as_str(), version, &manifest]);
            }
            Action::RunSetup { release, digest, timeout_s } => {
                stage.step(id, "setup", &[release.as_str(), digest, &timeout_s.to_string()]);
            }
            Action::ArmGuard { back_to, to, runs, deadline_s, grace_s } => {
                let back = back_to.as_ref().map_or("none", |r| r.as_str());
                let (runs, deadline, grace) = (u8::from(*runs).to_string(), deadline_s.to_string(), grace_s.to_string());
                stage.step(id, "arm_guard", &[back, to.as_str(), &runs, &deadline, &grace]);
            }
            Action::DisarmGuard => stage.step(id, "disarm_guard", &[]),
            Action::InstallUnit { release } => stage.step(id, "install_unit", &[release.as_str()]),
            Action::RemoveUnit => stage.step(id, "remove_unit", &[]),
            Action::Switch { to, .. } => stage.step(id, "switch", &[to.as_ref().map_or("", |r| r.as_str())]),
            // Which of the two it is, the release on the host says.
            Action::Restart { .. } | Action::Reload { .. } => stage.step(id, "restart", &[]),
            Action::Start | Action::Restore { .. } => stage.step(id, "start", &[]),
            Action::Stop => stage.step(id, "stop", &[]),
            Action::CheckHealth { health } => self.add_health(stage, id, health),
            Action::Confirm { release, stable_ms } => {
                let invocation = if self.invocation_is_known() { &self.invocation } else { "" };
                // Only what a deploy brings came with it: not what is gone back to.
                let mesh = self.plan.rendered.as_ref().and_then(|_| self.task.controller.replaced_mesh(&self.task.host.name));
                let mesh = mesh.filter(|_| self.task.meeting.is_none());
                let tenths = stable_ms.div_ceil(100).to_string();
                stage.step(id, "confirm", &[release.as_str(), invocation, &tenths, mesh.as_deref().unwrap_or_default()]);
            }
            Action::Record { release, state } => stage.step(id, "record", &[release.as_str(), &state.to_string()]),
            Action::Discard { release, package } => {
                stage.step(id, "discard", &[release.as_str(), package.as_ref().map_or("", |p| p.as_str())]);
            }
            Action::Prune { remove } => {
                let ids: Vec<&str> = remove.iter().map(|r| r.as_str()).collect();
                stage.step(id, "prune", &ids);
            }
            Action::Remove => stage.step(id, "remove_all", &[]),
            Action::PruneKeys => stage.step(id, "mesh_prune_keys", &[]),
            Action::AwaitPeers => {}
            Action::CheckPeers { peers, timeout_s } => {
                let seconds = timeout_s.to_string();
                let words: Vec<&str> = [seconds.as_str(), ""].into_iter().chain(peers.iter().map(|p| p.as_str())).collect();
                stage.step(id, "mesh_verify", &words);
            }
        }
    }

    /// When start and confirmation travel in one stage, the host itself remembers the start.
    fn invocation_is_known(&self) -> bool {
        self.plan.steps.iter().any(|s| matches!(&s.action, Action::CheckHealth { health } if health::is_remote(&health.probe)))
    }

    fn add_files(&self, stage: &mut Stage, id: StepId, release: &str) {
        let Some(r) = &self.plan.rendered else { return };
        let args = [release, &r.unit, r.config.reveal(), r.env.reveal(), r.run.reveal(), &r.health, &r.lifecycle, &r.manifest];
        stage.step(id, "write_files", &args);
    }

    fn add_health(&self, stage: &mut Stage, id: StepId, health: &Health) {
        match &health.probe {
            Probe::Exec(command) => {
                let (interval, timeout) = (tenths(health.interval), tenths(health.timeout));
                stage.step(id, "health_exec", &[command, &interval, &timeout, &health.good.to_string()]);
            }
            // sd_notify is what `systemctl restart` waited for.
            Probe::Notify | Probe::StaysUp => stage.step(id, "stays_up", &[&tenths(health.stable_for)]),
            Probe::Http(_) | Probe::Tcp(_) => {}
        }
    }
}

/// We are to leave at once, whatever the host is at.
fn interrupted_twice() -> Failure {
    Failure { lost: true, ..Failure::new(Outcome::Interrupted, "interrupted twice") }
}

/// The steps up to the first that is not `one_of` them, and the rest.
fn split(steps: &[Step], one_of: impl Fn(&Step) -> bool) -> (&[Step], &[Step]) {
    steps.split_at(steps.iter().position(|s| !one_of(s)).unwrap_or(steps.len()))
}

/// What ends a meeting for those who wait.
fn other_failed(why: String) -> Failure {
    Failure { causes: vec![why], ..Failure::new(Outcome::FailedUnchanged, "another host of the mesh did not come as far") }
}

/// Asks a running stage to stop at the next step, and a running setup to stop now.
fn stop_script(plan: &HostPlan) -> String {
    format!(": >{}", roadie_model::sh::quote(&format!("{}/.roadie/cancel", plan.assumes.root)))
}

fn tenths(duration: Duration) -> String {
    duration.as_millis().div_ceil(100).to_string()
}
