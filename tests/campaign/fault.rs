//! What goes wrong, and where.

use crate::host::Host;
use std::fmt;
use std::process::Child;
use std::time::Duration;

/// A thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The controller is killed.
    Kill,
    /// The controller is asked to end, as a cancelled pipeline does.
    Terminate,
    /// The link is cut for as long as the controller lives, at most 25 s.
    Link,
    /// sshd's sessions on the host are killed.
    Session,
    /// The host reboots in order.
    Reboot,
    /// The plug is pulled.
    Power,
    /// The disk is full until the controller ends.
    DiskFull,
    /// The controller is stopped, and goes on much later.
    Sleep,
}

impl Fault {
    /// Those of the exhaustive lane.
    pub const EXHAUSTIVE: [Fault; 7] =
        [Fault::Kill, Fault::Terminate, Fault::Link, Fault::Session, Fault::Reboot, Fault::Power, Fault::DiskFull];

    /// Those of the lane about the guard, where a kill is the guard's own.
    pub const ON_THE_WAY_BACK: [Fault; 4] = [Fault::Kill, Fault::Reboot, Fault::Power, Fault::DiskFull];

    /// Makes it happen.
    pub fn inject(self, host: &Host, controller: &mut Child) {
        match self {
            Fault::Kill => {
                let _ = controller.kill();
            }
            Fault::Terminate => signal(controller, "TERM"),
            Fault::Sleep => signal(controller, "STOP"),
            Fault::Link => host.lab.lab("cut", &[]),
            Fault::Session => {
                // One of them carries this very command.
                host.lab.root("pkill -KILL -f 'sshd: deploy'");
            }
            Fault::Reboot => {
                host.lab.root("systemctl poweroff");
                host.lab.wait_until_down();
            }
            Fault::Power => host.pull_the_plug(),
            Fault::DiskFull => host.fill_disk(),
        }
    }

    /// Takes it back, once the controller has ended or waits for that.
    pub fn heal(self, host: &Host, controller: &mut Child) {
        match self {
            Fault::Link => host.lab.lab("heal", &[]),
            Fault::DiskFull => host.free_disk(),
            Fault::Sleep => signal(controller, "CONT"),
            Fault::Reboot | Fault::Power => host.boot(),
            Fault::Kill | Fault::Terminate | Fault::Session => {}
        }
    }

    /// How long the controller is waited for before the fault is taken back, when it does not end.
    pub fn patience(self) -> Duration {
        match self {
            Fault::Link => Duration::from_secs(25),
            // Longer than the host's watchdog takes.
            Fault::Sleep => Duration::from_secs(16),
            Fault::Reboot | Fault::Power => Duration::ZERO,
            _ => Duration::from_secs(90),
        }
    }
}

fn signal(child: &Child, name: &str) {
    let _ = std::process::Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::Kill => "kill -9",
            Fault::Terminate => "SIGTERM",
            Fault::Link => "link cut",
            Fault::Session => "session kill",
            Fault::Reboot => "reboot",
            Fault::Power => "power cut",
            Fault::DiskFull => "disk full",
            Fault::Sleep => "SIGSTOP",
        })
    }
}

/// Where in a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before or after a step of the host, by its function.
    Host(When, &'static str),
    /// Before or after a step of the controller, by its action.
    Controller(When, &'static str),
    /// Before or after a step of the guard's own way back: the controller was killed once it had switched.
    Guard(When, &'static str),
    /// So many milliseconds behind its start.
    After(u64),
}

/// Before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It has not begun.
    Before,
    /// It is done.
    After,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == When::Before { "before" } else { "after" })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Host(when, step) | Point::Controller(when, step) => write!(f, "{when} {step}"),
            Point::Guard(when, step) => write!(f, "{when} {step} of the guard"),
            Point::After(ms) => write!(f, "{ms} ms in"),
        }
    }
}

impl Point {
    /// Every point of the guard's own way back.
    pub fn way_back() -> Vec<Point> {
        const STEPS: [&str; 7] = ["verify_tree", "record", "stop", "switch", "install_unit", "restart", "disarm_guard"];
        STEPS.iter().flat_map(|s| [When::Before, When::After].map(|w| Point::Guard(w, s))).collect()
    }

    /// Every point of a deployment that sends a package, runs setup and prunes.
    pub fn all() -> Vec<Point> {
        const HOST: [&str; 16] = [
            "begin_run",
            "await_upload",
            "unpack_archive",
            "unpack_patch",
            "write_files",
            "seal",
            "all_sent",
            "setup",
            "arm_guard",
            "record",
            "install_unit",
            "switch",
            "restart",
            "settle",
            "confirm",
            "prune",
        ];
        let both = [When::Before, When::After];
        let mut points: Vec<Point> = HOST.iter().flat_map(|s| both.map(|w| Point::Host(w, s))).collect();
        points.extend(["upload", "check_health"].iter().flat_map(|s| both.map(|w| Point::Controller(w, s))));
        points
    }
}
