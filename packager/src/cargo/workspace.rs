//! What cargo says of a workspace: asked once, and again when a file that decides it moved.

use crate::memo::{Memo, Stat, now_ns};
use crate::{BuildEnv, PackError};
use cargo_metadata::{MetadataCommand, TargetKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A workspace, or a package alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Workspace {
    /// Its folder.
    pub root: PathBuf,
    /// Where cargo builds.
    pub target_directory: PathBuf,
    /// Its members.
    pub packages: Vec<Package>,
}

/// A member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Its `Cargo.toml`.
    pub manifest: PathBuf,
    /// Its binaries.
    pub bins: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// What the answer depends on; `None` for what was not there.
    seen: Vec<(PathBuf, Option<Stat>)>,
    workspace: Workspace,
}

/// Reads the workspace that `dir` belongs to.
pub async fn read(dir: &Path, env: &BuildEnv, memo: &Memo) -> Result<Workspace, PackError> {
    let manifest = dir.join("Cargo.toml");
    if !manifest.is_file() {
        let reason = "there is no Cargo.toml".to_owned();
        return Err(PackError::File { key: "build.manifest_dir", path: dir.to_owned(), reason });
    }
    let moved = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_HOME"].map(|name| env.var(name));
    let key = format!("{} {moved:?}", dir.display());
    if let Some(entry) = memo.get::<Entry>("workspace", &key)
        && entry.seen.iter().all(|(path, stat)| Stat::at(path) == *stat)
    {
        return Ok(entry.workspace);
    }
    let now = now_ns();
    let workspace = ask(dir, env).await?;
    let seen: Vec<_> = deciding(dir, &workspace).into_iter().map(|p| (p.clone(), Stat::at(&p))).collect();
    if seen.iter().all(|(_, stat)| stat.is_none_or(|s| s.is_settled(now))) {
        memo.put("workspace", &key, &Entry { seen, workspace: workspace.clone() });
    }
    Ok(workspace)
}

async fn ask(dir: &Path, env: &BuildEnv) -> Result<Workspace, PackError> {
    let (dir, set) = (dir.to_owned(), env.given());
    let cargo = which::which_in("cargo", env.var("PATH"), "/").ok();
    let work = move || {
        let mut command = MetadataCommand::new();
        set.iter().for_each(|(name, value)| {
            command.env(name, value);
        });
        if let Some(cargo) = &cargo {
            command.cargo_path(cargo);
        }
        command.current_dir(&dir).no_deps().exec()
    };
    let metadata = match tokio::task::spawn_blocking(work).await {
        Ok(Ok(metadata)) => metadata,
        Ok(Err(cargo_metadata::Error::Io(source))) => return Err(PackError::Tool { tool: "cargo".into(), source }),
        Ok(Err(error)) => {
            let output = error.to_string().lines().map(str::to_owned).collect();
            return Err(PackError::Build { command: "cargo metadata".into(), output, hint: None });
        }
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    let package = |p: &&cargo_metadata::Package| Package {
        name: p.name.to_string(),
        version: p.version.to_string(),
        manifest: p.manifest_path.clone().into_std_path_buf(),
        bins: p.targets.iter().filter(|t| t.kind.contains(&TargetKind::Bin)).map(|t| t.name.clone()).collect(),
    };
    Ok(Workspace {
        packages: metadata.workspace_packages().iter().map(package).collect(),
        root: metadata.workspace_root.into_std_path_buf(),
        target_directory: metadata.target_directory.into_std_path_buf(),
    })
}

/// Files that members, binaries and folders are read from, and folders whose entries are.
fn deciding(dir: &Path, workspace: &Workspace) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::from([workspace.root.join("Cargo.toml"), workspace.root.join("Cargo.lock")]);
    for above in dir.ancestors() {
        paths.insert(above.join("Cargo.toml"));
        paths.insert(above.join(".cargo/config.toml"));
        paths.insert(above.join(".cargo/config"));
    }
    for package in &workspace.packages {
        let folder = package.manifest.parent().unwrap_or(&workspace.root);
        paths.extend([package.manifest.clone(), folder.join("src"), folder.join("src/bin")]);
        paths.extend(folder.parent().map(Path::to_owned));
    }
    paths
}
