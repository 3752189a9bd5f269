//! Without a change: what would be done, and who reaches whom.

use super::change::generations;
use super::{MeshReport, PortAsked, Reach, Round, Seen, about, close, facts, in_shell};
use crate::engine::millis;
use crate::report::{report, report_failure};
use crate::shell::Stage;
use futures::future::join_all;
use roadie_model::definition::Service;
use roadie_model::event::{EventKind, HostReport};
use roadie_model::id::HostName;
use roadie_model::outcome::Outcome;
use roadie_planner as planner;
use roadie_transport::Session;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

impl<'a> Round<'a> {
    pub(super) async fn plan_only(&self, mut seen: Vec<Seen<'a>>) -> MeshReport {
        for at in &mut seen {
            // It is born when the plan is carried out.
            at.mesh.public_key.get_or_insert_with(|| "(born on the host)".into());
        }
        let plan = match self.with_input(&seen, &BTreeMap::new(), planner::plan_mesh) {
            Ok(plan) => plan,
            Err(refusals) => return self.refused(seen, &refusals).await,
        };
        let mut result = MeshReport { members: plan.members, warnings: plan.warnings, ..MeshReport::default() };
        for at in seen {
            let Some(plan) = plan.hosts.iter().find(|p| p.host == at.host.name) else { continue };
            self.task(at.host).emit(EventKind::Planned { plan: Box::new(plan.clone()) });
            let (outcome, summary) = match plan.is_noop() {
                true => (Outcome::Done, format!("nothing to do: in the mesh with {}", about(&at.mesh))),
                false => (Outcome::ChangesPending, format!("{} steps", plan.steps.len())),
            };
            result.reports.push(self.finished(at.host, HostReport { ms: millis(at.began), ..report(outcome, summary) }));
            result.seen.insert(at.host.name.clone(), at.mesh);
            close(at.shell).await;
        }
        result
    }

    /// Every host asks each of its peers, all at once.
    pub(super) async fn show(&self, seen: Vec<Seen<'a>>) -> MeshReport {
        let asked = join_all(seen.into_iter().map(|mut at| async move {
            let mut stage = Stage::default();
            stage.step(0, "mesh_verify", &["2", "10"]);
            let heard = match at.facts.current {
                Some(_) => in_shell(&mut at.shell, &stage).await,
                None => Ok(Vec::new()),
            };
            (at, heard)
        }))
        .await;
        let sessions: Vec<(&HostName, &Arc<dyn Session>)> = asked.iter().map(|(at, _)| (&at.host.name, &at.session)).collect();
        let ports = join_all(self.dependencies().filter_map(|(from, service, on)| {
            let (_, session) = sessions.iter().find(|(name, _)| *name == from)?;
            Some(ask_port(session, from, service, on))
        }))
        .await;
        let mut result = MeshReport { ports, ..MeshReport::default() };
        for (at, heard) in asked {
            let (report, reach) = match heard {
                Ok(heard) => {
                    let reach: Vec<Reach> =
                        heard.iter().filter(|(k, _)| k == "mesh_reach").filter_map(|(_, v)| facts::reach(v)).collect();
                    let summary = match at.facts.current {
                        Some(_) => about(&at.mesh),
                        None => "not in the mesh".into(),
                    };
                    (report(Outcome::Done, summary), reach)
                }
                Err(failure) => (report_failure(&failure, "nothing was changed"), Vec::new()),
            };
            for member in &at.mesh.members {
                if !result.members.iter().any(|m| m.name == member.name) {
                    result.members.push(member.clone());
                }
            }
            result.reach.insert(at.host.name.clone(), reach);
            result.generations.insert(at.host.name.clone(), generations(&at.facts));
            result.seen.insert(at.host.name.clone(), at.mesh);
            let current = at.facts.current.as_ref().map(|r| r.short().to_owned());
            result.reports.push(self.finished(at.host, HostReport { current, ms: millis(at.began), ..report }));
            close(at.shell).await;
        }
        result.members.sort_by(|a, b| a.name.cmp(&b.name));
        result
    }

    /// Every host of a service with each service with ports that it depends on.
    pub(super) fn dependencies(&self) -> impl Iterator<Item = (&'a HostName, &'a Service, &'a Service)> {
        let services = &self.definition.services;
        let with_ports = |s: &'a Service| s.depends_on.iter().filter_map(|d| services.get(d)).filter(|d| !d.ports.is_empty());
        let of = move |s: &'a Service| with_ports(s).flat_map(move |on| s.hosts.iter().map(move |h| (&h.name, s, on)));
        services.values().flat_map(of)
    }
}

/// Longest wait for a port.
const PORT_ANSWERS: Duration = Duration::from_secs(3);

/// Through sshd of the host that asks: it needs no tool of its own.
async fn ask_port(session: &Arc<dyn Session>, from: &HostName, service: &Service, on: &Service) -> PortAsked {
    let host = service.peers.get(&on.name).map(|p| p.address.clone()).unwrap_or_default();
    let port = on.ports.first().copied().unwrap_or_default();
    let problem = match tokio::time::timeout(PORT_ANSWERS, session.forward(&host, port)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {PORT_ANSWERS:.0?}")),
    };
    let (service, on) = (service.name.clone(), on.name.clone());
    PortAsked { from: from.clone(), service, on, address: format!("{host}:{port}"), problem }
}
