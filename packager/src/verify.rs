//! Building twice under other conditions, and naming the first difference.

use crate::{BuildEnv, PackError, Packager, Report, Store, StoreError};
use object::{Object as _, ObjectSection as _};
use roadie_model::definition::{Build, Definition, Service};
use roadie_model::package::Package;
use roadie_model::target::TargetTriple;
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// What a second build gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// The same package, bit for bit.
    Same,
    /// Another one.
    Differs {
        /// The first member that differs, and in what.
        first: String,
    },
}

/// Folder names on the way to the second build: another depth, another length.
const ELSEWHERE: &str = "somewhere/quite else/and-deeper";

impl Packager {
    /// Packs a copy of the source in another folder, with another home, another cargo home, another time zone and language, one
    /// job and one thread, and compares with `package`.
    ///
    /// # Errors
    /// [`PackError`] when the copy cannot be made or built.
    pub async fn verify(
        &self,
        definition: &Definition,
        service: &Service,
        target: &TargetTriple,
        package: &Package,
        report: Report<'_>,
    ) -> Result<Verified, PackError> {
        let folder = tempfile::tempdir().map_err(local)?;
        let root = self.source_root(definition, service).await?;
        let copy = folder.path().join(ELSEWHERE);
        copy_tree(&root, &copy).map_err(local)?;
        let within = definition.dir.strip_prefix(&root).unwrap_or(Path::new(""));
        let moved = Definition { dir: copy.join(within), ..definition.clone() };
        let other = Self::new(Store::open(folder.path().join("store"))?, self.elsewhere(folder.path()).map_err(local)?)?;
        let second = Box::pin(other.pack(&moved, service, target, report)).await?.package;
        if second.id == package.id && second.archive_sha256 == package.archive_sha256 {
            return Ok(Verified::Same);
        }
        Ok(Verified::Differs { first: first_difference(package, &second).map_err(local)? })
    }

    async fn source_root(&self, definition: &Definition, service: &Service) -> Result<PathBuf, PackError> {
        let Build::Cargo(options) = &service.build else { return Ok(definition.dir.clone()) };
        let dir = definition.dir.join(&options.manifest_dir);
        let workspace = crate::cargo::workspace_root(&dir, &self.env, &self.memo).await?;
        let above = |a: &Path, b: &Path| b.starts_with(a);
        match () {
            () if above(&workspace, &definition.dir) => Ok(workspace),
            () if above(&definition.dir, &workspace) => Ok(definition.dir.clone()),
            () => Err(PackError::Choice {
                problem: "the definition and the workspace are in folders side by side: they cannot be built elsewhere".into(),
                hint: "put roadie.yaml into the workspace's folder or above it".into(),
            }),
        }
    }

    /// The same tools under other circumstances.
    fn elsewhere(&self, folder: &Path) -> io::Result<BuildEnv> {
        let home = folder.join("h");
        let cargo_home = folder.join("other-cargo-home");
        std::fs::create_dir_all(&home)?;
        std::fs::create_dir_all(&cargo_home)?;
        // What was downloaded is shared; that it lies under another path is what matters.
        for entry in std::fs::read_dir(self.env.cargo_home()).into_iter().flatten().flatten() {
            std::os::unix::fs::symlink(entry.path(), cargo_home.join(entry.file_name()))?;
        }
        let mut env = self.env.clone();
        let text = |path: &Path| path.display().to_string();
        env.set.extend([
            ("RUSTUP_HOME".to_owned(), text(&self.env.rustup_home())),
            ("HOME".to_owned(), text(&home)),
            ("CARGO_HOME".to_owned(), text(&cargo_home)),
            ("TZ".to_owned(), "Pacific/Chatham".to_owned()),
            ("LC_ALL".to_owned(), "C".to_owned()),
            ("LANG".to_owned(), "C".to_owned()),
            ("USER".to_owned(), "somebody".to_owned()),
            ("CARGO_BUILD_JOBS".to_owned(), "1".to_owned()),
            ("CARGO_INCREMENTAL".to_owned(), "0".to_owned()),
        ]);
        let set = env.set.clone();
        env.vars.extend(set);
        env.threads = 1;
        Ok(env)
    }
}

