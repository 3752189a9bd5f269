//! `pack` and `packages`: what is built and what is stored.

use crate::args::{Global, PackagesVerb};
use crate::out::{self, Fatal};
use crate::project::{self, Environment};
use crate::report::Reporter;
use crate::trust;
use roadie_model::definition::{Definition, Service};
use roadie_model::outcome::Outcome;
use roadie_model::package::Package;
use roadie_model::target::TargetTriple;
use roadie_packager::{Limits, PackError, PackEvent, Packager, Store, StoreError, StoredPackage, Verified};
use std::collections::BTreeMap;

/// A packager over the user's store.
pub fn packager(environment: &Environment) -> Result<Packager, Fatal> {
    let store = Store::open(&environment.store).map_err(|e| store_error(&e))?;
    Packager::new(store, environment.build_env()).map_err(|e| Fatal { hint: e.hint(), ..Fatal::usage(e.to_string()) })
}

/// The chain of a store's failure.
pub fn store_error(error: &StoreError) -> Fatal {
    let damaged = matches!(error, StoreError::Damaged { .. } | StoreError::Note { .. });
    let outcome = if damaged { Outcome::Integrity } else { Outcome::FailedUnchanged };
    Fatal { outcome, causes: causes(error), hint: error.hint(), ..Fatal::failed(error.to_string()) }
}

/// What lies beneath an error, outermost first.
pub fn causes(error: &dyn std::error::Error) -> Vec<String> {
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
        PackError::Choice { .. }
        | PackError::File { .. }
        | PackError::Args { .. }
        | PackError::Unsupported { .. }
        | PackError::Toolchain { .. } => Outcome::Usage,
        _ => Outcome::FailedUnchanged,
    };
    let message = format!("cannot pack `{}` for {target}: {error}", service.name);
    Fatal { outcome, causes: causes(error), hint: error.hint(), ..Fatal::failed(message) }
}

/// Packages of some services by name, each with whether it was in the store already.
pub type PackedServices = Vec<(Service, Vec<(Package, bool)>)>;

/// Packs services for all their targets, or those of `only`. Builds by different tools have folders of their own and run side
/// by side; cargo locks each of them, so within one folder they take turns.
pub async fn pack_services(
    packager: &Packager,
    definition: &Definition,
    services: &[&Service],
    only: &[TargetTriple],
    reporter: &Reporter,
) -> Result<PackedServices, Fatal> {
    let mut jobs = Vec::new();
    for service in services {
        let own = packager.targets_for(definition, service).map_err(|e| choice_error(service, &e));
        let targets = if only.is_empty() { own? } else { only.to_vec() };
        jobs.extend(targets.into_iter().map(|target| (*service, target)));
    }
    // What is missing for the last build is told before the first.
    for (service, target) in &jobs {
        packager.check(definition, service, target).map_err(|e| pack_error(service, target, &e))?;
    }
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, (service, target)) in jobs.iter().enumerate() {
        groups.entry(packager.group(definition, service, target)).or_default().push(index);
    }
    let group = async |indices: Vec<usize>| {
        let mut done = Vec::new();
        for index in indices {
            let (service, target) = &jobs[index];
            let (name, triple) = (service.name.to_string(), target.to_string());
            let tell = |event: PackEvent| reporter.packing(&name, &triple, &event);
            let packed = packager.pack(definition, service, target, &tell).await.map_err(|e| pack_error(service, target, &e))?;
            done.push((index, packed));
        }
        Ok::<_, Fatal>(done)
    };
    let done = futures::future::try_join_all(groups.into_values().map(group)).await?;
    let mut packed: BTreeMap<usize, _> = done.into_iter().flatten().collect();
    let mut all: PackedServices = services.iter().map(|s| ((*s).clone(), Vec::new())).collect();
    for (index, (service, _)) in jobs.iter().enumerate() {
        let place = all.iter_mut().find(|(s, _)| s.name == service.name);
        if let (Some((_, list)), Some(one)) = (place, packed.remove(&index)) {
            list.push((one.package, one.fresh));
        }
    }
    Ok(all)
}

fn choice_error(service: &Service, error: &PackError) -> Fatal {
    let message = format!("cannot pack `{}`: {error}", service.name);
    Fatal { outcome: Outcome::Usage, causes: causes(error), hint: error.hint(), ..Fatal::failed(message) }
}

/// How services are packed, and what is done with the packages.
#[derive(Debug, Default)]
pub struct How {
    /// Found again by what they are made from.
    pub by_inputs: bool,
    /// Built again elsewhere, and compared.
    pub verify: bool,
    /// Signed with this key.
    pub sign: Option<std::path::PathBuf>,
}

