//! `roadie backup HOST > FILE` and `roadie restore HOST < FILE`: all services of a host as one tar, one archive per service in it.

use crate::args::Global;
use crate::out::{self, Fatal};
use roadie_deployer::{Controller, Failure};
use roadie_model::definition::{Host, Service};
use sha2::{Digest as _, Sha256};
use std::io::{IsTerminal as _, Read as _, Seek as _, Write as _};

/// A service's archive is not larger than this.
const MAX_BYTES: u64 = 64 << 30;

fn fatal(service: &Service, host: &Host, failure: Failure) -> Fatal {
    Fatal {
        outcome: failure.outcome,
        message: format!("{}@{}: {}", service.name, host.name, failure.problem),
        causes: failure.causes,
        hint: failure.hint,
    }
}

fn broken(what: &str, error: &std::io::Error) -> Fatal {
    Fatal::failed(format!("cannot {what}")).cause(error.to_string())
}

/// The one host of all targets.
fn only_host(targets: &[(Service, Vec<Host>)]) -> Result<(), Fatal> {
    let mut names: Vec<&str> = targets.iter().flat_map(|(_, hosts)| hosts).map(|h| h.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() == 1 {
        return Ok(());
    }
    Err(Fatal::usage("one host at a time").hint(format!("name one of {}", names.join(", "))))
}

/// Writes the backup of one host to standard output.
pub async fn backup(controller: &Controller, targets: &[(Service, Vec<Host>)], global: &Global) -> Result<u8, Fatal> {
    only_host(targets)?;
    if global.json {
        return Err(Fatal::usage("a backup is no JSON").hint("leave --json out"));
    }
    if std::io::stdout().is_terminal() {
        return Err(Fatal::usage("a backup is nothing for a terminal").hint("roadie backup HOST > FILE"));
    }
    let mut tar = tar::Builder::new(std::io::stdout().lock());
    for (service, hosts) in targets {
        for host in hosts {
            let file = tempfile::tempfile().map_err(|e| broken("make a temporary file", &e))?;
            let copy = file.try_clone().map_err(|e| broken("make a temporary file", &e))?;
            let mut sink = tokio::fs::File::from_std(copy);
            let length = controller.backup(service, host, &mut sink).await.map_err(|f| fatal(service, host, f))?;
            tokio::io::AsyncWriteExt::flush(&mut sink).await.map_err(|e| broken("keep the backup", &e))?;
            let mut file = file;
            file.rewind().map_err(|e| broken("keep the backup", &e))?;
            let mut header = tar::Header::new_gnu();
            header.set_size(length);
            header.set_mode(0o600);
            let name = format!("{}.tar.gz", service.name);
            tar.append_data(&mut header, &name, &mut file).map_err(|e| broken("write the backup", &e))?;
            out::note(&format!("{}@{}: {length} bytes", service.name, host.name));
        }
    }
    let mut inner = tar.into_inner().map_err(|e| broken("write the backup", &e))?;
    inner.flush().map_err(|e| broken("write the backup", &e))?;
    Ok(0)
}

/// Reads a backup from standard input and puts the chosen services back.
pub async fn restore(controller: &Controller, targets: &[(Service, Vec<Host>)]) -> Result<u8, Fatal> {
    only_host(targets)?;
    let no_backup =
        |cause: String| Fatal::usage("standard input is not a backup").cause(cause).hint("roadie restore HOST < FILE");
    if std::io::stdin().is_terminal() {
        return Err(no_backup("it is a terminal".into()));
    }
    let mut restored = 0;
    let mut tar = tar::Archive::new(std::io::stdin().lock());
    for entry in tar.entries().map_err(|e| no_backup(e.to_string()))? {
        let mut entry = entry.map_err(|e| no_backup(e.to_string()))?;
        let name = entry.path().map_err(|e| no_backup(e.to_string()))?.to_string_lossy().into_owned();
        let Some((service, hosts)) = targets.iter().find(|(s, _)| name == format!("{}.tar.gz", s.name)) else {
            out::note(&format!("{name} is left out: no chosen service of the definition has that name on this host"));
            continue;
        };
        let (file, digest) = keep(&mut entry).map_err(|e| broken("keep the archive", &e))?;
        for host in hosts {
            controller.restore(service, host, file.path(), &digest).await.map_err(|f| fatal(service, host, f))?;
            out::line(&format!("{} {}@{}: restored and running", out::green("ok"), service.name, host.name));
            restored += 1;
        }
    }
    if restored == 0 {
        return Err(no_backup("nothing in it was restored".into()));
    }
    Ok(0)
}

/// Copies an archive to a file of its own, with its sha256.
fn keep(entry: &mut impl std::io::Read) -> std::io::Result<(tempfile::NamedTempFile, String)> {
    let mut file = tempfile::NamedTempFile::new()?;
    let mut digest = Sha256::new();
    let mut entry = entry.take(MAX_BYTES);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = entry.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
        file.write_all(&buffer[..n])?;
    }
    file.flush()?;
    let digest = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok((file, digest))
}
