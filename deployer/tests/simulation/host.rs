//! A host in memory: it reads what is written to its `sh`, does what the host script's functions do to its disk and its
//! process, and loses what was not synced when its power goes.
//!
//! It stands in for the script, not for the engine: the real script is tried on real hosts.

use async_trait::async_trait;
use bytes::Bytes;
use roadie_deployer::{Cancel, Connector};
use roadie_model::definition::Host;
use roadie_transport::{Chunk, Exit, Output, Process, Progress, Sent, Session, Stream, TransportError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A way back on the disk.
#[derive(Debug, Clone)]
pub struct Guard {
    pub back: Option<String>,
    pub epoch: u64,
    pub to: String,
    pub runs: bool,
    pub deadline: Option<Instant>,
    pub grace: Duration,
}

/// How far a release came, and whose run said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub state: String,
    package: String,
    epoch: u64,
}

/// What is on the disk.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub releases: BTreeSet<String>,
    pub unpacked: BTreeSet<String>,
    pub incoming: BTreeSet<String>,
    pub records: BTreeMap<String, Record>,
    pub current: Option<String>,
    pub unit: Option<String>,
    pub guard: Option<Guard>,
    epoch: u64,
    tag: String,
    settled: Option<(u64, String)>,
    setup: Option<String>,
}

/// What goes wrong, when the countdown of boundaries between steps is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill,
    Cancel,
    CancelTwice,
    Link,
    Power,
    DiskFull,
    StepFails,
}

/// The whole host.
pub struct World {
    pub disk: Disk,
    durable: Disk,
    /// Release and start of the running service.
    pub process: Option<(String, u64)>,
    /// Releases that start but never get healthy, and those that do not even start.
    pub unhealthy: BTreeSet<String>,
    pub broken: BTreeSet<String>,
    pub fault: Option<(u32, Fault)>,
    pub fired: bool,
    pub killed: Arc<Notify>,
    pub cancel: Cancel,
    rng: fastrand::Rng,
    starts: u64,
    connections: u64,
    lock: Option<u64>,
    lock_free_at: Option<Instant>,
    unreachable: u32,
    full: bool,
    asked_to_stop: bool,
    /// Of uploads that have come to their end.
    marks: BTreeSet<String>,
    /// Something was changed that the power still takes away.
    unsettled: bool,
    pub violations: Vec<String>,
}

pub type Shared = Arc<Mutex<World>>;

