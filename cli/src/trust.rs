//! `packages sign`, `verify`, `sbom` and `provenance`: who vouches for a package, and what is known of it.

use crate::args::{Global, TrustArgs};
use crate::out::{self, Fatal};
use crate::packages::{causes, store_error};
use crate::project::Environment;
use roadie_model::id::PackageId;
use roadie_model::outcome::Outcome;
use roadie_model::package::Package;
use roadie_model::sh;
use roadie_packager::trust::{
    self, AllowedSigners, KeyFileError, NotTrusted, Policy, RevokedKeys, SignError, Signer, TrustError, Verified,
};
use roadie_packager::{Store, StoreError};
use std::path::{Path, PathBuf};

/// The key of a file.
pub fn signer(path: &Path) -> Result<Signer, Fatal> {
    Signer::from_file(path).map_err(|e| sign_error(&e))
}

fn sign_error(error: &SignError) -> Fatal {
    let outcome = if matches!(error, SignError::Key { .. }) { Outcome::Usage } else { Outcome::FailedUnchanged };
    Fatal { outcome, causes: causes(error), hint: error.hint(), ..Fatal::failed(error.to_string()) }
}

/// `roadie packages sign`.
pub fn sign(
    global: &Global,
    environment: &Environment,
    store: &Store,
    prefixes: &[String],
    key: Option<&Path>,
    agent: Option<&str>,
) -> Result<u8, Fatal> {
    let signer = match key {
        Some(path) => signer(path)?,
        None => {
            let wanted = agent.filter(|wanted| !wanted.is_empty());
            Signer::from_agent(environment.agent.as_deref(), wanted).map_err(|e| sign_error(&e))?
        }
    };
    let found: Result<Vec<PackageId>, StoreError> = if prefixes.is_empty() {
        store.list().map(|all| all.into_iter().map(|p| p.package.id).collect())
    } else {
        prefixes.iter().map(|prefix| store.find(prefix).map(|p| p.id)).collect()
    };
    for id in found.map_err(|e| store_error(&e))? {
        sign_one(global, store, &id, &signer)?;
    }
    Ok(0)
}

/// Signs one package and says so.
pub fn sign_one(global: &Global, store: &Store, id: &PackageId, signer: &Signer) -> Result<(), Fatal> {
    let signed = trust::sign(store, id, signer).map_err(|e| match &e {
        TrustError::Sign(e) => sign_error(e),
        TrustError::Store(e) => store_error(e),
    })?;
    if global.json {
        let object = serde_json::json!({
            "event": "signed", "package": id, "fingerprint": signed.fingerprint,
            "statement": signed.statement, "signature": signed.signature,
        });
        out::line(&object.to_string());
    } else {
        out::line(&format!("signed {} with {}: {}", id.short(), signed.fingerprint, signed.signature.display()));
    }
    Ok(())
}

/// The files that decide whom to trust, as they were named.
struct Trust {
    allowed: PathBuf,
    revoked: Option<PathBuf>,
    policy: Policy,
}

impl Trust {
    /// `None` when nobody asks for signatures.
    fn read(environment: &Environment, args: &TrustArgs) -> Result<Option<Self>, Fatal> {
        let allowed = args.allowed_signers.clone().or_else(|| environment.allowed_signers.clone());
        let Some(allowed) = allowed else {
            return match (&args.revoked, &args.identity) {
                (None, None) => Ok(None),
                _ => Err(Fatal::usage("--revoked and --identity decide between signers, and none are allowed yet")
                    .hint("name the file with --allowed-signers or ROADIE_ALLOWED_SIGNERS")),
            };
        };
        let revoked = args.revoked.clone().or_else(|| environment.revoked_signers.clone());
        let failed = |e: KeyFileError| {
            let hint = "docs/trust.md shows the format; `ssh-keygen -Y find-principals` reads the same file";
            Fatal { causes: causes(&e), ..Fatal::usage(e.to_string()).hint(hint) }
        };
        let policy = Policy {
            allowed: AllowedSigners::read(&allowed, &jiff::tz::TimeZone::system()).map_err(failed)?,
            revoked: revoked.as_deref().map(RevokedKeys::read).transpose().map_err(failed)?.unwrap_or_default(),
            identity: args.identity.clone(),
            now: jiff::Timestamp::now(),
        };
        Ok(Some(Self { allowed, revoked, policy }))
    }

    /// What does the same without roadie.
    fn by_hand(&self, verified: &Verified) -> String {
        let quoted = |path: &Path| sh::quote(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy());
        let revoked = self.revoked.as_deref().map(|path| format!(" -r {}", quoted(path))).unwrap_or_default();
        format!(
            "ssh-keygen -Y verify -f {} -I {} -n {} -s {}{revoked} < {}",
            quoted(&self.allowed),
            sh::quote(&verified.principal),
            trust::NAMESPACE,
            quoted(&verified.signature),
            quoted(&verified.statement),
        )
    }
}

/// What was found of one package.
enum Found {
    Good,
    Signed(Verified),
    NotTrusted(NotTrusted),
    Damaged(StoreError),
}

