//! Interim answers (RFC 9110 section 15.2) of one request, on their way from an endpoint to its caller.
//!
//! Whoever hears one leaves it here, whoever speaks to the caller takes it from here. It writes nothing on a wire and
//! changes no field. Its other half is the request that waits for one of them: a body that is held back until its
//! endpoint says 100 (Continue).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

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
    hold: RefCell<Option<Rc<Hold>>>,
}

impl Interim {
    /// None yet, for a caller that speaks this.
    pub(crate) fn new(caller: Version) -> Self {
        Self {
            caller,
            heads: RefCell::default(),
            hold: RefCell::default(),
        }
    }

    /// An endpoint has said this. 100 is the answer to what this hop has asked for, or to nothing; the caller is told by
    /// the hop to it that its body is wanted, as soon as it is.
    pub(crate) fn heard(&self, status: StatusCode, headers: HeaderMap) {
        if status == StatusCode::CONTINUE {
            if let Some(hold) = &*self.hold.borrow() {
                hold.open();
            }
        } else if self.caller >= Version::HTTP_11 {
            self.heads.borrow_mut().push((status, headers));
        }
    }

    /// The next one for the caller, if there is one.
    pub(crate) fn next(&self) -> Option<(StatusCode, HeaderMap)> {
        // HTTP/1.1 says 100 by itself when a body is first asked for; HTTP/2 leaves it to us.
        if self.caller == Version::HTTP_2
            && let Some(hold) = &*self.hold.borrow()
            && hold.is_to_be_told()
        {
            return Some((StatusCode::CONTINUE, HeaderMap::new()));
        }
        let mut heads = self.heads.borrow_mut();
        (!heads.is_empty()).then(|| heads.remove(0))
    }

    /// The request's body is to be held back.
    pub(crate) fn hold(&self) -> Rc<Hold> {
        let hold = Rc::new(Hold::default());
        self.hold.replace(Some(Rc::clone(&hold)));
        hold
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

/// A body that its caller sends when it is told to (RFC 9110 section 10.1.1).
#[derive(Debug, Default)]
pub(crate) struct Hold {
    open: Cell<bool>,
    told: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Hold {
    /// It is wanted.
    pub(crate) fn open(&self) {
        self.open.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Ready when it is wanted.
    pub(crate) fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if self.open.get() {
            return Poll::Ready(());
        }
        self.waker.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Whether it is wanted and its caller has not been told.
    fn is_to_be_told(&self) -> bool {
        self.open.get() && !self.told.replace(true)
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
    fn a_body_that_is_held_is_asked_for_once() {
        for (caller, expected) in [(Version::HTTP_11, vec![]), (Version::HTTP_2, vec![100])] {
            let interim = Interim::new(caller);
            let hold = interim.hold();
            let cx = Context::from_waker(Waker::noop());
            assert!(hold.poll_open(&cx).is_pending());
            assert_eq!(heads(&interim), Vec::<u16>::new());
            interim.heard(StatusCode::CONTINUE, HeaderMap::new());
            interim.heard(StatusCode::CONTINUE, HeaderMap::new());
            assert!(hold.poll_open(&cx).is_ready());
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
