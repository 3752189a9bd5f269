//! What can go wrong between here and a place.

use std::path::PathBuf;

/// Why a session could not be opened or used. The caller adds which host it was.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The name has no address.
    #[error("cannot resolve `{address}`")]
    Resolve {
        /// The name.
        address: String,
        /// The resolver's answer.
        #[source]
        source: std::io::Error,
    },
    /// The host answered, and nobody listens on that port.
    #[error("`{address}` port {port} refused the connection")]
    Refused {
        /// Dialled address.
        address: String,
        /// Dialled port.
        port: u16,
    },
    /// No packet gets there: no route, or nobody on the network has that address.
    #[error("cannot reach `{address}` port {port}")]
    NoRoute {
        /// Dialled address.
        address: String,
        /// Dialled port.
        port: u16,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The server took the connection and closed it before any key was shown: it has too many starting at once, or punishes
    /// our address for earlier failures.
    #[error("`{address}` port {port} closed the connection before the handshake ({reason}), {attempts} times")]
    TurnedAway {
        /// Dialled address.
        address: String,
        /// Dialled port.
        port: u16,
        /// What was seen.
        reason: String,
        /// How often it was tried.
        attempts: usize,
    },
    /// Nothing came back in time: a dead host, a firewall, a stalled server.
    #[error("{what} took longer than {seconds} s")]
    TimedOut {
        /// What was waited for, as `connecting to `h` port 22`.
        what: String,
        /// The deadline.
        seconds: u64,
    },
    /// The host's key is in no known_hosts file.
    #[error("host key of `{address}` is not known ({algorithm} {fingerprint})")]
    HostKeyUnknown {
        /// Dialled address.
        address: String,
        /// Key algorithm.
        algorithm: String,
        /// `SHA256:...`.
        fingerprint: String,
        /// The line that would make it known.
        line: String,
    },
    /// The host shows another key than the known one.
    #[error("host key of `{address}` is {fingerprint}, but {expected}")]
    HostKeyChanged {
        /// Dialled address.
        address: String,
        /// The key it shows.
        fingerprint: String,
        /// What was expected and where that stands, as `known_hosts:12 says SHA256:...`.
        expected: String,
    },
    /// The key is on a `@revoked` line.
    #[error("host key {fingerprint} of `{address}` is revoked by {by}")]
    HostKeyRevoked {
        /// Dialled address.
        address: String,
        /// The key.
        fingerprint: String,
        /// File and line.
        by: String,
    },
    /// A known_hosts file exists and cannot be read.
    #[error("cannot read `{}`", path.display())]
    KnownHosts {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host let in none of the keys that were offered.
    #[error("login as `{user}` refused (tried: {tried})")]
    AuthRefused {
        /// Login user.
        user: String,
        /// Which keys, for people.
        tried: String,
    },
    /// A private key file cannot be used.
    #[error("cannot use key `{}`: {reason}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why: missing, too open, has a passphrase, not a key.
        reason: String,
    },
    /// Contact was lost.
    #[error("connection lost: {reason}")]
    Disconnected {
        /// As far as known.
        reason: String,
    },
    /// The host cannot do what was asked (no sftp, forwarding forbidden).
    #[error("the host refuses {what}: {reason}")]
    Refusal {
        /// What was asked.
        what: String,
        /// Its answer.
        reason: String,
    },
    /// Nobody listens on the forwarded port.
    #[error("port {port} on the host: {reason}")]
    PortClosed {
        /// The port.
        port: u16,
        /// The host's answer.
        reason: String,
    },
    /// A file could not be written on the host.
    #[error("cannot write `{path}` on the host: {reason}")]
    Upload {
        /// Remote path.
        path: String,
        /// Cause as far as it can be told (disk full, read-only, no permission).
        reason: String,
    },
    /// A new file could not be brought in one go; bringing it with a look at what is there may well succeed.
    #[error("`{path}` was not taken as a new file: {reason}")]
    NotNew {
        /// Remote path.
        path: String,
        /// The host's answer.
        reason: String,
    },
    /// Something on this machine.
    #[error("{what}")]
    Local {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The SSH protocol went wrong in a way none of the above describes.
    #[error("ssh: {0}")]
    Protocol(String),
}