fn local(source: io::Error) -> PackError {
    PackError::Store(StoreError::Io { path: std::env::temp_dir(), source })
}

/// Copies files and folders, but for version control and builds.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let into = to.join(entry.file_name());
        if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&path)?, &into)?;
        } else if kind.is_file() {
            std::fs::copy(&path, &into)?;
        } else if kind.is_dir() && entry.file_name() != ".git" && !path.join("CACHEDIR.TAG").exists() {
            copy_tree(&path, &into)?;
        }
    }
    Ok(())
}

fn first_difference(one: &Package, two: &Package) -> io::Result<String> {
    let files = |p: &Package| -> BTreeMap<String, (String, String)> {
        p.metadata.files.iter().map(|f| (f.path.clone(), (f.sha256.clone(), f.mode.clone()))).collect()
    };
    let (a, b) = (files(one), files(two));
    for (path, known) in &a {
        match b.get(path) {
            None => return Ok(format!("{path} is in the first build only")),
            Some(other) if other.1 != known.1 => return Ok(format!("{path} has mode {} and {}", known.1, other.1)),
            Some(other) if other.0 != known.0 => {
                let (x, y) = (member(one, path)?, member(two, path)?);
                return Ok(format!("{path} {}", differ(&x, &y)));
            }
            Some(_) => {}
        }
    }
    if let Some(path) = b.keys().find(|path| !a.contains_key(*path)) {
        return Ok(format!("{path} is in the second build only"));
    }
    let what = if one.id == two.id { "the compressed bytes differ, the content does not" } else { "metadata.json differs" };
    Ok(what.to_owned())
}

fn member(package: &Package, path: &str) -> io::Result<Vec<u8>> {
    let file = std::fs::File::open(&package.archive)?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.to_string_lossy() == path {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            return Ok(bytes);
        }
    }
    Err(io::Error::other(format!("no member {path}")))
}

/// Where two files part: by section for ELF files, and the first readable text there.
fn differ(a: &[u8], b: &[u8]) -> String {
    let at = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or_else(|| a.len().min(b.len()));
    let sections = |data: &[u8]| -> BTreeMap<String, Vec<u8>> {
        let Ok(file) = object::File::parse(data) else { return BTreeMap::new() };
        file.sections().filter_map(|s| Some((s.name().ok()?.to_owned(), s.data().ok()?.to_vec()))).collect()
    };
    let (of_a, of_b) = (sections(a), sections(b));
    let named: Vec<&String> = of_a.iter().filter(|(name, data)| of_b.get(*name) != Some(data)).map(|(name, _)| name).collect();
    let place = match named.as_slice() {
        [] => format!("differs from byte {at}"),
        names => format!("differs in {}", names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ")),
    };
    let words = |data: &[u8]| -> String {
        let start = data[..at.min(data.len())].iter().rposition(|c| !(32..127).contains(c)).map_or(0, |p| p + 1);
        data[start..].iter().take_while(|c| (32..127).contains(*c)).take(80).map(|c| char::from(*c)).collect()
    };
    match (words(a), words(b)) {
        (x, y) if x.len() > 4 && y.len() > 4 => format!("{place}: `{x}` and `{y}`"),
        _ => place,
    }
}

#[cfg(test)]
mod tests {
    use super::differ;

    #[test]
    fn the_words_at_the_difference_are_shown() {
        let (a, b) = (b"\x00\x01built in /home/one/x\x00".as_slice(), b"\x00\x01built in /home/two/x\x00".as_slice());
        assert_eq!(differ(a, b), "differs from byte 17: `built in /home/one/x` and `built in /home/two/x`");
    }
}
