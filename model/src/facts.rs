//! What was observed on a host before anything was decided: one round trip, reads only.

use crate::definition::Health;
use crate::id::{PackageId, ReleaseId};
use crate::mesh::MeshFacts;
use crate::plan::SecretText;
use serde::{Deserialize, Serialize};

/// What one host has, as far as one service is concerned.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HostFacts {
    /// Kernel architecture, `uname -m`.
    pub machine: String,
    /// Numeric user id that steps run as: 0 for root or behind sudo.
    pub uid: u32,
    /// Login user's home directory, absolute.
    pub home: String,
    /// The service's folder on this host, absolute.
    pub root: String,
    /// glibc version as `2.36`; `None` for other C libraries.
    pub glibc: Option<String>,
    /// systemd version when systemd is PID 1 (or, in user scope, when a user manager answers).
    pub systemd: Option<u32>,
    /// Tools of the host script that are missing.
    pub missing_tools: Vec<String>,
    /// Whether it has perl, which can apply a patch.
    pub has_perl: bool,
    /// Without perl, an sftp server as a program, which can do the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sftp_server: Option<String>,
    /// Size of a memory page, bytes; 0 when the host does not say.
    pub page_size: u64,
    /// Shared libraries and program interpreters that were asked for and are not there.
    pub lacks: Vec<String>,
    /// Where the file system that holds the releases is mounted.
    pub mount: String,
    /// Its mount options.
    pub mount_flags: Vec<String>,
    /// Folders above the service's that others than root may write: `PATH everybody`, `PATH group N`, `PATH user N`.
    pub loose: Vec<String>,
    /// Who else listens on the port that the health check asks.
    pub listener: Option<Listener>,
    /// Free bytes for this user on the file system that holds the releases.
    pub free_bytes: u64,
    /// Free inodes there; `None` where the file system does not count them.
    pub free_inodes: Option<u64>,
    /// Number of the last locked run on this host and service; only grows.
    pub epoch: u64,
    /// Tag of the session that ran then: tells our own run from another one with the same number.
    #[serde(skip)]
    pub epoch_tag: String,
    /// The release that `current` points to.
    pub current: Option<ReleaseId>,
    /// Every release with a record, newest first by epoch.
    pub releases: Vec<ReleaseFacts>,
    /// sha256 of the installed unit file.
    pub unit_sha256: Option<String>,
    /// What the current release was rendered to, when it was asked for. In no serialised form: there are secrets in it.
    #[serde(skip)]
    pub texts: Texts,
    /// The process, as its supervisor sees it.
    pub service: ServiceFacts,
    /// Names in the folder that uploads go to, of what an interrupted run had begun to send. No plan depends on it.
    #[serde(skip)]
    pub incoming: Vec<String>,
    /// Digest of the setup that last succeeded here.
    pub setup_digest: Option<String>,
    /// The armed guard: an earlier run switched, or was about to, and never confirmed.
    pub guard: Option<GuardFacts>,
    /// What the guard last did by itself, in words; gone with the next deployment.
    pub settled: Option<Settled>,
    /// The generation of the host's mesh that the run which brought the current release replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub came_with: Option<String>,
    /// What its mesh is, when that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<Box<MeshFacts>>,
}

/// The texts of the release in service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts {
    /// Its unit.
    pub unit: Option<SecretText>,
    /// Its config.
    pub config: Option<SecretText>,
    /// Its environment file.
    pub env: Option<SecretText>,
}

/// A process that listens on a port and is not the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// Its process id, when it can be seen.
    pub pid: Option<u32>,
    /// Its name, or empty.
    pub name: String,
}

/// A way back that is on a host's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardFacts {
    /// The release that it leads to; `None`: there was none.
    pub back_to: Option<ReleaseId>,
    /// Epoch of the run that armed it.
    pub epoch: u64,
}

/// What a host did without us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Epoch of the run that never confirmed.
    pub epoch: u64,
    /// When and what: `2026-01-31T12:00:00Z went back to release ...`.
    pub text: String,
}

impl HostFacts {
    /// Whether an earlier run switched, or was about to, and never confirmed.
    pub fn unconfirmed(&self) -> bool {
        self.guard.is_some()
    }

    /// The record of release `id`.
    pub fn release(&self, id: &ReleaseId) -> Option<&ReleaseFacts> {
        self.releases.iter().find(|r| &r.id == id)
    }

    /// The release that `roadie rollback` returns to: complete, proven, not current, confirmed last.
    pub fn previous(&self) -> Option<&ReleaseFacts> {
        self.releases
            .iter()
            .filter(|r| r.state == ReleaseState::Proven && r.complete && Some(&r.id) != self.current.as_ref())
            .max_by_key(|r| r.epoch)
    }
}

/// One release on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseFacts {
    /// Which one.
    pub id: ReleaseId,
    /// The package it was made from.
    pub package: PackageId,
    /// The package's version text; may be empty.
    pub version: String,
    /// How far it came.
    pub state: ReleaseState,
    /// Epoch of the run that last changed its state.
    pub epoch: u64,
    /// Unix time of that change, seconds, by the host's clock: for people, never for decisions.
    pub changed_at: i64,
    /// Whether the COMPLETE marker matches the manifest.
    pub complete: bool,
    /// Health definition that it was deployed with.
    pub health: Option<Health>,
}

/// How far a release came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReleaseState {
    /// Unpacked, not yet verified.
    Staged,
    /// Complete and verified; never in service.
    Verified,
    /// Switched to, not yet confirmed.
    Active,
    /// Confirmed healthy at least once: a legal way back.
    Proven,
    /// Was switched to and did not get healthy, or its setup failed. Never a way back.
    Failed,
}

/// The process as its supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceFacts {
    /// What it does now.
    pub state: ServiceState,
    /// Identity of this start: systemd's InvocationID, or `pid-starttime` of the simple lifecycle. Changes with every start.
    pub invocation: Option<String>,
    /// Main process.
    pub pid: Option<u32>,
    /// Automatic restarts since it was last started by hand.
    pub restarts: u32,
    /// Seconds since it was started.
    pub up_s: Option<u64>,
    /// Supervisor's word on a failure, for example `exit-code 101`.
    pub detail: String,
}

/// What a service does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// Nothing of it is installed.
    #[default]
    Absent,
    /// Installed and stopped.
    Stopped,
    /// Being started, stopped or restarted.
    Changing,
    /// Running.
    Running,
    /// Given up by its supervisor.
    Failed,
}

impl std::fmt::Display for ReleaseState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            ReleaseState::Staged => "staged",
            ReleaseState::Verified => "verified",
            ReleaseState::Active => "active",
            ReleaseState::Proven => "proven",
            ReleaseState::Failed => "failed",
        })
    }
}

impl std::fmt::Display for ServiceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            ServiceState::Absent => "absent",
            ServiceState::Stopped => "stopped",
            ServiceState::Changing => "changing",
            ServiceState::Running => "running",
            ServiceState::Failed => "failed",
        })
    }
}
