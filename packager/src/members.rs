//! What goes into a package, in which order, and what `metadata.json` says of it.

use crate::archive::{self, MAX_PATH, Member, hex};
use crate::store::{Store, StoreError};
use crate::{PackError, Packed, elf, unit};
use roadie_model::definition::{Definition, Service};
use roadie_model::id::PackageId;
use roadie_model::package::{FileEntry, Metadata, Package, SCHEMA};
use roadie_model::sh::quote;
use roadie_model::target::TargetTriple;
use roadie_model::template::{self, Style, TemplateProblem};
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// Names at the top of a release that the deployer writes.
const RESERVED: &[&str] = &["unit", "env", "run.sh", "health.json", "lifecycle", "MANIFEST", "COMPLETE", "config.toml"];

/// A built binary.
#[derive(Debug, Clone)]
pub struct Binary {
    /// The file.
    pub path: PathBuf,
    /// Its name in `bin/`.
    pub name: String,
    /// Version of the program; may be empty.
    pub version: String,
}

/// The binary of a prebuilt service.
pub fn prebuilt(definition: &Definition, path: &Path, target: &TargetTriple) -> Result<Binary, PackError> {
    let path = path.to_string_lossy().replace("{target}", &target.to_string());
    let path = definition.dir.join(path);
    let failed = |reason: String| PackError::File { key: "build.path", path: path.clone(), reason };
    let meta = std::fs::metadata(&path).map_err(|e| failed(e.to_string()))?;
    if !meta.is_file() {
        return Err(failed("it is not a file".into()));
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Binary { name, path, version: String::new() })
}

/// Bundles a binary and everything else of a service, or finds the same package in the store.
pub fn bundle(
    store: &Store,
    definition: &Definition,
    service: &Service,
    target: &TargetTriple,
    binary: &Binary,
) -> Result<Packed, PackError> {
    let binary_key = "build";
    let read = |e: io::Error| PackError::File { key: binary_key, path: binary.path.clone(), reason: e.to_string() };
    let data = std::fs::read(&binary.path).map_err(read)?;
    let requires = elf::inspect(&binary.path.display().to_string(), &data, target)?;
    drop(data);

    let texts = Texts::read(definition, service)?;
    let mut members = vec![Member::file(&format!("bin/{}", binary.name), true, binary.path.clone()).map_err(read)?];
    texts.add_to(&mut members);
    add_extra_files(definition, service, &mut members)?;
    members.sort_by(|a, b| a.path.cmp(&b.path));
    check_paths(&members)?;

    let metadata = Metadata {
        schema: SCHEMA.to_owned(),
        name: service.name.clone(),
        version: binary.version.clone(),
        target: target.clone(),
        binary: format!("bin/{}", binary.name),
        files: members.iter().map(entry).collect(),
        requires,
    };
    let metadata_member = Member::bytes("metadata.json", false, canonical(&metadata));
    let metadata_sha256 = metadata_member.sha256.clone();
    members.insert(0, metadata_member);

    let action = action_key(&members);
    if let Some(package) = store.by_action(&action) {
        return Ok(Packed { package, fresh: true });
    }
    let mut file = store.temporary()?;
    let written = archive::write(&members, io::BufWriter::new(file.as_file_mut()))
        .map_err(|source| StoreError::Io { path: store.root().to_owned(), source })?;
    let id = PackageId::new(written.tar_sha256).unwrap_or_else(|_| unreachable!("a sha256 in hex is a package id"));
    let package = Package {
        id,
        archive_sha256: written.gz_sha256,
        archive_bytes: written.gz_bytes,
        archive: PathBuf::new(),
        metadata,
        metadata_sha256,
        unit_template: texts.unit,
        config_template: texts.config,
        setup: texts.setup,
    };
    Ok(Packed { package: store.add(file, package, &action)?, fresh: false })
}

fn entry(member: &Member) -> FileEntry {
    let mode = if member.executable { "0755" } else { "0644" };
    FileEntry { path: member.path.clone(), mode: mode.into(), size: member.size, sha256: member.sha256.clone() }
}

