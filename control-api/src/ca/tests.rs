use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use outrigger_config::join::{IdentityAnswer, IdentityRequest, RefusalReason};
use outrigger_config::{Document, Kind};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificates::Which;
use super::join::{Attempt, Now, Proof, Refused, join};
use super::tokens::{NewToken, TokenState};
use super::*;
use crate::store::Change;
use crate::store::ledger::{Deed, Leaf};

/// A CA in a folder of its own, at a time of its own.
struct Desk {
    folder: tempfile::TempDir,
    store: Store,
    ca: Ca,
    now: Now,
}

fn now() -> Now {
    Now {
        wall: OffsetDateTime::from_unix_timestamp(1_900_000_000).unwrap(),
        clock: Instant::now(),
    }
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, ca) = open(folder.path(), Options::default(), now()).unwrap();
        Self {
            folder,
            store,
            ca,
            now: now(),
        }
    }

    /// The same folder once more, as after a restart.
    fn again(self, options: Options) -> Result<Self, CaError> {
        let Self {
            folder,
            store,
            ca,
            now,
        } = self;
        drop((store, ca));
        let (store, ca) = open(folder.path(), options, now)?;
        Ok(Self {
            folder,
            store,
            ca,
            now,
        })
    }

    fn later(&mut self, by: Duration) {
        self.now.wall += by;
        self.now.clock += by;
    }

    fn token(&self, service: &str, uses: u32) -> String {
        let ttl = units::Duration::from_secs(3600);
        let wanted = NewToken {
            service: service.into(),
            ttl,
            uses,
        };
        tokens::create(&self.ca, &self.store, wanted, "ann", self.now.wall)
            .unwrap()
            .token
    }

    fn ask(
        &self,
        token: Option<&str>,
        service: Option<&str>,
        proof: Option<Proof>,
    ) -> Result<IdentityAnswer, Refused> {
        let request = IdentityRequest {
            csr: csr(),
            token: token.map(str::to_owned),
            service: service.map(str::to_owned),
        };
        self.send(Ok(request), proof)
    }

    fn send(
        &self,
        request: Result<IdentityRequest, String>,
        proof: Option<Proof>,
    ) -> Result<IdentityAnswer, Refused> {
        let source = IpAddr::from([10, 0, 0, 7]);
        let attempt = Attempt {
            request,
            source,
            proof,
        };
        join(&self.ca, &self.store, attempt, self.now)
    }

    fn reason(&self, token: Option<&str>, service: Option<&str>, proof: Option<Proof>) -> RefusalReason {
        self.ask(token, service, proof).unwrap_err().reason
    }

    fn deeds(&self) -> Vec<(Deed, Option<RefusalReason>)> {
        let rows = self.store.audit(0, 1_000).unwrap();
        rows.iter().map(|row| (row.deed, row.reason)).collect()
    }

    fn mesh(&self, words: &str) {
        let document = Document {
            kind: Kind::Mesh,
            name: "mesh".into(),
            file: "mesh.yaml".into(),
            line: 1,
            text: format!("kind: Mesh\n{words}\n"),
        };
        self.store
            .writer()
            .commit("ann", vec![Change::Put(document)])
            .unwrap();
    }
}

fn open(folder: &Path, options: Options, now: Now) -> Result<(Store, Ca), CaError> {
    let store = Store::open(folder)?;
    let ca = Ca::open(&store, folder, options, now.wall)?;
    Ok((store, ca))
}

