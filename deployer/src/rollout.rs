//! Over several hosts: all are looked at before the first is changed, then in what order, how many at once, and what a failure
//! means for those not begun and those already done.

use crate::controller::Controller;
use crate::engine::{self, Before, How, Prepared};
use crate::failure::Failure;
use crate::report::report_failure;
use crate::request::{Group, TaskReport, Verb};
use futures::future::{BoxFuture, join_all};
use roadie_model::definition::{Host, OnFailure, Strategy};
use roadie_model::event::EventKind;
use roadie_model::id::{HostName, ServiceName};
use roadie_model::outcome::Outcome;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Runs the waves in order.
pub async fn run(controller: &Controller, waves: Vec<Vec<Group>>) -> Vec<TaskReport> {
    let groups: Vec<&Group> = waves.iter().flatten().collect();
    let ready = match look_at_all(controller, &groups).await {
        Ok(ready) => ready,
        Err(reports) => return reports,
    };
    let mut reports: Vec<TaskReport> = Vec::new();
    let mut failed: Vec<ServiceName> = Vec::new();
    for wave in &waves {
        let runs = wave.iter().map(|group| run_group(controller, group, &failed, &ready));
        let done: Vec<Vec<TaskReport>> = join_all(runs).await;
        for (group, group_reports) in wave.iter().zip(done) {
            let bad = group_reports.iter().any(|r| r.report.outcome != Outcome::Done && !skipped(controller, r));
            if bad && matches!(group.verb, Verb::Deploy { .. }) {
                failed.push(group.service.name.clone());
            }
            reports.extend(group_reports);
        }
    }
    reports
}

fn skipped(controller: &Controller, task: &TaskReport) -> bool {
    controller.may_be_missing(&task.report)
}

// ---- before the first change ---------------------------------------------------------------------------------------------------

type Key = (ServiceName, HostName);

/// A look at a host: over, or still going on where nobody waits for it.
enum Look<'a> {
    Taken(Prepared),
    Going(BoxFuture<'a, Prepared>),
}

/// What was prepared, taken out by whoever carries it out.
struct Ready<'a>(Mutex<HashMap<Key, Look<'a>>>);

impl<'a> Ready<'a> {
    fn take(&self, key: &Key) -> Option<Look<'a>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }
}

/// With `--skip-unreachable`, how long the others wait for a host that has not answered yet.
const LATE: Duration = Duration::from_secs(3);
/// So many hosts are held locked between the look and their turn; the others are let go and looked at again.
const HELD: usize = 64;
/// So many services of one host: each takes a channel of its connection, and sshd allows ten.
const HELD_PER_HOST: usize = 4;

/// Locks, observes and plans everything before anything is changed. `Err`: something cannot be done, so nothing was.
///
/// A single host needs no such look: its own plan comes before its own first change.
async fn look_at_all<'a>(controller: &'a Controller, groups: &[&'a Group]) -> Result<Ready<'a>, Vec<TaskReport>> {
    let tasks: Vec<(&Group, &Host)> = groups.iter().flat_map(|g| g.hosts.iter().map(|h| (*g, h))).collect();
    let together = groups.iter().any(|g| matches!(g.verb, Verb::Deploy { .. } | Verb::Rollback { .. }));
    if !together || tasks.len() < 2 {
        return Ok(Ready(Mutex::default()));
    }
    let began = Instant::now();
    let mut looks = begin(controller, &tasks, false);
    wait_for(&mut looks, controller.options.rollout.skip_unreachable).await;
    // While another run holds one of them, none is held: two runs that wait for each other's hosts would wait for ever.
    let mut said = false;
    while let Some(number) = first_locked(&looks).filter(|_| began.elapsed() < controller.options.lock_wait) {
        if let (Look::Taken(Prepared::Over(report)), (group, host), false) = (&looks[number], tasks[number], said) {
            said = true;
            let text = format!("waiting: {}", report.summary);
            controller.emit(&host.name, &group.service.name, EventKind::Warning { text });
        }
        let_go(looks).await;
        tokio::select! {
            () = tokio::time::sleep(engine::LOCK_POLL.mul_f32(1.0 + fastrand::f32())) => {}
            () = controller.cancel.reached(1) => {}
        }
        looks = begin(controller, &tasks, true);
        wait_for(&mut looks, controller.options.rollout.skip_unreachable).await;
    }
    let refusal = tasks.iter().zip(&looks).find_map(|((_, host), look)| stops_all(controller, look).then_some(*host));
    let Some(culprit) = refusal else {
        let keys = tasks.iter().map(|(group, host)| (group.service.name.clone(), host.name.clone()));
        return Ok(Ready(Mutex::new(keys.zip(looks).collect())));
    };
    let reason = format!("not begun: `{}` cannot take part, so no host was changed", culprit.name);
    let ends = tasks.into_iter().zip(looks).map(|((group, host), look)| {
        let reason = &reason;
        async move {
            match look {
                Look::Taken(Prepared::Over(report)) => {
                    engine::proceed(controller, &group.service, host, &group.verb, Prepared::Over(report)).await.0
                }
                Look::Taken(Prepared::Held(held)) => {
                    held.let_go().await;
                    not_begun(controller, group, host, reason)
                }
                Look::Taken(Prepared::LetGo) | Look::Going(_) => not_begun(controller, group, host, reason),
            }
        }
    });
    Err(join_all(ends).await)
}

/// Begins to look at all of them.
fn begin<'a>(controller: &'a Controller, tasks: &[(&'a Group, &'a Host)], again: bool) -> Vec<Look<'a>> {
    let mut per_host: HashMap<&HostName, usize> = HashMap::new();
    let look = |(number, (group, host)): (usize, (&'a Group, &'a Host))| {
        let of_host = per_host.entry(&host.name).or_default();
        *of_host += 1;
        let how = How { keep: number < HELD && *of_host <= HELD_PER_HOST, wait: false, again };
        let going: BoxFuture<'a, Prepared> = Box::pin(async move {
            let _permit = controller.permits.acquire().await;
            engine::prepare(controller, &group.service, host, &group.verb, how).await
        });
        Look::Going(going)
    };
    tasks.iter().copied().enumerate().map(look).collect()
}

