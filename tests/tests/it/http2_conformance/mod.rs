//! HTTP/2 as RFC 9113 and RFC 7541 have it: a table of what is sent and what must come, frame by frame.
//!
//! Each case has a connection of its own. Where the RFC names a stream error, a connection error with the same code is
//! right too (RFC 9113 section 5.4.1: "an endpoint MAY choose to treat a stream error as a connection error"); where it
//! lets a malformed request be answered, so is 400 (section 8.1.1).

mod compression;
mod framing;
mod messages;
mod streams;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_tests::http2::frame::{self, Frame, code, flag, kind};
use outrigger_tests::http2::{Raw, code_name, request};
use outrigger_tests::upstream::Received;
use outrigger_tests::{Answer, Behaviour, PATIENCE, Sidecar, Upstream, simple};

/// Cases under way at once: more only makes a slow machine slower.
const TOGETHER: usize = 16;

/// The stream of the request that shows that a connection still serves; above every stream of the cases.
const PROBE: u32 = 0x7fff_fff1;

/// The path that no malformed request may bring to an upstream.
const NEVER: &str = "/never";

/// One row.
struct Case {
    name: String,
    section: &'static str,
    /// Whether the harness opens the connection; else the case writes the preface itself.
    opened: bool,
    steps: Vec<Step>,
    expect: Expect,
}

enum Step {
    Send(Vec<u8>),
    /// Waits until the head of the answer on this stream is there.
    Head(u32),
    /// Waits until the answer on this stream is over, however it ended.
    Over(u32),
    /// Waits until so many bytes of the answer's body are there, and asks by a PING that there is not one more.
    Exactly(u32, usize),
}

