//! The local file of an upload: read by position, so that several channels can send parts of it.

use crate::TransportError;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read at once for a digest.
const STEP: usize = 1 << 20;

/// A sha256.
pub(crate) type Sum = [u8; 32];

/// An open local file of known size.
pub(crate) struct Source {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
}

impl Source {
    pub(crate) async fn open(path: &Path) -> Result<Self, TransportError> {
        let owned = path.to_owned();
        let opened = blocking(move || {
            let file = File::open(owned)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        });
        let (file, size) = opened.await.map_err(|source| unreadable(path, source))?;
        Ok(Self { file: Arc::new(file), path: path.to_owned(), size })
    }

    /// Bytes in the file when it was opened.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The `length` bytes at `offset`. Fails when the file has become shorter.
    pub(crate) async fn read(&self, offset: u64, length: usize) -> Result<Bytes, TransportError> {
        let mut data = vec![0; length];
        if self.read_at_once(offset, &mut data) {
            return Ok(data.into());
        }
        let file = self.file.clone();
        let read = blocking(move || file.read_exact_at(&mut data, offset).map(|()| data.into()));
        read.await.map_err(|source| unreadable(&self.path, source))
    }

    /// Fills `data` if all of it is in memory; else another thread has to wait for the disk.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn read_at_once(&self, offset: u64, data: &mut [u8]) -> bool {
        use rustix::io::{ReadWriteFlags, preadv2};
        use std::io::IoSliceMut;

        let length = data.len();
        preadv2(&*self.file, &mut [IoSliceMut::new(data)], offset, ReadWriteFlags::NOWAIT) == Ok(length)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn read_at_once(&self, _: u64, _: &mut [u8]) -> bool {
        false
    }

    /// The sha256 of each of `ranges`, in bytes.
    pub(crate) async fn sums(&self, ranges: Vec<Range<u64>>) -> Result<Vec<Sum>, TransportError> {
        let file = self.file.clone();
        let sums = blocking(move || {
            let mut buffer = vec![0; STEP];
            ranges.into_iter().map(|range| sum(&file, range, &mut buffer)).collect()
        });
        sums.await.map_err(|source| unreadable(&self.path, source))
    }
}

fn sum(file: &File, range: Range<u64>, buffer: &mut [u8]) -> std::io::Result<Sum> {
    let mut hash = Sha256::new();
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(STEP).min(STEP);
        file.read_exact_at(&mut buffer[..length], at)?;
        hash.update(&buffer[..length]);
        at += length as u64;
    }
    Ok(hash.finalize().into())
}

fn unreadable(path: &Path, source: std::io::Error) -> TransportError {
    TransportError::Local { what: format!("cannot read `{}`", path.display()), source }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
