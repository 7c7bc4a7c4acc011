//! How everything stops.
//!
//! Four moments: `draining`, when the sidecar says that it will go and finishes what it has; `hung_up`, when it closes
//! kept connections that are silent; `closed`, when it takes no new connection any more; `ended`, when the time is
//! over. Every task is spawned through here, so that stopping waits for it and none is forgotten.
//! It knows nothing of listeners or requests; they ask it which moment it is.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The moments of stopping, and the tasks that stopping waits for. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    draining: CancellationToken,
    hung_up: CancellationToken,
    closed: CancellationToken,
    ended: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// Says that the sidecar will go. Saying it again changes nothing.
    pub fn start(&self) {
        self.draining.cancel();
    }

    /// Whether the sidecar will go.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when the sidecar will go.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Closes kept connections that are silent.
    pub(crate) fn hang_up(&self) {
        self.hung_up.cancel();
    }

    /// Resolves when kept connections that are silent are to be closed.
    pub(crate) async fn hung_up(&self) {
        self.hung_up.cancelled().await;
    }

    /// Takes no new connection any more.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Resolves when no new connection is taken any more.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Ends what still runs: its time is over.
    pub(crate) fn end(&self) {
        self.draining.cancel();
        self.ended.cancel();
    }

    /// Whether the time to finish is over.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Resolves when the time to finish is over.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Runs a task on this thread's runtime. It ends with the runtime, which ends when the end comes.
    pub(crate) fn spawn_local(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(self.tasks.track_future(task));
    }

    /// How many tasks still run.
    pub(crate) fn running(&self) -> usize {
        self.tasks.len()
    }

    /// Resolves when no task runs any more. Tasks that start later are waited for too.
    pub(crate) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
