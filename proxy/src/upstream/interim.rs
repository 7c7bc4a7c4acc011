//! How an HTTP/1.1 endpoint's interim answers are heard: through hyper, which reads past them and calls back.
//!
//! hyper takes the callback out of each request's extensions. It is made once for a connection, and a request is given
//! a copy of the extensions that hold it. What becomes of an answer is [`crate::interim`]'s.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Extensions, HeaderMap, Request, StatusCode};

use crate::interim::{Allowance, Interim};
use crate::upstream::pool::SendError;

/// What listens on a connection.
#[derive(Debug)]
pub(super) struct Ear {
    heard: Arc<Heard>,
    /// Nothing but the callback, which has no name outside of hyper.
    callback: Extensions,
}

/// What has been heard. hyper wants its callback to be `Sync`; the thread is one and the same, so that the lock, which
/// only an interim answer takes, is always free.
#[derive(Debug, Default)]
struct Heard {
    any: AtomicBool,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    heads: Vec<(StatusCode, HeaderMap)>,
    allowance: Allowance,
    too_much: bool,
}

impl Ear {
    pub(super) fn new() -> Self {
        let heard = Arc::new(Heard::default());
        let (mut bearer, hears) = (Request::new(()), Arc::clone(&heard));
        hyper::ext::on_informational(&mut bearer, move |head| hears.hear(head.status(), head.headers()));
        let callback = std::mem::take(bearer.extensions_mut());
        Self { heard, callback }
    }

    /// Listens to what is said before the answer to this request.
    pub(super) fn listen_for<B>(&self, request: &mut Request<B>) {
        if self.heard.any.swap(false, Ordering::Relaxed) {
            *self.heard.said() = Said::default();
        }
        request.extensions_mut().extend(self.callback.clone());
    }

    /// Passes on what has been heard.
    ///
    /// # Errors
    /// When it is more than there may be.
    pub(super) fn pass_on(&self, interim: &Interim) -> Result<(), SendError> {
        if !self.heard.any.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut said = self.heard.said();
        for (status, headers) in said.heads.drain(..) {
            interim.heard(status, headers);
        }
        match said.too_much {
            true => Err(SendError::TooManyInterim),
            false => Ok(()),
        }
    }
}

impl Heard {
    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        self.any.store(true, Ordering::Relaxed);
        let mut said = self.said();
        // hyper reads on as long as there is something to read, whatever is thought of it here.
        said.too_much |= !said.allowance.takes(headers);
        if !said.too_much {
            said.heads.push((status, headers.clone()));
        }
    }
}
