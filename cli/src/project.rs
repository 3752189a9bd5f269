//! From the command line to what it talks about: the definition, the chosen services and hosts.

use crate::args::Global;
use crate::out::{self, Fatal};
use globset::{Glob, GlobMatcher};
use roadie_model::definition::{Definition, Host, RuntimeKind, Service};
use roadie_model::id::ServiceName;
use roadie_model::parse::{Diagnostic, Inputs, SourceFile, parse};
use std::path::{Path, PathBuf};

/// The name looked for.
pub const FILE_NAME: &str = "roadie.yaml";

/// What the environment says, read once.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Home folder.
    pub home: PathBuf,
    /// User name.
    pub user: String,
    /// Cache folder of roadie.
    pub cache: PathBuf,
    /// Package store.
    pub store: PathBuf,
    /// Agent socket.
    pub agent: Option<PathBuf>,
    /// Whose signatures of packages count.
    pub allowed_signers: Option<PathBuf>,
    /// Whose do not any more.
    pub revoked_signers: Option<PathBuf>,
}

impl Environment {
    /// Reads it.
    pub fn read() -> Result<Self, Fatal> {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = var("HOME").ok_or_else(|| Fatal::usage("HOME is not set").hint("set HOME to your home folder"))?;
        let cache = var("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("roadie");
        let user = ["USER", "LOGNAME"].iter().find_map(|n| std::env::var(n).ok()).unwrap_or_else(|| "root".into());
        Ok(Self {
            store: var("ROADIE_STORE").unwrap_or_else(|| cache.join("packages")),
            agent: var("SSH_AUTH_SOCK"),
            allowed_signers: var("ROADIE_ALLOWED_SIGNERS"),
            revoked_signers: var("ROADIE_REVOKED_SIGNERS"),
            home,
            user,
            cache,
        })
    }

    /// What decides how cargo builds.
    pub fn build_env(&self) -> roadie_packager::BuildEnv {
        let vars = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let config = std::env::var_os("XDG_CONFIG_HOME").map_or_else(|| self.home.join(".config"), PathBuf::from);
        roadie_packager::BuildEnv {
            vars: vars.collect(),
            targets: Some(std::env::var_os("ROADIE_TARGETS").map_or_else(|| config.join("roadie/targets"), PathBuf::from)),
            threads: std::env::var("ROADIE_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(0),
            ..roadie_packager::BuildEnv::default()
        }
    }

    /// `user@machine`, for lock holders.
    pub fn identity(&self) -> String {
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let text = format!("{}@{}", self.user, machine.trim());
        // It ends up in a JSON line that a shell writes.
        text.chars().filter(|c| c.is_ascii_alphanumeric() || "@._-".contains(*c)).collect()
    }
}

/// Reads the definition file and its overlay.
pub fn load(global: &Global) -> Result<Definition, Fatal> {
    let path = match &global.file {
        Some(path) => path.clone(),
        None => find_upwards()?,
    };
    let base = read(&path)?;
    let overlay = match &global.env {
        Some(env) => Some(read(&overlay_path(&path, env)?)?),
        None => None,
    };
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let env = |name: &str| std::env::var(name).ok();
    parse(&Inputs { base: &base, overlay: overlay.as_ref(), env: &env, dir }).map_err(|found| report(&found, global.json))
}

fn overlay_path(path: &Path, env: &str) -> Result<PathBuf, Fatal> {
    if env.is_empty() || !env.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        return Err(Fatal::usage(format!("`{env}` is not an environment name")).hint("letters, digits, - and _"));
    }
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(path.with_file_name(format!("{stem}.{env}.yaml")))
}

fn find_upwards() -> Result<PathBuf, Fatal> {
    let here = std::env::current_dir().map_err(|e| Fatal::usage(format!("cannot tell the current folder: {e}")))?;
    let found = here.ancestors().map(|folder| folder.join(FILE_NAME)).find(|path| path.is_file());
    found.ok_or_else(|| {
        Fatal::usage(format!("no {FILE_NAME} here or in a folder above"))
            .hint("write one with `roadie init`, or name it with --file; `roadie demo` needs none")
    })
}

fn read(path: &Path) -> Result<SourceFile, Fatal> {
    let bytes =
        std::fs::read(path).map_err(|e| Fatal::usage(format!("cannot read `{}`", path.display())).cause(e.to_string()))?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match String::from_utf8(bytes) {
        Ok(text) => Ok(SourceFile { name, text }),
        Err(_) => Err(Fatal::usage(format!("`{}` is not UTF-8 text", path.display()))),
    }
}

/// Says every mistake; what is left to say is how many.
fn report(found: &[Diagnostic], json: bool) -> Fatal {
    for diagnostic in found {
        if json {
            let mut object = serde_json::to_value(diagnostic).unwrap_or_default();
            object["event"] = "diagnostic".into();
            out::line(&object.to_string());
            continue;
        }
        out::note(&format!("{} {diagnostic}", out::red("error:")));
        if let Some(hint) = &diagnostic.hint {
            out::note(&format!("hint: {hint}"));
        }
    }
    let plural = if found.len() == 1 { "mistake" } else { "mistakes" };
    Fatal::usage(format!("{} {plural} in the definition", found.len()))
}

fn matcher(pattern: &str) -> Result<GlobMatcher, Fatal> {
    Ok(Glob::new(pattern)
        .map_err(|e| Fatal::usage(format!("`{pattern}` is not a pattern")).cause(e.to_string()))?
        .compile_matcher())
}

/// The services that names and `--service` choose, all without either.
pub fn services<'a>(definition: &'a Definition, global: &Global, named: &[String]) -> Result<Vec<&'a ServiceName>, Fatal> {
    let patterns: Vec<&String> = global.services.iter().chain(named).collect();
    let mut chosen: Vec<&ServiceName> = Vec::new();
    for pattern in &patterns {
        let matcher = matcher(pattern)?;
        let found: Vec<&ServiceName> = definition.services.keys().filter(|n| matcher.is_match(n.as_str())).collect();
        if found.is_empty() {
            let all: Vec<&str> = definition.services.keys().map(ServiceName::as_str).collect();
            return Err(Fatal::usage(format!("no service matches `{pattern}`")).hint(format!("there are: {}", all.join(", "))));
        }
        chosen.extend(found);
    }
    if patterns.is_empty() {
        chosen = definition.services.keys().collect();
    }
    chosen.sort();
    chosen.dedup();
    Ok(chosen)
}

