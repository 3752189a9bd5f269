//! The way back: what the host did while contact was lost, and the undo list newest first.

use super::calls::tenths;
use super::{Run, RunEnd, StepFailure};
use crate::engine::LookFor;
use crate::failure::Failure;
use crate::health;
use crate::shell::Stage;
use roadie_model::outcome::Outcome;
use roadie_model::plan::{Action, Stage as PlanStage, Step, StepId, Undo};
use std::time::Duration;

/// How often the way back is taken when contact is lost on it.
const WAYS_BACK: u32 = 3;
/// How often contact is sought again before the outcome is called unknown.
const RECONNECTS: u32 = 5;

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

impl<'a> Run<'a> {
    pub(super) async fn after_failure(&mut self, failed: StepFailure) -> RunEnd {
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
}
