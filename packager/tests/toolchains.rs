//! What goes wrong with build tools: each gives its cause and what mends it.

use roadie_model::definition::{Build, Definition, Service, ToolchainKind};
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::target::TargetTriple;
use roadie_packager::{BuildEnv, PackError, Packager, Store};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const HOST: &str = "x86_64-unknown-linux-gnu";

/// A folder with programs that say what such programs say, and nothing else on the PATH.
struct Scene {
    temp: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { temp: tempfile::tempdir().expect("temp") };
        std::fs::create_dir(scene.bin()).expect("makes");
        scene.std(HOST);
        scene.tool("rustc", &scene.rustc("1.90.0"));
        scene.tool("cargo", "exit 0");
        std::fs::create_dir_all(scene.project().join("src")).expect("makes");
        std::fs::write(scene.project().join("src/main.rs"), "fn main() {}\n").expect("writes");
        scene
    }

    fn bin(&self) -> PathBuf {
        self.temp.path().join("bin")
    }

    fn project(&self) -> PathBuf {
        self.temp.path().join("project")
    }

    fn sysroot(&self) -> PathBuf {
        self.temp.path().join("sysroot")
    }

    fn rustc(&self, version: &str) -> String {
        format!(
            "case $1 in -vV) printf 'rustc {version}\\nhost: {HOST}\\nrelease: {version}\\n' ;; *) echo {} ;; esac",
            self.sysroot().display()
        )
    }

    fn tool(&self, name: &str, script: &str) {
        let path = self.bin().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    fn without(&self, name: &str) {
        std::fs::remove_file(self.bin().join(name)).expect("removes");
    }

    /// The standard library for a target.
    fn std(&self, triple: &str) {
        let folder = self.sysroot().join("lib/rustlib").join(triple).join("lib");
        std::fs::create_dir_all(&folder).expect("makes");
        std::fs::write(folder.join("libstd-0.rlib"), "").expect("writes");
    }

    fn src(&self) {
        std::fs::create_dir_all(self.sysroot().join("lib/rustlib/src/rust/library/std")).expect("makes");
    }

    fn packager(&self) -> Packager {
        let vars = [("PATH", self.bin()), ("HOME", self.temp.path().to_owned())];
        let vars = vars.into_iter().map(|(k, v)| (k.to_owned(), v.display().to_string())).collect();
        let store = Store::open(self.temp.path().join("store")).expect("opens");
        Packager::new(store, BuildEnv { vars, ..BuildEnv::default() }).expect("no files of targets")
    }

    /// Cause and fix, joined; or how it would be built.
    fn choose(&self, target: &str, wanted: ToolchainKind) -> Result<String, String> {
        let target = TargetTriple::new(target).expect("valid");
        let chosen = self.packager().toolchain(&self.project(), &target, wanted);
        chosen.map(|t| format!("{:?} in {}: {}", t.kind, t.folder, t.reason)).map_err(|m| format!("{} | {}", m.cause, m.fix))
    }
}

