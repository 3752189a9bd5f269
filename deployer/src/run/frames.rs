//! Sends stages to the host and follows the frames that it tells of them.

use super::{Run, StepFailure};
use crate::failure::Failure;
use crate::shell::{Frame, Stage, one_shot};
use bytes::Bytes;
use roadie_model::event::EventKind;
use roadie_model::outcome::Outcome;
use roadie_model::plan::{HostPlan, Step, StepId, Undo};
use std::time::{Duration, Instant};

/// Lines of output kept for the report.
const LAST_OUTPUT: usize = 20;
/// How long telling the host to stop may take.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// The host's word when a package does not come.
const UNSENT: &str = "unsent";

impl<'a> Run<'a> {
    /// Sends steps as one stage and follows its frames.
    pub(super) async fn fly(&mut self, steps: &[Step], last: bool) -> Result<(), StepFailure> {
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

    pub(super) async fn send_and_read(&mut self, stage: &Stage, first: StepId) -> Result<(), StepFailure> {
        let sent = self.shell.send(stage).await;
        self.read_after(sent, first).await
    }

    pub(super) async fn read_after(&mut self, sent: Result<(), Failure>, first: StepId) -> Result<(), StepFailure> {
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
    pub(super) fn begin_run(&mut self, stage: &mut Stage) {
        if self.began_run {
            return;
        }
        self.began_run = true;
        stage.step(0, "begin_run", &[&self.task.controller.options.identity]);
    }

    pub(super) async fn read_frames(&mut self) -> Result<(), StepFailure> {
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

    pub(super) fn begin(&mut self, id: StepId) {
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

    pub(super) fn done(&mut self, id: StepId, note: String) {
        if id == 0 {
            return;
        }
        let ms = self.started_at.get(&id).map_or(0, |at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.task.emit(EventKind::StepDone { step: id, note, ms });
    }

    pub(super) fn step(&self, id: StepId) -> Option<&'a Step> {
        self.plan.steps.iter().find(|s| s.id == id)
    }
}

/// We are to leave at once, whatever the host is at.
fn interrupted_twice() -> Failure {
    Failure { lost: true, ..Failure::new(Outcome::Interrupted, "interrupted twice") }
}

/// Asks a running stage to stop at the next step, and a running setup to stop now.
fn stop_script(plan: &HostPlan) -> String {
    format!(": >{}", roadie_model::sh::quote(&format!("{}/.roadie/cancel", plan.assumes.root)))
}
