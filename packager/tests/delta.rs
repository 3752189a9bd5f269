//! Patches between two sides: what is encoded comes out again, in Rust and in the perl that hosts run.
//!
//! Short by default. `FUZZ=1000 cargo test --release -p roadie-packager --test delta` runs for long; `SEED=n` repeats a run.

#![expect(clippy::print_stdout, reason = "a failure must say its seed")]

use roadie_packager::delta;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const FRAME: usize = 1 << 20;
const BOUND: Duration = Duration::from_secs(60);

fn rng() -> fastrand::Rng {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

fn times(usual: usize) -> usize {
    std::env::var("FUZZ").ok().and_then(|s| s.parse().ok()).unwrap_or(usual)
}

/// Something like code: words from a small stock with addresses in between.
fn program(rng: &mut fastrand::Rng, size: usize) -> Vec<u8> {
    let stock: Vec<Vec<u8>> = (0..200).map(|_| (0..rng.usize(2..30)).map(|_| rng.u8(..)).collect()).collect();
    let mut bytes = Vec::new();
    while bytes.len() < size {
        bytes.extend_from_slice(&stock[rng.usize(..stock.len())]);
        bytes.extend_from_slice(&rng.u32(..1 << 20).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn edit(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    let at = rng.usize(..=bytes.len());
    let end = (at + rng.usize(..5000)).min(bytes.len());
    match rng.u8(..6) {
        0 => drop(bytes.drain(at..end)),
        1 => {
            let added = program(rng, end - at);
            drop(bytes.splice(at..at, added));
        }
        2 => {
            let moved: Vec<u8> = bytes.drain(at..end).collect();
            let to = rng.usize(..=bytes.len());
            drop(bytes.splice(to..to, moved));
        }
        3 => bytes[at..end].iter_mut().for_each(|byte| *byte = rng.u8(..)),
        4 => {
            // Addresses behind an edit: each is off by the same number.
            let add = rng.u32(..);
            for field in bytes[at..].chunks_exact_mut(rng.usize(8..50)) {
                let sum = u32::from_le_bytes([field[0], field[1], field[2], field[3]]).wrapping_add(add);
                field[..4].copy_from_slice(&sum.to_le_bytes());
            }
        }
        _ => {
            let again = bytes[at..end].to_vec();
            bytes.extend(again);
        }
    }
}

/// Pairs of sides: the odd ones first, then random edits.
fn pair(rng: &mut fastrand::Rng, turn: usize) -> (Vec<u8>, Vec<u8>) {
    let border = |rng: &mut fastrand::Rng| FRAME - 3 + rng.usize(..7);
    let size = match turn % 4 {
        0 => rng.usize(..40),
        1 => rng.usize(..20_000),
        2 => border(rng),
        _ => rng.usize(..2 * FRAME),
    };
    let old = program(rng, size);
    match turn {
        0 => (Vec::new(), Vec::new()),
        1 => (Vec::new(), old),
        2 => (old, Vec::new()),
        3 => (old.clone(), old),
        4 => (program(rng, 70_000), program(rng, 80_000)),
        5 => (vec![0; 2 * FRAME], vec![0; FRAME + 1]),
        6 => (vec![0; 100], vec![0; 3 * FRAME]),
        _ => {
            let mut new = old.clone();
            (0..rng.usize(1..12)).for_each(|_| edit(rng, &mut new));
            (old, new)
        }
    }
}

fn patch(old: &[u8], new: &[u8], threads: usize) -> Vec<u8> {
    let mut patch = Vec::new();
    delta::write_patch(old, new, threads, &mut patch).expect("writes");
    patch
}

/// Cuts a side into files, empty ones among them.
fn files(rng: &mut fastrand::Rng, folder: &Path, old: &[u8]) -> (Vec<PathBuf>, Vec<u64>) {
    let mut cuts: Vec<usize> = (0..rng.usize(..5)).map(|_| rng.usize(..=old.len())).collect();
    cuts.extend([0, old.len(), old.len()]);
    cuts.sort_unstable();
    let parts = cuts.windows(2).map(|cut| &old[cut[0]..cut[1]]);
    let write = |(number, part): (usize, &[u8])| {
        let path = folder.join(format!("-file {number}"));
        std::fs::write(&path, part).expect("writes");
        (path, part.len() as u64)
    };
    parts.enumerate().map(write).unzip()
}

/// What perl makes of a patch: its output when it ended well, else what it said.
fn perl(patch: &[u8], files: &[PathBuf]) -> Result<Vec<u8>, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../templates/patch.pl");
    let mut child = Command::new("perl")
        .arg(script)
        .args(files)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("perl");
    let mut stdin = child.stdin.take().expect("pipe");
    let patch = patch.to_vec();
    // It may well end before it has read everything.
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&patch)));
    let output = child.wait_with_output().expect("ends");
    feeding.join().expect("feeds");
    match output.status.code() {
        Some(0) => Ok(output.stdout),
        Some(_) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        None => panic!("perl was killed: {}", output.status),
    }
}

