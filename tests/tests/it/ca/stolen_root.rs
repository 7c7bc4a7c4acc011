//! Who has stolen the key of the root: nothing that was signed by it elsewhere is renewed here, and replacing the root
//! shuts it out, at the API and at the sidecars.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::pki::Issued;
use outrigger_tests::tls::TlsRelay;
use outrigger_tests::{Ask, Client, IdentityFiles, Sidecar, SidecarSpec, Upstream};
use serde_json::Value;

use super::joined::push;
use super::over_tls::{SHOWN, joined};
use super::*;

/// What curl is told to show what the thief has made.
const FORGED: &str = "--cacert known.pem --cert forged.pem --key key.pem";

impl Desk {
    /// Signs with the stolen key of the first root, as the CA would, for `spiffe://mesh.local/SERVICE`.
    fn forge(&self, service: &str, further: &str) {
        let names = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=URI:spiffe://mesh.local/{service}\n"
        );
        std::fs::write(self.path().join("ext"), names).unwrap();
        let sign = "openssl x509 -req -in csr.pem -CA known.pem -CAkey data/ca/root-1.key -days 30";
        ran(
            self.path(),
            &format!("{sign} -extfile ext {further} -out forged.pem"),
        );
    }

    fn address(&self) -> SocketAddr {
        self.url.strip_prefix("https://").unwrap().parse().unwrap()
    }

    /// A client whose connections show this certificate.
    async fn showing(&self, certificate: &str) -> (TlsRelay, IdentityFiles) {
        let read = |name: &str| std::fs::read_to_string(self.path().join(name)).unwrap();
        let issued = Issued {
            certificate: read(certificate),
            key: read("key.pem"),
        };
        let files = IdentityFiles::new(&issued, &read("known.pem"));
        let relay = TlsRelay::start(self.address(), Some(&files), None).await;
        (relay, files)
    }

    fn renewal(&self) -> Ask {
        let body = json!({ "csr": self.csr() }).to_string();
        Ask::post("/v1/identity", body)
            .header("content-type", "application/json")
            .host("api")
    }

    /// The newest refusal of the audit log.
    async fn refusal(&self) -> Value {
        let list = self.run("audit --json").await.ok().json();
        let mut rows = list["rows"].as_array().unwrap().iter().rev();
        rows.find(|row| row["deed"] == "refused").unwrap().clone()
    }
}

#[tokio::test]
async fn a_certificate_that_was_signed_elsewhere_with_the_key_of_the_root_is_not_renewed() {
    let (desk, serial) = joined().await;
    // Of a service that never joined; and with the very number of a certificate that was issued here.
    for (service, further) in [
        ("ratings", String::new()),
        ("reviews", format!("-set_serial 0x{serial}")),
    ] {
        desk.forge(service, &further);
        let (status, refused) = desk.post(&json!({ "csr": desk.csr() }), FORGED);
        assert_eq!(
            (status, &refused["reason"]),
            (403, &json!("certificate-unknown")),
            "{service}: {refused}"
        );
        let told = refused["error"].as_str().unwrap();
        assert!(told.contains("was not issued by this control API"), "{told}");
        let row = desk.refusal().await;
        assert_eq!(row["reason"], "certificate-unknown", "{row}");
        assert_eq!(row["who"], format!("spiffe://mesh.local/{service}"), "{row}");
    }
    // The certificate itself is as good as before.
    assert_eq!(desk.post(&json!({ "csr": desk.csr() }), SHOWN).0, 200);
}

