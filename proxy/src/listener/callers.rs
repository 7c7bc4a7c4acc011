//! The callers' connections of one worker: which are silent, and when they are to be closed.
//!
//! Whether a connection has been silent for too long is looked at about once a second for all, instead of setting a
//! timer for each request: that costs a request two counts and nothing else. Closing is done by the connection's own
//! task, which is woken for it.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outrigger_config::bootstrap::Listeners;

use crate::error::Reason;
use crate::frames::Allowance;
use crate::request::body::Bounds;
use crate::tls::Session;

/// How long callers may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    /// The longest that a head may take to come once it has begun.
    head: Duration,
    /// The longest that a connection may have no request.
    idle: Duration,
}

impl Silence {
    /// As the bootstrap has it.
    pub(crate) fn of(listeners: &Listeners) -> Self {
        Self {
            head: listeners.head_timeout.0,
            idle: listeners.idle_timeout.0,
        }
    }
}

/// A caller that takes nothing of its answer for this long is cut off where the route has no idle time: Envoy and
/// nginx give it minutes and one minute; the shorter, because an upstream's connection waits with it.
const UNREAD_MAX: Duration = Duration::from_secs(60);

/// A body that can still be handed over notices its deadline by itself. So long after it the caller is what holds it.
const GRACE: Duration = Duration::from_secs(1);

/// A connection that has brought no request yet is not told to hang up within this: one made a moment ago brings its
/// request just now, and closing on it would lose a request that may be no one's to send again. Its answer says that
/// there is no second.
const FIRST_WORD_MAX: Duration = Duration::from_secs(1);

/// A caller that was told to hang up because its connection is over goes on as it likes for so many looks, of a second
/// each: it may be far away, and what it sends before it hears of it is in good faith.
const OVERSTAYED_LOOKS: u32 = 2;

/// The connections of one worker.
#[derive(Debug)]
pub(super) struct Callers {
    silence: Silence,
    next: Cell<u64>,
    /// Whether those that are silent are told to close.
    hanging_up: Cell<bool>,
    connections: RefCell<HashMap<u64, Rc<Caller>>>,
}

/// One connection as its worker sees it.
#[derive(Debug)]
pub(super) struct Caller {
    /// Requests that have begun.
    begun: Cell<u64>,
    /// Requests whose answer has not been handed over yet.
    under_way: Cell<u32>,
    /// How many had begun at the last look, and when it was first seen to rest there.
    seen: Cell<(u64, Instant)>,
    /// By HTTP/1: whether bytes have come since the last request. A connection that may be switched must be able to
    /// move between threads, and so must this.
    heard: Arc<AtomicBool>,
    /// Which head had begun and not ended at the last look, and when it was first seen.
    head: Cell<Option<(u64, Instant)>>,
    /// The requests under way: one at a time by HTTP/1, many by HTTP/2.
    requests: RefCell<Vec<Rc<Watch>>>,
    /// The watch of a request that is over, for the next.
    spare: RefCell<Option<Rc<Watch>>>,
    /// What its frames may cost, if it carries many requests at once; then one can be cut without the others.
    allowance: Option<Rc<Allowance>>,
    /// How often it was looked at.
    looks: Cell<u64>,
    order: Cell<Option<Order>>,
    waker: RefCell<Option<Waker>>,
    /// How long it may be used, if it speaks TLS.
    session: OnceCell<Session>,
    /// How often a look has found that this time was over.
    overstays: Cell<u32>,
}

/// One request as the sweep sees it.
#[derive(Debug, Default)]
struct Watch {
    /// Its place among the requests under way.
    place: Cell<usize>,
    /// How often its connection had been looked at when it began.
    began: Cell<u64>,
    /// How long the answer under way may take.
    bounds: Cell<Option<Bounds>>,
    /// Whether a frame has been handed over and none asked for: the caller does not read. Not so while the upstream is
    /// what is waited for.
    unread: Cell<bool>,
    /// When a look first found it so: a clock is read once a second for all, and not at every frame.
    unread_since: Cell<Option<Instant>>,
    cut: Cell<Option<Reason>>,
    taken_back: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// What a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Finish the request under way, if there is one, and close.
    HangUp,
    /// Close: there has been no request for too long.
    TooSilent,
    /// Close at once, in the middle of an answer: the caller does not take it.
    Cut,
    /// Close at once: the caller has been revoked.
    Revoked,
}

impl Callers {
    pub(super) fn new(silence: Silence) -> Self {
        Self {
            silence,
            next: Cell::new(0),
            hanging_up: Cell::new(false),
            connections: RefCell::default(),
        }
    }

