//! What a binary needs of a host, read from the file itself: whatever the build tool said.

use crate::targets::Targets;
use object::elf;
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _, Sym as _};
use object::read::{ReadRef as _, StringTable};
use object::{Endianness, FileKind};
use roadie_model::package::Requires;
use roadie_model::target::TargetTriple;
use std::collections::{BTreeMap, BTreeSet};

/// Why a binary does not fit its target.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not an ELF file, nor a script.
    #[error("`{path}` is neither an ELF binary nor a script that begins with `#!`")]
    NotExecutable {
        /// The file.
        path: String,
    },
    /// It is damaged.
    #[error("`{path}` is not a valid ELF file: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Built for something else.
    #[error("`{path}` is built for {found}, the target is {target}")]
    WrongArch {
        /// The file.
        path: String,
        /// Its architecture.
        found: String,
        /// The target.
        target: String,
    },
    /// Made with another C library.
    #[error("`{path}` is linked with {found}, the target {target} means {wanted}")]
    WrongLibc {
        /// The file.
        path: String,
        /// Its C library.
        found: String,
        /// The target's.
        wanted: String,
        /// The target.
        target: String,
    },
    /// Needs a newer glibc than was asked for.
    #[error("`{path}` needs glibc {found}, the target asks for at most {floor} ({symbols})")]
    AboveFloor {
        /// The file.
        path: String,
        /// The version it needs.
        found: String,
        /// The version asked for.
        floor: String,
        /// Versions above the floor.
        symbols: String,
    },
}

impl ElfError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            ElfError::NotExecutable { .. } => "give the path of the program itself".into(),
            ElfError::Damaged { .. } => "build it again".into(),
            ElfError::WrongArch { .. } => "build it for the target, or correct `target`".into(),
            ElfError::WrongLibc { .. } => "its build used another target: build it for this one".into(),
            ElfError::AboveFloor { .. } => "build with cargo-zigbuild, on an older system, or for a musl target".into(),
        })
    }
}

/// Most symbols that are named per version: enough to know what pulled it in.
const NAMED_SYMBOLS: usize = 6;
/// The glibc that every host has: symbols of older ones need no naming.
const OLDEST_GLIBC: [u32; 2] = [2, 17];

/// Reads what the binary `data` needs, and refuses it when it is not for `target`.
///
/// # Errors
/// [`ElfError`]; `path` names the file in it.
pub fn inspect(path: &str, data: &[u8], target: &TargetTriple, targets: &Targets) -> Result<Requires, ElfError> {
    let requires = match FileKind::parse(data) {
        Ok(FileKind::Elf64) => read::<elf::FileHeader64<Endianness>>(path, data, target, targets)?,
        Ok(FileKind::Elf32) => read::<elf::FileHeader32<Endianness>>(path, data, target, targets)?,
        _ if data.starts_with(b"#!") => return Ok(Requires { libc: "none".into(), ..Requires::default() }),
        _ => return Err(ElfError::NotExecutable { path: path.to_owned() }),
    };
    check_libc(path, &requires, target)?;
    check_floor(path, &requires, target)?;
    Ok(requires)
}

/// Whether these first bytes of a file are those of an ELF file.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// Adds what another file of the same package needs.
pub fn join(all: &mut Requires, more: Requires) {
    if all.arch.is_empty() {
        all.arch = more.arch;
    }
    if matches!(all.libc.as_str(), "" | "none" | "static") {
        all.libc = more.libc;
    }
    let higher = |a: &Option<String>, b: &Option<String>| a.as_deref().map(numbers) < b.as_deref().map(numbers);
    if higher(&all.glibc_min, &more.glibc_min) {
        all.glibc_min = more.glibc_min;
    }
    all.interpreter = all.interpreter.take().or(more.interpreter);
    let names: BTreeSet<String> = all.sonames.drain(..).chain(more.sonames).collect();
    all.sonames = names.into_iter().collect();
    for (name, versions) in more.versions {
        let known = all.versions.entry(name).or_default();
        known.extend(versions);
        sort_versions(known);
    }
    for (version, symbols) in more.glibc_symbols {
        let known = all.glibc_symbols.entry(version).or_default();
        known.extend(symbols);
        known.sort();
        known.dedup();
        known.truncate(NAMED_SYMBOLS);
    }
    all.page_align = match (all.page_align, more.page_align) {
        (0, one) | (one, 0) => one,
        (a, b) => a.min(b),
    };
}

