//! Asking cargo: always, and only through its JSON messages.

mod guard;
mod workspace;

use crate::members::Binary;
use crate::memo::Memo;
use crate::targets::Targets;
use crate::toolchain::{self, Machine, Toolchain};
use crate::{BuildEnv, PackError, PackEvent, Report};
use cargo_metadata::{Message, TargetKind};
use guard::Guard;
use roadie_model::definition::{CargoBuild, Definition, Service};
use roadie_model::sh;
use roadie_model::target::TargetTriple;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::RwLock;
use workspace::{Package, Workspace};

/// Lines of output kept for the error.
const LAST_LINES: usize = 60;
/// What builds see as the time of the source, unless the user's environment says another: packages must not depend on the clock.
const SOURCE_DATE_EPOCH: &str = "1153704088";

fn tool(tool: &str, source: std::io::Error) -> PackError {
    PackError::Tool { tool: tool.to_owned(), source }
}

/// The folder of the workspace that `dir` belongs to.
pub async fn workspace_root(dir: &std::path::Path, env: &BuildEnv, memo: &Memo) -> Result<PathBuf, PackError> {
    Ok(workspace::read(dir, env, memo).await?.root)
}

/// What a build has at hand.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    pub env: &'a BuildEnv,
    pub targets: &'a Targets,
    pub machine: &'a Machine,
    pub memo: &'a Memo,
    /// Held by builds; alone by what takes away what was built.
    pub builds: &'a RwLock<()>,
}

/// Builds the binaries of a service for one target, the main one first.
pub async fn build(
    bench: Bench<'_>,
    definition: &Definition,
    service: &Service,
    options: &CargoBuild,
    target: &TargetTriple,
    report: Report<'_>,
) -> Result<Vec<Binary>, PackError> {
    let dir = definition.dir.join(&options.manifest_dir);
    let workspace = workspace::read(&dir, bench.env, bench.memo).await?;
    let (package, bins) = choose(&workspace, service, options)?;
    let wanted = options.toolchain_for(target);
    let toolchain = toolchain::choose(bench.machine, bench.targets, &dir, target, wanted)
        .map_err(|missing| PackError::Toolchain { target: target.clone(), missing })?;
    report(PackEvent::Chosen { toolchain: toolchain.kind, reason: toolchain.reason.clone() });
    let flags = bench.env.rustflags().unwrap_or_default();
    if toolchain::cpu_of_this_machine(flags.iter().map(String::as_str)) {
        let problem = "RUSTFLAGS ask for `target-cpu=native`: the binary would run on this processor only".to_owned();
        return Err(PackError::Choice { problem, hint: "take it out of RUSTFLAGS, or name a processor level".into() });
    }
    let target_dir = toolchain::target_dir(&workspace.target_directory, &toolchain);
    let job = Job { bench, workspace: &workspace, package, bins: &bins, options, target, toolchain: &toolchain, target_dir, dir };
    job.run(report).await
}

/// What a call of cargo came to.
struct Built {
    /// By name.
    executables: BTreeMap<String, PathBuf>,
    /// Its last lines.
    output: Vec<String>,
    /// Not everything was fresh.
    compiled: bool,
    good: bool,
}

/// One call of cargo.
struct Job<'a> {
    bench: Bench<'a>,
    workspace: &'a Workspace,
    package: &'a Package,
    bins: &'a [String],
    options: &'a CargoBuild,
    target: &'a TargetTriple,
    toolchain: &'a Toolchain,
    target_dir: PathBuf,
    dir: PathBuf,
}

