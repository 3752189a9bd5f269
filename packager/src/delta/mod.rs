//! What makes one package from another on a host that has the other: it travels instead of the archive. Perl applies a patch; a
//! host without it has an sftp server copy what did not change, and write the rest.
//!
//! The old side is the concatenation of the files that the old release has unchanged, so a host needs nothing but that release.
//! The new side is the tar whose sha256 is the new package's id: whatever comes out is checked as an archive would be. Nothing
//! here knows hosts.

mod apply;
mod bytes;
mod cache;
mod copies;
mod diagonals;
mod index;
mod patch;
mod requests;
mod sides;

pub use apply::{PatchError, apply};
pub use copies::{Stretch, copies, write_requests};
pub use patch::write as write_patch;
pub use sides::OldSide;

use crate::archive::Hashed;
use crate::gzip::Gzip;
use roadie_model::package::{Delta, Means, Package};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Both sides together, bytes: what encodes holds them in memory.
const MOST: u64 = 512 << 20;
/// A patch is worth sending up to this share of the archive.
const PATCH_PERCENT: u64 = 70;
/// The same for what is copied, which takes the host less time and one more round trip.
const COPIES_PERCENT: u64 = 85;
/// Behind it a patch gets hardly smaller.
const LEVEL: u32 = 6;

/// Writes what makes `new` from `old` by `means` into `to`, using `threads` threads: the bytes are the same for any number.
/// `None` where the archive is the better way: other targets, more than 512 MiB, too large a share of the archive, or requests
/// that are more than what they make. `to` then holds nothing of use.
///
/// # Errors
/// When an archive cannot be read or is not that package, or `to` cannot be written.
pub fn encode(old: &Package, new: &Package, to: &Path, threads: usize, means: Means) -> io::Result<Option<Delta>> {
    if !comparable(old, new) {
        return Ok(None);
    }
    let (old_side, new_side) = both(old, new, threads)?;
    let file = BufWriter::new(std::fs::File::create(to)?);
    let mut gzip = Gzip::with_level(Hashed::new(file), threads, LEVEL)?;
    let most = match means {
        Means::Perl => {
            patch::write(&old_side.bytes, &new_side, threads, &mut gzip)?;
            PATCH_PERCENT
        }
        Means::Copies => {
            let found = copies(&old_side.bytes, &new_side, &old_side.sizes, threads);
            if found.is_empty() {
                return Ok(None);
            }
            let (_, bytes) = write_requests(&old_side, &new_side, &found, &mut gzip)?;
            // The host has them unpacked beside what they make.
            if bytes > new_side.len() as u64 {
                return Ok(None);
            }
            COPIES_PERCENT
        }
    };
    let mut out = gzip.finish()?;
    out.flush()?;
    let (sha256, bytes) = out.digest();
    let worth = bytes.saturating_mul(100) <= new.archive_bytes.saturating_mul(most);
    Ok(worth.then(|| Delta { means, file: to.to_owned(), sha256, bytes, sources: old_side.paths }))
}

fn comparable(old: &Package, new: &Package) -> bool {
    let bytes = sides::expected(old).saturating_add(sides::expected(new));
    old.metadata.target == new.metadata.target && bytes <= MOST
}

/// Reads both sides, at once where there are threads for it.
fn both(old: &Package, new: &Package, threads: usize) -> io::Result<(OldSide, Vec<u8>)> {
    if threads < 2 {
        return Ok((sides::old_side(old)?, sides::new_side(new)?));
    }
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| sides::old_side(old));
        let new_side = sides::new_side(new);
        let old_side = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((old_side?, new_side?))
    })
}
