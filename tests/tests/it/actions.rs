//! What a route does with a request beside passing it on, seen from both ends: redirects, answers of its own, rewrites,
//! edits of headers.

use std::collections::BTreeSet;
use std::process::Command;

use outrigger_tests::cli::finish;
use outrigger_tests::http2::Caller;
use outrigger_tests::program::Program;
use outrigger_tests::{Answer, Ask, Behaviour, ServiceFile, Sidecar, SidecarSpec, Upstream, simple};
use serde_json::Value;

const REQUESTS: &str = "outrigger_requests_total";
const ATTEMPTS: &str = "outrigger_attempts_total";

/// `curl` towards a local port by a name, printing `STATUS EFFECTIVE-URL` after the body.
async fn curl(sidecar: &Sidecar, arguments: &[&str]) -> String {
    let to = format!("::{}", sidecar.local("shop"));
    let mut command = Command::new("curl");
    command.args(["-q", "-sS", "--max-time", "15", "--connect-to", &to]);
    command
        .args(["-w", "%{http_code} %{url_effective}"])
        .args(arguments);
    for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(variable).env_remove(variable.to_uppercase());
    }
    let ended = finish(Program::spawn("curl", command)).await.ok();
    ended.stdout.trim_end().to_owned()
}

#[tokio::test]
async fn curl_follows_a_redirect_in_both_versions_of_http() {
    let upstream = Upstream::start("shop").await;
    upstream.behave(Behaviour::Echo);
    let file = ServiceFile::new("shop")
        .backend("v1", &[upstream.address()])
        .rule(
            "moved",
            "match: [{ path: { prefix: /old } }]\nredirect: { prefix: /new, status: 307 }",
        )
        .route("default", &[("v1", 1)], "");
    let sidecar = Sidecar::start(SidecarSpec::text("a", &file.to_string()).local("shop")).await;
    let url = "http://shop:8080/old/x?a=b";
    let got = curl(&sidecar, &["--http1.1", "-L", url]).await;
    assert_eq!(got, "200 http://shop:8080/new/x?a=b");
    assert_eq!(upstream.last().target(), "/new/x?a=b");
    // 307 keeps method and body, of which the first was answered before it was read.
    let got = curl(&sidecar, &["--http1.1", "-L", "--data", "body", url]).await;
    assert_eq!(got, "body200 http://shop:8080/new/x?a=b");
    // By HTTP/2 each URL is asked by a curl of its own: that of Debian 12 cannot use such a connection twice (curl#10634).
    let ask = async |url: &str| {
        let with = [
            "--http2-prior-knowledge",
            "-w",
            "%{http_code} %{redirect_url}",
            url,
        ];
        curl(&sidecar, &with).await
    };
    let redirected = ask(url).await;
    assert_eq!(redirected, "307 http://shop:8080/new/x?a=b");
    assert_eq!(ask(redirected.trim_start_matches("307 ")).await, "200");
    assert_eq!(upstream.last().target(), "/new/x?a=b");
    let metrics = sidecar
        .metrics_when("six answers", |metrics| metrics.sum(REQUESTS, &[]) == 6.0)
        .await;
    let labels = |route, class, backend| {
        [
            ("route", route),
            ("status_class", class),
            ("backend", backend),
            ("reason", ""),
        ]
    };
    assert_eq!(metrics.sum(REQUESTS, &labels("moved", "3xx", "")), 3.0);
    assert_eq!(metrics.sum(REQUESTS, &labels("default", "2xx", "v1")), 3.0);
    assert_eq!(metrics.sum(ATTEMPTS, &[]), 3.0);
}

/// A service that answers by itself below `/own`.
fn answering(upstream: &Upstream) -> ServiceFile {
    ServiceFile::new("shop")
        .backend("v1", &[upstream.address()])
        .rule(
            "own",
            "match: [{ path: { prefix: /own } }]\n\
             respond: { status: 503, body: \"closed\\n\", headers: { retry-after: \"60\" } }\n\
             response_headers: { set: { x-edited: \"yes\" } }",
        )
        .route("default", &[("v1", 1)], "")
}

