//! The canonical archive: the same members give the same bytes, wherever and whenever.
//!
//! ustar by hand, no owner names, constant time, modes from the definition and not from the disk; gzip level 4 without a name or
//! time in its header. The time is the one that cargo's own packages carry: 0 confuses some tools.

use crate::gzip::Gzip;
use crate::memo::Digests;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MTIME: u64 = 1_153_704_088;
/// Longest member path: the name field of ustar.
pub const MAX_PATH: usize = 100;

/// Where a member's bytes come from.
#[derive(Debug, Clone)]
pub enum Content {
    /// From memory.
    Bytes(Vec<u8>),
    /// From a file, streamed.
    File(PathBuf),
}

/// One file of the archive.
#[derive(Debug, Clone)]
pub struct Member {
    pub path: String,
    pub executable: bool,
    pub content: Content,
    pub size: u64,
    pub sha256: String,
}

impl Member {
    /// A member from memory.
    pub fn bytes(path: &str, executable: bool, bytes: Vec<u8>) -> Self {
        let sha256 = hex(&Sha256::digest(&bytes));
        Self { path: path.to_owned(), executable, size: bytes.len() as u64, sha256, content: Content::Bytes(bytes) }
    }

    /// A member from a file; read for its digest unless that is known.
    pub fn file(path: &str, executable: bool, file: PathBuf, digests: &mut Digests) -> io::Result<Self> {
        let (sha256, size) = digests.of(&file)?;
        Ok(Self { path: path.to_owned(), executable, content: Content::File(file), size, sha256 })
    }
}

impl Member {
    /// The file that it comes from, if it comes from one.
    pub fn source(&self) -> Option<&Path> {
        match &self.content {
            Content::File(path) => Some(path),
            Content::Bytes(_) => None,
        }
    }
}

/// sha256 (hex) and length of a stream.
pub fn digest(mut from: impl Read) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok((hex(&hash.finalize()), size)),
            read => {
                hash.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Opens an archive to read it.
pub fn open(path: &Path) -> io::Result<tar::Archive<impl Read>> {
    Ok(tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(path)?)))
}

/// Members that an index repeats.
pub const TEXTS: [&str; 4] = ["metadata.json", "systemd.service", "config-template.toml", "setup.sh"];

/// The bytes of [`TEXTS`] in an archive.
pub fn texts(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in open(path)?.entries()? {
        let entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if TEXTS.contains(&name.as_str()) {
            let mut bytes = Vec::new();
            entry.take(64 << 20).read_to_end(&mut bytes)?;
            found.insert(name, bytes);
        }
    }
    Ok(found)
}

/// Digests of a written archive.
pub struct Written {
    /// sha256 of the tar.
    pub tar_sha256: String,
    /// sha256 of the `.tar.gz`.
    pub gz_sha256: String,
    /// Bytes of the `.tar.gz`.
    pub gz_bytes: u64,
}

/// A writer that hashes and counts what passes.
pub struct Hashed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    /// Passes on to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// sha256 (hex) and number of the bytes that passed.
    pub fn digest(self) -> (String, u64) {
        (hex(&self.hash.finalize()), self.bytes)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hash.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the members in the order given, compressed by `threads` threads: the bytes are the same for any number.
///
/// # Errors
/// I/O; and `InvalidData` when a file is no longer what it was when its digest was taken.
pub fn write(members: &[Member], threads: usize, to: impl Write) -> io::Result<Written> {
    let gz = Gzip::new(Hashed::new(to), threads)?;
    let mut tar = tar::Builder::new(Hashed::new(gz));
    for member in members {
        append(&mut tar, member)?;
    }
    let tar = tar.into_inner()?;
    let tar_sha256 = hex(&tar.hash.finalize());
    let mut out = tar.inner.finish()?;
    out.flush()?;
    Ok(Written { tar_sha256, gz_sha256: hex(&out.hash.finalize()), gz_bytes: out.bytes })
}

fn append<W: Write>(tar: &mut tar::Builder<W>, member: &Member) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(&member.path)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(if member.executable { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(member.size);
    header.set_cksum();
    match &member.content {
        Content::Bytes(bytes) => tar.append(&header, bytes.as_slice()),
        Content::File(path) => {
            let mut body = HashedReader { inner: std::fs::File::open(path)?.take(member.size), hash: Sha256::new() };
            tar.append(&header, &mut body)?;
            if hex(&body.hash.finalize()) == member.sha256 {
                return Ok(());
            }
            let text = format!("`{}` changed while it was packed", path.display());
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    }
}

struct HashedReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for HashedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> Vec<Member> {
        vec![
            Member::bytes("metadata.json", false, b"{}\n".to_vec()),
            Member::bytes("bin/api", true, b"#!/bin/sh\necho hi\n".to_vec()),
            Member::bytes("systemd.service", false, b"[Service]\n".to_vec()),
        ]
    }

    /// Pinned: the bytes must not change by themselves, nor with a new version of the compressor.
    #[test]
    fn the_bytes_are_golden() {
        let mut bytes = Vec::new();
        let written = write(&fixture(), 2, &mut bytes).expect("writes");
        assert_eq!(written.tar_sha256, "7f71ac290abe61abd7347e16b2abad22e260677421c6cf227003579f0eaa30f8");
        assert_eq!(written.gz_sha256, "382aa595b6e3c7be726ec78b7e9314ebaee56ee90a4f9545e36e4ffe738cd743");
        assert_eq!(written.gz_bytes, bytes.len() as u64);
    }

    #[test]
    fn other_tools_read_it() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("a.tar.gz");
        write(&fixture(), 1, std::fs::File::create(&path).expect("creates")).expect("writes");
        let list = std::process::Command::new("tar")
            .args(["--numeric-owner", "-tvzf"])
            .arg(&path)
            .env("TZ", "UTC")
            .output()
            .expect("tar");
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 3, "{list}");
        assert!(lines[1].starts_with("-rwxr-xr-x 0/0") && lines[1].ends_with("2006-07-24 01:21 bin/api"), "{list}");
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("f");
        std::fs::write(&path, "before").expect("writes");
        let member = Member::file("f", false, path.clone(), &mut Digests::default()).expect("reads");
        std::fs::write(&path, "behind").expect("writes");
        assert_eq!(write(&[member], 1, Vec::new()).map(|_| ()).expect_err("noticed").kind(), io::ErrorKind::InvalidData);
    }
}
