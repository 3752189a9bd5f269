//! No change is ever missed, and what is no change gives the same package: random mutations of a workspace, each packed and read
//! back. `MUTATIONS=N` says how many, `SEED=N` which.

use roadie_model::definition::{Build, Definition, Service};
use roadie_model::package::Package;
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::target::TargetTriple;
use roadie_packager::{BuildEnv, PackError, PackEvent, Packager, Report, Store};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// A binary without a standard library: it is built in no time.
const MAIN: &str = "#![no_std]\n#![no_main]\n#![allow(unexpected_cfgs)]\nmod part;\ninclude!(concat!(env!(\"OUT_DIR\"), \"/data.rs\"));\n\
    #[panic_handler]\nfn panic(_: &core::panic::PanicInfo<'_>) -> ! {\n    loop {}\n}\n\
    #[used]\nstatic MAIN: [u8; 12] = *b\"@MAIN@\";\n#[used]\nstatic PART: [u8; 12] = part::PART;\n#[used]\nstatic DEP: [u8; 12] = dep::DEP;\n\
    #[used]\nstatic VERSION: &str = dep::VERSION;\n#[used]\nstatic ENV: &str = env!(\"MUTANT\");\n#[used]\nstatic CONFIG: &str = env!(\"CONFIGURED\");\n\
    #[cfg(feature = \"more\")]\n#[used]\nstatic MORE: [u8; 12] = *b\"with-feature\";\n\
    #[cfg(other_toolchain)]\n#[used]\nstatic OTHER: [u8; 15] = *b\"other-toolchain\";\n\
    #[unsafe(no_mangle)]\npub extern \"C\" fn _start() -> ! {\n    loop {}\n}\n";
const BUILD: &str = "fn main() {\n    println!(\"cargo:rerun-if-changed=data\");\n    println!(\"cargo:rustc-link-arg=-nostartfiles\");\n    \
    println!(\"cargo:rustc-link-arg=-nodefaultlibs\");\n    let mut names: Vec<_> = std::fs::read_dir(\"data\").unwrap().flatten().map(|e| e.path()).collect();\n    \
    names.sort();\n    let text: String = names.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();\n    \
    let out = std::path::Path::new(&std::env::var(\"OUT_DIR\").unwrap()).join(\"data.rs\");\n    \
    std::fs::write(out, format!(\"#[used]\\nstatic DATA: &str = {text:?};\\n\")).unwrap();\n}\n";

/// What the workspace is meant to be: file contents, and what is not in files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct State {
    main: String,
    part: String,
    dep: String,
    version: u32,
    data: BTreeMap<String, String>,
    env: String,
    config: String,
    feature: bool,
    /// The file `rust-toolchain.toml` names another toolchain.
    other_toolchain: bool,
}

impl State {
    /// The words that the binary must hold.
    fn words(&self) -> Vec<String> {
        let mut words = vec![
            self.main.clone(),
            self.part.clone(),
            self.dep.clone(),
            format!("0.{}.0-version", self.version),
            self.env.clone(),
            self.config.clone(),
        ];
        words.extend(self.data.values().cloned());
        words.extend(self.feature.then(|| "with-feature".to_owned()));
        words.extend(self.other_toolchain.then(|| "other-toolchain".to_owned()));
        words
    }

    fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut files = BTreeMap::new();
        let mut add = |path: &str, text: String| files.insert(PathBuf::from(path), text);
        add("app/src/main.rs", MAIN.replace("@MAIN@", &self.main));
        add("app/src/part.rs", format!("pub const PART: [u8; 12] = *b\"{}\";\n", self.part));
        add(
            "dep/src/lib.rs",
            format!(
                "#![no_std]\npub const DEP: [u8; 12] = *b\"{}\";\npub const VERSION: &str = concat!(env!(\"CARGO_PKG_VERSION\"), \"-version\");\n",
                self.dep
            ),
        );
        add("dep/Cargo.toml", format!("[package]\nname = \"dep\"\nversion = \"0.{}.0\"\nedition = \"2024\"\n", self.version));
        add(".cargo/config.toml", format!("[env]\nCONFIGURED = \"{}\"\n", self.config));
        if self.other_toolchain {
            add("rust-toolchain.toml", "[toolchain]\npath = \"@TOOLCHAIN@\"\n".to_owned());
        }
        self.data.iter().for_each(|(name, text)| {
            add(&format!("app/data/{name}"), text.clone());
        });
        files
    }
}