fn look(store: &Store, id: &PackageId, trust: Option<&Trust>) -> Result<Found, Fatal> {
    let package = match store.verify(id) {
        Ok(package) => package,
        Err(e @ StoreError::Damaged { .. }) => return Ok(Found::Damaged(e)),
        Err(e) => return Err(store_error(&e)),
    };
    let Some(trust) = trust else { return Ok(Found::Good) };
    Ok(match trust::verify(store, &package, &trust.policy).map_err(|e| store_error(&e))? {
        Ok(verified) => Found::Signed(verified),
        Err(refused) => Found::NotTrusted(refused),
    })
}

/// `roadie packages verify`.
pub fn verify(
    global: &Global,
    environment: &Environment,
    store: &Store,
    id: Option<&str>,
    args: &TrustArgs,
) -> Result<u8, Fatal> {
    let trust = Trust::read(environment, args)?;
    let ids: Vec<PackageId> = match id {
        Some(prefix) => vec![store.find(prefix).map_err(|e| store_error(&e))?.id],
        None => store.list().map_err(|e| store_error(&e))?.into_iter().map(|p| p.package.id).collect(),
    };
    let (mut damaged, mut refused, mut hint) = (0, 0, None);
    for id in &ids {
        let found = look(store, id, trust.as_ref())?;
        match &found {
            Found::Damaged(_) => damaged += 1,
            Found::NotTrusted(why) => {
                refused += 1;
                hint = hint.or_else(|| why.refusals.first().map(|(_, refusal)| refusal.hint()));
            }
            _ => {}
        }
        say(global, id, &found, trust.as_ref());
    }
    let failed = |message: String| Fatal { outcome: Outcome::Integrity, ..Fatal::failed(message) };
    match (damaged, refused) {
        (0, 0) => Ok(0),
        (0, n) => {
            Err(failed(format!("{n} of {} packages have no signature that counts", ids.len())).hint(hint.unwrap_or_default()))
        }
        (n, _) => {
            let hint = "they were set aside; `roadie pack` makes them again";
            Err(failed(format!("{n} of {} packages are damaged", ids.len())).hint(hint))
        }
    }
}

fn say(global: &Global, id: &PackageId, found: &Found, trust: Option<&Trust>) {
    let good = matches!(found, Found::Good | Found::Signed(_));
    let reason = match found {
        Found::Good | Found::Signed(_) => String::new(),
        Found::Damaged(e) => e.to_string(),
        Found::NotTrusted(why) => why.refusals.iter().map(|(_, r)| r.to_string()).collect::<Vec<_>>().join("; "),
    };
    let by_hand = match (found, trust) {
        (Found::Signed(verified), Some(trust)) => Some((verified, trust.by_hand(verified))),
        _ => None,
    };
    if global.json {
        let mut object = serde_json::json!({"package": id, "ok": good, "reason": reason});
        if let Some((verified, command)) = by_hand {
            object["principal"] = verified.principal.as_str().into();
            object["fingerprint"] = verified.fingerprint.as_str().into();
            object["by_hand"] = command.into();
        }
        out::line(&object.to_string());
        return;
    }
    let word = match found {
        Found::Good | Found::Signed(_) => "ok",
        Found::Damaged(_) => "damaged",
        Found::NotTrusted(_) => "refused",
    };
    match by_hand {
        Some((verified, command)) => {
            out::line(&format!("{word} {} signed by {} ({})", id.short(), verified.principal, verified.fingerprint));
            out::line(&format!("by hand: {command}"));
        }
        None => out::line(format!("{word} {} {reason}", id.short()).trim_end()),
    }
}

/// `roadie packages sbom`.
pub fn sbom(global: &Global, store: &Store, package: &Package) -> Result<u8, Fatal> {
    // What is said is to be true of the bytes that the id names.
    let package = &store.verify(&package.id).map_err(|e| store_error(&e))?;
    let text = trust::sbom(store, package).map_err(|e| match &e {
        trust::SbomError::Store(e) => store_error(e),
        e => Fatal { causes: causes(e), ..Fatal::failed(e.to_string()).hint("build it again and run `roadie pack`") },
    })?;
    match text {
        Some(text) => print(global, &text),
        None => Err(Fatal::failed(format!("no binary in package {} says what it was built from", package.id.short()))
            .hint("`cargo install cargo-auditable`, build with `cargo auditable build --release`, and pack that binary (`build: {type: prebuilt}`)")),
    }
}

/// `roadie packages provenance`.
pub fn provenance(global: &Global, store: &Store, package: &Package) -> Result<u8, Fatal> {
    match trust::provenance(store, &package.id).map_err(|e| store_error(&e))? {
        Some(text) => print(global, &text),
        None => Err(Fatal::failed(format!("nobody wrote down how package {} was made", package.id.short()))
            .hint("`roadie pack` writes it where it packs; a package from elsewhere comes without it")),
    }
}

/// JSON either way: on one line where others read it.
fn print(global: &Global, text: &str) -> Result<u8, Fatal> {
    if global.json {
        let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        out::line(&value.to_string());
    } else {
        out::line(text.trim_end());
    }
    Ok(0)
}
