//! A package that a host runs and the store does not have is fetched back, once for all: a difference from it is less than all of
//! the new one for each of the hosts.

use crate::engine::Task;
use crate::shell::one_shot;
use bytes::Bytes;
use roadie_model::facts::ReleaseFacts;
use roadie_model::sh::quote;
use roadie_transport::{Exit, Session};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the compressed files, at most: they are held in memory.
const MOST: usize = 128 << 20;
/// A host that takes longer to give them is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the host script adds to a release's folder. Some of it is secret.
const RENDERED: &str = "unit|config.toml|env|run.sh|health.json|lifecycle|MANIFEST|COMPLETE";

/// Makes sure that the store has the package of `release`, which this host has unpacked below `root`. Whether it does.
pub async fn package_of(task: &Task<'_>, session: &Arc<dyn Session>, root: &str, release: &ReleaseFacts) -> bool {
    let stock = &task.controller.stock;
    if stock.has(&release.package) {
        return true;
    }
    // For one host alone it would be as much that travels, the other way.
    if task.service.hosts.len() < 2 {
        return false;
    }
    let folder = quote(&format!("{root}/releases/{}", release.id));
    let script = format!(
        "cd {folder} || exit; set --; for f in *; do case $f in {RENDERED}) ;; *) set -- \"$@\" \"$f\" ;; esac; done; \
         tar -cf - \"$@\" | gzip -1 -c"
    );
    let cell = task.controller.fetched(&release.package);
    let fetch = async {
        tracing::debug!(host = %task.host.name, package = release.package.short(), "fetching back");
        let command = one_shot(task.service, &script);
        let given = tokio::time::timeout(PATIENCE, session.run(&command, Bytes::new(), MOST)).await;
        match given {
            Ok(Ok(output)) if output.exit == Exit::Status(0) => stock.adopt(&release.package, output.stdout).await,
            _ => false,
        }
    };
    *cell.get_or_init(|| fetch).await
}