struct Bench {
    dir: PathBuf,
    written: BTreeMap<PathBuf, String>,
    rng: fastrand::Rng,
    count: u32,
    /// Files that name a toolchain mean something to the `cargo` that is called.
    rustup: bool,
}

impl Bench {
    fn new(dir: PathBuf, seed: u64) -> Self {
        let put = |path: &str, text: &str| {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
            std::fs::write(path, text).expect("writes");
        };
        put(
            "Cargo.toml",
            "[workspace]\nmembers = [\"app\", \"dep\"]\nresolver = \"3\"\n[profile.dev]\npanic = \"abort\"\ndebug = 0\nincremental = false\n",
        );
        put(
            "app/Cargo.toml",
            "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[features]\nmore = []\n[dependencies]\ndep = { path = \"../dep\" }\n",
        );
        put("app/build.rs", BUILD);
        let bench = Self { dir, written: BTreeMap::new(), rng: fastrand::Rng::with_seed(seed), count: 0, rustup: rustup() };
        bench.make_toolchain();
        bench
    }

    fn toolchain(&self) -> PathBuf {
        self.dir.with_file_name("toolchain")
    }

    /// A second toolchain for rustup: the installed one under another version, whose compiler sets a `cfg`.
    fn make_toolchain(&self) {
        let out = Command::new("rustc").args(["--print", "sysroot"]).output().expect("there is a rustc");
        let sysroot = PathBuf::from(String::from_utf8(out.stdout).expect("utf-8").trim());
        let bin = self.toolchain().join("bin");
        std::fs::create_dir_all(&bin).expect("makes");
        std::os::unix::fs::symlink(sysroot.join("lib"), self.toolchain().join("lib")).expect("links");
        std::os::unix::fs::symlink(sysroot.join("bin/cargo"), bin.join("cargo")).expect("links");
        let real = sysroot.join("bin/rustc").display().to_string();
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n  -vV | *-Vv*) '{real}' -vV | sed 's/^release: .*/&-other/; s/^commit-hash: .*/&0/' ;;\n  \
            *) exec '{real}' --cfg other_toolchain \"$@\" ;;\nesac\n"
        );
        let rustc = bin.join("rustc");
        std::fs::write(&rustc, script).expect("writes");
        std::fs::set_permissions(&rustc, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    }

    /// Twelve letters that were never there before.
    fn word(&mut self) -> String {
        self.count += 1;
        format!("w{:05}{:06x}", self.count, self.rng.u32(..1 << 24))
    }

    /// Brings the files to `state`; `time` says what happens to the times of those that change.
    fn write(&mut self, state: &State, time: Time) {
        let files = state.files();
        for path in self.written.keys().filter(|p| !files.contains_key(*p)) {
            let full = self.dir.join(path);
            std::fs::remove_file(&full).expect("removes");
            if time != Time::Now {
                set_time(full.parent().expect("a folder"), SystemTime::now() - Duration::from_secs(3600 * 24 * 400));
            }
        }
        for (path, text) in &files {
            if self.written.get(path) == Some(text) {
                continue;
            }
            let full = self.dir.join(path);
            std::fs::create_dir_all(full.parent().expect("a folder")).expect("makes");
            let before = std::fs::metadata(&full).and_then(|m| m.modified()).ok();
            let text = text.replace("@TOOLCHAIN@", &self.toolchain().display().to_string());
            std::fs::write(&full, text).expect("writes");
            let old = SystemTime::now() - Duration::from_secs(3600 * 24 * 400);
            match (time, before) {
                (Time::Now, _) => {}
                (Time::Kept, Some(before)) => set_time(&full, before),
                (Time::Kept | Time::Old, _) => set_time(&full, old),
            }
            if time != Time::Now {
                // A folder tells as well that something is new in it.
                set_time(full.parent().expect("a folder"), old);
            }
        }
        self.written = files;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    Now,
    /// As an unpacked archive or a restored snapshot has it.
    Old,
    /// As it was before the edit.
    Kept,
}

