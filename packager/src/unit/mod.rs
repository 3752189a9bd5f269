//! Unit files: written from typed values, and checked against what systemd knows.
//!
//! What is known when packing stands in the text; what only the host knows stays a variable of the template: `{{exec}}`,
//! `{{release_dir}}`, `{{env_file}}` and `{{release}}`.

mod analyze;
mod directives;
mod lint;
mod profile;
mod syntax;

pub use analyze::{score, verify};
pub use lint::{Lint, Problem, lint};

use roadie_model::definition::{Probe, Profile, RuntimeKind, Scope, Service};
use std::fmt;

/// A unit file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The first line, without `#`.
    pub comment: &'static str,
    /// Its sections in order.
    pub sections: Vec<Section>,
}

/// A section with its directives in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Name without brackets.
    pub name: &'static str,
    /// Names and values. A name may come several times: systemd then adds to a list.
    pub directives: Vec<(&'static str, String)>,
}

impl Section {
    /// An empty section.
    pub fn new(name: &'static str) -> Self {
        Self { name, directives: Vec::new() }
    }

    /// The same with one directive more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.directives.push((name, value.into()));
        self
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# {}", self.comment)?;
        for (index, section) in self.sections.iter().enumerate() {
            writeln!(f, "{}[{}]", if index == 0 { "" } else { "\n" }, section.name)?;
            for (name, value) in &section.directives {
                writeln!(f, "{name}={value}")?;
            }
        }
        Ok(())
    }
}

/// The unit that roadie writes for `service`.
pub fn generate(service: &Service) -> Unit {
    let system = is_system(service);
    let profile = service.deploy.profile;
    let name = service.name.as_str();

    let mut unit = Section::new("Unit").with("Description", format!("{name} (roadie)"));
    if !(system && profile == Profile::Worker) {
        unit = unit.with("After", "network-online.target").with("Wants", "network-online.target");
    }
    let unit = unit.with("StartLimitIntervalSec", "30").with("StartLimitBurst", "5");

    let mut run = Section::new("Service")
        .with("Type", if service.deploy.health.probe == Probe::Notify { "notify" } else { "exec" })
        .with("ExecStart", "{{exec}}")
        .with("WorkingDirectory", "{{release_dir}}")
        .with("EnvironmentFile", "-{{env_file}}")
        .with("Restart", "on-failure")
        .with("RestartSec", "1")
        .with("TimeoutStopSec", "10");
    // A user manager has no right to set most of the rest, and writes no extra fields.
    if system {
        run = run.with("LogExtraFields", "ROADIE_RELEASE={{release}}");
        run.directives.extend(profile::directives(profile, name));
    }
    let install = Section::new("Install").with("WantedBy", if system { "multi-user.target" } else { "default.target" });
    Unit { comment: "Made by roadie: changes here are lost with the next deploy.", sections: vec![unit, run, install] }
}

/// Whether the system's own manager runs the service's unit.
pub fn is_system(service: &Service) -> bool {
    service.runtime == RuntimeKind::Remote && service.deploy.scope == Scope::System
}
