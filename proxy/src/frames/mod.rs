//! HTTP/2's frames on their way in, looked at before `h2` acts: what they may cost us, and what `h2` leaves open.
//!
//! `h2` bounds what it would have to keep (streams, header blocks, small DATA frames), but not what only costs time: it
//! answers every PING and SETTINGS and looks at every PRIORITY and WINDOW_UPDATE for as long as they come. Here a
//! connection has an allowance of frames that bring no request any further; what it asks for and gets gives some back,
//! and so does time. `heads` knows what a caller's frames must be where `h2` ends a connection with another code than
//! the RFCs have, and `fields` looks through header blocks. Nothing is decoded, and nothing kept but a header block's
//! unfinished part; a clock is read only when half of an allowance is used up. What `h2` writes is `gather`ed on its way out.

mod fields;
mod gather;
mod heads;

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use gather::Gathered;
use heads::Frames;

/// Frames beside the point that a connection may send at once; they are given back once a second. Some hundred times
/// what busy callers send, and some percent of a core for one that sends them all, every second.
const ALLOWANCE_MAX: u32 = 10_000;

/// Requests that a connection may take back at once beyond those that it lets be answered: a route, an endpoint, a
/// connection were chosen for nothing (CVE-2023-44487). Envoy's number; a caller that hedges takes back no more than every
/// second one.
const TAKEN_BACK_MAX: u32 = 500;

/// How many of them a second forgives: enough for callers that live for days, and nothing to one that floods.
const TAKEN_BACK_FORGIVEN: u32 = 10;

/// Bytes sent that give one frame back: callers answer what they get by WINDOW_UPDATE, or ask by PING how fast it
/// comes. More than the 17 bytes with which a PING is answered, so that a flood does not pay for itself.
const BYTES_FOR_ONE: usize = 32;

/// How often an allowance is given back.
const RENEWAL: Duration = Duration::from_secs(1);

/// Streams that are known as malformed, in the life of a connection. Past this it is no mistake, and the connection ends.
const MALFORMED_MAX: usize = 100;

/// One connection's allowance, and what it was found guilty of.
#[derive(Debug)]
pub(crate) struct Allowance {
    left: Cell<u32>,
    renewed: Cell<Instant>,
    /// Requests that were taken back at once, less those that were not.
    taken_back: Cell<u32>,
    verdict: Cell<Option<Reason>>,
    /// The header block that has begun and not ended, by its number in the life of the connection.
    unfinished: Cell<Option<u64>>,
    /// Streams on which something malformed came that `h2` passes over. They are few, and never used again.
    malformed: RefCell<Vec<u32>>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            left: Cell::new(ALLOWANCE_MAX),
            renewed: Cell::new(Instant::now()),
            taken_back: Cell::new(0),
            verdict: Cell::new(None),
            unfinished: Cell::new(None),
            malformed: RefCell::default(),
        }
    }
}

impl Allowance {
    /// With what the connection is to end, if it is.
    pub(crate) fn verdict(&self) -> Option<Reason> {
        self.verdict.get()
    }

    /// Whether something malformed came on a stream that `h2` passes over (RFC 9113 section 8.1.1): a pseudo-header
    /// where it does not belong. The stream's number is asked for only where it may be.
    pub(crate) fn is_malformed(&self, stream: impl FnOnce() -> u32) -> bool {
        let malformed = self.malformed.borrow();
        !malformed.is_empty() && malformed.contains(&stream())
    }

    /// The header block that has begun and not ended, if there is one: its number in the life of the connection.
    pub(crate) fn unfinished_head(&self) -> Option<u64> {
        self.unfinished.get()
    }

    fn found_malformed(&self, stream: u32) -> Result<(), Reason> {
        let mut malformed = self.malformed.borrow_mut();
        if malformed.len() >= MALFORMED_MAX {
            return Err(Reason::PROTOCOL_ERROR);
        }
        malformed.push(stream);
        Ok(())
    }

