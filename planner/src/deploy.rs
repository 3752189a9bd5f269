//! Plans that bring a host to another release: deploy and rollback.

use crate::choose::choose_package;
use crate::render::{RenderError, render};
use roadie_model::definition::{Deploy, Health, Host, Lifecycle, Probe, RollbackRule, Scope, Service, SetupRun};
use roadie_model::facts::{HostFacts, ReleaseFacts, ReleaseState, ServiceState};
use roadie_model::id::{PackageId, ReleaseId};
use roadie_model::package::Package;
use roadie_model::plan::{Action, HostPlan, Refusal, Rendered, Source, Stage, Step, Undo};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// What is wanted.
    pub service: &'a Service,
    /// Where.
    pub host: &'a Host,
    /// What was observed there.
    pub facts: &'a HostFacts,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The host cannot take it; nothing was sent.
    #[error("{}", .0.problem)]
    Refused(Refusal),
    /// A template could not be filled in.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// There is nothing to roll back to.
    #[error("{problem}")]
    NoTarget {
        /// What is missing.
        problem: String,
    },
}

/// Whatever the unit needs, the host script asks this much of systemd.
const LEAST_SYSTEMD: u32 = 240;
/// Seconds that the guard allows for stopping the old start and making the new one: systemd's own defaults are 90 and 90.
const START_STOP_S: u64 = 180;

fn refused(problem: impl Into<String>, hint: impl Into<String>) -> PlanError {
    PlanError::Refused(Refusal { problem: problem.into(), hint: hint.into() })
}

/// Collects numbered steps.
#[derive(Default)]
pub(crate) struct Steps(Vec<Step>);

