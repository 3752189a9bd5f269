//! What goes into a package, in which order, and what `metadata.json` says of it.

use crate::archive::{self, MAX_PATH, Member, hex};
use crate::memo::{Digests, Memo};
use crate::store::{Store, StoreError};
use crate::targets::Targets;
use crate::unit::{self, Lint};
use crate::{PackError, Packed, elf, trust};
use roadie_model::definition::{Build, Definition, Lifecycle, Service};
use roadie_model::id::PackageId;
use roadie_model::package::{BuildFacts, FileEntry, Metadata, Package, Requires, Role, SCHEMA};
use roadie_model::sh::quote;
use roadie_model::target::TargetTriple;
use roadie_model::template::{self, Style, TemplateProblem};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
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

/// What bundling has at hand.
#[derive(Debug, Clone)]
pub struct Bench {
    pub store: Store,
    pub memo: Memo,
    pub targets: Targets,
    /// Threads that compress.
    pub threads: usize,
}

/// Bundles binaries, the main one first, and everything else of a service, or finds the same package in the store.
pub fn bundle(
    bench: &Bench,
    definition: &Definition,
    service: &Service,
    target: &TargetTriple,
    binaries: &[Binary],
) -> Result<(Packed, Lists), PackError> {
    let key = format!("{} {} {target}", definition.dir.display(), service.name);
    let mut digests: Digests = bench.memo.get("files", &key).unwrap_or_default();
    let texts = Texts::read(definition, service)?;
    let mut members = Vec::new();
    for binary in binaries {
        let read = |e: io::Error| PackError::File { key: "build", path: binary.path.clone(), reason: e.to_string() };
        let path = format!("bin/{}", binary.name);
        members.push(Member::file(&path, true, binary.path.clone(), &mut digests).map_err(read)?);
    }
    texts.add_to(&mut members);
    add_extra_files(definition, service, &mut members, &mut digests)?;
    members.sort_by(|a, b| a.path.cmp(&b.path));
    check_paths(&members)?;
    let used: std::collections::BTreeSet<&Path> = members.iter().filter_map(Member::source).collect();
    digests.keep(|path| used.contains(path));
    if digests.changed() {
        bench.memo.put("files", &key, &digests);
    }

    let main = binaries.first().map(|b| format!("bin/{}", b.name)).unwrap_or_default();
    let (mut requires, lists) = requires(bench, &members, &main, target)?;
    if unit::is_system(service) && service.deploy.lifecycle == Lifecycle::Systemd {
        requires.systemd_min = Some(texts.lint.systemd_min).filter(|version| *version > 0);
    }
    let metadata = Metadata {
        schema: SCHEMA.to_owned(),
        name: service.name.clone(),
        version: binaries.first().map(|b| b.version.clone()).unwrap_or_default(),
        target: target.clone(),
        requires,
        files: members.iter().map(entry).collect(),
        binary: main,
        build: build_facts(&service.build),
    };
    let metadata_member = Member::bytes("metadata.json", false, canonical(&metadata));
    let metadata_sha256 = metadata_member.sha256.clone();
    members.insert(0, metadata_member);

    let action = action_key(&members);
    if let Some(package) = bench.store.by_action(&action, &bench.memo) {
        return Ok((Packed { package, fresh: true, unit: texts.lint }, lists));
    }
    let mut file = bench.store.temporary()?;
    let written = archive::write(&members, bench.threads, io::BufWriter::new(file.as_file_mut()))
        .map_err(|source| StoreError::Io { path: bench.store.root().to_owned(), source })?;
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
    Ok((Packed { package: bench.store.add(file, package, &action)?, fresh: false, unit: texts.lint }, lists))
}

fn build_facts(build: &Build) -> BuildFacts {
    let (kind, profile, features) = match build {
        Build::Cargo(c) => ("cargo", Some(c.profile.clone()), c.features.clone()),
        Build::Prebuilt { .. } => ("prebuilt", None, Vec::new()),
        Build::Command { .. } => ("command", None, Vec::new()),
        Build::Image { .. } => ("image", None, Vec::new()),
    };
    BuildFacts { kind: kind.to_owned(), profile, features }
}

/// Whether a file of the package may say what it was built from: only then the archive is read for it.
#[derive(Debug, Clone, Copy)]
pub struct Lists(pub bool);

/// What is kept of a file by its digest.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Inspected {
    /// `None` when it is no program.
    requires: Option<Requires>,
    lists: bool,
}

/// What every ELF file of the package needs, but for the libraries that the package brings itself. The main binary must be one,
/// or a script.
fn requires(bench: &Bench, members: &[Member], main: &str, target: &TargetTriple) -> Result<(Requires, Lists), PackError> {
    let mut lists = Lists(false);
    let mut all = Requires { libc: "none".into(), ..Requires::default() };
    for member in members {
        let Some(file) = member.source() else { continue };
        let key = format!("{} {target} {}", member.sha256, member.path == main);
        let known: Option<Inspected> = bench.memo.get("elf", &key);
        let own = match known {
            Some(own) => own,
            None => {
                let own = inspect(bench, member, file, main, target)?;
                bench.memo.put("elf", &key, &own);
                own
            }
        };
        lists.0 |= own.lists;
        if let Some(own) = own.requires {
            elf::join(&mut all, own);
        }
    }
    let brought: Vec<&str> = members.iter().filter_map(|m| m.path.rsplit('/').next()).collect();
    all.sonames.retain(|name| !brought.contains(&name.as_str()));
    Ok((all, lists))
}

