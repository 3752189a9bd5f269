//! Patches in the store, so that any number of hosts and processes share one.
//!
//! `deltas/<old>-<new>.<means>.gz` is what is sent and `.json` beside it says what it is, or that there is none worth sending; it
//! is written last. `.lock` is held by the one who encodes.

use super::encode;
use crate::archive;
use crate::store::{Store, StoreError};
use roadie_model::id::PackageId;
use roadie_model::package::{Delta, Means};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Part of each note: patches of another form are made again.
const FORMAT: u32 = 6;
const FOLDER: &str = "deltas";
/// More threads than that do not make the encoding faster.
const THREADS: usize = 8;

#[derive(Serialize, Deserialize)]
struct Note {
    format: u32,
    delta: Option<Delta>,
}

impl Store {
    /// What makes one package from another by `means`, encoded unless it was before. `None` where the archive is the better way.
    /// Callers that ask for the same one, in this process or another, wait for the first.
    ///
    /// It blocks: it reads both packages and computes.
    ///
    /// # Errors
    /// [`StoreError::Missing`] and [`StoreError::Damaged`] for either package, [`StoreError::Io`] for the rest.
    pub fn delta(&self, old: &PackageId, new: &PackageId, means: Means) -> Result<Option<Delta>, StoreError> {
        let note = self.delta_path(old, new, means);
        if let Some(known) = known(&note) {
            return Ok(known.delta);
        }
        let folder = self.root().join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(Self::io(&folder))?;
        let lock = note.with_extension("lock");
        let held = File::create(&lock).map_err(Self::io(&lock))?;
        held.lock().map_err(Self::io(&lock))?;
        // Whoever held it before has made it.
        let made = match known(&note) {
            Some(known) => Ok(known.delta),
            None => self.encode_delta(old, new, means, &note),
        };
        // Those who wait have it open already, and find the note.
        let _ = std::fs::remove_file(&lock);
        made
    }

    fn encode_delta(&self, old: &PackageId, new: &PackageId, means: Means, note: &Path) -> Result<Option<Delta>, StoreError> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS);
        // Neither is deleted while it is read.
        let _leases = (self.lease(old), self.lease(new));
        let (old_package, new_package) = (self.base(old)?, self.get(new)?);
        let made = self.temporary()?;
        let delta = encode(&old_package, &new_package, made.path(), threads, means).map_err(Self::io(note))?;
        let file = note.with_extension("gz");
        let delta = match delta {
            Some(delta) => {
                crate::store::publish(made, &file).map_err(Self::io(&file))?;
                Some(Delta { file, ..delta })
            }
            None => None,
        };
        let text = serde_json::to_vec(&Note { format: FORMAT, delta: delta.clone() });
        self.write(note, &text.map_err(std::io::Error::other).map_err(Self::io(note))?)?;
        Ok(delta)
    }

    /// The note.
    fn delta_path(&self, old: &PackageId, new: &PackageId, means: Means) -> PathBuf {
        let means = match means {
            Means::Perl => "patch",
            Means::Copies => "copies",
        };
        self.root().join(FOLDER).join(format!("{old}-{new}.{means}.json"))
    }

    /// Deletes the patches of which a package is gone.
    pub(crate) fn sweep_deltas(&self) {
        for entry in std::fs::read_dir(self.root().join(FOLDER)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ids = name.split('.').next().and_then(|pair| pair.split_once('-'));
            let there = |id: &str| PackageId::new(id).is_ok_and(|id| self.has_base(&id));
            if !ids.is_some_and(|(old, new)| there(old) && there(new)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// What a note says, when it and the patch are whole.
fn known(note: &Path) -> Option<Note> {
    let read: Note = serde_json::from_slice(&std::fs::read(note).ok()?).ok()?;
    let file = note.with_extension("gz");
    let delta = match read.delta {
        None => None,
        Some(delta) => {
            let (sha256, bytes) = File::open(&file).and_then(archive::digest).ok()?;
            if sha256 != delta.sha256 || bytes != delta.bytes {
                return None;
            }
            // The store may have been moved since.
            Some(Delta { file, ..delta })
        }
    };
    (read.format == FORMAT).then_some(Note { delta, ..read })
}
