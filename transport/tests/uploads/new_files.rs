//! New files, which the host sees end before we do.

use crate::common::noise;
use crate::host::{Host, works};
use crate::{MIB, settled};
use bytes::Bytes;
use roadie_transport::{Chunk, Sent, Session as _, TransportError};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// The marks of so many channels.
fn marks_of(channels: usize) -> Vec<String> {
    (1..=channels).map(|n| format!("{channels}.{n}")).collect()
}

/// Without an upload, which may never come.
#[tokio::test(flavor = "multi_thread")]
async fn channels_opened_ahead_leave_a_place_for_a_command() {
    for most in [2, 3, 4] {
        let Some(host) = Host::openssh(&format!("MaxSessions {most}")).await else { return };
        let relay = host.relay(20).await;
        let session = host.through(&relay).await;
        let mut shell = session.start("cat").await.unwrap();
        session.prepare_upload(Some(9 * MIB)).await;
        let began = Instant::now();
        // The first of them has its place before the others.
        assert!(session.copies_files().await, "{most}");
        assert!(began.elapsed() < Duration::from_millis(900), "{most}: {:?}", began.elapsed());
        if most > 2 {
            works(&session).await;
        }
        shell.write(Bytes::from_static(b"ok")).await.unwrap();
        assert_eq!(shell.next().await, Some(Chunk::Stdout(Bytes::from_static(b"ok"))), "{most}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_take_one_round_trip() {
    let Some(mut host) = Host::openssh("").await else { return };
    let relay = host.relay(20).await;
    for (length, channels) in [(0, 1), (1, 1), ((255 << 10) + 1, 1), (2 * MIB, 1), (3 * MIB, 2), (9 * MIB + 7, 4), (24 * MIB, 4)]
    {
        host.clear();
        host.file(length);
        let session = host.ahead(&relay, length).await;
        let before = session.round_trips();
        let sent = host.upload_new(&session).await.unwrap();
        assert_eq!(session.round_trips() - before, 1, "{length}");
        assert_eq!(sent, Sent { bytes: length, resumed: 0, channels: if length == 0 { 0 } else { channels } });
        host.check();
        assert_eq!(host.marks(), marks_of(channels), "{length}");
        let folder = std::fs::metadata(host.remote().parent().unwrap()).unwrap();
        assert_eq!(folder.permissions().mode() & 0o7777, 0o700);
        works(&session).await;
    }

    // A channel is good for one more when all is closed. One that was not opened ahead takes an answer more.
    let session = host.through(&relay).await;
    works(&session).await;
    for (n, length) in [3 * MIB, 0, 2 * MIB, 1, 1000].into_iter().enumerate() {
        std::fs::remove_file(host.remote()).unwrap();
        host.file(length);
        let before = session.round_trips();
        host.upload_new(&session).await.unwrap();
        assert_eq!(session.round_trips() - before, if n == 0 { 2 } else { 1 });
        host.check();
        assert_eq!(host.marks(), marks_of(1));
    }
    // One that wants several goes over them the other way.
    std::fs::remove_dir_all(host.remote().parent().unwrap()).unwrap();
    host.file(12 * MIB);
    assert!(host.upload_new(&session).await.unwrap().channels > 1);
    host.check();
    assert_eq!(host.marks(), Vec::<String>::new());
}

/// Hosts that take nothing any more fill what there is room for, and no more; and others do without it.
#[tokio::test(flavor = "multi_thread")]
async fn new_files_for_many_hosts_have_so_much_under_way_and_no_more() {
    let Some(mut host) = Host::openssh("MaxStartups 100").await else { return };
    let (gone, there) = (host.relay(25).await, host.relay(25).await);
    host.file(9 * MIB);
    let local = host.folder.path().join("local");
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(host.ahead(&gone, 9 * MIB).await);
    }
    gone.hold(true);
    let before = gone.bytes_up();
    let uploads = sessions.into_iter().enumerate().map(|(n, session)| {
        let (local, remote) = (local.clone(), host.folder.path().join(format!("{n}/file")).display().to_string());
        async move { session.upload_new(&local, &remote, &format!("{remote}.mark"), &|_| {}).await }
    });
    // By one task: each takes its share of the room as it is when it begins, so they are to begin together on a busy machine too.
    let uploads = tokio::spawn(futures::future::join_all(uploads));
    let mut under_way = 0;
    while under_way < gone.bytes_up() - before || under_way < 12 * MIB {
        under_way = gone.bytes_up() - before;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // And less than a piece more for each of them.
    assert!(under_way < 19 * MIB, "{under_way}");
    let session = host.ahead(&there, 9 * MIB).await;
    assert_eq!(host.upload_new(&session).await.unwrap().bytes, 9 * MIB);
    host.check();
    gone.cut();
    for upload in uploads.await.unwrap() {
        upload.unwrap_err();
    }
}

/// A file that is not what it was when it was opened.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_has_become_shorter_is_told_as_that() {
    let mut hosts = vec![Host::embedded(true).await];
    hosts.extend(Host::openssh("").await);
    for mut host in hosts {
        let relay = host.relay(20).await;
        for new in [false, true] {
            host.clear();
            host.file(9 * MIB);
            let session = host.ahead(&relay, 9 * MIB).await;
            let local = host.folder.path().join("local");
            relay.hold(true);
            let shorten = async {
                tokio::time::sleep(Duration::from_millis(400)).await;
                std::fs::File::options().write(true).open(&local).unwrap().set_len(8 * MIB).unwrap();
                relay.hold(false);
            };
            let upload = async { if new { host.upload_new(&session).await } else { host.upload(&session).await } };
            let (failure, ()) = futures::join!(upload, shorten);
            let failure = failure.unwrap_err();
            assert!(matches!(failure, TransportError::Local { .. }), "{failure:?}");
            assert!(failure.to_string().contains("local"), "{failure}");
            // Its channels are as good as before.
            host.clear();
            host.file(9 * MIB);
            host.upload(&session).await.unwrap();
            host.check();
        }
    }
}

/// What is behind a channel that was just opened is not known yet.
#[tokio::test(flavor = "multi_thread")]
async fn new_files_go_before_the_server_has_said_a_word() {
    let cases = [
        ("", Some(2)),
        ("# no Subsystem", None),
        ("Subsystem sftp /nonexistent", None),
        // Something else answers. It cannot be told whether there is a server behind it.
        ("Subsystem sftp cat", None),
    ];
    for (extra, counted) in cases {
        let Some(mut host) = Host::openssh(extra).await else { return };
        host.file(MIB);
        let relay = host.relay(20).await;
        let session = host.through(&relay).await;
        session.prepare_upload(Some(MIB)).await;
        let before = session.round_trips();
        let sent = tokio::time::timeout(Duration::from_secs(20), host.upload_new(&session)).await.expect("it does not wait");
        if extra.contains("cat") {
            assert!(matches!(sent, Err(TransportError::NotNew { .. })), "{sent:?}");
            sent.map(|_| ()).or(host.upload(&session).await.map(|_| ())).unwrap();
        } else {
            sent.unwrap();
        }
        host.check();
        if let Some(counted) = counted {
            assert_eq!(session.round_trips() - before, counted);
            assert_eq!(host.marks(), marks_of(1));
        } else {
            assert_eq!(host.marks(), Vec::<String>::new());
        }
        works(&session).await;
    }
}

/// Time is the witness: one wait, and half of it is the way of the answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_host_sees_a_new_file_end_before_we_do() {
    let Some(mut host) = Host::openssh("").await else { return };
    host.file(MIB);
    let relay = host.relay(200).await;
    let session = host.ahead(&relay, MIB).await;
    let began = Instant::now();
    let mark = host.mark().with_file_name("ma rk.1.1");
    let seen = async {
        while !mark.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let whole = std::fs::metadata(host.remote()).is_ok_and(|file| file.len() == MIB);
        (began.elapsed().as_millis(), whole)
    };
    let sent = async {
        host.upload_new(&session).await.unwrap();
        began.elapsed().as_millis()
    };
    let ((seen, whole), sent) = futures::join!(seen, sent);
    assert!(whole);
    assert!((400..780).contains(&sent), "{sent} ms for one round trip");
    assert!(seen >= 200 && seen + 150 < sent, "seen after {seen} ms of {sent}");
    host.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_arrive_where_there_is_no_such_way_too() {
    let mut hosts = vec![Host::embedded(true).await, Host::embedded(false).await];
    hosts.extend(Host::openssh("# no Subsystem").await);
    for mut host in hosts {
        for length in [0, 1, 3 * MIB] {
            host.clear();
            host.file(length);
            let (as_new, plain) = (host.near().await, host.near().await);
            as_new.prepare_upload(Some(length)).await;
            plain.prepare_upload(Some(length)).await;
            works(&as_new).await;
            works(&plain).await;
            let sent = host.upload_new(&as_new).await.unwrap();
            assert_eq!((sent.bytes, sent.resumed), (length, 0));
            host.check();
            assert_eq!(host.marks(), Vec::<String>::new());
            host.clear();
            host.upload(&plain).await.unwrap();
            assert_eq!(as_new.round_trips(), plain.round_trips(), "{length}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_behind_other_uploads_arrive() {
    let Some(mut host) = Host::openssh("").await else { return };
    let relay = host.relay(20).await;
    for length in [0, 1, 9 * MIB] {
        host.clear();
        host.file(length);
        let session = host.ahead(&relay, length).await;
        host.upload(&session).await.unwrap();
        host.check();
        std::fs::remove_file(host.remote()).unwrap();
        let before = session.round_trips();
        host.upload_new(&session).await.unwrap();
        assert_eq!(session.round_trips() - before, 2, "as any upload");
        host.check();
        assert_eq!(host.marks(), Vec::<String>::new());

        // The other way round, and what is there is kept.
        let session = host.ahead(&relay, length).await;
        std::fs::remove_file(host.remote()).unwrap();
        host.upload_new(&session).await.unwrap();
        host.check();
        assert!(!host.marks().is_empty());
        assert_eq!(host.upload(&session).await.unwrap().resumed, length & !1);
        host.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_beside_a_new_file_do_not_mix_with_it() {
    let Some(mut host) = Host::openssh("").await else { return };
    host.file(MIB + 3);
    let other = host.folder.path().join("other");
    std::fs::write(host.folder.path().join("of other"), noise(5 * MIB as usize).split_off(4 * MIB as usize)).unwrap();
    for n in 0..60 {
        host.clear();
        let _ = std::fs::remove_file(&other);
        let session = host.near().await;
        session.prepare_upload(None).await;
        works(&session).await;
        let session = &session;
        let beside = async {
            tokio::time::sleep(Duration::from_micros(n * 50)).await;
            let remote = other.display().to_string();
            session.upload(&host.folder.path().join("of other"), &remote, &|_| {}).await.unwrap();
        };
        let (new, ()) = if n % 2 == 0 {
            futures::join!(host.upload_new(session), beside)
        } else {
            let ((), new) = futures::join!(beside, host.upload_new(session));
            (new, ())
        };
        new.unwrap();
        host.check();
        assert!(std::fs::read(&other).unwrap() == std::fs::read(host.folder.path().join("of other")).unwrap());
        host.marks();
        std::fs::remove_file(host.remote()).unwrap();
        host.upload_new(session).await.unwrap();
        host.check();
        assert!(std::fs::read(&other).unwrap() == std::fs::read(host.folder.path().join("of other")).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_that_was_given_up_is_left_alone_by_the_next() {
    let Some(mut host) = Host::openssh("").await else { return };
    let relay = host.relay(20).await;
    for given_up_after in [0, 10, 50, 90] {
        host.clear();
        host.file(9 * MIB);
        let session = host.ahead(&relay, 0).await;
        let whole = tokio::time::timeout(Duration::from_millis(given_up_after), host.upload_new(&session)).await;
        assert!(whole.is_err());
        let first = host.folder.path().join("first");
        // The last of it is on its way.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begun = std::fs::rename(host.remote(), &first).is_ok();
        assert!(begun || given_up_after == 0);
        let before = std::fs::read(&first).unwrap_or_default();
        assert!(host.data.len() > before.len() && host.data.starts_with(&before));
        host.data = noise(4 * MIB as usize).split_off(MIB as usize);
        std::fs::write(host.folder.path().join("local"), &host.data).unwrap();
        host.upload_new(&session).await.unwrap();
        host.check();
        assert!(std::fs::read(&first).unwrap_or_default() == before);
        let _ = std::fs::remove_file(&first);
    }
}

/// What a test puts where a new file goes.
type Standing = (&'static str, fn(&Host));

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_where_a_new_file_goes_is_seen() {
    let Some(mut host) = Host::openssh("").await else { return };
    let relay = host.relay(20).await;
    let standing: [Standing; 9] = [
        ("a longer file", |host| {
            host.leave(&[&host.data[..], b"more"].concat());
            std::fs::set_permissions(host.remote(), std::fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("a file of ours", |host| {
            host.leave(&host.data.iter().map(|byte| !byte).collect::<Vec<u8>>());
            std::fs::set_permissions(host.remote(), std::fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("a file for all to read", |host| host.leave(b"public")),
        ("a link", |host| {
            std::fs::write(host.folder.path().join("other"), b"not yours").unwrap();
            std::os::unix::fs::symlink(host.folder.path().join("other"), host.remote()).unwrap();
        }),
        ("a link to nowhere", |host| std::os::unix::fs::symlink(host.folder.path().join("other"), host.remote()).unwrap()),
        ("a folder", |host| std::fs::create_dir(host.remote()).unwrap()),
        ("no folder can be made", |host| {
            host.clear();
            std::fs::write(host.remote().parent().unwrap(), b"").unwrap();
        }),
        ("a mark of one channel", |host| std::fs::create_dir(host.mark().with_file_name("ma rk.1.1")).unwrap()),
        ("a mark of four channels", |host| std::fs::create_dir(host.mark().with_file_name("ma rk.4.3")).unwrap()),
    ];
    for (length, channels) in [(0, 1), (5, 1), (2 * MIB, 1), (9 * MIB, 4)] {
        for (what, stand) in standing {
            let case = format!("{what}, {length} bytes");
            host.clear();
            let _ = std::fs::remove_file(host.folder.path().join("other"));
            std::fs::create_dir(host.remote().parent().unwrap()).unwrap();
            host.file(length);
            stand(&host);
            let session = host.ahead(&relay, length).await;
            let new = host.upload_new(&session).await;
            let right = match what {
                "a file of ours" => channels > 1,
                "a mark of one channel" => channels != 1,
                "a mark of four channels" => channels != 4,
                _ => false,
            };
            if channels == 1 && what == "a link" {
                assert_eq!(std::fs::read(host.folder.path().join("other")).unwrap(), b"not yours", "{case}");
            }
            if channels == 1 && what == "a link to nowhere" {
                assert!(!host.folder.path().join("other").exists(), "{case}");
            }
            match new {
                Ok(_) => {
                    assert!(right, "{case}");
                    host.check();
                }
                Err(TransportError::NotNew { path, reason }) => {
                    assert!(!right, "{case}: {reason}");
                    assert_eq!(Path::new(&path), host.remote());
                    if what == "no folder can be made" {
                        assert_eq!(reason, "its folder cannot be made", "{case}");
                    }
                }
                Err(error) => panic!("{case}: {error}"),
            }
            let plain = host.upload(&session).await;
            if ["a folder", "no folder can be made"].contains(&what) {
                assert!(matches!(plain, Err(TransportError::Upload { .. })), "{case}: {plain:?}");
            } else {
                plain.unwrap();
                host.check();
                assert!(!host.remote().is_symlink());
            }
            works(&session).await;
        }
    }

    // A folder that was there for an earlier one and is gone.
    host.clear();
    host.file(3);
    let session = host.near().await;
    host.upload_new(&session).await.unwrap();
    host.clear();
    let gone = host.upload_new(&session).await;
    assert!(matches!(gone, Err(TransportError::NotNew { .. })), "{gone:?}");
    host.upload(&session).await.unwrap();
    host.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_do_not_fit_on_a_full_disk() {
    let Some(mut host) = Host::openssh("").await else { return };
    let disk = host.remote().parent().unwrap().to_owned();
    std::fs::create_dir(&disk).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(&disk).status();
    if !mount.is_ok_and(|status| status.success()) {
        return roadie_tests::skip("new_files_do_not_fit_on_a_full_disk", "cannot mount a small disk");
    }
    let relay = host.relay(20).await;
    let mut results = Vec::new();
    for length in [3 * MIB, 24 * MIB] {
        host.file(length);
        let session = host.ahead(&relay, length).await;
        results.push((host.upload_new(&session).await, host.upload(&session).await));
        let _ = std::fs::remove_file(host.remote());
        host.marks();
    }
    assert!(std::process::Command::new("umount").arg(&disk).status().unwrap().success());
    for (new, plain) in results {
        assert!(matches!(new, Err(TransportError::NotNew { .. })), "{new:?}");
        let Err(TransportError::Upload { reason, .. }) = plain else { panic!("{plain:?}") };
        assert!(reason.starts_with("no space left"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_say_what_went_wrong_on_the_way() {
    let Some(mut host) = Host::openssh("").await else { return };
    host.file(9 * MIB);
    for (delay, at) in [(0, 100_000), (0, 5 * MIB), (10, 1000), (10, 2 * MIB), (10, 8 * MIB)] {
        host.clear();
        let relay = host.relay(delay).await;
        let session = host.ahead(&relay, 9 * MIB).await;
        relay.cut_after(relay.bytes_up() + at);
        let error = host.upload_new(&session).await.unwrap_err();
        assert!(matches!(error, TransportError::Disconnected { .. }), "cut at {at}: {error:?}");
        drop(session);
        settled(&host.remote()).await;
        let session = host.near().await;
        host.upload(&session).await.unwrap();
        host.check();
    }

    // A file that is said to be longer than it is.
    let short = Path::new("/sys/devices/system/cpu/online");
    for local in [Path::new("/nonexistent"), short] {
        host.clear();
        let session = host.near().await;
        let (remote, mark) = (host.remote().display().to_string(), host.mark().display().to_string());
        let error = session.upload_new(local, &remote, &mark, &|_| {}).await.unwrap_err();
        assert!(matches!(error, TransportError::Local { .. }), "{error:?}");
        assert_eq!(host.marks(), Vec::<String>::new(), "not all of it was sent");
        works(&session).await;
    }
}
