//! Patches between packages of a store: the release's files are enough, one is encoded for all, and what is damaged or left
//! behind goes.

use roadie_model::id::PackageId;
use roadie_model::package::{Delta, Means, Package};
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::target::TargetTriple;
use roadie_packager::delta::encode;
use roadie_packager::{BuildEnv, Limits, Packager, Store};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Place {
    folder: tempfile::TempDir,
    store: Store,
    packager: Packager,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp");
        let store = Store::open(folder.path().join("store")).expect("opens");
        let packager = Packager::new(store.clone(), BuildEnv::default()).expect("no files of targets");
        Self { folder, store, packager }
    }

    /// Packs a script that holds these bytes.
    async fn pack(&self, bytes: &[u8], target: &str) -> Package {
        let script = [b"#!/bin/sh\nexec sleep 1000\n", bytes].concat();
        std::fs::write(self.folder.path().join("api"), script).expect("writes");
        let text = "services:\n  api: {runtime: local, build: {type: prebuilt, path: api}}\n".into();
        let base = SourceFile { name: "roadie.yaml".into(), text };
        let dir = self.folder.path().to_owned();
        let definition = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir }).expect("parses");
        let service = definition.services.values().next().expect("a service");
        let target = TargetTriple::new(target).expect("valid");
        self.packager.pack(&definition, service, &target, &|_| {}).await.expect("packs").package
    }

    async fn two(&self) -> (Package, Package) {
        let mut bytes = noise(300_000);
        let old = self.pack(&bytes, TARGET).await;
        bytes.splice(1000..1000, *b"a few more bytes");
        (old, self.pack(&bytes, TARGET).await)
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.store.root().join("deltas")).into_iter().flatten();
        entries.map(|entry| entry.expect("reads").path()).collect()
    }
}

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn noise(size: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(11);
    (0..size).map(|_| rng.u8(..)).collect()
}

/// As a host does it: the old release's files, gzip and perl.
fn make(old: &Package, delta: &Delta, folder: &Path) -> Vec<u8> {
    let unpacked = Command::new("tar").arg("-xzf").arg(&old.archive).arg("-C").arg(folder).status().expect("tar");
    assert!(unpacked.success());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../templates/patch.pl");
    let mut gzip = Command::new("gzip").arg("-dc").arg(&delta.file).stdout(Stdio::piped()).spawn().expect("gzip");
    let patch = gzip.stdout.take().expect("pipe");
    let perl = Command::new("perl").arg(script).args(&delta.sources).current_dir(folder).stdin(patch).output().expect("perl");
    assert!(gzip.wait().expect("ends").success() && perl.status.success(), "{}", String::from_utf8_lossy(&perl.stderr));
    perl.stdout
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    child.stdin.take().expect("pipe").write_all(bytes).expect("writes");
    let output = child.wait_with_output().expect("ends");
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

#[tokio::test]
async fn the_old_release_and_the_patch_give_the_new_package() {
    let place = Place::new();
    let (old, new) = place.two().await;
    let delta = place.store.delta(&old.id, &new.id, Means::Perl).expect("encodes").expect("is worth it");
    assert!(delta.bytes < 4000, "{} bytes", delta.bytes);
    assert_eq!(sha256(&std::fs::read(&delta.file).expect("reads")), delta.sha256);
    assert_eq!(delta.sources[0], "metadata.json");
    let release = tempfile::tempdir().expect("temp");
    assert_eq!(sha256(&make(&old, &delta, release.path())), new.id.as_str());

    let copied = place.store.delta(&old.id, &new.id, Means::Copies).expect("encodes").expect("is worth it");
    assert_eq!(copied.sources, delta.sources);
    assert!(copied.bytes < 4000 && delta.means == Means::Perl, "{} bytes", copied.bytes);
    assert_eq!(copied.means, Means::Copies);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../templates/copied.sh");
    let [requests, tar, mark] = ["requests.gz", "tar", "mark"].map(|name| place.folder.path().join(name));
    std::fs::copy(&copied.file, &requests).expect("copies");
    let server = Path::new("/usr/lib/openssh/sftp-server");
    assert!(server.exists() || std::env::var_os("ROADIE_REQUIRE_LAB").is_none(), "{} is missing", server.display());
    if server.exists() {
        let words = [requests.as_path(), &tar, server, Path::new("20"), &mark];
        let output = Command::new("sh").arg(script).arg(release.path()).args(words).output().expect("sh");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(sha256(&std::fs::read(tar).expect("reads")), new.id.as_str());
        assert!(mark.is_dir());
    }
}

#[tokio::test]
async fn what_is_not_worth_it_is_none() {
    let place = Place::new();
    let (old, new) = place.two().await;
    let other = place.pack(&noise(300_000)[150_000..], "aarch64-unknown-linux-gnu").await;
    assert_eq!(place.store.delta(&old.id, &other.id, Means::Perl).expect("looks"), None, "another target");
    let mut random = noise(300_000);
    random.reverse();
    let strange = place.pack(&random, TARGET).await;
    assert_eq!(place.store.delta(&old.id, &strange.id, Means::Perl).expect("looks"), None, "nothing in common");
    assert_eq!(place.store.delta(&old.id, &strange.id, Means::Perl).expect("looks"), None, "and the same again");
    let mut large = new.clone();
    large.metadata.files[0].size = 600 << 20;
    let file = place.folder.path().join("patch");
    assert_eq!(encode(&old, &large, &file, 1, Means::Perl).expect("looks"), None, "too large");
    let mut lying = new.clone();
    lying.archive_bytes = 1;
    assert_eq!(encode(&old, &lying, &file, 1, Means::Perl).expect("looks"), None, "larger than the archive");
    let mut absent = old.clone();
    absent.metadata.files[0].path = "bin/none".into();
    assert!(encode(&absent, &new, &file, 1, Means::Perl).expect_err("refused").to_string().contains("bin/none"));
}

#[tokio::test]
async fn many_callers_share_one_patch() {
    let place = Place::new();
    let (old, new) = place.two().await;
    let ask = || {
        let delta = Store::open(place.store.root())
            .expect("opens")
            .delta(&old.id, &new.id, Means::Perl)
            .expect("encodes")
            .expect("worth it");
        (std::fs::metadata(&delta.file).expect("there").ino(), delta.sha256)
    };
    let answers: BTreeSet<(u64, String)> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        callers.into_iter().map(|caller| caller.join().expect("answers")).collect()
    });
    assert_eq!(answers.len(), 1, "encoded more than once");
    assert_eq!(place.files().len(), 2, "{:?}", place.files());
}