pub fn look(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub fn new(seed: u64) -> Shared {
        Arc::new(Mutex::new(Self {
            disk: Disk::default(),
            durable: Disk::default(),
            process: None,
            unhealthy: BTreeSet::new(),
            broken: BTreeSet::new(),
            fault: None,
            fired: false,
            killed: Arc::default(),
            cancel: Cancel::new(),
            rng: fastrand::Rng::with_seed(seed),
            starts: 0,
            connections: 0,
            lock: None,
            lock_free_at: None,
            unreachable: 0,
            full: false,
            asked_to_stop: false,
            marks: BTreeSet::new(),
            unsettled: false,
            violations: Vec::new(),
        }))
    }

    /// Between two steps: here things go wrong. `true`: this connection is over.
    fn boundary(&mut self, connection: u64) -> bool {
        self.check();
        let Some((left, fault)) = &mut self.fault else { return self.connections != connection };
        if *left > 0 {
            *left -= 1;
            return self.connections != connection;
        }
        let fault = *fault;
        self.fault = None;
        self.fired = true;
        match fault {
            Fault::Kill => self.killed.notify_one(),
            Fault::Cancel => self.cancel.request(),
            Fault::CancelTwice => {
                self.cancel.request();
                self.cancel.request();
            }
            Fault::Link => {
                self.unreachable = self.rng.u32(0..8);
                let noticed = self.rng.u64(0..13);
                self.lock_free_at = Some(Instant::now() + Duration::from_secs(noticed));
                self.connections += 1;
            }
            Fault::Power => self.lose_power(),
            Fault::DiskFull => self.full = true,
            Fault::StepFails => {}
        }
        self.connections != connection
    }

    fn check(&mut self) {
        if let Some(current) = &self.disk.current
            && !self.disk.releases.contains(current)
        {
            self.violations.push(format!("I1: current names {current}, which is not complete"));
        }
    }

    fn lose_power(&mut self) {
        if self.rng.bool() {
            self.disk = self.durable.clone();
        }
        self.unsettled = false;
        self.connections += 1;
        self.unreachable = self.rng.u32(0..8);
        (self.process, self.lock, self.lock_free_at, self.full) = (None, None, None, false);
        self.check();
        // The boot unit, before the service.
        if self.disk.guard.is_some() {
            self.go_back(true);
        }
        if let Some(current) = self.disk.current.clone().filter(|_| self.disk.unit.is_some()) {
            self.start(&current);
        }
    }

    fn sync(&mut self) {
        self.durable = self.disk.clone();
        self.unsettled = false;
    }

    fn start(&mut self, release: &str) -> bool {
        self.starts += 1;
        let good = !self.broken.contains(release);
        self.process = good.then(|| (release.to_owned(), self.starts));
        good
    }

    /// The connection of the lock's holder is gone: the lock is free, and the guard has its say after the grace.
    fn leave(&mut self) {
        (self.lock, self.lock_free_at, self.asked_to_stop) = (None, None, false);
        if let Some(guard) = &mut self.disk.guard {
            let soon = Instant::now() + guard.grace;
            guard.deadline = Some(guard.deadline.map_or(soon, |d| d.min(soon)));
        }
    }

    /// What the host does by itself up to now.
    fn tick(&mut self) {
        let now = Instant::now();
        if self.lock_free_at.is_some_and(|at| at <= now) {
            self.leave();
        }
        let due = self.disk.guard.as_ref().is_some_and(|g| g.deadline.is_some_and(|d| d <= now));
        if due && self.lock.is_none() {
            self.go_back(false);
        }
    }

    /// Everybody is gone, and time passes.
    pub fn settle(&mut self) {
        self.connections += 1;
        self.full = false;
        self.leave();
        if self.disk.guard.is_some() {
            self.go_back(false);
        }
    }

    /// The fault is over: the next connection comes through, and finds the lock free.
    pub fn let_in(&mut self) {
        self.full = false;
        self.unreachable = 0;
        if self.lock.is_some() || self.lock_free_at.is_some() {
            self.leave();
        }
    }

    fn go_back(&mut self, boot: bool) {
        let Some(guard) = self.disk.guard.clone() else { return };
        if guard.back.as_ref() != Some(&guard.to)
            && let Some(record) = self.disk.records.get_mut(&guard.to)
        {
            record.state = "failed".into();
        }
        self.process = None;
        self.disk.current = guard.back.clone();
        self.disk.unit = guard.back.clone();
        if let Some(back) = guard.back.as_ref().filter(|_| !boot && guard.runs) {
            self.start(&back.clone());
        }
        self.disk.guard = None;
        self.disk.settled = Some((guard.epoch, "went back".into()));
        self.sync();
        self.check();
    }
}

/// Connects to the host in memory.
pub struct ToMemory(pub Shared);

#[async_trait]
impl Connector for ToMemory {
    async fn connect(&self, _: &Host) -> Result<Arc<dyn Session>, TransportError> {
        let mut world = look(&self.0);
        if world.unreachable > 0 {
            world.unreachable -= 1;
            return Err(TransportError::Disconnected { reason: "no answer".into() });
        }
        world.tick();
        Ok(Arc::new(Link { world: self.0.clone(), connection: world.connections }))
    }
}

struct Link {
    world: Shared,
    connection: u64,
}

impl Link {
    fn gone(&self) -> TransportError {
        TransportError::Disconnected { reason: "the link is gone".into() }
    }

    fn boundary(&self) -> Result<MutexGuard<'_, World>, TransportError> {
        let mut world = look(&self.world);
        if world.boundary(self.connection) { Err(self.gone()) } else { Ok(world) }
    }
}

#[async_trait]
impl Session for Link {
    async fn start(&self, command: &str) -> Result<Box<dyn Process>, TransportError> {
        drop(self.boundary()?);
        Ok(Box::new(Sh::new(self.world.clone(), self.connection, command)))
    }

    async fn run(&self, command: &str, _: Bytes, _: usize) -> Result<Output, TransportError> {
        let mut world = self.boundary()?;
        world.asked_to_stop |= command.contains("/.roadie/cancel");
        Ok(Output { stdout: Vec::new(), stderr: Vec::new(), exit: Exit::Status(0) })
    }

    async fn prepare_upload(&self, _: Option<u64>) {}

