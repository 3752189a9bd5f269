//! The mesh along with services: before them in a deploy, back together with them.

use super::{Fleet, facts};
use crate::args::Named;
use crate::mesh;
use crate::out;
use roadie_deployer::{MeshReport, MeshWork, Replaced, TaskReport, Verb as Work};
use roadie_model::definition::{Definition, Host, Service};
use roadie_model::outcome::Outcome;
use std::collections::BTreeSet;

impl Fleet {
    /// Whether no service and no host was chosen.
    pub(super) fn is_everything(&self, named: &Named) -> bool {
        self.global.hosts.is_empty() && self.global.services.is_empty() && named.names.is_empty()
    }

    /// A deploy of everything begins with the mesh: services find each other through it. `Err`: it failed, with this code.
    pub(super) async fn mesh_first(&self, definition: &Definition, named: &Named) -> Result<Option<MeshReport>, u8> {
        if definition.mesh.is_none() || !self.is_everything(named) {
            return Ok(None);
        }
        let report = self.mesh(definition, &MeshWork::Apply).await;
        let missing = |r: &TaskReport| self.controller.may_be_missing(&r.report);
        if report.reports.iter().all(|r| r.report.outcome == Outcome::Done || missing(r)) {
            mesh::in_short(&report, self.global.json);
            return Ok(Some(report));
        }
        Err(mesh::tell(&report, &MeshWork::Apply, self.global.json).exit_code())
    }

    /// Services that came together with a change of the mesh go back together with it, while it is the last change. `Some`: the mesh
    /// could not go back, with this code; the services were left as they are.
    ///
    /// Only where the services go back on all of their hosts, and each has something to go back to.
    pub(super) async fn mesh_back(&self, definition: &Definition, targets: &[(Service, Vec<Host>)]) -> Option<u8> {
        if definition.mesh.is_none() || !self.global.hosts.is_empty() {
            return None;
        }
        let reports = self.controller.run(self.waves(definition, targets, |_| Work::Status)).await;
        let all: Vec<_> = reports.iter().filter_map(facts).collect();
        let came_with: BTreeSet<Replaced> =
            all.iter().filter_map(|f| f.came_with.as_deref()).filter_map(Replaced::parse).collect();
        let mut changes = came_with.into_iter();
        let (Some(change), None) = (changes.next(), changes.next()) else { return None };
        if all.len() < reports.len() || all.iter().any(|f| f.previous().is_none()) {
            return None;
        }
        let work = MeshWork::Undo(change);
        let report = self.mesh(definition, &work).await;
        if report.outcome() == Outcome::Done {
            mesh::in_short(&report, self.global.json);
            return None;
        }
        Some(mesh::tell(&report, &work, self.global.json).exit_code())
    }

    /// A mesh that was changed for services of which none came into service goes back with them. Gives what failed of that.
    pub(super) async fn mesh_back_after(
        &self,
        definition: &Definition,
        changed: &MeshReport,
        reports: &[TaskReport],
    ) -> Vec<TaskReport> {
        let failed = reports.iter().any(|r| r.report.outcome != Outcome::Done && !self.controller.may_be_missing(&r.report));
        let new = reports.iter().any(|r| r.report.outcome == Outcome::Done && !r.report.summary.starts_with("nothing to do"));
        let changes: BTreeSet<&Replaced> = changed.replaced.values().collect();
        let (true, false, Some(change)) = (failed, new, changes.first()) else { return Vec::new() };
        self.calm();
        let report = self.mesh(definition, &MeshWork::Undo((*change).clone())).await;
        if report.outcome() != Outcome::Done {
            return report.reports.into_iter().filter(|r| r.report.outcome != Outcome::Done).collect();
        }
        mesh::in_short(&report, self.global.json);
        if !report.reports.is_empty() {
            out::note(&format!("the mesh went back to generation {}, as it was before this deploy", change.old));
        }
        Vec::new()
    }
}
