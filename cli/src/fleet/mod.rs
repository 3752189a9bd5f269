//! The verbs that talk to hosts.

mod along;

use crate::args::{Global, MeshVerb, Named, Verb};
use crate::backup;
use crate::mesh;
use crate::out::{self, Fatal};
use crate::packages::{self, ago};
use crate::project::{self, Environment};
use crate::report::{self, Reporter};
use crate::saved;
use crate::stock::{self, Stored};
use roadie_deployer::{
    Cancel, Connector, Controller, EventSink, Group, LogLine, LogQuery, MeshReport, MeshWork, Options, Rollout, SshConnector,
    TaskReport, Verb as Work,
};
use roadie_model::definition::{Definition, Host, Service};
use roadie_model::event::EventKind;
use roadie_model::facts::HostFacts;
use roadie_model::id::ServiceName;
use roadie_model::outcome::Outcome;
use roadie_model::package::Package;
use roadie_model::plan::HostPlan;
use roadie_packager::Store;
use roadie_planner::SavedPlan;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// A verb that needs the definition and its hosts.
pub async fn run(verb: Verb, global: &Global) -> Result<u8, Fatal> {
    let definition = project::load(global)?;
    if matches!(verb, Verb::Mesh { .. }) {
        let fleet = Fleet::open(&verb, global)?;
        let Verb::Mesh { verb } = &verb else { return Ok(0) };
        let code = mesh::run(&fleet, &definition, verb).await;
        fleet.close().await;
        return code;
    }
    let named = match &verb {
        Verb::Plan { named, .. }
        | Verb::Deploy { named, .. }
        | Verb::Logs { named, .. }
        | Verb::Rollback { named, .. }
        | Verb::Cleanup { named, .. }
        | Verb::Status(named)
        | Verb::Start(named)
        | Verb::Stop(named)
        | Verb::Restart(named)
        | Verb::Releases(named) => named.clone(),
        _ => Named { names: Vec::new() },
    };
    let mut chosen = global.clone();
    if let Verb::Backup { host } | Verb::Restore { host } = &verb {
        chosen.hosts.push(host.clone());
    }
    let targets = project::targets(&definition, &chosen, &named.names)?;
    if targets.is_empty() {
        return Err(Fatal::usage("nothing is chosen").hint("no chosen service has one of the chosen hosts"));
    }
    let fleet = Fleet::open(&verb, global)?;
    let code = fleet.run(verb, &definition, targets).await;
    fleet.close().await;
    code
}

/// How services are deployed.
struct How {
    skip_health: bool,
    /// Only if it comes to this.
    saved: Option<Arc<SavedPlan>>,
    /// What the same run did to the mesh.
    mesh: Option<MeshReport>,
}

/// A controller with its reporter.
pub struct Fleet {
    global: Global,
    environment: Environment,
    controller: Controller,
    reporter: Arc<Reporter>,
    plans: Arc<Mutex<Vec<HostPlan>>>,
    cancel: Cancel,
}

impl Fleet {
    /// For hosts over ssh, as the environment and the verb say.
    fn open(verb: &Verb, global: &Global) -> Result<Self, Fatal> {
        let environment = Environment::read()?;
        let connector = Arc::new(SshConnector {
            home: environment.home.clone(),
            user: environment.user.clone(),
            agent: environment.agent.clone(),
            accept_new_host_keys: global.accept_new_host_keys,
        });
        let rollout = match verb {
            Verb::Deploy { rollout, .. } | Verb::Rollback { rollout, .. } => rollout.policy(),
            Verb::Mesh { verb: MeshVerb::Apply { skip_unreachable } } => {
                Rollout { skip_unreachable: *skip_unreachable, ..Rollout::default() }
            }
            _ => Rollout::default(),
        };
        Ok(Self::new(global.clone(), rollout, environment, connector))
    }

