//! Commands of the embedded server: `sh -c`, three pipes, a status.

use super::{Shared, lock};
use crate::local::signal_name;
use bytes::BytesMut;
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};

/// What one message carries at most.
const READ: usize = 32 << 10;

pub(super) fn spawn(shared: &Shared, command: &[u8]) -> std::io::Result<Child> {
    let child = Command::new("sh")
        .arg("-c")
        .arg(std::ffi::OsStr::from_bytes(command))
        .current_dir(&shared.home)
        .env("HOME", &shared.home)
        .envs(shared.env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    lock(&shared.running).extend(child.id());
    Ok(child)
}

/// Moves bytes both ways until the command has ended and its pipes are empty, then tells how it ended.
pub(super) async fn pump(shared: Arc<Shared>, mut child: Child, channel: Channel<Msg>, handle: Handle) {
    let id = channel.id();
    let pid = child.id();
    let (reader, writer) = channel.split();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let output = async { tokio::join!(forward(stdout, &writer, None), forward(stderr, &writer, Some(1))) };
    tokio::select! {
        _ = output => {}
        // The client is gone. As under sshd the command lives on, and finds its pipes closed.
        () = feed(reader, stdin) => {}
    }
    let status = child.wait().await;
    if let Some(pid) = pid {
        lock(&shared.running).remove(&pid);
    }
    // The client may have left: then nobody is there to be told.
    let _ = match status {
        Ok(status) => tell(&handle, id, status).await,
        Err(_) => Ok(()),
    };
    let _ = handle.eof(id).await;
    let _ = handle.close(id).await;
}

async fn tell(handle: &Handle, id: russh::ChannelId, status: ExitStatus) -> Result<(), ()> {
    match status.signal() {
        Some(signal) => {
            let name = Sig::Custom(signal_name(signal));
            handle.exit_signal_request(id, name, status.core_dumped(), String::new(), String::new()).await
        }
        None => handle.exit_status_request(id, status.code().and_then(|c| u32::try_from(c).ok()).unwrap_or(255)).await,
    }
}

/// Client's data to the command's input. Goes on reading when the command does not: the channel must not clog the connection.
async fn feed(mut reader: ChannelReadHalf, mut stdin: Option<ChildStdin>) {
    while let Some(message) = reader.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&data).await.is_err()
                {
                    stdin = None;
                }
            }
            ChannelMsg::Eof => stdin = None,
            ChannelMsg::Close => break,
            _ => {}
        }
    }
}

async fn forward<R: AsyncRead + Unpin>(pipe: Option<R>, writer: &ChannelWriteHalf<Msg>, extended: Option<u32>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        if pipe.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return;
        }
        let data = buffer.split().freeze();
        let sent = match extended {
            None => writer.data_bytes(data).await,
            Some(kind) => writer.extended_data_bytes(kind, data).await,
        };
        if sent.is_err() {
            return;
        }
    }
}
