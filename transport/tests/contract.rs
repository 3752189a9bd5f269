//! What every session keeps, whatever it goes over: one suite, three places.

#![expect(clippy::unwrap_used, reason = "failing loudly is what tests do")]

mod common;

use bytes::Bytes;
use common::{Place, embedded, local, noise, openssh, sha};
use roadie_transport::{Chunk, Exit, Output, Process, Session, TransportError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Each named check becomes a test per place.
macro_rules! contract {
    ($($check:ident),* $(,)?) => {
        mod on_local { $(#[tokio::test(flavor = "multi_thread")] async fn $check() { super::on(super::local().await, super::$check).await })* }
        mod on_embedded { $(#[tokio::test(flavor = "multi_thread")] async fn $check() { super::on(super::embedded().await, super::$check).await })* }
        mod on_openssh { $(#[tokio::test(flavor = "multi_thread")] async fn $check() { super::on(super::openssh().await, super::$check).await })* }
    };
}

contract![
    exit_codes_and_signals,
    outputs_stay_apart_and_whole,
    output_is_capped,
    five_megabytes_echo,
    a_big_write_survives_a_chatty_command,
    a_slow_reader_gets_everything,
    a_shell_answers_script_after_script,
    uploads_arrive_as_they_were,
    uploads_replace_and_are_private,
    unwritable_places_are_named,
    missing_local_files_are_named,
    open_ports_are_reached,
    closed_ports_are_told,
    thirty_runs_at_once,
    fifty_runs_in_a_row,
    dropped_processes_free_their_place,
];

async fn on<F: AsyncFn(&Place)>(place: Option<Place>, check: F) {
    let Some(place) = place else { return };
    tokio::time::timeout(Duration::from_secs(60), check(&place)).await.expect("the check hangs");
}

async fn run(place: &Place, command: &str, stdin: impl Into<Bytes>) -> Output {
    place.session.run(command, stdin.into(), 64 << 20).await.unwrap()
}

async fn exit_codes_and_signals(place: &Place) {
    for code in [0, 1, 77, 255] {
        assert_eq!(run(place, &format!("exit {code}"), "").await.exit, Exit::Status(code));
    }
    assert_eq!(run(place, "no-such-command-here 2>/dev/null", "").await.exit, Exit::Status(127));
    for signal in ["TERM", "KILL", "SEGV"] {
        assert_eq!(run(place, &format!("ulimit -c 0; kill -{signal} $$; sleep 9"), "").await.exit, Exit::Signal(signal.into()));
    }
}

async fn outputs_stay_apart_and_whole(place: &Place) {
    let output = run(place, "printf 'a\\0b'; printf '%s' \"it's \\\"err\\\"\" >&2; exit 3", "").await;
    assert_eq!(output, Output { stdout: b"a\0b".to_vec(), stderr: b"it's \"err\"".to_vec(), exit: Exit::Status(3) });
    let home = run(place, "test \"$(pwd -P)\" = \"$(cd; pwd -P)\" && test ! -t 0 && test ! -t 1 && tty", "").await;
    assert_eq!(home.exit, Exit::Status(1), "commands run at home and without a terminal");
}

async fn output_is_capped(place: &Place) {
    let command = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; exit 5";
    let output = place.session.run(command, Bytes::new(), 1000).await.unwrap();
    assert_eq!((output.stdout.len(), output.stderr.len(), output.exit), (1000, 1000, Exit::Status(5)));
}

async fn five_megabytes_echo(place: &Place) {
    let data = noise(5 << 20);
    let output = run(place, "cat", data.clone()).await;
    assert_eq!((output.exit, sha(&output.stdout)), (Exit::Status(0), sha(&data)));
}

async fn a_big_write_survives_a_chatty_command(place: &Place) {
    let data = noise(5 << 20);
    let mut process = place.session.start("cat").await.unwrap();
    process.write(Bytes::from(data.clone())).await.unwrap();
    process.close_stdin().await.unwrap();
    let (stdout, exit) = drain(process.as_mut(), Duration::ZERO).await;
    assert_eq!((exit, sha(&stdout)), (Exit::Status(0), sha(&data)));
}

async fn drain(process: &mut dyn Process, pause: Duration) -> (Vec<u8>, Exit) {
    let mut stdout = Vec::new();
    while let Some(chunk) = process.next().await {
        match chunk {
            Chunk::Stdout(data) => stdout.extend_from_slice(&data),
            Chunk::Stderr(data) => panic!("unexpected: {}", String::from_utf8_lossy(&data)),
            Chunk::Exit(exit) => {
                assert_eq!(process.next().await, None, "the exit is the last chunk");
                return (stdout, exit);
            }
        }
        tokio::time::sleep(pause).await;
    }
    panic!("no exit was told");
}

async fn a_slow_reader_gets_everything(place: &Place) {
    let mut process = place.session.start("head -c 20000000 /dev/zero; exit 4").await.unwrap();
    process.close_stdin().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (stdout, exit) = drain(process.as_mut(), Duration::from_micros(500)).await;
    assert_eq!((stdout.len(), exit), (20_000_000, Exit::Status(4)));
}

/// Reads until the output so far ends with `mark`.
async fn until(process: &mut dyn Process, mark: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(mark) {
        match process.next().await {
            Some(Chunk::Stdout(data)) => text.push_str(std::str::from_utf8(&data).unwrap()),
            other => panic!("after {text:?}: {other:?}"),
        }
    }
    text
}

async fn a_shell_answers_script_after_script(place: &Place) {
    let before = place.session.round_trips();
    let mut shell = place.session.start("exec sh -s").await.unwrap();
    for n in 0..5 {
        shell.write(Bytes::from(format!("echo answer {n}.\n"))).await.unwrap();
        assert_eq!(until(shell.as_mut(), ".\n").await, format!("answer {n}.\n"));
    }
    // Opening the channel, then one per script; the local shell has none.
    let expected = if matches!(place.server, common::Server::None) { 0 } else { 6 };
    assert_eq!(place.session.round_trips() - before, expected);
    shell.write(Bytes::from("exit 9\n")).await.unwrap();
    assert_eq!(shell.next().await, Some(Chunk::Exit(Exit::Status(9))));
}

fn write_file(place: &Place, name: &str, data: &[u8]) -> PathBuf {
    let path = place.folder.path().join(name);
    std::fs::write(&path, data).unwrap();
    path
}

async fn upload(place: &Place, local: &Path, remote: &str) -> Result<u64, TransportError> {
    let last = AtomicU64::new(0);
    let sent = place.session.upload(local, remote, &|bytes| last.store(bytes, Ordering::Relaxed)).await?;
    assert_eq!(last.load(Ordering::Relaxed), sent.bytes + sent.resumed);
    Ok(last.into_inner())
}

async fn uploads_arrive_as_they_were(place: &Place) {
    let root = place.folder.path().join("remote").display().to_string();
    place.session.prepare_upload(None).await;
    for (index, length) in [0usize, 1, 255 << 10, 20 << 20].into_iter().enumerate() {
        let data = noise(length);
        let local = write_file(place, "local", &data);
        let remote = format!("{root}/deep er/{index}/file");
        assert_eq!(upload(place, &local, &remote).await.unwrap(), length as u64, "progress ends at the size");
        let output = run(place, &format!("sha256sum <'{remote}'"), "").await;
        assert_eq!(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap(), sha(&data), "{length} bytes");
    }
}

async fn uploads_replace_and_are_private(place: &Place) {
    let local = write_file(place, "local", b"new");
    let folder = format!(".roadie-contract-{}-{}", std::process::id(), place.folder.path().file_name().unwrap().display());
    for between in ["chmod 644 a/file", "rm -r a", "true"] {
        upload(place, &local, &format!("{folder}/a/file")).await.unwrap();
        assert_eq!(run(place, &format!("cd {folder} && {between}"), "").await.exit, Exit::Status(0));
    }
    upload(place, &local, &format!("{folder}/a/file")).await.unwrap();
    // Relative paths begin at home.
    let output = run(
        place,
        &format!("cd && cat {folder}/a/file && stat -c ' %a' {folder} {folder}/a {folder}/a/file; rm -r {folder}"),
        "",
    )
    .await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "new 700\n 700\n 600\n");
}

async fn unwritable_places_are_named(place: &Place) {
    let local = write_file(place, "local", b"x");
    let file = write_file(place, "in-the-way", b"x");
    let remote = format!("{}/below", file.display());
    let error = upload(place, &local, &remote).await.unwrap_err();
    assert!(matches!(&error, TransportError::Upload { path, .. } if *path == remote), "{error:?}");
    let error = upload(place, &local, "/sys/roadie-test").await.unwrap_err();
    assert!(matches!(&error, TransportError::Upload { .. }), "{error:?}");
    // And the session goes on.
    upload(place, &local, &format!("{}/ok", place.folder.path().display())).await.unwrap();
}

async fn missing_local_files_are_named(place: &Place) {
    let error = upload(place, Path::new("/nonexistent/file"), "x").await.unwrap_err();
    assert_eq!(error.to_string(), "cannot read `/nonexistent/file`");
}

async fn open_ports_are_reached(place: &Place) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&[b"you said ", &word[..]].concat()).await.unwrap();
    });
    let mut stream = place.session.forward("127.0.0.1", port).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "you said ping");
    server.await.unwrap();
}

async fn closed_ports_are_told(place: &Place) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Err(error) = place.session.forward("127.0.0.1", port).await else { panic!("connected") };
    assert!(matches!(&error, TransportError::PortClosed { port: told, .. } if *told == port), "{error:?}");
}

async fn thirty_runs_at_once(place: &Place) {
    let runs = (0..30).map(|n| {
        let session: Arc<dyn Session> = place.session.clone();
        tokio::spawn(async move { session.run(&format!("sleep 0.1; echo {n}"), Bytes::new(), 100).await.unwrap() })
    });
    for (n, output) in futures::future::join_all(runs).await.into_iter().enumerate() {
        let output = output.unwrap();
        assert_eq!((output.stdout, output.exit), (format!("{n}\n").into_bytes(), Exit::Status(0)));
    }
}

async fn fifty_runs_in_a_row(place: &Place) {
    for n in 0..50 {
        assert_eq!(run(place, &format!("exit {n}"), "").await.exit, Exit::Status(n));
    }
}

async fn dropped_processes_free_their_place(place: &Place) {
    for _ in 0..30 {
        let mut process = place.session.start("cat").await.unwrap();
        process.write(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(process.next().await, Some(Chunk::Stdout(Bytes::from_static(b"x"))));
        // `cat` ends when its input does.
        drop(process);
    }
    assert_eq!(run(place, "exit 2", "").await.exit, Exit::Status(2));
}
