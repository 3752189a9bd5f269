//! Target triples, with an optional glibc floor (`x86_64-unknown-linux-gnu.2.17`).

use crate::id::InvalidId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A Rust target triple, with an optional glibc floor behind a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetTriple {
    triple: String,
    glibc: Option<(u32, u32)>,
}

impl TargetTriple {
    /// Parses `x86_64-unknown-linux-gnu` or `x86_64-unknown-linux-gnu.2.17`.
    ///
    /// # Errors
    /// [`InvalidId`] when it has not three or four parts of `[a-z0-9_]`, or a floor that is no `2.N` behind a gnu triple.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let bad = |rule| InvalidId { kind: "target triple", value: text.to_owned(), rule };
        let (triple, floor) = match text.split_once('.') {
            Some((t, f)) => (t, Some(f)),
            None => (text, None),
        };
        let parts: Vec<&str> = triple.split('-').collect();
        let word = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !(3..=4).contains(&parts.len()) || !parts.iter().all(word) {
            return Err(bad("a Rust target triple such as `x86_64-unknown-linux-gnu`"));
        }
        let glibc = match floor {
            None => None,
            Some(f) => {
                let numbers = f.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                let numbers = numbers.ok_or_else(|| bad("a glibc floor is written `.2.17`"))?;
                if !triple.contains("-gnu") {
                    return Err(bad("a glibc floor needs a gnu triple"));
                }
                Some(numbers)
            }
        };
        Ok(Self { triple: triple.to_owned(), glibc })
    }

    /// The triple without the floor: what rustc is told.
    pub fn triple(&self) -> &str {
        &self.triple
    }

    /// The glibc floor asked for, as (major, minor).
    pub fn glibc_floor(&self) -> Option<(u32, u32)> {
        self.glibc
    }

    /// The architecture part: `x86_64`, `aarch64`, ...
    pub fn arch(&self) -> &str {
        self.triple.split('-').next().unwrap_or_default()
    }

    /// Whether a host whose `uname -m` says `machine` runs this architecture.
    pub fn runs_on(&self, machine: &str) -> bool {
        match self.arch() {
            "i686" | "i586" => matches!(machine, "i386" | "i486" | "i586" | "i686" | "x86_64"),
            arch if arch.starts_with("armv7") || arch.starts_with("thumbv7") => {
                matches!(machine, "armv7l" | "armv8l" | "aarch64")
            }
            arch if arch.starts_with("riscv64") => machine == "riscv64",
            "powerpc64le" => machine == "ppc64le",
            arch => arch == machine,
        }
    }
}

impl fmt::Display for TargetTriple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.glibc {
            None => f.pad(&self.triple),
            Some((major, minor)) => f.pad(&format!("{}.{major}.{minor}", self.triple)),
        }
    }
}

impl TryFrom<String> for TargetTriple {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        Self::new(&value)
    }
}

impl From<TargetTriple> for String {
    fn from(value: TargetTriple) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_split_off_and_printed_back() {
        let t = TargetTriple::new("x86_64-unknown-linux-gnu.2.17").expect("valid");
        assert_eq!((t.triple(), t.glibc_floor(), t.arch()), ("x86_64-unknown-linux-gnu", Some((2, 17)), "x86_64"));
        assert_eq!(t.to_string(), "x86_64-unknown-linux-gnu.2.17");
        for bad in ["", "x86_64", "x86_64-unknown-linux-musl.2.17", "x86_64-unknown-linux-gnu.17", "x86_64 -a-b", "../a-b-c"] {
            assert!(TargetTriple::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_machine_name_tells_which_triples_run() {
        let t = |s| TargetTriple::new(s).expect("valid");
        assert!(t("x86_64-unknown-linux-gnu").runs_on("x86_64"));
        assert!(!t("aarch64-unknown-linux-gnu").runs_on("x86_64"));
        assert!(t("i686-unknown-linux-gnu").runs_on("x86_64"));
        assert!(t("riscv64gc-unknown-linux-gnu").runs_on("riscv64"));
    }
}
