//! Deadlines that cost nothing while they are kept.
//!
//! A proxy sets a deadline for every request and almost none is reached. Entering and leaving the runtime's timer
//! wheel each time would cost more than routing the request. [`Deadline`] enters it once for a connection and
//! afterwards only moves a number: when the wheel wakes it too early it goes back to sleep until the real time.
//! It does not decide what happens at a deadline; `request` does.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A deadline that moves cheaply, mostly forwards. One for each connection, reused by its requests.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: Instant,
    wheel: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Deadline {
    pub(crate) fn new(at: Instant) -> Self {
        Self { at, wheel: None }
    }

    /// Moves the deadline; it is reached when [`Self::poll`] says so, not before.
    pub(crate) fn set(&mut self, at: Instant) {
        self.at = at;
    }

    /// Ready once the deadline has passed. Pending registers the task to be woken then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let at = self.at;
        let wheel = self
            .wheel
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
        if wheel.deadline() > at.into() {
            wheel.as_mut().reset(at.into());
        }
        while wheel.as_mut().poll(cx).is_ready() {
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            wheel.as_mut().reset(at.into());
        }
        Poll::Pending
    }
}

/// The timer that hyper's connections use, built on [`Deadline`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timer;

/// What [`Timer`] hands to hyper.
struct Sleep(Deadline);

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(cx)
    }
}

impl hyper::rt::Sleep for Sleep {}

impl hyper::rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(Deadline::new(deadline)))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn hyper::rt::Sleep>>, deadline: Instant) {
        if let Some(mut ours) = sleep.as_mut().downcast_mut_pin::<Sleep>() {
            ours.0.set(deadline);
        } else {
            *sleep = self.sleep_until(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn reached(deadline: &mut Deadline) {
        std::future::poll_fn(|cx| deadline.poll(cx)).await;
    }

    #[tokio::test]
    async fn a_deadline_is_not_reached_before_its_time_however_often_it_was_moved() {
        let start = Instant::now();
        let mut deadline = Deadline::new(start + Duration::from_millis(5));
        assert!(
            std::future::poll_fn(|cx| Poll::Ready(deadline.poll(cx)))
                .await
                .is_pending()
        );
        for millis in [10, 20, 30] {
            deadline.set(start + Duration::from_millis(millis));
        }
        reached(&mut deadline).await;
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    #[tokio::test]
    async fn a_deadline_that_moves_back_is_reached_at_the_nearer_time() {
        let start = Instant::now();
        let mut deadline = Deadline::new(start + Duration::from_secs(3600));
        assert!(
            std::future::poll_fn(|cx| Poll::Ready(deadline.poll(cx)))
                .await
                .is_pending()
        );
        deadline.set(start + Duration::from_millis(1));
        reached(&mut deadline).await;
        assert!(start.elapsed() < Duration::from_secs(3600));
    }
}
