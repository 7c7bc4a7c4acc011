//! The control API is killed, and nothing that was acknowledged is lost; sidecars go on without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger_tests::background::Background;
use outrigger_tests::wait::eventually;
use outrigger_tests::{
    Answer, Ask, Behaviour, Client, ControlApi, Load, LoadSpec, Sidecar, SidecarSpec, Upstream, simple,
};

/// How often the control API is killed.
const CRASHES: u64 = 5;

/// Two documents that carry the same number, so that half a push is seen.
fn numbered(upstream: &Upstream, number: u64) -> String {
    let with = |name: &str| {
        let file = simple(name, &[upstream], "").field(&format!("hosts: [{name}, n{number}.{name}]"));
        file.to_string()
    };
    format!("{}---\n{}", with("reviews"), with("ratings"))
}

/// The numbers that the control API holds, one for each document.
async fn held(api: &ControlApi) -> Vec<u64> {
    let text = api.get("/v1/config").await.text();
    let number = |line: &str| {
        let rest = line.strip_prefix("hosts: [")?.split(", n").nth(1)?;
        rest.split('.').next()?.parse().ok()
    };
    text.lines().filter_map(number).collect()
}

/// Pushes number after number from `first` on, without a pause, until one fails. Gives the last that was
/// acknowledged, in `acknowledged` as it goes.
fn push_until_it_fails(
    api: &ControlApi,
    texts: Vec<(u64, String)>,
    acknowledged: &Arc<AtomicU64>,
) -> Background {
    let background = Background::start("pusher");
    let (client, acknowledged) = (api.client(), Arc::clone(acknowledged));
    background.spawn(async move {
        for (number, text) in texts {
            let ask = Ask::new("PUT", "/v1/config?file=numbered.yaml")
                .header("content-type", "application/yaml")
                .body(text);
            match client.try_send(&ask).await {
                Ok(reply) if reply.status() == 200 => acknowledged.store(number, Ordering::SeqCst),
                _ => return,
            }
        }
    });
    background
}

