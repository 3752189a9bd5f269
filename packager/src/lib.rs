//! Builds a service and bundles it into a reproducible, content-addressed package.
//!
//! cargo is always asked, never skipped; what is cached is everything behind it, keyed by content. A package's id is the sha256
//! of its uncompressed canonical tar: the gzip around it is transport, and may change. Nothing here knows hosts.

mod adopt;
mod archive;
mod cargo;
mod command;
pub mod delta;
mod elf;
pub mod gzip;
mod inputs;
mod members;
mod memo;
mod store;
mod targets;
mod toolchain;
pub mod trust;
pub mod unit;
mod verify;

pub use elf::{ElfError, inspect};
pub use store::{Lease, Limits, Store, StoreError, StoredPackage};
pub use targets::{TargetInfo, Targets};
pub use toolchain::{Machine, Missing, Toolchain};
pub use verify::Verified;

use memo::Memo;
use roadie_model::definition::{Build, Definition, Service, ToolchainKind};
use roadie_model::package::Package;
use roadie_model::target::TargetTriple;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::RwLock;

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
    /// The tools that build, and why those.
    Chosen {
        /// Which.
        toolchain: ToolchainKind,
        /// Why, a sentence part.
        reason: String,
    },
    /// The members are written into an archive.
    Bundling,
    /// The store had the very same package.
    Unchanged,
    /// Something beside the package did not work out; the package is good.
    Warning {
        /// What.
        text: String,
    },
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
    /// What was found in its unit.
    pub unit: unit::Lint,
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
    /// Nothing here builds for the target.
    #[error("{missing}")]
    Toolchain {
        /// The target.
        target: TargetTriple,
        /// What is missing, and how to get it.
        missing: Missing,
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
            PackError::Toolchain { missing, .. } => Some(missing.fix.clone()),
            PackError::File { key, .. } => Some(format!("mend the file, or `{key}` in the definition")),
            PackError::Args { .. } => Some("mend `args` in the definition".into()),
            PackError::Elf(e) => e.hint(),
            PackError::Store(e) => e.hint(),
        }
    }
}

/// What of the environment decides how things are built; the caller reads it.
#[derive(Debug, Clone, Default)]
pub struct BuildEnv {
    /// All its variables.
    pub vars: BTreeMap<String, String>,
    /// Variables that builds see besides their own.
    pub set: BTreeMap<String, String>,
    /// Whether a package that the store has for the same inputs is taken without asking the build tool.
    pub by_inputs: bool,
    /// Folder of the user's own target files, over the embedded ones.
    pub targets: Option<PathBuf>,
    /// Threads that compress; 0: as many as there are processors.
    pub threads: usize,
}

impl BuildEnv {
    /// A variable, unless it is empty.
    pub fn var(&self, name: &str) -> Option<String> {
        self.vars.get(name).filter(|v| !v.is_empty()).cloned()
    }

    /// What a build sees besides what roadie itself sees.
    pub(crate) fn given(&self) -> BTreeMap<String, String> {
        let path = self.var("PATH").map(|path| ("PATH".to_owned(), path));
        path.into_iter().chain(self.set.clone()).collect()
    }

    fn home(&self, name: &str, default: &str) -> PathBuf {
        self.var(name).map_or_else(|| PathBuf::from(self.var("HOME").unwrap_or_default()).join(default), PathBuf::from)
    }

    pub(crate) fn cargo_home(&self) -> PathBuf {
        self.home("CARGO_HOME", ".cargo")
    }

    pub(crate) fn rustup_home(&self) -> PathBuf {
        self.home("RUSTUP_HOME", ".rustup")
    }

    /// The user's compiler flags, when they come from the environment: cargo then reads no others.
    pub(crate) fn rustflags(&self) -> Option<Vec<String>> {
        // An empty variable counts as well: it hides what config files say.
        let encoded = self.vars.get("CARGO_ENCODED_RUSTFLAGS");
        let split = |text: &String| text.split('\u{1f}').filter(|f| !f.is_empty()).map(str::to_owned).collect();
        let words = |text: &String| text.split_whitespace().map(str::to_owned).collect();
        encoded.map(split).or_else(|| self.vars.get("RUSTFLAGS").map(words))
    }
}

/// Packs services into a store.
#[derive(Debug, Clone)]
pub struct Packager {
    store: Store,
    env: BuildEnv,
    memo: Memo,
    targets: Targets,
    machine: Machine,
    /// See [`cargo::Bench`].
    builds: Arc<RwLock<()>>,
}

impl Packager {
    /// A packager that keeps its packages in `store`.
    ///
    /// # Errors
    /// [`PackError::File`] when one of the user's target files is not one.
    pub fn new(store: Store, env: BuildEnv) -> Result<Self, PackError> {
        let memo = Memo::new(store.root().join("memo"));
        let targets = env.targets.as_deref().map_or_else(|| Ok(Targets::default()), Targets::with)?;
        let machine = Machine::new(env.clone(), memo.clone());
        Ok(Self { store, env, memo, targets, machine, builds: Arc::default() })
    }

