//! The keys of every section.

/// Every section of the file and the keys it knows: the reference in the docs is checked against it.
pub const KEYS: &[(&str, &[&str])] = &[
    ("file", FILE),
    ("defaults", DEFAULTS),
    ("host", HOST),
    ("service", SERVICE),
    ("files", FILES),
    ("build", BUILD),
    ("deploy", DEPLOY),
    ("health", HEALTH),
    ("mesh", MESH),
    ("topology", TOPOLOGY),
];

pub const FILE: &[&str] = &["defaults", "hosts", "mesh", "services"];
pub const DEFAULTS: &[&str] = &["user", "ssh_key", "port", "timeout"];
pub const HOST: &[&str] = &["address", "user", "port", "ssh_key", "host_key", "tags", "timeout"];
pub const SERVICE: &[&str] = &["runtime", "hosts", "depends_on", "ports", "build", "config", "vars", "files", "deploy"];
pub const FILES: &[&str] = &["from", "to"];
/// Of all build types together.
pub const BUILD: &[&str] = &[
    "type",
    "package",
    "bin",
    "bins",
    "features",
    "default_features",
    "profile",
    "locked",
    "manifest_dir",
    "target",
    "targets",
    "toolchain",
    "path",
    "run",
    "inputs",
    "env",
    "output",
    "image",
];
pub const BUILD_CARGO: &[&str] = &[
    "package",
    "bin",
    "bins",
    "features",
    "default_features",
    "profile",
    "locked",
    "manifest_dir",
    "target",
    "targets",
    "toolchain",
];
pub const BUILD_PREBUILT: &[&str] = &["path", "target", "targets"];
pub const BUILD_COMMAND: &[&str] = &["run", "inputs", "env", "output", "target", "targets"];
pub const BUILD_IMAGE: &[&str] = &["image"];
pub const DEPLOY: &[&str] = &[
    "lifecycle",
    "scope",
    "args",
    "env",
    "setup",
    "setup_commands",
    "setup_timeout",
    "guard_grace",
    "setup_run",
    "unit",
    "profile",
    "health",
    "keep_releases",
    "strategy",
    "max_failures",
    "on_failure",
    "rollback",
];
pub const HEALTH: &[&str] = &["http", "tcp", "exec", "notify", "interval", "timeout", "good", "stable_for", "expect"];
pub const MESH: &[&str] = &[
    "hosts",
    "interface",
    "network",
    "domain",
    "port",
    "topology",
    "via",
    "endpoints",
    "addresses",
    "names",
    "keepalive",
    "mtu",
    "default_drop",
    "open",
];
pub const TOPOLOGY: &[&str] = &["hub"];
