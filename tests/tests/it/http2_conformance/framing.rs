//! The preface, the form of frames, and each type of frame by itself (RFC 9113 sections 3.4, 4, 6 and 7).

use outrigger_tests::http2::frame::{self, code, flag, kind, setting};

use super::{Case, Expect, Step, bare, case, get, get_of, open, slow, steps};

const LARGEST: usize = 16_384;

pub(super) fn cases() -> Vec<Case> {
    [
        preface(),
        format(),
        sizes(),
        data(),
        settings(),
        ping(),
        goaway(),
        others(),
        windows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

// A table is read by its rows.
#[rustfmt::skip]
fn preface() -> Vec<Case> {
    let preface = || frame::PREFACE.to_vec();
    let mut list = vec![
        bare("9113 3.4", "a preface with another end", &[b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec()], Expect::Closes),
        bare("9113 3.4", "a preface cut short", &[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r!".to_vec()], Expect::Closes),
        bare("9113 3.4", "HEADERS before SETTINGS", &[preface(), get(1)], Expect::Dies(&[code::PROTOCOL_ERROR])),
        bare("9113 3.4", "PING before SETTINGS", &[preface(), frame::ping([1; 8])], Expect::Dies(&[code::PROTOCOL_ERROR])),
        bare("9113 3.4", "an acknowledgement before SETTINGS", &[preface(), frame::settings_ack()], Expect::Dies(&[code::PROTOCOL_ERROR])),
        bare("9113 3.4", "a request at once", &[preface(), frame::settings(&[]), get(1)], Expect::Answer(1, 200)),
        bare(
            "9113 3.4",
            "SETTINGS come first",
            &[preface(), frame::settings(&[])],
            Expect::That(|seen| {
                let first = seen.frames.first();
                match first.is_some_and(|first| first.kind == kind::SETTINGS && !first.has(flag::ACK)) {
                    true => Ok(()),
                    false => Err(format!("{first:?} came first")),
                }
            }),
        ),
    ];
    let bytes = [preface(), frame::settings(&[]), get(1)].concat();
    let single = bytes.iter().map(|byte| Step::Send(vec![*byte])).collect();
    let slowly = steps("9113 3.4", "a byte at a time", single, Expect::Answer(1, 200));
    list.push(Case {
        opened: false,
        ..slowly
    });
    list
}

// A table is read by its rows.
#[rustfmt::skip]
fn format() -> Vec<Case> {
    vec![
        case("9113 4.1", "an unknown type on the connection", &[frame::frame(0x42, 0xff, 0, b"what?"), get(1)], Expect::Answer(1, 200)),
        case("9113 4.1", "an unknown type on an idle stream", &[frame::frame(0x42, 0, 1, b"what?"), get(1)], Expect::Answer(1, 200)),
        case("9113 5.5", "an unknown type in the middle of a request", &[open(1), frame::frame(0x42, 0, 1, b"what?"), frame::data(1, flag::END_STREAM, "x")], Expect::Answer(1, 200)),
        case("9113 4.1", "the largest frame of an unknown type", &[frame::frame(0x42, 0, 0, &[0; LARGEST]), get(1)], Expect::Answer(1, 200)),
        case("9113 4.1", "ORIGIN and ALTSVC from a client", &[frame::frame(0xc, 0, 0, b"\0\0"), frame::frame(0xa, 0, 0, b"\0\0"), get(1)], Expect::Answer(1, 200)),
        case("9113 4.1", "unknown flags of PING", &[frame::frame(kind::PING, 0xfe, 0, &[7; 8])], Expect::Pong([7; 8])),
        case("9113 4.1", "unknown flags of SETTINGS", &[frame::frame(kind::SETTINGS, 0xfe, 0, &[]), get(1)], Expect::Answer(1, 200)),
        case("9113 4.1", "unknown flags of DATA", &[open(1), frame::data(1, 0xf6 | flag::END_STREAM, "x")], Expect::Answer(1, 200)),
        case("9113 4.1", "unknown flags of WINDOW_UPDATE", &[frame::frame(kind::WINDOW_UPDATE, 0xff, 0, &[0, 0, 0, 1]), get(1)], Expect::Answer(1, 200)),
        case("9113 4.1", "the reserved bit of a request's stream", &[frame::headers(0x8000_0001, flag::END_STREAM, &outrigger_tests::http2::request("GET", "reviews", "/"))], Expect::Answer(1, 200)),
        case("9113 4.1", "the reserved bit of the connection's PING", &[frame::frame(kind::PING, 0, 0x8000_0000, &[3; 8])], Expect::Pong([3; 8])),
    ]
}

/// RFC 9113 section 4.2.
// A table is read by its rows.
#[rustfmt::skip]
fn sizes() -> Vec<Case> {
    let over = |kind: u8, stream: u32| frame::frame(kind, 0, stream, &vec![0; LARGEST + 1]);
    const SIZE: Expect = Expect::Dies(&[code::FRAME_SIZE_ERROR]);
    let mut list = vec![
        case("9113 4.2", "DATA too large", &[open(1), over(kind::DATA, 1)], Expect::Reset(1, &[code::FRAME_SIZE_ERROR])),
        case("9113 4.2", "HEADERS too large", &[over(kind::HEADERS, 1)], SIZE),
        case("9113 4.2", "CONTINUATION too large", &[frame::header_block(1, 0, &[]), over(kind::CONTINUATION, 1)], SIZE),
        case("9113 4.2", "SETTINGS too large", &[frame::frame(kind::SETTINGS, 0, 0, &vec![0; 16_386])], SIZE),
        case("9113 4.2", "PING too large", &[over(kind::PING, 0)], SIZE),
        case("9113 4.2", "GOAWAY too large", &[over(kind::GOAWAY, 0)], SIZE),
        case("9113 4.2", "an unknown type too large", &[over(0x42, 0)], SIZE),
        case("9113 4.2", "a frame that says 16 MB", &[vec![0xff, 0xff, 0xff, kind::DATA, 0, 0, 0, 0, 1]], SIZE),
        case("9113 4.2", "the largest DATA", &[open(1), frame::data(1, flag::END_STREAM, [0; LARGEST])], Expect::Answer(1, 200)),
    ];
    for (name, kind, stream, length) in [
        ("PING", kind::PING, 0, 7),
        ("PING", kind::PING, 0, 9),
        ("PING", kind::PING, 0, 0),
        ("WINDOW_UPDATE", kind::WINDOW_UPDATE, 0, 3),
        ("WINDOW_UPDATE", kind::WINDOW_UPDATE, 1, 5),
        ("RST_STREAM", kind::RST_STREAM, 1, 3),
        ("RST_STREAM", kind::RST_STREAM, 1, 5),
        ("SETTINGS", kind::SETTINGS, 0, 1),
        ("SETTINGS", kind::SETTINGS, 0, 7),
        ("GOAWAY", kind::GOAWAY, 0, 7),
        ("GOAWAY", kind::GOAWAY, 0, 0),
    ] {
        let name = format!("{name} of {length} bytes");
        list.push(case("9113 4.2", &name, &[slow(1), frame::frame(kind, 0, stream, &vec![0; length])], SIZE));
    }
    for length in [4, 6] {
        // Section 6.3: a stream error.
        let name = format!("PRIORITY of {length} bytes");
        list.push(case("9113 6.3", &name, &[slow(1), frame::frame(kind::PRIORITY, 0, 1, &vec![0; length])], Expect::Reset(1, &[code::FRAME_SIZE_ERROR])));
    }
    list
}

// A table is read by its rows.
#[rustfmt::skip]
fn data() -> Vec<Case> {
    let padded = |padding: u8, rest: &[u8]| {
        frame::data(
            1,
            flag::PADDED | flag::END_STREAM,
            [&[padding][..], rest].concat(),
        )
    };
    const PROTOCOL: Expect = Expect::Dies(&[code::PROTOCOL_ERROR]);
    vec![
        case("9113 6.1", "DATA on the connection", &[frame::data(0, 0, "x")], PROTOCOL),
        case("9113 6.1", "DATA with padding", &[open(1), padded(3, b"x\0\0\0")], Expect::Answer(1, 200)),
        case("9113 6.1", "DATA of padding alone", &[open(1), padded(3, b"\0\0\0")], Expect::Answer(1, 200)),
        case("9113 6.1", "DATA with padding of no length", &[open(1), padded(0, b"x")], Expect::Answer(1, 200)),
        case("9113 6.1", "DATA with more padding than frame", &[open(1), padded(4, b"\0\0\0")], PROTOCOL),
        case("9113 6.1", "DATA with 255 bytes of padding in two", &[open(1), padded(255, b"x")], PROTOCOL),
        case("9113 6.1", "padded DATA without a byte", &[open(1), frame::data(1, flag::PADDED | flag::END_STREAM, "")], Expect::Dies(&[code::PROTOCOL_ERROR, code::FRAME_SIZE_ERROR])),
        case("9113 6.1", "an empty DATA that ends", &[open(1), frame::data(1, flag::END_STREAM, "")], Expect::Answer(1, 200)),
        case("9113 6.1", "a few empty DATA", &[open(1), frame::data(1, 0, ""), frame::data(1, 0, ""), frame::data(1, flag::END_STREAM, "x")], Expect::Answer(1, 200)),
    ]
}

// A table is read by its rows.
#[rustfmt::skip]
fn settings() -> Vec<Case> {
    const PROTOCOL: &[u32] = &[code::PROTOCOL_ERROR];
    let set = |name: u16, value: u32| frame::settings(&[(name, value)]);
    let mut list = vec![
        case("9113 6.5", "an acknowledgement with something in it", &[frame::frame(kind::SETTINGS, flag::ACK, 0, &[0; 6])], Expect::Dies(&[code::FRAME_SIZE_ERROR])),
        case("9113 6.5", "SETTINGS on a stream", &[frame::frame(kind::SETTINGS, 0, 1, &[])], Expect::Dies(PROTOCOL)),
        case("9113 6.5.2", "a window over the largest", &[set(setting::INITIAL_WINDOW_SIZE, 0x8000_0000)], Expect::Dies(&[code::FLOW_CONTROL_ERROR])),
        case("9113 6.5.2", "a window of all ones", &[set(setting::INITIAL_WINDOW_SIZE, u32::MAX)], Expect::Dies(&[code::FLOW_CONTROL_ERROR])),
        case(
            "9113 6.5.3",
            "SETTINGS are acknowledged",
            &[
                set(setting::MAX_FRAME_SIZE, 20_000),
                set(setting::MAX_FRAME_SIZE, 30_000),
            ],
            Expect::That(|seen| {
                let acknowledged = seen
                    .frames
                    .iter()
                    .filter(|frame| frame.kind == kind::SETTINGS && frame.has(flag::ACK))
                    .count();
                // One more for those that opened the connection, if it came late.
                match acknowledged {
                    2 | 3 => Ok(()),
                    other => Err(format!("{other} acknowledgements")),
                }
            }),
        ),
        case("9113 6.5.3", "of one setting said twice the last counts", &[frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1), (setting::INITIAL_WINDOW_SIZE, 65_535)]), get_of(1, "/body/1000")], Expect::Body(1, 1000)),
    ];
    for (what, name, value) in [
        ("ENABLE_PUSH of 2", setting::ENABLE_PUSH, 2),
        ("MAX_FRAME_SIZE below the least", setting::MAX_FRAME_SIZE, 16_383),
        ("MAX_FRAME_SIZE of 0", setting::MAX_FRAME_SIZE, 0),
        ("MAX_FRAME_SIZE over the most", setting::MAX_FRAME_SIZE, 16_777_216),
        ("ENABLE_CONNECT_PROTOCOL of 2", 8, 2),
    ] {
        list.push(case("9113 6.5.2", what, &[set(name, value)], Expect::Dies(PROTOCOL)));
    }
    for (what, name, value) in [
        ("an unknown setting", 0xff, 1),
        ("a setting with the number 0", 0, u32::MAX),
        ("ENABLE_PUSH of 1", setting::ENABLE_PUSH, 1),
        ("MAX_CONCURRENT_STREAMS of 0", setting::MAX_CONCURRENT_STREAMS, 0),
        ("the largest MAX_FRAME_SIZE", setting::MAX_FRAME_SIZE, 16_777_215),
        ("the largest window", setting::INITIAL_WINDOW_SIZE, 0x7fff_ffff),
        ("HEADER_TABLE_SIZE of 0", setting::HEADER_TABLE_SIZE, 0),
        ("HEADER_TABLE_SIZE of all ones", setting::HEADER_TABLE_SIZE, u32::MAX),
        ("MAX_HEADER_LIST_SIZE of all ones", setting::MAX_HEADER_LIST_SIZE, u32::MAX),
    ] {
        list.push(case("9113 6.5.2", what, &[set(name, value), get(1)], Expect::Answer(1, 200)));
    }
    list
}

// A table is read by its rows.
#[rustfmt::skip]
fn ping() -> Vec<Case> {
    vec![
        case("9113 6.7", "PING is answered with what was in it", &[frame::ping(*b"outrigge")], Expect::Pong(*b"outrigge")),
        case("9113 6.7", "PING on a stream", &[slow(1), frame::frame(kind::PING, 0, 1, &[0; 8])], Expect::Dies(&[code::PROTOCOL_ERROR])),
        case("9113 6.7", "PING is answered while a request waits", &[slow(1), frame::ping([5; 8])], Expect::Pong([5; 8])),
        case(
            "9113 6.7",
            "the answer to a PING that was not asked is not answered",
            &[frame::frame(kind::PING, flag::ACK, 0, &[9; 8])],
            Expect::That(|seen| match seen.pongs().any(|pong| pong.payload == [9; 8]) {
                true => Err("it was answered".into()),
                false if seen.closed => Err("it was the end".into()),
                false => Ok(()),
            }),
        ),
    ]
}

// A table is read by its rows.
#[rustfmt::skip]
fn goaway() -> Vec<Case> {
    vec![
        case("9113 6.8", "GOAWAY on a stream", &[slow(1), frame::frame(kind::GOAWAY, 0, 1, &[0; 8])], Expect::Dies(&[code::PROTOCOL_ERROR])),
        steps(
            "9113 6.8",
            "a request before GOAWAY is answered",
            vec![Step::Send([get(1), frame::goaway(0, 0)].concat()), Step::Over(1)],
            Expect::That(|seen| match seen.heads.get(&1) {
                Some(200) if seen.ended.contains(&1) => Ok(()),
                _ => Err(seen.tell()),
            }),
        ),
        steps(
            "9113 6.8",
            "GOAWAY with an unknown code and words",
            vec![
                Step::Send(
                    [
                        get(1),
                        frame::frame(kind::GOAWAY, 0, 0, b"\0\0\0\0\0\0\xff\xffgood bye"),
                    ]
                    .concat(),
                ),
                Step::Over(1),
            ],
            Expect::That(|seen| match seen.heads.get(&1) {
                Some(200) if seen.ended.contains(&1) => Ok(()),
                _ => Err(seen.tell()),
            }),
        ),
        case(
            "9113 6.8",
            "PING after GOAWAY",
            &[slow(1), frame::goaway(0, 0), frame::ping([6; 8])],
            Expect::That(|seen| match seen.pongs().any(|pong| pong.payload == [6; 8]) {
                true => Ok(()),
                false => Err(seen.tell()),
            }),
        ),
    ]
}

// A table is read by its rows.
#[rustfmt::skip]
fn others() -> Vec<Case> {
    const PROTOCOL: Expect = Expect::Dies(&[code::PROTOCOL_ERROR]);
    let promise = [&2_u32.to_be_bytes()[..], &[0x82]].concat();
    vec![
        case("9113 6.4", "RST_STREAM on the connection", &[frame::reset(0, code::CANCEL)], PROTOCOL),
        case("9113 7", "RST_STREAM with an unknown code", &[slow(1), frame::reset(1, 0xffff_ffff)], Expect::Lives),
        case("9113 6.4", "RST_STREAM ends a request and no more", &[slow(1), slow(3), frame::reset(1, code::CANCEL), get(5)], Expect::Answer(5, 200)),
        case("9113 6.6", "PUSH_PROMISE from a client", &[slow(1), frame::frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &promise)], PROTOCOL),
        case("9113 6.6", "PUSH_PROMISE on the connection", &[frame::frame(kind::PUSH_PROMISE, flag::END_HEADERS, 0, &promise)], PROTOCOL),
        case("9113 6.3", "PRIORITY on the connection", &[frame::priority(0, 1)], PROTOCOL),
        case("9113 6.3", "PRIORITY on an idle stream", &[frame::priority(9, 1), get(1)], Expect::Answer(1, 200)),
        case("9113 6.3", "PRIORITY on an open stream", &[open(1), frame::priority(1, 3), frame::data(1, flag::END_STREAM, "x")], Expect::Answer(1, 200)),
        // RFC 9113 section 5.3.2 lets it be ignored, as RFC 7540 section 5.3.1 did not.
        case(
            "9113 5.3.2",
            "PRIORITY that hangs on itself",
            &[slow(1), frame::priority(1, 1)],
            Expect::That(|seen| match (seen.closed, seen.resets.get(&1)) {
                (false, None | Some(&code::PROTOCOL_ERROR)) => Ok(()),
                _ => Err(seen.tell()),
            }),
        ),
    ]
}

