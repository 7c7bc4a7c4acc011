//! What is an identity and what is none, and when connections of one may be used under the next.

use std::time::{Duration, SystemTime};

use outrigger_config::join::Revoked;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use super::identity::IdentityProblem as Problem;
use super::*;
use crate::telemetry::metrics::Metrics;

struct Root {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Root {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// Certificate and key of a workload that is valid for so many seconds from now, in which it may be in the past.
    fn issue(&self, uris: &[&str], time: (i64, i64)) -> (String, String) {
        self.issue_for(&[], uris, time)
    }

    /// The same, whose key may be used for this.
    fn issue_for(
        &self,
        usages: &[KeyUsagePurpose],
        uris: &[&str],
        (from, to): (i64, i64),
    ) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        for uri in uris {
            params
                .subject_alt_names
                .push(SanType::URI((*uri).try_into().unwrap()));
        }
        params.key_usages = usages.to_vec();
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::seconds(from);
        params.not_after = now + time::Duration::seconds(to);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

impl Root {
    /// An intermediate of this root, with this key, that is valid for so many seconds.
    fn below(&self, key: &KeyPair, valid: i64) -> (CertificateParams, String) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "intermediate");
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::seconds(valid);
        let pem = params.signed_by(key, &self.issuer).unwrap().pem();
        (params, pem)
    }
}

const GOOD: (i64, i64) = (-60, 3600);

fn load(chain: &str, key: &str, roots: &str) -> Result<Identity, Problem> {
    Identity::from_pem(
        chain.as_bytes(),
        key.as_bytes(),
        roots.as_bytes(),
        &Arc::default(),
        SystemTime::now(),
    )
}

fn identity(root: &Root, id: &str, roots: &str) -> Identity {
    let (chain, key) = root.issue(&[id], GOOD);
    load(&chain, &key, roots).unwrap()
}

#[test]
fn a_set_is_an_identity_only_if_all_of_it_is_good() {
    let (root, other) = (Root::new(), Root::new());
    let (chain, key) = root.issue(&["spiffe://shop/reviews"], GOOD);
    let identity = load(&chain, &key, &root.pem).unwrap();
    assert_eq!(identity.id().as_str(), "spiffe://shop/reviews");
    let left = identity.not_after() - seconds(SystemTime::now());
    assert!((3590..=3600).contains(&left), "{left}");
    // A workload that is no service of the mesh can call all the same.
    let (person, person_key) = root.issue(&["spiffe://shop/ops/mary"], GOOD);
    assert!(load(&person, &person_key, &root.pem).is_ok());

    let (_, wrong_key) = root.issue(&["spiffe://shop/reviews"], GOOD);
    let is = |problem: &Problem| std::mem::discriminant(problem);
    let named = |uris: &[&str], time| root.issue(uris, time);
    let signing = |usage| {
        let usages = [KeyUsagePurpose::DigitalSignature, usage];
        root.issue_for(&usages, &["spiffe://shop/a"], GOOD)
    };
    let text = String::new;
    let cases = [
        ((chain.clone(), wrong_key), &root.pem, Problem::Key(text())),
        (
            (chain.clone(), "no key".into()),
            &root.pem,
            Problem::NotPem("", text()),
        ),
        ((text(), key.clone()), &root.pem, Problem::NotPem("", text())),
        ((chain.clone(), key.clone()), &text(), Problem::NotPem("", text())),
        ((chain.repeat(33), key.clone()), &root.pem, Problem::TooMany("")),
        ((chain.clone(), key.clone()), &other.pem, Problem::Chain(text())),
        (named(&[], GOOD), &root.pem, Problem::Name(text())),
        (
            named(&["spiffe://shop/a", "spiffe://shop/b"], GOOD),
            &root.pem,
            Problem::Name(text()),
        ),
        (named(&["https://shop/a"], GOOD), &root.pem, Problem::Name(text())),
        (named(&["spiffe://shop"], GOOD), &root.pem, Problem::Name(text())),
        (
            signing(KeyUsagePurpose::KeyCertSign),
            &root.pem,
            Problem::Use(text()),
        ),
        (signing(KeyUsagePurpose::CrlSign), &root.pem, Problem::Use(text())),
        (
            named(&["spiffe://shop/a"], (-120, -60)),
            &root.pem,
            Problem::Expired(text()),
        ),
        (
            named(&["spiffe://shop/a"], (600, 1200)),
            &root.pem,
            Problem::NotYetValid(text()),
        ),
    ];
    for ((chain, key), roots, expected) in cases {
        let problem = load(&chain, &key, roots).unwrap_err();
        assert_eq!(is(&problem), is(&expected), "{problem:?}");
        assert!(!problem.to_string().is_empty());
    }
    let half = &chain[..chain.len() / 2];
    assert!(load(half, &key, &root.pem).is_err());
}

