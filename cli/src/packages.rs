//! `pack` and `packages`: what is built and what is stored.

use crate::args::{Global, PackagesVerb};
use crate::out::{self, Fatal};
use crate::project::{self, Environment};
use crate::report::Reporter;
use roadie_model::definition::{Definition, Service};
use roadie_model::outcome::Outcome;
use roadie_model::package::Package;
use roadie_model::target::TargetTriple;
use roadie_packager::{PackError, PackEvent, Packager, Store, StoreError, StoredPackage};

/// A packager over the user's store.
pub fn packager(environment: &Environment) -> Result<Packager, Fatal> {
    let store = Store::open(&environment.store).map_err(|e| store_error(&e))?;
    Ok(Packager::new(store, environment.build_env()))
}

/// The chain of a store's failure.
pub fn store_error(error: &StoreError) -> Fatal {
    let outcome = if matches!(error, StoreError::Damaged { .. }) { Outcome::Integrity } else { Outcome::FailedUnchanged };
    Fatal { outcome, causes: causes(error), hint: error.hint(), ..Fatal::failed(error.to_string()) }
}

fn causes(error: &dyn std::error::Error) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        found.push(cause.to_string());
        next = cause.source();
    }
    found
}

fn pack_error(service: &Service, target: &TargetTriple, error: &PackError) -> Fatal {
    let outcome = match error {
        PackError::Choice { .. } | PackError::File { .. } | PackError::Args { .. } | PackError::Unsupported { .. } => {
            Outcome::Usage
        }
        _ => Outcome::FailedUnchanged,
    };
    let message = format!("cannot pack `{}` for {target}: {error}", service.name);
    Fatal { outcome, causes: causes(error), hint: error.hint(), ..Fatal::failed(message) }
}

/// Packs one service for all its targets, or those of `only`.
pub async fn pack_service(
    packager: &Packager,
    definition: &Definition,
    service: &Service,
    only: &[TargetTriple],
    reporter: &Reporter,
) -> Result<Vec<(Package, bool)>, Fatal> {
    let unknown = TargetTriple::new("any-unknown-target").map_err(|e| Fatal::usage(e.to_string()))?;
    let targets = if only.is_empty() {
        packager.targets_for(service).await.map_err(|e| pack_error(service, &unknown, &e))?
    } else {
        only.to_vec()
    };
    let mut packages = Vec::new();
    for target in &targets {
        let (name, triple) = (service.name.to_string(), target.to_string());
        let tell = |event: PackEvent| reporter.packing(&name, &triple, &event);
        let packed = packager.pack(definition, service, target, &tell).await.map_err(|e| pack_error(service, target, &e))?;
        packages.push((packed.package, packed.fresh));
    }
    Ok(packages)
}

/// `roadie pack`.
pub async fn pack(global: &Global, named: &[String], targets: &[String]) -> Result<u8, Fatal> {
    let definition = project::load(global)?;
    let environment = Environment::read()?;
    let packager = packager(&environment)?;
    let reporter = Reporter::new(global.json);
    let only: Result<Vec<TargetTriple>, _> = targets.iter().map(|t| TargetTriple::new(t)).collect();
    let only = only.map_err(|e| Fatal::usage(e.to_string()))?;
    for name in project::services(&definition, global, named)? {
        let service = &definition.services[name];
        for (package, fresh) in pack_service(&packager, &definition, service, &only, &reporter).await? {
            if global.json {
                let object = serde_json::json!({"event": "packed", "service": name, "unchanged": fresh, "package": package});
                out::line(&object.to_string());
            } else {
                let kind = if fresh { "unchanged" } else { "packed" };
                out::line(&format!(
                    "{kind} {name} {} for {}: {}, {} bytes",
                    package.metadata.version,
                    package.metadata.target,
                    package.id.short(),
                    package.archive_bytes
                ));
            }
        }
    }
    Ok(0)
}

/// `roadie packages`.
pub fn packages(global: &Global, verb: &PackagesVerb) -> Result<u8, Fatal> {
    let environment = Environment::read()?;
    let store = Store::open(&environment.store).map_err(|e| store_error(&e))?;
    match verb {
        PackagesVerb::Ls => list(global, &store.list().map_err(|e| store_error(&e))?),
        PackagesVerb::Show { id } => show(global, &store.find(id).map_err(|e| store_error(&e))?),
        PackagesVerb::Verify { id } => verify(global, &store, id.as_deref()),
    }
}

fn list(global: &Global, stored: &[StoredPackage]) -> Result<u8, Fatal> {
    if global.json {
        stored.iter().for_each(|p| out::line(&serde_json::to_string(&p.package).unwrap_or_default()));
        return Ok(0);
    }
    let rows = stored.iter().map(|p| {
        let age = p.stored_at.elapsed().unwrap_or_default().as_secs();
        let m = &p.package.metadata;
        let size = p.package.archive_bytes.to_string();
        vec![p.package.id.short().to_owned(), m.name.to_string(), m.version.clone(), m.target.to_string(), size, ago(age)]
    });
    out::table(&["PACKAGE", "SERVICE", "VERSION", "TARGET", "BYTES", "AGE"], rows.collect());
    Ok(0)
}

/// A span of seconds as people say it.
pub fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn show(global: &Global, package: &Package) -> Result<u8, Fatal> {
    if global.json {
        out::line(&serde_json::to_string(package).unwrap_or_default());
        return Ok(0);
    }
    let m = &package.metadata;
    out::line(&format!("package   {}", package.id));
    out::line(&format!("service   {} {}", m.name, m.version));
    out::line(&format!("target    {}", m.target));
    out::line(&format!("archive   {} ({} bytes)", package.archive.display(), package.archive_bytes));
    let glibc = m.requires.glibc_min.as_ref().map(|v| format!(" {v} or newer")).unwrap_or_default();
    out::line(&format!("requires  {}{glibc} {}", m.requires.libc, m.requires.sonames.join(" ")));
    for file in &m.files {
        out::line(&format!("{} {:>10} {} {}", file.mode, file.size, &file.sha256[..12], file.path));
    }
    Ok(0)
}

fn verify(global: &Global, store: &Store, id: Option<&str>) -> Result<u8, Fatal> {
    let all = store.list().map_err(|e| store_error(&e))?;
    let ids: Vec<_> = match id {
        Some(prefix) => vec![store.find(prefix).map_err(|e| store_error(&e))?.id],
        None => all.into_iter().map(|p| p.package.id).collect(),
    };
    let mut damaged = 0;
    for id in &ids {
        let result = store.verify(id);
        damaged += u32::from(result.is_err());
        let (word, reason) = match &result {
            Ok(_) => ("ok", String::new()),
            Err(e) => ("damaged", e.to_string()),
        };
        if global.json {
            out::line(&serde_json::json!({"package": id, "ok": result.is_ok(), "reason": reason}).to_string());
        } else {
            out::line(format!("{word} {} {reason}", id.short()).trim_end());
        }
    }
    if damaged == 0 {
        return Ok(0);
    }
    Err(Fatal { outcome: Outcome::Integrity, ..Fatal::failed(format!("{damaged} of {} packages are damaged", ids.len())) }
        .hint("they were set aside; `roadie pack` makes them again"))
}
