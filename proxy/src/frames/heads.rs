//! The heads of frames, what their streams allow, and where their header blocks begin and end.
//!
//! It knows what `h2` refuses with another code than RFC 9113 has, and only that: the size that each type of frame must
//! have (section 4.2), frames on a stream that the caller has ended (section 5.1), header blocks that cannot be
//! decoded (section 4.3). It also finds pseudo-headers where they do not belong. The rest is left to `h2`, which looks at
//! everything that is handed on.

use std::collections::VecDeque;

use h2::Reason;

use super::fields::{Fault, Fields};
use super::{Allowance, From};

/// The client's preface (RFC 9113 section 3.4), which `opening` has seen already.
pub(super) const PREFACE_LENGTH: usize = 24;

/// RFC 9113 section 4.1.
const HEAD_LENGTH: usize = 9;

/// The largest payload that we take: RFC 9113 section 6.5.2's first value, and we say nothing else.
const PAYLOAD_MAX: usize = 16_384;

/// One setting: its number and its value (RFC 9113 section 6.5.1).
const SETTING_LENGTH: usize = 6;

/// RFC 9113 section 6.5.2: SETTINGS_INITIAL_WINDOW_SIZE, and the most that it may say.
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
const WINDOW_MAX: u32 = 0x7fff_ffff;

/// Types of frames (RFC 9113 section 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Flags of frames.
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 32;

/// What a HEADERS frame has before its block when it has a priority (RFC 9113 section 6.2).
const PRIORITY_LENGTH: usize = 5;

/// DATA that is padded and no longer than this may be nothing but padding.
const PADDING_MAX: usize = 256;

/// Streams of a caller, counted back from its newest, of which one bit says whether the caller has ended them: four times
/// what it may have under way. Of older ones, those are kept that it has not ended.
const STREAMS_KNOWN: u32 = 1_024;

/// Streams older than those that the caller has not ended: uploads that go on, at most as many as may be under way, and
/// those that were reset or that it never began, of which only these many are told apart. They take 4 KiB, where there
/// are any. What it sends on streams that are older still is left to `h2`.
const OPEN_MAX: usize = 1_024;

/// What the bytes at hand are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    /// Nothing that is looked at.
    Other,
    Settings,
    /// A part of a header block.
    Block,
}

/// A header block that has begun.
#[derive(Clone, Copy, Debug)]
struct Begun {
    stream: u32,
    /// Whether it ends a message that has had its head.
    trailers: bool,
}

/// Where in the frames the reading stands.
#[derive(Debug)]
pub(super) struct Frames {
    from: From,
    /// Bytes of the frame at hand (or of the preface) that are still to come, and what they are.
    body: usize,
    within: Within,
    /// The head of the next frame or the next setting, as far as it has come.
    part: [u8; HEAD_LENGTH],
    filled: usize,
    /// Whether the peer's first SETTINGS have begun.
    opened: bool,
    /// The flags of the frame at hand, and its part of a header block where it has not come in one piece.
    kind: u8,
    flags: u8,
    gathered: Vec<u8>,
    begun: Option<Begun>,
    /// How many header blocks have ended.
    blocks: u64,
    fields: Fields,
    ended: Ended,
}

impl Frames {
    pub(super) fn of_a_caller() -> Self {
        Self {
            body: PREFACE_LENGTH,
            ..Self::of(From::Caller)
        }
    }

    pub(super) fn of_an_endpoint() -> Self {
        Self::of(From::Endpoint)
    }

    fn of(from: From) -> Self {
        Self {
            from,
            body: 0,
            within: Within::Other,
            part: [0; HEAD_LENGTH],
            filled: 0,
            opened: false,
            kind: 0,
            flags: 0,
            gathered: Vec::new(),
            begun: None,
            blocks: 0,
            fields: Fields::new(from == From::Caller),
            ended: Ended::default(),
        }
    }

    /// Looks at what has come.
    ///
    /// # Errors
    /// What the connection is to end with, and how many of these bytes may be handed on: none of the fault, or so
    /// little of it that it is not seen.
    pub(super) fn take(&mut self, bytes: &[u8], allowance: &Allowance) -> Result<(), (Reason, usize)> {
        let taken = self.pieces(bytes, allowance);
        allowance.unfinished.set(self.begun.map(|_| self.blocks));
        taken
    }

