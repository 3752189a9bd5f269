//! A package put together again from the files that a host has of it.

use crate::archive::{self, Member};
use crate::members;
use crate::memo::Digests;
use crate::store::{Limits, Store, StoreError};
use roadie_model::id::PackageId;
use roadie_model::package::{Metadata, Package};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Read};
use std::path::PathBuf;
use std::time::Duration;

/// Bytes of all files together.
const MOST: u64 = 512 << 20;
/// Files.
const MOST_FILES: usize = 100_000;

/// Of the whole stream: headers may be longer than the files that they are for.
const MOST_STREAM: u64 = MOST + (64 << 20);
/// Where in a store they are. Nothing looks for packages there but differences: nobody here packed them, and what gives the id that a
/// host named may be whatever that host likes.
const FOLDER: &str = "fetched";
/// So many are kept.
const KEPT: usize = 4;
/// And for so long.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

impl Store {
    /// Whether there is such a package to make a difference from, here or fetched back.
    pub fn has_base(&self, id: &PackageId) -> bool {
        self.has(id) || self.fetched().is_some_and(|fetched| fetched.has(id))
    }

    /// A package to make a difference from.
    pub(crate) fn base(&self, id: &PackageId) -> Result<Package, StoreError> {
        match (self.get(id), self.fetched()) {
            (Err(StoreError::Missing { .. }), Some(fetched)) => fetched.get(id),
            (found, _) => found,
        }
    }

    /// Deletes what was fetched long ago.
    pub(crate) fn sweep_fetched(&self) {
        if let Some(fetched) = self.fetched() {
            // What cannot be deleted now is there the next time.
            let _ = fetched.gc(Limits { age: Some(KEPT_FOR), ..Limits::default() }, false);
        }
    }

    /// The store of those packages, if there were any.
    fn fetched(&self) -> Option<Store> {
        let folder = self.root().join(FOLDER);
        if folder.is_dir() { Store::open(folder).ok() } else { None }
    }

    /// Puts a package together again from a `.tar.gz` of its files, in any order and among others. What comes out serves
    /// [`Store::delta`] alone: it is none of the packages of this store.
    ///
    /// The canonical archive of these files has to give `id`.
    ///
    /// It blocks: it reads and compresses all of it.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when they give another package or none, [`StoreError::Io`] for the store itself.
    pub fn adopt(&self, id: &PackageId, files: impl Read) -> Result<Package, StoreError> {
        let store = Store::open(self.root().join(FOLDER))?;
        let package = store.put_together(id, files)?;
        store.gc(Limits { keep: Some(KEPT), ..Limits::default() }, false)?;
        Ok(package)
    }

    fn put_together(&self, id: &PackageId, files: impl Read) -> Result<Package, StoreError> {
        let foreign = |reason: String| StoreError::Foreign { id: id.short().to_owned(), reason };
        let folder = tempfile::tempdir_in(self.root().join("tmp")).map_err(Self::io(self.root()))?;
        let (texts, found) = unpack(files, folder.path()).map_err(|e| foreign(e.to_string()))?;
        let text = |name: &str| texts.get(name).map_or(&[][..], Vec::as_slice);
        let metadata: Metadata =
            serde_json::from_slice(text("metadata.json")).map_err(|e| foreign(format!("its metadata.json: {e}")))?;
        let mut all = vec![Member::bytes("metadata.json", false, text("metadata.json").to_vec())];
        for file in &metadata.files {
            let place = found.get(&file.path).ok_or_else(|| foreign(format!("`{}` is not there", file.path)))?;
            let member = Member::file(&file.path, file.mode == "0755", place.clone(), &mut Digests::default());
            all.push(member.map_err(Self::io(place))?);
        }
        let mut made = self.temporary()?;
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let written = archive::write(&all, threads, BufWriter::new(made.as_file_mut())).map_err(Self::io(self.root()))?;
        if written.tar_sha256 != id.as_str() {
            return Err(foreign("its files give another one".into()));
        }
        let string = |name: &str| String::from_utf8_lossy(text(name)).into_owned();
        let package = Package {
            id: id.clone(),
            archive_sha256: written.gz_sha256,
            archive_bytes: written.gz_bytes,
            archive: PathBuf::new(),
            metadata_sha256: archive::hex(&Sha256::digest(text("metadata.json"))),
            metadata,
            unit_template: string("systemd.service"),
            config_template: string("config-template.toml"),
            setup: members::setup_of(&string("setup.sh")),
        };
        if let Some(name) = members::differs(&package, &texts) {
            return Err(foreign(format!("`{name}` cannot be taken over")));
        }
        self.add(made, package, &members::action_key(&all))
    }
}

type Texts = BTreeMap<String, Vec<u8>>;

/// Writes the files into `folder` under names of our own. Gives those that an index repeats, and where each file is.
fn unpack(from: impl Read, folder: &std::path::Path) -> io::Result<(Texts, BTreeMap<String, PathBuf>)> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(BufReader::new(from)).take(MOST_STREAM));
    let (mut texts, mut found) = (Texts::new(), BTreeMap::new());
    let (mut left, mut count) = (MOST, 0);
    // Raw: what announces a longer name would be read into memory, whatever its size. Paths of packages are short.
    for entry in archive.entries()?.raw(true) {
        let entry = entry?;
        count += 1;
        left = left.checked_sub(entry.size()).filter(|_| count <= MOST_FILES).ok_or_else(|| invalid("too large"))?;
        if entry.header().entry_type().is_dir() {
            continue;
        }
        if !entry.header().entry_type().is_file() {
            return Err(invalid("not all of it are files"));
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let place = folder.join(found.len().to_string());
        let mut file = std::fs::File::create_new(&place)?;
        let size = entry.size();
        let mut body = entry.take(size);
        if archive::TEXTS.contains(&path.as_str()) {
            let mut bytes = Vec::new();
            body.read_to_end(&mut bytes)?;
            io::Write::write_all(&mut file, &bytes)?;
            texts.insert(path.clone(), bytes);
        } else {
            io::copy(&mut body, &mut file)?;
        }
        found.insert(path, place);
    }
    Ok((texts, found))
}