    async fn upload(&self, _: &Path, remote: &str, _: Progress<'_>) -> Result<Sent, TransportError> {
        let mut world = self.boundary()?;
        if world.full {
            return Err(TransportError::Upload { path: remote.into(), reason: "no space".into() });
        }
        world.disk.incoming.insert(remote.split('.').rev().nth(2).unwrap_or_default().to_owned());
        drop(world);
        self.boundary().map(|_| Sent::default())
    }

    async fn upload_new(&self, local: &Path, remote: &str, mark: &str, progress: Progress<'_>) -> Result<Sent, TransportError> {
        let refused = {
            let mut world = self.boundary()?;
            let (marks, taken) = (world.rng.bool(), world.rng.u8(0..8) > 0);
            if marks {
                // Also where it did not take all: nobody has looked.
                world.marks.insert(mark.rsplit_once("/api.").map_or(mark, |(_, m)| m).to_owned());
            }
            !taken || world.full
        };
        if refused {
            return Err(TransportError::NotNew { path: remote.into(), reason: "it is odd".into() });
        }
        self.upload(local, remote, progress).await
    }

    async fn forward(&self, _: &str, port: u16) -> Result<Box<dyn Stream>, TransportError> {
        let world = self.boundary()?;
        let healthy = world.process.as_ref().is_some_and(|(release, _)| !world.unhealthy.contains(release));
        drop(world);
        if !healthy {
            return Err(TransportError::PortClosed { port, reason: "refused".into() });
        }
        Ok(Box::new(tokio::io::duplex(64).0))
    }

    fn round_trips(&self) -> u64 {
        0
    }

    fn lost(&self) -> Option<String> {
        (look(&self.world).connections != self.connection).then(|| "the link is gone".into())
    }

    async fn close(&self) {}
}

/// The shell on the host: stages in, frames out.
struct Sh {
    world: Shared,
    connection: u64,
    id: u64,
    tag: String,
    /// The first stage, while the host script is waited for.
    first: Option<String>,
    input: String,
    /// Commands of a stage that are still to be done.
    todo: VecDeque<Vec<String>>,
    /// Somebody hears the controller while a stage runs; up to its word.
    listens: bool,
    word: String,
    /// The step that waits has said that it begins.
    said: bool,
    out: VecDeque<Chunk>,
    epoch: u64,
    started_as: u64,
    stopped: bool,
    undoing: bool,
    ended: bool,
}

impl Drop for Sh {
    fn drop(&mut self) {
        let mut world = look(&self.world);
        if world.lock == Some(self.id) && world.lock_free_at.is_none() {
            world.leave();
        }
    }
}

/// Behind it in the command comes the first stage.
const LOADED: &str = "else eval \"$SCRIPT\"; fi\n";

