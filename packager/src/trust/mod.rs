//! Who vouches for a package, what is in it, and how it came to be: signatures, SBOM and provenance.
//!
//! All of it stands beside the package in the store and none of it decides the package's id, so that a package can be signed
//! later, by several people, and on other machines.
//!
//! What is signed is a short statement that names the package id: the digest of the tar. The gzip around it may change, a byte of
//! the content may not. Nobody has to trust roadie for it: `ssh-keygen -Y verify` reads the same three files.

mod agent;
mod allowed;
mod provenance;
mod refusal;
mod sbom;
mod sshsig;

pub use allowed::{AllowedSigners, KeyFileError, LineError, NAMESPACE, RevokedKeys};
pub(crate) use provenance::Making;
pub use refusal::Refusal;
pub use sbom::SbomError;
pub(crate) use sbom::may_list;
pub use sshsig::{Policy, SignError, Signer, fingerprint};

use crate::archive::hex;
use crate::store::{Store, StoreError};
use roadie_model::id::PackageId;
use roadie_model::package::Package;
use ssh_key::HashAlg;
use ssh_key::public::KeyData;
use std::path::{Path, PathBuf};

/// Endings of the files beside a package.
const STATEMENT: &str = "statement";
const SBOM: &str = "cdx.json";
const PROVENANCE: &str = "intoto.json";

/// The statement that is signed: the same package gives the same bytes, whoever asks.
pub fn statement(package: &Package) -> String {
    let m = &package.metadata;
    format!("{NAMESPACE}\npackage sha256:{}\nname {}\nversion {}\ntarget {}\n", package.id, m.name, line(&m.version), m.target)
}

/// A version that is one word of one line, whatever it was.
fn line(version: &str) -> String {
    let text: String = version.chars().map(|c| if c.is_control() || c.is_whitespace() { '_' } else { c }).collect();
    if text.is_empty() { "-".into() } else { text }
}

/// Why a package was not signed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The key.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A signature that was made.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The file that was signed.
    pub statement: PathBuf,
    /// The signature.
    pub signature: PathBuf,
    /// Fingerprint of the key.
    pub fingerprint: String,
}

/// Signs a package; its bytes are verified first. Signatures of other keys stay.
///
/// # Errors
/// [`TrustError`]; then no signature was written.
pub fn sign(store: &Store, id: &PackageId, signer: &Signer) -> Result<Signed, TrustError> {
    let package = store.verify(id)?;
    let text = statement(&package);
    let made = signer.sign(text.as_bytes())?;
    let key = signer.public_key();
    let (path, signature) = (store.beside(id, STATEMENT), store.beside(id, &format!("{}.sig", short(key))));
    store.write(&path, text.as_bytes())?;
    store.write(&signature, made.as_bytes())?;
    Ok(Signed { statement: path, signature, fingerprint: fingerprint(key) })
}

/// First digits of a fingerprint, as a file name can have them: base64 has slashes.
fn short(key: &KeyData) -> String {
    hex(&key.fingerprint(HashAlg::Sha256).as_bytes()[..8])
}

/// A signature that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Who signed, by `allowed_signers`.
    pub principal: String,
    /// Fingerprint of the key.
    pub fingerprint: String,
    /// The signature.
    pub signature: PathBuf,
    /// The file that was signed.
    pub statement: PathBuf,
}

/// Why no signature of a package counts.
#[derive(Debug)]
pub struct NotTrusted {
    /// One reason, or one for each signature, with its file.
    pub refusals: Vec<(Option<PathBuf>, Refusal)>,
}

/// Says whether one signature over `statement` makes `package` one that counts: who signed, by name and fingerprint.
///
/// # Errors
/// [`Refusal`].
pub fn judge(package: &Package, statement: &[u8], signature: &[u8], policy: &Policy) -> Result<(String, String), Refusal> {
    let key = sshsig::signer(statement, signature)?;
    describes(package, statement)?;
    let fingerprint = fingerprint(&key);
    if policy.revoked.contains(&key) {
        return Err(Refusal::Revoked { fingerprint });
    }
    let principal = policy.allowed.principal(&key, policy.identity.as_deref(), policy.now)?;
    Ok((principal, fingerprint))
}