    /// Gives it all back, if it is time.
    fn renew(&self, now: Instant) {
        if now.saturating_duration_since(self.renewed.get()) >= RENEWAL {
            self.renewed.set(now);
            self.left.set(ALLOWANCE_MAX);
        }
    }

    /// A request was taken back before there was anything to answer.
    pub(crate) fn taken_back(&self) {
        let count = self.taken_back.get() + 1;
        self.taken_back.set(count);
        if count > TAKEN_BACK_MAX {
            self.verdict.set(Some(Reason::ENHANCE_YOUR_CALM));
        }
    }

    /// A request was not taken back.
    pub(crate) fn answered(&self) {
        self.taken_back.set(self.taken_back.get().saturating_sub(1));
    }

    /// A second has passed.
    pub(crate) fn forgive(&self) {
        let count = self.taken_back.get();
        self.taken_back.set(count.saturating_sub(TAKEN_BACK_FORGIVEN));
    }

    fn sent(&self, bytes: usize) {
        let more = u32::try_from(bytes / BYTES_FOR_ONE).unwrap_or(ALLOWANCE_MAX);
        self.left
            .set(self.left.get().saturating_add(more).min(ALLOWANCE_MAX));
    }

    fn spend(&self, count: u32) -> bool {
        let left = self.left.get().checked_sub(count);
        self.left.set(left.unwrap_or(0));
        left.is_some()
    }
}

/// Whose frames they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Caller,
    Endpoint,
}

/// A connection, the frames that come on it watched.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    gathered: Gathered,
    frames: Frames,
    allowance: Rc<Allowance>,
    from: From,
}

impl<S> Watched<S> {
    /// A caller's connection. Once there is a verdict nothing more is heard of it, and whoever polls it ends it with that.
    pub(crate) fn caller(stream: S, allowance: Rc<Allowance>) -> Self {
        Self {
            stream,
            gathered: Gathered::default(),
            frames: Frames::of_a_caller(),
            allowance,
            from: From::Caller,
        }
    }

    /// A connection to an endpoint. Once there is a verdict reading it fails with `InvalidData`.
    pub(crate) fn endpoint(stream: S, allowance: Rc<Allowance>) -> Self {
        Self {
            stream,
            gathered: Gathered::default(),
            frames: Frames::of_an_endpoint(),
            allowance,
            from: From::Endpoint,
        }
    }

    /// What a read tells after the verdict.
    fn unheard(&self, reason: Reason) -> Poll<io::Result<()>> {
        match self.from {
            // Nothing more is heard. Whoever polls the connection looks at the verdict next and ends it.
            From::Caller => Poll::Pending,
            From::Endpoint => {
                let detail = match reason {
                    Reason::ENHANCE_YOUR_CALM => "it floods the connection with frames that say nothing",
                    _ => "it keeps sending pseudo-headers where they do not belong",
                };
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, detail)))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(reason) = self.allowance.verdict.get() {
            return self.unheard(reason);
        }
        let Self {
            stream,
            frames,
            allowance,
            ..
        } = &mut *self;
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buffer))?;
        if allowance.left.get() < ALLOWANCE_MAX / 2 {
            allowance.renew(Instant::now());
        }
        if let Err((reason, good)) = frames.take(&buffer.filled()[before..], allowance) {
            allowance.verdict.set(Some(reason));
            if good == 0 {
                // Handing on nothing would say that the connection has ended.
                buffer.set_filled(before);
                return self.unheard(reason);
            }
            buffer.set_filled(before + good);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, gathered, .. } = &mut *self;
        let written = ready!(gathered.poll_write(stream, cx, bytes));
        self.allowance.sent(*written.as_ref().unwrap_or(&0));
        Poll::Ready(written)
    }

    /// Said so that `h2` copies frames of up to 1 KiB behind one another, which it does with 256 bytes only where slices are
    /// taken; what it hands over apart is gathered here.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, gathered, .. } = &mut *self;
        gathered.poll_flush(stream, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
