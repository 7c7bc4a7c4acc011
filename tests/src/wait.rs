//! Waiting for something that must happen, and saying what did not.

use std::time::Duration;

/// The longest that a test waits for an event that must come. Far more than a loaded machine with two cores needs,
/// so that its end means a fault and never a slow minute.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at something that cannot announce itself, such as a page that is asked for over HTTP.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The result of `future`, which must come within [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("waited {} s for {what}, which did not happen", PATIENCE.as_secs()),
    }
}

/// Asks again and again until there is an answer, which must come within [`PATIENCE`].
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_in(PATIENCE, what, ask).await
}

/// The same of what takes its own time, such as a certificate's life: it must come within this.
pub async fn eventually_in<T>(patience: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    match tokio::time::timeout(patience, asking).await {
        Ok(done) => done,
        Err(_) => panic!("waited {} s for {what}, which did not happen", patience.as_secs()),
    }
}
