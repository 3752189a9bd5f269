//! Copying between files of the host, by its sftp server. The server works in order, so everything is sent without waiting.

use super::channel::{COPY_DATA, forget};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use roadie_model::package::Stretch;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::rawsession::RawSftpSession;
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};
use std::collections::BTreeMap;
use std::task::Poll;

/// Files open at once: an sftp server has a process's usual limit.
const OPEN: usize = 64;
/// Requests under way: what they take fits into the window of a channel many times.
const DEPTH: usize = 4096;

/// Groups of at most [`OPEN`] files, each with the stretches that are taken from them.
pub(super) fn batches(stretches: &[Stretch]) -> Vec<(Vec<usize>, Vec<Stretch>)> {
    let mut by_file: BTreeMap<usize, Vec<Stretch>> = BTreeMap::new();
    for stretch in stretches {
        by_file.entry(stretch.file).or_default().push(*stretch);
    }
    let files: Vec<usize> = by_file.keys().copied().collect();
    let taken = |files: &[usize]| files.iter().flat_map(|file| by_file.get(file).cloned().unwrap_or_default()).collect();
    files.chunks(OPEN).map(|files| (files.to_vec(), taken(files))).collect()
}

/// Copies `stretches` of `files` (numbers among `sources`) into `remote`.
pub(super) async fn copy(
    raw: &RawSftpSession,
    sources: &[String],
    remote: &str,
    files: &[usize],
    stretches: &[Stretch],
) -> Result<(), SftpError> {
    let unknown = |file: &usize| SftpError::UnexpectedBehavior(format!("there is no source {file}"));
    let paths = files.iter().map(|file| sources.get(*file).ok_or_else(|| unknown(file))).collect::<Result<Vec<_>, _>>()?;
    let read = paths.iter().map(|path| raw.open(path.as_str(), OpenFlags::READ, FileAttributes::empty()));
    let write = raw.open(remote, OpenFlags::WRITE, FileAttributes::empty());
    let (from, to) = futures::join!(futures::future::join_all(read), write);
    let handles: Vec<String> = from.iter().chain([&to]).flatten().map(|opened| opened.handle.clone()).collect();
    let copied = async {
        let from = from.into_iter().map(|opened| opened.map(|o| o.handle)).collect::<Result<Vec<_>, _>>()?;
        let to = to?.handle;
        let mut under_way = FuturesUnordered::new();
        for stretch in stretches {
            let handle = files.binary_search(&stretch.file).ok().and_then(|place| from.get(place));
            let request = request(handle.ok_or_else(|| unknown(&stretch.file))?, &to, stretch);
            let mut request = Box::pin(raw.extended(COPY_DATA, request));
            // The first poll sends.
            match futures::poll!(&mut request) {
                Poll::Ready(answer) => judge(answer)?,
                Poll::Pending => under_way.push(request),
            }
            if under_way.len() >= DEPTH
                && let Some(answer) = under_way.next().await
            {
                judge(answer)?;
            }
        }
        while let Some(answer) = under_way.next().await {
            judge(answer)?;
        }
        Ok(())
    };
    let copied = copied.await;
    // What failed is not used: nobody waits for this.
    handles.iter().for_each(|handle| forget(raw, handle));
    copied
}

fn judge(answer: Result<Packet, SftpError>) -> Result<(), SftpError> {
    match answer? {
        Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
        Packet::Status(status) => Err(SftpError::Status(status)),
        _ => Err(SftpError::UnexpectedPacket),
    }
}

fn request(from: &str, to: &str, stretch: &Stretch) -> Vec<u8> {
    let handle = |handle: &str| {
        let length = u32::try_from(handle.len()).unwrap_or(u32::MAX);
        [&length.to_be_bytes(), handle.as_bytes()].concat()
    };
    [
        handle(from),
        stretch.offset.to_be_bytes().to_vec(),
        stretch.length.to_be_bytes().to_vec(),
        handle(to),
        stretch.to.to_be_bytes().to_vec(),
    ]
    .concat()
}