#[tokio::test]
async fn a_route_answers_by_itself_which_is_no_failure() {
    let upstream = Upstream::start("shop").await;
    let spec = SidecarSpec::text("a", &answering(&upstream).to_string()).with("--access-log", "all");
    let mut sidecar = Sidecar::start(spec).await;
    let mut connection = sidecar.client().connect().await;
    // All on one connection, which shows that each answer ends where it should; the last finds the service.
    for (ask, status, body) in [
        (Ask::get("/own/a"), 503, "closed\n"),
        (Ask::new("HEAD", "/own/b"), 503, ""),
        (Ask::post("/own/c", "x".repeat(1000)), 503, "closed\n"),
        (Ask::get("/"), 200, "status 200\n"),
    ] {
        let what = format!("{ask:?}");
        let reply = connection.send(&ask.host("shop")).await.unwrap();
        assert_eq!((reply.status(), reply.text().as_str()), (status, body), "{what}");
        assert_eq!(reply.reason(), None, "{what}");
        if status == 503 {
            let header = |name| reply.head.header(name);
            assert_eq!(
                header("content-type"),
                Some("text/plain; charset=utf-8"),
                "{what}"
            );
            assert_eq!(header("content-length"), Some("7"), "{what}");
            assert_eq!(
                (header("retry-after"), header("x-edited")),
                (Some("60"), Some("yes")),
                "{what}"
            );
        }
    }
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = caller.get("shop", "/own/h2").await.unwrap();
    let reply = caller.reply(stream).await.unwrap();
    assert_eq!((reply.status(), &reply.body[..]), (503, &b"closed\n"[..]));
    assert_eq!(
        (reply.header("x-edited"), reply.header("x-outrigger-reason")),
        (Some("yes"), None)
    );
    assert_eq!(upstream.requests(), 1);

    let own = [
        ("listener", "outbound"),
        ("service", "shop"),
        ("route", "own"),
        ("backend", ""),
        ("status_class", "5xx"),
        ("reason", ""),
    ];
    let counted = sidecar
        .metrics_when("four answers", |metrics| metrics.sum(REQUESTS, &own) == 4.0)
        .await;
    assert_eq!(counted.sum(ATTEMPTS, &[]), 1.0);
    for path in ["/own/a", "/own/b", "/own/c", "/own/h2"] {
        let line = sidecar.program().printed(path, |line| line.contains(path)).await;
        let line: Value = serde_json::from_str(&line).unwrap();
        let said = [&line["route"], &line["backend"], &line["reason"]];
        assert_eq!(said, ["own", "", ""], "{line}");
        assert_eq!(
            (&line["status"], &line["attempts"]),
            (&503.into(), &0.into()),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_400_that_a_route_answers_with_leaves_the_connection_as_it_is() {
    let upstream = Upstream::start("shop").await;
    let file = ServiceFile::new("shop")
        .backend("v1", &[upstream.address()])
        .rule("odd", "respond: { status: 400, body: odd }");
    let sidecar = Sidecar::of(file).await;
    let mut connection = sidecar.client().connect().await;
    for _ in 0..2 {
        let reply = connection.send(&Ask::get("/").host("shop")).await.unwrap();
        assert_eq!((reply.status(), reply.text().as_str()), (400, "odd"));
    }
}

#[tokio::test]
async fn a_grpc_call_is_answered_with_the_status_that_grpc_has_for_it() {
    let upstream = Upstream::start("greeter").await;
    let file = ServiceFile::new("greeter")
        .field("protocol: grpc")
        .backend("v1", &[upstream.address()])
        .rule("closed", "respond: { status: 403, body: not today }");
    let sidecar = Sidecar::of(file).await;
    let call = Ask::post("/shop.Greeter/Unary", "")
        .host("greeter")
        .header("content-type", "application/grpc");
    let reply = sidecar.client().send(call).await;
    let header = |name| reply.head.header(name);
    assert_eq!((reply.status(), reply.reason()), (200, None));
    assert_eq!(
        (header("grpc-status"), header("grpc-message")),
        (Some("7"), Some("not today"))
    );
    let told = [("service", "greeter"), ("grpc_status", "PERMISSION_DENIED")];
    let calls = "outrigger_grpc_calls_total";
    sidecar
        .metrics_when("the call", |metrics| metrics.sum(calls, &told) == 1.0)
        .await;
    // What is no call is told in the words of HTTP.
    let reply = sidecar.client().get("greeter", "/").await;
    assert_eq!((reply.status(), reply.text().as_str()), (403, "not today"));
}

#[tokio::test]
async fn every_attempt_sees_the_rewritten_request_once() {
    let upstream = Upstream::start("shop").await;
    let file = ServiceFile::new("shop")
        .backend("v1", &[upstream.address()])
        .rule(
            "default",
            "match: [{ path: { prefix: /api } }]\n\
         rewrite: { prefix: /api/v2, host: \"shop.example.com:81\" }\n\
         request_headers: { add: { x-route: added }, set: { x-set: new } }\n\
         to: [{ backend: v1, request_headers: { add: { x-target: added } } }]\n\
         retry: { attempts: 3 }",
        );
    let sidecar = Sidecar::of(file).await;
    upstream.next([Behaviour::Answer(Answer::status(503)), Behaviour::Reset]);
    // The second path has its one form before it is matched.
    for (path, seen) in [("/api/x?a=b", "/api/v2/x?a=b"), ("//api/./x/../y", "/api/v2/y")] {
        let ask = Ask::get(path)
            .host("shop")
            .header("x-set", "old")
            .header("connection", "x-set, x-route");
        assert_eq!(sidecar.client().send(ask).await.status(), 200);
        assert_eq!(upstream.last().target(), seen);
    }
    let received = upstream.received();
    assert_eq!(received.len(), 4);
    for request in &received[..3] {
        assert_eq!(request.target(), "/api/v2/x?a=b");
    }
    for request in received {
        let all = |name| request.head.all(name).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(all("host"), ["shop.example.com:81"]);
        assert_eq!(
            (all("x-route"), all("x-target")),
            (vec!["added".into()], vec!["added".into()])
        );
        assert_eq!(all("x-set"), ["new"]);
    }
}

#[tokio::test]
async fn a_request_by_http2_to_an_endpoint_by_http2_is_rewritten_too() {
    let upstream = Upstream::start("shop").await;
    // The endpoint by HTTP/2 is a sidecar that knows the service by the other name only.
    let far = Sidecar::of(simple("inner", &[&upstream], "")).await;
    let file = ServiceFile::new("shop")
        .field("protocol: http2")
        .backend("v1", &[far.outbound()])
        .route(
            "default",
            &[("v1", 1)],
            "rewrite: { host: inner, regex: { pattern: '^/(\\w+)/(\\w+)$', substitution: '/\\2/\\1' } }\n\
             request_headers: { set: { x-edited: \"yes\" } }\n\
             response_headers: { set: { x-edited: back }, remove: [x-upstream] }",
        );
    let sidecar = Sidecar::of(file).await;
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    let stream = caller.post("shop", "/a/b?c=d", b"body").await.unwrap();
    let reply = caller.reply(stream).await.unwrap();
    assert_eq!((reply.status(), reply.header("x-edited")), (200, Some("back")));
    assert_eq!(reply.header("x-upstream"), None);
    let seen = upstream.last();
    assert_eq!((seen.target(), &seen.body.bytes[..]), ("/b/a?c=d", &b"body"[..]));
    assert_eq!(
        (seen.head.header("host"), seen.head.header("x-edited")),
        (Some("inner"), Some("yes"))
    );
}

#[tokio::test]
async fn a_path_that_a_rewrite_makes_no_path_of_is_refused_and_reaches_nobody() {
    let upstream = Upstream::start("shop").await;
    let regex = "rewrite: { regex: { pattern: '^/v-(.*)$', substitution: '/\\1' } }";
    let sidecar = Sidecar::of(simple("shop", &[&upstream], regex)).await;
    let reply = sidecar.client().get("shop", "/v-../secret").await;
    assert_eq!((reply.status(), reply.reason()), (404, Some("no-route")));
    assert_eq!(upstream.requests(), 0);
    assert_eq!(sidecar.client().get("shop", "/v-a/b").await.status(), 200);
    assert_eq!(upstream.last().target(), "/a/b");
}

#[tokio::test]
async fn the_edits_of_a_backend_are_of_its_own_attempts_and_answers() {
    let (light, heavy) = (Upstream::start("light").await, Upstream::start("heavy").await);
    let file = ServiceFile::new("shop")
        .field("balance: round_robin")
        .backend("light", &[light.address()])
        .backend("heavy", &[heavy.address()])
        .rule(
            "default",
            "request_headers: { set: { x-by: route, x-route: \"yes\" } }\n\
             response_headers: { set: { x-by: route, x-route: \"yes\" } }\n\
             to: [{ backend: light, weight: 1, request_headers: { set: { x-by: light, x-light: \"1\" } }, \
                    response_headers: { set: { x-by: light } } }, { backend: heavy, weight: 1 }]",
        );
    let sidecar = Sidecar::of(file).await;
    // Half of the requests go to the light one first; all end at the heavy one.
    light.behave(Behaviour::Reset);
    for _ in 0..4 {
        let reply = sidecar.client().get("shop", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "heavy"));
        assert_eq!(
            (reply.head.header("x-by"), reply.head.header("x-route")),
            (Some("route"), Some("yes"))
        );
    }
    assert!(light.requests() > 0);
    let seen = |upstream: &Upstream| {
        let requests = upstream.received();
        let seen = requests.iter().map(|request| {
            ["x-by", "x-route", "x-light"].map(|name| request.head.header(name).map(str::to_owned))
        });
        seen.collect::<BTreeSet<_>>()
    };
    let of = |values: [Option<&str>; 3]| BTreeSet::from([values.map(|value| value.map(str::to_owned))]);
    assert_eq!(seen(&light), of([Some("light"), Some("yes"), Some("1")]));
    assert_eq!(seen(&heavy), of([Some("route"), Some("yes"), None]));
    // And the other way round.
    light.behave(Behaviour::Answer(Answer::ok()));
    heavy.behave(Behaviour::Reset);
    let reply = sidecar.client().get("shop", "/").await;
    assert_eq!(
        (reply.upstream(), reply.head.header("x-by")),
        ("light", Some("light"))
    );
}

#[tokio::test]
async fn a_failure_of_a_sidecar_is_told_unedited() {
    let app = Upstream::dead("app");
    let beside_app = ServiceFile::new("shop")
        .app(app.address())
        .backend("v1", &[app.address()]);
    let far = Sidecar::start(SidecarSpec::text("far", &beside_app.to_string()).beside("shop")).await;
    for endpoint in [app.address(), far.inbound()] {
        let file = ServiceFile::new("shop").backend("v1", &[endpoint]).route(
            "default",
            &[("v1", 1)],
            "response_headers: { set: { x-edited: \"yes\" }, remove: [content-type] }",
        );
        let sidecar = Sidecar::of(file).await;
        let reply = sidecar.client().get("shop", "/").await;
        assert_eq!((reply.status(), reply.reason()), (503, Some("connect-failed")));
        assert_eq!(reply.head.header("x-edited"), None);
        assert!(reply.head.header("content-type").is_some());
    }
}

#[tokio::test]
async fn a_request_that_switches_protocols_is_rewritten_and_its_answer_edited() {
    let upstream = Upstream::start("chat").await;
    let switched =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\nx-secret: 1\r\n\r\n";
    upstream.behave(Behaviour::Raw(switched.as_bytes().to_vec()));
    let fields = "rewrite: { path: /socket }\n\
                  request_headers: { set: { x-edited: \"yes\" } }\n\
                  response_headers: { set: { x-edited: \"yes\" }, remove: [x-secret] }";
    let sidecar = Sidecar::of(simple("chat", &[&upstream], fields)).await;
    let ask = Ask::get("/chat")
        .host("chat")
        .header("connection", "upgrade")
        .header("upgrade", "chat");
    let reply = sidecar.client().send(ask).await;
    let header = |name| reply.head.header(name);
    assert_eq!((reply.status(), header("upgrade")), (101, Some("chat")));
    assert_eq!((header("x-edited"), header("x-secret")), (Some("yes"), None));
    let seen = upstream.last();
    let header = |name| seen.head.header(name);
    assert_eq!(
        (seen.target(), header("upgrade"), header("x-edited")),
        ("/socket", Some("chat"), Some("yes"))
    );
}

#[tokio::test]
async fn endpoints_are_chosen_by_what_the_caller_said_before_it_is_edited() {
    let upstreams = [
        Upstream::start("a").await,
        Upstream::start("b").await,
        Upstream::start("c").await,
    ];
    let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
    let file = ServiceFile::new("shop")
        .field("balance: { hash_on: { header: x-user } }")
        .backend("v1", &addresses)
        .route(
            "default",
            &[("v1", 1)],
            "request_headers: { set: { x-user: everyone } }",
        );
    let sidecar = Sidecar::of(file).await;
    let mut chosen = BTreeSet::new();
    for user in 0..40 {
        let ask = Ask::get("/").host("shop").header("x-user", &user.to_string());
        chosen.insert(sidecar.client().send(ask).await.upstream().to_owned());
    }
    assert_eq!(chosen.len(), 3, "forty users went to {chosen:?}");
    assert_eq!(upstreams[0].last().head.header("x-user"), Some("everyone"));
}

#[tokio::test]
async fn a_push_changes_what_a_route_does() {
    let upstream = Upstream::start("shop").await;
    let sidecar = Sidecar::of(simple("shop", &[&upstream], "")).await;
    assert_eq!(sidecar.client().get("shop", "/").await.status(), 200);
    let file = ServiceFile::new("shop").backend("v1", &[upstream.address()]);
    sidecar
        .apply(
            &file
                .rule("default", "redirect: { host: example.com }")
                .to_string(),
        )
        .await;
    let reply = sidecar.client().get("shop", "/a").await;
    assert_eq!(
        (reply.status(), reply.head.header("location")),
        (302, Some("http://example.com/a"))
    );
    sidecar.apply(&simple("shop", &[&upstream], "").to_string()).await;
    assert_eq!(sidecar.client().get("shop", "/").await.status(), 200);
}