type Done = Result<String, (&'static str, String)>;

fn failed(text: impl Into<String>) -> Done {
    Err(("failed", text.into()))
}

impl Sh {
    fn new(world: Shared, connection: u64, command: &str) -> Self {
        // A host that no run has changed yet does not have the script.
        let (id, knows) = {
            let mut w = look(&world);
            w.starts += 1;
            (w.starts, w.disk.epoch > 0)
        };
        let words = commands(&format!("{command}\n")).into_iter().flatten();
        let boot = words.into_iter().find(|word| word.contains(LOADED)).expect("a command that loads the script");
        let tag = boot.split(" NAME=").next().and_then(|t| t.rsplit("R=").next()).unwrap_or_default();
        let first = boot.rsplit(LOADED).next().and_then(|rest| rest.strip_suffix("\nserve")).expect("a stage, and serve");
        let mut shell = Self {
            world,
            connection,
            id,
            tag: tag.trim_matches('\'').to_owned(),
            first: Some(first.to_owned()),
            input: String::new(),
            todo: VecDeque::new(),
            listens: false,
            word: String::new(),
            said: false,
            out: VecDeque::new(),
            epoch: 0,
            started_as: 0,
            stopped: false,
            undoing: false,
            ended: false,
        };
        if knows || !boot.contains("GIVEN=''") {
            shell.begin();
        } else {
            shell.say("need");
        }
        shell
    }

    fn begin(&mut self) {
        if let Some(first) = self.first.take() {
            self.stage(&first);
        }
    }

    fn say(&mut self, text: &str) {
        self.out.push_back(Chunk::Stdout(Bytes::from(format!("{} {text}\n", self.tag))));
    }

    fn fact(&mut self, text: &str) {
        self.say(&format!("fact {text}"));
    }

    fn read(&mut self) {
        while let Some((line, rest)) = self.input.split_once('\n') {
            if line == "beat" {
                self.input = rest.to_owned();
                continue;
            }
            if self.listens {
                (self.listens, self.word) = (false, line.to_owned());
                self.input = rest.to_owned();
                self.go_on();
                continue;
            }
            let length: usize = line.parse().expect("the length of what follows");
            let Some(text) = rest.get(..length).map(str::to_owned) else { return };
            self.input = rest[length..].to_owned();
            if self.first.is_some() {
                self.begin();
            } else {
                self.stage(&text);
            }
        }
    }

    fn stage(&mut self, text: &str) {
        assert!(self.todo.is_empty(), "a stage while another one runs");
        self.todo = commands(&format!("{text}\n")).into();
        self.go_on();
    }

    fn go_on(&mut self) {
        while let Some(words) = self.todo.front().cloned() {
            if self.waits(&words) {
                if let ["step", id, ..] = words.iter().map(String::as_str).collect::<Vec<_>>()[..]
                    && !std::mem::replace(&mut self.said, true)
                {
                    self.say(&format!("begin {id}"));
                }
                return;
            }
            self.todo.pop_front();
            if self.ended || !self.call(&words) {
                self.todo.clear();
            }
        }
    }

    /// Whether a command waits for the controller's word.
    fn waits(&self, words: &[String]) -> bool {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.listens
            && match words[..] {
                ["heard_out"] => true,
                ["step", _, "all_sent"] => !self.stopped,
                ["step", _, "await_upload", mark] => {
                    let world = look(&self.world);
                    !self.stopped && !world.asked_to_stop && !world.marks.contains(mark)
                }
                _ => false,
            }
    }

    /// One command of a stage; `false` when the connection is over. What was sent whole is done all the same, unless the host
    /// itself went down.
    fn call(&mut self, words: &[String]) -> bool {
        let (name, args) = words.split_first().map_or(("", &[][..]), |(n, a)| (n.as_str(), a));
        match name {
            "stopped=" => self.stopped = false,
            "listen" => (self.listens, self.word) = (true, String::new()),
            "lock" => self.lock(args),
            "observe" => self.observe(),
            "undoing" => {
                self.undoing = true;
                look(&self.world).asked_to_stop = false;
            }
            "settle_stage" => {
                let unsettled = look(&self.world).unsettled;
                return !unsettled || self.step(&["0".to_owned(), "settle".to_owned()]);
            }
            "say" => self.say("end"),
            "step" => return self.step(args),
            "[" if !self.stopped => {
                self.ended = true;
                self.out.push_back(Chunk::Exit(Exit::Status(0)));
                look(&self.world).leave();
            }
            _ => {}
        }
        true
    }

    fn lock(&mut self, args: &[String]) {
        let mut world = look(&self.world);
        world.tick();
        if world.lock.is_some() {
            drop(world);
            self.say("fail 0 locked somebody, since then, pid 1");
            self.ended = true;
            self.out.push_back(Chunk::Exit(Exit::Status(0)));
            return;
        }
        assert!(!args.is_empty(), "the holder has a name");
        world.lock = Some(self.id);
        if let Some(guard) = &mut world.disk.guard {
            guard.deadline = None;
        }
    }

    fn observe(&mut self) {
        if self.ended {
            return;
        }
        let (disk, process) = {
            let world = look(&self.world);
            (world.disk.clone(), world.process.clone())
        };
        for line in
            ["machine x86_64", "uid 0", "home /root", "root /opt/roadie/api", "glibc glibc 2.36", "systemd systemd 252 (252)"]
        {
            self.fact(line);
        }
        self.fact("space /dev/vda 100000000 1 90000000 1% /");
        self.fact(&format!("epoch {} {}", disk.epoch, disk.tag));
        if let Some(current) = &disk.current {
            self.fact(&format!("current {current}"));
        }
        for (id, record) in &disk.records {
            let complete = u8::from(disk.releases.contains(id));
            self.fact(&format!("release {id} {complete} {} {} {} 0 1", record.state, record.package, record.epoch));
            self.fact(&format!("health {id} {{"));
        }
        if let Some(setup) = &disk.setup {
            self.fact(&format!("setup {setup}"));
        }
        if let Some(guard) = &disk.guard {
            self.fact(&format!("guard {} {}", guard.back.as_deref().unwrap_or("none"), guard.epoch));
        }
        if let Some((epoch, text)) = &disk.settled {
            self.fact(&format!("settled {epoch} {text}"));
        }
        let load = if disk.unit.is_some() { "loaded" } else { "not-found" };
        self.fact(&format!("unit_state LoadState={load}"));
        self.fact(&format!("unit_state ActiveState={}", if process.is_some() { "active" } else { "inactive" }));
        if let Some((_, start)) = process {
            self.fact(&format!("unit_state InvocationID=s{start}"));
        }
    }

    fn step(&mut self, words: &[String]) -> bool {
        let [id, name, args @ ..] = words else { return true };
        if self.stopped {
            return true;
        }
        let gone = |sh: &mut Self| {
            let mut world = look(&sh.world);
            let before = world.fault;
            let over = world.boundary(sh.connection);
            let fails = before.is_some_and(|(left, f)| left == 0 && f == Fault::StepFails);
            // Only a host that is down stops in the middle of a stage.
            (over && world.lock != Some(sh.id), fails)
        };
        let (down, fails) = gone(self);
        if down {
            return false;
        }
        let superseded = {
            let world = look(&self.world);
            self.epoch > 0 && (world.disk.epoch, world.disk.tag.as_str()) != (self.epoch, self.tag.as_str())
        };
        let cancelled = look(&self.world).asked_to_stop;
        if !std::mem::take(&mut self.said) {
            self.say(&format!("begin {id}"));
        }
        let done = if cancelled {
            Err(("cancelled", "asked to stop".into()))
        } else if superseded {
            Err(("superseded", "another run has taken over".into()))
        } else if fails && !self.undoing {
            failed("it fails, as the trial wants")
        } else {
            self.act(name, args)
        };
        match done {
            Ok(note) => self.say(&format!("done {id} {note}")),
            Err((kind, text)) => {
                self.stopped = true;
                self.say(&format!("fail {id} {kind} {text}"));
            }
        }
        !gone(self).0
    }

    fn act(&mut self, name: &str, args: &[String]) -> Done {
        let world = self.world.clone();
        let mut world = look(&world);
        let arg = |n: usize| args.get(n).cloned().unwrap_or_default();
        let full = world.full && !self.undoing;
        let writes = ["begin_run", "unpack_archive", "unpack_release", "write_files", "seal", "arm_guard", "record", "setup"];
        if full && writes.contains(&name) {
            return failed("disk full");
        }
        match name {
            "begin_run" => {
                world.disk.epoch += 1;
                world.disk.tag.clone_from(&self.tag);
                self.epoch = world.disk.epoch;
                world.sync();
            }
            "await_upload" | "all_sent" if !self.listens && self.word != "sent" => {
                return Err(("unsent", "not all of it was sent".into()));
            }
            "await_upload" | "all_sent" => {}
            "unpack_archive" => {
                if !world.disk.incoming.remove(&arg(1)) {
                    return failed("the archive is not there");
                }
                world.disk.incoming.clear();
                world.disk.unpacked.insert(arg(0));
            }
            "unpack_release" => {
                if !world.disk.releases.contains(&arg(1)) {
                    return Err(("integrity", "the release was damaged".into()));
                }
                world.disk.unpacked.insert(arg(0));
            }
            "write_files" if world.disk.unpacked.contains(&arg(0)) => {}
            "write_files" => return failed("nothing is unpacked"),
            "seal" => {
                if world.disk.unpacked.remove(&arg(0)) {
                    world.disk.releases.insert(arg(0));
                    let record = Record { state: "verified".into(), package: arg(1), epoch: self.epoch };
                    world.disk.records.insert(arg(0), record);
                    world.sync();
                } else if !world.disk.releases.contains(&arg(0)) {
                    return Err(("integrity", "the release is not there".into()));
                }
            }
            "setup" => {
                world.disk.setup = Some(arg(1));
                world.sync();
            }
            "arm_guard" => {
                let seconds = |n: usize| Duration::from_secs(arg(n).parse().unwrap_or(0));
                world.disk.guard = Some(Guard {
                    back: Some(arg(0)).filter(|b| b != "none"),
                    epoch: self.epoch,
                    to: arg(1),
                    runs: arg(2) == "1",
                    deadline: Some(Instant::now() + seconds(3)),
                    grace: seconds(4),
                });
                world.disk.settled = None;
                world.sync();
            }
            "settle" => world.sync(),
            "disarm_guard" => {
                world.sync();
                world.disk.guard = None;
                world.sync();
            }
            "record" => {
                let epoch = self.epoch;
                if let Some(record) = world.disk.records.get_mut(&arg(0)) {
                    (record.state, record.epoch) = (arg(1), epoch);
                }
                world.unsettled = true;
            }
            "install_unit" => {
                world.disk.unit = Some(arg(0));
                world.unsettled = true;
            }
            "remove_unit" => {
                world.disk.unit = None;
                world.process = None;
            }
            "switch" => {
                let to = Some(arg(0)).filter(|t| !t.is_empty());
                if to.as_ref().is_some_and(|t| !world.disk.releases.contains(t)) {
                    return Err(("integrity", "the release is not complete".into()));
                }
                let away = to.is_none();
                world.disk.current = to;
                if away { world.sync() } else { world.unsettled = true }
            }
            "restart" => return self.start(&mut world),
            "start" if world.process.is_some() => self.tell(&world),
            "start" => return self.start(&mut world),
            "stop" => world.process = None,
            "stays_up" | "stays_up_as" | "health_exec" => {
                let healthy = world.process.as_ref().is_some_and(|(r, _)| !world.unhealthy.contains(r));
                if !healthy {
                    return Err(("health", "it is not healthy".into()));
                }
            }
            "confirm" => {
                if world.disk.current.as_ref() != Some(&arg(0)) {
                    return failed("current is another one");
                }
                let same = world.process.as_ref().is_some_and(|(_, s)| arg(1) == format!("s{s}") || *s == self.started_as);
                if !same {
                    return Err(("start", "it restarted within the window".into()));
                }
                let epoch = self.epoch;
                if let Some(record) = world.disk.records.get_mut(&arg(0)) {
                    (record.state, record.epoch) = ("proven".into(), epoch);
                }
                world.sync();
                world.disk.guard = None;
                world.sync();
            }
            "discard" => {
                world.disk.unpacked.remove(&arg(0));
                world.disk.incoming.remove(&arg(1));
            }
            "prune" => {
                for id in args.iter().filter(|id| world.disk.current.as_ref() != Some(id)).cloned().collect::<Vec<_>>() {
                    world.disk.releases.remove(&id);
                    world.disk.records.remove(&id);
                }
                world.disk.unpacked.clear();
            }
            other => return failed(format!("the host in memory does not know `{other}`")),
        }
        Ok(String::new())
    }

    fn start(&mut self, world: &mut World) -> Done {
        let Some(release) = world.disk.unit.clone() else { return failed("there is no unit") };
        if world.disk.current.as_ref() != Some(&release) {
            world.violations.push(format!("I4: the unit of {release} is started, current is {:?}", world.disk.current));
        }
        world.sync();
        if !world.start(&release) {
            return Err(("start", "the unit does not start".into()));
        }
        self.tell(world);
        Ok(String::new())
    }

    fn tell(&mut self, world: &World) {
        if let Some((_, start)) = &world.process {
            self.started_as = *start;
            self.fact(&format!("invocation s{start}"));
        }
    }
}

#[async_trait]
impl Process for Sh {
    async fn write(&mut self, data: Bytes) -> Result<(), TransportError> {
        if self.ended || look(&self.world).connections != self.connection {
            return Err(TransportError::Disconnected { reason: "the link is gone".into() });
        }
        let _ = write!(self.input, "{}", String::from_utf8_lossy(&data));
        self.read();
        Ok(())
    }

    async fn close_stdin(&mut self) -> Result<(), TransportError> {
        self.ended = true;
        self.out.push_back(Chunk::Exit(Exit::Status(0)));
        let mut world = look(&self.world);
        if world.lock == Some(self.id) {
            world.leave();
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<Chunk> {
        if look(&self.world).connections != self.connection {
            // What was on its way is lost with the link.
            let told = std::mem::replace(&mut self.ended, true);
            return (!told).then_some(Chunk::Exit(Exit::Lost));
        }
        self.go_on();
        if self.out.is_empty() && self.listens && !self.ended {
            std::future::pending::<()>().await;
        }
        self.out.pop_front()
    }
}

/// The commands of a stage, as `sh` would split them.
fn commands(stage: &str) -> Vec<Vec<String>> {
    let (mut list, mut words, mut word, mut some) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = stage.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                some = true;
                word.extend(chars.by_ref().take_while(|c| *c != '\''));
            }
            '\\' => {
                some = true;
                word.extend(chars.next());
            }
            ' ' | '\n' | ';' => {
                if some || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                some = false;
                if c != ' ' && !words.is_empty() {
                    list.push(std::mem::take(&mut words));
                }
            }
            c => word.push(c),
        }
    }
    list
}
