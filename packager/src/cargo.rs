//! Asking cargo: always, and only through its JSON messages.

use crate::members::Binary;
use crate::targets::target_info;
use crate::{BuildEnv, PackError, PackEvent, Report};
use cargo_metadata::{Message, Metadata, MetadataCommand, Package, TargetKind};
use roadie_model::definition::{CargoBuild, Definition, Service};
use roadie_model::sh;
use roadie_model::target::TargetTriple;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// Lines of output kept for the error.
const LAST_LINES: usize = 40;

/// This machine's own triple, as its rustc says.
pub async fn host_target() -> Result<TargetTriple, PackError> {
    let output = Command::new("rustc").arg("-vV").output().await.map_err(|source| tool("rustc", source))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|l| l.strip_prefix("host: ")).and_then(|host| TargetTriple::new(host).ok());
    host.ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let problem = format!("`rustc -vV` does not tell this machine's target triple: {said}");
        PackError::Choice { problem, hint: "mend the Rust installation, or set `target` under `build:`".into() }
    })
}

fn tool(tool: &str, source: std::io::Error) -> PackError {
    PackError::Tool { tool: tool.to_owned(), source }
}

/// Builds one binary for one target.
pub async fn build(
    definition: &Definition,
    service: &Service,
    options: &CargoBuild,
    target: &TargetTriple,
    env: &BuildEnv,
    report: Report<'_>,
) -> Result<Binary, PackError> {
    let dir = definition.dir.join(&options.manifest_dir);
    let metadata = metadata(dir.clone()).await?;
    let (package, bin) = choose(&metadata, service, options)?;
    let version = package.version.to_string();
    let zig = target.glibc_floor().is_some();
    let args = arguments(options, target, &package.name, &bin, zig);
    let mut command = Command::new("cargo");
    command.args(&args).current_dir(&dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    remap(&mut command, &metadata, target, env);
    let shown = format!("cargo {}", sh::join(&args));
    report(PackEvent::Building { command: shown.clone() });
    let (executable, output, good) = run(command, &package.name, &bin, report).await?;
    match executable {
        Some(path) if good => Ok(Binary { path, name: bin, version }),
        _ => {
            let hint = hint(&output, target, zig);
            Err(PackError::Build { command: shown, output, hint })
        }
    }
}

async fn metadata(dir: PathBuf) -> Result<Metadata, PackError> {
    let manifest = dir.join("Cargo.toml");
    if !manifest.is_file() {
        let reason = "there is no Cargo.toml".to_owned();
        return Err(PackError::File { key: "build.manifest_dir", path: dir, reason });
    }
    let work = move || MetadataCommand::new().current_dir(&dir).no_deps().exec();
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(metadata)) => Ok(metadata),
        Ok(Err(cargo_metadata::Error::Io(source))) => Err(tool("cargo", source)),
        Ok(Err(error)) => {
            let output = error.to_string().lines().map(str::to_owned).collect();
            Err(PackError::Build { command: "cargo metadata".into(), output, hint: None })
        }
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn bins(package: &Package) -> Vec<&str> {
    let is_bin = |t: &&cargo_metadata::Target| t.kind.contains(&TargetKind::Bin);
    package.targets.iter().filter(is_bin).map(|t| t.name.as_str()).collect()
}

/// Package and binary, as the definition's reference says.
fn choose<'a>(metadata: &'a Metadata, service: &Service, options: &CargoBuild) -> Result<(&'a Package, String), PackError> {
    let packages = metadata.workspace_packages();
    let with_bins: Vec<&&Package> = packages.iter().filter(|p| !bins(p).is_empty()).collect();
    let names = || with_bins.iter().map(|p| p.name.to_string()).collect::<Vec<_>>().join(", ");
    let by_name = |name: &str| packages.iter().find(|p| p.name.as_str() == name).copied();
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
    let bins = bins(package);
    let wanted = options.bin.as_deref();
    let bin = match (wanted, bins.as_slice()) {
        (Some(name), _) => bins.iter().find(|b| **b == name),
        (None, [one]) => Some(one),
        (None, _) => {
            bins.iter().find(|b| **b == service.name.as_str()).or_else(|| bins.iter().find(|b| **b == package.name.as_str()))
        }
    };
    let bin = bin.ok_or_else(|| PackError::Choice {
        problem: match wanted {
            Some(name) => format!("package `{}` has no binary `{name}`", package.name),
            None => format!("package `{}` has several binaries", package.name),
        },
        hint: format!("set `build.bin` to one of: {}", bins.join(", ")),
    })?;
    Ok((package, (*bin).to_owned()))
}

