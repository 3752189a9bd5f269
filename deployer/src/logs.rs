//! Reading service logs and running commands: streams that end in no release.

use crate::controller::Controller;
use crate::engine::{LookFor, Task};
use crate::failure::Failure;
use crate::shell::{HostShell, sanitise};
use futures::future::join_all;
use roadie_model::definition::{Host, Service};
use roadie_model::id::{HostName, ServiceName};
use roadie_model::outcome::Outcome;
use roadie_model::sh::quote;
use roadie_transport::Exit;
use serde::Serialize;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Which lines are wanted.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Keep following.
    pub follow: bool,
    /// At most this many of the newest lines; `None` means all (with `since`) or 100.
    pub lines: Option<u32>,
    /// Not older than this many seconds.
    pub since_s: Option<u64>,
    /// Only of the release whose id starts so.
    pub release: Option<String>,
}

/// One log line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Where it was written.
    pub host: HostName,
    /// By which service.
    pub service: ServiceName,
    /// Microseconds since 1970 by the host's clock; `None` where the host keeps no times.
    pub time_us: Option<i64>,
    /// The text, sanitised for a terminal.
    pub text: String,
}

/// Told of each line; several hosts come merged by time.
pub type LogSink<'a> = &'a (dyn Fn(LogLine) + Send + Sync);

/// What `exec` gave on one host.
#[derive(Debug, Clone, Serialize)]
pub struct ExecResult {
    /// Where.
    pub host: HostName,
    /// Exit status; `None` when a signal or lost contact ended it, or it never began.
    pub status: Option<u32>,
    /// Standard output, at most 1 MiB, lossy UTF-8.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Why it did not run, if it did not.
    pub error: Option<String>,
}

/// A source that was silent for so long no longer holds back lines of the others.
const MERGE_WINDOW: Duration = Duration::from_millis(300);
/// Output kept of one `exec`.
const EXEC_LIMIT: usize = 1 << 20;

struct Source<'a> {
    service: &'a Service,
    host: &'a Host,
}

enum Message {
    Line(LogLine),
    End(usize, Option<String>),
}

/// Follows or reads all sources side by side and merges their lines by time.
pub async fn stream(
    controller: &Controller,
    targets: Vec<(Service, Vec<Host>)>,
    query: LogQuery,
    sink: LogSink<'_>,
) -> Vec<(HostName, ServiceName, Option<String>)> {
    let sources: Vec<Source<'_>> =
        targets.iter().flat_map(|(service, hosts)| hosts.iter().map(move |host| Source { service, host })).collect();
    let (sender, receiver) = mpsc::channel(1024);
    let readers = sources.iter().enumerate().map(|(index, source)| {
        let sender = sender.clone();
        let query = &query;
        async move {
            let result = read(controller, source, query, &sender).await;
            let _ = sender.send(Message::End(index, result.err().map(|f| f.problem))).await;
        }
    });
    let all = async {
        join_all(readers).await;
    };
    let merging = merge(receiver, sources.len(), query.follow, sink);
    let mut errors: Vec<Option<String>> = vec![None; sources.len()];
    tokio::select! {
        ((), ends) = async { tokio::join!(all, merging) } => errors = ends,
        () = controller.cancel.reached(1) => {}
    }
    sources.iter().zip(errors).map(|(s, error)| (s.host.name.clone(), s.service.name.clone(), error)).collect()
}

/// Lines sorted by time: at once for a finite read, within a short window when following.
async fn merge(mut receiver: mpsc::Receiver<Message>, sources: usize, follow: bool, sink: LogSink<'_>) -> Vec<Option<String>> {
    let mut errors = vec![None; sources];
    let mut open = sources;
    let mut held: Vec<LogLine> = Vec::new();
    while open > 0 {
        let message = if held.is_empty() || !follow {
            receiver.recv().await
        } else {
            match timeout(MERGE_WINDOW, receiver.recv()).await {
                Ok(message) => message,
                Err(_) => {
                    flush(&mut held, sink);
                    continue;
                }
            }
        };
        match message {
            Some(Message::Line(line)) => {
                held.push(line);
                // A flood must not be held for ever by its own speed.
                if follow && held.len() >= 4096 {
                    flush(&mut held, sink);
                }
            }
            Some(Message::End(index, error)) => {
                errors[index] = error;
                open -= 1;
            }
            None => break,
        }
    }
    flush(&mut held, sink);
    errors
}

fn flush(held: &mut Vec<LogLine>, sink: LogSink<'_>) {
    // Stable: lines of one source keep their order when their times are equal.
    held.sort_by_key(|line| line.time_us);
    held.drain(..).for_each(sink);
}

async fn read(
    controller: &Controller,
    source: &Source<'_>,
    query: &LogQuery,
    sender: &mpsc::Sender<Message>,
) -> Result<(), Failure> {
    let session = controller.session(source.host).await?;
    let lines = match (query.lines, query.since_s) {
        (Some(n), _) => n.to_string(),
        (None, Some(_)) => String::new(),
        (None, None) => "100".into(),
    };
    let since = query.since_s.map(|s| s.to_string()).unwrap_or_default();
    let release = match &query.release {
        Some(prefix) => full_release(controller, source, prefix).await?,
        None => String::new(),
    };
    let follow = if query.follow { "1" } else { "0" };
    let script = format!("logs {follow} {} {} {}", quote(&lines), quote(&since), quote(&release));
    let mut shell = HostShell::open_raw(&session, source.service, &script).await?;
    let oldest = query.since_s.map(|s| now_us() - i64::try_from(s).unwrap_or(i64::MAX / 1_000_000) * 1_000_000);
    while let Some(text) = shell.raw_line().await {
        let Some(line) = parse_line(source, &text, &release) else {
            continue;
        };
        if oldest.is_some_and(|oldest| line.time_us.is_some_and(|t| t < oldest)) {
            continue;
        }
        if sender.send(Message::Line(line)).await.is_err() {
            break;
        }
    }
    shell.end_reason().map_or(Ok(()), Err)
}

