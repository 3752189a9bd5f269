//! Uploads to a host without sftp: a shell command reads the file from its input.

use super::channel::MAX_WRITE;
use super::resume::{ANSWER, Answer, Blocks, UNIT, patience};
use super::source::Source;
use crate::session::{Connection, SshProcess};
use crate::{Chunk, Exit, Output, Process as _, Progress, Sent, TransportError};
use bytes::Bytes;
use roadie_model::sh::quote;

/// Ends the host's answer.
const END: &str = ".\n";

/// Two round trips: the channel, then all bytes and the end; one more, for what is there already, from 1 MiB on. Only what is
/// right from the beginning on is kept.
pub(super) async fn upload(
    connection: &Connection,
    source: &Source,
    remote: &str,
    progress: Progress<'_>,
) -> Result<Sent, TransportError> {
    let folder = remote.rsplit_once('/').map_or(".", |(folder, _)| folder);
    let made = if folder.is_empty() { String::new() } else { format!("mkdir -p -- {} && ", quote(folder)) };
    // A link that stands there is not ours: nothing goes through it.
    let prepare = format!(
        "umask 077; {made}{{ f={}; if [ -L \"$f\" ]; then rm -f -- \"$f\"; fi; chmod -- 600 \"$f\" 2>/dev/null;",
        quote(remote)
    );
    let blocks = Blocks::of(source.size());
    let resumable = blocks.worth_asking(UNIT);
    let receive = if resumable {
        format!(
            "{{ [ ! -f \"$f\" ] || {{ {}; }}; }} 2>/dev/null; echo; echo .; read -r keep || exit; case $keep in \
             all) ;; \
             0) cat >\"$f\" ;; \
             *) dd if=/dev/null of=\"$f\" bs={UNIT} seek=\"$keep\" count=0 2>/dev/null || {{ echo 'cannot be cut to size' >&2; exit 1; }}; \
             cat >>\"$f\" ;; esac",
            blocks.question()
        )
    } else {
        "cat >\"$f\"".to_owned()
    };
    let mut process = connection.start(&format!("{prepare} {receive}; }}")).await?;
    let mut from = 0;
    if resumable {
        let answer = match tokio::time::timeout(patience(source.size()), hear(&mut process)).await {
            Ok(Ok(answer)) => Answer::parse(&answer),
            Ok(Err(output)) => return Err(failed(connection, remote, &output)),
            Err(_) => {
                let reason = "the host does not tell what of it is there".to_owned();
                return Err(TransportError::Upload { path: remote.to_owned(), reason });
            }
        };
        let ours = if blocks.worth_asking(answer.size) { source.sums(blocks.reached(answer.size)).await? } else { Vec::new() };
        let missing = blocks.missing(&answer, &ours);
        let complete = missing.is_empty() && answer.size == source.size();
        // A last block is shorter than others: without its end it is sent again.
        from = missing.first().map_or(source.size(), |first| first.start);
        let word = if complete { "all".to_owned() } else { (from / UNIT).to_string() };
        tracing::debug!(remote, kept = from, "upload through a shell");
        // A command that stopped reading tells why when it ends.
        let _ = process.write(Bytes::from(format!("{word}\n"))).await;
        if from > 0 {
            progress(from);
        }
    }
    let mut at = from;
    while at < source.size() {
        let length = usize::try_from(source.size() - at).unwrap_or(MAX_WRITE).min(MAX_WRITE);
        let data = source.read(at, length).await?;
        if process.write(data).await.is_err() {
            break;
        }
        at += length as u64;
        progress(at);
    }
    let output = process.run(Bytes::new(), ANSWER).await;
    if output.exit != Exit::Status(0) {
        return Err(failed(connection, remote, &output));
    }
    Ok(Sent { bytes: at - from, resumed: from, channels: 1 })
}

/// What the host says up to the end of its answer; its last words when it gives up before.
async fn hear(process: &mut SshProcess) -> Result<String, Output> {
    let mut output = Output { stdout: Vec::new(), stderr: Vec::new(), exit: Exit::Lost };
    while let Some(chunk) = process.next().await {
        match chunk {
            Chunk::Stdout(data) => output.stdout.extend_from_slice(&data),
            Chunk::Stderr(data) => output.stderr.extend_from_slice(&data),
            Chunk::Exit(exit) => {
                output.exit = exit;
                break;
            }
        }
        if output.stdout.len() + output.stderr.len() > ANSWER {
            break;
        }
        let said = String::from_utf8_lossy(&output.stdout);
        if said == END || said.ends_with(&format!("\n{END}")) {
            return Ok(said.trim_end_matches(END).to_owned());
        }
    }
    Err(output)
}

fn failed(connection: &Connection, remote: &str, output: &Output) -> TransportError {
    if output.exit == Exit::Lost {
        return TransportError::Disconnected { reason: connection.lost().unwrap_or_else(|| "closed".into()) };
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    TransportError::Upload { path: remote.to_owned(), reason }
}
