//! The data threads: each a runtime of its own, with its own connections on both sides.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;

use crate::drain::Drain;
use crate::listener::callers::{Callers, Silence};
use crate::listener::{Arrival, Seat, connection};
use crate::request::Worker;
use crate::snapshot::Snapshots;
use crate::telemetry::metrics::LostWorkers;
use crate::telemetry::request_log::AccessLogger;
use crate::tls::Identities;

/// Connections that may be on their way to one worker. It takes them at once; more than this many waiting means
/// that it is stuck, and then the kernel's backlog is the better place to wait.
const ARRIVALS_MAX: usize = 1024;

/// How often a worker looks for idle connections to close: often enough for their few seconds of life.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How many turns a worker's loop takes before it asks the kernel for news again. Tokio's default of 61 favours
/// throughput of many small tasks; here a turn is a whole request, and a wait of 61 of them would show in p99.
const EVENT_INTERVAL: u32 = 31;

/// The data threads.
#[derive(Debug)]
pub(crate) struct Workers {
    seats: Vec<Seat>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts so many threads. They end when the drain does.
    pub(crate) fn start(
        (count, silence): (usize, Silence),
        (snapshots, identities): (&Arc<Snapshots>, &Arc<Identities>),
        logger: &AccessLogger,
        (drain, lost): (&Drain, &LostWorkers),
    ) -> anyhow::Result<Self> {
        let mut seats = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let (arrivals, arriving) = mpsc::channel(ARRIVALS_MAX);
            let connections = Arc::new(AtomicUsize::new(0));
            seats.push(Seat {
                arrivals,
                connections: Arc::clone(&connections),
            });
            let (snapshots, logger, drain) = (Arc::clone(snapshots), logger.clone(), drain.clone());
            let identities = Arc::clone(identities);
            let life = Life {
                number,
                lost: lost.clone(),
                drain: drain.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    let _life = life;
                    let mut builder = tokio::runtime::Builder::new_current_thread();
                    let built = builder
                        .enable_all()
                        .event_interval(EVENT_INTERVAL)
                        .build_local(LocalOptions::default());
                    match built {
                        Ok(runtime) => {
                            let worker = Rc::new(Worker::new(&snapshots, identities, logger, drain));
                            runtime.block_on(run((worker, silence), arriving, connections));
                        }
                        Err(error) => tracing::error!(number, %error, "a worker cannot start"),
                    }
                })?;
            threads.push(thread);
        }
        Ok(Self { seats, threads })
    }

    /// The threads, for who waits for their end.
    pub(crate) fn into_threads(self) -> Vec<JoinHandle<()>> {
        self.threads
    }

    pub(super) fn seats(&self) -> Vec<Seat> {
        self.seats.clone()
    }
}

/// The life of a data thread. Its end, a panic's too, is told unless the sidecar itself ends.
#[derive(Debug)]
struct Life {
    number: usize,
    lost: LostWorkers,
    drain: Drain,
}

impl Drop for Life {
    fn drop(&mut self) {
        if !self.drain.has_ended() {
            self.lost.count();
            tracing::error!(
                worker = self.number,
                "a worker died, and its connections with it; the others go on, and /live and /ready answer 503 until the sidecar is started again"
            );
        }
    }
}

/// Serves the connections that arrive until the end.
async fn run(
    (worker, silence): (Rc<Worker>, Silence),
    mut arriving: mpsc::Receiver<Arrival>,
    connections: Arc<AtomicUsize>,
) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let callers = Rc::new(Callers::new(silence));
    let (drain, told) = (worker.drain.clone(), Rc::clone(&callers));
    tokio::task::spawn_local(async move {
        drain.draining().await;
        told.go_away();
        drain.hung_up().await;
        told.hang_up(Instant::now());
    });
    loop {
        tokio::select! {
            arrival = arriving.recv() => {
                let Some(arrival) = arrival else { return };
                let served = connection::serve(Rc::clone(&worker), Rc::clone(&callers), arrival, Arc::clone(&connections));
                worker.drain.spawn_local(served);
            }
            _ = sweep.tick() => {
                let now = Instant::now();
                worker.sweep(now, SystemTime::now());
                callers.sweep(now);
            }
            () = worker.drain.ended() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn a_thread_that_dies_is_counted_and_one_that_ends_with_the_sidecar_is_not() {
        let (lost, drain) = (Metrics::new().unwrap().lost_workers(), Drain::default());
        let thread = |dies: bool| {
            let life = Life {
                number: 0,
                lost: lost.clone(),
                drain: drain.clone(),
            };
            std::thread::spawn(move || {
                let _life = life;
                assert!(!dies, "it dies");
            })
        };
        assert!(thread(true).join().is_err());
        assert_eq!(lost.so_far(), 1);
        // One that could not start, or came to its end by itself, is as good as dead.
        thread(false).join().unwrap();
        assert_eq!(lost.so_far(), 2);
        drain.end();
        thread(false).join().unwrap();
        assert_eq!(lost.so_far(), 2);
    }
}
