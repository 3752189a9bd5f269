//! What was built: a package and its metadata (`metadata.json`, schema `roadie.package/1`).

use crate::id::{PackageId, ServiceName};
use crate::target::TargetTriple;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The schema name written to and expected in `metadata.json`.
pub const SCHEMA: &str = "roadie.package/1";

/// A package in the local store, ready to be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Package {
    /// sha256 of the uncompressed canonical tar.
    pub id: PackageId,
    /// sha256 of the `.tar.gz` as it travels, hex.
    pub archive_sha256: String,
    /// Bytes of the `.tar.gz`.
    pub archive_bytes: u64,
    /// Where the `.tar.gz` is.
    pub archive: PathBuf,
    /// What `metadata.json` says.
    pub metadata: Metadata,
    /// sha256 of the bytes of `metadata.json` as they are in the archive, hex.
    pub metadata_sha256: String,
    /// Text of `systemd.service` (a handlebars template, see [`crate::definition::Deploy::unit`]).
    pub unit_template: String,
    /// Text of `config-template.toml`; empty when the service has no config.
    pub config_template: String,
    /// Text of `setup.sh`; empty when there is nothing to set up.
    pub setup: String,
}

/// How a host can make one package from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Means {
    /// perl applies a patch: `templates/patch.pl`.
    Perl,
    /// An sftp server copies stretches of old files and writes over what differs in them (`copy-data`): `templates/copied.sh`.
    Copies,
}

/// What makes one package from another, on a host that has the other unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// By what the host makes it.
    pub means: Means,
    /// What is sent, gzip: a patch, or requests to an sftp server.
    pub file: PathBuf,
    /// sha256 of that file, hex.
    pub sha256: String,
    /// Bytes of that file.
    pub bytes: u64,
    /// The old side: paths in the old release, in the order in which the patch counts them.
    pub sources: Vec<String>,
}

/// The content of `metadata.json`. Unknown fields are ignored, an unknown schema is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Metadata {
    /// [`SCHEMA`].
    pub schema: String,
    /// The service.
    #[schemars(with = "String")]
    pub name: ServiceName,
    /// Version of the program as far as known (cargo package version); empty for prebuilt files.
    pub version: String,
    /// What it was built for.
    #[schemars(with = "String")]
    pub target: TargetTriple,
    /// Path of the main binary in the package: `bin/<name>`.
    pub binary: String,
    /// How it was built, as the definition says: nothing of the machine is in it.
    #[serde(default)]
    pub build: BuildFacts,
    /// Every member but `metadata.json`, sorted by path.
    pub files: Vec<FileEntry>,
    /// What a host must have.
    pub requires: Requires,
}

/// How a package was built, as far as the definition decides it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct BuildFacts {
    /// `cargo`, `prebuilt` or `command`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// cargo's profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// cargo features.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

/// What a file of a package is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A program that was built.
    Binary,
    /// The setup script, or a part of it.
    Setup,
    /// The config's template.
    Config,
    /// The unit's template.
    Unit,
    /// Anything else that the definition names.
    #[default]
    File,
}

/// One file of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileEntry {
    /// Path in the package, `/` between parts.
    pub path: String,
    /// What it is for.
    #[serde(default)]
    pub role: Role,
    /// `0755` or `0644`, octal text.
    pub mode: String,
    /// Bytes.
    pub size: u64,
    /// sha256, hex.
    pub sha256: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a package needs of a host, read from the ELF files and the unit in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Requires {
    /// `uname -m` style architecture; empty for scripts.
    #[serde(default)]
    pub arch: String,
    /// `glibc`, `musl`, `static` or `none` (not an ELF file).
    #[serde(default)]
    pub libc: String,
    /// Highest glibc symbol version needed, as `2.34`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glibc_min: Option<String>,
    /// Program interpreter (`PT_INTERP`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    /// Shared libraries (`DT_NEEDED`), sorted.
    #[serde(default)]
    pub sonames: Vec<String>,
    /// Versions needed of each shared library, as `libc.so.6: [GLIBC_2.2.5, GLIBC_2.34]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, Vec<String>>,
    /// Symbols that need a glibc newer than 2.17, a few per version: what to look for when a host is too old.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub glibc_symbols: BTreeMap<String, Vec<String>>,
    /// Alignment of the loaded segments, bytes: pages of the host must not be larger. 0: not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub page_align: u64,
    /// The systemd that its unit needs; older ones would ignore what the service cannot do without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd_min: Option<u32>,
}