fn rustup() -> bool {
    Command::new("rustup").arg("--version").output().is_ok_and(|out| out.status.success())
}

fn set_time(path: &Path, time: SystemTime) {
    std::fs::File::open(path).and_then(|f| f.set_modified(time)).expect("sets the time");
}

fn service(dir: &Path, feature: bool) -> (Definition, Service) {
    let text = "services:\n  app: {runtime: local, build: {type: cargo, profile: dev}}\n";
    let base = SourceFile { name: "roadie.yaml".into(), text: text.into() };
    let definition = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: dir.to_owned() }).expect("parses");
    let mut service = definition.services.values().next().expect("a service").clone();
    if let (Build::Cargo(options), true) = (&mut service.build, feature) {
        options.features.push("more".into());
    }
    (definition, service)
}

fn binary(package: &Package) -> Vec<u8> {
    let file = std::fs::File::open(&package.archive).expect("opens");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    for entry in archive.entries().expect("reads") {
        let mut entry = entry.expect("reads");
        if entry.path().expect("a path").to_string_lossy() == "bin/app" {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("reads");
            return bytes;
        }
    }
    panic!("no binary in the package");
}

fn holds(bytes: &[u8], word: &str) -> bool {
    memchr::memmem::find(bytes, word.as_bytes()).is_some()
}

/// One change of what is meant, and how it gets to the disk.
fn mutate(bench: &mut Bench, state: &State, branches: &mut Vec<State>) -> (State, Time, &'static str) {
    let mut next = state.clone();
    let time = [Time::Now, Time::Now, Time::Old, Time::Kept][bench.rng.usize(..4)];
    let word = bench.word();
    let what = match bench.rng.u8(..13) {
        0 => {
            next.main = word;
            "main.rs"
        }
        1 => {
            next.part = word;
            "a module"
        }
        2 => {
            next.dep = word;
            "a path dependency"
        }
        3 => {
            next.version += 1;
            "a manifest, and with it the lock file"
        }
        4 => {
            next.data.insert(format!("{word}.txt"), word);
            "a new file"
        }
        5 => {
            let first = next.data.keys().next().cloned();
            first.map(|name| next.data.insert(name, word));
            "a data file"
        }
        6 => {
            if next.data.len() > 1 {
                next.data.pop_last();
            }
            "a file that is gone"
        }
        7 => {
            next.env = word;
            "a variable"
        }
        8 => {
            next.config = word;
            "cargo's config file"
        }
        9 => {
            next.feature = !next.feature;
            "a feature"
        }
        10 => {
            branches.push(state.clone());
            next = branches[bench.rng.usize(..branches.len())].clone();
            "another branch"
        }
        11 if bench.rustup => {
            next.other_toolchain = !next.other_toolchain;
            "the toolchain file"
        }
        _ => "nothing",
    };
    (next, time, what)
}

impl Bench {
    /// Packs what is there.
    async fn pack(&self, state: &State, by_inputs: bool, report: Report<'_>) -> Result<Package, PackError> {
        let mut env = BuildEnv { vars: std::env::vars().collect(), ..BuildEnv::default() };
        // Set by the rustup that started this test, and stronger than a file that names a toolchain.
        env.set.insert("RUSTUP_TOOLCHAIN".into(), String::new());
        env.set.insert("MUTANT".into(), state.env.clone());
        let store = Store::open(self.dir.with_file_name("store")).expect("opens");
        let packager = Packager::new(store, env).expect("no files of targets").by_inputs(by_inputs);
        let (definition, service) = service(&self.dir, state.feature);
        let target = TargetTriple::new("x86_64-unknown-linux-gnu").expect("valid");
        Ok(packager.pack(&definition, &service, &target, report).await?.package)
    }

