//! What the binaries of a package were built from, as CycloneDX 1.5.
//!
//! `cargo auditable` puts the list of crates into a binary's `.dep-v0` section: zlib over JSON. It is read from the archive and not
//! from the build folder, so that what is said is true of the very bytes that the package id names. The same package gives the same
//! text: no time, a serial number made of the id, everything sorted.

use crate::archive;
use auditable_serde::{DependencyKind, Source, VersionInfo};
use object::{Object as _, ObjectSection as _};
use roadie_model::package::Package;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};

const SECTION: &str = ".dep-v0";
/// What unpacks to more is no list of crates. auditable-info draws the same line.
const MAX_JSON: u64 = 8 << 20;

/// Why there is no SBOM.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// The archive.
    #[error("cannot read the archive of package {id}")]
    Archive {
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data in a binary.
    #[error("the dependency list in `{path}` of package {id} is unreadable: {reason}")]
    Unreadable {
        /// Which package.
        id: String,
        /// The binary.
        path: String,
        /// Why.
        reason: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] crate::StoreError),
}

/// The SBOM of a package; `None` when no binary in it holds a list.
pub fn of(package: &Package) -> Result<Option<String>, SbomError> {
    let failed = |source| SbomError::Archive { id: package.id.short().to_owned(), source };
    let mut lists = Vec::new();
    let mut archive = archive::open(&package.archive).map_err(failed)?;
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if let Some(data) = elf(&mut entry).map_err(failed)? {
            let unreadable = |reason| SbomError::Unreadable { id: package.id.short().to_owned(), path: path.clone(), reason };
            lists.extend(list(&data).map_err(unreadable)?);
        }
    }
    if lists.is_empty() {
        return Ok(None);
    }
    let mut text = serde_json::to_string_pretty(&document(package, &lists)).unwrap_or_default();
    text.push('\n');
    Ok(Some(text))
}

/// The bytes of an ELF file; of others no more than the first few are read.
fn elf(entry: &mut impl io::Read) -> io::Result<Option<Vec<u8>>> {
    let mut data = Vec::new();
    entry.by_ref().take(4).read_to_end(&mut data)?;
    if data != b"\x7fELF" {
        return Ok(None);
    }
    entry.read_to_end(&mut data)?;
    Ok(Some(data))
}

/// Whether a program may hold a list: a damaged one is told of when it is read.
pub fn may_list(data: &[u8]) -> bool {
    crate::elf::is_elf(data) && object::File::parse(data).map_or(true, |file| file.section_by_name(SECTION).is_some())
}

/// The list in a binary, if there is one.
fn list(data: &[u8]) -> Result<Option<VersionInfo>, String> {
    let file = object::File::parse(data).map_err(|e| e.to_string())?;
    let Some(section) = file.section_by_name(SECTION) else { return Ok(None) };
    let packed = section.data().map_err(|e| e.to_string())?;
    let mut text = Vec::new();
    let read = flate2::read::ZlibDecoder::new(packed).take(MAX_JSON + 1).read_to_end(&mut text);
    read.map_err(|e| e.to_string())?;
    if text.len() as u64 > MAX_JSON {
        return Err(format!("it unpacks to more than {MAX_JSON} bytes"));
    }
    serde_json::from_slice(&text).map(Some).map_err(|e| e.to_string())
}

/// A crate as it is listed: where two binaries share one, it stands once.
#[derive(Default)]
struct Component {
    object: Value,
    runtime: bool,
    root: bool,
    needs: BTreeSet<String>,
}

fn reference(package: &auditable_serde::Package) -> String {
    let name = format!("pkg:cargo/{}@{}", package.name, package.version);
    match &package.source {
        Source::CratesIo => name,
        other => format!("{name}#{}", String::from(other.clone())),
    }
}

fn components(lists: &[VersionInfo]) -> BTreeMap<String, Component> {
    let mut found: BTreeMap<String, Component> = BTreeMap::new();
    for list in lists {
        for package in &list.packages {
            let component = found.entry(reference(package)).or_default();
            component.runtime |= package.kind == DependencyKind::Runtime;
            component.root |= package.root;
            // An index that leads nowhere is left out: the list is not ours.
            component.needs.extend(package.dependencies.iter().filter_map(|i| list.packages.get(*i)).map(reference));
            component.object = json!({ "name": package.name, "version": package.version.to_string() });
            if package.source == Source::CratesIo {
                component.object["purl"] = reference(package).into();
            } else {
                let source = String::from(package.source.clone());
                component.object["properties"] = json!([{ "name": "cargo:source", "value": source }]);
            }
        }
    }
    found
}

fn document(package: &Package, lists: &[VersionInfo]) -> Value {
    let found = components(lists);
    let listed = found.iter().map(|(reference, component)| {
        let mut object = component.object.clone();
        object["bom-ref"] = reference.as_str().into();
        object["type"] = if component.root { "application" } else { "library" }.into();
        // What only the build needed is not in the binary.
        object["scope"] = if component.runtime { "required" } else { "excluded" }.into();
        object
    });
    let own = format!("package:{}", package.id);
    let roots: Vec<&String> = found.iter().filter(|(_, c)| c.root).map(|(reference, _)| reference).collect();
    let edges = found.iter().map(|(reference, c)| json!({ "ref": reference, "dependsOn": c.needs }));
    let edges: Vec<Value> = std::iter::once(json!({ "ref": own, "dependsOn": roots })).chain(edges).collect();
    let m = &package.metadata;
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": format!("urn:uuid:{}", uuid(package.id.as_str())),
        "version": 1,
        "metadata": {
            "tools": { "components": [{ "type": "application", "name": "roadie" }] },
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": m.name,
                "version": m.version,
                "hashes": [{ "alg": "SHA-256", "content": package.id }],
            },
        },
        "components": listed.collect::<Vec<Value>>(),
        "dependencies": edges,
    })
}

/// The digest's first digits as a UUID of version 8 (RFC 9562, 5.8: made in a way of one's own).
fn uuid(digest: &str) -> String {
    let d = |from: usize, to: usize| digest.get(from..to).unwrap_or_default();
    format!("{}-{}-8{}-a{}-{}", d(0, 8), d(8, 12), d(13, 16), d(17, 20), d(20, 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_uuids() {
        let digest = "0123456789abcdef".repeat(4);
        assert_eq!(uuid(&digest), "01234567-89ab-8def-a123-456789abcdef");
    }

    /// Two binaries that share a crate, one of them needing it for its build only.
    #[test]
    fn lists_are_merged_and_sorted() {
        let one: VersionInfo = serde_json::from_str(
            r#"{"packages":[{"name":"z","version":"1.0.0","source":"crates.io","kind":"build"},
               {"name":"app","version":"0.1.0","source":"local","root":true,"dependencies":[0]}]}"#,
        )
        .expect("valid");
        let two: VersionInfo = serde_json::from_str(
            r#"{"packages":[{"name":"other","version":"0.1.0","source":"git","root":true,"dependencies":[1,9]},
               {"name":"z","version":"1.0.0","source":"crates.io"}]}"#,
        )
        .expect("valid");
        let found = components(&[one, two]);
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["pkg:cargo/app@0.1.0#local", "pkg:cargo/other@0.1.0#git", "pkg:cargo/z@1.0.0"]);
        assert!(found["pkg:cargo/z@1.0.0"].runtime);
        assert_eq!(found["pkg:cargo/other@0.1.0#git"].needs.len(), 1, "an index that leads nowhere");
    }
}
