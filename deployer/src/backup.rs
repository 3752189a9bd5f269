//! Everything of a service on a host as one archive, and back: for hosts that are lost.

use crate::controller::Controller;
use crate::engine::{LookFor, Task};
use crate::failure::Failure;
use crate::shell::{Frame, Stage};
use roadie_model::definition::{Host, Service};
use roadie_model::outcome::Outcome;
use std::path::Path;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// Streams the service's archive (a `.tar.gz`) into `sink`; the host is locked meanwhile. Gives its length.
///
/// # Errors
/// [`Failure`]: unreachable, locked, not deployed there, unconfirmed, or cut off in the middle.
pub async fn backup(
    controller: &Controller,
    service: &Service,
    host: &Host,
    sink: &mut (dyn AsyncWrite + Send + Unpin),
) -> Result<u64, Failure> {
    let task = Task { controller, service, host, meeting: None };
    let session = controller.session(host).await?;
    let (mut shell, facts) = task.observe(&session, true, &LookFor::default()).await?;
    let refusal = match (&facts.current, &facts.guard) {
        (None, _) => Some("it is not deployed there"),
        (_, Some(_)) => Some("a deployment there was not confirmed"),
        _ => None,
    };
    if let Some(why) = refusal {
        shell.close().await;
        return Err(Failure::new(Outcome::FailedUnchanged, why).hint("`roadie status` shows how it stands"));
    }
    shell.send_raw("busy\nbackup </dev/null || exit 3").await?;
    let mut length = 0;
    while let Some(bytes) = shell.raw_bytes().await {
        length += bytes.len() as u64;
        sink.write_all(&bytes)
            .await
            .map_err(|e| Failure::new(Outcome::FailedUnchanged, format!("cannot write the backup: {e}")))?;
    }
    match shell.status() {
        Some(0) => Ok(length),
        Some(_) => Err(Failure::new(Outcome::FailedUnchanged, "the host could not read all of it")),
        None => Err(Failure::lost("contact was lost in the middle of the backup".into())),
    }
}

/// Puts an archive of [`backup`] back on a host that does not have the service, and starts it.
///
/// # Errors
/// [`Failure`]: unreachable, locked, the service is there already, the archive is damaged, or the service does not start.
pub async fn restore(
    controller: &Controller,
    service: &Service,
    host: &Host,
    archive: &Path,
    sha256: &str,
) -> Result<(), Failure> {
    let task = Task { controller, service, host, meeting: None };
    let session = controller.session(host).await?;
    let (mut shell, facts) = task.observe(&session, true, &LookFor::default()).await?;
    if facts.current.is_some() || !facts.releases.is_empty() {
        shell.close().await;
        let hint = format!("`roadie cleanup --all {} --host {}` takes it away", service.name, host.name);
        return Err(Failure::new(Outcome::FailedUnchanged, "it is deployed there already").hint(hint));
    }
    let file = format!("{}.backup.tar.gz", service.name);
    let remote = format!(".roadie/incoming/{file}");
    tokio::select! {
        sent = session.upload(archive, &remote, &|_| ()) => sent.map(drop).map_err(Failure::transport)?,
        failure = shell.beats() => return Err(failure),
    }
    let mut stage = Stage::default();
    stage.step(0, "begin_run", &[&controller.options.identity]);
    stage.step(1, "restore_service", &[&file, sha256]);
    shell.send(&stage).await?;
    let mut failed = None;
    loop {
        match shell.frame().await? {
            Frame::Fail(_, kind, text) => failed = Some(Failure::host(&kind, &text)),
            Frame::End => break,
            _ => {}
        }
    }
    shell.close().await;
    failed.map_or(Ok(()), Err)
}
