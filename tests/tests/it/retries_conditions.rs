//! What a retry policy can say: which failures, which methods, how long to wait, what may be sent again.

use std::time::{Duration, Instant, SystemTime};

use outrigger_tests::client::Reply;
use outrigger_tests::metrics::Metrics;
use outrigger_tests::upstream::Reuse;
use outrigger_tests::{Answer, Ask, Behaviour, Sidecar, Upstream, simple, within};

/// What a failure is, for a table.
#[derive(Clone, Copy, Debug)]
enum Failing {
    Status(u16),
    Break,
    Dead,
}

/// Whether a GET that meets this failure once is tried again.
async fn is_retried(fields: &str, failing: Failing) -> bool {
    let good = Upstream::start("good").await;
    let dead = Upstream::dead("dead");
    let mut endpoints = vec![&good];
    match failing {
        Failing::Status(status) => good.next([Behaviour::Answer(Answer::status(status))]),
        Failing::Break => good.next([Behaviour::CloseBeforeAnswer]),
        Failing::Dead => endpoints.insert(0, &dead),
    }
    let file = simple("reviews", &endpoints, fields).field("balance: round_robin");
    let sidecar = Sidecar::of(file).await;
    let reply = sidecar.client().get("reviews", "/").await;
    reply.status() == 200
}

