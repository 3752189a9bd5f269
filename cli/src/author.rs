//! `init` and `check`: for those who write the definition.

use crate::args::Global;
use crate::out::{self, Fatal};
use crate::project::{self, FILE_NAME};
use roadie_model::definition::{Definition, Service};
use roadie_model::id::ServiceName;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// `roadie check`.
pub fn check(global: &Global) -> Result<u8, Fatal> {
    let definition = project::load(global)?;
    let missing: Vec<String> = definition.services.values().flat_map(|s| missing_files(&definition, s)).collect();
    if let Some((last, others)) = missing.split_last() {
        others.iter().for_each(|m| out::note(&format!("{} {m}", out::red("error:"))));
        return Err(Fatal::usage(last.clone()).hint("paths are relative to the definition's folder"));
    }
    let hosts: BTreeSet<&str> = definition.services.values().flat_map(|s| s.hosts.iter().map(|h| h.name.as_str())).collect();
    let (services, hosts) = (definition.services.len(), hosts.len());
    if global.json {
        out::line(&serde_json::json!({"event": "checked", "services": services, "hosts": hosts}).to_string());
    } else {
        out::line(&format!("ok: {services} service(s), {hosts} host(s)"));
    }
    Ok(0)
}

/// Files that the definition names and that are not there. A prebuilt binary may come later.
fn missing_files(definition: &Definition, service: &Service) -> Vec<String> {
    let mut named: Vec<(&str, &PathBuf)> = Vec::new();
    named.extend(service.config.iter().map(|p| ("config", p)));
    named.extend(service.deploy.setup.iter().map(|p| ("deploy.setup", p)));
    named.extend(service.deploy.unit.iter().map(|p| ("deploy.unit", p)));
    named.extend(service.files.iter().map(|f| ("files.from", &f.from)));
    let absent = named.into_iter().filter(|(_, path)| !definition.dir.join(path).exists());
    absent
        .map(|(key, path)| format!("service `{}`: `{key}` names `{}`, which is not there", service.name, path.display()))
        .collect()
}

/// `roadie init`.
pub fn init(global: &Global) -> Result<u8, Fatal> {
    let path = global.file.clone().unwrap_or_else(|| PathBuf::from(FILE_NAME));
    if path.exists() && !global.yes {
        return Err(Fatal::usage(format!("`{}` is there already", path.display())).hint("--yes writes over it"));
    }
    let services = cargo_services(Path::new("."))?;
    let text = definition_text(&services);
    std::fs::write(&path, text).map_err(|e| Fatal::failed(format!("cannot write `{}`", path.display())).cause(e.to_string()))?;
    out::line(&format!("wrote {} with {} service(s); next: roadie check, roadie deploy", path.display(), services.len()));
    Ok(0)
}

/// A binary of the workspace that could be a service.
struct Candidate {
    service: String,
    package: String,
    bin: String,
}

fn cargo_services(dir: &Path) -> Result<Vec<Candidate>, Fatal> {
    let output = std::process::Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(dir)
        .output()
        .map_err(|e| {
            Fatal::failed("cannot run `cargo`").cause(e.to_string()).hint("install Rust, or write roadie.yaml by hand")
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Fatal::usage("there is no cargo workspace here").cause(said).hint("run it in the folder with Cargo.toml"));
    }
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|e| Fatal::failed("cannot read what cargo says").cause(e.to_string()))?;
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_bin = target["kind"].as_array().into_iter().flatten().any(|k| k == "bin");
            let (Some(bin), Some(name)) = (target["name"].as_str(), package["name"].as_str()) else { continue };
            let service = bin.to_ascii_lowercase().replace('_', "-");
            if is_bin && ServiceName::new(service.clone()).is_ok() {
                found.push(Candidate { service, package: name.to_owned(), bin: bin.to_owned() });
            }
        }
    }
    if found.is_empty() {
        return Err(Fatal::usage("no package here has a binary").hint("a service needs one"));
    }
    Ok(found)
}

fn definition_text(services: &[Candidate]) -> String {
    let mut text = String::from(
        "# What roadie deploys. Check it with `roadie check`, see what would happen with `roadie plan`.\n\
         # defaults: {user: deploy, ssh_key: ~/.ssh/id_ed25519}\n\
         # hosts:\n\
         #   edge-1: {address: 10.0.0.11, tags: [edge]}\n\
         services:\n",
    );
    for s in services {
        text.push_str(&format!(
            "  {}:\n    \
               runtime: local            # remote: on the hosts below, over ssh\n    \
               # hosts: [edge-1]         # names, tag:edge, or {{address: ...}}\n    \
               build: {{type: cargo, package: {}, bin: {}}}\n    \
               # config: config/{}.toml.hbs   # rendered on deploy with vars, env and facts\n    \
               # vars: {{listen: 8080}}\n    \
               deploy:\n      \
                 args: []              # for example [\"--config\", \"{{{{config_path}}}}\"]\n      \
                 env: {{RUST_LOG: info}}\n      \
                 # health: {{http: \"http://127.0.0.1:8080/health\", timeout: 30s}}\n",
            s.service, s.package, s.bin, s.service
        ));
    }
    text
}
