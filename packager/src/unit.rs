//! The unit file's template: what is known when packing is filled in, what only the host knows stays a variable.

use roadie_model::definition::{Probe, RuntimeKind, Scope, Service};

const UNIT: &str = include_str!("../../templates/unit.service.hbs");
/// Directives that every systemd since 247 knows; a user manager has no right to set most of them.
const SANDBOX: &str = include_str!("../../templates/sandbox.service");

/// The generated template for `service`.
pub fn generate(service: &Service) -> String {
    let system = service.runtime == RuntimeKind::Remote && service.deploy.scope == Scope::System;
    let kind = if service.deploy.health.probe == Probe::Notify { "notify" } else { "exec" };
    UNIT.replace("@SANDBOX@\n", if system { SANDBOX } else { "" })
        .replace("@TYPE@", kind)
        .replace("@TARGET@", if system { "multi-user.target" } else { "default.target" })
        .replace("@NAME@", service.name.as_str())
}
