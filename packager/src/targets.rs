//! What is known of each target triple: data, embedded at build from `targets/*.toml`.

use object::elf;
use roadie_model::target::TargetTriple;
use serde::Deserialize;

/// One target triple.
#[derive(Debug, Clone)]
pub struct TargetInfo {
    /// The triple.
    pub triple: String,
    /// ELF machine of its binaries.
    pub elf_machine: elf::Machine,
    /// Whether they are 64-bit.
    pub bits_64: bool,
    /// Debian packages with a linker for it, for hints.
    pub debian: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    triple: String,
    elf_machine: u16,
    bits: u32,
    debian: String,
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

/// Looks a triple up; `None` for one that we know nothing of (then nothing is checked).
pub fn target_info(target: &TargetTriple) -> Option<TargetInfo> {
    let files = FILES.iter().filter_map(|text| toml::from_str::<File>(text).ok());
    files
        .map(|f| TargetInfo {
            triple: f.triple,
            elf_machine: elf::Machine(f.elf_machine),
            bits_64: f.bits == 64,
            debian: f.debian,
        })
        .find(|t| t.triple == target.triple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_file_is_read() {
        for text in FILES {
            let file: File = toml::from_str(text).expect("parses");
            let target = TargetTriple::new(&file.triple).expect("a triple");
            assert_eq!(target_info(&target).expect("found").bits_64, file.bits == 64);
        }
    }
}
