//! Header blocks, looked through without decoding them (RFC 7541): whether they can be decoded at all, and whether they
//! have pseudo-headers in them.
//!
//! `h2` decodes them, but ends a connection for a fault in them with another code than RFC 9113 section 4.3 has, and
//! passes over pseudo-headers where they do not belong. To know of both before it does takes the sizes of the table's
//! entries and the lengths of Huffman's codes; no name and no value is kept or put together.

use std::collections::VecDeque;

/// RFC 7541 section 4.1: what an entry counts beyond its name and its value.
const ENTRY_OVERHEAD: usize = 32;

/// The table's largest size: what RFC 9113 section 6.5.2 begins with, and we say nothing else.
const TABLE_MAX: usize = 4096;

/// RFC 7541 appendix A: the entries of the static table, and among them those of `:status`; the pseudo-headers of
/// requests come before these.
const STATIC_ENTRIES: usize = 61;
const STATIC_STATUS: std::ops::RangeInclusive<usize> = 8..=14;
/// The length of each static entry's name is needed where a field is remembered under it.
const STATIC_NAMES: [u8; STATIC_ENTRIES] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14, 16, 13,
    12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10, 25, 17, 10, 4, 3,
    16,
];

/// Bytes that an integer may have (RFC 7541 section 5.1 leaves it open): `h2`'s bound, which no size here needs.
const INTEGER_BYTES_MAX: usize = 5;

/// What of a block may wait for its rest: more than `h2` takes of one before it ends the connection for having too
/// many CONTINUATION, so that this is never what decides.
const UNFINISHED_MAX: usize = 8 * 16_384;

/// `:status` in Huffman's code, as a name may be written.
const STATUS_CODED: [u8; 5] = [0xb8, 0x84, 0x8d, 0x36, 0xa3];

/// Huffman's code is canonical (RFC 7541 appendix B), so that a code's length follows from its value: the first value
/// past the codes of each length, and the length.
const LONG_CODES: [(u32, u32); 16] = [
    (0xff40_0000, 10),
    (0xffa0_0000, 11),
    (0xffc0_0000, 12),
    (0xfff0_0000, 13),
    (0xfff8_0000, 14),
    (0xfffe_0000, 15),
    (0xfffe_6000, 19),
    (0xfffe_e000, 20),
    (0xffff_4800, 21),
    (0xffff_b000, 22),
    (0xffff_ea00, 23),
    (0xffff_f600, 24),
    (0xffff_f800, 25),
    (0xffff_fbc0, 26),
    (0xffff_fe20, 27),
    (0xffff_fff0, 28),
];
const LONGEST_CODE: u32 = 30;
/// The end of the string, which must not be in one (RFC 7541 section 5.2): thirty ones.
const END_OF_STRING: u32 = 0xffff_fffc;

/// Why a block is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It cannot be decoded.
    Undecodable,
    /// It is longer than any that is taken.
    TooLong,
}

/// What kind of field a name makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Plain,
    /// The pseudo-header of answers.
    Status,
    /// Any other pseudo-header.
    Pseudo,
}

/// What was found in a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) status: bool,
    /// A pseudo-header other than `:status`.
    pub(super) other: bool,
    /// One that is to be remembered, where the table is not followed: it would not be known again.
    pub(super) remembered: bool,
}

/// An entry of the dynamic table: no more than the table has (TABLE_MAX) fits in one.
#[derive(Clone, Copy, Debug)]
struct Entry {
    name_length: u16,
    size: u16,
    name: Name,
}

/// The header blocks of one connection, one after the other.
#[derive(Debug)]
pub(super) struct Fields {
    strict: bool,
    /// The newest first.
    table: VecDeque<Entry>,
    size: usize,
    size_max: usize,
    /// What of the block at hand waits for its rest.
    unfinished: Vec<u8>,
    /// Whether a field of the block at hand has been seen.
    begun: bool,
    found: Found,
}

