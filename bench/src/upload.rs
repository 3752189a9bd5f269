//! Connect, send one file, say goodbye: what a deployment does with its package, alone.

use roadie_transport::{Session as _, TransportError, ssh};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is sent where.
pub struct Upload {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub key: PathBuf,
    pub file: PathBuf,
    pub remote: String,
}

/// Sends it and prints how long each part took.
pub async fn run(upload: Upload) -> Result<(), String> {
    let home = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
    // Host keys are learned into a folder that goes away: whom we talk to is for others to check.
    let mut options = ssh::SshOptions::with_user_defaults(home.path(), None);
    options.known_hosts.files = vec![home.path().join("known_hosts")];
    options.accept_new();
    options.use_key(upload.key);
    options.name.clone_from(&upload.host);
    options.address = upload.host;
    options.port = upload.port;
    options.user = upload.user;

    let began = Instant::now();
    let session = ssh::connect(options).await.map_err(|e| said(&e))?;
    let connected = began.elapsed();
    session.upload(&upload.file, &upload.remote, &|_| ()).await.map_err(|e| said(&e))?;
    let sent = began.elapsed();
    let turns = session.round_trips();
    session.close().await;
    println!("{}", told(connected, sent, turns));
    Ok(())
}

fn told(connected: Duration, sent: Duration, turns: u64) -> serde_json::Value {
    serde_json::json!({
        "connect_s": connected.as_secs_f64(),
        "upload_s": (sent - connected).as_secs_f64(),
        "total_s": sent.as_secs_f64(),
        "round_trips": turns,
    })
}

fn said(error: &TransportError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
