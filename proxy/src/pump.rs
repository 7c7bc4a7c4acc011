//! Bytes both ways between two streams until both have said all: the whole of a TCP connection's middle, and of a
//! WebSocket's.
//!
//! An end in one direction is passed on and leaves the other open. It does not know what the bytes mean.

use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read at once in one direction: a large read of a socket, and little enough for thousands of pairs.
const BUFFER: usize = 16 * 1024;

/// A connection without meaning for us that says nothing for this long is given up: Envoy's hour for TCP. Databases and
/// WebSockets are silent for minutes; what is silent for longer is mostly forgotten.
pub(crate) const IDLE: Duration = Duration::from_secs(60 * 60);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one who came.
    Caller,
    /// The one who was called.
    Upstream,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Why {
    /// Both said that they have no more to say.
    Finished,
    /// Neither said anything for the idle time.
    Silent,
    /// A stream broke, and which.
    Broken(Side, io::Error),
}

/// What has gone through. Its owner may look while bytes still move, and when they are stopped from outside.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// Bytes that came from the caller.
    pub(crate) from_caller: Cell<u64>,
    /// Bytes that came from the upstream.
    pub(crate) from_upstream: Cell<u64>,
}

/// Moves bytes until it is over, and says how it ended. `idle`: the longest silence of both together; noticed after one to
/// two of it.
pub(crate) async fn pump(
    caller: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    idle: Option<Duration>,
    counted: &Moved,
) -> Why {
    let (moved, broken) = (Cell::new(false), Cell::new(None));
    let Moved {
        from_caller,
        from_upstream,
    } = counted;
    let noted = |side, bytes| Notes {
        side,
        bytes,
        moved: &moved,
        broken: &broken,
    };
    let mut caller = Noted(caller, noted(Side::Caller, from_caller));
    let mut upstream = Noted(upstream, noted(Side::Upstream, from_upstream));
    let mut copy = pin!(tokio::io::copy_bidirectional_with_sizes(
        &mut caller,
        &mut upstream,
        BUFFER,
        BUFFER
    ));
    loop {
        let copied = match idle {
            None => Some(copy.as_mut().await),
            Some(idle) => tokio::time::timeout(idle, copy.as_mut()).await.ok(),
        };
        match copied {
            Some(Ok(_)) => return Why::Finished,
            Some(Err(error)) => return Why::Broken(broken.get().unwrap_or(Side::Upstream), error),
            None if moved.take() => {}
            None => return Why::Silent,
        }
    }
}

/// The same until something ends it at the latest: where a certificate expires or is revoked, what was made with it ends.
///
/// # Errors
/// What ended it.
pub(crate) async fn pump_until<T>(
    over: impl Future<Output = T>,
    caller: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    (idle, counted): (Option<Duration>, &Moved),
) -> Result<Why, T> {
    tokio::select! {
        // First, because it says better why, where the bytes break by it too.
        biased;
        over = over => Err(over),
        why = pump(caller, upstream, idle, counted) => Ok(why),
    }
}

/// What is noted of a stream while it is used.
struct Notes<'a> {
    side: Side,
    bytes: &'a Cell<u64>,
    moved: &'a Cell<bool>,
    broken: &'a Cell<Option<Side>>,
}

impl Notes<'_> {
    fn result<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &result {
            Poll::Ready(Ok(_)) => self.moved.set(true),
            Poll::Ready(Err(_)) => self.broken.set(Some(self.side)),
            Poll::Pending => {}
        }
        result
    }
}

struct Noted<'a, T>(T, Notes<'a>);

impl<T: AsyncRead + Unpin> AsyncRead for Noted<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buffer);
        let count = buffer.filled().len() - before;
        self.1.bytes.set(self.1.bytes.get() + count as u64);
        self.1.result(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Noted<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(cx, bytes);
        self.1.result(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A peer that is gone already cannot be told that there is no more, and need not be.
        Pin::new(&mut self.0).poll_shutdown(cx).map(|_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn an_end_in_one_direction_leaves_the_other_open_until_it_ends_too() {
        let ((mut app, caller), (upstream, mut server)) = (duplex(64), duplex(64));
        let talk = async {
            app.write_all(b"question").await.unwrap();
            app.shutdown().await.unwrap();
            let mut asked = String::new();
            server.read_to_string(&mut asked).await.unwrap();
            server.write_all(b"an answer after the end").await.unwrap();
            drop(server);
            let mut answer = String::new();
            app.read_to_string(&mut answer).await.unwrap();
            (asked, answer)
        };
        let moved = Moved::default();
        let (why, (asked, answer)) = tokio::join!(pump(caller, upstream, None, &moved), talk);
        assert_eq!(
            (asked.as_str(), answer.as_str()),
            ("question", "an answer after the end")
        );
        assert_eq!((moved.from_caller.get(), moved.from_upstream.get()), (8, 23));
        assert!(matches!(why, Why::Finished), "{why:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_of_both_ends_it_and_a_byte_begins_it_anew() {
        let ((mut app, caller), (upstream, mut server)) = (duplex(64), duplex(64));
        let idle = Duration::from_secs(10);
        let speak = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(8)).await;
                app.write_all(b"x").await.unwrap();
                server.read_u8().await.unwrap();
            }
            tokio::time::Instant::now()
        };
        let moved = Moved::default();
        let (why, spoke_last) = tokio::join!(pump(caller, upstream, Some(idle), &moved), speak);
        assert!(matches!(why, Why::Silent), "{why:?}");
        let silence = tokio::time::Instant::now() - spoke_last;
        assert!(idle <= silence && silence <= idle * 2, "{silence:?}");
    }
}
