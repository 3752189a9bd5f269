//! What is wanted: services, hosts and how to run them, with every default filled in.
//!
//! Values of this module come from [`crate::parse`] or from a program; nothing after parsing knows that YAML exists.
//! Paths are kept as written, relative to [`Definition::dir`].

use crate::id::{HostName, ServiceName};
use crate::mesh::Mesh;
use crate::target::TargetTriple;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A whole definition file after overlays, interpolation and defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// The folder that relative paths start from.
    pub dir: PathBuf,
    /// Services by name, in no particular order: see [`Definition::waves`].
    pub services: BTreeMap<ServiceName, Service>,
    /// Every host of the file: those under `hosts:` and those that services name inline. Not [`Host::local`].
    pub hosts: BTreeMap<HostName, Host>,
    /// The private network between them, if one is wanted.
    pub mesh: Option<Mesh>,
}

impl Definition {
    /// Groups of services that may be worked on side by side, dependencies first.
    ///
    /// The parser refuses cycles and unknown names, so every service is in exactly one wave. Names in `depends_on` that are
    /// not part of `chosen` are taken as running already.
    pub fn waves<'a>(&'a self, chosen: &[&'a ServiceName]) -> Vec<Vec<&'a Service>> {
        let mut left: Vec<&Service> = chosen.iter().filter_map(|n| self.services.get(*n)).collect();
        let mut waves = Vec::new();
        while !left.is_empty() {
            let names: Vec<&ServiceName> = left.iter().map(|s| &s.name).collect();
            let (ready, rest): (Vec<_>, Vec<_>) = left.iter().partition(|s| !s.depends_on.iter().any(|d| names.contains(&d)));
            if ready.is_empty() {
                waves.push(rest);
                break;
            }
            waves.push(ready);
            left = rest;
        }
        waves
    }
}

/// One deployable program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name: directory, unit and log prefix.
    pub name: ServiceName,
    /// Where it runs.
    pub runtime: RuntimeKind,
    /// The hosts it runs on, resolved; exactly one [`Host::local`] for [`RuntimeKind::Local`].
    pub hosts: Vec<Host>,
    /// Services that are deployed first.
    pub depends_on: Vec<ServiceName>,
    /// TCP ports that it serves, the one that others are told first.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Where the other services of the file are found, for templates and the environment.
    #[serde(default)]
    pub peers: BTreeMap<ServiceName, Peer>,
    /// How its binary comes to be.
    pub build: Build,
    /// Config template (handlebars), relative to [`Definition::dir`].
    pub config: Option<PathBuf>,
    /// Values for templates: scalars, lists and maps.
    pub vars: BTreeMap<String, serde_json::Value>,
    /// Extra files in the package.
    pub files: Vec<ExtraFile>,
    /// How it is run.
    pub deploy: Deploy,
}

impl Service {
    /// The mesh in the place of a service: what runs plans knows nothing else.
    pub fn of_mesh(mesh: &Mesh, hosts: Vec<Host>) -> Self {
        let deploy = Deploy {
            lifecycle: Lifecycle::Systemd,
            scope: Scope::System,
            args: Vec::new(),
            env: BTreeMap::new(),
            setup: None,
            setup_commands: Vec::new(),
            setup_timeout: Duration::ZERO,
            setup_run: SetupRun::Changed,
            unit: None,
            profile: Profile::Legacy,
            health: Health::is_up(),
            guard_grace: Duration::from_secs(3),
            keep_releases: 5,
            strategy: Strategy::All,
            max_failures: 0,
            on_failure: OnFailure::Hold,
            rollback: RollbackRule::Automatic,
        };
        Self {
            name: ServiceName::of_mesh(&mesh.interface),
            runtime: RuntimeKind::Remote,
            hosts,
            depends_on: Vec::new(),
            ports: Vec::new(),
            peers: BTreeMap::new(),
            build: Build::Image { image: String::new() },
            config: None,
            vars: BTreeMap::new(),
            files: Vec::new(),
            deploy,
        }
    }
}

/// Where another service is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name in the mesh, or the address of its first host when there is no mesh.
    pub address: String,
    /// The same of each of its hosts, in the order of the file.
    pub addresses: Vec<String>,
    /// The first of its ports.
    pub port: Option<u16>,
}

/// Where a service runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// On this machine, through the local shell.
    Local,
    /// In a container. Parsed and checked; not deployed yet.
    Docker,
    /// On hosts over ssh.
    Remote,
}

