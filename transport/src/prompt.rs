//! The TCP connection under ssh, with answers acknowledged at once.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;

/// What is read at once: the library asks for the length of a packet, then for the packet.
const READ_AHEAD: usize = 64 * 1024;

/// A connection whose every read is acknowledged at once.
///
/// Until it runs the first command, sshd leaves Nagle's algorithm on: of two small messages in a row, the second waits until the
/// first was acknowledged. The answer to our opening a channel is such a second one, behind sshd's list of host keys, and has
/// nothing of ours to ride on: a kernel that waits with acknowledging until it has something to send waits 40 ms.
pub(crate) struct Prompt(TcpStream);

impl Prompt {
    pub(crate) fn new(stream: TcpStream) -> BufReader<Self> {
        BufReader::with_capacity(READ_AHEAD, Self(stream))
    }
}

impl AsyncRead for Prompt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.0).poll_read(cx, buf);
        // The kernel goes back to waiting by itself, so it is told each time. Without it everything works, only later.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if result.is_ready() {
            let _ = self.0.set_quickack(true);
        }
        result
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A client and a server that have said one word each, several times: now the client's kernel waits before it acknowledges.
    async fn in_conversation(client: &mut (impl AsyncRead + AsyncWrite + Unpin), server: &mut TcpStream) -> io::Result<()> {
        for _ in 0..5 {
            client.write_all(b"?").await?;
            server.read_u8().await?;
            server.write_all(b"!").await?;
            client.read_u8().await?;
        }
        Ok(())
    }

    async fn pair() -> io::Result<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let client = TcpStream::connect(listener.local_addr()?).await?;
        Ok((client, listener.accept().await?.0))
    }

    #[tokio::test]
    async fn what_was_read_is_acknowledged_at_once() -> io::Result<()> {
        let (mut plain, mut server) = pair().await?;
        in_conversation(&mut plain, &mut server).await?;
        assert!(!plain.quickack()?, "a plain connection waits, or this test shows nothing");

        let (client, mut server) = pair().await?;
        let mut prompt = Prompt::new(client);
        in_conversation(&mut prompt, &mut server).await?;
        assert!(prompt.get_ref().0.quickack()?);
        Ok(())
    }
}
