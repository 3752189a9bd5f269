//! What is read of ELF files is what readelf reads, on programs and libraries of four architectures out of Debian's packages.

use roadie_model::package::Requires;
use roadie_model::target::TargetTriple;
use roadie_packager::{ElfError, Targets, inspect};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGETS: [(&str, &str); 4] = [
    ("X86-64", "x86_64-unknown-linux-gnu"),
    ("AArch64", "aarch64-unknown-linux-gnu"),
    ("ARM", "armv7-unknown-linux-gnueabihf"),
    ("80386", "i686-unknown-linux-gnu"),
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// What readelf says.
#[derive(Debug, Default, PartialEq)]
struct Read {
    needed: Vec<String>,
    interpreter: Option<String>,
    versions: BTreeMap<String, BTreeSet<String>>,
    glibc: Option<String>,
    align: u64,
}

fn number(version: &str) -> Vec<u32> {
    version.split('.').map(|n| n.parse().unwrap_or(0)).collect()
}

fn between(line: &str, open: char, close: char) -> Option<String> {
    Some(line.split_once(open)?.1.split_once(close)?.0.to_owned())
}

fn readelf(path: &Path) -> (String, Read) {
    let output = Command::new("readelf").args(["-W", "-h", "-l", "-d", "--version-info"]).arg(path).env("LC_ALL", "C").output();
    let text = String::from_utf8_lossy(&output.expect("readelf, of binutils").stdout).into_owned();
    let mut read = Read::default();
    let mut library = String::new();
    let machine = text.lines().find_map(|l| l.trim().strip_prefix("Machine:")).unwrap_or_default().trim().to_owned();
    for line in text.lines().map(str::trim) {
        if line.contains("(NEEDED)") {
            read.needed.extend(between(line, '[', ']'));
        } else if line.contains("Requesting program interpreter") {
            read.interpreter = between(line, ':', ']').map(|i| i.trim().to_owned());
        } else if line.starts_with("LOAD") {
            let align = line.split_whitespace().last().and_then(|n| u64::from_str_radix(n.trim_start_matches("0x"), 16).ok());
            let align = align.unwrap_or(0);
            read.align = if read.align == 0 { align } else { read.align.min(align) };
        } else if line.contains("File: ") && line.contains("Cnt:") {
            library = line.split("File: ").nth(1).and_then(|l| l.split_whitespace().next()).unwrap_or_default().to_owned();
        } else if line.contains("Flags: none") && line.contains("Version: ") && !line.contains("Rev:") {
            let version = line.split("Name: ").nth(1).and_then(|l| l.split_whitespace().next()).unwrap_or_default().to_owned();
            let glibc = version.strip_prefix("GLIBC_").map(|v| if v == "ABI_DT_RELR" { "2.36" } else { v });
            let glibc = glibc.filter(|v| v.starts_with(|c: char| c.is_ascii_digit()));
            if glibc.is_some_and(|v| read.glibc.as_deref().is_none_or(|h| number(h) < number(v))) {
                read.glibc = glibc.map(str::to_owned);
            }
            read.versions.entry(library.clone()).or_default().insert(version);
        }
    }
    read.needed.sort();
    read.needed.dedup();
    (machine, read)
}

fn ours(requires: &Requires) -> Read {
    Read {
        needed: requires.sonames.clone(),
        interpreter: requires.interpreter.clone(),
        versions: requires.versions.iter().map(|(k, v)| (k.clone(), v.iter().cloned().collect())).collect(),
        glibc: requires.glibc_min.clone(),
        align: requires.page_align,
    }
}

#[test]
fn the_requirements_agree_with_readelf() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new(root.join("ci/elfs")).status();
    if !status.is_ok_and(|s| s.success()) {
        return roadie_tests::skip("the_requirements_agree_with_readelf", "Debian's packages cannot be fetched");
    }
    let mut paths = Vec::new();
    files(&root.join("target/elfs/files"), &mut paths);
    let mut checked: BTreeMap<&str, u32> = BTreeMap::new();
    for path in paths {
        let data = std::fs::read(&path).expect("reads");
        if !data.starts_with(b"\x7fELF") || path.extension().is_some_and(|e| e == "o" || e == "a") {
            continue;
        }
        let (machine, expected) = readelf(&path);
        let Some((name, triple)) = TARGETS.iter().find(|(name, _)| machine.contains(name)) else { continue };
        let target = TargetTriple::new(triple).expect("valid");
        let requires = inspect("x", &data, &target, &Targets::default()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(ours(&requires), expected, "{}", path.display());
        *checked.entry(name).or_default() += 1;
        // For any other target it is refused by name.
        for (_, other) in TARGETS.iter().filter(|(other, _)| other != name) {
            let error = inspect("x", &data, &TargetTriple::new(other).expect("valid"), &Targets::default()).expect_err("refused");
            assert!(matches!(error, ElfError::WrongArch { .. }), "{error}");
        }
        // A floor below what it needs names the symbols, one above is content.
        if let Some(glibc) = requires.glibc_min.as_deref().filter(|g| number(g) > vec![2, 17]) {
            let floor = TargetTriple::new(&format!("{triple}.2.17")).expect("valid");
            let error = inspect("x", &data, &floor, &Targets::default()).expect_err("above the floor").to_string();
            assert!(error.contains(&format!("needs glibc {glibc}")), "{error}");
            let enough = TargetTriple::new(&format!("{triple}.{glibc}")).expect("valid");
            inspect("x", &data, &enough, &Targets::default()).expect("within the floor");
        }
    }
    assert_eq!(checked.len(), 4, "{checked:?}");
    assert!(checked.values().sum::<u32>() >= 300, "{checked:?}");
}

/// A file without sections is read by its program headers alone; damaged ones never end the program.
#[test]
fn stripped_and_damaged_files_are_read_as_far_as_they_go() {
    let path = std::env::current_exe().expect("exe");
    let whole = std::fs::read(&path).expect("reads");
    let target = TargetTriple::new("x86_64-unknown-linux-gnu").expect("valid");
    let targets = Targets::default();
    let full = inspect("x", &whole, &target, &targets).expect("reads");
    let mut bare = whole.clone();
    // e_shoff, e_shnum, e_shstrndx.
    bare[40..48].fill(0);
    bare[60..64].fill(0);
    let read = inspect("x", &bare, &target, &targets).expect("reads");
    assert_eq!((&read.sonames, &read.versions, &read.glibc_min), (&full.sonames, &full.versions, &full.glibc_min));
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..3000 {
        let mut broken = whole[..(4096 + rng.usize(..60_000)).min(whole.len())].to_vec();
        for _ in 0..rng.usize(1..20) {
            let at = rng.usize(..broken.len().min(8192));
            broken[at] = rng.u8(..);
        }
        let _ = inspect("x", &broken, &target, &targets);
    }
}
