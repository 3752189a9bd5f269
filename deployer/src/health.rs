//! Probes that the controller makes over the session: the host needs no tool for them.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use roadie_model::definition::{Health, Probe};
use roadie_transport::{Session, TransportError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// One probe waits at most this long for its answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// An answer is read as far as this when its text matters.
const MAX_BODY: usize = 1 << 20;

/// Whether the controller makes this probe; the others are made by the host script.
pub fn is_remote(probe: &Probe) -> bool {
    matches!(probe, Probe::Http(_) | Probe::Tcp(_))
}

/// Probes until `good` answers in a row came, or says what the last one was when the time is up.
///
/// # Errors
/// A sentence with the probe, its last result, the time and the number of attempts.
pub async fn wait(session: &Arc<dyn Session>, health: &Health) -> Result<(), String> {
    let began = Instant::now();
    let (mut good, mut attempts) = (0, 0);
    loop {
        attempts += 1;
        let limit = PROBE_TIMEOUT.min(health.timeout.saturating_sub(began.elapsed()).max(Duration::from_millis(100)));
        let result = match timeout(limit, probe(session, health)).await {
            Ok(result) => result,
            Err(_) => Err(format!("gave no answer within {limit:.0?}")),
        };
        match result {
            Ok(()) => good += 1,
            Err(reason) => {
                good = 0;
                if let Some(lost) = session.lost() {
                    return Err(format!("contact was lost: {lost}"));
                }
                if began.elapsed() >= health.timeout {
                    return Err(format!("{} {reason} ({attempts} attempts in {:.0?})", health.probe, began.elapsed()));
                }
            }
        }
        if good >= health.good.max(1) {
            return Ok(());
        }
        if began.elapsed() >= health.timeout {
            return Err(format!(
                "{} was good {good} times in a row, {} are wanted ({attempts} attempts)",
                health.probe, health.good
            ));
        }
        sleep(health.interval).await;
    }
}

/// The port of the host itself that this probe asks.
pub fn port(probe: &Probe) -> Option<u16> {
    match probe {
        Probe::Tcp(port) => Some(*port),
        Probe::Http(url) => {
            let uri: Uri = url.parse().ok()?;
            let here = matches!(uri.host(), Some("127.0.0.1" | "localhost" | "[::1]"));
            here.then(|| uri.port_u16().unwrap_or(80))
        }
        Probe::Exec(_) | Probe::Notify | Probe::StaysUp => None,
    }
}

async fn probe(session: &Arc<dyn Session>, health: &Health) -> Result<(), String> {
    match &health.probe {
        Probe::Tcp(port) => session.forward("127.0.0.1", *port).await.map(drop).map_err(|e| explain(&e)),
        Probe::Http(url) => http(session, url, health.expect.as_deref()).await,
        Probe::Exec(_) | Probe::Notify | Probe::StaysUp => Ok(()),
    }
}

fn explain(error: &TransportError) -> String {
    match error {
        TransportError::PortClosed { .. } => "found nobody listening".into(),
        TransportError::Refusal { reason, .. } => {
            format!("could not be asked: sshd forbids forwarding ({reason})")
        }
        other => format!("failed: {other}"),
    }
}

async fn http(session: &Arc<dyn Session>, url: &str, expect: Option<&str>) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|e| format!("is no URL: {e}"))?;
    let host = uri.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']).to_owned();
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let stream = session.forward(&host, uri.port_u16().unwrap_or(80)).await.map_err(|e| explain(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("failed: {e}"))?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", authority)
        .header("user-agent", "roadie")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| format!("is no URL: {e}"))?;
    let answer = sender.send_request(request).await;
    let result = match answer {
        Ok(response) if !response.status().is_success() => Err(format!("answered {}", response.status().as_u16())),
        Ok(response) => match expect {
            Some(text) => expected(response.into_body(), text).await,
            None => Ok(()),
        },
        Err(error) => Err(format!("failed: {error}")),
    };
    driver.abort();
    result
}

/// Whether the body contains `text`, as far as [`MAX_BODY`].
async fn expected(body: hyper::body::Incoming, text: &str) -> Result<(), String> {
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|e| format!("failed: {e}"))?.to_bytes();
    let body = String::from_utf8_lossy(&body);
    if body.contains(text) {
        return Ok(());
    }
    let shown: String = body.trim().chars().take(80).filter(|c| !c.is_control()).collect();
    Err(format!("answered `{shown}`, expected `{text}`"))
}
