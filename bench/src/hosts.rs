//! Hosts without machines: many embedded ssh servers in one process, each with a home folder of its own.

use roadie_transport::embedded::EmbeddedSshd;
use std::path::Path;

/// Starts them, prints where each is and which key lets in, and runs until its standard input ends.
pub async fn run(count: usize, dir: &Path) -> Result<(), String> {
    let mut running = Vec::new();
    let mut told = Vec::new();
    for number in 1..=count {
        let (home, keys) = (dir.join(format!("home{number}")), dir.join(format!("keys{number}")));
        for folder in [&home, &keys] {
            std::fs::create_dir_all(folder).map_err(|e| format!("cannot make `{}`: {e}", folder.display()))?;
        }
        let host = EmbeddedSshd::start(&home, &keys, Vec::new()).await.map_err(|e| e.to_string())?;
        told.push(serde_json::json!({
            "port": host.addr().port(),
            "key": host.client_key_path(),
            "fingerprint": host.host_fingerprint(),
            "home": home,
        }));
        running.push(host);
    }
    println!("{}", serde_json::Value::from(told));
    let ended = tokio::task::spawn_blocking(crate::until_stdin_ends).await;
    for host in running {
        host.shutdown().await;
    }
    ended.map_err(|e| e.to_string())
}
