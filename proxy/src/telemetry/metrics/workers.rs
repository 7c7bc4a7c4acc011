//! What is counted of the data threads.

use prometheus::IntCounter;

use super::Metrics;

/// How many data threads have died.
#[derive(Clone, Debug)]
pub struct LostWorkers(IntCounter);

impl LostWorkers {
    /// One more.
    pub fn count(&self) {
        self.0.inc();
    }

    /// How many there are.
    pub fn so_far(&self) -> u64 {
        self.0.get()
    }
}

impl Metrics {
    /// The counter of data threads that died.
    pub fn lost_workers(&self) -> LostWorkers {
        LostWorkers(self.workers_lost.clone())
    }
}