fn check_libc(path: &str, requires: &Requires, target: &TargetTriple) -> Result<(), ElfError> {
    let wanted = match target.triple() {
        t if t.contains("-musl") => "musl",
        t if t.contains("-gnu") => "glibc",
        _ => return Ok(()),
    };
    if requires.libc == wanted || !matches!(requires.libc.as_str(), "musl" | "glibc") {
        return Ok(());
    }
    let (found, target) = (requires.libc.clone(), target.to_string());
    Err(ElfError::WrongLibc { path: path.to_owned(), found, wanted: wanted.to_owned(), target })
}

fn check_floor(path: &str, requires: &Requires, target: &TargetTriple) -> Result<(), ElfError> {
    let (Some((major, minor)), Some(found)) = (target.glibc_floor(), &requires.glibc_min) else { return Ok(()) };
    let floor = vec![major, minor];
    if numbers(found) <= floor {
        return Ok(());
    }
    let above = requires.glibc_symbols.iter().filter(|(version, _)| numbers(version) > floor);
    let symbols: Vec<String> =
        above.flat_map(|(version, names)| names.iter().map(move |name| format!("{name}@GLIBC_{version}"))).collect();
    let symbols = if symbols.is_empty() { format!("it links GLIBC_{found}") } else { symbols.join(", ") };
    Err(ElfError::AboveFloor { path: path.to_owned(), found: found.clone(), floor: format!("{major}.{minor}"), symbols })
}

fn read<E: FileHeader<Endian = Endianness>>(
    path: &str,
    data: &[u8],
    target: &TargetTriple,
    targets: &Targets,
) -> Result<Requires, ElfError> {
    let damaged = |e: object::Error| ElfError::Damaged { path: path.to_owned(), reason: e.to_string() };
    let header = E::parse(data).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    let machine = header.e_machine(endian);
    let is_64 = header.is_type_64();
    if targets.get(target).is_some_and(|t| t.machine() != machine || t.is_64() != is_64) {
        let found = format!("{}{}", machine_name(machine), if is_64 { "" } else { " (32 bit)" });
        return Err(ElfError::WrongArch { path: path.to_owned(), found, target: target.to_string() });
    }
    let lost = |reason: String| ElfError::Damaged { path: path.to_owned(), reason };
    let mut requires = linked::<E>(header, endian, data).map_err(lost)?;
    requires.arch = target.arch().to_owned();
    requires.glibc_symbols = glibc_symbols::<E>(header, endian, data).unwrap_or_default();
    requires.libc = libc_kind(&requires);
    Ok(requires)
}

/// What the loader reads, from the program headers: a file may come without sections.
fn linked<E: FileHeader<Endian = Endianness>>(header: &E, endian: Endianness, data: &[u8]) -> Result<Requires, String> {
    let bad = |e: object::Error| e.to_string();
    let mut requires = Requires::default();
    let mut loads: Vec<(u64, u64, u64)> = Vec::new();
    let mut dynamic = None;
    for segment in header.program_headers(endian, data).map_err(bad)? {
        if segment.p_type(endian) == elf::PT_LOAD {
            let align: u64 = segment.p_align(endian).into();
            requires.page_align = if requires.page_align == 0 { align } else { requires.page_align.min(align) };
            loads.push((segment.p_vaddr(endian).into(), segment.p_filesz(endian).into(), segment.p_offset(endian).into()));
        }
        if let Some(interpreter) = segment.interpreter(endian, data).map_err(bad)? {
            requires.interpreter = Some(text(interpreter));
        }
        if let Some(entries) = segment.dynamic(endian, data).map_err(bad)? {
            dynamic = Some(entries);
        }
    }
    let offset = |address: u64| {
        let load = loads.iter().find(|(start, size, _)| address >= *start && address - start < *size)?;
        load.2.checked_add(address - load.0)
    };
    let Some(entries) = dynamic else { return Ok(requires) };
    let entries: Vec<(elf::DynamicTag, u64)> =
        entries.iter().map(|d| (d.tag(endian), d.d_val(endian).into())).take_while(|(tag, _)| *tag != elf::DT_NULL).collect();
    let value = |tag: elf::DynamicTag| entries.iter().find(|(t, _)| *t == tag).map(|(_, value)| *value);
    let (Some(start), Some(size)) = (value(elf::DT_STRTAB).and_then(offset), value(elf::DT_STRSZ)) else { return Ok(requires) };
    let strings = StringTable::new(data, start, start.saturating_add(size));
    let name = |at: u64| u32::try_from(at).ok().and_then(|at| strings.get(at).ok()).map(text).unwrap_or_default();
    let needed: BTreeSet<String> = entries.iter().filter(|(tag, _)| *tag == elf::DT_NEEDED).map(|(_, at)| name(*at)).collect();
    requires.sonames = needed.into_iter().collect();
    if let Some(at) = value(elf::DT_VERNEED).and_then(offset) {
        let count = value(elf::DT_VERNEEDNUM).unwrap_or(0);
        versions(&mut requires, endian, data, at, count, &name)?;
    }
    Ok(requires)
}

