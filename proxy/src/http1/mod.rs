//! HTTP/1.1 as it is spoken to endpoints: requests written, answers read (RFC 9112).
//!
//! Bytes in, bytes out. It reads no socket and keeps no connection, which is [`crate::upstream`]'s; the lines of a head are
//! httparse's. Callers are hyper's server's. Why endpoints are not hyper's client's: docs/decisions/0007.

mod answer;
mod content;
mod request;

pub(crate) use answer::{Head, Said, read_head};
pub(crate) use content::Content;
pub(crate) use request::{Framing, write_head};

/// What bytes of an endpoint are that are no HTTP.
pub(crate) type Wrong = &'static str;

/// The most fields of a head or of trailers: hyper's default, as for callers.
const FIELDS_MAX: usize = 100;
