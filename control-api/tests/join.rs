//! The sidecar's own way into the mesh, against the real CA over TLS: joins by a token, renews by its certificate, and falls
//! for nobody else.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger_config::join::{JoinToken, RefusalReason};
use outrigger_config::units;
use outrigger_control::ca::rotation::Status;
use outrigger_control::ca::tokens::{MadeToken, NewToken};
use outrigger_control::client::{Api, Ask, ClientError};
use outrigger_control::server::{Config, Handle, TlsOptions, start};
use outrigger_proxy::control::join::{Asker, JoinError, Joined, TokenSource};
use outrigger_proxy::tls::pin::{Trust, fingerprint, public_key, verify_chain};
use outrigger_proxy::upstream::discovery::Resolver;

/// A control API over TLS, and the tool's way to it.
struct Desk {
    handle: Handle,
    api: Api,
    _folder: tempfile::TempDir,
}

impl Desk {
    async fn new() -> Self {
        Self::with_life(outrigger_control::ca::CERTIFICATE_LIFE).await
    }

    /// One whose certificates are good for so long.
    async fn with_life(certificate_life: units::Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            data: folder.path().to_owned(),
            names: Vec::new(),
            ca: outrigger_control::ca::Options {
                certificate_life,
                ..outrigger_control::ca::Options::default()
            },
            tls: Some(TlsOptions::default()),
            require_operator_token: false,
            connections_per_source: None,
        };
        let handle = start(config).await.unwrap();
        let api = Api::trusting(&url(&handle), Some(Trust::Fingerprint(handle.root))).unwrap();
        Self {
            handle,
            api,
            _folder: folder,
        }
    }

    async fn token(&self, service: &str, uses: u32) -> JoinToken {
        let wanted = NewToken {
            service: service.into(),
            ttl: units::Duration::from_secs(600),
            uses,
        };
        let made: MadeToken = self
            .api
            .json(Ask::post_json("/v1/tokens", &wanted))
            .await
            .unwrap();
        made.token.parse().unwrap()
    }

    /// Asks something of the rotation of roots, knowing the API by the first.
    async fn rotate(&self, ask: Ask) -> Result<Status, ClientError> {
        self.api.json(ask).await
    }

    fn asker(&self, service: &str) -> Asker {
        Asker::new(&url(&self.handle), service, Resolver::new(&[]).unwrap()).unwrap()
    }
}

fn url(handle: &Handle) -> String {
    format!("https://{}", handle.address)
}

