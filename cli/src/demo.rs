//! `roadie demo`: the main job on this machine, on a sandbox host, with an example service. Every claim is checked.

use crate::args::{Global, Named, RolloutArgs, Verb};
use crate::fleet::Fleet;
use crate::out::{self, Fatal};
use crate::project::{self, Environment};
use roadie_deployer::{Rollout, SshConnector};
use roadie_model::definition::Definition;
use roadie_model::outcome::Outcome;
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_transport::embedded::EmbeddedSshd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SOURCE: &str = include_str!("../../examples/hello/src/main.rs");
const MANIFEST: &str = "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n";

/// The story.
pub async fn run(global: &Global, keep: bool) -> Result<u8, Fatal> {
    let mut environment = Environment::read()?;
    let demo = environment.cache.join("demo");
    environment.store = demo.join("packages");
    let sandbox = tempfile::Builder::new()
        .prefix("sandbox-")
        .tempdir_in(made(&demo)?)
        .map_err(|e| Fatal::failed(format!("cannot make a sandbox in `{}`", demo.display())).cause(e.to_string()))?;
    let stage = Stage::set(global, &environment, &demo, sandbox.path()).await?;
    let told = tokio::select! {
        told = stage.tell(keep) => told,
        _ = tokio::signal::ctrl_c() => Err(Fatal { outcome: Outcome::Interrupted, ..Fatal::failed("the demo was interrupted") }),
    };
    // Whatever happened, nothing stays behind.
    let cleaned = stage.clean_up().await;
    drop(sandbox);
    told?;
    cleaned?;
    say(&format!("Done. Packages and build are kept in {}; delete it whenever you like.", demo.display()));
    Ok(0)
}

fn made(folder: &Path) -> Result<&Path, Fatal> {
    std::fs::create_dir_all(folder)
        .map_err(|e| Fatal::failed(format!("cannot make `{}`", folder.display())).cause(e.to_string()))?;
    Ok(folder)
}

fn say(text: &str) {
    out::line(text);
}

fn step(text: &str) {
    out::line(&format!("\n== {text}"));
}

/// The sandbox host and what is needed to work on it.
struct Stage {
    fleet: Fleet,
    host: EmbeddedSshd,
    source: PathBuf,
    sandbox: PathBuf,
    port: u16,
}

impl Stage {
    async fn set(global: &Global, environment: &Environment, demo: &Path, sandbox: &Path) -> Result<Self, Fatal> {
        let source = demo.join("hello");
        made(&source.join("src"))?;
        for (name, text) in [("Cargo.toml", MANIFEST), ("src/main.rs", SOURCE)] {
            // Only when it differs: cargo looks at the time of a file.
            let path = source.join(name);
            if std::fs::read_to_string(&path).ok().as_deref() != Some(text) {
                std::fs::write(&path, text)
                    .map_err(|e| Fatal::failed(format!("cannot write `{}`", path.display())).cause(e.to_string()))?;
            }
        }
        let (home, keys) = (sandbox.join("home"), sandbox.join("keys"));
        made(&home)?;
        made(&keys)?;
        let host = EmbeddedSshd::start(&home, &keys, Vec::new()).await;
        let host = host.map_err(|e| Fatal::failed("cannot start the sandbox host").cause(e.to_string()))?;
        let port = free_port().await?;
        let connector = Arc::new(SshConnector {
            home: sandbox.to_owned(),
            user: environment.user.clone(),
            agent: None,
            accept_new_host_keys: false,
        });
        // Its own sandbox needs no asking.
        let global = Global { yes: true, ..global.clone() };
        let fleet = Fleet::new(global, Rollout::default(), environment.clone(), connector);
        Ok(Self { fleet, host, source, sandbox: sandbox.to_owned(), port })
    }

    fn definition_text(&self, version: &str, healthy: bool) -> String {
        let unhealthy = if healthy { "0" } else { "1" };
        format!(
            "hosts:\n  sandbox: {{address: 127.0.0.1, port: {}, user: demo, ssh_key: \"{}\", host_key: \"{}\"}}\n\
             services:\n  hello:\n    hosts: [sandbox]\n    build: {{type: cargo, profile: dev}}\n    deploy:\n      \
             lifecycle: simple\n      scope: user\n      args: [--listen, \"127.0.0.1:{port}\"]\n      \
             env: {{HELLO_VERSION: \"{version}\", HELLO_UNHEALTHY: \"{unhealthy}\"}}\n      \
             health: {{http: \"http://127.0.0.1:{port}/health\", interval: 200ms, timeout: 3s, stable_for: 1s}}\n",
            self.host.addr().port(),
            self.host.client_key_path().display(),
            self.host.host_fingerprint(),
            port = self.port,
        )
    }

