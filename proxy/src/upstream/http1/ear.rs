//! How an HTTP/1.1 endpoint's interim answers are heard: through hyper, which reads past them and calls back.
//!
//! hyper takes the callback out of each request's extensions, so each is given one; copying the extensions of a request
//! that holds it costs more, since their map is copied with it. What becomes of an answer is [`crate::interim`]'s.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, Request, StatusCode};

use crate::interim::{Allowance, Interim};
use crate::upstream::pool::SendError;

/// What listens on a connection.
#[derive(Debug, Default)]
pub(super) struct Ear(Arc<Heard>);

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
    /// Listens to what is said before the answer to this request.
    pub(super) fn listen_for<B>(&self, request: &mut Request<B>) {
        if self.0.any.load(Ordering::Relaxed) {
            self.0.any.store(false, Ordering::Relaxed);
            *self.0.said() = Said::default();
        }
        let heard = Arc::clone(&self.0);
        hyper::ext::on_informational(request, move |head| heard.hear(head.status(), head.headers()));
    }

    /// Passes on what has been heard.
    ///
    /// # Errors
    /// When it is more than there may be.
    pub(super) fn pass_on(&self, interim: &Interim) -> Result<(), SendError> {
        if !self.0.any.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut said = self.0.said();
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
