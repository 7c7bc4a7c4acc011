//! Places for the questions at the servers of one list: thousands of names are asked for within seconds, and no server is
//! flooded. Names of which nothing is heard, a dead zone's, share a few places, so that they hold up nobody but each other.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::upstream::discovery::answer::{Bad, Why};
use crate::upstream::discovery::asking::families::Asked;

/// Questions under way at once, slow ones not counted.
const QUICK_MAX: usize = 24;

/// Questions of names whose last one took long, under way at once: the names of a dead zone take 5 to 10 s each.
const SLOW_MAX: usize = 8;

/// All of both.
pub(super) const AT_ONCE_MAX: usize = QUICK_MAX + SLOW_MAX;

/// A question that takes longer is slow: a server that has to ask others takes some hundred milliseconds, and its own
/// failures to reach them are told after seconds.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// A question and all that it takes (search domains, further servers, TCP) is given up after this: twice the time that
/// resolv.conf gives one try.
const QUESTION_MAX: Duration = Duration::from_secs(10);

/// A question that has its place.
pub(super) type Question<'a> = Pin<Box<dyn Future<Output = Asked> + Send + 'a>>;

/// The places.
pub(super) struct Places {
    quick: Semaphore,
    slow: Semaphore,
    /// How many wait for a quick one.
    waiting: AtomicUsize,
}

/// One that waits, until it is dropped.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            quick: Semaphore::new(QUICK_MAX),
            slow: Semaphore::new(SLOW_MAX),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Asks when there is a place. `was_slow`: the same about the last question for the name. The question is made when
    /// its turn has come, for thousands wait and it is large.
    pub(super) async fn hold<'a>(&self, was_slow: bool, ask: impl Fn() -> Question<'a>) -> Asked {
        if !was_slow && let Some(asked) = self.hold_quick(&ask).await {
            return asked;
        }
        // It is never closed.
        let _place = self.slow.acquire().await;
        let began = Instant::now();
        let asked = tokio::time::timeout(QUESTION_MAX, ask()).await;
        let mut asked = asked.unwrap_or_else(|_| given_up());
        asked.is_slow = began.elapsed() >= SLOW_AFTER;
        asked
    }

    /// The same among the quick ones. `None`: it was slow and gave way to those that waited; it is to be asked again.
    async fn hold_quick<'a>(&self, ask: &impl Fn() -> Question<'a>) -> Option<Asked> {
        let mut place = self.quick_place().await;
        let (began, mut in_quick) = (Instant::now(), true);
        let mut asking = ask();
        let mut asked = loop {
            tokio::select! {
                biased;
                asked = &mut asking => break asked,
                () = tokio::time::sleep(SLOW_AFTER) => {}
            }
            if began.elapsed() >= QUESTION_MAX {
                break given_up();
            }
            if in_quick && let Ok(slow) = self.slow.try_acquire() {
                (place, in_quick) = (Some(slow), false);
            } else if in_quick && self.waiting.load(Ordering::Relaxed) > 0 {
                return None;
            }
        };
        drop(place);
        asked.is_slow = began.elapsed() >= SLOW_AFTER;
        Some(asked)
    }

    async fn quick_place(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(place) = self.quick.try_acquire() {
            return Some(place);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        // It is never closed.
        self.quick.acquire().await.ok()
    }
}

fn given_up() -> Asked {
    Asked::from(Err(Bad {
        why: Why::TimedOut,
        ttl: None,
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn silence<'a>() -> Question<'a> {
        Box::pin(std::future::pending())
    }

    fn answer<'a>() -> Question<'a> {
        let why = Why::NoSuchName;
        Box::pin(std::future::ready(Asked::from(Err(Bad { why, ttl: None }))))
    }

    fn why(asked: &Asked) -> Option<&Why> {
        asked.answer.as_ref().err().map(|bad| &bad.why)
    }

    #[tokio::test(start_paused = true)]
    async fn slow_names_leave_room_for_the_others_and_new_ones_give_way() {
        let places = Arc::new(Places::new());
        let began = Instant::now();
        let hold = |was_slow: bool| {
            let places = Arc::clone(&places);
            tokio::spawn(async move {
                let asked = places.hold(was_slow, silence).await;
                (asked.is_slow, why(&asked).cloned(), began.elapsed())
            })
        };
        let _slow: Vec<_> = (0..100).map(|_| hold(true)).collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let asked = places.hold(false, answer).await;
        assert_eq!((asked.is_slow, why(&asked)), (false, Some(&Why::NoSuchName)));
        assert_eq!(began.elapsed().as_millis(), 1, "it waited for slow ones");

        // Nobody waits for them: they go on.
        let first: Vec<_> = (0..QUICK_MAX).map(|_| hold(false)).collect();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(places.quick.available_permits(), 0);
        let asked = places.hold(false, answer).await;
        assert_eq!(why(&asked), Some(&Why::NoSuchName));
        let waited = began.elapsed();
        assert!(waited <= Duration::from_secs(4), "{waited:?}");
        assert_eq!(places.quick.available_permits(), QUICK_MAX, "they gave way");
        // And are asked again among the slow ones, with their whole time.
        for asked in first {
            let (is_slow, why, at) = asked.await.unwrap();
            assert_eq!((is_slow, why), (true, Some(Why::TimedOut)));
            assert!(at >= QUESTION_MAX * 12, "those before it were asked first");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_nobody_waits_for_has_its_whole_time() {
        let places = Places::new();
        let began = Instant::now();
        let asked = places.hold(false, silence).await;
        assert_eq!((asked.is_slow, why(&asked)), (true, Some(&Why::TimedOut)));
        assert_eq!(began.elapsed(), QUESTION_MAX);
    }
}
