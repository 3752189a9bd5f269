//! The package store: content-addressed, written atomically, verified when read, shared by many processes.
//!
//! `objects/<2 digits>/<id>.tar.gz` and `<id>.json` beside it; `actions/<key>` says which package the same members gave before,
//! so that nothing is archived twice; `deltas/` holds what makes one package from another. Every file appears by rename: a reader
//! sees all of it or nothing.

use crate::memo::{Memo, Stat, now_ns};
use crate::{archive, members};
use roadie_model::id::PackageId;
use roadie_model::package::Package;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error("cannot use the package store at `{}`", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not there.
    #[error("no package `{id}` in the store")]
    Missing {
        /// What was looked for.
        id: String,
    },
    /// Several begin so.
    #[error("{count} packages begin with `{prefix}`")]
    Ambiguous {
        /// What was looked for.
        prefix: String,
        /// How many.
        count: usize,
    },
    /// What stands beside it is not about it. The package itself stays.
    #[error("package {id}: {reason}")]
    Note {
        /// Which.
        id: String,
        /// In what way.
        reason: String,
    },
    /// What came from elsewhere is not it. Nothing was stored.
    #[error("these files are not package {id}: {reason}")]
    Foreign {
        /// Which.
        id: String,
        /// In what way.
        reason: String,
    },
    /// Its bytes are not what its name says. It was set aside.
    #[error("package {id} is damaged ({reason}); it was set aside")]
    Damaged {
        /// Which.
        id: String,
        /// In what way.
        reason: String,
    },
}

impl StoreError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            StoreError::Io { .. } => "check space and permissions; ROADIE_STORE names another folder".into(),
            StoreError::Missing { .. } | StoreError::Ambiguous { .. } => "`roadie packages ls` shows what there is".into(),
            StoreError::Note { .. } => "remove the file; `roadie pack` writes another".into(),
            StoreError::Foreign { .. } => "deploy the package as a whole".into(),
            StoreError::Damaged { .. } => "run `roadie pack` to make it again".into(),
        })
    }
}

/// A package and when it was stored.
#[derive(Debug, Clone)]
pub struct StoredPackage {
    /// The package.
    pub package: Package,
    /// When it was stored.
    pub stored_at: SystemTime,
}

/// While it lives, a package is not deleted.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

/// How much may stay in a store.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Packages.
    pub keep: Option<usize>,
    /// Bytes of archives.
    pub bytes: Option<u64>,
    /// Time since they were made or used.
    pub age: Option<Duration>,
}

