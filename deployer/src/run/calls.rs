//! From actions to calls of the host script.

use super::Run;
use crate::health;
use crate::shell::Stage;
use roadie_model::definition::{Health, Probe};
use roadie_model::plan::{Action, Source, Stage as PlanStage, Step, StepId};
use std::time::Duration;

impl Run<'_> {
    /// Adds steps to a stage that is about to be sent.
    pub(super) fn add_all(&mut self, stage: &mut Stage, steps: &[Step]) {
        self.sent_switch |= steps.iter().any(|s| s.stage == PlanStage::Switch);
        for step in steps {
            self.add(stage, step.id, &step.action);
        }
    }

    pub(super) fn add(&self, stage: &mut Stage, id: StepId, action: &Action) {
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

pub(super) fn tenths(duration: Duration) -> String {
    duration.as_millis().div_ceil(100).to_string()
}
