//! Wakes a task for what comes from outside, and not for what it does itself.
//!
//! The request that uses a connection drives it, so both ends of hyper's channels between the two are polled by one
//! task. Each message would wake the task that has just sent it and is about to look anyway; two such wake-ups a
//! request are two whole turns of the caller's connection for nothing. A [`Gate`] stands between: while it is shut
//! its owner promises to drive the connection before it waits. It does not poll anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use atomic_waker::AtomicWaker;

/// What a connection wakes, and who is woken by it.
#[derive(Debug)]
pub(crate) struct Gate {
    inside: Arc<Inside>,
    /// Wakes `inside`; made once.
    waker: Waker,
}

#[derive(Debug, Default)]
struct Inside {
    shut: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Inside {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.shut.load(Ordering::Relaxed) {
            self.task.wake();
        }
    }
}

impl Gate {
    pub(crate) fn new() -> Self {
        let inside = Arc::new(Inside::default());
        let waker = Waker::from(Arc::clone(&inside));
        Self { inside, waker }
    }

    /// Runs what wakes the connection, without waking the task. Its owner must drive the connection afterwards,
    /// before it waits: what was to be noticed is noticed then.
    pub(crate) fn shut<T>(&self, act: impl FnOnce() -> T) -> T {
        // Everything here happens on one thread; the flag is atomic only because wakers are shared by nature.
        self.inside.shut.store(true, Ordering::Relaxed);
        let done = act();
        self.inside.shut.store(false, Ordering::Relaxed);
        done
    }

    /// Drives the connection: what wakes it from now on wakes the task of `cx`.
    pub(crate) fn open<T>(&self, cx: &Context<'_>, drive: impl FnOnce(&mut Context<'_>) -> T) -> T {
        self.inside.task.register(cx.waker());
        drive(&mut Context::from_waker(&self.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_wake_from_outside_reaches_the_task_and_one_of_its_own_does_not() {
        let counter = Arc::new(Counter::default());
        let task = Waker::from(Arc::clone(&counter));
        let cx = Context::from_waker(&task);
        let gate = Gate::new();
        let connection = gate.open(&cx, |cx| cx.waker().clone());

        gate.shut(|| connection.wake_by_ref());
        assert_eq!(counter.0.load(Ordering::Relaxed), 0);
        connection.wake_by_ref();
        assert_eq!(counter.0.load(Ordering::Relaxed), 1);
        gate.open(&cx, |cx| cx.waker().wake_by_ref());
        assert_eq!(
            counter.0.load(Ordering::Relaxed),
            2,
            "a connection that asks to be driven again is"
        );
    }
}
