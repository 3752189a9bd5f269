//! What was found out before, so that it need not be found out again. Losing all of it costs time and nothing else.
//!
//! Every entry is a small file of its own that appears by rename: many processes use it at once.

use crate::archive::{digest, hex};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file that changed as recently as this before it was read may change again without its times telling.
const RACY_NS: i128 = 50_000_000;

/// A folder of entries.
#[derive(Debug, Clone)]
pub struct Memo {
    root: PathBuf,
}

impl Memo {
    /// Entries under `root`, which is made when the first is written.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn path(&self, kind: &str, key: &str) -> PathBuf {
        self.root.join(kind).join(hex(&Sha256::digest(key.as_bytes())))
    }

    /// The entry, if there is one that can be read.
    pub fn get<T: DeserializeOwned>(&self, kind: &str, key: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.path(kind, key)).ok()?).ok()
    }

    /// All entries of a kind that can be read.
    pub fn all<T: DeserializeOwned>(&self, kind: &str) -> Vec<T> {
        let entries = std::fs::read_dir(self.root.join(kind)).into_iter().flatten().flatten();
        // One that is being written is none yet.
        let whole = entries.filter(|e| !e.file_name().as_encoded_bytes().starts_with(b"."));
        whole.filter_map(|e| serde_json::from_slice(&std::fs::read(e.path()).ok()?).ok()).collect()
    }

    /// Keeps an entry. That it cannot be kept is no failure.
    pub fn put<T: Serialize>(&self, kind: &str, key: &str, value: &T) {
        let path = self.path(kind, key);
        let write = || -> io::Result<()> {
            let folder = path.parent().unwrap_or(&self.root);
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&serde_json::to_vec(value)?)?;
            file.persist(&path).map_err(|e| e.error)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, path = %path.display(), "not remembered");
        }
    }
}

/// What tells that a file is still the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    dev: u64,
    ino: u64,
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
}

impl Stat {
    /// Of the file itself, not of what a link names.
    pub fn of(meta: &std::fs::Metadata) -> Self {
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Of what is at `path`, if anything is.
    pub fn at(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|m| Self::of(&m))
    }

    /// Its modification time, nanoseconds since 1970.
    pub fn mtime_ns(&self) -> i128 {
        self.mtime_ns
    }

    /// Whether the times of a file read at `now` tell of every change behind that.
    pub fn is_settled(&self, now: i128) -> bool {
        self.ctime_ns + RACY_NS < now && self.mtime_ns + RACY_NS < now
    }
}

/// Nanoseconds since 1970.
pub fn now_ns() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}

/// A file's content as it was when it was last read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Digest of its bytes, hex.
    pub sha256: String,
    /// Its modification time then, nanoseconds since 1970.
    pub mtime_ns: i128,
    /// `None` when the file was too young for its times to tell.
    pub stat: Option<Stat>,
}

/// Digests of files by path; those whose times did not move are not read again.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Digests {
    known: BTreeMap<PathBuf, Known>,
    #[serde(skip)]
    changed: bool,
}

impl Digests {
    /// sha256 of the file's bytes and its length.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(&mut self, path: &Path) -> io::Result<(String, u64)> {
        let file = std::fs::File::open(path)?;
        let stat = Stat::of(&file.metadata()?);
        if let Some(known) = self.known.get(path).filter(|k| k.stat == Some(stat)) {
            return Ok((known.sha256.clone(), stat.size));
        }
        let now = now_ns();
        let (sha256, size) = digest(&file)?;
        let same = Stat::of(&file.metadata()?) == stat;
        let mtime_ns = stat.mtime_ns();
        let stat = (same && stat.is_settled(now)).then_some(stat);
        self.known.insert(path.to_owned(), Known { sha256: sha256.clone(), mtime_ns, stat });
        self.changed = true;
        Ok((sha256, size))
    }

    /// Whether anything was read since this was loaded.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// Forgets all but these.
    pub fn keep(&mut self, paths: impl Fn(&Path) -> bool) {
        let before = self.known.len();
        self.known.retain(|path, _| paths(path));
        self.changed |= self.known.len() != before;
    }

    /// The files that are known.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.known.keys().map(PathBuf::as_path)
    }

    /// What is known of a file.
    pub fn known(&self, path: &Path) -> Option<&Known> {
        self.known.get(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_file_is_read_again_only_when_its_times_moved() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("f");
        std::fs::write(&path, "one").expect("writes");
        let mut digests = Digests::default();
        let first = digests.of(&path).expect("reads");
        assert_eq!(digests.known(&path).expect("known").stat, None, "too young to be trusted");
        std::thread::sleep(Duration::from_millis(80));
        assert_eq!(digests.of(&path).expect("reads"), first);
        assert!(digests.known(&path).expect("known").stat.is_some());
        let settled = digests.clone();
        // The same length and the old modification time: only the change time tells.
        let old = std::fs::metadata(&path).and_then(|m| m.modified()).expect("time");
        std::fs::write(&path, "two").expect("writes");
        std::fs::File::options().write(true).open(&path).and_then(|f| f.set_modified(old)).expect("sets");
        let mut again = settled;
        assert_ne!(again.of(&path).expect("reads").0, first.0);
    }

    #[test]
    fn entries_come_back_and_damage_is_no_entry() {
        let folder = tempfile::tempdir().expect("temp");
        let memo = Memo::new(folder.path().join("memo"));
        assert_eq!(memo.get::<u32>("k", "a"), None);
        memo.put("k", "a", &7);
        assert_eq!((memo.get::<u32>("k", "a"), memo.get::<u32>("k", "b"), memo.get::<u32>("l", "a")), (Some(7), None, None));
        std::fs::write(memo.path("k", "a"), "{").expect("writes");
        assert_eq!(memo.get::<u32>("k", "a"), None);
    }
}