impl Fields {
    /// Where faults in them are left to `h2`, only literals are looked at: without following the table, neither its
    /// entries nor the lengths of strings need to be known.
    pub(super) fn new(strict: bool) -> Self {
        Self {
            strict,
            table: VecDeque::new(),
            size: 0,
            size_max: TABLE_MAX,
            unfinished: Vec::new(),
            begun: false,
            found: Found::default(),
        }
    }
}

/// Why something could not be read.
enum Stopped {
    /// The bytes end in it.
    Short,
    Fault,
}

impl Fields {
    /// Looks through one frame's part of a block.
    ///
    /// # Errors
    /// When it cannot be decoded, or is too long.
    pub(super) fn part(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.unfinished.is_empty() {
            let done = self.walk(bytes)?;
            self.unfinished.extend_from_slice(&bytes[done..]);
        } else {
            let mut all = std::mem::take(&mut self.unfinished);
            all.extend_from_slice(bytes);
            let done = self.walk(&all)?;
            all.drain(..done);
            self.unfinished = all;
        }
        match self.unfinished.len() > UNFINISHED_MAX {
            true => Err(Fault::TooLong),
            false => Ok(()),
        }
    }

    /// The block is over: what was in it.
    ///
    /// # Errors
    /// When it ends in the middle of a field.
    pub(super) fn end(&mut self) -> Result<Found, Fault> {
        self.begun = false;
        let found = std::mem::take(&mut self.found);
        match std::mem::take(&mut self.unfinished).is_empty() {
            true => Ok(found),
            false => Err(Fault::Undecodable),
        }
    }

    /// Takes whole representations; how many bytes they were.
    fn walk(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut rest = bytes;
        while let Some((&first, after)) = rest.split_first() {
            // Most fields are one byte, which names an entry of the tables.
            let known = match first {
                0x81..=0x87 => Some(Name::Pseudo),
                0x88..=0x8e => Some(Name::Status),
                0x8f..=0xbd => Some(Name::Plain),
                0xbe..=0xfe => self.entry(usize::from(first - 0xbe)).map(|(name, _)| name),
                _ => None,
            };
            if let Some(name) = known {
                self.saw(name);
                rest = after;
                continue;
            }
            let mut ahead = rest;
            match self.representation(first, &mut ahead) {
                Ok(()) => rest = ahead,
                Err(Stopped::Short) => break,
                Err(Stopped::Fault) => return Err(Fault::Undecodable),
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// RFC 7541 section 6.
    fn representation(&mut self, first: u8, bytes: &mut &[u8]) -> Result<(), Stopped> {
        if first & 0x80 != 0 {
            let index = integer(bytes, 7)?;
            let (name, _) = self.name(index)?;
            self.saw(name);
            return Ok(());
        }
        if first & 0xe0 == 0x20 {
            let size = integer(bytes, 5)?;
            // RFC 7541 section 4.2: at the beginning of a block only.
            if self.begun || size > TABLE_MAX {
                return Err(Stopped::Fault);
            }
            self.size_max = size;
            self.make_room(0);
            return Ok(());
        }
        let remembered = first & 0x40 != 0;
        let index = integer(bytes, if remembered { 6 } else { 4 })?;
        let (name, name_length) = match index {
            0 => {
                let written = Written::take(bytes)?;
                let length = if self.strict { written.length()? } else { 0 };
                (written.name(), length)
            }
            index => self.name(index)?,
        };
        let value = Written::take(bytes)?;
        self.saw(name);
        if self.strict {
            let value_length = value.length()?;
            if remembered {
                self.remember(name, name_length, name_length + value_length + ENTRY_OVERHEAD);
            }
        } else if remembered && name == Name::Pseudo {
            self.found.remembered = true;
        }
        Ok(())
    }

    fn saw(&mut self, name: Name) {
        self.begun = true;
        match name {
            Name::Plain => {}
            Name::Status => self.found.status = true,
            Name::Pseudo => self.found.other = true,
        }
    }

    /// The name at an index, and its length.
    fn name(&self, index: usize) -> Result<(Name, usize), Stopped> {
        let place = index.checked_sub(1).ok_or(Stopped::Fault)?;
        if let Some(length) = STATIC_NAMES.get(place) {
            let name = match index {
                index if STATIC_STATUS.contains(&index) => Name::Status,
                index if index < *STATIC_STATUS.start() => Name::Pseudo,
                _ => Name::Plain,
            };
            return Ok((name, usize::from(*length)));
        }
        self.entry(place - STATIC_ENTRIES).ok_or(Stopped::Fault)
    }

    /// The name of an entry of the dynamic table, and its length.
    fn entry(&self, place: usize) -> Option<(Name, usize)> {
        if !self.strict {
            return Some((Name::Plain, 0));
        }
        let entry = self.table.get(place)?;
        Some((entry.name, usize::from(entry.name_length)))
    }

    /// RFC 7541 section 4.4.
    fn remember(&mut self, name: Name, name_length: usize, size: usize) {
        self.make_room(size);
        if size > self.size_max {
            return;
        }
        if let (Ok(name_length), Ok(small)) = (u16::try_from(name_length), u16::try_from(size)) {
            self.size += size;
            self.table.push_front(Entry {
                name_length,
                size: small,
                name,
            });
        }
    }

    /// RFC 7541 section 4.3.
    fn make_room(&mut self, size: usize) {
        while self.size + size > self.size_max {
            let Some(last) = self.table.pop_back() else { return };
            self.size -= usize::from(last.size);
        }
    }
}

/// RFC 7541 section 5.1.
fn integer(bytes: &mut &[u8], prefix: u32) -> Result<usize, Stopped> {
    let (first, mut rest) = bytes.split_first().ok_or(Stopped::Short)?;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        let mut count = 1;
        loop {
            let (byte, more) = rest.split_first().ok_or(Stopped::Short)?;
            value += usize::from(byte & 0x7f) << (7 * (count - 1));
            count += 1;
            rest = more;
            if byte & 0x80 == 0 {
                break;
            }
            if count == INTEGER_BYTES_MAX {
                return Err(Stopped::Fault);
            }
        }
    }
    *bytes = rest;
    Ok(value)
}

/// A string as it is written (RFC 7541 section 5.2).
#[derive(Clone, Copy)]
struct Written<'a> {
    bytes: &'a [u8],
    coded: bool,
}

impl<'a> Written<'a> {
    fn take(bytes: &mut &'a [u8]) -> Result<Self, Stopped> {
        let coded = bytes.first().ok_or(Stopped::Short)? & 0x80 != 0;
        let length = integer(bytes, 7)?;
        let (written, rest) = bytes.split_at_checked(length).ok_or(Stopped::Short)?;
        *bytes = rest;
        Ok(Self {
            bytes: written,
            coded,
        })
    }

