//! The protocols that are spoken inside TLS, and the names by which they are agreed upon (RFC 7301).

/// What is spoken inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// Nothing was said.
    Unsaid,
    Http1,
    Http2,
}

impl Alpn {
    /// Its names, as they are offered.
    pub(super) fn offered(self) -> Vec<Vec<u8>> {
        match self {
            Self::Unsaid => Vec::new(),
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
        }
    }

    pub(super) fn of(agreed: Option<&[u8]>) -> Self {
        match agreed {
            Some(b"h2") => Self::Http2,
            Some(b"http/1.1") => Self::Http1,
            _ => Self::Unsaid,
        }
    }
}
