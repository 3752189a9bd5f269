//! A file put together by the host itself, from stretches of others that it has.

#![allow(clippy::unwrap_used, reason = "failing loudly is what tests do")]

mod common;

use common::{OpenSsh, noise, options};
use roadie_model::package::Stretch;
use roadie_transport::embedded::{EmbeddedOptions, EmbeddedSshd};
use roadie_transport::ssh::connect;
use roadie_transport::testing::Relay;
use roadie_transport::{Session, TransportError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Sessions to servers that copy: ours, and OpenSSH from 9.0 on.
async fn places(folder: &Path) -> Vec<(Arc<dyn Session>, Box<dyn std::any::Any>)> {
    let embedded = EmbeddedSshd::start(folder, &folder.join("keys"), Vec::new()).await.unwrap();
    let to = options(embedded.addr().port(), "anyone", embedded.client_key_path(), embedded.host_fingerprint());
    let mut places: Vec<(Arc<dyn Session>, Box<dyn std::any::Any>)> = vec![(connect(to).await.unwrap(), Box::new(embedded))];
    if let Some(server) = OpenSsh::start("").await {
        places.push((connect(server.options()).await.unwrap(), Box::new(server)));
    }
    places
}

fn paths(folder: &Path, names: impl Iterator<Item = String>) -> Vec<String> {
    names.map(|name| folder.join(name).to_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn stretches_are_put_where_they_belong() {
    let folder = tempfile::tempdir().unwrap();
    // More files than are open at once, one of them larger than a server copies in one go.
    let files: Vec<Vec<u8>> = (0..70).map(|n| noise(if n == 3 { 2_000_000 } else { 500 + n * 7 })).collect();
    let sources = paths(folder.path(), (0..70).map(|n| format!("old {n}")));
    for (path, bytes) in sources.iter().zip(&files) {
        std::fs::write(path, bytes).unwrap();
    }
    for (session, _server) in places(folder.path()).await {
        assert!(session.copies_stretches().await);
        let target = folder.path().join("new");
        let mut wanted = vec![7; 40_000];
        std::fs::write(&target, &wanted).unwrap();
        // Side by side: of two that overlap the later one would win, and the order is not ours to choose.
        let stretch = |turn: u64| {
            let file = usize::try_from(turn * 31 % 70).unwrap();
            Stretch { file, offset: turn % 400, length: 1 + turn % 7, to: turn * 7 }
        };
        let mut stretches: Vec<Stretch> = (0..5_700).map(stretch).collect();
        stretches.push(Stretch { file: 3, offset: 1, length: 1_999_999, to: 40_000 });
        for s in &stretches {
            let place = |at: u64| usize::try_from(at).unwrap();
            wanted.resize(wanted.len().max(place(s.to + s.length)), 0);
            wanted[place(s.to)..place(s.to + s.length)]
                .copy_from_slice(&files[s.file][place(s.offset)..place(s.offset + s.length)]);
        }
        let before = session.round_trips();
        session.copy_stretches(&sources, target.to_str().unwrap(), &stretches).await.unwrap();
        assert_eq!(session.round_trips() - before, 4, "two for each batch of files");
        assert!(std::fs::read(&target).unwrap() == wanted);
        session.close().await;
    }
}

#[tokio::test]
async fn what_cannot_be_copied_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let sources = paths(folder.path(), ["old", "absent"].iter().map(|name| (*name).to_owned()));
    std::fs::write(&sources[0], [1; 100]).unwrap();
    let target = folder.path().join("new");
    for (session, _server) in places(folder.path()).await {
        std::fs::write(&target, [0; 100]).unwrap();
        let target = target.to_str().unwrap();
        let whole = Stretch { file: 0, offset: 0, length: 100, to: 0 };
        for wrong in [Stretch { file: 1, ..whole }, Stretch { file: 2, ..whole }] {
            let error = session.copy_stretches(&sources, target, &[wrong]).await.expect_err(&format!("{wrong:?}"));
            assert!(matches!(error, TransportError::Upload { .. }), "{wrong:?}: {error}");
        }
        let nowhere = folder.path().join("nowhere");
        session.copy_stretches(&sources, nowhere.to_str().unwrap(), &[whole]).await.expect_err("it is not made");
        // And the channel is as good as before.
        session.copy_stretches(&sources, target, &[whole]).await.unwrap();
        assert_eq!(std::fs::read(target).unwrap(), [1; 100]);
    }
}

#[tokio::test]
async fn without_sftp_nothing_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = EmbeddedOptions { sftp: false, ..EmbeddedOptions::default() };
    let server = EmbeddedSshd::start_with(folder.path(), &folder.path().join("keys"), quiet).await.unwrap();
    let to = options(server.addr().port(), "anyone", server.client_key_path(), server.host_fingerprint());
    let session = connect(to).await.unwrap();
    assert!(!session.copies_stretches().await);
    let whole = Stretch { file: 0, offset: 0, length: 1, to: 0 };
    session.copy_stretches(&["old".into()], "new", &[whole]).await.expect_err("refused");
}

/// Far away, one request after the other would take minutes.
#[tokio::test]
async fn stretches_are_copied_without_waiting_for_each() {
    let folder = tempfile::tempdir().unwrap();
    let server = EmbeddedSshd::start(folder.path(), &folder.path().join("keys"), Vec::new()).await.unwrap();
    let relay = Relay::start(server.addr(), Duration::from_millis(25)).await.unwrap();
    let to = options(relay.addr().port(), "anyone", server.client_key_path(), server.host_fingerprint());
    let session = connect(to).await.unwrap();
    let sources = paths(folder.path(), std::iter::once("old".to_owned()));
    let bytes = noise(30_000);
    std::fs::write(&sources[0], &bytes).unwrap();
    let target = folder.path().join("new");
    std::fs::write(&target, vec![0; 30_000]).unwrap();
    let stretches: Vec<Stretch> = (0..6_000).map(|n| Stretch { file: 0, offset: n * 5, length: 5, to: n * 5 }).collect();
    let copied = session.copy_stretches(&sources, target.to_str().unwrap(), &stretches);
    tokio::time::timeout(Duration::from_secs(60), copied).await.expect("it does not wait for each").unwrap();
    assert!(std::fs::read(&target).unwrap() == bytes);
}