#[tokio::test]
async fn no_acknowledged_push_is_lost_and_none_is_half_there() {
    let upstream = Upstream::start("a").await;
    let mut api = ControlApi::start().await;
    let first = numbered(&upstream, 1);
    api.pushed(&first).await;
    let sidecar = Sidecar::start(SidecarSpec::control("a", &api.url())).await;
    let load = Load::start(LoadSpec {
        rate: Some(500),
        ..LoadSpec::new(sidecar.outbound(), "reviews", 4)
    });
    let acknowledged = Arc::new(AtomicU64::new(1));
    let mut rng = fastrand::Rng::with_seed(2);
    for crash in 0..CRASHES {
        let begin = acknowledged.load(Ordering::SeqCst) + 1;
        let texts = (begin..begin + 2_000).map(|number| (number, numbered(&upstream, number)));
        let pusher = push_until_it_fails(&api, texts.collect(), &acknowledged);
        let enough = begin + rng.u64(3..20);
        eventually("some pushes to be acknowledged", async || {
            (acknowledged.load(Ordering::SeqCst) >= enough).then_some(())
        })
        .await;
        api.kill();
        drop(pusher);
        let last = acknowledged.load(Ordering::SeqCst);
        api.restart().await;
        let held = held(&api).await;
        assert_eq!(held.len(), 2, "crash {crash}");
        assert_eq!(held[0], held[1], "crash {crash}: half a push is there");
        // The one that was on its way may have been stored without its answer having come through.
        assert!(
            (last..=last + 1).contains(&held[0]),
            "crash {crash}: {last} acknowledged, {held:?} held"
        );
        acknowledged.store(held[0], Ordering::SeqCst);
    }
    // The sidecar comes back by itself and gets what is new.
    let number = acknowledged.load(Ordering::SeqCst) + 1;
    let version = api.pushed(&numbered(&upstream, number)).await;
    sidecar
        .config_when("the last push", |config| config["version"] == version.as_str())
        .await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn a_sidecar_that_is_started_while_the_control_api_is_down_comes_up_from_its_disk() {
    let upstream = Upstream::start("a").await;
    let mut api = ControlApi::start().await;
    let version = api.pushed(&simple("reviews", &[&upstream], "").to_string()).await;
    let disk = tempfile::tempdir().unwrap();
    let spec = || SidecarSpec::control("a", &api_url(&api)).last_good(&disk.path().join("last-good.yaml"));
    fn api_url(api: &ControlApi) -> String {
        api.url()
    }
    let first = Sidecar::start(spec()).await;
    assert_eq!(first.config().await["source"], "control");
    eventually("the last good configuration on disk", async || {
        disk.path().join("last-good.yaml").exists().then_some(())
    })
    .await;
    drop(first);
    let spec = spec();
    api.kill();

    let second = Sidecar::start(spec).await;
    assert_eq!(second.client().get("reviews", "/").await.upstream(), "a");
    let config = second.config().await;
    assert_eq!(
        (config["source"].as_str(), config["version"].as_str()),
        (Some("disk"), Some(version.as_str()))
    );
    let from_disk = [("source", "disk"), ("version", version.as_str())];
    assert_eq!(
        second.metrics().await.sum("outrigger_config_info", &from_disk),
        1.0
    );

    api.restart().await;
    let newer = api
        .pushed(&simple("reviews", &[&upstream], "timeout: { request: 1s }").to_string())
        .await;
    let config = second
        .config_when("the newer version", |config| config["version"] == newer.as_str())
        .await;
    assert_eq!(config["source"], "control");
    let nodes = api
        .nodes_when("the sidecar in sync", |nodes| {
            nodes["nodes"][0]["state"] == "in-sync"
        })
        .await;
    assert_eq!(nodes["nodes"][0]["id"], "a");
}

#[tokio::test]
async fn a_last_good_configuration_that_is_damaged_does_not_stop_the_sidecar() {
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().join("last-good.yaml");
    std::fs::write(&path, b"\x00\xffnot what was written").unwrap();
    let upstream = Upstream::start("a").await;
    let mut api = ControlApi::start().await;
    api.pushed(&simple("reviews", &[&upstream], "").to_string()).await;
    api.kill();
    let sidecar = Sidecar::launch(SidecarSpec::control("a", &api.url()).last_good(&path)).await;
    assert_eq!(sidecar.page("/ready").await.status(), 503);
    api.restart().await;
    sidecar.is_ready().await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");
}

#[tokio::test]
async fn without_a_disk_and_without_the_control_api_the_sidecar_waits_and_says_so() {
    let mut api = ControlApi::start().await;
    let upstream = Upstream::start("a").await;
    api.kill();
    let sidecar = Sidecar::launch(SidecarSpec::control("a", &api.url())).await;
    let ready = sidecar.page("/ready").await;
    assert_eq!(ready.status(), 503);
    assert!(!ready.text().is_empty());
    assert_eq!(
        Client::new(sidecar.scrape()).get("x", "/live").await.status(),
        200
    );
    api.restart().await;
    api.pushed(&simple("reviews", &[&upstream], "").to_string()).await;
    sidecar.is_ready().await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
}

#[tokio::test]
async fn what_the_store_held_is_there_after_a_restart_to_the_letter() {
    let upstream = Upstream::start("a").await;
    let mut api = ControlApi::start().await;
    let text = format!("# A comment of ours.\n{}", simple("reviews", &[&upstream], ""));
    let version = api.pushed(&text).await;
    api.restart().await;
    let reply = api.get("/v1/services/reviews").await;
    assert_eq!((reply.status(), reply.text()), (200, text.clone()));
    assert_eq!(api.nodes().await["version"], version.as_str());
    let again = api.push(&text).await.json();
    assert_eq!(
        again["version"],
        version.as_str(),
        "the same push is no new version: {again}"
    );
    assert_eq!(again["unchanged"][0], "reviews");
}

#[tokio::test]
async fn a_control_api_that_accepts_and_never_answers_does_not_hold_up_a_start_from_disk() {
    let upstream = Upstream::start("a").await;
    let mut api = ControlApi::start().await;
    api.pushed(&simple("reviews", &[&upstream], "").to_string()).await;
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().join("last-good");
    drop(Sidecar::start(SidecarSpec::control("a", &api.url()).last_good(&path)).await);
    api.kill();
    let mute = Upstream::start("a control API that never answers").await;
    mute.behave(Behaviour::Hang);
    let url = format!("http://{}", mute.address());
    let begun = Instant::now();
    let sidecar = Sidecar::start(SidecarSpec::control("a", &url).last_good(&path)).await;
    let took = begun.elapsed();
    // The two seconds of the first poll, and the start itself on a busy machine.
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(sidecar.config().await["source"], "disk");
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "a");
}

#[tokio::test]
async fn a_last_good_configuration_that_is_damaged_is_read_and_logged_once() {
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().join("last-good");
    std::fs::write(&path, "not what was written").unwrap();
    let api = Upstream::start("scripted control API").await;
    api.behave(Behaviour::Answer(Answer::status(500)));
    let url = format!("http://{}", api.address());
    let mut sidecar = Sidecar::launch(SidecarSpec::control("a", &url).last_good(&path)).await;
    eventually("some polls that failed", async || {
        (api.received().len() >= 5).then_some(())
    })
    .await;
    let log = sidecar.program().log();
    let complaints = log.iter().filter(|line| line.contains("is damaged"));
    assert_eq!(complaints.count(), 1, "{log:#?}");
}
