//! Endpoints are killed, frozen, made slow and made to fail, at random, under load, and one that is well is always left.
//!
//! No GET fails, memory stays bounded, nothing panics, and what the caller saw is what log and metrics say. The seed is
//! printed; `OUTRIGGER_TESTS_SEED` repeats a run, as far as the machine lets it. `OUTRIGGER_TESTS_LONG` makes the first of
//! them five minutes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use outrigger_tests::load::Report;
use outrigger_tests::upstream::Reserved;
use outrigger_tests::wait::eventually;
use outrigger_tests::{Answer, Ask, Behaviour, Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream};
use serde_json::Value;

/// What a user writes against endpoints that are frozen: docs/operations.md.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Before the endpoint that is well changes, its successor has been well for this long: a request that began before that
/// may need an attempt's time for each of the other two.
const OVERLAP: Duration = Duration::from_secs(4);

/// The most memory that the caller's sidecar may ever hold, as a dev build: it has three endpoints and a dozen callers.
const MEMORY_MAX: u64 = 96 * 1024 * 1024;

/// Endpoints: as many as a request is tried by default, so that each of them is asked before it fails.
const ENDPOINTS: usize = 3;

/// How long it goes on, or so many times longer where there is time.
fn time(longer: u32) -> Duration {
    let short = Duration::from_secs(12);
    match std::env::var_os("OUTRIGGER_TESTS_LONG") {
        Some(_) => short * longer,
        None => short,
    }
}

fn seed() -> u64 {
    let given = std::env::var("OUTRIGGER_TESTS_SEED").ok();
    given.map_or_else(
        || fastrand::u64(..),
        |text| text.parse().expect("OUTRIGGER_TESTS_SEED is a number"),
    )
}

/// What ails an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Its sidecar is killed.
    Killed,
    /// Its sidecar is frozen.
    Frozen,
    /// Its application is gone.
    NoApplication,
    /// Its application resets connections.
    Resets,
    /// Its application says that it fails.
    Errors,
    /// Its application never answers.
    Hangs,
    /// Its application takes its time, and answers.
    Slow,
}

const TROUBLES: [Trouble; 7] = [
    Trouble::Killed,
    Trouble::Frozen,
    Trouble::NoApplication,
    Trouble::Resets,
    Trouble::Errors,
    Trouble::Hangs,
    Trouble::Slow,
];

/// An application with a sidecar of its own: real processes, so that they can be killed and frozen.
struct Instance {
    name: String,
    port: Reserved,
    app: Upstream,
    sidecar: Sidecar,
    trouble: Option<Trouble>,
    well_since: Instant,
    /// It is left in peace until it has been well for long enough to take over.
    rests: bool,
}

impl Instance {
    async fn start(name: String) -> Self {
        let (port, app) = (Reserved::port(), Upstream::start(&name).await);
        let sidecar = Self::sidecar(&name, &port, &app).await;
        Self {
            name,
            port,
            app,
            sidecar,
            trouble: None,
            well_since: Instant::now(),
            rests: false,
        }
    }

    fn has_been_well(&self) -> bool {
        self.trouble.is_none() && self.well_since.elapsed() >= OVERLAP
    }

    async fn sidecar(name: &str, port: &Reserved, app: &Upstream) -> Sidecar {
        let file = ServiceFile::new("reviews")
            .app(app.address())
            .backend("v1", &[port.address()]);
        let spec = SidecarSpec::text(name, &file.to_string()).beside("reviews");
        Sidecar::start(spec.inbound_at(port.address())).await
    }

    fn suffer(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Killed => self.sidecar.program().kill(),
            Trouble::Frozen => self.sidecar.program().freeze(),
            Trouble::NoApplication => self.app.kill(),
            Trouble::Resets => self.app.behave(Behaviour::Reset),
            Trouble::Errors => self.app.behave(Behaviour::Answer(Answer::status(503))),
            Trouble::Hangs => self.app.behave(Behaviour::Hang),
            Trouble::Slow => {
                let late = Answer::ok().after(Duration::from_millis(100));
                self.app.behave(Behaviour::Answer(late));
            }
        }
        self.trouble = Some(trouble);
    }

    async fn recover(&mut self) {
        match self.trouble.take() {
            Some(Trouble::Killed) => {
                self.panicked_never();
                self.sidecar = Self::sidecar(&self.name, &self.port, &self.app).await;
            }
            Some(Trouble::Frozen) => self.sidecar.program().thaw(),
            Some(Trouble::NoApplication) => self.app.revive().await,
            _ => {}
        }
        self.app.behave(Behaviour::Answer(Answer::ok()));
        self.well_since = Instant::now();
    }

    fn panicked_never(&mut self) {
        let log = self.sidecar.program().log();
        let panicked = log.iter().find(|line| line.contains("panicked"));
        assert_eq!(panicked, None, "{}", self.name);
    }
}

