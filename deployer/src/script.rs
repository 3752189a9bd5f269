//! The host script: one text, put together from the files of `templates/host`.

/// In this order only `base.sh` has to come first and `main.sh` last.
macro_rules! parts {
    ($($name:literal),+) => {
        concat!($(include_str!(concat!("../../templates/host/", $name, ".sh")), "\n"),+)
    };
}

/// The only code that changes a host.
pub const HOST_SCRIPT: &str = parts!(
    "base", "helper", "lock", "facts", "steps", "release", "setup", "unit", "guard", "process", "backup", "simple", "logs",
    "main"
);