    /// How long it is when it is decoded.
    fn length(self) -> Result<usize, Stopped> {
        match self.coded {
            true => decoded_length(self.bytes).ok_or(Stopped::Fault),
            false => Ok(self.bytes.len()),
        }
    }

    /// What kind of name it is.
    fn name(self) -> Name {
        match (self.coded, self.bytes.first()) {
            // A colon is seven bits in Huffman's code.
            (true, Some(first)) if first >> 1 == STATUS_CODED[0] >> 1 => match self.bytes == STATUS_CODED {
                true => Name::Status,
                false => Name::Pseudo,
            },
            (false, Some(b':')) if self.bytes == b":status" => Name::Status,
            (false, Some(b':')) => Name::Pseudo,
            _ => Name::Plain,
        }
    }
}

/// How long a string in Huffman's code is when it is decoded; `None`: it is not one.
fn decoded_length(coded: &[u8]) -> Option<usize> {
    // Turned over, so that what is not there counts as ones, which is what padding has to be.
    let (mut inverse, mut bits, mut count) = (0_u64, 0_u32, 0);
    let mut rest = coded;
    loop {
        if bits < 32 {
            if let Some((four, more)) = rest.split_first_chunk::<4>() {
                inverse |= u64::from(!u32::from_be_bytes(*four)) << (32 - bits);
                bits += 32;
                rest = more;
            } else if let Some((byte, more)) = rest.split_first() {
                inverse |= u64::from(!byte) << (56 - bits);
                bits += 8;
                rest = more;
                continue;
            }
        }
        let step = STEPS[(!inverse >> (64 - STEP_BITS)) as usize];
        let (mut length, mut codes) = (u32::from(step & 0x0f), usize::from(step >> 4));
        if step == 0 || length > bits {
            let code = (!inverse >> 32) as u32;
            (length, codes) = (code_length(code), 1);
            if length > bits || code >= END_OF_STRING {
                return (bits < 8 && code == u32::MAX).then_some(count);
            }
        }
        inverse <<= length;
        bits -= length;
        count += codes;
    }
}

/// Bits that are looked at together: two letters.
const STEP_BITS: u32 = 12;

/// For each value of so many bits: how many of them whole codes take, and in the upper half how many codes, at most two;
/// 0 where the first code is longer.
static STEPS: [u8; 1 << STEP_BITS] = steps();

const fn steps() -> [u8; 1 << STEP_BITS] {
    let mut all = [0; 1 << STEP_BITS];
    let mut value = 0;
    while value < all.len() {
        let bits = (value as u32) << (32 - STEP_BITS);
        let first = code_length(bits);
        if first <= STEP_BITS {
            let both = first + code_length(bits << first);
            all[value] = match both <= STEP_BITS {
                true => 0x20 | both as u8,
                false => 0x10 | first as u8,
            };
        }
        value += 1;
    }
    all
}

/// The length of the code that these bits begin with.
const fn code_length(code: u32) -> u32 {
    match code >> 24 {
        0..0x50 => 5,
        0x50..0xb8 => 6,
        0xb8..0xf8 => 7,
        0xf8..0xfe => 8,
        _ => {
            let mut place = 0;
            while place < LONG_CODES.len() {
                if code < LONG_CODES[place].0 {
                    return LONG_CODES[place].1;
                }
                place += 1;
            }
            LONGEST_CODE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(block: &[u8]) -> Result<Found, Fault> {
        let mut fields = Fields::new(true);
        fields.part(block)?;
        fields.end()
    }

    fn found(status: bool, other: bool) -> Result<Found, Fault> {
        Ok(Found {
            status,
            other,
            remembered: false,
        })
    }

    #[test]
    fn the_lengths_of_strings_in_huffman_s_code_are_those_of_the_rfc() {
        // RFC 7541 appendix C.4 and C.6.
        let rows: &[(&[u8], Option<usize>)] = &[
            (&[], Some(0)),
            (
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ],
                Some(15),
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], Some(8)),
            (&[0x64, 0x02], Some(3)),
            (
                &[
                    0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81,
                    0x66, 0xe0, 0x82, 0xa6, 0x2d, 0x1b, 0xff,
                ],
                Some(29),
            ),
            (&STATUS_CODED, Some(7)),
            // A NUL, 13 bits, and its padding.
            (&[0xff, 0xc7], Some(1)),
            (&[0xff, 0xff, 0xff, 0xfc], None),
            (&[0xff, 0xff, 0xff, 0xff, 0xff], None),
            (&[0x1c, 0x64, 0xff, 0xff], None),
            (&[0xff], None),
            (&[0x00], None),
        ];
        for (coded, length) in rows {
            assert_eq!(decoded_length(coded), *length, "{coded:x?}");
        }
    }

    #[test]
    fn every_step_is_one_code_or_two() {
        for (value, step) in STEPS.iter().enumerate() {
            let bits = u32::try_from(value).unwrap() << (32 - STEP_BITS);
            let first = code_length(bits);
            let both = first + code_length(bits << first);
            let expected = match (first <= STEP_BITS, both <= STEP_BITS) {
                (_, true) => (both, 2),
                (true, false) => (first, 1),
                _ => (0, 0),
            };
            assert_eq!((u32::from(step & 0x0f), step >> 4), expected, "{value:012b}");
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_told_from_what_can() {
        let sound: &[(&[u8], Result<Found, Fault>)] = &[
            (&[], found(false, false)),
            (&[0x82, 0x86, 0x84], found(false, true)),
            (&[0x88], found(true, false)),
            (&[0x88, 0x01, 1, b'x'], found(true, true)),
            (&[0, 1, b'x', 1, b'y'], found(false, false)),
            (&[0, 2, b':', b'x', 0], found(false, true)),
            (
                &[0, 7, b':', b's', b't', b'a', b't', b'u', b's', 0],
                found(true, false),
            ),
            (&[0, 0x85, 0xb8, 0x84, 0x8d, 0x36, 0xa3, 0], found(true, false)),
            // `:path`, then its entry.
            (&[0x44, 1, b'/', 0xbe], found(false, true)),
            (&[0x20, 0x3f, 0xe1, 0x1f, 0x82], found(false, true)),
        ];
        for (block, expected) in sound {
            assert_eq!(told(block), *expected, "{block:x?}");
        }
        let broken: &[&[u8]] = &[
            &[0x80],
            &[0xbe],
            &[0x7e, 1, b'x'],
            &[0x3f, 0xe2, 0x1f],
            &[0x82, 0x20],
            &[0xff, 0x80],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0, 1, b'x'],
            &[0x40],
            &[0, 1, b'x', 9, b'y'],
            &[0, 1, b'x', 0x81, 0x00],
        ];
        for block in broken {
            assert_eq!(told(block), Err(Fault::Undecodable), "{block:x?}");
        }
    }

    #[test]
    fn entries_leave_the_table_when_it_is_full() {
        let entry = |length: usize| {
            [
                &[0x40, 1, b'x', 0x7f, 0x80 | (length - 127) as u8 & 0x7f][..],
                &[((length - 127) >> 7) as u8],
                &vec![b'v'; length],
            ]
            .concat()
        };
        let mut fields = Fields::new(true);
        // Each counts 1,033: three fit.
        for _ in 0..5 {
            fields.part(&entry(1_000)).unwrap();
        }
        assert_eq!((fields.table.len(), fields.size), (3, 3 * 1_033));
        fields.part(&[0xbe, 0xbf, 0xc0]).unwrap();
        assert_eq!(fields.part(&[0xc1]), Err(Fault::Undecodable));
        let mut fields = Fields::new(true);
        fields.part(&entry(1_000)).unwrap();
        fields.part(&entry(5_000)).unwrap();
        assert_eq!(
            (fields.table.len(), fields.size),
            (0, 0),
            "too large for the table"
        );
    }

    #[test]
    fn however_a_block_is_cut_the_same_is_found() {
        let block = [
            &[0x82, 0x44, 1, b'/', 0, 0x85, 0xb8, 0x84, 0x8d, 0x36, 0xa3, 3][..],
            b"200",
            &[0xbe, 0x40, 1, b'x', 1, b'y', 0xbe],
        ]
        .concat();
        for cut in 1..block.len() {
            let mut fields = Fields::new(true);
            block.chunks(cut).for_each(|part| fields.part(part).unwrap());
            assert_eq!(fields.end(), found(true, true), "in parts of {cut}");
        }
        let mut fields = Fields::new(true);
        fields.part(&block[..5]).unwrap();
        assert_eq!(fields.end(), Err(Fault::Undecodable));
    }

    #[test]
    fn without_the_table_what_is_remembered_is_found_when_it_is_written() {
        let mut fields = Fields::new(false);
        // `:path` to be remembered; an entry that is not followed; Huffman's code that is not looked at.
        fields
            .part(&[0x88, 0x44, 1, b'/', 0xfe, 0, 1, b'x', 0x81, 0x00])
            .unwrap();
        let expected = Found {
            status: true,
            other: true,
            remembered: true,
        };
        assert_eq!((fields.end(), fields.table.len()), (Ok(expected), 0));
        fields.part(&[0x88, 0x04, 1, b'/']).unwrap();
        assert_eq!(fields.end(), found(true, true));
    }

    #[test]
    fn a_string_without_end_is_not_kept() {
        let mut fields = Fields::new(true);
        fields.part(&[0, 1, b'x', 0x7f, 0xff, 0xff, 0x7f]).unwrap();
        let told = (0..10).try_for_each(|_| fields.part(&[b'v'; 16_384]));
        assert_eq!(told, Err(Fault::TooLong));
    }
}