#[tokio::test]
async fn a_damaged_patch_is_made_again() {
    let place = Place::new();
    let (old, new) = place.two().await;
    let first = place.store.delta(&old.id, &new.id, Means::Perl).expect("encodes").expect("worth it");
    let note = first.file.with_extension("json");
    type Damage = fn(&Path, &Path);
    let damages: [Damage; 4] = [
        |patch, _| {
            let mut bytes = std::fs::read(patch).expect("reads");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(patch, bytes).expect("writes");
        },
        |patch, _| std::fs::remove_file(patch).expect("removes"),
        |_, note| std::fs::write(note, "{").expect("writes"),
        |_, note| {
            let text = std::fs::read_to_string(note).expect("reads").replace("\"format\":1", "\"format\":0");
            std::fs::write(note, text).expect("writes");
        },
    ];
    for damage in damages {
        damage(&first.file, &note);
        let again = place.store.delta(&old.id, &new.id, Means::Perl).expect("encodes").expect("worth it");
        assert_eq!(again, first);
        assert_eq!(sha256(&std::fs::read(&again.file).expect("reads")), first.sha256);
    }
}

#[tokio::test]
async fn gc_takes_patches_of_packages_that_are_gone() {
    let place = Place::new();
    let (old, new) = place.two().await;
    place.store.delta(&old.id, &new.id, Means::Perl).expect("encodes").expect("worth it");
    place.store.gc(Limits::default(), false).expect("sweeps");
    assert_eq!(place.files().len(), 2, "both packages are there");
    let removed = place.store.gc(Limits { keep: Some(1), ..Limits::default() }, false).expect("sweeps");
    assert_eq!(removed.len(), 1);
    assert_eq!(place.files(), Vec::<PathBuf>::new());
    assert!(place.store.delta(&old.id, &new.id, Means::Perl).is_err(), "one of them is gone");
}

