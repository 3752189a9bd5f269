//! Why a signature does not count: one sentence for each reason, because each asks for something else.

use super::allowed::NAMESPACE;
use jiff::Timestamp;
use roadie_model::id::PackageId;

/// Why a package's signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody signed.
    #[error("nobody signed it")]
    NoSignature,
    /// There are signatures, and not what they are over.
    #[error("the statement that was signed is missing")]
    NoStatement,
    /// Not the format, or not what this version reads.
    #[error("the signature is malformed: {reason}")]
    Malformed {
        /// In what way.
        reason: String,
    },
    /// Made for another purpose.
    #[error("the signature was made in the namespace `{found}`, not `{NAMESPACE}`")]
    WrongNamespace {
        /// Its namespace.
        found: String,
    },
    /// An algorithm that OpenSSH would not take either.
    #[error("the signature is too weak: {reason}")]
    Weak {
        /// In what way.
        reason: String,
    },
    /// The signature is not over these bytes.
    #[error("the statement was tampered with: the signature of {fingerprint} is not over its bytes")]
    Tampered {
        /// Of the key that the signature names.
        fingerprint: String,
    },
    /// A good signature of something else.
    #[error("the statement is of another package, {}", found.short())]
    AnotherPackage {
        /// The package that it is of.
        found: PackageId,
    },
    /// A good signature over a statement that roadie would not have written.
    #[error("the statement does not describe this package: it says `{found}` where `{wanted}` is expected")]
    Misdescribed {
        /// Its line.
        found: String,
        /// The package's.
        wanted: String,
    },
    /// Signed with a key that does not count any more.
    #[error("the key {fingerprint} was revoked")]
    Revoked {
        /// The key.
        fingerprint: String,
    },
    /// Signed by somebody that nobody named.
    #[error("the signer {fingerprint} is not in allowed_signers")]
    UnknownSigner {
        /// The key.
        fingerprint: String,
    },
    /// Signed by somebody else than was asked for.
    #[error("the signer is `{principals}` in allowed_signers, not `{wanted}`")]
    OtherSigner {
        /// Who was asked for.
        wanted: String,
        /// Who it is.
        principals: String,
    },
    /// A signer for other purposes.
    #[error("`{principal}` may not sign packages: the `namespaces` of allowed_signers leave out `{NAMESPACE}`")]
    NotForPackages {
        /// Who.
        principal: String,
    },
    /// Too early.
    #[error("the key of `{principal}` counts only from {after} on (`valid-after`)")]
    NotYetValid {
        /// Who.
        principal: String,
        /// From when on.
        after: Timestamp,
    },
    /// Too late.
    #[error("the key of `{principal}` counted only until {before} (`valid-before`)")]
    Expired {
        /// Who.
        principal: String,
        /// Until when.
        before: Timestamp,
    },
}

impl Refusal {
    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::NoSignature => "sign it with `roadie packages sign ID --key FILE`, or ask who made it for its signature",
            Refusal::NoStatement => "`roadie packages sign` writes it again; or fetch it from where the signature came from",
            Refusal::Malformed { .. } | Refusal::WrongNamespace { .. } | Refusal::Weak { .. } => {
                "remove the signature and sign again with `roadie packages sign`"
            }
            Refusal::Tampered { .. } | Refusal::AnotherPackage { .. } | Refusal::Misdescribed { .. } => {
                "do not deploy it; fetch package, statement and signature again, or ask who signed it"
            }
            Refusal::Revoked { .. } => "do not deploy it; have it signed with a key that still counts",
            Refusal::UnknownSigner { .. } | Refusal::OtherSigner { .. } => {
                "if you know whose key it is and trust it, add a line `NAME ssh-... AAAA...` to allowed_signers"
            }
            Refusal::NotForPackages { .. } => "add the namespace to the line in allowed_signers if the key is meant for packages",
            Refusal::NotYetValid { .. } | Refusal::Expired { .. } => {
                "have it signed with a key that counts today, or correct the time in allowed_signers"
            }
        }
    }
}
