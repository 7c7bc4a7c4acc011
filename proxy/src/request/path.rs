//! One form of a path, for routing, for authorization and for the endpoint: what two servers could read differently is
//! made the same for both, or refused.
//!
//! RFC 3986 section 6.2.2 says which forms are equal: encoded letters, digits, `-`, `.`, `_` and `~` are themselves, the
//! digits of what stays encoded are capitals, `.` and `..` are resolved. Slashes that follow one another are one, as in
//! App Mesh's Envoys. An encoded slash stays what it is: data of its segment. The query is not touched.

use std::borrow::Cow;

use http::Uri;
use http::request::Parts;
use http::uri::PathAndQuery;

use crate::error::{Failure, Reason};

/// Brings the path of a request into its one form.
///
/// # Errors
/// A path that climbs above its root, holds a backslash, a NUL, or a `%` that encodes nothing: whoever reads them after us
/// may read them as something else.
pub(crate) fn normalize(head: &mut Parts) -> Result<(), Failure> {
    let path = head.uri.path();
    if is_plain(path.as_bytes()) {
        return Ok(());
    }
    let normal = normal(path).map_err(|why| Failure::new(Reason::BadRequest, why))?;
    if normal == path {
        return Ok(());
    }
    let whole = match head.uri.query() {
        Some(query) => format!("{normal}?{query}"),
        None => normal,
    };
    let whole = PathAndQuery::try_from(whole)
        .map_err(|error| Failure::new(Reason::BadRequest, format!("the path is none: {error}")))?;
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(whole);
    head.uri = Uri::from_parts(parts)
        .map_err(|error| Failure::new(Reason::BadRequest, format!("the path is none: {error}")))?;
    Ok(())
}

/// The one form of a path alone.
///
/// # Errors
/// As for [`normalize`].
pub(crate) fn one_form(path: &str) -> Result<Cow<'_, str>, &'static str> {
    match is_plain(path.as_bytes()) {
        true => Ok(Cow::Borrowed(path)),
        false => normal(path).map(Cow::Owned),
    }
}

/// What a server takes a path for that reads more into it than the standard does: an encoded slash or backslash as a slash,
/// as many decode before they route, and of each segment only what is before its `;`, as servlet containers do (RFC 3986
/// section 3.3 leaves the meaning of parameters to them). Who may call is asked about that too, so that neither goes around a
/// rule: `/open/..;/admin` and `/open/..%2Fadmin` are both `/admin` there. None where it climbs above its root.
///
/// What is encoded twice is not read: whoever decodes twice does so with every path.
pub(crate) fn widest(form: &str) -> Option<Cow<'_, str>> {
    if !form.bytes().any(|byte| matches!(byte, b'%' | b';')) {
        return Some(Cow::Borrowed(form));
    }
    let mut wide = String::with_capacity(form.len());
    for (place, segment) in slashes_decoded(form).split('/').enumerate() {
        if place > 0 {
            wide.push('/');
        }
        let parameters = segment.find(';').into_iter().chain(find_encoded(segment, b"3b"));
        wide.push_str(&segment[..parameters.min().unwrap_or(segment.len())]);
    }
    normal(&wide).ok().map(Cow::Owned)
}

fn slashes_decoded(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = find_encoded(rest, b"2f")
        .into_iter()
        .chain(find_encoded(rest, b"5c"))
        .min()
    {
        decoded.push_str(&rest[..at]);
        decoded.push('/');
        rest = &rest[at + 3..];
    }
    decoded.push_str(rest);
    decoded
}

/// Where this byte stands encoded, whose digits are given in lower case.
fn find_encoded(text: &str, digits: &[u8; 2]) -> Option<usize> {
    text.as_bytes()
        .windows(3)
        .position(|three| three[0] == b'%' && three[1..].eq_ignore_ascii_case(digits))
}

/// Whether nothing in it could have another form. Nearly every path is so, and this is all that it costs.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    path.iter().all(|&byte| {
        let plain = byte != b'%' && byte != b'\\' && !(before == b'/' && (byte == b'/' || byte == b'.'));
        before = byte;
        plain
    })
}

/// The one form of a path. `*` (RFC 9112 section 3.2.4) is its own.
fn normal(path: &str) -> Result<String, &'static str> {
    if !path.starts_with('/') {
        return Ok(path.to_owned());
    }
    let decoded = decoded(path)?;
    let mut segments: Vec<&str> = Vec::new();
    // What is behind the last slash: nothing, if the path leads to a folder.
    let mut last = "";
    for segment in decoded[1..].split('/') {
        last = segment;
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop().ok_or("the path climbs above its root")?;
            }
            segment => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if normal.is_empty() || matches!(last, "" | "." | "..") {
        normal.push('/');
    }
    Ok(normal)
}