    /// A new connection. It leaves when the guard is dropped.
    ///
    /// One that begins after the others were told to hang up has come for one request, whose answer says that there is no
    /// second: it is told only if it brings none.
    pub(super) fn join(self: &Rc<Self>, multiplexed: bool, now: Instant) -> Joined {
        let place = self.next.get();
        self.next.set(place + 1);
        let caller = Rc::new(Caller {
            begun: Cell::new(0),
            under_way: Cell::new(0),
            seen: Cell::new((0, now)),
            heard: Arc::default(),
            head: Cell::new(None),
            requests: RefCell::default(),
            spare: RefCell::default(),
            allowance: multiplexed.then(Rc::default),
            looks: Cell::new(0),
            order: Cell::new(None),
            waker: RefCell::new(None),
            session: OnceCell::new(),
            overstays: Cell::new(0),
        });
        self.connections.borrow_mut().insert(place, Rc::clone(&caller));
        Joined {
            callers: Rc::clone(self),
            place,
            caller,
        }
    }

    /// Tells those that are there to close once they are silent; from now on also those that come and stay silent.
    pub(super) fn hang_up(&self, now: Instant) {
        self.hanging_up.set(true);
        let callers = self.connections.borrow();
        let told = callers.values().filter(|caller| !caller.is_about_to_ask(now));
        told.for_each(|caller| caller.tell(Order::HangUp));
    }

    /// Tells those that speak HTTP/2 that they are to open no further streams: it can be said to them at once.
    pub(super) fn go_away(&self) {
        let callers = self.connections.borrow();
        let multiplexed = callers.values().filter(|caller| caller.allowance.is_some());
        multiplexed.for_each(|caller| caller.tell(Order::HangUp));
    }

    /// Tells those that have been silent for too long. Called about once a second.
    pub(super) fn sweep(&self, now: Instant) {
        for caller in self.connections.borrow().values() {
            if self.hanging_up.get() && caller.begun.get() == 0 && !caller.is_about_to_ask(now) {
                caller.tell(Order::HangUp);
            }
            caller.looks.set(caller.looks.get() + 1);
            if let Some(allowance) = &caller.allowance {
                allowance.forgive();
            }
            if let Some(Err(failure)) = caller.session.get().map(Session::stands) {
                let (reason, detail) = (failure.reason.word(), failure.detail);
                tracing::info!(reason, detail, "a caller's connection is cut");
                caller.cut_all(failure.reason);
                caller.tell(Order::Revoked);
                continue;
            }
            if caller.cut_overdue(now) && caller.allowance.is_none() {
                caller.tell(Order::Cut);
                continue;
            }
            if caller.head_is_overdue(now, self.silence.head) {
                caller.tell(Order::TooSilent);
                continue;
            }
            if caller.session.get().is_some_and(|session| session.is_over(now)) {
                let looks = caller.overstays.get();
                caller.overstays.set(looks.saturating_add(1));
                if looks == 0 {
                    caller.tell(Order::HangUp);
                    continue;
                }
            }
            let (seen, since) = caller.seen.get();
            if caller.under_way.get() > 0 || caller.begun.get() != seen {
                caller.seen.set((caller.begun.get(), now));
            } else if now.saturating_duration_since(since) >= self.silence.idle {
                caller.tell(Order::TooSilent);
            }
        }
    }
}

impl Watch {
    /// Why its answer is to be cut, if it is. The bounds of a body are kept by the body whenever it is asked for
    /// more; while the caller reads nothing it is not asked, and only this look remains.
    fn overdue(&self, now: Instant) -> Option<Reason> {
        if !self.unread.get() {
            return None;
        }
        let since = self.unread_since.get().unwrap_or(now);
        self.unread_since.set(Some(since));
        let (deadline, idle) = self.bounds.get()?.parts();
        if deadline.is_some_and(|deadline| now > deadline + GRACE) {
            return Some(Reason::RequestTimeout);
        }
        (now.saturating_duration_since(since) > idle.unwrap_or(UNREAD_MAX)).then_some(Reason::IdleTimeout)
    }
}

