//! One trial: a deployment, a fault in it, what is left, and whether the next clean run converges.

use crate::fault::{Fault, Point, When};
use crate::host::{Host, PORT};
use crate::oracle::Oracle;
use roadie_tests::Project;
use std::io::BufRead as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Seconds that the host waits for a controller that went away.
const GRACE_S: u64 = 2;
/// A host settles within: the watchdog's 12 s, the grace, the way back, and room for a machine that is busy.
const SETTLES: Duration = Duration::from_secs(60);
/// A stage ends within.
const STAGE: Duration = Duration::from_secs(30);
/// A shell that was told to leave has left within.
const LEAVES: Duration = Duration::from_secs(10);
/// A controller ends within: five attempts to reconnect, each with its timeout.
const ENDS: Duration = Duration::from_secs(120);
/// The pipes of a controller that ended are empty within.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// A host with its project; version after version.
pub struct Bench {
    /// The host.
    pub host: Host,
    project: Project,
    binary: Option<String>,
    version: u64,
}

/// What a trial showed.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Broken invariants.
    pub violations: Vec<String>,
    /// The controller's exit code, `None` when it was killed.
    pub code: Option<i32>,
    /// Times that `current` was looked at.
    pub looks: u64,
    /// The point was never reached: no trial.
    pub missed: bool,
}

impl Bench {
    /// A host with its first version deployed. `binary` is used instead of the roadie that was built.
    pub fn new(host: Host, binary: Option<&Path>) -> Self {
        // A campaign that was killed may have left it full.
        host.free_disk();
        host.lab.reset();
        let mut bench = Self { host, project: Project::new(), binary: binary.map(|b| b.display().to_string()), version: 0 };
        bench.next_version();
        let run = bench.deploy_to_end();
        assert!(run.0 == Some(0), "the first deployment failed:\n{}", run.1);
        bench
    }

    fn secret(&self) -> String {
        format!("c4n4ry{:08}x", self.version)
    }

    /// Another binary (a byte more), other environment: a whole deployment.
    pub fn next_version(&mut self) {
        self.version += 1;
        self.project.add_hello();
        let path = self.project.dir.join("hello");
        let mut bytes = std::fs::read(&path).unwrap_or_default();
        bytes.extend_from_slice(self.version.to_string().as_bytes());
        std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        self.project.write(
            "roadie.yaml",
            &format!(
                "services:\n  hello:\n    hosts: [{{address: {}, user: deploy, timeout: 3s}}]\n    build: {{type: prebuilt, path: hello}}\n    \
                 deploy:\n      guard_grace: {GRACE_S}s\n      keep_releases: 2\n      args: [--listen, \"0.0.0.0:{PORT}\"]\n      \
                 setup_commands: [\"true\"]\n      setup_run: always\n      \
                 env: {{HELLO_VERSION: \"${{V:-{}}}\", SECRET: \"{}\"}}\n      \
                 health: {{http: \"http://127.0.0.1:{PORT}/health\", timeout: 20s, interval: 100ms, stable_for: 300ms}}\n",
                self.host.lab.address,
                self.version,
                self.secret()
            ),
        );
    }

    fn command(&self) -> std::process::Command {
        let mut command = self.project.command(&["deploy", "--json"]);
        if let Some(binary) = &self.binary {
            let mut other = std::process::Command::new(binary);
            other.args(["deploy", "--json"]).current_dir(&self.project.dir);
            for (key, value) in command.get_envs() {
                match value {
                    Some(value) => other.env(key, value),
                    None => other.env_remove(key),
                };
            }
            other.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command = other;
        }
        command
    }

    /// Deploys and waits for it: exit code and all output.
    pub fn deploy_to_end(&self) -> (Option<i32>, String) {
        let output = self.command().output().unwrap_or_else(|e| panic!("cannot run roadie: {e}"));
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    }

    fn forget_packages(&self) {
        let store = self.project.home.join(".cache/roadie/packages");
        for folder in ["objects", "actions", "refs", "deltas"] {
            // The first time there is none.
            let _ = std::fs::remove_dir_all(store.join(folder));
        }
    }

