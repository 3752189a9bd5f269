//! The guard against edits that cargo cannot see: a file whose content changed and whose modification time lies before the last
//! build (an unpacked archive, `rsync -t`, a restored snapshot). cargo would call the old binary fresh.
//!
//! What cargo built is shared: by services, by sets of features, by versions of the same package. So what is remembered belongs to a
//! build folder, profile and target, and every edit is compared with what anybody last built there.

use crate::archive::hex;
use crate::memo::{Digests, Memo, Stat, now_ns};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A package's folder, or one file outside of any, as it was when it was last compiled.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Place {
    path: PathBuf,
    /// Folders of the packages that are made from it.
    users: BTreeSet<PathBuf>,
    digests: Digests,
    /// When that build began, nanoseconds since 1970.
    began_ns: i128,
}

/// Watches over the sources of all that is built into one folder with one profile for one target.
pub struct Guard<'a> {
    memo: &'a Memo,
    kind: String,
    /// By path: as it was compiled, and its content now.
    places: BTreeMap<PathBuf, (Place, Digests)>,
    began_ns: i128,
}

impl<'a> Guard<'a> {
    /// Looks at the files that anything was built from in `shared`, which names folder, profile and target.
    pub fn before_build(memo: &'a Memo, shared: &str) -> Self {
        let kind = format!("sources-{}", hex(&Sha256::digest(shared.as_bytes())));
        let began_ns = now_ns();
        let look = |place: Place| {
            let now = content(&place.path, place.digests.clone());
            (place.path.clone(), (place, now))
        };
        let places = memo.all::<Place>(&kind).into_iter().map(look).collect();
        Self { memo, kind, places, began_ns }
    }

    /// Packages with edits that cargo cannot see, each with one such file.
    pub fn unseen(&self) -> BTreeMap<String, PathBuf> {
        let mut packages = BTreeMap::new();
        for (place, now) in self.places.values() {
            if let Some(file) = place.hidden(now) {
                packages.extend(place.users.iter().filter_map(|root| Some((name_of(root)?, file.clone()))));
            }
        }
        packages
    }

    /// Remembers what is there now, before anything is compiled from it: a build that fails or is killed may have compiled some.
    pub fn remember(&self) {
        for (place, now) in self.places.values().filter(|(_, now)| now.changed()) {
            self.put(&place.path, place.users.clone(), now.clone());
        }
    }

    /// Adds what the binaries were built from, by the compiler's own lists beside them. `compiled`: cargo had something to do.
    pub fn after_build(&self, executables: &[PathBuf], compiled: bool) {
        let read: BTreeSet<PathBuf> = executables.iter().flat_map(|e| dep_info(&e.with_extension("d"))).collect();
        let roots: BTreeSet<PathBuf> = read.iter().filter_map(|path| package_root(path)).collect();
        let outside = read.into_iter().filter(|path| !roots.iter().any(|r| path.starts_with(r)));
        for path in roots.iter().cloned().chain(outside) {
            let mut users = if roots.contains(&path) { BTreeSet::from([path.clone()]) } else { roots.clone() };
            match self.places.get(&path) {
                Some((place, now)) => {
                    users.extend(place.users.iter().cloned());
                    if compiled || users != place.users {
                        self.put(&path, users, now.clone());
                    }
                }
                None => self.put(&path, users, content(&path, Digests::default())),
            }
        }
    }

    fn put(&self, path: &Path, users: BTreeSet<PathBuf>, digests: Digests) {
        let place = Place { path: path.to_owned(), users, digests, began_ns: self.began_ns };
        self.memo.put(&self.kind, &path.display().to_string(), &place);
    }
}

impl Place {
    /// A file that is not what was compiled, and does not tell.
    fn hidden(&self, now: &Digests) -> Option<PathBuf> {
        let old = |time: i128| time <= self.began_ns;
        let edited = now.paths().find(|path| {
            let (Some(is), was) = (now.known(path), self.digests.known(path)) else { return false };
            // One that got an older time had other bytes in between, or may have had.
            old(is.mtime_ns) && was.is_none_or(|was| was.sha256 != is.sha256 || is.mtime_ns < was.mtime_ns)
        });
        // Of a file that is gone its folder tells, or the next one that is left.
        let gone = || {
            let mut lost = self.digests.paths().filter(|path| now.known(path).is_none());
            lost.find(|path| path.ancestors().skip(1).find_map(Stat::at).is_some_and(|folder| old(folder.mtime_ns())))
        };
        edited.or_else(gone).map(Path::to_owned)
    }
}

/// Content of the files of a place, of which `known` is what they were.
fn content(path: &Path, mut known: Digests) -> Digests {
    let mut files = Vec::new();
    if path.is_dir() {
        walk(path, &mut files)
    } else {
        files.push(path.to_owned())
    }
    let mut there = BTreeSet::new();
    for file in files {
        // One that cannot be read is for the compiler to complain of.
        if known.of(&file).is_ok() {
            there.insert(file);
        }
    }
    known.keep(|path| there.contains(path));
    known
}

/// Files of a package; not those of packages below it, of version control, and of builds.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_file() {
            found.push(path);
        } else if kind.is_dir() {
            let name = entry.file_name();
            let skipped = name == ".git" || name == "node_modules" || path.join("CACHEDIR.TAG").exists();
            if !skipped && !path.join("Cargo.toml").exists() {
                walk(&path, found);
            }
        }
    }
}

/// The folder of the package that a file belongs to, unless cargo takes it as never changing (registry, git).
fn package_root(path: &Path) -> Option<PathBuf> {
    path.ancestors().skip(1).find(|a| a.join("Cargo.toml").is_file()).map(Path::to_owned)
}

fn name_of(root: &Path) -> Option<String> {
    let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml")).ok()?.parse().ok()?;
    Some(manifest.get("package")?.get("name")?.as_str()?.to_owned())
}

/// The files that a make rule of cargo's names: blanks in names are escaped.
fn dep_info(path: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let Some((_, list)) = line.split_once(": ") else { return Vec::new() };
    let mut files = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(' ')) => {
                chars.next();
                if let Some(last) = files.last_mut() {
                    last.push(' ');
                }
            }
            (' ', _) => files.push(String::new()),
            (c, _) => {
                if let Some(last) = files.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    files.into_iter().filter(|f| !f.is_empty()).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_file_names_are_read() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("x.d");
        std::fs::write(&path, "/t/release/x: /w/a\\ b/src/main.rs /w/c.rs\n").expect("writes");
        assert_eq!(dep_info(&path), [PathBuf::from("/w/a b/src/main.rs"), PathBuf::from("/w/c.rs")]);
    }
}