#[test]
fn a_chain_is_good_until_the_first_certificate_ends_that_it_needs() {
    let root = Root::new();
    let [key, other_key] = [(); 2].map(|()| KeyPair::generate().unwrap());
    let (params, soon) = root.below(&key, 60);
    let (_, late) = root.below(&key, 7200);
    let (_, strange) = root.below(&other_key, 60);
    let (_, over) = root.below(&other_key, -60);
    let issuer = Issuer::new(params, key);
    let pem = String::new();
    let (leaf, leaf_key) = Root { issuer, pem }.issue(&["spiffe://shop/reviews"], GOOD);
    let many: String = (61..70)
        .map(|valid| root.below(&KeyPair::generate().unwrap(), valid).1)
        .collect();
    let now = seconds(SystemTime::now());
    for (what, between, expected) in [
        ("it needs the one", vec![&soon], 60),
        (
            "another of the same key is there when the first ends",
            vec![&soon, &late],
            3600,
        ),
        ("one stands there for nothing", vec![&late, &strange], 3600),
        ("and one that has ended", vec![&over, &late], 3600),
        ("it needs one beside others", vec![&strange, &soon], 60),
        ("there are more than anybody needs", vec![&late, &many], 61),
    ] {
        let chain = between.into_iter().fold(leaf.clone(), |chain, more| chain + more);
        let identity = load(&chain, &leaf_key, &root.pem).unwrap();
        let left = identity.not_after() - now;
        assert!((expected - 2..=expected + 2).contains(&left), "{what}: {left}");
    }
}

#[test]
fn connections_live_on_under_a_renewed_certificate_and_not_past_a_root_or_a_name_that_is_gone() {
    let (old, new) = (Root::new(), Root::new());
    let both = format!("{}{}", old.pem, new.pem);
    let metrics = Metrics::new().unwrap();
    let identities = Arc::new(Identities::new(true, Arc::clone(metrics.tls())));
    assert!(identities.is_awaited());
    let reviews = "spiffe://shop/reviews";
    identities.put(identity(&old, reviews, &old.pem));
    assert!(!identities.is_awaited());
    let session = |not_after| {
        let own = identities.current().unwrap();
        identities.session(&own, not_after, identities.epoch.load(Ordering::Relaxed))
    };
    let (now, ever) = (Instant::now(), i64::MAX);
    let first = session(ever);
    assert!(!first.is_over(now));
    assert!(
        first.is_over(now + Duration::from_secs(3601)),
        "our own certificate's end"
    );
    let soon = seconds(SystemTime::now()) + 10;
    assert!(session(soon).is_over(now + Duration::from_secs(11)), "the peer's");
    for (again, roots) in [(&old, &old.pem), (&old, &both), (&new, &both)] {
        identities.put(identity(again, reviews, roots));
        assert!(!first.is_over(now));
    }
    identities.put(identity(&new, reviews, &new.pem));
    assert!(first.is_over(now), "a root is gone");
    let second = session(ever);
    identities.put(identity(&new, "spiffe://shop/ratings", &new.pem));
    assert!(second.is_over(now), "it is another workload");
}