    /// Tells events as `global` says, and stops on Ctrl-C and SIGTERM.
    pub fn new(global: Global, rollout: Rollout, environment: Environment, connector: Arc<dyn Connector>) -> Self {
        let reporter = Arc::new(Reporter::new(global.json));
        let plans: Arc<Mutex<Vec<HostPlan>>> = Arc::default();
        let (tell, keep) = (reporter.clone(), plans.clone());
        let sink: EventSink = Arc::new(move |event| {
            if let EventKind::Planned { plan } = &event.kind {
                keep.lock().unwrap_or_else(PoisonError::into_inner).push((**plan).clone());
            }
            tell.event(&event);
        });
        let cancel = Cancel::new();
        tokio::spawn(listen_for_signals(cancel.clone()));
        let options = Options {
            max_concurrent: global.max_concurrent.into(),
            lock_wait: Duration::from_secs(global.lock_wait),
            rollout,
            identity: environment.identity(),
        };
        let mut controller = Controller::new(connector, options, sink, cancel.clone());
        // A store that cannot be opened says so where packages are read from it.
        if let Ok(store) = Store::open(&environment.store) {
            controller = controller.with_stock(Arc::new(Stored::new(store)));
        }
        Self { global, environment, controller, reporter, plans, cancel }
    }

    /// The options it was made with.
    pub fn global(&self) -> &Global {
        &self.global
    }

    /// Says goodbye to all hosts.
    pub async fn close(&self) {
        self.controller.close().await;
    }

    /// Does `work` for the mesh of `definition`.
    pub async fn mesh(&self, definition: &Definition, work: &MeshWork) -> MeshReport {
        self.controller.mesh(definition, work).await
    }

