//! Which tools build for a target, why those, and what is missing when none can.

mod advice;
mod probe;

pub use advice::advise;
pub use probe::{Machine, Rustc, host};

use crate::targets::Targets;
use roadie_model::definition::ToolchainKind;
use roadie_model::target::TargetTriple;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tools that build for one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// Which, never [`ToolchainKind::Auto`].
    pub kind: ToolchainKind,
    /// Why those, a sentence part.
    pub reason: String,
    /// `rustc`, `zig` and so on with their versions.
    pub tools: BTreeMap<String, String>,
    /// The program, its subcommand.
    pub program: (String, String),
    /// Variables that the build sees besides its own.
    pub env: BTreeMap<String, String>,
    /// Arguments besides the usual ones.
    pub args: Vec<String>,
    /// Compiler flags for the target.
    pub rustflags: Vec<String>,
    /// Folder below cargo's target folder: builds by other tools must not share theirs.
    pub folder: String,
}

/// Why a target cannot be built for here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Missing {
    /// What is missing, a sentence part.
    pub cause: String,
    /// The command or the change that mends it.
    pub fix: String,
}

impl Missing {
    fn new(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { cause: cause.into(), fix: fix.into() }
    }
}

/// Versions of zig from which an older cargo-zigbuild cannot use it: (zig, cargo-zigbuild).
const ZIG_NEEDS_ZIGBUILD: [((u32, u32), (u32, u32)); 2] = [((0, 16), (0, 22)), ((0, 15), (0, 20))];

/// Chooses the tools for `target`.
///
/// # Errors
/// [`Missing`] with the first thing that is not there, and how to get it.
pub fn choose(
    machine: &Machine,
    targets: &Targets,
    dir: &Path,
    target: &TargetTriple,
    wanted: ToolchainKind,
) -> Result<Toolchain, Missing> {
    let rustcs = machine.rustcs(dir);
    if machine.find("cargo").is_none() {
        return Err(Missing::new("there is no `cargo` on the PATH", "install Rust: https://rustup.rs"));
    }
    let Some(default) = rustcs.first() else {
        return Err(Missing::new("there is no `rustc` that tells its version", "install Rust: https://rustup.rs"));
    };
    let chooser = Chooser { machine, targets, target, rustcs: &rustcs, default };
    match wanted {
        ToolchainKind::Auto => chooser.auto(),
        ToolchainKind::Cargo => chooser.cargo("the definition asks for cargo"),
        ToolchainKind::Gcc => chooser.gcc("the definition asks for gcc"),
        ToolchainKind::Zigbuild => chooser.zigbuild("the definition asks for zigbuild"),
        ToolchainKind::Cross => chooser.cross("the definition asks for cross"),
        ToolchainKind::BuildStd => chooser.build_std("the definition asks for build-std"),
    }
}

struct Chooser<'a> {
    machine: &'a Machine,
    targets: &'a Targets,
    target: &'a TargetTriple,
    rustcs: &'a [Rustc],
    default: &'a Rustc,
}