/// RFC 9113 sections 5.2 and 6.9.
// A table is read by its rows.
#[rustfmt::skip]
fn windows() -> Vec<Case> {
    const PROTOCOL: &[u32] = &[code::PROTOCOL_ERROR];
    let window = |value: u32| Step::Send(frame::settings(&[(setting::INITIAL_WINDOW_SIZE, value)]));
    let body = |stream: u32, count: usize| Step::Send(get_of(stream, &format!("/body/{count}")));
    vec![
        case("9113 6.9", "no more window for the connection", &[frame::window(0, 0)], Expect::Dies(PROTOCOL)),
        case("9113 6.9", "no more window for a stream", &[slow(1), frame::window(1, 0)], Expect::Reset(1, PROTOCOL)),
        case("9113 6.9.1", "too much window for the connection", &[frame::window(0, 0x7fff_ffff)], Expect::Dies(&[code::FLOW_CONTROL_ERROR])),
        case("9113 6.9.1", "too much window for a stream", &[slow(1), frame::window(1, 0x7fff_ffff)], Expect::Reset(1, &[code::FLOW_CONTROL_ERROR])),
        case("9113 6.9.1", "too much window for a stream in two steps", &[slow(1), frame::window(1, 0x4000_0000), frame::window(1, 0x4000_0000)], Expect::Reset(1, &[code::FLOW_CONTROL_ERROR])),
        case("9113 6.9.2", "a setting that makes a window too large", &[slow(1), frame::window(1, 0x4000_0000), frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 0x7fff_ffff)])], Expect::Dies(&[code::FLOW_CONTROL_ERROR])),
        case("9113 6.9", "the reserved bit of WINDOW_UPDATE", &[frame::window(0, 0x8000_0001), get(1)], Expect::Answer(1, 200)),
        steps("9113 6.9.1", "a window of 1", vec![window(1), body(1, 3), Step::Exactly(1, 1), Step::Send(frame::window(1, 1)), Step::Exactly(1, 2), Step::Send(frame::window(1, 1))], Expect::Body(1, 3)),
        steps("9113 6.9.1", "a window of 0", vec![window(0), body(1, 100), Step::Head(1), Step::Exactly(1, 0), Step::Send(frame::window(1, 100))], Expect::Body(1, 100)),
        steps("9113 6.9.1", "a window that is used up does not keep the end back", vec![window(5), Step::Send(get_of(1, "/chunked/5"))], Expect::Body(1, 5)),
        steps("9113 6.9.2", "a window opened by a setting", vec![window(0), body(1, 100), Step::Head(1), Step::Exactly(1, 0), window(60), Step::Exactly(1, 60), window(200)], Expect::Body(1, 100)),
        steps("9113 6.9.2", "a window below nothing", vec![window(50), body(1, 200), Step::Exactly(1, 50), window(10), Step::Send(frame::window(1, 30)), Step::Exactly(1, 50), Step::Send(frame::window(1, 20)), Step::Exactly(1, 60), Step::Send(frame::window(1, 1000))], Expect::Body(1, 200)),
        steps("9113 6.9.2", "a setting leaves the connection's window alone", vec![window(1_000_000), body(1, 100_000), Step::Exactly(1, 65_535), window(2_000_000), Step::Exactly(1, 65_535), Step::Send(frame::window(0, 100_000))], Expect::Body(1, 100_000)),
        steps("9113 5.2.1", "one stream's window is not another's", vec![window(10), body(1, 20), Step::Exactly(1, 10), body(3, 10), Step::Over(3), Step::Send(frame::window(1, 10))], Expect::Body(1, 20)),
        steps(
            "9113 4.2",
            "no frame is larger than is allowed",
            vec![
                Step::Send(frame::window(0, 1_000_000)),
                window(1_000_000),
                body(1, 300_000),
                Step::Over(1),
            ],
            Expect::That(|seen| {
                let largest = seen
                    .frames
                    .iter()
                    .map(|frame| frame.payload.len())
                    .max()
                    .unwrap_or_default();
                match largest <= LARGEST && seen.bodies.get(&1) == Some(&300_000) {
                    true => Ok(()),
                    false => Err(format!("a frame of {largest} bytes; {}", seen.tell())),
                }
            }),
        ),
    ]
}
