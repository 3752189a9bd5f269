//! Events to what people and programs see: bars on a terminal, a line per step elsewhere, JSON lines for programs.

use crate::out;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use roadie_deployer::TaskReport;
use roadie_model::event::{Event, EventKind};
use roadie_model::outcome::Outcome;
use roadie_packager::PackEvent;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where events go.
pub enum Reporter {
    /// One JSON object per line.
    Json,
    /// One line per step on standard error.
    Plain(Mutex<HashMap<String, Steps>>),
    /// Bars on a terminal.
    Fancy(Arc<Bars>),
}

/// Bars on a terminal.
#[derive(Default)]
pub struct Bars {
    all: MultiProgress,
    /// One per host and service.
    tasks: Mutex<HashMap<String, (ProgressBar, Steps)>>,
}

/// Titles of a task's steps and how many there are.
#[derive(Debug, Default)]
pub struct Steps {
    total: usize,
    titles: HashMap<u32, String>,
}

impl Reporter {
    /// What suits `json` and the terminal.
    pub fn new(json: bool) -> Self {
        if json {
            Self::Json
        } else if out::is_terminal() {
            Self::Fancy(Arc::default())
        } else {
            Self::Plain(Mutex::default())
        }
    }

    /// Tells an event.
    pub fn event(&self, event: &Event) {
        match self {
            Reporter::Json => {
                if let Ok(text) = serde_json::to_string(event) {
                    out::line(&text);
                }
            }
            Reporter::Plain(tasks) => {
                let name = name(event);
                let lines = {
                    let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
                    describe(&event.kind, tasks.entry(name.clone()).or_default())
                };
                for line in lines {
                    out::note(&format!("{name}: {line}"));
                }
            }
            Reporter::Fancy(bars) => {
                let (bars, event) = (bars.clone(), event.clone());
                out::draw(move || fancy(&bars.all, &mut bars.tasks.lock().unwrap_or_else(PoisonError::into_inner), &event));
            }
        }
    }

    /// Tells what the packager does for `service`.
    pub fn packing(&self, service: &str, target: &str, event: &PackEvent) {
        match (self, event) {
            (Reporter::Json, PackEvent::BuildOutput { line }) => {
                out::line(
                    &serde_json::json!({"event": "build_output", "service": service, "target": target, "line": line}).to_string(),
                );
            }
            (Reporter::Json, PackEvent::Building { command }) => {
                out::line(
                    &serde_json::json!({"event": "building", "service": service, "target": target, "command": command})
                        .to_string(),
                );
            }
            (Reporter::Json, PackEvent::Chosen { toolchain, reason }) => {
                let object = serde_json::json!({"event": "toolchain", "service": service, "target": target, "toolchain": toolchain, "reason": reason});
                out::line(&object.to_string());
            }
            (Reporter::Json, PackEvent::Warning { text }) => {
                out::line(
                    &serde_json::json!({"event": "warning", "service": service, "target": target, "message": text}).to_string(),
                );
            }
            (Reporter::Json, _) => {}
            (_, PackEvent::Chosen { toolchain, reason }) => {
                let word = serde_json::to_value(toolchain).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
                out::note(&format!("{service}: {target} by {word}: {reason}"));
            }
            (_, PackEvent::Warning { text }) => out::note(&format!("{service}: warning: {text}")),
            (_, PackEvent::Building { command }) => out::note(&format!("{service}: {command}")),
            (_, PackEvent::BuildOutput { line }) => out::note(&format!("{service}: {line}")),
            (_, PackEvent::Bundling | PackEvent::Unchanged) => {}
        }
    }
}

fn name(event: &Event) -> String {
    format!("{}@{}", event.service, event.host)
}