    /// The same, with [`BuildEnv::by_inputs`] as told.
    #[must_use]
    pub fn by_inputs(mut self, on: bool) -> Self {
        self.env.by_inputs = on;
        self
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What is known of targets.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// The targets of a service: its own, or this machine's.
    ///
    /// # Errors
    /// [`PackError::Choice`] when rustc cannot be asked for this machine's triple.
    pub fn targets_for(&self, definition: &Definition, service: &Service) -> Result<Vec<TargetTriple>, PackError> {
        match service.build.targets() {
            [] => Ok(vec![self.host(&definition.dir)?]),
            named => Ok(named.to_vec()),
        }
    }

    /// This machine's own target.
    ///
    /// # Errors
    /// [`PackError::Choice`] when rustc cannot be asked for it.
    pub fn host(&self, dir: &Path) -> Result<TargetTriple, PackError> {
        toolchain::host(&self.machine, dir).ok_or_else(|| PackError::Choice {
            problem: "no `rustc` tells this machine's target triple".into(),
            hint: "mend the Rust installation (`rustc -vV`), or set `target` under `build:`".into(),
        })
    }

    /// The tools that would build for `target` in `dir`.
    ///
    /// # Errors
    /// [`Missing`] with the first thing that is not there.
    pub fn toolchain(&self, dir: &Path, target: &TargetTriple, wanted: ToolchainKind) -> Result<Toolchain, Missing> {
        toolchain::choose(&self.machine, &self.targets, dir, target, wanted)
    }

    /// Says what is missing to build `service` for `target`, without building.
    ///
    /// # Errors
    /// [`PackError::Toolchain`].
    pub fn check(&self, definition: &Definition, service: &Service, target: &TargetTriple) -> Result<(), PackError> {
        let Build::Cargo(options) = &service.build else { return Ok(()) };
        let dir = definition.dir.join(&options.manifest_dir);
        let chosen = self.toolchain(&dir, target, options.toolchain_for(target));
        chosen.map(drop).map_err(|missing| PackError::Toolchain { target: target.clone(), missing })
    }

    /// Builds of one group take turns: they share a folder that cargo locks.
    pub fn group(&self, definition: &Definition, service: &Service, target: &TargetTriple) -> String {
        let Build::Cargo(options) = &service.build else { return service.name.to_string() };
        let dir = definition.dir.join(&options.manifest_dir);
        let chosen = self.toolchain(&dir, target, options.toolchain_for(target));
        chosen.map_or_else(|missing| missing.cause, |toolchain| toolchain.folder)
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
        let key = match self.env.by_inputs {
            true => Some(self.inputs(definition, service, target).await?),
            false => None,
        };
        if let Some(package) = key.as_ref().and_then(|key| self.store.by_action(key, &self.memo)) {
            report(PackEvent::Unchanged);
            let unit = unit::lint(&package.unit_template).unwrap_or_default();
            return Ok(Packed { package, fresh: true, unit });
        }
        let mut making = trust::Making::begin(service);
        let binaries = match &service.build {
            Build::Cargo(options) => {
                let (env, builds) = (&self.env, &self.builds);
                let bench = cargo::Bench { env, targets: &self.targets, machine: &self.machine, memo: &self.memo, builds };
                cargo::build(bench, definition, service, options, target, report).await?
            }
            Build::Prebuilt { path, .. } => vec![members::prebuilt(definition, path, target)?],
            Build::Command { run, inputs, env, output, .. } => {
                let options = command::Options { run, inputs, env, output };
                vec![command::build(definition, options, target, &self.env, &self.memo, report).await?]
            }
            Build::Image { .. } => return Err(PackError::Unsupported { kind: "image" }),
        };
        report(PackEvent::Bundling);
        let threads = match self.env.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            some => some,
        };
        let bench = members::Bench { store: self.store.clone(), memo: self.memo.clone(), targets: self.targets.clone(), threads };
        let (own, wanted, triple) = (definition.clone(), service.clone(), target.clone());
        let work = move || members::bundle(&bench, &own, &wanted, &triple, &binaries);
        let (packed, lists) = match tokio::task::spawn_blocking(work).await {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        if packed.fresh {
            report(PackEvent::Unchanged);
        }
        self.tell(definition, &packed, lists, &mut making, report).await?;
        if let Some(key) = key {
            self.store.remember(&key, &packed.package.id)?;
        }
        Ok(packed)
    }

    /// What a package would be made from, as one digest.
    async fn inputs(&self, definition: &Definition, service: &Service, target: &TargetTriple) -> Result<String, PackError> {
        let mut roots = vec![definition.dir.clone()];
        let mut toolchain = None;
        if let Build::Cargo(options) = &service.build {
            let dir = definition.dir.join(&options.manifest_dir);
            let workspace = cargo::workspace_root(&dir, &self.env, &self.memo).await?;
            let chosen = self.toolchain(&dir, target, options.toolchain_for(target));
            toolchain = Some(chosen.map_err(|missing| PackError::Toolchain { target: target.clone(), missing })?);
            if !workspace.starts_with(&definition.dir) {
                roots.push(workspace);
            }
        }
        inputs::key(service, target, toolchain.as_ref(), &roots, &self.env, &self.memo)
    }

    /// Writes down beside a new package what it holds and how it was made.
    async fn tell(
        &self,
        definition: &Definition,
        packed: &Packed,
        lists: members::Lists,
        making: &mut trust::Making<'_>,
        report: Report<'_>,
    ) -> Result<(), PackError> {
        let missing = trust::missing(&self.store, &packed.package);
        if packed.fresh && !missing {
            return Ok(());
        }
        making.ask(definition).await;
        trust::write_down(&self.store, &packed.package, making)?;
        if !lists.0 {
            return Ok(());
        }
        let (store, package) = (self.store.clone(), packed.package.clone());
        match tokio::task::spawn_blocking(move || trust::sbom(&store, &package)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(trust::SbomError::Store(e))) => Err(e.into()),
            // The package itself is good, and may be deployed without a list.
            Ok(Err(e)) => {
                report(PackEvent::Warning { text: format!("no SBOM was written: {e}") });
                Ok(())
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}