impl Job<'_> {
    async fn run(&self, report: Report<'_>) -> Result<Vec<Binary>, PackError> {
        let args = self.arguments();
        let shared = format!("{} {} {}", self.target_dir.display(), self.options.profile, self.target.triple());
        let mut building = self.bench.builds.read().await;
        let mut guard = Guard::before_build(self.bench.memo, &shared);
        if !guard.unseen().is_empty() {
            drop(building);
            // Nobody builds while something is taken away; and whoever came before may have done it.
            let alone = self.bench.builds.write().await;
            guard = Guard::before_build(self.bench.memo, &shared);
            for (package, file) in guard.unseen() {
                let text = format!("{} changed and its time did not: `{package}` is built again", file.display());
                report(PackEvent::Warning { text });
                self.clean(&package).await?;
            }
            building = alone.downgrade();
        }
        guard.remember();
        let mut command = self.command();
        command.args(&args);
        self.flags(&mut command);
        let shown = format!("{} {}", self.toolchain.program.0, sh::join(&args));
        report(PackEvent::Building { command: shown.clone() });
        let Built { mut executables, output, compiled, good } = self.follow(command, report).await?;
        let found: Option<Vec<(String, PathBuf)>> =
            self.bins.iter().map(|bin| Some((bin.clone(), executables.remove(bin)?))).collect();
        let Some(found) = found.filter(|_| good) else {
            let hint = toolchain::advise(&output, self.target, self.bench.targets);
            return Err(PackError::Build { command: shown, output, hint });
        };
        let paths: Vec<PathBuf> = found.iter().map(|(_, path)| path.clone()).collect();
        guard.after_build(&paths, compiled);
        drop(building);
        let version = &self.package.version;
        Ok(found.into_iter().map(|(name, path)| Binary { path, name, version: version.clone() }).collect())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.toolchain.program.0);
        command.current_dir(&self.dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.envs(self.bench.env.given()).envs(&self.toolchain.env);
        if self.bench.env.var("SOURCE_DATE_EPOCH").is_none() {
            command.env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH);
        }
        command
    }

    fn arguments(&self) -> Vec<String> {
        let mut args: Vec<String> = vec![self.toolchain.program.1.clone(), "--message-format=json-render-diagnostics".into()];
        // Only zig knows what a glibc floor behind the triple is.
        let named = if self.target.glibc_floor().is_some() { self.target.to_string() } else { self.target.triple().to_owned() };
        let folder = self.target_dir.display().to_string();
        let pairs = [
            ("--package", self.package.name.as_str()),
            ("--profile", &self.options.profile),
            ("--target", &named),
            ("--target-dir", &folder),
        ];
        args.extend(pairs.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]));
        args.extend(self.bins.iter().flat_map(|bin| ["--bin".to_owned(), bin.clone()]));
        if !self.options.features.is_empty() {
            args.extend(["--features".to_owned(), self.options.features.join(",")]);
        }
        if !self.options.default_features {
            args.push("--no-default-features".into());
        }
        if self.options.locked {
            args.push("--locked".into());
        }
        args.extend(self.toolchain.args.iter().cloned());
        args
    }

    async fn clean(&self, package: &str) -> Result<(), PackError> {
        let mut command = Command::new("cargo");
        command.envs(self.bench.env.given());
        command.current_dir(&self.dir).stdin(Stdio::null()).args(["clean", "--quiet", "--package", package]);
        command
            .args(["--profile", &self.options.profile, "--target", self.target.triple(), "--target-dir"])
            .arg(&self.target_dir);
        let output = command.output().await.map_err(|source| tool("cargo", source))?;
        // One that left the workspace is in no binary of it.
        let left = String::from_utf8_lossy(&output.stderr).contains("did not match any packages");
        if output.status.success() || left {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
        Err(PackError::Build { command: format!("cargo clean --package {package}"), output, hint: None })
    }

    /// Takes this machine's paths out of the binary, so that it does not depend on where it was built. The user's own flags
    /// stay: cargo's environment variables replace what config files say, so flags are added where the user's already are.
    fn flags(&self, command: &mut Command) {
        let env = self.bench.env;
        let home = env.cargo_home();
        // The last that fits wins: the general ones come first.
        let mut moved = vec![
            (self.workspace.root.clone(), "/workspace"),
            (self.workspace.target_directory.clone(), "/build"),
            (home.join("registry/src"), "/cargo/registry"),
            (home.join("git/checkouts"), "/cargo/git"),
        ];
        let rustc = self.bench.machine.rustcs(&self.dir);
        let own = self.toolchain.env.get("RUSTC");
        let used = rustc.iter().find(|r| own.is_some_and(|path| r.path.as_os_str() == path.as_str())).or(rustc.first());
        moved.extend(used.map(|r| (r.sysroot.join("lib/rustlib/src/rust"), "/rustc/source")));
        let mut flags: Vec<String> =
            moved.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect();
        flags.extend(self.toolchain.rustflags.iter().cloned());
        if let Some(theirs) = env.rustflags() {
            let all: Vec<String> = theirs.into_iter().chain(flags).collect();
            command.env("CARGO_ENCODED_RUSTFLAGS", all.join("\u{1f}")).env_remove("RUSTFLAGS");
        } else {
            let list = toml::Value::from(flags);
            command.arg("--config").arg(format!("target.{}.rustflags={list}", self.target.triple()));
        }
        let map = |(from, to): &(PathBuf, &str)| format!("-ffile-prefix-map={}={to}", from.display());
        let mut c_flags: Vec<String> = moved.iter().map(map).collect();
        if c_flags.iter().any(|flag| flag.contains(char::is_whitespace)) {
            // The `cc` crate splits flags at blanks unless it is told that they are quoted.
            command.env("CC_SHELL_ESCAPED_FLAGS", "1");
            c_flags = c_flags.iter().map(|flag| sh::quote(flag)).collect();
        }
        for language in ["CFLAGS", "CXXFLAGS"] {
            let under = self.target.triple().replace('-', "_");
            let own = format!("{language}_{under}");
            // The most particular one is all that the `cc` crate reads.
            let names =
                [format!("{language}_{}", self.target.triple()), own.clone(), format!("TARGET_{language}"), language.into()];
            let theirs = names.iter().find_map(|name| env.var(name)).unwrap_or_default();
            command.env(&own, format!("{theirs} {}", c_flags.join(" ")).trim());
        }
    }

    async fn follow(&self, mut command: Command, report: Report<'_>) -> Result<Built, PackError> {
        let program = &self.toolchain.program.0;
        let mut child = command.spawn().map_err(|source| tool(program, source))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(tool(program, std::io::Error::other("no pipes")));
        };
        let messages = async {
            let mut lines = BufReader::new(stdout).lines();
            let (mut executables, mut compiled) = (BTreeMap::new(), false);
            while let Ok(Some(line)) = lines.next_line().await {
                compiled |= line.contains("\"fresh\":false");
                executables.extend(self.artifact(&line));
            }
            (executables, compiled)
        };
        let said = async {
            let mut lines = BufReader::new(stderr).lines();
            let mut last: Vec<String> = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                report(PackEvent::BuildOutput { line: line.clone() });
                if last.len() >= LAST_LINES {
                    last.remove(0);
                }
                last.push(line);
            }
            last
        };
        let ((executables, compiled), output) = tokio::join!(messages, said);
        let status = child.wait().await.map_err(|source| tool(program, source))?;
        Ok(Built { executables, output, compiled, good: status.success() })
    }

    /// Name and executable, if this message is of a binary that was asked for.
    fn artifact(&self, line: &str) -> Option<(String, PathBuf)> {
        // Most messages are of libraries: those need no reading.
        if !line.contains("\"executable\":\"") {
            return None;
        }
        let Ok(Message::CompilerArtifact(artifact)) = serde_json::from_str::<Message>(line) else { return None };
        let is_bin = artifact.target.kind.contains(&TargetKind::Bin) && self.bins.contains(&artifact.target.name);
        let ours = artifact.manifest_path.as_std_path() == self.package.manifest;
        // cross sees the same file under another path.
        let ours = ours || self.toolchain.program.0 == "cross";
        (is_bin && ours).then_some((artifact.target.name, artifact.executable?.into_std_path_buf()))
    }
}