/// The lines that an event is worth on a plain output.
fn describe(kind: &EventKind, steps: &mut Steps) -> Vec<String> {
    match kind {
        EventKind::Connecting => vec!["connecting".into()],
        EventKind::Planned { plan } => {
            steps.total = plan.steps.len();
            vec![]
        }
        EventKind::StepStarted { step, title, undoing } => {
            let title = if *undoing { format!("undo: {title}") } else { title.clone() };
            steps.titles.insert(*step, title);
            vec![]
        }
        EventKind::StepDone { step, note, ms } => match steps.titles.get(step) {
            Some(title) => {
                let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
                vec![format!("[{step}/{}] {title}{note}, {:.1} s", steps.total, f64_seconds(*ms))]
            }
            None => vec![],
        },
        EventKind::StepFailed { step, reason } => match steps.titles.get(step) {
            Some(title) => vec![format!("[{step}/{}] {title}: {} {reason}", steps.total, out::red("failed:"))],
            None => vec![format!("{} {reason}", out::red("failed:"))],
        },
        EventKind::Output { line, .. } => vec![format!("| {line}")],
        EventKind::Warning { text } => vec![format!("warning: {text}")],
        EventKind::Progress { .. } | EventKind::Finished { .. } => vec![],
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a run are far below 2^52")]
fn f64_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn fancy(bars: &MultiProgress, tasks: &mut HashMap<String, (ProgressBar, Steps)>, event: &Event) {
    let name = name(event);
    let (bar, steps) = tasks.entry(name.clone()).or_insert_with(|| {
        let bar = bars.add(ProgressBar::new_spinner().with_prefix(name.clone()));
        bar.set_style(spinner());
        bar.enable_steady_tick(Duration::from_millis(120));
        (bar, Steps::default())
    });
    match &event.kind {
        EventKind::Connecting => bar.set_message("connecting"),
        EventKind::StepStarted { step, title, undoing } => {
            bar.set_style(spinner());
            let title = if *undoing { format!("undo: {title}") } else { title.clone() };
            bar.set_message(format!("[{step}/{}] {title}", steps.total));
        }
        EventKind::Progress { bytes, total, .. } => {
            bar.set_style(bytes_bar());
            bar.set_length(*total);
            bar.set_position(*bytes);
        }
        EventKind::Finished { .. } => bar.finish_and_clear(),
        kind => {
            for line in describe(kind, steps) {
                if !matches!(kind, EventKind::StepDone { .. }) {
                    let _ = bars.println(format!("{name}: {line}"));
                }
            }
        }
    }
    if let EventKind::Planned { plan } = &event.kind {
        steps.total = plan.steps.len();
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bytes_bar() -> ProgressStyle {
    let template = "{spinner} {prefix}  {msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Says how all hosts ended and gives the one outcome.
pub fn summary(reports: &[TaskReport], changes: bool, json: bool) -> Outcome {
    let outcomes: Vec<Outcome> = reports.iter().map(|r| r.report.outcome).collect();
    let outcome = Outcome::of_fleet(&outcomes, changes);
    if json {
        let object =
            serde_json::json!({"event": "summary", "outcome": outcome, "exit_code": outcome.exit_code(), "hosts": reports});
        out::line(&object.to_string());
        return outcome;
    }
    for r in reports {
        let name = format!("{}@{}", r.service, r.host);
        let good = matches!(r.report.outcome, Outcome::Done | Outcome::ChangesPending);
        let seconds = f64_seconds(r.report.ms);
        if good {
            out::line(&format!("{} {name}: {}, {seconds:.1} s", out::green("ok"), r.report.summary));
            for warning in &r.report.causes {
                out::line(&format!("  warning: {warning}"));
            }
        } else {
            failure(&name, r);
        }
    }
    if outcome == Outcome::Mixed {
        let bad = outcomes.iter().filter(|o| **o != Outcome::Done).count();
        out::note(&format!(
            "{} {bad} of {} are not on the new release; deploy again when the cause is mended",
            out::red("mixed:"),
            outcomes.len()
        ));
    }
    outcome
}

fn failure(name: &str, r: &TaskReport) {
    out::note(&format!("{} {name}: {}", out::red("error:"), r.report.summary));
    for cause in &r.report.causes {
        out::note(&format!("  caused by: {cause}"));
    }
    for line in r.report.last_output.iter().rev().take(5).rev() {
        out::note(&format!("  last output: {line}"));
    }
    if let Some(current) = &r.report.current {
        out::note(&format!("  current: release {current}"));
    }
    if let Some(hint) = &r.report.hint {
        out::note(&format!("hint: {hint}"));
    }
}