    fn pack(&self) {
        let status = self.project.command(&["pack"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot pack");
    }

    /// Starts a deployment of the version that is written.
    pub fn start(&self) -> Running {
        Running::start(self.command())
    }

    /// The same as another version.
    pub fn start_as(&self, version: &str) -> Running {
        let mut command = self.command();
        command.env("V", version);
        Running::start(command)
    }

    /// The version that is written.
    pub fn version(&self) -> String {
        self.version.to_string()
    }

    /// Longest time without an answer while `work` is done, and a little behind it.
    pub fn gap(&mut self, work: impl FnOnce(&mut Self)) -> Duration {
        let oracle = Oracle::watch_service(&self.host);
        std::thread::sleep(Duration::from_millis(100));
        work(self);
        std::thread::sleep(Duration::from_millis(300));
        oracle.end().longest_gap
    }

    /// Deploys the next version with `fault` at `point`, and judges.
    pub fn trial(&mut self, fault: Fault, point: Point) -> Verdict {
        let old_version = self.version.to_string();
        let old = self.host.current().unwrap_or_default();
        let proven = self.host.proven();
        self.next_version();
        match point {
            // With nothing to compare it with, all of the package is sent.
            Point::Host(_, "unpack_archive") => self.forget_packages(),
            // A near host gets the difference when that is found in time.
            Point::Host(_, "unpack_patch") => self.pack(),
            _ => {}
        }
        let mut verdict = Verdict::default();
        let oracle = Oracle::watch(&self.host, &self.secret());
        match point {
            Point::Host(when, function) => self.hold(&format!("{when} {function}")),
            Point::Guard(..) => self.hold("after restart"),
            Point::Controller(..) | Point::After(_) => {}
        }
        let mut running = self.start();
        let reached = self.reach(&mut running, point);
        verdict.missed = !reached;
        match (reached, point, fault) {
            (false, ..) => {}
            (true, Point::Guard(..), Fault::Kill) => self.host.kill_guard(),
            (true, ..) => fault.inject(&self.host, &mut running.child),
        }
        self.let_go();
        let ended = if reached && fault == Fault::Sleep {
            if !self.lock_of_sleeper_ends(fault.patience()) {
                verdict.violations.push(format!("I12: the lock is held {:?} after its holder fell asleep", fault.patience()));
            }
            false
        } else {
            running.wait(fault.patience())
        };
        if reached {
            fault.heal(&self.host, &mut running.child);
            self.let_go();
        }
        if !ended && !running.wait(ENDS) {
            verdict.violations.push(format!("I12: the controller did not end within {ENDS:?}"));
            let _ = running.child.kill();
        }
        verdict.code = running.child.wait().ok().and_then(|s| s.code());
        let at_the_end = self.host.current().unwrap_or_default();

        // The host alone.
        if !within(SETTLES, || self.host.is_settled() && self.host.version().is_some()) {
            verdict.violations.push(format!(
                "I4: the host did not settle within {SETTLES:?}: guard {:?}, holder {:?}, version {:?}",
                self.host.state_line("guard"),
                self.host.state_line("holder"),
                self.host.version()
            ));
        }
        let settled = self.host.current().unwrap_or_default();
        if matches!(point, Point::Guard(..)) && reached && settled != old {
            verdict.violations.push(format!("I4: current is {settled:.12}, and was never confirmed"));
        }
        let new_version = self.version.to_string();
        let served = self.host.version();
        let expected = if settled == old { &old_version } else { &new_version };
        if served.as_ref() != Some(expected) {
            verdict.violations.push(format!("I4: current is {settled:.12}, version {expected}, but {served:?} is served"));
        }
        if self.host.record(&settled).as_deref() != Some("proven") {
            verdict.violations.push(format!("I4: current {settled:.12} is recorded as {:?}", self.host.record(&settled)));
        }
        if let Some(damage) = self.host.damage(&settled) {
            verdict.violations.push(format!("I1: settled on {damage}"));
        }
        let believed: Vec<_> = self.host.proven().into_iter().filter(|r| *r != settled && !proven.contains(r)).collect();
        if !believed.is_empty() {
            verdict.violations.push(format!("I8: recorded as proven, and never confirmed: {believed:?}"));
        }
        if let Some(wrong) = self.host.foreign_unit(&settled) {
            verdict.violations.push(format!("I4: {wrong}"));
        }
        self.judge_code(&mut verdict, &old, &at_the_end, &settled, running.output());

        // The next clean run.
        let (code, text) = self.deploy_to_end();
        if code != Some(0) || self.host.version().as_ref() != Some(&new_version) {
            verdict
                .violations
                .push(format!("I3: the next run ended with {code:?}, {:?} is served:\n{text}", self.host.version()));
        }
        let new = self.host.current().unwrap_or_default();
        if let Some(damage) = self.host.damage(&new) {
            verdict.violations.push(format!("I1: after recovery: {damage}"));
        }
        // A run that found nothing to do does not wait for its shell to leave.
        let mut left = Vec::new();
        if !within(LEAVES, || {
            left = self.host.leftovers();
            left.is_empty()
        }) {
            verdict.violations.push(format!("I3: left behind: {left:?}"));
        }
        let seen = oracle.end();
        verdict.looks = seen.looks;
        verdict.violations.extend(seen.violations);
        let strange: Vec<_> = seen.releases.iter().filter(|r| **r != old && **r != new).collect();
        if !strange.is_empty() {
            verdict.violations.push(format!("I2: current was {strange:?}, neither {old:.12} nor {new:.12}"));
        }
        self.judge_journal(&mut verdict);
        if text.contains(&self.secret()) || running.output().contains(&self.secret()) {
            verdict.violations.push("I9: a secret is in the output".into());
        }
        verdict
    }

    /// Waits until a controller that is asleep must have lost the lock, and says whether it has.
    fn lock_of_sleeper_ends(&self, patience: Duration) -> bool {
        // The stage that it sent is carried out whether it is awake or not: silence begins behind it. And the host's own way back
        // takes the lock for itself, and leaves no such name.
        let mut holder = self.host.state_line("pid");
        let mut silent_since = Instant::now();
        within(STAGE + patience, || {
            let now = self.host.state_line("pid");
            if self.host.state_line("beat").as_deref() == Some("busy") || now != holder {
                silent_since = Instant::now();
                holder = now;
            }
            silent_since.elapsed() > patience
        });
        holder.is_none() || self.host.lock_is_free()
    }

    /// I7: the exit code says what is true on the host.
    fn judge_code(&self, verdict: &mut Verdict, old: &str, at_the_end: &str, settled: &str, output: &str) {
        let truth = match verdict.code {
            Some(0) if settled == old => "0, but the old release is current",
            Some(5 | 130 | 1 | 4 | 8 | 9) if settled != old => {
                "a failure that changed nothing or was taken back, but the new release is current"
            }
            Some(6) => "not restored",
            Some(2 | 11 | 70) => "a class that does not belong here",
            _ => return,
        };
        let code = verdict.code;
        let tail: Vec<&str> = output.lines().rev().take(3).collect();
        verdict
            .violations
            .push(format!("I7: exit code {code:?}: {truth} ({old:.12}, {at_the_end:.12}, {settled:.12}): {tail:?}"));
    }

    /// I6: the epoch only grows, and one run's events are not among another's.
    fn judge_journal(&self, verdict: &mut Verdict) {
        let journal = std::fs::read_to_string(self.host.state("journal.jsonl")).unwrap_or_default();
        let mut last = 0;
        for line in journal.lines() {
            // A line that a power cut tore.
            let Ok(entry) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let epoch = entry["epoch"].as_u64().unwrap_or(0);
            if epoch != 0 && epoch < last {
                verdict.violations.push(format!("I6: the journal goes from epoch {last} back to {epoch}"));
                return;
            }
            last = last.max(epoch);
        }
    }

    fn reach(&self, running: &mut Running, point: Point) -> bool {
        match point {
            Point::After(ms) => {
                std::thread::sleep(Duration::from_millis(ms));
                true
            }
            Point::Host(..) => {
                within(Duration::from_secs(30), || {
                    running.read();
                    self.host.state("hold.reached").exists() || running.has_ended()
                }) && self.host.state("hold.reached").exists()
            }
            Point::Guard(when, step) => {
                if !self.reach(running, Point::Host(When::After, "restart")) {
                    return false;
                }
                running.kill();
                self.hold(&format!("{when} guard {step}"));
                within(SETTLES, || self.host.state("hold.reached").exists())
            }
            Point::Controller(when, action) => {
                let event = if when == When::Before { "step_started" } else { "step_done" };
                within(Duration::from_secs(30), || running.saw(event, action) || running.has_ended())
                    && running.saw(event, action)
            }
        }
    }

    fn hold(&self, point: &str) {
        let _ = std::fs::write(self.host.state("hold"), format!("{point}\n"));
        let _ = std::fs::remove_file(self.host.state("hold.reached"));
    }

    fn let_go(&self) {
        let _ = std::fs::remove_file(self.host.state("hold"));
        let _ = std::fs::remove_file(self.host.state("hold.reached"));
    }
}

/// Whether it holds before `limit` is over.
pub fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if began.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A controller at work; its events as they come.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    text: String,
}

impl Running {
    fn start(mut command: std::process::Command) -> Self {
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run roadie: {e}"));
        let (send, lines) = channel();
        let pipe = |pipe: Option<Box<dyn std::io::Read + Send>>| {
            let send = send.clone();
            if let Some(pipe) = pipe {
                std::thread::spawn(move || {
                    for line in std::io::BufReader::new(pipe).lines().map_while(Result::ok) {
                        let _ = send.send(line);
                    }
                });
            }
        };
        pipe(child.stdout.take().map(|p| Box::new(p) as Box<_>));
        pipe(child.stderr.take().map(|p| Box::new(p) as Box<_>));
        Self { child, lines, text: String::new() }
    }

    fn read(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            self.text.push_str(&line);
            self.text.push('\n');
        }
    }

    fn output(&mut self) -> &str {
        self.read();
        &self.text
    }

    /// Waits for its end: exit code and all output.
    pub fn finish(mut self) -> (Option<i32>, String) {
        if !self.wait(ENDS) {
            self.kill();
        }
        let code = self.child.wait().ok().and_then(|s| s.code());
        // What it said last is on its way through the pipes, until these are closed.
        while let Ok(line) = self.lines.recv_timeout(LAST_WORDS) {
            self.text.push_str(&line);
            self.text.push('\n');
        }
        (code, self.text)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    fn wait(&mut self, limit: Duration) -> bool {
        within(limit, || {
            self.read();
            self.has_ended()
        })
    }

    /// Whether there was this event about the step with this action.
    fn saw(&mut self, event: &str, action: &str) -> bool {
        self.read();
        let events = || self.text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        let planned = events().find(|e| e["event"] == "planned");
        let Some(planned) = planned else { return false };
        let step =
            planned["plan"]["steps"].as_array().and_then(|s| s.iter().find(|s| s["action"] == action)).map(|s| s["id"].clone());
        step.is_some_and(|id| events().any(|e| e["event"] == event && e["step"] == id))
    }
}
