//! Names and identifiers: validated once, trusted afterwards.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Says why a string is not a valid name or identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {kind}: {rule}")]
pub struct InvalidId {
    /// What the value was meant to be, for example `service name`.
    pub kind: &'static str,
    /// The refused value.
    pub value: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Validates `value`.
            ///
            /// # Errors
            /// [`InvalidId`] naming the rule that `value` breaks.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                let check: fn(&str) -> bool = $check;
                if check(&value) { Ok(Self(value)) } else { Err(InvalidId { kind: $kind, value, rule: $rule }) }
            }

            /// The text as written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

string_id!(
    /// The name of a service: it becomes a directory, a unit name and a log prefix.
    ServiceName,
    "service name",
    "1 to 48 characters a-z, 0-9 and -, starting with a letter, not ending with -",
    |s| {
        (1..=48).contains(&s.len())
            && s.starts_with(|c: char| c.is_ascii_lowercase())
            && !s.ends_with('-')
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }
);

string_id!(
    /// How a host is called in the definition and in every message: its name, or its address when written inline.
    HostName,
    "host name",
    "1 to 255 characters A-Z, a-z, 0-9, . _ : and -, not starting with - or .",
    |s| {
        (1..=255).contains(&s.len())
            && !s.starts_with(['-', '.'])
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
    }
);

impl HostName {
    /// What the machine that roadie runs on is called.
    pub fn local() -> Self {
        Self("localhost".into())
    }
}

impl ServiceName {
    /// What stands in the place of a service for the mesh of this interface. No service can be called so: it has a dot.
    pub fn of_mesh(interface: &str) -> Self {
        Self(format!("mesh.{interface}"))
    }

    /// Whether it stands for a mesh.
    pub fn is_mesh(&self) -> bool {
        self.0.starts_with("mesh.")
    }
}

fn is_sha256(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

string_id!(
    /// sha256 of a package's canonical, uncompressed tar: 64 lower-case hex digits.
    PackageId,
    "package id",
    "64 lower-case hex digits",
    is_sha256
);

string_id!(
    /// sha256 over a package id and everything rendered for one host (unit, config, environment): 64 lower-case hex digits.
    ///
    /// Two hosts may have different releases of one package; a rollback restores all of the record, because all of it is in
    /// the release.
    ReleaseId,
    "release id",
    "64 lower-case hex digits",
    is_sha256
);

impl PackageId {
    /// The first 12 digits: what people read.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl ReleaseId {
    /// The first 12 digits: what people read.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_names_are_safe_as_paths_and_units() {
        for good in ["a", "indexer-agent", "api2"] {
            assert!(ServiceName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "a.b", "..", "2a", "a b", "a\n"] {
            assert!(ServiceName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_survive_json_and_refuse_garbage() {
        let id = PackageId::new("a".repeat(64)).expect("valid");
        let text = serde_json::to_string(&id).expect("serialises");
        assert_eq!(serde_json::from_str::<PackageId>(&text).expect("parses"), id);
        assert!(serde_json::from_str::<PackageId>("\"../../etc\"").is_err());
    }
}