/// A machine and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name in the file, or its address when inline.
    pub name: HostName,
    /// Host name or IP address to dial.
    pub address: String,
    /// TCP port of sshd.
    pub port: u16,
    /// Login user; `None` means the name of the user who runs roadie.
    pub user: Option<String>,
    /// Private key file, `~` not yet expanded; `None` means agent, then the usual files in `~/.ssh`.
    pub ssh_key: Option<PathBuf>,
    /// Pinned host key fingerprint (`SHA256:` and base64 without padding); then known_hosts is not asked.
    pub host_key: Option<String>,
    /// Deadline for connecting (TCP, then handshake and login each).
    pub connect_timeout: Duration,
    /// Tags for `tag:NAME`.
    pub tags: Vec<String>,
    /// True for the machine roadie runs on: no ssh.
    pub local: bool,
}

impl Host {
    /// The machine roadie itself runs on.
    pub fn local() -> Self {
        Self {
            name: HostName::local(),
            address: "localhost".into(),
            port: 0,
            user: None,
            ssh_key: None,
            host_key: None,
            connect_timeout: Duration::from_secs(10),
            tags: Vec::new(),
            local: true,
        }
    }
}

/// How the binary comes to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Build {
    /// `cargo build`.
    Cargo(CargoBuild),
    /// A file that exists.
    Prebuilt {
        /// Path per target triple; one entry with `None` when the file has just one.
        path: PathBuf,
        /// Targets; empty means this machine's own.
        targets: Vec<TargetTriple>,
    },
    /// A command that makes files. Parsed and checked; run by a later version.
    Command {
        /// Shell command.
        run: String,
        /// Globs of what it reads, relative to [`Definition::dir`]; empty means that it always runs.
        inputs: Vec<String>,
        /// Names of variables that it sees besides `PATH`, `HOME`, `USER`, `LANG` and roadie's own `ROADIE_TARGET`.
        env: Vec<String>,
        /// The binary it makes.
        output: PathBuf,
        /// Targets; empty means this machine's own.
        targets: Vec<TargetTriple>,
    },
    /// A container image. Parsed and checked; for the docker runtime.
    Image {
        /// Image reference.
        image: String,
    },
}

impl Build {
    /// Targets to build for; empty means this machine's own.
    pub fn targets(&self) -> &[TargetTriple] {
        match self {
            Build::Cargo(c) => &c.targets,
            Build::Prebuilt { targets, .. } | Build::Command { targets, .. } => targets,
            Build::Image { .. } => &[],
        }
    }
}

/// Options of a cargo build.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CargoBuild {
    /// Folder with the workspace's or package's Cargo.toml, relative to [`Definition::dir`]; `.` unless told.
    pub manifest_dir: PathBuf,
    /// Package; `None` means: the service's name if such a package exists, else the only one with a binary.
    pub package: Option<String>,
    /// Binaries, the main one first; none means the package's only one, else the one named like the service.
    pub bins: Vec<String>,
    /// Features.
    pub features: Vec<String>,
    /// Whether the default features stay on.
    pub default_features: bool,
    /// Cargo profile; `release` unless told.
    pub profile: String,
    /// `--locked`.
    pub locked: bool,
    /// Targets; empty means this machine's own.
    pub targets: Vec<TargetTriple>,
    /// How it is built for a target that is not under [`CargoBuild::toolchains`].
    pub toolchain: ToolchainKind,
    /// The same for particular targets.
    pub toolchains: BTreeMap<TargetTriple, ToolchainKind>,
}

impl CargoBuild {
    /// How it is built for `target`.
    pub fn toolchain_for(&self, target: &TargetTriple) -> ToolchainKind {
        self.toolchains.get(target).copied().unwrap_or(self.toolchain)
    }
}

/// Which tools build for a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToolchainKind {
    /// The first that can, of cargo, gcc, zigbuild and cross.
    #[default]
    Auto,
    /// cargo with the linker that it has.
    Cargo,
    /// cargo with a C cross compiler of the system.
    Gcc,
    /// cargo-zigbuild: any glibc floor, C code included.
    Zigbuild,
    /// cross: in a container.
    Cross,
    /// cargo builds the standard library too: for targets that have none. Uses unstable features of cargo.
    BuildStd,
}

