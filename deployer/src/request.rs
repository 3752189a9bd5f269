//! What callers ask for.

use roadie_model::definition::{Host, Service};
use roadie_model::event::HostReport;
use roadie_model::id::{HostName, ServiceName};
use roadie_model::package::Package;
use roadie_planner::SavedPlan;
use std::sync::Arc;

/// What is to be done with a service on a host.
#[derive(Debug, Clone)]
pub enum Verb {
    /// Brings the host to the newest package that runs there. One package per target triple.
    Deploy {
        /// Candidates; the host's architecture and libc decide.
        packages: Vec<Package>,
        /// Switch without waiting for health.
        skip_health: bool,
        /// Only if it comes to exactly this plan; otherwise the host is refused.
        saved: Option<Arc<SavedPlan>>,
    },
    /// Says what [`Verb::Deploy`] would do; reads only.
    Plan {
        /// As for deploy.
        packages: Vec<Package>,
    },
    /// Deploys an older proven release again.
    Rollback {
        /// First digits of a release id, or `None` for the release before the current one.
        to: Option<String>,
    },
    /// Starts the service if it does not run, and waits until it is healthy.
    Start,
    /// Stops it; it stays installed.
    Stop,
    /// Starts it anew and waits until it is healthy.
    Restart,
    /// Reads what it does. `data` of the report is the [`roadie_model::facts::HostFacts`] as JSON.
    Status,
    /// Reads its releases. `data` of the report is the [`roadie_model::facts::HostFacts`] as JSON.
    Releases,
    /// Deletes old releases beyond `keep_releases` and remains of interrupted runs.
    Cleanup,
    /// Removes the service from the host: process, unit, releases, records.
    Remove,
}

impl Verb {
    /// Whether it is meant to leave all hosts on one release, so that a partial success is [`roadie_model::outcome::Outcome::Mixed`].
    pub fn changes_release(&self) -> bool {
        matches!(self, Verb::Deploy { .. } | Verb::Rollback { .. } | Verb::Remove)
    }

    /// Whether it only reads.
    pub fn reads_only(&self) -> bool {
        matches!(self, Verb::Plan { .. } | Verb::Status | Verb::Releases)
    }
}

/// One service and the hosts it is worked on, by the service's strategy.
#[derive(Debug, Clone)]
pub struct Group {
    /// The service.
    pub service: Service,
    /// The chosen ones of its hosts.
    pub hosts: Vec<Host>,
    /// What is to be done.
    pub verb: Verb,
}

/// How one service ended on one host.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TaskReport {
    /// Where.
    pub host: HostName,
    /// Which service.
    pub service: ServiceName,
    /// How it ended.
    #[serde(flatten)]
    pub report: HostReport,
}