#[test]
fn what_is_encoded_comes_out_again() {
    let mut rng = rng();
    let folder = tempfile::tempdir().expect("temp");
    for turn in 0..times(28) {
        let (old, new) = pair(&mut rng, turn);
        let patch = patch(&old, &new, 1);
        assert!(delta::apply(&old, &patch) == Ok(new.clone()), "turn {turn}");
        let (files, _) = files(&mut rng, folder.path(), &old);
        assert!(perl(&patch, &files) == Ok(new), "turn {turn}");
    }
}

#[test]
fn any_number_of_threads_gives_the_same_patch() {
    let mut rng = rng();
    for turn in 0..3 {
        let old = program(&mut rng, 2 * FRAME + 1 + turn);
        let mut new = old.clone();
        (0..9).for_each(|_| edit(&mut rng, &mut new));
        let one = patch(&old, &new, 1);
        for threads in [0, 2, 3, 16] {
            assert!(patch(&old, &new, threads) == one, "{threads} threads");
        }
    }
}

/// Fields that changed by the same number everywhere: what is sent of them is next to nothing.
#[test]
fn moved_addresses_are_small() {
    let mut rng = rng();
    let old = program(&mut rng, 2 * FRAME);
    let mut new = old.clone();
    let mut changed = 0;
    for field in new.chunks_exact_mut(40) {
        let sum = u32::from_le_bytes([field[0], field[1], field[2], field[3]]).wrapping_add(0x40);
        field[..4].copy_from_slice(&sum.to_le_bytes());
        changed += 1;
    }
    let inserted = program(&mut rng, 1000);
    drop(new.splice(FRAME / 2..FRAME / 2, inserted));
    let patch = patch(&old, &new, 2);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let sent = gzip.write_all(&patch).and_then(|()| gzip.finish()).map_or(usize::MAX, |bytes| bytes.len());
    assert!(sent < changed / 20 + 1500, "{sent} bytes for {changed} fields");
    assert!(delta::apply(&old, &patch) == Ok(new));
}

/// Debian's.
const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// Whether there is one; where a host of the lab is required it is, since its packages are.
fn has_sftp_server() -> bool {
    let has = Path::new(SFTP_SERVER).exists();
    assert!(has || std::env::var_os("ROADIE_REQUIRE_LAB").is_none(), "{SFTP_SERVER} is missing");
    if !has {
        println!("not tested: there is no {SFTP_SERVER}");
    }
    has
}

/// What a host's shell makes of requests with a server, in `folder`; or what it says.
fn copied(requests: &[u8], folder: &Path, server: &Path, seconds: &str) -> Result<Vec<u8>, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../templates/copied.sh");
    let (parcel, tar, mark) = (folder.join("requests.gz"), folder.join("tar"), folder.join("mark"));
    let mut gzip = roadie_packager::gzip::Gzip::new(std::fs::File::create(&parcel).expect("creates"), 1).expect("starts");
    gzip.write_all(requests).expect("writes");
    gzip.finish().expect("finishes");
    let words = [folder, &parcel, &tar, server, Path::new(seconds), &mark];
    let output = Command::new("sh").arg(script).args(words).output().expect("sh");
    let left = std::fs::read_dir(folder).expect("lists").filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()));
    let left: Vec<String> = left.filter(|name| name.contains("made") || name.contains("requests")).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert_eq!(std::fs::remove_dir(mark).is_ok(), output.status.success(), "nobody waits for what is not there");
    if output.status.success() {
        Ok(std::fs::read(tar).expect("reads"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into())
    }
}

#[test]
fn copies_make_the_new_side() {
    let mut rng = rng();
    let folder = tempfile::tempdir().expect("temp");
    for turn in 0..times(28) {
        let (old, new) = pair(&mut rng, turn);
        let (files, sizes) = files(&mut rng, folder.path(), &old);
        let found = delta::copies(&old, &new, &sizes, 1 + turn % 3);
        let mut done = 0;
        for copy in &found {
            assert!(copy.to >= done && copy.length > 0, "turn {turn}: they overlap");
            assert!(copy.offset + copy.length <= sizes[copy.file], "turn {turn}: no file has that");
            done = copy.to + copy.length;
        }
        let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        let side = delta::OldSide { paths: files.iter().map(name).collect(), sizes, bytes: old };
        let (requests, bytes) = delta::write_requests(&side, &new, &found, Vec::new()).expect("writes");
        assert_eq!(requests.len() as u64, bytes, "turn {turn}");
        if has_sftp_server() {
            let made = copied(&requests, folder.path(), Path::new(SFTP_SERVER), "60");
            assert!(made.as_ref() == Ok(&new), "turn {turn}: {:?}", made.err());
        }
        if turn == 3 {
            assert!(requests.len() < 2000, "{} bytes for the same again", requests.len());
        }
    }
}

