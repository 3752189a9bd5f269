//! Over several hosts: in what order, how many at once, and what a failure means for those not begun.

use crate::controller::Controller;
use crate::engine;
use crate::failure::Failure;
use crate::request::{Group, TaskReport, Verb};
use futures::future::join_all;
use roadie_model::definition::{Host, Strategy};
use roadie_model::event::EventKind;
use roadie_model::id::ServiceName;
use roadie_model::outcome::Outcome;

/// Runs the waves in order.
pub async fn run(controller: &Controller, waves: Vec<Vec<Group>>) -> Vec<TaskReport> {
    let mut reports: Vec<TaskReport> = Vec::new();
    let mut failed: Vec<ServiceName> = Vec::new();
    for wave in waves {
        let groups = wave.iter().map(|group| run_group(controller, group, &failed));
        let done: Vec<Vec<TaskReport>> = join_all(groups).await;
        for (group, group_reports) in wave.iter().zip(done) {
            let bad = group_reports.iter().any(|r| r.report.outcome != Outcome::Done);
            if bad && matches!(group.verb, Verb::Deploy { .. }) {
                failed.push(group.service.name.clone());
            }
            reports.extend(group_reports);
        }
    }
    reports
}

async fn run_group(controller: &Controller, group: &Group, failed: &[ServiceName]) -> Vec<TaskReport> {
    if let Some(dependency) = group.service.depends_on.iter().find(|d| failed.contains(d)) {
        let reason = format!("not begun: `{dependency}`, which it depends on, failed");
        return group.hosts.iter().map(|h| not_begun(controller, group, h, &reason)).collect();
    }
    let one_by_one = !group.verb.reads_only() && group.verb.changes_release();
    match group.service.deploy.strategy {
        Strategy::Rolling if one_by_one => in_batches(controller, group, group.hosts.chunks(1)).await,
        Strategy::Canary if one_by_one && group.hosts.len() > 1 => {
            let (first, others) = group.hosts.split_at(1);
            in_batches(controller, group, [first, others].into_iter()).await
        }
        _ => side_by_side(controller, group, &group.hosts).await,
    }
}

/// One batch after the other; after a failure the rest is not begun.
async fn in_batches<'a>(controller: &Controller, group: &Group, batches: impl Iterator<Item = &'a [Host]>) -> Vec<TaskReport> {
    let mut reports: Vec<TaskReport> = Vec::new();
    for batch in batches {
        let stopped = reports.iter().find(|r| r.report.outcome != Outcome::Done).map(|r| r.host.clone());
        match stopped {
            Some(host) => {
                let reason = format!("not begun: the rollout stopped at `{host}`");
                reports.extend(batch.iter().map(|h| not_begun(controller, group, h, &reason)));
            }
            None => reports.extend(side_by_side(controller, group, batch).await),
        }
    }
    reports
}

async fn side_by_side(controller: &Controller, group: &Group, hosts: &[Host]) -> Vec<TaskReport> {
    join_all(hosts.iter().map(|host| async move {
        let _permit = controller.permits.acquire().await;
        engine::run_task(controller, &group.service, host, &group.verb).await
    }))
    .await
}

fn not_begun(controller: &Controller, group: &Group, host: &Host, reason: &str) -> TaskReport {
    let report = engine::report_failure(&Failure::new(Outcome::FailedUnchanged, reason), "");
    controller.emit(&host.name, &group.service.name, EventKind::Finished { report: Box::new(report.clone()) });
    TaskReport { host: host.name.clone(), service: group.service.name.clone(), report }
}