    fn pieces(&mut self, bytes: &[u8], allowance: &Allowance) -> Result<(), (Reason, usize)> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if self.body > 0 && self.within != Within::Settings {
                let count = self.body.min(rest.len());
                self.body -= count;
                if self.within == Within::Block {
                    self.block(&rest[..count], allowance)
                        .map_err(|reason| (reason, at))?;
                }
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
                let judged = match self.within {
                    Within::Settings if self.body > 0 => self.setting(),
                    _ => self.head(allowance),
                };
                judged.map_err(|reason| (reason, at))?;
            }
            at += count;
        }
        Ok(())
    }

    fn setting(&mut self) -> Result<(), Reason> {
        self.body = self.body.saturating_sub(SETTING_LENGTH);
        let [first, second, value @ .., _, _, _] = self.part;
        let too_wide = [first, second] == INITIAL_WINDOW_SIZE && u32::from_be_bytes(value) > WINDOW_MAX;
        match too_wide && self.from == From::Caller {
            true => Err(Reason::FLOW_CONTROL_ERROR),
            false => Ok(()),
        }
    }

    fn head(&mut self, allowance: &Allowance) -> Result<(), Reason> {
        let [high, middle, low, kind, flags, stream @ ..] = self.part;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        // The highest bit is reserved (RFC 9113 section 4.1).
        let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
        if self.from == From::Caller {
            self.is_right(kind, flags, length)?;
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
        (self.body, self.kind, self.flags) = (length, kind, flags);
        self.within = match kind {
            SETTINGS => Within::Settings,
            HEADERS | CONTINUATION if length <= PAYLOAD_MAX && self.has_block(stream)? => Within::Block,
            DATA if self.begun.is_none() => {
                self.ended.data(self.from, stream, flags)?;
                Within::Other
            }
            _ => Within::Other,
        };
        match self.within == Within::Block && length == 0 {
            true => self.block(&[], allowance),
            false => Ok(()),
        }
    }

    /// What `h2` refuses with another code than RFC 9113 has.
    fn is_right(&mut self, kind: u8, flags: u8, length: usize) -> Result<(), Reason> {
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
        match sized {
            true => Ok(()),
            false => Err(Reason::FRAME_SIZE_ERROR),
        }
    }

    /// Whether the frame at hand has a part of a header block that belongs where it is; else `h2` refuses it.
    fn has_block(&mut self, stream: u32) -> Result<bool, Reason> {
        if self.kind == CONTINUATION {
            return Ok(self.begun.is_some_and(|begun| begun.stream == stream));
        }
        if self.begun.is_some() {
            return Ok(false);
        }
        let trailers = self.ended.headers(self.from, stream, self.flags)?;
        self.begun = Some(Begun { stream, trailers });
        Ok(true)
    }

    /// Bytes of a frame that has a part of a header block. It is looked at when the frame is whole, so that it is looked
    /// at no more often than there are frames, of which `h2` bounds the number.
    fn block(&mut self, bytes: &[u8], allowance: &Allowance) -> Result<(), Reason> {
        if self.body > 0 {
            self.gathered.extend_from_slice(bytes);
            return Ok(());
        }
        let judged = if self.gathered.is_empty() {
            self.whole(bytes, allowance)
        } else {
            self.gathered.extend_from_slice(bytes);
            let gathered = std::mem::take(&mut self.gathered);
            self.whole(&gathered, allowance)
        };
        match (judged, self.from) {
            // An endpoint that sends this has its connection ended by `h2`, which says so to it.
            (Err(Reason::COMPRESSION_ERROR), From::Endpoint) => Ok(()),
            (judged, _) => judged,
        }
    }

    fn whole(&mut self, payload: &[u8], allowance: &Allowance) -> Result<(), Reason> {
        // With more padding than there is room for, `h2` refuses it.
        let Some(part) = self.unpadded(payload) else {
            return Ok(());
        };
        self.fields.part(part).map_err(code)?;
        if self.flags & END_HEADERS == 0 {
            return Ok(());
        }
        self.blocks += 1;
        let found = self.fields.end().map_err(code)?;
        let Some(Begun { stream, trailers }) = self.begun.take() else {
            return Ok(());
        };
        // RFC 9113 section 8.3: pseudo-headers are for heads only, and those of requests for requests.
        let malformed = match self.from {
            From::Caller => trailers && (found.status || found.other),
            From::Endpoint => found.other,
        };
        match malformed {
            // It might be said again by its place in the table, which is not followed.
            true if found.remembered => Err(Reason::PROTOCOL_ERROR),
            true => allowance.found_malformed(stream),
            false => Ok(()),
        }
    }

    /// The part of a block that a frame has, without what may stand around it (RFC 9113 section 6.2).
    fn unpadded<'a>(&self, payload: &'a [u8]) -> Option<&'a [u8]> {
        let plain = self.kind == CONTINUATION || self.flags & (PADDED | WITH_PRIORITY) == 0;
        if plain {
            return Some(payload);
        }
        let (padding, mut rest) = match self.flags & PADDED {
            0 => (0, payload),
            _ => payload
                .split_first()
                .map(|(padding, rest)| (usize::from(*padding), rest))?,
        };
        if self.flags & WITH_PRIORITY != 0 {
            rest = rest.get(PRIORITY_LENGTH..)?;
        }
        rest.get(..rest.len().checked_sub(padding)?)
    }
}

