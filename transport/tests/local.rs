//! What only the local session has: its children are ours to clean up.

#![expect(clippy::unwrap_used, reason = "failing loudly is what tests do")]

use roadie_transport::local::LocalSession;
use roadie_transport::{Chunk, Session};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_command_takes_its_children_along() {
    let folder = tempfile::tempdir().unwrap();
    let session = LocalSession::new(folder.path().to_owned()).with_env(vec![("GREETING".into(), "hello".into())]);
    let mut process = session.start("sleep 300 & echo $! $GREETING; wait").await.unwrap();
    let Some(Chunk::Stdout(text)) = process.next().await else { panic!("silent") };
    let text = String::from_utf8(text.to_vec()).unwrap();
    let (pid, greeting) = text.trim().split_once(' ').unwrap();
    assert_eq!(greeting, "hello");
    let alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(alive());
    drop(process);
    for _ in 0..100 {
        if !alive() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{pid} lives on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_its_own_session_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let session = LocalSession::new(folder.path().to_owned());
    let mut process = session.start("setsid sh -c 'sleep 1; echo done >later' & echo begun; wait").await.unwrap();
    assert!(matches!(process.next().await, Some(Chunk::Stdout(_))));
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(process);
    for _ in 0..100 {
        if folder.path().join("later").exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("killed with its parent");
}
