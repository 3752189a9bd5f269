//! What the end-to-end tests share: the lab's hosts, and the built `roadie` in a home folder of its own.
//!
//! Tests that need hosts lease as many of the lab's as they ask for, reset to nothing deployed; two tests run side by side
//! (`.config/nextest.toml`). Without a lab they say loudly that they were skipped and are counted; where `ROADIE_REQUIRE_LAB=1`
//! they fail instead.

pub mod watch;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One host of the lab.
#[derive(Debug, Clone)]
pub struct LabHost {
    /// Number among the test's own, from 1.
    pub number: usize,
    /// Number in the lab, from 1.
    pub lab_number: usize,
    /// IP address.
    pub address: String,
    /// IPv6 address, where the lab has some.
    pub address6: Option<String>,
    key: PathBuf,
    known_hosts: PathBuf,
    /// While it lives, no other test has the host.
    #[expect(dead_code, reason = "held for its lock")]
    lease: Option<Arc<File>>,
}

impl LabHost {
    /// Runs a command as `user` through the openssh client; standard output, trimmed.
    ///
    /// # Panics
    /// When ssh cannot be started.
    pub fn ssh(&self, user: &str, command: &str) -> String {
        let output = Command::new("ssh")
            .arg("-i")
            .arg(&self.key)
            // The client's first choice computes for a tenth of a second at each login.
            .args(["-o", "KexAlgorithms=curve25519-sha256"])
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", "-o"])
            .arg(format!("UserKnownHostsFile={}", self.known_hosts.display()))
            .arg(format!("{user}@{}", self.address))
            .arg(command)
            .output()
            .unwrap_or_else(|e| panic!("cannot run ssh: {e}"));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Runs a command as root.
    pub fn root(&self, command: &str) -> String {
        self.ssh("root", command)
    }

    /// The private key that lets in.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// `ci/lab VERB NUMBER ARGS...`
    ///
    /// # Panics
    /// When the lab says no.
    pub fn lab(&self, verb: &str, args: &[&str]) {
        let status = Command::new(workspace().join("ci/lab")).arg(verb).arg(self.lab_number.to_string()).args(args).status();
        assert!(status.is_ok_and(|s| s.success()), "ci/lab {verb} {} failed", self.lab_number);
    }

    /// Waits until a host that was told to go down has gone, and lets its disk go.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_until_down(&self) {
        self.lab("wait", &[]);
    }

    /// The host as this test's own, if no other has it.
    fn leased(&self) -> Option<Self> {
        let file = File::create(self.key.with_file_name(format!("lease-{}", self.lab_number))).ok()?;
        file.try_lock().ok()?;
        Some(Self { lease: Some(Arc::new(file)), ..self.clone() })
    }

