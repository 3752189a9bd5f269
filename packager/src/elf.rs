//! What a binary needs of a host, read from the file itself: whatever the build tool said.

use crate::targets::target_info;
use object::elf;
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind};
use roadie_model::package::Requires;
use roadie_model::target::TargetTriple;
use std::collections::BTreeSet;

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
            ElfError::AboveFloor { .. } => "build with cargo-zigbuild, on an older system, or for a musl target".into(),
        })
    }
}

/// Reads what the binary `data` needs, and refuses it when it is not for `target`.
///
/// # Errors
/// [`ElfError`]; `path` names the file in it.
pub fn inspect(path: &str, data: &[u8], target: &TargetTriple) -> Result<Requires, ElfError> {
    let requires = match FileKind::parse(data) {
        Ok(FileKind::Elf64) => read::<elf::FileHeader64<Endianness>>(path, data, target)?,
        Ok(FileKind::Elf32) => read::<elf::FileHeader32<Endianness>>(path, data, target)?,
        _ if data.starts_with(b"#!") => return Ok(Requires { libc: "none".into(), ..Requires::default() }),
        _ => return Err(ElfError::NotExecutable { path: path.to_owned() }),
    };
    check_floor(path, &requires, target)?;
    Ok(requires)
}

fn check_floor(path: &str, requires: &Requires, target: &TargetTriple) -> Result<(), ElfError> {
    let (Some((major, minor)), Some(found)) = (target.glibc_floor(), &requires.glibc_min) else { return Ok(()) };
    if numbers(found) <= vec![major, minor] {
        return Ok(());
    }
    let floor = format!("{major}.{minor}");
    let symbols = format!("it links GLIBC_{found}");
    Err(ElfError::AboveFloor { path: path.to_owned(), found: found.clone(), floor, symbols })
}

fn read<E: FileHeader<Endian = Endianness>>(path: &str, data: &[u8], target: &TargetTriple) -> Result<Requires, ElfError> {
    let damaged = |e: object::Error| ElfError::Damaged { path: path.to_owned(), reason: e.to_string() };
    let header = E::parse(data).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    let machine = header.e_machine(endian);
    let is_64 = header.is_type_64();
    let wanted = target_info(target);
    if wanted.as_ref().is_some_and(|t| t.elf_machine != machine || t.bits_64 != is_64) {
        let found = format!("{}{}", machine_name(machine), if is_64 { "" } else { " (32 bit)" });
        return Err(ElfError::WrongArch { path: path.to_owned(), found, target: target.to_string() });
    }
    let mut requires = Requires { arch: target.arch().to_owned(), libc: "static".into(), ..Requires::default() };
    for segment in header.program_headers(endian, data).map_err(damaged)? {
        if segment.p_type(endian) == elf::PT_LOAD {
            let align: u64 = segment.p_align(endian).into();
            requires.page_align = if requires.page_align == 0 { align } else { requires.page_align.min(align) };
        }
        if let Some(interpreter) = segment.interpreter(endian, data).map_err(damaged)? {
            requires.interpreter = Some(String::from_utf8_lossy(interpreter).into_owned());
        }
    }
    requires.sonames = needed::<E>(header, endian, data).map_err(damaged)?;
    requires.glibc_min = glibc::<E>(header, endian, data).map_err(damaged)?;
    requires.libc = libc_kind(&requires);
    Ok(requires)
}

fn libc_kind(requires: &Requires) -> String {
    let musl = requires.interpreter.as_deref().is_some_and(|i| i.contains("ld-musl"));
    match () {
        () if musl => "musl",
        () if requires.glibc_min.is_some() || requires.sonames.iter().any(|s| s == "libc.so.6") => "glibc",
        () if requires.interpreter.is_none() && requires.sonames.is_empty() => "static",
        () => "other",
    }
    .to_owned()
}

fn needed<E: FileHeader<Endian = Endianness>>(header: &E, endian: Endianness, data: &[u8]) -> object::Result<Vec<String>> {
    let sections = header.sections(endian, data)?;
    let Some((entries, link)) = sections.dynamic(endian, data)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, data, link)?;
    let mut names = BTreeSet::new();
    for entry in entries.iter().take_while(|d| !is_tag::<E>(d, endian, elf::DT_NULL)) {
        if is_tag::<E>(entry, endian, elf::DT_NEEDED) {
            names.insert(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
        }
    }
    Ok(names.into_iter().collect())
}

fn is_tag<E: FileHeader<Endian = Endianness>>(entry: &E::Dyn, endian: Endianness, tag: elf::DynamicTag) -> bool {
    entry.tag(endian) == tag
}

/// Highest glibc symbol version that is needed and not weak.
fn glibc<E: FileHeader<Endian = Endianness>>(header: &E, endian: Endianness, data: &[u8]) -> object::Result<Option<String>> {
    let sections = header.sections(endian, data)?;
    let Some((mut needs, link)) = sections.gnu_verneed(endian, data)? else { return Ok(None) };
    let strings = sections.strings(endian, data, link)?;
    let mut highest: Option<String> = None;
    while let Some((_, mut versions)) = needs.next()? {
        while let Some(version) = versions.next()? {
            if version.vna_flags.get(endian).0 & elf::VER_FLG_WEAK.0 != 0 {
                continue;
            }
            let name = String::from_utf8_lossy(version.name(endian, strings)?).into_owned();
            let number = match name.strip_prefix("GLIBC_") {
                // Relative relocations packed the new way: understood since 2.36.
                Some("ABI_DT_RELR") => "2.36",
                Some(number) if number.starts_with(|c: char| c.is_ascii_digit()) => number,
                _ => continue,
            };
            if highest.as_deref().is_none_or(|h| numbers(h) < numbers(number)) {
                highest = Some(number.to_owned());
            }
        }
    }
    Ok(highest)
}

fn numbers(version: &str) -> Vec<u32> {
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
