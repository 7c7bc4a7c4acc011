//! An HTTP/2 server whose every connection runs a script of the test.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::{TcpListener, TcpStream};

use super::frame::{self, Frame, flag, kind};
use super::{Raw, WINDOW_MAX};
use crate::background::Background;
use crate::wait::eventually;

/// A listening socket; what is said on its connections is the script's.
#[derive(Debug)]
pub struct Http2Upstream {
    address: SocketAddr,
    counts: Arc<Counts>,
    _running: Background,
}

/// What has happened there.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Requests whose head arrived.
    pub requests: AtomicU64,
    /// Requests answered.
    pub answered: AtomicU64,
}

impl Http2Upstream {
    /// Starts it: each connection is handed to the script, with its number from 0.
    pub async fn start<S, F>(script: S) -> Self
    where
        S: Fn(TcpStream, u64, Arc<Counts>) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket of ours");
        let address = listener.local_addr().expect("a bound socket has an address");
        let counts = Arc::new(Counts::default());
        let running = Background::start("http2-upstream");
        let held = Arc::clone(&counts);
        running.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listening socket");
            while let Ok((stream, _)) = listener.accept().await {
                let number = held.connections.fetch_add(1, Ordering::SeqCst);
                let script = script(stream, number, Arc::clone(&held));
                // How a connection ends is what the tests are about; the other side judges it.
                tokio::spawn(async move { drop(script.await) });
            }
        });
        Self {
            address,
            counts,
            _running: running,
        }
    }

    /// One that answers everything, as it is told.
    pub async fn answering(answers: Answers) -> Self {
        let script = move |stream, number, counts| serve(stream, number, counts, answers.clone());
        Self::start(script).await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has happened.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// How many requests have arrived.
    pub fn requests(&self) -> u64 {
        self.counts.requests.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have arrived.
    pub async fn has_requests(&self, count: u64) {
        let what = format!("{count} requests at the HTTP/2 upstream");
        eventually(&what, async || (self.requests() >= count).then_some(())).await;
    }
}

/// How an honest server answers.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Its settings.
    pub settings: Vec<(u16, u32)>,
    /// Says GOAWAY after so many requests on a connection; it answers those that it had.
    pub goaway_after: Option<u64>,
    /// Resets the first so many requests of a connection with this code.
    pub reset_first: Option<(u64, u32)>,
    /// Answers so late.
    pub delay: std::time::Duration,
    /// The body of each answer.
    pub body: Vec<u8>,
}

/// Serves a connection as an honest server does.
///
/// # Errors
/// When the connection breaks.
pub async fn serve(stream: TcpStream, _number: u64, counts: Arc<Counts>, answers: Answers) -> io::Result<()> {
    let mut raw = Raw::accept(stream, &answers.settings).await?;
    raw.send(&frame::window(0, WINDOW_MAX - 65_535)).await?;
    let (mut seen, mut last) = (0, 0);
    let mut waiting: HashSet<u32> = HashSet::new();
    let (tell, mut ready) = tokio::sync::mpsc::unbounded_channel::<u32>();
    let mut windows = Windows::default();
    let mut leaving = false;
    loop {
        tokio::select! {
            frame = raw.frame() => {
                let Some(frame) = frame? else { return Ok(()) };
                windows.note(&frame);
                windows.flush(&mut raw).await?;
                acknowledge(&mut raw, &frame).await?;
                match frame.kind {
                    kind::HEADERS if !leaving && !waiting.contains(&frame.stream) && frame.stream > last => {
                        raw.fields(&frame).await?;
                        seen += 1;
                        last = frame.stream;
                        counts.requests.fetch_add(1, Ordering::SeqCst);
                        if let Some((count, code)) = answers.reset_first && seen <= count {
                            raw.send(&frame::reset(frame.stream, code)).await?;
                            continue;
                        }
                        waiting.insert(frame.stream);
                        if answers.goaway_after == Some(seen) {
                            raw.send(&frame::goaway(last, 0)).await?;
                            leaving = true;
                        }
                    }
                    kind::HEADERS => {
                        raw.fields(&frame).await?;
                    }
                    kind::RST_STREAM => {
                        waiting.remove(&frame.stream);
                        windows.forget(frame.stream);
                    }
                    _ => {}
                }
                let ended = matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.has(flag::END_STREAM);
                if ended && waiting.contains(&frame.stream) {
                    let (tell, delay) = (tell.clone(), answers.delay);
                    if delay.is_zero() {
                        let _ = tell.send(frame.stream);
                    } else {
                        tokio::spawn(async move {
                            tokio::time::sleep(delay).await;
                            let _ = tell.send(frame.stream);
                        });
                    }
                }
            }
            stream = ready.recv() => {
                let Some(stream) = stream else { return Ok(()) };
                if !waiting.remove(&stream) {
                    continue;
                }
                counts.answered.fetch_add(1, Ordering::SeqCst);
                raw.send(&frame::headers(stream, 0, &[(":status", "200"), ("x-upstream", "http2")])).await?;
                windows.queue(stream, &answers.body);
                windows.flush(&mut raw).await?;
            }
        }
    }
}

