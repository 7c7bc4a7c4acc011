//! What a caller's HTTP/2 frames may cost us: the frames are counted and measured on their way in, before `h2` acts.
//!
//! `h2` bounds what it would have to keep (streams, header blocks, small DATA frames), but not what only costs time: it
//! answers every PING and SETTINGS and looks at every PRIORITY and WINDOW_UPDATE for as long as they come. Here a
//! connection has an allowance of frames that bring no request any further; what it asks for and gets gives some back,
//! and so does time. It also knows the size that each type of frame must have, which `h2` refuses with another code
//! than RFC 9113 section 4.2 has. It reads frame heads only: nothing is decoded or kept, and no clock is read.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::Stream;

/// Frames beside the point that a connection may send at once; they are given back once a second. Some hundred times
/// what busy callers send, and some percent of a core for one that sends them all, every second.
const ALLOWANCE_MAX: u32 = 10_000;

/// What a request counts that is taken back as soon as it was made: a route, an endpoint, a connection were chosen for
/// nothing (CVE-2023-44487). With the reset's own frame, so many that some nine hundred at once are a flood.
const REQUEST_TAKEN_BACK: u32 = 10;

/// Bytes sent that give one frame back: callers answer what they get by WINDOW_UPDATE, or ask by PING how fast it
/// comes. More than the 17 bytes with which a PING is answered, so that a flood does not pay for itself.
const BYTES_FOR_ONE: usize = 32;

/// The client's preface (RFC 9113 section 3.4), which `opening` has seen already.
const PREFACE_LENGTH: usize = 24;

/// RFC 9113 section 4.1.
const HEAD_LENGTH: usize = 9;

/// One setting: its number and its value (RFC 9113 section 6.5.1).
const SETTING_LENGTH: usize = 6;

/// RFC 9113 section 6.5.2: SETTINGS_INITIAL_WINDOW_SIZE, and the most that it may say.
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
const WINDOW_MAX: u32 = 0x7fff_ffff;

/// Types of frames (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Flags of frames.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// DATA that is padded and no longer than this may be nothing but padding.
const PADDING_MAX: usize = 256;

/// One connection's allowance, and what it was found guilty of.
#[derive(Debug)]
pub(super) struct Allowance {
    left: Cell<u32>,
    verdict: Cell<Option<Reason>>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            left: Cell::new(ALLOWANCE_MAX),
            verdict: Cell::new(None),
        }
    }
}

impl Allowance {
    /// With what the connection is to end, if it is.
    pub(super) fn verdict(&self) -> Option<Reason> {
        self.verdict.get()
    }

    /// Time has passed. Called about once a second.
    pub(super) fn renew(&self) {
        self.left.set(ALLOWANCE_MAX);
    }

    /// A request was taken back before there was anything to answer.
    pub(super) fn taken_back(&self) {
        if !self.spend(REQUEST_TAKEN_BACK) {
            self.verdict.set(Some(Reason::ENHANCE_YOUR_CALM));
        }
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

/// A caller's connection, its frames watched.
#[derive(Debug)]
pub(super) struct Watched {
    stream: Stream,
    frames: Frames,
    allowance: Rc<Allowance>,
}

impl Watched {
    pub(super) fn new(stream: Stream, allowance: Rc<Allowance>) -> Self {
        Self {
            stream,
            frames: Frames::default(),
            allowance,
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            stream,
            frames,
            allowance,
        } = &mut *self;
        if allowance.verdict.get().is_some() {
            // Nothing more is heard. Whoever polls the connection looks at the verdict next and ends it.
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(AsyncRead::poll_read(Pin::new(stream), cx, buffer))?;
        if let Err((reason, good)) = frames.take(&buffer.filled()[before..], allowance) {
            allowance.verdict.set(Some(reason));
            if good == 0 {
                // Handing on nothing would say that the connection has ended.
                buffer.set_filled(before);
                return Poll::Pending;
            }
            buffer.set_filled(before + good);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(AsyncWrite::poll_write(Pin::new(&mut self.stream), cx, bytes));
        self.allowance.sent(*written.as_ref().unwrap_or(&0));
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(AsyncWrite::poll_write_vectored(
            Pin::new(&mut self.stream),
            cx,
            slices
        ));
        self.allowance.sent(*written.as_ref().unwrap_or(&0));
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        AsyncWrite::is_write_vectored(&self.stream)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.stream), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.stream), cx)
    }
}

/// Where in the frames the reading stands.
#[derive(Debug)]
struct Frames {
    /// Bytes of the frame at hand (or of the preface) that are still to come.
    body: usize,
    /// Whether those are settings.
    in_settings: bool,
    /// The head of the next frame or the next setting, as far as it has come.
    part: [u8; HEAD_LENGTH],
    filled: usize,
    /// Whether the caller's first SETTINGS have begun.
    opened: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            body: PREFACE_LENGTH,
            in_settings: false,
            part: [0; HEAD_LENGTH],
            filled: 0,
            opened: false,
        }
    }
}

