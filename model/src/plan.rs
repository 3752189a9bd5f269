//! Decided work: plain data that prints, serialises and compares, and already contains its own way back.

use crate::definition::{Health, Lifecycle, Probe, Scope};
use crate::facts::{HostFacts, ReleaseState};
use crate::id::{HostName, PackageId, ReleaseId, ServiceName};
use serde::Serialize;
use std::fmt;

/// Number of a step within its plan, from 1.
pub type StepId = u32;

/// When a step runs. Prepare changes nothing in service, Switch can be undone, Finish comes after the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Nothing in service changes.
    Prepare,
    /// The service changes; every step can be undone until the last one, the commit.
    Switch,
    /// After the commit: failures are warnings.
    Finish,
}

/// Where the content of a new release comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The uploaded archive.
    Archive {
        /// sha256 of the `.tar.gz`, hex.
        sha256: String,
    },
    /// Another release on the host that was made from the same package.
    Release(ReleaseId),
    /// No package: it consists of what is rendered.
    Rendered,
}

/// One thing done to one host.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Streams the archive to the host's incoming folder. Done by the controller.
    Upload {
        /// Which package.
        package: PackageId,
        /// Size of the archive.
        bytes: u64,
    },
    /// Makes `releases/<id>.tmp` from an archive or another release, verified.
    Unpack {
        /// The release to make.
        release: ReleaseId,
        /// Where its content comes from.
        source: Source,
    },
    /// Writes what was rendered for this host (unit, config, environment) into the unpacked release.
    WriteFiles {
        /// The release.
        release: ReleaseId,
    },
    /// Verifies every file, syncs, writes COMPLETE and publishes the folder under its name.
    Seal {
        /// The release.
        release: ReleaseId,
        /// Its package, for the record.
        package: PackageId,
        /// The package's version text, for the record.
        version: String,
    },
    /// Runs setup.sh and setup_commands under a deadline, out of the ssh session's reach.
    RunSetup {
        /// The release whose setup runs.
        release: ReleaseId,
        /// Digest of script and commands.
        digest: String,
        /// Deadline in seconds.
        timeout_s: u64,
    },
    /// Writes down, before anything in service changes, where the way back leads.
    ArmGuard {
        /// The release to return to.
        back_to: Option<ReleaseId>,
        /// The release that has to be confirmed.
        to: ReleaseId,
        /// Whether the service ran before, and so will run again.
        runs: bool,
        /// Seconds until the run must be confirmed.
        deadline_s: u64,
        /// Seconds that the host waits for a controller that went away, before it goes back by itself.
        grace_s: u64,
    },
    /// Takes the guard away without confirming.
    DisarmGuard,
    /// Puts the release's unit file where systemd reads it.
    InstallUnit {
        /// The release.
        release: ReleaseId,
    },
    /// Removes the unit file.
    RemoveUnit,
    /// Flips `current`; `to: None` removes it.
    Switch {
        /// What it points to now.
        from: Option<ReleaseId>,
        /// What it will point to.
        to: Option<ReleaseId>,
    },
    /// Starts the service anew.
    Restart {
        /// The release that is current then.
        release: ReleaseId,
    },
    /// Takes what is current now in without a restart; starts it where it does not run.
    Reload {
        /// The release that is current then.
        release: ReleaseId,
    },
    /// Starts the service if it does not run.
    Start,
    /// Stops the service.
    Stop,
    /// Waits until the service is healthy. Probes over the network are done by the controller.
    CheckHealth {
        /// What is asked, how often and how long.
        health: Health,
    },
    /// Starts the earlier release again, waits until it is healthy and takes the guard away: the end of a way back.
    Restore {
        /// The earlier release.
        release: ReleaseId,
        /// Its own health definition.
        health: Health,
    },
    /// The commit: checks that it is still the same start of the same release, records it as proven, disarms the guard.
    Confirm {
        /// The release.
        release: ReleaseId,
        /// How long it must have been up without a restart, milliseconds.
        stable_ms: u64,
    },
    /// Writes down how far a release came.
    Record {
        /// The release.
        release: ReleaseId,
        /// Its state from now on.
        state: ReleaseState,
    },
    /// Deletes what was uploaded or unpacked and never published.
    Discard {
        /// The release.
        release: ReleaseId,
        /// The uploaded package, if one was.
        package: Option<PackageId>,
    },
    /// Deletes old releases.
    Prune {
        /// Those to delete; never the current one or the way back.
        remove: Vec<ReleaseId>,
    },
    /// Removes the service from the host: process, unit, all releases, records.
    Remove,
    /// Waits until the hosts of the mesh that go first have it in force. Done by the controller.
    AwaitPeers,
    /// Waits until the mesh is in force everywhere, then asks each peer through it, and opens a new connection to the host.
    CheckPeers {
        /// Who is asked: those that take part.
        peers: Vec<HostName>,
        /// Seconds that they have to answer.
        timeout_s: u64,
    },
    /// Deletes keys that no release refers to any more.
    PruneKeys,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Upload { package, bytes } => {
                write!(f, "upload package {} ({bytes} bytes)", package.short())
            }
            Action::Unpack { release, source: Source::Archive { .. } } => write!(f, "unpack release {}", release.short()),
            Action::Unpack { release, source: Source::Release(from) } => {
                write!(f, "make release {} from the files of {}", release.short(), from.short())
            }
            Action::Unpack { release, source: Source::Rendered } => write!(f, "make release {}", release.short()),
            Action::WriteFiles { .. } => f.write_str("write unit, config and environment into the release"),
            Action::Seal { release, .. } => {
                write!(f, "verify and seal release {}", release.short())
            }
            Action::RunSetup { timeout_s, .. } => write!(f, "run setup (at most {timeout_s} s)"),
            Action::ArmGuard { back_to: Some(r), .. } => {
                write!(f, "arm the guard: back to release {} unless confirmed", r.short())
            }
            Action::ArmGuard { back_to: None, .. } => f.write_str("arm the guard: back to no release unless confirmed"),
            Action::DisarmGuard => f.write_str("disarm the guard"),
            Action::InstallUnit { release } => {
                write!(f, "install the unit of release {}", release.short())
            }
            Action::RemoveUnit => f.write_str("remove the unit"),
            Action::Switch { to: Some(to), .. } => write!(f, "switch current to {}", to.short()),
            Action::Switch { to: None, .. } => f.write_str("remove current"),
            Action::Restart { .. } => f.write_str("restart the service"),
            Action::Reload { release } => write!(f, "take release {} in, connections stay", release.short()),
            Action::Start => f.write_str("start the service"),
            Action::Stop => f.write_str("stop the service"),
            Action::CheckHealth { health } => match health.probe {
                Probe::StaysUp | Probe::Notify => write!(f, "wait until healthy ({} for {:?})", health.probe, health.stable_for),
                _ => write!(f, "wait until healthy ({} within {:?})", health.probe, health.timeout),
            },
            Action::Restore { release, .. } => write!(f, "start release {} again and wait until healthy", release.short()),
            Action::Confirm { release, .. } => write!(f, "confirm release {}", release.short()),
            Action::Record { release, state } => {
                write!(f, "record release {} as {state}", release.short())
            }
            Action::Discard { release, .. } => {
                write!(f, "delete the unpacked release {}", release.short())
            }
            Action::Prune { remove } => write!(f, "delete {} old release(s)", remove.len()),
            Action::Remove => f.write_str("remove the service and all its releases"),
            Action::AwaitPeers => f.write_str("wait until the others are ready for it"),
            Action::CheckPeers { peers, .. } => write!(f, "reach {} peer(s) through the mesh", peers.len()),
            Action::PruneKeys => f.write_str("delete keys that are not used any more"),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Http(url) => write!(f, "GET {url}"),
            Probe::Tcp(port) => write!(f, "tcp port {port}"),
            Probe::Exec(command) => write!(f, "`{command}`"),
            Probe::Notify => f.write_str("said ready, stays up"),
            Probe::StaysUp => f.write_str("stays up"),
        }
    }
}