/// The next thing that happens: an endpoint recovers, or falls ill if another has been well for long enough.
async fn happens(
    instances: &mut [Instance],
    deck: &mut Vec<Trouble>,
    rng: &mut fastrand::Rng,
) -> Option<String> {
    if deck.is_empty() {
        deck.extend(TROUBLES);
        rng.shuffle(deck);
    }
    let place = rng.usize(..instances.len());
    let luck = rng.bool();
    let one = &mut instances[place];
    if let Some(was) = one.trouble {
        if luck {
            return None;
        }
        one.recover().await;
        // Else the one that is well now would stay the only one that ever is.
        one.rests = rng.bool();
        return Some(format!("{} is over {was:?}", one.name));
    }
    if one.rests && !one.has_been_well() {
        return None;
    }
    let others = instances.iter().enumerate().filter(|(other, _)| *other != place);
    if !others.into_iter().any(|(_, other)| other.has_been_well()) {
        return None;
    }
    let trouble = deck.pop()?;
    instances[place].suffer(trouble);
    Some(format!("{}: {trouble:?}", instances[place].name))
}

/// How many times each reason was told; the empty one is for answers of the application.
type Reasons = BTreeMap<String, u64>;

/// What callers saw. Everything must have been an answer.
fn seen(reports: [&Report; 2], story: &str) -> Reasons {
    let mut reasons = Reasons::new();
    for report in reports {
        assert!(report.failures.is_empty(), "{report}{story}");
        for (outcome, count) in &report.answers {
            *reasons.entry(outcome.reason.clone()).or_default() += count;
        }
    }
    reasons
}

/// What the log says of failures.
fn logged(sidecar: &mut Sidecar) -> Reasons {
    let mut reasons = Reasons::new();
    for line in sidecar.program().output() {
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        let reason = line["reason"].as_str().unwrap_or_default().to_owned();
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
}

/// What the metrics say of requests.
async fn counted(sidecar: &Sidecar) -> Reasons {
    let mut reasons = Reasons::new();
    for sample in sidecar
        .metrics()
        .await
        .matching("outrigger_requests_total", &[("listener", "outbound")])
    {
        let reason = sample.labels.get("reason").cloned().unwrap_or_default();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of a test"
        )]
        let count = sample.value as u64;
        *reasons.entry(reason).or_default() += count;
    }
    reasons.retain(|_, count| *count > 0);
    reasons
}

/// Everything but a 2xx of an application.
fn failed(report: &Report) -> u64 {
    report.bad()
}

struct Ended {
    gets: Report,
    /// Retries that the budget refused.
    refused: f64,
    story: String,
}

#[expect(
    clippy::print_stderr,
    reason = "the seed and what happened belong to the output of a run"
)]
async fn run(protocol: &str, fields: &str, time: Duration) -> Ended {
    let seed = seed();
    eprintln!("OUTRIGGER_TESTS_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut instances = Vec::new();
    for number in 0..ENDPOINTS {
        instances.push(Instance::start(format!("app{number}")).await);
    }
    let addresses: Vec<_> = instances.iter().map(|instance| instance.port.address()).collect();
    let attempt = format!("timeout: {{ attempt: {}s }}", ATTEMPT.as_secs());
    let file = ServiceFile::new("reviews")
        .field(&format!("protocol: {protocol}"))
        .backend("v1", &addresses)
        .route("default", &[("v1", 1)], &format!("{attempt}\n{fields}"));
    let mut sidecar = Sidecar::of(file).await;
    let load = |ask: Ask, rate| {
        let mut spec = LoadSpec::new(sidecar.outbound(), "reviews", 6);
        spec.asks = vec![ask.host("reviews")];
        spec.rate = Some(rate);
        Load::start(spec)
    };
    let (gets, posts) = (load(Ask::get("/"), 60), load(Ask::post("/", "a body"), 20));

    let mut story = format!("OUTRIGGER_TESTS_SEED={seed}\n");
    // Drawn like cards, so that a short run sees nearly all of them.
    let mut deck = Vec::new();
    let began = Instant::now();
    // All have been well from the start.
    let long_ago = began.checked_sub(OVERLAP).unwrap_or(began);
    instances
        .iter_mut()
        .for_each(|instance| instance.well_since = long_ago);
    while began.elapsed() < time {
        if let Some(what) = happens(&mut instances, &mut deck, &mut rng).await {
            let _ = writeln!(story, "{:?} {what}", began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(50..600))).await;
    }
    for instance in &mut instances {
        instance.recover().await;
        instance.panicked_never();
    }
    let (gets, posts) = (gets.stop().await, posts.stop().await);
    eprintln!("{story}GETs: {gets}POSTs: {posts}");

    let seen = seen([&gets, &posts], &story);
    // The last answers are counted when their last byte is handed over, which their callers may see first.
    let what = format!("the metrics to count {seen:?}, {story}");
    eventually(&what, async || (counted(&sidecar).await == seen).then_some(())).await;
    let mut failures = seen;
    failures.remove("");
    let what = format!("one line in the log for each of {failures:?}, {story}");
    eventually(&what, async || (logged(&mut sidecar) == failures).then_some(())).await;

    let memory = sidecar.program().memory_peak();
    eprintln!("{} MiB at most", memory / 1024 / 1024);
    assert!(memory < MEMORY_MAX, "{memory} bytes, {story}");
    let panicked = sidecar.program().log();
    let panicked = panicked.iter().find(|line| line.contains("panicked"));
    assert!(
        sidecar.program().is_running() && panicked.is_none(),
        "{panicked:?}"
    );
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.sum("outrigger_log_lines_lost_total", &[]), 0.0);
    Ended {
        gets,
        refused: metrics.sum("outrigger_retries_total", &[("result", "budget")]),
        story,
    }
}

