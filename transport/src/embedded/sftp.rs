//! Files of the embedded server over sftp: what our own uploads use, and what the `sftp` command needs for put, get and ls.
//!
//! Works on real files with blocking calls: each is short, and the disk is this machine's own.

use russh_sftp::protocol::{
    Attrs, Data, ExtendedReply, File, FileAttributes, Handle, Name, OpenFlags, Packet, Status, StatusCode, Version,
};
use russh_sftp::server::StatusReply;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Read at most at once, as OpenSSH's server.
const MAX_READ: u32 = 255 << 10;
const MAX_PACKET: u64 = 256 << 10;
const MAX_HANDLES: usize = 1000;

enum Open {
    File(std::fs::File),
    /// Entries not yet told.
    Folder(Vec<File>),
}

/// One sftp channel.
pub(super) struct Files {
    home: PathBuf,
    open: HashMap<String, Open>,
    next: u64,
}

impl Files {
    pub(super) fn new(home: PathBuf) -> Self {
        Self { home, open: HashMap::new(), next: 0 }
    }

    /// Relative paths begin at home.
    fn path(&self, path: &str) -> PathBuf {
        self.home.join(path)
    }

    fn keep(&mut self, id: u32, open: Open) -> Result<Handle, StatusReply> {
        if self.open.len() >= MAX_HANDLES {
            return Err(StatusCode::Failure.with_message("too many open handles"));
        }
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Result<&std::fs::File, StatusReply> {
        match self.open.get(handle) {
            Some(Open::File(file)) => Ok(file),
            _ => Err(StatusCode::Failure.with_message("not an open file")),
        }
    }

    fn statvfs(&self, path: &str) -> Result<Vec<u8>, StatusReply> {
        let fs = rustix::fs::statvfs(self.path(path)).map_err(|e| failed(&e.into()))?;
        // OpenSSH's two flags: read-only, no set-uid.
        let flags = u64::from(fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
            | u64::from(fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID)) << 1;
        let numbers = [
            fs.f_bsize,
            fs.f_frsize,
            fs.f_blocks,
            fs.f_bfree,
            fs.f_bavail,
            fs.f_files,
            fs.f_ffree,
            fs.f_favail,
            fs.f_fsid,
            flags,
            fs.f_namemax,
        ];
        Ok(words(&numbers))
    }
}

fn words(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

fn failed(error: &std::io::Error) -> StatusReply {
    let code = match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => StatusCode::NoSuchFile,
        ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
        _ => StatusCode::Failure,
    };
    code.with_message(error.to_string())
}

fn done(id: u32, result: std::io::Result<()>) -> Result<Status, StatusReply> {
    result.map_err(|e| failed(&e))?;
    Ok(Status { id, status_code: StatusCode::Ok, error_message: "Ok".into(), language_tag: "en-US".into() })
}

fn attrs(id: u32, meta: std::io::Result<std::fs::Metadata>) -> Result<Attrs, StatusReply> {
    Ok(Attrs { id, attrs: FileAttributes::from(&meta.map_err(|e| failed(&e))?) })
}

fn set(path: &Path, attrs: &FileAttributes) -> std::io::Result<()> {
    if let Some(size) = attrs.size {
        std::fs::OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    match attrs.permissions {
        Some(mode) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o7777)),
        None => Ok(()),
    }
}

fn entries(folder: &Path) -> std::io::Result<Vec<File>> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry?;
        Ok(File::new(entry.file_name().to_string_lossy(), FileAttributes::from(&entry.metadata()?)))
    };
    std::fs::read_dir(folder)?.map(entry).collect()
}

/// Two length-prefixed strings, as `posix-rename@openssh.com` carries them.
fn two_strings(data: &[u8]) -> Option<(String, String)> {
    let one = |data: &[u8]| -> Option<(String, usize)> {
        let length = u32::from_be_bytes(data.get(..4)?.try_into().ok()?) as usize;
        let text = data.get(4..4 + length)?;
        Some((String::from_utf8(text.to_vec()).ok()?, 4 + length))
    };
    let (first, used) = one(data)?;
    let (second, _) = one(&data[used..])?;
    Some((first, second))
}

fn one_string(data: &[u8]) -> Option<String> {
    String::from_utf8(data.get(4..)?.to_vec()).ok()
}

impl russh_sftp::server::Handler for Files {
    type Error = StatusReply;

    fn unimplemented(&self) -> StatusReply {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _: u32, _: HashMap<String, String>) -> Result<Version, StatusReply> {
        let mut version = Version::new();
        for (name, value) in [("posix-rename", "1"), ("statvfs", "2"), ("fsync", "1"), ("limits", "1")] {
            version.extensions.insert(format!("{name}@openssh.com"), value.into());
        }
        Ok(version)
    }