impl Steps {
    pub(crate) fn push(&mut self, stage: Stage, action: Action, undo: Undo) {
        let id = u32::try_from(self.0.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.0.push(Step { id, stage, action, undo });
    }

    pub(crate) fn finish(self) -> Vec<Step> {
        self.0
    }
}

pub(crate) fn by(step: Action) -> Undo {
    Undo::By { step }
}

/// Plans the deployment of whichever package runs on the host. No steps when the host is as wanted already.
///
/// # Errors
/// [`PlanError`] when the host cannot take any of the packages or a template cannot be filled in; nothing was changed.
pub fn plan_deploy(input: Input<'_>, packages: &[Package]) -> Result<HostPlan, PlanError> {
    let facts = input.facts;
    let package = choose_package(packages, facts).map_err(PlanError::Refused)?;
    check_host(input, package)?;
    let (release, rendered) = render(input.service, input.host, package, facts)?;
    let mut plan = empty_plan(input, &release, package);
    if !is_as_wanted(facts, &release) {
        plan.steps = deploy_steps(input, package, &release);
        plan.rendered = Some(rendered);
    } else {
        plan.rendered = Some(Rendered { manifest: String::new(), ..rendered });
    }
    Ok(plan)
}

fn empty_plan(input: Input<'_>, release: &ReleaseId, package: &Package) -> HostPlan {
    HostPlan {
        host: input.host.name.clone(),
        service: input.service.name.clone(),
        lifecycle: input.service.deploy.lifecycle,
        scope: input.service.deploy.scope,
        release: Some(release.clone()),
        package: Some(package.id.clone()),
        version: package.metadata.version.clone(),
        rendered: None,
        assumes: Box::new(input.facts.clone()),
        steps: Vec::new(),
        changes: Vec::new(),
    }
}

/// The same release is current, proven, complete, and runs; no earlier run was left unconfirmed.
fn is_as_wanted(facts: &HostFacts, release: &ReleaseId) -> bool {
    facts.current.as_ref() == Some(release)
        && !facts.unconfirmed()
        && facts.service.state == ServiceState::Running
        && facts.release(release).is_some_and(|r| r.state == ReleaseState::Proven && r.complete)
}

/// Refuses what cannot work before a byte of the package is sent.
fn check_host(input: Input<'_>, package: &Package) -> Result<(), PlanError> {
    let (facts, deploy) = (input.facts, &input.service.deploy);
    if !facts.missing_tools.is_empty() {
        return Err(refused(
            format!("the host lacks {}", facts.missing_tools.join(", ")),
            "install coreutils, util-linux, tar and gzip there (busybox has them all)",
        ));
    }
    if deploy.lifecycle == Lifecycle::Systemd {
        let who = if deploy.scope == Scope::User { "no systemd user manager answers" } else { "systemd does not run there" };
        let needed = package.metadata.requires.systemd_min.unwrap_or(0).max(LEAST_SYSTEMD);
        match facts.systemd {
            None => return Err(refused(who, "set `lifecycle: simple`")),
            Some(version) if version < needed => {
                return Err(refused(format!("its systemd is {version}, the unit needs {needed}"), "set `lifecycle: simple`"));
            }
            Some(_) => {}
        }
    }
    check_place(facts)?;
    check_listener(facts)?;
    check_space(facts, package)
}

/// The file system and the folders that the releases will be in.
fn check_place(facts: &HostFacts) -> Result<(), PlanError> {
    let (mount, has) = (&facts.mount, |flag: &str| facts.mount_flags.iter().any(|f| f == flag));
    if has("ro") {
        return Err(refused(
            format!("{mount}, which holds {}, is mounted read-only", facts.root),
            format!("mount -o remount,rw {mount}"),
        ));
    }
    if has("noexec") {
        let problem = format!("{mount}, which holds {}, is mounted noexec: nothing there can be started", facts.root);
        return Err(refused(problem, format!("mount -o remount,exec {mount}")));
    }
    let Some(loose) = facts.loose.first() else { return Ok(()) };
    let (folder, who) = loose.split_once(' ').unwrap_or((loose, "others"));
    let hint = match who {
        "everybody" => format!("chmod o-w {folder}"),
        who if who.starts_with("group") => format!("chmod g-w {folder}"),
        _ => format!("chown root {folder}"),
    };
    Err(refused(format!("{folder} may be written by {who}, who could replace what runs as root"), hint))
}

/// On a first deployment nobody else may hold the port that tells whether the service is healthy.
fn check_listener(facts: &HostFacts) -> Result<(), PlanError> {
    let Some(listener) = facts.listener.as_ref().filter(|_| facts.current.is_none()) else { return Ok(()) };
    let owner = match (listener.pid, listener.name.as_str()) {
        (Some(pid), "") => format!("process {pid}"),
        (Some(pid), name) => format!("`{name}` (process {pid})"),
        (None, _) => "a process that cannot be seen from here".to_owned(),
    };
    Err(refused(
        format!("port {} is taken by {owner}: the health check would ask that one", listener.port),
        "stop it, or give the service another port",
    ))
}

/// Room for the archive, the unpacked files twice, and 64 MiB that the host needs to stay alive.
fn check_space(facts: &HostFacts, package: &Package) -> Result<(), PlanError> {
    let unpacked: u64 = package.metadata.files.iter().map(|f| f.size).sum();
    let needed = unpacked * 2 + package.archive_bytes + (64 << 20);
    let files = package.metadata.files.len() as u64 + 64;
    if facts.free_bytes < needed {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        return Err(refused(
            format!("it needs {} MiB free for {}, there are {} MiB", mib(needed), facts.root, mib(facts.free_bytes)),
            "free space there; `roadie cleanup` deletes old releases",
        ));
    }
    if let Some(free) = facts.free_inodes.filter(|free| *free < files) {
        let problem = format!("it needs {files} free inodes for {}, there are {free}", facts.root);
        return Err(refused(problem, "delete files there"));
    }
    Ok(())
}

/// The proven release that a failure leads back to.
pub(crate) fn way_back(facts: &HostFacts) -> Option<&ReleaseFacts> {
    let good = |id: &ReleaseId| facts.release(id).filter(|r| r.state == ReleaseState::Proven && r.complete);
    // An armed guard knows better than `current`, which it has not settled yet.
    let first = match &facts.guard {
        Some(guard) => guard.back_to.as_ref(),
        None => facts.current.as_ref(),
    };
    first.and_then(good).or_else(|| facts.previous())
}

fn deploy_steps(input: Input<'_>, package: &Package, release: &ReleaseId) -> Vec<Step> {
    let mut steps = Steps::default();
    prepare(&mut steps, input, package, release);
    switch(&mut steps, input.facts, release, &input.service.deploy, &input.service.deploy.health);
    let keep = usize::try_from(input.service.deploy.keep_releases).unwrap_or(usize::MAX);
    let remove = beyond(input.facts, release, keep);
    if !remove.is_empty() {
        steps.push(Stage::Finish, Action::Prune { remove }, Undo::Nothing);
    }
    steps.finish()
}

fn prepare(steps: &mut Steps, input: Input<'_>, package: &Package, release: &ReleaseId) {
    let facts = input.facts;
    let version = package.metadata.version.clone();
    let present = facts.release(release).is_some_and(|r| r.complete);
    if !present {
        let source = source(facts, package);
        let sent = matches!(source, Source::Archive { .. });
        let discard = Action::Discard { release: release.clone(), package: sent.then(|| package.id.clone()) };
        if sent {
            let upload = Action::Upload { package: package.id.clone(), bytes: package.archive_bytes };
            // What was sent stays: the next run goes on from there.
            steps.push(Stage::Prepare, upload, Undo::Nothing);
        }
        steps.push(Stage::Prepare, Action::Unpack { release: release.clone(), source }, by(discard));
        steps.push(Stage::Prepare, Action::WriteFiles { release: release.clone() }, Undo::Nothing);
    }
    let seal = Action::Seal { release: release.clone(), package: package.id.clone(), version };
    steps.push(Stage::Prepare, seal, Undo::Nothing);
    if let Some(digest) = setup_digest(input.service, package, facts) {
        let timeout_s = input.service.deploy.setup_timeout.as_secs().max(1);
        let failed = by(Action::Record { release: release.clone(), state: ReleaseState::Failed });
        steps.push(Stage::Prepare, Action::RunSetup { release: release.clone(), digest, timeout_s }, failed);
    }
}

/// A complete release of the same package on the host saves sending it again.
fn source(facts: &HostFacts, package: &Package) -> Source {
    match facts.releases.iter().find(|r| r.package == package.id && r.complete) {
        Some(r) => Source::Release(r.id.clone()),
        None => Source::Archive { sha256: package.archive_sha256.clone() },
    }
}

/// Digest of the setup when it has to run, `None` when it has not.
fn setup_digest(service: &Service, package: &Package, facts: &HostFacts) -> Option<String> {
    if package.setup.is_empty() {
        return None;
    }
    let mut digest = Sha256::new();
    digest.update(package.setup.as_bytes());
    for file in package.metadata.files.iter().filter(|f| f.path == "setup.sh" || f.path.starts_with("setup/")) {
        digest.update(file.sha256.as_bytes());
    }
    let digest: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let done = facts.setup_digest.as_ref() == Some(&digest) && service.deploy.setup_run == SetupRun::Changed;
    (!done).then_some(digest)
}

/// From the first change of what is in service to the commit. Undone newest first: stop the new one, flip back, put the old
/// unit back, start the old one.
fn switch(steps: &mut Steps, facts: &HostFacts, to: &ReleaseId, deploy: &Deploy, health: &Health) {
    let old = way_back(facts);
    let old_id = old.map(|r| r.id.clone());
    let runs = matches!(facts.service.state, ServiceState::Running | ServiceState::Changing) || facts.unconfirmed();
    let restore = match old {
        Some(r) if runs => {
            by(Action::Restore { release: r.id.clone(), health: r.health.clone().unwrap_or_else(|| health.clone()) })
        }
        _ => by(Action::DisarmGuard),
    };
    let deadline_s = health.timeout.as_secs() + health.stable_for.as_secs() + START_STOP_S;
    let grace_s = deploy.guard_grace.as_secs().max(1);
    let forbidden = deploy.rollback == RollbackRule::Forbidden;
    let undo = |action: Action| match forbidden {
        false => by(action),
        true => Undo::Stays { why: "`rollback: forbidden`".into() },
    };
    let arm = Action::ArmGuard { back_to: old_id.clone(), to: to.clone(), runs: runs && old.is_some(), deadline_s, grace_s };
    if !forbidden {
        steps.push(Stage::Switch, arm, restore);
    }
    let failed = by(Action::Record { release: to.clone(), state: ReleaseState::Failed });
    if old_id.as_ref() == Some(to) {
        // The same release again (it was stopped): a failed start does not make it a bad release.
        steps.push(Stage::Switch, Action::Restart { release: to.clone() }, undo(Action::Stop));
    } else {
        steps.push(Stage::Switch, Action::Record { release: to.clone(), state: ReleaseState::Active }, failed);
        let unit_back = old_id.clone().map_or(Action::RemoveUnit, |release| Action::InstallUnit { release });
        steps.push(Stage::Switch, Action::InstallUnit { release: to.clone() }, undo(unit_back));
        let back = Action::Switch { from: Some(to.clone()), to: old_id };
        steps.push(Stage::Switch, Action::Switch { from: facts.current.clone(), to: Some(to.clone()) }, undo(back));
        steps.push(Stage::Switch, Action::Restart { release: to.clone() }, undo(Action::Stop));
    }
    steps.push(Stage::Switch, Action::CheckHealth { health: health.clone() }, Undo::Nothing);
    let stable_for = match health.probe {
        // The check itself was to stay up for so long.
        Probe::StaysUp | Probe::Notify => Duration::ZERO,
        Probe::Http(_) | Probe::Tcp(_) | Probe::Exec(_) => health.stable_for,
    };
    let stable_ms = u64::try_from(stable_for.as_millis()).unwrap_or(u64::MAX);
    steps.push(Stage::Switch, Action::Confirm { release: to.clone(), stable_ms }, Undo::Nothing);
}

/// Releases to delete when `keep` stay, the new current one and its way back always among them.
pub(crate) fn beyond(facts: &HostFacts, current: &ReleaseId, keep: usize) -> Vec<ReleaseId> {
    let back =
        if facts.current.as_ref() == Some(current) { facts.previous().map(|r| &r.id) } else { way_back(facts).map(|r| &r.id) };
    let mut kept = 1;
    let mut remove = Vec::new();
    // Newest first; good releases before failed ones, so that a failed one never pushes a good one out.
    let (good, bad): (Vec<_>, Vec<_>) =
        facts.releases.iter().filter(|r| &r.id != current).partition(|r| r.state == ReleaseState::Proven);
    for release in good.into_iter().chain(bad) {
        if Some(&release.id) == back || kept < keep {
            kept += 1;
        } else {
            remove.push(release.id.clone());
        }
    }
    remove
}

/// Plans the return to an older proven release: `to` (first digits of its id), or the one before the current one.
///
/// # Errors
/// [`PlanError::NoTarget`] when there is no such release, or it was never confirmed healthy.
pub fn plan_rollback(input: Input<'_>, to: Option<&str>) -> Result<HostPlan, PlanError> {
    let target = rollback_target(input.facts, to)?;
    let health = target.health.clone().unwrap_or_else(|| input.service.deploy.health.clone());
    let mut steps = Steps::default();
    let package: PackageId = target.package.clone();
    let seal = Action::Seal { release: target.id.clone(), package: package.clone(), version: target.version.clone() };
    steps.push(Stage::Prepare, seal, Undo::Nothing);
    let mut facts = input.facts.clone();
    facts.releases.retain(|r| r.id != target.id);
    switch(&mut steps, &facts, &target.id, &input.service.deploy, &health);
    Ok(HostPlan {
        host: input.host.name.clone(),
        service: input.service.name.clone(),
        lifecycle: input.service.deploy.lifecycle,
        scope: input.service.deploy.scope,
        release: Some(target.id.clone()),
        package: Some(package),
        version: target.version.clone(),
        rendered: None,
        assumes: Box::new(input.facts.clone()),
        steps: if is_as_wanted(input.facts, &target.id) { Vec::new() } else { steps.finish() },
        changes: Vec::new(),
    })
}

fn rollback_target<'a>(facts: &'a HostFacts, to: Option<&str>) -> Result<&'a ReleaseFacts, PlanError> {
    let Some(prefix) = to else {
        return facts
            .previous()
            .ok_or_else(|| PlanError::NoTarget { problem: "no older release was ever confirmed healthy here".into() });
    };
    let found: Vec<_> = facts.releases.iter().filter(|r| r.id.as_str().starts_with(prefix)).collect();
    match found.as_slice() {
        [] => Err(PlanError::NoTarget { problem: format!("no release `{prefix}` here") }),
        [one] if one.state != ReleaseState::Proven || !one.complete => {
            Err(PlanError::NoTarget { problem: format!("release {} was never confirmed healthy here", one.id.short()) })
        }
        [one] => Ok(one),
        many => Err(PlanError::NoTarget { problem: format!("{} releases begin with `{prefix}`", many.len()) }),
    }
}