/// Decodes what needs no encoding, and writes the rest in capitals.
fn decoded(path: &str) -> Result<String, &'static str> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        decoded.push_str(&rest[..at]);
        if rest.as_bytes()[at] == b'\\' {
            return Err("the path has a backslash, which some servers take for a slash; it is written %5C");
        }
        let byte = rest
            .get(at + 1..at + 3)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or("the path has a % that encodes nothing; it is written %25")?;
        match byte {
            0 => return Err("the path has an encoded NUL, at which some servers stop reading"),
            b'-' | b'.' | b'_' | b'~' => decoded.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => decoded.push(char::from(byte)),
            _ => decoded.push_str(&rest[at..at + 3].to_ascii_uppercase()),
        }
        rest = &rest[at + 3..];
    }
    decoded.push_str(rest);
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each path and its one form.
    const FORMS: &[(&str, &str)] = &[
        // Plain ones stay.
        ("/", "/"),
        ("/a", "/a"),
        ("/a/", "/a/"),
        ("/a/b/c", "/a/b/c"),
        ("*", "*"),
        ("/a.b", "/a.b"),
        ("/.well-known/acme", "/.well-known/acme"),
        ("/..a", "/..a"),
        ("/a..", "/a.."),
        ("/...", "/..."),
        ("/a;b=1,2", "/a;b=1,2"),
        ("/a:b@c", "/a:b@c"),
        ("/~user", "/~user"),
        // Slashes.
        ("//", "/"),
        ("//a", "/a"),
        ("/a//b", "/a/b"),
        ("/a///b//", "/a/b/"),
        ("/a//", "/a/"),
        ("///", "/"),
        // Dots.
        ("/.", "/"),
        ("/./", "/"),
        ("/./a", "/a"),
        ("/a/.", "/a/"),
        ("/a/./b", "/a/b"),
        ("/a/..", "/"),
        ("/a/../", "/"),
        ("/a/b/..", "/a/"),
        ("/a/b/../c", "/a/c"),
        ("/a/b/../../c", "/c"),
        ("/a/./../b", "/b"),
        ("/a//../b", "/b"),
        ("/a/b/.././c/", "/a/c/"),
        // Encoded dots.
        ("/%2e", "/"),
        ("/%2E/", "/"),
        ("/a/%2e%2e/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/%2E./b", "/b"),
        ("/%2ehidden", "/.hidden"),
        ("/a%2eb", "/a.b"),
        // Encoded letters and digits are themselves.
        ("/%61dmin", "/admin"),
        ("/%41", "/A"),
        ("/a%2Db%5Fc%7Ed", "/a-b_c~d"),
        ("/%30", "/0"),
        // What must stay encoded does, in capitals.
        ("/a%2fb", "/a%2Fb"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%5cb", "/a%5Cb"),
        ("/a%20b", "/a%20b"),
        ("/%e4%bd%a0", "/%E4%BD%A0"),
        ("/a%25b", "/a%25b"),
        ("/a%3fb", "/a%3Fb"),
        ("/a%3Bb", "/a%3Bb"),
        // Once, and not again: what comes out of it is not read a second time.
        ("/%252e%252e/a", "/%252e%252e/a"),
        ("/a%252fb", "/a%252fb"),
        // An encoded slash parts no segments, so dots beside it are no dot segments.
        ("/a/..%2fb", "/a/..%2Fb"),
        ("/a%2f../b", "/a%2F../b"),
        ("/a/%2e%2e%2fb", "/a/..%2Fb"),
    ];

    const REFUSED: &[&str] = &[
        "/..",
        "/../",
        "/../a",
        "/a/../..",
        "/a/../../b",
        "/%2e%2e/a",
        "/.%2e",
        "/a/%2e%2e/%2e%2e/b",
        "//..",
        "/a\\b",
        "/a\\..\\b",
        "/a%",
        "/a%2",
        "/a%zz",
        "/%%32e",
        "/a%2gb",
        "/%u002e",
        "/a%00b",
    ];

    #[test]
    fn the_widest_reading_is_what_a_server_of_any_kind_may_take_a_path_for() {
        for (form, wide) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/a%20b", Some("/a%20b")),
            // Slashes.
            ("/a%2Fb", Some("/a/b")),
            ("/a%2fb", Some("/a/b")),
            ("/a%5Cb", Some("/a/b")),
            ("/a%2F%2Fb", Some("/a/b")),
            ("/open/..%2Fadmin", Some("/admin")),
            ("/open%2F..%2Fadmin", Some("/admin")),
            ("/open/..%5Cadmin", Some("/admin")),
            ("/..%2Fadmin", None),
            // Parameters.
            ("/a;b=1", Some("/a")),
            ("/a;b=1/c;d", Some("/a/c")),
            ("/;x/a", Some("/a")),
            ("/open/..;/admin", Some("/admin")),
            ("/open/..;x=1/admin", Some("/admin")),
            ("/open/..%3B/admin", Some("/admin")),
            ("/open/.;/admin", Some("/open/admin")),
            ("/..;/admin", None),
            // Both.
            ("/open/..;%2Fadmin", Some("/admin")),
            ("/open/;%2F..%2F..%2Fadmin", None),
            // Twice.
            ("/open/..%252Fadmin", Some("/open/..%252Fadmin")),
            ("*", Some("*")),
        ] {
            assert_eq!(widest(form).as_deref(), wide, "{form}");
        }
    }

    #[test]
    fn every_path_has_one_form_which_is_its_own() {
        for (path, form) in FORMS {
            assert_eq!(normal(path).as_deref(), Ok(*form), "{path}");
            assert_eq!(normal(form).as_deref(), Ok(*form), "{path}, again");
            assert!(is_plain(path.as_bytes()) <= (path == form), "{path} is looked at");
        }
    }

    #[test]
    fn what_could_be_read_as_something_else_is_refused() {
        for path in REFUSED {
            assert!(normal(path).is_err(), "{path}: {:?}", normal(path));
            assert!(!is_plain(path.as_bytes()), "{path} is looked at");
        }
    }

    #[test]
    fn the_query_is_left_alone() {
        let request = http::Request::get("/a//b/%2e%2e?x=//&y=%2e%zz").body(()).unwrap();
        let (mut head, ()) = request.into_parts();
        normalize(&mut head).unwrap();
        assert_eq!(head.uri, "/a/?x=//&y=%2e%zz");
        let request = http::Request::get("http://reviews//a").body(()).unwrap();
        let (mut head, ()) = request.into_parts();
        normalize(&mut head).unwrap();
        assert_eq!(head.uri, "http://reviews/a");
    }
}
