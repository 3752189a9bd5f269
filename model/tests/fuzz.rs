//! Damaged definitions and metadata: an answer for each, in time, and never a panic.
//!
//! Short by default. `FUZZ=1000000 cargo test --release -p roadie-model --test fuzz` runs for long; `SEED=n` repeats a run.

#![expect(clippy::print_stdout, reason = "a failure must say its seed")]

use fastrand::Rng;
use roadie_model::package::Metadata;
use roadie_model::parse::{Inputs, SourceFile, parse};
use std::time::{Duration, Instant};

/// Longest time that one input may take, also in a debug build on a busy machine.
const BOUND: Duration = Duration::from_secs(5);

const CORPUS: &[&str] = &[
    include_str!("example-first.yaml"),
    include_str!("example-second.yaml"),
    include_str!("broken.txt"),
    "mesh: {hosts: [a, b], network: 10.7.0.0/24, via: {a: b}, endpoints: {b: \"[::1]:70\"}, addresses: {a: 10.7.0.5}, keepalive: 9s}\n\
     hosts: {a: {address: 192.0.2.1}, b: {address: 192.0.2.2}}\nservices: {a: {hosts: a, ports: [1, 2], depends_on: b}, b: {hosts: b}}\n",
    "services:\n  a: &a\n    runtime: local\n    vars: {x: ${V:-1}, y: [1, {z: null}]}\n  b: {<<: *a, depends_on: a}\n",
];

const METADATA: &str = r#"{"schema": "roadie.package/1", "name": "api", "version": "1.2.3", "target": "x86_64-unknown-linux-gnu",
 "binary": "bin/api", "files": [{"path": "bin/api", "mode": "0755", "size": 2000, "sha256": "ab"}],
 "requires": {"arch": "x86_64", "libc": "glibc", "glibc_min": "2.34", "sonames": ["libc.so.6"], "page_align": 4096}}"#;

const PIECES: &[&str] = &[
    ":",
    "- ",
    "\n",
    "\n  ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "|\n",
    ">-\n",
    "\"",
    "'",
    "${",
    "$$",
    "${A:?x}",
    "null",
    "~",
    "\t",
    "#",
    "? ",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "\u{feff}",
    "\u{202e}",
    "9999999999999999999999",
    "-0x1",
    "1e999",
    "services:\n",
    "ü",
];

fn rng() -> Rng {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    Rng::with_seed(seed)
}

fn times(default: usize) -> usize {
    std::env::var("FUZZ").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// Bytes changed, doubled, cut out and put in.
fn damaged(text: &str, rng: &mut Rng) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(..40)).min(bytes.len());
        match rng.u8(..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let copy = bytes[at..end].to_vec();
                let to = rng.usize(..=bytes.len());
                drop(bytes.splice(to..to, copy));
            }
            3 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, rng.choice(PIECES).expect("pieces").bytes())),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn in_time<T>(input: &str, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    assert!(begin.elapsed() < BOUND, "{:?} for {input:?}", begin.elapsed());
    result
}

#[test]
fn damaged_definitions_get_an_answer() {
    let (mut rng, mut good) = (rng(), 0);
    for _ in 0..times(1500) {
        let cases: Vec<&str> = CORPUS.iter().flat_map(|c| c.split("=====\n")).collect();
        let text = damaged(rng.choice(&cases).expect("a case"), &mut rng);
        let overlay = rng.bool().then(|| damaged(CORPUS[0], &mut rng));
        let base = SourceFile { name: "roadie.yaml".into(), text: text.clone() };
        let overlay = overlay.map(|text| SourceFile { name: "roadie.x.yaml".into(), text });
        let env = |name: &str| (name == "A").then(|| "${B}: [".to_owned());
        let inputs = Inputs { base: &base, overlay: overlay.as_ref(), env: &env, dir: "/p".into() };
        match in_time(&text, || parse(&inputs)) {
            Ok(_) => good += 1,
            Err(found) => {
                assert!(!found.is_empty());
                assert!(found.iter().all(|d| d.line > 0 && !d.to_string().chars().any(char::is_control)), "{text:?}: {found:?}");
            }
        }
    }
    assert!(good > 0, "nothing came through: the damage is too great");
}

#[test]
fn damaged_metadata_gets_an_answer() {
    let (mut rng, mut good) = (rng(), 0);
    for _ in 0..times(5000) {
        let text = damaged(METADATA, &mut rng);
        if let Ok(metadata) = in_time(&text, || serde_json::from_str::<Metadata>(&text)) {
            let again = serde_json::to_string(&metadata).expect("serialises");
            assert_eq!(serde_json::from_str::<Metadata>(&again).expect("parses"), metadata);
            good += 1;
        }
    }
    assert!(good > 0, "nothing came through: the damage is too great");
}