/// What must come of it.
enum Expect {
    /// This stream is answered with this status, and the connection goes on.
    Answer(u32, u16),
    /// This stream ends with one of these codes.
    Reset(u32, &'static [u32]),
    /// This stream is reset for being malformed, or answered 400.
    Malformed(u32),
    /// The connection ends with one of these codes.
    Dies(&'static [u32]),
    /// The connection ends, with or without a word.
    Closes,
    /// Nothing: the connection serves the next request and no stream is reset.
    Lives,
    /// PING comes back with this in it.
    Pong([u8; 8]),
    /// A body of so many bytes, whole.
    Body(u32, usize),
    /// Whatever this says.
    That(fn(&Seen) -> Result<(), String>),
}

fn case(section: &'static str, name: &str, send: &[Vec<u8>], expect: Expect) -> Case {
    Case {
        name: name.to_owned(),
        section,
        opened: true,
        steps: vec![Step::Send(send.concat())],
        expect,
    }
}

/// A case that writes its own preface.
fn bare(section: &'static str, name: &str, send: &[Vec<u8>], expect: Expect) -> Case {
    Case {
        opened: false,
        ..case(section, name, send, expect)
    }
}

/// A case in several steps.
fn steps(section: &'static str, name: &str, steps: Vec<Step>, expect: Expect) -> Case {
    Case {
        steps,
        ..case(section, name, &[], expect)
    }
}

/// A GET that is whole.
fn get(stream: u32) -> Vec<u8> {
    get_of(stream, "/")
}

fn get_of(stream: u32, path: &str) -> Vec<u8> {
    frame::headers(stream, flag::END_STREAM, &request("GET", "reviews", path))
}

/// The head of a POST whose body is still to come.
fn open(stream: u32) -> Vec<u8> {
    frame::headers(stream, 0, &request("POST", "reviews", "/"))
}

/// The head of a request that is not answered for an hour.
fn slow(stream: u32) -> Vec<u8> {
    get_of(stream, "/slow")
}

/// What has come on a connection.
#[derive(Default)]
struct Seen {
    frames: Vec<Frame>,
    goaway: Option<u32>,
    closed: bool,
    heads: std::collections::HashMap<u32, u16>,
    bodies: std::collections::HashMap<u32, usize>,
    ended: BTreeSet<u32>,
    resets: std::collections::HashMap<u32, u32>,
}

impl Seen {
    fn is_over(&self, stream: u32) -> bool {
        self.closed || self.ended.contains(&stream) || self.resets.contains_key(&stream)
    }

    fn pongs(&self) -> impl Iterator<Item = &Frame> {
        let pong = |frame: &&Frame| frame.kind == kind::PING && frame.has(flag::ACK);
        self.frames.iter().filter(pong)
    }

    fn tell(&self) -> String {
        let named: Vec<_> = self
            .resets
            .iter()
            .map(|(id, code)| (id, code_name(*code)))
            .collect();
        format!(
            "goaway {:?}, closed {}, statuses {:?}, bodies {:?}, ended {:?}, resets {named:?}",
            self.goaway.map(code_name),
            self.closed,
            self.heads,
            self.bodies,
            self.ended
        )
    }
}

/// A connection under judgement.
struct Run {
    raw: Raw,
    seen: Seen,
}

impl Run {
    /// Takes frames until this holds or the connection ends.
    async fn until(&mut self, mut holds: impl FnMut(&Seen) -> bool) {
        while !self.seen.closed && !holds(&self.seen) {
            self.take().await;
        }
    }

    async fn take(&mut self) {
        let Ok(Some(frame)) = self.raw.frame().await else {
            self.seen.closed = true;
            return;
        };
        let stream = frame.stream;
        match frame.kind {
            kind::HEADERS => {
                let Ok(fields) = self.raw.fields(&frame).await else {
                    self.seen.closed = true;
                    return;
                };
                let status = fields.iter().find(|(name, _)| name == ":status");
                if let Some(status) = status.and_then(|(_, status)| status.parse().ok()) {
                    self.seen.heads.insert(stream, status);
                }
            }
            kind::DATA => *self.seen.bodies.entry(stream).or_default() += frame.payload.len(),
            kind::RST_STREAM => {
                self.seen.resets.insert(stream, frame.number(0));
            }
            kind::GOAWAY => self.seen.goaway = Some(frame.number(4)),
            _ => {}
        }
        if matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.has(flag::END_STREAM) {
            self.seen.ended.insert(stream);
        }
        self.seen.frames.push(frame);
    }

    /// Asks by PING, and waits for the answer, until which everything that was sent before has been looked at.
    async fn settle(&mut self, mark: u8) {
        let payload = [mark; 8];
        // The connection may be closing, which the reading shows.
        let _ = self.raw.send(&frame::ping(payload)).await;
        self.until(|seen| seen.pongs().any(|pong| pong.payload == payload))
            .await;
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Send(bytes) => {
                let _ = self.raw.send(bytes).await;
            }
            Step::Head(stream) => self.until(|seen| seen.heads.contains_key(stream)).await,
            Step::Over(stream) => self.until(|seen| seen.is_over(*stream)).await,
            Step::Exactly(stream, count) => {
                let come = |seen: &Seen| seen.bodies.get(stream).copied().unwrap_or_default();
                self.until(|seen| come(seen) >= *count).await;
                self.settle(0xee).await;
                let come = come(&self.seen);
                if come != *count {
                    return Err(format!("{come} bytes came, where {count} are allowed"));
                }
                self.seen.frames.retain(|frame| frame.kind != kind::PING);
            }
        }
        Ok(())
    }

    /// Shows that the connection still serves: the next request is answered.
    async fn serves(&mut self) -> Result<(), String> {
        let _ = self.raw.send(&get(PROBE)).await;
        self.until(|seen| seen.is_over(PROBE) || seen.heads.contains_key(&PROBE))
            .await;
        if !self.seen.is_over(PROBE) {
            // For the cases that close the windows of all streams.
            let _ = self.raw.send(&frame::window(PROBE, 1_000)).await;
        }
        self.until(|seen| seen.is_over(PROBE)).await;
        match (self.seen.heads.get(&PROBE), self.seen.goaway) {
            (Some(200), None) => Ok(()),
            _ => Err(format!("the next request is not answered: {}", self.seen.tell())),
        }
    }

    async fn judge(&mut self, expect: &Expect) -> Result<(), String> {
        let wrong = |seen: &Seen| Err(seen.tell());
        match *expect {
            Expect::Answer(stream, status) => {
                self.until(|seen| seen.is_over(stream)).await;
                match self.seen.heads.get(&stream) {
                    Some(come) if *come == status && self.seen.ended.contains(&stream) => self.serves().await,
                    _ => wrong(&self.seen),
                }
            }
            Expect::Reset(stream, codes) => {
                self.until(|seen| seen.resets.contains_key(&stream) || seen.goaway.is_some())
                    .await;
                let come = self.seen.resets.get(&stream).copied().or(self.seen.goaway);
                match come {
                    Some(come) if codes.contains(&come) => Ok(()),
                    _ => wrong(&self.seen),
                }
            }
            Expect::Malformed(stream) => {
                self.until(|seen| seen.is_over(stream) || seen.goaway.is_some())
                    .await;
                let reset = self.seen.resets.get(&stream).copied().or(self.seen.goaway);
                match (reset, self.seen.heads.get(&stream)) {
                    (Some(code::PROTOCOL_ERROR), None) | (None, Some(400)) => Ok(()),
                    _ => wrong(&self.seen),
                }
            }
            Expect::Dies(codes) => {
                self.until(|_| false).await;
                match self.seen.goaway {
                    Some(come) if codes.contains(&come) => Ok(()),
                    _ => wrong(&self.seen),
                }
            }
            Expect::Closes => {
                self.until(|_| false).await;
                Ok(())
            }
            Expect::Lives => {
                self.settle(0xaa).await;
                self.serves().await?;
                match self.seen.resets.is_empty() {
                    true => Ok(()),
                    false => wrong(&self.seen),
                }
            }
            Expect::Pong(payload) => {
                self.until(|seen| seen.pongs().any(|pong| pong.payload == payload))
                    .await;
                self.serves().await
            }
            Expect::Body(stream, count) => {
                self.until(|seen| seen.is_over(stream)).await;
                let come = self.seen.bodies.get(&stream).copied().unwrap_or_default();
                match come == count && self.seen.ended.contains(&stream) {
                    true => self.serves().await,
                    false => wrong(&self.seen),
                }
            }
            Expect::That(check) => {
                self.settle(0xaa).await;
                check(&self.seen)
            }
        }
    }
}

async fn run(address: SocketAddr, case: &Case) -> Result<(), String> {
    let connected = match case.opened {
        true => Raw::open(address, &[]).await,
        false => Raw::connect(address).await,
    };
    let mut run = Run {
        raw: connected.map_err(|error| format!("no connection: {error}"))?,
        seen: Seen::default(),
    };
    for step in &case.steps {
        run.step(step).await?;
    }
    let judged = tokio::time::timeout(PATIENCE, run.judge(&case.expect)).await;
    judged.unwrap_or_else(|_| Err(format!("nothing more came: {}", run.seen.tell())))
}

/// `/slow` takes an hour; `/body/COUNT` answers so many bytes, `/chunked/COUNT` without saying how many.
fn answer(received: &Received) -> Answer {
    let target = received.target();
    if target == "/slow" {
        return Answer::ok().after(Duration::from_secs(3600));
    }
    if let Some(count) = target
        .strip_prefix("/chunked/")
        .and_then(|count| count.parse().ok())
    {
        return Answer::ok().body(vec![b'x'; count]).chunked();
    }
    match target.strip_prefix("/body/").and_then(|count| count.parse().ok()) {
        Some(count) => Answer::ok().body(vec![b'x'; count]),
        None => Answer::ok(),
    }
}

#[tokio::test]
async fn http2_is_spoken_to_callers_as_the_rfcs_say() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Call(answer));
    let file = simple("reviews", &[&upstream], "timeout: { request: 0s }");
    let mut sidecar = Sidecar::of(file).await;
    let cases: Vec<Case> = [
        framing::cases(),
        streams::cases(),
        messages::cases(),
        compression::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let names: BTreeSet<_> = cases.iter().map(|case| case.name.clone()).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
    let (total, address) = (cases.len(), sidecar.outbound());
    let turns = Arc::new(tokio::sync::Semaphore::new(TOGETHER));
    let mut running = tokio::task::JoinSet::new();
    for case in cases {
        let turns = Arc::clone(&turns);
        running.spawn(async move {
            let _turn = turns.acquire().await;
            let judged = run(address, &case).await;
            (case, judged)
        });
    }
    let (mut right, mut complaints) = (0, Vec::new());
    while let Some(done) = running.join_next().await {
        let (case, judged) = done.unwrap();
        match judged {
            Ok(()) => right += 1,
            Err(what) => complaints.push(format!("{} ({}): {what}", case.name, case.section)),
        }
    }
    complaints.sort();
    assert!(
        complaints.is_empty(),
        "{} of {total} right; {}",
        right,
        complaints.join("\n")
    );
    assert!(total >= 146, "{total} cases");
    let never: Vec<_> = upstream
        .received()
        .into_iter()
        .filter(|received| received.target() == NEVER && received.body.cut.is_none())
        .collect();
    assert!(
        never.is_empty(),
        "a malformed request reached the upstream: {never:?}"
    );
    assert!(sidecar.program().is_running());
    let log = sidecar.program().log();
    let panics: Vec<_> = log.iter().filter(|line| line.contains("panicked")).collect();
    assert_eq!(panics, Vec::<&String>::new());
}
