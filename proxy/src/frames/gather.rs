//! What `h2` writes, gathered until it flushes.
//!
//! `h2` hands over a DATA frame of more than a few hundred bytes as a write of its own, and the frames before it as another;
//! for the kernel, and under TLS, one write of both costs half. It decides nothing about frames, and holds back nothing
//! past a flush.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// The most that is held and copied: a frame of the size that everybody takes (RFC 9113 section 4.2) is written uncopied,
/// together with what was held before it.
const HELD_MAX: usize = 16 * 1024;

/// What is held of a connection's writes.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    held: Vec<u8>,
    /// How much of it has been written.
    written: usize,
}

impl Gathered {
    /// Takes bytes to be written: holds them, or writes them behind what it holds. How many it took.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        while self.held.len() + bytes.len() > HELD_MAX {
            if self.held.is_empty() {
                return Pin::new(stream).poll_write(cx, bytes);
            }
            let both = [IoSlice::new(&self.held[self.written..]), IoSlice::new(bytes)];
            let count = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &both))?;
            if let Some(taken @ 1..) = self.wrote(count)? {
                return Poll::Ready(Ok(taken));
            }
        }
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Writes what it holds.
    pub(super) fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let count = ready!(Pin::new(&mut *stream).poll_write(cx, &self.held[self.written..]))?;
            self.wrote(count)?;
        }
        Pin::new(stream).poll_flush(cx)
    }

    /// So much was written of what it holds and what follows it. How much of what follows, if all that it holds was.
    fn wrote(&mut self, count: usize) -> io::Result<Option<usize>> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += count;
        let Some(beyond) = self.written.checked_sub(self.held.len()) else {
            return Ok(None);
        };
        self.held.clear();
        self.written = 0;
        Ok(Some(beyond))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn small_writes_leave_as_one_with_the_flush_and_nothing_leaves_before() {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let mut gathered = Gathered::default();
        for piece in ["frames ", "and more ", "frames"] {
            let taken = poll_fn(|cx| gathered.poll_write(&mut ours, cx, piece.as_bytes())).await;
            assert_eq!(taken.unwrap(), piece.len());
        }
        let mut bytes = [0; 64];
        let early = poll_fn(|cx| {
            let mut buffer = tokio::io::ReadBuf::new(&mut bytes);
            Poll::Ready(tokio::io::AsyncRead::poll_read(Pin::new(&mut theirs), cx, &mut buffer).is_pending())
        });
        assert!(early.await);
        poll_fn(|cx| gathered.poll_flush(&mut ours, cx)).await.unwrap();
        let count = theirs.read(&mut bytes).await.unwrap();
        assert_eq!(&bytes[..count], b"frames and more frames");
    }

    #[tokio::test]
    async fn bytes_keep_their_order_through_a_pipe_that_takes_a_few_at_a_time() {
        let (mut ours, mut theirs) = tokio::io::duplex(7);
        let sizes = [9, 16 * 1024, 1, 700, 16 * 1024 - 3, 40_000, 5];
        let said: Vec<u8> = (0..sizes.iter().sum::<usize>())
            .map(|place| (place % 251) as u8)
            .collect();
        let expected = said.clone();
        let reader = tokio::spawn(async move {
            let mut heard = Vec::new();
            theirs.read_to_end(&mut heard).await.unwrap();
            heard
        });
        let mut gathered = Gathered::default();
        let mut rest = &said[..];
        for size in sizes {
            let (mut piece, after) = rest.split_at(size);
            rest = after;
            while !piece.is_empty() {
                let taken = poll_fn(|cx| gathered.poll_write(&mut ours, cx, piece))
                    .await
                    .unwrap();
                assert!(gathered.held.len() <= HELD_MAX);
                piece = &piece[taken..];
            }
        }
        poll_fn(|cx| gathered.poll_flush(&mut ours, cx)).await.unwrap();
        drop(ours);
        assert!(reader.await.unwrap() == expected);
    }
}