/// A budget that lasts while two of three endpoints fail.
const ROOMY: &str = "retry: { budget: { ratio: 100%, floor: 100/s } }";

#[tokio::test]
async fn no_get_fails_while_one_endpoint_is_well_and_the_budget_lasts() {
    let Ended { gets, refused, story } = run("http", ROOMY, time(25)).await;
    assert_eq!(refused, 0.0, "the budget is to last: {story}");
    assert_eq!(failed(&gets), 0, "{gets}{story}");
}

#[tokio::test]
async fn no_get_fails_by_http2_between_the_sidecars_either() {
    let Ended { gets, refused, story } = run("http2", ROOMY, time(8)).await;
    assert_eq!(refused, 0.0, "the budget is to last: {story}");
    assert_eq!(failed(&gets), 0, "{gets}{story}");
}

#[tokio::test]
async fn with_the_budget_that_is_built_in_only_a_get_that_it_refuses_a_retry_fails() {
    let Ended { gets, refused, story } = run("http", "", time(8)).await;
    let failed = failed(&gets);
    assert!(
        failed <= refused as u64,
        "{failed} failed, {refused} refused: {gets}{story}"
    );
}

#[tokio::test]
async fn a_frozen_endpoint_fails_five_requests_by_their_time_and_none_where_attempts_have_one() {
    for (times, failures) in [("request: 500ms", 5), ("request: 15s, attempt: 500ms", 0)] {
        let well = Instance::start("well".into()).await;
        let mut frozen = Instance::start("frozen".into()).await;
        let file = ServiceFile::new("reviews")
            .field("balance: round_robin")
            .backend("v1", &[well.port.address(), frozen.port.address()])
            .route("default", &[("v1", 1)], &format!("timeout: {{ {times} }}"));
        let sidecar = Sidecar::of(file).await;
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
        frozen.suffer(Trouble::Frozen);
        let mut failed = 0;
        for _ in 0..20 {
            let reply = sidecar.client().get("reviews", "/").await;
            match (reply.status(), reply.reason()) {
                (200, None) => {}
                (504, Some("request-timeout")) => failed += 1,
                other => panic!("{times}: {other:?}"),
            }
        }
        // After five it is ejected, however they ended for their callers.
        assert_eq!(failed, failures, "{times}");
        let metrics = sidecar.metrics().await;
        assert_eq!(metrics.sum("outrigger_ejections_total", &[]), 1.0, "{times}");
        frozen.recover().await;
    }
}

#[tokio::test]
async fn a_post_goes_around_an_endpoint_of_http2_that_was_frozen_before_it_was_ever_reached() {
    let well = Instance::start("well".into()).await;
    let mut frozen = Instance::start("frozen".into()).await;
    frozen.suffer(Trouble::Frozen);
    let file = ServiceFile::new("reviews")
        .field("protocol: http2")
        .field("balance: round_robin")
        .backend("v1", &[well.port.address(), frozen.port.address()]);
    let sidecar = Sidecar::of(file).await;
    // Its kernel takes the connections. That alone must not make it look well, or each would be waited for anew.
    eventually("the frozen endpoint to be ejected", async || {
        let ask = Ask::post("/", "a body").host("reviews");
        let reply = sidecar.client().send(ask).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "well"), "{reply:?}");
        let metrics = sidecar.metrics().await;
        (metrics.sum("outrigger_ejections_total", &[]) == 1.0).then_some(())
    })
    .await;
    let timed_out = [("reason", "connect-timeout")];
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.sum("outrigger_attempts_total", &timed_out), 5.0);
    frozen.recover().await;
}
