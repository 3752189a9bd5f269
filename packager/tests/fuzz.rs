//! Damaged packages in the store: told and set aside, in time, and never a panic or a package that is taken for whole.
//!
//! Short by default. `FUZZ=100000 cargo test --release -p roadie-packager --test fuzz` runs for long; `SEED=n` repeats a run.

#![expect(clippy::print_stdout, reason = "a failure must say its seed")]

use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::target::TargetTriple;
use roadie_packager::{BuildEnv, Packager, Store, StoreError};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(5);

fn damage(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(..64)).min(bytes.len());
        match rng.u8(..4) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, std::iter::repeat_with(|| rng.u8(..)).take(end - at))),
        }
    }
}

#[tokio::test]
async fn damaged_packages_are_set_aside() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let times = std::env::var("FUZZ").ok().and_then(|s| s.parse().ok()).unwrap_or(300);

    let temp = tempfile::tempdir().expect("temp");
    std::fs::write(temp.path().join("api"), "#!/bin/sh\nsleep 1000\n").expect("writes");
    let text = "services:\n  api: {runtime: local, build: {type: prebuilt, path: api}}\n".into();
    let base = SourceFile { name: "roadie.yaml".into(), text };
    let dir = temp.path().to_owned();
    let definition = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir }).expect("parses");
    let service = definition.services.values().next().expect("a service");
    let store = Store::open(temp.path().join("store")).expect("opens");
    let target = TargetTriple::new("x86_64-unknown-linux-gnu").expect("valid");
    let packager = Packager::new(store.clone(), BuildEnv::default()).expect("no files of targets");
    let package = packager.pack(&definition, service, &target, &|_| {}).await.expect("packs").package;

    let index = package.archive.with_file_name(format!("{}.json", package.id));
    let (archive, metadata) = (std::fs::read(&package.archive).expect("reads"), std::fs::read(&index).expect("reads"));
    for turn in 0..times {
        let (mut bytes, mut text) = (archive.clone(), metadata.clone());
        match turn % 3 {
            0 => damage(&mut bytes, &mut rng),
            1 => damage(&mut text, &mut rng),
            _ => {
                // The index speaks for the damaged bytes: only the id tells.
                damage(&mut bytes, &mut rng);
                let mut lying = package.clone();
                lying.archive_bytes = bytes.len() as u64;
                lying.archive_sha256 = sha256(&bytes);
                text = serde_json::to_vec(&lying).expect("serialises");
            }
        }
        std::fs::write(&package.archive, &bytes).expect("writes");
        std::fs::write(&index, &text).expect("writes");
        let begin = Instant::now();
        let (listed, verified) = (store.list(), store.verify(&package.id));
        assert!(begin.elapsed() < BOUND, "turn {turn}: {:?}", begin.elapsed());
        assert!(listed.is_ok());
        match verified {
            Ok(found) => assert_eq!(found.id, package.id),
            Err(StoreError::Damaged { .. } | StoreError::Missing { .. }) => {}
            Err(other) => panic!("turn {turn}: {other}"),
        }
        // Other bytes pass only when what is in them is the very same.
        if turn % 3 == 2 && store.get(&package.id).is_ok() {
            assert_eq!(unpacked(&bytes), unpacked(&archive), "turn {turn}");
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut all).expect("unpacks");
    all
}
