//! What this machine has to build with: found by looking, and by asking each tool for its version.

use crate::BuildEnv;
use crate::memo::{Memo, Stat};
use roadie_model::target::TargetTriple;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A Rust compiler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rustc {
    /// How it is called; `rustc` is cargo's own choice.
    pub path: PathBuf,
    /// True for the one that cargo takes by itself.
    pub is_default: bool,
    /// `1.95.0`.
    pub version: String,
    /// The triple that it runs on.
    pub host: String,
    /// Where its libraries are.
    pub sysroot: PathBuf,
}

impl Rustc {
    /// Whether it has the standard library for `triple`.
    pub fn has_std(&self, triple: &str) -> bool {
        let folder = self.sysroot.join("lib/rustlib").join(triple).join("lib");
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name());
        names.into_iter().any(|n| n.to_string_lossy().starts_with("libstd-"))
    }

    /// Whether it has the standard library's source.
    pub fn has_src(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/std").is_dir()
    }
}

/// A tool that was found, and what it says its version is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Where, or how it is called.
    pub path: PathBuf,
    /// As it says; empty when it does not.
    pub version: String,
}

/// Looks for tools. Answers are remembered for as long as the tool's file is the same.
#[derive(Debug, Clone)]
pub struct Machine {
    env: BuildEnv,
    memo: Memo,
}

impl Machine {
    /// The machine as `env` shows it.
    pub fn new(env: BuildEnv, memo: Memo) -> Self {
        Self { env, memo }
    }

    /// A program on the PATH.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        which::which_in(name, self.env.var("PATH"), "/").ok()
    }

    /// All Rust compilers, the one that cargo takes in `dir` first.
    pub fn rustcs(&self, dir: &Path) -> Vec<Rustc> {
        let first = self.env.var("RUSTC").map(PathBuf::from).or_else(|| self.find("rustc"));
        let mut found: Vec<Rustc> = first.and_then(|path| self.rustc(&path, dir, true)).into_iter().collect();
        let more = which::which_in_all("rustc", self.env.var("PATH"), "/").into_iter().flatten();
        for path in more.chain([PathBuf::from("/usr/bin/rustc")]) {
            if let Some(rustc) = self.rustc(&path, dir, false)
                && !found.iter().any(|r| r.sysroot == rustc.sysroot)
            {
                found.push(rustc);
            }
        }
        found
    }

    fn rustc(&self, path: &Path, dir: &Path, is_default: bool) -> Option<Rustc> {
        // rustup's rustc is one program for all toolchains: which one it becomes is written in these.
        let above = dir.ancestors().flat_map(|d| [d.join("rust-toolchain"), d.join("rust-toolchain.toml")]);
        let settings = self.env.rustup_home().join("settings.toml");
        let chosen: Vec<_> = above.chain([settings]).map(|p| Stat::at(&p)).collect();
        let key = format!("{path:?} {:?} {chosen:?} {:?}", Stat::at(path)?, self.env.var("RUSTUP_TOOLCHAIN"));
        let found: Rustc = self.remembered("rustc", &key, || {
            let verbose = said(Command::new(path).arg("-vV").current_dir(dir))?;
            let field = |name: &str| verbose.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
            let sysroot = said(Command::new(path).args(["--print", "sysroot"]).current_dir(dir))?;
            Some(Rustc {
                path: path.to_owned(),
                is_default,
                version: field("release: ")?,
                host: field("host: ")?,
                sysroot: PathBuf::from(sysroot.trim()),
            })
        })?;
        // An update that leaves rustup's own file alone takes the sysroot away.
        found.sysroot.is_dir().then_some(Rustc { is_default, ..found })
    }

    /// A tool by name, asked for its version with `arg`.
    pub fn tool(&self, name: &str, arg: &str) -> Option<Tool> {
        let path = self.find(name)?;
        self.ask(&path, &[arg])
    }

    /// zig: a program of that name, or Python's package.
    pub fn zig(&self) -> Option<Tool> {
        let named = self.env.var("CARGO_ZIGBUILD_ZIG_PATH").map(PathBuf::from).or_else(|| self.find("zig"));
        if let Some(path) = named {
            return self.ask(&path, &["version"]);
        }
        // Beside a cargo-zigbuild that pip installed.
        let beside = self.find("cargo-zigbuild").and_then(|p| p.with_file_name("python-zig").canonicalize().ok());
        if let Some(tool) = beside.and_then(|path| self.ask(&path, &["version"])) {
            return Some(tool);
        }
        let python = self.find("python3")?;
        let tool = self.ask(&python, &["-m", "ziglang", "version"])?;
        Some(Tool { path: PathBuf::from("python3 -m ziglang"), ..tool })
    }

    fn ask(&self, path: &Path, args: &[&str]) -> Option<Tool> {
        let key = format!("{path:?} {args:?} {:?} {:?}", Stat::at(path)?, self.env.var("PYTHONPATH"));
        let answer: Option<String> = self.remembered("tool", &key, || said(Command::new(path).args(args)));
        let version = answer?.lines().next().unwrap_or_default().trim().to_owned();
        Some(Tool { path: path.to_owned(), version })
    }

    fn remembered<T: Serialize + serde::de::DeserializeOwned>(
        &self,
        kind: &str,
        key: &str,
        ask: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        if let Some(known) = self.memo.get(kind, key) {
            return Some(known);
        }
        let found = ask()?;
        self.memo.put(kind, key, &found);
        Some(found)
    }

    /// A container engine that answers.
    pub fn engine(&self) -> Option<Tool> {
        let asked = self.env.var("CROSS_CONTAINER_ENGINE").map(|e| vec![e]);
        let names = asked.unwrap_or_else(|| vec!["docker".into(), "podman".into()]);
        names.iter().find_map(|name| {
            let path = self.find(name)?;
            let version = said(Command::new(&path).args(["info", "--format", "{{.ServerVersion}}"]))?;
            Some(Tool { path, version: version.trim().to_owned() })
        })
    }
}

/// This machine's own triple, as the compiler that cargo takes in `dir` says.
pub fn host(machine: &Machine, dir: &Path) -> Option<TargetTriple> {
    machine.rustcs(dir).first().and_then(|r| TargetTriple::new(&r.host).ok())
}

/// Standard output of a command that succeeds.
fn said(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