impl Watch {
    /// Whoever hands its answer over is woken, and finds it cut.
    fn cut_for(&self, reason: Reason) {
        self.cut.set(Some(reason));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Caller {
    /// Notes that all its answers are to be cut.
    fn cut_all(&self, reason: Reason) {
        self.requests
            .borrow()
            .iter()
            .for_each(|watch| watch.cut_for(reason));
    }

    /// Notes which answers are to be cut, and wakes whoever hands them over. Whether there is one.
    fn cut_overdue(&self, now: Instant) -> bool {
        let mut any = false;
        for watch in self.requests.borrow().iter() {
            if let Some(reason) = watch.overdue(now) {
                any = true;
                watch.cut_for(reason);
            }
        }
        any
    }

    /// Whether a head has been on its way for too long.
    fn head_is_overdue(&self, now: Instant, longest: Duration) -> bool {
        let unfinished = match &self.allowance {
            Some(allowance) => allowance.unfinished_head(),
            None => {
                (self.heard.load(Ordering::Relaxed) && self.under_way.get() == 0).then(|| self.begun.get())
            }
        };
        let seen = self.head.get().filter(|(head, _)| Some(*head) == unfinished);
        match (unfinished, seen) {
            (Some(_), Some((_, since))) => now.saturating_duration_since(since) >= longest,
            (unfinished, _) => {
                self.head.set(unfinished.map(|head| (head, now)));
                false
            }
        }
    }

    /// What is to be set when bytes come, by HTTP/1.
    pub(super) fn heard(&self) -> &Arc<AtomicBool> {
        &self.heard
    }

    /// Whether it is so new that its first request may be on its way.
    fn is_about_to_ask(&self, now: Instant) -> bool {
        let (_, since) = self.seen.get();
        self.begun.get() == 0 && now.saturating_duration_since(since) < FIRST_WORD_MAX
    }

    pub(super) fn tell(&self, order: Order) {
        self.order.set(Some(order));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// It speaks TLS, and may take requests for so long: past that it is told to hang up.
    pub(super) fn lasts(&self, session: &Session) {
        let _ = self.session.set(session.clone());
    }

    /// Whether it takes no leave though its connection is over. By HTTP/1.1 there is no such thing: the request that is
    /// under way when it is told is the last. By HTTP/2 it may ask on until it acknowledges a PING (RFC 9113 section 6.8).
    pub(super) fn overstays(&self) -> bool {
        self.overstays.get() > OVERSTAYED_LOOKS
    }

    /// A request begins. It ends when the guard is dropped.
    pub(super) fn begin(self: &Rc<Self>) -> UnderWay {
        self.begun.set(self.begun.get() + 1);
        self.heard.store(false, Ordering::Relaxed);
        self.under_way.set(self.under_way.get() + 1);
        let watch = self.spare.take().unwrap_or_default();
        let mut requests = self.requests.borrow_mut();
        watch.place.set(requests.len());
        watch.began.set(self.looks.get());
        requests.push(Rc::clone(&watch));
        UnderWay {
            caller: Rc::clone(self),
            watch,
        }
    }

    /// What its frames may cost, if it speaks HTTP/2.
    pub(super) fn allowance(&self) -> Option<&Rc<Allowance>> {
        self.allowance.as_ref()
    }

    /// What it has been told since this was last asked. Until then the task is woken when it is told something.
    pub(super) fn told(&self, cx: &Context<'_>) -> Option<Order> {
        // The task's waker stays the same for its life, so it is left only once.
        let mut waker = self.waker.borrow_mut();
        if waker.is_none() {
            *waker = Some(cx.waker().clone());
        }
        self.order.take()
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    caller: Rc<Caller>,
    watch: Rc<Watch>,
}

impl UnderWay {
    /// An answer begins to be handed over.
    pub(super) fn answers(&self, bounds: Option<Bounds>) {
        self.watch.bounds.set(bounds);
    }

    /// A frame has been handed over, or the upstream has to be waited for.
    pub(super) fn handed_over(&self, frame: bool) {
        self.watch.unread.set(frame);
        self.watch.unread_since.set(None);
    }

    /// Why its answer was cut, if it was.
    pub(super) fn was_cut(&self) -> Option<Reason> {
        self.watch.cut.get()
    }

    /// The same, for a request that can be cut by itself: whoever asks is woken when it is.
    pub(super) fn poll_cut(&self, cx: &Context<'_>) -> Poll<Reason> {
        if let Some(reason) = self.watch.cut.get() {
            return Poll::Ready(reason);
        }
        let mut waker = self.watch.waker.borrow_mut();
        if waker.is_none() {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The caller took its request back. One that it gave some time is no more than that; one taken back at once counts
    /// against the connection.
    pub(super) fn was_taken_back(&self) {
        let Self { caller, watch } = self;
        watch.taken_back.set(true);
        if watch.began.get() == caller.looks.get()
            && let Some(allowance) = &caller.allowance
        {
            allowance.taken_back();
            if allowance.verdict().is_some()
                && let Some(waker) = caller.waker.take()
            {
                waker.wake();
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Self { caller, watch } = self;
        caller.under_way.set(caller.under_way.get() - 1);
        // What came while it was under way was its body, or so little of the next head that it hardly matters.
        caller.heard.store(false, Ordering::Relaxed);
        let mut requests = caller.requests.borrow_mut();
        let place = watch.place.get();
        requests.swap_remove(place);
        if let Some(moved) = requests.get(place) {
            moved.place.set(place);
        }
        if let Some(allowance) = &caller.allowance
            && !watch.taken_back.take()
        {
            allowance.answered();
        }
        watch.bounds.set(None);
        watch.unread.set(false);
        watch.unread_since.set(None);
        watch.cut.set(None);
        watch.waker.take();
        caller.spare.replace(Some(Rc::clone(watch)));
    }
}

/// A connection's place among the callers.
#[derive(Debug)]
pub(super) struct Joined {
    callers: Rc<Callers>,
    place: u64,
    pub(super) caller: Rc<Caller>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.callers.connections.borrow_mut().remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    fn callers() -> Rc<Callers> {
        let silence = Silence {
            head: HEAD,
            idle: IDLE,
        };
        Rc::new(Callers::new(silence))
    }

    fn told(joined: &Joined) -> Option<Order> {
        joined.caller.told(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_connection_is_told_when_it_has_been_silent_for_too_long_and_not_before() {
        let callers = callers();
        let start = Instant::now();
        let joined = callers.join(false, start);
        callers.sweep(start + IDLE - Duration::from_secs(1));
        assert_eq!(told(&joined), None);
        callers.sweep(start + IDLE);
        assert_eq!(told(&joined), Some(Order::TooSilent));
    }

    #[test]
    fn a_request_begins_the_silence_anew_and_one_under_way_is_none() {
        let callers = callers();
        let start = Instant::now();
        let joined = callers.join(false, start);
        let request = joined.caller.begin();
        callers.sweep(start + IDLE * 3);
        assert_eq!(told(&joined), None, "a long request is not silence");
        drop(request);
        drop(joined.caller.begin());
        callers.sweep(start + IDLE * 4);
        callers.sweep(start + IDLE * 5 - Duration::from_secs(1));
        assert_eq!(told(&joined), None);
        callers.sweep(start + IDLE * 5);
        assert_eq!(told(&joined), Some(Order::TooSilent));
    }

    #[test]
    fn a_head_that_has_begun_has_a_bound_of_its_own() {
        let callers = callers();
        let start = Instant::now();
        let joined = callers.join(false, start);
        joined.caller.heard().store(true, Ordering::Relaxed);
        callers.sweep(start);
        callers.sweep(start + HEAD - Duration::from_secs(1));
        assert_eq!(told(&joined), None);
        callers.sweep(start + HEAD);
        assert_eq!(told(&joined), Some(Order::TooSilent));
        // The next one has its own time, and a body is no head.
        let request = joined.caller.begin();
        joined.caller.heard().store(true, Ordering::Relaxed);
        callers.sweep(start + HEAD * 2);
        drop(request);
        callers.sweep(start + HEAD * 4);
        assert_eq!(told(&joined), None);
        joined.caller.heard().store(true, Ordering::Relaxed);
        callers.sweep(start + HEAD * 5);
        assert_eq!(told(&joined), None);
        callers.sweep(start + HEAD * 6);
        assert_eq!(told(&joined), Some(Order::TooSilent));
    }

    #[test]
    fn those_that_are_there_are_told_to_hang_up_and_those_that_left_are_forgotten() {
        let callers = callers();
        let now = Instant::now();
        let (stays, leaves) = (callers.join(false, now), callers.join(true, now));
        drop(leaves);
        drop(stays.caller.begin());
        callers.hang_up(now);
        let late = callers.join(false, now);
        assert_eq!(
            (told(&stays), told(&stays), told(&late)),
            (Some(Order::HangUp), None, None)
        );
        drop((stays, late));
        assert!(callers.connections.borrow().is_empty());
    }

    #[test]
    fn a_connection_whose_first_request_may_be_on_its_way_is_told_only_if_none_comes() {
        let callers = callers();
        let start = Instant::now();
        let (silent, fresh) = (
            callers.join(false, start),
            callers.join(false, start + FIRST_WORD_MAX),
        );
        callers.hang_up(start + FIRST_WORD_MAX);
        assert_eq!((told(&silent), told(&fresh)), (Some(Order::HangUp), None));
        let asks = callers.join(false, start + FIRST_WORD_MAX);
        let request = asks.caller.begin();
        callers.sweep(start + FIRST_WORD_MAX * 2);
        assert_eq!((told(&fresh), told(&asks)), (Some(Order::HangUp), None));
        drop(request);
    }
}