/// Debian's own rustc, where it is installed, would be found beside the scene's.
fn debian_has(triple: &str) -> bool {
    Path::new("/usr/lib/rustlib").join(triple).exists()
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    use ToolchainKind::{Auto, BuildStd, Cargo, Cross, Gcc, Zigbuild};
    let floor = "x86_64-unknown-linux-gnu.2.17";
    let (arm, riscv, musl) = ("armv7-unknown-linux-gnueabihf", "riscv64gc-unknown-linux-gnu", "x86_64-unknown-linux-musl");
    let mut checked = 0;
    let mut expect = |scene: &Scene, target: &str, wanted: ToolchainKind, parts: &[&str]| {
        let said = scene.choose(target, wanted).expect_err("nothing builds it");
        assert!(parts.iter().all(|p| said.contains(p)), "{target} {wanted:?}: {said}");
        checked += 1;
    };
    let s = Scene::new();
    assert!(s.choose(HOST, Auto).expect("builds").contains("this machine's own"));
    expect(
        &s,
        riscv,
        Auto,
        &["standard library for riscv64gc-unknown-linux-gnu", "rustup target add riscv64gc-unknown-linux-gnu"],
    );
    expect(&s, arm, Auto, &["rustup target add armv7", "dpkg --add-architecture armhf", "libstd-rust-web-dev:armhf"]);
    expect(&s, floor, Auto, &["there is no `cargo-zigbuild`", "pip install cargo-zigbuild"]);
    expect(&s, floor, Cargo, &["cannot build for a glibc floor", "write `x86_64-unknown-linux-gnu`"]);
    expect(&s, HOST, Cross, &["there is no `cross`", "cargo install cross"]);
    if !Path::new("/usr/lib/rustlib/src/rust/library/std").exists() {
        expect(&s, musl, BuildStd, &["source", "rust-src"]);
    }
    s.std(arm);
    expect(&s, arm, Auto, &["nothing here links for armv7", "apt install gcc-arm-linux-gnueabihf"]);
    expect(&s, arm, Gcc, &["there is no `arm-linux-gnueabihf-gcc`", "apt install gcc-arm-linux-gnueabihf"]);
    s.std("sparc64-unknown-linux-gnu");
    expect(&s, "sparc64-unknown-linux-gnu", Gcc, &["no C cross compiler is known", "zigbuild"]);
    s.tool("cargo-zigbuild", "echo cargo-zigbuild 0.19.1");
    expect(&s, floor, Auto, &["cargo-zigbuild is here, zig is not", "pip install ziglang"]);
    s.tool("zig", "echo 0.16.0");
    expect(&s, floor, Auto, &["zig 0.16.0 needs cargo-zigbuild 0.22", "pip install --upgrade"]);
    s.tool("cross", "echo cross 0.2.5");
    expect(&s, HOST, Cross, &["no container engine answers", "start docker"]);
    s.tool("zig", "echo 0.13.0");
    for (target, wanted, how) in
        [(floor, Auto, "Zigbuild in zigbuild"), (arm, Auto, "Zigbuild"), (HOST, Zigbuild, "asks for zigbuild")]
    {
        assert!(s.choose(target, wanted).expect("builds").contains(how));
    }
    s.tool("arm-linux-gnueabihf-gcc", "echo 12.2.0");
    assert!(s.choose(arm, Auto).expect("builds").contains("its C cross compiler is installed"));
    s.tool("docker", "echo 28.2.2");
    assert!(s.choose(riscv, Auto).expect("builds").starts_with("Cross in cross"));
    s.src();
    assert!(s.choose(musl, BuildStd).expect("builds").starts_with("BuildStd"));
    if !debian_has(HOST) {
        s.without("rustc");
        expect(&s, HOST, Auto, &["no `rustc`", "rustup.rs"]);
    }
    s.without("cargo");
    expect(&s, HOST, Auto, &["no `cargo`", "rustup.rs"]);
    assert!(checked >= 11, "{checked}");
}

fn service(dir: &Path) -> (Definition, Service) {
    let text = "services:\n  app: {runtime: local, build: {type: cargo, target: x86_64-unknown-linux-gnu}}\n";
    let base = SourceFile { name: "roadie.yaml".into(), text: text.into() };
    let definition = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: dir.to_owned() }).expect("parses");
    let service = definition.services.values().next().expect("a service").clone();
    (definition, service)
}

