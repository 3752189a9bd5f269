//! How a package came to be: an in-toto statement (v1) with a SLSA provenance predicate (v1), written when it is made.
//!
//! It holds times and the state of a working folder, so it can never be part of the package. It is what this machine says of
//! itself, SLSA build level 1: a note for people who look for the commit, no proof against whoever made it.

use jiff::Timestamp;
use roadie_model::definition::{Build, Definition, Service};
use roadie_model::package::Package;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::SystemTime;
use tokio::process::Command;

/// Where the source came from.
#[derive(Debug, Clone)]
struct Commit {
    id: String,
    dirty: bool,
}

/// What is known of the making of a package.
#[derive(Debug)]
pub(crate) struct Making<'a> {
    service: &'a Service,
    commit: Option<Commit>,
    rustc: Option<String>,
    started: Timestamp,
}

impl<'a> Making<'a> {
    /// Looks around before the build begins: a build may leave files of its own in the folder.
    pub(crate) fn begin(service: &'a Service) -> Self {
        Self { service, commit: None, rustc: None, started: now() }
    }

    /// Asks git for the commit, and the compiler who it is, where there was one. Only for what is new: it takes longer than a
    /// pack with nothing changed.
    pub(crate) async fn ask(&mut self, definition: &Definition) {
        self.commit = commit(&definition.dir).await;
        if let Build::Cargo(options) = &self.service.build {
            // In the folder of the build: rust-toolchain.toml there chooses the compiler.
            let said = output("rustc", &["-vV"], &definition.dir.join(&options.manifest_dir)).await;
            self.rustc = said.and_then(|text| text.lines().next().map(str::to_owned));
        }
    }
}

fn now() -> Timestamp {
    Timestamp::try_from(SystemTime::now()).unwrap_or_default()
}

/// `None` without git, outside of a repository, and in one without a commit.
async fn commit(dir: &Path) -> Option<Commit> {
    let id = output("git", &["rev-parse", "--verify", "HEAD"], dir).await?.trim().to_owned();
    // Without its lock: somebody may be using the index.
    let status = output("git", &["--no-optional-locks", "status", "--porcelain"], dir).await?;
    Some(Commit { id, dirty: !status.is_empty() })
}

async fn output(tool: &str, args: &[&str], dir: &Path) -> Option<String> {
    let run = Command::new(tool).args(args).current_dir(dir).stdin(Stdio::null()).kill_on_drop(true).output().await.ok()?;
    run.status.success().then(|| String::from_utf8_lossy(&run.stdout).into_owned())
}

/// The document; one line of JSON would do, people read it too.
pub(crate) fn text(package: &Package, making: &Making<'_>) -> String {
    let mut text = serde_json::to_string_pretty(&document(package, making)).unwrap_or_default();
    text.push('\n');
    text
}

fn document(package: &Package, making: &Making<'_>) -> Value {
    let m = &package.metadata;
    let name = format!("{}-{}-{}", m.name, if m.version.is_empty() { "0" } else { &m.version }, m.target);
    // Keys of a `Value` are sorted: the same section gives the same text.
    let build = serde_json::to_value(&making.service.build).unwrap_or_default();
    // No address of the repository: addresses carry access tokens more often than they should.
    let sources = making.commit.iter().map(
        |commit| json!({ "name": "source", "digest": { "gitCommit": commit.id }, "annotations": { "dirty": commit.dirty } }),
    );
    let mut version = json!({ "roadie": env!("CARGO_PKG_VERSION") });
    if let Some(rustc) = &making.rustc {
        version["rustc"] = rustc.as_str().into();
    }
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            { "name": format!("{name}.tar"), "digest": { "sha256": package.id } },
            { "name": format!("{name}.tar.gz"), "digest": { "sha256": package.archive_sha256 } },
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:roadie:pack:v1",
                "externalParameters": { "service": m.name, "target": m.target, "build": build },
                "resolvedDependencies": sources.collect::<Vec<Value>>(),
            },
            "runDetails": {
                "builder": { "id": "urn:roadie:local", "version": version },
                "metadata": { "startedOn": seconds(making.started), "finishedOn": seconds(now()) },
            },
        },
    })
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