/// What a host would send: the files of a release and others, in the order of its folder.
fn release(package: &Package, change: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("temp");
    let script = format!(
        "tar -xzf '{}' && echo secret >env && mkdir -p more && echo x >more/x && {change} tar -cf - $(ls -r) | gzip -c",
        package.archive.display()
    );
    let output = Command::new("sh").arg("-c").arg(script).current_dir(folder.path()).output().expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[tokio::test]
async fn a_package_comes_back_from_the_files_of_a_release() {
    let place = Place::new();
    let (old, new) = place.two().await;
    let given = release(&old, "");
    let elsewhere = tempfile::tempdir().expect("temp");
    let store = Store::open(elsewhere.path()).expect("opens");
    assert!(!store.has_base(&old.id));
    let adopted = store.adopt(&old.id, given.as_slice()).expect("it is that package");
    assert!(std::fs::read(&adopted.archive).expect("reads") == std::fs::read(&old.archive).expect("reads"));
    assert_eq!(Package { archive: PathBuf::new(), ..adopted }, Package { archive: PathBuf::new(), ..old.clone() });
    // It serves differences and nothing else: a host named that id.
    assert!(store.has_base(&old.id) && store.get(&old.id).is_err() && store.find(old.id.short()).is_err());
    assert!(store.list().expect("lists").is_empty());
    assert_eq!(std::fs::read_dir(elsewhere.path().join("fetched/tmp")).expect("reads").count(), 0);

    std::fs::remove_dir_all(place.store.root().join("objects").join(&old.id.as_str()[..2])).expect("removes");
    assert!(place.store.get(&old.id).is_err());
    if place.store.get(&new.id).is_ok() {
        assert!(place.store.delta(&old.id, &new.id, Means::Perl).is_err());
        place.store.adopt(&old.id, given.as_slice()).expect("it is that package");
        let delta = place.store.delta(&old.id, &new.id, Means::Perl).expect("encodes").expect("is worth it");
        place.store.gc(Limits::default(), false).expect("sweeps");
        assert!(delta.bytes < 4000 && delta.file.exists());
    }
}

#[tokio::test]
async fn no_more_is_unpacked_than_is_allowed() {
    let place = Place::new();
    let (old, _) = place.two().await;
    // A name of 700 MB, which readers of tar take into memory, is a few MB on the way.
    let mut header = tar::Header::new_gnu();
    header.set_path("././@LongLink").expect("fits");
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(700 << 20);
    header.set_cksum();
    let mut gzip = Command::new("gzip").arg("-1c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
    let mut input = gzip.stdin.take().expect("pipe");
    let writer = std::thread::spawn(move || {
        input.write_all(header.as_bytes()).expect("writes");
        let zeros = vec![b'a'; 1 << 20];
        (0..700).for_each(|_| input.write_all(&zeros).expect("writes"));
    });
    let bomb = gzip.wait_with_output().expect("ends").stdout;
    writer.join().expect("writes");
    assert!(bomb.len() < 8 << 20);
    let error = place.store.adopt(&old.id, bomb.as_slice()).map(|p| p.id).expect_err("refused");
    assert!(matches!(error, roadie_packager::StoreError::Foreign { .. }), "{error}");
}

#[tokio::test]
async fn what_is_not_the_package_is_not_taken_in() {
    let place = Place::new();
    let (old, new) = place.two().await;
    let elsewhere = tempfile::tempdir().expect("temp");
    let store = Store::open(elsewhere.path()).expect("opens");
    let whole = release(&old, "");
    let cut = whole[..whole.len() / 2].to_vec();
    let cases: [(&str, &PackageId, Vec<u8>); 9] = [
        ("another one", &new.id, whole),
        ("cut", &old.id, cut),
        ("no archive", &old.id, b"hello".to_vec()),
        ("nothing", &old.id, Vec::new()),
        ("a changed byte", &old.id, release(&old, "printf x | dd of=bin/api bs=1 seek=9 conv=notrunc 2>/dev/null;")),
        ("a file too few", &old.id, release(&old, "rm setup.sh; touch setup.sh;")),
        ("other metadata", &old.id, release(&old, "echo >>metadata.json;")),
        ("a link", &old.id, release(&old, "ln -sf /etc/passwd more/x;")),
        ("no metadata", &old.id, release(&old, "rm metadata.json;")),
    ];
    for (what, id, files) in cases {
        let error = store.adopt(id, files.as_slice()).map(|p| p.id).expect_err(what);
        assert!(matches!(error, roadie_packager::StoreError::Foreign { .. }), "{what}: {error}");
        assert!(!store.has_base(id), "{what}");
        assert_eq!(std::fs::read_dir(elsewhere.path().join("fetched/tmp")).expect("reads").count(), 0, "{what}");
    }
}
