//! The same deployment again and again over one session that stays open, as a program does that keeps its controller.

use roadie_deployer::{Cancel, Controller, Group, Options, Rollout, SshConnector, Verb};
use roadie_model::definition::Definition;
use roadie_model::outcome::Outcome;
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_packager::Store;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is deployed how often.
pub struct Warm {
    pub file: PathBuf,
    pub store: PathBuf,
    pub package: String,
    pub times: usize,
}

/// Between two deployments.
const PAUSE: Duration = Duration::from_millis(300);

/// Deploys, and prints how long each time took; the first connects.
pub async fn run(warm: &Warm) -> Result<(), String> {
    let definition = definition(&warm.file)?;
    let package = Store::open(&warm.store).and_then(|s| s.find(&warm.package)).map_err(|e| e.to_string())?;
    let service = definition.services.get(&package.metadata.name).ok_or("the file has no such service")?;
    let home = std::env::var_os("HOME").map(PathBuf::from).ok_or("HOME is not set")?;
    let connector = SshConnector { home, user: "root".into(), agent: None, accept_new_host_keys: false };
    let options =
        Options { max_concurrent: 64, lock_wait: Duration::ZERO, rollout: Rollout::default(), identity: "bench@here".into() };
    let controller = Controller::new(Arc::new(connector), options, Arc::new(|_| ()), Cancel::new());
    let verb = Verb::Deploy { packages: vec![package], skip_health: false, saved: None };
    for time in 0..warm.times {
        let group = Group { service: service.clone(), hosts: service.hosts.clone(), verb: verb.clone() };
        // Nobody deploys again at the very moment that a deployment ended.
        tokio::time::sleep(PAUSE).await;
        let began = Instant::now();
        let reports = controller.run(vec![vec![group]]).await;
        let took = began.elapsed().as_secs_f64();
        if let Some(bad) = reports.iter().find(|r| r.report.outcome != Outcome::Done) {
            return Err(format!("{}: {:?}", bad.host, bad.report));
        }
        let round_trips = reports.iter().map(|r| r.report.round_trips).max();
        println!("{}", serde_json::json!({ "time": time, "took_s": took, "round_trips": round_trips }));
    }
    controller.close().await;
    Ok(())
}

fn definition(file: &Path) -> Result<Definition, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("cannot read `{}`: {e}", file.display()))?;
    let base = SourceFile { name: file.display().to_string(), text };
    let dir = std::path::absolute(file).ok().and_then(|f| f.parent().map(Path::to_owned)).unwrap_or_default();
    let parsed = parse(&Inputs { base: &base, overlay: None, env: &|name| std::env::var(name).ok(), dir });
    parsed.map_err(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}