/// Package and binaries, as the definition's reference says.
fn choose<'a>(
    workspace: &'a Workspace,
    service: &Service,
    options: &CargoBuild,
) -> Result<(&'a Package, Vec<String>), PackError> {
    let packages = &workspace.packages;
    let with_bins: Vec<&Package> = packages.iter().filter(|p| !p.bins.is_empty()).collect();
    let names = || with_bins.iter().map(|p| p.name.clone()).collect::<Vec<_>>().join(", ");
    let by_name = |name: &str| packages.iter().find(|p| p.name == name);
    let package = match (&options.package, with_bins.as_slice()) {
        (Some(name), _) => by_name(name).ok_or_else(|| PackError::Choice {
            problem: format!("the workspace has no package `{name}`"),
            hint: format!("set `build.package` to one of: {}", names()),
        })?,
        (None, []) => {
            let hint = "add a binary, or set `build.manifest_dir`".to_owned();
            return Err(PackError::Choice { problem: "no package here has a binary".into(), hint });
        }
        (None, [one]) => one,
        (None, _) => by_name(service.name.as_str()).ok_or_else(|| PackError::Choice {
            problem: format!("several packages have a binary, and none is called `{}`", service.name),
            hint: format!("set `build.package` to one of: {}", names()),
        })?,
    };
    let hint = || format!("set `build.bin` to one of: {}", package.bins.join(", "));
    if let Some(wrong) = options.bins.iter().find(|b| !package.bins.contains(b)) {
        let problem = format!("package `{}` has no binary `{wrong}`", package.name);
        return Err(PackError::Choice { problem, hint: hint() });
    }
    if !options.bins.is_empty() {
        return Ok((package, options.bins.clone()));
    }
    let named = |name: &str| package.bins.iter().find(|b| b.as_str() == name);
    let bin = match package.bins.as_slice() {
        [one] => Some(one),
        _ => named(service.name.as_str()).or_else(|| named(&package.name)),
    };
    let bin = bin
        .ok_or_else(|| PackError::Choice { problem: format!("package `{}` has several binaries", package.name), hint: hint() })?;
    Ok((package, vec![bin.clone()]))
}
