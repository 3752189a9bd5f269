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
/// A host that takes longer to give them, or a machine to take them in, is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes sure that there is the package of `release`, which this host has unpacked below `root`, to compare with. Whether it is.
pub async fn package_of(task: &Task<'_>, session: &Arc<dyn Session>, root: &str, release: &ReleaseFacts) -> bool {
    let stock = &task.controller.stock;
    if stock.has(&release.package) {
        return true;
    }
    // For one host alone it would be as much that travels, the other way.
    if !task.controller.passing.several(&task.service.name) {
        return false;
    }
    let command = one_shot(task.service, &script(&format!("{root}/releases/{}", release.id)));
    let cell = task.controller.fetched(&release.package);
    let fetch = async {
        tracing::debug!(host = %task.host.name, package = release.package.short(), "fetching back");
        match session.run(&command, Bytes::new(), MOST).await {
            Ok(output) if output.exit == Exit::Status(0) => stock.adopt(&release.package, output.stdout).await,
            _ => false,
        }
    };
    *cell.get_or_init(|| async { tokio::time::timeout(PATIENCE, fetch).await.unwrap_or(false) }).await
}

/// Prints a `.tar.gz` of what came with the package. Only what the manifest lists: setup may have left more. And nothing that was
/// rendered for the host: some of that is secret.
fn script(folder: &str) -> String {
    let rendered = "unit|config\\.toml|env|run\\.sh|health\\.json|lifecycle";
    format!(
        "cd {} && set -f && IFS='\n' && set -- $(cut -c67- MANIFEST | grep -vxE '(\\./)?({rendered})') && \
         tar -cf - -- \"$@\" | gzip -1 -c",
        quote(folder)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn only_what_came_with_the_package_is_given() {
        let folder = tempfile::tempdir().expect("temp");
        let make = format!(
            "cd {0} && mkdir -p bin 'a b' && for f in metadata.json bin/api 'a b/c*' .dot unit config.toml env run.sh health.json lifecycle \
             env.txt; do echo x >\"$f\"; done && find * .dot -type f -exec sha256sum {{}} + >../m && mv ../m MANIFEST && echo x >COMPLETE && \
             echo x >tls.key",
            quote(&folder.path().join("release").to_string_lossy())
        );
        std::fs::create_dir(folder.path().join("release")).expect("makes");
        assert!(Command::new("sh").arg("-c").arg(make).status().expect("sh").success());
        let text = format!("({}) | tar -tzf - | sort", script(&folder.path().join("release").to_string_lossy()));
        let output = Command::new("sh").arg("-c").arg(text).env("LC_ALL", "C").output().expect("sh");
        assert_eq!(String::from_utf8_lossy(&output.stdout), ".dot\na b/c*\nbin/api\nenv.txt\nmetadata.json\n", "{output:?}");
    }
}