/// What an honest end says to a frame whatever it is for: the window back, the answer to a PING.
async fn acknowledge(raw: &mut Raw, frame: &Frame) -> io::Result<()> {
    let count = u32::try_from(frame.payload.len()).unwrap_or_default();
    match frame.kind {
        kind::DATA if count > 0 => {
            let both = [frame::window(0, count), frame::window(frame.stream, count)];
            raw.send(&both.concat()).await
        }
        kind::PING if !frame.has(flag::ACK) => {
            raw.send(&frame::frame(kind::PING, flag::ACK, 0, &frame.payload))
                .await
        }
        _ => Ok(()),
    }
}

/// What may be sent, and what waits for it.
#[derive(Debug)]
struct Windows {
    connection: i64,
    initial: i64,
    streams: HashMap<u32, i64>,
    waiting: Vec<(u32, Vec<u8>)>,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            connection: 65_535,
            // The sidecar's settings came with its preface and were read there: its window is at least this.
            initial: 65_535,
            streams: HashMap::new(),
            waiting: Vec::new(),
        }
    }
}

impl Windows {
    fn note(&mut self, frame: &Frame) {
        if frame.kind != kind::WINDOW_UPDATE {
            return;
        }
        let more = i64::from(frame.number(0));
        match frame.stream {
            0 => self.connection += more,
            stream => *self.streams.entry(stream).or_insert(self.initial) += more,
        }
    }

    fn queue(&mut self, stream: u32, body: &[u8]) {
        self.waiting.push((stream, body.to_vec()));
    }

    fn forget(&mut self, stream: u32) {
        self.waiting.retain(|(waiting, _)| *waiting != stream);
    }

    async fn flush(&mut self, raw: &mut Raw) -> io::Result<()> {
        let Self {
            connection,
            initial,
            streams,
            waiting,
        } = self;
        for (stream, body) in waiting.iter_mut() {
            let window = streams.entry(*stream).or_insert(*initial);
            loop {
                let room = (*connection).min(*window).clamp(0, 16_384);
                let count = body.len().min(usize::try_from(room).unwrap_or_default());
                if count == 0 && !body.is_empty() {
                    break;
                }
                let piece: Vec<u8> = body.drain(..count).collect();
                let flags = if body.is_empty() { flag::END_STREAM } else { 0 };
                raw.send(&frame::data(*stream, flags, &piece)).await?;
                let sent = i64::try_from(count).unwrap_or_default();
                *connection -= sent;
                *window -= sent;
                if flags != 0 {
                    // An empty rest with nothing left to say: it is over.
                    *window = -1;
                    break;
                }
            }
        }
        self.waiting
            .retain(|(stream, body)| !(body.is_empty() && streams.get(stream) == Some(&-1)));
        Ok(())
    }
}