/// Sorted keys, two blanks, LF at the end: `serde_json::Value` keeps its keys sorted.
fn canonical(metadata: &Metadata) -> Vec<u8> {
    let value = serde_json::to_value(metadata).unwrap_or_default();
    let mut text = serde_json::to_vec_pretty(&value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// The same members in the same order give the same key: then the archive is known without making it.
fn action_key(members: &[Member]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"roadie-action/1\n");
    for m in members {
        hash.update(format!("{} {} {} {}\n", m.executable, m.size, m.sha256, m.path));
    }
    hex(&hash.finalize())
}

/// The text members.
struct Texts {
    unit: String,
    config: String,
    setup: String,
    script: Option<Vec<u8>>,
}

impl Texts {
    fn read(definition: &Definition, service: &Service) -> Result<Self, PackError> {
        let unit = match &service.deploy.unit {
            Some(path) => text(definition, "deploy.unit", path)?,
            None => unit::generate(service),
        };
        let config = service.config.as_ref().map(|path| text(definition, "config", path)).transpose()?.unwrap_or_default();
        check_template("deploy.unit", service, &unit)?;
        check_template("config", service, &config)?;
        check_args(service)?;
        let script = service.deploy.setup.as_ref().map(|path| script(definition, path)).transpose()?;
        let setup = setup_text(script.is_some(), &service.deploy.setup_commands);
        Ok(Self { unit, config, setup, script })
    }

    fn add_to(&self, members: &mut Vec<Member>) {
        members.push(Member::bytes("systemd.service", false, self.unit.clone().into_bytes()));
        members.push(Member::bytes("config-template.toml", false, self.config.clone().into_bytes()));
        let setup = if self.setup.is_empty() { "#!/bin/sh\n# Nothing to set up.\n" } else { &self.setup };
        members.push(Member::bytes("setup.sh", true, setup.as_bytes().to_vec()));
        if let Some(script) = &self.script {
            members.push(Member::bytes("setup/script", true, script.clone()));
        }
    }
}

fn setup_text(has_script: bool, commands: &[String]) -> String {
    if !has_script && commands.is_empty() {
        return String::new();
    }
    let mut text =
        String::from("#!/bin/sh\n# Run by roadie before the service is switched. Stops at the first failure.\nset -e\n");
    if has_script {
        text.push_str("./setup/script\n");
    }
    for command in commands {
        text.push_str(&format!("printf '+ %s\\n' {0}\nsh -c {0}\n", quote(command)));
    }
    text
}

fn read_file(definition: &Definition, key: &'static str, path: &Path) -> Result<(PathBuf, Vec<u8>), PackError> {
    let full = definition.dir.join(path);
    match std::fs::read(&full) {
        Ok(bytes) => Ok((full, bytes)),
        Err(e) => Err(PackError::File { key, path: full, reason: e.to_string() }),
    }
}

fn text(definition: &Definition, key: &'static str, path: &Path) -> Result<String, PackError> {
    let (path, bytes) = read_file(definition, key, path)?;
    String::from_utf8(bytes).map_err(|_| PackError::File { key, path, reason: "it is not UTF-8".into() })
}

fn script(definition: &Definition, path: &Path) -> Result<Vec<u8>, PackError> {
    let (path, bytes) = read_file(definition, "deploy.setup", path)?;
    let bad = |reason: &str| Err(PackError::File { key: "deploy.setup", path: path.clone(), reason: reason.into() });
    if !bytes.starts_with(b"#!") {
        return bad("it must begin with `#!`, for example `#!/bin/sh`");
    }
    if bytes.windows(2).any(|w| w == b"\r\n") {
        return bad("it has Windows line ends, which no shell takes");
    }
    Ok(bytes)
}

/// Every name in the templates must be declared: all mistakes are told at once, before anything is sent.
fn check_template(key: &'static str, service: &Service, text: &str) -> Result<(), PackError> {
    let path = if key == "config" { service.config.as_deref() } else { service.deploy.unit.as_deref() };
    let (style, declared) = match key {
        "config" => (path.map_or(Style::Plain, template::config_style), template::declared(service)),
        _ => (Style::Unit, template::unit_declared(service)),
    };
    template::check(text, style, &declared).map_err(|found| {
        let told = |p: &TemplateProblem| format!("{p} ({})", p.hint);
        let reason = found.iter().map(told).collect::<Vec<_>>().join("; ");
        PackError::File { key, path: path.map(Path::to_owned).unwrap_or_default(), reason }
    })
}

/// The same for `deploy.args`: they stand in the definition itself.
fn check_args(service: &Service) -> Result<(), PackError> {
    let declared = template::declared(service);
    let mut problems = Vec::new();
    for (index, arg) in service.deploy.args.iter().enumerate() {
        for p in template::check(arg, Style::Arg, &declared).err().unwrap_or_default() {
            problems.push(format!("in args[{index}], column {}, `{}` {} ({})", p.column, p.path, p.problem, p.hint));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(PackError::Args { problems: problems.join("; ") }) }
}

fn add_extra_files(definition: &Definition, service: &Service, members: &mut Vec<Member>) -> Result<(), PackError> {
    for extra in &service.files {
        let from = definition.dir.join(&extra.from);
        add_tree(&from, &extra.to.to_string_lossy(), members)?;
    }
    Ok(())
}

fn add_tree(from: &Path, to: &str, members: &mut Vec<Member>) -> Result<(), PackError> {
    let failed = |reason: String| PackError::File { key: "files", path: from.to_owned(), reason };
    let meta = std::fs::symlink_metadata(from).map_err(|e| failed(e.to_string()))?;
    if meta.is_symlink() {
        return Err(failed("symbolic links are not packed".into()));
    }
    if meta.is_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let executable = meta.permissions().mode() & 0o100 != 0;
        members.push(Member::file(to, executable, from.to_owned()).map_err(|e| failed(e.to_string()))?);
        return Ok(());
    }
    if !meta.is_dir() {
        return Err(failed("it is neither a file nor a folder".into()));
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(from).map_err(|e| failed(e.to_string()))? {
        let name = entry.map_err(|e| failed(e.to_string()))?.file_name();
        names.push(name.into_string().map_err(|n| failed(format!("the name {n:?} in it is not UTF-8")))?);
    }
    names.sort();
    names.iter().try_for_each(|name| add_tree(&from.join(name), &format!("{to}/{name}"), members))
}

fn check_paths(members: &[Member]) -> Result<(), PackError> {
    let mut seen = std::collections::BTreeMap::new();
    for member in members {
        let bad = |reason: String| PackError::File { key: "files", path: PathBuf::from(&member.path), reason };
        if member.path.len() > MAX_PATH {
            return Err(bad(format!("a path in a package has at most {MAX_PATH} bytes")));
        }
        if member.path.chars().any(char::is_control) {
            return Err(bad("the name has a control character".into()));
        }
        if RESERVED.contains(&member.path.as_str()) || member.path == "metadata.json" {
            return Err(bad("roadie writes a file of that name itself".into()));
        }
        if let Some(other) = seen.insert(member.path.to_lowercase(), &member.path) {
            return Err(bad(format!("`{other}` has the same name")));
        }
    }
    Ok(())
}
