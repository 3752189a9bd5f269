//! A host of the lab as seen from outside: its disk below our feet, its service over the bridge, its power switch.

use roadie_tests::LabHost;
use sha2::{Digest, Sha256};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Port of the service under trial, on all addresses of the host.
pub const PORT: u16 = 8080;

/// One host under trial.
#[derive(Debug, Clone)]
pub struct Host {
    /// The lab's handle on it.
    pub lab: LabHost,
    /// Its root file system, mounted here.
    root: PathBuf,
}

impl Host {
    /// The host behind the lab's handle.
    pub fn new(lab: LabHost) -> Self {
        let base = std::env::var_os("ROADIE_LAB_DIR").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/roadie-lab"),
            PathBuf::from,
        );
        let name = std::env::var("ROADIE_LAB").unwrap_or_else(|_| "default".into());
        let root = base.join("labs").join(name).join(format!("host{}", lab.lab_number)).join("root");
        Self { lab, root }
    }

    /// A path inside of the host.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// The service's folder.
    pub fn service(&self) -> PathBuf {
        self.path("/opt/roadie/hello")
    }

    /// A file of roadie's own state about the service.
    pub fn state(&self, name: &str) -> PathBuf {
        self.service().join(".roadie").join(name)
    }

    /// First line of such a file.
    pub fn state_line(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.state(name)).ok()?;
        Some(text.lines().next().unwrap_or_default().to_owned())
    }

    /// The release that `current` names.
    pub fn current(&self) -> Option<String> {
        let target = std::fs::read_link(self.service().join("current")).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// What the running service says its version is.
    pub fn version(&self) -> Option<String> {
        let address = format!("{}:{PORT}", self.lab.address).parse().ok()?;
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
        stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.trim().to_owned())
    }

    /// Nobody holds the lock.
    pub fn lock_is_free(&self) -> bool {
        let lock = self.state("lock");
        lock.exists() && Command::new("flock").arg("-n").arg(&lock).arg("true").status().is_ok_and(|s| s.success())
    }

    /// Nobody holds the lock, and no guard waits.
    pub fn is_settled(&self) -> bool {
        self.lock_is_free() && !self.state("guard").exists()
    }

    /// Why the release is not complete and whole, if it is not: marker, manifest, every file, nothing besides.
    pub fn damage(&self, release: &str) -> Option<String> {
        let folder = self.service().join("releases").join(release);
        let manifest = match std::fs::read(folder.join("MANIFEST")) {
            Ok(manifest) => manifest,
            Err(e) => return Some(format!("{release}: MANIFEST: {e}")),
        };
        let marker = std::fs::read_to_string(folder.join("COMPLETE")).unwrap_or_default();
        if marker.trim() != hex(&manifest) {
            return Some(format!("{release}: COMPLETE is `{}`", marker.trim()));
        }
        let mut listed = 0;
        for line in String::from_utf8_lossy(&manifest).lines() {
            let Some((wanted, path)) = line.split_once("  ") else { return Some(format!("{release}: manifest line `{line}`")) };
            listed += 1;
            match std::fs::read(folder.join(path)) {
                Ok(bytes) if hex(&bytes) == wanted => {}
                Ok(bytes) => return Some(format!("{release}: {path} differs ({} bytes)", bytes.len())),
                Err(e) => return Some(format!("{release}: {path}: {e}")),
            }
        }
        let present = files(&folder);
        (present != listed + 2).then(|| format!("{release}: {present} files, {listed} are listed"))
    }

    /// Why the installed unit is not that of the release, if it is not.
    pub fn foreign_unit(&self, release: &str) -> Option<String> {
        let installed = std::fs::read(self.path("/etc/systemd/system/roadie-hello.service")).unwrap_or_default();
        let own = std::fs::read(self.service().join("releases").join(release).join("unit")).unwrap_or_default();
        (installed != own).then(|| format!("the installed unit is not that of current, {release:.12}"))
    }

    /// The last state that was recorded of a release.
    pub fn record(&self, release: &str) -> Option<String> {
        Some(self.state_line(&format!("records/{release}"))?.split(' ').next()?.to_owned())
    }

    /// Releases that are recorded as proven.
    pub fn proven(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.state("records")).into_iter().flatten().flatten();
        let names = files.map(|f| f.file_name().to_string_lossy().into_owned());
        names.filter(|id| self.record(id).as_deref() == Some("proven")).collect()
    }

    /// Kills the guard at work.
    pub fn kill_guard(&self) {
        self.lab.root("systemctl kill --signal=KILL 'roadie-guard-hello:*.service'");
    }

    /// What a run that is over must not leave.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut look = |folder: PathBuf, bad: &dyn Fn(&str) -> bool| {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if bad(&name) {
                    found.push(entry.path().display().to_string());
                }
            }
        };
        look(self.service(), &|n| n.ends_with(".new"));
        look(self.service().join("releases"), &|n| n.starts_with('.'));
        look(self.service().join(".roadie"), &|n| {
            n.ends_with(".new") || ["guard", "holder", "pid", "beat", "cancel", "waiter", "incoming", "watched"].contains(&n)
        });
        look(self.path("/home/deploy/.roadie/incoming"), &|_| true);
        found
    }

    /// Pulls the plug: what was not synced is lost.
    pub fn pull_the_plug(&self) {
        self.lab.lab("power", &[]);
    }

    /// Boots it and waits until sshd answers.
    pub fn boot(&self) {
        self.lab.lab("boot", &[]);
    }

    /// Takes all free space.
    pub fn fill_disk(&self) {
        self.lab.root("fallocate -l $(($(df -Pk / | tail -n 1 | awk '{print $4}') - 4))K /var/tmp/ballast; cat /dev/zero >/var/tmp/rest 2>/dev/null; true");
    }

    /// Gives it back.
    pub fn free_disk(&self) {
        // Durable: a power cut soon after would bring it back.
        self.lab.root("rm -f /var/tmp/ballast /var/tmp/rest; sync");
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { files(&e.path()) } else { 1 }).sum()
}