impl Frames {
    /// Looks at what has come.
    ///
    /// # Errors
    /// What the connection is to end with, and how many of these bytes come before the fault.
    fn take(&mut self, bytes: &[u8], allowance: &Allowance) -> Result<(), (Reason, usize)> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if self.body > 0 && !self.in_settings {
                let count = self.body.min(rest.len());
                self.body -= count;
                at += count;
                continue;
            }
            let wanted = if self.body > 0 {
                SETTING_LENGTH
            } else {
                HEAD_LENGTH
            };
            let count = (wanted - self.filled).min(rest.len());
            self.part[self.filled..self.filled + count].copy_from_slice(&rest[..count]);
            self.filled += count;
            if self.filled == wanted {
                self.filled = 0;
                let judged = match self.in_settings {
                    true => self.setting(),
                    false => self.head(allowance),
                };
                judged.map_err(|reason| (reason, at))?;
            }
            at += count;
        }
        Ok(())
    }

    fn setting(&mut self) -> Result<(), Reason> {
        self.body = self.body.saturating_sub(SETTING_LENGTH);
        self.in_settings = self.body > 0;
        let [first, second, value @ .., _, _, _] = self.part;
        match [first, second] == INITIAL_WINDOW_SIZE && u32::from_be_bytes(value) > WINDOW_MAX {
            true => Err(Reason::FLOW_CONTROL_ERROR),
            false => Ok(()),
        }
    }

    fn head(&mut self, allowance: &Allowance) -> Result<(), Reason> {
        let [high, middle, low, kind, flags, ..] = self.part;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if !std::mem::replace(&mut self.opened, true) && (kind != SETTINGS || flags & ACK != 0) {
            // RFC 9113 section 3.4: SETTINGS come first, and are the caller's own.
            return Err(Reason::PROTOCOL_ERROR);
        }
        let sized = match kind {
            PRIORITY => length == 5,
            RST_STREAM | WINDOW_UPDATE => length == 4,
            SETTINGS if flags & ACK != 0 => length == 0,
            SETTINGS => length.is_multiple_of(SETTING_LENGTH),
            PING => length == 8,
            GOAWAY => length >= 8,
            _ => true,
        };
        if !sized {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        let beside_the_point = match kind {
            HEADERS | CONTINUATION => false,
            DATA if flags & END_STREAM != 0 => false,
            DATA => length == 0 || flags & PADDED != 0 && length <= PADDING_MAX,
            _ => true,
        };
        if beside_the_point && !allowance.spend(1) {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        self.body = length;
        self.in_settings = kind == SETTINGS && length > 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 0], payload].concat()
    }

    fn opening() -> Vec<u8> {
        [vec![b'P'; PREFACE_LENGTH], frame(SETTINGS, 0, &[])].concat()
    }

    fn told(bytes: &[u8], allowance: &Allowance) -> Result<(), (Reason, usize)> {
        Frames::default().take(bytes, allowance)
    }

    #[test]
    fn however_the_bytes_are_cut_the_frames_are_the_same() {
        let wide = [0, 4, 0xff, 0, 0, 0];
        let bytes = [
            opening(),
            frame(DATA, 0, &[0; 100]),
            frame(SETTINGS, 0, &[0, 3, 0, 0, 0, 1]),
            frame(SETTINGS, 0, &[&[0, 3, 0, 0, 0, 1][..], &wide].concat()),
        ]
        .concat();
        for cut in 1..bytes.len() {
            let (mut frames, allowance) = (Frames::default(), Allowance::default());
            let told = bytes
                .chunks(cut)
                .try_for_each(|piece| frames.take(piece, &allowance));
            assert_eq!(
                told.unwrap_err().0,
                Reason::FLOW_CONTROL_ERROR,
                "in pieces of {cut}"
            );
            assert!(frames.take(&[], &allowance).is_ok());
        }
        let good = told(&bytes, &Allowance::default()).unwrap_err().1;
        assert_eq!(
            good,
            bytes.len() - wide.len(),
            "what comes before the fault is handed on"
        );
    }

    #[test]
    fn the_first_frame_is_the_caller_s_settings() {
        for first in [
            frame(PING, 0, &[0; 8]),
            frame(SETTINGS, ACK, &[]),
            frame(HEADERS, 0, &[]),
        ] {
            let bytes = [vec![b'P'; PREFACE_LENGTH], first].concat();
            let told = told(&bytes, &Allowance::default());
            assert_eq!(told, Err((Reason::PROTOCOL_ERROR, PREFACE_LENGTH)));
        }
    }

    #[test]
    fn an_allowance_ends_and_time_and_answers_give_it_back() {
        let allowance = Allowance::default();
        let mut frames = Frames::default();
        frames.take(&opening(), &allowance).unwrap();
        let ping = frame(PING, 0, &[0; 8]);
        let sent = (0..)
            .take_while(|_| frames.take(&ping, &allowance).is_ok())
            .count();
        assert_eq!(
            sent,
            ALLOWANCE_MAX as usize - 1,
            "all but one, which was SETTINGS"
        );
        allowance.sent(BYTES_FOR_ONE * 3);
        assert_eq!(allowance.left.get(), 3);
        allowance.renew();
        assert!(frames.take(&ping, &allowance).is_ok());
        assert_eq!(allowance.verdict(), None);
        (0..ALLOWANCE_MAX / REQUEST_TAKEN_BACK).for_each(|_| allowance.taken_back());
        assert_eq!(allowance.verdict(), Some(Reason::ENHANCE_YOUR_CALM));
    }

    #[test]
    fn requests_and_their_bodies_cost_nothing() {
        let allowance = Allowance::default();
        let request = [
            frame(HEADERS, 4, &[1; 20]),
            frame(DATA, 0, b"x"),
            frame(DATA, END_STREAM, &[]),
        ]
        .concat();
        let bytes = [opening(), request.repeat(50_000)].concat();
        assert_eq!(told(&bytes, &allowance), Ok(()));
        assert_eq!(allowance.left.get(), ALLOWANCE_MAX - 1);
    }
}
