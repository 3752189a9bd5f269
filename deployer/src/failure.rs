//! What went wrong on one host, with its class and what to do next.

use roadie_model::outcome::Outcome;
use roadie_planner::PlanError;
use roadie_transport::TransportError;

/// A failure on one host, before it is known what state the host was left in.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Class, as if nothing had changed yet.
    pub outcome: Outcome,
    /// What failed, a sentence part.
    pub problem: String,
    /// Deeper causes, outermost first.
    pub causes: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
    /// Contact was lost: the host may know more.
    pub lost: bool,
    /// The package may still get there in another way.
    pub resend: Option<Resend>,
}

/// How a package that did not get to a host may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resend {
    /// With a look at what is there: it was taken for new.
    Looking,
    /// All of it: a difference did not give it.
    Whole,
}

impl Failure {
    /// A failure of class `outcome`.
    pub fn new(outcome: Outcome, problem: impl Into<String>) -> Self {
        Self { outcome, problem: problem.into(), causes: Vec::new(), hint: None, lost: false, resend: None }
    }

    /// Adds what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Contact was lost.
    pub fn lost(reason: String) -> Self {
        Self { lost: true, causes: vec![reason], ..Self::new(Outcome::Unreachable, "contact was lost") }
    }

    /// Another run took the lock and began while we were away.
    pub fn superseded(epoch: u64) -> Self {
        Self::new(Outcome::Locked, format!("contact was lost, and run {epoch} has taken over since"))
            .hint("`roadie status` shows what it made of it")
    }

    /// From the transport.
    #[expect(clippy::needless_pass_by_value, reason = "made for `map_err`")]
    pub fn transport(error: TransportError) -> Self {
        use TransportError as T;
        let (outcome, hint) = match &error {
            T::Resolve { .. } => (Outcome::Unreachable, Some("check `address` in the definition".to_owned())),
            T::Refused { .. } => (Outcome::Unreachable, Some("check that sshd runs there and `port` is right".into())),
            T::TimedOut { .. } => (
                Outcome::Unreachable,
                Some("the host is down, or a firewall drops the packets; `timeout:` sets how long to wait".into()),
            ),
            T::NoRoute { .. } => {
                (Outcome::Unreachable, Some("the host is down, or `address` is not in a network of this machine".into()))
            }
            T::TurnedAway { .. } => (
                Outcome::Unreachable,
                Some("sshd's MaxStartups or PerSourcePenalties turn us away: try again in a minute, or raise them there".into()),
            ),
            T::HostKeyUnknown { fingerprint, .. } => (
                Outcome::Integrity,
                Some(format!(
                    "compare it with the host's own; then pin `host_key: \"{fingerprint}\"`, or run with --accept-new-host-keys"
                )),
            ),
            T::HostKeyChanged { .. } => (
                Outcome::Integrity,
                Some(
                    "somebody may be in between; if the host was reinstalled, remove the old line with `ssh-keygen -R ADDRESS`"
                        .into(),
                ),
            ),
            T::HostKeyRevoked { .. } => (Outcome::Integrity, Some("do not connect; ask whoever revoked it".into())),
            T::KnownHosts { .. } => (Outcome::Integrity, None),
            T::AuthRefused { user, .. } => (
                Outcome::Unreachable,
                Some(format!("put the public key into ~{user}/.ssh/authorized_keys there, or set `user` and `ssh_key`")),
            ),
            T::KeyFile { .. } => {
                (Outcome::Unreachable, Some("set `ssh_key` to a private key file that only you can read".into()))
            }
            T::Disconnected { .. } => (Outcome::Unreachable, None),
            T::Refusal { .. } | T::PortClosed { .. } | T::Upload { .. } | T::NotNew { .. } | T::Protocol(_) | T::Local { .. } => {
                (Outcome::FailedUnchanged, None)
            }
        };
        let lost = matches!(error, T::Disconnected { .. });
        let resend = matches!(error, T::NotNew { .. }).then_some(Resend::Looking);
        let mut causes = Vec::new();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        let mut problem = error.to_string();
        if let T::HostKeyUnknown { line, .. } = &error {
            causes.push(format!("known_hosts would say: {line}"));
        }
        if lost {
            causes.insert(0, std::mem::replace(&mut problem, "contact was lost".into()));
        }
        Self { outcome, problem, causes, hint, lost, resend }
    }

    /// The shell on the host ended by itself before it was asked to.
    pub fn shell_ended(code: u32, said: &[String]) -> Self {
        let text = said.join("; ");
        if text.contains("sudo") {
            return Self {
                causes: said.to_vec(),
                ..Self::new(Outcome::Refused, "sudo does not let us work without a password")
                    .hint("add to sudoers: `USER ALL=(root) NOPASSWD: /bin/sh`, log in as root, or set `scope: user`")
            };
        }
        Self {
            causes: said.to_vec(),
            ..Self::new(Outcome::FailedUnchanged, format!("the shell on the host ended with status {code}"))
        }
    }

    /// The host script said no. `kind` is its word for the sort of failure.
    pub fn host(kind: &str, text: &str) -> Self {
        match kind {
            "locked" => Self::new(Outcome::Locked, format!("another run holds the lock: {text}"))
                .hint("it frees itself when that run ends; `--lock-wait 15m` waits for that"),
            "unwritable" => {
                Self::new(Outcome::Refused, text.to_owned()).hint("log in as a user who may write there, or set `scope: user`")
            }
            "superseded" => Self::new(Outcome::Locked, text.to_owned()),
            "cancelled" => Self::new(Outcome::Interrupted, "interrupted"),
            "patch" => Self { resend: Some(Resend::Whole), ..Self::new(Outcome::Integrity, text.to_owned()) },
            "integrity" => Self::new(Outcome::Integrity, text.to_owned()),
            "setup" => Self::new(Outcome::FailedUnchanged, text.to_owned())
                .hint("setup has no terminal and no input: pass -y and the like; `setup_timeout` sets its deadline"),
            _ => Self::new(Outcome::FailedUnchanged, text.to_owned()),
        }
    }

    /// There is no plan.
    pub fn plan(error: PlanError) -> Self {
        match error {
            PlanError::Refused(r) => Self::new(Outcome::Refused, r.problem).hint(r.hint),
            PlanError::Render(e) => Self::new(Outcome::Usage, e.to_string()).hint(e.hint()),
            PlanError::NoTarget { problem } => {
                Self::new(Outcome::FailedUnchanged, problem).hint("`roadie releases` shows what is there")
            }
        }
    }
}