/// How to take a step back, decided while planning from what was observed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// Nothing to take back.
    Nothing,
    /// By doing this. It tolerates a half-done step and being repeated.
    By {
        /// What is done.
        step: Action,
    },
    /// It cannot be taken back.
    Stays {
        /// Why, for the report.
        why: String,
    },
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// Number in the plan, from 1.
    pub id: StepId,
    /// When it runs.
    pub stage: Stage,
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
    /// How it is taken back.
    pub undo: Undo,
}

/// What is written into a release for one host. The environment is secret: it serialises as a digest and debugs as nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rendered {
    /// The unit file's text.
    pub unit: String,
    /// The config file's text; empty when the service has none. Its template may have put secrets in.
    pub config: SecretText,
    /// The environment file's text.
    pub env: SecretText,
    /// Script that the simple lifecycle starts: environment, then the command. Secret like the environment.
    pub run: SecretText,
    /// The health definition as JSON, for later ways back to this release.
    pub health: String,
    /// Who supervises it, in the host script's words: `systemd`, `simple`, or `systemd reload` for what takes a new release in
    /// without a restart.
    pub lifecycle: String,
    /// `sha256  path` lines of every file of the release but this one.
    pub manifest: String,
}

/// Text that must not be printed: it serialises as its sha256.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretText({} bytes)", self.0.len())
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(self.0.as_bytes());
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        serializer.serialize_str(&format!("sha256:{hex}"))
    }
}

/// All the work on one host for one service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostPlan {
    /// The host.
    pub host: HostName,
    /// The service.
    pub service: ServiceName,
    /// Who supervises the service there.
    pub lifecycle: Lifecycle,
    /// System-wide or the user's own.
    pub scope: Scope,
    /// The release that will be current; `None` when the service is removed.
    pub release: Option<ReleaseId>,
    /// Its package.
    pub package: Option<PackageId>,
    /// The package's version text.
    pub version: String,
    /// What is written into the release.
    pub rendered: Option<Rendered>,
    /// What was observed and decided upon.
    pub assumes: Box<HostFacts>,
    /// In order; empty when nothing is to be done.
    pub steps: Vec<Step>,
    /// What it changes in the texts of the release, when that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// What becomes of one text of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Which: `unit`, `config.toml`, `environment`.
    pub name: String,
    /// Unified diff; values of the environment stand as `<env.KEY>`.
    pub diff: String,
}

impl HostPlan {
    /// True when the host is as wanted already.
    pub fn is_noop(&self) -> bool {
        self.steps.is_empty()
    }

    /// Bytes of package that will be sent.
    pub fn upload_bytes(&self) -> u64 {
        self.steps.iter().map(|s| if let Action::Upload { bytes, .. } = s.action { bytes } else { 0 }).sum()
    }
}

/// Why a host cannot take a package: found while planning, before a byte of it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What is wrong, a sentence part: `it needs glibc 2.34, the host has 2.31`.
    pub problem: String,
    /// What to do.
    pub hint: String,
}