/// The whole id of a release whose first digits are given: journald matches whole values only.
async fn full_release(controller: &Controller, source: &Source<'_>, prefix: &str) -> Result<String, Failure> {
    let session = controller.session(source.host).await?;
    let task = Task { controller, service: source.service, host: source.host, meeting: None };
    let (shell, facts) = task.observe(&session, false, &LookFor::default()).await?;
    shell.close().await;
    let found: Vec<_> = facts.releases.iter().filter(|r| r.id.as_str().starts_with(prefix)).collect();
    match found.as_slice() {
        [one] => Ok(one.id.to_string()),
        [] => Err(Failure::new(Outcome::Usage, format!("no release `{prefix}` on `{}`", source.host.name))),
        _ => Err(Failure::new(Outcome::Usage, format!("several releases on `{}` begin with `{prefix}`", source.host.name))),
    }
}

fn now_us() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// A journald record (JSON) or a line of the simple lifecycle (`TIME RELEASE TEXT`).
fn parse_line(source: &Source<'_>, text: &str, release: &str) -> Option<LogLine> {
    let (time_us, text) = if text.starts_with('{') { journald(text)? } else { simple(text, release)? };
    Some(LogLine { host: source.host.name.clone(), service: source.service.name.clone(), time_us, text: sanitise(&text) })
}

fn journald(text: &str) -> Option<(Option<i64>, String)> {
    let record: serde_json::Value = serde_json::from_str(text).ok()?;
    let time = record.get("__REALTIME_TIMESTAMP").and_then(|t| t.as_str()).and_then(|t| t.parse().ok());
    let message = match record.get("MESSAGE")? {
        serde_json::Value::String(text) => text.clone(),
        // Bytes that are no UTF-8 come as an array of numbers.
        serde_json::Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => return None,
    };
    Some((time, message))
}

fn simple(line: &str, release: &str) -> Option<(Option<i64>, String)> {
    let mut words = line.splitn(3, ' ');
    let (time, of, text) = (words.next()?, words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Ok(time) = time.parse::<jiff::Timestamp>() else {
        return Some((None, line.to_owned()));
    };
    (release.is_empty() || of == release).then(|| (Some(time.as_microsecond()), text.to_owned()))
}

/// Runs `command` on all hosts, as many at once as the options allow.
pub async fn exec(controller: &Controller, hosts: Vec<Host>, command: String) -> Vec<ExecResult> {
    join_all(hosts.iter().map(|host| async {
        let _permit = controller.permits.acquire().await;
        exec_one(controller, host, &command).await
    }))
    .await
}

async fn exec_one(controller: &Controller, host: &Host, command: &str) -> ExecResult {
    let mut result =
        ExecResult { host: host.name.clone(), status: None, stdout: String::new(), stderr: String::new(), error: None };
    let session = match controller.session(host).await {
        Ok(session) => session,
        Err(failure) => {
            result.error = Some(failure.problem);
            return result;
        }
    };
    let output = tokio::select! {
        output = session.run(command, bytes::Bytes::new(), EXEC_LIMIT) => output,
        () = controller.cancel.reached(1) => {
            result.error = Some("interrupted".into());
            return result;
        }
    };
    match output {
        Ok(output) => {
            result.stdout = String::from_utf8_lossy(&output.stdout).into_owned();
            result.stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.exit {
                Exit::Status(status) => result.status = Some(status),
                Exit::Signal(signal) => result.error = Some(format!("killed by SIG{signal}")),
                Exit::Lost => result.error = Some("contact was lost".into()),
            }
        }
        Err(error) => result.error = Some(error.to_string()),
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journald_records_of_both_kinds_are_read() {
        assert_eq!(journald(r#"{"__REALTIME_TIMESTAMP":"17","MESSAGE":"hi"}"#), Some((Some(17), "hi".into())));
        assert_eq!(journald(r#"{"MESSAGE":[104,255]}"#), Some((None, "h\u{fffd}".into())));
        assert_eq!(journald("{"), None);
    }

    #[test]
    fn simple_lines_are_stamped_and_filtered() {
        let line = "2026-01-01T00:00:01Z abc hello world";
        assert_eq!(simple(line, ""), Some((Some(1_767_225_601_000_000), "hello world".into())));
        assert_eq!(simple(line, "other"), None);
    }

    #[tokio::test]
    async fn lines_of_several_hosts_come_by_time() {
        let (sender, receiver) = mpsc::channel(8);
        let line = |t: i64, text: &str| {
            Message::Line(LogLine {
                host: HostName::new("h").expect("valid"),
                service: ServiceName::new("s").expect("valid"),
                time_us: Some(t),
                text: text.into(),
            })
        };
        for message in [line(3, "c"), line(1, "a"), Message::End(0, None), line(2, "b"), Message::End(1, None)] {
            sender.send(message).await.ok();
        }
        let seen = std::sync::Mutex::new(Vec::new());
        merge(receiver, 2, false, &|l| seen.lock().expect("alone").push(l.text)).await;
        assert_eq!(seen.into_inner().expect("alone"), ["a", "b", "c"]);
    }
}