/// The versions that are needed of each library. Weak ones are no requirement: the program starts without them.
fn versions(
    requires: &mut Requires,
    endian: Endianness,
    data: &[u8],
    mut at: u64,
    count: u64,
    name: &dyn Fn(u64) -> String,
) -> Result<(), String> {
    let bad = |(): ()| "a version table ends too early".to_owned();
    for _ in 0..count.min(4096) {
        let need: &elf::Verneed<Endianness> = data.read_at(at).map_err(bad)?;
        let library = name(need.vn_file.get(endian).into());
        let mut aux_at = at.saturating_add(need.vn_aux.get(endian).into());
        for _ in 0..need.vn_cnt.get(endian) {
            let aux: &elf::Vernaux<Endianness> = data.read_at(aux_at).map_err(bad)?;
            if aux.vna_flags.get(endian).0 & elf::VER_FLG_WEAK.0 == 0 {
                let version = name(aux.vna_name.get(endian).into());
                if let Some(number) = glibc_number(&version)
                    && requires.glibc_min.as_deref().is_none_or(|h| numbers(h) < numbers(number))
                {
                    requires.glibc_min = Some(number.to_owned());
                }
                requires.versions.entry(library.clone()).or_default().push(version);
            }
            match aux.vna_next.get(endian) {
                0 => break,
                next => aux_at = aux_at.saturating_add(next.into()),
            }
        }
        match need.vn_next.get(endian) {
            0 => break,
            next => at = at.saturating_add(next.into()),
        }
    }
    requires.versions.values_mut().for_each(sort_versions);
    Ok(())
}

/// The glibc that first had a version, by the version's name.
fn glibc_number(version: &str) -> Option<&str> {
    match version.strip_prefix("GLIBC_")? {
        // Relative relocations packed the new way.
        "ABI_DT_RELR" => Some("2.36"),
        number if number.starts_with(|c: char| c.is_ascii_digit()) => Some(number),
        _ => None,
    }
}

/// Which symbols need which glibc, newest ones, as far as sections tell.
fn glibc_symbols<E: FileHeader<Endian = Endianness>>(
    header: &E,
    endian: Endianness,
    data: &[u8],
) -> object::Result<BTreeMap<String, Vec<String>>> {
    let sections = header.sections(endian, data)?;
    let Some(table) = sections.versions(endian, data)? else { return Ok(BTreeMap::new()) };
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (index, symbol) in symbols.enumerate() {
        if !symbol.is_undefined(endian) || symbol.is_weak() {
            continue;
        }
        let index = table.version_index(endian, index);
        let Ok(Some(version)) = table.version(index.index()) else { continue };
        let version = text(version.name());
        let Some(number) = glibc_number(&version).filter(|n| numbers(n).as_slice() > OLDEST_GLIBC.as_slice()) else { continue };
        found.entry(number.to_owned()).or_default().insert(text(symbol.name(endian, symbols.strings())?));
    }
    Ok(found.into_iter().map(|(version, names)| (version, names.into_iter().take(NAMED_SYMBOLS).collect())).collect())
}

fn libc_kind(requires: &Requires) -> String {
    let musl = requires.interpreter.as_deref().is_some_and(|i| i.contains("ld-musl"));
    let glibc = |s: &String| s == "libc.so.6" || s.starts_with("ld-linux");
    match () {
        () if musl => "musl",
        () if requires.glibc_min.is_some() || requires.sonames.iter().any(glibc) => "glibc",
        () if requires.interpreter.is_none() && requires.sonames.is_empty() => "static",
        () => "other",
    }
    .to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Version names in the order of their numbers: 2.4 comes before 2.17.
fn sort_versions(versions: &mut Vec<String>) {
    versions.sort_by(|a, b| {
        let key = |v: &str| (v.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').to_owned(), numbers_at_end(v));
        key(a).cmp(&key(b))
    });
    versions.dedup();
}

fn numbers_at_end(version: &str) -> Vec<u32> {
    let start = version.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    numbers(&version[start..])
}

/// `2.17` as numbers.
pub fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map(|n| n.parse().unwrap_or(0)).collect()
}

fn machine_name(machine: elf::Machine) -> String {
    match machine {
        elf::EM_X86_64 => "x86_64".into(),
        elf::EM_AARCH64 => "aarch64".into(),
        elf::EM_386 => "i686".into(),
        elf::EM_ARM => "arm".into(),
        elf::EM_RISCV => "riscv64".into(),
        other => format!("machine {other:?}"),
    }
}