/// Words of real tools, as they print them, and what roadie makes of them.
const SAID: &[(&str, &str)] = &[
    (
        "error: failed to write `/x/target/debug/.fingerprint/a`\nCaused by:\n  No space left on device (os error 28)",
        "the disk is full",
    ),
    (
        "error: failed to open: /x/target/release/.cargo-lock\nCaused by:\n  Read-only file system (os error 30)",
        "CARGO_TARGET_DIR",
    ),
    ("error: failed to create directory `/x/target`\nCaused by:\n  Permission denied (os error 13)", "belongs to somebody else"),
    (
        "error[E0463]: can't find crate for `std`\n  = note: the `x86_64-unknown-linux-gnu` target may not be installed",
        "rustup target add",
    ),
    (
        "error: linker `cc` not found\n  |\n  = note: No such file or directory (os error 2)",
        "a linker for x86_64-unknown-linux-gnu is missing: apt install gcc libc6-dev",
    ),
    (
        "/usr/bin/ld: /x/main.o: Relocations in generic ELF (EM: 183)\n/usr/bin/ld: /x/main.o: error adding symbols: file in wrong format",
        "for another architecture",
    ),
    ("error occurred: failed to find tool \"aarch64-linux-gnu-gcc\": No such file or directory (os error 2)", "a C compiler for"),
    (
        "error: failed to run custom build command for `openssl-sys v0.9.1`\n  pkg-config has not been configured to support cross-compilation.",
        "use rustls instead of openssl",
    ),
    ("  Could not find directory of OpenSSL installation, and this `-sys` crate cannot proceed", "`vendored` feature"),
    ("  The system library `libudev` required by crate `libudev-sys` was not found.", "-dev package"),
    (
        "/x/build-script-build: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.39' not found (required by /x/build-script-build)",
        "target/roadie",
    ),
    (
        "error: the lock file /x/Cargo.lock needs to be updated but --locked was passed to prevent this",
        "cargo update --workspace",
    ),
    ("error: the package 'app' does not contain this feature: nope", "correct `build.features`"),
    ("error: profile `fast` is not defined", "correct `build.profile`"),
    ("error: rustc 1.70.0 is not supported by the following package:\n  x@1.0.0 requires rustc 1.85 or newer", "rustup update"),
    (
        "error: failed to download from `https://x/`\nCaused by:\n  [6] Could not resolve hostname (Could not resolve host: x)",
        "the registry cannot be reached",
    ),
    ("error: could not compile `big` (signal: 9, SIGKILL: kill)", "want of memory"),
    ("error: no such command: `zigbuild`", "pip install cargo-zigbuild"),
    ("Error: Failed to find zig", "pip install ziglang"),
    ("  failed to execute command: No such file or directory (os error 2)\n  is `cmake` not installed?", "apt install cmake"),
];

#[tokio::test]
async fn what_tools_say_is_explained() {
    let scene = Scene::new();
    let (definition, service) = service(&scene.project());
    std::fs::write(scene.project().join("Cargo.toml"), "").expect("writes");
    let metadata = format!(
        "{{\"packages\":[{{\"name\":\"app\",\"version\":\"0.1.0\",\"id\":\"path+file:///p#app@0.1.0\",\"source\":null,\"dependencies\":[],\
         \"targets\":[{{\"kind\":[\"bin\"],\"crate_types\":[\"bin\"],\"name\":\"app\",\"src_path\":\"/p/src/main.rs\",\"edition\":\"2024\",\"doctest\":false,\"test\":true,\"doc\":true}}],\
         \"features\":{{}},\"manifest_path\":\"/p/Cargo.toml\",\"edition\":\"2024\"}}],\"workspace_members\":[\"path+file:///p#app@0.1.0\"],\
         \"workspace_default_members\":[\"path+file:///p#app@0.1.0\"],\"resolve\":null,\"target_directory\":\"{}\",\"version\":1,\"workspace_root\":\"/p\"}}",
        scene.temp.path().join("target").display()
    );
    std::fs::write(scene.temp.path().join("metadata"), metadata).expect("writes");
    let target = TargetTriple::new(HOST).expect("valid");
    for (said, fix) in SAID {
        std::fs::write(scene.temp.path().join("said"), said).expect("writes");
        let folder = scene.temp.path().display();
        scene.tool(
            "cargo",
            &format!("case $1 in metadata) exec /bin/cat {folder}/metadata ;; esac\n/bin/cat {folder}/said >&2\nexit 101"),
        );
        let mut env = BuildEnv { vars: std::env::vars().collect(), ..BuildEnv::default() };
        env.vars.insert("PATH".into(), format!("{}:/usr/bin:/bin", scene.bin().display()));
        let store = Store::open(scene.temp.path().join("store")).expect("opens");
        let packager = Packager::new(store, env).expect("no files of targets");
        let error = packager.pack(&definition, &service, &target, &|_| {}).await.expect_err("fails");
        assert!(matches!(error, PackError::Build { .. }), "{said}: {error:?}");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(fix), "{said}\n--- `{fix}` is not in: {hint}");
    }
    assert!(SAID.len() >= 15);
    assert!(matches!(service.build, Build::Cargo(_)));
}