    fn definition(&self, version: &str, healthy: bool) -> Result<Definition, Fatal> {
        let base = SourceFile { name: "roadie.yaml".into(), text: self.definition_text(version, healthy) };
        let parsed = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: self.source.clone() });
        parsed.map_err(|found| Fatal::failed(found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
    }

    async fn roadie(&self, verb: Verb, version: &str, healthy: bool) -> Result<u8, Fatal> {
        let definition = self.definition(version, healthy)?;
        let global = Global { file: None, env: None, hosts: vec![], services: vec![], ..self.fleet.global().clone() };
        let targets = project::targets(&definition, &global, &[])?;
        self.fleet.run(verb, &definition, targets).await
    }

    async fn deploy(&self, version: &str, healthy: bool, wanted: Outcome) -> Result<(), Fatal> {
        let verb = Verb::Deploy {
            named: Named { names: vec![] },
            dry_run: false,
            skip_health_check: false,
            package: None,
            plan: None,
            rollout: RolloutArgs::default(),
        };
        let code = self.roadie(verb, version, healthy).await?;
        expect(code, wanted)
    }

    /// Asks the running server itself.
    async fn expect_version(&self, wanted: &str) -> Result<(), Fatal> {
        let answer = get(self.port, "/version").await.unwrap_or_else(|e| format!("no answer: {e}"));
        if answer == wanted {
            say(&format!("GET http://127.0.0.1:{}/version answers: {answer}", self.port));
            return Ok(());
        }
        Err(Fatal::failed(format!("the server should answer version {wanted}, it says `{answer}`")))
    }

    async fn tell(&self, keep: bool) -> Result<(), Fatal> {
        say("This demo deploys a small HTTP server to a sandbox host: an sshd inside of this process, on loopback, with");
        say(&format!(
            "throw-away keys, at port {}. Nothing needs root; the server listens on port {}.",
            self.host.addr().port(),
            self.port
        ));

        step("deploy version 1: build, pack, send, start, wait until healthy");
        self.deploy("1", true, Outcome::Done).await?;
        self.expect_version("1").await?;

        step("deploy it again: nothing changed, so nothing is done");
        self.deploy("1", true, Outcome::Done).await?;

        step("deploy version 2");
        self.deploy("2", true, Outcome::Done).await?;
        self.expect_version("2").await?;

        step("deploy version 3, which never gets healthy: roadie finds its way back by itself");
        self.deploy("3", false, Outcome::RolledBack).await?;
        self.expect_version("2").await?;

        step("status, releases and the newest log lines");
        let none = || Named { names: vec![] };
        expect(self.roadie(Verb::Status(none()), "2", true).await?, Outcome::Done)?;
        expect(self.roadie(Verb::Releases(none()), "2", true).await?, Outcome::Done)?;
        let logs = Verb::Logs { named: none(), follow: false, lines: Some(5), since: None, release: None };
        expect(self.roadie(logs, "2", true).await?, Outcome::Done)?;

        step("roll back to version 1 by hand");
        expect(
            self.roadie(Verb::Rollback { named: none(), to: None, rollout: RolloutArgs::default() }, "2", true).await?,
            Outcome::Done,
        )?;
        self.expect_version("1").await?;
        if keep { self.keep().await } else { Ok(()) }
    }

    async fn keep(&self) -> Result<(), Fatal> {
        let file = self.sandbox.join("roadie.yaml");
        let text = self
            .definition_text("4", true)
            .replace("build: {", &format!("build: {{manifest_dir: \"{}\", ", self.source.display()));
        std::fs::write(&file, text).map_err(|e| Fatal::failed("cannot write the definition").cause(e.to_string()))?;
        step("the sandbox host stays until you press Ctrl-C; try in another terminal:");
        for line in ["status", "deploy", "logs -f", "releases", "rollback", "exec -- uname -a"] {
            say(&format!("  roadie --file {} {line}", file.display()));
        }
        say(&format!("  curl http://127.0.0.1:{}/version", self.port));
        let _ = tokio::signal::ctrl_c().await;
        Ok(())
    }

    /// Removes the service, and with it its processes; then stops the host.
    async fn clean_up(self) -> Result<(), Fatal> {
        step("clean up: the service goes, and the sandbox host with it");
        self.fleet.calm();
        let verb = Verb::Cleanup { named: Named { names: vec![] }, all: true };
        let removed = self.roadie(verb, "1", true).await.and_then(|code| expect(code, Outcome::Done));
        self.fleet.close().await;
        self.host.shutdown().await;
        removed?;
        match TcpStream::connect(("127.0.0.1", self.port)).await {
            Ok(_) => Err(Fatal::failed(format!("port {} still answers after the cleanup", self.port))),
            Err(_) => Ok(()),
        }
    }
}

fn expect(code: u8, wanted: Outcome) -> Result<(), Fatal> {
    if code == wanted.exit_code() {
        if wanted != Outcome::Done {
            say(&format!("(as expected: outcome {wanted:?}, exit code {code})"));
        }
        return Ok(());
    }
    let message = format!("this step of the demo ended with exit code {code}, {} was expected", wanted.exit_code());
    Err(Fatal::failed(message).hint("what went wrong is said above"))
}

async fn free_port() -> Result<u16, Fatal> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let port = listener.and_then(|l| l.local_addr()).map(|a| a.port());
    port.map_err(|e| Fatal::failed("no free port on loopback").cause(e.to_string()))
}

async fn get(port: u16, path: &str) -> std::io::Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim().to_owned())
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
