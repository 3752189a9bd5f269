//! Plans that are kept and carried out later: what was assumed and decided, without anything secret, and whether it still holds.

use roadie_model::facts::{GuardFacts, HostFacts, ReleaseState, ServiceState};
use roadie_model::id::{HostName, PackageId, ReleaseId, ServiceName};
use roadie_model::plan::{HostPlan, Undo};
use serde::{Deserialize, Serialize};

/// Format of a plan file.
pub const FORMAT: &str = "roadie.plan/1";

/// A plan file: all hosts and services of one `roadie plan --out`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    /// [`FORMAT`].
    pub format: String,
    /// In the order planned.
    pub hosts: Vec<SavedHost>,
}

/// One service on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedHost {
    /// Where.
    pub host: HostName,
    /// Which service.
    pub service: ServiceName,
    /// The package that was planned for, by content.
    pub package: Option<PackageId>,
    /// The release that will be current. Its id is a digest of everything rendered, secrets included: they need not be here.
    pub release: Option<ReleaseId>,
    /// What was observed, as far as it decides anything.
    pub assumes: Assumed,
    /// Each step and its way back, in words.
    pub steps: Vec<String>,
}

/// The observed facts that a plan rests on. What moves by itself (free space, uptime, process ids) is not among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumed {
    machine: String,
    glibc: Option<String>,
    systemd: Option<u32>,
    root: String,
    current: Option<ReleaseId>,
    releases: Vec<AssumedRelease>,
    guard: Option<GuardFacts>,
    unit_sha256: Option<String>,
    setup_digest: Option<String>,
    service: ServiceState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AssumedRelease {
    id: ReleaseId,
    state: ReleaseState,
    complete: bool,
}

impl Assumed {
    fn of(facts: &HostFacts) -> Self {
        let release =
            |r: &roadie_model::facts::ReleaseFacts| AssumedRelease { id: r.id.clone(), state: r.state, complete: r.complete };
        Self {
            machine: facts.machine.clone(),
            glibc: facts.glibc.clone(),
            systemd: facts.systemd,
            root: facts.root.clone(),
            current: facts.current.clone(),
            releases: facts.releases.iter().map(release).collect(),
            guard: facts.guard.clone(),
            unit_sha256: facts.unit_sha256.clone(),
            setup_digest: facts.setup_digest.clone(),
            service: facts.service.state,
        }
    }
}

/// A plan without its secrets, to be kept.
pub fn save(plan: &HostPlan) -> SavedHost {
    SavedHost {
        host: plan.host.clone(),
        service: plan.service.clone(),
        package: plan.package.clone(),
        release: plan.release.clone(),
        assumes: Assumed::of(&plan.assumes),
        steps: steps(plan),
    }
}

fn steps(plan: &HostPlan) -> Vec<String> {
    let step = |s: &roadie_model::plan::Step| match &s.undo {
        Undo::Nothing => s.action.to_string(),
        Undo::By { step } => format!("{} (undo: {step})", s.action),
        Undo::Stays { why } => format!("{} (stays: {why})", s.action),
    };
    plan.steps.iter().map(step).collect()
}

/// Why a plan that was made anew is not the one that was kept: a sentence part, or `None` when it is the same.
pub fn difference(saved: &SavedHost, now: &HostPlan) -> Option<String> {
    let (before, after) = (&saved.assumes, Assumed::of(&now.assumes));
    let short = |id: &Option<ReleaseId>| id.as_ref().map_or("none", |r| r.short()).to_owned();
    if before.current != after.current {
        let (was, is) = (short(&before.current), short(&after.current));
        return Some(format!("the host moved since the plan was made: current was {was}, it is {is}"));
    }
    if before.service != after.service {
        let (was, is) = (before.service, after.service);
        return Some(format!("the host moved since the plan was made: the service was {was}, it is {is}"));
    }
    if before != &after {
        return Some("the host moved since the plan was made: its releases, unit, setup or system are not the same".into());
    }
    if saved.release != now.release || saved.package != now.package {
        let (was, is) = (short(&saved.release), short(&now.release));
        return Some(format!(
            "the definition or its environment changed since the plan was made: it planned release {was}, now it is {is}"
        ));
    }
    (saved.steps != steps(now)).then(|| "this roadie would take other steps than the plan says".into())
}