    async fn open(&mut self, id: u32, name: String, flags: OpenFlags, attrs: FileAttributes) -> Result<Handle, StatusReply> {
        let mode = attrs.permissions.unwrap_or(0o666) & 0o777;
        let file = std::fs::OpenOptions::from(flags).mode(mode).open(self.path(&name)).map_err(|e| failed(&e))?;
        self.keep(id, Open::File(file))
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, StatusReply> {
        match self.open.remove(&handle) {
            Some(_) => done(id, Ok(())),
            None => Err(StatusCode::Failure.with_message("no such handle")),
        }
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, length: u32) -> Result<Data, StatusReply> {
        let mut data = vec![0; length.min(MAX_READ) as usize];
        let read = self.file(&handle)?.read_at(&mut data, offset).map_err(|e| failed(&e))?;
        if read == 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(read);
        Ok(Data { id, data })
    }

    async fn write(&mut self, id: u32, handle: String, offset: u64, data: Vec<u8>) -> Result<Status, StatusReply> {
        done(id, self.file(&handle)?.write_all_at(&data, offset))
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, StatusReply> {
        attrs(id, self.file(&handle)?.metadata())
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, StatusReply> {
        attrs(id, std::fs::metadata(self.path(&path)))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, StatusReply> {
        attrs(id, std::fs::symlink_metadata(self.path(&path)))
    }

    async fn setstat(&mut self, id: u32, path: String, attrs: FileAttributes) -> Result<Status, StatusReply> {
        done(id, set(&self.path(&path), &attrs))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, attrs: FileAttributes) -> Result<Status, StatusReply> {
        let file = self.file(&handle)?;
        let set = |()| match attrs.permissions {
            Some(mode) => file.set_permissions(std::fs::Permissions::from_mode(mode & 0o7777)),
            None => Ok(()),
        };
        done(id, attrs.size.map_or(Ok(()), |size| file.set_len(size)).and_then(set))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, StatusReply> {
        let entries = entries(&self.path(&path)).map_err(|e| failed(&e))?;
        self.keep(id, Open::Folder(entries))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, StatusReply> {
        match self.open.get_mut(&handle) {
            Some(Open::Folder(left)) if left.is_empty() => Err(StatusCode::Eof.into()),
            Some(Open::Folder(left)) => Ok(Name { id, files: left.drain(..left.len().min(100)).collect() }),
            _ => Err(StatusCode::Failure.with_message("not an open folder")),
        }
    }

    async fn mkdir(&mut self, id: u32, path: String, attrs: FileAttributes) -> Result<Status, StatusReply> {
        let mode = attrs.permissions.unwrap_or(0o777) & 0o777;
        done(id, std::fs::DirBuilder::new().mode(mode).create(self.path(&path)))
    }

    async fn remove(&mut self, id: u32, path: String) -> Result<Status, StatusReply> {
        done(id, std::fs::remove_file(self.path(&path)))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Result<Status, StatusReply> {
        done(id, std::fs::remove_dir(self.path(&path)))
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Result<Status, StatusReply> {
        if self.path(&to).symlink_metadata().is_ok() {
            // Plain sftp renames never replace; `posix-rename@openssh.com` does.
            return Err(StatusCode::Failure.with_message("the target exists"));
        }
        done(id, std::fs::rename(self.path(&from), self.path(&to)))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, StatusReply> {
        let path = self.path(&path);
        // A path that does not exist yet is answered as it is: clients ask before they create.
        let real = std::fs::canonicalize(&path).unwrap_or(path);
        Ok(Name { id, files: vec![File::dummy(real.to_string_lossy())] })
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Result<Packet, StatusReply> {
        let bad = || StatusReply::new(StatusCode::BadMessage);
        match request.as_str() {
            "limits@openssh.com" => {
                let limits = words(&[MAX_PACKET, u64::from(MAX_READ), u64::from(MAX_READ), MAX_HANDLES as u64]);
                Ok(Packet::ExtendedReply(ExtendedReply { id, data: limits }))
            }
            "statvfs@openssh.com" => {
                let data = self.statvfs(&one_string(&data).ok_or_else(bad)?)?;
                Ok(Packet::ExtendedReply(ExtendedReply { id, data }))
            }
            "fsync@openssh.com" => {
                let file = self.file(&one_string(&data).ok_or_else(bad)?)?;
                Ok(Packet::Status(done(id, file.sync_all())?))
            }
            "posix-rename@openssh.com" => {
                let (from, to) = two_strings(&data).ok_or_else(bad)?;
                Ok(Packet::Status(done(id, std::fs::rename(self.path(&from), self.path(&to)))?))
            }
            _ => Err(StatusCode::OpUnsupported.into()),
        }
    }
}
