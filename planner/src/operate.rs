//! Plans that change what runs but not which release: start, stop, restart, cleanup, remove.

use crate::deploy::{Input, PlanError, Steps, beyond};
use roadie_model::definition::Health;
use roadie_model::facts::{ReleaseState, ServiceState};
use roadie_model::plan::{Action, HostPlan, Stage, Step, Undo};

fn plan(input: Input<'_>, steps: Vec<Step>) -> HostPlan {
    let current = input.facts.current.as_ref().and_then(|id| input.facts.release(id));
    HostPlan {
        host: input.host.name.clone(),
        service: input.service.name.clone(),
        lifecycle: input.service.deploy.lifecycle,
        scope: input.service.deploy.scope,
        release: input.facts.current.clone(),
        package: current.map(|r| r.package.clone()),
        version: current.map(|r| r.version.clone()).unwrap_or_default(),
        rendered: None,
        assumes: Box::new(input.facts.clone()),
        steps,
        changes: Vec::new(),
    }
}

fn current_health(input: Input<'_>) -> Result<Health, PlanError> {
    let Some(current) = &input.facts.current else {
        return Err(PlanError::NoTarget { problem: "it was never deployed here".into() });
    };
    let recorded = input.facts.release(current).and_then(|r| r.health.clone());
    Ok(recorded.unwrap_or_else(|| input.service.deploy.health.clone()))
}

/// Starts the service if it does not run.
///
/// # Errors
/// [`PlanError::NoTarget`] when it was never deployed there.
pub fn plan_start(input: Input<'_>) -> Result<HostPlan, PlanError> {
    let health = current_health(input)?;
    let mut steps = Steps::default();
    if input.facts.service.state != ServiceState::Running {
        steps.push(
            Stage::Switch,
            Action::Start,
            Undo::Stays { why: "a service that failed to start is left for inspection".into() },
        );
        steps.push(Stage::Switch, Action::CheckHealth { health }, Undo::Nothing);
    }
    Ok(plan(input, steps.finish()))
}

/// Starts the service anew.
///
/// # Errors
/// [`PlanError::NoTarget`] when it was never deployed there.
pub fn plan_restart(input: Input<'_>) -> Result<HostPlan, PlanError> {
    let health = current_health(input)?;
    let mut steps = Steps::default();
    if let Some(release) = input.facts.current.clone() {
        let stays = Undo::Stays { why: "a service that failed to restart is left for inspection".into() };
        steps.push(Stage::Switch, Action::Restart { release }, stays);
        steps.push(Stage::Switch, Action::CheckHealth { health }, Undo::Nothing);
    }
    Ok(plan(input, steps.finish()))
}

/// Stops the service.
///
/// # Errors
/// [`PlanError::NoTarget`] when it was never deployed there.
pub fn plan_stop(input: Input<'_>) -> Result<HostPlan, PlanError> {
    current_health(input)?;
    let mut steps = Steps::default();
    if !matches!(input.facts.service.state, ServiceState::Stopped | ServiceState::Absent) {
        steps.push(Stage::Switch, Action::Stop, Undo::Stays { why: "it was asked to stop".into() });
    }
    Ok(plan(input, steps.finish()))
}

/// Deletes releases beyond `keep_releases`, failed ones first, and remains of interrupted runs.
pub fn plan_cleanup(input: Input<'_>) -> HostPlan {
    let mut steps = Steps::default();
    if let Some(current) = &input.facts.current {
        let keep = usize::try_from(input.service.deploy.keep_releases).unwrap_or(usize::MAX);
        let mut remove = beyond(input.facts, current, keep);
        let useless =
            input.facts.releases.iter().filter(|r| &r.id != current && (r.state != ReleaseState::Proven || !r.complete));
        for release in useless {
            if !remove.contains(&release.id) {
                remove.push(release.id.clone());
            }
        }
        if !remove.is_empty() {
            steps.push(Stage::Finish, Action::Prune { remove }, Undo::Nothing);
        }
    }
    plan(input, steps.finish())
}

/// Removes the service from the host.
pub fn plan_remove(input: Input<'_>) -> HostPlan {
    let mut steps = Steps::default();
    let facts = input.facts;
    if facts.current.is_some() || !facts.releases.is_empty() || facts.epoch > 0 || facts.unit_sha256.is_some() {
        steps.push(Stage::Switch, Action::Remove, Undo::Stays { why: "it was asked to be removed".into() });
    }
    HostPlan { release: None, package: None, ..plan(input, steps.finish()) }
}
