//! The states of streams, their numbers, and header blocks in pieces (RFC 9113 sections 4.3, 5.1, 6.2 and 6.10).

use outrigger_tests::http2::frame::{self, code, flag, kind};
use outrigger_tests::http2::{hpack, request};

use super::{Case, Expect, Step, case, get, open, slow, steps};

const PROTOCOL: &[u32] = &[code::PROTOCOL_ERROR];
const CLOSED: &[u32] = &[code::STREAM_CLOSED];

pub(super) fn cases() -> Vec<Case> {
    [
        idle(),
        half_closed(),
        old(),
        closed(),
        taken_back(),
        numbers(),
        blocks(),
        interrupted(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

// A table is read by its rows.
#[rustfmt::skip]
fn idle() -> Vec<Case> {
    let dies = |name: &str, bytes: Vec<u8>| case("9113 5.1", name, &[bytes], Expect::Dies(PROTOCOL));
    vec![
        dies("idle: DATA", frame::data(1, 0, "x")),
        dies("idle: DATA that ends", frame::data(1, flag::END_STREAM, "x")),
        dies("idle: RST_STREAM", frame::reset(1, code::CANCEL)),
        dies("idle: WINDOW_UPDATE", frame::window(1, 100)),
        dies("idle: CONTINUATION", frame::continuation(1, flag::END_HEADERS, &[0x82])),
        dies("idle: DATA on a stream of ours", frame::data(2, 0, "x")),
        dies("idle: WINDOW_UPDATE on a stream of ours", frame::window(2, 100)),
        dies("idle: RST_STREAM on a stream of ours", frame::reset(2, code::CANCEL)),
        dies("idle: RST_STREAM above those in use", [slow(1), frame::reset(3, code::CANCEL)].concat()),
        dies("idle: WINDOW_UPDATE above those in use", [slow(1), frame::window(5, 1)].concat()),
    ]
}

// A table is read by its rows.
#[rustfmt::skip]
fn half_closed() -> Vec<Case> {
    let more = request("GET", "reviews", "/");
    let many = |count: u32| (1..=count).flat_map(|number| [slow(1 + 2 * number), frame::reset(1 + 2 * number, code::CANCEL)].concat()).collect();
    vec![
        case("9113 5.1", "half-closed: DATA", &[slow(1), frame::data(1, flag::END_STREAM, "x")], Expect::Reset(1, CLOSED)),
        case("9113 5.1", "half-closed: HEADERS", &[slow(1), frame::headers(1, flag::END_STREAM, &more)], Expect::Reset(1, CLOSED)),
        case("9113 5.1", "half-closed: trailers", &[slow(1), frame::headers(1, flag::END_STREAM, &[("x", "y")])], Expect::Reset(1, CLOSED)),
        case("9113 5.1", "half-closed: DATA after many others", &[slow(1), many(10), frame::data(1, flag::END_STREAM, "x")], Expect::Reset(1, CLOSED)),
        case("9113 5.1", "half-closed: DATA after DATA", &[frame::headers(1, 0, &request("POST", "reviews", "/slow")), frame::data(1, flag::END_STREAM, "x"), frame::data(1, 0, "x")], Expect::Reset(1, CLOSED)),
        case("9113 5.1", "half-closed: trailers after DATA", &[frame::headers(1, 0, &request("POST", "reviews", "/slow")), frame::data(1, flag::END_STREAM, "x"), frame::headers(1, flag::END_STREAM, &[("x", "y")])], Expect::Reset(1, CLOSED)),
        case("9113 5.1", "half-closed: CONTINUATION", &[slow(1), frame::continuation(1, flag::END_HEADERS, &[0x82])], Expect::Dies(PROTOCOL)),
        case("9113 5.1", "half-closed: WINDOW_UPDATE", &[slow(1), frame::window(1, 1)], Expect::Lives),
        case("9113 5.1", "half-closed: PRIORITY", &[slow(1), frame::priority(1, 3)], Expect::Lives),
        case("9113 5.1", "half-closed: RST_STREAM", &[slow(1), frame::reset(1, code::CANCEL)], Expect::Lives),
    ]
}

/// Older than 1,100 others, and still under way.
// A table is read by its rows.
#[rustfmt::skip]
fn old() -> Vec<Case> {
    let upload = || frame::headers(1, 0, &request("POST", "reviews", "/slow"));
    let (more, end) = (frame::data(1, 0, "x"), frame::data(1, flag::END_STREAM, "x"));
    let trailers = frame::headers(1, flag::END_STREAM, &[("x", "y")]);
    let after = |name: &str, first: Vec<u8>, last: &[&Vec<u8>], expect| {
        let mut all = vec![Step::Send(first)];
        for hundred in 0..11 {
            let streams: Vec<_> = (0..100).map(|number| 3 + 2 * (hundred * 100 + number)).collect();
            all.push(Step::Send(streams.iter().flat_map(|stream| get(*stream)).collect()));
            all.extend(streams.iter().map(|stream| Step::Over(*stream)));
        }
        all.push(Step::Send(last.iter().flat_map(|bytes| (*bytes).clone()).collect()));
        steps("9113 5.1", name, all, expect)
    };
    vec![
        after("half-closed and old: DATA", slow(1), &[&end], Expect::Reset(1, CLOSED)),
        after("half-closed and old: trailers", slow(1), &[&trailers], Expect::Reset(1, CLOSED)),
        after("open and old: DATA", upload(), &[&more, &more], Expect::Lives),
        after("open and old: DATA after the end", upload(), &[&more, &end, &more], Expect::Reset(1, CLOSED)),
        after("open and old: trailers after trailers", upload(), &[&more, &trailers, &trailers], Expect::Reset(1, CLOSED)),
    ]
}

/// Ended by both sides.
// A table is read by its rows.
#[rustfmt::skip]
fn closed() -> Vec<Case> {
    let after = |name: &str, bytes: Vec<u8>, expect| {
        steps("9113 5.1", name, vec![Step::Send(get(1)), Step::Over(1), Step::Send(bytes)], expect)
    };
    vec![
        // Section 5.1.1 has a word for it too: a number that was used is an unexpected one.
        after("closed: HEADERS", get(1), Expect::Dies(&[code::STREAM_CLOSED, code::PROTOCOL_ERROR])),
        after("closed: DATA", frame::data(1, flag::END_STREAM, "x"), Expect::Reset(1, CLOSED)),
        after("closed: CONTINUATION", frame::continuation(1, flag::END_HEADERS, &[0x82]), Expect::Dies(PROTOCOL)),
        after("closed: WINDOW_UPDATE", frame::window(1, 1), Expect::Lives),
        after("closed: PRIORITY", frame::priority(1, 3), Expect::Lives),
        after("closed: RST_STREAM", frame::reset(1, code::CANCEL), Expect::Lives),
    ]
}

/// Ended by a reset, from either side.
// A table is read by its rows.
#[rustfmt::skip]
fn taken_back() -> Vec<Case> {
    let cancel = || frame::reset(1, code::CANCEL);
    // A reset of ours: the length and the body differ.
    let forced = || {
        let fields = [
            request("POST", "reviews", "/never"),
            vec![("content-length".into(), "1".into())],
        ]
        .concat();
        [frame::headers(1, 0, &fields), frame::data(1, 0, "too much")].concat()
    };
    let after = |name: &str, bytes: Vec<u8>| {
        let list = vec![
            Step::Send(forced()),
            Step::Over(1),
            Step::Send([bytes, get(3)].concat()),
        ];
        steps("9113 5.1", name, list, Expect::Answer(3, 200))
    };
    vec![
        case("9113 5.1", "taken back: DATA", &[open(1), cancel(), frame::data(1, 0, "x")], Expect::Reset(1, CLOSED)),
        case("9113 5.1", "taken back: HEADERS", &[slow(1), cancel(), get(1)], Expect::Reset(1, &[code::STREAM_CLOSED, code::PROTOCOL_ERROR])),
        case("9113 5.1", "taken back: WINDOW_UPDATE", &[slow(1), cancel(), frame::window(1, 1)], Expect::Lives),
        case("9113 5.1", "taken back: PRIORITY", &[slow(1), cancel(), frame::priority(1, 3)], Expect::Lives),
        after("reset by us: DATA is not minded", frame::data(1, 0, "more")),
        after("reset by us: DATA that ends is not minded", frame::data(1, flag::END_STREAM, "more")),
        after("reset by us: trailers are not minded", frame::headers(1, flag::END_STREAM, &[("x", "y")])),
        after("reset by us: WINDOW_UPDATE is not minded", frame::window(1, 1)),
        after("reset by us: RST_STREAM is not minded", frame::reset(1, code::CANCEL)),
        after("reset by us: PRIORITY is not minded", frame::priority(1, 3)),
    ]
}

// A table is read by its rows.
#[rustfmt::skip]
fn numbers() -> Vec<Case> {
    let many: Vec<Vec<u8>> = (0..251).map(|number| slow(1 + 2 * number)).collect();
    vec![
        case("9113 5.1.1", "an even number", &[get(2)], Expect::Dies(PROTOCOL)),
        case("9113 5.1.1", "a lower number", &[slow(5), get(3)], Expect::Dies(PROTOCOL)),
        case("9113 5.1.1", "the same number while it is in use", &[slow(1), get(1)], Expect::Reset(1, &[code::STREAM_CLOSED, code::PROTOCOL_ERROR])),
        case("9113 5.1.1", "numbers may be passed over", &[slow(1), get(101)], Expect::Answer(101, 200)),
        case("9113 5.1.1", "a number that was passed over is closed", &[slow(11), frame::window(5, 1), frame::reset(7, code::CANCEL), get(13)], Expect::Answer(13, 200)),
        case("9113 5.1.1", "HEADERS on the connection", &[frame::headers(0, flag::END_STREAM, &request("GET", "reviews", "/never"))], Expect::Dies(PROTOCOL)),
        case(
            "9113 5.1.1",
            "the last number of all",
            &[get(0x7fff_ffff)],
            Expect::That(|seen| match seen.closed {
                true => Err(seen.tell()),
                false => Ok(()),
            }),
        ),
        case("9113 5.1.2", "more streams at once than are allowed", &many, Expect::Reset(501, &[code::REFUSED_STREAM, code::PROTOCOL_ERROR])),
        case("9113 5.1.2", "a stream that ended makes room", &[many[..250].concat(), frame::reset(1, code::CANCEL), frame::ping([0; 8]), get(1001)], Expect::Answer(1001, 200)),
    ]
}

// A table is read by its rows.
#[rustfmt::skip]
fn blocks() -> Vec<Case> {
    let block = hpack::block(&request("GET", "reviews", "/"));
    let (first, rest) = block.split_at(7);
    let (second, third) = rest.split_at(11);
    let ended = flag::END_HEADERS;
    let padded = |padding: u8, zeros: usize| {
        let payload = [&[padding][..], &block, &vec![0; zeros]].concat();
        frame::header_block(1, ended | flag::END_STREAM | flag::PADDED, &payload)
    };
    let with_priority = |on: u32| {
        let payload = [&on.to_be_bytes()[..], &[15], &block].concat();
        frame::header_block(1, ended | flag::END_STREAM | flag::PRIORITY, &payload)
    };
    let single: Vec<u8> = block
        .iter()
        .take(4)
        .flat_map(|byte| frame::continuation(1, 0, &[*byte]))
        .collect();
    let both = [&[2][..], &3_u32.to_be_bytes(), &[15], &block, &[0; 2]].concat();
    vec![
        case("9113 6.10", "a block in three pieces", &[frame::header_block(1, flag::END_STREAM, first), frame::continuation(1, 0, second), frame::continuation(1, ended, third)], Expect::Answer(1, 200)),
        case("9113 6.10", "a block that begins with nothing", &[frame::header_block(1, flag::END_STREAM, &[]), frame::continuation(1, ended, &block)], Expect::Answer(1, 200)),
        case("9113 6.10", "a block that ends with nothing", &[frame::header_block(1, flag::END_STREAM, &block), frame::continuation(1, ended, &[])], Expect::Answer(1, 200)),
        case("9113 6.10", "a block begun a byte at a time", &[frame::header_block(1, flag::END_STREAM, &[]), single, frame::continuation(1, ended, &block[4..])], Expect::Answer(1, 200)),
        case("9113 6.2", "HEADERS with padding", &[padded(9, 9)], Expect::Answer(1, 200)),
        case("9113 6.2", "HEADERS with more padding than frame", &[padded(255, 9)], Expect::Dies(PROTOCOL)),
        case("9113 6.2", "padded HEADERS without a byte", &[frame::header_block(1, ended | flag::PADDED, &[])], Expect::Dies(&[code::PROTOCOL_ERROR, code::FRAME_SIZE_ERROR])),
        case("9113 6.2", "HEADERS with a priority", &[with_priority(3)], Expect::Answer(1, 200)),
        case("9113 6.2", "HEADERS with an exclusive priority", &[with_priority(0x8000_0000)], Expect::Answer(1, 200)),
        case("9113 6.2", "HEADERS with padding and a priority", &[frame::header_block(1, ended | flag::END_STREAM | flag::PADDED | flag::PRIORITY, &both)], Expect::Answer(1, 200)),
        case("9113 6.2", "HEADERS with half a priority", &[frame::header_block(1, ended | flag::PRIORITY, &[0, 0, 0])], Expect::Dies(&[code::PROTOCOL_ERROR, code::FRAME_SIZE_ERROR])),
        case(
            "9113 5.3.2",
            "HEADERS that hang on themselves",
            &[with_priority(1)],
            Expect::That(|seen| match seen.closed {
                true => Err(seen.tell()),
                false => Ok(()),
            }),
        ),
    ]
}

/// RFC 9113 section 4.3: a header block is one and whole.
// A table is read by its rows.
#[rustfmt::skip]
fn interrupted() -> Vec<Case> {
    let block = hpack::block(&request("GET", "reviews", "/never"));
    let begun = || frame::header_block(1, flag::END_STREAM, &block[..5]);
    let rest = || frame::continuation(1, flag::END_HEADERS, &block[5..]);
    let dies = |name: &str, list: &[Vec<u8>]| case("9113 6.10", name, list, Expect::Dies(PROTOCOL));
    vec![
        dies("a block interrupted by DATA", &[begun(), frame::data(1, 0, "x"), rest()]),
        dies("a block interrupted by HEADERS", &[begun(), get(3), rest()]),
        dies("a block interrupted by PRIORITY", &[begun(), frame::priority(1, 3), rest()]),
        dies("a block interrupted by RST_STREAM", &[begun(), frame::reset(1, code::CANCEL), rest()]),
        dies("a block interrupted by SETTINGS", &[begun(), frame::settings(&[]), rest()]),
        dies("a block interrupted by PING", &[begun(), frame::ping([0; 8]), rest()]),
        dies("a block interrupted by GOAWAY", &[begun(), frame::goaway(0, 0), rest()]),
        dies("a block interrupted by WINDOW_UPDATE", &[begun(), frame::window(0, 1), rest()]),
        dies("a block interrupted by an unknown type", &[begun(), frame::frame(0x42, 0, 1, b"what?"), rest()]),
        dies("a block continued on another stream", &[begun(), frame::continuation(3, flag::END_HEADERS, &block[5..])]),
        dies("a block continued on the connection", &[begun(), frame::continuation(0, flag::END_HEADERS, &block[5..])]),
        dies("a block continued after its end", &[slow(1), frame::continuation(1, flag::END_HEADERS, &[0x82])]),
        dies("CONTINUATION after DATA", &[open(1), frame::data(1, 0, "x"), frame::continuation(1, flag::END_HEADERS, &[])]),
        dies("CONTINUATION on the connection", &[frame::frame(kind::CONTINUATION, flag::END_HEADERS, 0, &[])]),
    ]
}