fn csr() -> String {
    let key = KeyPair::generate().unwrap();
    // Names that nobody is to be given.
    let mut params = CertificateParams::new(vec!["admin.example".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "root");
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn proof(answer: &IdentityAnswer) -> Proof {
    let not_after = OffsetDateTime::parse(&answer.not_after, &Rfc3339).unwrap();
    let roots = answer.bundle.iter();
    let roots = roots.filter(|root| leads_to(&answer.certificates, root));
    Proof {
        spiffe_id: answer.spiffe_id.clone(),
        serial: answer.serial.clone(),
        vouched_by: Vec::new(),
        not_after,
        sha256: authority::fingerprint(&answer.certificates[0]).unwrap(),
        roots: roots.map(|root| authority::fingerprint(root).unwrap()).collect(),
    }
}

/// Whether each certificate is signed by the next, and the last by this root.
fn leads_to(certificates: &[String], root: &str) -> bool {
    let all: Vec<Vec<u8>> = certificates
        .iter()
        .map(String::as_str)
        .chain([root])
        .map(|certificate| pem::parse(certificate).unwrap().into_contents())
        .collect();
    all.windows(2).all(|pair| {
        let (_, below) = X509Certificate::from_der(&pair[0]).unwrap();
        let (_, above) = X509Certificate::from_der(&pair[1]).unwrap();
        below.verify_signature(Some(above.public_key())).is_ok()
    })
}

#[test]
fn a_certificate_says_what_the_ca_says_and_nothing_of_what_was_asked_for() {
    let desk = Desk::new();
    let answer = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    assert_eq!(answer.spiffe_id, "spiffe://mesh.local/reviews");
    assert_eq!((answer.certificates.len(), answer.bundle.len()), (1, 1));
    assert!(leads_to(&answer.certificates, &answer.bundle[0]));
    let der = pem::parse(&answer.certificates[0]).unwrap().into_contents();
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    let names = &leaf
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names;
    assert_eq!(format!("{names:?}"), "[URI(\"spiffe://mesh.local/reviews\")]");
    assert_eq!(leaf.subject().to_string(), "CN=reviews");
    assert!(!leaf.is_ca());
    assert!(leaf.basic_constraints().unwrap().is_some());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert_eq!(usage.flags, 1);
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(leaf.raw_serial_as_string().replace(':', ""), answer.serial);
    let (from, until) = (leaf.validity().not_before, leaf.validity().not_after);
    assert_eq!(from.to_datetime(), desk.now.wall - Duration::from_secs(300));
    assert_eq!(
        until.to_datetime(),
        desk.now.wall + Duration::from_secs(24 * 3600)
    );
    assert_eq!(
        answer.renew_after,
        rfc3339(desk.now.wall + Duration::from_secs(12 * 3600))
    );
}

#[test]
fn a_token_lets_in_its_service_as_often_and_as_long_as_it_says() {
    let mut desk = Desk::new();
    let twice = desk.token("reviews", 2);
    desk.ask(Some(&twice), Some("reviews"), None).unwrap();
    assert_eq!(
        desk.reason(Some(&twice), Some("ratings"), None),
        RefusalReason::OtherService
    );
    desk.ask(Some(&twice), None, None).unwrap();
    assert_eq!(desk.reason(Some(&twice), None, None), RefusalReason::TokenUsedUp);
    let other = Desk::new();
    assert_eq!(
        other.reason(Some(&twice), None, None),
        RefusalReason::TokenUnknown
    );
    let (mine, theirs) = (desk.token("reviews", 1), desk.token("reviews", 1));
    let mixed: Vec<&str> = mine
        .split('.')
        .zip(theirs.split('.'))
        .enumerate()
        .map(|(at, (one, two))| if at == 2 { two } else { one })
        .collect();
    assert_eq!(
        desk.reason(Some(&mixed.join(".")), None, None),
        RefusalReason::TokenUnknown
    );
    let id = mine.split('.').nth(1).unwrap();
    tokens::revoke(&desk.store, id, "bob", desk.now.wall).unwrap();
    assert_eq!(desk.reason(Some(&mine), None, None), RefusalReason::TokenRevoked);
    desk.later(Duration::from_secs(3600));
    assert_eq!(
        desk.reason(Some(&theirs), None, None),
        RefusalReason::TokenExpired
    );
    assert_eq!(
        desk.reason(Some("hello"), None, None),
        RefusalReason::TokenMalformed
    );
    assert_eq!(desk.reason(None, None, None), RefusalReason::NoCredential);
    let states: Vec<TokenState> = tokens::list(&desk.store, desk.now.wall)
        .unwrap()
        .iter()
        .map(|token| token.state)
        .collect();
    assert!(
        states.contains(&TokenState::Revoked) && states.contains(&TokenState::Expired),
        "{states:?}"
    );
}

#[test]
fn a_request_that_is_refused_uses_nothing_up() {
    let desk = Desk::new();
    let token = desk.token("reviews", 1);
    let bad = IdentityRequest {
        csr: "hello".into(),
        token: Some(token.clone()),
        service: None,
    };
    assert_eq!(
        desk.send(Ok(bad), None).unwrap_err().reason,
        RefusalReason::MalformedCsr
    );
    assert_eq!(
        desk.send(Err("no JSON".into()), None).unwrap_err().reason,
        RefusalReason::MalformedRequest
    );
    desk.ask(Some(&token), None, None).unwrap();
}

#[test]
fn of_many_who_bring_one_token_at_once_as_many_get_in_as_it_has_uses() {
    let desk = Desk::new();
    let token = desk.token("reviews", 3);
    let outcomes: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12)
            .map(|_| scope.spawn(|| desk.ask(Some(&token), None, None).is_ok()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|issued| **issued).count(), 3);
    let deeds = desk.deeds();
    let counted = |wanted: Deed| deeds.iter().filter(|(deed, _)| *deed == wanted).count();
    assert_eq!((counted(Deed::Issued), counted(Deed::Refused)), (3, 9));
}

#[test]
fn guessing_is_refused_without_a_reason_and_does_not_fill_the_log() {
    let mut desk = Desk::new();
    let token = desk.token("reviews", 1);
    let guess = desk
        .token("reviews", 1)
        .replace(token.split('.').nth(1).unwrap(), "0000000000000000");
    let guess = guess.replace(guess.split('.').nth(1).unwrap(), "0000000000000000");
    let reasons: Vec<RefusalReason> = (0..100).map(|_| desk.reason(Some(&guess), None, None)).collect();
    let unknown = reasons
        .iter()
        .filter(|reason| **reason == RefusalReason::TokenUnknown)
        .count();
    assert_eq!(unknown, 20);
    assert_eq!(reasons[20..], [RefusalReason::RateLimited; 80]);
    let limited = (Deed::Refused, Some(RefusalReason::RateLimited));
    assert_eq!(desk.deeds().iter().filter(|deed| **deed == limited).count(), 1);
    // Even the good one waits, from this address; and then it is good.
    assert_eq!(desk.reason(Some(&token), None, None), RefusalReason::RateLimited);
    desk.later(Duration::from_secs(3));
    desk.ask(Some(&token), None, None).unwrap();
}

#[test]
fn who_is_revoked_as_sidecars_read_it_is_not_renewed_either() {
    let desk = Desk::new().again(adopting()).unwrap();
    let held = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    // Of a root that others sign under too, with a number whose first bit is set, as x509 writes it.
    let proof = Proof {
        serial: "009f1c".into(),
        vouched_by: vec!["00aa".into(), "0b".into()],
        ..proof(&held)
    };
    desk.ask(None, None, Some(proof.clone())).unwrap();
    for revoked in ["9f1c", "009f1c", "aa", "b"] {
        desk.mesh(&format!("revoked: {{ serials: [\"{revoked}\"] }}"));
        let reason = desk.reason(None, None, Some(proof.clone()));
        assert_eq!(reason, RefusalReason::IdentityRevoked, "{revoked}");
    }
}

/// What lets in certificates that this store did not issue.
fn adopting() -> Options {
    Options {
        adopt_unknown: true,
        ..Options::default()
    }
}

#[test]
fn what_was_not_issued_here_is_renewed_only_where_the_operator_wants_it_and_a_repeated_number_never() {
    let desk = Desk::new();
    let held = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    let unknown = Proof {
        serial: "4f1c".into(),
        sha256: [7; 32],
        ..proof(&held)
    };
    let repeated = Proof {
        sha256: [7; 32],
        ..proof(&held)
    };
    for forged in [&unknown, &repeated] {
        let reason = desk.reason(None, None, Some(forged.clone()));
        assert_eq!(reason, RefusalReason::CertificateUnknown);
    }
    desk.ask(None, None, Some(proof(&held))).unwrap();
    let desk = desk.again(adopting()).unwrap();
    let adopted = desk.ask(None, None, Some(unknown)).unwrap();
    let last = desk.store.audit_newest(1).unwrap();
    assert_eq!(last[0].deed, Deed::Renewed);
    assert!(
        last[0].note.contains("instead of 4f1c, which is unknown here"),
        "{}",
        last[0].note
    );
    let reason = desk.reason(None, None, Some(repeated));
    assert_eq!(reason, RefusalReason::CertificateUnknown);
    // What it was given is known here.
    let desk = desk.again(Options::default()).unwrap();
    desk.ask(None, None, Some(proof(&adopted))).unwrap();
}

#[test]
fn a_certificate_of_a_store_of_before_is_known_by_its_number_and_its_end() {
    let desk = Desk::new();
    let held = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    let ledger = desk.store.ledger().unwrap();
    let leaf = ledger.leaves(0).unwrap().remove(0);
    let leaf = Leaf { sha256: None, ..leaf };
    assert!(ledger.add_leaf(&leaf, millis(desk.now.wall)).unwrap());
    ledger.commit().unwrap();
    let other_end = Proof {
        not_after: desk.now.wall + Duration::from_secs(3600),
        ..proof(&held)
    };
    let reason = desk.reason(None, None, Some(other_end));
    assert_eq!(reason, RefusalReason::CertificateUnknown);
    desk.ask(None, None, Some(proof(&held))).unwrap();
}

#[test]
fn a_certificate_whose_root_was_taken_away_is_not_renewed_by_a_connection_from_before() {
    let desk = Desk::new();
    let told = desk.ca.trusted();
    let held = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    assert_eq!(held.roots, told.borrow().name);
    rotation::start(&desk.ca, &desk.store, "ann", desk.now.wall).unwrap();
    let renewed = desk.ask(None, None, Some(proof(&held))).unwrap();
    assert_ne!(renewed.roots, held.roots);
    assert_eq!(renewed.roots, told.borrow().name);
    // By word, though the first certificate was handed out without it.
    rotation::sign(&desk.ca, &desk.store, "ann", desk.now.wall).unwrap();
    assert!(rotation::sign(&desk.ca, &desk.store, "ann", desk.now.wall).is_err());
    let of_new = desk.ask(None, None, Some(proof(&renewed))).unwrap();
    assert!(leads_to(&of_new.certificates, &of_new.bundle[1]));
    rotation::finish(&desk.ca, &desk.store, "ann", true, desk.now.wall).unwrap();
    let reason = desk.reason(None, None, Some(proof(&renewed)));
    assert_eq!(reason, RefusalReason::NoCredential);
    let last = desk.ask(None, None, Some(proof(&of_new))).unwrap();
    assert_eq!((last.bundle.len(), &last.roots), (1, &told.borrow().name));
}

#[test]
fn who_fails_beside_a_workload_does_not_keep_it_from_renewing() {
    let desk = Desk::new();
    let held = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    let guess = "ort1.0000000000000000.AAAA.AAAA";
    // All of them have one address.
    for _ in 0..30 {
        desk.ask(Some(guess), None, None).unwrap_err();
    }
    assert_eq!(desk.reason(Some(guess), None, None), RefusalReason::RateLimited);
    desk.ask(None, None, Some(proof(&held))).unwrap();
    // A certificate is no cover for guessing.
    let shown = Some(proof(&held));
    assert_eq!(desk.reason(Some(guess), None, shown), RefusalReason::RateLimited);
    // Nor does who repeats its number, by the stolen key of a root.
    let forged = || Proof {
        sha256: [7; 32],
        ..proof(&held)
    };
    let reasons = (0..30).map(|_| desk.reason(None, None, Some(forged())));
    assert_eq!(reasons.last(), Some(RefusalReason::RateLimited));
    desk.ask(None, None, Some(proof(&held))).unwrap();
    // And it has a limit of its own, from wherever it comes.
    let failures = (0..30).map(|_| desk.reason(None, Some("ratings"), Some(proof(&held))));
    let reasons: Vec<RefusalReason> = failures.collect();
    assert_eq!(reasons[..20], [RefusalReason::OtherService; 20]);
    assert_eq!(reasons[20..], [RefusalReason::RateLimited; 10]);
}

#[test]
fn one_workload_that_renews_in_a_loop_does_not_take_the_room_of_all() {
    let mut desk = Desk::new();
    let mut held = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    let mut renewed = 0;
    // For three lives of a certificate, always by the newest that it was given.
    for _ in 0..3 * 8 {
        while let Ok(next) = desk.ask(None, None, Some(proof(&held))) {
            held = next;
            renewed += 1;
        }
        desk.later(Duration::from_secs(3 * 3600));
        let alive = desk.store.leaves(millis(desk.now.wall)).unwrap();
        let of_it = alive.iter().filter(|leaf| leaf.service == "reviews").count();
        assert!(of_it <= 33, "{of_it} certificates are alive");
    }
    assert!(renewed > 3 * 2, "{renewed}");
    desk.ask(Some(&desk.token("ratings", 1)), None, None).unwrap();
}

#[test]
fn a_certificate_renews_itself_until_it_expires_or_is_revoked() {
    let mut desk = Desk::new();
    let first = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    let second = desk.ask(None, Some("reviews"), Some(proof(&first))).unwrap();
    assert_eq!(second.spiffe_id, first.spiffe_id);
    assert_ne!(second.serial, first.serial);
    assert_eq!(
        desk.reason(None, Some("ratings"), Some(proof(&first))),
        RefusalReason::OtherService
    );
    let control = Proof {
        spiffe_id: "spiffe://mesh.local/outrigger/control".into(),
        ..proof(&first)
    };
    assert_eq!(
        desk.reason(None, None, Some(control)),
        RefusalReason::OtherService
    );
    desk.mesh(&format!("revoked: {{ serials: [\"{}\"] }}", second.serial));
    assert_eq!(
        desk.reason(None, None, Some(proof(&second))),
        RefusalReason::IdentityRevoked
    );
    let third = desk.ask(None, None, Some(proof(&first))).unwrap();
    // What it joined with ends all that came of it, and nobody else's.
    desk.mesh(&format!("revoked: {{ serials: [\"{}\"] }}", first.serial));
    for held in [&first, &second, &third] {
        let proof = Some(proof(held));
        assert_eq!(desk.reason(None, None, proof), RefusalReason::IdentityRevoked);
    }
    let other = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    desk.ask(None, None, Some(proof(&other))).unwrap();
    desk.mesh("revoked: { identities: [\"spiffe://mesh.local/reviews\"] }");
    assert_eq!(
        desk.reason(None, None, Some(proof(&second))),
        RefusalReason::IdentityRevoked
    );
    let token = desk.token("reviews", 1);
    assert_eq!(
        desk.reason(Some(&token), None, None),
        RefusalReason::IdentityRevoked
    );
    desk.mesh("");
    desk.ask(Some(&token), None, None).unwrap();
    desk.later(Duration::from_secs(24 * 3600));
    assert_eq!(
        desk.reason(None, None, Some(proof(&second))),
        RefusalReason::NoCredential
    );
}

#[test]
fn certificates_are_found_by_their_service_their_token_and_the_join_that_they_came_of() {
    let mut desk = Desk::new();
    let (token, other) = (desk.token("reviews", 2), desk.token("ratings", 1));
    let first = desk.ask(Some(&token), None, None).unwrap();
    let apart = desk.ask(Some(&token), None, None).unwrap();
    let ratings = desk.ask(Some(&other), None, None).unwrap();
    desk.later(Duration::from_secs(12 * 3600));
    let second = desk.ask(None, None, Some(proof(&first))).unwrap();
    let found = |desk: &Desk, which: Which| {
        let list = certificates::list(&desk.ca, &desk.store, &which, desk.now.wall).unwrap();
        assert_eq!(list.total, list.certificates.len());
        let serials: BTreeSet<String> = list.certificates.into_iter().map(|found| found.serial).collect();
        serials
    };
    let set = |answers: &[&IdentityAnswer]| answers.iter().map(|answer| answer.serial.clone()).collect();
    let by_service = Which {
        service: Some("ratings".into()),
        ..Which::default()
    };
    let by_token = Which {
        token: token.split('.').nth(1).map(str::to_owned),
        ..Which::default()
    };
    let by_serial = |answer: &IdentityAnswer| Which {
        serial: Some(answer.serial.clone()),
        ..Which::default()
    };
    let all = [&first, &apart, &ratings, &second];
    assert_eq!(found(&desk, Which::default()), set(&all));
    assert_eq!(found(&desk, by_service), set(&[&ratings]));
    assert_eq!(found(&desk, by_token), set(&[&first, &apart, &second]));
    for held in [&first, &second] {
        assert_eq!(found(&desk, by_serial(held)), set(&[&first, &second]));
    }
    // Once the first has expired, it still names what came of it.
    desk.later(Duration::from_secs(12 * 3600 + 1));
    assert_eq!(found(&desk, by_serial(&first)), set(&[&second]));
    assert_eq!(found(&desk, by_serial(&apart)), set(&[]));
}

#[test]
fn the_trust_domain_is_the_mesh_documents_and_stays_while_certificates_are_alive() {
    let mut desk = Desk::new();
    desk.mesh("trust_domain: shop");
    let answer = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    assert_eq!(answer.spiffe_id, "spiffe://shop/reviews");
    // What was stored past the check of a push changes nothing.
    desk.mesh("trust_domain: other");
    let answer = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    assert_eq!(answer.spiffe_id, "spiffe://shop/reviews");
    let other = || Options {
        trust_domain: Some("third".into()),
        ..Options::default()
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("ca")).unwrap();
    drop((desk.store, desk.ca));
    for file in ["store.redb", "ca/root-1.key"] {
        std::fs::copy(desk.folder.path().join(file), folder.path().join(file)).unwrap();
    }
    let error = open(folder.path(), other(), desk.now).unwrap_err().to_string();
    assert!(
        error.contains("certificates of `shop` are alive until"),
        "{error}"
    );
    desk.now.wall += Duration::from_secs(25 * 3600);
    open(folder.path(), other(), desk.now).unwrap();
}

#[test]
fn a_restart_keeps_the_root_and_the_tokens_and_a_key_that_is_gone_is_said() {
    let desk = Desk::new();
    let token = desk.token("reviews", 2);
    let first = desk.ask(Some(&token), None, None).unwrap();
    let desk = desk.again(Options::default()).unwrap();
    let second = desk.ask(Some(&token), None, None).unwrap();
    assert_eq!(second.bundle, first.bundle);
    assert!(leads_to(&second.certificates, &first.bundle[0]));
    assert_eq!(desk.reason(Some(&token), None, None), RefusalReason::TokenUsedUp);
    let key = desk.folder.path().join("ca/root-1.key");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        std::fs::metadata(key.parent().unwrap())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
    std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let folder = desk.folder.path().to_owned();
    let Desk {
        folder: _kept,
        store,
        ca,
        ..
    } = desk;
    drop((store, ca));
    let error = open(&folder, Options::default(), now()).unwrap_err().to_string();
    assert!(error.contains("not the one of the stored root"), "{error}");
    std::fs::remove_file(&key).unwrap();
    let error = open(&folder, Options::default(), now()).unwrap_err().to_string();
    assert!(error.contains("restore it from a backup"), "{error}");
}

/// A root and an intermediate as an operator has them, with these days of validity for the intermediate.
fn given(folder: &Path, days: i64, adjust: impl FnOnce(&mut CertificateParams)) -> (Given, String) {
    let day = |days| now().wall + time::Duration::days(days);
    let mut root = CertificateParams::default();
    root.distinguished_name
        .push(DnType::CommonName, "the operator's root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (root.not_before, root.not_after) = (day(-100), day(100));
    let root_key = KeyPair::generate().unwrap();
    let root_certificate = root.self_signed(&root_key).unwrap().pem();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "the operator's intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (day(-50), day(days));
    adjust(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params
        .signed_by(&key, &Issuer::new(root, root_key))
        .unwrap()
        .pem();
    let files = Given {
        certificates: folder.join("ca.crt"),
        key: folder.join("ca.key"),
    };
    std::fs::write(&files.certificates, format!("{certificate}{root_certificate}")).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    (files, root_certificate)
}

fn with(given: &Given) -> Options {
    Options {
        given: Some(given.clone()),
        ..Options::default()
    }
}

#[test]
fn an_intermediate_that_is_given_signs_and_its_chain_comes_along() {
    let (files, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (given, root) = given(files.path(), 30, |_| {});
    let (store, ca) = open(data.path(), with(&given), now()).unwrap();
    let desk = Desk {
        folder: data,
        store,
        ca,
        now: now(),
    };
    let answer = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    assert_eq!((answer.certificates.len(), answer.bundle.len()), (2, 1));
    assert_eq!(answer.bundle[0], root);
    assert!(leads_to(&answer.certificates, &root));
    let error = desk.again(Options::default()).err().unwrap().to_string();
    assert!(error.contains("--ca-cert and --ca-key"), "{error}");
}

#[test]
fn a_certificate_does_not_outlive_the_intermediate_and_none_comes_from_one_that_expired() {
    let (files, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (given, _) = given(files.path(), 1, |params| {
        params.not_after = now().wall + time::Duration::HOUR;
    });
    let (store, ca) = open(data.path(), with(&given), now()).unwrap();
    let mut desk = Desk {
        folder: data,
        store,
        ca,
        now: now(),
    };
    let token = desk.token("reviews", 5);
    let answer = desk.ask(Some(&token), None, None).unwrap();
    assert_eq!(answer.not_after, rfc3339(desk.now.wall + time::Duration::HOUR));
    desk.later(Duration::from_secs(3599));
    desk.ask(Some(&token), None, None).unwrap();
    desk.later(Duration::from_secs(1));
    let first = desk.token("reviews", 1);
    assert_eq!(
        desk.reason(Some(&first), None, None),
        RefusalReason::CaUnavailable
    );
}

#[test]
fn another_root_is_not_taken_while_certificates_of_the_first_are_alive() {
    let files = tempfile::tempdir().unwrap();
    let (given, root) = given(files.path(), 30, |_| {});
    let mut desk = Desk::new();
    desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
    let Desk {
        folder, store, ca, ..
    } = desk;
    drop((store, ca));
    let error = open(folder.path(), with(&given), now()).unwrap_err().to_string();
    assert!(error.contains("1 living certificates"), "{error}");
    let mut later = now();
    later.wall += Duration::from_secs(24 * 3600 + 1);
    let (store, ca) = open(folder.path(), with(&given), later).unwrap();
    desk = Desk {
        folder,
        store,
        ca,
        now: later,
    };
    assert_eq!(desk.ca.bundle(&desk.store).unwrap(), [root]);
}

#[test]
fn what_is_wrong_with_a_ca_that_is_given_is_said_all_at_once() {
    let (files, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let refused = |given: &Given| open(data.path(), with(given), now()).unwrap_err().to_string();
    let (files_given, _) = given(files.path(), -1, |params| params.is_ca = IsCa::ExplicitNoCa);
    std::fs::write(&files_given.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let said = refused(&files_given);
    for part in [
        "does not say CA:TRUE",
        "expired at 2030-",
        "the key is not the one of the first certificate",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (files_given, root) = given(files.path(), 30, |params| {
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
    });
    assert!(refused(&files_given).contains("leaves keyCertSign out"));
    let (files_given, _) = given(files.path(), 30, |_| {});
    let whole = std::fs::read_to_string(&files_given.certificates).unwrap();
    let alone = whole
        .split_inclusive("-----END CERTIFICATE-----\n")
        .next()
        .unwrap();
    std::fs::write(&files_given.certificates, alone).unwrap();
    assert!(refused(&files_given).contains("is the last and is not a root"));
    std::fs::write(&files_given.certificates, format!("{alone}{root}")).unwrap();
    assert!(refused(&files_given).contains("is not signed by the one after it"));
    std::fs::write(&files_given.certificates, "hello").unwrap();
    assert!(refused(&files_given).contains("it holds 0 certificates"));
    std::fs::write(&files_given.key, "hello").unwrap();
    let said = refused(&files_given);
    assert!(
        said.contains("not a private key that can be read") && said.contains("0 certificates"),
        "{said}"
    );
    std::fs::remove_file(&files_given.key).unwrap();
    assert!(refused(&files_given).contains("No such file"));
}

#[test]
fn an_intermediate_whose_name_cannot_be_written_back_is_refused() {
    let (files, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // rcgen keeps one part of each kind; openssl writes as many as it is given.
    let run = |arguments: &[&str]| {
        let ended = std::process::Command::new("openssl")
            .args(arguments)
            .current_dir(files.path())
            .output()
            .unwrap();
        assert!(
            ended.status.success(),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
    };
    run(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-days",
        "30",
        "-subj",
        "/DC=example/DC=shop/CN=root",
    ]);
    let given = Given {
        certificates: files.path().join("ca.crt"),
        key: files.path().join("ca.key"),
    };
    let today = Now::read();
    match open(data.path(), with(&given), today) {
        Err(error) => assert!(
            error.to_string().contains("cannot be written as an issuer"),
            "{error}"
        ),
        Ok((store, ca)) => {
            // A later release of the library may keep them apart: then what it signs must lead to the root.
            let desk = Desk {
                folder: data,
                store,
                ca,
                now: today,
            };
            let answer = desk.ask(Some(&desk.token("reviews", 1)), None, None).unwrap();
            assert!(leads_to(&answer.certificates, &answer.bundle[0]));
        }
    }
}

#[test]
fn one_root_follows_another_once_every_sidecar_knows_it() {
    let mut desk = Desk::new();
    let token = desk.token("reviews", 10);
    let a = desk.ask(Some(&token), None, None).unwrap();
    let b = desk.ask(Some(&token), None, None).unwrap();
    rotation::start(&desk.ca, &desk.store, "ann", desk.now.wall).unwrap();
    assert!(rotation::start(&desk.ca, &desk.store, "ann", desk.now.wall).is_err());
    let old = a.bundle[0].clone();
    desk.later(Duration::from_secs(12 * 3600));
    // The first to renew is told of both, and is signed by the old one: the other does not know the new one yet.
    let a2 = desk.ask(None, None, Some(proof(&a))).unwrap();
    assert_eq!(a2.bundle.len(), 2);
    assert!(leads_to(&a2.certificates, &old));
    let error = rotation::finish(&desk.ca, &desk.store, "ann", false, desk.now.wall)
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not sign yet"), "{error}");
    let b2 = desk.ask(None, None, Some(proof(&b))).unwrap();
    assert!(leads_to(&b2.certificates, &old));
    // A restart in between forgets nothing of it.
    let mut desk = desk.again(Options::default()).unwrap();
    desk.later(Duration::from_secs(12 * 3600 + 1));
    let a3 = desk.ask(None, None, Some(proof(&a2))).unwrap();
    let new = a3.bundle[1].clone();
    assert_ne!(new, old);
    assert!(
        leads_to(&a3.certificates, &new),
        "all who do not know it have expired"
    );
    assert_eq!(a3.bundle[0], old);
    let error = rotation::finish(&desk.ca, &desk.store, "ann", false, desk.now.wall)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("2 certificates of the old root are alive"),
        "{error}"
    );
    let b3 = desk
        .ask(None, None, Some(proof(&b2)))
        .map(|answer| answer.bundle.len());
    assert_eq!(b3, Ok(2));
    desk.later(Duration::from_secs(12 * 3600 + 1));
    rotation::finish(&desk.ca, &desk.store, "ann", false, desk.now.wall).unwrap();
    assert_eq!(desk.ca.bundle(&desk.store).unwrap(), [new]);
    assert!(!desk.folder.path().join("ca/root-1.key").exists());
    desk.again(Options::default()).unwrap();
}

#[test]
fn the_old_root_stays_while_a_good_token_names_it_unless_it_is_taken_away_by_force() {
    let mut desk = Desk::new();
    let (early, other) = (desk.token("reviews", 9), desk.token("ratings", 1));
    rotation::start(&desk.ca, &desk.store, "ann", desk.now.wall).unwrap();
    desk.ask(Some(&early), None, None).unwrap();
    let late = desk.token("reviews", 9);
    let roots = |token: &str| {
        tokens::list(&desk.store, desk.now.wall)
            .unwrap()
            .iter()
            .find(|view| token.contains(&view.id))
            .map(|view| view.root)
    };
    assert_eq!((roots(&early), roots(&late)), (Some(1), Some(2)));
    let finish =
        |force: bool, now: OffsetDateTime| rotation::finish(&desk.ca, &desk.store, "ann", force, now);
    let error = finish(false, desk.now.wall).unwrap_err().to_string();
    assert!(
        error.contains("2 tokens that are good name the old root"),
        "{error}"
    );
    // One that was used up holds nothing.
    desk.ask(Some(&other), None, None).unwrap();
    let status = rotation::status(&desk.ca, &desk.store, desk.now.wall).unwrap();
    assert_eq!(status.tokens_of_older_root, 1);
    assert!(status.next.contains("tokens that are good"), "{}", status.next);
    finish(true, desk.now.wall).unwrap();
    let last = desk.store.audit_newest(1).unwrap();
    assert_eq!((last[0].deed, last[0].who.as_str()), (Deed::RootRemoved, "ann"));
    assert!(
        last[0].note.contains("0 certificates and 1 tokens"),
        "{}",
        last[0].note
    );
    // What has expired holds nothing either.
    rotation::start(&desk.ca, &desk.store, "ann", desk.now.wall).unwrap();
    desk.later(Duration::from_secs(25 * 3600));
    rotation::finish(&desk.ca, &desk.store, "ann", false, desk.now.wall).unwrap();
}

#[test]
fn a_token_of_no_service_or_of_no_length_is_not_made() {
    let desk = Desk::new();
    let ttl = units::Duration::from_secs(60);
    for (service, ttl, uses) in [
        ("Reviews", ttl, 1),
        ("outrigger/control", ttl, 1),
        ("reviews", units::Duration::from_secs(0), 1),
        ("reviews", units::Duration::from_secs(31 * 24 * 3600), 1),
        ("reviews", ttl, 0),
        ("reviews", ttl, 10_001),
    ] {
        let wanted = NewToken {
            service: service.into(),
            ttl,
            uses,
        };
        let made = tokens::create(&desk.ca, &desk.store, wanted, "ann", desk.now.wall);
        assert!(matches!(made, Err(CaError::Wrong(_))), "{service} {ttl} {uses}");
    }
}

#[test]
fn the_status_waits_for_nobody_who_writes() {
    let desk = Desk::new();
    let held = desk.store.ledger().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let status = rotation::status(&desk.ca, &desk.store, desk.now.wall);
            sender.send(status).unwrap();
        });
        let status = receiver.recv_timeout(Duration::from_secs(20));
        drop(held);
        assert_eq!(status.unwrap().unwrap().trust_domain, "mesh.local");
    });
}

#[test]
fn an_answer_that_was_lost_is_given_again_to_the_same_key_and_to_no_other() {
    let mut desk = Desk::new();
    let token = desk.token("reviews", 1);
    let csr = csr();
    let ask = |desk: &Desk, csr: &str| {
        let request = IdentityRequest {
            csr: csr.to_owned(),
            token: Some(token.clone()),
            service: None,
        };
        desk.send(Ok(request), None).map_err(|refused| refused.reason)
    };
    let first = ask(&desk, &csr).unwrap();
    assert_eq!(ask(&desk, &self::csr()).unwrap_err(), RefusalReason::TokenUsedUp);
    let again = ask(&desk, &csr).unwrap();
    assert_ne!(again.serial, first.serial);
    assert_eq!(tokens::list(&desk.store, desk.now.wall).unwrap()[0].uses, 1);
    // A minute, and a few times: it is no way to make certificates without end.
    assert!(ask(&desk, &csr).is_ok() && ask(&desk, &csr).is_ok());
    assert_eq!(ask(&desk, &csr).unwrap_err(), RefusalReason::TokenUsedUp);

    let token = desk.token("reviews", 1);
    let ask = |desk: &Desk| {
        let request = IdentityRequest {
            csr: csr.clone(),
            token: Some(token.clone()),
            service: None,
        };
        desk.send(Ok(request), None).map_err(|refused| refused.reason)
    };
    let first = ask(&desk).unwrap();
    // It is the same join: whoever revokes what came of it revokes the second answer too, and those to come.
    let again = ask(&desk).unwrap();
    let leaves = desk.store.leaves(0).unwrap();
    let leaf = leaves.iter().find(|leaf| leaf.serial == again.serial);
    assert_eq!(leaf.unwrap().joined, first.serial);
    desk.mesh(&format!("revoked: {{ serials: [\"{}\"] }}", first.serial));
    assert_eq!(ask(&desk).unwrap_err(), RefusalReason::IdentityRevoked);
    let renewed = desk.reason(None, None, Some(proof(&again)));
    assert_eq!(renewed, RefusalReason::IdentityRevoked);
    desk.mesh("");
    desk.later(Duration::from_secs(61));
    assert_eq!(ask(&desk).unwrap_err(), RefusalReason::TokenUsedUp);
}
