//! Interim answers (RFC 9110 section 15.2) of one request, on their way from an endpoint to its caller.
//!
//! Whoever hears one leaves it here, whoever speaks to the caller takes it from here. It writes nothing on a wire and
//! changes no field.

use std::cell::RefCell;

use http::{HeaderMap, StatusCode, Version};

/// Interim answers of one attempt. A server that says 102 every 20 seconds (RFC 2518 section 10.1) may go on for half
/// an hour; more at once is a flood.
const HEADS_MAX: usize = 100;

/// Their fields together, names and values: as much as one head may have by HTTP/2.
const BYTES_MAX: usize = 64 * 1024;

/// The interim answers of one request.
#[derive(Debug)]
pub(crate) struct Interim {
    /// How its caller speaks: who speaks HTTP/1.0 knows none of them (RFC 9110 section 15.2).
    caller: Version,
    heads: RefCell<Vec<(StatusCode, HeaderMap)>>,
}

impl Interim {
    /// None yet, for a caller that speaks this.
    pub(crate) fn new(caller: Version) -> Self {
        Self {
            caller,
            heads: RefCell::default(),
        }
    }

    /// An endpoint has said this. 100 is the answer to what this hop has asked for, or to nothing; the caller is told by
    /// the hop to it that its body is wanted, as soon as it is.
    pub(crate) fn heard(&self, status: StatusCode, headers: HeaderMap) {
        if status != StatusCode::CONTINUE && self.caller >= Version::HTTP_11 {
            self.heads.borrow_mut().push((status, headers));
        }
    }

    /// The next one for the caller, if there is one.
    pub(crate) fn next(&self) -> Option<(StatusCode, HeaderMap)> {
        let mut heads = self.heads.borrow_mut();
        (!heads.is_empty()).then(|| heads.remove(0))
    }
}

/// What one attempt may still say before its answer.
#[derive(Debug)]
pub(crate) struct Allowance {
    heads: usize,
    bytes: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            heads: HEADS_MAX,
            bytes: BYTES_MAX,
        }
    }
}

impl Allowance {
    /// Whether these fields are still within it.
    pub(crate) fn takes(&mut self, headers: &HeaderMap) -> bool {
        let bytes: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        match (self.heads.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(heads), Some(bytes)) => {
                *self = Self { heads, bytes };
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(interim: &Interim) -> Vec<u16> {
        std::iter::from_fn(|| interim.next())
            .map(|(status, _)| status.as_u16())
            .collect()
    }

    #[test]
    fn what_an_endpoint_says_reaches_those_who_know_it_in_its_order() {
        for (caller, expected) in [
            (Version::HTTP_10, vec![]),
            (Version::HTTP_11, vec![103, 102, 103]),
            (Version::HTTP_2, vec![103, 102, 103]),
        ] {
            let interim = Interim::new(caller);
            for status in [
                StatusCode::EARLY_HINTS,
                StatusCode::PROCESSING,
                StatusCode::CONTINUE,
            ] {
                interim.heard(status, HeaderMap::new());
            }
            interim.heard(StatusCode::EARLY_HINTS, HeaderMap::new());
            assert_eq!(heads(&interim), expected, "{caller:?}");
        }
    }

    #[test]
    fn an_attempt_may_say_only_so_much() {
        let mut allowance = Allowance::default();
        let nothing = HeaderMap::new();
        assert!((0..HEADS_MAX).all(|_| allowance.takes(&nothing)));
        assert!(!allowance.takes(&nothing));
        let mut large = HeaderMap::new();
        let half = http::HeaderValue::from_bytes(&vec![b'x'; BYTES_MAX / 2 - 4]).unwrap();
        large.insert("link", half);
        let mut allowance = Allowance::default();
        assert!(allowance.takes(&large) && allowance.takes(&large));
        assert!(!allowance.takes(&large));
    }
}
