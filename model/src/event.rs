//! What happens while it happens: the one stream that terminal, JSON lines and tests are fed from.

use crate::id::{HostName, ServiceName};
use crate::outcome::Outcome;
use crate::plan::{HostPlan, StepId};
use serde::Serialize;

/// One event on one host for one service.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Where.
    pub host: HostName,
    /// Which service.
    pub service: ServiceName,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// Work on the host begins: connecting.
    Connecting,
    /// The host was observed and the plan is made; always before the first step.
    Planned {
        /// The whole plan.
        plan: Box<HostPlan>,
    },
    /// A step begins.
    StepStarted {
        /// Which.
        step: StepId,
        /// In words.
        title: String,
        /// True while a failed run is being taken back.
        undoing: bool,
    },
    /// Bytes sent so far. May be dropped by a reporter; everything else must not be.
    Progress {
        /// Which step.
        step: StepId,
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A line that a step printed (setup, service log).
    Output {
        /// Which step.
        step: StepId,
        /// The line, sanitised.
        line: String,
    },
    /// A step ended well.
    StepDone {
        /// Which.
        step: StepId,
        /// A remark, or empty.
        note: String,
        /// Milliseconds it took, as seen from here.
        ms: u64,
    },
    /// A step failed; undoing begins if there is anything to undo.
    StepFailed {
        /// Which.
        step: StepId,
        /// Why.
        reason: String,
    },
    /// Something worth knowing that stops nothing.
    Warning {
        /// The sentence.
        text: String,
    },
    /// The last event of a host and service: how it ended.
    Finished {
        /// The end.
        report: Box<HostReport>,
    },
}

/// How work on one host for one service ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostReport {
    /// The class.
    pub outcome: Outcome,
    /// One sentence: what failed or what was done, and the state the host is in.
    pub summary: String,
    /// Causes, outermost first.
    pub causes: Vec<String>,
    /// Last output of what failed.
    pub last_output: Vec<String>,
    /// The next command or change to make.
    pub hint: Option<String>,
    /// The release that is current now, short, if known.
    pub current: Option<String>,
    /// Milliseconds the work took.
    pub ms: u64,
    /// Round trips after login, counted by the session.
    pub round_trips: u64,
    /// Bytes of package that were sent.
    pub sent_bytes: u64,
    /// Sanitised data of reading verbs (status, releases); `null` otherwise.
    pub data: serde_json::Value,
}
