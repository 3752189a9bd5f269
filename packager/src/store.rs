//! The package store: content-addressed, written atomically, verified when read, shared by many processes.
//!
//! `objects/<2 digits>/<id>.tar.gz` and `<id>.json` beside it; `actions/<key>` says which package the same members gave before,
//! so that nothing is archived twice. Every file appears by rename: a reader sees all of it or nothing.

use crate::{archive, members};
use roadie_model::id::PackageId;
use roadie_model::package::Package;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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
    pub stored_at: std::time::SystemTime,
}

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
        for folder in ["objects", "actions", "tmp"] {
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

    fn io(path: &Path) -> impl Fn(io::Error) -> StoreError {
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

    /// The package that the same members gave before, verified.
    pub(crate) fn by_action(&self, action: &str) -> Option<Package> {
        let id = std::fs::read_to_string(self.root.join("actions").join(action)).ok()?;
        self.get(&PackageId::new(id).ok()?).ok()
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
            let _ = std::fs::rename(&path, path.with_extension(format!("{extension}.damaged")));
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
fn publish(file: tempfile::NamedTempFile, target: &Path) -> io::Result<()> {
    let folder = target.parent().ok_or_else(|| io::Error::other("no parent folder"))?;
    std::fs::create_dir_all(folder)?;
    file.as_file().sync_all()?;
    file.persist(target).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}
