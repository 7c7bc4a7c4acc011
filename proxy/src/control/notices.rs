//! What this sidecar is worried about, as the control API is told: with each poll, and soon after it changes.
//!
//! What there is to tell is decided by [`crate::upstream::discovery`].

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A poll is cut short to tell what changed no sooner than this after the one before: a name that fails and recovers every
/// moment must not make a storm of polls.
const CUT_EVERY: Duration = Duration::from_secs(1);

/// What is to be told, and what was.
#[derive(Debug)]
pub(super) struct Notices {
    current: watch::Receiver<Vec<String>>,
    told: Vec<String>,
    /// No poll is cut short before.
    next: Instant,
}

impl Notices {
    pub(super) fn new(current: watch::Receiver<Vec<String>>) -> Self {
        Self {
            current,
            told: Vec::new(),
            next: Instant::now(),
        }
    }

    /// What to tell with a poll that begins now.
    pub(super) fn tell(&mut self) -> Vec<String> {
        self.told.clone_from(&self.current.borrow_and_update());
        self.told.clone()
    }

    /// Waits until there is other to be told, and it is time. Given up at any moment it loses nothing.
    pub(super) async fn changed(&mut self) {
        loop {
            tokio::time::sleep_until(self.next).await;
            if *self.current.borrow_and_update() != self.told {
                self.next = Instant::now() + CUT_EVERY;
                return;
            }
            if self.current.changed().await.is_err() {
                // Nobody tells any more: the sidecar ends.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_at_once_and_the_next_a_second_later() {
        let (sender, receiver) = watch::channel(Vec::new());
        let mut notices = Notices::new(receiver);
        assert!(notices.tell().is_empty());
        let began = Instant::now();
        for (number, after) in [(1, 0), (2, 1), (3, 2)] {
            sender.send_replace(vec![number.to_string()]);
            notices.changed().await;
            assert_eq!(began.elapsed(), Duration::from_secs(after));
            assert_eq!(notices.tell(), [number.to_string()]);
        }
        // What has passed by then is not told.
        sender.send_replace(vec!["4".to_owned()]);
        sender.send_replace(vec!["3".to_owned()]);
        let waited = tokio::time::timeout(Duration::from_secs(9), notices.changed()).await;
        assert!(waited.is_err());
    }
}