    /// Prints what was planned.
    pub fn print_plans(&self) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(print_plan);
    }

    /// Forgets an interruption: what comes now is the cleaning up after it.
    pub fn calm(&self) {
        self.cancel.reset();
    }

    /// Does one verb.
    pub async fn run(&self, verb: Verb, definition: &Definition, targets: Vec<(Service, Vec<Host>)>) -> Result<u8, Fatal> {
        match verb {
            Verb::Deploy { dry_run: true, package, named, .. } => {
                self.plan(definition, &targets, &named, package.as_deref(), false, None).await
            }
            Verb::Plan { detailed_exitcode, package, out, named } => {
                self.plan(definition, &targets, &named, package.as_deref(), detailed_exitcode, out.as_deref()).await
            }
            Verb::Deploy { skip_health_check, plan: Some(file), .. } => {
                let saved = saved::read(&file)?;
                let targets = saved::targets(&saved, &targets, &file)?;
                let packages = saved::packages(&saved, packages::packager(&self.environment)?.store())?;
                self.deploy(
                    definition,
                    &targets,
                    &packages,
                    How { skip_health: skip_health_check, saved: Some(Arc::new(saved)), mesh: None },
                )
                .await
            }
            Verb::Deploy { skip_health_check, package, named, .. } => {
                let packages = self.packages(definition, &targets, package.as_deref()).await?;
                let mesh = match self.mesh_first(definition, &named).await {
                    Ok(mesh) => mesh,
                    Err(code) => return Ok(code),
                };
                self.deploy(definition, &targets, &packages, How { skip_health: skip_health_check, saved: None, mesh }).await
            }
            Verb::Rollback { to, .. } => {
                if to.is_none()
                    && let Some(code) = self.mesh_back(definition, &targets).await
                {
                    return Ok(code);
                }
                self.change(definition, &targets, |_| Work::Rollback { to: to.clone() }).await
            }
            Verb::Start(_) => self.change(definition, &targets, |_| Work::Start).await,
            Verb::Stop(_) => self.change(definition, &targets, |_| Work::Stop).await,
            Verb::Restart(_) => self.change(definition, &targets, |_| Work::Restart).await,
            Verb::Cleanup { all: false, .. } => self.change(definition, &targets, |_| Work::Cleanup).await,
            Verb::Cleanup { all: true, .. } => {
                self.ask_to_remove(&targets)?;
                self.change(definition, &targets, |_| Work::Remove).await
            }
            Verb::Status(_) => self.read(definition, &targets, Work::Status).await,
            Verb::Releases(_) => self.read(definition, &targets, Work::Releases).await,
            Verb::Logs { follow, lines, since, release, .. } => {
                self.logs(targets, LogQuery { follow, lines, since_s: since, release }).await
            }
            // They wait for who is at the other end of the pipe.
            Verb::Backup { .. } => apart(backup::backup(&self.controller, &targets, &self.global)),
            Verb::Restore { .. } => apart(backup::restore(&self.controller, &targets)),
            Verb::Exec { command } => self.exec(&targets, &command).await,
            _ => Err(Fatal::usage("this verb does not work on hosts")),
        }
    }

    /// Packages per service: packed now, or the one of the store that was named.
    async fn packages(
        &self,
        definition: &Definition,
        targets: &[(Service, Vec<Host>)],
        id: Option<&str>,
    ) -> Result<BTreeMap<ServiceName, Vec<Package>>, Fatal> {
        let packager = packages::packager(&self.environment)?;
        // Hosts let us in while we pack.
        self.controller.dial(targets.iter().flat_map(|(_, hosts)| hosts));
        let mut found = BTreeMap::new();
        if let Some(id) = id {
            let package = apart(async { packager.store().find(id) }).map_err(|e| packages::store_error(&e))?;
            for (service, _) in targets {
                if service.name != package.metadata.name {
                    let message = format!(
                        "package {} is of service `{}`, not `{}`",
                        package.id.short(),
                        package.metadata.name,
                        service.name
                    );
                    return Err(Fatal::usage(message).hint("choose one service with --service"));
                }
                found.insert(service.name.clone(), vec![package.clone()]);
            }
            return Ok(found);
        }
        let services: Vec<&Service> = targets.iter().map(|(s, _)| s).collect();
        // It looks at every source file, and asks programs that may not answer at once.
        let packed = apart(async {
            tokio::select! {
                packed = packages::pack_services(&packager, definition, &services, &[], &self.reporter) => packed,
                () = self.cancel.reached(1) => {
                    let interrupted = Fatal::failed("interrupted while packing; no host was changed");
                    Err(Fatal { outcome: Outcome::Interrupted, ..interrupted })
                }
            }
        })?;
        self.controller.forget_failed_dials();
        for (service, packages) in packed {
            found.insert(service.name.clone(), packages.into_iter().map(|(p, _)| p).collect());
        }
        Ok(found)
    }

    fn waves(
        &self,
        definition: &Definition,
        targets: &[(Service, Vec<Host>)],
        work: impl Fn(&ServiceName) -> Work,
    ) -> Vec<Vec<Group>> {
        let names: Vec<&ServiceName> = targets.iter().map(|(s, _)| &s.name).collect();
        let hosts =
            |service: &Service| targets.iter().find(|(s, _)| s.name == service.name).map(|(_, h)| h.clone()).unwrap_or_default();
        let group = |s: &Service| Group { service: s.clone(), hosts: hosts(s), verb: work(&s.name) };
        definition.waves(&names).into_iter().map(|wave| wave.into_iter().map(group).collect()).collect()
    }

    async fn change(
        &self,
        definition: &Definition,
        targets: &[(Service, Vec<Host>)],
        work: impl Fn(&ServiceName) -> Work,
    ) -> Result<u8, Fatal> {
        let (reports, changes) = self.changed(definition, targets, work).await;
        Ok(report::summary(&reports, changes, self.global.json).exit_code())
    }

    /// What each host said, and whether it was meant to leave all of them on one release.
    async fn changed(
        &self,
        definition: &Definition,
        targets: &[(Service, Vec<Host>)],
        work: impl Fn(&ServiceName) -> Work,
    ) -> (Vec<TaskReport>, bool) {
        let waves = self.waves(definition, targets, &work);
        let changes = waves.iter().flatten().any(|g| g.verb.changes_release());
        let reports = self.controller.run(waves).await;
        self.remember(&reports);
        (reports, changes)
    }

    /// Keeps what hosts run now in the store: they may need it again.
    fn remember(&self, reports: &[TaskReport]) {
        let Ok(store) = Store::open(&self.environment.store) else { return };
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        for report in reports.iter().filter(|r| r.report.outcome == Outcome::Done) {
            let plan = plans.iter().find(|p| p.host == report.host && p.service == report.service);
            if let Some(package) = plan.and_then(|p| p.package.as_ref()) {
                // A store that cannot be written only keeps less.
                let _ = store.refer(&stock::place(&report.service, &report.host), package);
            }
        }
    }

    async fn deploy(
        &self,
        definition: &Definition,
        targets: &[(Service, Vec<Host>)],
        packages: &BTreeMap<ServiceName, Vec<Package>>,
        how: How,
    ) -> Result<u8, Fatal> {
        // Nobody deletes them from the store while they are on their way.
        let store = Store::open(&self.environment.store).map_err(|e| packages::store_error(&e))?;
        let _leases: Vec<_> = packages.values().flatten().filter_map(|p| store.lease(&p.id)).collect();
        let work = |s: &ServiceName| Work::Deploy {
            packages: packages.get(s).cloned().unwrap_or_default(),
            skip_health: how.skip_health,
            saved: how.saved.clone(),
        };
        let (mut reports, changes) = self.changed(definition, targets, work).await;
        if let Some(mesh) = &how.mesh {
            reports.extend(self.mesh_back_after(definition, mesh, &reports).await);
        }
        Ok(report::summary(&reports, changes, self.global.json).exit_code())
    }

    async fn plan(
        &self,
        definition: &Definition,
        targets: &[(Service, Vec<Host>)],
        named: &Named,
        package: Option<&str>,
        detailed: bool,
        keep: Option<&Path>,
    ) -> Result<u8, Fatal> {
        let packages = self.packages(definition, targets, package).await?;
        let mesh = match self.is_everything(named) {
            true => self.mesh(definition, &MeshWork::Plan).await,
            false => MeshReport::default(),
        };
        if keep.is_some() && mesh.outcome() == Outcome::ChangesPending {
            return Err(Fatal::failed("the mesh has changes pending, and a kept plan holds services only")
                .hint("`roadie mesh apply` first, then plan again"));
        }
        let work = |s: &ServiceName| Work::Plan { packages: packages.get(s).cloned().unwrap_or_default() };
        let mut reports = mesh.reports;
        reports.extend(self.controller.run(self.waves(definition, targets, work)).await);
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !self.global.json {
            plans.iter().for_each(print_plan);
        }
        let outcome = report::summary(&reports, false, self.global.json);
        if !matches!(outcome, Outcome::Done | Outcome::ChangesPending) {
            if keep.is_some() {
                out::note("no plan was written: it would be no plan for all");
            }
            return Ok(outcome.exit_code());
        }
        if let Some(file) = keep {
            let services: Vec<HostPlan> = plans.into_iter().filter(|p| definition.services.contains_key(&p.service)).collect();
            saved::write(file, &services)?;
        }
        Ok(if outcome == Outcome::ChangesPending && !detailed { 0 } else { outcome.exit_code() })
    }

    async fn read(&self, definition: &Definition, targets: &[(Service, Vec<Host>)], work: Work) -> Result<u8, Fatal> {
        let releases = matches!(work, Work::Releases);
        let reports = self.controller.run(self.waves(definition, targets, |_| work.clone())).await;
        if self.global.json {
            return Ok(report::summary(&reports, false, true).exit_code());
        }
        let (good, bad): (Vec<TaskReport>, Vec<TaskReport>) =
            reports.into_iter().partition(|r| r.report.outcome == Outcome::Done);
        if releases {
            print_releases(&good)
        } else {
            print_status(&good)
        }
        Ok(report::summary(&bad, false, false).exit_code())
    }

    fn ask_to_remove(&self, targets: &[(Service, Vec<Host>)]) -> Result<(), Fatal> {
        let what: Vec<String> =
            targets.iter().flat_map(|(s, hosts)| hosts.iter().map(move |h| format!("{}@{}", s.name, h.name))).collect();
        out::confirm(self.global.yes, &format!("This removes {} with all releases", what.join(", ")))
    }

    async fn logs(&self, targets: Vec<(Service, Vec<Host>)>, query: LogQuery) -> Result<u8, Fatal> {
        let several = targets.iter().map(|(_, hosts)| hosts.len()).sum::<usize>() > 1;
        let json = self.global.json;
        let sink = move |line: LogLine| {
            if json {
                out::line(&serde_json::to_string(&line).unwrap_or_default());
            } else if several {
                out::line(&format!("{}@{} | {}", line.service, line.host, line.text));
            } else {
                out::line(&line.text);
            }
        };
        let ends = self.controller.logs(targets, query, &sink).await;
        let mut failed = false;
        for (host, service, error) in ends {
            if let Some(error) = error {
                failed = true;
                out::note(&format!("{} {service}@{host}: {error}", out::red("error:")));
            }
        }
        let interrupted = self.cancel.level() > 0;
        Ok(match (interrupted, failed) {
            (true, _) => Outcome::Interrupted.exit_code(),
            (false, true) => Outcome::Unreachable.exit_code(),
            (false, false) => 0,
        })
    }

    async fn exec(&self, targets: &[(Service, Vec<Host>)], command: &[String]) -> Result<u8, Fatal> {
        let mut hosts: Vec<Host> = Vec::new();
        for host in targets.iter().flat_map(|(_, hosts)| hosts) {
            if !hosts.iter().any(|h| h.name == host.name) {
                hosts.push(host.clone());
            }
        }
        let one = hosts.len() == 1;
        let results = self.controller.exec(hosts, roadie_model::sh::join(command)).await;
        for result in &results {
            if self.global.json {
                out::line(&serde_json::to_string(result).unwrap_or_default());
                continue;
            }
            let prefix = if one { String::new() } else { format!("{} | ", result.host) };
            result.stdout.lines().for_each(|l| out::line(&format!("{prefix}{l}")));
            result.stderr.lines().for_each(|l| out::note(&format!("{prefix}{l}")));
            if let Some(error) = &result.error {
                out::note(&format!("{} {}: {error}", out::red("error:"), result.host));
            }
        }
        Ok(match results.as_slice() {
            [only] => only.status.map_or(Outcome::Unreachable.exit_code(), |s| u8::try_from(s.min(255)).unwrap_or(255)),
            all if all.iter().all(|r| r.status == Some(0)) => 0,
            all if all.iter().any(|r| r.error.is_some()) => Outcome::Unreachable.exit_code(),
            _ => 1,
        })
    }
}