fn code(fault: Fault) -> Reason {
    match fault {
        Fault::Undecodable => Reason::COMPRESSION_ERROR,
        Fault::TooLong => Reason::ENHANCE_YOUR_CALM,
    }
}

/// Which of a caller's streams it has ended itself.
#[derive(Debug)]
struct Ended {
    /// The highest number that it has used.
    newest: u32,
    /// One bit for each number that a caller may use, round and round.
    bits: [u64; (STREAMS_KNOWN / u64::BITS) as usize],
    /// The older ones that it has not ended, in their order.
    open: VecDeque<u32>,
    /// The highest number of which, and of all below, nothing is known.
    forgotten: u32,
}

impl Default for Ended {
    fn default() -> Self {
        Self {
            newest: 0,
            bits: [0; (STREAMS_KNOWN / u64::BITS) as usize],
            open: VecDeque::new(),
            forgotten: 0,
        }
    }
}

impl Ended {
    /// A header block begins. Whether it is one of trailers.
    ///
    /// # Errors
    /// When the caller has ended the stream (RFC 9113 section 5.1).
    fn headers(&mut self, from: From, stream: u32, flags: u8) -> Result<bool, Reason> {
        if from == From::Endpoint || stream.is_multiple_of(2) {
            return Ok(false);
        }
        let trailers = stream <= self.newest;
        if trailers {
            self.data(from, stream, flags)?;
        } else {
            self.begins(stream);
            self.ends(stream, flags);
        }
        Ok(trailers)
    }

    /// DATA or trailers come.
    ///
    /// # Errors
    /// When the caller has ended the stream (RFC 9113 section 5.1).
    fn data(&mut self, from: From, stream: u32, flags: u8) -> Result<(), Reason> {
        let known = self.forgotten < stream && stream <= self.newest;
        if from == From::Endpoint || stream.is_multiple_of(2) || !known {
            return Ok(());
        }
        if (self.newest - stream) / 2 >= STREAMS_KNOWN {
            return self.data_of_old(stream, flags);
        }
        let (word, bit) = place(stream);
        if self.bits[word] & bit != 0 {
            return Err(Reason::STREAM_CLOSED);
        }
        self.ends(stream, flags);
        Ok(())
    }

    /// The same of one that is older than those which have a bit: it is among the open ones, or has been ended.
    #[cold]
    fn data_of_old(&mut self, stream: u32, flags: u8) -> Result<(), Reason> {
        let Ok(place) = self.open.binary_search(&stream) else {
            return Err(Reason::STREAM_CLOSED);
        };
        if flags & END_STREAM != 0 {
            self.open.remove(place);
        }
        Ok(())
    }

    fn begins(&mut self, stream: u32) {
        let passed = (stream - self.newest).div_ceil(2);
        if passed >= STREAMS_KNOWN {
            // RFC 9113 section 5.1.1 allows it, and no client that is known does it: it is not worth its own memory.
            self.bits.fill(0);
            self.open.clear();
            self.forgotten = stream.saturating_sub(2 * STREAMS_KNOWN);
        } else {
            for number in (0..passed).rev().map(|back| stream - 2 * back) {
                let (word, bit) = place(number);
                if self.bits[word] & bit == 0 && number > 2 * STREAMS_KNOWN {
                    self.stays_open(number - 2 * STREAMS_KNOWN);
                }
                self.bits[word] &= !bit;
            }
        }
        self.newest = stream;
    }

    /// The bit of a stream is taken by a newer one, and the caller has not ended it.
    #[cold]
    fn stays_open(&mut self, stream: u32) {
        if self.open.len() == OPEN_MAX {
            self.forgotten = self.open.pop_front().unwrap_or(self.forgotten);
        }
        self.open.push_back(stream);
    }

    fn ends(&mut self, stream: u32, flags: u8) {
        if flags & END_STREAM != 0 {
            let (word, bit) = place(stream);
            self.bits[word] |= bit;
        }
    }
}

/// Where a stream's bit is.
fn place(stream: u32) -> (usize, u64) {
    let place = stream / 2 % STREAMS_KNOWN;
    ((place / u64::BITS) as usize, 1 << (place % u64::BITS))
}