fn first_locked(looks: &[Look<'_>]) -> Option<usize> {
    looks.iter().position(|look| matches!(look, Look::Taken(Prepared::Over(report)) if report.outcome == Outcome::Locked))
}

async fn let_go(looks: Vec<Look<'_>>) {
    let held = looks.into_iter().filter_map(|look| match look {
        Look::Taken(Prepared::Held(held)) => Some(held.let_go()),
        _ => None,
    });
    join_all(held).await;
}

fn stops_all(controller: &Controller, look: &Look<'_>) -> bool {
    match look {
        Look::Taken(Prepared::Over(report)) => match report.outcome {
            Outcome::Done => false,
            Outcome::Unreachable => !controller.options.rollout.skip_unreachable,
            _ => true,
        },
        _ => false,
    }
}

/// Takes all looks; with `impatient`, those that are late behind the first stay [`Look::Going`].
async fn wait_for(looks: &mut [Look<'_>], impatient: bool) {
    let (first, late) = (watch::channel(false).0, watch::channel(false).0);
    let patience = async {
        if impatient {
            let _ = first.subscribe().wait_for(|seen| *seen).await;
            tokio::time::sleep(LATE).await;
            late.send_replace(true);
        }
        std::future::pending::<()>().await
    };
    let all = join_all(looks.iter_mut().map(|look| async {
        let Look::Going(going) = look else { return };
        let mut late = late.subscribe();
        let taken = tokio::select! {
            prepared = going => prepared,
            _ = late.wait_for(|late| *late) => return,
        };
        first.send_replace(true);
        *look = Look::Taken(taken);
    }));
    tokio::select! {
        _ = all => {}
        () = patience => {}
    }
}

// ---- the changes -----------------------------------------------------------------------------------------------------------------

/// How a group is rolled out: the definition's word, unless the options have another.
struct Policy {
    strategy: Strategy,
    max_failures: u32,
    on_failure: OnFailure,
}

impl Policy {
    fn of(controller: &Controller, group: &Group) -> Self {
        let (rollout, deploy) = (controller.options.rollout, &group.service.deploy);
        Self {
            strategy: rollout.strategy.unwrap_or(deploy.strategy),
            max_failures: rollout.max_failures.unwrap_or(deploy.max_failures),
            on_failure: rollout.on_failure.unwrap_or(deploy.on_failure),
        }
    }
}

/// A group while it is worked on.
struct Rolling<'g, 'a> {
    controller: &'g Controller,
    group: &'g Group,
    ready: &'g Ready<'a>,
    policy: Policy,
    failures: AtomicU32,
}

type Ended = (TaskReport, Before);

async fn run_group(controller: &Controller, group: &Group, failed: &[ServiceName], ready: &Ready<'_>) -> Vec<TaskReport> {
    let policy = Policy::of(controller, group);
    let rolling = Rolling { controller, group, ready, policy, failures: AtomicU32::new(0) };
    if let Some(dependency) = group.service.depends_on.iter().find(|d| failed.contains(d)) {
        let reason = format!("not begun: `{dependency}`, which it depends on, failed");
        return join_all(group.hosts.iter().map(|h| rolling.not_begun(h, &reason))).await.into_iter().map(|(r, _)| r).collect();
    }
    controller.passing.begin(&group.service.name, group.hosts.len());
    let ended = match rolling.policy.strategy {
        Strategy::Rolling if group.verb.changes_release() => rolling.in_batches(group.hosts.chunks(1)).await,
        Strategy::Canary if group.verb.changes_release() && group.hosts.len() > 1 => {
            let (first, others) = group.hosts.split_at(1);
            rolling.in_batches([first, others].into_iter()).await
        }
        _ => rolling.side_by_side(&group.hosts).await,
    };
    controller.passing.end(&group.service.name);
    rolling.settle(ended).await
}

impl Rolling<'_, '_> {
    /// One batch after the other; after too many failures the rest is not begun.
    async fn in_batches<'h>(&self, batches: impl Iterator<Item = &'h [Host]>) -> Vec<Ended> {
        let mut ended: Vec<Ended> = Vec::new();
        for batch in batches {
            ended.extend(self.side_by_side(batch).await);
        }
        ended
    }

    async fn side_by_side(&self, hosts: &[Host]) -> Vec<Ended> {
        join_all(hosts.iter().map(|host| self.one(host))).await
    }

    async fn one(&self, host: &Host) -> Ended {
        let _permit = self.controller.permits.acquire().await;
        let verb = &self.group.verb;
        if verb.changes_release() && self.too_many() {
            return self.not_begun(host, "not begun: the rollout stopped, too many hosts failed").await;
        }
        let prepared = match self.take(host) {
            None => engine::prepare(self.controller, &self.group.service, host, verb, How::default()).await,
            Some(Look::Going(going)) => going.await,
            Some(Look::Taken(prepared)) => prepared,
        };
        let ended = engine::proceed(self.controller, &self.group.service, host, verb, prepared).await;
        if ended.0.report.outcome != Outcome::Done && !skipped(self.controller, &ended.0) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        ended
    }

    fn take(&self, host: &Host) -> Option<Look<'_>> {
        self.ready.take(&(self.group.service.name.clone(), host.name.clone()))
    }

    fn too_many(&self) -> bool {
        self.failures.load(Ordering::Relaxed) > self.policy.max_failures
    }

    async fn not_begun(&self, host: &Host, reason: &str) -> Ended {
        if let Some(Look::Taken(Prepared::Held(held))) = self.take(host) {
            held.let_go().await;
        }
        (not_begun(self.controller, self.group, host, reason), Before::Untouched)
    }

    /// After too many failures, with `rollback_all`, those that are on the new release go back to theirs.
    async fn settle(&self, ended: Vec<Ended>) -> Vec<TaskReport> {
        let deploys = matches!(self.group.verb, Verb::Deploy { .. });
        if !deploys || !self.too_many() || self.policy.on_failure != OnFailure::RollbackAll {
            return ended.into_iter().map(|(report, _)| report).collect();
        }
        join_all(self.group.hosts.iter().zip(ended).map(|(host, (report, before))| async move {
            let _permit = self.controller.permits.acquire().await;
            self.take_back(host, report, before).await
        }))
        .await
    }

    async fn take_back(&self, host: &Host, report: TaskReport, before: Before) -> TaskReport {
        let why = "rolled back with the fleet: too many other hosts failed";
        let (verb, sentence) = match before {
            Before::Untouched => return report,
            Before::NoneCurrent => {
                let mut report = report;
                report.report.causes.push("not rolled back with the fleet: nothing was in service here before".into());
                return report;
            }
            Before::Nothing => (Verb::Remove, format!("{why}; it was not installed before and is not now")),
            Before::Release(release) => {
                (Verb::Rollback { to: Some(release.as_str().to_owned()) }, format!("{why}; back at release {}", release.short()))
            }
        };
        let (back, _) = engine::run_task(self.controller, &self.group.service, host, &verb).await;
        let mut back = back;
        if back.report.outcome == Outcome::Done {
            back.report.outcome = Outcome::RolledBack;
            back.report.summary = sentence;
        } else {
            back.report.causes.insert(0, why.into());
            back.report.outcome = Outcome::NotRestored;
        }
        back
    }
}

fn not_begun(controller: &Controller, group: &Group, host: &Host, reason: &str) -> TaskReport {
    let report = report_failure(&Failure::new(Outcome::FailedUnchanged, reason), "");
    controller.emit(&host.name, &group.service.name, EventKind::Finished { report: Box::new(report.clone()) });
    TaskReport { host: host.name.clone(), service: group.service.name.clone(), report }
}