/// The hosts of each chosen service that `--host` chooses; services without any are left out.
pub fn targets(definition: &Definition, global: &Global, named: &[String]) -> Result<Vec<(Service, Vec<Host>)>, Fatal> {
    let chosen = services(definition, global, named)?;
    for pattern in &global.hosts {
        let all: Vec<&Host> = chosen.iter().flat_map(|n| &definition.services[*n].hosts).collect();
        let mut matched = false;
        for host in &all {
            matched |= host_matches(host, pattern)?;
        }
        if !matched {
            let mut names: Vec<&str> = all.iter().map(|h| h.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            return Err(Fatal::usage(format!("no host matches `{pattern}`")).hint(format!("there are: {}", names.join(", "))));
        }
    }
    let mut result = Vec::new();
    for name in chosen {
        let service = &definition.services[name];
        if service.runtime == RuntimeKind::Docker {
            return Err(Fatal::usage(format!("service `{name}`: `runtime: docker` is not deployed by this version yet"))
                .hint("set `runtime: remote` or `local`, or choose other services"));
        }
        let mut hosts = Vec::new();
        for host in &service.hosts {
            let mut wanted = global.hosts.is_empty();
            for pattern in &global.hosts {
                wanted |= host_matches(host, pattern)?;
            }
            if wanted {
                hosts.push(host.clone());
            }
        }
        if !hosts.is_empty() {
            result.push((service.clone(), hosts));
        }
    }
    Ok(result)
}

fn host_matches(host: &Host, pattern: &str) -> Result<bool, Fatal> {
    match pattern.strip_prefix("tag:") {
        Some(tag) => {
            let matcher = matcher(tag)?;
            Ok(host.tags.iter().any(|t| matcher.is_match(t)))
        }
        None => Ok(matcher(pattern)?.is_match(host.name.as_str())),
    }
}
