//! The first round: what there is on all hosts, and what is still to be born and measured.

use super::MeshWork;
use super::{Round, Seen, close, facts, in_shell, without};
use crate::engine::{self, HeldShell, LookFor, millis};
use crate::failure::Failure;
use crate::report::report_failure;
use crate::shell::Stage;
use futures::future::join_all;
use ipnet::Ipv6Net;
use roadie_model::definition::Host;
use roadie_model::event::{EventKind, HostReport};
use roadie_model::id::HostName;
use roadie_model::outcome::Outcome;
use roadie_planner::{self as planner, MeshHost, MeshInput};
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Instant;

impl<'a> Round<'a> {
    /// Looks at all hosts side by side; while another run holds one of them, none is held.
    pub(super) async fn look_at_all(&self) -> (Vec<Seen<'a>>, Vec<(&'a Host, HostReport)>) {
        let began = Instant::now();
        loop {
            let looks = join_all(self.service.hosts.iter().map(|host| self.look(host))).await;
            let (seen, failed): (Vec<_>, Vec<_>) = looks.into_iter().partition(Result::is_ok);
            let seen: Vec<Seen<'a>> = seen.into_iter().filter_map(Result::ok).collect();
            let failed: Vec<_> = failed.into_iter().filter_map(Result::err).collect();
            let locked = failed.iter().find(|(_, r)| r.outcome == Outcome::Locked);
            let Some((host, why)) = locked.filter(|_| began.elapsed() < self.controller.options.lock_wait) else {
                return (seen, failed);
            };
            self.task(host).warn(format!("waiting: {}", why.summary));
            join_all(seen.into_iter().map(|s| close(s.shell))).await;
            tokio::select! {
                () = tokio::time::sleep(engine::LOCK_POLL.mul_f32(1.0 + fastrand::f32())) => {}
                () = self.controller.cancel.reached(1) => {}
            }
        }
    }

    pub(super) async fn look(&self, host: &'a Host) -> Result<Seen<'a>, (&'a Host, HostReport)> {
        let began = Instant::now();
        let task = self.task(host);
        let failed =
            |failure: &Failure| (host, HostReport { ms: millis(began), ..report_failure(failure, "nothing was changed") });
        task.emit(EventKind::Connecting);
        if self.controller.cancel.level() > 0 {
            return Err(failed(&Failure::new(Outcome::Interrupted, "interrupted before it began")));
        }
        let session = tokio::select! {
            session = self.controller.session(host) => session.map_err(|f| failed(&f))?,
            () = self.controller.cancel.reached(1) => return Err(failed(&Failure::new(Outcome::Interrupted, "interrupted while connecting"))),
        };
        let trips_before = session.round_trips();
        let look_for = LookFor::mesh(&self.mesh.interface, self.mesh.port);
        let (shell, mut facts) =
            task.observe_when_free(&session, !self.reads_only(), &look_for, false).await.map_err(|f| failed(&f))?;
        let mesh = facts.mesh.take().map(|m| *m).unwrap_or_default();
        Ok(Seen { host, session, shell: HeldShell::hold(shell), facts, mesh, trips_before, began })
    }

    /// Keys are born and paths measured where that is still to be done. Gives the new keys of hosts that rotate theirs.
    pub(super) async fn prepare(&self, seen: &mut [Seen<'a>]) -> Result<BTreeMap<HostName, String>, (HostName, Failure)> {
        let none = BTreeMap::new();
        let asks = self.with_input(seen, &none, planner::unmeasured);
        let rotates = |host: &HostName| matches!(self.work, MeshWork::Rotate(hosts) if hosts.contains(host));
        let preparing = seen.iter_mut().map(|at| {
            let mut stage = Stage::default();
            let rotates = rotates(&at.host.name);
            if rotates || at.mesh.public_key.is_none() {
                stage.step(0, "mesh_new_key", &[]);
            }
            let words: Vec<&str> =
                asks.get(&at.host.name).into_iter().flatten().flat_map(|(name, address)| [name.as_str(), address]).collect();
            if !words.is_empty() {
                stage.step(0, "mesh_probe", &words);
            }
            async move {
                let old = at.mesh.public_key.clone();
                if !stage.is_empty() {
                    let heard = in_shell(&mut at.shell, &stage).await.map_err(|f| (at.host.name.clone(), f))?;
                    for (key, value) in heard {
                        if let Some(key) = key.strip_prefix("mesh_") {
                            facts::add(&mut at.mesh, key, &value);
                        }
                    }
                }
                let new = at.mesh.public_key.clone();
                if rotates && old.is_some() {
                    at.mesh.public_key = old;
                    return Ok(new.map(|key| (at.host.name.clone(), key)));
                }
                Ok(None)
            }
        });
        let done: Result<Vec<_>, _> = join_all(preparing).await.into_iter().collect();
        Ok(done?.into_iter().flatten().collect())
    }

    pub(super) fn with_input<T>(
        &self,
        seen: &[Seen<'a>],
        rotating: &BTreeMap<HostName, String>,
        work: impl FnOnce(&MeshInput<'_>) -> T,
    ) -> T {
        let hosts: Vec<MeshHost<'_>> = seen.iter().map(|s| MeshHost { host: s.host, facts: &s.facts, mesh: &s.mesh }).collect();
        let wanted = match self.work {
            MeshWork::Remove(leaving) => without(self.mesh, leaving),
            _ => self.mesh.clone(),
        };
        let staying: Vec<MeshHost<'_>> = hosts.into_iter().filter(|h| wanted.hosts.contains(&h.host.name)).collect();
        work(&MeshInput {
            mesh: &wanted,
            services: &self.definition.services,
            all: &self.definition.hosts,
            hosts: &staying,
            rotating,
            fresh_v6: fresh_v6(),
        })
    }
}

/// A random /48 of the private IPv6 space (RFC 4193).
fn fresh_v6() -> Ipv6Net {
    let random = u128::from(fastrand::u64(..)) & 0xff_ffff_ffff;
    let address = Ipv6Addr::from(0xfd_u128 << 120 | random << 80);
    Ipv6Net::new_assert(address, 48)
}
