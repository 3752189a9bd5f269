//! What all kinds of processes share.

use crate::{Chunk, Exit, Output, Process, TransportError};
use bytes::Bytes;

/// Feeds `stdin`, keeps at most `limit` bytes of each output, and waits for the end.
pub(crate) async fn run(mut process: Box<dyn Process>, stdin: Bytes, limit: usize) -> Result<Output, TransportError> {
    let mut output = Output { stdout: Vec::new(), stderr: Vec::new(), exit: Exit::Lost };
    if !stdin.is_empty() {
        // A command that ends without reading its input is no failure of ours: its status tells.
        let _ = process.write(stdin).await;
    }
    let _ = process.close_stdin().await;
    while let Some(chunk) = process.next().await {
        match chunk {
            Chunk::Stdout(data) => keep(&mut output.stdout, &data, limit),
            Chunk::Stderr(data) => keep(&mut output.stderr, &data, limit),
            Chunk::Exit(exit) => output.exit = exit,
        }
    }
    Ok(output)
}

fn keep(buffer: &mut Vec<u8>, data: &[u8], limit: usize) {
    let room = limit.saturating_sub(buffer.len());
    buffer.extend_from_slice(&data[..data.len().min(room)]);
}