fn describes(package: &Package, found: &[u8]) -> Result<(), Refusal> {
    let (wanted, found) = (statement(package), String::from_utf8_lossy(found));
    if wanted == found {
        return Ok(());
    }
    let other = found.lines().find_map(|l| l.strip_prefix("package sha256:")).and_then(|id| PackageId::new(id).ok());
    if let Some(other) = other.filter(|id| *id != package.id) {
        return Err(Refusal::AnotherPackage { found: other });
    }
    let differs = |n: &usize| found.lines().nth(*n) != wanted.lines().nth(*n);
    let n = (0..wanted.lines().count()).find(differs).unwrap_or(wanted.lines().count());
    let nth = |text: &str| text.lines().nth(n).unwrap_or("(nothing)").chars().take(100).collect();
    Err(Refusal::Misdescribed { found: nth(&found), wanted: nth(&wanted) })
}

/// Looks for a signature of a package that counts. Its bytes are not looked at here: that is [`Store::verify`].
///
/// # Errors
/// The store's; the inner one says why no signature counts.
pub fn verify(store: &Store, package: &Package, policy: &Policy) -> Result<Result<Verified, NotTrusted>, StoreError> {
    let path = store.beside(&package.id, STATEMENT);
    let (text, signatures) = (read(&path)?, store.signatures(&package.id)?);
    let text = match text {
        _ if signatures.is_empty() => return Ok(Err(NotTrusted { refusals: vec![(None, Refusal::NoSignature)] })),
        None => return Ok(Err(NotTrusted { refusals: vec![(None, Refusal::NoStatement)] })),
        Some(text) => text,
    };
    let mut refusals = Vec::new();
    for file in signatures {
        let Some(signature) = read(&file)? else { continue };
        match judge(package, &text, &signature, policy) {
            Ok((principal, fingerprint)) => {
                return Ok(Ok(Verified { principal, fingerprint, signature: file, statement: path }));
            }
            Err(refusal) => refusals.push((Some(file), refusal)),
        }
    }
    Ok(Err(NotTrusted { refusals }))
}

/// A file beside a package, as far as it makes sense to read one.
fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    use std::io::Read as _;
    let io = |source| StoreError::Io { path: path.to_owned(), source };
    match std::fs::File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(16 << 20).read_to_end(&mut bytes).map_err(io)?;
            Ok(Some(bytes))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io(source)),
    }
}

/// The SBOM of a package, from the binaries in its archive; `None` when none of them says what it was built from. It is written
/// beside the package.
///
/// # Errors
/// [`SbomError`].
pub fn sbom(store: &Store, package: &Package) -> Result<Option<String>, SbomError> {
    let Some(text) = sbom::of(package)? else { return Ok(None) };
    store.write(&store.beside(&package.id, SBOM), text.as_bytes())?;
    Ok(Some(text))
}

/// What was written down when a package was made; `None` when nothing was.
///
/// # Errors
/// The store's; [`StoreError::Damaged`] when it speaks of another package.
pub fn provenance(store: &Store, id: &PackageId) -> Result<Option<String>, StoreError> {
    let path = store.beside(id, PROVENANCE);
    let Some(text) = read(&path)? else { return Ok(None) };
    match serde_json::from_slice::<serde_json::Value>(&text) {
        Ok(value) if value["subject"][0]["digest"]["sha256"] == id.as_str() => {
            Ok(Some(String::from_utf8_lossy(&text).into_owned()))
        }
        _ => {
            let reason = format!("`{}` is not its provenance", path.display());
            Err(StoreError::Note { id: id.short().to_owned(), reason })
        }
    }
}

/// Whether nobody wrote down how a package was made: an older roadie did not.
pub(crate) fn missing(store: &Store, package: &Package) -> bool {
    !store.beside(&package.id, PROVENANCE).exists()
}

/// Writes down how a package was made.
pub(crate) fn write_down(store: &Store, package: &Package, making: &Making<'_>) -> Result<(), StoreError> {
    store.write(&store.beside(&package.id, PROVENANCE), provenance::text(package, making).as_bytes())
}
