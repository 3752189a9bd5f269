//! A store, a project and the tools around them.

use flate2::{Compression, write::ZlibEncoder};
use jiff::tz::TimeZone;
use roadie_model::package::Package;
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::target::TargetTriple;
use roadie_packager::trust::{AllowedSigners, NAMESPACE, Policy, RevokedKeys};
use roadie_packager::{BuildEnv, Packager, Store};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Every kind of key that people have.
pub const KINDS: [(&str, &str); 4] = [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "521"), ("rsa", "2048")];

pub fn allow(line: &str) -> Policy {
    let allowed = AllowedSigners::parse(line.as_bytes(), &TimeZone::UTC).expect("a good file");
    Policy { allowed, revoked: RevokedKeys::default(), identity: None, now: now() }
}

pub fn public(key: &Path) -> String {
    fs::read_to_string(key.with_extension("pub")).expect("a public key").trim().to_owned()
}

/// What `ssh-keygen -Y verify` says, as an exit code.
pub fn stock_verifies(allowed: &Path, identity: &str, signature: &Path, statement: &Path) -> bool {
    let file = fs::File::open(statement).expect("a statement");
    let mut command = Command::new("ssh-keygen");
    command.args(["-Y", "verify", "-n", NAMESPACE, "-I", identity, "-f"]).arg(allowed).arg("-s").arg(signature).env("TZ", "UTC");
    command.stdin(file).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("ssh-keygen").success()
}

pub struct Workshop {
    pub dir: PathBuf,
    pub store: Store,
    _temp: Arc<tempfile::TempDir>,
}

impl Workshop {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().expect("temp");
        fs::create_dir(temp.path().join("project")).expect("makes");
        let store = Store::open(temp.path().join("store")).expect("opens");
        Self { dir: temp.path().to_owned(), store, _temp: Arc::new(temp) }
    }

    pub fn project(&self) -> PathBuf {
        self.dir.join("project")
    }

    /// The same project with another store.
    pub fn with_store(&self, name: &str) -> Self {
        let store = Store::open(self.dir.join(name)).expect("opens");
        Self { dir: self.dir.clone(), store, _temp: self._temp.clone() }
    }

    /// A package with a script in it.
    pub async fn pack(&self, name: &str) -> Package {
        fs::write(self.project().join(name), format!("#!/bin/sh\necho {name}\n")).expect("writes");
        self.pack_text(&format!("services:\n  {name}: {{runtime: local, build: {{type: prebuilt, path: {name}}}}}\n")).await
    }

    /// A package with a binary that `list` is in as `cargo auditable` puts it there.
    pub async fn pack_auditable(&self, list: &[u8]) -> Package {
        self.pack_auditable_into(&self.store, list).await
    }

    pub async fn pack_auditable_into(&self, store: &Store, list: &[u8]) -> Package {
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::new(6));
        packed.write_all(list).expect("packs");
        let section = self.dir.join("section");
        fs::write(&section, packed.finish().expect("packs")).expect("writes");
        let argument = format!(".dep-v0={}", section.display());
        run(Command::new("objcopy").args(["--add-section", &argument, "/bin/true"]).arg(self.project().join("api")));
        let text = "services:\n  api: {runtime: local, build: {type: prebuilt, path: api}}\n";
        pack(store, &self.project(), text).await
    }

    pub async fn pack_text(&self, text: &str) -> Package {
        pack(&self.store, &self.project(), text).await
    }

    /// The signature that ssh-keygen makes over `text`.
    pub fn signed_by_ssh_keygen(&self, key: &Path, namespace: &str, text: &str) -> Vec<u8> {
        let (file, signature) = (self.dir.join("text"), self.dir.join("text.sig"));
        let _ = fs::remove_file(&signature);
        fs::write(&file, text).expect("writes");
        run(Command::new("ssh-keygen").args(["-Y", "sign", "-n", namespace, "-f"]).arg(key).arg(&file));
        fs::read(&signature).expect("a signature")
    }
}

async fn pack(store: &Store, dir: &Path, text: &str) -> Package {
    let base = SourceFile { name: "roadie.yaml".into(), text: text.into() };
    let definition = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: dir.to_owned() }).expect("parses");
    let service = definition.services.values().next().expect("a service");
    let env = BuildEnv { vars: std::env::vars().collect(), ..BuildEnv::default() };
    let packager = Packager::new(store.clone(), env).expect("no files of targets");
    let target = TargetTriple::new("x86_64-unknown-linux-gnu").expect("valid");
    packager.pack(&definition, service, &target, &|_| {}).await.expect("packs").package
}

pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::try_from(SystemTime::now()).expect("a time")
}

/// Runs a tool to a good end; standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a key; without a passphrase unless `args` have one.
pub fn keygen(dir: &Path, name: &str, args: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-C", "a comment", "-f"]).arg(&path).args(args);
    if !args.contains(&"-N") {
        command.args(["-N", ""]);
    }
    run(&mut command);
    path
}

/// A real ssh-agent, ended with the test.
pub struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    pub fn start(socket: &Path) -> Self {
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(socket).stdout(Stdio::null()).stderr(Stdio::null());
        let agent = Self { child: command.spawn().expect("ssh-agent"), socket: socket.to_owned() };
        let answers = || std::os::unix::net::UnixStream::connect(socket).is_ok();
        let began = std::time::Instant::now();
        while !answers() {
            assert!(began.elapsed() < Duration::from_secs(10), "ssh-agent does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        agent
    }

    /// Loads a key, giving its passphrase as a person would.
    pub fn add(&self, key: &Path, passphrase: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let ask = key.with_extension("ask");
        fs::write(&ask, format!("#!/bin/sh\necho {passphrase}\n")).expect("writes");
        fs::set_permissions(&ask, fs::Permissions::from_mode(0o700)).expect("marks");
        let mut command = Command::new("ssh-add");
        command
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .env("SSH_ASKPASS", &ask)
            .env("SSH_ASKPASS_REQUIRE", "force");
        run(&mut command);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
