//! ssh-agent: the two requests that signing needs (draft-ietf-sshm-ssh-agent, 3.5 and 3.6), over its Unix socket.
//!
//! Written here because no client fits: russh's may be used by `transport` only, and ssh-agent-client-rs brings another ssh-key
//! and with it a second set of every cipher. The agent is trusted with the key, not with our memory: lengths are checked.

use ssh_key::PublicKey;
use ssh_key::Signature;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// RSA with SHA-512; other keys ignore it.
const RSA_SHA2_512: u32 = 4;
/// What OpenSSH's agent itself accepts at most.
const MAX_MESSAGE: usize = 256 << 10;
/// A key may ask a person for a touch or a yes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection to an agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
}

impl Agent {
    /// Connects.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// The keys it holds; those of a type that nobody knows are left out.
    ///
    /// # Errors
    /// The socket's, or an answer that is none.
    pub fn keys(&mut self) -> io::Result<Vec<PublicKey>> {
        let answer = self.ask(&[REQUEST_IDENTITIES])?;
        let mut rest = expect(&answer, IDENTITIES_ANSWER)?;
        let count = number(&mut rest)?;
        let mut keys = Vec::new();
        for _ in 0..count {
            let (blob, comment) = (string(&mut rest)?, string(&mut rest)?);
            if let Ok(mut key) = PublicKey::from_bytes(blob) {
                key.set_comment(String::from_utf8_lossy(comment).into_owned());
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Has `data` signed with `key`.
    ///
    /// # Errors
    /// The socket's, a refusal, or an answer that is none.
    pub fn sign(&mut self, key: &PublicKey, data: &[u8]) -> io::Result<Signature> {
        let blob = key.to_bytes().map_err(io::Error::other)?;
        let mut request = vec![SIGN_REQUEST];
        for part in [&blob[..], data] {
            request.extend(length(part)?.to_be_bytes());
            request.extend(part);
        }
        request.extend(RSA_SHA2_512.to_be_bytes());
        let answer = self.ask(&request)?;
        let mut rest = expect(&answer, SIGN_RESPONSE)?;
        Signature::try_from(string(&mut rest)?).map_err(io::Error::other)
    }

    fn ask(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        self.stream.write_all(&[&length(request)?.to_be_bytes(), request].concat())?;
        let mut size = [0; 4];
        self.stream.read_exact(&mut size)?;
        let size = u32::from_be_bytes(size) as usize;
        if size > MAX_MESSAGE {
            return Err(garbled());
        }
        let mut answer = vec![0; size];
        self.stream.read_exact(&mut answer)?;
        Ok(answer)
    }
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what answers there does not speak the agent's protocol")
}

fn length(data: &[u8]) -> io::Result<u32> {
    u32::try_from(data.len()).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too long for the agent"))
}

fn expect(answer: &[u8], kind: u8) -> io::Result<&[u8]> {
    match answer.split_first() {
        Some((found, rest)) if *found == kind => Ok(rest),
        // SSH_AGENT_FAILURE
        Some((5, _)) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the agent refused: locked, or somebody said no")),
        _ => Err(garbled()),
    }
}

fn number(rest: &mut &[u8]) -> io::Result<u32> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or_else(garbled)?;
    *rest = tail;
    Ok(u32::from_be_bytes(*head))
}

fn string<'a>(rest: &mut &'a [u8]) -> io::Result<&'a [u8]> {
    let size = number(rest)? as usize;
    let (head, tail) = rest.split_at_checked(size).ok_or_else(garbled)?;
    *rest = tail;
    Ok(head)
}
