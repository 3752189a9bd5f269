//! What is known of each target triple: data, embedded at build from `targets/*.toml`, and the user's own files over it.

use crate::PackError;
use object::elf;
use roadie_model::target::TargetTriple;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// One target triple.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetInfo {
    /// The triple.
    pub triple: String,
    elf_machine: u16,
    bits: u32,
    /// Prefix of the C tools for it, as `aarch64-linux-gnu`; empty when there are none.
    #[serde(default)]
    pub tools: String,
    /// Debian packages with such tools; empty where Debian has none.
    #[serde(default)]
    pub debian: String,
    /// Debian's name for the architecture; empty where it has none.
    #[serde(default)]
    pub debian_arch: String,
    /// What runs its programs on another architecture.
    #[serde(default)]
    pub emulator: String,
}

impl TargetInfo {
    /// ELF machine of its binaries.
    pub fn machine(&self) -> elf::Machine {
        elf::Machine(self.elf_machine)
    }

    /// Whether they are 64-bit.
    pub fn is_64(&self) -> bool {
        self.bits == 64
    }

    /// The name of its C compiler.
    pub fn gcc(&self) -> Option<String> {
        (!self.tools.is_empty()).then(|| format!("{}-gcc", self.tools))
    }
}

const FILES: &[&str] = &[
    include_str!("../../targets/x86_64-unknown-linux-gnu.toml"),
    include_str!("../../targets/x86_64-unknown-linux-musl.toml"),
    include_str!("../../targets/aarch64-unknown-linux-gnu.toml"),
    include_str!("../../targets/aarch64-unknown-linux-musl.toml"),
    include_str!("../../targets/armv7-unknown-linux-gnueabihf.toml"),
    include_str!("../../targets/i686-unknown-linux-gnu.toml"),
    include_str!("../../targets/riscv64gc-unknown-linux-gnu.toml"),
];

/// All that is known, by triple.
#[derive(Debug, Clone)]
pub struct Targets(BTreeMap<String, TargetInfo>);

impl Default for Targets {
    fn default() -> Self {
        let infos = FILES.iter().filter_map(|text| toml::from_str::<TargetInfo>(text).ok());
        Self(infos.map(|info| (info.triple.clone(), info)).collect())
    }
}

impl Targets {
    /// The embedded ones, with those of `*.toml` files in `folder` over them; no folder, no more.
    ///
    /// # Errors
    /// [`PackError::File`] naming the file that is not one.
    pub fn with(folder: &Path) -> Result<Self, PackError> {
        let mut all = Self::default();
        let Ok(entries) = std::fs::read_dir(folder) else { return Ok(all) };
        let mut files: Vec<_> =
            entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
        files.sort();
        for path in files {
            let bad = |reason: String| PackError::File { key: "targets", path: path.clone(), reason };
            let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?;
            let info: TargetInfo = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
            TargetTriple::new(&info.triple).map_err(|e| bad(e.to_string()))?;
            all.0.insert(info.triple.clone(), info);
        }
        Ok(all)
    }

    /// What is known of a triple; `None` for one that we know nothing of (then nothing is checked).
    pub fn get(&self, target: &TargetTriple) -> Option<&TargetInfo> {
        self.0.get(target.triple())
    }

    /// All, sorted by triple.
    pub fn all(&self) -> impl Iterator<Item = &TargetInfo> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_file_is_read_and_may_be_replaced() {
        let embedded = Targets::default();
        assert_eq!(embedded.all().count(), FILES.len());
        for info in embedded.all() {
            TargetTriple::new(&info.triple).expect("a triple");
            assert!(matches!(info.bits, 32 | 64) && info.elf_machine > 0);
        }
        let folder = tempfile::tempdir().expect("temp");
        let mine = "triple = \"s390x-unknown-linux-gnu\"\nelf_machine = 22\nbits = 64\n";
        std::fs::write(folder.path().join("mine.toml"), mine).expect("writes");
        let more = Targets::with(folder.path()).expect("reads");
        assert_eq!(more.all().count(), FILES.len() + 1);
        std::fs::write(folder.path().join("bad.toml"), "triple = 1\n").expect("writes");
        assert!(Targets::with(folder.path()).expect_err("refused").to_string().contains("bad.toml"));
    }
}
