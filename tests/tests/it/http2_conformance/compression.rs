//! Header compression (RFC 7541, RFC 9113 section 4.3).

use outrigger_tests::http2::frame::{self, code, flag};
use outrigger_tests::http2::hpack::{self, indexed, integer, literal, remembered, string};
use outrigger_tests::http2::request;

use super::{Case, Expect, NEVER, Step, case, steps};

const WHOLE: u8 = flag::END_STREAM | flag::END_HEADERS;

/// RFC 9113 section 4.3: a fault in decoding ends the connection, with this.
const BROKEN: Expect = Expect::Dies(&[code::COMPRESSION_ERROR]);

pub(super) fn cases() -> Vec<Case> {
    [indices(), sizes(), strings(), state()]
        .into_iter()
        .flatten()
        .collect()
}

/// A request with these bytes behind its fields.
fn with(path: &str, more: &[u8]) -> Vec<u8> {
    let block = [hpack::block(&request("GET", "reviews", path)), more.to_vec()].concat();
    frame::header_block(1, WHOLE, &block)
}

fn broken(section: &'static str, name: &str, more: &[u8]) -> Case {
    case(section, name, &[with(NEVER, more)], BROKEN)
}

fn fine(section: &'static str, name: &str, more: &[u8]) -> Case {
    case(section, name, &[with("/", more)], Expect::Answer(1, 200))
}

// A table is read by its rows.
#[rustfmt::skip]
fn indices() -> Vec<Case> {
    let static_only = [
        indexed(2),
        indexed(6),
        indexed(4),
        [vec![0x01], string(b"reviews")].concat(),
    ]
    .concat();
    vec![
        broken("7541 6.1", "the index 0", &[0x80]),
        broken("7541 2.3.3", "an index of an empty table", &indexed(62)),
        broken("7541 2.3.3", "an index far beyond", &indexed(70_000)),
        broken("7541 2.3.3", "a name by an index of an empty table", &[integer(0x40, 6, 62), string(b"x")].concat()),
        broken("7541 2.3.3", "a name by an index far beyond", &[integer(0, 4, 9_000), string(b"x")].concat()),
        case("7541 6.1", "fields by their index", &[frame::header_block(1, WHOLE, &static_only)], Expect::Answer(1, 200)),
        fine("7541 6.2.1", "a field to be remembered", &remembered(b"x", b"y")),
        fine("7541 6.2.3", "a field never to be remembered", &[vec![0x10], string(b"x"), string(b"y")].concat()),
        fine("7541 6.2.2", "a name by its index", &[integer(0, 4, 58), string(b"me")].concat()),
        fine("7541 2.3.3", "a field remembered in the same block", &[remembered(b"x", b"y"), indexed(62)].concat()),
    ]
}

/// RFC 7541 section 6.3.
// A table is read by its rows.
#[rustfmt::skip]
fn sizes() -> Vec<Case> {
    let size = |size: usize| integer(0x20, 5, size);
    let block = |path: &str| hpack::block(&request("GET", "reviews", path));
    let before =
        |sizes: &[u8], path: &str| frame::header_block(1, WHOLE, &[sizes.to_vec(), block(path)].concat());
    vec![
        case("7541 6.3", "a smaller table", &[before(&size(100), "/")], Expect::Answer(1, 200)),
        case("7541 6.3", "no table", &[before(&size(0), "/")], Expect::Answer(1, 200)),
        case("7541 4.2", "no table, then the largest", &[before(&[size(0), size(4096)].concat(), "/")], Expect::Answer(1, 200)),
        case("7541 6.3", "a table over the largest", &[before(&size(4097), NEVER)], BROKEN),
        case("7541 6.3", "a table of a gigabyte", &[before(&size(1 << 30), NEVER)], BROKEN),
        broken("7541 4.2", "the table's size after a field", &size(100)),
        broken("7541 4.2", "the table's size at the end of a block", &[literal(b"x", b"y"), size(0)].concat()),
        case("7541 4.4", "an entry larger than the table empties it", &[frame::header_block(1, WHOLE, &[size(64), block(NEVER), remembered(b"x", b"y"), remembered(b"big", &[b'v'; 64]), indexed(62)] .concat())], BROKEN),
        case("7541 4.3", "a smaller table forgets", &[frame::header_block(1, WHOLE, &[block("/"), remembered(b"x", b"y")].concat()), frame::header_block(3, WHOLE, &[size(0), size(4096), block(NEVER), indexed(62)].concat())], BROKEN),
    ]
}

// A table is read by its rows.
#[rustfmt::skip]
fn strings() -> Vec<Case> {
    let named = |value: &[u8]| [&[0][..], &string(b"x"), value].concat();
    let coded = |bytes: &[u8]| [integer(0x80, 7, bytes.len()), bytes.to_vec()].concat();
    vec![
        // "www.example.com", RFC 7541 appendix C.4.1.
        fine("7541 5.2", "a value in Huffman's code", &named(&coded(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]))),
        fine("7541 5.2", "an empty value in Huffman's code", &named(&coded(&[]))),
        broken("7541 5.2", "the end of string in Huffman's code", &named(&coded(&[0xff, 0xff, 0xff, 0xfc]))),
        broken("7541 5.2", "a byte of padding in Huffman's code", &named(&coded(&[0x1c, 0x64, 0xff, 0xff]))),
        // "0" is 00000, so that the three bits behind it are zeros.
        broken("7541 5.2", "padding of zeros in Huffman's code", &named(&coded(&[0x00]))),
        broken("7541 5.2", "a string longer than its block", &named(&[0x7e, b'a'])),
        broken("7541 5.1", "an integer without an end", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        broken("7541 5.1", "an integer past 32 bits", &[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        broken("7541 5.1", "an integer cut short", &[0xff, 0x80]),
        broken("7541 6.2", "a field without a value", &[&[0][..], &string(b"x")].concat()),
        broken("7541 6.2", "a field of one byte", &[0x40]),
    ]
}

/// One table for the whole connection, whatever becomes of a stream.
// A table is read by its rows.
#[rustfmt::skip]
fn state() -> Vec<Case> {
    let block =
        |path: &str, more: &[u8]| [hpack::block(&request("GET", "reviews", path)), more.to_vec()].concat();
    let after = |name: &str, first: Vec<u8>| {
        let second = frame::header_block(3, WHOLE, &block("/", &indexed(62)));
        steps("9113 4.3", name, vec![Step::Send(first), Step::Send(second)], Expect::Answer(3, 200))
    };
    let twice = [block(NEVER, &remembered(b"x", b"y")), literal(b":method", b"GET")].concat();
    let reset = [
        frame::header_block(1, WHOLE, &block("/slow", &remembered(b"x", b"y"))),
        frame::reset(1, code::CANCEL),
    ];
    let trailers = [
        frame::headers(1, 0, &request("POST", "reviews", "/")),
        frame::header_block(1, WHOLE, &remembered(b"x", b"y")),
    ];
    vec![
        after("the next request knows what was remembered", frame::header_block(1, WHOLE, &block("/", &remembered(b"x", b"y")))),
        after("what a malformed request said is remembered", frame::header_block(1, WHOLE, &twice)),
        after("what a request taken back said is remembered", reset.concat()),
        after("what trailers said is remembered", trailers.concat()),
        case("9113 4.3", "an empty block", &[frame::header_block(1, WHOLE, &[])], Expect::Malformed(1)),
        case("9113 4.3", "a block cut short", &[frame::header_block(1, WHOLE, &block(NEVER, &[0]))], BROKEN),
    ]
}
