//! Large files: over several channels when the host is far, and on from where an earlier upload was cut.

#![expect(clippy::unwrap_used, reason = "failing loudly is what tests do")]

#[path = "../common/mod.rs"]
mod common;
mod host;
mod new_files;

use common::noise;
use host::{Host, works};
use roadie_transport::{Sent, Session as _, TransportError};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn far_hosts_get_large_files_over_several_channels() {
    for mut host in Host::with_sftp().await {
        let relay = host.relay(20).await;
        let session = host.through(&relay).await;
        let measured = session.round_trip_time().unwrap().as_millis();
        assert!(measured >= 40, "quicker than the line: {measured}");
        for (length, several) in [(8 * MIB, true), (32 * (255 << 10), true), (12 * MIB + 1, true), (4 * MIB, false), (1, false)] {
            host.file(length);
            let _ = std::fs::remove_file(host.remote());
            let before = session.round_trips();
            let sent = host.upload(&session).await.unwrap();
            assert_eq!((sent.bytes, sent.resumed), (length, 0));
            assert_eq!(sent.channels > 1, several, "{length}: {sent:?}");
            assert!(sent.channels <= 8, "{sent:?}");
            let first = u64::from(before == 0);
            assert_eq!(session.round_trips() - before, 2 + first, "{length}: as many as over one channel");
            host.check();
        }
        works(&session).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn near_hosts_get_large_files_over_one_channel() {
    for mut host in Host::with_sftp().await {
        host.file(9 * MIB);
        let session = host.near().await;
        // A busy machine may be slow to answer, but not every time.
        for _ in 0..20 {
            works(&session).await;
        }
        let sent = host.upload(&session).await.unwrap();
        assert_eq!(sent, Sent { bytes: 9 * MIB, resumed: 0, channels: 1 }, "{:?}", session.round_trip_time());
        host.check();
        assert_eq!(host.upload(&session).await.unwrap().bytes, 0, "and nothing when it is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_opened_ahead_are_used() {
    for mut host in Host::with_sftp().await {
        // Those that open beside it begin two round trips later: four windows have brought 24 MiB by then, and there is to be work
        // for them yet, however busy the machine is.
        host.file(48 * MIB);
        let relay = host.relay(60).await;
        let session = host.through(&relay).await;
        session.prepare_upload(Some(48 * MIB)).await;
        for _ in 0..5 {
            works(&session).await;
        }
        let before = session.round_trips();
        assert_eq!(host.upload(&session).await.unwrap().channels, 8);
        assert_eq!(session.round_trips() - before, 2);
        host.check();
        works(&session).await;

        // What an upload does not use, because it is smaller than was thought, holds no places behind it.
        let session = host.through(&relay).await;
        works(&session).await;
        session.prepare_upload(Some(20 * MIB)).await;
        works(&session).await;
        host.file(1000);
        assert_eq!(host.upload(&session).await.unwrap().channels, 1);
        let mut shells = Vec::new();
        for _ in 0..7 {
            shells.push(session.start("cat").await.unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_refuse_channels_get_fewer() {
    for (max, expected) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 3)] {
        let Some(mut host) = Host::openssh(&format!("MaxSessions {max}")).await else { return };
        host.file(16 * MIB);
        let relay = host.relay(50).await;
        let session = host.through(&relay).await;
        let shell = if max > 1 { Some(session.start("cat").await.unwrap()) } else { None };
        let sent = host.upload(&session).await.unwrap();
        host.check();
        // The shell has one; from three on, one is left for a command beside all that.
        assert!((1..=expected.max(1)).contains(&sent.channels), "MaxSessions {max}: {sent:?}");
        assert!(max < 5 || sent.channels > 1, "MaxSessions {max}: {sent:?}");
        if max > 2 {
            works(&session).await;
        }
        drop(shell);
    }
}

/// How much of the local file is not in the remote one, block by block.
fn missing(host: &Host) -> u64 {
    let there = std::fs::read(host.remote()).unwrap_or_default();
    let blocks = host.data.chunks(1 << 20).enumerate();
    let wrong = blocks.filter(|(n, block)| there.get(n << 20..(n << 20) + block.len()) != Some(*block));
    if there.len() < 1 << 20 { host.data.len() as u64 } else { wrong.map(|(_, block)| block.len() as u64).sum() }
}

/// Waits until what was under way has been written: nobody has the file open any more.
async fn settled(path: &Path) {
    let began = Instant::now();
    while is_open(path) {
        assert!(began.elapsed() < Duration::from_secs(60), "{} stays open", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a process of this machine has the file open.
fn is_open(path: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path().join("fd"));
    let open = processes.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    open.filter_map(|link| std::fs::read_link(link.path()).ok()).any(|target| target == path)
}

/// Uploads so many times over lines that are cut somewhere, each time again over another line, and gives back what was resumed.
async fn cut_and_go_on(host: &mut Host, times: usize, delay: u64) -> Vec<u64> {
    let length = 8 * MIB + 5;
    host.file(length);
    let places = noise(8 * times);
    let mut resumed = Vec::new();
    for place in places.chunks(8) {
        let _ = std::fs::remove_file(host.remote());
        let at = u64::from_le_bytes(place.try_into().unwrap()) % length;
        let relay = host.relay(delay).await;
        let session = host.through(&relay).await;
        relay.cut_after(relay.bytes_up() + 20_000 + at);
        let error = host.upload(&session).await.unwrap_err();
        assert!(matches!(error, TransportError::Disconnected { .. }), "{error:?}");
        drop(session);
        settled(&host.remote()).await;
        let missing = missing(host);
        let relay = host.relay(0).await;
        let session = host.through(&relay).await;
        let sent = host.upload(&session).await.unwrap();
        host.check();
        assert!(relay.bytes_up() < missing + missing / 100 + 64_000, "cut at {at}: {} for {missing}", relay.bytes_up());
        if session.round_trips() > 0 {
            assert!(sent.bytes >= missing, "cut at {at}");
        }
        resumed.push(sent.resumed);
    }
    resumed
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_uploads_go_on_where_they_were() {
    for mut host in Host::with_sftp().await {
        let resumed = cut_and_go_on(&mut host, 10, 0).await;
        assert!(resumed.iter().filter(|bytes| **bytes > 0).count() >= 2, "{resumed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_uploads_over_several_channels_leave_holes_that_are_filled() {
    for mut host in Host::with_sftp().await {
        let resumed = cut_and_go_on(&mut host, 5, 10).await;
        assert!(resumed.iter().any(|bytes| *bytes > 0), "{resumed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_uploads_through_a_shell_go_on_behind_what_is_right() {
    let mut host = Host::embedded(false).await;
    let resumed = cut_and_go_on(&mut host, 5, 0).await;
    assert!(resumed.iter().any(|bytes| *bytes > 0), "{resumed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_and_right_is_kept() {
    for mut host in Host::all().await {
        let length = 9 * MIB + 3;
        host.file(length);
        let whole = host.data.clone();
        let session = host.near().await;
        host.upload(&session).await.unwrap();
        let again = host.upload(&session).await.unwrap();
        assert_eq!((again.bytes, again.resumed), (0, length), "the same file");

        let mut damaged = whole.clone();
        damaged[(5 * MIB) as usize] ^= 1;
        host.leave(&damaged);
        let sent = host.upload(&session).await.unwrap();
        assert!(sent.bytes == MIB || sent.bytes == length - 5 * MIB, "one block, or all behind it: {sent:?}");
        host.check();

        host.leave(&[&whole[..], b"more"].concat());
        assert_eq!(host.upload(&session).await.unwrap().bytes, length, "a longer file is written anew");
        host.check();

        host.leave(&whole[..(4 * MIB + 77) as usize]);
        assert_eq!(host.upload(&session).await.unwrap().bytes, length - 4 * MIB, "a part");
        host.check();

        host.leave(&noise(1 << 20).iter().map(|byte| !byte).collect::<Vec<u8>>());
        assert_eq!(host.upload(&session).await.unwrap().bytes, length, "a part of something else");
        host.check();

        host.leave(&whole[..1000]);
        assert_eq!(host.upload(&session).await.unwrap().bytes, length, "too little to ask for");
        host.check();

        // A hole, as several channels leave it, or a lost page.
        std::fs::OpenOptions::new().write(true).open(host.remote()).unwrap().write_all_at(&[0; 2 << 20], 4 * MIB + 9).unwrap();
        let sent = host.upload(&session).await.unwrap();
        assert!(sent.bytes == 3 * MIB || sent.bytes == length - 4 * MIB, "{sent:?}");
        host.check();

        host.file(3);
        assert_eq!(host.upload(&session).await.unwrap().bytes, 3, "a longer file is cut");
        host.check();
        host.file(0);
        assert_eq!(host.upload(&session).await.unwrap(), Sent { bytes: 0, resumed: 0, ..host.upload(&session).await.unwrap() });
        host.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_odd_sizes_arrive() {
    for mut host in Host::all().await {
        let session = host.near().await;
        for length in [0, 1, MIB - 1, MIB, MIB + 1, 255 << 10, (255 << 10) + 1, 2 * MIB, 5 * MIB - 1] {
            host.file(length);
            host.upload(&session).await.unwrap();
            host.check();
            assert_eq!(host.upload(&session).await.unwrap().resumed, if length < MIB { 0 } else { length });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_through_a_link() {
    for mut host in Host::all().await {
        let relay = host.relay(20).await;
        for session in [host.near().await, host.through(&relay).await] {
            host.file(6 * MIB);
            let other = host.folder.path().join("other");
            for there in [&b"not yours"[..], &host.data] {
                std::fs::write(&other, there).unwrap();
                std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o644)).unwrap();
                let _ = std::fs::remove_file(host.remote());
                std::fs::create_dir_all(host.remote().parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(&other, host.remote()).unwrap();
                assert_eq!(host.upload(&session).await.unwrap().bytes, 6 * MIB);
                host.check();
                assert!(!host.remote().is_symlink());
                assert!(std::fs::read(&other).unwrap() == there);
                assert_eq!(std::fs::metadata(&other).unwrap().permissions().mode() & 0o7777, 0o644);
            }
            std::fs::remove_file(&other).unwrap();
            std::fs::remove_file(host.remote()).unwrap();
            std::os::unix::fs::symlink(&other, host.remote()).unwrap();
            host.upload(&session).await.unwrap();
            host.check();
            assert!(!other.exists(), "a link to nowhere");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn going_on_costs_three_more_round_trips() {
    let mut host = Host::embedded(true).await;
    host.file(3 * MIB);
    let session = host.near().await;
    host.upload(&session).await.unwrap();
    assert_eq!(session.round_trips(), 3, "channel, sftp and file, content");
    host.leave(&host.data[..MIB as usize]);
    std::fs::set_permissions(host.remote(), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(host.upload(&session).await.unwrap().resumed, MIB);
    assert_eq!(session.round_trips() - 3, 5, "file, channel, digests, content, size");
    std::fs::remove_file(host.remote()).unwrap();
    host.upload(&session).await.unwrap();
    assert_eq!(session.round_trips() - 8, 2, "nothing there");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_uploads_in_one_process_arrive() {
    let host = Arc::new({
        let mut host = Host::embedded(true).await;
        host.file(2 * MIB);
        host
    });
    let relay = Arc::new(host.relay(10).await);
    let uploads = (0..30).map(|n| {
        let (host, relay) = (host.clone(), relay.clone());
        tokio::spawn(async move {
            let session = host.through(&relay).await;
            let remote = host.folder.path().join(format!("remote-{n}"));
            session.upload(&host.folder.path().join("local"), &remote.display().to_string(), &|_| {}).await.unwrap();
            assert!(std::fs::read(remote).unwrap() == host.data);
        })
    });
    for upload in futures::future::join_all(uploads).await {
        upload.unwrap();
    }
}
