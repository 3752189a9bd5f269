//! What packing and sending a change costs: digest, gzip, and the patch to a recompiled program.
//!
//! `cargo bench -p roadie-packager`. The program is one of this machine, with an edit as a compiler would make it; so figures of
//! two machines do not compare, those of two commits do.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use roadie_packager::{delta, gzip::Gzip};
use sha2::{Digest as _, Sha256};
use std::hint::black_box;
use std::io::{self, Write as _};

/// A real program; this very benchmark where there is no perl.
fn program() -> Vec<u8> {
    let own = || std::fs::read(std::env::current_exe().expect("has a path"));
    std::fs::read("/usr/bin/perl").or_else(|_| own()).expect("reads")
}

/// Inserts `count` bytes at `cut`, and corrects what calls or jumps over that place.
fn edited(old: &[u8], cut: usize, count: usize) -> Vec<u8> {
    let mut new = old.to_vec();
    let signed = |at: usize| i64::try_from(at).expect("fits");
    for at in 0..old.len().saturating_sub(5) {
        if !matches!(old[at], 0xe8 | 0xe9) {
            continue;
        }
        let distance = i32::from_le_bytes(old[at + 1..at + 5].try_into().expect("four bytes"));
        let target = signed(at) + 5 + i64::from(distance);
        let inside = (0..signed(old.len())).contains(&target);
        let moved = match (at < cut, target < signed(cut)) {
            (true, false) => signed(count),
            (false, true) => -signed(count),
            _ => 0,
        };
        if inside && moved != 0 {
            let corrected = i32::try_from(i64::from(distance) + moved).unwrap_or(distance);
            new[at + 1..at + 5].copy_from_slice(&corrected.to_le_bytes());
        }
    }
    new.splice(cut..cut, (0..count).map(|number| u8::try_from(number * 37 % 251).expect("a byte")));
    new
}

fn packing(c: &mut Criterion) {
    let old = program();
    let new = edited(&old, old.len() / 3, 64);
    let mut group = c.benchmark_group("packing");
    group.sample_size(10).throughput(Throughput::Bytes(new.len() as u64));
    group.bench_function("sha256", |b| b.iter(|| Sha256::digest(black_box(&new))));
    for threads in [1, 2] {
        group.bench_function(format!("gzip, {threads} threads"), |b| {
            b.iter(|| {
                let mut gzip = Gzip::new(io::sink(), threads).expect("starts");
                gzip.write_all(black_box(&new)).expect("writes");
                gzip.finish().expect("finishes")
            });
        });
        group.bench_function(format!("patch, {threads} threads"), |b| {
            b.iter(|| delta::write_patch(black_box(&old), black_box(&new), threads, io::sink()).expect("writes"));
        });
    }
    let mut patch = Vec::new();
    delta::write_patch(&old, &new, 2, &mut patch).expect("writes");
    assert!(patch.len() * 5 < new.len(), "the patch is no smaller: {} of {} bytes", patch.len(), new.len());
    group.bench_function("apply", |b| b.iter(|| delta::apply(black_box(&old), black_box(&patch)).expect("applies")));
    group.bench_function("copies", |b| {
        b.iter(|| delta::copies(black_box(&old), black_box(&new), &[old.len() as u64], 2));
    });
    group.finish();
}

criterion_group!(benches, packing);
criterion_main!(benches);
