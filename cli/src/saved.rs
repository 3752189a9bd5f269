//! Plan files: written by `plan --out`, carried out by `deploy --plan`.

use crate::out::Fatal;
use crate::packages;
use roadie_model::definition::{Host, Service};
use roadie_model::id::ServiceName;
use roadie_model::package::Package;
use roadie_model::plan::HostPlan;
use roadie_packager::Store;
use roadie_planner::{PLAN_FORMAT, SavedPlan, save};
use std::collections::BTreeMap;
use std::path::Path;

/// Larger than any plan; what is larger is no plan.
const MAX_BYTES: u64 = 64 << 20;

/// Writes the plans of all hosts, whole or not at all.
pub fn write(file: &Path, plans: &[HostPlan]) -> Result<(), Fatal> {
    let saved = SavedPlan { format: PLAN_FORMAT.into(), hosts: plans.iter().map(save).collect() };
    let failed = |cause: String| Fatal::failed(format!("cannot write the plan to {}", file.display())).cause(cause);
    let text = serde_json::to_string_pretty(&saved).map_err(|e| failed(e.to_string()))?;
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(|e| failed(e.to_string()))?;
    std::io::Write::write_all(&mut temporary, format!("{text}\n").as_bytes()).map_err(|e| failed(e.to_string()))?;
    temporary.persist(file).map_err(|e| failed(e.error.to_string()))?;
    Ok(())
}

/// Reads a plan file.
pub fn read(file: &Path) -> Result<SavedPlan, Fatal> {
    let wrong = |cause: String| {
        Fatal::usage(format!("{} is not a plan of this roadie", file.display()))
            .cause(cause)
            .hint("make one: `roadie plan --out FILE`")
    };
    let size = std::fs::metadata(file).map_err(|e| wrong(e.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(wrong(format!("it holds {size} bytes")));
    }
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    let saved: SavedPlan = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if saved.format != PLAN_FORMAT {
        return Err(wrong(format!("its format is `{}`, this roadie knows `{PLAN_FORMAT}`", saved.format)));
    }
    Ok(saved)
}

/// The chosen targets that the plan speaks of.
pub fn targets(saved: &SavedPlan, chosen: &[(Service, Vec<Host>)], file: &Path) -> Result<Vec<(Service, Vec<Host>)>, Fatal> {
    let planned = |s: &Service, h: &Host| saved.hosts.iter().any(|p| p.service == s.name && p.host == h.name);
    let pick = |(service, hosts): &(Service, Vec<Host>)| {
        let hosts: Vec<Host> = hosts.iter().filter(|h| planned(service, h)).cloned().collect();
        (!hosts.is_empty()).then(|| (service.clone(), hosts))
    };
    let picked: Vec<_> = chosen.iter().filter_map(pick).collect();
    if picked.is_empty() {
        let message = format!("{} plans nothing for what is chosen here", file.display());
        return Err(Fatal::usage(message).hint("it belongs to another definition, or to other hosts"));
    }
    Ok(picked)
}

/// The packages that were planned for, from the store: nothing is built again.
pub fn packages(saved: &SavedPlan, store: &Store) -> Result<BTreeMap<ServiceName, Vec<Package>>, Fatal> {
    let mut found: BTreeMap<ServiceName, Vec<Package>> = BTreeMap::new();
    for host in &saved.hosts {
        let Some(id) = &host.package else { continue };
        let list = found.entry(host.service.clone()).or_default();
        if !list.iter().any(|p| &p.id == id) {
            list.push(store.find(id.as_str()).map_err(|e| packages::store_error(&e))?);
        }
    }
    Ok(found)
}
