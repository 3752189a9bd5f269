//! Signatures against the real ssh-keygen and ssh-agent, in both directions; SBOM and provenance.

mod agent;
mod common;
mod hostile;
mod notes;
mod signatures;
