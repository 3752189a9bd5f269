//! The two sides of a patch: the files of an old package as they lie on a host, and the tar of a new one.

use roadie_model::package::Package;
use std::collections::BTreeMap;
use std::io::{self, Read};

/// The old side: what every host that runs the old package has.
#[derive(Debug)]
pub struct OldSide {
    /// Paths in the release, in order.
    pub paths: Vec<String>,
    /// Bytes of each.
    pub sizes: Vec<u64>,
    /// The files, one behind the other.
    pub bytes: Vec<u8>,
}

/// Reads the files of a package: `metadata.json`, then the others in the order in which it names them.
///
/// # Errors
/// I/O, and `InvalidData` when the archive has not the files that the package says.
pub fn old_side(package: &Package) -> io::Result<OldSide> {
    let tar = new_side(package)?;
    let mut places = BTreeMap::new();
    let mut archive = tar::Archive::new(tar.as_slice());
    for entry in archive.entries()? {
        let entry = entry?;
        let begin = usize::try_from(entry.raw_file_position()).map_err(io::Error::other)?;
        let size = usize::try_from(entry.size()).map_err(io::Error::other)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        places.insert(path, begin..begin.saturating_add(size));
    }
    let first = std::iter::once("metadata.json");
    let paths = first.chain(package.metadata.files.iter().map(|file| file.path.as_str()));
    let mut side = OldSide { paths: Vec::new(), sizes: Vec::new(), bytes: Vec::with_capacity(tar.len()) };
    for path in paths {
        let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("`{path}` is not in the archive"));
        let bytes = places.get(path).and_then(|place| tar.get(place.clone())).ok_or_else(missing)?;
        side.paths.push(path.to_owned());
        side.sizes.push(bytes.len() as u64);
        side.bytes.extend_from_slice(bytes);
    }
    Ok(side)
}

/// Reads the tar of a package.
///
/// # Errors
/// I/O, and `InvalidData` when it is longer than its files make it.
pub fn new_side(package: &Package) -> io::Result<Vec<u8>> {
    let most = expected(package);
    let file = std::fs::File::open(&package.archive)?;
    let mut tar = Vec::with_capacity(usize::try_from(most).unwrap_or(0));
    flate2::read::GzDecoder::new(file).take(most + 1).read_to_end(&mut tar)?;
    if tar.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the archive is longer than its files"));
    }
    Ok(tar)
}

/// Bytes of a package's tar, at most. `metadata.json` does not know its own size; what it says is most of it.
pub fn expected(package: &Package) -> u64 {
    let files = package.metadata.files.iter().map(|file| file.size.saturating_add(1024));
    let metadata = serde_json::to_vec_pretty(&package.metadata).map_or(0, |text| text.len() as u64);
    files.fold(2 * metadata + (64 << 10), u64::saturating_add)
}