fn inspect(bench: &Bench, member: &Member, file: &Path, main: &str, target: &TargetTriple) -> Result<Inspected, PackError> {
    let read = |e: io::Error| PackError::File { key: "build", path: file.to_owned(), reason: e.to_string() };
    let mut head = [0; 4];
    let count = io::Read::read(&mut std::fs::File::open(file).map_err(read)?, &mut head).map_err(read)?;
    if member.path != main && !elf::is_elf(&head[..count]) {
        return Ok(Inspected { requires: None, lists: false });
    }
    let data = std::fs::read(file).map_err(read)?;
    let requires = elf::inspect(&file.display().to_string(), &data, target, &bench.targets)?;
    Ok(Inspected { requires: Some(requires), lists: trust::may_list(&data) })
}

fn entry(member: &Member) -> FileEntry {
    let mode = if member.executable { "0755" } else { "0644" };
    let role = match member.path.as_str() {
        "setup.sh" | "setup/script" => Role::Setup,
        "config-template.toml" => Role::Config,
        "systemd.service" => Role::Unit,
        path if path.starts_with("bin/") => Role::Binary,
        _ => Role::File,
    };
    FileEntry { path: member.path.clone(), role, mode: mode.into(), size: member.size, sha256: member.sha256.clone() }
}

/// Sorted keys, two blanks, LF at the end: `serde_json::Value` keeps its keys sorted.
fn canonical(metadata: &Metadata) -> Vec<u8> {
    let value = serde_json::to_value(metadata).unwrap_or_default();
    let mut text = serde_json::to_vec_pretty(&value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// The same members in the same order give the same key: then the archive is known without making it.
pub fn action_key(members: &[Member]) -> String {
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
    lint: Lint,
    config: String,
    setup: String,
    script: Option<Vec<u8>>,
}

impl Texts {
    fn read(definition: &Definition, service: &Service) -> Result<Self, PackError> {
        let unit = match &service.deploy.unit {
            Some(path) => text(definition, "deploy.unit", path)?,
            None => unit::generate(service).to_string(),
        };
        let config = service.config.as_ref().map(|path| text(definition, "config", path)).transpose()?.unwrap_or_default();
        check_template("deploy.unit", service, &unit)?;
        let lint = check_unit(definition, service, &unit)?;
        check_template("config", service, &config)?;
        check_args(service)?;
        let script = service.deploy.setup.as_ref().map(|path| script(definition, path)).transpose()?;
        let setup = setup_text(script.is_some(), &service.deploy.setup_commands);
        Ok(Self { unit, lint, config, setup, script })
    }

    fn add_to(&self, members: &mut Vec<Member>) {
        members.push(Member::bytes("systemd.service", false, self.unit.clone().into_bytes()));
        members.push(Member::bytes("config-template.toml", false, self.config.clone().into_bytes()));
        members.push(Member::bytes("setup.sh", true, setup_member(&self.setup).as_bytes().to_vec()));
        if let Some(script) = &self.script {
            members.push(Member::bytes("setup/script", true, script.clone()));
        }
    }
}

fn setup_member(setup: &str) -> &str {
    if setup.is_empty() { "#!/bin/sh\n# Nothing to set up.\n" } else { setup }
}

/// What an index says of setup when this is the member.
pub fn setup_of(member: &str) -> String {
    if member == setup_member("") { String::new() } else { member.to_owned() }
}

/// The first member that an index says something else of than the archive does.
pub fn differs(package: &Package, texts: &BTreeMap<String, Vec<u8>>) -> Option<&'static str> {
    let text = |name: &str| texts.get(name).map_or(&[][..], Vec::as_slice);
    let metadata = text("metadata.json");
    let agree = |name: &str| match name {
        "metadata.json" => {
            hex(&Sha256::digest(metadata)) == package.metadata_sha256
                && serde_json::from_slice::<Metadata>(metadata).is_ok_and(|m| m == package.metadata)
        }
        "systemd.service" => text(name) == package.unit_template.as_bytes(),
        "config-template.toml" => text(name) == package.config_template.as_bytes(),
        _ => text(name) == setup_member(&package.setup).as_bytes(),
    };
    archive::TEXTS.into_iter().find(|name| !agree(name))
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

/// All mistakes of the unit at once. The text itself is never changed.
fn check_unit(definition: &Definition, service: &Service, text: &str) -> Result<Lint, PackError> {
    unit::lint(text).map_err(|problems| PackError::File {
        key: "deploy.unit",
        path: service.deploy.unit.as_ref().map(|path| definition.dir.join(path)).unwrap_or_default(),
        reason: problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "),
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

fn add_extra_files(
    definition: &Definition,
    service: &Service,
    members: &mut Vec<Member>,
    digests: &mut Digests,
) -> Result<(), PackError> {
    for extra in &service.files {
        let from = definition.dir.join(&extra.from);
        add_tree(&from, &extra.to.to_string_lossy(), members, digests)?;
    }
    Ok(())
}

fn add_tree(from: &Path, to: &str, members: &mut Vec<Member>, digests: &mut Digests) -> Result<(), PackError> {
    let failed = |reason: String| PackError::File { key: "files", path: from.to_owned(), reason };
    let meta = std::fs::symlink_metadata(from).map_err(|e| failed(e.to_string()))?;
    if meta.is_symlink() {
        return Err(failed("symbolic links are not packed".into()));
    }
    if meta.is_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let executable = meta.permissions().mode() & 0o100 != 0;
        members.push(Member::file(to, executable, from.to_owned(), digests).map_err(|e| failed(e.to_string()))?);
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
    names.iter().try_for_each(|name| add_tree(&from.join(name), &format!("{to}/{name}"), members, digests))
}

fn check_paths(members: &[Member]) -> Result<(), PackError> {
    let mut seen = BTreeMap::new();
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