/// An extra file or folder in the package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraFile {
    /// Source, relative to [`Definition::dir`].
    pub from: PathBuf,
    /// Place in the package, relative, without `..`.
    pub to: PathBuf,
}

/// How a service is run on a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deploy {
    /// Who supervises it.
    pub lifecycle: Lifecycle,
    /// System-wide or the login user's own.
    pub scope: Scope,
    /// Arguments; templates are allowed (`{{config_path}}`).
    pub args: Vec<String>,
    /// Environment, written to a file only root can read.
    pub env: BTreeMap<String, String>,
    /// Setup script, relative to [`Definition::dir`].
    pub setup: Option<PathBuf>,
    /// Commands run behind the setup script, one by one, as root (system scope).
    pub setup_commands: Vec<String>,
    /// Deadline for all of setup.
    pub setup_timeout: Duration,
    /// When setup runs again.
    pub setup_run: SetupRun,
    /// Own unit file instead of the generated one, relative to [`Definition::dir`]; a template like the generated one.
    pub unit: Option<PathBuf>,
    /// How far the generated unit is locked in; of no effect on [`Deploy::unit`] and outside of [`Scope::System`].
    #[serde(default)]
    pub profile: Profile,
    /// When it counts as healthy.
    pub health: Health,
    /// How long a host waits for a controller that went away with a deployment unconfirmed, before it goes back by itself.
    pub guard_grace: Duration,
    /// How many releases stay on the host, the current one included; at least 2.
    pub keep_releases: u32,
    /// In what order hosts are taken.
    pub strategy: Strategy,
    /// Hosts that may fail before no more are begun.
    pub max_failures: u32,
    /// What becomes of the hosts that are on the new release when more than that failed.
    pub on_failure: OnFailure,
    /// Whether a failed deployment is taken back.
    pub rollback: RollbackRule,
}

/// Who keeps the process alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// systemd.
    Systemd,
    /// roadie's own supervisor: for hosts without systemd and for the local runtime.
    Simple,
}

/// System-wide (root or sudo) or the login user's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Under `/opt/roadie`, needs root or sudo.
    System,
    /// Under `~/.local/share/roadie`, needs neither.
    User,
}

/// How far systemd locks a service in (the generated unit, system scope).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A server: network, own state, nothing else of the host.
    #[default]
    Web,
    /// No network at all.
    Worker,
    /// As [`Profile::Web`], for programs that make code while they run.
    Jit,
    /// No filter of system calls, for what breaks under the others.
    Legacy,
}

/// When setup runs again on a host that ran it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetupRun {
    /// When the script or the commands changed since the last success on that host.
    Changed,
    /// With each new release.
    Always,
}

/// In what order the hosts of a service are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// All at once, as far as `--max-concurrent` allows.
    All,
    /// One after the other; stops at the first failure.
    Rolling,
    /// One first; the others when it is healthy.
    Canary,
}

/// What becomes of the hosts that took a new release when too many others failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// They stay on it: the fleet is mixed, and that is said.
    Hold,
    /// They go back to the release that they were on.
    RollbackAll,
}

/// Whether a release may be taken back by roadie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RollbackRule {
    /// A failed deployment goes back to the release before, by itself.
    Automatic,
    /// What setup did cannot be undone (a migration): a failed release stays, for a human to decide.
    Forbidden,
}

/// When a service counts as healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// Pause between two probes.
    pub interval: Duration,
    /// Deadline for the whole check.
    pub timeout: Duration,
    /// Good probes in a row.
    pub good: u32,
    /// How long it must have been up without a restart.
    pub stable_for: Duration,
    /// What the body of a good answer to [`Probe::Http`] contains: the version that is meant to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
}

impl Health {
    /// That it is up, now; no window. A mesh is asked this: what else counts, its peers say.
    pub fn is_up() -> Self {
        Self {
            probe: Probe::StaysUp,
            interval: Duration::from_millis(500),
            timeout: Duration::from_secs(5),
            good: 1,
            stable_for: Duration::ZERO,
            expect: None,
        }
    }
}

/// What is asked of a service to know its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// `GET` answered with a 2xx status. Plain http, as seen from the host itself.
    Http(String),
    /// A TCP connection to this port of the host's loopback succeeds.
    Tcp(u16),
    /// A command, run in the release's folder, exits 0.
    Exec(String),
    /// The service says so by sd_notify.
    Notify,
    /// Nothing but staying up.
    StaysUp,
}
