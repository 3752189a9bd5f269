//! Builds a service and bundles it into a reproducible, content-addressed package.
//!
//! cargo is always asked, never skipped; what is cached is everything behind it, keyed by content. A package's id is the sha256
//! of its uncompressed canonical tar: the gzip around it is transport, and may change. Nothing here knows hosts.

mod archive;
mod cargo;
mod elf;
mod members;
mod store;
mod targets;
mod unit;

pub use elf::{ElfError, inspect};
pub use store::{Store, StoreError, StoredPackage};
pub use targets::{TargetInfo, target_info};

use roadie_model::definition::{Build, Definition, Service};
use roadie_model::package::Package;
use roadie_model::target::TargetTriple;
use std::path::PathBuf;

/// What the packager tells while it works.
#[derive(Debug, Clone)]
pub enum PackEvent {
    /// A build tool is started; the command as people would type it.
    Building {
        /// The command.
        command: String,
    },
    /// A line that the build tool printed.
    BuildOutput {
        /// The line.
        line: String,
    },
    /// The members are written into an archive.
    Bundling,
    /// The store had the very same package.
    Unchanged,
}

/// Told of each event.
pub type Report<'a> = &'a (dyn Fn(PackEvent) + Send + Sync);

/// A package, and whether it took any archive work.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The package in the store.
    pub package: Package,
    /// True when the store had it already.
    pub fresh: bool,
}

/// Why a service could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// This version cannot build it.
    #[error("build type `{kind}` is not built by this version yet")]
    Unsupported {
        /// The build type.
        kind: &'static str,
    },
    /// A tool is missing or cannot be started.
    #[error("cannot run `{tool}`")]
    Tool {
        /// The tool.
        tool: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The build failed.
    #[error("`{command}` failed")]
    Build {
        /// What was run.
        command: String,
        /// The last lines it printed.
        output: Vec<String>,
        /// What to do, when it can be told.
        hint: Option<String>,
    },
    /// The package or binary cannot be chosen.
    #[error("{problem}")]
    Choice {
        /// What is ambiguous or missing, with what there is.
        problem: String,
        /// The key to set.
        hint: String,
    },
    /// A file of the definition cannot be used.
    #[error("cannot use `{}` (`{key}`): {reason}", path.display())]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An argument is no template that can be filled in.
    #[error("cannot use `deploy.args`: {problems}")]
    Args {
        /// Which, where, and why.
        problems: String,
    },
    /// The binary is not what the target asks for.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PackError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PackError::Unsupported { .. } => Some("build it yourself and use `build: {type: prebuilt, path: ...}`".into()),
            PackError::Tool { tool, .. } => Some(format!("install `{tool}`, or put its folder into PATH")),
            PackError::Build { hint, .. } => hint.clone(),
            PackError::Choice { hint, .. } => Some(hint.clone()),
            PackError::File { key, .. } => Some(format!("mend the file, or `{key}` in the definition")),
            PackError::Args { .. } => Some("mend `args` in the definition".into()),
            PackError::Elf(e) => e.hint(),
            PackError::Store(e) => e.hint(),
        }
    }
}

/// What of the environment decides how cargo builds; the caller reads it.
#[derive(Debug, Clone, Default)]
pub struct BuildEnv {
    /// `CARGO_HOME`, or `~/.cargo`.
    pub cargo_home: PathBuf,
    /// `RUSTFLAGS`.
    pub rustflags: Option<String>,
    /// `CARGO_ENCODED_RUSTFLAGS`.
    pub encoded_rustflags: Option<String>,
}

/// Packs services into a store.
#[derive(Debug, Clone)]
pub struct Packager {
    store: Store,
    env: BuildEnv,
}

impl Packager {
    /// A packager that keeps its packages in `store`.
    pub fn new(store: Store, env: BuildEnv) -> Self {
        Self { store, env }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The targets of a service: its own, or this machine's.
    ///
    /// # Errors
    /// [`PackError::Tool`] when rustc cannot be asked for this machine's triple.
    pub async fn targets_for(&self, service: &Service) -> Result<Vec<TargetTriple>, PackError> {
        match service.build.targets() {
            [] => Ok(vec![cargo::host_target().await?]),
            named => Ok(named.to_vec()),
        }
    }

    /// Builds `service` for `target` and puts the package into the store.
    ///
    /// # Errors
    /// [`PackError`]; the store then holds nothing new.
    pub async fn pack(
        &self,
        definition: &Definition,
        service: &Service,
        target: &TargetTriple,
        report: Report<'_>,
    ) -> Result<Packed, PackError> {
        let binary = match &service.build {
            Build::Cargo(options) => cargo::build(definition, service, options, target, &self.env, report).await?,
            Build::Prebuilt { path, .. } => members::prebuilt(definition, path, target)?,
            Build::Command { .. } => return Err(PackError::Unsupported { kind: "command" }),
            Build::Image { .. } => return Err(PackError::Unsupported { kind: "image" }),
        };
        report(PackEvent::Bundling);
        let (store, definition, service, target) = (self.store.clone(), definition.clone(), service.clone(), target.clone());
        let work = move || members::bundle(&store, &definition, &service, &target, &binary);
        let packed = match tokio::task::spawn_blocking(work).await {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        if packed.fresh {
            report(PackEvent::Unchanged);
        }
        Ok(packed)
    }
}