#[tokio::test]
async fn a_connection_ends_by_the_wall_clock_though_the_clock_of_timers_has_stood_still() {
    let root = Root::new();
    let metrics = Metrics::new().unwrap();
    let identities = Arc::new(Identities::new(true, Arc::clone(metrics.tls())));
    identities.put(identity(&root, "spiffe://shop/reviews", &root.pem));
    let own = identities.current().unwrap();
    let session = identities.session(&own, i64::MAX, identities.epoch.load(Ordering::Relaxed));
    // On the second, as certificates end.
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(own.not_after()).unwrap() - 3600);
    let now = Instant::now();
    let after = |seconds| wall + Duration::from_secs(seconds);
    let tunnel = ended(Some(&session), None);
    let mut tunnel = std::pin::pin!(tunnel);
    let mut is_cut = async || {
        let now = std::future::poll_fn(|cx| std::task::Poll::Ready(tunnel.as_mut().poll(cx)));
        match now.await {
            std::task::Poll::Ready(failure) => Some(failure.reason),
            std::task::Poll::Pending => None,
        }
    };
    // In its hour it stands, whatever the clocks do: forward, back, and forward by drops.
    for seconds in [0, 1800, 60, 3590, 3600] {
        identities.look_at_clocks(after(seconds), now);
        assert!(!session.is_over(now), "{seconds}");
        assert_eq!(is_cut().await, None, "{seconds}");
    }
    identities.look_at_clocks(after(3602), now);
    assert!(session.is_over(now));
    assert_eq!(is_cut().await, Some(Reason::PeerExpired));
}

#[test]
fn a_connection_is_over_once_its_other_end_is_revoked_and_nobody_else_s_is() {
    let root = Root::new();
    let metrics = Metrics::new().unwrap();
    let identities = Arc::new(Identities::new(true, Arc::clone(metrics.tls())));
    identities.put(identity(&root, "spiffe://shop/reviews", &root.pem));
    let session = |id| {
        let shown = Shown::of(&SpiffeId::parse(id).unwrap(), []).unwrap();
        let own = identities.current().unwrap();
        let session = identities.session(&own, i64::MAX, 0);
        session.of(identities.watch(shown, own.anchors().of_caller(&[])))
    };
    let (web, other) = (session("spiffe://shop/web"), session("spiffe://shop/other"));
    let now = Instant::now();
    assert!(!web.is_over(now) && !other.is_over(now));
    let denied = Denied::of(Some(&Revoked {
        serials: Vec::new(),
        identities: vec!["spiffe://shop/web".into()],
    }));
    identities.deny(&Arc::new(denied));
    assert!(web.is_over(now) && !other.is_over(now));
    let failure = web.stands().unwrap_err();
    assert_eq!(failure.reason, Reason::PeerRevoked);
    assert!(other.stands().is_ok());
    identities.deny(&Arc::default());
    assert!(!web.is_over(now), "taken back before it was ended");
}

#[test]
fn an_identity_is_missing_where_none_is_loaded_or_it_is_of_another_mesh() {
    let root = Root::new();
    let metrics = Metrics::new().unwrap();
    let identities = Identities::new(true, Arc::clone(metrics.tls()));
    let reason = |domain| {
        identities
            .ready(domain)
            .map(|_| ())
            .map_err(|failure| failure.reason)
    };
    assert_eq!(reason(None), Err(Reason::IdentityMissing));
    identities.put(identity(&root, "spiffe://shop/reviews", &root.pem));
    assert_eq!((reason(None), reason(Some("shop"))), (Ok(()), Ok(())));
    assert_eq!(reason(Some("other")), Err(Reason::IdentityMissing));
}

#[test]
fn the_application_is_told_of_a_caller_as_envoy_tells_it() {
    let id = |text| SpiffeId::parse(text).unwrap();
    let told = forwarded(&id("spiffe://shop/reviews"), &id("spiffe://shop/web"), b"abc");
    // SHA-256 of "abc": the example of FIPS 180-2.
    assert_eq!(
        told,
        "By=spiffe://shop/reviews;Hash=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad;URI=spiffe://shop/web"
    );
}