/// `roadie pack`.
pub async fn pack(global: &Global, named: &[String], targets: &[String], how: How) -> Result<u8, Fatal> {
    let definition = project::load(global)?;
    let environment = Environment::read()?;
    let packager = packager(&environment)?.by_inputs(how.by_inputs);
    let reporter = Reporter::new(global.json);
    let only: Result<Vec<TargetTriple>, _> = targets.iter().map(|t| TargetTriple::new(t)).collect();
    let only = only.map_err(|e| Fatal::usage(e.to_string()))?;
    let names = project::services(&definition, global, named)?;
    let services: Vec<&Service> = names.into_iter().map(|name| &definition.services[name]).collect();
    // A key that cannot be used is said before anything is built.
    let signer = how.sign.as_deref().map(trust::signer).transpose()?;
    let mut differ = 0;
    for (service, packages) in pack_services(&packager, &definition, &services, &only, &reporter).await? {
        for (package, fresh) in packages {
            tell_packed(global, &service, &package, fresh);
            if how.verify {
                differ += u32::from(!verify_package(global, &packager, &definition, &service, &package, &reporter).await?);
            }
            if let Some(signer) = &signer {
                trust::sign_one(global, packager.store(), &package.id, signer)?;
            }
        }
    }
    match differ {
        0 => Ok(0),
        count => Err(Fatal {
            outcome: Outcome::Integrity,
            ..Fatal::failed(format!("{count} packages are not the same when built again"))
        }
        .hint("what differs is named above; paths, times and randomness in build scripts are the usual causes")),
    }
}

fn tell_packed(global: &Global, service: &Service, package: &Package, fresh: bool) {
    if global.json {
        let object = serde_json::json!({"event": "packed", "service": service.name, "unchanged": fresh, "package": package});
        out::line(&object.to_string());
        return;
    }
    let kind = if fresh { "unchanged" } else { "packed" };
    let (m, id, bytes) = (&package.metadata, package.id.short(), package.archive_bytes);
    out::line(&format!("{kind} {} {} for {}: {id}, {bytes} bytes", service.name, m.version, m.target));
}

async fn verify_package(
    global: &Global,
    packager: &Packager,
    definition: &Definition,
    service: &Service,
    package: &Package,
    reporter: &Reporter,
) -> Result<bool, Fatal> {
    let target = &package.metadata.target;
    let (name, triple) = (service.name.to_string(), target.to_string());
    let tell = |event: PackEvent| reporter.packing(&name, &triple, &event);
    let verified = packager.verify(definition, service, target, package, &tell).await;
    let (same, first) = match verified.map_err(|e| pack_error(service, target, &e))? {
        Verified::Same => (true, String::new()),
        Verified::Differs { first } => (false, first),
    };
    if global.json {
        let object = serde_json::json!({"event": "verified", "service": service.name, "package": package.id, "same": same, "first_difference": first});
        out::line(&object.to_string());
    } else if same {
        out::line(&format!("the same {name} for {triple} when built elsewhere: {}", package.id.short()));
    } else {
        out::line(&format!("another {name} for {triple} when built elsewhere: {first}"));
    }
    Ok(same)
}

/// `roadie packages`.
pub fn packages(global: &Global, verb: &PackagesVerb) -> Result<u8, Fatal> {
    let environment = Environment::read()?;
    let store = Store::open(&environment.store).map_err(|e| store_error(&e))?;
    match verb {
        PackagesVerb::Ls => list(global, &store.list().map_err(|e| store_error(&e))?),
        PackagesVerb::Show { id } => show(global, &store.find(id).map_err(|e| store_error(&e))?),
        PackagesVerb::Gc { keep, max_bytes, older_than, dry_run } => {
            let age = older_than.map(|days| std::time::Duration::from_secs(u64::from(days) * 86400));
            gc(global, &store, Limits { keep: *keep, bytes: *max_bytes, age }, *dry_run)
        }
        PackagesVerb::Verify { id, trust } => trust::verify(global, &environment, &store, id.as_deref(), trust),
        PackagesVerb::Sign { ids, key, agent } => {
            trust::sign(global, &environment, &store, ids, key.as_deref(), agent.as_deref())
        }
        PackagesVerb::Sbom { id } => trust::sbom(global, &store, &store.find(id).map_err(|e| store_error(&e))?),
        PackagesVerb::Provenance { id } => trust::provenance(global, &store, &store.find(id).map_err(|e| store_error(&e))?),
    }
}

fn gc(global: &Global, store: &Store, limits: Limits, dry: bool) -> Result<u8, Fatal> {
    let removed = store.gc(limits, dry).map_err(|e| store_error(&e))?;
    let bytes: u64 = removed.iter().map(|p| p.package.archive_bytes).sum();
    for stored in &removed {
        let m = &stored.package.metadata;
        if global.json {
            out::line(&serde_json::json!({"event": "removed", "package": stored.package.id, "dry_run": dry}).to_string());
        } else {
            out::line(&format!("{} {} {} for {}", stored.package.id.short(), m.name, m.version, m.target));
        }
    }
    if !global.json {
        let word = if dry { "would be removed" } else { "removed" };
        out::line(&format!("{} packages {word}, {bytes} bytes", removed.len()));
    }
    Ok(0)
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