impl Chooser<'_> {
    fn auto(&self) -> Result<Toolchain, Missing> {
        let triple = self.target.triple();
        if let Some((major, minor)) = self.target.glibc_floor() {
            return self.zigbuild(&format!("only zig links against glibc {major}.{minor} whatever this machine has"));
        }
        if triple == self.default.host {
            return self.cargo("it is this machine's own");
        }
        let std = self.with_std();
        if std.is_err() && self.machine.find("cross").is_some() && self.machine.engine().is_some() {
            return self.cross("no compiler here has its standard library, and a container engine runs");
        }
        let same_arch = self.default.host.split('-').next() == Some(self.target.arch());
        let gcc = self.targets.get(self.target).and_then(|t| t.gcc()).is_some_and(|gcc| self.machine.find(&gcc).is_some());
        if gcc && triple.contains("-gnu") {
            return self.gcc("its C cross compiler is installed");
        }
        if self.machine.find("cargo-zigbuild").is_some() && self.machine.zig().is_some() {
            return self.zigbuild("zig links and compiles C for it");
        }
        if same_arch && triple.contains("musl") {
            return self.cargo("Rust brings what musl needs; C code is compiled by musl-gcc");
        }
        std?;
        Err(self.no_linker())
    }

    /// A compiler with the standard library for the target.
    fn with_std(&self) -> Result<&Rustc, Missing> {
        let triple = self.target.triple();
        self.rustcs.iter().find(|r| r.has_std(triple)).ok_or_else(|| {
            let arch = self.targets.get(self.target).map(|t| t.debian_arch.as_str()).unwrap_or_default();
            let debian = match (arch, triple.contains("-gnu")) {
                ("", _) | (_, false) => String::new(),
                (arch, true) => format!(", or with Debian's Rust: dpkg --add-architecture {arch} && apt update && apt install libstd-rust-web-dev:{arch}"),
            };
            let more = match self.rustcs.iter().any(Rustc::has_src) {
                true => "; its source is here: `toolchain: build-std` builds it too",
                false => "",
            };
            Missing::new(
                format!("no compiler here has Rust's standard library for {triple}"),
                format!("rustup target add {triple}{debian}{more}"),
            )
        })
    }

    fn no_linker(&self) -> Missing {
        let cause = format!("nothing here links for {}", self.target);
        let zig = "pip install cargo-zigbuild ziglang";
        match self.targets.get(self.target).map(|t| t.debian.as_str()) {
            Some("") | None => Missing::new(cause, zig),
            Some(packages) => Missing::new(cause, format!("apt install {packages}, or {zig}")),
        }
    }

    fn plain(&self, kind: ToolchainKind, rustc: &Rustc, reason: &str) -> Toolchain {
        let mut env = BTreeMap::new();
        let mut reason = reason.to_owned();
        if !rustc.is_default {
            env.insert("RUSTC".into(), rustc.path.display().to_string());
            reason = format!("{reason}; the standard library is {}'s", rustc.path.display());
        }
        let word = serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let folder = if rustc.is_default { word } else { format!("{word}-{}", rustc.version) };
        Toolchain {
            kind,
            reason,
            tools: BTreeMap::from([("rustc".to_owned(), rustc.version.clone())]),
            program: ("cargo".into(), "build".into()),
            env,
            args: Vec::new(),
            rustflags: Vec::new(),
            folder,
        }
    }

    fn cargo(&self, reason: &str) -> Result<Toolchain, Missing> {
        let mut toolchain = self.plain(ToolchainKind::Cargo, self.with_std()?, reason);
        if self.target.glibc_floor().is_some() {
            let fix = format!("write `{}`, or `toolchain: zigbuild`", self.target.triple());
            return Err(Missing::new(format!("cargo alone cannot build for a glibc floor ({})", self.target), fix));
        }
        if self.target.triple().ends_with("-musl")
            && let Some(gcc) = self.machine.find("musl-gcc")
        {
            toolchain.env.insert(format!("CC_{}", self.underscored()), gcc.display().to_string());
        }
        Ok(toolchain)
    }

    fn gcc(&self, reason: &str) -> Result<Toolchain, Missing> {
        let std = self.with_std()?;
        let info = self.targets.get(self.target);
        let Some(gcc) = info.and_then(|t| t.gcc()) else {
            return Err(Missing::new(format!("no C cross compiler is known for {}", self.target), "set `toolchain: zigbuild`"));
        };
        let Some(found) = self.machine.tool(&gcc, "-dumpfullversion") else {
            let packages = info.map(|t| t.debian.clone()).unwrap_or_default();
            return Err(Missing::new(format!("there is no `{gcc}`"), format!("apt install {packages}")));
        };
        let mut toolchain = self.plain(ToolchainKind::Gcc, std, reason);
        let upper = self.underscored().to_uppercase();
        toolchain.env.insert(format!("CARGO_TARGET_{upper}_LINKER"), gcc.clone());
        toolchain.env.insert(format!("CC_{}", self.underscored()), gcc.clone());
        let ar = gcc.replace("-gcc", "-ar");
        if self.machine.find(&ar).is_some() {
            toolchain.env.insert(format!("AR_{}", self.underscored()), ar);
        }
        toolchain.tools.insert(gcc, found.version);
        Ok(toolchain)
    }

    fn zigbuild(&self, reason: &str) -> Result<Toolchain, Missing> {
        let std = self.with_std()?;
        let mut toolchain = self.plain(ToolchainKind::Zigbuild, std, reason);
        self.add_zig(&mut toolchain)?;
        Ok(toolchain)
    }

    fn add_zig(&self, toolchain: &mut Toolchain) -> Result<(), Missing> {
        let Some(zigbuild) = self.machine.tool("cargo-zigbuild", "--version") else {
            return Err(Missing::new(
                "there is no `cargo-zigbuild`",
                "pip install cargo-zigbuild, or cargo install --locked cargo-zigbuild",
            ));
        };
        let Some(zig) = self.machine.zig() else {
            return Err(Missing::new("cargo-zigbuild is here, zig is not", "pip install ziglang"));
        };
        let (has, with) = (two_numbers(&zigbuild.version), two_numbers(&zig.version));
        if let Some((_, needs)) = ZIG_NEEDS_ZIGBUILD.iter().find(|(from, _)| with >= *from).filter(|(_, needs)| has < *needs) {
            return Err(Missing::new(
                format!("zig {} needs cargo-zigbuild {}.{} or newer, here is {}.{}", zig.version, needs.0, needs.1, has.0, has.1),
                "pip install --upgrade cargo-zigbuild ziglang",
            ));
        }
        toolchain.program.1 = "zigbuild".into();
        toolchain.tools.insert("cargo-zigbuild".into(), format!("{}.{}", has.0, has.1));
        toolchain.tools.insert("zig".into(), zig.version);
        Ok(())
    }

    fn cross(&self, reason: &str) -> Result<Toolchain, Missing> {
        let Some(cross) = self.machine.tool("cross", "--version") else {
            return Err(Missing::new("there is no `cross`", "cargo install cross --git https://github.com/cross-rs/cross"));
        };
        let Some(engine) = self.machine.engine() else {
            return Err(Missing::new(
                "no container engine answers, which cross needs",
                "start docker, or set `toolchain: zigbuild`",
            ));
        };
        let mut toolchain = self.plain(ToolchainKind::Cross, self.default, reason);
        toolchain.program.0 = "cross".into();
        toolchain.tools.insert("cross".into(), cross.version);
        toolchain.tools.insert("engine".into(), engine.version);
        Ok(toolchain)
    }

    /// The standard library is built too. Stable compilers do that only when told that it is known to be unstable.
    fn build_std(&self, reason: &str) -> Result<Toolchain, Missing> {
        let triple = self.target.triple();
        let Some(rustc) = self.rustcs.iter().find(|r| r.has_src()) else {
            let fix = "rustup component add rust-src, or with Debian's Rust: apt install rust-web-src";
            return Err(Missing::new("no compiler here has the standard library's source", fix));
        };
        let mut toolchain = self.plain(ToolchainKind::BuildStd, rustc, reason);
        toolchain.env.insert("RUSTC".into(), rustc.path.display().to_string());
        toolchain.env.insert("RUSTC_BOOTSTRAP".into(), "1".into());
        toolchain.args.push("-Zbuild-std=std,panic_abort".into());
        if triple != self.default.host {
            self.add_zig(&mut toolchain)?;
        }
        if triple.contains("-musl") {
            // Rust's own copies of musl's start files come with its standard library; zig brings others.
            toolchain.rustflags.extend(["-Clink-self-contained=no".into(), "-Crelocation-model=static".into()]);
        }
        Ok(toolchain)
    }

    fn underscored(&self) -> String {
        self.target.triple().replace('-', "_")
    }
}

/// The first `N.M` in a tool's answer.
fn two_numbers(text: &str) -> (u32, u32) {
    let word = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default();
    let mut numbers = word.split(['.', '-', '+']).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// A flag that ties the binary to this very processor, when there is one among the user's.
pub fn cpu_of_this_machine<'a>(flags: impl IntoIterator<Item = &'a str>) -> bool {
    flags.into_iter().any(|f| f.contains("target-cpu=native"))
}

/// Where cargo's own folder for a toolchain is.
pub fn target_dir(target_directory: &Path, toolchain: &Toolchain) -> PathBuf {
    target_directory.join("roadie").join(&toolchain.folder)
}
