//! What a failed build's output means, and what mends it.

use crate::targets::Targets;
use roadie_model::target::TargetTriple;

/// One thing that goes wrong: words that the output then holds, and what to do. `{T}` stands for the triple, `{GCC}` for Debian's
/// packages with its C tools, `{ARCH}` for Debian's name of the architecture.
struct Rule {
    all: &'static [&'static str],
    fix: &'static str,
}

const fn rule(all: &'static [&'static str], fix: &'static str) -> Rule {
    Rule { all, fix }
}

/// The first that fits counts: what is particular stands before what is general.
const RULES: &[Rule] = &[
    rule(&["No space left on device"], "the disk is full: free space, or set CARGO_TARGET_DIR to another disk"),
    rule(&["Read-only file system"], "cargo's target folder cannot be written: set CARGO_TARGET_DIR to one that can"),
    rule(
        &["Permission denied (os error 13)"],
        "a folder of the build belongs to somebody else: chown it, or set CARGO_TARGET_DIR",
    ),
    rule(
        &["version `GLIBC_", "build-script"],
        "a build script was made on a newer system: delete cargo's target/roadie folder and pack again",
    ),
    rule(&["can't find crate for `std`"], "rustup target add {T}"),
    rule(&["can't find crate for `core`"], "rustup target add {T}"),
    rule(&["target may not be installed"], "rustup target add {T}"),
    rule(&["library/Cargo.lock", "does not exist"], "rustup component add rust-src"),
    rule(&["no such command: `zigbuild`"], "pip install cargo-zigbuild ziglang"),
    rule(&["no such command"], "install the subcommand of cargo that is named above"),
    rule(&["Failed to find zig"], "pip install ziglang"),
    rule(
        &["pkg-config has not been configured to support cross-compilation"],
        "the library must come for {T}: vendor it (a `vendored` feature), use rustls instead of openssl, or install it with \
         `dpkg --add-architecture {ARCH}` and set PKG_CONFIG_ALLOW_CROSS=1 and PKG_CONFIG_PATH to its folder",
    ),
    rule(
        &["Could not find directory of OpenSSL installation"],
        "use rustls, or openssl's `vendored` feature; or install libssl-dev:{ARCH} and set PKG_CONFIG_ALLOW_CROSS=1",
    ),
    rule(&["The system library `", "was not found"], "install the -dev package of the library that is named above"),
    rule(&["Could not run", "pkg-config"], "apt install pkg-config"),
    rule(&["is `cmake` not installed"], "apt install cmake"),
    rule(&["failed to find tool"], "a C compiler for {T} is missing: apt install {GCC}, or set `toolchain: zigbuild`"),
    rule(&["linker `", "not found"], "a linker for {T} is missing: apt install {GCC}, or set `toolchain: zigbuild`"),
    rule(&["file in wrong format"], "the linker is for another architecture: apt install {GCC}, or set `toolchain: zigbuild`"),
    rule(&["is incompatible with"], "the linker is for another architecture: apt install {GCC}, or set `toolchain: zigbuild`"),
    rule(&["--locked", "needs to be updated"], "run `cargo update --workspace` and commit Cargo.lock, or set `locked: false`"),
    rule(&["does not have", "feature"], "correct `build.features`"),
    rule(&["does not contain this feature"], "correct `build.features`"),
    rule(&["profile `", "is not defined"], "correct `build.profile`, or define it in Cargo.toml"),
    rule(&["requires rustc", "or newer"], "update Rust: rustup update; or take an older version of that crate"),
    rule(&["Could not resolve host"], "the registry cannot be reached: check the network, or pack with a filled CARGO_HOME"),
    rule(&["failed to download"], "the registry cannot be reached: check the network, or pack with a filled CARGO_HOME"),
    rule(&["SIGKILL"], "the compiler was killed, maybe for want of memory: build with fewer jobs (CARGO_BUILD_JOBS=1)"),
    rule(&["linking with"], "the linker failed: its words are above"),
];

/// What to do about a build that failed with this output.
pub fn advise(output: &[String], target: &TargetTriple, targets: &Targets) -> Option<String> {
    let text = output.join("\n");
    let rule = RULES.iter().find(|rule| rule.all.iter().all(|words| text.contains(words)))?;
    let info = targets.get(target);
    let or = |text: Option<&str>, other: &str| text.filter(|t| !t.is_empty()).unwrap_or(other).to_owned();
    let gcc = or(info.map(|t| t.debian.as_str()), "its C tools");
    let arch = or(info.map(|t| t.debian_arch.as_str()), "its architecture");
    Some(rule.fix.replace("{T}", target.triple()).replace("{GCC}", &gcc).replace("{ARCH}", &arch))
}
