//! The guard against edits that cargo cannot see: a file whose content changed and whose modification time lies before the last
//! build (an unpacked archive, `rsync -t`, a restored snapshot). cargo would call the old binary fresh.

use crate::memo::{Digests, Memo, Stat, now_ns};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What one binary was built from.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Sources {
    /// Folders of the local packages that are in it.
    roots: BTreeSet<PathBuf>,
    /// Files besides, that the compiler read.
    files: BTreeSet<PathBuf>,
    digests: Digests,
    /// When that build began.
    began_ns: i128,
}

/// Watches over the sources of one binary for one target.
pub struct Guard<'a> {
    memo: &'a Memo,
    key: String,
    before: Option<Sources>,
    /// Content of all files as it was before the build.
    now: Digests,
    began_ns: i128,
}

impl<'a> Guard<'a> {
    /// Looks at the files that the last build under this key was made from.
    pub fn before_build(memo: &'a Memo, key: String) -> Self {
        let before: Option<Sources> = memo.get("sources", &key);
        let mut now = before.as_ref().map(|b| b.digests.clone()).unwrap_or_default();
        if let Some(before) = &before {
            for path in before.all_files() {
                // One that cannot be read is for the compiler to complain of.
                let _ = now.of(&path);
            }
        }
        Self { memo, key, before, now, began_ns: now_ns() }
    }

    /// Packages with edits that cargo cannot see, each with one such file.
    pub fn unseen(&self) -> BTreeMap<String, PathBuf> {
        let Some(before) = &self.before else { return BTreeMap::new() };
        let mut packages = BTreeMap::new();
        for path in before.all_files() {
            let old = before.digests.known(&path).map(|k| &k.sha256);
            let changed = self.now.known(&path).is_some_and(|k| Some(&k.sha256) != old);
            let hidden = || Stat::at(&path).is_some_and(|s| s.mtime_ns() <= before.began_ns);
            if !changed || !hidden() {
                continue;
            }
            match before.roots.iter().filter(|r| path.starts_with(r)).max_by_key(|r| r.as_os_str().len()) {
                Some(root) => packages.extend(name_of(root).map(|name| (name, path))),
                // It was included by one of them: which one is not known.
                None => packages.extend(before.roots.iter().filter_map(|r| Some((name_of(r)?, path.clone())))),
            }
        }
        packages
    }

    /// Remembers what the binaries were built from, by the compiler's own lists beside them.
    pub fn after_build(mut self, executables: &[PathBuf]) {
        let read: BTreeSet<PathBuf> = executables.iter().flat_map(|e| dep_info(&e.with_extension("d"))).collect();
        let roots: BTreeSet<PathBuf> = read.iter().filter_map(|path| package_root(path)).collect();
        let files = read.into_iter().filter(|path| !roots.iter().any(|r| path.starts_with(r))).collect();
        let sources = Sources { roots, files, digests: Digests::default(), began_ns: self.began_ns };
        let all: BTreeSet<PathBuf> = sources.all_files().into_iter().collect();
        for path in &all {
            if self.now.known(path).is_none() {
                let _ = self.now.of(path);
            }
        }
        self.now.keep(|path| all.contains(path));
        let same = self.before.as_ref().is_some_and(|b| b.roots == sources.roots && b.files == sources.files);
        if !same || self.now.changed() {
            self.memo.put("sources", &self.key, &Sources { digests: self.now, ..sources });
        }
    }
}

impl Sources {
    fn all_files(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = self.files.iter().cloned().collect();
        for root in &self.roots {
            walk(root, &mut found);
        }
        found
    }
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