#[tokio::test]
async fn a_connection_under_a_root_that_was_taken_away_renews_nothing_and_is_closed() {
    let (desk, _) = joined().await;
    let (relay, _files) = desk.showing("chain.pem").await;
    let mut connection = Client::new(relay.address()).connect().await;
    assert_eq!(connection.send(&desk.renewal()).await.unwrap().status(), 200);
    desk.run("ca rotate start").await.ok();
    desk.run("ca rotate finish --force").await.ok();
    match connection.send(&desk.renewal()).await {
        // It was on its way before the connection was closed.
        Ok(reply) => assert_eq!(
            (reply.status(), &reply.json()["reason"]),
            (401, &json!("no-credential"))
        ),
        Err(closed) => drop(closed),
    }
    eventually("the connection to be closed", async || {
        connection.send(&desk.renewal()).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn in_an_emergency_the_old_root_goes_as_soon_as_there_is_a_new_one() {
    let (mut desk, _) = joined().await;
    desk.run("ca rotate start").await.ok();
    let status = desk.run("ca rotate status --json").await.ok().json();
    let newest = status["roots"][1]["fingerprint"].as_str().unwrap().to_owned();
    desk.run("ca rotate finish --force").await.ok();
    desk.known_by[1] = newest;
    eventually("the API under the new root alone", async || {
        let status = desk.run("ca rotate status --json").await;
        (status.code == 0)
            .then(|| status.json()["roots"].as_array().unwrap().len() == 1)?
            .then_some(())
    })
    .await;
    assert!(!desk.data().join("ca/root-1.key").exists());
    let list = desk.run("audit --json").await.ok().json();
    let row = list["rows"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (&row["deed"], &row["serial"]),
        (&json!("root-removed"), &json!("1")),
        "{row}"
    );
    assert!(
        row["note"]
            .as_str()
            .unwrap()
            .starts_with("by force: 1 certificates"),
        "{row}"
    );
}

/// The serial number of a sidecar's certificate, and the roots that it trusts.
async fn holds(sidecar: &Sidecar) -> (Value, Vec<Value>) {
    let identity = sidecar.page("/certs").await.json()["identity"].clone();
    let roots = identity["roots"].as_array().cloned().unwrap_or_default();
    (identity["certificate"]["serial"].clone(), roots)
}

#[tokio::test]
async fn sidecars_learn_of_each_change_of_the_roots_at_once_and_shut_out_who_has_the_old_key() {
    // A day of certificates: nothing here is waiting for half of it.
    let mut desk = Desk::over_tls(&[]).await;
    let known = desk.run("ca bundle").await.ok().stdout;
    std::fs::write(desk.path().join("known.pem"), known).unwrap();
    let token = desk.token("reviews", 1, "10m").await;
    let spec = SidecarSpec::control("reviews-1", &desk.url).beside("reviews");
    let sidecar = Sidecar::launch(spec.environment("OUTRIGGER_TOKEN", &token)).await;
    let app = Upstream::start("a").await;
    push(&desk, app.address(), sidecar.inbound()).await;
    sidecar
        .config_when("its service", |config| config.to_string().contains("strict"))
        .await;
    sidecar.is_ready().await;
    let (first, roots) = holds(&sidecar).await;
    assert_eq!(roots.len(), 1);
    desk.forge("productpage", "");
    let call = format!(
        "curl -sS -k --cert forged.pem --key key.pem https://{}/ -H host:reviews",
        sidecar.inbound()
    );
    let ended = run(desk.path(), &call);
    assert!(ended.status.success(), "the thief is in: {ended:?}");
    let began = std::time::Instant::now();
    let until = async |what: &str, count: usize, before: &Value| {
        eventually(what, async || {
            let (serial, roots) = holds(&sidecar).await;
            (roots.len() == count && serial != *before).then_some((serial, roots))
        })
        .await
    };
    desk.run("ca rotate start").await.ok();
    let (second, _) = until("both roots", 2, &first).await;
    desk.run("ca rotate sign").await.ok();
    let (third, _) = until("a certificate of the new root", 2, &second).await;
    let status = desk.run("ca rotate status --json").await.ok().json();
    desk.known_by[1] = status["roots"][1]["fingerprint"].as_str().unwrap().to_owned();
    desk.run("ca rotate finish --force").await.ok();
    let (_, left) = until("the new root alone", 1, &third).await;
    assert_ne!(left, roots);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    // It has never joined again, and what it holds is renewed by nothing but itself.
    assert_eq!(desk.listed(&token).await["uses"], 1);
    let ended = run(desk.path(), &call);
    assert!(!ended.status.success(), "{ended:?}");
}