    fn state(&mut self) -> State {
        State {
            main: self.word(),
            part: self.word(),
            dep: self.word(),
            version: 1,
            data: BTreeMap::from([("a.txt".to_owned(), self.word())]),
            env: self.word(),
            config: self.word(),
            feature: false,
            other_toolchain: false,
        }
    }
}

async fn run(shard: u64) {
    let count: u32 = std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let seed: u64 = std::env::var("SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1) + shard;
    let temp = tempfile::tempdir().expect("temp");
    let mut bench = Bench::new(temp.path().join("w"), seed);
    let mut state = bench.state();
    bench.write(&state, Time::Now);
    let (mut ids, mut branches): (HashMap<State, String>, Vec<State>) = (HashMap::new(), Vec::new());
    let mut used: BTreeSet<String> = BTreeSet::new();
    let noticed = AtomicU32::new(0);
    for step in 0..=count {
        let mut what = "the first build";
        if step > 0 {
            let (next, time, named) = mutate(&mut bench, &state, &mut branches);
            what = named;
            if named == "nothing" {
                // Touched, or a comment: no change of the program.
                let path = bench.dir.join("app/src/part.rs");
                let mut text = std::fs::read_to_string(&path).expect("reads");
                if bench.rng.bool() {
                    text.push_str("// a remark\n");
                }
                std::fs::write(&path, text).expect("writes");
                bench.written.remove(Path::new("app/src/part.rs"));
            } else {
                bench.write(&next, time);
            }
            state = next;
        }
        let report = |event: PackEvent| {
            if matches!(event, PackEvent::Warning { .. }) {
                noticed.fetch_add(1, Ordering::Relaxed);
            }
        };
        // Now and then by the inputs alone, as a pipeline does.
        let packed = bench.pack(&state, step % 4 == 3, &report).await;
        let package = packed.unwrap_or_else(|e| panic!("seed {seed}, step {step}, {what}: {e:?}"));
        let bytes = binary(&package);
        let words = state.words();
        for word in &words {
            assert!(
                holds(&bytes, word),
                "seed {seed}, step {step}: {what} was missed: `{word}` is not in the binary of {state:?}"
            );
        }
        for word in used.iter().filter(|w| !words.contains(w)) {
            assert!(!holds(&bytes, word), "seed {seed}, step {step}, {what}: `{word}` is still in the binary");
        }
        used.extend(words);
        let id = package.id.to_string();
        let known = ids.entry(state.clone()).or_insert_with(|| id.clone());
        assert_eq!(*known, id, "seed {seed}, step {step}, {what}: the same source gave another package");
    }
    let different: BTreeSet<&String> = ids.values().collect();
    assert_eq!(different.len(), ids.len(), "other sources gave the same package");
    assert!(count < 30 || noticed.load(Ordering::Relaxed) > 0, "no edit with an old time was among them");
}

#[tokio::test]
async fn no_change_is_missed_in_the_first_half() {
    run(0).await;
}

#[tokio::test]
async fn no_change_is_missed_in_the_second_half() {
    run(1000).await;
}

/// What another build of the same folder has compiled in between, one that failed too, is not taken for one's own.
#[tokio::test]
async fn an_edit_that_another_build_saw_is_not_missed() {
    let temp = tempfile::tempdir().expect("temp");
    let mut bench = Bench::new(temp.path().join("w"), 7);
    let first = bench.state();
    let with = State { feature: true, ..first.clone() };
    let silent = |_: PackEvent| {};
    let holds_all = |package: &Package, state: &State, when: &str| {
        let bytes = binary(package);
        for word in state.words() {
            assert!(holds(&bytes, &word), "{when}: `{word}` is not in the binary");
        }
    };
    // With the feature, then an edit that only the build without it sees, then back with an old time.
    bench.write(&with, Time::Now);
    holds_all(&bench.pack(&with, false, &silent).await.expect("packs"), &with, "first");
    let edited = State { dep: bench.word(), ..first.clone() };
    bench.write(&edited, Time::Now);
    holds_all(&bench.pack(&edited, false, &silent).await.expect("packs"), &edited, "edited");
    bench.write(&with, Time::Old);
    holds_all(&bench.pack(&with, false, &silent).await.expect("packs"), &with, "back, another build came between");
    // A build that fails has compiled the dependency all the same.
    let edited = State { dep: bench.word(), main: "too short".into(), ..with.clone() };
    bench.write(&edited, Time::Now);
    bench.pack(&edited, false, &silent).await.expect_err("it does not compile");
    bench.write(&with, Time::Kept);
    holds_all(&bench.pack(&with, false, &silent).await.expect("packs"), &with, "back, a failed build came between");
    // The same bytes with an older time, and a file that is gone from a folder that does not tell.
    let more =
        State { data: BTreeMap::from([("a.txt".to_owned(), bench.word()), ("b.txt".to_owned(), bench.word())]), ..with.clone() };
    bench.write(&more, Time::Now);
    holds_all(&bench.pack(&more, false, &silent).await.expect("packs"), &more, "a new file");
    let less = State { data: more.data.iter().take(1).map(|(k, v)| (k.clone(), v.clone())).collect(), ..with.clone() };
    bench.write(&less, Time::Old);
    let package = bench.pack(&less, false, &silent).await.expect("packs");
    holds_all(&package, &less, "one file less");
    assert!(!holds(&binary(&package), &more.data["b.txt"]), "the file that is gone is in the binary");
}

/// A package that left the workspace may change as it likes.
#[tokio::test]
async fn an_edit_of_a_package_that_left_stops_nobody() {
    let temp = tempfile::tempdir().expect("temp");
    let mut bench = Bench::new(temp.path().join("w"), 8);
    let state = bench.state();
    let silent = |_: PackEvent| {};
    bench.write(&state, Time::Now);
    bench.pack(&state, false, &silent).await.expect("packs");
    let put = |path: &str, text: &str| std::fs::write(bench.dir.join(path), text).expect("writes");
    put(
        "Cargo.toml",
        "[workspace]\nmembers = [\"app\"]\nexclude = [\"dep\"]\nresolver = \"3\"\n[profile.dev]\npanic = \"abort\"\ndebug = 0\n",
    );
    put("app/Cargo.toml", "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[features]\nmore = []\n");
    let main = MAIN.replace("@MAIN@", &state.main).replace("dep::DEP", "*b\"no-more-deps\"").replace("dep::VERSION", "\"\"");
    put("app/src/main.rs", &main);
    put("dep/src/lib.rs", "pub const LEFT: u8 = 0;\n");
    set_time(&bench.dir.join("dep/src/lib.rs"), SystemTime::now() - Duration::from_secs(3600));
    let package = bench.pack(&state, false, &silent).await.expect("packs without it");
    assert!(holds(&binary(&package), "no-more-deps"));
}

/// A file names another toolchain, by an old time too, and names it no more.
#[tokio::test]
async fn another_toolchain_is_not_missed() {
    if !rustup() {
        return roadie_tests::skip(
            "another_toolchain_is_not_missed",
            "this machine has no rustup, only it reads rust-toolchain.toml",
        );
    }
    let temp = tempfile::tempdir().expect("temp");
    let mut bench = Bench::new(temp.path().join("w"), 9);
    let first = bench.state();
    let silent = |_: PackEvent| {};
    let other = State { other_toolchain: true, ..first.clone() };
    let mut ids = Vec::new();
    for (state, time) in [(&first, Time::Now), (&other, Time::Old), (&first, Time::Old), (&other, Time::Now)] {
        bench.write(state, time);
        for by_inputs in [true, false] {
            let package = bench.pack(state, by_inputs, &silent).await.expect("packs");
            assert_eq!(holds(&binary(&package), "other-toolchain"), state.other_toolchain, "by inputs: {by_inputs}");
            ids.push(package.id.to_string());
        }
    }
    assert_eq!(ids[..4], ids[4..], "each toolchain has its package");
    assert!(ids[0] == ids[1] && ids[2] == ids[3] && ids[0] != ids[2], "{ids:?}");
}