#[tokio::test]
async fn each_condition_takes_its_own_failures_under_each_of_its_names() {
    use Failing::{Break, Dead, Status};
    let failures = [
        Dead,
        Break,
        Status(500),
        Status(501),
        Status(502),
        Status(503),
        Status(504),
        Status(511),
        Status(409),
        Status(429),
    ];
    for (on, taken) in [
        ("on: [connect-failure]", "y---------"),
        ("on: [connection-error]", "y---------"),
        ("on: [reset-before-request]", "y---------"),
        ("on: [refused-stream]", "----------"),
        ("on: [stream-error]", "----------"),
        ("on: [reset]", "-y--------"),
        ("on: [gateway-error]", "----yyy---"),
        ("on: [5xx]", "yyyyyyyy--"),
        ("on: [server-error]", "yyyyyyyy--"),
        ("on: [retriable-4xx]", "--------y-"),
        ("on: [client-error]", "--------y-"),
        ("on: [retriable-status-codes], status: [429, 501]", "---y-----y"),
        (
            "on: [cancelled, deadline-exceeded, internal, resource-exhausted, unavailable]",
            "----------",
        ),
    ] {
        for (failing, taken) in failures.into_iter().zip(taken.chars()) {
            let fields = format!("retry: {{ {on} }}");
            assert_eq!(
                is_retried(&fields, failing).await,
                taken == 'y',
                "{on}, {failing:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_attempt_that_took_too_long_is_named_by_gateway_error_and_by_5xx() {
    for (on, status) in [("gateway-error", 200), ("5xx", 200), ("reset", 504)] {
        let upstream = Upstream::start("a").await;
        upstream.next([Behaviour::Hang]);
        let fields = format!("timeout: {{ attempt: 200ms }}\nretry: {{ on: [{on}] }}");
        let sidecar = Sidecar::of(simple("reviews", &[&upstream], &fields)).await;
        assert_eq!(
            sidecar.client().get("reviews", "/").await.status(),
            status,
            "{on}"
        );
    }
}

#[tokio::test]
async fn a_post_is_retried_on_5xx_only_where_its_policy_calls_it_idempotent() {
    for (fields, attempts) in [
        ("retry: { on: [5xx] }", 1),
        ("retry: { on: [5xx], treat_as_idempotent: [PATCH] }", 1),
        ("retry: { on: [5xx], treat_as_idempotent: [POST] }", 2),
    ] {
        let upstream = Upstream::start("a").await;
        upstream.next([Behaviour::Answer(Answer::status(500))]);
        let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
        let reply = sidecar
            .client()
            .send(Ask::post("/", "order").host("reviews"))
            .await;
        assert_eq!(reply.status(), if attempts == 1 { 500 } else { 200 }, "{fields}");
        assert_eq!(upstream.requests(), attempts, "{fields}");
        assert_eq!(upstream.last().body.bytes, b"order", "{fields}");
    }
}

#[tokio::test]
async fn a_post_of_63_kib_is_sent_again_and_one_of_65_kib_is_sent_once_and_whole() {
    let upstream = Upstream::start("a").await;
    let fields = "retry: { treat_as_idempotent: [POST] }";
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    let body = |kib: usize| -> Vec<u8> { (0..kib * 1024).map(|number| (number % 251) as u8).collect() };
    for chunked in [false, true] {
        for (kib, status, attempts) in [(63, 200, 2), (65, 502, 1)] {
            let before = upstream.requests();
            upstream.next([Behaviour::CloseBeforeAnswer]);
            let ask = Ask::post("/", body(kib)).host("reviews");
            let ask = if chunked { ask.chunked() } else { ask };
            let reply = sidecar.client().send(ask).await;
            assert_eq!(reply.status(), status, "{kib} KiB, chunked: {chunked}");
            assert_eq!(
                upstream.requests() - before,
                attempts,
                "{kib} KiB, chunked: {chunked}"
            );
            assert!(
                upstream.last().body.bytes == body(kib),
                "{kib} KiB, chunked: {chunked}"
            );
        }
    }
    // Too large to be sent again is not too large to be sent.
    let reply = sidecar
        .client()
        .send(Ask::post("/", body(65)).host("reviews"))
        .await;
    assert_eq!(reply.status(), 200);
}

/// A PUT whose body comes in so many chunks of one byte.
async fn put_in_chunks(sidecar: &Sidecar, count: usize) -> Reply {
    let mut connection = sidecar.client().connect().await;
    let head = "PUT / HTTP/1.1\r\nhost: reviews\r\ntransfer-encoding: chunked\r\n\r\n";
    let bytes = [head.as_bytes(), &b"1\r\nx\r\n".repeat(count), b"0\r\n\r\n"].concat();
    connection.wire().send(&bytes).await.unwrap();
    within("an answer", connection.reply_to("PUT")).await.unwrap()
}

#[tokio::test]
async fn a_body_in_more_than_256_pieces_is_sent_once_however_short_it_is() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    for (pieces, status, attempts) in [(256, 200, 2), (257, 502, 1)] {
        let before = upstream.requests();
        upstream.next([Behaviour::CloseBeforeAnswer]);
        let reply = put_in_chunks(&sidecar, pieces).await;
        assert_eq!(reply.status(), status, "{pieces}");
        assert_eq!(upstream.requests() - before, attempts, "{pieces}");
        assert_eq!(upstream.last().body.bytes.len(), pieces);
    }
}

#[tokio::test]
async fn a_kept_connection_that_dies_under_a_get_is_replaced_and_under_a_post_it_is_not() {
    let upstream = Upstream::start("a").await;
    upstream.reuse(Reuse::ResetWhenUsedAgain);
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    // One connection of the caller stays with one worker, whose kept connections are its own.
    let mut caller = sidecar.client().connect().await;
    let get = Ask::get("/").host("reviews");
    assert_eq!(caller.send(&get).await.unwrap().status(), 200);
    let connections = upstream.connections();
    assert_eq!(caller.send(&get).await.unwrap().status(), 200);
    assert_eq!(upstream.connections(), connections + 1, "on a new connection");
    // The request was on its way when the connection went: it may have been read.
    let post = Ask::post("/", "x").host("reviews");
    let reply = caller.send(&post).await.unwrap();
    assert_eq!((reply.status(), reply.reason()), (502, Some("upstream-reset")));
}

#[tokio::test]
async fn a_request_waits_as_long_as_the_endpoint_asks_it_to() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let busy = Answer::status(503).header("retry-after", "1");
    upstream.next([Behaviour::Answer(busy)]);
    let began = Instant::now();
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn an_answer_that_asks_for_more_time_than_there_is_is_handed_on_at_once() {
    let later = |seconds| http_date(SystemTime::now() + Duration::from_secs(seconds));
    for (fields, asked) in [
        ("timeout: { request: 10s }", "11".to_owned()),
        ("timeout: { request: 10s }", later(60)),
        // No deadline of the request's own: there is one for such waits.
        ("timeout: { request: 0s }", "31".to_owned()),
    ] {
        for status in [429, 503] {
            let upstream = Upstream::start("a").await;
            let retry = "retry: { on: [retriable-status-codes], status: [429, 503] }";
            let file = simple("reviews", &[&upstream], &format!("{fields}\n{retry}"));
            let sidecar = Sidecar::of(file).await;
            let busy = Answer::status(status).header("retry-after", &asked);
            upstream.next([Behaviour::Answer(busy)]);
            let began = Instant::now();
            let reply = sidecar.client().get("reviews", "/").await;
            assert_eq!(
                (reply.status(), reply.reason()),
                (status, None),
                "{fields} {asked}"
            );
            assert_eq!(reply.head.header("retry-after"), Some(asked.as_str()));
            assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
            assert_eq!(upstream.requests(), 1);
            let metrics = sidecar.metrics().await;
            assert_eq!(
                metrics.sum("outrigger_retries_total", &[("result", "pushback")]),
                1.0
            );
        }
    }
}

/// A date as HTTP writes it (RFC 9110 section 5.6.7).
fn http_date(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day, mut month) = (1970, days, 0);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [
        31,
        28 + u64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (weekday, month, day) = (DAYS[(days % 7) as usize], MONTHS[month], day + 1);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[tokio::test]
async fn a_request_that_waits_for_its_retry_takes_nothing_from_the_others() {
    let upstream = Upstream::start("a").await;
    let fields = "retry: { attempts: 2, budget: { ratio: 100%, floor: 0/s } }";
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    let waiting = |_| {
        let client = sidecar.client();
        tokio::spawn(async move { client.get("reviews", "/slow").await })
    };
    upstream.behave(Behaviour::Call(|received| match received.target() {
        "/slow" => Answer::status(503).header("retry-after", "5"),
        _ => Answer::status(503),
    }));
    let waiting: Vec<_> = (0..20).map(waiting).collect();
    upstream.has_requests(20).await;
    // Two workers that ask the budget at the same moment may see what one of them is paying in only afterwards, so
    // not every one of the twenty is sure to go again.
    let decided = |metrics: &Metrics| metrics.sum("outrigger_retries_total", &[]) == 20.0;
    sidecar
        .metrics_when("that all twenty are decided upon", decided)
        .await;
    // They wait. Each of these still has the retry that it has earned.
    for _ in 0..10 {
        let before = upstream.requests();
        assert_eq!(sidecar.client().get("reviews", "/quick").await.status(), 503);
        assert_eq!(upstream.requests() - before, 2);
    }
    for waiting in waiting {
        waiting.abort();
    }
}

#[tokio::test]
async fn the_wait_before_a_retry_never_outlasts_the_request() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Answer(Answer::status(503)));
    let fields = "timeout: { request: 500ms }\nretry: { attempts: 10, backoff: { base: 10s, max: 10s } }";
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    for _ in 0..3 {
        let began = Instant::now();
        let reply = sidecar.client().get("reviews", "/").await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(matches!(reply.status(), 503 | 504), "{reply:?}");
    }
}

#[tokio::test]
async fn the_last_attempt_has_all_the_time_that_is_left() {
    let upstream = Upstream::start("a").await;
    upstream.next([Behaviour::Hang]);
    upstream.behave(Behaviour::Answer(Answer::ok().after(Duration::from_millis(900))));
    let fields = "timeout: { request: 15s, attempt: 300ms }\nretry: { attempts: 2 }";
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    assert_eq!(upstream.requests(), 2);
}