    /// Takes everything of roadie off the host.
    pub fn reset(&self) {
        self.lab("heal", &[]);
        // A test that failed may have left it down.
        self.lab("boot", &[]);
        let script = r#"
            for unit in /etc/systemd/system/roadie-*.service; do
              [ -e "$unit" ] || continue
              systemctl disable --now "${unit##*/}" 2>/dev/null; rm -f "$unit"
            done
            systemctl daemon-reload
            for home in ~ /home/*; do
              ls "$home"/.config/systemd/user/roadie-* >/dev/null 2>&1 || continue
              user=${home##*/}
              loginctl disable-linger "$user"
              systemctl stop "user@$(id -u "$user").service"
              rm -f "$home"/.config/systemd/user/roadie-* "$home"/.config/systemd/user/*.wants/roadie-*
            done
            for file in /opt/roadie/*/.roadie/simple/state ~/.local/share/roadie/*/.roadie/simple/state /home/*/.local/share/roadie/*/.roadie/simple/state; do
              [ -e "$file" ] || continue
              read -r _ supervisor _ <"$file"; kill -TERM "${supervisor%-*}" 2>/dev/null
            done
            systemctl stop "roadie-guard-*.timer" "roadie-guard-*.service" 2>/dev/null
            umount -l /opt/roadie 2>/dev/null
            rm -rf /opt/roadie /opt/set-up-* ~/.roadie /home/*/.roadie ~/.local/share/roadie /home/*/.local/share/roadie
            true"#;
        self.root(script);
    }
}

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap_or_else(|e| panic!("no workspace: {e}"))
}

/// `count` hosts of the lab that no other test has, with nothing deployed on them; `None` when there is no lab. Several are the
/// first that are free, a single one is the last.
///
/// # Panics
/// Without a lab where `ROADIE_REQUIRE_LAB=1`.
pub fn lab(test: &str, count: usize) -> Option<Vec<LabHost>> {
    let mut all = lab_hosts();
    if all.len() < count {
        skip(test, "no lab with enough hosts: run it by ci/test as root");
        return None;
    }
    if count == 1 {
        all.reverse();
    }
    // One after the other: who wants many would wait for ever if others took single ones in between.
    let queue = File::create(all[0].key.with_file_name("lease-queue")).unwrap_or_else(|e| panic!("no queue: {e}"));
    queue.lock().unwrap_or_else(|e| panic!("no place in the queue: {e}"));
    let hosts = loop {
        let mut free: Vec<LabHost> = all.iter().filter_map(LabHost::leased).collect();
        if free.len() >= count {
            free.truncate(count);
            free.iter_mut().enumerate().for_each(|(index, host)| host.number = index + 1);
            break free;
        }
        drop(free);
        std::thread::sleep(Duration::from_millis(200));
    };
    hosts.iter().for_each(LabHost::reset);
    Some(hosts)
}

/// A host with the oldest Debian that is tested; `None` when there is none. It has nothing deployed on it.
///
/// # Panics
/// Without one where `ROADIE_REQUIRE_LAB=1`.
pub fn old_host(test: &str) -> Option<LabHost> {
    let host = hosts_of("ROADIE_OLD").into_iter().next().and_then(|h| h.leased());
    if host.is_none() {
        skip(test, "no host with an older Debian: run it by ci/test as root");
    }
    host.inspect(LabHost::reset)
}

/// All hosts of the lab that the environment names, as they are; none without a lab.
pub fn lab_hosts() -> Vec<LabHost> {
    hosts_of("ROADIE_LAB")
}

/// The hosts of the lab whose variables begin with `prefix`.
fn hosts_of(prefix: &str) -> Vec<LabHost> {
    let var = |name: &str| std::env::var(format!("{prefix}_{name}")).ok().filter(|v| !v.is_empty());
    let (key, known, list) = (var("KEY"), var("KNOWN_HOSTS"), var("HOSTS"));
    match (key, known, list) {
        (Some(key), Some(known), Some(list)) => list
            .split_whitespace()
            .enumerate()
            .map(|(index, address)| LabHost {
                number: index + 1,
                lab_number: index + 1,
                address: address.to_owned(),
                address6: var("HOSTS6").and_then(|six| six.split_whitespace().nth(index).map(str::to_owned)),
                key: PathBuf::from(&key),
                known_hosts: PathBuf::from(&known),
                lease: None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The built `roadie`.
pub fn roadie() -> PathBuf {
    built("ROADIE_BIN", "roadie")
}

/// A long link to a host: `bench relay`, which ends with this.
pub struct Relay {
    /// Port on loopback that leads to the host's sshd.
    pub port: u64,
    child: Child,
    stats: PathBuf,
}

impl Relay {
    /// Every byte takes `delay_ms` longer, each way. What it counted goes into `folder`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(host: &LabHost, delay_ms: u32, folder: &Path) -> Self {
        let stats = folder.join("relay.jsonl");
        let mut child = Command::new(built("BENCH_BIN", "bench"))
            .args(["relay", "--while-stdin", "--map", &format!("0={}:22", host.address), "--delay-ms", &delay_ms.to_string()])
            .arg("--stats")
            .arg(&stats)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start the relay: {e}"));
        let mut line = String::new();
        let read = child.stdout.take().map(|out| std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line));
        assert!(matches!(read, Some(Ok(_))), "the relay says nothing");
        let ports: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
        Self { port: ports["ports"][0].as_u64().unwrap_or_default(), child, stats }
    }

    /// What was counted on each connection that has ended.
    pub fn counted(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&self.stats).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Says that a test was skipped, and counts it.
///
/// # Panics
/// Where nothing may be skipped.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var("ROADIE_REQUIRE_LAB").as_deref() != Ok("1"), "{test} must not be skipped here: {why}");
    let line = format!("SKIPPED {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Ok(path) = std::env::var("ROADIE_SKIPPED") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
    }
}

/// The built `roadie`, a project folder and a home folder of its own.
pub struct Project {
    /// Folder with roadie.yaml.
    pub dir: PathBuf,
    /// HOME of every run.
    pub home: PathBuf,
    _temp: tempfile::TempDir,
}

/// What a run gave.
#[derive(Debug)]
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Run {
    /// All JSON objects on standard output.
    ///
    /// # Panics
    /// When a line is no JSON: `--json` must be pure.
    pub fn json(&self) -> Vec<serde_json::Value> {
        let parse = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("not JSON ({e}): {l}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The summary event.
    ///
    /// # Panics
    /// When there is none.
    pub fn summary(&self) -> serde_json::Value {
        self.json().pop().filter(|v| v["event"] == "summary").unwrap_or_else(|| panic!("no summary: {self:?}"))
    }

    /// Asserts the exit code and shows everything when it is another.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that standard output or error says `text`.
    ///
    /// # Panics
    /// When neither does.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let said = self.stdout.contains(text) || self.stderr.contains(text);
        assert!(said, "`{text}` is not said\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }
}

impl Project {
    /// An empty project; the home knows the lab's hosts and holds its key, if there is a lab.
    ///
    /// # Panics
    /// When the temporary folder cannot be made.
    pub fn new() -> Self {
        let temp =
            tempfile::Builder::new().prefix("roadie-test-").tempdir().unwrap_or_else(|e| panic!("no temporary folder: {e}"));
        let (dir, home) = (temp.path().join("project"), temp.path().join("home"));
        for folder in [&dir, &home.join(".ssh")] {
            std::fs::create_dir_all(folder).unwrap_or_else(|e| panic!("cannot make {}: {e}", folder.display()));
        }
        let copy = |variable: &str, name: &str| {
            if let Ok(from) = std::env::var(variable) {
                let to = home.join(".ssh").join(name);
                let _ = std::fs::copy(from, &to);
                let _ = std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600));
            }
        };
        copy("ROADIE_LAB_KEY", "id_ed25519");
        copy("ROADIE_LAB_KNOWN_HOSTS", "known_hosts");
        Self { dir, home, _temp: temp }
    }

    /// Writes a file of the project.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.dir.join(name);
        let parent = path.parent().map(Path::to_owned).unwrap_or_default();
        let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, text));
        written.unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }

    /// Puts the example server's binary into the project as `hello`.
    ///
    /// # Panics
    /// When it was not built.
    pub fn add_hello(&self) {
        let from = built("HELLO_BIN", "hello");
        std::fs::copy(&from, self.dir.join("hello")).unwrap_or_else(|e| panic!("cannot copy {}: {e}", from.display()));
    }

    /// The command, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(built("ROADIE_BIN", "roadie"));
        // rustup and cargo find their own things below the real home.
        let real = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        for (variable, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            let value = std::env::var_os(variable).map_or_else(|| real.join(folder), PathBuf::from);
            command.env(variable, value);
        }
        command
            .args(args)
            .current_dir(&self.dir)
            .env("HOME", &self.home)
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("XDG_CACHE_HOME");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Makes a host of another lab known.
    ///
    /// # Panics
    /// When the files cannot be read or written.
    pub fn knows(&self, host: &LabHost) {
        let path = self.home.join(".ssh/known_hosts");
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let text = format!("{}{}", read(&path), read(&host.known_hosts));
        std::fs::write(&path, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }

    /// Runs `roadie ARGS` to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn roadie(&self, args: &[&str]) -> Run {
        self.run_with(args, &[])
    }

    /// The same with variables in its environment.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Run {
        let began = Instant::now();
        let output = self.command(args).envs(env.iter().copied()).output().unwrap_or_else(|e| panic!("cannot run roadie: {e}"));
        finished(&output, began)
    }
}

impl Default for Project {
    fn default() -> Self {
        Self::new()
    }
}

/// What a failed test leaves running on this machine is ended: the supervisors that its state names, and only if they are its own.
impl Drop for Project {
    fn drop(&mut self) {
        let services = std::fs::read_dir(self.home.join(".local/share/roadie")).into_iter().flatten().flatten();
        for service in services {
            let state = std::fs::read_to_string(service.path().join(".roadie/simple/state")).unwrap_or_default();
            let Some((pid, _)) = state.split(' ').nth(1).and_then(|s| s.split_once('-')) else { continue };
            let command = PathBuf::from("/proc").join(pid).join("cmdline");
            let ours = || std::fs::read_to_string(&command).is_ok_and(|c| c.contains(service.path().to_string_lossy().as_ref()));
            let began = Instant::now();
            while ours() && began.elapsed() < Duration::from_secs(15) {
                let _ = Command::new("kill").args(["-TERM", pid]).status();
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

/// Makes a [`Run`] of a finished process.
pub fn finished(output: &Output, began: Instant) -> Run {
    use std::os::unix::process::ExitStatusExt as _;
    Run {
        code: output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: began.elapsed(),
    }
}

/// Sends a signal (`INT`, `TERM`, `KILL`, ...) to a process that the test started.
///
/// # Panics
/// When it is not there.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.is_ok_and(|s| s.success()), "no SIG{name} for process {}", child.id());
}

/// A binary of the workspace: named by the environment, or built into the target folder.
fn built(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| workspace().join("target/debug").join(name), PathBuf::from)
}
