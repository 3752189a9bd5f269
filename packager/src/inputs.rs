//! Packages found by what they are made from, without asking the build tool: for pipelines, where nothing else is at hand than a
//! clean checkout and a store that others filled. Asked for by name, as it trusts that the inputs are all there is.

use crate::memo::{Digests, Memo};
use crate::toolchain::Toolchain;
use crate::{BuildEnv, PackError};
use roadie_model::definition::Service;
use roadie_model::target::TargetTriple;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Variables that decide what is built, besides the ones that begin with [`PREFIXES`].
const NAMES: [&str; 6] =
    ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC", "SOURCE_DATE_EPOCH", "RUSTUP_TOOLCHAIN"];
const PREFIXES: [&str; 8] = ["CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_", "CC", "CXX", "CFLAGS", "AR_", "PKG_CONFIG"];

/// A digest over all that a package is made from: the service as it is defined, every file of the workspace and of the definition's
/// own folder that is not version control or a build, tools with their versions, and the variables above.
pub fn key(
    service: &Service,
    target: &TargetTriple,
    toolchain: Option<&Toolchain>,
    roots: &[PathBuf],
    env: &BuildEnv,
    memo: &Memo,
) -> Result<String, PackError> {
    let mut hash = Sha256::new();
    hash.update(format!("roadie-inputs/1\n{}\n{target}\n", env!("CARGO_PKG_VERSION")));
    // Hosts are no input, nor is where others find them: the same package goes to all of them.
    let own = Service { hosts: Vec::new(), ports: Vec::new(), peers: BTreeMap::new(), ..service.clone() };
    hash.update(serde_json::to_vec(&own).unwrap_or_default());
    if let Some(toolchain) = toolchain {
        hash.update(format!("\n{:?} {:?} {:?}\n", toolchain.kind, toolchain.tools, toolchain.rustflags));
    }
    let decides = |name: &str| NAMES.contains(&name) || PREFIXES.iter().any(|p| name.starts_with(p));
    for (name, value) in env.vars.iter().filter(|(name, _)| decides(name)).chain(&env.set) {
        hash.update(format!("{name}={value:?}\n"));
    }
    let name = format!("{:?}", roots);
    let mut digests: Digests = memo.get("inputs", &name).unwrap_or_default();
    for root in roots {
        let mut files = Vec::new();
        let failed = |e: std::io::Error| PackError::File { key: "build", path: root.clone(), reason: e.to_string() };
        walk(root, &mut files).map_err(failed)?;
        files.sort();
        for file in files {
            let failed = |e: std::io::Error| PackError::File { key: "build", path: file.clone(), reason: e.to_string() };
            let short = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            // What is packed as executable is decided by this bit; a link is what it names and what is there.
            let meta = std::fs::symlink_metadata(&file).map_err(failed)?;
            let link = std::fs::read_link(&file).unwrap_or_default();
            let content = if file.is_file() { digests.of(&file).map_err(failed)?.0 } else { String::new() };
            let executable = meta.permissions().mode() & 0o100 != 0;
            hash.update(format!("{content} {executable} {} {short}\n", link.display()));
        }
    }
    if digests.changed() {
        memo.put("inputs", &name, &digests);
    }
    Ok(crate::archive::hex(&hash.finalize()))
}

/// Files and links. A folder that cannot be read is an error: what is in it would be missed.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_file() || kind.is_symlink() {
            found.push(path);
        } else if kind.is_dir() && entry.file_name() != ".git" && !path.join("CACHEDIR.TAG").exists() {
            walk(&path, found)?;
        }
    }
    Ok(())
}