fn arguments(options: &CargoBuild, target: &TargetTriple, package: &str, bin: &str, zig: bool) -> Vec<String> {
    let mut args: Vec<String> = vec![if zig { "zigbuild" } else { "build" }.into()];
    args.push("--message-format=json-render-diagnostics".into());
    let named = target.to_string();
    let pairs = [("--package", package), ("--bin", bin), ("--profile", &options.profile), ("--target", &named)];
    args.extend(pairs.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]));
    if !options.features.is_empty() {
        args.extend(["--features".to_owned(), options.features.join(",")]);
    }
    if !options.default_features {
        args.push("--no-default-features".into());
    }
    if options.locked {
        args.push("--locked".into());
    }
    args
}

/// Takes this machine's paths out of the binary, so that it does not depend on where it was built. The user's own flags stay:
/// cargo's environment variables replace what config files say, so flags are added where the user's already are.
fn remap(command: &mut Command, metadata: &Metadata, target: &TargetTriple, env: &BuildEnv) {
    let cargo_home = env.cargo_home.display();
    let flags = [
        format!("--remap-path-prefix={cargo_home}/registry/src=/cargo/registry"),
        format!("--remap-path-prefix={cargo_home}/git/checkouts=/cargo/git"),
        format!("--remap-path-prefix={}=/workspace", metadata.workspace_root),
        format!("--remap-path-prefix={}=/build", metadata.target_directory),
    ];
    if let Some(encoded) = &env.encoded_rustflags {
        command.env("CARGO_ENCODED_RUSTFLAGS", format!("{encoded}\u{1f}{}", flags.join("\u{1f}")));
    } else if let Some(plain) = &env.rustflags {
        let mut all: Vec<&str> = plain.split_whitespace().collect();
        all.extend(flags.iter().map(String::as_str));
        command.env("CARGO_ENCODED_RUSTFLAGS", all.join("\u{1f}")).env_remove("RUSTFLAGS");
    } else {
        let list = toml::Value::from(flags.to_vec());
        command.arg("--config").arg(format!("target.{}.rustflags={list}", target.triple()));
    }
}

async fn run(
    mut command: Command,
    package: &str,
    bin: &str,
    report: Report<'_>,
) -> Result<(Option<PathBuf>, Vec<String>, bool), PackError> {
    let mut child = command.spawn().map_err(|source| tool("cargo", source))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(tool("cargo", std::io::Error::other("no pipes")));
    };
    let messages = async {
        let mut lines = BufReader::new(stdout).lines();
        let mut executable = None;
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(path) = artifact(&line, package, bin) {
                executable = Some(path);
            }
        }
        executable
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
    let (executable, last) = tokio::join!(messages, said);
    let status = child.wait().await.map_err(|source| tool("cargo", source))?;
    Ok((executable, last, status.success()))
}

/// The executable, if this message is of the binary that was asked for.
fn artifact(line: &str, package: &str, bin: &str) -> Option<PathBuf> {
    let Ok(Message::CompilerArtifact(artifact)) = serde_json::from_str::<Message>(line) else { return None };
    let is_bin = artifact.target.kind.contains(&TargetKind::Bin) && artifact.target.name == bin;
    let of_package = artifact.manifest_path.parent().is_some() && artifact.package_id.repr.contains(package);
    (is_bin && of_package).then_some(artifact.executable?.into_std_path_buf())
}

fn hint(output: &[String], target: &TargetTriple, zig: bool) -> Option<String> {
    let text = output.join("\n");
    if zig && text.contains("no such command") {
        return Some("a glibc floor needs `cargo install cargo-zigbuild` and `pip install ziglang`".into());
    }
    if text.contains("can't find crate for `std`") || text.contains("can't find crate for `core`") {
        return Some(format!("install the target: rustup target add {}", target.triple()));
    }
    let linker = text.contains("linking with") || text.contains("linker `");
    let debian = target_info(target).map(|t| t.debian);
    match debian {
        Some(packages) if linker => Some(format!("a linker for {target} may be missing: apt install {packages}")),
        _ => None,
    }
}