/// Whatever the server does, it ends, says why, and nothing stays.
#[test]
fn servers_that_do_not_copy_are_told_of() {
    let mut rng = rng();
    let folder = tempfile::tempdir().expect("temp");
    // Several sections: the one who feeds waits for its turn.
    let old = program(&mut rng, 4 * FRAME);
    let (files, sizes) = files(&mut rng, folder.path(), &old);
    let new: Vec<u8> = old.iter().map(|byte| byte ^ 0x55).collect();
    let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
    let side = delta::OldSide { paths: files.iter().map(name).collect(), sizes, bytes: old };
    let (requests, _) = delta::write_requests(&side, &new, &[], Vec::new()).expect("writes");
    let server = folder.path().join("server");
    let scripts = ["exit 3", "exec sleep 0.1", "head -c 300000 >/dev/null; exit 4", "kill -9 $$", "echo more >turn; exit 5"];
    for script in scripts {
        std::fs::write(&server, format!("#!/bin/sh\n{script}\n")).expect("writes");
        std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).expect("may be run");
        for _ in 0..8 {
            let said = copied(&requests, folder.path(), &server, "60").expect_err(script);
            assert!(said.contains("server ended with"), "{script}: {said}");
        }
    }
    let none = folder.path().join("none");
    assert!(copied(&requests, folder.path(), &none, "60").expect_err("there is none").contains("ended with 127"));
    if has_sftp_server() {
        let begun = Instant::now();
        copied(&requests[..requests.len() / 2], folder.path(), Path::new(SFTP_SERVER), "2").expect_err("cut off");
        assert!(begun.elapsed() < BOUND);
    }
}

#[test]
fn damaged_patches_are_refused_or_give_what_the_digest_tells() {
    let mut rng = rng();
    let folder = tempfile::tempdir().expect("temp");
    let old = program(&mut rng, 60_000);
    let mut new = old.clone();
    (0..6).for_each(|_| edit(&mut rng, &mut new));
    let whole = patch(&old, &new, 1);
    let (files, _) = files(&mut rng, folder.path(), &old);
    for turn in 0..times(120) {
        let mut damaged = whole.clone();
        for _ in 0..rng.usize(1..4) {
            // Most of the harm is done by sizes, and those are in front.
            let at = if rng.bool() { rng.usize(..64.min(damaged.len())) } else { rng.usize(..damaged.len()) };
            match rng.u8(..4) {
                0 => damaged[at] ^= 1 << rng.u8(..8),
                1 => damaged[at] = 0xff,
                2 => drop(damaged.splice(at..at, [rng.u8(..); 3])),
                _ => damaged.truncate(at.max(1)),
            }
        }
        if damaged == whole {
            continue;
        }
        let begun = Instant::now();
        let (ours, theirs) = (delta::apply(&old, &damaged), perl(&damaged, &files));
        assert!(begun.elapsed() < BOUND, "turn {turn}");
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => assert!(ours == theirs, "turn {turn}"),
            (_, Err(text)) => assert!(!text.is_empty(), "turn {turn}"),
            (Err(_), Ok(theirs)) => assert!(theirs != new, "turn {turn}: not the patch, and yet the same"),
        }
    }
    // Cut anywhere it is refused, also where only the end's own frame is missing.
    let cuts = [whole.len() - 20, whole.len() - 1, 8, 7, 0];
    for end in cuts.into_iter().chain(std::iter::repeat_with(|| rng.usize(..whole.len())).take(20)) {
        let cut = &whole[..end];
        assert!(delta::apply(&old, cut).is_err() && perl(cut, &files).is_err(), "{} of {} bytes", cut.len(), whole.len());
    }
    let longer = [whole.as_slice(), b"x"].concat();
    assert!(delta::apply(&old, &longer).is_err() && perl(&longer, &files).is_err());
    let gone = [files.as_slice(), &[folder.path().join("nothing")]].concat();
    assert!(perl(&whole, &gone).expect_err("no such file").contains("no file"));
}