fn reason(refused: Result<Joined, JoinError>) -> RefusalReason {
    match refused {
        Err(JoinError::Refused(reason, _)) => reason,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[tokio::test]
async fn a_sidecar_joins_by_its_token_and_renews_by_its_certificate() {
    let desk = Desk::new().await;
    let token = desk.token("reviews", 1).await;
    let asker = desk.asker("reviews");
    let first = asker.join(&token).await.unwrap();
    assert_eq!(first.spiffe_id, "spiffe://mesh.local/reviews");
    assert_eq!(fingerprint(&first.bundle[0]), Ok(token.root));
    assert_eq!(
        verify_chain(&first.certificates, &first.bundle),
        Ok(first.spiffe_id.clone())
    );
    assert!(!format!("{first:?}").contains("PRIVATE"));
    let second = asker.renew(&first).await.unwrap();
    assert_eq!(second.spiffe_id, first.spiffe_id);
    assert_ne!(
        public_key(&second.certificates[0]),
        public_key(&first.certificates[0])
    );
    let third = asker.renew(&second).await.unwrap();
    assert_eq!(third.bundle, first.bundle);
    assert_eq!(reason(asker.join(&token).await), RefusalReason::TokenUsedUp);
    desk.handle.shutdown().await;
}

#[tokio::test]
async fn a_sidecar_is_only_ever_the_service_that_it_was_told_to_be() {
    let desk = Desk::new().await;
    let token = desk.token("reviews", 5).await;
    assert_eq!(
        reason(desk.asker("ratings").join(&token).await),
        RefusalReason::OtherService
    );
    let reviews = desk.asker("reviews").join(&token).await.unwrap();
    assert_eq!(
        reason(desk.asker("ratings").renew(&reviews).await),
        RefusalReason::OtherService
    );
}

#[tokio::test]
async fn a_control_api_under_another_root_is_not_told_the_token() {
    let (desk, other) = (Desk::new().await, Desk::new().await);
    let token = desk.token("reviews", 1).await;
    let error = other.asker("reviews").join(&token).await.unwrap_err();
    assert!(
        matches!(&error, JoinError::Failed(what) if what.contains("not the control API that was meant")),
        "{error}"
    );
    // Nor is one that has renamed its root in the token: it does not know the secret.
    let renamed = JoinToken {
        root: other.handle.root,
        ..token.clone()
    };
    assert_eq!(
        reason(other.asker("reviews").join(&renamed).await),
        RefusalReason::TokenUnknown
    );
    desk.asker("reviews").join(&token).await.unwrap();
}

#[tokio::test]
async fn who_keeps_an_identity_is_handed_the_first_and_told_when_the_token_is_no_good() {
    let desk = Desk::new().await;
    let token = desk.token("reviews", 1).await;
    let asker = desk.asker("reviews");
    let (sender, mut handed) = tokio::sync::mpsc::unbounded_channel();
    let kept = TokenSource::Given(token.clone());
    let keeping = tokio::spawn(async move {
        let put = |asked: Result<&Joined, &JoinError>| drop(sender.send(asked.unwrap().spiffe_id.clone()));
        asker.keep_current(&kept, put).await
    });
    assert_eq!(
        handed.recv().await.as_deref(),
        Some("spiffe://mesh.local/reviews")
    );
    keeping.abort();
    let (asker, used_up) = (desk.asker("reviews"), TokenSource::Given(token));
    let (sender, mut handed) = tokio::sync::mpsc::unbounded_channel();
    let put = |asked: Result<&Joined, &JoinError>| drop(sender.send(asked.unwrap_err().clone()));
    let keeping = asker.keep_current(&used_up, put);
    let error = tokio::select! {
        error = handed.recv() => error.unwrap(),
        never = keeping => match never {},
    };
    assert!(
        matches!(error, JoinError::Refused(RefusalReason::TokenUsedUp, _)),
        "{error}"
    );
}

/// Waits until this holds; a rotation of certificates of a minute takes two.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(200), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("waited too long for {what}"));
}

#[tokio::test]
async fn while_one_root_follows_another_tokens_of_either_let_in() {
    let desk = Desk::new().await;
    let early = desk.token("reviews", 9).await;
    desk.rotate(Ask::post("/v1/ca/rotation", "application/json", Vec::new()))
        .await
        .unwrap();
    // Nobody is alive who does not know the new root, so the first certificate is of it.
    let first = desk.asker("reviews").join(&early).await.unwrap();
    let (old, new) = (&first.bundle[0], &first.bundle[1]);
    assert_eq!(fingerprint(old), Ok(early.root));
    assert!(verify_chain(&first.certificates, std::slice::from_ref(new)).is_ok());
    let late = desk.token("reviews", 9).await;
    assert_eq!(fingerprint(new), Ok(late.root));
    // The API shows itself under the new root a moment later.
    until("the API under the new root", async || {
        desk.asker("reviews").join(&late).await.is_ok()
    })
    .await;
    let second = desk.asker("reviews").join(&early).await.unwrap();
    assert_eq!(second.bundle, first.bundle);
    desk.asker("reviews").renew(&first).await.unwrap();

    // By force, what names the old root is lost, and it is told whose API this is not.
    desk.rotate(Ask::delete("/v1/ca/rotation?force=1")).await.unwrap();
    until("the old root to be gone", async || {
        desk.asker("reviews").join(&early).await.is_err()
    })
    .await;
    let error = desk.asker("reviews").join(&early).await.unwrap_err();
    assert!(
        matches!(&error, JoinError::Failed(what) if what.contains("not the control API that was meant")),
        "{error}"
    );
    desk.asker("reviews").renew(&second).await.unwrap();
    desk.handle.shutdown().await;
}

/// In two minutes and a half, so only where long tests are asked for.
#[tokio::test]
async fn sidecars_that_renew_know_each_other_at_every_moment_of_a_rotation() {
    if std::env::var_os("OUTRIGGER_TESTS_LONG").is_none() {
        return;
    }
    let life = units::Duration::from_secs(60);
    let desk = Desk::with_life(life).await;
    let token = desk.token("reviews", 2).await;
    let held: [Arc<Mutex<Option<Joined>>>; 2] = Default::default();
    let keeping = held.clone().map(|held| {
        let (asker, token) = (desk.asker("reviews"), TokenSource::Given(token.clone()));
        tokio::spawn(async move {
            let put =
                |asked: Result<&Joined, &JoinError>| *held.lock().unwrap() = Some(asked.unwrap().clone());
            asker.keep_current(&token, put).await
        })
    });
    let now = || held.each_ref().map(|held| held.lock().unwrap().clone());
    until("both to have joined", async || now().iter().all(Option::is_some)).await;
    desk.rotate(Ask::post("/v1/ca/rotation", "application/json", Vec::new()))
        .await
        .unwrap();
    let mut seen_bundles = std::collections::BTreeSet::new();
    until("the rotation to be finished", async || {
        let [Some(one), Some(other)] = now() else {
            panic!("an identity went")
        };
        seen_bundles.insert(one.bundle.len());
        for (shown, by) in [(&one, &other), (&other, &one)] {
            assert!(verify_chain(&shown.certificates, &by.bundle).is_ok());
        }
        desk.rotate(Ask::delete("/v1/ca/rotation")).await.is_ok()
    })
    .await;
    until("both to know the new root alone", async || {
        now()
            .iter()
            .flatten()
            .all(|joined| joined.bundle.len() == 1 && fingerprint(&joined.bundle[0]) != Ok(token.root))
    })
    .await;
    assert!(
        seen_bundles.contains(&1) && seen_bundles.contains(&2),
        "{seen_bundles:?}"
    );
    for task in keeping {
        task.abort();
    }
}