/// A package's last use is written down this coarsely.
const TOUCH_AFTER: Duration = Duration::from_secs(3600);
/// Older temporary files belong to no living process.
const LEFT_BEHIND: Duration = Duration::from_secs(24 * 3600);
/// Answers that nobody asked for in so long are forgotten.
const MEMO_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// A folder of packages.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Uses `root`, making it if needed.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        for folder in ["objects", "actions", "refs", "tmp"] {
            let path = root.join(folder);
            std::fs::create_dir_all(&path).map_err(|source| StoreError::Io { path, source })?;
        }
        Ok(Self { root })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn object(&self, id: &PackageId, extension: &str) -> PathBuf {
        self.root.join("objects").join(&id.as_str()[..2]).join(format!("{id}.{extension}"))
    }

    /// Whether there is such a package; nothing of it is read.
    pub(crate) fn has(&self, id: &PackageId) -> bool {
        self.object(id, "json").exists()
    }

    /// A file about a package that is no part of it: a signature, an SBOM.
    pub(crate) fn beside(&self, id: &PackageId, extension: &str) -> PathBuf {
        self.object(id, extension)
    }

    /// The signatures of a package, sorted by name.
    pub(crate) fn signatures(&self, id: &PackageId) -> Result<Vec<PathBuf>, StoreError> {
        let path = self.object(id, "sig");
        let folder = path.parent().unwrap_or(&self.root);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Self::io(folder))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.strip_prefix(id.as_str()).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".sig")) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> StoreError {
        move |source| StoreError::Io { path: path.to_owned(), source }
    }

    /// A temporary file in the store's own file system.
    pub(crate) fn temporary(&self) -> Result<tempfile::NamedTempFile, StoreError> {
        let folder = self.root.join("tmp");
        tempfile::NamedTempFile::new_in(&folder).map_err(Self::io(&folder))
    }

    /// Publishes an archive that was written into a temporary file.
    pub(crate) fn add(&self, archive: tempfile::NamedTempFile, package: Package, action: &str) -> Result<Package, StoreError> {
        let target = self.object(&package.id, "tar.gz");
        publish(archive, &target).map_err(Self::io(&target))?;
        let package = Package { archive: target, ..package };
        let json = self.object(&package.id, "json");
        let text = serde_json::to_vec_pretty(&package).map_err(io::Error::other).map_err(Self::io(&json))?;
        self.write(&json, &text)?;
        self.write(&self.root.join("actions").join(action), package.id.as_str().as_bytes())?;
        Ok(package)
    }

    /// Writes a file of the store in one piece.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let mut file = self.temporary()?;
        file.write_all(bytes).map_err(Self::io(path))?;
        publish(file, path).map_err(Self::io(path))
    }

    /// Says which package a key stands for.
    pub(crate) fn remember(&self, key: &str, id: &PackageId) -> Result<(), StoreError> {
        self.write(&self.root.join("actions").join(key), id.as_str().as_bytes())
    }

    /// The package that the same members gave before. Its bytes are verified, unless they were and the file is still that one.
    pub(crate) fn by_action(&self, action: &str, memo: &Memo) -> Option<Package> {
        let id = std::fs::read_to_string(self.root.join("actions").join(action)).ok()?;
        let package = self.read(&PackageId::new(id).ok()?).ok()?;
        let stat = Stat::at(&package.archive)?;
        if memo.get::<Stat>("verified", package.id.as_str()) == Some(stat) {
            self.touch(&package.id);
            return Some(package);
        }
        let now = now_ns();
        let package = self.get(&package.id).ok()?;
        if stat.is_settled(now) && Stat::at(&package.archive) == Some(stat) {
            memo.put("verified", package.id.as_str(), &stat);
        }
        self.touch(&package.id);
        Some(package)
    }

    /// Opens a package and verifies the archive's bytes.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or [`StoreError::Damaged`] after setting it aside.
    pub fn get(&self, id: &PackageId) -> Result<Package, StoreError> {
        let package = self.read(id)?;
        let (sha256, bytes) = match File::open(&package.archive).and_then(archive::digest) {
            Ok(digest) => digest,
            Err(e) => return Err(self.set_aside(id, &format!("the archive cannot be read: {e}"))),
        };
        if sha256 != package.archive_sha256 || bytes != package.archive_bytes {
            return Err(self.set_aside(id, "the archive's sha256 differs"));
        }
        Ok(package)
    }

    /// Opens a package and verifies everything: the archive's bytes, that the tar inside gives the id, and that what the index says
    /// of its content is what is there. A deployment takes unit, config and setup from the index, and a signature is over the id.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn verify(&self, id: &PackageId) -> Result<Package, StoreError> {
        let package = self.get(id)?;
        let file = File::open(&package.archive).map_err(Self::io(&package.archive))?;
        match archive::digest(flate2::read::GzDecoder::new(file)) {
            Ok((tar, _)) if tar == id.as_str() => match archive::texts(&package.archive) {
                Ok(texts) => match members::differs(&package, &texts) {
                    None => Ok(package),
                    Some(name) => Err(self.set_aside(id, &format!("its index does not agree with `{name}` in the archive"))),
                },
                Err(e) => Err(self.set_aside(id, &e.to_string())),
            },
            Ok(_) => Err(self.set_aside(id, "its content gives another id")),
            Err(e) => Err(self.set_aside(id, &e.to_string())),
        }
    }

    /// Says that a package was used: those that are not go first when room is made.
    fn touch(&self, id: &PackageId) {
        let json = self.object(id, "json");
        let used = std::fs::metadata(&json).and_then(|m| m.modified());
        if used.is_ok_and(|t| t.elapsed().is_ok_and(|age| age > TOUCH_AFTER)) {
            let _ = File::options().append(true).open(&json).and_then(|f| f.set_modified(SystemTime::now()));
        }
    }

    /// Keeps a package from being deleted for as long as the lease lives, by any process.
    pub fn lease(&self, id: &PackageId) -> Option<Lease> {
        let file = File::open(self.object(id, "json")).ok()?;
        file.lock_shared().ok()?;
        // It may have been deleted while we waited.
        self.object(id, "json").exists().then_some(Lease { _file: file })
    }

    /// Says that `place` (a service on a host) runs a package now: it is kept until another one does.
    ///
    /// # Errors
    /// [`StoreError::Io`] when that cannot be written down.
    pub fn refer(&self, place: &str, id: &PackageId) -> Result<(), StoreError> {
        if self.referred(place).as_ref() == Some(id) {
            return Ok(());
        }
        let path = self.reference(place);
        let mut file = self.temporary()?;
        let written = file.write_all(id.as_str().as_bytes());
        // Not made durable, many hosts at once would wait for the disk: what a power cut takes away is only not known any more.
        written.and_then(|()| replace(file, &path)).map_err(Self::io(&path))
    }

    /// The package that `place` runs as far as was said by [`Store::refer`].
    pub fn referred(&self, place: &str) -> Option<PackageId> {
        let text = std::fs::read_to_string(self.reference(place)).ok()?;
        PackageId::new(text.trim()).ok()
    }

    fn reference(&self, place: &str) -> PathBuf {
        self.root.join("refs").join(archive::hex(&Sha256::digest(place.as_bytes())))
    }

    /// Deletes packages until what is left is within `limits`, the longest unused first. Leased ones and those that a place runs
    /// stay, whatever the limits say. With `dry`, only says which.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot be read.
    pub fn gc(&self, limits: Limits, dry: bool) -> Result<Vec<StoredPackage>, StoreError> {
        let mut referred = BTreeSet::new();
        for entry in std::fs::read_dir(self.root.join("refs")).into_iter().flatten().flatten() {
            referred.extend(std::fs::read_to_string(entry.path()).ok());
        }
        let all = self.list()?;
        let (mut count, mut bytes) = (0_usize, 0_u64);
        let mut removed = Vec::new();
        for stored in all {
            count += 1;
            bytes += stored.package.archive_bytes;
            let age = stored.stored_at.elapsed().unwrap_or_default();
            let beyond = limits.keep.is_some_and(|most| count > most)
                || limits.bytes.is_some_and(|most| bytes > most)
                || limits.age.is_some_and(|most| age > most);
            if !beyond || referred.contains(stored.package.id.as_str()) || !(dry || self.delete(&stored.package.id)) {
                continue;
            }
            count -= 1;
            bytes -= stored.package.archive_bytes;
            removed.push(stored);
        }
        if !dry {
            self.sweep();
            self.sweep_fetched();
            self.sweep_deltas();
        }
        Ok(removed)
    }

    /// Whether it could be deleted: nobody has a lease.
    fn delete(&self, id: &PackageId) -> bool {
        let json = self.object(id, "json");
        let Ok(file) = File::open(&json) else { return false };
        if file.try_lock().is_err() {
            return false;
        }
        // The index goes first: without it the archive is nobody's.
        let gone = std::fs::remove_file(&json).is_ok();
        let folder = json.parent().map(Path::to_owned).unwrap_or_default();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if gone && entry.file_name().to_string_lossy().starts_with(id.as_str()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        gone
    }

    /// Deletes what killed processes left, damaged packages that were set aside, and answers about packages that are gone.
    fn sweep(&self) {
        let old = |path: &Path| {
            let modified = std::fs::metadata(path).and_then(|m| m.modified());
            modified.is_ok_and(|t| t.elapsed().is_ok_and(|age| age > LEFT_BEHIND))
        };
        let files = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
        for path in files(self.root.join("tmp")).filter(|p| old(p)) {
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
        for action in files(self.root.join("actions")) {
            let id = std::fs::read_to_string(&action).ok().and_then(|id| PackageId::new(id).ok());
            if id.is_none_or(|id| !self.object(&id, "json").exists()) {
                let _ = std::fs::remove_file(action);
            }
        }
        for folder in files(self.root.join("objects")) {
            for path in files(folder).filter(|p| old(p)) {
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                let owner = name.split('.').next().and_then(|id| PackageId::new(id).ok());
                let alone = owner.is_none_or(|id| !self.object(&id, "json").exists());
                if alone || name.ends_with(".damaged") {
                    let _ = std::fs::remove_file(path);
                }
            }
        }
        for folder in files(self.root.join("memo")) {
            for path in files(folder).filter(|p| {
                std::fs::metadata(p).and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|a| a > MEMO_KEPT))
            }) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn read(&self, id: &PackageId) -> Result<Package, StoreError> {
        let path = self.object(id, "json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing { id: id.short().to_owned() }),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        match serde_json::from_slice::<Package>(&text) {
            Ok(package) if package.id == *id => Ok(Package { archive: self.object(id, "tar.gz"), ..package }),
            Ok(_) => Err(self.set_aside(id, "its index names another package")),
            Err(e) => Err(self.set_aside(id, &format!("its index is unreadable: {e}"))),
        }
    }

    fn set_aside(&self, id: &PackageId, reason: &str) -> StoreError {
        for extension in ["json", "tar.gz"] {
            let path = self.object(id, extension);
            // Another process may have done it a moment ago.
            let _ = std::fs::rename(&path, self.object(id, &format!("{extension}.damaged")));
        }
        StoreError::Damaged { id: id.short().to_owned(), reason: reason.to_owned() }
    }

    /// All packages, newest first. Those that cannot be read are left out.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store itself cannot be read.
    pub fn list(&self) -> Result<Vec<StoredPackage>, StoreError> {
        let objects = self.root.join("objects");
        let mut found = Vec::new();
        for folder in std::fs::read_dir(&objects).map_err(Self::io(&objects))?.flatten() {
            for entry in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let Some(id) = name.strip_suffix(".json").and_then(|id| PackageId::new(id).ok()) else { continue };
                let stored_at = entry.metadata().and_then(|m| m.modified()).unwrap_or(std::time::UNIX_EPOCH);
                if let Ok(package) = self.read(&id) {
                    found.push(StoredPackage { package, stored_at });
                }
            }
        }
        found.sort_by(|a, b| b.stored_at.cmp(&a.stored_at).then_with(|| a.package.id.cmp(&b.package.id)));
        Ok(found)
    }

    /// The one package whose id begins with `prefix`, verified.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Ambiguous`], or as [`Store::get`].
    pub fn find(&self, prefix: &str) -> Result<Package, StoreError> {
        let found: Vec<PackageId> =
            self.list()?.into_iter().map(|p| p.package.id).filter(|id| id.as_str().starts_with(prefix)).collect();
        match found.as_slice() {
            [] => Err(StoreError::Missing { id: prefix.to_owned() }),
            [one] => self.get(one),
            many => Err(StoreError::Ambiguous { prefix: prefix.to_owned(), count: many.len() }),
        }
    }
}

/// Makes a temporary file durable under its name.
pub(crate) fn publish(file: tempfile::NamedTempFile, target: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    replace(file, target)?;
    File::open(target.parent().unwrap_or(target))?.sync_all()
}

/// Gives a temporary file its name, in place of what is there.
fn replace(file: tempfile::NamedTempFile, target: &Path) -> io::Result<()> {
    let folder = target.parent().ok_or_else(|| io::Error::other("no parent folder"))?;
    std::fs::create_dir_all(folder)?;
    file.persist(target).map_err(|e| e.error)?;
    Ok(())
}