/// Does what may block, and answers the hosts on another thread meanwhile.
fn apart<T>(work: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| Handle::current().block_on(work))
}

async fn listen_for_signals(cancel: Cancel) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.request();
        match cancel.level() {
            1 => {
                let text = "interrupted: finishing the step and taking the run back; once more to leave at once";
                // Nobody may read it, and the next one is to be heard all the same.
                tokio::task::spawn_blocking(|| out::note(text));
            }
            2 => {}
            // Nobody reads what is still to be said, so nothing is claimed.
            _ => out::quit(Outcome::Unknown.exit_code().into()),
        }
    }
}

fn print_plan(plan: &HostPlan) {
    out::line(&format!("{}@{}", plan.service, plan.host));
    if plan.is_noop() {
        out::line("  nothing to do");
        return;
    }
    for step in &plan.steps {
        out::line(&format!("  {:>2} {}", step.id, step.action));
    }
    plan.changes.iter().flat_map(|c| c.diff.lines()).for_each(|l| out::line(&format!("  {l}")));
}

fn facts(report: &TaskReport) -> Option<HostFacts> {
    serde_json::from_value(report.report.data.clone()).ok()
}

fn print_status(reports: &[TaskReport]) {
    let rows = reports.iter().filter_map(|r| {
        let facts = facts(r)?;
        let current = facts.current.as_ref();
        let release = current.and_then(|id| facts.release(id));
        let mut notes = facts.service.detail.trim().to_owned();
        if facts.unconfirmed() {
            notes = format!("{notes} not confirmed").trim().to_owned();
        }
        if let Some(settled) = &facts.settled {
            notes = format!("{notes} by itself: {}", settled.text).trim().to_owned();
        }
        Some(vec![
            r.service.to_string(),
            r.host.to_string(),
            facts.service.state.to_string(),
            current.map_or("-", |id| id.short()).to_owned(),
            release.map(|r| r.version.clone()).unwrap_or_default(),
            facts.service.up_s.map(ago).unwrap_or_default(),
            facts.service.restarts.to_string(),
            notes,
        ])
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        out::table(&["SERVICE", "HOST", "STATE", "RELEASE", "VERSION", "UP", "RESTARTS", "NOTES"], rows);
    }
}

fn print_releases(reports: &[TaskReport]) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut rows = Vec::new();
    for r in reports {
        let Some(facts) = facts(r) else { continue };
        for release in &facts.releases {
            let current = if facts.current.as_ref() == Some(&release.id) { "current" } else { "" };
            let age = now.saturating_sub(u64::try_from(release.changed_at).unwrap_or(0));
            rows.push(vec![
                r.service.to_string(),
                r.host.to_string(),
                release.id.short().to_owned(),
                release.version.clone(),
                release.state.to_string(),
                ago(age),
                current.to_owned(),
            ]);
        }
    }
    if rows.is_empty() {
        out::line("no releases");
    } else {
        out::table(&["SERVICE", "HOST", "RELEASE", "VERSION", "STATE", "AGE", ""], rows);
    }
}
