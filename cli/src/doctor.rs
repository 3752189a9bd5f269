//! `targets` and `doctor`: what can be built here, and what is missing, before a build.

use crate::args::Global;
use crate::out::{self, Fatal};
use crate::packages;
use crate::project::{self, Environment};
use roadie_model::definition::{Build, Service, ToolchainKind};
use roadie_model::outcome::Outcome;
use roadie_model::target::TargetTriple;
use roadie_packager::{Missing, Packager, Toolchain};

/// `roadie targets`.
pub fn targets(global: &Global) -> Result<u8, Fatal> {
    let packager = packages::packager(&Environment::read()?)?;
    let here = std::env::current_dir().map_err(|e| Fatal::failed("cannot read the current folder").cause(e.to_string()))?;
    let mut rows = Vec::new();
    for info in packager.targets().all() {
        let Ok(target) = TargetTriple::new(&info.triple) else { continue };
        let found = packager.toolchain(&here, &target, ToolchainKind::Auto);
        if global.json {
            out::line(&json(None, &target, &found).to_string());
            continue;
        }
        rows.push(match found {
            Ok(toolchain) => vec![info.triple.clone(), "yes".into(), by(&toolchain), toolchain.reason],
            Err(missing) => vec![info.triple.clone(), "no".into(), missing.cause, missing.fix],
        });
    }
    if !global.json {
        out::table(&["TARGET", "HERE", "BY, OR WHAT IS MISSING", "WHY, OR WHAT TO DO"], rows);
    }
    Ok(0)
}

/// The kind's word and its tools.
fn by(toolchain: &Toolchain) -> String {
    let tools: Vec<String> = toolchain.tools.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!("{} ({})", word(toolchain.kind), tools.join(", "))
}

fn word(kind: ToolchainKind) -> String {
    serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn json(service: Option<&Service>, target: &TargetTriple, found: &Result<Toolchain, Missing>) -> serde_json::Value {
    let service = service.map(|s| s.name.to_string());
    match found {
        Ok(t) => serde_json::json!({
            "service": service, "target": target, "ok": true, "toolchain": word(t.kind), "reason": t.reason, "tools": t.tools,
        }),
        Err(m) => serde_json::json!({"service": service, "target": target, "ok": false, "cause": m.cause, "fix": m.fix}),
    }
}

/// `roadie doctor`.
pub fn doctor(global: &Global, named: &[String]) -> Result<u8, Fatal> {
    let definition = project::load(global)?;
    let packager = packages::packager(&Environment::read()?)?;
    let mut bad = 0;
    for name in project::services(&definition, global, named)? {
        let service = &definition.services[name];
        for (target, found) in checks(&packager, &definition.dir, service) {
            bad += u32::from(found.is_err());
            if global.json {
                out::line(&json(Some(service), &target, &found).to_string());
                continue;
            }
            match found {
                Ok(toolchain) => out::line(&format!("ok {name} for {target}: {}, because {}", by(&toolchain), toolchain.reason)),
                Err(missing) => {
                    out::line(&format!("{} {name} for {target}: {}", out::red("bad"), missing.cause));
                    out::line(&format!("    fix: {}", missing.fix));
                }
            }
        }
    }
    match bad {
        0 => Ok(0),
        count => Err(Fatal { outcome: Outcome::Refused, ..Fatal::failed(format!("{count} builds cannot be done here")) }),
    }
}

fn checks(packager: &Packager, dir: &std::path::Path, service: &Service) -> Vec<(TargetTriple, Result<Toolchain, Missing>)> {
    let Build::Cargo(options) = &service.build else { return Vec::new() };
    let dir = dir.join(&options.manifest_dir);
    let targets = if options.targets.is_empty() { packager.host(&dir).into_iter().collect() } else { options.targets.clone() };
    let check = |target: TargetTriple| {
        let found = packager.toolchain(&dir, &target, options.toolchain_for(&target));
        (target, found)
    };
    targets.into_iter().map(check).collect()
}
